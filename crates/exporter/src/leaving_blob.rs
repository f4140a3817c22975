//! The blob that each layer leaves as.

use crate::package::plain;
use crate::work::blocking;
use crate::{AssembledLayer, ExistingBlobs, ExportError, ExportSettings, Nondistributable};
use forge_image::{Descriptor, Digest};
use forge_registry::TransferContext;
use forge_store::{Compression, LayerBlob, LayerId, LayerRecord, TarOptions};

/// The blob that a layer leaves as; the lease holds it if it is here.
pub(crate) async fn leaving_blob(
    context: &TransferContext,
    layer: AssembledLayer,
    settings: &ExportSettings,
    default: Compression,
) -> Result<Descriptor, ExportError> {
    let (context, settings) = (context.clone(), settings.clone());
    blocking(move || layer_blob(&context, &layer, &settings, default)).await
}

/// Which foreign blobs leave as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// All.
    All,
    /// Those that are compressed: where nothing is asked for, a bare tar is not sent over a network.
    Compressed,
    /// Those with the codec asked for.
    SameCodec,
}

impl Kept {
    fn of(settings: &ExportSettings, default: Compression) -> Self {
        match (settings.force_compression, settings.compression) {
            (true, _) => Self::SameCodec,
            (false, None) if settings.existing_blobs == ExistingBlobs::Kept => Self::All,
            (false, None) if default != Compression::None => Self::Compressed,
            (false, _) => Self::All,
        }
    }

    fn keeps(self, blob: &LayerBlob, wanted: Compression) -> bool {
        match self {
            Self::All => true,
            Self::Compressed => blob.compression != Compression::None,
            Self::SameCodec => same_codec(blob.compression, wanted),
        }
    }
}

fn layer_blob(
    context: &TransferContext,
    layer: &AssembledLayer,
    settings: &ExportSettings,
    default: Compression,
) -> Result<Descriptor, ExportError> {
    let (kept, wanted) = (Kept::of(settings, default), settings.compression.unwrap_or(default));
    let record = crate::assemble::held_record(context, &layer.id)?;
    let blob = match foreign_blob(&record, layer) {
        Some(blob) if kept.keeps(blob, wanted) => blob.clone(),
        Some(_) => make_blob(context, layer, wanted)?,
        None if settings.existing_blobs == ExistingBlobs::Kept && settings.compression.is_none() => {
            match made_blob(context, &record, layer)? {
                Some(blob) => blob.clone(),
                None => make_blob(context, layer, wanted)?,
            }
        }
        None => make_blob(context, layer, wanted)?,
    };
    if blob.diff_id != layer.diff_id {
        let (layer, diff_id) = (layer.id, layer.diff_id.digest().clone());
        return Err(ExportError::DiffIdMismatch { layer, diff_id });
    }
    let digest = &blob.descriptor.digest;
    let here = context.lease.hold_blob(digest).map_err(ExportError::store("hold a blob"))?;
    if !here && !is_elsewhere(context, &layer.id, digest)? {
        return Err(ExportError::BlobGone { digest: digest.clone() });
    }
    let mut descriptor = plain(&blob.descriptor);
    match settings.nondistributable {
        Nondistributable::Embedded => descriptor.media_type = descriptor.media_type.distributable(),
        Nondistributable::Referred => {
            let urls = blob.descriptor.unknown.get("urls");
            descriptor.unknown.extend(urls.map(|urls| ("urls".to_owned(), urls.clone())));
        }
    }
    // Without them nobody would find the table of contents, be it ours or that of a base.
    let of_table =
        blob.descriptor.annotations.into_iter().filter(|(key, _)| OF_TABLES.iter().any(|start| key.starts_with(start)));
    descriptor.annotations.extend(of_table);
    if let Some(epoch) = layer.tar.clamp_mtime.filter(|_| !blob.foreign) {
        // As BuildKit notes it, so that nobody rewrites the layer once more.
        descriptor.annotations.insert(REWRITTEN.to_owned(), epoch.to_string().into());
    }
    Ok(descriptor)
}

/// What annotations begin with that say where a layer's table of contents lies (eStargz, zstd:chunked).
const OF_TABLES: [&str; 3] =
    ["containerd.io/snapshot/stargz/", "io.containers.estargz.", "io.github.containers.zstd-chunked."];

/// Says of a layer which time its files were brought to.
const REWRITTEN: &str = "buildkit/rewritten-timestamp";

/// Whether a registry is known to have the blob of a layer.
pub(crate) fn is_elsewhere(context: &TransferContext, layer: &LayerId, blob: &Digest) -> Result<bool, ExportError> {
    let remote = context.store.layers().remote(layer).map_err(ExportError::store("look for a layer"))?;
    Ok(remote.is_some_and(|remote| remote.blob.digest == *blob))
}

fn foreign_blob<'a>(record: &'a LayerRecord, layer: &AssembledLayer) -> Option<&'a LayerBlob> {
    record.blobs.iter().find(|blob| blob.foreign && blob.diff_id == layer.diff_id)
}

/// A compressed blob that was made of a layer of ours before, if it is still here.
fn made_blob<'a>(
    context: &TransferContext,
    record: &'a LayerRecord,
    layer: &AssembledLayer,
) -> Result<Option<&'a LayerBlob>, ExportError> {
    let is_one = |blob: &&LayerBlob| blob.diff_id == layer.diff_id && blob.compression != Compression::None;
    for blob in record.blobs.iter().filter(is_one) {
        if context.lease.hold_blob(&blob.descriptor.digest).map_err(ExportError::store("hold a blob"))? {
            return Ok(Some(blob));
        }
    }
    Ok(None)
}

/// A foreign blob of the right codec is kept whatever its level: nobody can tell the level from the bytes.
fn same_codec(left: Compression, right: Compression) -> bool {
    std::mem::discriminant(&left) == std::mem::discriminant(&right)
}

fn make_blob(
    context: &TransferContext,
    layer: &AssembledLayer,
    compression: Compression,
) -> Result<LayerBlob, ExportError> {
    let progress = context.begin(layer.diff_id.to_string(), "exporting layer", 0);
    let tar: &TarOptions = &layer.tar;
    let layers = context.store.layers();
    let blob = layers.blob(&layer.id, &compression, tar, &context.lease, &mut |done| progress.set(done));
    let blob = blob.map_err(ExportError::store("compress a layer"))?;
    progress.complete();
    Ok(blob)
}
