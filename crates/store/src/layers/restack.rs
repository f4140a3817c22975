//! A layer on top of other layers than those that it was made on.

use super::Layers;
use super::apply::{self, default_root};
use super::entry::{EntryKind, LayerEntry, Metadata, split_path};
use super::folder::{self, NodeKind};
use super::index::LayerIndex;
use super::tree::MergedTree;
use super::xattr::{self, Markers};
use crate::{LayerId, LayerRecord, Lease, StoreError};
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

impl Layers {
    /// Fits a layer onto a stack, lowest first: the id of a layer that says the same there.
    ///
    /// Mostly that is the layer itself. But the folders that are in it only as parents show the metadata of the stack
    /// that it was made on, and a tree cannot lie in one overlay twice: then it is a copy whose files are links to the
    /// layer's own, with the parents as they are in the new stack. A parent that is no folder there becomes a folder
    /// of the layer, as it would be if the files were written there.
    ///
    /// # Errors
    /// A layer is not in the store, or the file system or the database failed.
    pub fn restack(&self, below: &[LayerId], layer: &LayerId, lease: &Lease) -> Result<LayerId, StoreError> {
        let old = self.index(layer)?;
        if !below.contains(layer) && old.entries()[1..].iter().all(says_all) && !self.absent(below)?.is_empty() {
            return Ok(*layer);
        }
        let lower = self.tree(below)?;
        let entries: Vec<LayerEntry> =
            old.entries().iter().map(|entry| fitted(entry, &lower)).collect::<Result<_, _>>()?;
        let fits = |(old, new): (&LayerEntry, &LayerEntry)| old.kind == new.kind && same_but_time(old, new);
        if !below.contains(layer) && old.entries().iter().zip(&entries).all(fits) {
            return Ok(*layer);
        }
        self.publish_fitted(layer, &old, LayerIndex::new(entries)?, lease)
    }

    /// Makes a layer like another one, but for folders and deletions: its files are links to the other's own.
    pub(super) fn publish_fitted(
        &self,
        layer: &LayerId,
        old: &LayerIndex,
        index: LayerIndex,
        lease: &Lease,
    ) -> Result<LayerId, StoreError> {
        let Some(record) = self.get(layer)? else { return self.no_files(layer) };
        let same_kind = |(old, new): (&LayerEntry, &LayerEntry)| old.path == new.path && old.kind == new.kind;
        let same_length = old.entries().len() == index.entries().len();
        let same_tar = same_length && old.entries().iter().zip(index.entries()).all(same_kind);
        let scratch = self.opened.scratch("restack")?;
        let staged = scratch.path().join("layer");
        let tree = staged.join("tree");
        crate::scratch::create_private(&staged)?;
        crate::scratch::create_private(&tree)?;
        link_tree(&self.tree_path(layer)?, &tree, &index)?;
        let fresh = self.record_of_index(&index, record.times);
        let record = match same_tar {
            true => LayerRecord { id: fresh.id, ..record },
            false => fresh,
        };
        self.publish(&staged, &index, &record, None, lease)?;
        Ok(record.id)
    }
}

/// Whether an entry is the same on whatever it lies. The root is shown as the topmost layer has it, and nearly always has
/// the same mode; a stack that is not here is not fetched for that.
fn says_all(entry: &LayerEntry) -> bool {
    !matches!(entry.kind, EntryKind::Directory { implied: true, .. })
}

/// An entry as it is on other layers.
fn fitted(entry: &LayerEntry, lower: &MergedTree) -> Result<LayerEntry, StoreError> {
    let EntryKind::Directory { opaque, implied: true } = entry.kind else { return Ok(entry.clone()) };
    let found = lower.lookup_physical(&entry.path)?;
    let (metadata, implied) = match found {
        None => (default_root(), true),
        Some(found) if matches!(found.node.kind, NodeKind::Directory { .. }) => (found.node.metadata, true),
        Some(_) => (entry.metadata.clone(), false),
    };
    let kind = EntryKind::Directory { opaque, implied };
    Ok(LayerEntry { kind, metadata, ..entry.clone() })
}

/// The time of a parent changes with whatever is written into it.
fn same_but_time(old: &LayerEntry, new: &LayerEntry) -> bool {
    Metadata { mtime: (0, 0), ..old.metadata.clone() } == Metadata { mtime: (0, 0), ..new.metadata.clone() }
}

/// Makes a tree from the index, with links to the files of an equal tree.
fn link_tree(from: &Path, to: &Path, index: &LayerIndex) -> Result<(), StoreError> {
    let open = |path: &Path| folder::open_root(path).map_err(StoreError::os("open", path));
    let (source, target) = (open(from)?, open(to)?);
    let markers = Markers::of(to);
    for entry in &index.entries()[1..] {
        link_entry(&source, &target, entry, markers).map_err(StoreError::os("link", to.join(entry.path())))?;
    }
    for entry in index.entries().iter().rev().filter(|entry| entry.is_directory()) {
        finish_folder(&target, entry, markers).map_err(StoreError::os("set metadata of", to.join(entry.path())))?;
    }
    Ok(())
}

pub(super) fn link_entry(
    source: &OwnedFd,
    target: &OwnedFd,
    entry: &LayerEntry,
    markers: Markers,
) -> rustix::io::Result<()> {
    let (parent, name) = split_path(&entry.path).expect("the root is no entry of a folder");
    let name = OsStr::from_bytes(name);
    within(target, parent, |into| match entry.kind {
        EntryKind::Directory { .. } => rustix::fs::mkdirat(into, name, Mode::RWXU),
        // One node has only so many names, and deletions may be many.
        EntryKind::Whiteout => markers.put_whiteout(into, name.as_bytes()),
        EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. } => match link(source, parent, name, into) {
            // The tree of an ordinary user holds none.
            Err(Errno::NOENT) => Ok(()),
            other => other,
        },
        _ => link(source, parent, name, into),
    })
}

fn link(source: &OwnedFd, parent: &[u8], name: &OsStr, into: BorrowedFd<'_>) -> rustix::io::Result<()> {
    within(source, parent, |from| rustix::fs::linkat(from, name, into, name, AtFlags::empty()))
}

/// Does something in a folder of a tree. The root is open already, and most of what steps of a chain make lies in it.
pub(super) fn within<T>(
    root: &OwnedFd,
    path: &[u8],
    act: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    match path.is_empty() {
        true => act(root.as_fd()),
        false => act(folder::open_folder(root.as_fd(), path)?.as_fd()),
    }
}

pub(super) fn finish_folder(target: &OwnedFd, entry: &LayerEntry, markers: Markers) -> rustix::io::Result<()> {
    let place = if entry.path.is_empty() { b"." } else { &entry.path[..] };
    apply::set_all(target.as_fd(), place, &entry.metadata)?;
    if let EntryKind::Directory { opaque: true, .. } = entry.kind {
        let (folder, name) = match split_path(&entry.path) {
            Some((parent, name)) => (folder::open_folder(target.as_fd(), parent)?, name),
            None => return Ok(()),
        };
        xattr::set(folder.as_fd(), name, OsStr::new(markers.opaque()), b"y")?;
    }
    apply::set_mtime(target, &entry.path, entry.metadata.mtime)
}
