//! A folder that WORKDIR makes on layers that need not be here: its layer is written without a tree.

use super::editor::EntryMetadata;
use super::{FileError, actions, packed};
use forge_llb::MkdirAction;
use forge_solver::Execution;
use forge_store::{
    EntryKind, FileTimes, LayerEntry, LayerId, Lease, MergedTree, Metadata, PackWriter, PackedEntry, Store, TreeEntry,
};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::time::{SystemTime, UNIX_EPOCH};

/// Makes a folder on some layers. `None` where something about it is unusual, and nothing was done.
pub(crate) fn execute(
    action: &MkdirAction,
    times: FileTimes,
    store: &Store,
    lease: &Lease,
    parents: &[LayerId],
    now: SystemTime,
) -> Result<Option<Execution>, FileError> {
    let lower = store.layers().known_tree(parents)?;
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = (i64::try_from(since.as_secs()).unwrap_or_default(), since.subsec_nanos());
    let made = actions::made_in(&lower, action.owner.as_ref(), action.mode, action.timestamp, now)?;
    let Some(entries) = entries(&lower, action, &made)? else { return Ok(None) };
    let entries = entries.into_iter().map(|entry| PackedEntry { entry, bytes: None, first: None });
    let layers = store.layers();
    let record = layers.commit_pack(layers.pack()?, entries, None, times, lease)?;
    Ok(Some(packed::execution(parents, &record)))
}

/// What the layer holds: the folders on the way, and those that are new. Only the root where all are there.
fn entries(
    lower: &MergedTree,
    action: &MkdirAction,
    made: &EntryMetadata,
) -> Result<Option<Vec<LayerEntry>>, FileError> {
    let path = lower.resolve(Path::new(&action.path))?;
    let made = Metadata {
        mode: made.mode & 0o7777,
        uid: made.uid,
        gid: made.gid,
        mtime: made.mtime,
        xattrs: Default::default(),
    };
    let Some(root) = lower.lookup(Path::new("/"))? else { return Ok(None) };
    let mut entries = vec![folder(Vec::new(), root.metadata(), true)];
    let mut below = root.folder();
    let mut at = Vec::new();
    for name in path.components().filter_map(name) {
        let found = below.as_ref().map(|below| lower.child_of(below, name)).transpose()?.flatten();
        at.extend((!at.is_empty()).then_some(b'/'));
        at.extend_from_slice(name.as_bytes());
        entries.push(match &found {
            None => folder(at.clone(), made.clone(), false),
            Some(entry) if entry.is_directory() => folder(at.clone(), entry.metadata(), true),
            Some(_) => return Ok(None),
        });
        below = found.as_ref().and_then(TreeEntry::folder);
    }
    let news = entries.iter().filter(|entry| !entry.is_implied()).count();
    if news == 0 {
        entries.truncate(1);
    }
    let fits = news <= 1 || action.make_parents;
    Ok((fits && PackWriter::can_own(made.uid, made.gid)).then_some(entries))
}

fn name(component: Component<'_>) -> Option<&std::ffi::OsStr> {
    match component {
        Component::Normal(name) => Some(name),
        _ => None,
    }
}

fn folder(path: Vec<u8>, metadata: Metadata, implied: bool) -> LayerEntry {
    LayerEntry { path, kind: EntryKind::Directory { opaque: false, implied }, metadata, link: None }
}
