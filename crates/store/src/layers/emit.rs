//! From a layer's index and tree to its tar, in one pass.

use super::entry::{EntryKind, LayerEntry, split_path};
use super::error::{LayerError, shown};
use super::folder;
use super::index::LayerIndex;
use super::index_format::{EncodedIndex, Visit};
use super::pack::{Pack, PackedBytes};
use super::tar_writer::{self, BLOCK};
use crate::{StoreError, TarOptions};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

const BUFFER: usize = 1 << 17;

/// What a tar is written from.
pub(super) trait Entries {
    /// Visits every entry, in order.
    fn each(&self, visit: &mut Visit<'_>) -> Result<(), StoreError>;
}

impl Entries for LayerIndex {
    fn each(&self, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let first = |first: u32| &self.entries()[first as usize].path[..];
        self.entries().iter().enumerate().try_for_each(|(at, entry)| visit(at, entry, entry.link.map(first)))
    }
}

impl Entries for EncodedIndex {
    fn each(&self, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.each(visit)
    }
}

/// Takes the bytes of a tar and is told where its entries begin.
pub(super) trait TarSink {
    /// Headers and data of an entry follow, of these lengths; `mark` depends on its path and content alone.
    fn begin_entry(&mut self, mark: u64, headers: u64, data: u64) -> Result<(), StoreError>;
    /// The next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError>;
}

/// What is done so that the tar is the one that it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vigilance {
    /// The sizes of files are looked at: whoever takes the tar hashes it.
    Sizes,
    /// The bytes of files are compared with the index too.
    Bytes,
}

/// Writes the whole tar, with its end.
///
/// # Errors
/// Those of the sink; a file that is not there or not as the index says.
pub(super) fn emit(
    entries: &dyn Entries,
    files: &mut Files,
    options: &TarOptions,
    vigilance: Vigilance,
    sink: &mut dyn TarSink,
) -> Result<(), StoreError> {
    let mut headers = Vec::new();
    entries.each(&mut |position, entry, first| {
        if !entry.is_change() {
            return Ok(());
        }
        headers.clear();
        tar_writer::put_entry(entry, first, options, &mut headers);
        let size = entry.size();
        sink.begin_entry(mark_of(entry), headers.len() as u64, size + tar_writer::padding(size) as u64)?;
        sink.write(&headers)?;
        if size > 0 {
            let hash = match &entry.kind {
                EntryKind::File { blake3, .. } if vigilance == Vigilance::Bytes => Some(blake3),
                _ => None,
            };
            files.copy(&Wanted { position, path: &entry.path, size, hash }, sink)?;
            sink.write(&[0; BLOCK][..tar_writer::padding(size)])?;
        }
        Ok(())
    })?;
    sink.begin_entry(0, 2 * BLOCK as u64, 0)?;
    sink.write(&[0; 2 * BLOCK])
}

/// What a cut between chunks may depend on: the entry itself and nothing around it.
fn mark_of(entry: &LayerEntry) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&entry.path);
    if let EntryKind::File { blake3, .. } = &entry.kind {
        hasher.update(blake3);
    }
    let hash = hasher.finalize();
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has more than eight bytes"))
}

/// A file whose bytes are to be handed on.
pub(super) struct Wanted<'a> {
    /// Where it stands in the index.
    pub(super) position: usize,
    pub(super) path: &'a [u8],
    pub(super) size: u64,
    /// What the bytes must hash to, if that is to be looked at.
    pub(super) hash: Option<&'a [u8; 32]>,
}

impl Wanted<'_> {
    fn changed(&self, reason: &'static str) -> LayerError {
        LayerError::TreeChanged { path: shown(self.path), reason }
    }

    /// Compares what was handed on.
    fn check(&self, hasher: &blake3::Hasher) -> Result<(), StoreError> {
        match self.hash.is_none_or(|hash| hasher.finalize() == *hash) {
            true => Ok(()),
            false => Err(self.changed("its bytes changed").into()),
        }
    }
}

/// Where the bytes of a layer's files are read.
pub(super) enum Files {
    Tree(TreeFiles),
    Pack(PackFiles),
}

