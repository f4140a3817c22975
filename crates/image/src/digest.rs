use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use std::fmt;
use std::str::FromStr;

/// A hash of exact bytes, `sha256:<64 hex digits>` or `sha512:<128 hex digits>`.
///
/// The grammar is the OCI image specification's (`descriptor.md`, "Digests") with only the registered
/// algorithms admitted; a value of this type is therefore safe as a path component (A72).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// Why a string is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid digest {value:?}: {reason}")]
pub struct DigestError {
    /// The rejected text, cut to 160 characters.
    pub value: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Digest {
    /// Hashes bytes with SHA-256, the algorithm that OCI prescribes.
    pub fn sha256(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The algorithm, `sha256` or `sha512`.
    pub fn algorithm(&self) -> &str {
        self.split().0
    }

    /// The hash in lower-case hexadecimal digits.
    pub fn hex(&self) -> &str {
        self.split().1
    }

    /// The first twelve hexadecimal digits, as docker prints ids.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }

    /// The whole digest as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn split(&self) -> (&str, &str) {
        self.0.split_once(':').expect("a digest holds a colon: checked when it was made")
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(value: &str) -> Result<Self, DigestError> {
        let error = |reason| DigestError { value: value.chars().take(160).collect(), reason };
        let (algorithm, hex) = value.split_once(':').ok_or(error("no algorithm before a colon"))?;
        let length = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return Err(error("unknown algorithm")),
        };
        if hex.len() != length {
            return Err(error("wrong number of digits"));
        }
        if !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(error("only lower-case hexadecimal digits are allowed"));
        }
        Ok(Self(value.to_owned()))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(value: String) -> Result<Self, DigestError> {
        value.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An incremental SHA-256 that ends in a [`Digest`].
#[derive(Clone, Default)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// Starts an empty hash.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Ends the hash.
    pub fn finish(self) -> Digest {
        Digest(format!("sha256:{}", hex::encode(self.0.finalize())))
    }
}

impl std::io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

macro_rules! digest_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Digest);

        impl $name {
            /// Names a digest for what it is.
            pub fn new(digest: Digest) -> Self {
                Self(digest)
            }
            /// The digest itself.
            pub fn digest(&self) -> &Digest {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;
            fn from_str(value: &str) -> Result<Self, DigestError> {
                Ok(Self(value.parse()?))
            }
        }
    };
}

digest_newtype! {
    /// The digest of a layer's uncompressed tar stream. Never that of compressed bytes.
    DiffId
}
digest_newtype! {
    /// The digest of an image's config document: docker's "image ID".
    ImageId
}
digest_newtype! {
    /// The digest of a stack of layers, as the image specification defines it (`config.md`, "Layer ChainID").
    ChainId
}

impl ChainId {
    /// Folds a stack of layers, lowest first. An empty stack has no chain.
    pub fn of(layers: &[DiffId]) -> Option<Self> {
        let (first, rest) = layers.split_first()?;
        let fold = |chain: Digest, layer: &DiffId| Digest::sha256(format!("{chain} {layer}").as_bytes());
        Some(Self(rest.iter().fold(first.0.clone(), fold)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a72_only_the_strict_grammar_is_a_digest() {
        let good = Digest::sha256(b"");
        assert_eq!(good.as_str(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(good.short(), "e3b0c44298fc");
        let upper = good.as_str().replace('b', "B");
        let newline = format!("{}\n", good);
        for bad in ["", "sha256:", "sha256:../../x", "md5:00", &upper, &newline, "e3b0", "sha512:00"] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn chain_of_one_layer_is_its_diff_id() {
        let layer = DiffId::new(Digest::sha256(b"a"));
        assert_eq!(ChainId::of(std::slice::from_ref(&layer)).unwrap().digest(), layer.digest());
        assert_eq!(ChainId::of(&[]), None);
        let two = ChainId::of(&[layer.clone(), layer.clone()]).unwrap();
        assert_eq!(two.digest(), &Digest::sha256(format!("{layer} {layer}").as_bytes()));
    }
}
