//! A COPY whose result is packed: its layer is known before a byte is written, and what is stored already is not written
//! again.

use super::packed_fill::{self, Origin};
use super::packed_plan::{self, NoPlan, Plan, Planned, PlannedKind};
use super::placing::Placing;
use super::{FileError, Inputs, Source, actions};
use crate::selection::{SelectError, SelectedRoot, Selection};
use crate::source_tree::{SourceEntry, SourceError, SourceTree};
use blake3::Hasher;
use forge_cache::{MadeLayer, ResultRef};
use forge_llb::{CopyAction, FileInput, FileKind, FileOp};
use forge_solver::Execution;
use forge_store::{
    ContentDigest, EntryKind, FileTimes, LayerEntry, LayerId, LayerRecord, Lease, MergedTree, Pack, PackContents,
    PackWriter, PackedBytes, PackedEntry, Store,
};
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Carries out an operation that is one COPY, without a tree: the layers of its result. `None` where
/// something about it is unusual, and nothing was done.
pub(crate) fn execute(
    op: &FileOp,
    times: FileTimes,
    store: &Store,
    lease: &Lease,
    inputs: &Inputs<'_>,
    now: SystemTime,
) -> Result<Option<Execution>, FileError> {
    let Some(copy) = Copy::of(op, times, store, lease, inputs, now) else { return Ok(None) };
    match copy.run() {
        Ok(execution) => Ok(Some(execution)),
        Err(NoPlan::Unusual) => Ok(None),
        // Whoever makes a tree of it says how it is not there.
        Err(NoPlan::Failed(FileError::Select(SelectError::NotFound { .. }))) => Ok(None),
        Err(NoPlan::Failed(error)) => Err(error),
    }
}

/// The layers of a copy whose own one is kept already.
pub(crate) fn find(
    op: &FileOp,
    times: FileTimes,
    store: &Store,
    lease: &Lease,
    inputs: &Inputs<'_>,
    now: SystemTime,
) -> Result<Option<Vec<LayerId>>, FileError> {
    let Some(copy) = Copy::of(op, times, store, lease, inputs, now) else { return Ok(None) };
    match copy.find() {
        Ok(found) => Ok(found.map(|layer| [copy.parents, &[layer]].concat())),
        Err(NoPlan::Unusual) => Ok(None),
        // Whoever makes a tree of it says how it is not there.
        Err(NoPlan::Failed(FileError::Select(SelectError::NotFound { .. }))) => Ok(None),
        Err(NoPlan::Failed(error)) => Err(error),
    }
}

/// A layer that was made on others.
pub(super) fn execution(parents: &[LayerId], made: &LayerRecord) -> Execution {
    let output = ResultRef::Layers([parents, &[made.id]].concat());
    let mut execution = Execution::new(vec![output.clone()]);
    execution.set(0, output, MadeLayer { content: made.content, bytes: made.bytes });
    execution
}

/// One that was found.
fn found(parents: &[LayerId], layer: LayerId) -> Execution {
    Execution::new(vec![ResultRef::Layers([parents, &[layer]].concat())])
}

fn copied(kind: &FileKind) -> FileInput {
    match kind {
        FileKind::Copy(copy) => copy.from,
        _ => FileInput::Scratch,
    }
}

struct Copy<'a> {
    op: &'a FileOp,
    times: FileTimes,
    action: &'a CopyAction,
    store: &'a Store,
    lease: &'a Lease,
    parents: &'a [LayerId],
    source: Source<'a>,
    now: (i64, u32),
}

/// The last result of the same operation.
struct Last {
    layer: LayerId,
    contents: PackContents,
}

/// What the bytes of planned files hash to.
enum Hashes {
    /// The entries of the source say it.
    OfEntries,
    /// For each entry.
    Listed(Vec<[u8; 32]>),
}

impl Hashes {
    fn get(&self, position: usize, from: &SourceEntry) -> [u8; 32] {
        match self {
            Self::OfEntries => *from.bytes.expect("each of them is hashed").as_bytes(),
            Self::Listed(hashes) => hashes[position],
        }
    }
}

