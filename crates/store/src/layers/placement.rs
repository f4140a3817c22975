//! The layer as far as it is unpacked, and where its entries land over the layers below.

use super::apply::default_root;
use super::entry::{EntryKind, LayerEntry, Metadata, join_path, split_path};
use super::error::{LayerError, shown};
use super::folder::NodeKind;
use super::index::LayerIndex;
use super::tree::{Found, MergedTree};
use crate::StoreError;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::os::unix::ffi::OsStrExt;

/// As many symbolic links as the kernel follows in one path.
const MAX_HOPS: usize = 40;

/// A path that sorts as [`path_order`](super::path_order) wants it: slashes are zero bytes, which names cannot hold.
type Key = Vec<u8>;

/// An entry that was unpacked.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) kind: EntryKind,
    pub(super) metadata: Metadata,
    /// Names of one node have the same number.
    pub(super) node: u64,
}

/// What the layer says so far. This, not the disk, is what later entries are judged by: no lookup can be led astray by a
/// link that an earlier entry made.
pub(super) struct Placement<'a> {
    lower: &'a MergedTree,
    entries: BTreeMap<Key, Placed>,
    /// Paths that the layer deletes from the layers below.
    hidden: BTreeSet<Key>,
    /// Symbolic links of lower layers through which entries were placed.
    followed: BTreeSet<Key>,
    nodes: u64,
}

/// What a path is in the merged view of the layers below and this one as it stands.
pub(super) enum Seen {
    Own(Placed),
    Lower(Found),
    Nothing,
}

/// Where a folder's path led.
pub(super) struct Place {
    pub(super) path: Vec<u8>,
    /// Folders on the way that this layer does not have yet, with the metadata they get.
    pub(super) missing: Vec<(Vec<u8>, Metadata)>,
    /// Links of lower layers on the way.
    links: Vec<Vec<u8>>,
}

impl Place {
    /// Whether the way led through a link that this layer may yet replace.
    pub(super) fn is_provisional(&self) -> bool {
        !self.links.is_empty()
    }
}

/// What is not there on the way to an entry.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Missing {
    /// It becomes a folder (`layer.md` leaves it open; every unpacker does it).
    BecomesFolder,
    /// The path leads nowhere.
    EndsTheWay,
}

impl<'a> Placement<'a> {
    pub(super) fn new(lower: &'a MergedTree) -> Result<Self, StoreError> {
        let metadata = lower.root()?.map_or_else(default_root, |found| found.node.metadata);
        let kind = EntryKind::Directory { opaque: false, implied: true };
        let entries = BTreeMap::from([(Vec::new(), Placed { kind, metadata, node: 0 })]);
        Ok(Self { lower, entries, hidden: BTreeSet::new(), followed: BTreeSet::new(), nodes: 0 })
    }

