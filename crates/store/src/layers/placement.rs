//! The layer as far as it is unpacked, and where its entries land over the layers below.

use super::apply::default_root;
use super::entry::{EntryKind, LayerEntry, Metadata};
use super::error::{LayerError, shown};
use super::folder::NodeKind;
use super::index::LayerIndex;
use super::tree::{Found, Level, MergedTree};
use crate::StoreError;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::OsString;
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
    links: Vec<Key>,
}

impl Place {
    /// Whether the way led through a link that this layer may yet replace.
    pub(super) fn is_provisional(&self) -> bool {
        !self.links.is_empty()
    }
}

/// The way through folders as far as it was gone.
struct Way {
    steps: Vec<Step>,
    missing: Vec<(Key, Metadata)>,
    links: Vec<Key>,
    hops: usize,
}

/// A folder, and what is visible in it of the layers below.
struct Step {
    at: Key,
    lower: Option<Level>,
}

/// What a name turned out to be.
enum Next {
    /// A folder of this layer.
    Folder(Step),
    /// A folder of the layers below, and its metadata.
    Missing(Step, Metadata),
    Link {
        target: OsString,
        lower: bool,
    },
    Other,
    Nothing,
}

impl Way {
    fn at(&self, name: &[u8]) -> Key {
        match &self.steps.last().expect("the root is never taken off").at[..] {
            b"" => name.to_vec(),
            at => [at, &[0], name].concat(),
        }
    }

    /// A link may lead back to what is missing already.
    fn miss(&mut self, step: Step, metadata: Metadata) {
        if !self.missing.iter().any(|(known, _)| *known == step.at) {
            self.missing.push((step.at.clone(), metadata));
        }
        self.steps.push(step);
    }

    fn turn(&mut self, target: &[u8], todo: &mut VecDeque<Vec<u8>>) {
        if target.starts_with(b"/") {
            self.steps.truncate(1);
        }
        let names = target.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
        for name in names.rev() {
            todo.push_front(name.to_vec());
        }
    }

    fn arrive(self) -> Place {
        let path = path_of(&self.steps.last().expect("the root is never taken off").at);
        let missing = self.missing.into_iter().map(|(key, metadata)| (path_of(&key), metadata)).collect();
        Place { path, missing, links: self.links }
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
        let mut way = Way { steps: vec![self.root_step()?], missing: Vec::new(), links: Vec::new(), hops: 0 };
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                way.steps.truncate((way.steps.len() - 1).max(1));
                continue;
            }
            match self.step(&way, &name)? {
                Next::Folder(step) => way.steps.push(step),
                Next::Missing(step, metadata) => way.miss(step, metadata),
                Next::Nothing if missing == Missing::EndsTheWay => return Ok(None),
                Next::Nothing => {
                    let at = way.at(&name);
                    way.miss(Step { at, lower: None }, default_root());
                }
                Next::Link { target, lower } => {
                    way.links.extend(lower.then(|| way.at(&name)));
                    way.hops += 1;
                    if way.hops > MAX_HOPS {
                        return Err(LayerError::TooManySymlinks { path: shown(&components.join(&b'/')) }.into());
                    }
                    way.turn(target.as_bytes(), &mut todo);
                }
                Next::Other => return refuse(&path_of(&way.at(&name)), "something that is not a folder is its parent"),
            }
        }
        Ok(Some(way.arrive()))
    }

    /// What comes after the last step.
    fn step(&self, way: &Way, name: &[u8]) -> Result<Next, StoreError> {
        let at = way.at(name);
        let closed = self.hidden.contains(&at);
        let from = way.steps.last().expect("the root is never taken off").lower.as_ref().filter(|_| !closed);
        let find = || from.map(|level| self.lower.open_level(level)?.find(name)).transpose();
        Ok(match self.entries.get(&at).map(|placed| &placed.kind) {
            Some(EntryKind::Directory { opaque: true, .. }) => Next::Folder(Step { at, lower: None }),
            Some(EntryKind::Directory { .. }) => {
                Next::Folder(Step { at, lower: find()?.flatten().and_then(|found| found.level) })
            }
            Some(EntryKind::Symlink { target }) => Next::Link { target: target.clone(), lower: false },
            Some(_) => Next::Other,
            None => match find()?.flatten() {
                None => Next::Nothing,
                Some(Found { node, level, .. }) => match node.kind {
                    NodeKind::Directory { .. } => Next::Missing(Step { at, lower: level }, node.metadata),
                    NodeKind::Symlink { target } => Next::Link { target, lower: true },
                    _ => Next::Other,
                },
            },
        })
    }

    fn root_step(&self) -> Result<Step, StoreError> {
        let opaque = matches!(self.get(b"").map(|root| &root.kind), Some(EntryKind::Directory { opaque: true, .. }));
        let lower = if opaque { None } else { self.lower.root()?.and_then(|found| found.level) };
        Ok(Step { at: Key::new(), lower })
    }

    /// Records that an entry was placed there.
    pub(super) fn follow(&mut self, place: &Place) {
        self.followed.extend(place.links.iter().cloned());
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
        let key = key(path);
        let ends = key.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(at, _)| at);
        for end in std::iter::once(0).filter(|_| !key.is_empty()).chain(ends) {
            let closed = match self.entries.get(&key[..end]).map(|placed| &placed.kind) {
                Some(EntryKind::Directory { opaque, .. }) => *opaque,
                Some(_) => true,
                None => false,
            };
            if closed || self.hidden.contains(&key[..end]) {
                return Ok(None);
            }
        }
        self.lower.lookup_physical(path)
    }

    /// Sees to it that implied folders have the metadata of what is visible below them, and that no folder is opaque where
    /// there is nothing to hide. Both may have changed with deletions that came later.
    pub(super) fn settle_folders(&mut self) -> Result<(), StoreError> {
        let opaque = |placed: &Placed| matches!(placed.kind, EntryKind::Directory { opaque: true, .. });
        if self.hidden.is_empty() && !self.entries.values().any(opaque) {
            return Ok(());
        }
        let mut steps = vec![self.root_step()?];
        let lower = self.lower;
        for (at, placed) in self.entries.iter_mut().filter(|(at, _)| !at.is_empty()) {
            let EntryKind::Directory { opaque, implied } = &mut placed.kind else { continue };
            while !is_inside(at, &steps.last().expect("everything is in the root").at) {
                steps.pop();
            }
            let name = at.rsplit(|byte| *byte == 0).next().expect("a split has a part");
            let parent = steps.last().and_then(|step| step.lower.as_ref());
            let below = parent.map(|level| lower.open_level(level)?.find(name)).transpose()?.flatten();
            let below = below.and_then(|found| found.level);
            *opaque &= below.is_some();
            if *implied && below.is_none() {
                placed.metadata = default_root();
            }
            steps.push(Step { at: at.clone(), lower: below.filter(|_| !*opaque) });
        }
        Ok(())
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
    is_inside(candidate, &key(path))
}

fn is_inside(candidate: &[u8], folder: &[u8]) -> bool {
    match candidate.strip_prefix(folder) {
        Some(rest) if folder.is_empty() => !rest.is_empty(),
        Some(rest) => rest.first() == Some(&0),
        None => false,
    }
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
