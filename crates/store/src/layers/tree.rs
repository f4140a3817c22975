mod level;

use super::entry::{EntryKind, Metadata, join_path};
use super::error::{LayerError, shown};
use super::folder::{Node, NodeKind};
use super::pack::{Pack, PackedBytes};
use super::root::Root;
use super::xattr::Markers;
use crate::StoreError;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// As many symbolic links as the kernel follows in one path (`MAXSYMLINKS`).
const MAX_HOPS: usize = 40;

/// What a stack of layer trees looks like when overlayfs mounts it, read without a mount.
///
/// Paths are bytes inside the root; a leading slash means nothing. Symbolic links among a path's parents are followed
/// inside the root, as after `chroot`; no method leaves it. Folders merge as overlayfs merges them: a whiteout, an
/// opaque folder, or anything that is not a folder hides what lies below.
///
/// Nothing is cached: a tree that changes, as the upper one of an active layer does, is seen as it is. Of a packed layer the
/// index is read, and no tree is made for it but to open a large file.
#[derive(Clone)]
pub struct MergedTree {
    /// Top-most first.
    roots: Arc<[Arc<Root>]>,
    markers: Markers,
}

/// Something in a [`MergedTree`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    /// The absolute path inside the root, free of symbolic links up to the last component.
    pub path: PathBuf,
    /// The last component; empty for the root.
    pub name: OsString,
    /// What it is.
    pub kind: TreeKind,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Modification time: seconds since the epoch, and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, without those that belong to overlayfs or to this machine.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Device and inode number: names of one hard-linked node have the same.
    pub inode: (u64, u64),
    /// How many names the node has in its layer.
    pub links: u64,
    layer: usize,
    level: Option<Level>,
}

/// A folder of a [`MergedTree`] that was looked up: its contents are read without walking down from the root again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeFolder(Level);

/// A regular file of a [`MergedTree`] that was looked up: it is opened without walking down from the root again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeFile {
    path: Vec<u8>,
    layer: usize,
    size: u64,
}

/// What a [`TreeEntry`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeKind {
    /// A regular file.
    File {
        /// Its length in bytes.
        size: u64,
    },
    /// A folder.
    Directory,
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
    /// A socket, as a process left it.
    Socket,
}

/// A folder of the merged view: its path, and the layers that have a part in it, top-most first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) path: Vec<u8>,
    layers: Vec<usize>,
}

/// A node of the merged view.
pub(super) struct Found {
    pub(super) node: Node,
    pub(super) layer: usize,
    /// For a folder: where to look on.
    pub(super) level: Option<Level>,
}

/// Where a path led.
struct Walk {
    path: Vec<u8>,
    found: Option<Found>,
}

#[derive(Clone, Copy, PartialEq)]
enum Last {
    Follow,
    Keep,
}

impl MergedTree {
    /// Opens a stack of trees, top-most first.
    ///
    /// # Errors
    /// One of them is no folder.
    pub fn new(paths: Vec<PathBuf>) -> Result<Self, StoreError> {
        let roots = paths.into_iter().map(|path| Root::open(path).map(Arc::new));
        Ok(Self::of(roots.collect::<Result<_, _>>()?))
    }

    /// A stack of trees, top-most first.
    pub(super) fn of(roots: Vec<Arc<Root>>) -> Self {
        // All trees lie in one file system, and some are not there.
        let here = roots.iter().find(|root| root.require().is_ok()).or(roots.first());
        let markers = here.map_or(Markers::User, |top| Markers::of(top.path()));
        Self { roots: roots.into(), markers }
    }

    /// The same with one more tree on top.
    pub(super) fn under(&self, top: Root) -> Self {
        Self::of(std::iter::once(Arc::new(top)).chain(self.roots.iter().cloned()).collect())
    }

    /// Where the trees lie, top-most first; those of packed layers are made.
    pub(super) fn paths(&self) -> Result<Vec<PathBuf>, StoreError> {
        self.roots.iter().map(|root| Ok(root.tree()?.to_owned())).collect()
    }