    pub(super) fn lower(&self) -> &'a MergedTree {
        self.lower
    }

    pub(super) fn get(&self, path: &[u8]) -> Option<&Placed> {
        self.entries.get(&key(path))
    }

    pub(super) fn get_mut(&mut self, path: &[u8]) -> Option<&mut Placed> {
        self.entries.get_mut(&key(path))
    }

    /// All entries in the order of the index.
    pub(super) fn entries(&self) -> impl DoubleEndedIterator<Item = (Vec<u8>, &Placed)> {
        self.entries.iter().map(|(key, placed)| (path_of(key), placed))
    }

    pub(super) fn hidden(&self) -> Vec<Vec<u8>> {
        self.hidden.iter().map(|key| path_of(key)).collect()
    }

    /// Adds or replaces an entry that is a node of its own.
    pub(super) fn insert(&mut self, path: &[u8], kind: EntryKind, metadata: Metadata) {
        self.nodes += 1;
        self.entries.insert(key(path), Placed { kind, metadata, node: self.nodes });
    }

    /// Adds a further name of an entry.
    pub(super) fn link(&mut self, path: &[u8], target: Placed) {
        self.entries.insert(key(path), target);
    }

    /// Forgets an entry and everything in it.
    pub(super) fn remove(&mut self, path: &[u8]) {
        let inside: Vec<Key> = below(&self.entries, path).cloned().collect();
        for key in inside {
            self.entries.remove(&key);
        }
        self.entries.remove(&key(path));
    }

    /// Finds out where a folder lies once the symbolic links on the way are followed inside the root, as if the layers
    /// were unpacked one after another into one root file system.
    ///
    /// `None` where the way ends, if `missing` says so.
    ///
    /// # Errors
    /// Something on the way is not a folder, or there are too many links.
    pub(super) fn folder(&self, components: &[&[u8]], missing: Missing) -> Result<Option<Place>, StoreError> {
        let mut todo: VecDeque<Vec<u8>> = components.iter().map(|name| name.to_vec()).collect();
        let mut place = Place { path: Vec::new(), missing: Vec::new(), links: Vec::new() };
        let mut hops = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                place.path.truncate(split_path(&place.path).map_or(0, |(parent, _)| parent.len()));
                continue;
            }
            let at = join_path(&place.path, &name);
            if place.missing.iter().any(|(path, _)| *path == at) {
                place.path = at;
                continue;
            }
            let target = match self.see(&at)? {
                Seen::Own(Placed { kind: EntryKind::Directory { .. }, .. }) => None,
                Seen::Own(Placed { kind: EntryKind::Symlink { target }, .. }) => Some(target),
                Seen::Lower(Found { node, .. }) => match node.kind {
                    NodeKind::Directory { .. } => {
                        place.missing.push((at.clone(), node.metadata));
                        None
                    }
                    NodeKind::Symlink { target } => {
                        place.links.push(at.clone());
                        Some(target)
                    }
                    _ => return refuse(&at, "something that is not a folder is its parent"),
                },
                Seen::Own(_) => return refuse(&at, "something that is not a folder is its parent"),
                Seen::Nothing if missing == Missing::EndsTheWay => return Ok(None),
                Seen::Nothing => {
                    place.missing.push((at.clone(), default_root()));
                    None
                }
            };
            let Some(target) = target else {
                place.path = at;
                continue;
            };
            hops += 1;
            if hops > MAX_HOPS {
                return Err(LayerError::TooManySymlinks { path: shown(&components.join(&b'/')) }.into());
            }
            let target = target.as_bytes();
            if target.starts_with(b"/") {
                place.path.clear();
            }
            let names = target.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
            for name in names.rev() {
                todo.push_front(name.to_vec());
            }
        }
        Ok(Some(place))
    }

    /// Records that an entry was placed there.
    pub(super) fn follow(&mut self, place: &Place) {
        self.followed.extend(place.links.iter().map(|link| key(link)));
    }

    /// What is at a path; nothing on the way is followed.
    pub(super) fn see(&self, path: &[u8]) -> Result<Seen, StoreError> {
        if let Some(placed) = self.get(path) {
            return Ok(Seen::Own(placed.clone()));
        }
        Ok(self.see_lower(path)?.map_or(Seen::Nothing, Seen::Lower))
    }

    /// What the layers below have at a path, unless this layer hides it there or further up.
    pub(super) fn see_lower(&self, path: &[u8]) -> Result<Option<Found>, StoreError> {
        if self.hidden.contains(&key(path)) { Ok(None) } else { self.beneath(path) }
    }

    /// What the layers below have at a path, whether or not this layer deletes just that.
    pub(super) fn beneath(&self, path: &[u8]) -> Result<Option<Found>, StoreError> {
        let mut above = path;
        while let Some((parent, _)) = split_path(above) {
            let own = self.get(parent).map(|placed| &placed.kind);
            let closed = match own {
                Some(EntryKind::Directory { opaque, .. }) => *opaque,
                Some(_) => true,
                None => false,
            };
            if closed || self.hidden.contains(&key(parent)) {
                return Ok(None);
            }
            above = parent;
        }
        self.lower.lookup_physical(path)
    }

    /// Deletes what lower layers have at a path. What this layer has there stays (`layer.md`, "Whiteouts").
    ///
    /// # Errors
    /// An earlier entry was placed through a link that goes now: what it meant depends on the order of the entries.
    pub(super) fn hide(&mut self, path: &[u8]) -> Result<(), LayerError> {
        self.refuse_followed(path, true)?;
        self.hidden.insert(key(path));
        Ok(())
    }

    /// The same for everything in a folder.
    ///
    /// # Errors
    /// As with [`Placement::hide`].
    pub(super) fn refuse_followed(&self, path: &[u8], itself: bool) -> Result<(), LayerError> {
        let inside = self.followed.range(key_below(path)..).next().is_some_and(|next| is_below(next, path));
        if inside || (itself && self.followed.contains(&key(path))) {
            return refuse_layer(path, "it deletes a link after unpacking something through it");
        }
        Ok(())
    }

    /// The finished layer as an index.
    pub(super) fn into_index(self) -> Result<LayerIndex, LayerError> {
        let mut first_names: HashMap<u64, u32> = HashMap::new();
        let mut entries = Vec::with_capacity(self.entries.len());
        for (key, Placed { kind, metadata, node }) in self.entries {
            let position = entries.len() as u32;
            let first = *first_names.entry(node).or_insert(position);
            let link = (first != position).then_some(first);
            entries.push(LayerEntry { path: path_of(&key), kind, metadata, link });
        }
        LayerIndex::new(entries)
    }
}

fn key(path: &[u8]) -> Key {
    path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect()
}

fn path_of(key: &[u8]) -> Vec<u8> {
    key.iter().map(|byte| if *byte == 0 { b'/' } else { *byte }).collect()
}

/// Where the keys of a folder's contents begin.
fn key_below(path: &[u8]) -> Key {
    if path.is_empty() {
        return vec![1];
    }
    let mut key = key(path);
    key.push(0);
    key
}

fn is_below(candidate: &[u8], path: &[u8]) -> bool {
    if path.is_empty() { !candidate.is_empty() } else { candidate.starts_with(&key_below(path)) }
}

fn below<'e>(entries: &'e BTreeMap<Key, Placed>, path: &[u8]) -> impl Iterator<Item = &'e Key> {
    let path = path.to_vec();
    entries.range(key_below(&path)..).map(|(key, _)| key).take_while(move |key| is_below(key, &path))
}

fn refuse<T>(path: &[u8], reason: &'static str) -> Result<T, StoreError> {
    Ok(refuse_layer(path, reason)?)
}

fn refuse_layer<T>(path: &[u8], reason: &'static str) -> Result<T, LayerError> {
    Err(LayerError::RefusedEntry { path: shown(path), reason })
}
