use crate::exec::ExecError;
use crate::file::FileError;
use crate::sources::error::RemoteError;
use forge_cache::CacheError;
use forge_executor::ExecutorError;
use forge_image::{Digest, ErrorKind, ImageId, Reference, chain};
use forge_registry::FetchError;
use forge_session::ContextError;
use forge_solver::WorkerError;
use forge_store::StoreError;

/// Why a step could not be done on this machine.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileFailure),
    /// A process could not be run.
    #[error(transparent)]
    Exec(#[from] ExecFailure),
    /// A file of a web server or a repository could not be had.
    #[error(transparent)]
    Remote(#[from] RemoteFailure),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An image could not be fetched.
    #[error(transparent)]
    Fetch(FetchError),
    /// An input of the step cannot be read.
    #[error(transparent)]
    Input(#[from] CacheError),
    /// There is no named context of that name.
    #[error("there is no build context named {name:?}")]
    NoContext {
        /// The name.
        name: String,
    },
    /// A context could not be brought in.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// An image was removed while the build used it.
    #[error("image {id} was removed while the build used it")]
    ImageGone {
        /// The image.
        id: ImageId,
    },
    /// A name stands for something else than the graph says. The words are BuildKit's.
    #[error("image digest {found} for {reference} does not match expected checksum {expected}")]
    Checksum {
        /// The name.
        reference: Box<Reference>,
        /// What it stands for.
        found: Digest,
        /// What it should stand for.
        expected: Digest,
    },
    /// A graph names a manifest that nobody resolved: a defect.
    #[error("image {digest} was never resolved")]
    Unresolved {
        /// The manifest.
        digest: Digest,
    },
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A thread of ours ended with a panic.
    #[error("a worker thread failed")]
    Thread(#[from] tokio::task::JoinError),
}

impl WorkError {
    /// The code that a shell would report of a program that could not be started.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Exec(ExecFailure(ExecError::Executor(ExecutorError::NotFound { .. }))) => Some(127),
            Self::Exec(ExecFailure(ExecError::Executor(ExecutorError::NotExecutable { .. }))) => Some(126),
            _ => None,
        }
    }
}

/// A failed file operation.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct FileFailure(pub(crate) FileError);

/// A step that could not be run.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ExecFailure(pub(crate) ExecError);

/// A web server or repository from which nothing could be had.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct RemoteFailure(Box<RemoteError>);

impl From<RemoteError> for WorkError {
    fn from(error: RemoteError) -> Self {
        match error.kind() {
            ErrorKind::Cancelled => Self::Cancelled,
            _ => Self::Remote(RemoteFailure(Box::new(error))),
        }
    }
}

impl From<FileError> for WorkError {
    fn from(error: FileError) -> Self {
        if error.kind() == ErrorKind::Cancelled {
            return Self::Cancelled;
        }
        Self::File(FileFailure(error))
    }
}

impl From<ExecError> for WorkError {
    fn from(error: ExecError) -> Self {
        Self::Exec(ExecFailure(error))
    }
}

impl WorkError {
    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Remote(RemoteFailure(error)) => error.hint(),
            Self::Fetch(error) => error.hint(),
            _ => None,
        }
    }

    /// Whether a layer was to be read that nobody has fetched.
    pub(crate) fn is_absent_layer(&self) -> bool {
        let error = match self {
            Self::Store(error) => Some(error),
            Self::File(FileFailure(error)) => error.store(),
            Self::Input(CacheError::Result { source: Some(error), .. }) => error.downcast_ref(),
            _ => None,
        };
        matches!(error, Some(StoreError::LayerAbsent { .. }))
    }

    /// Who is to blame.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::File(FileFailure(error)) => error.kind(),
            Self::Exec(ExecFailure(error)) => error.kind(),
            Self::Remote(RemoteFailure(error)) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Fetch(error) => error.kind(),
            Self::Input(error) => error.kind(),
            Self::NoContext { .. } | Self::Context(_) | Self::Checksum { .. } => ErrorKind::UserInput,
            Self::ImageGone { .. } => ErrorKind::Environment,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Unresolved { .. } | Self::Thread(_) => ErrorKind::Internal,
        }
    }
}

/// The executor has kinds of its own, since it depends on nothing of forge.
pub fn executor_kind(error: &ExecutorError) -> ErrorKind {
    match error.kind() {
        forge_executor::ErrorKind::UserInput => ErrorKind::UserInput,
        forge_executor::ErrorKind::Environment => ErrorKind::Environment,
        forge_executor::ErrorKind::Remote => ErrorKind::Remote,
        forge_executor::ErrorKind::Unsupported => ErrorKind::Unsupported,
        forge_executor::ErrorKind::Internal => ErrorKind::Internal,
    }
}

impl From<WorkError> for WorkerError {
    fn from(error: WorkError) -> Self {
        if matches!(error, WorkError::Cancelled) {
            return Self::Cancelled;
        }
        let (message, hint) = (chain(&error), error.hint());
        Self::Other { kind: error.kind(), message, source: Some(Box::new(error)), hint }
    }
}
