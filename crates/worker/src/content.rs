//! Digests of what an op can see of a result: the second level of cache keys.

use crate::file::FileError;
use crate::selection::{SelectedRoot, select};
use crate::source_tree::{SourceEntry, SourceError, SourceKind, SourceTree};
use blake3::Hasher;
use forge_cache::{SelectedPath, Selector};
use forge_store::ContentDigest;
use rayon::prelude::*;
use std::collections::HashMap;
use std::io::Read;

/// Digests what a selector shows of a tree: names, types, modes, owners (of layers), link targets and groups,
/// attributes and bytes. No times: those of a context never matter.
pub(crate) fn digest(tree: &SourceTree, selector: &Selector) -> Result<ContentDigest, FileError> {
    let mut hasher = Hasher::new_derive_key("forge content of selected paths v1");
    let mut links = Links::default();
    for path in paths(selector) {
        let selection = select(tree, &path)?;
        hasher.update(&(selection.roots.len() as u64).to_le_bytes());
        for root in &selection.roots {
            add_root(&mut hasher, tree, root, selector, &mut links)?;
        }
    }
    Ok(hasher.finalize().into())
}

fn paths(selector: &Selector) -> Vec<SelectedPath> {
    match selector.paths.is_empty() {
        true => vec![SelectedPath::new("/")],
        false => selector.paths.clone(),
    }
}

/// Files with several names, numbered in the order of their first ones.
#[derive(Default)]
struct Links(HashMap<(u64, u64), u64>);

impl Links {
    /// Zero for a file of one name.
    fn number(&mut self, group: Option<(u64, u64)>) -> u64 {
        let next = self.0.len() as u64 + 1;
        group.map_or(0, |group| *self.0.entry(group).or_insert(next))
    }
}

fn add_root(
    hasher: &mut Hasher,
    tree: &SourceTree,
    root: &SelectedRoot,
    selector: &Selector,
    links: &mut Links,
) -> Result<(), FileError> {
    let entries: Vec<(&[u8], &SourceEntry)> = std::iter::once((root.name.as_slice(), &root.entry))
        .chain(root.below.iter().map(|selected| (selected.relative.as_bytes(), &selected.entry)))
        .collect();
    // Reading is what takes the time; the order of the sum is that of the names, whoever is ready first.
    let bytes: Vec<Option<blake3::Hash>> =
        entries.par_iter().map(|(_, entry)| file_hash(tree, entry)).collect::<Result<_, FileError>>()?;
    for ((name, entry), bytes) in entries.iter().zip(bytes) {
        text(hasher, name);
        add_entry(hasher, entry, selector, tree.keeps_owners());
        if let Some(hash) = bytes {
            hasher.update(hash.as_bytes()).update(&links.number(entry.link_group).to_le_bytes());
        }
    }
    Ok(())
}

fn file_hash(tree: &SourceTree, entry: &SourceEntry) -> Result<Option<blake3::Hash>, FileError> {
    let SourceKind::File { .. } = entry.kind else { return Ok(None) };
    let mut file = tree.open(entry)?;
    let mut hasher = Hasher::new();
    let mut buffer = [0; 64 << 10];
    loop {
        tree.stop().check()?;
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Some(hasher.finalize())),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(SourceError::Read { path: entry.path.display().into_owned(), source }.into()),
        };
    }
}

fn add_entry(hasher: &mut Hasher, entry: &SourceEntry, selector: &Selector, owners: bool) {
    let kind: &[u8] = match &entry.kind {
        SourceKind::File { .. } => b"f",
        SourceKind::Directory => b"d",
        SourceKind::Symlink { .. } => b"l",
        SourceKind::Node { .. } => b"n",
        SourceKind::Other => b"o",
    };
    hasher.update(kind);
    match &entry.kind {
        SourceKind::Symlink { target } => text(hasher, target),
        SourceKind::Node { file_type, major, minor } => {
            text(hasher, format!("{file_type:?} {major}:{minor}").as_bytes());
        }
        _ if !selector.ignore_mode => {
            hasher.update(&entry.mode.to_le_bytes());
        }
        _ => {}
    }
    if owners && !selector.ignore_owner {
        hasher.update(&entry.uid.to_le_bytes()).update(&entry.gid.to_le_bytes());
    }
    hasher.update(&(entry.xattrs.len() as u64).to_le_bytes());
    for (name, value) in &entry.xattrs {
        text(hasher, name.as_encoded_bytes());
        text(hasher, value);
    }
}

fn text(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
}
