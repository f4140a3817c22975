//! A store with a canary beside it, and trees as text.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

use forge_image::{Descriptor, DiffId, Digest, MediaType};
use forge_store::{
    EntryKind, LayerId, LayerIndex, LayerRecord, Layers, Lease, MergedTree, Store, StoreError, TreeEntry, TreeKind,
};

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

pub struct Fixture {
    pub store: Store,
    pub lease: Lease,
    pub canary: PathBuf,
    /// The tars of the stacks made so far.
    pub bases: Mutex<Vec<Vec<u8>>>,
    before: String,
    // Last: the others lie in it.
    _folder: tempfile::TempDir,
}

/// Whether the test can run; says so by name where not.
pub fn is_root(name: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("FORGE_REQUIRE_PRIVILEGED").is_none(), "{name} needs root");
    eprintln!("SKIPPED (needs root): {name}");
    false
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Packed {
    Bare,
    Gzip,
    Zstd,
}

pub fn pack(tar: &[u8], packed: Packed) -> Vec<u8> {
    match packed {
        Packed::Bare => tar.to_vec(),
        Packed::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        }
        Packed::Zstd => zstd::encode_all(tar, 1).unwrap(),
    }
}

impl Fixture {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let canary = folder.path().join("canary");
        std::fs::create_dir_all(canary.join("sub")).unwrap();
        std::fs::write(canary.join("flag"), "d5a1f8c1e3").unwrap();
        std::fs::write(canary.join("b"), "").unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let lease = store.lease("test").unwrap();
        let before = disk(&canary);
        Self { store, lease, canary, bases: Mutex::default(), before, _folder: folder }
    }

    pub fn layers(&self) -> &Layers {
        self.store.layers()
    }

    pub fn canary_path(&self, name: &str) -> Vec<u8> {
        self.canary.join(name).as_os_str().as_bytes().to_vec()
    }

    pub fn descriptor(&self, bytes: &[u8]) -> Descriptor {
        let digest = self.store.blobs().write(bytes, &self.lease).unwrap();
        // The media type is wrong on purpose for two of three: bytes decide.
        Descriptor::new(MediaType::OciLayer, digest, bytes.len() as u64)
    }

    pub fn unpack(&self, parents: &[LayerId], tar: &[u8]) -> Result<LayerRecord, StoreError> {
        self.unpack_packed(parents, tar, Packed::Bare)
    }

    pub fn unpack_packed(&self, parents: &[LayerId], tar: &[u8], packed: Packed) -> Result<LayerRecord, StoreError> {
        let descriptor = self.descriptor(&pack(tar, packed));
        let diff_id = DiffId::new(Digest::sha256(tar));
        let record = self.layers().unpack(parents, &descriptor, &diff_id, &self.lease, &mut |_| {});
        self.check_canary();
        if let Ok(record) = &record {
            self.check_layer(&record.id);
        }
        record
    }

    pub fn stack(&self, tars: &[Vec<u8>]) -> Vec<LayerId> {
        let mut stack = Vec::new();
        *self.bases.lock().unwrap() = tars.to_vec();
        for tar in tars {
            let layer = self.unpack(&stack, tar).unwrap_or_else(|error| panic!("{}", chain(&error)));
            stack.push(layer.id);
        }
        stack
    }

    pub fn tree(&self, stack: &[LayerId]) -> String {
        dump(&self.layers().tree(stack).unwrap())
    }

    /// The canary is as it was, and nothing was put beside it.
    pub fn check_canary(&self) {
        assert_eq!(disk(&self.canary), self.before);
        let beside: Vec<_> = names(self.canary.parent().unwrap());
        assert_eq!(beside, ["canary", "store"]);
    }

    /// The tree on disk holds exactly what the index says.
    pub fn check_layer(&self, id: &LayerId) {
        let tree = self.layers().lower_dirs(std::slice::from_ref(id)).unwrap()[0].clone();
        let index = self.layers().index(id).unwrap();
        assert_eq!(raw_disk(&tree), from_index(&index));
    }
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        write!(text, ": {error}").unwrap();
        source = error.source();
    }
    text
}

pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into()).collect();
    names.sort();
    names
}

/// A folder of the host with all that must not change.
pub fn disk(path: &Path) -> String {
    let mut text = String::new();
    let mut todo = vec![path.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let xattrs = xattrs(&path);
        writeln!(
            text,
            "{path:?} {:o} {}:{} {} {}.{} {xattrs:?}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.nlink(),
            meta.mtime(),
            meta.mtime_nsec()
        )
        .unwrap();
        if meta.is_dir() {
            let mut children: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            children.sort_by(|a, b| b.cmp(a));
            todo.append(&mut children);
        } else if meta.is_file() {
            writeln!(text, "  {}", Digest::sha256(&std::fs::read(&path).unwrap())).unwrap();
        }
    }
    text
}

