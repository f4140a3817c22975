use super::Layers;
use super::entry::LayerEntry;
use super::index::LayerIndex;
use super::index_format::{self, FileBytes};
use super::index_writer::IndexWriter;
use super::owners::Owners;
use super::pack::{FOLDER, LAST, MAP, Pack, PackedBytes};
use super::pack_format::{self, Map};
use crate::{FileTimes, LayerId, LayerRecord, Lease, ScratchDir, StoreError};
use rustix::fs::{AtFlags, CWD};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

/// A layer in the making whose files go into a pack instead of a tree.
///
/// That is for layers that nobody may ever mount: one file is written where a tree takes as many as there are files,
/// each with an inode, an owner and times of its own. Who needs the tree gets it, made from index and pack.
///
/// Places are handed out in order; writing into them may happen on several threads. Dropping it removes everything.
pub struct PackWriter {
    staged: PathBuf,
    folder: PathBuf,
    names: Vec<String>,
    /// The number of each data file of another layer that was linked to.
    linked: HashMap<String, u32>,
    own: File,
    end: u64,
    // Dropped last: it removes the folder that the fields above name.
    _scratch: ScratchDir,
}

/// An entry of a packed layer.
#[derive(Clone, Debug)]
pub struct PackedEntry {
    /// What it is.
    pub entry: LayerEntry,
    /// Where its bytes are; only a file has any, and of several names of one file the first.
    pub bytes: Option<PackedBytes>,
    /// The path of the first name, for a further name of a file.
    pub first: Option<Vec<u8>>,
}

/// The files of a pack by the hashes of their bytes.
pub struct PackContents {
    /// The pack.
    pub pack: Pack,
    /// Hashes in ascending order, each with a place where such bytes are.
    places: Vec<([u8; 32], PackedBytes)>,
}

impl PackContents {
    /// Where bytes with this hash are.
    pub fn find(&self, hash: &[u8; 32]) -> Option<PackedBytes> {
        let found = self.places.binary_search_by(|(other, _)| other.cmp(hash)).ok()?;
        Some(self.places[found].1)
    }
}

/// The number of the data file that is written, beside those that are linked to.
const OWN: u32 = 0;

/// Data files of another layer are not linked to when less than one in so many of their bytes is still wanted.
const WANTED: u64 = 2;

/// So many data files of another layer are linked to: small ones gather as one file after the other changes.
const MOST_SHARED: usize = 8;

/// Places of files as large as this begin where a block does, so that file systems that can share blocks do.
const ALIGNED: u64 = 64 << 10;
const BLOCK: u64 = 4096;

impl Layers {
    /// Begins a packed layer.
    ///
    /// # Errors
    /// The file system failed.
    pub fn pack(&self) -> Result<PackWriter, StoreError> {
        let scratch = self.opened.scratch("pack")?;
        let staged = scratch.path().join("layer");
        let folder = staged.join(FOLDER);
        crate::scratch::create_private(&staged)?;
        crate::scratch::create_private(&folder)?;
        let name = LayerId::random().to_string();
        let path = folder.join(&name);
        let own = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let own = own.map_err(StoreError::io("create", &path))?;
        let (names, linked) = (vec![name], HashMap::new());
        Ok(PackWriter { staged, folder, names, linked, own, end: 0, _scratch: scratch })
    }

    /// The pack of a layer and its entries; nothing for a layer that has none.
    ///
    /// # Errors
    /// No such layer, or its files are damaged.
    pub fn packed(&self, id: &LayerId) -> Result<Option<(LayerIndex, Pack)>, StoreError> {
        let index = self.index(id)?;
        Ok(Pack::open(&self.path(id), &index)?.map(|pack| (index, pack)))
    }

    /// What the pack of a layer holds; nothing for a layer that has none.
    ///
    /// # Errors
    /// No such layer, or its files are damaged.
    pub fn pack_contents(&self, id: &LayerId) -> Result<Option<PackContents>, StoreError> {
        let path = self.path(id).join("index");
        let bytes = std::fs::read(&path).map_err(StoreError::io("read", &path))?;
        let files = index_format::files(&bytes)?;
        drop(bytes);
        let sizes = files.iter().map(|file| file.map_or(0, |(size, _)| size));
        let Some(pack) = Pack::with_sizes(&self.path(id), sizes)? else { return Ok(None) };
        let place = |(position, file): (usize, Option<FileBytes>)| Some((file?.1, pack.get(position)?));
        let mut places: Vec<_> = files.into_iter().enumerate().filter_map(place).collect();
        places.sort_unstable_by_key(|(a, _)| *a);
        Ok(Some(PackContents { pack, places }))
    }

