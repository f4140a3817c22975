use crate::{LayerError, LayerId};
use forge_image::{Digest, DigestError, DocumentError, ErrorKind, ImageId, Reference, ReferenceError};
use std::io;
use std::path::{Path, PathBuf};

/// Why the store could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// SQLite failed.
    #[error("the store's database failed")]
    Database {
        /// SQLite's answer.
        #[from]
        source: rusqlite::Error,
    },
    /// The database is damaged, and cannot be made anew while others use it.
    #[error("{} is damaged, and another forge uses the store", path.display())]
    DatabaseInUse {
        /// The database.
        path: PathBuf,
    },
    /// A row does not hold what forge wrote there.
    #[error("the store's database holds an invalid {what}: {value:?}")]
    InvalidRow {
        /// What the value should have been.
        what: &'static str,
        /// What was found, cut to 160 characters.
        value: String,
    },
    /// The folder lies on a file system that other machines may write to: neither SQLite's WAL nor flock hold there.
    #[error("{} lies on {file_system}, where several machines can write: a store must be on a local file system", path.display())]
    NetworkFileSystem {
        /// The store's root.
        path: PathBuf,
        /// The kind of file system.
        file_system: &'static str,
    },
    /// The folder has files, but not those of a store.
    #[error("{} is neither empty nor a forge store", path.display())]
    NotAStore {
        /// The folder.
        path: PathBuf,
    },
    /// The store was written by a later forge.
    #[error("{} has store format {found}, this forge reads up to {supported}", path.display())]
    NewerFormat {
        /// The store's root.
        path: PathBuf,
        /// The version in its FORMAT file.
        found: u32,
        /// The latest version that this forge knows.
        supported: u32,
    },
    /// The FORMAT file cannot be read.
    #[error("{} is damaged: {reason}", path.display())]
    DamagedFormat {
        /// The FORMAT file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// Another user owns the folder.
    #[error("{} belongs to uid {owner}, not to uid {own}", path.display())]
    ForeignOwner {
        /// The folder or link.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who forge runs as.
        own: u32,
    },
    /// The store was made under other user id maps: owners in its trees would mean something else.
    #[error("{} was made with the id maps {recorded:?}, forge now runs with {own:?}", path.display())]
    OtherIdMaps {
        /// The store's root.
        path: PathBuf,
        /// The maps in the FORMAT file.
        recorded: String,
        /// The maps of this process.
        own: String,
    },
    /// No blob of that digest is in the store.
    #[error("blob {digest} is not in the store")]
    BlobNotFound {
        /// What was asked for.
        digest: Digest,
    },
    /// The bytes are not those that the digest names.
    #[error("digest mismatch: expected {expected}, got {actual}")]
    DigestMismatch {
        /// What was announced.
        expected: Digest,
        /// What the bytes hash to.
        actual: Digest,
    },
    /// A stored blob is no longer what its digest says; the store has forgotten it.
    #[error("blob {digest} was damaged in the store: its bytes now hash to {actual}")]
    DamagedBlob {
        /// What was asked for.
        digest: Digest,
        /// What the bytes hash to.
        actual: Digest,
    },
    /// The bytes are fewer or more than announced.
    #[error("size mismatch for {digest}: expected {expected} bytes, got {}{actual}", if *actual > *expected { "at least " } else { "" })]
    SizeMismatch {
        /// The blob.
        digest: Digest,
        /// What was announced.
        expected: u64,
        /// What came.
        actual: u64,
    },
    /// The blob is larger than the caller wants to hold in memory.
    #[error("blob {digest} has {size} bytes, more than the {limit} allowed here")]
    BlobTooLarge {
        /// The blob.
        digest: Digest,
        /// Its size.
        size: u64,
        /// The caller's limit.
        limit: u64,
    },
    /// No such layer.
    #[error("layer {layer} is not in the store")]
    LayerNotFound {
        /// What was asked for.
        layer: LayerId,
    },
    /// A layer is known, and nobody has fetched it.
    #[error("layer {layer} is not here, only in {repository}")]
    LayerAbsent {
        /// What was asked for.
        layer: LayerId,
        /// Where it can be had.
        repository: Box<Reference>,
    },
    /// No such image by id.
    #[error("image {image} is not in the store")]
    ImageNotFound {
        /// What was asked for.
        image: ImageId,
    },
    /// The config bytes are not those that the image ID names.
    #[error("the config's digest {actual} is not the image ID {image}")]
    ConfigMismatch {
        /// The announced id.
        image: ImageId,
        /// What the bytes hash to.
        actual: Digest,
    },
    /// No image has that name, id or id prefix.
    #[error("no such image: {text}")]
    NoSuchImage {
        /// What was asked for.
        text: String,
    },
    /// Several images begin with those digits.
    #[error("image ID prefix {text:?} is ambiguous: {} images begin with it", matches.len())]
    AmbiguousId {
        /// The prefix.
        text: String,
        /// The images.
        matches: Vec<ImageId>,
    },
    /// The text is neither an image name nor an id.
    #[error("invalid image name")]
    InvalidName {
        /// Why not.
        #[from]
        source: ReferenceError,
    },
    /// The text is not a digest.
    #[error("invalid digest")]
    InvalidDigest {
        /// Why not.
        #[from]
        source: DigestError,
    },
    /// A pinned name without a digest.
    #[error("{name} has no digest to pin")]
    NoDigest {
        /// The name.
        name: String,
    },
    /// A name with a digest is not a tag.
    #[error("{name} has a digest and cannot be a tag")]
    NotATag {
        /// The name.
        name: String,
    },
    /// A document in the store is not of its kind.
    #[error("a document in the store cannot be read")]
    Document {
        /// Why not.
        #[from]
        source: DocumentError,
    },
    /// A layer could not be made or read.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

impl StoreError {
    /// Whether the database itself is lost: absent, no database at all, or damaged.
    pub(crate) fn is_lost_database(&self) -> bool {
        use rusqlite::ErrorCode::{CannotOpen, DatabaseCorrupt, NotADatabase};
        let Self::Database { source } = self else { return false };
        match source.sqlite_error() {
            Some(error) if matches!(error.code, CannotOpen | DatabaseCorrupt | NotADatabase) => true,
            // An empty file is a database without tables.
            Some(_) => source.to_string().contains("no such table"),
            None => false,
        }
    }

    /// Who is to blame.
    pub fn kind(&self) -> ErrorKind {
        use StoreError::*;
        match self {
            Io { .. }
            | Database { .. }
            | DatabaseInUse { .. }
            | InvalidRow { .. }
            | NetworkFileSystem { .. }
            | NotAStore { .. } => ErrorKind::Environment,
            NewerFormat { .. } | DamagedFormat { .. } | ForeignOwner { .. } | OtherIdMaps { .. } => {
                ErrorKind::Environment
            }
            DigestMismatch { .. } | SizeMismatch { .. } | BlobTooLarge { .. } | Document { .. } => ErrorKind::Remote,
            DamagedBlob { .. } | BlobNotFound { .. } | LayerNotFound { .. } | LayerAbsent { .. } => {
                ErrorKind::Environment
            }
            ConfigMismatch { .. } => ErrorKind::Internal,
            ImageNotFound { .. } | NoSuchImage { .. } | AmbiguousId { .. } => ErrorKind::UserInput,
            InvalidName { .. } | InvalidDigest { .. } | NoDigest { .. } | NotATag { .. } => ErrorKind::UserInput,
            Layer(error) => error.kind(),
        }
    }

    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NetworkFileSystem { .. } => Some("choose a folder on a local disk with --root or FORGE_ROOT"),
            Self::NotAStore { .. } => Some("name an empty folder, or one that forge made, with --root or FORGE_ROOT"),
            Self::NewerFormat { .. } => Some("use the newer forge, or another folder with --root or FORGE_ROOT"),
            Self::ForeignOwner { .. } | Self::OtherIdMaps { .. } => {
                Some("each user keeps a store of their own: choose another folder with --root or FORGE_ROOT")
            }
            _ => None,
        }
    }

    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.as_ref().to_owned(), source }
    }

    pub(crate) fn os(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io { action, path: path.as_ref().to_owned(), source: errno.into() }
    }

    pub(crate) fn invalid_row(what: &'static str, value: &str) -> Self {
        Self::InvalidRow { what, value: value.chars().take(160).collect() }
    }
}
