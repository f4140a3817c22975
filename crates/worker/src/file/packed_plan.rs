//! What a layer is to hold that one COPY makes, found out without writing anything.

use super::FileError;
use super::editor::EntryMetadata;
use super::placing::{Place, Placing};
use crate::selection::{SelectedEntry, SelectedRoot};
use crate::source_tree::{SourceEntry, SourceKind, SourceTree};
use forge_store::{
    EntryKind, MergedTree, Metadata, PackWriter, StoreError, TreeEntry, TreeFolder, TreeKind, path_order,
};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

/// Why there is no plan.
pub(super) enum NoPlan {
    /// Something that is rare, and for which the copy is done file by file: in the way of a conflict, of a link, of a
    /// device.
    Unusual,
    Failed(FileError),
}

impl<E: Into<FileError>> From<E> for NoPlan {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// The entries that the layer will have: parents before children, the root first. There may be a million.
pub(super) struct Plan<'a> {
    pub entries: Vec<Planned<'a>>,
    /// The path of each folder, by its number.
    folders: Vec<Vec<u8>>,
}

/// An entry that the layer will have.
pub(super) struct Planned<'a> {
    /// The number of the folder that it is in.
    folder: u32,
    /// Empty for the root.
    name: Cow<'a, [u8]>,
    pub given: Given,
    pub kind: PlannedKind<'a>,
}

/// What [`Metadata`] says, in half of its memory.
pub(super) struct Given {
    mode: u32,
    uid: u32,
    gid: u32,
    nanoseconds: u32,
    seconds: i64,
    #[expect(clippy::box_collection, reason = "few entries have any, and a map is three words")]
    xattrs: Option<Box<BTreeMap<OsString, Vec<u8>>>>,
}

pub(super) enum PlannedKind<'a> {
    /// `number`: that of the folder itself.
    Folder {
        implied: bool,
        number: u32,
    },
    File {
        from: &'a SourceEntry,
    },
    /// A further name of a file, whose first one stands at this position.
    Name {
        first: usize,
    },
    Symlink {
        target: &'a [u8],
    },
}

/// Names like this mean deletions in a layer, and longer paths could not be put back: such a copy fails, in its own words.
const RESERVED: &[u8] = b".wh.";
const MAX_PATH: usize = 4095;

/// What is a folder in the root of every Linux system, or leads to one: a file of that name is a mistake.
const FOLDERS: [&str; 21] = [
    "bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "media", "mnt", "opt", "proc", "root",
    "run", "sbin", "srv", "sys", "tmp", "usr", "var",
];

/// Whether nothing is known of a name in the root folder, and it is not one that may be a folder's: then what is written
/// there takes the place of whatever may be there.
fn is_no_folder(name: &[u8], error: &FileError) -> bool {
    matches!(error.store(), Some(StoreError::LayerAbsent { .. }))
        && !FOLDERS.iter().any(|folder| folder.as_bytes() == name)
}

/// After so many single look-ups in a folder it is listed once.
const LOOK_UPS: usize = 16;

/// Plans what roots of a tree become on the layers below: parents before children, the root first.
///
/// Nothing is planned that would take another thing's place: then the words and the order of the slow way count.
pub(super) fn plan<'a>(
    placing: Placing<'a>,
    from: &'a SourceTree,
    lower: &'a MergedTree,
    roots: &[&'a SelectedRoot],
) -> Result<Plan<'a>, NoPlan> {
    if roots.len() > 1 && !placing.destination_is_folder() {
        return Err(NoPlan::Unusual);
    }
    let expected = roots.iter().map(|root| 1 + root.below.iter().size_hint().0).sum::<usize>();
    // Besides the folders above the destination, which have doubled it otherwise.
    let plan = Plan { entries: Vec::with_capacity(expected + 16), folders: Vec::new() };
    let mut planner = Planner { placing, from, lower, plan, folders: HashMap::new() };
    planner.begin()?;
    for root in roots {
        match root.entry.kind {
            SourceKind::Directory => planner.folder(root)?,
            _ => planner.single(root)?,
        }
    }
    planner.finish()
}

struct Planner<'a> {
    placing: Placing<'a>,
    from: &'a SourceTree,
    lower: &'a MergedTree,
    plan: Plan<'a>,
    /// The destination and its parents, which several roots may share.
    folders: HashMap<Vec<u8>, Folder>,
}

/// A folder that is planned, with what the layers below have in it.
#[derive(Clone)]
struct Folder {
    number: u32,
    path: Vec<u8>,
    below: Below,
}

#[derive(Clone)]
enum Below {
    Nothing,
    /// So many names were looked up.
    Asked(TreeFolder, usize),
    Listed(HashMap<OsString, TreeEntry>),
}

