//! High stacks: overlayfs takes 500 layers, and every one of them costs each mount and each look-up of a name.
//!
//! From [`HIGH`] layers on, neighbours are mounted as one tree, in overlayfs's own format, whose files are links to theirs:
//! [`BLOCK`] of them, `BLOCK`², and so on, counted from the lowest layer, so that blocks stay as they are while a stack
//! grows and each layer is linked once for each size. A process that begins with a high stack makes one of all of it.
//! Such a tree is made once for a build, in the scratch folder of its process; it is no layer and has no record.

use super::entry::{EntryKind, LayerEntry, split_path};
use super::restack::{finish_folder, link_entry, within};
use super::root::{Place, Root};
use super::tree::MergedTree;
use super::xattr::Markers;
use super::{LayerIndex, Layers, folder};
use crate::opened::Opened;
use crate::removal::remove_tree;
use crate::{LayerId, StoreError};
use rayon::prelude::*;
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Stacks up to this height are mounted as they are.
const HIGH: usize = 16;
/// How many layers, or blocks of layers, become one tree.
const BLOCK: usize = 8;
/// A layer with more entries than this is mounted by itself as long as there is room: each entry is a link to make.
const THIN: usize = 256;
/// As many layers are linked while a thread begins and ends.
const WORTH_A_THREAD: usize = 64;
/// What Linux before 6.7 takes of an overlay, whose numbers of descriptors have to fit into 255 bytes: with more, fat layers are
/// folded too.
const CROWDED: usize = 60;

/// The blocks that were folded.
#[derive(Default)]
pub(crate) struct Folds(Mutex<BlocksByLayer>);

/// Blocks by their lowest layers.
type BlocksByLayer = HashMap<LayerId, Vec<Block>>;

/// Neighbours in a stack.
struct Block {
    layers: Vec<LayerId>,
    /// Whether fat layers are folded too.
    fat_too: bool,
    /// The trees to mount for them, top-most first.
    mounted: Vec<Mounted>,
}

impl Folds {
    /// Lets go of what nobody mounts or reads just now. Files of layers that are removed stay on the disk as long as a tree
    /// has links to them.
    pub(crate) fn forget(&self) {
        let mut folds = lock(&self.0);
        let is_unused = |block: &mut Block| !block.mounted.iter().any(Mounted::is_used);
        let unused: Vec<Block> = folds.values_mut().flat_map(|blocks| blocks.extract_if(.., is_unused)).collect();
        folds.retain(|_, blocks| !blocks.is_empty());
        drop(folds);
        drop(unused);
    }
}

/// The folder of a tree that was made of several layers. It goes when nobody mounts or reads the tree any more.
pub(super) struct FoldFolder {
    path: PathBuf,
    opened: Weak<Opened>,
}

impl Drop for FoldFolder {
    fn drop(&mut self) {
        // Without the store it has gone with the owner's folder.
        if let Some(opened) = self.opened.upgrade() {
            opened.background().remove(std::mem::take(&mut self.path));
        }
    }
}

/// The trees to mount for a stack of layers, top-most first. They stay as long as this does.
pub struct LowerDirs {
    paths: Vec<PathBuf>,
    tree: MergedTree,
}

impl Deref for LowerDirs {
    type Target = [PathBuf];
    fn deref(&self) -> &[PathBuf] {
        &self.paths
    }
}

impl LowerDirs {
    pub(super) fn new(tree: MergedTree) -> Result<Self, StoreError> {
        Ok(Self { paths: tree.paths()?, tree })
    }

    /// What they show.
    pub(super) fn tree(&self) -> &MergedTree {
        &self.tree
    }
}

/// One of the trees that a stack is mounted from.
#[derive(Clone)]
pub(super) enum Mounted {
    /// That of one layer.
    Layer(LayerId),
    /// That of several neighbours.
    Fold(Arc<Place>),
}

impl Mounted {
    /// Whether anybody but [`Folds`] has it.
    fn is_used(&self) -> bool {
        matches!(self, Self::Fold(place) if Arc::strong_count(place) > 1)
    }
}

