//! Digests of what an op can see of a result: the second level of cache keys.

use crate::file::FileError;
use crate::selection::{SelectedRoot, Selection};
use crate::source_tree::{SourceEntry, SourceError, SourceKind, SourceTree};
use crate::stat_index::StatIndex;
use blake3::{Hash, Hasher};
use forge_cache::{ListedEntry, ListedKind, Listing, MOST_LISTED, SelectedPath, Selector};
use forge_store::ContentDigest;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

thread_local! {
    /// Making a buffer for each of many small files would take longer than to hash them.
    static SPACE: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 << 10]);
}

/// What is read of a tree.
pub(crate) fn paths(selector: &Selector) -> Vec<SelectedPath> {
    match selector.paths.is_empty() {
        true => vec![SelectedPath::new("/")],
        false => selector.paths.clone(),
    }
}

/// Digests what a selector shows, one selection for each of its paths, the files hashed: names, types, modes, owners (of
/// layers), link targets and groups, attributes and bytes; the times that steps set, but never those of a context.
pub(crate) fn digest<'a>(
    selections: impl Iterator<Item = &'a Selection> + Clone,
    selector: &Selector,
    owners: bool,
) -> ContentDigest {
    let mut hasher = Hasher::new_derive_key("forge content of selected paths v2");
    let mut links = Links::of(selections.clone());
    for selection in selections {
        hasher.update(&(selection.roots.len() as u64).to_le_bytes());
        for root in &selection.roots {
            add_root(&mut hasher, root, selector, owners, &mut links);
        }
    }
    hasher.finalize().into()
}

/// Files with several names, numbered in the order of their first ones.
struct Links {
    names: HashMap<(u64, u64), usize>,
    numbers: HashMap<(u64, u64), u64>,
}

impl Links {
    /// Counts names: those that are not selected are no business of a key's.
    fn of<'a>(selections: impl Iterator<Item = &'a Selection>) -> Self {
        let mut names = HashMap::new();
        for group in selections.flat_map(Selection::entries).filter_map(SourceEntry::link_group) {
            *names.entry(group).or_default() += 1;
        }
        Self { names, numbers: HashMap::new() }
    }

    /// Zero for a file of one name.
    fn number(&mut self, group: Option<(u64, u64)>) -> u64 {
        let Some(group) = group.filter(|group| self.names.get(group).is_some_and(|names| *names > 1)) else { return 0 };
        let next = self.numbers.len() as u64 + 1;
        *self.numbers.entry(group).or_insert(next)
    }
}

fn add_root(hasher: &mut Hasher, root: &SelectedRoot, selector: &Selector, owners: bool, links: &mut Links) {
    let below = root.below.iter().map(|selected| (root.relative(selected), &selected.entry));
    for (name, entry) in std::iter::once((root.name.as_slice(), &root.entry)).chain(below) {
        text(hasher, name);
        add_entry(hasher, entry, selector, owners);
        if let Some(hash) = entry.bytes {
            hasher.update(hash.as_bytes()).update(&links.number(entry.link_group()).to_le_bytes());
        }
    }
}

/// Hashes the bytes of every selected file, those that the index does not know; whoever is ready first.
pub(crate) fn hash_files(
    tree: &SourceTree,
    selection: &mut Selection,
    index: Option<&StatIndex>,
) -> Result<(), FileError> {
    selection.for_each(|entry| {
        if let SourceKind::File { size } = entry.kind {
            let known = match index {
                Some(index) => index.find(entry, size),
                None => tree.known_hash(entry)?,
            };
            entry.bytes = Some(known.map_or_else(|| hash_file(tree, entry, size, index), Ok)?);
        }
        Ok(())
    })
}

fn hash_file(tree: &SourceTree, entry: &SourceEntry, size: u64, index: Option<&StatIndex>) -> Result<Hash, FileError> {
    let mut file = tree.open(entry)?;
    let Some(index) = index else { return hash(tree, entry, &mut file) };
    let was_seen = entry.is_as_seen(&file);
    let hash = hash(tree, entry, &mut file)?;
    if was_seen && entry.is_as_seen(&file) {
        index.add(entry, size, &hash);
    }
    Ok(hash)
}

fn hash(tree: &SourceTree, entry: &SourceEntry, file: &mut File) -> Result<Hash, FileError> {
    let mut hasher = Hasher::new();
    SPACE.with_borrow_mut(|buffer| {
        loop {
            tree.stop().check()?;
            match file.read(buffer) {
                Ok(0) if hasher.count() == entry.size() => return Ok(hasher.finalize()),
                // A size of one moment and a hash of another would be taken for a file that never was (A40).
                Ok(0) => return Err(FileError::Changed { path: entry.path.display().into_owned() }),
                Ok(read) => hasher.update(&buffer[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(SourceError::Read { path: entry.path.display().into_owned(), source }.into()),
            };
        }
    })
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
    hasher.update(&[u8::from(entry.set_time)]);
    if entry.set_time {
        hasher.update(&entry.mtime.0.to_le_bytes()).update(&entry.mtime.1.to_le_bytes());
    }
    hasher.update(&(entry.xattrs().len() as u64).to_le_bytes());
    for (name, value) in entry.xattrs() {
        text(hasher, name.as_encoded_bytes());
        text(hasher, value);
    }
}

/// Lists what selections show, for saying later what changed: what [`digest`] digests, entry by entry.
pub(crate) fn listing<'a>(
    selections: impl Iterator<Item = &'a Selection> + Clone,
    selector: &Selector,
    owners: bool,
) -> Listing {
    let mut links = Links::of(selections.clone());
    let mut entries = Vec::new();
    // A million entries would be held only to be cut.
    for entry in selections.flat_map(Selection::entries).take(MOST_LISTED) {
        entries.extend(listed(entry, selector, owners, links.number(entry.link_group())));
    }
    Listing::new(entries)
}

fn listed(entry: &SourceEntry, selector: &Selector, owners: bool, link: u64) -> Option<ListedEntry> {
    let (kind, content) = match &entry.kind {
        SourceKind::File { .. } => (ListedKind::File, entry.bytes.map_or([0; 8], |hash| first(&hash))),
        SourceKind::Directory => (ListedKind::Directory, [0; 8]),
        SourceKind::Symlink { target } => (ListedKind::Symlink, first(&blake3::hash(target))),
        SourceKind::Node { file_type, major, minor } => {
            (ListedKind::Node, first(&blake3::hash(format!("{file_type:?} {major}:{minor}").as_bytes())))
        }
        SourceKind::Other => return None,
    };
    let mut rest = Hasher::new();
    rest.update(&link.to_le_bytes());
    if entry.set_time {
        rest.update(&entry.mtime.0.to_le_bytes()).update(&entry.mtime.1.to_le_bytes());
    }
    for (name, value) in entry.xattrs() {
        text(&mut rest, name.as_encoded_bytes());
        text(&mut rest, value);
    }
    let has_mode = !selector.ignore_mode && kind != ListedKind::Symlink && kind != ListedKind::Node;
    Some(ListedEntry {
        path: entry.path.as_bytes().to_vec(),
        kind,
        mode: has_mode.then_some(entry.mode),
        owner: (owners && !selector.ignore_owner).then_some((entry.uid, entry.gid)),
        content,
        rest: first(&rest.finalize()),
    })
}

fn first(hash: &Hash) -> [u8; 8] {
    *hash.as_bytes().first_chunk().expect("a hash is longer")
}

fn text(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
}
