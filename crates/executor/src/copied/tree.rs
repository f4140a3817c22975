//! Looking at trees and setting what they say, by descriptors of their folders: no call here follows a symbolic link.

use super::{At, Done};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, StatxFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags,
};
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a deletion and a folder that hides those below it are marked on file systems whose root may make neither the node nor
/// the attribute that overlayfs takes for them. The store reads them too.
pub(super) const WHITEOUT: &str = "user.forge.whiteout";
pub(super) const OPAQUE: [&str; 3] = ["user.forge.opaque", "user.overlay.opaque", "trusted.overlay.opaque"];

/// No time of a change that the kernel gives is older than this: it counts in ticks of 10 ms at most.
const TICK: Duration = Duration::from_millis(20);

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// One tree and its root.
pub(super) struct Tree {
    path: PathBuf,
    root: OwnedFd,
}

impl Tree {
    pub(super) fn open(path: &Path) -> Done<Self> {
        let root = rustix::fs::open(path, FOLDER, Mode::empty()).at(path)?;
        Ok(Self { path: path.to_owned(), root })
    }

    /// The place of something, for words about it.
    pub(super) fn place(&self, path: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(path))
    }

    pub(super) fn folder(&self, path: &[u8]) -> Done<OwnedFd> {
        let flags = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let relative = if path.is_empty() { b"." } else { path };
        rustix::fs::openat2(&self.root, OsStr::from_bytes(relative), FOLDER, Mode::empty(), flags).at(self.place(path))
    }

    /// The names in a folder and what they are.
    pub(super) fn entries(&self, folder: &OwnedFd, path: &[u8]) -> Done<Vec<(Vec<u8>, Stat)>> {
        self.read(folder).at(self.place(path))
    }

    fn read(&self, folder: &OwnedFd) -> Result<Vec<(Vec<u8>, Stat)>> {
        let mut all = Vec::new();
        for entry in Dir::read_from(folder)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if !matches!(&name[..], b"." | b"..") {
                let stat = rustix::fs::statat(folder, OsStr::from_bytes(&name), AtFlags::SYMLINK_NOFOLLOW)?;
                all.push((name, stat));
            }
        }
        Ok(all)
    }
}

/// The path of something in a folder.
pub(super) fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

/// What tells that something was touched: the kernel sets the time of the last change, and nobody else can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    inode: u64,
    changed: (i64, i64),
}

impl Seen {
    pub(super) fn of(stat: &Stat) -> Self {
        Self { inode: stat.st_ino, changed: (stat.st_ctime, stat.st_ctime_nsec as i64) }
    }
}

/// Which node it is, changed or not. A number is soon given again, so the time when the node was made belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    inode: u64,
    /// Zero where the file system does not keep it.
    born: (i64, u32),
}

impl Node {
    pub(super) fn of(folder: &OwnedFd) -> Result<Self> {
        let wanted = StatxFlags::INO | StatxFlags::BTIME;
        let found = rustix::fs::statx(folder, "", AtFlags::EMPTY_PATH, wanted)?;
        let is_known = found.stx_mask & StatxFlags::BTIME.bits() != 0;
        let born = if is_known { (found.stx_btime.tv_sec, found.stx_btime.tv_nsec) } else { (0, 0) };
        Ok(Self { inode: found.stx_ino, born })
    }
}

/// A folder of a tree: which one it was, and what was in it.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) node: Node,
    pub(super) entries: HashMap<Vec<u8>, Seen>,
}

/// What was in each folder of a tree.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) root: Option<Seen>,
    pub(super) folders: HashMap<Vec<u8>, Folder>,
}

/// Notes a whole tree, and waits until whatever is done to it gets another time.
pub(super) fn record(path: &Path) -> Done<Record> {
    let tree = Tree::open(path)?;
    let root = rustix::fs::fstat(&tree.root).at(path)?;
    let mut record = Record { root: Some(Seen::of(&root)), folders: HashMap::new() };
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let folder = tree.folder(&path)?;
        let node = Node::of(&folder).at(tree.place(&path))?;
        let entries = tree.entries(&folder, &path)?;
        pending.extend(entries.iter().filter(|(_, stat)| is_folder(stat)).map(|(name, _)| join(&path, name)));
        let entries = entries.iter().map(|(name, stat)| (name.clone(), Seen::of(stat))).collect();
        record.folders.insert(path, Folder { node, entries });
    }
    std::thread::sleep(TICK);
    Ok(record)
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(super) fn is_folder(stat: &Stat) -> bool {
    kind(stat) == FileType::Directory
}