impl Layers {
    /// What to mount for a stack, given lowest first, top-most first.
    pub(super) fn mounted(&self, layers: &[LayerId]) -> Result<Vec<Mounted>, StoreError> {
        if layers.len() <= HIGH {
            return Ok(layers.iter().rev().copied().map(Mounted::Layer).collect());
        }
        let mounted = self.folded(layers, false)?;
        if mounted.len() <= CROWDED { Ok(mounted) } else { self.folded(layers, true) }
    }

    /// What is mounted, for reading.
    pub(super) fn mounted_tree(&self, mounted: &[Mounted]) -> Result<MergedTree, StoreError> {
        let root = |mounted: &Mounted| match mounted {
            Mounted::Layer(id) => self.root(id).map(Arc::new),
            Mounted::Fold(place) => Ok(Arc::new(Root::of_fold(place.clone()))),
        };
        Ok(MergedTree::of(mounted.iter().map(root).collect::<Result<_, _>>()?))
    }

    fn folded(&self, layers: &[LayerId], fat_too: bool) -> Result<Vec<Mounted>, StoreError> {
        // Whoever needs the same blocks waits for them.
        let mut folds = lock(&self.opened.folds().0);
        let known = |rest: &[LayerId]| find(&folds, rest, fat_too).map(|block| block.layers.len());
        let blocks = blocks(layers, known);
        let missing = blocks.iter().filter(|block| block.len() > 1 && known(block) != Some(block.len()));
        let missing: Vec<&[LayerId]> = missing.copied().collect();
        let fold = |layers: &[LayerId]| -> Result<Block, StoreError> {
            Ok(Block { layers: layers.to_vec(), fat_too, mounted: self.fold_block(layers, fat_too)? })
        };
        let made: Vec<Block> = match missing.as_slice() {
            // No thread pool is started for what most stacks need.
            few @ ([] | [_]) => few.iter().map(|block| fold(block)).collect::<Result<_, _>>()?,
            // What runs beside them never asks for a stack, and so does not wait for this lock.
            several => several.par_iter().map(|block| fold(block)).collect::<Result<_, _>>()?,
        };
        made.into_iter().for_each(|block| folds.entry(block.layers[0]).or_default().push(block));
        let mounted = |block: &[LayerId]| match find(&folds, block, fat_too).filter(|_| block.len() > 1) {
            Some(block) => block.mounted.clone(),
            None => block.iter().rev().copied().map(Mounted::Layer).collect(),
        };
        Ok(blocks.into_iter().rev().flat_map(mounted).collect())
    }

    fn fold_block(&self, block: &[LayerId], fat_too: bool) -> Result<Vec<Mounted>, StoreError> {
        let mut mounted = Vec::new();
        let mut thin = Vec::new();
        for id in block {
            let index = self.index(id)?;
            if index.entries().len() > THIN && !fat_too {
                self.end_run(&mut thin, &mut mounted)?;
                mounted.push(Mounted::Layer(*id));
            } else {
                thin.push((*id, index));
            }
        }
        self.end_run(&mut thin, &mut mounted)?;
        mounted.reverse();
        Ok(mounted)
    }

    fn end_run(&self, run: &mut Vec<(LayerId, LayerIndex)>, mounted: &mut Vec<Mounted>) -> Result<(), StoreError> {
        match run.as_slice() {
            [] => {}
            [(alone, _)] => mounted.push(Mounted::Layer(*alone)),
            _ => mounted.push(Mounted::Fold(self.fold(run)?)),
        }
        run.clear();
        Ok(())
    }

    /// Makes one tree of several, given lowest first.
    fn fold(&self, layers: &[(LayerId, LayerIndex)]) -> Result<Arc<Place>, StoreError> {
        let path = self.opened.scratch_path("fold")?;
        crate::scratch::create_private(&path)?;
        let made = FoldFolder { path: path.clone(), opened: Arc::downgrade(&self.opened) };
        let target = folder::open_root(&path).map_err(StoreError::os("open", &path))?;
        let markers = Markers::of(&path);
        let mut fold = Fold { path, target, markers, folders: BTreeMap::new() };
        let mut top = None;
        for (id, index) in layers {
            let source = self.open_tree(id)?;
            index.entries().iter().try_for_each(|entry| fold.put(&source, entry))?;
            top = Some(source);
        }
        top.iter().try_for_each(|top| fold.date_root(top))?;
        Ok(Arc::new(fold.finish()?.going_with(made)))
    }

