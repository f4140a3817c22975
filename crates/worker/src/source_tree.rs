//! What COPY, ADD and mounts read from: a context of the session or a stack of layers, behind one face.

use forge_image::ErrorKind;
use forge_session::{Context, ContextError, ContextPath, EntryKind, PatternError, PatternMatcher, Session};
use forge_store::{MergedTree, StoreError, TreeEntry, TreeKind};
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
    Context { context: Arc<dyn Context>, ignored: PatternMatcher },
    /// Layers of the store, with owners and extended attributes.
    Layers(MergedTree),
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
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Equal for the names of one file, where the tree knows.
    pub link_group: Option<(u64, u64)>,
    /// Where a file of a layer lies: looking it up again would begin at the root.
    disk: Option<PathBuf>,
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
    /// The files of a context that are not ignored.
    pub(crate) fn of_context(context: Arc<dyn Context>, ignored: PatternMatcher, stop: Stop) -> Self {
        Self { files: Files::Context { context, ignored }, stop }
    }

    /// What layers show.
    pub(crate) fn of_layers(tree: MergedTree, stop: Stop) -> Self {
        Self { files: Files::Layers(tree), stop }
    }

    /// Says when to stop.
    pub(crate) fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Whether the ignore file hides a path.
    pub(crate) fn ignored(&self, path: &ContextPath) -> bool {
        match &self.files {
            Files::Context { ignored, .. } => !path.is_root() && ignored.matches(path),
            Files::Layers(_) => false,
        }
    }

    /// Whether nothing below a hidden folder can come back through a `!` pattern.
    pub(crate) fn prunes(&self, path: &ContextPath) -> bool {
        match &self.files {
            Files::Context { ignored, .. } => !path.is_root() && !ignored.may_match_below(path),
            Files::Layers(_) => false,
        }
    }

    /// Whether owners and extended attributes of this tree are part of what is copied.
    pub(crate) fn keeps_owners(&self) -> bool {
        matches!(self.files, Files::Layers(_))
    }

    /// The entry at a path, a link in the last component not followed. Ignored entries are shown.
    pub(crate) fn stat(&self, path: &ContextPath) -> Result<Option<SourceEntry>, SourceError> {
        match &self.files {
            Files::Context { context, .. } => Ok(context.stat(path)?.map(from_context)),
            Files::Layers(tree) => {
                let found = tree.lookup(&absolute(path))?;
                Ok(found.map(|entry| from_layers(path.clone(), entry, tree)))
            }
        }
    }

    /// The children of a folder, sorted by name. Ignored ones are shown.
    pub(crate) fn children(&self, path: &ContextPath) -> Result<Vec<SourceEntry>, SourceError> {
        self.stop.check()?;
        match &self.files {
            Files::Context { context, .. } => Ok(context.children(path)?.into_iter().map(from_context).collect()),
            Files::Layers(tree) => {
                let children = tree.children(&absolute(path))?.into_iter();
                Ok(children.map(|child| from_layers(path.join(child.name.as_encoded_bytes()), child, tree)).collect())
            }
        }
    }

    /// Opens a regular file.
    pub(crate) fn open(&self, entry: &SourceEntry) -> Result<File, SourceError> {
        self.stop.check()?;
        match (&self.files, &entry.kind, &entry.disk) {
            (Files::Context { context, .. }, SourceKind::File { .. }, _) => Ok(context.open(&entry.path)?),
            (Files::Layers(_), SourceKind::File { .. }, Some(disk)) => open_in_layer(entry, disk),
            _ => Err(SourceError::Special { path: entry.path.display().into_owned() }),
        }
    }

    /// The entry that a path leads to when links are followed, all inside the tree.
    pub(crate) fn follow(&self, path: &ContextPath) -> Result<Option<SourceEntry>, SourceError> {
        match &self.files {
            Files::Context { context, .. } => Ok(context.follow(path)?.map(from_context)),
            Files::Layers(tree) => {
                let path = ContextPath::clean(tree.resolve(&absolute(path))?.as_os_str().as_bytes());
                self.stat(&path)
            }
        }
    }
}

/// Nobody else writes into the store's layers, and an entry's parents are folders there: only the last component
/// could be a link.
fn open_in_layer(entry: &SourceEntry, disk: &Path) -> Result<File, SourceError> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(disk, flags, Mode::empty()) {
        Ok(file) => Ok(file.into()),
        Err(errno) => Err(SourceError::Read { path: entry.path.display().into_owned(), source: errno.into() }),
    }
}

fn absolute(path: &ContextPath) -> PathBuf {
    Path::new("/").join(path.as_path())
}

fn from_context(entry: forge_session::ContextEntry) -> SourceEntry {
    let nanoseconds = entry.stamp.mtime_ns;
    let seconds = nanoseconds.div_euclid(1_000_000_000);
    let rest = nanoseconds.rem_euclid(1_000_000_000);
    let is_root = entry.path.is_root();
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
        mtime: (i64::try_from(seconds).unwrap_or_default(), u32::try_from(rest).unwrap_or_default()),
        xattrs: BTreeMap::new(),
        link_group: None,
        disk: None,
    }
}

fn from_layers(path: ContextPath, entry: TreeEntry, tree: &MergedTree) -> SourceEntry {
    use rustix::fs::FileType;
    let disk = matches!(entry.kind, TreeKind::File { .. }).then(|| tree.disk_path(&entry));
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
        xattrs: entry.xattrs,
        link_group: (entry.links > 1).then_some(entry.inode),
        disk,
    }
}