fn xattrs(path: &Path) -> Vec<String> {
    let mut buffer = vec![0_u8; 65536];
    let length = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap_or(0);
    let names = buffer[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut xattrs: Vec<String> = names
        .map(|name| {
            let mut value = vec![0_u8; 65536];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            format!("{}={}", name.escape_ascii(), value[..length].escape_ascii())
        })
        .collect();
    xattrs.sort();
    xattrs
}

/// A merged tree as text: one line a path, times left out.
pub fn dump(tree: &MergedTree) -> String {
    let mut text = String::new();
    let mut todo: Vec<TreeEntry> = tree.lookup(Path::new("/")).unwrap().into_iter().collect();
    while let Some(entry) = todo.pop() {
        text.push_str(&line(tree, &entry));
        if entry.is_directory() {
            todo.extend(tree.children(&entry.path).unwrap().into_iter().rev());
        }
    }
    text
}

fn line(tree: &MergedTree, entry: &TreeEntry) -> String {
    let path = entry.path.as_os_str().as_bytes().escape_ascii();
    let rights = format!("{:04o} {}:{}", entry.mode, entry.uid, entry.gid);
    let mut text = match &entry.kind {
        TreeKind::File { size } => {
            let bytes = std::fs::read(tree.disk_path(entry).unwrap()).unwrap();
            assert_eq!(bytes.len() as u64, *size);
            format!("file {rights} {path} {}", bytes[..bytes.len().min(32)].escape_ascii())
        }
        TreeKind::Directory => format!("dir  {rights} {path}"),
        TreeKind::Symlink { target } => format!("link {path} -> {}", target.as_bytes().escape_ascii()),
        TreeKind::CharDevice { major, minor } => format!("char {rights} {path} {major}:{minor}"),
        TreeKind::BlockDevice { major, minor } => format!("blk  {rights} {path} {major}:{minor}"),
        TreeKind::Fifo => format!("fifo {rights} {path}"),
        TreeKind::Socket => format!("sock {rights} {path}"),
    };
    for (name, value) in &entry.xattrs {
        write!(text, " {}={}", name.as_bytes().escape_ascii(), value.escape_ascii()).unwrap();
    }
    text + "\n"
}

/// A layer's tree with the markers of overlayfs, read with the standard library alone.
fn raw_disk(tree: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut todo = vec![tree.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let shown = path.strip_prefix(tree).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
        let mut kind = meta.mode() & 0o170000;
        let mut rest = format!("{}:{} {:o}", meta.uid(), meta.gid(), meta.mode() & 0o7777);
        if kind == 0o020000 && meta.rdev() == 0 {
            (kind, rest) = (0, "deleted".into());
        } else if !shown.is_empty() {
            write!(rest, " {}.{}", meta.mtime(), meta.mtime_nsec()).unwrap();
        }
        for xattr in xattrs(&path).iter().filter(|xattr| kind != 0 && !is_kernels_own(xattr)) {
            write!(rest, " {xattr}").unwrap();
        }
        lines.push(format!("{shown} {kind:o} {rest}"));
        if meta.is_dir() {
            let mut children: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            todo.append(&mut children);
        }
    }
    lines.sort();
    lines
}

/// Left by overlayfs on what it copied up; it means nothing in a lower layer.
fn is_kernels_own(xattr: &str) -> bool {
    ["trusted.overlay.origin", "trusted.overlay.impure", "trusted.overlay.uuid"]
        .iter()
        .any(|own| xattr.starts_with(own))
}

fn from_index(index: &LayerIndex) -> Vec<String> {
    let mut lines: Vec<String> = index.entries().iter().map(index_line).collect();
    lines.sort();
    lines
}

fn index_line(entry: &forge_store::LayerEntry) -> String {
    let shown = OsStr::from_bytes(&entry.path).as_bytes().escape_ascii().to_string();
    let meta = &entry.metadata;
    let (kind, opaque) = match entry.kind {
        EntryKind::Whiteout => return format!("{shown} 0 deleted"),
        EntryKind::File { .. } => (0o100000, false),
        EntryKind::Directory { opaque, .. } => (0o040000, opaque),
        EntryKind::Symlink { .. } => (0o120000, false),
        EntryKind::CharDevice { .. } => (0o020000, false),
        EntryKind::BlockDevice { .. } => (0o060000, false),
        EntryKind::Fifo => (0o010000, false),
    };
    let mut rest = format!("{}:{} {:o}", meta.uid, meta.gid, meta.mode);
    if !shown.is_empty() {
        write!(rest, " {}.{}", meta.mtime.0, meta.mtime.1).unwrap();
    }
    let mut xattrs: Vec<String> = meta
        .xattrs
        .iter()
        .map(|(name, value)| format!("{}={}", name.as_bytes().escape_ascii(), value.escape_ascii()))
        .collect();
    xattrs.extend(opaque.then(|| "trusted.overlay.opaque=y".to_owned()));
    xattrs.sort();
    for xattr in xattrs {
        write!(rest, " {xattr}").unwrap();
    }
    format!("{shown} {kind:o} {rest}")
}
