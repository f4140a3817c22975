//! A record on its way: an image manifest whose layers are the blobs of the results, with the record as an annotation.

use super::trust::{RecordSigner, Trust};
use crate::{CacheKey, StepRecord, StepUsage};
use forge_image::{Annotations, Descriptor, DiffId, Digest, Manifest, MediaType};
use forge_registry::OfferedLayer;
use forge_store::FileTimes;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The type of the config of such manifests. The config is empty: one request has the whole record.
const CONFIG: &str = "application/vnd.forge.cache.step.v1+json";
/// The config's bytes.
pub(super) const EMPTY: &[u8] = b"{}";
const ANNOTATION: &str = "forge.cache.step";
/// Of the text of the record, which fixes keys and DiffIds. Which blobs carry the layers is not signed and need not be: what
/// they hold is compared with the DiffIds.
const SIGNATURE: &str = "forge.cache.signature";
const VERSION: u32 = 1;
/// What overlayfs mounts at most.
const MOST_LAYERS: usize = 500;
/// No op has as many outputs.
const MOST_OUTPUTS: usize = 64;

/// A record as another machine can read it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SentRecord {
    pub keys: Vec<CacheKey>,
    pub name: String,
    /// The stack of each output, lowest first; `None` for one that is not kept.
    pub outputs: Vec<Option<Vec<OfferedLayer>>>,
    pub bytes: u64,
    pub wall_ms: u64,
    pub usage: Option<StepUsage>,
    pub created: SystemTime,
}

#[derive(Serialize, Deserialize)]
struct Text {
    version: u32,
    keys: Vec<CacheKey>,
    name: String,
    outputs: Vec<Option<Vec<TextLayer>>>,
    bytes: u64,
    wall_ms: u64,
    cpu_us: Option<u64>,
    peak_memory: Option<u64>,
    created: u64,
}

#[derive(Serialize, Deserialize)]
struct TextLayer {
    /// The place of its blob among the manifest's layers.
    blob: usize,
    diff_id: Digest,
    /// There where forge made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made: Option<TextTimes>,
    /// When it was made, in nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created_ns: Option<u64>,
}

/// Which times of a layer are content.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TextTimes {
    Content,
    Ignored,
    /// Those outside of this time.
    Outside(i64, i64),
}

impl From<FileTimes> for TextTimes {
    fn from(times: FileTimes) -> Self {
        match times {
            FileTimes::Content => Self::Content,
            FileTimes::Ignored => Self::Ignored,
            FileTimes::ContentOutside { from, until } => Self::Outside(from, until),
        }
    }
}

impl From<TextTimes> for FileTimes {
    fn from(times: TextTimes) -> Self {
        match times {
            TextTimes::Content => Self::Content,
            TextTimes::Ignored => Self::Ignored,
            TextTimes::Outside(from, until) => Self::ContentOutside { from, until },
        }
    }
}

impl SentRecord {
    /// Says of a record where its layers can be had.
    pub fn of(keys: &[CacheKey], record: &StepRecord, outputs: Vec<Vec<OfferedLayer>>) -> Self {
        Self {
            keys: keys.to_vec(),
            name: record.name.clone(),
            outputs: outputs.into_iter().map(Some).collect(),
            bytes: record.bytes,
            wall_ms: record.wall_ms,
            usage: record.usage,
            created: record.created,
        }
    }

    /// The document, signed where there is a key. The same record is the same bytes on every machine that made it.
    pub fn to_document(&self, signer: Option<&RecordSigner>) -> Vec<u8> {
        let mut layers = Vec::new();
        let text = self.to_text(&mut layers);
        let signature = signer.map(|signer| signer.sign(&text));
        envelope(text, signature, layers)
    }

