//! Paths of the container, resolved by descriptors within its root.
//!
//! All of this happens after the old root has been detached: a symbolic link, whatever it says, can only lead to
//! what the container sees anyway. In-root resolution without magic links keeps even that orderly.

use crate::message::{Doing, Failure, StubRecord};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, UTIME_OMIT, fstat, fstatfs,
    mkdirat, openat, openat2, readlinkat, statat, utimensat,
};
use rustix::io::{Errno, Result};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

/// The kernel's own limit on symbolic links in one resolution.
const MAX_LINKS: u32 = 40;

/// `f_type` of procfs.
pub(super) const PROC_SUPER_MAGIC: u32 = 0x9fa0;

/// A rename or a mount elsewhere makes openat2(2) give up with EAGAIN; flippers do that on purpose.
const MAX_RACES: u32 = 128;

/// What a missing mount point is made as.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum PointKind {
    Directory,
    File,
}

/// A mount point that did not exist before.
pub(crate) struct Stub {
    /// Whether it is mounted upon itself, and not only on the way there.
    pub(crate) is_point: bool,
    pub(crate) parent: OwnedFd,
    pub(crate) record: StubRecord,
}

/// The container's `/`.
pub(crate) struct Root(OwnedFd);

impl Root {
    /// Takes the root of the calling process.
    pub(super) fn current() -> std::result::Result<Self, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, "/", flags, Mode::empty());
        root.map(Self).doing(|| "open the container's root".into())
    }

    /// Takes the root of a tree that is attached somewhere.
    pub(super) fn of(tree: OwnedFd) -> Self {
        Self(tree)
    }

    /// Takes a folder of the machine's.
    pub(crate) fn at(path: &Path) -> std::result::Result<Self, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, path, flags, Mode::empty()).map(Self).doing(|| format!("open {}", path.display()))
    }

    /// Opens what is there, as a handle on the place only (`O_PATH`).
    pub(super) fn open(&self, path: &Path) -> Result<OwnedFd> {
        self.resolve(path, OFlags::PATH, ResolveFlags::empty())
    }

    /// As [`Root::open`], refusing every symbolic link.
    pub(super) fn open_plain(&self, path: &Path) -> Result<OwnedFd> {
        self.resolve(path, OFlags::PATH, ResolveFlags::NO_SYMLINKS)
    }

    pub(super) fn resolve(&self, path: &Path, flags: OFlags, more: ResolveFlags) -> Result<OwnedFd> {
        open_in(self.0.as_fd(), path, flags, more)
    }

    /// Opens a mount point, making what is missing of it and noting that in `stubs`.
    pub(crate) fn open_or_create(
        &self,
        path: &Path,
        kind: PointKind,
        stubs: &mut Vec<Stub>,
    ) -> std::result::Result<OwnedFd, Failure> {
        match self.open(path) {
            Err(Errno::NOENT) => Walk::new(self, path)
                .and_then(|walk| walk.run(kind, stubs))
                .doing(|| format!("create mount point {}", path.display())),
            other => other.doing(|| format!("open mount point {}", path.display())),
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opens `path` below `root`, where `/` and `..` lead no further up than that.
pub(crate) fn open_in(root: BorrowedFd<'_>, path: &Path, flags: OFlags, more: ResolveFlags) -> Result<OwnedFd> {
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
    let mut races = 0;
    loop {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN) if races < MAX_RACES => races += 1,
            other => return other,
        }
    }
}

/// A resolution step by step, which unlike openat2(2) can create what is missing, also behind a dangling link.
struct Walk {
    /// Directories from the root down to where the walk stands.
    stack: Vec<OwnedFd>,
    pending: VecDeque<OsString>,
    links: u32,
}

impl Walk {
    fn new(root: &Root, path: &Path) -> Result<Self> {
        Ok(Self { stack: vec![rustix::io::fcntl_dupfd_cloexec(root, 3)?], pending: components(path), links: 0 })
    }

    fn run(mut self, kind: PointKind, stubs: &mut Vec<Stub>) -> Result<OwnedFd> {
        while let Some(name) = self.pending.pop_front() {
            if name == ".." {
                if self.stack.len() > 1 {
                    self.stack.pop();
                }
                continue;
            }
            let entry = self.step(&name, kind, stubs)?;
            match FileType::from_raw_mode(fstat(&entry)?.st_mode) {
                FileType::Symlink => self.follow(&entry)?,
                FileType::Directory => self.stack.push(entry),
                _ if self.pending.is_empty() => return Ok(entry),
                _ => return Err(Errno::NOTDIR),
            }
        }
        self.stack.pop().ok_or(Errno::NOENT)
    }

    fn here(&self) -> Result<&OwnedFd> {
        self.stack.last().ok_or(Errno::NOENT)
    }

    fn step(&self, name: &OsStr, kind: PointKind, stubs: &mut Vec<Stub>) -> Result<OwnedFd> {
        let here = self.here()?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(here, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                let is_point = self.pending.is_empty();
                let kind = if is_point { kind } else { PointKind::Directory };
                stubs.push(Stub { is_point, ..make_stub(here.as_fd(), name, kind)? });
                openat(here, name, flags, Mode::empty())
            }
            other => other,
        }
    }

    fn follow(&mut self, link: &OwnedFd) -> Result<()> {
        self.links += 1;
        // Links in procfs lead to wherever another process is, whatever their text says.
        let magic = fstatfs(link)?.f_type as u32 == PROC_SUPER_MAGIC;
        if magic || self.links > MAX_LINKS {
            return Err(Errno::LOOP);
        }
        let target = OsString::from_vec(readlinkat(link, "", Vec::new())?.into_bytes());
        let target = Path::new(&target);
        if target.has_root() {
            self.stack.truncate(1);
        }
        for name in components(target).into_iter().rev() {
            self.pending.push_front(name);
        }
        Ok(())
    }
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

/// Makes an empty file or directory and leaves its parent's modification time as it was.
fn make_stub(parent: BorrowedFd<'_>, name: &OsStr, kind: PointKind) -> Result<Stub> {
    let before = fstat(parent)?;
    match kind {
        PointKind::Directory => mkdirat(parent, name, Mode::from_raw_mode(0o755))?,
        PointKind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
            openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)?
        }
    }
    restore_mtime(parent, &before)?;
    let made = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(Stub {
        is_point: true,
        parent: rustix::io::fcntl_dupfd_cloexec(parent, 3)?,
        record: StubRecord {
            name: OsStr::from_bytes(name.as_bytes()).into(),
            directory: kind == PointKind::Directory,
            device: made.st_dev,
            inode: made.st_ino,
        },
    })
}

/// Gives a directory the modification time it had.
pub(crate) fn restore_mtime(directory: BorrowedFd<'_>, before: &Stat) -> Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
        last_modification: Timespec { tv_sec: before.st_mtime as _, tv_nsec: before.st_mtime_nsec as _ },
    };
    // Through "." since an O_PATH descriptor itself is refused.
    utimensat(directory, ".", &times, AtFlags::empty())
}