    fn open_tree(&self, id: &LayerId) -> Result<OwnedFd, StoreError> {
        let path = self.tree_folder(id);
        match folder::open_root(&path) {
            // It is packed, or not here.
            Err(Errno::NOENT) => folder::open_root(&self.tree_path(id)?),
            opened => opened,
        }
        .map_err(StoreError::os("open", path))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The highest block that is known and that a stack begins with.
fn find<'f>(folds: &'f BlocksByLayer, stack: &[LayerId], fat_too: bool) -> Option<&'f Block> {
    let blocks = folds.get(stack.first()?)?.iter();
    let fitting = blocks.filter(|block| block.fat_too == fat_too && stack.starts_with(&block.layers));
    fitting.max_by_key(|block| block.layers.len())
}

/// The blocks of a stack, lowest first: neighbours that become, or are, one tree, and layers that are mounted by themselves.
/// `known` says how high the tree is that a stack could begin with.
fn blocks(stack: &[LayerId], known: impl Fn(&[LayerId]) -> Option<usize>) -> Vec<&[LayerId]> {
    if known(stack).is_none() {
        // Where everything has to be made, there is one tree, or one for each processor.
        let (complete, above) = stack.split_at(stack.len() / BLOCK * BLOCK);
        let parts = match complete.len() / WORTH_A_THREAD {
            0 | 1 => 1,
            most => most.min(rayon::current_num_threads()),
        };
        let size = complete.len().div_ceil(parts).next_multiple_of(BLOCK);
        return complete.chunks(size).chain(above.chunks(1)).collect();
    }
    let (mut rest, mut blocks) = (stack, Vec::new());
    while !rest.is_empty() {
        // One that is known will do until a regular one would be so much higher.
        let size = known(rest).filter(|known| known * BLOCK > rest.len()).unwrap_or(largest_block(rest.len()));
        let (block, above) = rest.split_at(size);
        blocks.push(block);
        rest = above;
    }
    blocks
}

/// The largest power of [`BLOCK`] that a count holds.
fn largest_block(count: usize) -> usize {
    std::iter::successors(Some(1), |size| Some(size * BLOCK)).take_while(|size| *size <= count).last().unwrap_or(1)
}

/// A tree in the making.
struct Fold {
    path: PathBuf,
    target: OwnedFd,
    markers: Markers,
    /// What became of each folder so far.
    folders: BTreeMap<Vec<u8>, LayerEntry>,
}

impl Fold {
    /// Puts an entry over what is there, as overlayfs would show it.
    fn put(&mut self, source: &OwnedFd, entry: &LayerEntry) -> Result<(), StoreError> {
        let EntryKind::Directory { opaque, .. } = entry.kind else {
            // Most files are new, and nothing has to be looked for. Devices may have no node, and hide what is there all the same.
            let linked = match entry.kind {
                EntryKind::File { .. } => link_entry(source, &self.target, entry, self.markers),
                _ => Err(Errno::EXIST),
            };
            if linked != Err(Errno::EXIST) {
                return linked.map_err(self.error(&entry.path));
            }
            self.clear(&entry.path)?;
            return link_entry(source, &self.target, entry, self.markers).map_err(self.error(&entry.path));
        };
        let before = self.folders.get(&entry.path);
        let hid = before.is_some_and(|before| matches!(before.kind, EntryKind::Directory { opaque: true, .. }));
        let mut hides = opaque;
        if opaque || before.is_none() {
            // A deletion or a file that was there hides what lies below all of these trees.
            hides |= hid | self.clear(&entry.path)?;
            if !entry.path.is_empty() {
                link_entry(source, &self.target, entry, self.markers).map_err(self.error(&entry.path))?;
            }
        }
        let kind = EntryKind::Directory { opaque: hides | hid, implied: false };
        self.folders.insert(entry.path.clone(), LayerEntry { kind, ..entry.clone() });
        Ok(())
    }

