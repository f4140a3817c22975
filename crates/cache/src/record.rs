use crate::{CacheError, CacheKey, InputPart, Listing, ResultRef};
use forge_store::LayerId;
use std::sync::OnceLock;
use std::time::SystemTime;

/// What is kept of a step that ran: the unit of the cache.
///
/// One record may be found under several keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepRecord {
    /// What users saw, `[build 2/5] RUN make`.
    pub name: String,
    /// Whether it brought something in from elsewhere: an image, a repository, a download.
    pub is_source: bool,
    /// The results, one for each output.
    pub outputs: Vec<ResultRef>,
    /// What the results amount to, as [`CacheKey::result`] says; `None` where that is not known.
    pub result: Option<CacheKey>,
    /// The bytes of the layers that it made: what removing the record would free.
    pub bytes: u64,
    /// How long the step ran, in milliseconds.
    pub wall_ms: u64,
    /// What its processes used; `None` for a step that ran none.
    pub usage: Option<StepUsage>,
    /// When it ran.
    pub created: SystemTime,
    /// When it was last made or used, exact to the hour.
    pub last_used: SystemTime,
    /// The boot during which the record was written: its result was not necessarily on disk when that boot ended.
    pub boot_id: String,
}

/// What a record's keys were made of, for people: read only to say why a step was not found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepInputs {
    /// Name and value, in order.
    pub readable: Vec<(String, String)>,
    /// What each input contributed to the content key: tells which of them changed.
    pub parts: Vec<InputPart>,
    /// For inputs of which only a part was read, by their number: what that was.
    pub listings: Vec<(usize, Listing)>,
    /// The keys under which shared caches have the record too; none in records of earlier versions.
    pub keys: Vec<CacheKey>,
}

impl StepInputs {
    /// The bytes that [`StepInputs::from_bytes`] reads: the length of a JSON document with the readable values, the
    /// parts and the keys (4 bytes, little endian), the document, then for each listing the number of its input (4 bytes)
    /// and itself.
    pub fn to_bytes(&self) -> Vec<u8> {
        let document = (&self.readable, &self.parts, &self.keys);
        let document = serde_json::to_vec(&document).expect("lists of strings have a JSON form");
        let mut out = Vec::with_capacity(document.len() + 64);
        out.extend_from_slice(&(document.len() as u32).to_le_bytes());
        out.extend_from_slice(&document);
        for (input, listing) in &self.listings {
            out.extend_from_slice(&(*input as u32).to_le_bytes());
            listing.encode(&mut out);
        }
        out
    }

    /// Reads what [`StepInputs::to_bytes`] wrote.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CacheError> {
        Self::decode(bytes).ok_or(CacheError::DamagedInputs)
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let length = usize::try_from(number(&mut bytes)?).ok()?;
        let document = bytes.split_off(..length)?;
        let (readable, parts, keys) = match serde_json::from_slice(document) {
            Ok(document) => document,
            // Earlier versions wrote no keys.
            Err(_) => {
                let (readable, parts) = serde_json::from_slice(document).ok()?;
                (readable, parts, Vec::new())
            }
        };
        let mut listings = Vec::new();
        while !bytes.is_empty() {
            let input = usize::try_from(number(&mut bytes)?).ok()?;
            listings.push((input, Listing::decode(&mut bytes)?));
        }
        Some(Self { readable, parts, listings, keys })
    }

    /// What an input showed, where only a part of it was read.
    pub fn listing(&self, input: usize) -> Option<&Listing> {
        self.listings.iter().find(|(of, _)| *of == input).map(|(_, listing)| listing)
    }
}

fn number(bytes: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.split_off(..4)?.try_into().ok()?))
}

/// What the processes of a step used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepUsage {
    /// Processor time in microseconds.
    pub cpu_us: u64,
    /// Most bytes of memory at once.
    pub peak_memory: u64,
}

impl StepRecord {
    /// The boot id that records written now carry: the kernel's, or an empty text where /proc hides it.
    pub fn current_boot() -> &'static str {
        static BOOT: OnceLock<String> = OnceLock::new();
        let read = || std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        BOOT.get_or_init(read)
    }

    /// Whether it was written since the machine was started.
    pub fn is_of_this_boot(&self) -> bool {
        self.boot_id == Self::current_boot()
    }

    /// The layers that it needs.
    pub fn layers(&self) -> impl Iterator<Item = &LayerId> {
        self.outputs.iter().flat_map(ResultRef::layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_of_earlier_versions_are_read() {
        let inputs = StepInputs {
            readable: vec![("args".to_owned(), "make".to_owned())],
            keys: vec![CacheKey::from_bytes([1; 32])],
            ..StepInputs::default()
        };
        assert_eq!(StepInputs::from_bytes(&inputs.to_bytes()).unwrap(), inputs);
        let document = serde_json::to_vec(&(&inputs.readable, &inputs.parts)).unwrap();
        let earlier = [&(document.len() as u32).to_le_bytes()[..], &document].concat();
        assert_eq!(StepInputs::from_bytes(&earlier).unwrap(), StepInputs { keys: Vec::new(), ..inputs });
    }
}
