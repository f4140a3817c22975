use forge_image::Digest;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// What a mount holds: the index of its document, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    pub version: u32,
    pub packs: Vec<PackInfo>,
    /// By path, the root (an empty path) first; parents stand before what is in them.
    pub entries: Vec<Entry>,
}

/// Bytes of many files, one behind the other, as one zstd frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct PackInfo {
    pub digest: Digest,
    pub size: u64,
    /// How many they are, not compressed.
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub path: String,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Folder,
    Link(String),
    File { size: u64, blake3: String, pack: usize, offset: u64 },
}

pub(super) const VERSION: u32 = 1;
/// More than any mount has; each is some hundred bytes of memory.
const MOST_ENTRIES: usize = 2_000_000;
const MOST_PACKS: usize = 20_000;
/// More than a mount of this size is of no use to move.
const MOST_BYTES: u64 = 64 << 30;
const LONGEST_PATH: usize = 4096;

/// Where the bytes of a file lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub pack: usize,
    pub offset: u64,
}

impl Snapshot {
    /// Reads an index that somebody wrote, and believes nothing of it.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let snapshot: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        snapshot.check().map_err(str::to_owned)?;
        Ok(snapshot)
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.version != VERSION {
            return Err("the index of a mount has another version");
        }
        if self.entries.len() > MOST_ENTRIES || self.packs.len() > MOST_PACKS {
            return Err("the index of a mount is too long");
        }
        if self.packs.iter().any(|pack| pack.digest.algorithm() != "sha256") {
            return Err("a pack of a mount has no SHA-256");
        }
        match self.entries.first() {
            Some(root) if root.path.is_empty() && root.kind == Kind::Folder => {}
            _ => return Err("the index of a mount has no root"),
        }
        let mut folders = HashSet::from([""]);
        let mut seen = HashSet::from([""]);
        let mut total = 0u64;
        for entry in &self.entries[1..] {
            let parent = parent_of(&entry.path).ok_or("the index of a mount has a path that is none")?;
            if !folders.contains(parent) {
                return Err("the index of a mount has a path below what is no folder");
            }
            if !seen.insert(&entry.path) {
                return Err("the index of a mount has a path twice");
            }
            match &entry.kind {
                Kind::Folder => _ = folders.insert(&entry.path),
                Kind::Link(target) if target.is_empty() || target.len() > LONGEST_PATH || target.contains('\0') => {
                    return Err("the index of a mount has a link that is none");
                }
                Kind::Link(_) => {}
                Kind::File { size, pack, offset, .. } => {
                    total = total.saturating_add(*size);
                    let bytes = self.packs.get(*pack).map(|pack| pack.bytes);
                    let end = offset.checked_add(*size);
                    if end.zip(bytes).is_none_or(|(end, bytes)| end > bytes) {
                        return Err("the index of a mount has a file that lies in no pack");
                    }
                }
            }
        }
        match total > MOST_BYTES {
            true => Err("a mount is too large"),
            false => Ok(()),
        }
    }

    /// Where the bytes of each content lie.
    pub fn places(&self) -> HashMap<(&str, u64), Place> {
        let place = |entry: &'_ Entry| match &entry.kind {
            Kind::File { size, pack, offset, .. } => Some((*size, Place { pack: *pack, offset: *offset })),
            _ => None,
        };
        let files = self.entries.iter().filter_map(|entry| Some((entry.blake3()?, place(entry)?)));
        files.map(|(blake3, (size, place))| ((blake3, size), place)).collect()
    }
}

impl Entry {
    fn blake3(&self) -> Option<&str> {
        match &self.kind {
            Kind::File { blake3, .. } => Some(blake3),
            _ => None,
        }
    }
}

/// The folder of a relative path whose parts are all names.
fn parent_of(path: &str) -> Option<&str> {
    let is_name = |part: &str| !matches!(part, "" | "." | "..") && part.len() <= 255 && !part.contains('\0');
    let fits = path.len() <= LONGEST_PATH && path.split('/').all(is_name);
    fits.then(|| path.rsplit_once('/').map_or("", |(parent, _)| parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry { path: path.to_owned(), mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), kind }
    }

    fn read(entries: &[(&str, Kind)]) -> Result<(), String> {
        let entries = entries.iter().map(|(path, kind)| entry(path, kind.clone())).collect();
        let packs = vec![PackInfo { digest: Digest::sha256(b"pack"), size: 1, bytes: 10 }];
        let snapshot = Snapshot { version: VERSION, packs, entries };
        Snapshot::read(&serde_json::to_vec(&snapshot).unwrap()).map(|read| assert_eq!(read, snapshot))
    }

    // Seen to fail without the look at parents.
    #[test]
    fn a44_an_index_leads_nowhere_else() {
        let file = |offset: u64| Kind::File { size: 4, blake3: String::new(), pack: 0, offset };
        let link = || Kind::Link("/etc".to_owned());
        read(&[("", Kind::Folder), ("a", Kind::Folder), ("a/b", file(6)), ("a/c", link())]).unwrap();
        let refused = |entries: &[(&str, Kind)]| read(entries).unwrap_err();
        assert!(refused(&[]).contains("no root"));
        assert!(refused(&[("", link())]).contains("no root"));
        for path in ["..", "/etc", "a//b", "./a", "a/..", "a\0b", "a/"] {
            assert!(refused(&[("", Kind::Folder), ("a", Kind::Folder), (path, file(0))]).contains("path that is none"));
        }
        assert!(refused(&[("", Kind::Folder), ("a", link()), ("a/passwd", file(0))]).contains("no folder"));
        assert!(refused(&[("", Kind::Folder), ("a/passwd", file(0)), ("a", Kind::Folder)]).contains("no folder"));
        assert!(refused(&[("", Kind::Folder), ("a", link()), ("a", Kind::Folder)]).contains("twice"));
        assert!(refused(&[("", Kind::Folder), ("a", file(7))]).contains("lies in no pack"));
        assert!(refused(&[("", Kind::Folder), ("a", file(u64::MAX))]).contains("lies in no pack"));
    }
}
