//! Writes into the upper folder of an active layer, as if into the merged tree.
//!
//! Folders that only the layers below have are made in the upper with their metadata, times included, so that the
//! commit recognises them as implied. Nothing is ever written through a link: paths are resolved in the merged
//! tree first, and the upper is then walked with `RESOLVE_NO_SYMLINKS`.

use forge_store::{
    ActiveLayer, EntryKind, KnownFile, KnownFiles, MergedTree, Metadata, StoreError, TreeEntry, TreeKind,
};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// What an entry is given besides its bytes.
#[derive(Clone, Debug, Default)]
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
    /// The words are BuildKit's.
    #[error("cannot replace to directory {path} with file")]
    IsADirectory { path: String },
    /// A parent that must be there is not.
    #[error("{path}: no such file or directory")]
    NotFound { path: String },
    #[error("cannot write {path}")]
    Write { path: String, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A folder of the upper, open unless it was told to rest.
pub(crate) struct Folder {
    fd: Option<OwnedFd>,
    path: PathBuf,
    existing: Existing,
}

/// What shows in a folder before anything is written into it.
enum Existing {
    /// Nothing: the folder is new, and there is nothing to look up.
    Nothing,
    /// What is asked for is looked up; so many names were.
    Asked(usize),
    /// Everything that was there when the folder was listed.
    Listed(HashMap<OsString, TreeEntry>),
}

/// After so many single look-ups the folder is listed once: each look-up walks down from the root again.
const LOOK_UPS: usize = 16;

pub(crate) struct Editor<'a> {
    active: &'a ActiveLayer,
    upper: OwnedFd,
    /// Times that are set at the end, since making a child changes its parent's.
    times: BTreeMap<PathBuf, (i64, u32)>,
    /// How often something written was replaced by something else.
    replaced: u64,
    on_conflict: OnConflict,
    /// What was written.
    known: KnownFiles,
}

impl<'a> Editor<'a> {
    /// Begins to change a layer; `known` is what was written into it before.
    pub(crate) fn new(active: &'a ActiveLayer, on_conflict: OnConflict, known: KnownFiles) -> Result<Self, EditError> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let upper = fs::open(active.upper(), flags, Mode::empty()).map_err(|e| write_error(active.upper(), e))?;
        let mut times = BTreeMap::new();
        if let Some(root) = active.lower().lookup(Path::new("/"))? {
            times.insert(PathBuf::from("/"), root.mtime);
        }
        Ok(Self { active, upper, times, replaced: 0, on_conflict, known })
    }

    /// The merged tree as it is now, changes included.
    pub(crate) fn tree(&self) -> MergedTree {
        self.active.merged()
    }

    /// How often a name was given to something else than what this editor had written there.
    pub(crate) fn replaced(&self) -> u64 {
        self.replaced
    }

    /// Opens a folder, making it and its parents where they are missing. The path has no links.
    pub(crate) fn folder(&mut self, path: &Path, missing: &EntryMetadata) -> Result<Folder, EditError> {
        let fd = Some(self.open_upper(Path::new("/"))?);
        let mut folder = Folder { fd, path: PathBuf::from("/"), existing: Existing::Asked(0) };
        for component in path.components() {
            if let Component::Normal(name) = component {
                folder = self.child_folder(&mut folder, name, missing, OnExisting::Keep)?;
            }
        }
        Ok(folder)
    }

    /// Makes or opens a folder within a folder.
    pub(crate) fn child_folder(
        &mut self,
        parent: &mut Folder,
        name: &OsStr,
        metadata: &EntryMetadata,
        on_existing: OnExisting,
    ) -> Result<Folder, EditError> {
        let path = parent.path.join(name);
        let mut found = self.existing(parent, name)?;
        if found.as_ref().is_some_and(|entry| entry.kind != TreeKind::Directory) {
            if self.on_conflict == OnConflict::Refuse {
                return Err(EditError::NotADirectory { path: path.display().to_string() });
            }
            self.remove(parent, name)?;
            found = None;
        }
        let existing = if found.is_some() { Existing::Asked(0) } else { Existing::Nothing };
        let effective = match (&found, on_existing) {
            (Some(entry), OnExisting::Keep) => EntryMetadata::of(entry),
            (Some(entry), OnExisting::TakeMode) => EntryMetadata { mode: metadata.mode, ..EntryMetadata::of(entry) },
            (None, _) | (_, OnExisting::Overwrite) => metadata.clone(),
        };
        let is_kept = found.is_some() && on_existing == OnExisting::Keep;
        let made = self.make_directory(parent, name).map_err(|source| write_error(&path, source))?;
        let fd = open_child(parent.fd(), name).map_err(|source| write_error(&path, source))?;
        if made || !is_kept {
            apply_to_directory(fd.as_fd(), &effective).map_err(|source| write_error(&path, source))?;
            self.times.insert(path.clone(), effective.mtime);
        } else {
            self.times.entry(path.clone()).or_insert(effective.mtime);
        }
        Ok(Folder { fd: Some(fd), path, existing })
    }