impl<'a> Planner<'a> {
    fn begin(&mut self) -> Result<(), NoPlan> {
        let root = self.lower.lookup(Path::new("/"))?;
        let metadata = root.as_ref().map_or_else(default_root, TreeEntry::metadata);
        let below = Below::of(root.as_ref());
        self.plan.folders.push(Vec::new());
        let kind = PlannedKind::Folder { implied: true, number: 0 };
        self.plan.entries.push(Planned { folder: 0, name: Cow::default(), given: metadata.into(), kind });
        self.folders.insert(Vec::new(), Folder { number: 0, path: Vec::new(), below });
        Ok(())
    }

    /// What is in a folder goes to the destination, which takes the folder's metadata only where it is made now.
    fn folder(&mut self, root: &'a SelectedRoot) -> Result<(), NoPlan> {
        let destination = self.placing.folder_destination(self.lower, root)?;
        let made = self.placing.destination_metadata(root)?;
        let top = self.destination(&destination, &made)?;
        let mut trail = vec![top];
        for selected in root.below.iter() {
            let relative = root.relative(selected);
            trail.truncate(relative.iter().filter(|byte| **byte == b'/').count() + 1);
            let name = relative.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            let parent = trail.last_mut().expect("the destination stays on the trail");
            match selected.entry.kind {
                SourceKind::Directory => {
                    let child = self.child_folder(parent, name, selected)?;
                    trail.push(child);
                }
                _ => self.leaf(parent, name.into(), &selected.entry)?,
            }
        }
        let top = trail.swap_remove(0);
        self.folders.insert(top.path.clone(), top);
        Ok(())
    }

    fn single(&mut self, root: &'a SelectedRoot) -> Result<(), NoPlan> {
        let is_file = matches!(root.entry.kind, SourceKind::File { .. });
        let may_unpack = self.placing.action.unpack_archives && is_file;
        if may_unpack && super::archive::is_archive(self.from.open(&root.entry)?) {
            return Err(NoPlan::Unusual);
        }
        let (folder, name) = match self.placing.single_destination(self.lower)? {
            Place::Within(folder) => (folder, Cow::Borrowed(&root.name[..])),
            Place::Named(folder, name) => (folder, Cow::Owned(name.as_bytes().to_vec())),
        };
        let mut parent = self.destination(&folder, &self.placing.made_on_the_way())?;
        self.leaf(&mut parent, name, &root.entry)?;
        self.folders.insert(parent.path.clone(), parent);
        Ok(())
    }

    /// The folder of a path without links. What is there stays as it is; the last component is `made`, those before it
    /// are made on the way.
    fn destination(&mut self, path: &Path, made: &EntryMetadata) -> Result<Folder, NoPlan> {
        let mut folder = self.folders.get(&b""[..]).expect("the root is planned first").clone();
        let names: Vec<&[u8]> = path.components().filter_map(normal).map(OsStr::as_bytes).collect();
        for (position, name) in names.iter().enumerate() {
            let child = join(&folder.path, name);
            if let Some(known) = self.folders.get(&child) {
                folder = known.clone();
                continue;
            }
            let on_the_way = self.placing.made_on_the_way();
            let missing = if position + 1 == names.len() { made } else { &on_the_way };
            let found = self.look_up(&mut folder, name)?;
            let next = match found {
                None => self.push_folder(&folder, name, metadata_of(missing), false, Below::Nothing)?,
                Some(entry) if entry.kind == TreeKind::Directory => {
                    self.push_folder(&folder, name, entry.metadata(), true, Below::of(Some(&entry)))?
                }
                Some(_) => return Err(NoPlan::Unusual),
            };
            self.folders.insert(next.path.clone(), next.clone());
            folder = next;
        }
        Ok(folder)
    }

    /// A folder that is here for the sake of what is in it gives an existing one its permission bits alone.
    fn child_folder(&mut self, parent: &mut Folder, name: &[u8], selected: &SelectedEntry) -> Result<Folder, NoPlan> {
        let found = self.look_up(parent, name)?;
        if found.as_ref().is_some_and(|found| found.kind != TreeKind::Directory) {
            return Err(NoPlan::Unusual);
        }
        let copied = metadata_of(&self.placing.metadata(&selected.entry)?);
        let metadata = match &found {
            Some(found) if selected.on_the_way => {
                if found.mode != selected.entry.mode {
                    self.lower.require(found)?;
                }
                Metadata { mode: selected.entry.mode, ..found.metadata() }
            }
            _ => copied,
        };
        let implied = match &found {
            Some(found) => self.is_as(found, &metadata)?,
            None => false,
        };
        let below = Below::of(found.as_ref());
        self.push_folder(parent, name, metadata, implied, below)
    }

