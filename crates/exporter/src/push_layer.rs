//! Sends layers ahead of the image that they will be part of.

use crate::leaving_blob::leaving_blob;
use crate::origins::Origins;
use crate::package::GZIP;
use crate::push::{open, push_blob};
use crate::work::blocking;
use crate::{ExportError, ExportSettings};
use forge_registry::{Registry, TransferContext};
use forge_store::LayerId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Sends a layer to the repositories of all names, as [`push`](crate::push) with the same settings will: that finds it there
/// then. A layer that only lies in a registry stays where it is. No manifest and no name is written.
///
/// # Errors
/// The layer is gone, or the registry refuses.
pub async fn push_layer(
    context: &TransferContext,
    registry: &Arc<Registry>,
    layer: &LayerId,
    settings: &ExportSettings,
) -> Result<(), ExportError> {
    let (worker, id, tar) = (context.clone(), *layer, settings.tar_options());
    let leaving = settings.leaving;
    let assembled = blocking(move || {
        let absent = worker.store.layers().absent(std::slice::from_ref(&id));
        match absent.map_err(ExportError::store("look for a layer"))?.is_empty() {
            true => crate::assemble::layer(&worker, &id, tar, leaving).map(Some),
            false => Ok(None),
        }
    });
    let Some(assembled) = assembled.await? else { return Ok(()) };
    let blob = leaving_blob(context, assembled, settings, GZIP).await?;
    if open(context, &blob).await?.is_none() {
        return Ok(());
    }
    let places: BTreeMap<String, _> = settings.names.iter().map(|name| (name.name(), name)).collect();
    let mut done = Vec::new();
    for place in places.into_values() {
        let mut origins = Origins::of_layers(context, place, vec![(*layer, blob.digest.clone())]).await?;
        for earlier in done.iter().filter(|earlier: &&&forge_image::Reference| earlier.registry() == place.registry()) {
            origins.prefer(&blob.digest, earlier.repository());
        }
        push_blob(context, registry, place, blob.clone(), &origins).await?;
        done.push(place);
    }
    Ok(())
}