    /// What is at a path; the last component is not followed. Without any layer there is nothing, not even a root.
    ///
    /// # Errors
    /// A file system call failed, or too many symbolic links among the parents.
    pub fn lookup(&self, path: &Path) -> Result<Option<TreeEntry>, StoreError> {
        let walk = self.walk(path.as_os_str().as_bytes(), Last::Keep)?;
        Ok(walk.found.map(|found| tree_entry(walk.path, found)))
    }

    /// The path with all symbolic links followed inside the root. What does not exist is kept as it is.
    ///
    /// # Errors
    /// A file system call failed, or too many symbolic links.
    pub fn resolve(&self, path: &Path) -> Result<PathBuf, StoreError> {
        let walk = self.walk(path.as_os_str().as_bytes(), Last::Follow)?;
        Ok(absolute(&walk.path))
    }

    /// What is in a folder, sorted by name bytes. Symbolic links to folders are followed inside the root.
    ///
    /// # Errors
    /// Nothing there, or not a folder; a file system call failed.
    pub fn children(&self, path: &Path) -> Result<Vec<TreeEntry>, StoreError> {
        let walk = self.walk(path.as_os_str().as_bytes(), Last::Follow)?;
        let found = walk.found.ok_or_else(|| not_found(&walk.path))?;
        let level = found.level.ok_or_else(|| LayerError::NotADirectory { path: shown(&walk.path) })?;
        self.children_of(&TreeFolder(level))
    }

    /// What is in a folder that was found before, sorted by name bytes.
    ///
    /// # Errors
    /// A file system call failed, or the folder is there no more.
    pub fn children_of(&self, folder: &TreeFolder) -> Result<Vec<TreeEntry>, StoreError> {
        let TreeFolder(level) = folder;
        let mut children = Vec::new();
        self.open_level(level)?.each_child(|name, found| {
            children.push(tree_entry(join_path(&level.path, name), found));
        })?;
        children.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(children)
    }

    /// What has that name in a folder that was found before; a link is not followed.
    ///
    /// # Errors
    /// A file system call failed, or the folder is there no more.
    pub fn child_of(&self, folder: &TreeFolder, name: &OsStr) -> Result<Option<TreeEntry>, StoreError> {
        let TreeFolder(level) = folder;
        let found = self.open_level(level)?.find(name.as_bytes())?;
        Ok(found.map(|found| tree_entry(join_path(&level.path, name.as_bytes()), found)))
    }

    /// Opens a regular file for reading; the last component is not followed.
    ///
    /// # Errors
    /// Nothing there, or not a regular file: a pipe or device is never opened (A14).
    pub fn open(&self, path: &Path) -> Result<File, StoreError> {
        let walk = self.walk(path.as_os_str().as_bytes(), Last::Keep)?;
        let found = walk.found.ok_or_else(|| not_found(&walk.path))?;
        self.open_regular(&walk.path, &found)
    }

    /// Opens a regular file for reading, symbolic links followed inside the root; `None` where there is nothing.
    ///
    /// # Errors
    /// Something else is there; a file system call failed, or too many symbolic links.
    pub fn open_resolved(&self, path: &Path) -> Result<Option<File>, StoreError> {
        let walk = self.walk(path.as_os_str().as_bytes(), Last::Follow)?;
        walk.found.map(|found| self.open_regular(&walk.path, &found)).transpose()
    }

    fn open_regular(&self, path: &[u8], found: &Found) -> Result<File, StoreError> {
        match found.node.kind {
            NodeKind::File { .. } => self.open_found(path, found.layer),
            _ => Err(LayerError::NotRegular { path: shown(path), found: found.node.kind.name() }.into()),
        }
    }

