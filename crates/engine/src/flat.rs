//! What a stack of layers amounts to, from their indexes alone: no file is read and nothing is mounted.

use forge_store::{EntryKind, LayerEntry, LayerIndex, Metadata};
use std::collections::BTreeMap;

/// A path that sorts its folders' contents behind them and before whatever merely begins with their name: slashes are zero
/// bytes, which no name holds.
type Key = Vec<u8>;

/// A path as the stack shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FlatEntry {
    pub(crate) kind: EntryKind,
    pub(crate) metadata: Metadata,
    /// The layer that it is from, counted from the lowest.
    pub(crate) layer: usize,
    /// The bytes that it takes there; none for a further name of a file.
    pub(crate) bytes: u64,
}

/// The paths of a stack, without the root.
#[derive(Clone, Debug, Default)]
pub(crate) struct FlatTree {
    entries: BTreeMap<Key, FlatEntry>,
    layers: usize,
}

/// What a layer does to what is below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerEffect {
    /// Paths that were not there.
    pub added: u64,
    /// Paths that it replaces, or gives other metadata.
    pub changed: u64,
    /// Paths that it takes away.
    pub deleted: u64,
    /// The bytes of files in it.
    pub bytes: u64,
    /// Of those, the bytes that layers above replace or take away: they are in the image and nobody sees them.
    pub wasted: u64,
}

impl FlatTree {
    /// What a whole stack shows.
    pub(crate) fn of(indexes: &[LayerIndex]) -> Self {
        let mut tree = Self::default();
        let mut effects = Vec::new();
        indexes.iter().for_each(|index| tree.put(index, &mut effects));
        tree
    }

    /// What each layer of a stack does, lowest first.
    pub(crate) fn effects(indexes: &[LayerIndex]) -> Vec<LayerEffect> {
        let mut tree = Self::default();
        let mut effects = Vec::new();
        indexes.iter().for_each(|index| tree.put(index, &mut effects));
        effects
    }

    /// The same with no time later than an epoch, as an image that was exported with one shows it.
    pub(crate) fn clamped(mut self, epoch: Option<i64>) -> Self {
        if let Some(epoch) = epoch {
            self.entries.values_mut().for_each(|entry| entry.metadata.mtime.0 = entry.metadata.mtime.0.min(epoch));
        }
        self
    }

    /// All paths, slashes in them, in order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (Vec<u8>, &FlatEntry)> {
        self.entries.iter().map(|(key, entry)| (path_of(key), entry))
    }

    pub(crate) fn get(&self, path: &[u8]) -> Option<&FlatEntry> {
        self.entries.get(&key_of(path))
    }

    /// Puts a layer on top. Deletions come first: they are of what is below, wherever they stand.
    fn put(&mut self, index: &LayerIndex, effects: &mut Vec<LayerEffect>) {
        effects.push(LayerEffect { bytes: index.bytes(), ..LayerEffect::default() });
        for entry in index.entries() {
            match entry.kind {
                EntryKind::Whiteout => self.delete(&key_of(&entry.path), effects),
                EntryKind::Directory { opaque: true, .. } => self.empty(&key_of(&entry.path), effects),
                _ => {}
            }
        }
        for entry in index.entries().iter().filter(|entry| !entry.path.is_empty()) {
            if entry.kind != EntryKind::Whiteout {
                self.insert(entry, effects);
            }
        }
        self.layers += 1;
    }

    fn insert(&mut self, entry: &LayerEntry, effects: &mut [LayerEffect]) {
        let key = key_of(&entry.path);
        let implied = matches!(entry.kind, EntryKind::Directory { implied: true, .. });
        let old = self.entries.get(&key);
        if implied && old.is_some_and(|old| is_folder(&old.kind)) {
            return;
        }
        match old {
            Some(_) => effects[self.layers].changed += 1,
            None => effects[self.layers].added += 1,
        }
        if let Some(old) = old {
            effects[old.layer].wasted += old.bytes;
        }
        if !is_folder(&entry.kind) {
            self.empty(&key, effects);
        }
        let kind = match &entry.kind {
            EntryKind::Directory { .. } => EntryKind::Directory { opaque: false, implied: false },
            kind => kind.clone(),
        };
        let flat = FlatEntry { kind, metadata: entry.metadata.clone(), layer: self.layers, bytes: entry.size() };
        self.entries.insert(key, flat);
    }

    fn delete(&mut self, key: &[u8], effects: &mut [LayerEffect]) {
        self.empty(key, effects);
        if let Some(old) = self.entries.remove(key) {
            effects[old.layer].wasted += old.bytes;
            effects[self.layers].deleted += 1;
        }
    }

    /// Takes away what is in a folder.
    fn empty(&mut self, folder: &[u8], effects: &mut [LayerEffect]) {
        let mut first = folder.to_vec();
        if !folder.is_empty() {
            first.push(0);
        }
        let inside = |key: &Key| key.starts_with(&first);
        let gone: Vec<Key> =
            self.entries.range(first.clone()..).map(|(key, _)| key.clone()).take_while(inside).collect();
        for key in gone {
            if let Some(old) = self.entries.remove(&key) {
                effects[old.layer].wasted += old.bytes;
                effects[self.layers].deleted += 1;
            }
        }
    }
}

