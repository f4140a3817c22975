use crate::message::ServerMessage;
use forge_image::{Digest, DocumentError, ErrorKind, MediaType, Platform};
use forge_session::CredentialError;
use forge_store::StoreError;
use std::path::PathBuf;

/// Why something could not be had from, or given to, a registry.
///
/// No variant holds a credential or a token; URLs are shown without user, password and query, since a query may be a
/// signature that lets its reader in. Texts that a server sent are cut and freed of control characters (A103).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// Network use was forbidden by the caller.
    #[error("cannot reach registry {registry}: offline")]
    Offline {
        /// The registry as it stands in the image's name.
        registry: String,
    },
    /// An option of a host, or a proxy, cannot be used.
    #[error("invalid {option} for {host}: {reason}")]
    Options {
        /// The registry that the option is for.
        host: String,
        /// The option's name in the configuration file.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate or key cannot be read.
    #[error("cannot read {path} for {host}", path = path.display())]
    Certificate {
        /// The registry that the file is for.
        host: String,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// No connection, a broken one, a failed TLS handshake, or not HTTP.
    #[error("{method} {url} failed")]
    Connection {
        /// The HTTP method.
        method: String,
        /// The address.
        url: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing came for too long.
    #[error("{method} {url} made no progress for {seconds} s")]
    Stalled {
        /// The HTTP method.
        method: String,
        /// The address.
        url: String,
        /// How long forge waited.
        seconds: u64,
    },
    /// The server answered with an error.
    #[error("{method} {url}: {status}{}", message.suffix())]
    Status {
        /// The HTTP method.
        method: String,
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the server said about it.
        message: ServerMessage,
    },
    /// There is no such repository, manifest or blob.
    #[error("{what} not found in {registry}{}", message.suffix())]
    NotFound {
        /// What was asked for.
        what: String,
        /// The registry.
        registry: String,
        /// What the server said about it.
        message: ServerMessage,
    },
    /// The registry wants credentials and has none, or refuses those it was given.
    #[error("{registry} refuses access to {what}{}", message.suffix())]
    Unauthorized {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Whether credentials were sent.
        authenticated: bool,
        /// What the server said about it.
        message: ServerMessage,
    },
    /// The credentials could not be found out.
    #[error("no credentials for {registry}")]
    Credentials {
        /// The registry.
        registry: String,
        /// The cause.
        source: CredentialError,
    },
    /// The server sent forge somewhere where it does not go (A74, A75, A76).
    #[error("{registry} directs forge to {target}: {reason}")]
    Refused {
        /// The server that gave the direction.
        registry: String,
        /// Where to, without user, password and query.
        target: String,
        /// Why forge does not go there.
        reason: &'static str,
    },
    /// The answer breaks the distribution specification.
    #[error("{url} answered against the distribution specification: {reason}")]
    Protocol {
        /// The address.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The answer is larger than forge takes (A71).
    #[error("{what} from {url} is larger than {limit} bytes")]
    TooLarge {
        /// The address.
        url: String,
        /// What was read.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The bytes are not those that were asked for (A67, A68).
    #[error("{url} sent wrong content: expected {expected}, got {found}")]
    DigestMismatch {
        /// The address.
        url: String,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// The number of bytes is not the declared one (A67).
    #[error("{url} sent {found} bytes of {digest}, declared are {expected}")]
    SizeMismatch {
        /// The address.
        url: String,
        /// The digest that was asked for.
        digest: Digest,
        /// The size that the descriptor declares.
        expected: u64,
        /// What came: for a longer answer, where forge stopped reading, or what the server announced.
        found: u64,
    },
    /// The document is not a manifest or an index that forge accepts (A69).
    #[error("{url} sent no acceptable manifest")]
    Document {
        /// The address.
        url: String,
        /// The cause.
        source: DocumentError,
    },
    /// The document is of a kind that forge does not read.
    #[error("{url} sent a document of the unsupported type {media_type}")]
    MediaType {
        /// The address.
        url: String,
        /// Its type.
        media_type: MediaType,
    },
    /// An index has nothing for the platform.
    #[error("no image for platform {platform}, there are: {}", join(available))]
    NoPlatform {
        /// The platform that was asked for.
        platform: Box<Platform>,
        /// The platforms that there are.
        available: Vec<Platform>,
    },
    /// Indexes within indexes go on for too long (A70).
    #[error("indexes are nested deeper than {limit}")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// The bytes that are to be pushed are not what their descriptor says.
    #[error("cannot push {digest}: {reason}")]
    Source {
        /// The blob or manifest.
        digest: Digest,
        /// What is wrong.
        reason: String,
    },
    /// A file that is to be pushed cannot be read.
    #[error("cannot read the bytes of {digest}")]
    Read {
        /// The blob.
        digest: Digest,
        /// The cause.
        source: std::io::Error,
    },
    /// The store failed.
    #[error("cannot store {digest}")]
    Store {
        /// The blob.
        digest: Digest,
        /// The cause.
        source: StoreError,
    },
    /// Bytes could not be written to the store.
    #[error("cannot write {digest} to the store")]
    Write {
        /// The blob.
        digest: Digest,
        /// The cause.
        source: std::io::Error,
    },
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
}

fn join(platforms: &[Platform]) -> String {
    match platforms {
        [] => "none".to_owned(),
        platforms => platforms.iter().map(Platform::to_string).collect::<Vec<_>>().join(", "),
    }
}

impl RegistryError {
    /// Who is to blame.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Offline { .. } | Self::Options { .. } | Self::NoPlatform { .. } | Self::NotFound { .. } => {
                ErrorKind::UserInput
            }
            Self::Unauthorized { .. } => ErrorKind::UserInput,
            Self::Certificate { .. } | Self::Read { .. } | Self::Write { .. } => ErrorKind::Environment,
            Self::Credentials { source, .. } => source.kind(),
            Self::Store { source, .. } => source.kind(),
            Self::MediaType { .. } => ErrorKind::Unsupported,
            Self::Source { .. } => ErrorKind::Internal,
            Self::Cancelled => ErrorKind::Cancelled,
            _ => ErrorKind::Remote,
        }
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Offline { .. } => Some("run without --offline, or pull the image first".to_owned()),
            Self::Unauthorized { registry, authenticated: false, .. } => {
                Some(format!("log in with `forge login {registry}`"))
            }
            Self::Unauthorized { registry, authenticated: true, .. } => {
                Some(format!("check the account and its rights, or log in again with `forge login {registry}`"))
            }
            _ => None,
        }
    }

    /// Whether another source (a mirror's host) may still have what this one has not.
    pub(crate) fn next_source_may_help(&self) -> bool {
        !matches!(
            self,
            Self::Cancelled | Self::Store { .. } | Self::Write { .. } | Self::Offline { .. } | Self::Source { .. }
        )
    }
}
