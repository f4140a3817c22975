//! What proves to servers who asks.

use super::error::RemoteError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use forge_session::{Redacted, Secret};

/// The value of `Authorization` for a user and a password.
pub(super) fn basic(user: &[u8], password: &[u8]) -> Redacted {
    Redacted::new(format!("Basic {}", STANDARD.encode([user, b":", password].concat())))
}

/// The text of a secret that goes into a header, without the newline that its file ends with.
pub(super) fn text<'a>(id: &str, secret: &'a Secret) -> Result<&'a str, RemoteError> {
    let bad = || RemoteError::BadSecret { id: id.to_owned() };
    let text = std::str::from_utf8(secret.reveal()).map_err(|_| bad())?.trim_end_matches(['\r', '\n']);
    match text.chars().any(char::is_control) {
        true => Err(bad()),
        false => Ok(text),
    }
}
