use super::entry::{EntryKind, Metadata};
use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What whoever filled an upper folder knows of the files in it, so that the commit need not read them again.
///
/// Paths are those of the merged tree, absolute. Whoever writes, replaces or removes a file says so here too.
#[derive(Clone, Debug, Default)]
pub struct KnownFiles {
    files: HashMap<Vec<u8>, KnownFile>,
    devices: BTreeMap<Vec<u8>, (EntryKind, Metadata)>,
}

/// A file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownFile {
    /// How many there are.
    pub size: u64,
    /// Their BLAKE3 hash.
    pub blake3: [u8; 32],
}

impl KnownFiles {
    /// Notes what was written.
    pub fn insert(&mut self, path: &Path, file: KnownFile) {
        self.files.insert(relative(path).to_vec(), file);
    }

    /// Notes a device that could not be made, as nobody can in a user namespace: the layer's index has it nevertheless. Whatever
    /// is made under its name later takes its place.
    pub fn device(&mut self, path: &Path, kind: EntryKind, metadata: Metadata) {
        self.devices.insert(relative(path).to_vec(), (kind, metadata));
    }

    /// Notes that a file has another name now.
    pub fn link(&mut self, first: &Path, path: &Path) {
        if let Some(file) = self.files.get(relative(first)).copied() {
            self.insert(path, file);
        }
    }

    /// Forgets a file that is there no more.
    pub fn remove(&mut self, path: &Path) {
        self.files.remove(relative(path));
        self.devices.remove(relative(path));
    }

    /// Forgets everything at and below a path.
    pub fn remove_all(&mut self, path: &Path) {
        let path = relative(path);
        let is_at_or_below = |file: &[u8]| match file.strip_prefix(path) {
            Some(rest) => rest.is_empty() || rest.starts_with(b"/") || path.is_empty(),
            None => false,
        };
        self.files.retain(|file, _| !is_at_or_below(file));
        self.devices.retain(|device, _| !is_at_or_below(device));
    }

    /// The devices that could not be made, by their paths in the layer.
    pub(super) fn devices(&self) -> impl Iterator<Item = (&[u8], &(EntryKind, Metadata))> {
        self.devices.iter().map(|(path, device)| (&path[..], device))
    }

    /// What is known of the file at a path of the layer.
    pub(super) fn get(&self, path: &[u8]) -> Option<KnownFile> {
        self.files.get(path).copied()
    }
}

fn relative(path: &Path) -> &[u8] {
    let bytes = path.as_os_str().as_bytes();
    bytes.strip_prefix(b"/").unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_is_forgotten() {
        let mut known = KnownFiles::default();
        let file = |size| KnownFile { size, blake3: [0; 32] };
        for (size, path) in ["/a/b", "/a/b/c", "/a/bc", "/d"].into_iter().enumerate() {
            known.insert(Path::new(path), file(size as u64));
        }
        known.link(Path::new("/a/b/c"), Path::new("/e"));
        known.remove(Path::new("/d"));
        known.remove_all(Path::new("/a/b"));
        let mut left: Vec<_> = known.files.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
        left.sort();
        assert_eq!(left, ["a/bc", "e"]);
        assert_eq!(known.get(b"e"), Some(file(1)));
    }
}
