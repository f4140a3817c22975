//! All records of a build in one document: for places that have one name for a cache, and for clients that ask for one.
//!
//! It is shaped like a cache of BuildKit, so that what copies, lists and removes those does so with this: a manifest (or an
//! index) that names the layers, and a config. Of BuildKit's own records the config has none, as its keys are others; forge's
//! are in a field that BuildKit passes over.

use super::document::{SentRecord, envelope};
use super::trust::RecordSigner;
use crate::CacheKey;
use forge_image::{Descriptor, MediaType};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashMap;

/// The type of BuildKit's configs of caches.
pub(super) const CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";
/// The field of the config with forge's records.
const FIELD: &str = "forge.cache.v1";
/// A config holds less than 2 KiB for a step.
pub(super) const MOST_CONFIG: u64 = 64 << 20;
/// More steps than any build has.
const MOST_RECORDS: usize = 100_000;

/// What a bundle looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundleForm {
    /// An index, as BuildKit wrote at first, instead of a manifest.
    pub index: bool,
    /// Docker's media types.
    pub docker: bool,
}

/// A bundle that is to be written: the config first.
pub(super) struct WrittenBundle {
    pub config: Vec<u8>,
    pub config_type: MediaType,
    pub document: Vec<u8>,
    pub document_type: MediaType,
}

/// A bundle that was read.
#[derive(Debug)]
pub(super) struct Bundle {
    layers: Vec<Descriptor>,
    records: Vec<ListedRecord>,
    /// Where each key's record is among them.
    keys: HashMap<CacheKey, usize>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ListedRecord {
    /// The text that is signed.
    record: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signature: Option<String>,
}

/// Makes the documents. The same records are the same bytes on every machine.
pub(super) fn write(records: &[SentRecord], form: BundleForm, signer: Option<&RecordSigner>) -> WrittenBundle {
    let mut layers = Vec::new();
    let mut listed = Vec::with_capacity(records.len());
    for record in records {
        let record = record.to_text(&mut layers);
        let signature = signer.map(|signer| signer.sign(&record));
        listed.push(ListedRecord { record, signature });
    }
    let config = json!({ "layers": [], "records": [], FIELD: listed }).to_string().into_bytes();
    let config_type = MediaType::Other(CONFIG.to_owned());
    let named = Descriptor::of(config_type.clone(), &config);
    if form.docker {
        layers.iter_mut().for_each(|layer| layer.media_type = of_docker(&layer.media_type));
    }
    let document_type = match (form.index, form.docker) {
        (false, _) => MediaType::OciManifest,
        (true, false) => MediaType::OciIndex,
        (true, true) => MediaType::DockerManifestList,
    };
    let mut document = json!({ "schemaVersion": 2, "mediaType": document_type.as_str() });
    match form.index {
        true => {
            layers.push(named);
            document["manifests"] = json!(layers);
        }
        false => {
            document["config"] = json!(named);
            document["layers"] = json!(layers);
        }
    }
    WrittenBundle { config, config_type, document: document.to_string().into_bytes(), document_type }
}

fn of_docker(media_type: &MediaType) -> MediaType {
    match media_type {
        MediaType::OciLayer => MediaType::DockerLayer,
        MediaType::OciLayerGzip => MediaType::DockerLayerGzip,
        MediaType::OciLayerZstd => MediaType::DockerLayerZstd,
        other => other.clone(),
    }
}

/// The config and the layers of a manifest, or an index, that is a cache; `None` where it is something else.
pub(super) fn parts(document: &[u8]) -> Option<(Descriptor, Vec<Descriptor>)> {
    let document: Value = serde_json::from_slice(document).ok()?;
    let list = |name: &str| -> Vec<Descriptor> {
        let listed = document[name].as_array().into_iter().flatten();
        listed.filter_map(|one| serde_json::from_value(one.clone()).ok()).collect()
    };
    let is_config = |one: &Descriptor| one.media_type.as_str() == CONFIG;
    let config: Option<Descriptor> = serde_json::from_value(document["config"].clone()).ok();
    if let Some(config) = config.filter(is_config) {
        return Some((config, list("layers")));
    }
    let mut layers = list("manifests");
    let place = layers.iter().position(is_config)?;
    Some((layers.remove(place), layers))
}

impl Bundle {
    /// Reads a config; `None` where it has no records of forge.
    pub(super) fn read(config: &[u8], layers: Vec<Descriptor>) -> Option<Self> {
        let mut config: Value = serde_json::from_slice(config).ok()?;
        let mut records: Vec<ListedRecord> = serde_json::from_value(config.get_mut(FIELD)?.take()).ok()?;
        records.truncate(MOST_RECORDS);
        #[derive(Deserialize)]
        struct Keys {
            keys: Vec<CacheKey>,
        }
        let mut keys = HashMap::new();
        for (number, listed) in records.iter().enumerate() {
            // What cannot be read is found by nothing.
            let Ok(Keys { keys: own }) = serde_json::from_str(&listed.record) else { continue };
            keys.extend(own.into_iter().map(|key| (key, number)));
        }
        Some(Self { layers, records, keys })
    }