    /// Makes a layer of entries whose bytes were written. They stand in the order of an index, the root first, and are
    /// what is to be in the layer: nothing is compared with the layers below. Should it need a tree, that is made with
    /// links to the tree of `last`, an earlier layer of the same paths, for the files that are the same in both. `times` says which times are content.
    ///
    /// # Errors
    /// The entries are no index, or the file system or the database failed.
    pub fn commit_pack(
        &self,
        writer: PackWriter,
        entries: impl ExactSizeIterator<Item = PackedEntry>,
        last: Option<&LayerId>,
        times: FileTimes,
        lease: &Lease,
    ) -> Result<LayerRecord, StoreError> {
        let mut index = IndexWriter::new(&writer.staged.join("index"), entries.len(), times)?;
        let mut places = Vec::new();
        for PackedEntry { entry, bytes, first } in entries {
            index.push(&entry, first.as_deref())?;
            places.extend((entry.size() > 0).then(|| bytes.expect("a file with bytes has a place")));
        }
        let (content, sums) = index.finish()?;
        let map = pack_format::encode(&Map { files: writer.names.clone(), places });
        let path = writer.folder.join(MAP);
        std::fs::write(&path, map).map_err(StoreError::io("write", &path))?;
        if let Some(last) = last {
            let path = writer.folder.join(LAST);
            std::fs::write(&path, last.as_str()).map_err(StoreError::io("write", &path))?;
        }
        let record = self.record_of(content, sums, times);
        self.publish_written(&writer.staged, &record, None, lease)?;
        Ok(record)
    }
}

impl PackWriter {
    /// Whether files of an owner can be packed: in a user namespace not all exist, and who has only one shows it in
    /// the index alone, which the tree then does not say.
    pub fn can_own(uid: u32, gid: u32) -> bool {
        Owners::of_this_process().settle(uid, gid) == Ok((uid, gid))
    }

    /// A place for so many bytes.
    pub fn reserve(&mut self, size: u64) -> PackedBytes {
        let offset = if size < ALIGNED { self.end } else { self.end.next_multiple_of(BLOCK) };
        self.end = offset + size;
        PackedBytes { file: OWN, offset }
    }

    /// Writes bytes of a place that was reserved. Places that follow each other without a gap may be written as one.
    ///
    /// # Errors
    /// The file system failed.
    pub fn write(&self, place: PackedBytes, skip: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.own.write_all_at(bytes, place.offset + skip);
        written.map_err(StoreError::io("write", &self.folder))
    }

    /// Chooses the data files of another layer's pack that are worth being linked to for these places and their sizes;
    /// what is in others is to be written anew.
    pub fn choose(pack: &Pack, wanted: impl Iterator<Item = (PackedBytes, u64)>) -> HashSet<u32> {
        let mut sums: Vec<u64> = pack.data_files().map(|_| 0).collect();
        wanted.for_each(|(place, size)| sums[place.file as usize] += size);
        let worth = sums.iter().zip(pack.data_files()).map(|(sum, (_, size))| *sum > 0 && sum * WANTED >= size);
        let mut chosen: Vec<usize> = worth.enumerate().filter_map(|(file, worth)| worth.then_some(file)).collect();
        chosen.sort_unstable_by_key(|file| std::cmp::Reverse(sums[*file]));
        chosen.truncate(MOST_SHARED);
        chosen.into_iter().map(|file| file as u32).collect()
    }

    /// The place of bytes that another layer's pack holds; nothing where a data file has as many names as it can have.
    ///
    /// # Errors
    /// The file system failed.
    pub fn share(&mut self, pack: &Pack, place: PackedBytes) -> Result<Option<PackedBytes>, StoreError> {
        let (name, _) = pack.data_files().nth(place.file as usize).expect("a pack's places are in its files");
        if let Some(file) = self.linked.get(name) {
            return Ok(Some(PackedBytes { file: *file, ..place }));
        }
        let (from, to) = (pack.folder().join(name), self.folder.join(name));
        match rustix::fs::linkat(CWD, &from, CWD, &to, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::MLINK) => return Ok(None),
            Err(errno) => return Err(StoreError::os("link", &from)(errno)),
        }
        let file = self.names.len() as u32;
        self.names.push(name.to_owned());
        self.linked.insert(name.to_owned(), file);
        Ok(Some(PackedBytes { file, ..place }))
    }
}
