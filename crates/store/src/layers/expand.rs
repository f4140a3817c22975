//! The tree of a packed layer, made from its index and its pack when somebody needs it.

use super::apply;
use super::entry::{EntryKind, LayerEntry, split_path};
use super::error::{LayerError, shown};
use super::folder;
use super::index::LayerIndex;
use super::pack::Pack;
use super::restack::finish_folder;
use super::xattr::Markers;
use crate::StoreError;
use rayon::prelude::*;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// So many files of one folder are made in one go, so that large folders are shared between threads.
const BATCH: usize = 128;

/// Larger files are copied in the kernel, which may share their blocks.
const LARGE: u64 = 256 << 10;

thread_local! {
    static SPACE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The tree of an earlier layer, to whose files those that are the same can be links.
///
/// Files are the same that have one path, and metadata and bytes. One path: then no stack shows both of them, where a
/// process could take them for one file that the image has under two names. No process ever writes into the tree of a
/// layer: overlays copy a file before it is changed, with its links cut.
pub(super) struct Sibling {
    index: LayerIndex,
    /// The positions of files that have further names there.
    linked: HashSet<u32>,
    root: OwnedFd,
}

impl Sibling {
    pub(super) fn open(index: LayerIndex, tree: &Path) -> Option<Self> {
        Some(Self { linked: names_of_links(&index), index, root: folder::open_root(tree).ok()? })
    }

    /// Gives its file another name, if it is the one that the entry says. `false` for whatever reason: it can be
    /// written as well.
    fn link(&self, entry: &LayerEntry, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &[u8]) -> bool {
        let Some(position) = self.index.position(&entry.path) else { return false };
        let is_same = self.index.entries()[position] == *entry && !self.linked.contains(&(position as u32));
        let name = OsStr::from_bytes(name);
        is_same && rustix::fs::linkat(from, name, to, name, AtFlags::empty()).is_ok()
    }
}

/// Writes everything that the index says into an empty folder.
///
/// # Errors
/// The file system failed; an entry is of a kind that is never packed.
pub(super) fn expand(
    index: &LayerIndex,
    pack: &Pack,
    sibling: Option<&Sibling>,
    tree: &Path,
) -> Result<(), StoreError> {
    let root = folder::open_root(tree).map_err(StoreError::os("open", tree))?;
    let (linked, markers) = (names_of_links(index), Markers::of(tree));
    let expansion = Expansion { index, pack, sibling, linked, tree, root, markers };
    expansion.make_folders()?;
    expansion.batches().into_par_iter().try_for_each(|batch| expansion.make_files(&batch))?;
    expansion.make_links()?;
    expansion.finish_folders()
}

struct Expansion<'a> {
    index: &'a LayerIndex,
    pack: &'a Pack,
    sibling: Option<&'a Sibling>,
    /// The positions of files that get further names.
    linked: HashSet<u32>,
    tree: &'a Path,
    root: OwnedFd,
    markers: Markers,
}

fn names_of_links(index: &LayerIndex) -> HashSet<u32> {
    index.entries().iter().filter_map(|entry| entry.link).collect()
}

/// Positions of entries that lie in one folder.
struct Batch<'a> {
    folder: &'a [u8],
    positions: Vec<usize>,
}

impl<'a> Expansion<'a> {
    fn entries(&self) -> impl DoubleEndedIterator<Item = (usize, &'a LayerEntry)> + use<'a> {
        self.index.entries().iter().enumerate().skip(1)
    }

    /// Nothing but folders is there yet, so that paths lead nowhere else.
    fn make_folders(&self) -> Result<(), StoreError> {
        for (_, entry) in self.entries().filter(|(_, entry)| entry.is_directory()) {
            rustix::fs::mkdirat(&self.root, entry.path(), Mode::RWXU).map_err(self.error("create", entry))?;
        }
        Ok(())
    }

    /// What is neither a folder nor a further name, by folders.
    fn batches(&self) -> Vec<Batch<'a>> {
        let mut batches: Vec<Batch<'a>> = Vec::new();
        for (position, entry) in self.entries().filter(|(_, entry)| !entry.is_directory() && entry.link.is_none()) {
            let (folder, _) = split_path(&entry.path).expect("the root is a folder");
            match batches.last_mut().filter(|last| last.folder == folder && last.positions.len() < BATCH) {
                Some(batch) => batch.positions.push(position),
                None => batches.push(Batch { folder, positions: vec![position] }),
            }
        }
        batches
    }