    fn push_folder(
        &mut self,
        parent: &Folder,
        name: &[u8],
        metadata: Metadata,
        implied: bool,
        below: Below,
    ) -> Result<Folder, NoPlan> {
        let path = join(&parent.path, name);
        let number = u32::try_from(self.plan.folders.len()).map_err(|_| NoPlan::Unusual)?;
        self.plan.folders.push(path.clone());
        self.push(parent, name.to_vec().into(), metadata, PlannedKind::Folder { implied, number })?;
        Ok(Folder { number, path, below })
    }

    /// Something that is not a folder.
    fn leaf(&mut self, parent: &mut Folder, name: Cow<'a, [u8]>, entry: &'a SourceEntry) -> Result<(), NoPlan> {
        let found = match self.look_up(parent, &name) {
            Err(NoPlan::Failed(error)) if parent.path.is_empty() && is_no_folder(&name, &error) => None,
            found => found?,
        };
        let kind = match &entry.kind {
            SourceKind::File { .. } => PlannedKind::File { from: entry },
            SourceKind::Symlink { target } => PlannedKind::Symlink { target },
            // Never selected.
            SourceKind::Other => return Ok(()),
            SourceKind::Node { .. } | SourceKind::Directory => return Err(NoPlan::Unusual),
        };
        let mut metadata = metadata_of(&self.placing.metadata(entry)?);
        if let PlannedKind::Symlink { .. } = kind {
            // What the kernel says of every link; it can have nothing else.
            metadata = Metadata { mode: 0o777, xattrs: Default::default(), ..metadata };
        }
        if let Some(found) = found {
            // A folder is not replaced, and what is there already is left out: both as the slow way has it.
            if found.kind == TreeKind::Directory {
                return Err(NoPlan::Unusual);
            }
            // But not in the root folder: there it must be the same whether or not the base is here to be looked at.
            if !parent.path.is_empty() && self.says_the_same(&found, entry, &metadata)? {
                return Ok(());
            }
        }
        self.push(parent, name, metadata, kind)
    }

    /// Whether something that is there has that metadata.
    fn is_as(&self, found: &TreeEntry, metadata: &Metadata) -> Result<bool, NoPlan> {
        let (there, but_time) = (found.metadata(), Metadata { mtime: found.mtime, ..metadata.clone() });
        if there == but_time && there.mtime.0.abs_diff(metadata.mtime.0) <= 1 {
            // Of what is only told of, the time is known to the second.
            self.lower.require(found)?;
        }
        Ok(there == *metadata)
    }

    /// Whether the layers below have the same thing there, by metadata and bytes.
    fn says_the_same(&self, found: &TreeEntry, entry: &SourceEntry, metadata: &Metadata) -> Result<bool, NoPlan> {
        if !self.is_as(found, metadata)? {
            return Ok(false);
        }
        match (&found.kind, &entry.kind) {
            (TreeKind::Symlink { target: there }, SourceKind::Symlink { target }) => Ok(there.as_bytes() == target),
            (TreeKind::File { size: there }, SourceKind::File { size }) if there == size => {
                // The names of a linked file stay or go together.
                if found.links > 1 || entry.link_group().is_some() {
                    return Err(NoPlan::Unusual);
                }
                let there = self.lower.hash(&found.file())?.ok_or(NoPlan::Unusual)?;
                Ok(self.hash(entry)?.ok_or(NoPlan::Unusual)? == there)
            }
            _ => Ok(false),
        }
    }

    fn hash(&self, entry: &SourceEntry) -> Result<Option<[u8; 32]>, NoPlan> {
        let known = match entry.bytes {
            Some(hash) => Some(hash),
            None => self.from.known_hash(entry)?,
        };
        Ok(known.map(|hash| *hash.as_bytes()))
    }

    fn look_up(&self, folder: &mut Folder, name: &[u8]) -> Result<Option<TreeEntry>, NoPlan> {
        let name = OsStr::from_bytes(name);
        Ok(match &mut folder.below {
            Below::Nothing => None,
            Below::Listed(entries) => entries.get(name).cloned(),
            Below::Asked(below, count) if *count < LOOK_UPS => {
                *count += 1;
                self.lower.child_of(below, name)?
            }
            Below::Asked(below, _) => {
                let children = self.lower.children_of(below)?.into_iter();
                let entries: HashMap<_, _> = children.map(|entry| (entry.name.clone(), entry)).collect();
                let found = entries.get(name).cloned();
                folder.below = Below::Listed(entries);
                found
            }
        })
    }

    fn push(
        &mut self,
        parent: &Folder,
        name: Cow<'a, [u8]>,
        metadata: Metadata,
        kind: PlannedKind<'a>,
    ) -> Result<(), NoPlan> {
        let fits = !name.starts_with(RESERVED) && parent.path.len() + 1 + name.len() <= MAX_PATH;
        if !fits || !PackWriter::can_own(metadata.uid, metadata.gid) {
            return Err(NoPlan::Unusual);
        }
        self.plan.entries.push(Planned { folder: parent.number, name, given: metadata.into(), kind });
        Ok(())
    }