    /// Makes a folder where there is none in the upper; says whether it did. Where something was deleted before, what
    /// the layers below have there stays hidden.
    fn make_directory(&self, parent: &Folder, name: &OsStr) -> rustix::io::Result<bool> {
        let make = || fs::mkdirat(parent.fd(), name, Mode::from_raw_mode(0o700));
        match make() {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let stat = fs::statat(parent.fd(), name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Ok(false);
        }
        // A whiteout: nothing else is there and not found.
        fs::unlinkat(parent.fd(), name, AtFlags::empty())?;
        make()?;
        self.active.make_opaque(parent.fd(), name).map_err(|_| rustix::io::Errno::IO)?;
        Ok(true)
    }

    /// Removes what has a name in a folder, and everything in it.
    pub(crate) fn remove(&mut self, parent: &mut Folder, name: &OsStr) -> Result<(), EditError> {
        let path = parent.path.join(name);
        let failed = |errno: rustix::io::Errno| write_error(&path, errno);
        match fs::unlinkat(parent.fd(), name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            // Through the descriptor, so that no other folder can have taken the place; nobody else works in the upper.
            Err(rustix::io::Errno::ISDIR) => {
                let folder = Path::new("/proc/self/fd").join(parent.fd().as_raw_fd().to_string());
                let removed = std::fs::remove_dir_all(folder.join(name));
                removed.map_err(|source| EditError::Write { path: path.display().to_string(), source })?;
            }
            Err(errno) => return Err(failed(errno)),
        }
        self.replaced += 1;
        self.known.remove_all(&path);
        self.times.retain(|other, _| !other.starts_with(&path));
        if let Existing::Listed(entries) = &mut parent.existing {
            entries.remove(name);
        }
        self.hide_beneath(parent, name)
    }

    /// Gives the root folder other metadata.
    pub(crate) fn set_root(&mut self, metadata: &EntryMetadata) -> Result<(), EditError> {
        let root = self.open_upper(Path::new("/"))?;
        apply_to_directory(root.as_fd(), metadata).map_err(|source| write_error(Path::new("/"), source))?;
        self.times.insert(PathBuf::from("/"), metadata.mtime);
        Ok(())
    }

    /// Whether something has a name in a folder.
    pub(crate) fn has(&self, folder: &mut Folder, name: &OsStr) -> Result<bool, EditError> {
        Ok(self.existing(folder, name)?.is_some())
    }

    /// The folder of this tree that a link leads to which has a name in a folder.
    pub(crate) fn linked_folder(&self, folder: &mut Folder, name: &OsStr) -> Result<Option<PathBuf>, EditError> {
        let found = self.existing(folder, name)?;
        if !found.is_some_and(|entry| matches!(entry.kind, TreeKind::Symlink { .. })) {
            return Ok(None);
        }
        let tree = self.active.merged();
        let target = tree.resolve(&folder.path.join(name))?;
        Ok(tree.lookup(&target)?.filter(|entry| entry.kind == TreeKind::Directory).map(|_| target))
    }

    /// What has a name in a folder.
    fn existing(&self, folder: &mut Folder, name: &OsStr) -> Result<Option<TreeEntry>, EditError> {
        match &mut folder.existing {
            Existing::Nothing => Ok(None),
            Existing::Listed(entries) => Ok(entries.get(name).cloned()),
            Existing::Asked(count) if *count < LOOK_UPS => {
                *count += 1;
                Ok(self.active.merged().lookup(&folder.path.join(name))?)
            }
            Existing::Asked(_) => {
                let children = self.active.merged().children(&folder.path)?;
                let entries = children.into_iter().map(|entry| (entry.name.clone(), entry)).collect::<HashMap<_, _>>();
                let found = entries.get(name).cloned();
                folder.existing = Existing::Listed(entries);
                Ok(found)
            }
        }
    }

    /// Opens a folder again that was closed.
    pub(crate) fn reopen(&self, folder: &mut Folder) -> Result<(), EditError> {
        if folder.fd.is_none() {
            folder.fd = Some(self.open_upper(&folder.path)?);
        }
        Ok(())
    }

    /// Writes a regular file of bytes at hand.
    pub(crate) fn bytes(
        &mut self,
        parent: &mut Folder,
        name: &OsStr,
        bytes: &[u8],
        metadata: &EntryMetadata,
    ) -> Result<(), EditError> {
        let mut file = self.create_file(parent, name)?;
        let written = file.write_all(bytes);
        written.map_err(|source| EditError::Write { path: shown(parent, name), source })?;
        let path = parent.path.join(name);
        self.written(&path, KnownFile { size: bytes.len() as u64, blake3: *blake3::hash(bytes).as_bytes() });
        finish_file(&file, &path, metadata)
    }

    /// Makes an empty file; [`finish_file`] and [`written`](Self::written) follow when its bytes are written.
    pub(crate) fn create_file(&mut self, parent: &mut Folder, name: &OsStr) -> Result<File, EditError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.put(parent, name, |folder| fs::openat(folder, name, flags, Mode::from_raw_mode(0o600))).map(File::from)
    }