    /// The record under a key, as a document of its own.
    pub(super) fn document(&self, key: &CacheKey) -> Option<Vec<u8>> {
        let listed = &self.records[*self.keys.get(key)?];
        Some(envelope(listed.record.clone(), listed.signature.clone(), self.layers.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::document::SentRecord;
    use super::super::trust::Trust;
    use super::*;
    use forge_image::{DiffId, Digest};
    use forge_registry::OfferedLayer;
    use std::time::UNIX_EPOCH;

    fn key(byte: u8) -> CacheKey {
        CacheKey::from_bytes([byte; 32])
    }

    fn record(number: u8, layers: &[&str]) -> SentRecord {
        let layer = |text: &&str| OfferedLayer {
            blob: Descriptor::of(MediaType::OciLayerGzip, text.as_bytes()),
            diff_id: DiffId::new(Digest::sha256(text.as_bytes())),
            made: None,
            created: None,
        };
        SentRecord {
            keys: vec![key(number), key(number + 100)],
            name: "RUN x".to_owned(),
            outputs: vec![Some(layers.iter().map(layer).collect())],
            bytes: 3,
            wall_ms: 4,
            usage: None,
            created: UNIX_EPOCH,
        }
    }

    #[test]
    fn records_are_found_again_in_every_form() {
        let signer = RecordSigner::of_seed(&[7; 32]).unwrap();
        let trust = Trust::Keys(vec![signer.public_key()]);
        let records = [record(1, &["a", "b"]), record(2, &["a"])];
        for (index, docker) in [(false, false), (true, false), (true, true)] {
            let written = write(&records, BundleForm { index, docker }, Some(&signer));
            let (config, layers) = parts(&written.document).unwrap();
            assert_eq!(config.digest, Digest::sha256(&written.config));
            assert_eq!(layers.len(), 2, "a blob is listed once");
            let bundle = Bundle::read(&written.config, layers).unwrap();
            let found = bundle.document(&key(102)).unwrap();
            let found = SentRecord::from_document(&found, &key(102), &trust).unwrap();
            assert_eq!((found.keys, found.outputs[0].as_ref().unwrap().len()), (records[1].keys.clone(), 1));
            assert!(bundle.document(&key(3)).is_none());
        }
    }

    #[test]
    fn caches_of_buildkit_have_nothing_for_forge() {
        let image = r#"{"config":{"mediaType":"application/vnd.buildkit.cacheconfig.v0","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#;
        assert!(parts(image.as_bytes()).is_some());
        assert!(Bundle::read(br#"{"layers":[],"records":[]}"#, Vec::new()).is_none());
        assert!(parts(br#"{"config":{"mediaType":"application/vnd.oci.image.config.v1+json"}}"#).is_none());
    }

    // Meant to fail without the check of the signature in `from_document`.
    #[test]
    fn a44_a_bundle_vouches_for_nobody() {
        let written = write(&[record(1, &["a"])], BundleForm { index: false, docker: false }, None);
        let (_, layers) = parts(&written.document).unwrap();
        let document = Bundle::read(&written.config, layers).unwrap().document(&key(1)).unwrap();
        let trust = Trust::Keys(vec![RecordSigner::of_seed(&[7; 32]).unwrap().public_key()]);
        assert!(SentRecord::from_document(&document, &key(1), &trust).is_err());
    }
}
