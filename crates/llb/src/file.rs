/// Changes files without running a process. Actions are done in order, each on the tree it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOp {
    /// The actions; the last one's tree is output 0.
    pub actions: Vec<FileAction>,
}

/// The tree that an action works on or reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileInput {
    /// An empty tree.
    Scratch,
    /// An input of the vertex.
    Input(usize),
    /// What an earlier action of the op made.
    Action(usize),
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileAction {
    /// The tree that is changed.
    pub base: FileInput,
    /// What is done.
    pub kind: FileKind,
}

/// Kinds of changes. Paths are absolute within the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Copies from another tree.
    Copy(CopyAction),
    /// Makes a folder.
    Mkdir(MkdirAction),
    /// Makes a file.
    Mkfile(MkfileAction),
    /// Removes a path.
    Rm(RmAction),
    /// Makes a symbolic link.
    Symlink(SymlinkAction),
}

/// An owner, by number or by a name that is looked up in the changed tree's `/etc/passwd` and `/etc/group`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user: a number or a name.
    pub user: String,
    /// The group: a number or a name; `None` takes the user's number or, for a named user, its primary group.
    pub group: Option<String>,
}

/// Permission bits to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeChange {
    /// These bits, `0o7777` at most.
    Octal(u32),
    /// Changes as `chmod(1)` takes them, `u=rwX,go=rX`.
    Symbolic(String),
}

/// Copies files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyAction {
    /// The tree that is read.
    pub from: FileInput,
    /// The paths in it; patterns of Go's `filepath.Match` where `allow_wildcard` is set.
    pub sources: Vec<String>,
    /// Where to, absolute. With a `/` at its end, or with several sources, it is a folder.
    pub destination: String,
    /// The owner of everything copied; `None` is 0:0 for files of a context, and keeps the owners of other trees.
    pub owner: Option<Owner>,
    /// The permission bits of everything copied; `None` keeps them.
    pub mode: Option<ModeChange>,
    /// Whether `sources` are patterns.
    pub allow_wildcard: bool,
    /// Whether local tar archives are unpacked (ADD).
    pub unpack_archives: bool,
    /// Patterns of what is taken, as in an ignore file, against paths below a source; none for all. Folders on the way
    /// to what is taken are made with their modes and owners (`COPY --parents`).
    pub include: Vec<String>,
    /// Patterns of what is left out, as in an ignore file.
    pub exclude: Vec<String>,
    /// Paths below a source, or patterns, of which each must be matched by something.
    pub required: Vec<String>,
    /// Seconds since the epoch that every copied file gets; `None` keeps the times.
    pub timestamp: Option<i64>,
    /// Whether a link that a source names is followed.
    pub follow_links: bool,
    /// Whether of a folder that a source names the children are copied, and not the folder itself.
    pub contents_only: bool,
    /// Whether missing parents of the destination are made.
    pub make_parents: bool,
    /// Whether a pattern that matches nothing is fine.
    pub allow_empty_wildcard: bool,
    /// Whether a file takes the place of a folder, and a folder that of a file.
    pub replace: bool,
}

impl CopyAction {
    /// What COPY does by default: links in sources are followed, folders give their children, parents are made and
    /// an empty pattern is fine.
    pub fn new(from: FileInput, sources: Vec<String>, destination: impl Into<String>) -> Self {
        Self {
            from,
            sources,
            destination: destination.into(),
            owner: None,
            mode: None,
            allow_wildcard: true,
            unpack_archives: false,
            include: Vec::new(),
            exclude: Vec::new(),
            required: Vec::new(),
            timestamp: None,
            follow_links: true,
            contents_only: true,
            make_parents: true,
            allow_empty_wildcard: true,
            replace: false,
        }
    }
}

/// Makes a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MkdirAction {
    /// The path.
    pub path: String,
    /// Its permission bits.
    pub mode: u32,
    /// Whether missing parents are made and an existing folder is left as it is.
    pub make_parents: bool,
    /// The owner.
    pub owner: Option<Owner>,
    /// Seconds since the epoch; `None` is now.
    pub timestamp: Option<i64>,
}

/// Makes a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MkfileAction {
    /// The path.
    pub path: String,
    /// Its permission bits.
    pub mode: u32,
    /// Its bytes.
    pub data: Vec<u8>,
    /// The owner.
    pub owner: Option<Owner>,
    /// Seconds since the epoch; `None` is now.
    pub timestamp: Option<i64>,
}

/// Removes a path and everything below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RmAction {
    /// The path.
    pub path: String,
    /// Whether nothing to remove is fine.
    pub allow_not_found: bool,
    /// Whether the path is a pattern of Go's `filepath.Match`.
    pub allow_wildcard: bool,
}

/// Makes a symbolic link; one that is there is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymlinkAction {
    /// What it points to, as it is.
    pub target: String,
    /// The link's path.
    pub path: String,
    /// The owner.
    pub owner: Option<Owner>,
    /// Seconds since the epoch; `None` is now.
    pub timestamp: Option<i64>,
}
