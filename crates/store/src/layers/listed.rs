use super::Layers;
use super::entry::{EntryKind, LayerEntry, Metadata, relative, split_path};
use super::folder::{self, Node, NodeKind};
use super::index::LayerIndex;
use super::pack::{Pack, PackedBytes};
use crate::{LayerId, StoreError};
use rustix::fs::MemfdFlags;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// A packed layer, read by its index as if it were a tree.
pub(super) struct ListedTree {
    layers: Layers,
    id: LayerId,
    list: Arc<PackedList>,
    /// The tree, once somebody needed it.
    tree: OnceLock<PathBuf>,
}

/// What a packed layer's files say, which never changes.
pub(super) struct PackedList {
    entries: EntryList,
    pack: Pack,
}

impl PackedList {
    pub(super) fn new(id: &LayerId, index: LayerIndex, pack: Pack) -> Self {
        Self { entries: EntryList::new(id, index), pack }
    }

    /// The number of entries.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Closes the files of the pack until they are read again.
    pub(super) fn close_files(&self) {
        self.pack.close_files();
    }
}

/// Larger files are opened in the tree, which is made for them.
const IN_MEMORY: u64 = 1 << 20;

impl ListedTree {
    pub(super) fn new(layers: Layers, id: LayerId, list: Arc<PackedList>) -> Self {
        Self { layers, id, list, tree: OnceLock::new() }
    }

    /// What the layer lists.
    pub(super) fn entries(&self) -> &EntryList {
        &self.list.entries
    }

    /// Opens a regular file.
    pub(super) fn open(&self, path: &[u8]) -> Result<File, StoreError> {
        let index = self.index();
        let position = index.position(path);
        let entry = position.map(|position| &index.entries()[position]);
        match entry.map(|entry| &entry.kind) {
            Some(EntryKind::File { size, .. }) if *size <= IN_MEMORY => {
                let entry = entry.and_then(|entry| entry.link).map_or(position, |first| Some(first as usize));
                self.copy(entry.expect("it was found"), *size)
            }
            _ => self.open_in_tree(path),
        }
    }

    fn copy(&self, position: usize, size: u64) -> Result<File, StoreError> {
        let mut bytes = vec![0; size as usize];
        if let Some(place) = self.list.pack.get(position) {
            self.list.pack.read_at(place, 0, &mut bytes)?;
        }
        let memory = rustix::fs::memfd_create("forge-file", MemfdFlags::CLOEXEC);
        let mut file = File::from(memory.map_err(StoreError::os("open", self.list.pack.folder()))?);
        let filled = file.write_all(&bytes).and_then(|()| file.rewind());
        filled.map_err(StoreError::io("read", self.list.pack.folder()))?;
        Ok(file)
    }

    fn open_in_tree(&self, path: &[u8]) -> Result<File, StoreError> {
        let tree = self.tree()?;
        let error = || StoreError::os("open", tree.join(relative(path)));
        let (parent, name) = split_path(path).unwrap_or((b"", b"."));
        let root = folder::open_root(tree).map_err(error())?;
        let parent = folder::open_folder(root.as_fd(), parent).map_err(error())?;
        Ok(folder::open_file(parent.as_fd(), name).map_err(error())?.into())
    }

    pub(super) fn index(&self) -> &LayerIndex {
        &self.list.entries.index
    }

    pub(super) fn pack(&self) -> &Pack {
        &self.list.pack
    }

    /// Where the bytes of a file are, whichever of its names is asked for.
    pub(super) fn place(&self, path: &[u8]) -> Option<PackedBytes> {
        let position = self.index().position(path)?;
        let first = self.index().entries()[position].link;
        self.list.pack.get(first.map_or(position, |first| first as usize))
    }

    /// Where the tree is, which is made where it is not there yet.
    pub(super) fn tree(&self) -> Result<&Path, StoreError> {
        if self.tree.get().is_none() {
            // Whoever comes second has the same.
            drop(self.tree.set(self.layers.tree_path(&self.id)?));
        }
        Ok(self.tree.get().expect("it was set above"))
    }
}

/// The entries of a layer, read as if they were a tree.
pub(super) struct EntryList {
    index: LayerIndex,
    /// For each entry the position behind everything that is below it.
    ends: Vec<u32>,
    /// The number of names of those files that have several, by the position of the first.
    names: HashMap<u32, u64>,
    /// A number that no other layer has.
    device: u64,
}

