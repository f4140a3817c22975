use forge_image::ErrorKind;
use std::fmt;
use std::time::Duration;

/// A text that is never printed: its `Debug` and `Display` show `****`.
#[derive(Clone, PartialEq, Eq)]
pub struct Redacted(String);

impl Redacted {
    /// Hides a text.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The text, for handing it to its server.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("****")
    }
}

impl fmt::Display for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("****")
    }
}

/// How to log in to a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// A user and a password.
    Basic {
        /// The user.
        username: String,
        /// The password or access token.
        password: Redacted,
    },
    /// An OAuth refresh token (docker's `identitytoken`).
    RefreshToken(Redacted),
    /// A bearer token to be sent as it is (docker's `registrytoken`).
    Bearer(Redacted),
}

/// A token that a registry asks for (distribution specification, "Token Authentication").
#[derive(Clone, Copy, Debug)]
pub struct TokenRequest<'a> {
    /// The registry's host, with port, as in a reference.
    pub registry: &'a str,
    /// The address where tokens are given.
    pub realm: &'a str,
    /// Whom the token is for.
    pub service: Option<&'a str>,
    /// What it is to allow.
    pub scopes: &'a [String],
    /// One that the registry has just refused: another one is wanted.
    pub refused: Option<&'a Redacted>,
}

/// A token that a registry gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryToken {
    /// What the registry is shown.
    pub token: Redacted,
    /// How long it will be good.
    pub life: Duration,
}

/// Why credentials could not be found.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The configuration file cannot be read.
    #[error("cannot read registry credentials from {path}")]
    Config {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A credential helper failed.
    #[error("credential helper {helper} failed: {message}")]
    Helper {
        /// The program.
        helper: String,
        /// What it said, without secrets.
        message: String,
    },
}

impl CredentialError {
    /// Who is to blame.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Environment
    }
}
