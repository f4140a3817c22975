//! Whether a layer's tree is what its index says, down to the bytes.

use super::commit::hash_file;
use super::entry::{EntryKind, LayerEntry, Metadata, join_path, split_path};
use super::error::shown;
use super::folder::{self, Node, NodeKind};
use super::index::LayerIndex;
use super::owners::Owners;
use super::xattr::Markers;
use crate::StoreError;
use rayon::prelude::*;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A path of a tree that is not what the index says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeFault {
    /// The path in the layer, made readable; empty for the root.
    pub path: String,
    /// What is wrong with it, in a few words.
    pub reason: &'static str,
}

/// What a look at a tree came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TreeCheck {
    pub(crate) faults: Vec<TreeFault>,
    /// The bytes that were read.
    pub(crate) bytes: u64,
}

/// Compares every name, every attribute and every byte of a tree with an index. Files are read in parallel.
///
/// # Errors
/// The tree cannot be opened, or reading a folder failed; a file that cannot be read is a fault.
pub(crate) fn check_tree(tree: &Path, index: &LayerIndex) -> Result<TreeCheck, StoreError> {
    let root = folder::open_root(tree).map_err(StoreError::os("open", tree))?;
    let found = vec![None; index.entries().len()];
    let mut walk = Walk { tree, root, index, markers: Markers::of(tree), found, faults: Vec::new() };
    walk.run()?;
    walk.report_missing();
    walk.check_links();
    let (bytes, mut damaged) = walk.check_bytes();
    let mut faults = walk.faults;
    faults.append(&mut damaged);
    faults.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(TreeCheck { faults, bytes })
}

struct Walk<'a> {
    tree: &'a Path,
    root: OwnedFd,
    index: &'a LayerIndex,
    markers: Markers,
    /// The inode that was found for each entry of the index.
    found: Vec<Option<(u64, u64)>>,
    faults: Vec<TreeFault>,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), StoreError> {
        let root = folder::read_root(self.root.as_fd(), self.markers).map_err(StoreError::os("read", self.tree))?;
        self.compare(0, &root);
        let mut todo = vec![Vec::new()];
        while let Some(path) = todo.pop() {
            self.read_folder(&path, &mut todo)?;
        }
        Ok(())
    }

    fn read_folder(&mut self, path: &[u8], todo: &mut Vec<Vec<u8>>) -> Result<(), StoreError> {
        let error = |errno: Errno| StoreError::os("read", self.tree.join(OsStr::from_bytes(path)))(errno);
        let opened = folder::open_folder(self.root.as_fd(), path).map_err(error)?;
        for name in folder::names(&opened).map_err(error)? {
            let path = join_path(path, &name);
            let Some(node) = folder::read_node(opened.as_fd(), &name, self.markers).map_err(error)? else { continue };
            let Some(position) = self.index.position(&path) else {
                self.fault(&path, "it is not in the index");
                continue;
            };
            self.compare(position, &node);
            if matches!(node.kind, NodeKind::Directory { .. }) {
                todo.push(path);
            }
        }
        Ok(())
    }

    fn compare(&mut self, position: usize, node: &Node) {
        self.found[position] = Some(node.inode);
        let entry = &self.index.entries()[position];
        if stands_for_device(entry, node) {
            return;
        }
        let path = &entry.path;
        if let Some(reason) = kind_fault(&entry.kind, &node.kind).or_else(|| metadata_fault(entry, node)) {
            let path = path.clone();
            self.fault(&path, reason);
        }
    }

    fn report_missing(&mut self) {
        let index = self.index;
        for (entry, found) in index.entries().iter().zip(self.found.clone()) {
            if found.is_none() && !may_be_absent(entry) {
                self.fault(&entry.path, "it is missing");
            }
        }
    }

    /// Names that the index calls one node must be one.
    fn check_links(&mut self) {
        let index = self.index;
        for (position, entry) in index.entries().iter().enumerate() {
            let Some(first) = entry.link else { continue };
            let (own, of_first) = (self.found[position], self.found[first as usize]);
            if own.is_some() && of_first.is_some() && own != of_first {
                self.fault(&entry.path, "it is no longer linked to its other name");
            }
        }
    }

    fn check_bytes(&self) -> (u64, Vec<TreeFault>) {
        let files = self.index.entries().par_iter().zip(&self.found).filter_map(|(entry, found)| match entry.kind {
            EntryKind::File { size, blake3 } if entry.link.is_none() && found.is_some() => Some((entry, size, blake3)),
            _ => None,
        });
        let checked = files.map(|(entry, size, expected)| match self.hash(&entry.path, size) {
            Ok((length, actual)) if actual == expected => (length, None),
            Ok((length, _)) => (length, Some(fault(&entry.path, "its bytes are others"))),
            Err(_) => (0, Some(fault(&entry.path, "it cannot be read"))),
        });
        let checked: Vec<(u64, Option<TreeFault>)> = checked.collect();
        let bytes = checked.iter().map(|(length, _)| length).sum();
        (bytes, checked.into_iter().filter_map(|(_, fault)| fault).collect())
    }

    fn hash(&self, path: &[u8], size: u64) -> io::Result<(u64, [u8; 32])> {
        let (parent, name) = split_path(path).ok_or(io::ErrorKind::IsADirectory)?;
        let parent = folder::open_folder(self.root.as_fd(), parent)?;
        hash_file(folder::open_file(parent.as_fd(), name)?.into(), size)
    }

    fn fault(&mut self, path: &[u8], reason: &'static str) {
        self.faults.push(fault(path, reason));
    }
}

