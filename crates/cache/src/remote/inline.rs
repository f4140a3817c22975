//! Records within an image: its config says which steps its layers are the results of.

use super::document::{SentRecord, TextTimes};
use super::{failed, store_failed};
use crate::{CacheError, CacheKey, StepRecord};
use forge_image::{Descriptor, ImageConfig, Manifest, Reference};
use forge_registry::{
    ImageSource, OfferedLayer, Registry, RegistryError, ResolvedImage, TransferContext, image_manifests,
    resolve_manifest,
};
use forge_store::{FileTimes, LayerId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;
use std::time::SystemTime;

/// The field of the config.
const FIELD: &str = "forge.cache.v1";
/// BuildKit's, and the type of the configs of its other caches.
const BUILDKIT_FIELD: &str = "moby.buildkit.cache.v0";
const BUILDKIT_CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";
/// More platforms than any image has.
const MOST_IMAGES: usize = 32;
/// More steps than an image has layers.
const MOST_RECORDS: usize = 2000;

/// What the field holds. Nothing in it depends on when or how fast steps ran: the same image has the same id.
#[derive(Serialize, Deserialize)]
struct Inline {
    /// For each layer of the image that forge made, which of its times are content.
    layers: Vec<Option<TextTimes>>,
    records: Vec<InlineRecord>,
}

#[derive(Serialize, Deserialize)]
struct InlineRecord {
    keys: Vec<CacheKey>,
    /// For each output how many of the image's layers it is, counted from below.
    outputs: Vec<usize>,
}

/// What an image says.
#[derive(Default)]
pub(super) struct InlineCache {
    /// Documents by key.
    pub records: HashMap<CacheKey, Vec<u8>>,
    /// Why what is there is of no use.
    pub remark: Option<&'static str>,
}

const OF_BUILDKIT: &str = "it is a cache of BuildKit, whose keys are not forge's: nothing in it can be found";

/// Takes from a config what it says of another image's cache.
pub fn forget_inline(config: &mut ImageConfig) {
    config.unknown.shift_remove(FIELD);
    config.unknown.shift_remove(BUILDKIT_FIELD);
}

/// Writes into a config which records an image's layers, lowest first, are the results of.
pub(super) fn write(
    context: &TransferContext,
    layers: &[LayerId],
    records: &[(Vec<CacheKey>, StepRecord)],
    config: &mut ImageConfig,
) -> Result<(), CacheError> {
    let height = |output: &crate::ResultRef| {
        let is_part = !output.layers().is_empty() && layers.starts_with(output.layers());
        is_part.then(|| output.layers().len())
    };
    let mut found: Vec<InlineRecord> = Vec::new();
    for (keys, record) in records {
        let outputs: Option<Vec<usize>> = record.outputs.iter().map(height).collect();
        let Some(outputs) = outputs.filter(|outputs| !outputs.is_empty()) else { continue };
        found.push(InlineRecord { keys: keys.clone(), outputs });
    }
    // Steps end in any order.
    found.sort_by(|one, other| (&one.outputs, &one.keys).cmp(&(&other.outputs, &other.keys)));
    let made = layers.iter().map(|layer| times(context, layer)).collect::<Result<_, _>>()?;
    let inline = Inline { layers: made, records: found };
    let value = serde_json::to_value(inline).expect("these types hold only JSON values");
    config.unknown.insert(FIELD.to_owned(), value);
    Ok(())
}

fn times(context: &TransferContext, layer: &LayerId) -> Result<Option<TextTimes>, CacheError> {
    let record = context.store.layers().get(layer).map_err(store_failed)?;
    Ok(record.filter(|record| !record.foreign).map(|record| match record.times {
        // When a step ran would make every image another one.
        FileTimes::ContentOutside { .. } => TextTimes::Ignored,
        times => times.into(),
    }))
}

/// What the image of that name says, for all its platforms.
pub(super) async fn load(
    context: &TransferContext,
    registry: &Registry,
    source: &dyn ImageSource,
    reference: &Reference,
) -> Result<InlineCache, CacheError> {
    let place = || reference.familiar_name();
    let root = match registry.resolve(reference, &*context.session).await {
        Ok(document) => document,
        Err(RegistryError::NotFound { .. }) => return Ok(InlineCache::default()),
        Err(error) => return Err(failed(place(), error)),
    };
    if is_of_buildkit(&root.bytes) {
        return Ok(InlineCache { remark: Some(OF_BUILDKIT), ..InlineCache::default() });
    }
    let mut found = InlineCache::default();
    let manifests = image_manifests(context, source, &root.descriptor).await.map_err(|error| failed(place(), error))?;
    for manifest in manifests.into_iter().take(MOST_IMAGES) {
        // What is no image, or one that forge cannot have, has nothing for it.
        let Ok(image) = resolve_manifest(context, source, root.descriptor.clone(), manifest).await else { continue };
        found.add(&image);
    }
    Ok(found)
}

/// A manifest, or an index, of BuildKit's cache.
fn is_of_buildkit(bytes: &[u8]) -> bool {
    let is_config = |media_type: &Value| media_type == BUILDKIT_CONFIG;
    let Ok(document) = serde_json::from_slice::<Value>(bytes) else { return false };
    let listed = document["manifests"].as_array().into_iter().flatten();
    is_config(&document["config"]["mediaType"]) || listed.into_iter().any(|entry| is_config(&entry["mediaType"]))
}

impl InlineCache {
    fn add(&mut self, image: &ResolvedImage) {
        let unknown = &image.config.unknown;
        let Some(inline) = unknown.get(FIELD) else {
            if unknown.contains_key(BUILDKIT_FIELD) {
                self.remark = Some(OF_BUILDKIT);
            }
            return;
        };
        let Ok(inline) = serde_json::from_value::<Inline>(inline.clone()) else { return };
        let stack = offered(&image.document, &image.config, &inline);
        for record in inline.records.into_iter().take(MOST_RECORDS) {
            let outputs = record.outputs.iter().map(|height| stack.get(..*height).map(<[_]>::to_vec));
            let Some(outputs) = outputs.collect::<Option<Vec<_>>>() else { continue };
            let sent = SentRecord {
                keys: record.keys.clone(),
                name: String::new(),
                outputs,
                bytes: 0,
                wall_ms: 0,
                usage: None,
                created: SystemTime::now(),
            };
            let document = sent.to_document(None);
            self.records.extend(record.keys.into_iter().map(|key| (key, document.clone())));
        }
    }
}

fn offered(manifest: &Manifest, config: &ImageConfig, inline: &Inline) -> Vec<OfferedLayer> {
    let made = inline.layers.iter().copied().chain(std::iter::repeat(None));
    let layers = manifest.layers.iter().zip(&config.rootfs.diff_ids).zip(made);
    let offer = |((blob, diff_id), made): ((&Descriptor, _), Option<TextTimes>)| OfferedLayer {
        blob: Descriptor::new(blob.media_type.clone(), blob.digest.clone(), blob.size),
        diff_id: Clone::clone(diff_id),
        made: made.map(FileTimes::from),
    };
    layers.map(offer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_of_buildkit_are_known() {
        let image = r#"{"config":{"mediaType":"application/vnd.buildkit.cacheconfig.v0"},"layers":[]}"#;
        let index = r#"{"manifests":[{"mediaType":"x"},{"mediaType":"application/vnd.buildkit.cacheconfig.v0"}]}"#;
        assert!(is_of_buildkit(image.as_bytes()) && is_of_buildkit(index.as_bytes()));
        assert!(!is_of_buildkit(br#"{"config":{"mediaType":"application/vnd.oci.image.config.v1+json"}}"#));
    }
}
