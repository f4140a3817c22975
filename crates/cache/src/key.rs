use crate::stacks::digits;
use crate::{MadeLayer, ResultRef};
use blake3::Hasher;
use forge_store::ContentDigest;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What an op contributes to a key: a hash of everything that decides about its result except its inputs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpKey([u8; 32]);

impl OpKey {
    /// Hashes the op's bytes: its canonical encoding, what its sources are pinned to, its platform.
    pub fn new(bytes: &[u8]) -> Self {
        Self(blake3::derive_key("forge cache op key v1", bytes))
    }
}

impl fmt::Display for OpKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for OpKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Under what a result is found again.
///
/// A key is the blake3 hash, in `derive_key` mode, of: the op key (32 bytes), the number of inputs (8 bytes,
/// little endian), then for each input `K`, the input's key (32 bytes) and its output (8 bytes), or `C` and the
/// digest of its content (32 bytes). The mode's context text tells definition keys from content keys. Changing
/// any of this loses every cache; the golden tests show it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CacheKey([u8; 32]);

/// What one input contributes to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputPart {
    /// The definition key of the step that makes it.
    Key {
        /// The definition key.
        key: CacheKey,
        /// Which of the step's outputs is meant.
        output: usize,
    },
    /// The digest of what the op can see of it.
    Content(ContentDigest),
}

impl CacheKey {
    /// The key that is known before anything ran: the op and the definition keys of its inputs.
    ///
    /// An input that has no definition key (a local context) takes part by its content.
    pub fn definition(op: &OpKey, inputs: &[InputPart]) -> Self {
        Self::hash("forge cache definition key v1", op, inputs)
    }

    /// The key that tells whether the same op saw the same bytes, wherever they came from.
    pub fn content(op: &OpKey, inputs: &[InputPart]) -> Self {
        Self::hash("forge cache content key v1", op, inputs)
    }

    /// A key without one of the inputs: what it leads to saw the same of the others.
    pub fn detached(op: &OpKey, inputs: &[InputPart], without: usize) -> Self {
        let others = inputs.iter().enumerate().filter(|(input, _)| *input != without).map(|(_, part)| *part);
        let others: Vec<InputPart> = others.collect();
        Self::hash("forge cache detached key v1", op, &others)
    }

    /// What results amount to: equal for two runs, of whatever steps, that made the same of the same layers. `None` where
    /// nothing was made.
    ///
    /// The layers below the top-most one take part by their ids: a layer's folders have the metadata of those below them.
    pub fn result(outputs: &[ResultRef], made: &[Option<MadeLayer>]) -> Option<Self> {
        let mut hasher = Hasher::new_derive_key("forge cache result v1");
        hasher.update(&(outputs.len() as u64).to_le_bytes());
        for (output, made) in outputs.iter().zip(made) {
            let layers = output.layers();
            let below = if made.is_some() { layers.split_last()?.1 } else { layers };
            hasher.update(&(below.len() as u64).to_le_bytes());
            hasher.update(&digits(below));
            match made {
                Some(made) => hasher.update(b"M").update(made.content.as_bytes()),
                None => hasher.update(b"-"),
            };
        }
        made.iter().any(Option::is_some).then(|| Self(*hasher.finalize().as_bytes()))
    }

    fn hash(context: &str, op: &OpKey, inputs: &[InputPart]) -> Self {
        let mut hasher = Hasher::new_derive_key(context);
        hasher.update(&op.0);
        hasher.update(&(inputs.len() as u64).to_le_bytes());
        for input in inputs {
            input.add_to(&mut hasher);
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Names bytes as a key.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl InputPart {
    fn add_to(&self, hasher: &mut Hasher) {
        match self {
            Self::Key { key, output } => {
                hasher.update(b"K").update(&key.0).update(&(*output as u64).to_le_bytes());
            }
            Self::Content(digest) => {
                hasher.update(b"C").update(digest.as_bytes());
            }
        }
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a cache key has 64 lower-case hexadecimal digits")]
pub struct CacheKeyError;

impl FromStr for CacheKey {
    type Err = CacheKeyError;

    fn from_str(text: &str) -> Result<Self, CacheKeyError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| CacheKeyError)?;
        match hex::encode(bytes) == text {
            true => Ok(Self(bytes)),
            false => Err(CacheKeyError),
        }
    }
}

impl TryFrom<String> for CacheKey {
    type Error = CacheKeyError;

    fn try_from(text: String) -> Result<Self, CacheKeyError> {
        text.parse()
    }
}

impl From<CacheKey> for String {
    fn from(key: CacheKey) -> Self {
        key.to_string()
    }
}
