//! Where nothing may be mounted, what would be is put into the copy itself, and taken out again afterwards.

use super::tree::{Metadata, by_descriptor, remove_marks};
use super::{Copied, Failed, fill};
use crate::init::{PointKind, Root, Stub, open_in, restore_mtime};
use crate::message::{Doing, Failure};
use crate::{ExecutorError, MountSource, MountSpec, StubRemoval};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, chmodat, chownat, fstat, makedev, mkdirat,
    mknodat, openat, openat2, renameat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Something that is in a copy for the time of a container.
///
/// All is done by a descriptor of the folder: whatever a process makes of the way to it, nothing outside is touched.
pub(super) struct Placed {
    folder: OwnedFd,
    name: OsString,
    /// Of what was put there, so that nothing else is taken out.
    identity: (u64, u64),
    /// What was there before, under another name.
    aside: Option<PathBuf>,
    /// How the folder was before and right after.
    times: [Stat; 2],
    /// Folders that were made on the way.
    stubs: Vec<Stub>,
    /// Where the contents belong afterwards.
    home: Option<PathBuf>,
}

/// What is put somewhere.
enum Content<'a> {
    /// An empty folder with these permissions.
    Folder(u32),
    /// `/dev` with the usual nodes.
    Devices,
    /// A file with these bytes and permissions.
    File(&'a [u8], u32),
    /// A copy of a file or folder of the machine; a folder's contents go back to it if that is wanted.
    Copy(PathBuf, bool),
    /// What a path names in another copy, moved there and back.
    Part { tree: &'a Path, path: &'a Path },
    /// A socket with permissions and owner.
    Socket(u32, (u32, u32)),
}

/// Puts everything in its place: `/dev`, `/proc` and `/sys` first, then the mounts in order. Gives the listening sockets.
pub(super) fn place_all(
    tree: &Path,
    (mounts, copies): (&[MountSpec], &[Copied]),
    removal: StubRemoval,
    aside: &Path,
    placed: &mut Vec<Placed>,
) -> Result<Vec<OwnedFd>, ExecutorError> {
    let mut listeners = Vec::new();
    let mut place = |target: &Path, content: Content<'_>, number: usize| {
        let aside = aside.join(format!("aside-{number}"));
        put(tree, target, &content, removal, aside).map(|(made, listener)| {
            placed.push(made);
            listeners.extend(listener);
        })
    };
    place(Path::new("/dev"), Content::Devices, 0)?;
    place(Path::new("/proc"), Content::Folder(0o555), 1)?;
    place(Path::new("/sys"), Content::Folder(0o555), 2)?;
    for (number, mount) in mounts.iter().enumerate() {
        place(&mount.target, content(mount, copies)?, number + 3)?;
    }
    Ok(listeners)
}

/// Only what is a copy itself may be moved.
fn content<'a>(mount: &'a MountSpec, copies: &[Copied]) -> Result<Content<'a>, ExecutorError> {
    Ok(match &mount.source {
        MountSource::Bind(path) => Content::Copy(path.clone(), !mount.readonly),
        MountSource::BindBeneath { root, path } => match copies.iter().any(|copied| copied.tree == *root) {
            true => Content::Part { tree: root, path },
            false => {
                let found = part(root, path).doing(|| format!("open mount source {}", path.display()))?;
                Content::Copy(found, !mount.readonly)
            }
        },
        MountSource::Tmpfs { mode, .. } => Content::Folder(*mode),
        MountSource::File { content, mode } => Content::File(content, *mode),
        MountSource::Socket { mode, uid, gid } => Content::Socket(*mode, (*uid, *gid)),
        MountSource::Secret { .. } => {
            let what = "a secret as a file where forge may mount nothing, so that it would be on disk (env=NAME keeps it in \
                        memory),";
            return Err(ExecutorError::Unsupported { what: what.into() });
        }
        MountSource::Overlay { .. } => return Err(ExecutorError::InvalidSpec { reason: "an overlay is left".into() }),
    })
}

