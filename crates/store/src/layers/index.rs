use super::entry::{EntryKind, LayerEntry, path_order, split_path};
use super::error::LayerError;
use super::index_format;
use crate::{ContentDigest, FileTimes};

/// The list of a layer's entries, written once when the layer is made and read by everything that follows: tar emission,
/// digests, comparisons.
///
/// Entries stand in [`path_order`], each path once, parents before children; every parent of an entry is an entry too.
///
/// # File format, version 1
///
/// ```text
/// "forge-index" 0x01        magic and version
/// varint                    number of entries
/// entry …
///   u8                      kind: 0 file, 1 folder, 2 symlink, 3 char, 4 block, 5 fifo, 6 whiteout, 7 further name
///                           (folder: + 0x10 opaque, + 0x20 implied)
///   varint, varint, bytes   path: bytes shared with the previous path, bytes that follow, those bytes
///   by kind                 further name: varint position of the first name, and nothing else
///                           whiteout: nothing else
///     varint mode, uid, gid; zigzag varint seconds; varint nanoseconds
///     varint count, then for each xattr: varint length, name, varint length, value
///     file: varint size, 32 bytes BLAKE3; symlink: varint length, target; devices: varint major, minor
/// 32 bytes                  BLAKE3 of everything before
/// ```
///
/// Integers are unsigned LEB128 without redundant bytes, so an index has one encoding. Changing the format needs a new
/// version byte; readers refuse versions they do not know, and the layer is then unpacked again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerIndex {
    entries: Vec<LayerEntry>,
}

/// What tells hashes of layers from others.
pub(super) const CONTENT: &str = "forge layer content 2";

impl LayerIndex {
    /// Takes entries that are in order and complete.
    ///
    /// # Errors
    /// [`LayerError::BrokenIndex`] where the order, a parent or a link is wrong.
    pub fn new(entries: Vec<LayerEntry>) -> Result<Self, LayerError> {
        let index = Self { entries };
        index.check()?;
        Ok(index)
    }

    /// All entries, in order.
    pub fn entries(&self) -> &[LayerEntry] {
        &self.entries
    }

    /// The entry at a path relative to the layer's root.
    pub fn get(&self, path: &[u8]) -> Option<&LayerEntry> {
        self.position(path).map(|position| &self.entries[position])
    }

    /// Where the entry of that path stands.
    pub fn position(&self, path: &[u8]) -> Option<usize> {
        self.entries.binary_search_by(|entry| path_order(&entry.path, path)).ok()
    }

    /// The number of entries that say something: implied folders do not count.
    pub fn changes(&self) -> u64 {
        self.entries.iter().filter(|entry| entry.is_change()).count() as u64
    }

    /// The bytes of all regular files, each link group once.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(LayerEntry::size).sum()
    }

    /// Encodes the index as its file.
    pub fn encode(&self) -> Vec<u8> {
        index_format::encode(&self.entries)
    }

    /// Reads an index file; any damage is an error, never a panic.
    ///
    /// # Errors
    /// [`LayerError::BrokenIndex`].
    pub fn decode(bytes: &[u8]) -> Result<Self, LayerError> {
        Self::new(index_format::decode(bytes)?)
    }

    /// What the layer amounts to: names, types, modes, owners, link targets and groups, xattrs, devices, bytes, deletions.
    ///
    /// Modification times take part where they are content, implied folders, which belong to lower layers, never.
    pub fn content_digest(&self, times: &FileTimes) -> ContentDigest {
        let mut hasher = blake3::Hasher::new_derive_key(CONTENT);
        let mut record = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.is_change()) {
            record.clear();
            let first = entry.link.map(|first| &self.entries[first as usize].path[..]);
            index_format::content_record(first, entry, times, &mut record);
            hasher.update(&record);
        }
        hasher.finalize().into()
    }

    fn check(&self) -> Result<(), LayerError> {
        let mut folders: Vec<&[u8]> = Vec::new();
        for (position, entry) in self.entries.iter().enumerate() {
            self.check_place(position, entry, &mut folders)?;
            if let Some(first) = entry.link {
                self.check_link(position, first as usize)?;
            }
        }
        match self.entries.first() {
            Some(root) if root.path.is_empty() => Ok(()),
            _ => Err(LayerError::BrokenIndex { reason: "the root is missing" }),
        }
    }

    /// Order, and that the parent is a folder: one of those that `folders` has from the root down to the last entry.
    fn check_place<'a>(
        &'a self,
        position: usize,
        entry: &'a LayerEntry,
        folders: &mut Vec<&'a [u8]>,
    ) -> Result<(), LayerError> {
        let broken = |reason| Err(LayerError::BrokenIndex { reason });
        if !is_clean(&entry.path) {
            return broken("a path is not in its normal form");
        }
        if position > 0 && path_order(&self.entries[position - 1].path, &entry.path).is_ge() {
            return broken("entries are out of order");
        }
        if let Some((parent, _)) = split_path(&entry.path) {
            while folders.last().is_some_and(|folder| *folder != parent) {
                folders.pop();
            }
            if folders.is_empty() {
                return broken("an entry has no parent folder");
            }
        } else if !entry.is_directory() {
            return broken("the root is not a folder");
        }
        if entry.is_directory() {
            folders.push(&entry.path);
        }
        Ok(())
    }

    fn check_link(&self, position: usize, first: usize) -> Result<(), LayerError> {
        let target = self.entries.get(first).filter(|_| first < position);
        match target {
            Some(entry) if entry.link.is_none() && !entry.is_directory() && entry.kind != EntryKind::Whiteout => Ok(()),
            _ => Err(LayerError::BrokenIndex { reason: "a hard link has no first name" }),
        }
    }
}

pub(super) fn is_clean(path: &[u8]) -> bool {
    path.is_empty()
        || path.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b"..") && !part.contains(&0))
}
