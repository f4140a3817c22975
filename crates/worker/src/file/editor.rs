//! Writes into the upper folder of an active layer, as if into the merged tree.
//!
//! Folders that only the layers below have are made in the upper with their metadata, times included, so that the
//! commit recognises them as implied. Nothing is ever written through a link: paths are resolved in the merged
//! tree first, and the upper is then walked with `RESOLVE_NO_SYMLINKS`.

use forge_store::{ActiveLayer, MergedTree, StoreError, TreeKind};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// What an entry is given besides its bytes.
#[derive(Clone, Debug)]
pub(crate) struct EntryMetadata {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
}

/// Why a layer cannot be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EditError {
    /// The words are BuildKit's.
    #[error("cannot copy to non-directory: {path}")]
    NotADirectory { path: String },
    #[error("cannot replace the folder {path} with something that is none")]
    IsADirectory { path: String },
    #[error("cannot write {path}")]
    Write { path: String, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An open folder of the upper.
pub(crate) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
    /// Whether nothing of the layers below shows through: then there is nothing to look up in them.
    fresh: bool,
}

pub(crate) struct Editor<'a> {
    active: &'a ActiveLayer,
    upper: OwnedFd,
    /// Times that are set at the end, since making a child changes its parent's.
    times: BTreeMap<PathBuf, (i64, u32)>,
}

impl<'a> Editor<'a> {
    pub(crate) fn new(active: &'a ActiveLayer) -> Result<Self, EditError> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let upper = fs::open(active.upper(), flags, Mode::empty()).map_err(|e| write_error(active.upper(), e))?;
        let mut times = BTreeMap::new();
        if let Some(root) = active.lower().lookup(Path::new("/"))? {
            times.insert(PathBuf::from("/"), root.mtime);
        }
        Ok(Self { active, upper, times })
    }

    /// The merged tree as it is now, changes included.
    pub(crate) fn tree(&self) -> MergedTree {
        self.active.merged()
    }

    /// Opens a folder, making it and its parents where they are missing. The path has no links.
    pub(crate) fn folder(&mut self, path: &Path, missing: &EntryMetadata) -> Result<Folder, EditError> {
        let mut folder = Folder { fd: self.open_upper(Path::new("/"))?, path: PathBuf::from("/"), fresh: false };
        for component in path.components() {
            if let Component::Normal(name) = component {
                folder = self.child_folder(&folder, name, missing, OnExisting::Keep)?;
            }
        }
        Ok(folder)
    }

    /// Makes or opens a folder within a folder.
    pub(crate) fn child_folder(
        &mut self,
        parent: &Folder,
        name: &OsStr,
        metadata: &EntryMetadata,
        existing: OnExisting,
    ) -> Result<Folder, EditError> {
        let path = parent.path.join(name);
        let found = if parent.fresh { None } else { self.tree().lookup(&path)? };
        let (effective, fresh) = match &found {
            None => (metadata.clone(), true),
            Some(entry) if entry.kind != TreeKind::Directory => {
                return Err(EditError::NotADirectory { path: path.display().to_string() });
            }
            Some(_) if existing == OnExisting::Overwrite => (metadata.clone(), false),
            Some(entry) => (
                EntryMetadata {
                    mode: entry.mode,
                    uid: entry.uid,
                    gid: entry.gid,
                    mtime: entry.mtime,
                    xattrs: entry.xattrs.clone(),
                },
                false,
            ),
        };
        let made = make_directory(parent.fd.as_fd(), name).map_err(|source| write_error(&path, source))?;
        let fd = open_child(parent.fd.as_fd(), name).map_err(|source| write_error(&path, source))?;
        if made || existing == OnExisting::Overwrite {
            apply_to_directory(fd.as_fd(), &effective).map_err(|source| write_error(&path, source))?;
            self.times.insert(path.clone(), effective.mtime);
        } else {
            self.times.entry(path.clone()).or_insert(effective.mtime);
        }
        Ok(Folder { fd, path, fresh: fresh || parent.fresh })
    }

    /// Writes a regular file, in the kernel where the file systems can.
    pub(crate) fn file(
        &mut self,
        parent: &Folder,
        name: &OsStr,
        from: &File,
        metadata: &EntryMetadata,
    ) -> Result<(), EditError> {
        let mut from = from;
        self.write_file(parent, name, metadata, |file| std::io::copy(&mut from, file).map(drop))
    }

    /// Writes a regular file of bytes at hand.
    pub(crate) fn bytes(
        &mut self,
        parent: &Folder,
        name: &OsStr,
        bytes: &[u8],
        metadata: &EntryMetadata,
    ) -> Result<(), EditError> {
        self.write_file(parent, name, metadata, |file| file.write_all(bytes))
    }

    fn write_file(
        &mut self,
        parent: &Folder,
        name: &OsStr,
        metadata: &EntryMetadata,
        fill: impl FnOnce(&mut File) -> std::io::Result<()>,
    ) -> Result<(), EditError> {
        self.displace(parent, name)?;
        let failed = |source: std::io::Error| EditError::Write { path: shown(parent, name), source };
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(&parent.fd, name, flags, Mode::from_raw_mode(0o600)).map_err(|e| failed(e.into()))?;
        let mut file = File::from(fd);
        fill(&mut file).map_err(failed)?;
        apply_to_file(&file, metadata).map_err(|e| failed(e.into()))
    }