impl Files {
    pub(super) fn of_tree(tree: PathBuf) -> Result<Self, StoreError> {
        let root = folder::open_root(&tree).map_err(StoreError::os("open", &tree))?;
        Ok(Self::Tree(TreeFiles { tree, root, parent: None, buffer: vec![0; BUFFER] }))
    }

    pub(super) fn of_pack(pack: Pack) -> Self {
        Self::Pack(PackFiles { pack, window: Vec::new(), begin: None })
    }

    pub(super) fn copy(&mut self, wanted: &Wanted<'_>, sink: &mut dyn TarSink) -> Result<(), StoreError> {
        match self {
            Self::Tree(files) => files.copy(wanted, sink),
            Self::Pack(files) => files.copy(wanted, sink),
        }
    }
}

/// Reads files of a pack, which mostly follow each other there: a window of its bytes is kept.
pub(super) struct PackFiles {
    pack: Pack,
    window: Vec<u8>,
    /// Where the window begins.
    begin: Option<PackedBytes>,
}

const WINDOW: u64 = 1 << 20;

impl PackFiles {
    fn copy(&mut self, wanted: &Wanted<'_>, sink: &mut dyn TarSink) -> Result<(), StoreError> {
        let place = self.pack.get(wanted.position).expect("what has bytes has a place");
        let mut hasher = blake3::Hasher::new();
        let mut done = 0;
        while done < wanted.size {
            let count = WINDOW.min(wanted.size - done);
            let from = self.show(place.end(done), count)?;
            let bytes = &self.window[from..from + count as usize];
            if wanted.hash.is_some() {
                hasher.update(bytes);
            }
            sink.write(bytes)?;
            done += count;
        }
        wanted.check(&hasher)
    }

    /// Makes the window hold so many bytes of a place; says where in it they begin.
    fn show(&mut self, place: PackedBytes, count: u64) -> Result<usize, StoreError> {
        if let Some(begin) = self.begin.filter(|begin| begin.file == place.file && begin.offset <= place.offset) {
            let from = place.offset - begin.offset;
            if from + count <= self.window.len() as u64 {
                return Ok(from as usize);
            }
        }
        let (_, end) = self.pack.data(place)?;
        self.begin = None;
        self.window.resize(WINDOW.min(end - place.offset) as usize, 0);
        self.pack.read_at(place, 0, &mut self.window)?;
        self.begin = Some(place);
        Ok(0)
    }
}

/// Reads files of a tree; the folder of the last one stays open, since its siblings follow.
pub(super) struct TreeFiles {
    tree: PathBuf,
    root: OwnedFd,
    parent: Option<(Vec<u8>, OwnedFd)>,
    buffer: Vec<u8>,
}

impl TreeFiles {
    fn copy(&mut self, wanted: &Wanted<'_>, sink: &mut dyn TarSink) -> Result<(), StoreError> {
        let mut file = self.open(wanted.path)?;
        let mut left = wanted.size;
        let mut hasher = blake3::Hasher::new();
        loop {
            let count = file.read(&mut self.buffer).map_err(self.io_error(wanted.path))?;
            if count as u64 > left || (count == 0 && left > 0) {
                return Err(wanted.changed("its size changed").into());
            }
            if count == 0 {
                return wanted.check(&hasher);
            }
            left -= count as u64;
            if wanted.hash.is_some() {
                hasher.update(&self.buffer[..count]);
            }
            sink.write(&self.buffer[..count])?;
        }
    }

    fn open(&mut self, path: &[u8]) -> Result<File, StoreError> {
        let (parent, name) = split_path(path).expect("a file has a name");
        if self.parent.as_ref().is_none_or(|(open, _)| open != parent) {
            let folder = folder::open_folder(self.root.as_fd(), parent).map_err(self.error(path))?;
            self.parent = Some((parent.to_vec(), folder));
        }
        let (_, folder) = self.parent.as_ref().expect("it was opened above");
        Ok(folder::open_file(folder.as_fd(), name).map_err(self.error(path))?.into())
    }

    fn error(&self, path: &[u8]) -> impl FnOnce(rustix::io::Errno) -> StoreError {
        StoreError::os("open", self.tree.join(OsStr::from_bytes(path)))
    }

    fn io_error(&self, path: &[u8]) -> impl FnOnce(std::io::Error) -> StoreError {
        StoreError::io("read", self.tree.join(OsStr::from_bytes(path)))
    }
}
