//! Settles what an image is: which layers it has, with which digests, and its config to the byte.

use crate::timestamp::Timestamp;
use crate::work::{blocking, briefly};
use crate::{AssembledImage, AssembledLayer, BuiltImage, ExportError, ExportSettings, MissingHistory};
use forge_image::{DiffId, HistoryEntry, ImageConfig, ImageId};
use forge_registry::TransferContext;
use forge_store::{Compression, LayerId, LayerOutline, LayerRecord, Layers, StoreError, TarOptions};
use futures_util::{StreamExt, TryStreamExt, stream};
use rayon::prelude::*;
use std::time::SystemTime;

/// How many layers are compressed at once; one alone already uses all cores for compression.
const CONCURRENT_LAYERS: usize = 4;

/// What BuildKit writes beside history entries that it had to invent.
const INVENTED: &str = "buildkit.exporter.image.v0";

/// Settles a built image: computes DiffIds, completes history and times. Layers that turned out empty stay, as
/// BuildKit leaves them: the same steps give the same number of layers.
///
/// With an epoch the result depends on nothing but the layers, the config and the settings.
///
/// # Errors
/// A layer is gone, the history names more layers than there are, or the settings contradict each other.
pub async fn assemble(
    context: &TransferContext,
    built: &BuiltImage,
    settings: &ExportSettings,
) -> Result<AssembledImage, ExportError> {
    let (tar, leaving) = (settings.tar_options(), settings.leaving);
    let outlines = outlines(context, built).await?;
    let known =
        built.layers.iter().zip(&outlines).map(|(id, outline)| known_layer(*id, outline.as_ref()?, tar, leaving));
    let known: Vec<Option<AssembledLayer>> = known.collect();
    let unknown = built.layers.iter().zip(&known).filter(|(_, known)| known.is_none()).map(|(id, _)| *id);
    let unknown: Vec<LayerId> = unknown.collect();
    let made = match leaving {
        _ if unknown.is_empty() => Vec::new(),
        None if outlines.iter().all(Option::is_some) => hashed(context, unknown, tar).await?,
        _ => one_by_one(context, unknown, tar, leaving).await?,
    };
    let mut made = made.into_iter();
    let layers = known.into_iter().map(|known| known.or_else(|| made.next()).expect("what is not known is made"));
    let times: Vec<Option<SystemTime>> = outlines.iter().map(|outline| Some(outline.as_ref()?.stored)).collect();
    let (built, settings, layers) = (built.clone(), settings.clone(), layers.collect());
    briefly(move || with_layers(built, layers, &times, &settings)).await
}

/// Layers of forge's own that stay, of which no digest is known yet.
async fn hashed(
    context: &TransferContext,
    ids: Vec<LayerId>,
    tar: TarOptions,
) -> Result<Vec<AssembledLayer>, ExportError> {
    let store = context.store.clone();
    blocking(move || {
        let diff_ids = store.layers().diff_ids(&ids, &tar).map_err(ExportError::store("compute a layer's digest"))?;
        let layers = ids.into_iter().zip(diff_ids);
        Ok(layers.map(|(id, diff_id)| AssembledLayer { id, diff_id, tar, foreign: false }).collect())
    })
    .await
}

/// Layers that are compressed now, or of which one is gone.
async fn one_by_one(
    context: &TransferContext,
    ids: Vec<LayerId>,
    tar: TarOptions,
    leaving: Option<Compression>,
) -> Result<Vec<AssembledLayer>, ExportError> {
    let one = |id: LayerId| {
        let context = context.clone();
        blocking(move || layer(&context, &id, tar, leaving))
    };
    stream::iter(ids).map(one).buffered(CONCURRENT_LAYERS).try_collect().await
}

/// What the store says of an image's layers, which are held. They are asked for at once: a stack may have hundreds that are
/// known for one that is new.
async fn outlines(context: &TransferContext, built: &BuiltImage) -> Result<Vec<Option<LayerOutline>>, ExportError> {
    let (context, ids) = (context.clone(), built.layers.clone());
    briefly(move || match context.lease.hold_layers(&ids).map_err(ExportError::store("hold a layer"))? {
        true => context.store.layers().outlines(&ids).map_err(ExportError::store("read a layer's record")),
        // Which one is gone is found when they are looked at one by one.
        false => Ok(vec![None; ids.len()]),
    })
    .await
}

