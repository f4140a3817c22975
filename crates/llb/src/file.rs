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
    /// Patterns of what is left out, as in an ignore file.
    pub exclude: Vec<String>,
    /// Seconds since the epoch that every copied file gets; `None` keeps the times.
    pub timestamp: Option<i64>,
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
}