    /// The record's text; the blobs that it names are added to `layers`, each once.
    pub fn to_text(&self, layers: &mut Vec<Descriptor>) -> String {
        let mut place = |layer: &OfferedLayer| {
            let blob = layers.iter().position(|known| known.digest == layer.blob.digest).unwrap_or_else(|| {
                let blob = &layer.blob;
                layers.push(Descriptor::new(blob.media_type.clone(), blob.digest.clone(), blob.size));
                layers.len() - 1
            });
            TextLayer {
                blob,
                diff_id: layer.diff_id.digest().clone(),
                made: layer.made.map(TextTimes::from),
                created_ns: layer.created.map(nanoseconds),
            }
        };
        let mut stack = |stack: &Vec<OfferedLayer>| stack.iter().map(&mut place).collect();
        let outputs = self.outputs.iter().map(|output| output.as_ref().map(&mut stack)).collect();
        let text = Text {
            version: VERSION,
            keys: self.keys.clone(),
            name: self.name.clone(),
            outputs,
            bytes: self.bytes,
            wall_ms: self.wall_ms,
            cpu_us: self.usage.map(|usage| usage.cpu_us),
            peak_memory: self.usage.map(|usage| usage.peak_memory),
            created: seconds(self.created),
        };
        serde_json::to_string(&text).expect("a record holds only JSON values")
    }

    /// Reads what somebody put under a key, whom the reader trusts.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn from_document(bytes: &[u8], key: &CacheKey, trust: &Trust) -> Result<Self, String> {
        let manifest = Manifest::from_json(bytes, Some(&MediaType::OciManifest)).map_err(|error| error.to_string())?;
        if manifest.config.media_type.as_str() != CONFIG {
            return Err("it is no record of a step".to_owned());
        }
        let annotation = |name| manifest.annotations.get(name).and_then(|value| value.as_str());
        let text = annotation(ANNOTATION).unwrap_or_default();
        if !trust.accepts(text, annotation(SIGNATURE)) {
            return Err("it is not signed by anybody who is trusted".to_owned());
        }
        let text: Text = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if text.version != VERSION {
            return Err(format!("it has version {}, known is {VERSION}", text.version));
        }
        if !text.keys.contains(key) {
            return Err("it is the record of another step".to_owned());
        }
        if text.outputs.len() > MOST_OUTPUTS || text.outputs.iter().flatten().any(|stack| stack.len() > MOST_LAYERS) {
            return Err("it has too many layers".to_owned());
        }
        let layer = |layer: &TextLayer| {
            let blob = manifest.layers.get(layer.blob).ok_or("it names a layer that it does not bring")?;
            if layer.diff_id.algorithm() != "sha256" || !is_layer(&blob.media_type) {
                return Err("it names something that is no layer");
            }
            let blob = Descriptor::new(blob.media_type.clone(), blob.digest.clone(), blob.size);
            let made = layer.made.map(FileTimes::from);
            Ok(OfferedLayer {
                blob,
                diff_id: DiffId::new(layer.diff_id.clone()),
                made,
                created: layer.created_ns.map(|told| moment(Duration::from_nanos(told))),
            })
        };
        let stack = |stack: &Vec<TextLayer>| stack.iter().map(layer).collect::<Result<Vec<_>, _>>();
        let outputs = text.outputs.iter().map(|output| output.as_ref().map(stack).transpose());
        let outputs = outputs.collect::<Result<_, _>>()?;
        let usage = text.cpu_us.zip(text.peak_memory);
        Ok(Self {
            keys: text.keys,
            name: text.name,
            outputs,
            bytes: text.bytes,
            wall_ms: text.wall_ms,
            usage: usage.map(|(cpu_us, peak_memory)| StepUsage { cpu_us, peak_memory }),
            created: moment(Duration::from_secs(text.created)),
        })
    }
}

/// A record's text as a document.
pub(super) fn envelope(text: String, signature: Option<String>, layers: Vec<Descriptor>) -> Vec<u8> {
    let signature = signature.map(|signature| (SIGNATURE.to_owned(), signature.into()));
    let annotations = Annotations::from_iter([(ANNOTATION.to_owned(), text.into())].into_iter().chain(signature));
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(MediaType::OciManifest),
        config: config(),
        layers,
        annotations,
        unknown: serde_json::Map::new(),
    };
    manifest.to_json()
}

