//! What COPY, ADD and mounts read from: a context of the session or a stack of layers, behind one face.

use forge_image::ErrorKind;
use forge_session::{Context, ContextError, ContextPath, EntryKind, FileStamp, PatternError, PatternMatcher, Session};
use forge_store::{FileTimes, MergedTree, Pack, PackedBytes, StoreError, TreeEntry, TreeFile, TreeFolder, TreeKind};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A tree that is read from, until the build is to stop.
pub(crate) struct SourceTree {
    files: Files,
    stop: Stop,
}

enum Files {
    /// Files of the session, less what the ignore file names. Owners are not copied from there.
    Context { context: Arc<dyn Context>, visible: Box<Visible> },
    /// Layers of the store, with owners and extended attributes. `times`: which of their modification times are
    /// content, top-most layer first; all are where nothing is said.
    Layers { tree: MergedTree, times: Vec<FileTimes> },
}

/// Which files of a context there are.
pub(crate) struct Visible {
    /// `None` for all.
    included: Option<PatternMatcher>,
    ignored: PatternMatcher,
}

/// Why a path is not to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hidden {
    /// The ignore file says so.
    Ignored,
    /// The context was asked for without it.
    NotIncluded,
}

impl Visible {
    /// Reads the patterns of a local source.
    pub(crate) fn new(include: &[String], exclude: &[String]) -> Result<Self, PatternError> {
        let included = PatternMatcher::new(include)?;
        Ok(Self { included: (!included.is_empty()).then_some(included), ignored: PatternMatcher::new(exclude)? })
    }

    fn hidden(&self, path: &ContextPath) -> Option<Hidden> {
        if path.is_root() {
            None
        } else if self.ignored.matches(path) {
            Some(Hidden::Ignored)
        } else if self.included.as_ref().is_some_and(|included| !included.matches(path)) {
            Some(Hidden::NotIncluded)
        } else {
            None
        }
    }

    fn prunes(&self, path: &ContextPath) -> bool {
        let ignored = self.ignored.matches(path) && !self.ignored.may_match_below(path);
        ignored || self.included.as_ref().is_some_and(|included| !included.may_lead_to_match(path))
    }
}

/// Says when whoever asked for the build wants no more of it. Reading a tree may take long, and blocks.
#[derive(Clone)]
pub(crate) struct Stop(pub Arc<dyn Session>);

impl Stop {
    /// To be asked again and again.
    pub(crate) fn check(&self) -> Result<(), SourceError> {
        match self.0.cancellation().is_cancelled() {
            true => Err(SourceError::Cancelled),
            false => Ok(()),
        }
    }
}

/// One entry of it.
#[derive(Clone, Debug)]
pub(crate) struct SourceEntry {
    pub path: ContextPath,
    pub kind: SourceKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Whether the modification time is something that a step set, and not when it happened to run.
    pub set_time: bool,
    /// What a file's bytes hashed to, once they were read.
    pub bytes: Option<blake3::Hash>,
    stamp: Stamp,
    /// Whether a file of a context has further names.
    is_linked: bool,
    /// What only layers have: a context may have a million entries.
    layered: Option<Box<Layered>>,
}

/// What tells beside the modification time whether a file of a context changed. No file has the inode 0, which stands for
/// nothing that could tell.
#[derive(Clone, Copy, Debug, Default)]
struct Stamp {
    changed: i64,
    inode: u64,
    changed_nanoseconds: u32,
    device: u32,
}

/// What an entry of a layer has, and none of a context.
#[derive(Clone, Debug)]
struct Layered {
    xattrs: BTreeMap<OsString, Vec<u8>>,
    link_group: Option<(u64, u64)>,
    place: Place,
}

/// Where something of a layer lies: looking it up again would begin at the root.
#[derive(Clone, Debug)]
enum Place {
    /// It is of a context, or has nothing to be read.
    Unknown,
    File(TreeFile),
    Folder(TreeFolder),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SourceKind {
    File {
        size: u64,
    },
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    /// A device or pipe of a layer: type bits and device number as `mknod(2)` takes them.
    Node {
        file_type: rustix::fs::FileType,
        major: u32,
        minor: u32,
    },
    /// Sockets, and whatever is no file in a context: never copied.
    Other,
}

/// Why a tree cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error(transparent)]
    Context(#[from] ContextError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error("cannot read {path:?}")]
    Read { path: String, source: std::io::Error },
    #[error("{path:?} is not a regular file")]
    Special { path: String },
    #[error("cancelled")]
    Cancelled,
}

impl SourceError {
    /// Who is to blame.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Context(ContextError::Read { .. }) | Self::Read { .. } => ErrorKind::Environment,
            Self::Cancelled => ErrorKind::Cancelled,
            _ => ErrorKind::UserInput,
        }
    }
}

impl SourceTree {
    /// The files of a context, as far as they are visible.
    pub(crate) fn of_context(context: Arc<dyn Context>, visible: Visible, stop: Stop) -> Self {
        Self { files: Files::Context { context, visible: Box::new(visible) }, stop }
    }

