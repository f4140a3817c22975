//! From the upper folder of an overlay to a layer: what changed, without what turned out to be equal after all.

use super::apply::{default_root, set_mtime};
use super::entry::{EntryKind, LayerEntry, MAX_PATH, Metadata, join_path, path_order, split_path};
use super::error::{LayerError, shown};
use super::folder::{self, Node, NodeKind};
use super::index::LayerIndex;
use super::known::KnownFiles;
use super::listed::listed_node;
use super::tree::{Found, Level, MergedTree};
use super::xattr::{self, Markers};
use crate::{FileTimes, StoreError};
use rayon::prelude::*;
use rustix::fs::AtFlags;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Names that begin like this mean deletions in a layer's tar (image specification, `layer.md`, "Whiteouts").
pub(super) const WHITEOUT_PREFIX: &[u8] = b".wh.";

const BUFFER: usize = 1 << 17;

/// Something in the upper folder that may belong to the layer.
struct Candidate {
    path: Vec<u8>,
    node: Node,
    /// What the lower layers have at this path.
    lower: Lower,
    /// The file's bytes; for a further name of a link group those of the first.
    blake3: Option<[u8; 32]>,
    fate: Fate,
}

/// How a candidate compares with the layers below.
enum Lower {
    /// Something else, or nothing.
    Different,
    /// The same kind and metadata; for a file the bytes decide.
    SameMetadata { layer: usize, inode: (u64, u64) },
    /// A folder with the same metadata but for the time, which is that of the step.
    SameButMoment,
}

#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Kept,
    Dropped,
}

/// Finds out what the upper folder says that the lower layers do not, and removes the rest from it.
///
/// An entry is dropped only where metadata *and* bytes are equal: equal size and time prove nothing, since `mv y x` of two
/// files that were written in the same moment has both.
///
/// A folder of which only the time differs, and that because the step made and removed something in it, is not kept: when a step
/// ran is no content (containerd's differ leaves out every folder of which only the time differs).
pub(super) fn diff(
    upper: &Path,
    lower: &MergedTree,
    known: &KnownFiles,
    times: FileTimes,
) -> Result<LayerIndex, StoreError> {
    let root = folder::open_root(upper).map_err(StoreError::os("open", upper))?;
    let mut walk = Walk { upper, root, lower, known, times, markers: Markers::of(upper), found: Vec::new() };
    let root_entry = walk.run()?;
    walk.add_devices()?;
    walk.found.par_sort_unstable_by(|a, b| path_order(&a.path, &b.path));
    walk.settle_files()?;
    walk.drop_needless_folders();
    walk.remove_dropped()?;
    index_of(root_entry, walk.found)
}

struct Walk<'a> {
    upper: &'a Path,
    root: OwnedFd,
    lower: &'a MergedTree,
    known: &'a KnownFiles,
    times: FileTimes,
    markers: Markers,
    found: Vec<Candidate>,
}

/// A folder yet to be read, with what lies below it.
struct Pending {
    path: Vec<u8>,
    lower: Option<Level>,
}