fn fault(path: &[u8], reason: &'static str) -> TreeFault {
    TreeFault { path: shown(path), reason }
}

fn is_device(kind: &EntryKind) -> bool {
    matches!(kind, EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. })
}

/// Nobody can make devices in a user namespace: there the index alone has them, and a mark of deletion may stand in the
/// tree to hide what lies below.
fn may_be_absent(entry: &LayerEntry) -> bool {
    is_device(&entry.kind) && !Owners::of_this_process().are_all()
}

fn stands_for_device(entry: &LayerEntry, node: &Node) -> bool {
    node.kind == NodeKind::Whiteout && may_be_absent(entry)
}

fn kind_fault(entry: &EntryKind, node: &NodeKind) -> Option<&'static str> {
    let same = match (entry, node) {
        (EntryKind::File { size, .. }, NodeKind::File { size: found }) if size != found => {
            return Some("its size is another");
        }
        (EntryKind::File { .. }, NodeKind::File { .. }) => true,
        (EntryKind::Directory { opaque, .. }, NodeKind::Directory { opaque: found }) if opaque != found => {
            return Some("its mark as opaque is another");
        }
        (EntryKind::Directory { .. }, NodeKind::Directory { .. }) => true,
        (EntryKind::Symlink { target }, NodeKind::Symlink { target: found }) if target != found => {
            return Some("it points elsewhere");
        }
        (EntryKind::Symlink { .. }, NodeKind::Symlink { .. }) => true,
        (EntryKind::CharDevice { major, minor }, NodeKind::CharDevice { major: a, minor: b })
        | (EntryKind::BlockDevice { major, minor }, NodeKind::BlockDevice { major: a, minor: b }) => {
            (major, minor) == (a, b)
        }
        (EntryKind::Fifo, NodeKind::Fifo) | (EntryKind::Whiteout, NodeKind::Whiteout) => true,
        _ => false,
    };
    (!same).then_some("it is of another kind")
}

/// What the index says of a whiteout is nothing, and the root's time changes with what is made in it.
fn metadata_fault(entry: &LayerEntry, node: &Node) -> Option<&'static str> {
    let (said, found) = (&entry.metadata, &node.metadata);
    let is_link = matches!(entry.kind, EntryKind::Symlink { .. });
    match () {
        () if entry.kind == EntryKind::Whiteout => None,
        // Symbolic links have no mode of their own.
        () if said.mode != found.mode && !is_link => Some("its mode is another"),
        () if owner_of(said) != Some((found.uid, found.gid)) => Some("its owner is another"),
        () if said.xattrs != found.xattrs => Some("its extended attributes are others"),
        () if said.mtime != found.mtime && !entry.path.is_empty() && !entry.is_implied() => Some("its time is another"),
        () => None,
    }
}

/// The owner that the tree can have.
fn owner_of(said: &Metadata) -> Option<(u32, u32)> {
    Owners::of_this_process().settle(said.uid, said.gid).ok()
}