    /// What layers show.
    pub(crate) fn of_layers(tree: MergedTree, stop: Stop) -> Self {
        Self { files: Files::Layers { tree, times: Vec::new() }, stop }
    }

    /// Says of layers, top-most first, which times are content.
    pub(crate) fn with_times(mut self, known: Vec<FileTimes>) -> Self {
        if let Files::Layers { times, .. } = &mut self.files {
            *times = known;
        }
        self
    }

    /// What stays the same when the same context is handed over again; nothing for layers.
    pub(crate) fn identity(&self) -> Option<String> {
        match &self.files {
            Files::Context { context, .. } => Some(context.identity()),
            Files::Layers { .. } => None,
        }
    }

    /// Says when to stop.
    pub(crate) fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Why a path is not to be seen, if so. What it leads to may be.
    pub(crate) fn hidden(&self, path: &ContextPath) -> Option<Hidden> {
        match &self.files {
            Files::Context { visible, .. } => visible.hidden(path),
            Files::Layers { .. } => None,
        }
    }

    /// Whether nothing below a folder is to be seen.
    pub(crate) fn prunes(&self, path: &ContextPath) -> bool {
        match &self.files {
            Files::Context { visible, .. } => visible.prunes(path),
            Files::Layers { .. } => false,
        }
    }

    /// Whether owners and extended attributes of this tree are part of what is copied.
    pub(crate) fn keeps_owners(&self) -> bool {
        matches!(self.files, Files::Layers { .. })
    }

    /// The entry at a path, a link in the last component not followed. Hidden entries are shown.
    pub(crate) fn stat(&self, path: &ContextPath) -> Result<Option<SourceEntry>, SourceError> {
        match &self.files {
            Files::Context { context, .. } => Ok(context.stat(path)?.map(from_context)),
            Files::Layers { tree, times } => {
                let found = tree.lookup(&absolute(path))?.map(|entry| from_layers(path.clone(), entry, times));
                // Without any layer there is not even a root; to those who copy it, there is.
                Ok(found.or_else(|| path.is_root().then(empty_root)))
            }
        }
    }

    /// The children of a folder, sorted by name. Hidden ones are shown.
    pub(crate) fn children(&self, folder: &SourceEntry) -> Result<Vec<SourceEntry>, SourceError> {
        self.stop.check()?;
        match (&self.files, folder.place()) {
            (Files::Context { context, .. }, _) => {
                Ok(context.children(&folder.path)?.into_iter().map(from_context).collect())
            }
            (Files::Layers { tree, times }, Place::Folder(at)) => {
                let children = tree.children_of(at)?.into_iter();
                let named =
                    |child: TreeEntry| from_layers(folder.path.join(child.name.as_encoded_bytes()), child, times);
                Ok(children.map(named).collect())
            }
            (Files::Layers { .. }, _) => Ok(Vec::new()),
        }
    }

    /// Opens a regular file.
    pub(crate) fn open(&self, entry: &SourceEntry) -> Result<File, SourceError> {
        self.stop.check()?;
        match (&self.files, &entry.kind, entry.place()) {
            (Files::Context { context, .. }, SourceKind::File { .. }, _) => Ok(context.open(&entry.path)?),
            (Files::Layers { tree, .. }, SourceKind::File { .. }, Place::File(file)) => Ok(tree.open_file(file)?),
            _ => Err(SourceError::Special { path: entry.path.display().into_owned() }),
        }
    }

    /// What a file's bytes hash to where a layer's index says so.
    pub(crate) fn known_hash(&self, entry: &SourceEntry) -> Result<Option<blake3::Hash>, SourceError> {
        match (&self.files, entry.place()) {
            (Files::Layers { tree, .. }, Place::File(file)) => Ok(tree.hash(file)?.map(blake3::Hash::from_bytes)),
            _ => Ok(None),
        }
    }

    /// Where the bytes of a file are, if it is of a packed layer.
    pub(crate) fn packed(&self, entry: &SourceEntry) -> Option<(&Pack, PackedBytes)> {
        match (&self.files, entry.place()) {
            (Files::Layers { tree, .. }, Place::File(file)) => tree.packed(file),
            _ => None,
        }
    }

    /// The entry that a path leads to when links are followed, all inside the tree.
    pub(crate) fn follow(&self, path: &ContextPath) -> Result<Option<SourceEntry>, SourceError> {
        match &self.files {
            Files::Context { context, .. } => Ok(context.follow(path)?.map(from_context)),
            Files::Layers { tree, .. } => {
                let path = ContextPath::clean(tree.resolve(&absolute(path))?.as_os_str().as_bytes());
                self.stat(&path)
            }
        }
    }
}

impl SourceEntry {
    /// Whether an open file is the one that was looked at, as it was then.
    pub(crate) fn is_as_seen(&self, file: &File) -> bool {
        let Ok((stamp, size)) = FileStamp::of(file) else { return false };
        self.stamp() == Some(stamp) && self.kind == SourceKind::File { size }
    }