impl Walk<'_> {
    /// Collects all candidates. Folders wait in a list, not on the call stack: depth is the container's choice (A60).
    fn run(&mut self) -> Result<LayerEntry, StoreError> {
        let lower = self.lower.root()?;
        let root_entry = self.root_entry(lower.as_ref())?;
        let mut todo = vec![Pending { path: Vec::new(), lower: lower.and_then(|found| found.level) }];
        while let Some(folder) = todo.pop() {
            self.read_folder(&folder, &mut todo)?;
        }
        Ok(root_entry)
    }

    /// Adds what could not be made. What was put in its place stays, so that steps do not see what lies below.
    fn add_devices(&mut self) -> Result<(), StoreError> {
        for (path, (kind, metadata)) in self.known.devices() {
            let place = self.found.iter().position(|candidate| candidate.path == path);
            if place.is_some_and(|place| self.found[place].node.kind != NodeKind::Whiteout) {
                continue;
            }
            let (parent, name) = split_path(path).expect("a device has a name");
            let node = listed_node(kind.clone(), metadata.clone());
            let device = candidate(checked_path(parent, name)?, node, self.lower.lookup_physical(path)?, self.times);
            match (place, &device.lower) {
                (Some(mark), Lower::SameMetadata { .. }) => self.found[mark].fate = Fate::Dropped,
                (None, Lower::SameMetadata { .. }) => {}
                (Some(mark), _) => self.found[mark] = device,
                (None, _) => self.found.push(device),
            }
        }
        Ok(())
    }

    /// The root is listed only when owner, mode or xattrs differ: its time changes with every file in it, and most
    /// unpackers ignore an entry for the root anyway.
    fn root_entry(&self, lower: Option<&Found>) -> Result<LayerEntry, StoreError> {
        let node = folder::read_root(self.root.as_fd(), self.markers).map_err(self.error("read", b""))?;
        let lower = lower.map_or_else(default_root, |found| found.node.metadata.clone());
        let implied = Metadata { mtime: lower.mtime, ..node.metadata.clone() } == lower;
        let metadata = if implied { lower } else { node.metadata };
        let kind = EntryKind::Directory { opaque: false, implied };
        Ok(LayerEntry { path: Vec::new(), kind, metadata, link: None })
    }

    fn read_folder(&mut self, pending: &Pending, todo: &mut Vec<Pending>) -> Result<(), StoreError> {
        let path = &pending.path;
        let folder = folder::open_folder(self.root.as_fd(), path).map_err(self.error("open", path))?;
        let lower = pending.lower.as_ref().map(|level| self.lower.open_level(level)).transpose()?;
        for name in folder::names(&folder).map_err(self.error("read", path))? {
            let path = checked_path(path, &name)?;
            let node = folder::read_node(folder.as_fd(), &name, self.markers).map_err(self.error("read", &path))?;
            let Some(node) = node else { continue };
            let below = lower.as_ref().map(|level| level.find(&name)).transpose()?.flatten();
            if let NodeKind::Directory { opaque } = node.kind {
                self.settle_marker(&folder, &name, &path, opaque, below.as_ref())?;
                let lower = below.as_ref().filter(|_| !opaque).and_then(|found| found.level.clone());
                todo.push(Pending { path: path.clone(), lower });
            }
            self.found.push(candidate(path, node, below, self.times));
        }
        Ok(())
    }

    /// The kernel marks every new folder opaque (`ovl_create_upper`), also where there is nothing to hide. Such a
    /// marker is taken off: it would be content, and hide things once the layer lies elsewhere.
    fn settle_marker(
        &self,
        folder: &OwnedFd,
        name: &[u8],
        path: &[u8],
        opaque: bool,
        below: Option<&Found>,
    ) -> Result<(), StoreError> {
        if opaque && below.is_none_or(|found| found.level.is_none()) {
            let marker = self.markers.opaque();
            xattr::remove(folder.as_fd(), name, marker).map_err(self.error("remove the opaque marker of", path))?;
        }
        Ok(())
    }

    /// Hashes what stays and compares bytes where the metadata is equal, all files in parallel.
    fn settle_files(&mut self) -> Result<(), StoreError> {
        let groups = link_groups(&self.found);
        let settle = |(first, group): (&usize, &Vec<usize>)| Ok((*first, self.settle_group(group)?));
        let settled: Vec<(usize, Settled)> = groups.par_iter().map(settle).collect::<Result<_, StoreError>>()?;
        for (first, settled) in settled {
            for &member in &groups[&first] {
                match settled {
                    Settled::Equal => self.found[member].fate = Fate::Dropped,
                    Settled::Changed(blake3) => self.found[member].blake3 = Some(blake3),
                    Settled::NoFile => {}
                }
            }
        }
        Ok(())
    }

    /// The names of one node stay or go together: dropping one of them would cut the link.
    fn settle_group(&self, group: &[usize]) -> Result<Settled, StoreError> {
        let first = &self.found[group[0]];
        let below = self.common_lower(group);
        let NodeKind::File { size } = first.node.kind else {
            return Ok(if below.is_some() { Settled::Equal } else { Settled::NoFile });
        };
        if let Some(layer) = below
            && self.same_bytes(&first.path, layer)?
        {
            return Ok(Settled::Equal);
        }
        let known = group.iter().find_map(|member| self.known.get(&self.found[*member].path));
        if let Some(known) = known.filter(|known| known.size == size) {
            return Ok(Settled::Changed(known.blake3));
        }
        let (length, blake3) = hash_file(self.open(&first.path)?, size).map_err(self.io_error("read", &first.path))?;
        if length != size {
            return Err(LayerError::TreeChanged { path: shown(&first.path), reason: "its size changed" }.into());
        }
        Ok(Settled::Changed(blake3))
    }

    /// The layer that has one node with all the names of this group, and the same metadata.
    fn common_lower(&self, group: &[usize]) -> Option<usize> {
        let mut nodes = group.iter().map(|&member| match self.found[member].lower {
            Lower::SameMetadata { layer, inode } => Some((layer, inode)),
            Lower::Different | Lower::SameButMoment => None,
        });
        let first = nodes.next()??;
        nodes.all(|node| node == Some(first)).then_some(first.0)
    }

    fn same_bytes(&self, path: &[u8], layer: usize) -> Result<bool, StoreError> {
        let (upper, lower) = (self.open(path)?, self.lower.open_found(path, layer)?);
        equal_bytes(upper, lower).map_err(self.io_error("compare", path))
    }

    fn open(&self, path: &[u8]) -> Result<File, StoreError> {
        let (parent, name) = split_path(path).expect("a file has a name");
        let parent = folder::open_folder(self.root.as_fd(), parent).map_err(self.error("open", parent))?;
        Ok(folder::open_file(parent.as_fd(), name).map_err(self.error("open", path))?.into())
    }

    /// Folders that are as they were, and below which nothing changed, are only traces of the kernel's copying.
    fn drop_needless_folders(&mut self) {
        let mut needed: HashSet<&[u8]> = HashSet::new();
        let mut dropped = Vec::new();
        // Backwards: what is in a folder comes before the folder.
        for (position, candidate) in self.found.iter().enumerate().rev() {
            if candidate.fate == Fate::Dropped {
                continue;
            }
            if candidate.says_nothing() && !needed.contains(&candidate.path[..]) {
                dropped.push(position);
            } else if let Some((parent, _)) = split_path(&candidate.path) {
                needed.insert(parent);
            }
        }
        for position in dropped {
            self.found[position].fate = Fate::Dropped;
        }
    }

    /// Makes the tree agree with the index; the times of the folders concerned are put back.
    fn remove_dropped(&mut self) -> Result<(), StoreError> {
        let mut touched = BTreeSet::new();
        for candidate in self.found.iter().rev().filter(|candidate| candidate.fate == Fate::Dropped) {
            let (parent, name) = split_path(&candidate.path).expect("the root is no candidate");
            let folder = folder::open_folder(self.root.as_fd(), parent).map_err(self.error("open", parent))?;
            let flags = if candidate.is_directory() { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            let removed = rustix::fs::unlinkat(&folder, OsStr::from_bytes(name), flags);
            removed.map_err(self.error("remove", &candidate.path))?;
            touched.insert(parent);
        }
        for candidate in self.found.iter().filter(|candidate| touched.contains(&candidate.path[..])) {
            if candidate.fate == Fate::Kept {
                set_mtime(self.root.as_fd(), &candidate.path, candidate.node.metadata.mtime)
                    .map_err(self.error("set the time of", &candidate.path))?;
            }
        }
        self.found.retain(|candidate| candidate.fate == Fate::Kept);
        Ok(())
    }

    fn error(&self, action: &'static str, path: &[u8]) -> impl FnOnce(rustix::io::Errno) -> StoreError {
        StoreError::os(action, self.upper.join(OsStr::from_bytes(path)))
    }

    fn io_error(&self, action: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> StoreError {
        StoreError::io(action, self.upper.join(OsStr::from_bytes(path)))
    }
}

/// What became of a group of names.
#[derive(Clone, Copy)]
enum Settled {
    Equal,
    Changed([u8; 32]),
    NoFile,
}

impl Candidate {
    fn is_directory(&self) -> bool {
        matches!(self.node.kind, NodeKind::Directory { .. })
    }

    /// A folder with the lower one's metadata, in which the lower contents are visible.
    fn is_implied(&self) -> bool {
        matches!(self.node.kind, NodeKind::Directory { opaque: false })
            && matches!(self.lower, Lower::SameMetadata { .. })
    }

    /// A folder that is not worth an entry where nothing in it is.
    fn says_nothing(&self) -> bool {
        matches!(self.node.kind, NodeKind::Directory { opaque: false }) && !matches!(self.lower, Lower::Different)
    }
}

fn checked_path(parent: &[u8], name: &[u8]) -> Result<Vec<u8>, LayerError> {
    let path = join_path(parent, name);
    if name.starts_with(WHITEOUT_PREFIX) {
        return Err(LayerError::ReservedName { path: shown(&path) });
    }
    if path.len() > MAX_PATH {
        return Err(LayerError::PathTooLong { path: shown(&path), limit: MAX_PATH });
    }
    Ok(path)
}

/// Sockets mean nothing without the process that listens, and whiteouts nothing where there is nothing to hide.
fn candidate(path: Vec<u8>, mut node: Node, below: Option<Found>, times: FileTimes) -> Candidate {
    let fate = match node.kind {
        NodeKind::Socket => Fate::Dropped,
        NodeKind::Whiteout if below.is_none() => Fate::Dropped,
        _ => Fate::Kept,
    };
    if let NodeKind::Directory { opaque } = &mut node.kind {
        *opaque &= below.as_ref().is_some_and(|found| found.level.is_some());
    }
    let lower = match below {
        Some(found) if is_same(&node, &found.node) => {
            Lower::SameMetadata { layer: found.layer, inode: found.node.inode }
        }
        Some(found) if is_moment(&node, &times) && is_same(&at_time_of(&node, &found.node), &found.node) => {
            Lower::SameButMoment
        }
        _ => Lower::Different,
    };
    Candidate { path, node, lower, blake3: None, fate }
}

/// Whether a folder has the time of the step that wrote into it.
fn is_moment(node: &Node, times: &FileTimes) -> bool {
    let is_folder = matches!(node.kind, NodeKind::Directory { .. });
    is_folder && matches!(times, FileTimes::ContentOutside { .. }) && !times.is_content(node.metadata.mtime)
}

fn at_time_of(node: &Node, other: &Node) -> Node {
    let metadata = Metadata { mtime: other.metadata.mtime, ..node.metadata.clone() };
    Node { metadata, ..node.clone() }
}

fn is_same(upper: &Node, lower: &Node) -> bool {
    let same_kind = match (&upper.kind, &lower.kind) {
        // Whether the lower folder hides what lies below itself does not show.
        (NodeKind::Directory { .. }, NodeKind::Directory { .. }) => true,
        (NodeKind::Whiteout, _) => false,
        (upper, lower) => upper == lower,
    };
    same_kind && upper.metadata == lower.metadata
}

/// All names of each node that is not a folder, by the first name. Whiteouts, which overlayfs links to each other, stay
/// out: each is a deletion of its own.
fn link_groups(found: &[Candidate]) -> HashMap<usize, Vec<usize>> {
    let mut first_of = HashMap::new();
    let mut groups: HashMap<usize, Vec<usize>> = HashMap::new();
    for (position, candidate) in found.iter().enumerate() {
        let is_name = !candidate.is_directory() && candidate.node.kind != NodeKind::Whiteout;
        if candidate.fate == Fate::Dropped || !is_name {
            continue;
        }
        let first = match candidate.node.links {
            1 => position,
            _ => *first_of.entry(candidate.node.inode).or_insert(position),
        };
        groups.entry(first).or_default().push(position);
    }
    groups
}

fn index_of(root: LayerEntry, found: Vec<Candidate>) -> Result<LayerIndex, StoreError> {
    let mut entries = Vec::with_capacity(found.len() + 1);
    let mut first_names: HashMap<(u64, u64), u32> = HashMap::new();
    entries.push(root);
    for candidate in found {
        let position = entries.len() as u32;
        let linked = candidate.node.links > 1 && !candidate.is_directory();
        let first = match linked && candidate.node.kind != NodeKind::Whiteout {
            true => *first_names.entry(candidate.node.inode).or_insert(position),
            false => position,
        };
        entries.push(entry_of(candidate, (first != position).then_some(first)));
    }
    Ok(LayerIndex::new(entries)?)
}

fn entry_of(candidate: Candidate, link: Option<u32>) -> LayerEntry {
    let implied = candidate.is_implied();
    let kind = match candidate.node.kind {
        NodeKind::File { size } => {
            EntryKind::File { size, blake3: candidate.blake3.expect("every file that is kept was hashed") }
        }
        NodeKind::Directory { opaque } => EntryKind::Directory { opaque, implied },
        NodeKind::Symlink { target } => EntryKind::Symlink { target },
        NodeKind::CharDevice { major, minor } => EntryKind::CharDevice { major, minor },
        NodeKind::BlockDevice { major, minor } => EntryKind::BlockDevice { major, minor },
        NodeKind::Fifo => EntryKind::Fifo,
        NodeKind::Whiteout => EntryKind::Whiteout,
        NodeKind::Socket => unreachable!("sockets are dropped"),
    };
    LayerEntry { path: candidate.path, kind, metadata: candidate.node.metadata, link }
}

/// The length and the hash of a file that should have `size` bytes.
pub(super) fn hash_file(mut file: File, size: u64) -> io::Result<(u64, [u8; 32])> {
    let mut hasher = blake3::Hasher::new();
    // Most files are small, and a large buffer for each would take longer to make than they to hash.
    let mut buffer = vec![0; BUFFER.min(usize::try_from(size).unwrap_or(BUFFER)).max(512)];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hasher.count(), *hasher.finalize().as_bytes())),
            count => hasher.update(&buffer[..count]),
        };
    }
}

fn equal_bytes(mut a: impl Read, mut b: impl Read) -> io::Result<bool> {
    let (mut left, mut right) = (vec![0; BUFFER], vec![0; BUFFER]);
    loop {
        let (filled, other) = (fill(&mut a, &mut left)?, fill(&mut b, &mut right)?);
        if left[..filled] != right[..other] {
            return Ok(false);
        }
        if filled == 0 {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full or the source ends: short reads of two files need not agree.
pub(super) fn fill(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