fn seconds(moment: SystemTime) -> u64 {
    moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn nanoseconds(moment: SystemTime) -> u64 {
    let told = moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    u64::try_from(told).unwrap_or(u64::MAX)
}

/// What nobody can have made yet was made now.
fn moment(told: Duration) -> SystemTime {
    UNIX_EPOCH.checked_add(told).unwrap_or(UNIX_EPOCH).min(SystemTime::now())
}

/// The config that every such manifest has.
pub(super) fn config() -> Descriptor {
    Descriptor::of(MediaType::Other(CONFIG.to_owned()), EMPTY)
}

fn is_layer(media_type: &MediaType) -> bool {
    use MediaType::{DockerLayer, DockerLayerGzip, DockerLayerZstd, OciLayer, OciLayerGzip, OciLayerZstd};
    matches!(media_type, OciLayer | OciLayerGzip | OciLayerZstd | DockerLayer | DockerLayerGzip | DockerLayerZstd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> CacheKey {
        CacheKey::from_bytes([byte; 32])
    }

    fn layer(text: &str) -> OfferedLayer {
        let blob = Descriptor::of(MediaType::OciLayerGzip, text.as_bytes());
        let made = Some(FileTimes::ContentOutside { from: -1, until: 5 });
        let created = Some(UNIX_EPOCH + Duration::new(8, 9));
        OfferedLayer { blob, diff_id: DiffId::new(Digest::sha256(text.as_bytes())), made, created }
    }

    fn record() -> SentRecord {
        SentRecord {
            keys: vec![key(1), key(2)],
            name: "RUN x".to_owned(),
            outputs: vec![Some(vec![layer("a"), layer("b")]), Some(vec![layer("a")]), Some(Vec::new()), None],
            bytes: 3,
            wall_ms: 4,
            usage: Some(StepUsage { cpu_us: 5, peak_memory: 6 }),
            created: UNIX_EPOCH + Duration::from_secs(7),
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let document = record().to_document(None);
        assert_eq!(SentRecord::from_document(&document, &key(1), &Trust::Everybody), Ok(record()));
        assert_eq!(SentRecord::from_document(&document, &key(2), &Trust::Everybody), Ok(record()));
        let manifest = Manifest::from_json(&document, None).unwrap();
        assert_eq!(manifest.layers.len(), 2, "a blob is listed once");
    }

    // Seen to fail without the looks at key, place and media type.
    #[test]
    fn a44_a_record_names_nothing_but_what_it_brings() {
        let document = String::from_utf8(record().to_document(None)).unwrap();
        let refused = |from: &str, to: &str, key: &CacheKey| {
            assert!(from.is_empty() || document.contains(from), "{from} in {document}");
            SentRecord::from_document(document.replacen(from, to, 1).as_bytes(), key, &Trust::Everybody).unwrap_err()
        };
        let first = key(1);
        assert_eq!(refused("", "", &key(3)), "it is the record of another step");
        assert_eq!(refused(r#"\"blob\":1"#, r#"\"blob\":2"#, &first), "it names a layer that it does not bring");
        assert_eq!(
            refused("image.layer.v1.tar+gzip", "image.config.v1+json", &first),
            "it names something that is no layer"
        );
        assert_eq!(refused("cache.step.v1", "cache.other.v1", &first), "it is no record of a step");
        assert_eq!(refused(r#"\"version\":1"#, r#"\"version\":2"#, &first), "it has version 2, known is 1");
        assert!(refused(r#"\"diff_id\":\"sha256:"#, r#"\"diff_id\":\"../../"#, &first).contains("digest"));
        let many = SentRecord { outputs: vec![Some(vec![layer("a"); MOST_LAYERS + 1])], ..record() };
        let read = |bytes: &[u8]| SentRecord::from_document(bytes, &first, &Trust::Everybody);
        assert_eq!(read(&many.to_document(None)).unwrap_err(), "it has too many layers");
        assert!(read(b"{}").is_err());
    }

    // Seen to fail with a trust that accepts whatever is signed.
    #[test]
    fn a44_only_what_a_trusted_key_signed_is_read() {
        let (signer, other) = (RecordSigner::of_seed(&[1; 32]).unwrap(), RecordSigner::of_seed(&[2; 32]).unwrap());
        let trust = Trust::Keys(vec![signer.public_key()]);
        let read = |document: &[u8]| SentRecord::from_document(document, &key(1), &trust);
        let signed = record().to_document(Some(&signer));
        assert_eq!(read(&signed), Ok(record()));
        assert_eq!(SentRecord::from_document(&signed, &key(1), &Trust::Everybody), Ok(record()));
        let refused = Err("it is not signed by anybody who is trusted".to_owned());
        assert_eq!(read(&record().to_document(None)), refused);
        assert_eq!(read(&record().to_document(Some(&other))), refused);
        let lies = String::from_utf8(signed).unwrap().replacen("RUN x", "RUN y", 1);
        assert_eq!(read(lies.as_bytes()), refused);
    }
}