impl<'a> Copy<'a> {
    /// An operation that is one COPY onto layers.
    fn of(
        op: &'a FileOp,
        times: FileTimes,
        store: &'a Store,
        lease: &'a Lease,
        inputs: &'a Inputs<'_>,
        now: SystemTime,
    ) -> Option<Self> {
        let [only] = &op.actions[..] else { return None };
        let (FileKind::Copy(action), FileInput::Input(from)) = (&only.kind, copied(&only.kind)) else { return None };
        let parents = match only.base {
            FileInput::Scratch => &[][..],
            FileInput::Input(base) if inputs.trees[base].keeps_owners() => inputs.results[base].layers(),
            _ => return None,
        };
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = (i64::try_from(since.as_secs()).unwrap_or_default(), since.subsec_nanos());
        let source = inputs.source(from);
        (!action.replace).then_some(Self { op, times, action, store, lease, parents, source, now })
    }

    fn run(&self) -> Result<Execution, NoPlan> {
        self.planned(|planned, same| {
            if let Some(layer) = self.kept(same)? {
                return Ok(found(self.parents, layer));
            }
            let made = self.write(planned)?;
            self.store.keep_selection(&self.identity(), &made.id)?;
            same.map(|same| self.store.keep_selection(&same, &made.id)).transpose()?;
            Ok(execution(self.parents, &made))
        })
    }

    /// The layer, if it is kept.
    fn find(&self) -> Result<Option<LayerId>, NoPlan> {
        self.planned(|_, same| self.kept(same))
    }

    fn kept(&self, same: Option<ContentDigest>) -> Result<Option<LayerId>, NoPlan> {
        let Some(same) = same else { return Ok(None) };
        let layer = self.store.selection(&same, self.lease)?;
        // A tree cannot lie in one overlay twice.
        Ok(layer.filter(|layer| !self.parents.contains(layer)))
    }

