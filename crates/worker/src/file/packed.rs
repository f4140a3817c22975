//! A COPY whose result is packed: its layer is known before a byte is written, and what is stored already is not written
//! again.

use super::packed_fill::{Filled, Origin};
use super::packed_plan::{self, NoPlan, Planned, PlannedKind};
use super::placing::Placing;
use super::{FileError, Inputs, Source, actions};
use crate::selection::{SelectedRoot, Selection};
use crate::source_tree::SourceTree;
use blake3::Hasher;
use forge_cache::{MadeLayer, ResultRef};
use forge_llb::{CopyAction, FileInput, FileKind, FileOp};
use forge_solver::Execution;
use forge_store::{
    ContentDigest, FileTimes, LayerEntry, LayerId, LayerIndex, LayerRecord, Lease, MergedTree, Pack, PackWriter,
    PackedBytes, PackedEntry, Store,
};
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
    let [only] = &op.actions[..] else { return Ok(None) };
    let (FileKind::Copy(action), FileInput::Input(from)) = (&only.kind, copied(&only.kind)) else { return Ok(None) };
    let parents = match only.base {
        FileInput::Scratch => &[][..],
        FileInput::Input(base) if inputs.trees[base].keeps_owners() => inputs.results[base].layers(),
        _ => return Ok(None),
    };
    if action.replace {
        return Ok(None);
    }
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = (i64::try_from(since.as_secs()).unwrap_or_default(), since.subsec_nanos());
    let copy = Copy { op, times, action, store, lease, parents, source: inputs.source(from), now };
    match copy.run() {
        Ok((layer, made)) => Ok(Some(execution([parents, &[layer]].concat(), made))),
        Err(NoPlan::Unusual) => Ok(None),
        Err(NoPlan::Failed(error)) => Err(error),
    }
}

fn execution(layers: Vec<LayerId>, made: Option<MadeLayer>) -> Execution {
    let output = ResultRef::Layers(layers);
    let mut execution = Execution::new(vec![output.clone()]);
    if let Some(made) = made {
        execution.set(0, output, made);
    }
    execution
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
    pack: Pack,
    /// By the hash of the bytes.
    places: HashMap<[u8; 32], PackedBytes>,
}

impl Copy<'_> {
    /// The layer, and what it amounts to if it was made now.
    fn run(&self) -> Result<(LayerId, Option<MadeLayer>), NoPlan> {
        let lower = self.store.layers().tree(self.parents)?;
        let selections = super::select(self.source, self.action)?;
        let placing = self.placing(&lower)?;
        let roots: Vec<&SelectedRoot> =
            selections.iter().flat_map(|selection: &Arc<Selection>| &selection.roots).collect();
        let planned = packed_plan::plan(placing, self.source.tree(), &lower, &roots)?;
        let hashes = self.hashes(&planned)?;
        let same = hashes.as_ref().map(|hashes| self.fingerprint(&planned, hashes));
        if let Some(same) = &same
            && let Some(layer) = self.store.selection(same, self.lease)?
            // A tree cannot lie in one overlay twice.
            && !self.parents.contains(&layer)
        {
            return Ok((layer, None));
        }
        let LayerRecord { id: layer, content, bytes, .. } = self.write(&planned)?;
        self.store.keep_selection(&self.identity(), &layer)?;
        same.map(|same| self.store.keep_selection(&same, &layer)).transpose()?;
        Ok((layer, Some(MadeLayer { content, bytes })))
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
    fn hashes(&self, planned: &[Planned<'_>]) -> Result<Option<Vec<[u8; 32]>>, NoPlan> {
        let tree = self.source.tree();
        let mut hashes = Vec::with_capacity(planned.len());
        for entry in planned {
            let known = match &entry.kind {
                PlannedKind::File { from } => match from.bytes {
                    Some(hash) => Some(hash),
                    None => tree.known_hash(from)?,
                },
                _ => Some([0; 32].into()),
            };
            let Some(known) = known else { return Ok(None) };
            hashes.push(*known.as_bytes());
        }
        Ok(Some(hashes))
    }

    /// What tells whether a layer is the one that would be written: all that its index says, but for the times of parents
    /// and of folders that are made now.
    fn fingerprint(&self, planned: &[Planned<'_>], hashes: &[[u8; 32]]) -> ContentDigest {
        let mut hasher = Hasher::new_derive_key("forge planned layer v1");
        hasher.update(&[u8::from(self.times == FileTimes::Content)]);
        let mut text = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        for (entry, hash) in planned.iter().zip(hashes) {
            text(&entry.path);
            match &entry.kind {
                PlannedKind::Folder { implied } => text(&[b'd', u8::from(*implied)]),
                PlannedKind::File { from } => {
                    text(b"f");
                    text(&from.size().to_le_bytes());
                    text(hash);
                }
                PlannedKind::Name { first } => text(&first.to_le_bytes()),
                PlannedKind::Symlink { target } => {
                    text(b"l");
                    text(target);
                }
            }
            let metadata = &entry.metadata;
            // A parent's time changes with whatever is written into it, and is no word of this layer.
            let is_implied = matches!(entry.kind, PlannedKind::Folder { implied: true });
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
        let Ok(Some((index, pack))) = self.store.layers().packed(&layer) else { return Ok(None) };
        let places = places(&index, &pack);
        Ok(Some(Last { layer, pack, places }))
    }

    fn write(&self, planned: &[Planned<'_>]) -> Result<LayerRecord, NoPlan> {
        let last = self.last()?;
        let tree = self.source.tree();
        let mut writer = self.store.layers().pack()?;
        let stored = stored(planned, tree, last.as_ref());
        let origins = origins(planned, &stored, &mut writer)?;
        let filled = Filled::of(tree, &writer, origins)?;
        let last = last.as_ref().map(|last| &last.layer);
        let layers = self.store.layers();
        Ok(layers.commit_pack(writer, entries(planned, filled), last, self.times, self.lease)?)
    }
}

fn places(index: &LayerIndex, pack: &Pack) -> HashMap<[u8; 32], PackedBytes> {
    let file = |(position, entry): (usize, &LayerEntry)| match entry.kind {
        forge_store::EntryKind::File { blake3, .. } => Some((blake3, pack.get(position)?)),
        _ => None,
    };
    index.entries().iter().enumerate().filter_map(file).collect()
}

/// Bytes that a pack holds already, and what they hash to.
type Stored<'p> = Option<(&'p Pack, PackedBytes, [u8; 32])>;

/// Where the bytes of each entry are stored already, if they are.
fn stored<'p>(planned: &[Planned<'_>], tree: &'p SourceTree, last: Option<&'p Last>) -> Vec<Stored<'p>> {
    let find = |entry: &Planned<'_>| {
        let PlannedKind::File { from } = entry.kind else { return None };
        let hash = *match from.bytes {
            Some(hash) => hash,
            None => tree.known_hash(from).ok()??,
        }
        .as_bytes();
        if let Some((pack, place)) = tree.packed(from) {
            return Some((pack, place, hash));
        }
        let last = last?;
        Some((&last.pack, *last.places.get(&hash)?, hash))
    };
    planned.iter().map(find).collect()
}

