//! A layer without the stack that it was made on: what it deletes there by what it is, said name by name.

use super::Layers;
use super::entry::{EntryKind, LayerEntry, Metadata, path_order, split_path};
use super::index::LayerIndex;
use super::tree::{Level, MergedTree};
use crate::{LayerId, Lease, StoreError};
use std::collections::{BTreeSet, HashSet};

impl Layers {
    /// Has a layer say by itself what it says on `origin`, the stack that it lies on: the id of such a layer, mostly its own.
    ///
    /// An opaque folder deletes what `origin` has in it and nothing else, wherever the layer is laid; and a folder in which the
    /// layer only deletes something is a folder of the layer, since nothing else in the layer's tar would make it.
    ///
    /// # Errors
    /// A layer is not in the store, or the file system or the database failed.
    pub fn detach(&self, origin: &[LayerId], layer: &LayerId, lease: &Lease) -> Result<LayerId, StoreError> {
        let old = self.index(layer)?;
        let bare = only_deleted_in(&old);
        let hiding: Vec<&LayerEntry> = old.entries().iter().filter(|entry| is_opaque(entry)).collect();
        if origin.is_empty() || (bare.is_empty() && hiding.is_empty()) {
            return Ok(*layer);
        }
        let mut gone = BTreeSet::new();
        if !hiding.is_empty() {
            let lower = self.tree(origin)?;
            for entry in &hiding {
                hidden_names(&old, &lower, &entry.path, &mut gone)?;
            }
        }
        let said = |entry: &LayerEntry| match entry.kind {
            EntryKind::Directory { implied, .. } => {
                let implied = implied && !bare.contains(&entry.path[..]);
                LayerEntry { kind: EntryKind::Directory { opaque: false, implied }, ..entry.clone() }
            }
            _ => entry.clone(),
        };
        let kept = old.entries().iter().map(said).collect();
        self.publish_fitted(layer, &old, with_deletions(kept, gone)?, lease)
    }
}

fn is_opaque(entry: &LayerEntry) -> bool {
    matches!(entry.kind, EntryKind::Directory { opaque: true, .. })
}

/// The folders that are here only as parents, and only of deletions.
fn only_deleted_in(index: &LayerIndex) -> HashSet<&[u8]> {
    let entries = index.entries();
    let parent = |path: &'_ [u8]| split_path(path).map(|(parent, _)| parent.to_vec());
    let mut bare: HashSet<&[u8]> = HashSet::new();
    let mut filled: HashSet<Vec<u8>> = HashSet::new();
    // Backwards: what is in a folder comes before the folder.
    for entry in entries.iter().rev() {
        let says_itself = entry.kind != EntryKind::Whiteout && !entry.is_implied();
        match says_itself || filled.contains(&entry.path) {
            true => filled.extend(parent(&entry.path)),
            false if entry.is_implied() && !entry.path.is_empty() => _ = bare.insert(&entry.path),
            false => {}
        }
    }
    bare
}

/// What a folder of the stack below has that a layer's folder of that path does not have again.
fn hidden_names(
    index: &LayerIndex,
    lower: &MergedTree,
    folder: &[u8],
    gone: &mut BTreeSet<Vec<u8>>,
) -> Result<(), StoreError> {
    let mut todo: Vec<Level> = Vec::new();
    todo.extend(lower.lookup_physical(folder)?.and_then(|found| found.level));
    while let Some(level) = todo.pop() {
        lower.open_level(&level)?.each_child(|name, found| {
            let path = super::entry::join_path(&level.path, name);
            match (index.get(&path), found.level) {
                (None, _) => _ = gone.insert(path),
                // A new folder in place of the old one.
                (Some(entry), Some(level)) if entry.is_directory() => todo.push(level),
                (Some(_), _) => {}
            }
        })?;
    }
    Ok(())
}

/// The entries with deletions among them; links lead to where their first names are then.
fn with_deletions(kept: Vec<LayerEntry>, gone: BTreeSet<Vec<u8>>) -> Result<LayerIndex, StoreError> {
    let deletion = |path| LayerEntry { path, kind: EntryKind::Whiteout, metadata: Metadata::default(), link: None };
    let mut moved = vec![0; kept.len()];
    let mut all: Vec<(Option<usize>, LayerEntry)> =
        kept.into_iter().enumerate().map(|(position, entry)| (Some(position), entry)).collect();
    all.extend(gone.into_iter().map(|path| (None, deletion(path))));
    all.sort_by(|(_, a), (_, b)| path_order(&a.path, &b.path));
    for (position, (before, _)) in all.iter().enumerate() {
        if let Some(before) = before {
            moved[*before] = position as u32;
        }
    }
    let linked = |entry: LayerEntry| LayerEntry { link: entry.link.map(|first| moved[first as usize]), ..entry };
    Ok(LayerIndex::new(all.into_iter().map(|(_, entry)| linked(entry)).collect())?)
}