    /// Plans the layer; what it would be found by is known where all bytes are.
    fn planned<T>(&self, then: impl FnOnce(Plan<'_>, Option<ContentDigest>) -> Result<T, NoPlan>) -> Result<T, NoPlan> {
        let lower = self.store.layers().known_tree(self.parents)?;
        let selections = super::select(self.source, self.action)?;
        let placing = self.placing(&lower)?;
        let roots: Vec<&SelectedRoot> =
            selections.iter().flat_map(|selection: &Arc<Selection>| &selection.roots).collect();
        let planned = packed_plan::plan(placing, self.source.tree(), &lower, &roots)?;
        let hashes = self.hashes(&planned)?;
        let same = hashes.as_ref().map(|hashes| self.fingerprint(&planned, hashes));
        drop(hashes);
        then(planned, same)
    }

    fn placing<'p>(&'p self, lower: &MergedTree) -> Result<Placing<'p>, NoPlan> {
        if !self.action.make_parents {
            let destination = lower.resolve(Path::new(&self.action.destination))?;
            let parent = destination.parent().unwrap_or(Path::new("/"));
            if parent != Path::new("/") && lower.lookup(parent)?.is_none() {
                return Err(NoPlan::Unusual);
            }
        }
        let owner = actions::find_owner_in(lower, self.action.owner.as_ref())?;
        Ok(Placing { action: self.action, owner, now: self.now })
    }

    /// What the bytes of every file hash to, where that is known without reading them.
    fn hashes(&self, plan: &Plan<'_>) -> Result<Option<Hashes>, NoPlan> {
        let is_hashed = |entry: &Planned<'_>| match entry.kind {
            PlannedKind::File { from } => from.bytes.is_some(),
            _ => true,
        };
        if plan.entries.iter().all(is_hashed) {
            return Ok(Some(Hashes::OfEntries));
        }
        let mut hashes = Vec::with_capacity(plan.entries.len());
        for entry in &plan.entries {
            let known = match entry.kind {
                PlannedKind::File { from } => known_hash(self.source.tree(), from)?,
                _ => Some([0; 32]),
            };
            let Some(known) = known else { return Ok(None) };
            hashes.push(known);
        }
        Ok(Some(Hashes::Listed(hashes)))
    }

    /// What tells whether a layer is the one that would be written: all that its index says, but for the times of parents
    /// and of folders that are made now.
    fn fingerprint(&self, plan: &Plan<'_>, hashes: &Hashes) -> ContentDigest {
        let mut hasher = Hasher::new_derive_key("forge planned layer v1");
        hasher.update(&[u8::from(self.times == FileTimes::Content)]);
        let mut text = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        for (position, entry) in plan.entries.iter().enumerate() {
            text(&plan.path(entry));
            match &entry.kind {
                PlannedKind::Folder { implied, .. } => text(&[b'd', u8::from(*implied)]),
                PlannedKind::File { from } => {
                    text(b"f");
                    text(&from.size().to_le_bytes());
                    text(&hashes.get(position, from));
                }
                PlannedKind::Name { first } => text(&first.to_le_bytes()),
                PlannedKind::Symlink { target } => {
                    text(b"l");
                    text(target);
                }
            }
            let metadata = entry.given.metadata();
            // A parent's time changes with whatever is written into it, and is no word of this layer.
            let is_implied = matches!(entry.kind, PlannedKind::Folder { implied: true, .. });
            let says_nothing = is_implied || metadata.mtime == self.now;
            let (seconds, nanoseconds) = if says_nothing { (0, u32::MAX) } else { metadata.mtime };
            for number in [metadata.mode, metadata.uid, metadata.gid, nanoseconds] {
                text(&number.to_le_bytes());
            }
            text(&seconds.to_le_bytes());
            text(&(metadata.xattrs.len() as u64).to_le_bytes());
            for (name, value) in &metadata.xattrs {
                text(name.as_encoded_bytes());
                text(value);
            }
        }
        hasher.finalize().into()
    }

    /// What the last result of the same operation is found by.
    fn identity(&self) -> ContentDigest {
        let mut hasher = Hasher::new_derive_key("forge last result of a copy v1");
        hasher.update(&forge_llb::Op::File(self.op.clone()).canonical_bytes());
        hasher.update(self.source.tree().identity().unwrap_or_default().as_bytes());
        hasher.finalize().into()
    }

    fn last(&self) -> Result<Option<Last>, NoPlan> {
        let Some(layer) = self.store.selection(&self.identity(), self.lease)? else { return Ok(None) };
        // Damage there is no reason to fail here: the bytes are at hand.
        let Ok(Some(contents)) = self.store.layers().pack_contents(&layer) else { return Ok(None) };
        Ok(Some(Last { layer, contents }))
    }

    fn write(&self, plan: Plan<'_>) -> Result<LayerRecord, NoPlan> {
        let tree = self.source.tree();
        let mut writer = self.store.layers().pack()?;
        let (origins, last) = {
            let last = self.last()?;
            let stored = stored(&plan.entries, tree, last.as_ref());
            let origins = origins(&plan.entries, &stored, &mut writer)?;
            (origins, last.map(|last| last.layer))
        };
        let unhashed = packed_fill::fill(tree, &writer, &plan.entries, &origins)?;
        let layers = self.store.layers();
        Ok(layers.commit_pack(writer, entries(&plan, &origins, unhashed), last.as_ref(), self.times, self.lease)?)
    }
}

/// What the bytes of a file hash to, where that is known without reading them.
fn known_hash(tree: &SourceTree, from: &SourceEntry) -> Result<Option<[u8; 32]>, SourceError> {
    let known = match from.bytes {
        Some(hash) => Some(hash),
        None => tree.known_hash(from)?,
    };
    Ok(known.map(|hash| *hash.as_bytes()))
}

/// Bytes that a pack holds already.
type Stored<'p> = Option<(&'p Pack, PackedBytes)>;

