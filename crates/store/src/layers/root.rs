//! The tree of one layer as a stack sees it, and what the process remembers of such trees.

use super::apply::default_root;
use super::entry::split_path;
use super::fold::FoldFolder;
use super::folder::{self, Node, NodeKind};
use super::index::LayerIndex;
use super::listed::{EntryList, ListedTree, PackedList};
use super::owners::Owners;
use super::xattr::Markers;
use crate::{ContentDigest, LayerId, StoreError};
use forge_image::Reference;
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Root folders with more names are asked anew each time.
const MOST_NAMES: usize = 4096;

/// What is in a root folder, whiteouts too, sorted; `None` where it may change or is long.
type Names = Option<Arc<[Vec<u8>]>>;

/// The tree of one layer, or what stands for it.
pub(super) struct Root {
    place: Arc<Place>,
    kind: RootKind,
    /// Opened when something in it is read: of a long stack most trees say nothing of most paths.
    folder: OnceLock<OwnedFd>,
    /// That of its place: a high stack asks all of its trees for each name, and most have nothing of it.
    marks: u64,
}

/// Devices that only the index of a layer has, by their paths.
pub(super) type Devices = BTreeMap<Vec<u8>, Node>;

static NO_DEVICES: Devices = BTreeMap::new();

/// What of a tree is the same for everybody who looks at it.
pub(super) struct Place {
    path: PathBuf,
    names: Names,
    /// One bit for each name, or all bits.
    marks: u64,
    /// Read where they are asked for.
    devices: OnceLock<Devices>,
    /// Removed with this, where the tree is not that of a layer.
    _made: Option<FoldFolder>,
}

impl Place {
    fn new(path: PathBuf, names: Names) -> Self {
        let marks = names.as_ref().map_or(u64::MAX, |names| names.iter().fold(0, |marks, name| marks | mark(name)));
        Self { path, names, marks, devices: OnceLock::new(), _made: None }
    }

    /// That of a tree which does not change any more.
    pub(super) fn of_folder(path: PathBuf, folder: &OwnedFd) -> Result<Self, StoreError> {
        let names = folder::names(folder).map_err(StoreError::os("read", &path))?;
        let names = (names.len() <= MOST_NAMES).then(|| Arc::from(names));
        Ok(Self::new(path, names))
    }

    /// The same of a tree that is removed when nobody needs it any more.
    pub(super) fn going_with(self, made: FoldFolder) -> Self {
        Self { _made: Some(made), ..self }
    }
}

/// The bit that a name has in `marks`: one of 64, by FNV-1a.
fn mark(name: &[u8]) -> u64 {
    let hash = name
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    1 << (hash >> 58)
}

enum RootKind {
    /// There is no index: it may change, or is several layers in one.
    Plain,
    /// It is a layer's, whose index is read when it is first asked for.
    Layer(OnceLock<LayerIndex>),
    /// There is only an index and a pack.
    Listed(Box<ListedTree>),
    /// Nothing of it is here.
    Absent(Box<AbsentLayer>),
}

/// A layer that lies in a registry.
pub(super) struct AbsentLayer {
    pub layer: LayerId,
    pub repository: Reference,
    /// What its table of contents said, if it was asked.
    pub told: Option<Arc<EntryList>>,
}

impl AbsentLayer {
    fn error(&self) -> StoreError {
        StoreError::LayerAbsent { layer: self.layer, repository: Box::new(self.repository.clone()) }
    }
}

impl Root {
    fn at(place: Arc<Place>, kind: RootKind) -> Self {
        Self { marks: place.marks, place, kind, folder: OnceLock::new() }
    }

    fn of_layer(place: Arc<Place>) -> Self {
        Self::at(place, RootKind::Layer(OnceLock::new()))
    }

    /// Several layers in one tree.
    pub(super) fn of_fold(place: Arc<Place>) -> Self {
        Self::at(place, RootKind::Plain)
    }

    fn nameless(path: PathBuf, kind: RootKind) -> Self {
        Self::at(Arc::new(Place::new(path, None)), kind)
    }

    /// A layer without a tree; the path is where its tree would be.
    pub(super) fn of_list(path: PathBuf, list: ListedTree) -> Self {
        Self::nameless(path, RootKind::Listed(Box::new(list)))
    }

    /// A layer that is not here; the path is where its tree would be.
    pub(super) fn of_absent(path: PathBuf, absent: AbsentLayer) -> Self {
        Self::nameless(path, RootKind::Absent(Box::new(absent)))
    }

    /// What was just unpacked, with its index.
    pub(super) fn of_unpacked(path: PathBuf, index: LayerIndex) -> Self {
        Self::nameless(path, RootKind::Layer(OnceLock::from(index)))
    }

    /// The layer's index instead of a tree, where that is all there is.
    pub(super) fn listed(&self) -> Option<&ListedTree> {
        match &self.kind {
            RootKind::Listed(list) => Some(list),
            RootKind::Plain | RootKind::Layer(_) | RootKind::Absent(_) => None,
        }
    }

