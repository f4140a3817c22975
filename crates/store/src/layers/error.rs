use forge_image::{DiffId, Digest, ErrorKind};
use std::io;

/// Why a layer could not be made or read.
///
/// Paths in these errors are relative to the layer's root and escaped, since their bytes come from strangers (A62).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The layer's index file is damaged, or written by a later forge.
    #[error("layer index is unusable: {reason}")]
    BrokenIndex {
        /// What is wrong.
        reason: &'static str,
    },
    /// The file that says where a packed layer's bytes are is damaged, or written by a later forge.
    #[error("layer pack is unusable: {reason}")]
    BrokenPack {
        /// What is wrong.
        reason: &'static str,
    },
    /// The tree does not hold what the index says.
    #[error("layer tree does not match its index at {path:?}: {reason}")]
    TreeChanged {
        /// The entry.
        path: String,
        /// What differs.
        reason: &'static str,
    },
    /// More symlinks on the way than the kernel would follow.
    #[error("too many symbolic links on the way to {path:?}")]
    TooManySymlinks {
        /// What was looked up.
        path: String,
    },
    /// Nothing is there.
    #[error("{path:?} does not exist")]
    NotFound {
        /// What was looked up.
        path: String,
    },
    /// A file was asked for, and something else is there (A14).
    #[error("{path:?} is a {found}, not a regular file")]
    NotRegular {
        /// What was looked up.
        path: String,
        /// What is there.
        found: &'static str,
    },
    /// A folder was asked for, and something else is there.
    #[error("{path:?} is not a directory")]
    NotADirectory {
        /// What was looked up.
        path: String,
    },
    /// A file name that means a deletion once it is in a layer.
    #[error("file name {path:?} cannot be stored in a layer: names that begin with \".wh.\" mark deletions")]
    ReservedName {
        /// The file.
        path: String,
    },
    /// A table of contents was asked for of a layer that others made.
    #[error("a layer that was made elsewhere cannot be given a table of contents")]
    ForeignContents,
    /// The stream that an archive comes from failed, or its compression is damaged.
    #[error("cannot read the archive")]
    Unreadable {
        /// The cause.
        source: io::Error,
    },
    /// A path that no tar reader could put back.
    #[error("path {path:?}… is longer than {limit} bytes")]
    PathTooLong {
        /// Its beginning.
        path: String,
        /// The limit.
        limit: usize,
    },
    /// The archive breaks the format, or readers would disagree on what it holds (A57).
    #[error("malformed tar at byte {offset}: {reason}")]
    MalformedTar {
        /// Where the header in question begins.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The archive ends in the middle of an entry, or a compressed stream before its end (A63).
    #[error("layer is cut off after {offset} bytes")]
    Truncated {
        /// How much could be read.
        offset: u64,
    },
    /// An entry that would act outside the layer's root, or means nothing inside it.
    #[error("refused tar entry {path:?}: {reason}")]
    RefusedEntry {
        /// The entry's name.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// The owner of an entry does not exist in this process's user namespace.
    #[error("{path:?} belongs to id {id}, which is not among the subordinate ids of this user")]
    UnmappedOwner {
        /// The entry's name.
        path: String,
        /// The user or group.
        id: u32,
    },
    /// A valid kind of entry that forge does not unpack.
    #[error("tar entry {path:?} is {what}, which forge does not unpack")]
    UnsupportedEntry {
        /// The entry's name.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// The layer is larger than this store accepts (A59, A60).
    #[error("layer exceeds the limit of {limit} {what}")]
    LimitExceeded {
        /// What was counted.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The compressed stream is damaged.
    #[error("cannot decompress the layer")]
    Decompress {
        /// The decoder's answer.
        source: io::Error,
    },
    /// Whoever takes the layer's tar does not.
    #[error("cannot write the layer")]
    WriteTar {
        /// The writer's answer.
        source: io::Error,
    },
    /// The compressor failed.
    #[error("cannot compress the layer")]
    Compress {
        /// Its answer.
        source: io::Error,
    },
    /// A compression that image layers do not have.
    #[error("layer is compressed with {format}, which image layers are not")]
    UnsupportedCompression {
        /// Its name.
        format: &'static str,
    },
    /// A compression level that the format does not have.
    #[error("{format} has no compression level {level}")]
    CompressionLevel {
        /// The format.
        format: &'static str,
        /// What was asked for.
        level: i64,
    },
    /// The uncompressed bytes are not those that the image config announced (A64).
    #[error("layer's uncompressed bytes do not match the image config: expected {expected}, got {actual}")]
    DiffIdMismatch {
        /// The config's word.
        expected: DiffId,
        /// What the bytes hash to.
        actual: Digest,
    },
    /// A digest algorithm that forge does not compute.
    #[error("layers are verified with sha256 only, not {algorithm}")]
    UnsupportedDigest {
        /// The algorithm.
        algorithm: String,
    },
}

impl LayerError {
    /// Who is to blame.
    pub fn kind(&self) -> ErrorKind {
        use LayerError::*;
        match self {
            BrokenIndex { .. } | BrokenPack { .. } | TreeChanged { .. } | WriteTar { .. } | UnmappedOwner { .. } => {
                ErrorKind::Environment
            }
            TooManySymlinks { .. } | NotFound { .. } | NotRegular { .. } | NotADirectory { .. } => ErrorKind::UserInput,
            ReservedName { .. } | PathTooLong { .. } | CompressionLevel { .. } => ErrorKind::UserInput,
            MalformedTar { .. } | Truncated { .. } | RefusedEntry { .. } | LimitExceeded { .. } => ErrorKind::Remote,
            Compress { .. } => ErrorKind::Internal,
            Decompress { .. } | DiffIdMismatch { .. } => ErrorKind::Remote,
            Unreadable { .. } => ErrorKind::UserInput,
            ForeignContents | UnsupportedEntry { .. } | UnsupportedCompression { .. } | UnsupportedDigest { .. } => {
                ErrorKind::Unsupported
            }
        }
    }
}

/// A path as it stands in messages: escaped, and cut where it is absurdly long.
pub(super) fn shown(path: &[u8]) -> String {
    path[..path.len().min(256)].escape_ascii().to_string()
}