/// Where the bytes of each entry are stored already, if they are; nothing at all where none can be.
fn stored<'p>(planned: &[Planned<'_>], tree: &'p SourceTree, last: Option<&'p Last>) -> Vec<Stored<'p>> {
    if last.is_none() && !tree.keeps_owners() {
        return Vec::new();
    }
    let find = |entry: &Planned<'_>| {
        let PlannedKind::File { from } = entry.kind else { return None };
        if let Some(packed) = tree.packed(from) {
            return Some(packed);
        }
        let contents = &last?.contents;
        Some((&contents.pack, contents.find(&known_hash(tree, from).ok()??)?))
    };
    planned.par_iter().map(find).collect()
}

/// A pack, and what of it could be shared: where the bytes lie, and how many they are.
type Wanted<'p> = (&'p Pack, Vec<(PackedBytes, u64)>);

/// Decides of each entry whether its bytes are shared, and reserves places for the others.
fn origins(planned: &[Planned<'_>], stored: &[Stored<'_>], writer: &mut PackWriter) -> Result<Vec<Origin>, NoPlan> {
    let mut wanted: HashMap<*const Pack, Wanted<'_>> = HashMap::new();
    for (entry, stored) in planned.iter().zip(stored) {
        if let (PlannedKind::File { from }, Some((pack, place))) = (&entry.kind, stored) {
            let pack: &Pack = pack;
            wanted.entry(std::ptr::from_ref(pack)).or_insert((pack, Vec::new())).1.push((*place, from.size()));
        }
    }
    let choose = |(pack, places): &Wanted<'_>| PackWriter::choose(pack, places.iter().copied());
    let chosen: HashMap<*const Pack, HashSet<u32>> =
        wanted.iter().map(|(key, wanted)| (*key, choose(wanted))).collect();
    let mut origins = Vec::with_capacity(planned.len());
    for (position, entry) in planned.iter().enumerate() {
        let PlannedKind::File { from } = entry.kind else {
            origins.push(Origin::None);
            continue;
        };
        let worth = stored.get(position).copied().flatten().filter(|(pack, place)| {
            chosen.get(&std::ptr::from_ref::<Pack>(pack)).is_some_and(|files| files.contains(&place.file()))
        });
        let shared = match worth {
            Some((pack, place)) => writer.share(pack, place)?,
            None => None,
        };
        origins.push(match shared {
            Some(place) => Origin::Shared(place),
            None => Origin::Read(writer.reserve(from.size())),
        });
    }
    Ok(origins)
}

/// The entries of the index, one after the other. `unhashed`: what those files hash to that do not say it themselves.
fn entries<'p>(
    plan: &'p Plan<'_>,
    origins: &'p [Origin],
    unhashed: Vec<[u8; 32]>,
) -> impl ExactSizeIterator<Item = PackedEntry> {
    let mut unhashed = unhashed.into_iter();
    // Of the files with several names, what they are.
    let mut firsts: HashMap<usize, EntryKind> = HashMap::new();
    plan.entries.iter().zip(origins).enumerate().map(move |(position, (planned, origin))| {
        let (path, metadata) = (plan.path(planned), planned.given.metadata());
        if let PlannedKind::Name { first } = planned.kind {
            let entry = LayerEntry { path, kind: firsts[&first].clone(), metadata, link: Some(first as u32) };
            return PackedEntry { entry, bytes: None, first: Some(plan.path(&plan.entries[first])) };
        }
        let hash = match planned.kind {
            PlannedKind::File { from } => match from.bytes {
                Some(hash) => *hash.as_bytes(),
                None => unhashed.next().expect("one for each file that has none"),
            },
            _ => [0; 32],
        };
        let kind = planned.kind(hash);
        if let PlannedKind::File { from } = planned.kind
            && from.link_group().is_some()
        {
            firsts.insert(position, kind.clone());
        }
        PackedEntry { entry: LayerEntry { path, kind, metadata, link: None }, bytes: origin.place(), first: None }
    })
}
