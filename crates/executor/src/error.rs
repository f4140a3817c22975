use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

/// Says who is to blame for an error, so that a caller can choose an exit class without reading text.
///
/// The five variants are those every component of forge answers with; this crate depends on none of the others and
/// so has its own copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was asked for is wrong.
    UserInput,
    /// This machine, its kernel or its configuration refused.
    Environment,
    /// Another machine failed.
    Remote,
    /// Asked for rightly, but not built.
    Unsupported,
    /// A defect of this crate.
    Internal,
}

/// Why a sandbox could not be made, started or ended.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// The id does not match `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}`.
    #[error("invalid container id {id:?}")]
    InvalidContainerId {
        /// What was given.
        id: String,
    },
    /// The specification contradicts itself or asks for what is never done.
    #[error("invalid sandbox specification: {reason}")]
    InvalidSpec {
        /// What is wrong with it.
        reason: String,
    },
    /// The program is neither a path in the root nor found along the specification's `PATH`.
    #[error("executable {program:?} not found")]
    NotFound {
        /// First argument of the process.
        program: OsString,
    },
    /// The program exists, but the kernel refused to execute it.
    #[error("cannot execute {program:?}")]
    NotExecutable {
        /// First argument of the process.
        program: OsString,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Arguments and environment together exceed what the kernel takes (`E2BIG`).
    #[error("arguments and environment are too long")]
    ArgumentsTooLong,
    /// The working directory lies in procfs (CVE-2024-21626), or is no directory.
    #[error("working directory {path:?} refused: {reason}")]
    WorkingDirectory {
        /// Path within the container.
        path: PathBuf,
        /// Why it was refused.
        reason: String,
    },
    /// Something may not be mounted there.
    #[error("mount on {target:?} refused: {reason}")]
    MountRefused {
        /// Path within the container.
        target: PathBuf,
        /// Why it was refused.
        reason: String,
    },
    /// The root file system is unfit, e.g. its `/proc` is a symbolic link.
    #[error("root file system refused: {reason}")]
    RootRefused {
        /// What is wrong with it.
        reason: String,
    },
    /// A system call failed.
    #[error("cannot {action}")]
    System {
        /// What was being done, as words to follow "cannot".
        action: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A system call that containers need is not there: the kernel is too old, or a policy around forge hides it.
    #[error(
        "cannot {action}: Linux {release} has not every call that containers need. Please use Linux 5.12 or newer; where forge \
         runs in a container, its seccomp policy has to know these calls"
    )]
    NoSuchCall {
        /// What was being done, as words to follow "cannot".
        action: String,
        /// The kernel's release, as uname(2) says it.
        release: String,
    },
    /// Not built, or not available in this mode.
    #[error("{what} is not supported")]
    Unsupported {
        /// What was asked for.
        what: String,
    },
    /// An ordinary user cannot have a user namespace here.
    #[error("forge needs a user namespace to work without root, and gets none: {reason}")]
    NamespaceRefused {
        /// What stands against it.
        reason: String,
    },
    /// The subordinate ids of the user cannot be used.
    #[error("the subordinate ids of {} cannot be used: {reason}", file.display())]
    SubordinateIds {
        /// Where they are given.
        file: PathBuf,
        /// What is wrong with them.
        reason: String,
    },
    /// The OCI runtime refused.
    #[error("{} cannot run the container: {message}", runtime.display())]
    Runtime {
        /// The program.
        runtime: PathBuf,
        /// Its own words.
        message: String,
    },
    /// The process that sets containers up ended while it was needed.
    #[error("the sandbox set-up process ended unexpectedly while trying to {action}")]
    InitDied {
        /// What was being waited for.
        action: String,
    },
    /// The two sides of the set-up disagree about the protocol.
    #[error("unexpected message from the sandbox set-up process: {detail}")]
    Protocol {
        /// What was received.
        detail: String,
    },
}

impl ExecutorError {
    /// Says who is to blame.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidContainerId { .. }
            | Self::InvalidSpec { .. }
            | Self::NotFound { .. }
            | Self::NotExecutable { .. }
            | Self::ArgumentsTooLong
            | Self::WorkingDirectory { .. }
            | Self::MountRefused { .. }
            | Self::RootRefused { .. } => ErrorKind::UserInput,
            Self::System { .. }
            | Self::NoSuchCall { .. }
            | Self::InitDied { .. }
            | Self::NamespaceRefused { .. }
            | Self::Runtime { .. }
            | Self::SubordinateIds { .. } => ErrorKind::Environment,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Protocol { .. } => ErrorKind::Internal,
        }
    }

    pub(crate) fn system(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { action: action.into(), source: source.into() }
    }
}