    /// What tells whether a file of a context changed, where that can be told.
    pub(crate) fn stamp(&self) -> Option<FileStamp> {
        let Stamp { changed, inode, changed_nanoseconds, device } = self.stamp;
        let (seconds, rest) = self.mtime;
        (inode != 0).then(|| FileStamp {
            mtime_ns: nanoseconds(seconds, rest),
            ctime_ns: nanoseconds(changed, changed_nanoseconds),
            inode,
            device: device.into(),
        })
    }

    /// Extended attributes, of layers.
    pub(crate) fn xattrs(&self) -> &BTreeMap<OsString, Vec<u8>> {
        static NONE: BTreeMap<OsString, Vec<u8>> = BTreeMap::new();
        self.layered.as_ref().map_or(&NONE, |layered| &layered.xattrs)
    }

    /// Equal for the names of one file, where the tree knows.
    pub(crate) fn link_group(&self) -> Option<(u64, u64)> {
        match &self.layered {
            Some(layered) => layered.link_group,
            None => (self.is_linked && self.stamp.inode != 0).then(|| (self.stamp.device.into(), self.stamp.inode)),
        }
    }

    /// A file of a context whose further names do not matter.
    pub(crate) fn forget_links(&mut self) {
        self.is_linked = false;
    }

    fn place(&self) -> &Place {
        self.layered.as_ref().map_or(&Place::Unknown, |layered| &layered.place)
    }

    /// The bytes of a file when it was looked at.
    pub(crate) fn size(&self) -> u64 {
        match self.kind {
            SourceKind::File { size } => size,
            _ => 0,
        }
    }

    /// Something of a layer.
    pub(crate) fn of_layer(entry: TreeEntry) -> Self {
        from_layers(ContextPath::clean(entry.path.as_os_str().as_bytes()), entry, &[])
    }
}

fn absolute(path: &ContextPath) -> PathBuf {
    Path::new("/").join(path.as_path())
}

fn from_context(entry: forge_session::ContextEntry) -> SourceEntry {
    let is_root = entry.path.is_root();
    let (changed, changed_nanoseconds) = seconds(entry.stamp.ctime_ns);
    // Without a number that fits there is no stamp, and the file is read.
    let device = u32::try_from(entry.stamp.device).ok();
    let stamp = device.map(|device| Stamp { changed, inode: entry.stamp.inode, changed_nanoseconds, device });
    SourceEntry {
        path: entry.path,
        kind: match entry.kind {
            EntryKind::File { size } => SourceKind::File { size },
            EntryKind::Directory => SourceKind::Directory,
            EntryKind::Symlink { target } => SourceKind::Symlink { target },
            EntryKind::Special => SourceKind::Other,
        },
        // The folder that happens to be the context is nothing of the image's; docker never sees its mode either.
        mode: if is_root { 0o755 } else { entry.mode },
        uid: 0,
        gid: 0,
        mtime: seconds(entry.stamp.mtime_ns),
        set_time: false,
        bytes: None,
        stamp: stamp.unwrap_or_default(),
        is_linked: entry.is_linked,
        layered: None,
    }
}

/// Seconds, and the nanoseconds above them.
fn seconds(nanoseconds: i128) -> (i64, u32) {
    let (seconds, rest) = (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000));
    (i64::try_from(seconds).unwrap_or_default(), u32::try_from(rest).unwrap_or_default())
}

fn nanoseconds(seconds: i64, rest: u32) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(rest)
}

/// The root of the empty file system.
fn empty_root() -> SourceEntry {
    SourceEntry {
        path: ContextPath::default(),
        kind: SourceKind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        set_time: false,
        bytes: None,
        stamp: Stamp::default(),
        is_linked: false,
        layered: None,
    }
}

fn from_layers(path: ContextPath, entry: TreeEntry, times: &[FileTimes]) -> SourceEntry {
    use rustix::fs::FileType;
    let set_time = times.get(entry.layer()).is_none_or(|times| times.is_content(entry.mtime));
    let place = match (&entry.kind, entry.folder()) {
        (TreeKind::File { .. }, _) => Place::File(entry.file()),
        (_, Some(folder)) => Place::Folder(folder),
        _ => Place::Unknown,
    };
    let link_group = (entry.links > 1).then_some(entry.inode);
    let layered = Some(Box::new(Layered { xattrs: entry.xattrs, link_group, place }));
    let kind = match entry.kind {
        TreeKind::File { size } => SourceKind::File { size },
        TreeKind::Directory => SourceKind::Directory,
        TreeKind::Symlink { target } => SourceKind::Symlink { target: target.into_vec() },
        TreeKind::CharDevice { major, minor } => {
            SourceKind::Node { file_type: FileType::CharacterDevice, major, minor }
        }
        TreeKind::BlockDevice { major, minor } => SourceKind::Node { file_type: FileType::BlockDevice, major, minor },
        TreeKind::Fifo => SourceKind::Node { file_type: FileType::Fifo, major: 0, minor: 0 },
        TreeKind::Socket => SourceKind::Other,
    };
    SourceEntry {
        path,
        kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        set_time,
        bytes: None,
        stamp: Stamp::default(),
        is_linked: false,
        layered,
    }
}