    /// The entries, where they are read instead of a tree.
    pub(super) fn entries(&self) -> Option<&EntryList> {
        match &self.kind {
            RootKind::Listed(list) => Some(list.entries()),
            RootKind::Absent(absent) => absent.told.as_deref(),
            RootKind::Plain | RootKind::Layer(_) => None,
        }
    }

    /// That the layer is here.
    pub(super) fn require(&self) -> Result<(), StoreError> {
        match &self.kind {
            RootKind::Absent(absent) => Err(absent.error()),
            RootKind::Plain | RootKind::Layer(_) | RootKind::Listed(_) => Ok(()),
        }
    }

    /// The index of the layer; `None` where there is none.
    pub(super) fn index(&self) -> Result<Option<&LayerIndex>, StoreError> {
        match &self.kind {
            RootKind::Plain => Ok(None),
            RootKind::Absent(absent) => Err(absent.error()),
            RootKind::Listed(list) => Ok(Some(list.index())),
            RootKind::Layer(index) => {
                if index.get().is_none() {
                    let path = self.place.path.with_file_name("index");
                    let bytes = std::fs::read(&path).map_err(StoreError::io("read", &path))?;
                    // Another thread may have been faster, and read the same.
                    drop(index.set(LayerIndex::decode(&bytes)?));
                }
                Ok(index.get())
            }
        }
    }

    /// What the tree of a layer lacks, since nobody can make devices in a user namespace.
    pub(super) fn devices(&self) -> Result<&Devices, StoreError> {
        let RootKind::Layer(_) = self.kind else { return Ok(&NO_DEVICES) };
        if Owners::of_this_process().are_all() {
            return Ok(&NO_DEVICES);
        }
        if self.place.devices.get().is_none() {
            let devices = self.index()?.map(LayerIndex::devices).unwrap_or_default();
            // Another thread may have been faster, and found the same.
            drop(self.place.devices.set(devices));
        }
        Ok(self.place.devices.get().expect("set above, and never taken"))
    }

    /// Where the tree lies, which is made where it is not there yet.
    pub(super) fn tree(&self) -> Result<&Path, StoreError> {
        match &self.kind {
            RootKind::Listed(list) => list.tree(),
            RootKind::Plain | RootKind::Layer(_) => Ok(&self.place.path),
            RootKind::Absent(absent) => Err(absent.error()),
        }
    }

    /// Opens one of its folders.
    pub(super) fn open_folder(&self, path: &[u8]) -> Result<OwnedFd, StoreError> {
        let error = StoreError::os("open", self.place.path.join(OsStr::from_bytes(path)));
        folder::open_folder(self.folder()?, path).map_err(error)
    }

    /// What the root folder itself is. That of a layer of which nothing is known is taken for one like all others.
    pub(super) fn node(&self, markers: Markers) -> Result<Node, StoreError> {
        match (self.entries(), &self.kind) {
            (Some(list), _) => Ok(list.node(b"").expect("every index has the root")),
            (None, RootKind::Absent(_)) => {
                let kind = NodeKind::Directory { opaque: false };
                Ok(Node { kind, metadata: default_root(), inode: (0, 0), links: 1 })
            }
            _ => folder::read_root(self.folder()?, markers).map_err(StoreError::os("read", &self.place.path)),
        }
    }

    /// Opens a regular file.
    pub(super) fn open_file(&self, path: &[u8]) -> Result<Option<File>, StoreError> {
        let Some((parent, name)) = split_path(path) else { return Ok(None) };
        if let Some(list) = self.listed() {
            return list.open(path).map(Some);
        }
        let error = || StoreError::os("open", self.place.path.join(OsStr::from_bytes(path)));
        let parent = folder::open_folder(self.folder()?, parent).map_err(error())?;
        Ok(Some(folder::open_file(parent.as_fd(), name).map_err(error())?.into()))
    }

