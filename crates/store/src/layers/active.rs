use super::xattr::{self, Markers};
use super::{LowerDirs, MergedTree};
use crate::{FileTimes, LayerId, ScratchDir, StoreError};
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A layer in the making: an empty upper folder over the trees of its parents.
///
/// Whoever fills it mounts an overlay from [`lower_dirs`](Self::lower_dirs), [`upper`](Self::upper) and
/// [`work`](Self::work), or writes into the upper folder directly in overlayfs's own format. Then
/// [`Layers::commit`](super::Layers::commit) makes a layer of it. Dropping it removes everything; nothing may be mounted
/// from it or running in it by then.
pub struct ActiveLayer {
    pub(super) staged: PathBuf,
    pub(super) upper: PathBuf,
    pub(super) work: PathBuf,
    pub(super) lower_dirs: LowerDirs,
    pub(super) parents: Vec<LayerId>,
    pub(super) lower: MergedTree,
    pub(super) merged: MergedTree,
    pub(super) times: FileTimes,
    // Dropped last: it removes the folders that the fields above name.
    pub(super) scratch: ScratchDir,
}

impl ActiveLayer {
    /// The folder that takes the changes. It has the metadata of the merged root.
    pub fn upper(&self) -> &Path {
        &self.upper
    }

    /// An empty folder on the same file system, for overlayfs.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The trees below, top-most first; empty on scratch.
    pub fn lower_dirs(&self) -> &[PathBuf] {
        &self.lower_dirs
    }

    /// The layers below, lowest first.
    pub fn parents(&self) -> &[LayerId] {
        &self.parents
    }

    /// What the overlay shows: the parents with the upper folder, as it is at each call, on top.
    pub fn merged(&self) -> MergedTree {
        self.merged.clone()
    }

    /// What the parents show without the upper folder.
    pub fn lower(&self) -> &MergedTree {
        &self.lower
    }

    /// Says which modification times will be part of the layer's content; all of them where nothing is said.
    pub fn set_times(&mut self, times: FileTimes) {
        self.times = times;
    }

    /// Hides what the parents have under a name: `folder` is one of the upper, in which nothing has that name.
    ///
    /// # Errors
    /// The file system failed.
    pub fn put_whiteout(&self, folder: BorrowedFd<'_>, name: &OsStr) -> Result<(), StoreError> {
        let made = Markers::of(&self.upper).put_whiteout(folder, name.as_bytes());
        made.map_err(StoreError::os("mark as deleted", name))
    }

    /// Hides what the parents have in a folder: `folder` is one of the upper, `name` the one in it that is marked.
    ///
    /// # Errors
    /// The file system failed.
    pub fn make_opaque(&self, folder: BorrowedFd<'_>, name: &OsStr) -> Result<(), StoreError> {
        let marker = OsStr::new(Markers::of(&self.upper).opaque());
        xattr::set(folder, name.as_bytes(), marker, b"y").map_err(StoreError::os("mark as opaque", name))
    }
}
