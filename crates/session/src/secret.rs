use forge_image::ErrorKind;
use std::fmt;

/// The bytes of a secret. Its `Debug` shows nothing of them, and there is no `Display` (P24).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Docker's limit, so that a secret fits in any file system in memory.
    pub const MAX_BYTES: usize = 500 << 10;

    /// Hides bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes, for handing them to the process or server that they are meant for.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("****")
    }
}

/// Why a secret or an SSH agent could not be had. The message never holds a part of a secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The secret's file cannot be read.
    #[error("cannot read secret {id}")]
    Read {
        /// The secret.
        id: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The secret is larger than [`Secret::MAX_BYTES`].
    #[error("secret {id} is larger than the limit of 500 KiB")]
    TooLarge {
        /// The secret.
        id: String,
    },
    /// The agent does not answer.
    #[error("cannot connect to the SSH agent {id}")]
    Agent {
        /// The agent.
        id: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The build was cancelled before there was an answer.
    #[error("cancelled")]
    Cancelled,
}

impl SecretError {
    /// Who is to blame.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLarge { .. } => ErrorKind::UserInput,
            Self::Read { .. } | Self::Agent { .. } => ErrorKind::Environment,
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "****");
    }
}