    /// A tree that may change.
    pub(super) fn open(path: PathBuf) -> Result<Self, StoreError> {
        let folder = folder::open_root(&path).map_err(StoreError::os("open", &path))?;
        Ok(Self { folder: OnceLock::from(folder), ..Self::nameless(path, RootKind::Plain) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.place.path
    }

    pub(super) fn folder(&self) -> Result<BorrowedFd<'_>, StoreError> {
        self.require()?;
        if self.folder.get().is_none() {
            let opened = folder::open_root(&self.place.path).map_err(StoreError::os("open", &self.place.path))?;
            // Another thread may have been faster; its folder is as good.
            drop(self.folder.set(opened));
        }
        Ok(self.folder.get().expect("set above, and never taken").as_fd())
    }

    /// Whether it is certain that the root folder has nothing of that name.
    pub(super) fn lacks(&self, name: &[u8]) -> bool {
        if self.marks & mark(name) == 0 {
            return true;
        }
        self.place.names.as_ref().is_some_and(|names| names.binary_search_by(|known| known[..].cmp(name)).is_err())
    }
}

/// As many lists are remembered, and with as many entries in all (some 20 MB); they are read again when they are needed
/// again. Fewer lists than a high stack has layers would be read again for each step of a chain.
const MOST_LISTS: usize = 2048;
const MOST_LISTED: usize = 65_536;

/// The same for what tables of contents said, which a large image needs all of at once (some 300 MB).
const MOST_TOLD: usize = 1 << 20;

/// After so many lists the files of all of them are closed: a process may have no more than 1,024 open.
const MOST_OPEN: usize = 32;

/// As many layers are remembered otherwise: a process that serves many builds must not grow with each.
const MOST_LAYERS: usize = 16_384;

/// What this process knows of layers. None of it ever changes: ids are random, and a layer that is made anew has another.
#[derive(Default)]
pub(crate) struct Remembered {
    places: Mutex<HashMap<LayerId, Arc<Place>>>,
    lists: Mutex<Lists>,
    contents: Mutex<HashMap<LayerId, ContentDigest>>,
    /// What tables of contents of absent layers said, and the number of all their entries.
    told: Mutex<(HashMap<LayerId, Arc<EntryList>>, usize)>,
}

#[derive(Default)]
struct Lists {
    by_layer: HashMap<LayerId, Arc<PackedList>>,
    entries: usize,
}

impl Remembered {
    /// A layer's tree, if it was looked for before and there was one.
    pub(super) fn known_root(&self, id: &LayerId) -> Option<Root> {
        lock(&self.places).get(id).cloned().map(Root::of_layer)
    }

    /// The tree at a path, which must be that layer's; `None` where there is none.
    pub(super) fn root(&self, id: &LayerId, path: PathBuf) -> Result<Option<Root>, StoreError> {
        let folder = match folder::open_root(&path) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(StoreError::os("open", &path)(errno)),
        };
        let place = Arc::new(Place::of_folder(path, &folder)?);
        bounded(&mut lock(&self.places), MOST_LAYERS).insert(*id, place.clone());
        // Not kept open: a stack may be higher than a process may have descriptors.
        Ok(Some(Root::of_layer(place)))
    }

    /// The list of a packed layer, read by `open` the first time.
    pub(super) fn list(
        &self,
        id: &LayerId,
        open: impl FnOnce() -> Result<PackedList, StoreError>,
    ) -> Result<Arc<PackedList>, StoreError> {
        if let Some(list) = self.known_list(id) {
            return Ok(list);
        }
        let list = Arc::new(open()?);
        let mut lists = lock(&self.lists);
        lists.entries += list.len();
        if lists.by_layer.len() >= MOST_LISTS || lists.entries > MOST_LISTED {
            *lists = Lists { entries: list.len(), ..Lists::default() };
        }
        if lists.by_layer.len() % MOST_OPEN == MOST_OPEN - 1 {
            lists.by_layer.values().for_each(|list| list.close_files());
        }
        Ok(lists.by_layer.entry(*id).or_insert(list).clone())
    }

    /// The list of a packed layer, if it was read before.
    pub(super) fn known_list(&self, id: &LayerId) -> Option<Arc<PackedList>> {
        lock(&self.lists).by_layer.get(id).cloned()
    }

    /// What the table of contents of an absent layer said, if it was asked.
    pub(super) fn told(&self, id: &LayerId) -> Option<Arc<EntryList>> {
        lock(&self.told).0.get(id).cloned()
    }

    /// Remembers what a table of contents said.
    pub(super) fn tell(&self, id: &LayerId, list: EntryList) {
        let mut told = lock(&self.told);
        let (known, entries) = &mut *told;
        *entries += list.len();
        if *entries > MOST_TOLD {
            known.clear();
            *entries = list.len();
        }
        known.insert(*id, Arc::new(list));
    }

    pub(crate) fn content(&self, id: &LayerId) -> Option<ContentDigest> {
        lock(&self.contents).get(id).copied()
    }

    pub(crate) fn remember_content(&self, id: &LayerId, content: ContentDigest) {
        bounded(&mut lock(&self.contents), MOST_LAYERS).insert(*id, content);
    }
}

/// A map with room for one more: everything is forgotten where it is full, which costs a build little and needs no order.
fn bounded<T>(map: &mut HashMap<LayerId, T>, most: usize) -> &mut HashMap<LayerId, T> {
    if map.len() >= most {
        map.clear();
    }
    map
}

/// A panic elsewhere leaves these maps whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_never_hide_a_name() {
        let names: Vec<Vec<u8>> = (0..500).map(|number| format!("name-{number:03}").into_bytes()).collect();
        for known in names.chunks(5) {
            let place = Arc::new(Place::new(PathBuf::from("/t"), Some(Arc::from(known.to_vec()))));
            let root = Root::of_layer(place);
            names.iter().for_each(|name| assert_eq!(root.lacks(name), !known.contains(name)));
        }
        let changing = Root::nameless(PathBuf::from("/t"), RootKind::Plain);
        assert!(!changing.lacks(b"anything"));
    }
}
