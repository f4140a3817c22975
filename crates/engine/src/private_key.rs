//! Private keys of SSH as files hold them, and the signatures that are made with them.
//!
//! Read are keys without a passphrase: those that ssh-keygen writes (`openssh-key-v1`, OpenSSH's PROTOCOL.key), and the
//! PEM of PKCS#1, SEC 1 and PKCS#8. The algorithms are Ed25519, ECDSA on P-256 and P-384, and RSA with SHA-2.

mod der;
mod openssh;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaKeyPair,
};

/// Flags of a request to sign (RFC 8332, draft-miller-ssh-agent).
const SHA2_256: u32 = 2;
const SHA2_512: u32 = 4;

/// Why a file is no key that can be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyError {
    /// The words are those of Go's SSH library, which BuildKit uses.
    #[error("this private key is passphrase protected")]
    Passphrase,
    #[error("no key found")]
    NoKey,
    #[error("{what} are not supported")]
    Unsupported { what: String },
    #[error("the private key is damaged")]
    Damaged,
}

/// A key that signs. It has no `Debug`: nothing may show it.
pub(crate) struct PrivateKey {
    pair: Pair,
    /// As SSH writes public keys (RFC 4253, 5656, 8709): what clients name the key by.
    pub public: Vec<u8>,
    pub comment: Vec<u8>,
}

enum Pair {
    Ed25519(Box<Ed25519KeyPair>),
    Ecdsa(Curve, Box<EcdsaKeyPair>),
    Rsa(Box<RsaKeyPair>),
}

/// A curve of ECDSA.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
}

impl Curve {
    fn named(name: &[u8]) -> Result<Self, KeyError> {
        match name {
            b"nistp256" => Ok(Self::P256),
            b"nistp384" => Ok(Self::P384),
            other => Err(unsupported(&format!("keys on the curve {}", String::from_utf8_lossy(other)))),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::P256 => "nistp256",
            Self::P384 => "nistp384",
        }
    }

    fn algorithm(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
            Self::P384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
        }
    }

    /// The bytes of a number.
    fn width(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }
}

fn unsupported(what: &str) -> KeyError {
    KeyError::Unsupported { what: what.to_owned() }
}