    /// Notes what a file's bytes are.
    pub(crate) fn written(&mut self, path: &Path, file: KnownFile) {
        self.known.insert(path, file);
    }

    /// Makes another name for a file that this editor wrote.
    pub(crate) fn hard_link(&mut self, parent: &mut Folder, name: &OsStr, first: &Path) -> Result<(), EditError> {
        let upper = self.upper.try_clone().map_err(|source| EditError::Write { path: shown(parent, name), source })?;
        let relative = first.strip_prefix("/").unwrap_or(first);
        self.put(parent, name, |folder| fs::linkat(&upper, relative, folder, name, AtFlags::empty()))?;
        self.known.link(first, &parent.path.join(name));
        Ok(())
    }

    pub(crate) fn symlink(
        &mut self,
        parent: &mut Folder,
        name: &OsStr,
        target: &[u8],
        metadata: &EntryMetadata,
    ) -> Result<(), EditError> {
        self.put(parent, name, |folder| fs::symlinkat(OsStr::from_bytes(target), folder, name))?;
        let give = || -> rustix::io::Result<()> {
            own(parent.fd(), name, metadata)?;
            fs::utimensat(parent.fd(), name, &timestamps(metadata.mtime), AtFlags::SYMLINK_NOFOLLOW)
        };
        give().map_err(|errno| EditError::Write { path: shown(parent, name), source: explained(errno) })
    }

    pub(crate) fn node(
        &mut self,
        parent: &mut Folder,
        name: &OsStr,
        file_type: FileType,
        device: (u32, u32),
        metadata: &EntryMetadata,
    ) -> Result<(), EditError> {
        let listed = device_kind(file_type, device);
        let device = fs::makedev(device.0, device.1);
        let private = Mode::from_raw_mode(0o600);
        let made = self.put(parent, name, |folder| match fs::mknodat(folder, name, file_type, private, device) {
            Err(rustix::io::Errno::PERM) if listed.is_some() => Ok(false),
            made => made.map(|()| true),
        })?;
        if let (false, Some(kind)) = (made, listed) {
            return self.list_device(parent, name, kind, metadata);
        }
        let give = || -> rustix::io::Result<()> {
            own(parent.fd(), name, metadata)?;
            fs::chmodat(parent.fd(), name, Mode::from_raw_mode(metadata.mode & 0o7777), AtFlags::empty())?;
            fs::utimensat(parent.fd(), name, &timestamps(metadata.mtime), AtFlags::SYMLINK_NOFOLLOW)
        };
        give().map_err(|errno| EditError::Write { path: shown(parent, name), source: explained(errno) })
    }

    /// Nobody can make devices in a user namespace: there steps do not see them, and what is sent elsewhere has them.
    fn list_device(
        &mut self,
        parent: &Folder,
        name: &OsStr,
        kind: EntryKind,
        metadata: &EntryMetadata,
    ) -> Result<(), EditError> {
        self.hide_beneath(parent, name)?;
        let EntryMetadata { mode, uid, gid, mtime, .. } = *metadata;
        let metadata = Metadata { mode: mode & 0o7777, uid, gid, mtime, xattrs: BTreeMap::new() };
        self.known.device(&parent.path.join(name), kind, metadata);
        Ok(())
    }