fn put(
    tree: &Path,
    target: &Path,
    content: &Content<'_>,
    removal: StubRemoval,
    aside: PathBuf,
) -> Result<(Placed, Option<OwnedFd>), ExecutorError> {
    let action = || format!("put {} into a copy", target.display());
    let root = Root::at(tree)?;
    let kind = if content.is_folder().doing(action)? { PointKind::Directory } else { PointKind::File };
    let mut stubs = Vec::new();
    let point = root.open_or_create(target, kind, &mut stubs)?;
    let (folder, name) = parent_of(&root, tree, &point).doing(action)?;
    let before = fstat(&folder).doing(action)?;
    let made_now = stubs.pop_if(|stub| stub.is_point).is_some();
    let aside = match made_now {
        true => remove(&folder, &name).map(|()| None),
        false => renameat(&folder, &name, CWD, &aside).map(|()| Some(aside)),
    };
    let aside = aside.doing(action)?;
    // Before anything is moved.
    let home = content.home();
    let listener = content.make(&folder, &name).map_err(|failure| match failure {
        Failure::System { errno, .. } => ExecutorError::system(action(), Errno::from_raw_os_error(errno)),
        other => other.into(),
    })?;
    let made = statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW).doing(action)?;
    let times = [before, fstat(&folder).doing(action)?];
    let stubs = if removal == StubRemoval::WithParents { stubs } else { Vec::new() };
    let identity = (made.st_dev, made.st_ino);
    Ok((Placed { folder, name, identity, aside, times, stubs, home }, listener))
}

/// The folder in which something was found, and its name there.
fn parent_of(root: &Root, tree: &Path, point: &OwnedFd) -> rustix::io::Result<(OwnedFd, OsString)> {
    let path = rustix::fs::readlink(format!("/proc/self/fd/{}", point.as_raw_fd()), Vec::new())?;
    let path = PathBuf::from(OsString::from_vec(path.into_bytes()));
    let tree = tree.canonicalize().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let within = path.strip_prefix(&tree).map_err(|_| Errno::XDEV)?;
    let name = within.file_name().ok_or(Errno::BUSY)?.to_owned();
    let parent = within.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder =
        openat2(root.as_fd(), parent, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?;
    Ok((folder, name))
}

impl Content<'_> {
    fn is_folder(&self) -> rustix::io::Result<bool> {
        match self {
            Self::Folder(_) | Self::Devices => Ok(true),
            Self::File(..) | Self::Socket(..) => Ok(false),
            Self::Copy(path, _) => is_folder(path),
            Self::Part { tree, path } => part(tree, path).and_then(|path| is_folder(&path)),
        }
    }

    fn home(&self) -> Option<PathBuf> {
        match self {
            Self::Copy(path, true) if path.is_dir() => Some(path.clone()),
            Self::Part { tree, path } => part(tree, path).ok(),
            _ => None,
        }
    }

    fn make(&self, folder: &OwnedFd, name: &OsStr) -> Result<Option<OwnedFd>, Failure> {
        let here = PathBuf::from(OsStr::from_bytes(by_descriptor(folder, name.as_bytes()).as_bytes()));
        let doing = || "make what is put into a copy".to_owned();
        match self {
            Self::Folder(mode) => new_folder(folder, name, *mode).doing(doing)?,
            Self::Devices => devices(folder, name).doing(|| "make device nodes".into())?,
            Self::File(bytes, mode) => {
                let written =
                    std::fs::write(&here, bytes).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
                written
                    .and_then(|()| chmodat(folder, name, Mode::from_raw_mode(*mode), AtFlags::empty()))
                    .doing(doing)?;
            }
            Self::Copy(path, _) => copy(path, &here).map_err(|failed| Failure::System {
                action: format!("copy {}", failed.path.display()),
                errno: failed.errno.raw_os_error(),
            })?,
            Self::Part { tree, path } => {
                let from = part(tree, path).doing(doing)?;
                renameat(CWD, &from, folder, name).doing(doing)?;
            }
            Self::Socket(mode, (uid, gid)) => {
                let bound = UnixListener::bind(&here).and_then(|bound| bound.set_nonblocking(true).map(|()| bound));
                let bound = bound.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)).doing(doing)?;
                let owner = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
                chownat(folder, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
                    .and_then(|()| chmodat(folder, name, Mode::from_raw_mode(*mode), AtFlags::empty()))
                    .doing(doing)?;
                return Ok(Some(bound.into()));
            }
        }
        Ok(None)
    }
}

fn is_folder(path: &Path) -> rustix::io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::stat(path)?.st_mode) == FileType::Directory)
}