    /// Where the entry lies on disk; the tree of a packed layer is made for it. The file must not be changed.
    ///
    /// # Errors
    /// The file system failed.
    pub fn disk_path(&self, entry: &TreeEntry) -> Result<PathBuf, StoreError> {
        let tree = self.roots[entry.layer].tree()?;
        Ok(tree.join(entry.path.strip_prefix("/").expect("paths of entries are absolute")))
    }

    /// Opens a regular file that was found before.
    ///
    /// # Errors
    /// It is there no more, or a file system call failed.
    pub fn open_file(&self, file: &TreeFile) -> Result<File, StoreError> {
        self.open_found(&file.path, file.layer)
    }

    /// What a file hashes to by the index of its layer; nothing where the layer is only being made.
    ///
    /// # Errors
    /// The index is damaged, or cannot be read.
    pub fn hash(&self, file: &TreeFile) -> Result<Option<[u8; 32]>, StoreError> {
        let Some(index) = self.roots[file.layer].index()? else { return Ok(None) };
        match index.get(&file.path).map(|entry| &entry.kind) {
            Some(EntryKind::File { size, blake3 }) if *size == file.size => Ok(Some(*blake3)),
            _ => Ok(None),
        }
    }

    /// That an entry is not only told of by a table of contents, which gives times to the second, and no bytes.
    ///
    /// # Errors
    /// Its layer is not here.
    pub fn require(&self, entry: &TreeEntry) -> Result<(), StoreError> {
        self.roots[entry.layer].require()
    }

    /// Where the bytes of a file are, if its layer is packed.
    pub fn packed(&self, file: &TreeFile) -> Option<(&Pack, PackedBytes)> {
        let list = self.roots[file.layer].listed()?;
        Some((list.pack(), list.place(&file.path)?))
    }

    /// Opens a file that was found in one layer.
    pub(super) fn open_found(&self, path: &[u8], layer: usize) -> Result<File, StoreError> {
        self.roots[layer].open_file(path)?.ok_or_else(|| not_found(path).into())
    }

    /// What is at a path in which no symbolic link is followed at all.
    pub(super) fn lookup_physical(&self, path: &[u8]) -> Result<Option<Found>, StoreError> {
        let Some(mut found) = self.root()? else { return Ok(None) };
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let Some(level) = found.level else { return Ok(None) };
            match self.open_level(&level)?.find(name)? {
                Some(next) => found = next,
                None => return Ok(None),
            }
        }
        Ok(Some(found))
    }

    /// The root folder; `None` when there are no layers.
    pub(super) fn root(&self) -> Result<Option<Found>, StoreError> {
        let Some(top) = self.roots.first() else { return Ok(None) };
        let node = top.node(self.markers)?;
        // Overlayfs merges all roots, whatever marker they carry.
        let level = Level { path: Vec::new(), layers: (0..self.roots.len()).collect() };
        Ok(Some(Found { node, layer: 0, level: Some(level) }))
    }

    fn walk(&self, path: &[u8], last: Last) -> Result<Walk, StoreError> {
        let Some(root) = self.root()? else {
            return Ok(Walk { path: lexical(Vec::new(), path.split(|byte| *byte == b'/')), found: None });
        };
        let mut todo: VecDeque<Vec<u8>> = components(path).collect();
        let mut stack = vec![root];
        let mut hops = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                stack.truncate((stack.len() - 1).max(1));
                continue;
            }
            let at = stack.last().and_then(|found| found.level.as_ref()).expect("only folders are walked through");
            let place = at.path.clone();
            let Some(found) = self.open_level(at)?.find(&name)? else {
                return Ok(missing(place, &name, &todo));
            };
            match &found.node.kind {
                NodeKind::Symlink { target } if last == Last::Follow || !todo.is_empty() => {
                    hops += 1;
                    if hops > MAX_HOPS {
                        return Err(LayerError::TooManySymlinks { path: shown(path) }.into());
                    }
                    if target.as_bytes().starts_with(b"/") {
                        stack.truncate(1);
                    }
                    for component in components(target.as_bytes()).collect::<Vec<_>>().into_iter().rev() {
                        todo.push_front(component);
                    }
                }
                NodeKind::Directory { .. } => stack.push(found),
                _ if todo.is_empty() => return Ok(Walk { path: join_path(&place, &name), found: Some(found) }),
                _ => return Ok(missing(place, &name, &todo)),
            }
        }
        let found = stack.pop().expect("the root is never taken off");
        let path = found.level.as_ref().map(|level| level.path.clone()).expect("only folders are on the stack");
        Ok(Walk { path, found: Some(found) })
    }
}

