use forge_cache::CacheError;
use forge_executor::ExecutorError;
use forge_image::{Digest, ErrorKind};
use forge_llb::GitUrlError;
use forge_registry::WebError;
use forge_session::SecretError;
use forge_store::StoreError;

/// Why files could not be had from a web server or a repository. Addresses are shown without user, password and query,
/// and what git said without any of the secrets that it was given (A102).
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    #[error(transparent)]
    Web(#[from] WebError),
    #[error(transparent)]
    Address(#[from] GitUrlError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error("cannot run git")]
    Executor(#[from] ExecutorError),
    #[error("{url} names its file {name:?}, which {reason}")]
    FileName { url: String, name: String, reason: &'static str },
    /// The words are BuildKit's.
    #[error("digest mismatch for {url}: {found} (expected: {expected})")]
    Mismatch { url: String, expected: Digest, found: Digest },
    #[error("{reference}: there is no such blob")]
    NoBlob { reference: String },
    #[error("{url} sent {found} bytes, announced were {expected}")]
    Length { url: String, expected: u64, found: u64 },
    #[error("{url} is larger than {limit} bytes")]
    TooLarge { url: String, limit: u64 },
    #[error("cannot write {what}")]
    Write { what: String, source: std::io::Error },
    #[error(transparent)]
    Store(StoreError),
    #[error("cannot read {what}")]
    Read { what: String, source: std::io::Error },
    #[error("the git program is not installed, and {remote} is a Git repository")]
    NoGit { remote: String },
    #[error("cannot reach {remote}: offline")]
    Offline { remote: String },
    #[error("git failed to {action} {remote}: {message}")]
    Git { action: &'static str, remote: String, message: String },
    // The first words are BuildKit's.
    #[error("repository does not contain ref {reference}: {remote}")]
    NoReference { remote: String, reference: String },
    #[error("{remote}: expected checksum to match {expected}, got {found}")]
    Commit { remote: String, expected: String, found: String },
    #[error("{remote}: {path:?} {reason}")]
    Tree { remote: String, path: String, reason: &'static str },
    #[error("{remote} has no folder {subdir:?}")]
    NoFolder { remote: String, subdir: String },
    /// The words are BuildKit's.
    #[error("no SSH key {id:?} forwarded from the client")]
    NoAgent { id: String },
    #[error("secret {id} holds characters that no header can carry")]
    BadSecret { id: String },
    #[error("cancelled")]
    Cancelled,
}

impl RemoteError {
    /// Who is to blame.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Web(error) => error.kind(),
            Self::Address(error) => error.kind(),
            Self::Secret(error) => error.kind(),
            Self::Cache(error) => error.kind(),
            Self::Executor(error) => crate::error::executor_kind(error),
            Self::Store(error) => error.kind(),
            Self::Write { .. } | Self::Read { .. } | Self::NoGit { .. } => ErrorKind::Environment,
            Self::FileName { .. } | Self::Length { .. } | Self::TooLarge { .. } => ErrorKind::Remote,
            Self::Git { .. } | Self::Tree { .. } => ErrorKind::Remote,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Mismatch { .. }
            | Self::Offline { .. }
            | Self::NoReference { .. }
            | Self::Commit { .. }
            | Self::NoBlob { .. }
            | Self::NoFolder { .. }
            | Self::NoAgent { .. }
            | Self::BadSecret { .. } => ErrorKind::UserInput,
        }
    }

    /// What the user can do about it, where there is something.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Web(error) => error.hint(),
            Self::NoGit { .. } => Some("install git where forge runs".to_owned()),
            Self::Offline { .. } => Some("run without --offline".to_owned()),
            Self::NoAgent { id } => Some(format!("pass --ssh {id}")),
            Self::Git { message, .. } if message.contains("Host key verification failed") => {
                Some(format!("pass the server's key with --secret id={KNOWN_HOSTS_SECRET},src=$HOME/.ssh/known_hosts"))
            }
            _ => None,
        }
    }
}

/// The secret that says which SSH servers are known.
pub(crate) const KNOWN_HOSTS_SECRET: &str = "GIT_SSH_KNOWN_HOSTS";