    /// Hides what lower layers have under a name, by the merged tree: a folder that hides what is below needs no whiteouts
    /// in it.
    fn hide_beneath(&self, parent: &Folder, name: &OsStr) -> Result<(), EditError> {
        if self.active.merged().lookup(&parent.path.join(name))?.is_some() {
            self.active.put_whiteout(parent.fd(), name)?;
        }
        Ok(())
    }

    /// Makes something under a name, after removing what stands there in the upper; a folder is never replaced.
    fn put<T>(
        &mut self,
        parent: &mut Folder,
        name: &OsStr,
        make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Result<T, EditError> {
        let is_directory = |parent: &Folder| EditError::IsADirectory { path: shown(parent, name) };
        if self.existing(parent, name)?.is_some_and(|entry| entry.kind == TreeKind::Directory) {
            match self.on_conflict {
                OnConflict::Refuse => return Err(is_directory(parent)),
                OnConflict::Replace => self.remove(parent, name)?,
            }
        }
        let path = parent.path.join(name);
        let failed = |errno: rustix::io::Errno| write_error(&path, errno);
        match make(parent.fd()) {
            Err(rustix::io::Errno::EXIST) => {}
            made => return made.map_err(failed),
        }
        match fs::unlinkat(parent.fd(), name, AtFlags::empty()) {
            Ok(()) => {
                self.replaced += 1;
                self.known.remove(&path);
            }
            Err(rustix::io::Errno::ISDIR) if self.on_conflict == OnConflict::Replace => {
                self.remove(parent, name)?;
                // What is written hides as much as the whiteout that may be there now.
                let _ = fs::unlinkat(parent.fd(), name, AtFlags::empty());
            }
            Err(rustix::io::Errno::ISDIR) => return Err(is_directory(parent)),
            Err(errno) => return Err(failed(errno)),
        }
        make(parent.fd()).map_err(failed)
    }

    /// Sets the folders' times, children before parents, and says what was written.
    pub(crate) fn finish(self) -> Result<KnownFiles, EditError> {
        for (path, mtime) in self.times.iter().rev() {
            let fd = self.open_upper(path)?;
            let set = fs::futimens(&fd, &timestamps(*mtime));
            set.map_err(|source| write_error(path, source))?;
        }
        Ok(self.known)
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
    /// Its permission bits are replaced, and nothing else.
    TakeMode,
    Overwrite,
}

/// What happens where a file would take the place of a folder, or a folder that of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnConflict {
    Refuse,
    Replace,
}

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the descriptor back, which there are few of, until [`Editor::reopen`].
    pub(crate) fn close(&mut self) {
        self.fd = None;
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("a folder that is worked in is open").as_fd()
    }
}

impl EntryMetadata {
    /// That of something that is there.
    fn of(entry: &TreeEntry) -> Self {
        let xattrs = entry.xattrs.clone();
        Self { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs }
    }
}

/// Gives a file that is written its metadata.
pub(crate) fn finish_file(file: &File, path: &Path, metadata: &EntryMetadata) -> Result<(), EditError> {
    apply_to_file(file, metadata).map_err(|errno| write_error(path, errno))
}

/// What a layer lists of a device; nothing of a pipe.
fn device_kind(file_type: FileType, (major, minor): (u32, u32)) -> Option<EntryKind> {
    match file_type {
        FileType::CharacterDevice => Some(EntryKind::CharDevice { major, minor }),
        FileType::BlockDevice => Some(EntryKind::BlockDevice { major, minor }),
        _ => None,
    }
}

fn shown(parent: &Folder, name: &OsStr) -> String {
    parent.path.join(name).display().to_string()
}

fn write_error(path: &Path, errno: rustix::io::Errno) -> EditError {
    EditError::Write { path: path.display().to_string(), source: explained(errno) }
}

fn open_child(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(parent, name, flags, Mode::empty())
}

/// A folder of the upper that is new, or was made for an existing one and takes other metadata now.
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

/// What chown(2) means by an invalid argument: metadata comes from files that had it, but their owner may not exist here.
fn explained(errno: rustix::io::Errno) -> io::Error {
    match errno {
        rustix::io::Errno::INVAL => {
            let text = "the file system refuses its owner, mode or time; without root, owners are those of the subordinate ids";
            io::Error::new(io::ErrorKind::InvalidInput, text)
        }
        errno => errno.into(),
    }
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