    /// Makes another name for a file that this editor wrote.
    pub(crate) fn hard_link(&mut self, parent: &Folder, name: &OsStr, first: &Path) -> Result<(), EditError> {
        self.displace(parent, name)?;
        let first = first.strip_prefix("/").unwrap_or(first);
        fs::linkat(&self.upper, first, &parent.fd, name, AtFlags::empty())
            .map_err(|e| EditError::Write { path: shown(parent, name), source: e.into() })
    }

    pub(crate) fn symlink(
        &mut self,
        parent: &Folder,
        name: &OsStr,
        target: &[u8],
        metadata: &EntryMetadata,
    ) -> Result<(), EditError> {
        self.displace(parent, name)?;
        let make = || -> rustix::io::Result<()> {
            fs::symlinkat(OsStr::from_bytes(target), &parent.fd, name)?;
            own(parent.fd.as_fd(), name, metadata)?;
            fs::utimensat(&parent.fd, name, &timestamps(metadata.mtime), AtFlags::SYMLINK_NOFOLLOW)
        };
        make().map_err(|e| EditError::Write { path: shown(parent, name), source: e.into() })
    }

    pub(crate) fn node(
        &mut self,
        parent: &Folder,
        name: &OsStr,
        file_type: FileType,
        device: (u32, u32),
        metadata: &EntryMetadata,
    ) -> Result<(), EditError> {
        self.displace(parent, name)?;
        let make = || -> rustix::io::Result<()> {
            let device = fs::makedev(device.0, device.1);
            fs::mknodat(&parent.fd, name, file_type, Mode::from_raw_mode(0o600), device)?;
            own(parent.fd.as_fd(), name, metadata)?;
            fs::chmodat(&parent.fd, name, Mode::from_raw_mode(metadata.mode & 0o7777), AtFlags::empty())?;
            fs::utimensat(&parent.fd, name, &timestamps(metadata.mtime), AtFlags::SYMLINK_NOFOLLOW)
        };
        make().map_err(|e| EditError::Write { path: shown(parent, name), source: e.into() })
    }

    /// Removes what stands in the upper under a name; a folder is never replaced.
    fn displace(&self, parent: &Folder, name: &OsStr) -> Result<(), EditError> {
        let path = parent.path.join(name);
        let found = if parent.fresh { None } else { self.tree().lookup(&path)? };
        if found.is_some_and(|entry| entry.kind == TreeKind::Directory) {
            return Err(EditError::IsADirectory { path: path.display().to_string() });
        }
        match fs::unlinkat(&parent.fd, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(errno) => Err(write_error(&path, errno)),
        }
    }

    /// Sets the folders' times, children before parents.
    pub(crate) fn finish(self) -> Result<(), EditError> {
        for (path, mtime) in self.times.iter().rev() {
            let fd = self.open_upper(path)?;
            let set = fs::futimens(&fd, &timestamps(*mtime));
            set.map_err(|source| write_error(path, source))?;
        }
        Ok(())
    }

    fn open_upper(&self, path: &Path) -> Result<OwnedFd, EditError> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        fs::openat2(&self.upper, relative, flags, Mode::empty(), resolve).map_err(|e| write_error(path, e))
    }
}

/// What happens to the metadata of a folder that is there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnExisting {
    Keep,
    Overwrite,
}

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn shown(parent: &Folder, name: &OsStr) -> String {
    parent.path.join(name).display().to_string()
}

fn write_error(path: &Path, errno: rustix::io::Errno) -> EditError {
    EditError::Write { path: path.display().to_string(), source: errno.into() }
}

/// Makes a folder where there is none in the upper; says whether it did.
fn make_directory(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<bool> {
    match fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn open_child(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(parent, name, flags, Mode::empty())
}

fn apply_to_directory(fd: BorrowedFd<'_>, metadata: &EntryMetadata) -> rustix::io::Result<()> {
    fs::fchown(fd, Some(uid(metadata.uid)), Some(gid(metadata.gid)))?;
    fs::fchmod(fd, Mode::from_raw_mode(metadata.mode & 0o7777))?;
    set_xattrs(fd, metadata)
}

fn apply_to_file(file: &File, metadata: &EntryMetadata) -> rustix::io::Result<()> {
    // chown clears set-id bits and capabilities, so it comes first.
    fs::fchown(file, Some(uid(metadata.uid)), Some(gid(metadata.gid)))?;
    fs::fchmod(file, Mode::from_raw_mode(metadata.mode & 0o7777))?;
    set_xattrs(file.as_fd(), metadata)?;
    fs::futimens(file, &timestamps(metadata.mtime))
}

fn set_xattrs(fd: BorrowedFd<'_>, metadata: &EntryMetadata) -> rustix::io::Result<()> {
    metadata.xattrs.iter().try_for_each(|(name, value)| fs::fsetxattr(fd, name, value, XattrFlags::empty()))
}

fn own(parent: BorrowedFd<'_>, name: &OsStr, metadata: &EntryMetadata) -> rustix::io::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    fs::chownat(parent, name, Some(uid(metadata.uid)), Some(gid(metadata.gid)), flags)
}

fn uid(raw: u32) -> fs::Uid {
    fs::Uid::from_raw(raw)
}

fn gid(raw: u32) -> fs::Gid {
    fs::Gid::from_raw(raw)
}

fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