impl PrivateKey {
    /// Reads the first key of a file.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, KeyError> {
        let text = String::from_utf8_lossy(text);
        let (_, rest) = text.split_once("-----BEGIN ").ok_or(KeyError::NoKey)?;
        let (label, rest) = rest.split_once("-----").ok_or(KeyError::NoKey)?;
        let (body, _) = rest.split_once(&format!("-----END {label}-----")).ok_or(KeyError::Damaged)?;
        // The headers of a PEM (RFC 1421) stand before an empty line.
        if body.contains("Proc-Type: 4,ENCRYPTED") || label.starts_with("ENCRYPTED") {
            return Err(KeyError::Passphrase);
        }
        let letters: String = body.split_whitespace().collect();
        let bytes = STANDARD.decode(letters).map_err(|_| KeyError::Damaged)?;
        match label {
            "OPENSSH PRIVATE KEY" => openssh::read(&bytes),
            "RSA PRIVATE KEY" => RsaKeyPair::from_der(&bytes).map_err(damaged).map(Self::rsa),
            "EC PRIVATE KEY" => der::sec1(&bytes),
            "PRIVATE KEY" => pkcs8(&bytes),
            other => Err(unsupported(&format!("files of the kind {other:?}"))),
        }
    }

    fn ed25519(pair: Ed25519KeyPair) -> Self {
        let public = [string(b"ssh-ed25519"), string(pair.public_key().as_ref())].concat();
        Self { pair: Pair::Ed25519(Box::new(pair)), public, comment: Vec::new() }
    }

    fn ecdsa(curve: Curve, pair: EcdsaKeyPair) -> Self {
        let kind = format!("ecdsa-sha2-{}", curve.name());
        let point = pair.public_key().as_ref();
        let public = [string(kind.as_bytes()), string(curve.name().as_bytes()), string(point)].concat();
        Self { pair: Pair::Ecdsa(curve, Box::new(pair)), public, comment: Vec::new() }
    }

    fn ecdsa_of(curve: Curve, private: &[u8], point: &[u8]) -> Result<Self, KeyError> {
        let digits = without_zeros(private);
        let missing = curve.width().checked_sub(digits.len()).ok_or(KeyError::Damaged)?;
        let private = [vec![0; missing], digits.to_vec()].concat();
        let pair =
            EcdsaKeyPair::from_private_key_and_public_key(curve.algorithm(), &private, point, &SystemRandom::new());
        Ok(Self::ecdsa(curve, pair.map_err(damaged)?))
    }

    fn rsa(pair: RsaKeyPair) -> Self {
        let numbers = PublicKeyComponents::<Vec<u8>>::from(pair.public());
        let public = [string(b"ssh-rsa"), number(&numbers.e), number(&numbers.n)].concat();
        Self { pair: Pair::Rsa(Box::new(pair)), public, comment: Vec::new() }
    }

    /// Signs as a request with these flags asks, in SSH's form of signatures. `None` for what is not done: SHA-1.
    pub(crate) fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        let (algorithm, signature) = match &self.pair {
            Pair::Ed25519(pair) => ("ssh-ed25519".to_owned(), pair.sign(data).as_ref().to_vec()),
            Pair::Ecdsa(curve, pair) => {
                let signature = pair.sign(&random, data).ok()?;
                let (r, s) = signature.as_ref().split_at(curve.width());
                (format!("ecdsa-sha2-{}", curve.name()), [number(r), number(s)].concat())
            }
            Pair::Rsa(pair) => {
                let (name, padding) = match flags {
                    flags if flags & SHA2_512 != 0 => ("rsa-sha2-512", &RSA_PKCS1_SHA512),
                    flags if flags & SHA2_256 != 0 => ("rsa-sha2-256", &RSA_PKCS1_SHA256),
                    _ => return None,
                };
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(padding, &random, data, &mut signature).ok()?;
                (name.to_owned(), signature)
            }
        };
        Some([string(algorithm.as_bytes()), string(&signature)].concat())
    }
}

fn pkcs8(bytes: &[u8]) -> Result<PrivateKey, KeyError> {
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes) {
        return Ok(PrivateKey::ed25519(pair));
    }
    for curve in [Curve::P256, Curve::P384] {
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(curve.algorithm(), bytes, &SystemRandom::new()) {
            return Ok(PrivateKey::ecdsa(curve, pair));
        }
    }
    let rsa = RsaKeyPair::from_pkcs8(bytes).map_err(|_| unsupported("PKCS#8 keys of this kind"))?;
    Ok(PrivateKey::rsa(rsa))
}

/// What is refused as too small, too large or inconsistent.
fn damaged(error: ring::error::KeyRejected) -> KeyError {
    match error.to_string().as_str() {
        "TooSmall" | "TooLarge" => unsupported("keys of this size"),
        _ => KeyError::Damaged,
    }
}

/// A string of RFC 4251: its length in four bytes, and its bytes.
pub(crate) fn string(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("what is signed or listed is short");
    [&length.to_be_bytes(), bytes].concat()
}

/// A number of RFC 4251, never negative: with a zero before a set highest bit.
fn number(bytes: &[u8]) -> Vec<u8> {
    let digits = without_zeros(bytes);
    match digits.first() {
        Some(first) if first & 0x80 != 0 => string(&[&[0], digits].concat()),
        _ => string(digits),
    }
}

fn without_zeros(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..]
}

/// Takes strings and numbers of RFC 4251 from the front.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn word(&mut self) -> Option<u32> {
        let (word, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*word))
    }

    pub(crate) fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.word()?).ok()?;
        let (string, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(string)
    }
}
