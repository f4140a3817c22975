//! Whether what a layer consists of, a tree or a pack or both, is what its index says, down to the bytes.

use super::check::{TreeCheck, TreeFault, check_tree};
use super::entry::{EntryKind, LayerEntry};
use super::error::shown;
use super::index::LayerIndex;
use super::pack::Pack;
use crate::StoreError;
use rayon::prelude::*;
use std::path::Path;

const BUFFER: u64 = 1 << 17;

/// Whether a layer's folder has bytes at all.
pub(crate) fn has_contents(layer: &Path) -> bool {
    layer.join("tree").is_dir() || layer.join("pack").is_dir()
}

/// Compares tree and pack, what there is of them, with an index.
///
/// # Errors
/// One of them cannot be read at all.
pub(crate) fn check_layer(layer: &Path, index: &LayerIndex) -> Result<TreeCheck, StoreError> {
    let tree = layer.join("tree");
    let Some(pack) = Pack::open(layer, index)? else { return check_tree(&tree, index) };
    let mut check = check_pack(&pack, index);
    if tree.is_dir() {
        let of_tree = check_tree(&tree, index)?;
        check.bytes += of_tree.bytes;
        check.faults.extend(of_tree.faults);
    }
    Ok(check)
}

fn check_pack(pack: &Pack, index: &LayerIndex) -> TreeCheck {
    let files = index.entries().par_iter().enumerate().filter(|(_, entry)| entry.size() > 0);
    let checked: Vec<(u64, Option<TreeFault>)> =
        files.map(|(position, entry)| check_file(pack, position, entry)).collect();
    let bytes = checked.iter().map(|(bytes, _)| bytes).sum();
    TreeCheck { faults: checked.into_iter().filter_map(|(_, fault)| fault).collect(), bytes }
}

fn check_file(pack: &Pack, position: usize, entry: &LayerEntry) -> (u64, Option<TreeFault>) {
    let fault = |reason| Some(TreeFault { path: shown(&entry.path), reason });
    let (EntryKind::File { size, blake3 }, Some(place)) = (&entry.kind, pack.get(position)) else {
        return (0, fault("its bytes have no place"));
    };
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER.min(*size) as usize];
    while hasher.count() < *size {
        let piece = &mut buffer[..BUFFER.min(size - hasher.count()) as usize];
        if pack.read_at(place, hasher.count(), piece).is_err() {
            return (hasher.count(), fault("it cannot be read"));
        }
        hasher.update(piece);
    }
    (*size, if hasher.finalize() == *blake3 { None } else { fault("its bytes are others") })
}