    /// Gives the root the time that a layer's has: where nothing else of it differs, its index does not say.
    fn date_root(&mut self, source: &OwnedFd) -> Result<(), StoreError> {
        let node = folder::read_root(source.as_fd(), self.markers).map_err(self.error(b""))?;
        if let Some(root) = self.folders.get_mut(&b""[..]) {
            root.metadata.mtime = node.metadata.mtime;
        }
        Ok(())
    }

    /// Takes away what is at a path; says whether there was something.
    fn clear(&mut self, path: &[u8]) -> Result<bool, StoreError> {
        let Some((parent, name)) = split_path(path) else { return Ok(false) };
        let inside = [path, b"/"].concat();
        self.folders.retain(|folder, _| folder != path && !folder.starts_with(&inside));
        let name = OsStr::from_bytes(name);
        // A folder in the place is left for the path below.
        let removed = within(&self.target, parent, |folder| {
            let found = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_folder = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
            if !is_folder {
                rustix::fs::unlinkat(folder, name, AtFlags::empty())?;
            }
            Ok(!is_folder)
        });
        match removed {
            Ok(true) => {}
            Ok(false) => remove_tree(&self.path.join(OsStr::from_bytes(parent)), name)?,
            Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(self.error(path)(errno)),
        }
        Ok(true)
    }

    /// Gives every folder the metadata that shows, the inner ones first.
    fn finish(self) -> Result<Place, StoreError> {
        for entry in self.folders.values().rev() {
            finish_folder(&self.target, entry, self.markers).map_err(self.error(&entry.path))?;
        }
        Place::of_folder(self.path, &self.target)
    }

