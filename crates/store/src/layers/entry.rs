use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The longest path that a layer may hold: `PATH_MAX` with its final zero byte. Beyond it no program could name the file.
pub(super) const MAX_PATH: usize = 4095;

/// What every node of a file system has, as far as a layer keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission, set-id and sticky bits; no type bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Modification time: seconds since the epoch, and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes that belong to the file; see [`keeps_xattr`](super::xattr::keeps_xattr).
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
}

/// What an entry of a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Its length in bytes.
        size: u64,
        /// The hash of its bytes.
        blake3: [u8; 32],
    },
    /// A folder.
    Directory {
        /// Whether it hides everything that lower layers have in it.
        opaque: bool,
        /// Whether it is only here as the parent of something: it has the metadata of the lower folder and is not written to tar.
        implied: bool,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, unchecked.
        target: OsString,
    },
    /// A character device.
    CharDevice {
        /// The driver.
        major: u32,
        /// The device.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// The driver.
        major: u32,
        /// The device.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// The deletion of what lower layers have at this path.
    Whiteout,
}

/// One path of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerEntry {
    /// The path from the layer's root, without a leading slash; the root itself is empty.
    pub path: Vec<u8>,
    /// What it is. For a further name of a hard-linked node: the same as at the first name.
    pub kind: EntryKind,
    /// Its metadata; zero for a whiteout.
    pub metadata: Metadata,
    /// For a further name of a hard-linked node: the position of the first name in the index.
    pub link: Option<u32>,
}

impl LayerEntry {
    /// The path from the layer's root.
    pub fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.path))
    }

    /// Whether the entry is a folder that is only here as the parent of something.
    pub fn is_implied(&self) -> bool {
        matches!(self.kind, EntryKind::Directory { implied: true, .. })
    }

    /// Whether the entry says something about its path, be it only that lower contents are hidden.
    pub fn is_change(&self) -> bool {
        !matches!(self.kind, EntryKind::Directory { implied: true, opaque: false })
    }

    /// Whether the entry is a folder.
    pub fn is_directory(&self) -> bool {
        matches!(self.kind, EntryKind::Directory { .. })
    }

    /// The bytes that the entry adds to the layer: those of a file, at its first name.
    pub fn size(&self) -> u64 {
        match self.kind {
            EntryKind::File { size, .. } if self.link.is_none() => size,
            _ => 0,
        }
    }
}

/// The order of entries in a layer: component by component, bytes compared.
///
/// A folder is followed at once by everything in it, which is why the slash counts as the lowest byte.
pub fn path_order(a: &[u8], b: &[u8]) -> Ordering {
    let low_slash = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(low_slash).cmp(b.iter().map(low_slash))
}

/// Splits a path into its parent and its last component; the root has neither.
pub(super) fn split_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}

/// Appends a component to a path.
pub(super) fn join_path(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        return name.to_vec();
    }
    [parent, b"/", name].concat()
}

/// The path as system calls take it relative to the root's descriptor.
pub(super) fn relative(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(if path.is_empty() { b"." } else { path }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_followed_by_its_contents() {
        let mut paths: Vec<&[u8]> = vec![b"a-b", b"a/c", b"a", b"", b"a!", b"a/b/c"];
        paths.sort_by(|a, b| path_order(a, b));
        let expected: Vec<&[u8]> = vec![b"", b"a", b"a/b/c", b"a/c", b"a!", b"a-b"];
        assert_eq!(paths, expected);
    }

    #[test]
    fn paths_split_and_join() {
        assert_eq!(split_path(b""), None);
        assert_eq!(split_path(b"a"), Some((&b""[..], &b"a"[..])));
        assert_eq!(split_path(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!(join_path(b"", b"a"), b"a");
        assert_eq!(join_path(b"a/b", b"c"), b"a/b/c");
    }
}
