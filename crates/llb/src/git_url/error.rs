use forge_image::ErrorKind;

/// Why a Git address is refused. No message repeats the address: it may hold a password (A102).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GitUrlError {
    /// The repository's address is not one that forge hands to git.
    #[error("invalid Git address: {reason}")]
    Remote {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The reference is not one that git could have.
    #[error("invalid Git reference {reference:?}: {reason}")]
    Reference {
        /// The reference.
        reference: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The folder holds characters that no path has.
    #[error("invalid folder {subdir:?} in a Git address")]
    Subdir {
        /// The folder.
        subdir: String,
    },
    /// The checksum is not the beginning of a commit.
    #[error("invalid checksum {checksum:?} for Git URL, expected hex commit hash of 7 to 64 digits")]
    Checksum {
        /// The checksum.
        checksum: String,
    },
    /// `fetch-by-commit` without a whole commit in `checksum`.
    #[error("fetch-by-commit needs the whole commit as checksum")]
    FetchByCommit,
    /// Escapes decode to bytes that are not UTF-8.
    #[error("the options of a Git address are not UTF-8")]
    NotText,
    /// An option of the query that does not exist.
    #[error("unexpected query {key:?}")]
    UnknownKey {
        /// The option.
        key: String,
    },
    /// An option stands twice in the query.
    #[error("query {key:?} has multiple values")]
    Repeated {
        /// The option.
        key: String,
    },
    /// An option lacks its value.
    #[error("query {key:?} has no value")]
    NoValue {
        /// The option.
        key: String,
    },
    /// Two places say different things.
    #[error("{key} conflicts: {one:?} vs {other:?}")]
    Conflict {
        /// The option.
        key: &'static str,
        /// What one says.
        one: String,
        /// What the other says.
        other: String,
    },
    /// Both a tag and a branch.
    #[error("branch conflicts with tag")]
    TagAndBranch,
    /// Not a truth value.
    #[error("invalid {key} value: {value:?}")]
    BadValue {
        /// The option.
        key: String,
        /// Its value.
        value: String,
    },
    /// Neither `checkout` nor `commit`.
    #[error("invalid mtime value: {value:?} (must be \"checkout\" or \"commit\")")]
    BadMtime {
        /// Its value.
        value: String,
    },
}

impl GitUrlError {
    /// Who is to blame: whoever wrote the address.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::UserInput
    }
}
