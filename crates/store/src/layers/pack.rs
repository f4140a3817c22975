use super::entry::LayerEntry;
use super::error::LayerError;
use super::index::LayerIndex;
use super::pack_format::{self, Map};
use crate::StoreError;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The folder of a layer that holds the bytes of its files instead of a tree.
pub(super) const FOLDER: &str = "pack";

/// The file in it that says where they are.
pub(super) const MAP: &str = "map";

/// The file in it that names the last layer of the same paths, if there was one.
pub(super) const LAST: &str = "last";

/// Where the bytes of a file are in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PackedBytes {
    /// Which of the pack's data files.
    pub(super) file: u32,
    pub(super) offset: u64,
}

impl PackedBytes {
    /// Which of the pack's data files they are in.
    pub fn file(&self) -> u32 {
        self.file
    }

    /// The place behind so many bytes.
    pub fn end(&self, size: u64) -> Self {
        Self { offset: self.offset + size, ..*self }
    }
}

/// The bytes of a layer's files, one after the other in a few data files.
///
/// A data file never changes once its layer is in the store: later layers link to it for the files that they share, and it
/// is there as long as one of them is.
pub struct Pack {
    folder: PathBuf,
    files: Vec<DataFile>,
    /// Of each entry of the index that has bytes of its own.
    places: Vec<Option<PackedBytes>>,
}

struct DataFile {
    name: String,
    size: u64,
    /// Opened when it is read, and closed by [`Pack::close_files`].
    file: Mutex<Option<Arc<File>>>,
}

impl Pack {
    /// Opens the pack of a layer; `None` where it has none.
    pub(super) fn open(layer: &Path, index: &LayerIndex) -> Result<Option<Self>, StoreError> {
        Self::with_sizes(layer, index.entries().iter().map(LayerEntry::size))
    }

    /// The same, where of the index nothing is known but the bytes of each entry.
    pub(super) fn with_sizes(
        layer: &Path,
        sizes: impl ExactSizeIterator<Item = u64>,
    ) -> Result<Option<Self>, StoreError> {
        let folder = layer.join(FOLDER);
        let path = folder.join(MAP);
        let map = match std::fs::read(&path) {
            Ok(bytes) => pack_format::decode(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        let files = map.files.iter().map(|name| DataFile::find(&folder, name)).collect::<Result<_, _>>()?;
        let mut pack = Self { folder, files, places: Vec::with_capacity(sizes.len()) };
        pack.place(sizes, map)?;
        Ok(Some(pack))
    }

    /// Gives each entry its place, all of them within their files.
    fn place(&mut self, sizes: impl Iterator<Item = u64>, map: Map) -> Result<(), LayerError> {
        let mut places = map.places.into_iter();
        for size in sizes {
            let place = match size {
                0 => None,
                size => {
                    let place = places.next().ok_or(broken("it lacks a file"))?;
                    let file =
                        self.files.get(place.file as usize).ok_or(broken("it names a data file that is not there"))?;
                    if place.offset.checked_add(size).is_none_or(|end| end > file.size) {
                        return Err(broken("a file lies beyond the end of its data"));
                    }
                    Some(place)
                }
            };
            self.places.push(place);
        }
        if places.next().is_some() { Err(broken("it has more files than the index")) } else { Ok(()) }
    }

    /// Where the bytes of an entry are, by its position in the index; a further name of a file has none of its own.
    pub fn get(&self, position: usize) -> Option<PackedBytes> {
        self.places.get(position).copied().flatten()
    }

    /// Reads bytes of a place.
    pub(super) fn read_at(&self, place: PackedBytes, skip: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        let (file, _) = self.data(place)?;
        let read = file.read_exact_at(buffer, place.offset + skip);
        read.map_err(StoreError::io("read", &self.folder))
    }

    /// The data file of a place, and its size.
    pub(super) fn data(&self, place: PackedBytes) -> Result<(Arc<File>, u64), StoreError> {
        let data = &self.files[place.file as usize];
        let mut open = data.file();
        if let Some(file) = &*open {
            return Ok((file.clone(), data.size));
        }
        let path = self.folder.join(&data.name);
        let file = Arc::new(File::open(&path).map_err(StoreError::io("open", &path))?);
        *open = Some(file.clone());
        Ok((file, data.size))
    }

    /// Closes what was opened; what is read again is opened again.
    pub(super) fn close_files(&self) {
        self.files.iter().for_each(|data| *data.file() = None);
    }

    /// The names and sizes of the data files.
    pub(super) fn data_files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files.iter().map(|data| (&data.name[..], data.size))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl DataFile {
    fn find(folder: &Path, name: &str) -> Result<Self, StoreError> {
        let path = folder.join(name);
        let found = std::fs::symlink_metadata(&path).map_err(StoreError::io("inspect", &path))?;
        Ok(Self { name: name.to_owned(), size: found.len(), file: Mutex::default() })
    }

    /// The open file is whole at every moment.
    fn file(&self) -> MutexGuard<'_, Option<Arc<File>>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn broken(reason: &'static str) -> LayerError {
    LayerError::BrokenPack { reason }
}