    fn finish(self) -> Result<Plan<'a>, NoPlan> {
        let Plan { mut entries, folders } = self.plan;
        let order = |a: &Planned<'_>, b: &Planned<'_>| match a.folder == b.folder {
            true => a.name.cmp(&b.name),
            false => path_order(&path(&folders, a), &path(&folders, b)),
        };
        if !entries.is_sorted_by(|a, b| order(a, b).is_lt()) {
            entries.sort_by(order);
            // One path twice: what the last one makes of the first depends on both.
            if !entries.is_sorted_by(|a, b| order(a, b).is_lt()) {
                return Err(NoPlan::Unusual);
            }
        }
        drop_needless_folders(&mut entries, folders.len());
        join_names(&mut entries);
        Ok(Plan { entries, folders })
    }
}

impl Plan<'_> {
    /// The path of an entry.
    pub(super) fn path(&self, entry: &Planned<'_>) -> Vec<u8> {
        path(&self.folders, entry)
    }
}

fn path(folders: &[Vec<u8>], entry: &Planned<'_>) -> Vec<u8> {
    join(&folders[entry.folder as usize], &entry.name)
}

impl Below {
    fn of(entry: Option<&TreeEntry>) -> Self {
        match entry.and_then(TreeEntry::folder) {
            Some(folder) => Self::Asked(folder, 0),
            None => Self::Nothing,
        }
    }
}

/// Folders that are as they were, and below which nothing changes, say nothing.
fn drop_needless_folders(planned: &mut Vec<Planned<'_>>, folders: usize) {
    let mut needed = vec![false; folders];
    needed[0] = true;
    let mut keeps = vec![true; planned.len()];
    for (position, entry) in planned.iter().enumerate().rev() {
        keeps[position] = match entry.kind {
            PlannedKind::Folder { implied: true, number } => needed[number as usize],
            _ => true,
        };
        needed[entry.folder as usize] |= keeps[position];
    }
    let mut keeps = keeps.into_iter();
    planned.retain(|_| keeps.next().unwrap_or(true));
}

/// Makes further names of what were several names of one file.
fn join_names(planned: &mut [Planned<'_>]) {
    let mut firsts: HashMap<(u64, u64), usize> = HashMap::new();
    for position in 0..planned.len() {
        let PlannedKind::File { from } = planned[position].kind else { continue };
        let Some(group) = from.link_group() else { continue };
        let first = *firsts.entry(group).or_insert(position);
        if first != position {
            planned[position].kind = PlannedKind::Name { first };
            planned[position].given = planned[first].given.metadata().into();
        }
    }
}

/// The root of a stack without layers, as every builder makes it.
fn default_root() -> Metadata {
    Metadata { mode: 0o755, ..Metadata::default() }
}

fn normal(component: Component<'_>) -> Option<&OsStr> {
    match component {
        Component::Normal(name) => Some(name),
        _ => None,
    }
}

fn metadata_of(given: &EntryMetadata) -> Metadata {
    let EntryMetadata { mode, uid, gid, mtime, xattrs } = given.clone();
    Metadata { mode: mode & 0o7777, uid, gid, mtime, xattrs }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if parent.is_empty() { b"" } else { b"/" };
    [parent, slash, name].concat()
}

impl From<Metadata> for Given {
    fn from(Metadata { mode, uid, gid, mtime: (seconds, nanoseconds), xattrs }: Metadata) -> Self {
        let xattrs = (!xattrs.is_empty()).then(|| Box::new(xattrs));
        Self { mode, uid, gid, nanoseconds, seconds, xattrs }
    }
}

impl Given {
    pub(super) fn metadata(&self) -> Metadata {
        let Self { mode, uid, gid, nanoseconds, seconds, xattrs } = self;
        let xattrs = xattrs.as_ref().map(|xattrs| (**xattrs).clone()).unwrap_or_default();
        Metadata { mode: *mode, uid: *uid, gid: *gid, mtime: (*seconds, *nanoseconds), xattrs }
    }
}

impl Planned<'_> {
    /// What the index says of it, where a file's bytes hash to `blake3`. A further name has the kind of the first.
    pub(super) fn kind(&self, blake3: [u8; 32]) -> EntryKind {
        match &self.kind {
            PlannedKind::Folder { implied, .. } => EntryKind::Directory { opaque: false, implied: *implied },
            PlannedKind::File { from } => EntryKind::File { size: from.size(), blake3 },
            PlannedKind::Symlink { target } => EntryKind::Symlink { target: OsString::from_vec(target.to_vec()) },
            PlannedKind::Name { .. } => unreachable!("made from the first name"),
        }
    }
}