impl TreeEntry {
    /// The entry's metadata as layers hold it.
    pub fn metadata(&self) -> Metadata {
        Metadata { mode: self.mode, uid: self.uid, gid: self.gid, mtime: self.mtime, xattrs: self.xattrs.clone() }
    }

    /// Which of the layers of the stack it is from, for a folder the one whose metadata shows: 0 is the top-most.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Whether it is a folder.
    pub fn is_directory(&self) -> bool {
        self.kind == TreeKind::Directory
    }

    /// What its bytes are read by, for a regular file.
    pub fn file(&self) -> TreeFile {
        let path = self.path.as_os_str().as_bytes();
        let size = if let TreeKind::File { size } = self.kind { size } else { 0 };
        TreeFile { path: path.strip_prefix(b"/").unwrap_or(path).to_vec(), layer: self.layer, size }
    }

    /// What its contents are read by, for a folder.
    pub fn folder(&self) -> Option<TreeFolder> {
        self.level.clone().map(TreeFolder)
    }
}

impl NodeKind {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::File { .. } => "regular file",
            Self::Directory { .. } => "directory",
            Self::Symlink { .. } => "symbolic link",
            Self::CharDevice { .. } => "character device",
            Self::BlockDevice { .. } => "block device",
            Self::Fifo => "named pipe",
            Self::Socket => "socket",
            Self::Whiteout => "whiteout",
        }
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).map(<[u8]>::to_vec)
}

/// The path of something that does not exist: from here on `..` can only be read literally.
fn missing(place: Vec<u8>, name: &[u8], todo: &VecDeque<Vec<u8>>) -> Walk {
    let path = lexical(join_path(&place, name), todo.iter().map(Vec::as_slice));
    Walk { path, found: None }
}

fn lexical<'a>(mut path: Vec<u8>, names: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    for name in names {
        match name {
            b"" | b"." => {}
            b".." => path.truncate(super::entry::split_path(&path).map_or(0, |(parent, _)| parent.len())),
            name => path = join_path(&path, name),
        }
    }
    path
}

fn absolute(path: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec([b"/", path].concat()))
}

fn not_found(path: &[u8]) -> LayerError {
    LayerError::NotFound { path: shown(path) }
}

fn tree_entry(path: Vec<u8>, found: Found) -> TreeEntry {
    let Found { node, layer, level } = found;
    let name = super::entry::split_path(&path).map_or(&b""[..], |(_, name)| name);
    let Metadata { mode, uid, gid, mtime, xattrs } = node.metadata;
    let (inode, links) = (node.inode, node.links);
    let name = OsStr::from_bytes(name).to_owned();
    let kind = tree_kind(node.kind);
    TreeEntry { path: absolute(&path), name, kind, mode, uid, gid, mtime, xattrs, inode, links, layer, level }
}

fn tree_kind(kind: NodeKind) -> TreeKind {
    match kind {
        NodeKind::File { size } => TreeKind::File { size },
        NodeKind::Directory { .. } => TreeKind::Directory,
        NodeKind::Symlink { target } => TreeKind::Symlink { target },
        NodeKind::CharDevice { major, minor } => TreeKind::CharDevice { major, minor },
        NodeKind::BlockDevice { major, minor } => TreeKind::BlockDevice { major, minor },
        NodeKind::Fifo => TreeKind::Fifo,
        NodeKind::Socket => TreeKind::Socket,
        NodeKind::Whiteout => unreachable!("whiteouts are never found"),
    }
}