/// A pack, and what of it could be shared: where the bytes lie, and how many they are.
type Wanted<'p> = (&'p Pack, Vec<(PackedBytes, u64)>);

/// Decides of each entry whether its bytes are shared, and reserves places for the others.
fn origins<'p>(
    planned: &[Planned<'p>],
    stored: &[Stored<'_>],
    writer: &mut PackWriter,
) -> Result<Vec<Origin<'p>>, NoPlan> {
    let mut wanted: HashMap<*const Pack, Wanted<'_>> = HashMap::new();
    for (entry, stored) in planned.iter().zip(stored) {
        if let (PlannedKind::File { from }, Some((pack, place, _))) = (&entry.kind, stored) {
            let pack: &Pack = pack;
            wanted.entry(std::ptr::from_ref(pack)).or_insert((pack, Vec::new())).1.push((*place, from.size()));
        }
    }
    let choose = |(pack, places): &Wanted<'_>| PackWriter::choose(pack, places.iter().copied());
    let chosen: HashMap<*const Pack, HashSet<u32>> =
        wanted.iter().map(|(key, wanted)| (*key, choose(wanted))).collect();
    let mut origins = Vec::with_capacity(planned.len());
    for (entry, stored) in planned.iter().zip(stored) {
        let PlannedKind::File { from } = entry.kind else {
            origins.push(Origin::None);
            continue;
        };
        let worth = stored.filter(|(pack, place, _)| {
            chosen.get(&std::ptr::from_ref::<Pack>(pack)).is_some_and(|files| files.contains(&place.file()))
        });
        let shared = match worth {
            Some((pack, place, hash)) => writer.share(pack, place)?.map(|place| (place, hash)),
            None => None,
        };
        origins.push(match shared {
            Some((place, hash)) => Origin::Shared { place, hash },
            None => Origin::Read { from, place: writer.reserve(from.size()) },
        });
    }
    Ok(origins)
}

fn entries(planned: &[Planned<'_>], filled: Vec<Filled>) -> Vec<PackedEntry> {
    let mut entries: Vec<PackedEntry> = Vec::with_capacity(planned.len());
    for (planned, filled) in planned.iter().zip(filled) {
        let packed = match planned.kind {
            PlannedKind::Name { first } => {
                let entry =
                    LayerEntry { path: planned.path.clone(), link: Some(first as u32), ..entries[first].entry.clone() };
                PackedEntry { entry, bytes: None }
            }
            _ => PackedEntry { entry: planned.entry(filled.hash), bytes: filled.place },
        };
        entries.push(packed);
    }
    entries
}