fn with_layers(
    built: BuiltImage,
    layers: Vec<AssembledLayer>,
    times: &[Option<SystemTime>],
    settings: &ExportSettings,
) -> Result<AssembledImage, ExportError> {
    let diff_ids: Vec<&DiffId> = layers.iter().map(|layer| &layer.diff_id).collect();
    let mut config = built.config;
    complete_history(&mut config.history, layers.len(), built.missing_history)?;
    let config = settle(config, &diff_ids, times, settings)?;
    let config_bytes = config.to_json();
    Ok(AssembledImage {
        id: ImageConfig::id_of(&config_bytes),
        platform: built.platform,
        config,
        config_bytes,
        layers,
        manifest: None,
        attestations: Vec::new(),
    })
}

/// A layer as it stands in the image. One of ours that leaves is compressed now: its digest comes of the same pass, and
/// with a table of contents it is another one.
pub(crate) fn layer(
    context: &TransferContext,
    id: &LayerId,
    tar: TarOptions,
    leaving: Option<Compression>,
) -> Result<AssembledLayer, ExportError> {
    let outline = held(context, id, Layers::outline)?;
    if let Some(known) = known_layer(*id, &outline, tar, leaving) {
        return Ok(known);
    }
    let foreign = outline.foreign;
    let tar = if foreign { TarOptions::default() } else { tar };
    let diff_id = match leaving.filter(|_| !foreign) {
        Some(compression) => made_diff_id(context, id, tar, compression)?,
        None => context.store.layers().diff_id(id, &tar).map_err(ExportError::store("compute a layer's digest"))?,
    };
    Ok(AssembledLayer { id: *id, diff_id, tar, foreign })
}

/// A layer whose digest in the image is known already.
fn known_layer(
    id: LayerId,
    outline: &LayerOutline,
    tar: TarOptions,
    leaving: Option<Compression>,
) -> Option<AssembledLayer> {
    let foreign = outline.foreign;
    let tar = if foreign { TarOptions::default() } else { tar };
    // With a table of contents it is another one.
    let is_listed = matches!(leaving, Some(Compression::Estargz { .. })) && !foreign;
    let diff_id = outline.diff_id.clone().filter(|_| tar.clamp_mtime.is_none() && !is_listed)?;
    Some(AssembledLayer { id, diff_id, tar, foreign })
}

fn made_diff_id(
    context: &TransferContext,
    id: &LayerId,
    tar: TarOptions,
    compression: Compression,
) -> Result<DiffId, ExportError> {
    let progress = context.begin(id.to_string(), "exporting layer", 0);
    let layers = context.store.layers();
    let blob = layers.blob(id, &compression, &tar, &context.lease, &mut |done| progress.set(done));
    let blob = blob.map_err(ExportError::store("compress a layer"))?;
    progress.complete();
    Ok(blob.diff_id)
}

/// Reads a layer's record and holds the layer.
pub(crate) fn held_record(context: &TransferContext, id: &LayerId) -> Result<LayerRecord, ExportError> {
    held(context, id, Layers::get)
}

/// Reads something of a layer and holds the layer.
fn held<T>(
    context: &TransferContext,
    id: &LayerId,
    read: impl FnOnce(&Layers, &LayerId) -> Result<Option<T>, StoreError>,
) -> Result<T, ExportError> {
    let gone = || ExportError::LayerGone { layer: *id };
    if !context.lease.hold_layer(id).map_err(ExportError::store("hold a layer"))? {
        return Err(gone());
    }
    read(context.store.layers(), id).map_err(ExportError::store("read a layer's record"))?.ok_or_else(gone)
}

/// Fills in `rootfs` and times. One of `layers` for each entry of the history that is not `empty_layer`;
/// `times` says when each came to be.
fn settle(
    mut config: ImageConfig,
    layers: &[&DiffId],
    times: &[Option<SystemTime>],
    settings: &ExportSettings,
) -> Result<ImageConfig, ExportError> {
    for (entry, made) in config.history.iter_mut().filter(|entry| !entry.empty_layer).zip(times) {
        if entry.created.is_none() && settings.source_date_epoch.is_none() {
            entry.created = made.map(|made| Timestamp::of_clock(made).to_string());
        }
    }
    config.rootfs.diff_ids = layers.iter().copied().cloned().collect();
    set_times(&mut config, settings)?;
    Ok(config)
}

/// History is optional: entries are made for layers that have none.
fn complete_history(history: &mut Vec<HistoryEntry>, layers: usize, which: MissingHistory) -> Result<(), ExportError> {
    let named = history.iter().filter(|entry| !entry.empty_layer).count();
    let missing = layers.checked_sub(named).ok_or(ExportError::History { history: named, layers })?;
    let invented = HistoryEntry { comment: Some(INVENTED.to_owned()), ..HistoryEntry::default() };
    let place = match which {
        MissingHistory::Lowest => 0,
        MissingHistory::Uppermost => history.len(),
    };
    history.splice(place..place, std::iter::repeat_n(invented, missing));
    Ok(())
}