/// Owner, permissions, attributes and time.
pub(super) struct Metadata {
    stat: Stat,
    attributes: Vec<(CString, Vec<u8>)>,
}

impl Metadata {
    /// Reads those of `name`; marks are no attributes of files.
    pub(super) fn read(folder: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<Self> {
        let path = by_descriptor(folder, name);
        let mut attributes = Vec::new();
        for attribute in attribute_names(&path)?.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            if is_kept(attribute)
                && let Some(value) = attribute_value(&path, attribute)?
            {
                attributes.push((CString::new(attribute).expect("names end at a zero byte"), value));
            }
        }
        Ok(Self { stat: *stat, attributes })
    }

    /// Gives all but the time to `name`. The owner comes first: changing it takes set-id bits and capabilities away.
    pub(super) fn give(&self, folder: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(self.stat.st_uid), Gid::from_raw(self.stat.st_gid));
        let place = OsStr::from_bytes(name);
        rustix::fs::chownat(folder, place, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        let path = by_descriptor(folder, name);
        if kind(&self.stat) != FileType::Symlink {
            rustix::fs::chmod(&path, Mode::from_raw_mode(self.stat.st_mode & 0o7777))?;
        }
        for (attribute, value) in &self.attributes {
            rustix::fs::lsetxattr(&path, attribute, value, XattrFlags::empty())?;
        }
        Ok(())
    }

    /// Sets the time of `name`.
    pub(super) fn give_time(&self, folder: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
            last_modification: Timespec { tv_sec: self.stat.st_mtime as _, tv_nsec: self.stat.st_mtime_nsec as _ },
        };
        rustix::fs::utimensat(folder, OsStr::from_bytes(name), &times, AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// `security.capability` and what users set. The rest is this machine's.
fn is_kept(attribute: &[u8]) -> bool {
    let marks = [&b"user.forge.whiteout"[..], b"user.forge.opaque"];
    attribute == b"security.capability"
        || attribute.starts_with(b"user.") && !attribute.starts_with(b"user.overlay.") && !marks.contains(&attribute)
}

/// Takes off what would be read as a mark: a process may have put it there.
pub(super) fn remove_marks(folder: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let path = by_descriptor(folder, name);
    for attribute in attribute_names(&path)?.split(|byte| *byte == 0) {
        let is_mark = attribute == WHITEOUT.as_bytes() || OPAQUE.iter().any(|mark| attribute == mark.as_bytes());
        if is_mark || attribute.starts_with(b"user.overlay.") {
            rustix::fs::lremovexattr(&path, OsStr::from_bytes(attribute))?;
        }
    }
    Ok(())
}

/// Whether `name` has one of these attributes with a value.
pub(super) fn has_mark(folder: BorrowedFd<'_>, name: &[u8], marks: &[&str]) -> Result<bool> {
    let path = by_descriptor(folder, name);
    for mark in marks {
        if attribute_value(&path, mark.as_bytes())?.as_deref() == Some(b"y") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn attribute_names(path: &CString) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 1024];
    loop {
        match rustix::fs::llistxattr(path, &mut buffer[..]) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) => buffer.resize(buffer.len() * 4, 0),
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
}

fn attribute_value(path: &CString, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; 65536];
    match rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut buffer[..]) {
        Ok(length) => {
            buffer.truncate(length);
            Ok(Some(buffer))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Calls that take only paths are given one through the folder's descriptor.
pub(super) fn by_descriptor(folder: impl AsFd, name: &[u8]) -> CString {
    let mut path = format!("/proc/self/fd/{}/", folder.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    CString::new(path).expect("names come from directory entries: they hold no zero byte")
}