pub(crate) fn is_folder(kind: &EntryKind) -> bool {
    matches!(kind, EntryKind::Directory { .. })
}

fn key_of(path: &[u8]) -> Key {
    path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect()
}

fn path_of(key: &[u8]) -> Vec<u8> {
    key.iter().map(|byte| if *byte == 0 { b'/' } else { *byte }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: EntryKind) -> LayerEntry {
        LayerEntry { path: path.into(), kind, metadata: Metadata::default(), link: None }
    }

    /// `name:5` is a file of five bytes, `name/` a folder, `name/!` an opaque one, `name/?` an implied one, `-name` a deletion.
    fn index(text: &str) -> LayerIndex {
        let folder = |opaque, implied| EntryKind::Directory { opaque, implied };
        let one = |word: &str| match (word.strip_prefix('-'), word.split_once(':'), word.rsplit_once('/')) {
            (Some(path), _, _) => entry(path, EntryKind::Whiteout),
            (None, Some((path, size)), _) => {
                entry(path, EntryKind::File { size: size.parse().unwrap(), blake3: [size.len() as u8; 32] })
            }
            (None, None, Some((path, "!"))) => entry(path, folder(true, false)),
            (None, None, Some((path, "?"))) => entry(path, folder(false, true)),
            (None, None, Some((path, _))) => entry(path, folder(false, false)),
            _ => panic!("{word}"),
        };
        let mut entries = vec![entry("", folder(false, true))];
        entries.extend(text.split_whitespace().map(one));
        LayerIndex::new(entries).unwrap()
    }

    fn check(layers: &[&str], paths: &str, effects: &str) {
        let indexes: Vec<LayerIndex> = layers.iter().map(|text| index(text)).collect();
        let found: Vec<String> =
            FlatTree::of(&indexes).entries().map(|(path, _)| String::from_utf8(path).unwrap()).collect();
        assert_eq!(found.join(" "), paths);
        let shown =
            |it: &LayerEffect| format!("+{} ~{} -{} {}b {}w", it.added, it.changed, it.deleted, it.bytes, it.wasted);
        let found: Vec<String> = FlatTree::effects(&indexes).iter().map(shown).collect();
        assert_eq!(found.join(", "), effects);
    }

    #[test]
    fn layers_cover_and_take_away() {
        check(&["a/ a/x:5 a.b:1"], "a a/x a.b", "+3 ~0 -0 6b 0w");
        check(&["a/ a/x:5", "a/? a/x:7"], "a a/x", "+2 ~0 -0 5b 5w, +0 ~1 -0 7b 0w");
        check(&["a/ a/x:5 a/y/ a/y/z:2 b:1", "-a"], "b", "+5 ~0 -0 8b 7w, +0 ~0 -4 0b 0w");
        check(&["a/ a/x:5 a.b:1", "a/! a/n:3"], "a a/n a.b", "+3 ~0 -0 6b 5w, +1 ~1 -1 3b 0w");
        check(&["a/ a/x:5", "a:3"], "a", "+2 ~0 -0 5b 5w, +0 ~1 -1 3b 0w");
        check(&["a:5", "a/", "-a"], "", "+1 ~0 -0 5b 5w, +0 ~1 -0 0b 0w, +0 ~0 -1 0b 0w");
        check(&["", "x/? x/y:1"], "x x/y", "+0 ~0 -0 0b 0w, +2 ~0 -0 1b 0w");
    }
}
