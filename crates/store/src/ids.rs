use crate::FileTimes;
use forge_image::{Descriptor, DiffId};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// How many digits of an id say when its layer was made: enough for 8,900 years.
const TIME_DIGITS: usize = 12;

/// The store's own name of a layer: 32 lower-case hexadecimal digits, the first 12 of which say when it was named, in milliseconds
/// since the epoch, and the others nothing.
///
/// The constructor checks the form, so a value is safe as a path component (A28). Stacks of hundreds are copied with every
/// step that stands on them, so the digits lie in the value itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerId([u8; 32]);

/// What a layer's entries amount to, whatever tar dialect or compression carried them: a BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContentDigest([u8; 32]);

/// Why a string is not an id of the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} {value:?}: expected {digits} lower-case hexadecimal digits")]
pub struct IdError {
    what: &'static str,
    digits: usize,
    value: String,
}

/// What the store knows of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerRecord {
    /// The layer.
    pub id: LayerId,
    /// What its entries amount to.
    pub content: ContentDigest,
    /// Which modification times took part in that.
    pub times: FileTimes,
    /// The bytes of its regular files, each link group once.
    pub bytes: u64,
    /// The number of entries; an empty diff has none.
    pub entries: u64,
    /// The digest of its tar: of forge's own dialect, or for a foreign layer what the foreign tar hashed to.
    pub diff_id: Option<DiffId>,
    /// Whether it came as a blob that somebody else made.
    pub foreign: bool,
    /// The blobs that carry it.
    pub blobs: Vec<LayerBlob>,
}

/// What an image says of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerOutline {
    /// The digest of its tar, see [`LayerRecord::diff_id`].
    pub diff_id: Option<DiffId>,
    /// Whether it came as a blob that somebody else made.
    pub foreign: bool,
    /// When it was made, or came into the store where nobody says that. Layers of one second are told apart.
    pub stored: SystemTime,
}

/// One tar, compressed or not, that carries a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerBlob {
    /// Media type, digest and size; for a foreign blob as its manifest said.
    pub descriptor: Descriptor,
    /// The digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// How the tar is compressed.
    pub compression: Compression,
    /// The `clamp_mtime` that it was made with.
    pub clamp: Option<i64>,
    /// Whether somebody else made it.
    pub foreign: bool,
}

/// How a layer's tar is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// A bare tar.
    None,
    /// gzip (RFC 1952), one or several members.
    Gzip {
        /// The level; `None` is forge's choice.
        level: Option<u32>,
    },
    /// zstd (RFC 8878), one or several frames.
    Zstd {
        /// The level; `None` is forge's choice.
        level: Option<i32>,
    },
    /// zstd in the arrangement zstd:chunked: each file, or piece of a big one, is a frame of its own, and a table of contents
    /// behind the tar says where.
    ZstdChunked {
        /// The level; `None` is forge's choice.
        level: Option<i32>,
    },
    /// gzip in eStargz's arrangement: each file, or piece of a big one, is a member of its own, and a table of contents at the
    /// end says where. Its tar is another one, so it has a DiffId of its own.
    Estargz {
        /// The level; `None` is forge's choice.
        level: Option<u32>,
    },
}

/// How a layer is written as tar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TarOptions {
    /// Modification times later than this, in seconds since the epoch, become this.
    pub clamp_mtime: Option<i64>,
}

impl LayerId {
    /// The id of a new layer. Layers that were made one after the other stand beside each other in the database's indexes, so
    /// that recording an image of hundreds changes a few pages of them instead of hundreds.
    pub fn of_new_layer() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let time = format!("{:0width$x}", now & ((1 << (4 * TIME_DIGITS)) - 1), width = TIME_DIGITS);
        (time + &random_hex()[TIME_DIGITS..]).parse().expect("all are digits")
    }

    /// Digits that nobody else has, for anything.
    pub fn random() -> Self {
        random_hex().parse().expect("random digits are digits")
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).expect("digits are text")
    }
}

/// The latter half of the digits is as random as all of them, and stacks of hundreds are looked up with every step.
impl Hash for LayerId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let half: [u8; 16] = self.0[16..].try_into().expect("it has 32 digits");
        state.write_u128(u128::from_ne_bytes(half));
    }
}

impl ContentDigest {
    /// Names 32 bytes for what they are.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Of a layer that came as a tar: the tar's digest says it all, before the tar is here.
    pub(crate) fn of_tar(diff_id: &DiffId) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("forge content of a tar 1");
        hasher.update(diff_id.digest().as_str().as_bytes());
        hasher.finalize().into()
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<blake3::Hash> for ContentDigest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

/// 128 random bits as 32 digits: enough that two processes never choose the same.
pub(crate) fn random_hex() -> String {
    let mut bytes = [0_u8; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        // getrandom(2) may return early only by a signal; it cannot fail otherwise once the pool is seeded.
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()).unwrap_or(0);
    }
    hex::encode(bytes)
}

pub(crate) fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn check_hex(what: &'static str, digits: usize, value: &str) -> Result<(), IdError> {
    if value.len() == digits && is_lower_hex(value) {
        return Ok(());
    }
    Err(IdError { what, digits, value: value.chars().take(160).collect() })
}

impl FromStr for LayerId {
    type Err = IdError;
    fn from_str(value: &str) -> Result<Self, IdError> {
        check_hex("layer id", 32, value)?;
        Ok(Self(value.as_bytes().try_into().expect("it has 32 digits")))
    }
}

impl FromStr for ContentDigest {
    type Err = IdError;
    fn from_str(value: &str) -> Result<Self, IdError> {
        check_hex("content digest", 64, value)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(value, &mut bytes).expect("64 hexadecimal digits are 32 bytes");
        Ok(Self(bytes))
    }
}

macro_rules! text_conversions {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(value: String) -> Result<Self, IdError> {
                value.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

text_conversions!(LayerId);
text_conversions!(ContentDigest);

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a28_ids_are_checked_before_they_become_paths() {
        let long = "0".repeat(300);
        for bad in ["", ".", "..", "../../x", "a/b", &long, "0123456789ABCDEF0123456789ABCDEF"] {
            assert!(bad.parse::<LayerId>().is_err(), "{bad:?}");
            assert!(serde_json::from_value::<LayerId>(bad.into()).is_err(), "{bad:?}");
            assert!(bad.parse::<ContentDigest>().is_err(), "{bad:?}");
        }
        let id = LayerId::random();
        assert_eq!(id.as_str().parse::<LayerId>().unwrap(), id);
        assert_ne!(id, LayerId::random());
        let first = LayerId::of_new_layer();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(first < LayerId::of_new_layer());
        let content = ContentDigest::from(blake3::hash(b"x"));
        assert_eq!(content.to_string().parse::<ContentDigest>().unwrap(), content);
    }
}
