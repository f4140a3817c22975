//! What became different of a tree, as the upper folder of an overlay has it.

use super::tree::{Metadata, Node, OPAQUE, Record, Seen, Tree, WHITEOUT, by_descriptor, join, kind, remove_marks};
use super::{At, Done};
use rustix::fs::{FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::{Errno, Result};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Moves what was changed or made since `before` from the tree into the upper folder, and marks what was removed. The tree is
/// of no use afterwards.
///
/// Something counts as untouched when its inode and the time of its last change are what they were. What has the same bytes
/// and metadata all the same is for the reader of the upper folder to find out, as with an overlay.
pub(super) fn collect(tree: &Path, before: &Record, upper: &Path) -> Done<()> {
    let mut walk = Walk {
        tree: Tree::open(tree)?,
        before,
        upper: Tree::open(upper)?,
        folders: HashMap::new(),
        made: BTreeSet::new(),
        opaque: Vec::new(),
    };
    let root = rustix::fs::stat(tree).at(tree)?;
    let mut pending = vec![(Vec::new(), root)];
    while let Some((path, stat)) = pending.pop() {
        walk.visit(&path, &stat, &mut pending)?;
    }
    walk.finish()
}

struct Walk<'a> {
    tree: Tree,
    before: &'a Record,
    upper: Tree,
    /// Of each folder that was seen, as it was before anything was moved out of it.
    folders: HashMap<Vec<u8>, Metadata>,
    /// The folders that are in the upper one.
    made: BTreeSet<Vec<u8>>,
    /// Those of them that hide what is below.
    opaque: Vec<Vec<u8>>,
}

impl Walk<'_> {
    fn visit(&mut self, path: &[u8], stat: &Stat, pending: &mut Vec<(Vec<u8>, Stat)>) -> Done<()> {
        let folder = self.tree.folder(path)?;
        let metadata = Metadata::read(folder.as_fd(), b".", stat).at(self.tree.place(path))?;
        self.folders.insert(path.to_vec(), metadata);
        let seen = self.seen_before(path);
        if seen != Some(Seen::of(stat)) {
            self.way(path)?;
        }
        // A folder that was removed and made again hides what was in the first one, as overlayfs marks it.
        let node = Node::of(&folder).at(self.tree.place(path))?;
        let known = self.before.folders.get(path);
        let is_new = known.is_some_and(|known| known.node != node);
        if is_new && !path.is_empty() {
            self.opaque.push(path.to_vec());
        }
        let entries = self.tree.entries(&folder, path)?;
        let before = known.filter(|_| !is_new).map(|known| &known.entries);
        if let Some(before) = before {
            let names: HashSet<&[u8]> = entries.iter().map(|(name, _)| &name[..]).collect();
            for gone in before.keys().filter(|name| !names.contains(&name[..])) {
                self.delete(path, gone)?;
            }
        }
        for (name, stat) in entries {
            let seen = before.and_then(|before| before.get(&name));
            match kind(&stat) {
                FileType::Directory => pending.push((join(path, &name), stat)),
                FileType::Socket if seen.is_some() => self.delete(path, &name)?,
                FileType::Socket => {}
                _ if seen == Some(&Seen::of(&stat)) => {}
                _ => self.take(&folder, path, &name)?,
            }
        }
        Ok(())
    }

    fn seen_before(&self, path: &[u8]) -> Option<Seen> {
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            _ if path.is_empty() => return self.before.root,
            Some(end) => (&path[..end], &path[end + 1..]),
            None => (&b""[..], path),
        };
        self.before.folders.get(parent)?.entries.get(name).copied()
    }

    /// Makes a folder of the upper one and all above it.
    fn way(&mut self, path: &[u8]) -> Done<OwnedFd> {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
        for end in ends.chain([path.len()]).filter(|end| *end > 0) {
            let folder = &path[..end];
            if self.made.contains(folder) {
                continue;
            }
            let start = folder.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
            let parent = self.upper.folder(&folder[..start.saturating_sub(1)])?;
            let made = rustix::fs::mkdirat(&parent, OsStr::from_bytes(&folder[start..]), Mode::RWXU);
            made.at(self.upper.place(folder))?;
            self.made.insert(folder.to_vec());
        }
        self.made.insert(Vec::new());
        self.upper.folder(path)
    }

    fn take(&mut self, folder: &OwnedFd, path: &[u8], name: &[u8]) -> Done<()> {
        let into = self.way(path)?;
        remove_marks(folder.as_fd(), name).at(self.tree.place(&join(path, name)))?;
        let place = OsStr::from_bytes(name);
        rustix::fs::renameat(folder, place, &into, place).at(self.upper.place(&join(path, name)))
    }

    fn delete(&mut self, path: &[u8], name: &[u8]) -> Done<()> {
        let into = self.way(path)?;
        whiteout(&into, name).at(self.upper.place(&join(path, name)))
    }

    /// Folders get what they had, those within others first.
    fn finish(self) -> Done<()> {
        for path in &self.opaque {
            let folder = self.upper.folder(path)?;
            hide_below(&folder).at(self.upper.place(path))?;
        }
        for path in self.made.iter().rev() {
            let (folder, metadata) = (self.upper.folder(path)?, &self.folders[path]);
            let set = metadata.give(folder.as_fd(), b".").and_then(|()| metadata.give_time(folder.as_fd(), b"."));
            set.at(self.upper.place(path))?;
        }
        Ok(())
    }
}

/// Marks a folder by the first attribute that may be set: overlayfs's own, that of users, or on an overlay forge's.
fn hide_below(folder: &OwnedFd) -> Result<()> {
    let marks = match super::is_on_overlay(folder) {
        true => &OPAQUE[..1],
        false => &["trusted.overlay.opaque", "user.overlay.opaque"][..],
    };
    let mut outcome = Err(Errno::PERM);
    for mark in marks {
        outcome = rustix::fs::fsetxattr(folder, *mark, b"y", XattrFlags::empty());
        if outcome != Err(Errno::PERM) {
            break;
        }
    }
    outcome
}

/// Marks a deletion as overlayfs does; where such a node cannot be made, as on an overlay, by an empty file.
fn whiteout(into: &OwnedFd, name: &[u8]) -> Result<()> {
    let place = OsStr::from_bytes(name);
    match rustix::fs::mknodat(into, place, FileType::CharacterDevice, Mode::empty(), 0) {
        Err(Errno::PERM) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(into, place, flags, Mode::RUSR | Mode::WUSR)?;
            rustix::fs::lsetxattr(by_descriptor(into, name), WHITEOUT, b"y", XattrFlags::empty())
        }
        other => other,
    }
}