/// A config whose own times are those of an epoch, as front ends date what they describe: it keeps them where its image leaves
/// without an epoch. What an epoch cannot be is refused when images leave.
pub fn dated(mut config: ImageConfig, epoch: i64) -> ImageConfig {
    let Ok(epoch) = Timestamp::of_epoch(epoch) else { return config };
    config.history.iter_mut().for_each(|entry| _ = entry.created.get_or_insert_with(|| epoch.to_string()));
    config.created = Some(epoch.to_string());
    config
}

/// Entries that made no layer are as old as the one before them, or behind them where none is before: so the same
/// layers give the same image, whenever it is assembled. Nothing is later than the epoch. The image is as old as its
/// youngest entry, or as the epoch.
fn set_times(config: &mut ImageConfig, settings: &ExportSettings) -> Result<(), ExportError> {
    let epoch = settings.source_date_epoch.map(Timestamp::of_epoch).transpose()?;
    let now = epoch.unwrap_or_else(|| Timestamp::of_clock(settings.now));
    let mut known = config.history.iter().find_map(|entry| entry.created.clone());
    for entry in &mut config.history {
        if epoch.is_none() {
            entry.created = entry.created.take().or_else(|| known.clone());
            known.clone_from(&entry.created);
        }
        let created = entry.created.as_deref().and_then(Timestamp::parse);
        match (created, epoch) {
            (None, _) if entry.created.is_none() => entry.created = Some(now.to_string()),
            (Some(created), Some(epoch)) if created > epoch => entry.created = Some(epoch.to_string()),
            _ => {}
        }
    }
    let times = config.history.iter().filter_map(|entry| Timestamp::parse(entry.created.as_deref()?));
    config.created = Some(epoch.or(times.max()).unwrap_or(now).to_string());
    Ok(())
}

impl AssembledImage {
    /// An image of the store.
    ///
    /// # Errors
    /// The image or a layer of it is gone, or a layer is not what the config lists.
    pub async fn from_store(context: &TransferContext, id: &ImageId) -> Result<Self, ExportError> {
        let (context, id) = (context.clone(), id.clone());
        blocking(move || Self::from_store_now(&context, &id)).await
    }

    fn from_store_now(context: &TransferContext, id: &ImageId) -> Result<Self, ExportError> {
        let images = context.store.images();
        let gone = || ExportError::ImageGone { image: id.clone() };
        let image = images.get(id).map_err(ExportError::store("read an image"))?.ok_or_else(gone)?;
        let config_bytes = images.config_bytes(id).map_err(ExportError::store("read an image's config"))?;
        let config = ImageConfig::from_json(&config_bytes)
            .map_err(|source| ExportError::Document { what: format!("the config of image {id}"), source })?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != image.layers.len() {
            let (diff_ids, layers) = (diff_ids.len(), image.layers.len());
            return Err(ExportError::LayerCount { image: id.clone(), diff_ids, layers });
        }
        let created = config.created.as_deref().and_then(Timestamp::parse).map(Timestamp::seconds);
        let pairs: Vec<_> = image.layers.iter().zip(diff_ids).collect();
        let layers = pairs.into_par_iter().map(|(layer, diff_id)| stored_layer(context, layer, diff_id, created));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let (id, platform, manifest) = (image.id, image.platform, image.manifest);
        Ok(Self { id, platform, config, config_bytes, layers, manifest, attestations: Vec::new() })
    }
}

fn stored_layer(
    context: &TransferContext,
    id: &LayerId,
    diff_id: &DiffId,
    created: Option<i64>,
) -> Result<AssembledLayer, ExportError> {
    let record = held_record(context, id)?;
    let tar = dialect(context.store.layers(), &record, diff_id, created)?;
    Ok(AssembledLayer { id: *id, diff_id: diff_id.clone(), tar, foreign: record.foreign })
}

