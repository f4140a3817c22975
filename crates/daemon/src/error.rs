use crate::Address;
use forge_image::ErrorKind;

/// Why the daemon cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Not an address that can be listened on.
    #[error("cannot listen on {address:?}: expected unix:///path, tcp://host:port or fd://")]
    Address {
        /// As it was given.
        address: String,
    },
    /// Somebody else listens there, or the place cannot be used.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: Address,
        /// The cause.
        source: std::io::Error,
    },
    /// A TCP socket gives everybody who can reach it what root can do.
    #[error("refusing to listen on {address} without client certificates")]
    Unprotected {
        /// The address.
        address: Address,
    },
    /// A file with certificates or a key cannot be used.
    #[error("cannot use {path}: {reason}")]
    Certificate {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no socket that was bound by whoever started the daemon.
    #[error("fd:// needs sockets that were bound before, and there are none")]
    NothingInherited,
    /// The engine cannot be used.
    #[error("cannot use the store")]
    Engine(#[from] forge_engine::EngineError),
    /// The gRPC server ended by itself.
    #[error("the server ended")]
    Serve(#[from] tonic::transport::Error),
    /// The daemon's own files cannot be read or written.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl DaemonError {
    /// Who is to blame.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Address { .. } | Self::Unprotected { .. } => ErrorKind::UserInput,
            Self::Certificate { .. } | Self::NothingInherited => ErrorKind::UserInput,
            Self::Listen { .. } | Self::File { .. } => ErrorKind::Environment,
            Self::Engine(error) => error.kind(),
            Self::Serve(_) => ErrorKind::Internal,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Unprotected { .. } => {
                Some("give --tlscacert, --tlscert and --tlskey, or allow it with --allow-unprotected-tcp")
            }
            Self::NothingInherited => Some("systemd binds them where a unit has a socket unit of its name"),
            Self::Engine(error) => error.hint(),
            _ => None,
        }
    }
}
