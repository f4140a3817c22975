//! A stack of layers becomes one tree.

use super::tree::{self, Metadata, OPAQUE, Tree, WHITEOUT, has_mark, is_folder, join, kind};
use super::{At, Done};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, makedev};
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Makes `tree` what an overlay of the layers, top-most first, and the upper folder would show.
pub(super) fn fill(lower: &[PathBuf], upper: Option<&Path>, tree: &Path) -> Done<()> {
    std::fs::create_dir(tree).at(tree)?;
    let target = Tree::open(tree)?;
    for layer in lower.iter().rev().map(|path| &**path).chain(upper) {
        Layer { source: Tree::open(layer)?, target: &target, first_names: HashMap::new() }.apply()?;
    }
    Ok(())
}

/// A layer on its way onto a tree.
struct Layer<'a> {
    source: Tree,
    target: &'a Tree,
    /// Of each node with several names, the first that was copied.
    first_names: HashMap<(u64, u64), Vec<u8>>,
}

impl Layer<'_> {
    fn apply(mut self) -> Done<()> {
        let mut folders = Vec::new();
        let mut pending = vec![Vec::new()];
        while let Some(path) = pending.pop() {
            let (from, to) = (self.source.folder(&path)?, self.target.folder(&path)?);
            for (name, stat) in self.source.entries(&from, &path)? {
                if self.entry(&from, &to, &path, (&name, &stat))? {
                    pending.push(join(&path, &name));
                }
            }
            folders.push((path, self.metadata(&from)?));
        }
        // Their times are set when nothing more is written into them.
        for (path, metadata) in folders.iter().rev() {
            let to = self.target.folder(path)?;
            let set = metadata.give(to.as_fd(), b".").and_then(|()| metadata.give_time(to.as_fd(), b"."));
            set.at(self.target.place(path))?;
        }
        Ok(())
    }

    fn metadata(&self, folder: &OwnedFd) -> Done<Metadata> {
        let read = rustix::fs::fstat(folder).and_then(|stat| Metadata::read(folder.as_fd(), b".", &stat));
        read.at(self.source.place(b""))
    }

    /// Brings one entry over; whether it is a folder to go into.
    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, path: &[u8], (name, stat): (&[u8], &Stat)) -> Done<bool> {
        let place = join(path, name);
        let at = || self.target.place(&place);
        if is_whiteout(from.as_fd(), name, stat).at(self.source.place(&place))? {
            return remove(to, name).at(at()).map(|()| false);
        }
        if is_folder(stat) {
            let hides = has_mark(from.as_fd(), name, &OPAQUE).at(self.source.place(&place))?;
            return folder(to, name, hides).at(at()).map(|()| true);
        }
        remove(to, name).at(at())?;
        if stat.st_nlink > 1
            && let Some(first) = self.first_names.get(&(stat.st_dev, stat.st_ino))
        {
            return self.link(first, to, name).map(|()| false);
        }
        copy(from, to, name, stat).at(at())?;
        if stat.st_nlink > 1 {
            self.first_names.insert((stat.st_dev, stat.st_ino), place);
        }
        Ok(false)
    }

    fn link(&self, first: &[u8], to: &OwnedFd, name: &[u8]) -> Done<()> {
        let (parent, own) = match first.iter().rposition(|byte| *byte == b'/') {
            Some(end) => (&first[..end], &first[end + 1..]),
            None => (&b""[..], first),
        };
        let folder = self.target.folder(parent)?;
        let linked = rustix::fs::linkat(&folder, OsStr::from_bytes(own), to, OsStr::from_bytes(name), AtFlags::empty());
        linked.at(self.target.place(first))
    }
}

/// A deletion, in overlayfs's form or the one for file systems that cannot hold that.
fn is_whiteout(folder: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<bool> {
    match kind(stat) {
        FileType::CharacterDevice => Ok(stat.st_rdev == 0),
        FileType::RegularFile if stat.st_size == 0 => has_mark(folder, name, &[WHITEOUT]),
        _ => Ok(false),
    }
}

/// Makes a folder, or keeps the one that is there.
fn folder(to: &OwnedFd, name: &[u8], hides: bool) -> Result<()> {
    let place = OsStr::from_bytes(name);
    match rustix::fs::statat(to, place, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if is_folder(&stat) && !hides => return Ok(()),
        Ok(_) => remove(to, name)?,
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    rustix::fs::mkdirat(to, place, Mode::RWXU)
}

/// Removes whatever has that name.
fn remove(to: &OwnedFd, name: &[u8]) -> Result<()> {
    match rustix::fs::unlinkat(to, OsStr::from_bytes(name), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => {
            let path = tree::by_descriptor(to, name);
            let removed = std::fs::remove_dir_all(OsStr::from_bytes(path.as_bytes()));
            removed.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
        Err(errno) => Err(errno),
    }
}

/// Copies anything but a folder with all that belongs to it.
fn copy(from: &OwnedFd, to: &OwnedFd, name: &[u8], stat: &Stat) -> Result<()> {
    let place = OsStr::from_bytes(name);
    let metadata = Metadata::read(from.as_fd(), name, stat)?;
    let made = match kind(stat) {
        FileType::RegularFile => copy_bytes(from, to, place),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, place, Vec::new())?;
            rustix::fs::symlinkat(&target, to, place)
        }
        // It means nothing without the process that listens.
        FileType::Socket => return Ok(()),
        kind => {
            let device = makedev(rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            match rustix::fs::mknodat(to, place, kind, Mode::RUSR | Mode::WUSR, device) {
                // Steps see no device that nobody here can make; the index of its layer has it.
                Err(Errno::PERM) => return Ok(()),
                made => made,
            }
        }
    };
    made?;
    metadata.give(to.as_fd(), name)?;
    metadata.give_time(to.as_fd(), name)
}

fn copy_bytes(from: &OwnedFd, to: &OwnedFd, name: &OsStr) -> Result<()> {
    let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let source = rustix::fs::openat(from, name, flags | OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
    let new = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let target = rustix::fs::openat(to, name, new, Mode::RUSR | Mode::WUSR)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    let copied = std::io::copy(&mut File::from(source), &mut File::from(target));
    copied.map(drop).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