/// The dialect in which a layer has the DiffId that a config lists. An image that was exported with clamped times
/// says so nowhere, but its `created` is then the epoch.
fn dialect(
    layers: &Layers,
    record: &LayerRecord,
    diff_id: &DiffId,
    created: Option<i64>,
) -> Result<TarOptions, ExportError> {
    if record.diff_id.as_ref() == Some(diff_id) {
        return Ok(TarOptions::default());
    }
    if let Some(blob) = record.blobs.iter().find(|blob| blob.diff_id == *diff_id) {
        return Ok(TarOptions { clamp_mtime: blob.clamp });
    }
    let mismatch = || ExportError::DiffIdMismatch { layer: record.id, diff_id: diff_id.digest().clone() };
    if record.foreign {
        return Err(mismatch());
    }
    for clamp_mtime in [None, created] {
        let tar = TarOptions { clamp_mtime };
        let found = layers.diff_id(&record.id, &tar).map_err(ExportError::store("compute a layer's digest"))?;
        if found == *diff_id {
            return Ok(tar);
        }
    }
    Err(mismatch())
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_image::{Digest, Platform};
    use std::time::Duration;

    fn settings(epoch: Option<i64>) -> ExportSettings {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        ExportSettings { source_date_epoch: epoch, ..ExportSettings::new(now) }
    }

    fn entry(text: &str) -> HistoryEntry {
        let (created_by, created) = text.split_once('@').unwrap_or((text, ""));
        HistoryEntry {
            created: Some(created.to_owned()).filter(|created| !created.is_empty()),
            created_by: Some(created_by.trim_start_matches('-').to_owned()),
            empty_layer: created_by.starts_with('-'),
            ..HistoryEntry::default()
        }
    }

    /// History in, history out. `-` stands for an entry without a layer.
    fn check(history: &[&str], layers: usize, epoch: Option<i64>, expect: &str) {
        check_with(MissingHistory::Lowest, history, layers, epoch, expect);
    }

    fn check_with(which: MissingHistory, history: &[&str], layers: usize, epoch: Option<i64>, expect: &str) {
        let diff_id = DiffId::new(Digest::sha256(b""));
        let slots = vec![&diff_id; layers];
        let mut config = ImageConfig::new(&Platform::new("linux", "amd64", None));
        config.history = history.iter().copied().map(entry).collect();
        complete_history(&mut config.history, layers, which).unwrap();
        let config = settle(config, &slots, &vec![Some(settings(epoch).now); slots.len()], &settings(epoch)).unwrap();
        let mut found = String::new();
        for entry in &config.history {
            let empty = if entry.empty_layer { "-" } else { "" };
            let name = entry.created_by.as_deref().or(entry.comment.as_deref()).unwrap_or_default();
            found += &format!("{empty}{name}@{} ", entry.created.as_deref().unwrap_or_default());
        }
        found += &format!("= {} {}", config.created.unwrap(), config.rootfs.diff_ids.len());
        assert_eq!(found, expect);
    }

    #[test]
    fn history_follows_the_layers() {
        let old = "base@2020-01-01T00:00:00Z";
        check(&[old], 1, None, "base@2020-01-01T00:00:00Z = 2020-01-01T00:00:00Z 1");
        check(
            &[old, "-env", "run", "copy"],
            3,
            None,
            "base@2020-01-01T00:00:00Z -env@2020-01-01T00:00:00Z run@2023-11-14T22:13:20Z copy@2023-11-14T22:13:20Z = 2023-11-14T22:13:20Z 3",
        );
        check(
            &["run"],
            2,
            Some(0),
            "buildkit.exporter.image.v0@1970-01-01T00:00:00Z run@1970-01-01T00:00:00Z = 1970-01-01T00:00:00Z 2",
        );
        check(&[], 0, None, "= 2023-11-14T22:13:20Z 0");
        check_with(
            MissingHistory::Uppermost,
            &[old, "-cmd"],
            2,
            None,
            "base@2020-01-01T00:00:00Z -cmd@2020-01-01T00:00:00Z buildkit.exporter.image.v0@2023-11-14T22:13:20Z = 2023-11-14T22:13:20Z 2",
        );
    }

    #[test]
    fn nothing_is_later_than_the_epoch() {
        check(
            &["base@2020-01-01T00:00:00.5Z", "zero@0001-01-01T00:00:00Z", "new"],
            3,
            Some(1_000_000_000),
            "base@2001-09-09T01:46:40Z zero@0001-01-01T00:00:00Z new@2001-09-09T01:46:40Z = 2001-09-09T01:46:40Z 3",
        );
        check(
            &["base@1999-01-01T00:00:00Z"],
            1,
            Some(1_000_000_000),
            "base@1999-01-01T00:00:00Z = 2001-09-09T01:46:40Z 1",
        );
    }

    #[test]
    fn a_history_with_too_many_layers_is_refused() {
        let error = complete_history(&mut vec![entry("a"), entry("b")], 1, MissingHistory::Lowest).unwrap_err();
        assert_eq!(error.to_string(), "the image's history names 2 layers, but it has 1");
    }
}
