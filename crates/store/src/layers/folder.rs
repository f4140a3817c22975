//! Looking at a tree through descriptors of its folders: no call here follows a symbolic link or leaves the tree.

use super::entry::{Metadata, relative};
use super::xattr::{self, Markers};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Something in a folder.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: NodeKind,
    pub(super) metadata: Metadata,
    pub(super) inode: (u64, u64),
    pub(super) links: u64,
}

/// What it is, with overlayfs's markers read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NodeKind {
    File { size: u64 },
    Directory { opaque: bool },
    Symlink { target: OsString },
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
    Socket,
    Whiteout,
}

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens the root of a tree, the one place where a path of the host is followed.
pub(super) fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, FOLDER, Mode::empty())
}

/// Opens a folder of the tree by its path, in which no component may be a symbolic link.
pub(super) fn open_folder(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(root, relative(path), FOLDER, Mode::empty(), RESOLVE)
}

/// Opens a regular file for reading. What turns out to be something else is an error before anything is read (A14).
pub(super) fn open_file(folder: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(folder, OsStr::from_bytes(name), flags, Mode::empty(), RESOLVE)?;
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile { Ok(file) } else { Err(Errno::INVAL) }
}

/// The names in a folder, sorted by their bytes.
pub(super) fn names(folder: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Reads what `name` is; `None` when it is not there.
pub(super) fn read_node(folder: BorrowedFd<'_>, name: &[u8], markers: Markers) -> Result<Option<Node>, Errno> {
    let stat = match rustix::fs::statat(folder, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error),
    };
    node_of(folder, name, &stat, markers).map(Some)
}

/// Reads the root folder of a tree itself.
pub(super) fn read_root(root: BorrowedFd<'_>, markers: Markers) -> Result<Node, Errno> {
    let stat = rustix::fs::fstat(root)?;
    node_of(root, b".", &stat, markers)
}

fn node_of(folder: BorrowedFd<'_>, name: &[u8], stat: &Stat, markers: Markers) -> Result<Node, Errno> {
    let links = stat.st_nlink;
    let inode = (stat.st_dev, stat.st_ino);
    if is_whiteout(stat) {
        return Ok(Node { kind: NodeKind::Whiteout, metadata: Metadata::default(), inode, links });
    }
    let xattrs = xattr::read(folder, name, markers)?;
    if xattrs.whiteout && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0 {
        return Ok(Node { kind: NodeKind::Whiteout, metadata: Metadata::default(), inode, links });
    }
    let kind = kind_of(folder, name, stat, xattrs.opaque)?;
    let mtime = (stat.st_mtime, stat.st_mtime_nsec as u32);
    let metadata =
        Metadata { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, mtime, xattrs: xattrs.kept };
    Ok(Node { kind, metadata, inode, links })
}

fn kind_of(folder: BorrowedFd<'_>, name: &[u8], stat: &Stat, opaque: bool) -> Result<NodeKind, Errno> {
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => NodeKind::File { size: stat.st_size.cast_unsigned() },
        FileType::Directory => NodeKind::Directory { opaque },
        FileType::Symlink => NodeKind::Symlink { target: read_link(folder, name)? },
        FileType::CharacterDevice => NodeKind::CharDevice { major, minor },
        FileType::BlockDevice => NodeKind::BlockDevice { major, minor },
        FileType::Fifo => NodeKind::Fifo,
        _ => NodeKind::Socket,
    })
}

fn read_link(folder: BorrowedFd<'_>, name: &[u8]) -> Result<OsString, Errno> {
    let target = rustix::fs::readlinkat(folder, OsStr::from_bytes(name), Vec::new())?;
    Ok(OsString::from_vec(target.into_bytes()))
}

/// A character device 0:0, which overlayfs lets nobody else make (`ovl_mknod`).
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}