/// What a path names in a tree, links followed within it.
fn part(tree: &Path, path: &Path) -> rustix::io::Result<PathBuf> {
    let root = openat(CWD, tree, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let found = open_in(root.as_fd(), path, OFlags::PATH, ResolveFlags::empty())?;
    let text = rustix::fs::readlink(format!("/proc/self/fd/{}", found.as_raw_fd()), Vec::new())?;
    Ok(PathBuf::from(OsString::from_vec(text.into_bytes())))
}

fn new_folder(folder: &OwnedFd, name: &OsStr, mode: u32) -> rustix::io::Result<()> {
    mkdirat(folder, name, Mode::from_raw_mode(mode))?;
    chmodat(folder, name, Mode::from_raw_mode(mode), AtFlags::empty())
}

fn copy(from: &Path, to: &Path) -> Result<(), Failed> {
    match from.is_dir() {
        true => fill::fill(&[from.to_owned()], None, to),
        false => std::fs::copy(from, to).map(drop).map_err(|error| Failed {
            path: from.to_owned(),
            errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        }),
    }
}

/// The usual nodes, which take CAP_MKNOD, and links that need a procfs to lead anywhere.
fn devices(folder: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    new_folder(folder, name, 0o755)?;
    let own = openat(folder, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for (node, major, minor) in crate::init::NODES {
        mknodat(&own, node, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(major, minor))?;
        chmodat(&own, node, Mode::from_raw_mode(0o666), AtFlags::empty())?;
    }
    for (link, target) in [("fd", "/proc/self/fd"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2")] {
        symlinkat(target, &own, link)?;
    }
    new_folder(&own, OsStr::new("shm"), 0o1777)
}

fn remove(folder: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {
            let path = by_descriptor(folder, name.as_bytes());
            let removed = std::fs::remove_dir_all(OsStr::from_bytes(path.as_bytes()));
            removed.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
        other => other,
    }
}

impl Placed {
    /// Takes it out, if it is still there, and puts back what was there before.
    pub(super) fn take_out(self) -> Result<(), ExecutorError> {
        let action = format!("take {} out of a copy", Path::new(&self.name).display());
        self.undo().map_err(|errno| ExecutorError::system(action, errno))
    }

    fn undo(self) -> rustix::io::Result<()> {
        let touched = fstat(&self.folder)?;
        match statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if (found.st_dev, found.st_ino) == self.identity => {
                if let Some(home) = &self.home {
                    self.bring_home(home)?;
                }
                match remove(&self.folder, &self.name) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                }
            }
            // A process put something else there, which is its own.
            Ok(_) => return Ok(()),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        if let Some(aside) = &self.aside {
            match renameat(CWD, aside, &self.folder, &self.name) {
                // Where the folder is gone there is nothing to put it back into.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        let [before, after] = &self.times;
        if (touched.st_mtime, touched.st_mtime_nsec) == (after.st_mtime, after.st_mtime_nsec) {
            restore_mtime(self.folder.as_fd(), before)?;
        }
        for Stub { parent, record, .. } in self.stubs.iter().rev() {
            let above = fstat(parent)?;
            if unlinkat(parent, &record.name, AtFlags::REMOVEDIR).is_ok() {
                restore_mtime(parent.as_fd(), &above)?;
            }
        }
        Ok(())
    }

    /// A part of another copy goes back as a whole, what was copied from a folder of the machine's entry by entry.
    fn bring_home(&self, home: &Path) -> rustix::io::Result<()> {
        if !home.exists() {
            return renameat(&self.folder, &self.name, CWD, home);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (from, to) =
            (openat(&self.folder, &self.name, flags, Mode::empty())?, openat(CWD, home, flags, Mode::empty())?);
        for name in names(&to)? {
            remove(&to, &name)?;
        }
        for name in names(&from)? {
            remove_marks(from.as_fd(), name.as_bytes())?;
            renameat(&from, &name, &to, &name)?;
        }
        let stat = fstat(&from)?;
        Metadata::read(from.as_fd(), b".", &stat)?.give(to.as_fd(), b".")
    }
}

fn names(folder: &OwnedFd) -> rustix::io::Result<Vec<OsString>> {
    let entries = rustix::fs::Dir::read_from(folder)?;
    let names = entries.map(|entry| entry.map(|entry| OsString::from_vec(entry.file_name().to_bytes().to_vec())));
    let mut all = names.collect::<Result<Vec<_>, _>>()?;
    all.retain(|name| name != "." && name != "..");
    Ok(all)
}

/// The copies that parts were taken from change with them.
pub(super) fn root_of(all: &[Copied]) -> Option<&Path> {
    all.first().map(|copied| &*copied.tree)
}
