use forge_image::ErrorKind;
use std::error::Error;
use std::path::PathBuf;

/// What can go wrong with the cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The index cannot be read or written.
    #[error("cannot {action} the cache index {path}")]
    Index {
        /// What was tried: `open`, `read`, `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: rusqlite::Error,
    },
    /// The index lies where this process may not write.
    #[error("cannot open the cache index {path}")]
    NotWritable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The index was written by a later forge.
    #[error("the cache index {path} has format {found}, this forge knows formats up to {known}")]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The format that the file has.
        found: i64,
        /// The latest format that is understood.
        known: i64,
    },
    /// A record in the index cannot be understood.
    #[error("the cache index holds a damaged record for {name:?}")]
    Damaged {
        /// The step's name.
        name: String,
        /// The cause.
        source: serde_json::Error,
    },
    /// What is kept of a step's inputs, or of a build's steps, cannot be understood.
    #[error("the cache index holds damaged inputs of a step")]
    DamagedInputs,
    /// A lock file of a flight cannot be used.
    #[error("cannot lock {path}")]
    Lock {
        /// The lock file or its folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A result cannot be read.
    #[error("cannot read a cached result: {message}")]
    Result {
        /// Who is to blame.
        kind: ErrorKind,
        /// What failed.
        message: String,
        /// The cause.
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// A shared cache cannot be asked, read or written. No build fails for it.
    #[error("{place}")]
    Remote {
        /// What was asked.
        place: String,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
    /// What a shared cache has under a key is no record, or not that one.
    #[error("{place}: a record is refused: {reason}")]
    RemoteRecord {
        /// What was asked.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The build was cancelled while it waited.
    #[error("cancelled")]
    Cancelled,
}

impl CacheError {
    /// Who is to blame.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Index { .. }
            | Self::NewerFormat { .. }
            | Self::NotWritable { .. }
            | Self::Lock { .. }
            | Self::Damaged { .. }
            | Self::DamagedInputs => ErrorKind::Environment,
            Self::Result { kind, .. } => *kind,
            Self::Remote { .. } | Self::RemoteRecord { .. } => ErrorKind::Remote,
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NewerFormat { .. } => Some("use the forge that wrote it, or another --root".to_owned()),
            Self::Damaged { .. } | Self::DamagedInputs | Self::Index { .. } => {
                Some("the cache index can be removed at any time; the next build then runs every step".to_owned())
            }
            _ => None,
        }
    }
}