impl EntryList {
    pub(super) fn new(id: &LayerId, index: LayerIndex) -> Self {
        let device = u64::from_str_radix(&id.as_str()[..16], 16).expect("an id is hexadecimal");
        Self { ends: ends(index.entries()), names: names(index.entries()), index, device }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.index.entries().len()
    }

    /// What is at a path.
    pub(super) fn node(&self, path: &[u8]) -> Option<Node> {
        self.index.position(path).map(|position| self.node_at(position))
    }

    /// The names in a folder, sorted by their bytes.
    pub(super) fn names(&self, folder: &[u8]) -> Vec<Vec<u8>> {
        let Some(position) = self.index.position(folder) else { return Vec::new() };
        let below = if folder.is_empty() { 0 } else { folder.len() + 1 };
        let mut names = Vec::new();
        let mut child = position + 1;
        while child < self.ends[position] as usize {
            names.push(self.index.entries()[child].path[below..].to_vec());
            child = self.ends[child] as usize;
        }
        names.sort_unstable();
        names
    }

    fn node_at(&self, position: usize) -> Node {
        let entry = &self.index.entries()[position];
        let first = entry.link.unwrap_or(position as u32);
        let links = self.names.get(&first).copied().unwrap_or(1);
        Node { kind: kind(&entry.kind), metadata: entry.metadata.clone(), inode: (self.device, first.into()), links }
    }
}

impl LayerIndex {
    /// All devices, as if they were in the tree.
    pub(super) fn devices(&self) -> BTreeMap<Vec<u8>, Node> {
        let is_device = |kind: &EntryKind| matches!(kind, EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. });
        let devices = self.entries().iter().filter(|entry| is_device(&entry.kind));
        devices.map(|entry| (entry.path.clone(), listed_node(entry.kind.clone(), entry.metadata.clone()))).collect()
    }
}

/// Something that lies in no file system, under its only name.
pub(super) fn listed_node(entry: EntryKind, metadata: Metadata) -> Node {
    Node { kind: kind(&entry), metadata, inode: (0, 0), links: 1 }
}

/// Entries that are below another come directly behind it.
fn ends(entries: &[LayerEntry]) -> Vec<u32> {
    let mut ends = vec![0; entries.len()];
    let mut open: Vec<usize> = Vec::new();
    for (position, entry) in entries.iter().enumerate() {
        while let Some(&last) = open.last() {
            let folder = &entries[last].path;
            let is_below =
                folder.is_empty() || entry.path.strip_prefix(&folder[..]).is_some_and(|rest| rest[0] == b'/');
            if is_below {
                break;
            }
            ends[last] = position as u32;
            open.pop();
        }
        open.push(position);
    }
    open.into_iter().for_each(|position| ends[position] = entries.len() as u32);
    ends
}

fn names(entries: &[LayerEntry]) -> HashMap<u32, u64> {
    let mut names = HashMap::new();
    for first in entries.iter().filter_map(|entry| entry.link) {
        *names.entry(first).or_insert(1) += 1;
    }
    names
}

fn kind(kind: &EntryKind) -> NodeKind {
    match kind {
        EntryKind::File { size, .. } => NodeKind::File { size: *size },
        EntryKind::Directory { opaque, .. } => NodeKind::Directory { opaque: *opaque },
        EntryKind::Symlink { target } => NodeKind::Symlink { target: target.clone() },
        EntryKind::CharDevice { major, minor } => NodeKind::CharDevice { major: *major, minor: *minor },
        EntryKind::BlockDevice { major, minor } => NodeKind::BlockDevice { major: *major, minor: *minor },
        EntryKind::Fifo => NodeKind::Fifo,
        EntryKind::Whiteout => NodeKind::Whiteout,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_an_entry_ends_before_its_next_sibling() {
        let kind = EntryKind::Directory { opaque: false, implied: false };
        let entry = |path: &str| LayerEntry {
            path: path.as_bytes().to_vec(),
            kind: kind.clone(),
            metadata: Metadata::default(),
            link: None,
        };
        let entries: Vec<LayerEntry> = ["", "a", "a/b", "a/b/c", "a/d", "a-b", "e"].map(entry).to_vec();
        assert_eq!(ends(&entries), [7, 5, 4, 4, 5, 6, 7]);
    }
}
