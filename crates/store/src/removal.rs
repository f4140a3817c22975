//! Deleting trees that a build step wrote, and may still be changing.
//!
//! Nothing is followed and no path is walked twice: every call names one component relative to an open folder (A66,
//! RUSTSEC-2023-0018). Folders are opened without following links and without crossing mounts. There is no recursion
//! and the number of open folders is bounded, so that the depth of a tree does not matter.

use crate::StoreError;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, IFlags, Mode, OFlags, RawDir, RenameFlags, ResolveFlags};
use rustix::io::{Errno, Result};
use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Folders below this depth are first moved up to the root of the tree, so that one descriptor per level suffices.
const OPEN_FOLDERS: usize = 64;

/// How often a folder is emptied again when somebody else puts files into it meanwhile.
const ROUNDS: u32 = 16;

/// Removes a tree of files that strangers may have made, without following a link or crossing a mount. Fine if it is not there.
///
/// # Errors
/// Something in it cannot be removed.
pub fn remove_folder(path: &Path) -> std::result::Result<(), StoreError> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => remove_tree(parent, name),
        _ => Ok(()),
    }
}

/// Removes `folder/name` whatever it is. Fine if it is not there.
pub(crate) fn remove_tree(folder: &Path, name: impl AsRef<OsStr>) -> std::result::Result<(), StoreError> {
    remove_tree_while(folder, name, &|| true).map(drop)
}

/// The same as long as `go_on` says so; `false` where something is left.
pub(crate) fn remove_tree_while(
    folder: &Path,
    name: impl AsRef<OsStr>,
    go_on: &dyn Fn() -> bool,
) -> std::result::Result<bool, StoreError> {
    let name = CString::new(name.as_ref().as_bytes()).expect("names from the file system and from ids hold no NUL");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match rustix::fs::open(folder, flags, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(true),
        Err(errno) => return Err(StoreError::os("open", folder)(errno)),
    };
    let path = || folder.join(OsStr::from_bytes(name.to_bytes()));
    Removal { parent, open: Vec::new(), moved: 0 }
        .run(name.clone(), go_on)
        .map_err(|errno| StoreError::os("remove", path())(errno))
}

struct Removal {
    parent: OwnedFd,
    /// The folders from the root of the tree down to the one being emptied.
    open: Vec<OpenFolder>,
    moved: u64,
}

struct OpenFolder {
    name: CString,
    folder: OwnedFd,
    entries: Vec<Entry>,
    rounds: u32,
}

struct Entry {
    name: CString,
    is_folder: bool,
}

impl Removal {
    fn run(mut self, name: CString, go_on: &dyn Fn() -> bool) -> Result<bool> {
        self.remove(Entry { name, is_folder: true })?;
        while let Some(top) = self.open.last_mut() {
            if !go_on() {
                return Ok(false);
            }
            match top.entries.pop() {
                Some(entry) => self.remove(entry)?,
                None => self.leave()?,
            }
        }
        Ok(true)
    }

    fn at(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(self.parent.as_fd(), |top| top.folder.as_fd())
    }