    fn make_files(&self, batch: &Batch<'_>) -> Result<(), StoreError> {
        let error = || StoreError::os("open", self.tree.join(OsStr::from_bytes(batch.folder)));
        let folder = folder::open_folder(self.root.as_fd(), batch.folder).map_err(error())?;
        let beside = self.sibling.and_then(|sibling| {
            let folder = folder::open_folder(sibling.root.as_fd(), batch.folder).ok()?;
            Some((sibling, folder))
        });
        for &position in &batch.positions {
            let entry = &self.index.entries()[position];
            let (_, name) = split_path(&entry.path).expect("the root is a folder");
            let is_linked = || match &beside {
                // What has several names here would be joined with those of there.
                Some(_) if self.linked.contains(&(position as u32)) => false,
                Some((sibling, from)) => sibling.link(entry, from.as_fd(), folder.as_fd(), name),
                None => false,
            };
            match &entry.kind {
                EntryKind::File { size, .. } if *size > 0 && is_linked() => {}
                EntryKind::File { size, .. } => self.make_file(folder.as_fd(), name, position, *size)?,
                EntryKind::Symlink { target } => {
                    let make = || -> Result<(), Errno> {
                        rustix::fs::symlinkat(&**target, &folder, OsStr::from_bytes(name))?;
                        apply::set_all(folder.as_fd(), name, &entry.metadata)?;
                        apply::set_mtime(&folder, name, entry.metadata.mtime)
                    };
                    make().map_err(self.error("create", entry))?;
                }
                _ => {
                    let reason = "what it is cannot be packed";
                    return Err(LayerError::TreeChanged { path: shown(&entry.path), reason }.into());
                }
            }
        }
        Ok(())
    }

    fn make_file(&self, folder: BorrowedFd<'_>, name: &[u8], position: usize, size: u64) -> Result<(), StoreError> {
        let entry = &self.index.entries()[position];
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(entry.metadata.mode & 0o777);
        let made = rustix::fs::openat(folder, OsStr::from_bytes(name), flags, mode);
        let mut file = File::from(made.map_err(self.error("create", entry))?);
        match self.pack.get(position) {
            Some(_) if size > LARGE => self.copy_large(&mut file, position, size)?,
            Some(place) => SPACE.with_borrow_mut(|space| {
                space.resize(size as usize, 0);
                self.pack.read_at(place, 0, space)?;
                file.write_all(space).map_err(StoreError::io("write", self.tree.join(entry.path())))
            })?,
            None => {}
        }
        apply::finish_new_file(&file, &entry.metadata).map_err(self.error("set metadata of", entry))
    }

    fn copy_large(&self, file: &mut File, position: usize, size: u64) -> Result<(), StoreError> {
        let entry = &self.index.entries()[position];
        let place = self.pack.get(position).expect("it has bytes");
        let (data, _) = self.pack.data(place)?;
        let (mut from, mut left) = (place.offset, size);
        while left > 0 {
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(1 << 30);
            match rustix::fs::copy_file_range(&*data, Some(&mut from), &*file, None, count) {
                Ok(0) => {
                    let reason = "its bytes are cut off";
                    return Err(LayerError::TreeChanged { path: shown(&entry.path), reason }.into());
                }
                Ok(copied) => left -= copied as u64,
                Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) if left == size => {
                    return self.copy_by_hand(file, position, size);
                }
                Err(errno) => return Err(self.error("write", entry)(errno)),
            }
        }
        Ok(())
    }

    /// Where the kernel cannot copy.
    fn copy_by_hand(&self, file: &mut File, position: usize, size: u64) -> Result<(), StoreError> {
        let place = self.pack.get(position).expect("it has bytes");
        let mut space = vec![0; LARGE as usize];
        let mut done = 0;
        while done < size {
            let piece = &mut space[..LARGE.min(size - done) as usize];
            self.pack.read_at(place, done, piece)?;
            file.write_all(piece).map_err(StoreError::io("write", self.tree))?;
            done += piece.len() as u64;
        }
        Ok(())
    }

    fn make_links(&self) -> Result<(), StoreError> {
        for (_, entry) in self.entries() {
            let Some(first) = entry.link else { continue };
            let first = &self.index.entries()[first as usize];
            let link = || -> Result<(), Errno> {
                let place = |path| split_path(path).expect("the root is a folder");
                let ((from, old), (to, new)) = (place(&first.path), place(&entry.path));
                let (from, to) = (self.folder(from)?, self.folder(to)?);
                rustix::fs::linkat(from, OsStr::from_bytes(old), to, OsStr::from_bytes(new), AtFlags::empty())
            };
            link().map_err(self.error("link", entry))?;
        }
        Ok(())
    }

    fn folder(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        folder::open_folder(self.root.as_fd(), path)
    }

    /// Children before parents: what is made in a folder changes its time.
    fn finish_folders(&self) -> Result<(), StoreError> {
        for entry in self.index.entries().iter().rev().filter(|entry| entry.is_directory()) {
            finish_folder(&self.root, entry, self.markers).map_err(self.error("set metadata of", entry))?;
        }
        Ok(())
    }

    fn error(&self, action: &'static str, entry: &LayerEntry) -> impl FnOnce(Errno) -> StoreError {
        StoreError::os(action, self.tree.join(entry.path()))
    }
}
