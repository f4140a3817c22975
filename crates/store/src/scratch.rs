use crate::StoreError;
use crate::opened::Opened;
use crate::removal::remove_folder;
use rustix::fs::{IFlags, Mode, OFlags};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A private folder in the store (mode 0700), on the same file system as everything else there.
///
/// It is removed on drop with all that it holds. When the process dies before that, the next one to open the store
/// removes it.
pub struct ScratchDir {
    path: PathBuf,
    // Keeps the owner alive, without which somebody else would remove the folder.
    opened: Arc<Opened>,
}

impl ScratchDir {
    pub(crate) fn create(opened: Arc<Opened>, purpose: &str) -> Result<Self, StoreError> {
        let path = opened.scratch_path(purpose)?;
        DirBuilder::new().mode(0o700).create(&path).map_err(StoreError::io("create", &path))?;
        Ok(Self { path, opened })
    }

    /// Takes over a folder that was made.
    pub(crate) fn of(opened: Arc<Opened>, path: PathBuf) -> Self {
        Self { path, opened }
    }

    /// Leaves the folder of a layer that has been taken out of it to the next layer.
    pub(crate) fn renew(mut self) {
        self.opened.background().renew(std::mem::take(&mut self.path));
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the folder now.
    ///
    /// # Errors
    /// Something in it cannot be removed: a mount point, or a file that another user owns.
    pub fn close(self) -> Result<(), StoreError> {
        self.remove()
    }

    fn remove(&self) -> Result<(), StoreError> {
        remove_folder(&self.path)
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        // Removed again together with the owner's folder, then with an error where that matters.
        let _ = self.remove();
    }
}

/// Makes a private folder where there is none; says whether it did.
pub(crate) fn create_private(path: &Path) -> Result<bool, StoreError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(StoreError::io("create", path)(error)),
    }
}

/// Asks ext4 to place the folders made in this one far apart (`chattr +T`). Folders that come and go by the hundred
/// otherwise fight for the inodes just freed beside them: making one and mounting an overlay on it then takes 6 ms
/// instead of 1 ms (`docs/design/002-overlay.md`). Where it begins to look for a place is a hash of the name alone: folders
/// of equal names come to where the last ones of that name were removed, and their files with them.
pub(crate) fn spread_children(folder: &Path) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let spread = || -> rustix::io::Result<()> {
        let folder = rustix::fs::open(folder, flags, Mode::empty())?;
        let set = rustix::fs::ioctl_getflags(&folder)? | IFlags::TOPDIR;
        rustix::fs::ioctl_setflags(&folder, set)
    };
    // Other file systems have no such flag and no such trouble.
    let _ = spread();
}