    /// Removes one entry of the folder at hand, or goes into it.
    fn remove(&mut self, entry: Entry) -> Result<()> {
        let Entry { name, mut is_folder } = entry;
        // What the listing said may be outdated: somebody may exchange folders and links while this runs.
        for _ in 0..ROUNDS {
            match unlink(self.at(), &name, is_folder) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::ISDIR) => is_folder = true,
                Err(Errno::NOTDIR) => is_folder = false,
                Err(Errno::NOTEMPTY | Errno::EXIST) => match self.enter(&name) {
                    Err(Errno::NOTDIR | Errno::LOOP) => is_folder = false,
                    result => return result,
                },
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::BUSY)
    }

    fn enter(&mut self, name: &CStr) -> Result<()> {
        if self.open.len() >= OPEN_FOLDERS {
            return self.move_up(name);
        }
        let folder = match open_folder(self.at(), name) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let entries = list(&folder)?;
        self.open.push(OpenFolder { name: name.to_owned(), folder, entries, rounds: 0 });
        Ok(())
    }

    /// Gives a folder that lies deep a new name in the root of the tree, where its turn comes later.
    fn move_up(&mut self, name: &CStr) -> Result<()> {
        let root = self.open.first().expect("a folder deep down has one above").folder.as_fd();
        loop {
            let new = CString::new(format!(".forge-removal-{}", self.moved)).expect("no NUL in digits");
            self.moved += 1;
            match rustix::fs::renameat_with(self.at(), name, root, &new, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    let entry = Entry { name: new, is_folder: true };
                    self.open.first_mut().expect("checked above").entries.push(entry);
                    return Ok(());
                }
                Err(Errno::EXIST) => continue,
                Err(Errno::NOENT) => return Ok(()),
                Err(errno @ (Errno::PERM | Errno::ACCESS)) => {
                    if !loosen(self.at(), name)? {
                        return Err(errno);
                    }
                }
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Removes the emptied folder at hand. If it is not empty after all, it is emptied again.
    fn leave(&mut self) -> Result<()> {
        let done = self.open.pop().expect("called with a folder at hand");
        match unlink(self.at(), &done.name, true) {
            // NOTDIR: somebody moved the folder away and put something else there, which is listed anew or left.
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(errno @ (Errno::NOTEMPTY | Errno::EXIST)) => {
                if done.rounds >= ROUNDS {
                    return Err(errno);
                }
                let entries = list(&done.folder)?;
                self.open.push(OpenFolder { entries, rounds: done.rounds + 1, ..done });
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }
}

/// Unlinks one name; where permissions or the immutable flag forbid it, they are changed and it is tried once more.
fn unlink(folder: BorrowedFd<'_>, name: &CStr, is_folder: bool) -> Result<()> {
    let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    match rustix::fs::unlinkat(folder, name, flags) {
        Err(errno @ (Errno::PERM | Errno::ACCESS)) => {
            let entry_changed = loosen(folder, name)?;
            let folder_changed = loosen_open(folder)?;
            match entry_changed || folder_changed {
                true => rustix::fs::unlinkat(folder, name, flags),
                false => Err(errno),
            }
        }
        result => result,
    }
}

fn open_folder(at: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    match open_without_following(at, name) {
        Err(errno @ (Errno::ACCESS | Errno::PERM)) => match loosen(at, name)? {
            true => open_without_following(at, name),
            false => Err(errno),
        },
        result => result,
    }
}

fn open_without_following(at: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(at, name, flags, Mode::empty(), resolve) {
        // Kernels before 5.6, and sandboxes whose filter does not know the call.
        Err(Errno::NOSYS) => rustix::fs::openat(at, name, flags, Mode::empty()),
        result => result,
    }
}

fn list(folder: &OwnedFd) -> Result<Vec<Entry>> {
    rustix::fs::seek(folder, rustix::fs::SeekFrom::Start(0))?;
    let mut buffer = [MaybeUninit::uninit(); 32 << 10];
    let mut reader = RawDir::new(folder, &mut buffer);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            let is_folder = entry.file_type() == FileType::Directory;
            entries.push(Entry { name: entry.file_name().to_owned(), is_folder });
        }
    }
    Ok(entries)
}

/// Takes away what keeps an entry from being removed; `false` when there was nothing to take away.
fn loosen(at: BorrowedFd<'_>, name: &CStr) -> Result<bool> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(at, name, flags, Mode::empty()) {
        Ok(entry) => loosen_open(entry.as_fd()),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// An O_PATH descriptor has neither fchmod nor ioctls; its entry in /proc leads to the same inode, whatever its name
/// means by now.
fn loosen_open(entry: BorrowedFd<'_>) -> Result<bool> {
    let found = rustix::fs::fstat(entry)?;
    let kind = FileType::from_raw_mode(found.st_mode);
    if !matches!(kind, FileType::Directory | FileType::RegularFile) {
        return Ok(false);
    }
    let path = format!("/proc/self/fd/{}", entry.as_raw_fd());
    let unlocked = clear_flags(&path)?;
    let closed = kind == FileType::Directory && found.st_mode & 0o700 != 0o700;
    if closed {
        rustix::fs::chmodat(CWD, &path, Mode::RWXU, AtFlags::empty())?;
    }
    Ok(unlocked || closed)
}

fn clear_flags(path: &str) -> Result<bool> {
    let Ok(file) = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) else {
        return Ok(false);
    };
    // ENOTTY: a file system without such flags.
    let Ok(flags) = rustix::fs::ioctl_getflags(&file) else { return Ok(false) };
    let forbidding = IFlags::IMMUTABLE | IFlags::APPEND;
    match flags.intersects(forbidding) {
        true => rustix::fs::ioctl_setflags(&file, flags - forbidding).map(|()| true),
        false => Ok(false),
    }
}
