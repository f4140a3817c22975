use crate::FailedStep;
use forge_cache::CacheError;
use forge_image::ErrorKind;
use forge_llb::{InstructionSpan, VertexDigest};
use std::error::Error;

/// Why a worker could not do a step.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A process ended with a failure of its own.
    #[error("{message}")]
    Process {
        /// The exit status; 128 + n for signal n.
        exit: i32,
        /// One line, as docker words it: `process "/bin/sh -c false" did not complete successfully: exit code: 1`.
        message: String,
        /// The last lines that it wrote.
        last_lines: Vec<String>,
    },
    /// The step was told to stop and did.
    #[error("cancelled")]
    Cancelled,
    /// As the cause says; what the step was given and what it left can be looked at.
    #[error("{cause}")]
    Kept {
        /// What there is of it.
        failed: Box<FailedStep>,
        /// Why it failed.
        cause: Box<WorkerError>,
    },
    /// Anything else. The cause is boxed: the solver knows no concrete op and so not its errors.
    #[error("{message}")]
    Other {
        /// Who is to blame.
        kind: ErrorKind,
        /// One line.
        message: String,
        /// The cause.
        source: Option<Box<dyn Error + Send + Sync>>,
        /// What the user can do about it.
        hint: Option<String>,
    },
}

impl WorkerError {
    /// Who is to blame.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Process { .. } => ErrorKind::Process,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Kept { cause, .. } => cause.kind(),
            Self::Other { kind, .. } => *kind,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Other { hint, .. } => hint.as_deref(),
            Self::Kept { cause, .. } => cause.hint(),
            _ => None,
        }
    }

    /// The same with what there is of the step; who was told to stop has nothing.
    #[must_use]
    pub fn keeping(self, failed: FailedStep) -> Self {
        match self {
            Self::Cancelled => Self::Cancelled,
            cause => Self::Kept { failed: Box::new(failed), cause: Box::new(cause) },
        }
    }

    /// Why the step failed, and what there is of it.
    pub(crate) fn parted(self) -> (Self, Option<Box<FailedStep>>) {
        match self {
            Self::Kept { failed, cause } => (*cause, Some(failed)),
            error => (error, None),
        }
    }

    /// A defect of forge.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::Other { kind: ErrorKind::Internal, message: message.into(), source: None, hint: None }
    }
}

impl From<CacheError> for WorkerError {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Cancelled => Self::Cancelled,
            // The first words are BuildKit's, which clients look for.
            CacheError::Result { kind, message, source } => {
                Self::Other { kind, message: format!("failed to compute cache key: {message}"), hint: None, source }
            }
            error => Self::Other {
                kind: error.kind(),
                message: "the build cache failed".to_owned(),
                hint: error.hint(),
                source: Some(Box::new(error)),
            },
        }
    }
}

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub enum SolveError {
    /// A step failed; the others were cancelled.
    #[error("failed to solve {name:?}")]
    Step {
        /// The vertex.
        vertex: VertexDigest,
        /// Its name.
        name: String,
        /// The instruction that it comes from.
        span: Option<Box<InstructionSpan>>,
        /// What there is of it, where that was kept.
        failed: Option<Box<FailedStep>>,
        /// What went wrong.
        source: Box<WorkerError>,
    },
    /// The session was cancelled.
    #[error("the build was cancelled")]
    Cancelled,
    /// No step can go on, though the goal is not reached: a defect of the solver.
    #[error("the solver is stuck, waiting for {waiting:?}")]
    Stuck {
        /// The names of steps that were not done, the first ten.
        waiting: Vec<String>,
    },
}

impl SolveError {
    /// Who is to blame.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Step { source, .. } => source.kind(),
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Stuck { .. } => ErrorKind::Internal,
        }
    }
}
