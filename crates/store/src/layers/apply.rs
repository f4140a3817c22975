//! Setting metadata on nodes of a tree: no call here follows a symbolic link.

use super::entry::{Metadata, relative};
use super::folder;
use super::owners::Owners;
use super::tree::MergedTree;
use super::xattr;
use crate::StoreError;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The root of a stack without layers, as every builder makes it.
pub(super) fn default_root() -> Metadata {
    Metadata { mode: 0o755, ..Metadata::default() }
}

/// Gives an upper folder the metadata of the merged root, which it hides once it is mounted.
pub(super) fn copy_root(lower: &MergedTree, upper: &Path) -> Result<(), StoreError> {
    let error = || StoreError::os("prepare", upper);
    let folder = folder::open_root(upper).map_err(error())?;
    let root = lower.root()?.map_or_else(default_root, |found| found.node.metadata);
    set_all(folder.as_fd(), b".", &root).and_then(|()| set_mtime(&folder, b"", root.mtime)).map_err(error())
}

/// Sets everything but the time of something in a folder.
///
/// The owner comes first: changing it clears set-id bits and capabilities.
pub(super) fn set_all(folder: BorrowedFd<'_>, name: &[u8], metadata: &Metadata) -> Result<(), Errno> {
    let (owner, group) = owner_of(metadata)?;
    rustix::fs::chownat(folder, OsStr::from_bytes(name), Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    set_mode(folder, name, metadata.mode)?;
    for (attribute, value) in &metadata.xattrs {
        xattr::set(folder, name, attribute, value)?;
    }
    Ok(())
}

/// Sets everything, the time too, of a file that this process made a moment ago: what it has already is not set again.
pub(super) fn finish_new_file(file: impl AsFd, metadata: &Metadata) -> Result<(), Errno> {
    let file = file.as_fd();
    let stat = rustix::fs::fstat(file)?;
    let (owner, group) = owner_of(metadata)?;
    let changes_owner = (owner.as_raw(), group.as_raw()) != (stat.st_uid, stat.st_gid);
    if changes_owner {
        rustix::fs::fchown(file, Some(owner), Some(group))?;
    }
    if changes_owner || stat.st_mode & 0o7777 != metadata.mode {
        rustix::fs::fchmod(file, Mode::from_raw_mode(metadata.mode))?;
    }
    for (attribute, value) in &metadata.xattrs {
        rustix::fs::fsetxattr(file, attribute, value, XattrFlags::empty())?;
    }
    rustix::fs::futimens(file, &times(metadata.mtime))
}

/// The owner as this process can give it; `EINVAL`, the kernel's word for it, where the namespace has no such id.
fn owner_of(metadata: &Metadata) -> Result<(Uid, Gid), Errno> {
    let (uid, gid) = Owners::of_this_process().settle(metadata.uid, metadata.gid).map_err(|_| Errno::INVAL)?;
    Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
}

/// `fchmodat` follows links, and its successor that does not is younger than Linux 6.6: the node is opened without
/// following it and named through its descriptor. Symbolic links have no mode of their own.
fn set_mode(folder: BorrowedFd<'_>, name: &[u8], mode: u32) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(folder, OsStr::from_bytes(name), flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&node)?.st_mode) == FileType::Symlink {
        return Ok(());
    }
    rustix::fs::chmod(format!("/proc/self/fd/{}", node.as_raw_fd()), Mode::from_raw_mode(mode))
}

/// Sets a modification time and leaves the access time. The kernel cuts what its file system cannot hold.
pub(super) fn set_mtime(folder: impl AsFd, path: &[u8], mtime: (i64, u32)) -> Result<(), Errno> {
    rustix::fs::utimensat(folder, relative(path), &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(mtime: (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.0, tv_nsec: i64::from(mtime.1) },
    }
}
