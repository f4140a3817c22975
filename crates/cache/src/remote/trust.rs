//! Who may say what a step comes out as: records signed with Ed25519, and whose signatures count.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

/// What a signature is of begins with this, so that no signature made for something else is one.
const DOMAIN: &[u8] = b"forge cache record 1\n";
/// What stands before the 32 bytes of a public key in its DER form (RFC 8410, 4).
const PUBLIC: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Signs records.
pub struct RecordSigner {
    pair: Ed25519KeyPair,
}

/// Whose records are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those of everybody who can write to the place.
    #[default]
    Everybody,
    /// Those that one of these keys signed.
    Keys(Vec<[u8; 32]>),
}

/// Why a file is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a private key.
    #[error("not an Ed25519 private key in PEM (PKCS #8)")]
    Private,
    /// Not a public key.
    #[error("not an Ed25519 public key in PEM")]
    Public,
}

impl RecordSigner {
    /// Reads a key as `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// [`KeyError::Private`].
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let der = der(text, "PRIVATE KEY").ok_or(KeyError::Private)?;
        // OpenSSL leaves the public half out.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|_| KeyError::Private)?;
        Ok(Self { pair })
    }

    #[cfg(test)]
    pub(super) fn of_seed(seed: &[u8; 32]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| KeyError::Private)?;
        Ok(Self { pair })
    }

    /// What others check its signatures with.
    pub fn public_key(&self) -> [u8; 32] {
        self.pair.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes")
    }

    /// The signature of a record's text.
    pub(super) fn sign(&self, text: &str) -> String {
        STANDARD.encode(self.pair.sign(&[DOMAIN, text.as_bytes()].concat()))
    }
}

impl Trust {
    /// Reads a public key as `openssl pkey -pubout` writes it.
    ///
    /// # Errors
    /// [`KeyError::Public`].
    pub fn key_from_pem(text: &str) -> Result<[u8; 32], KeyError> {
        let der = der(text, "PUBLIC KEY").ok_or(KeyError::Public)?;
        let key = der.strip_prefix(&PUBLIC).ok_or(KeyError::Public)?;
        key.try_into().map_err(|_| KeyError::Public)
    }

    /// Whether a record with that text and signature is taken.
    pub(super) fn accepts(&self, text: &str, signature: Option<&str>) -> bool {
        let Self::Keys(keys) = self else { return true };
        let Some(Ok(signature)) = signature.map(|signature| STANDARD.decode(signature)) else { return false };
        let message = [DOMAIN, text.as_bytes()].concat();
        keys.iter().any(|key| UnparsedPublicKey::new(&ED25519, key).verify(&message, &signature).is_ok())
    }
}

fn der(text: &str, label: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    STANDARD.decode(body.split_whitespace().collect::<String>()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout`.
    const PRIVATE_PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINScN0pPXhfQOoVkgXxT+2O3VYL/W4OWeRYndJXVBANY\n-----END PRIVATE KEY-----\n";
    const PUBLIC_PEM: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAutZsOlM2BoDCOpBgUL5jyNj81h/FWpSyNEhzyKRmI4g=\n-----END PUBLIC KEY-----\n";

    #[test]
    fn keys_are_read_as_openssl_writes_them() {
        let signer = RecordSigner::from_pem(PRIVATE_PEM).unwrap();
        let key = Trust::key_from_pem(PUBLIC_PEM).unwrap();
        assert_eq!(key, signer.public_key());
        assert!(Trust::Keys(vec![key]).accepts("text", Some(&signer.sign("text"))));
        assert!(!Trust::Keys(vec![key]).accepts("other", Some(&signer.sign("text"))));
        assert!(!Trust::Keys(Vec::new()).accepts("text", Some(&signer.sign("text"))));
        assert_eq!(RecordSigner::from_pem(PUBLIC_PEM).err(), Some(KeyError::Private));
        assert_eq!(Trust::key_from_pem(PRIVATE_PEM), Err(KeyError::Public));
    }
}
