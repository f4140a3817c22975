//! Records within an image: its config says which steps its layers are the results of.

use super::bundle::{self, Bundle};
use super::document::{SentRecord, TextTimes};
use super::{failed, read_blob, store_failed};
use crate::{CacheError, CacheKey, StepRecord};
use forge_image::{Descriptor, DiffId, ImageConfig, Manifest, Reference};
use forge_registry::{
    ImageSource, OfferedLayer, Registry, RegistryError, ResolvedImage, TransferContext, image_manifests,
    resolve_manifest,
};
use forge_store::{FileTimes, LayerId, TarOptions};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::SystemTime;

/// The field of the config.
const FIELD: &str = "forge.cache.v1";
/// BuildKit's.
const BUILDKIT_FIELD: &str = "moby.buildkit.cache.v0";
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
    /// For each output how many of the image's layers it is, counted from below; `None` for one that is no part of it.
    outputs: Vec<Option<usize>>,
}

/// What an image says.
#[derive(Default)]
pub(super) struct InlineCache {
    /// Documents by key.
    records: HashMap<CacheKey, Vec<u8>>,
    /// Where it is no image but a cache.
    bundle: Option<Bundle>,
    /// Why what is there is of no use.
    pub remark: Option<&'static str>,
}

const OF_BUILDKIT: &str = "it is a cache of BuildKit, whose keys are not forge's: nothing in it can be found";

/// Takes from a config what it says of another image's cache.
pub fn forget_inline(config: &mut ImageConfig) {
    config.unknown.shift_remove(FIELD);
    config.unknown.shift_remove(BUILDKIT_FIELD);
}

/// What a build knows of the steps of its images.
#[derive(Default)]
pub(super) struct InlineRecords {
    /// Those that ran or were used.
    pub known: Vec<(Vec<CacheKey>, StepRecord)>,
    /// Those that only another cache knows, as what follows from them was found.
    pub passed: Vec<SentRecord>,
}

/// Writes into a config which records an image's layers, lowest first, are the results of.
pub(super) fn write(
    context: &TransferContext,
    layers: &[LayerId],
    records: &InlineRecords,
    config: &mut ImageConfig,
) -> Result<(), CacheError> {
    let height = |output: &crate::ResultRef| {
        let is_part = !output.layers().is_empty() && layers.starts_with(output.layers());
        is_part.then(|| output.layers().len())
    };
    let mut found: Vec<InlineRecord> = Vec::new();
    for (keys, record) in &records.known {
        found.push(InlineRecord { keys: keys.clone(), outputs: record.outputs.iter().map(height).collect() });
    }
    let diff_ids = match records.passed.is_empty() {
        true => Vec::new(),
        false => layers.iter().map(|layer| diff_id(context, layer)).collect::<Result<_, _>>()?,
    };
    let height = |stack: &Vec<OfferedLayer>| {
        let is_part = !stack.is_empty() && stack.len() <= diff_ids.len();
        let is_part = is_part && stack.iter().zip(&diff_ids).all(|(layer, diff_id)| layer.diff_id == *diff_id);
        is_part.then_some(stack.len())
    };
    for passed in &records.passed {
        let outputs = passed.outputs.iter().map(|output| output.as_ref().and_then(height)).collect();
        found.push(InlineRecord { keys: passed.keys.clone(), outputs });
    }
    found.retain(|record| record.outputs.iter().any(Option::is_some));
    // Steps end in any order.
    found.sort_by(|one, other| (&one.outputs, &one.keys).cmp(&(&other.outputs, &other.keys)));
    found.dedup_by(|one, other| one.keys == other.keys && one.outputs == other.outputs);
    let made = layers.iter().map(|layer| times(context, layer)).collect::<Result<_, _>>()?;
    let inline = Inline { layers: made, records: found };
    let value = serde_json::to_value(inline).expect("these types hold only JSON values");
    config.unknown.insert(FIELD.to_owned(), value);
    Ok(())
}

fn diff_id(context: &TransferContext, layer: &LayerId) -> Result<DiffId, CacheError> {
    context.store.layers().diff_id(layer, &TarOptions::default()).map_err(store_failed)
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
    if let Some((config, layers)) = bundle::parts(&root.bytes) {
        let config = read_blob(context, source, &config, bundle::MOST_CONFIG).await?;
        let bundle = Bundle::read(&config, layers);
        let remark = bundle.is_none().then_some(OF_BUILDKIT);
        return Ok(InlineCache { bundle, remark, ..InlineCache::default() });
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

impl InlineCache {
    /// The document under a key.
    pub(super) fn find(&self, key: &CacheKey) -> Option<Vec<u8>> {
        let bundled = || self.bundle.as_ref()?.document(key);
        self.records.get(key).cloned().or_else(bundled)
    }

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
            let outputs = record
                .outputs
                .iter()
                .map(|height| height.map_or(Some(None), |height| stack.get(..height).map(|part| Some(part.to_vec()))));
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
    let told = config.history.iter().filter(|entry| !entry.empty_layer);
    let created = told.map(|entry| humantime::parse_rfc3339(entry.created.as_deref()?).ok());
    let created = created.chain(std::iter::repeat(None));
    let layers = manifest.layers.iter().zip(&config.rootfs.diff_ids).zip(made).zip(created);
    let offer = |(((blob, diff_id), made), created): (((&Descriptor, _), Option<TextTimes>), _)| OfferedLayer {
        blob: Descriptor::new(blob.media_type.clone(), blob.digest.clone(), blob.size),
        diff_id: Clone::clone(diff_id),
        made: made.map(FileTimes::from),
        created,
    };
    layers.map(offer).collect()
}