    fn error(&self, path: &[u8]) -> impl FnOnce(Errno) -> StoreError {
        StoreError::os("fold", Path::join(&self.path, OsStr::from_bytes(path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{ActiveLayer, TreeEntry};
    use crate::{Lease, Store};
    use std::fs;

    /// Everything that a stack shows but inodes, which links of links keep and copies do not.
    fn shown(tree: &MergedTree) -> Vec<String> {
        let line = |entry: &TreeEntry| format!("{:?} {:?} {:?}", entry.path, entry.kind, entry.metadata());
        let mut lines = vec![line(&tree.lookup(Path::new("/")).unwrap().unwrap())];
        let mut todo = vec![tree.children(Path::new("/")).unwrap()];
        while let Some(entries) = todo.pop() {
            lines.extend(entries.iter().map(line));
            let inner = entries.iter().filter_map(TreeEntry::folder);
            todo.extend(inner.map(|folder| tree.children_of(&folder).unwrap()));
        }
        lines
    }

    /// One change, chosen by a number: a file written, a file or folder deleted, or a folder made anew.
    fn change(active: &ActiveLayer, choice: u64) {
        let (folder, file) = (format!("d{}", choice % 3), format!("f{}", choice / 3 % 3));
        let (upper, inside) = (active.upper(), active.upper().join(&folder));
        let open = |path: &Path| fs::File::open(path).unwrap();
        let is_there = |path: &str| active.lower().lookup_physical(path.as_bytes()).unwrap().is_some();
        match choice / 9 % 8 {
            0 if is_there(&folder) => active.put_whiteout(open(upper).as_fd(), OsStr::new(&folder)).unwrap(),
            1 => {
                fs::create_dir(&inside).unwrap();
                active.make_opaque(open(upper).as_fd(), OsStr::new(&folder)).unwrap();
                fs::write(inside.join(&file), choice.to_string()).unwrap();
            }
            2 => fs::write(&inside, "a file where a folder was").unwrap(),
            3 if is_there(&format!("{folder}/{file}")) => {
                fs::create_dir(&inside).unwrap();
                active.put_whiteout(open(&inside).as_fd(), OsStr::new(&file)).unwrap();
            }
            _ => {
                fs::create_dir(&inside).unwrap();
                fs::write(inside.join(&file), choice.to_string()).unwrap();
                fs::hard_link(inside.join(&file), inside.join("link")).unwrap();
            }
        }
    }

    fn stack(store: &Store, lease: &Lease, height: usize, mut seed: u64) -> Vec<LayerId> {
        let mut stack = Vec::new();
        for _ in 0..height {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let active = store.layers().prepare(&stack).unwrap();
            change(&active, seed >> 33);
            stack.push(store.layers().commit(active, lease).unwrap().id);
        }
        stack
    }

    #[test]
    fn privileged_a_folded_stack_shows_what_its_layers_show() {
        if !rustix::process::geteuid().is_root() {
            return; // only root makes whiteouts with trusted attributes
        }
        for seed in 0..8 {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&folder.path().join("store")).unwrap();
            let lease = store.lease("test").unwrap();
            let stack = stack(&store, &lease, BLOCK * BLOCK + 3 * BLOCK + 5, seed);
            for height in [stack.len(), BLOCK * BLOCK] {
                let active = store.layers().prepare(&stack[..height]).unwrap();
                let dirs = active.lower_dirs().to_vec();
                assert!(dirs.len() < HIGH, "{}", dirs.len());
                let expect = shown(&store.layers().tree(&stack[..height]).unwrap());
                assert_eq!(shown(&MergedTree::new(dirs).unwrap()), expect, "{seed}");
                assert_eq!(shown(active.lower()), expect, "{seed}");
            }
        }
    }

    /// How high the blocks of a stack are, lowest first, where trees of these heights are known from its lowest layer on.
    fn heights(stack: usize, known: &[usize]) -> Vec<usize> {
        let layers: Vec<LayerId> = (0..stack).map(|number| format!("{number:032x}").parse().unwrap()).collect();
        let start = |end: &mut usize, height: &usize| Some(std::mem::replace(end, *end + height));
        let starts: Vec<usize> = known.iter().scan(0, start).collect();
        let find = |rest: &[LayerId]| {
            let place = starts.iter().position(|start| layers[*start..] == *rest)?;
            Some(known[place]).filter(|height| *height <= rest.len())
        };
        blocks(&layers, find).into_iter().map(<[LayerId]>::len).collect()
    }

    #[test]
    fn blocks_grow_with_a_stack() {
        assert_eq!(heights(27, &[]), [24, 1, 1, 1]);
        assert_eq!(heights(28, &[24]), [24, 1, 1, 1, 1]);
        assert_eq!(heights(32, &[24]), [24, 8]);
        assert_eq!(heights(47, &[24, 8]), [24, 8, 8, 1, 1, 1, 1, 1, 1, 1]);
        assert_eq!(heights(88, &[24, 8, 8]), [24, 64]);
        assert_eq!(heights(192, &[24, 64]), [64, 64, 64]);
        assert_eq!(heights(900, &[896]), [896, 1, 1, 1, 1]);
        let cold = heights(900, &[]);
        assert!(cold.len() <= 4 + rayon::current_num_threads() && cold.iter().sum::<usize>() == 900, "{cold:?}");
    }

    #[test]
    fn low_stacks_are_mounted_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let lease = store.lease("test").unwrap();
        let mut stack = Vec::new();
        for _ in 0..=HIGH {
            let active = store.layers().prepare(&stack).unwrap();
            fs::write(active.upper().join(format!("f{}", stack.len())), "x").unwrap();
            stack.push(store.layers().commit(active, &lease).unwrap().id);
        }
        assert_eq!(store.layers().lower_dirs(&stack[..HIGH]).unwrap().len(), HIGH);
        assert_eq!(store.layers().lower_dirs(&stack).unwrap().len(), 1 + 1);
    }

    /// Seen to fail with trees let go of that are in use, and with none let go of at the end of a lease.
    #[test]
    fn a_folded_tree_stays_as_long_as_it_is_used_and_goes_with_the_lease() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let lease = store.lease("test").unwrap();
        let layers = store.layers();
        let mut stack = Vec::new();
        for number in 0..=HIGH {
            let active = layers.prepare(&stack).unwrap();
            fs::write(active.upper().join(format!("f{number}")), "x").unwrap();
            stack.push(layers.commit(active, &lease).unwrap().id);
        }
        let settled = || layers.opened.background().finish();
        let mounted = layers.lower_dirs(&stack).unwrap();
        let fold = mounted.last().unwrap().clone();
        layers.forget_folds();
        settled();
        assert!(fold.join("f0").exists(), "it is mounted");
        assert_eq!(*layers.lower_dirs(&stack).unwrap(), *mounted, "it is not made again");
        drop(mounted);
        drop(lease);
        settled();
        assert!(!fold.exists());
    }
}
