//! Whole images: from a registry into the store, under their names.

use crate::blob_fetch::blocking;
use crate::layer_fetch::{bring_layers, know_layers};
use crate::{FetchError, Registry, ResolvedImage, TransferContext, resolve_image};
use forge_image::{Platform, Reference};
use forge_store::{Image, LayerId, Target};
use std::sync::Arc;
use std::time::SystemTime;

/// An image that is in the store with all its layers.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// Its documents.
    pub resolved: ResolvedImage,
    /// Its layers unpacked, lowest first.
    pub layers: Vec<LayerId>,
}

impl Pulled {
    /// The image as the store keeps it.
    pub fn image(&self) -> Image {
        Image {
            id: self.resolved.id.clone(),
            platform: self.resolved.platform.clone(),
            layers: self.layers.clone(),
            manifest: Some(self.resolved.manifest.clone()),
            created: self.resolved.config.created.clone(),
            stored: SystemTime::now(),
        }
    }

    /// What a name of the image points at.
    pub fn target(&self) -> Target {
        Target { index: self.resolved.index().cloned(), images: vec![self.resolved.id.clone()] }
    }
}

/// Has an image of a registry in the store with its layers, held by the lease; gives it no name. For base images.
///
/// # Errors
/// As [`resolve_image`] and [`bring_layers`].
pub async fn fetch_image(
    context: &TransferContext,
    registry: &Arc<Registry>,
    reference: &Reference,
    platform: &Platform,
) -> Result<Pulled, FetchError> {
    let resolved = resolve_image(context, registry, reference, platform).await?;
    let layers = know_layers(context, &resolved, reference).await?;
    bring_layers(context, registry, &layers).await?;
    Ok(Pulled { resolved, layers })
}

/// Pulls an image: as [`fetch_image`], then records it and gives it its name and its digest in the repository.
///
/// # Errors
/// As [`fetch_image`], or the store cannot record it.
pub async fn pull(
    context: &TransferContext,
    registry: &Arc<Registry>,
    reference: &Reference,
    platform: &Platform,
) -> Result<Pulled, FetchError> {
    let pulled = fetch_image(context, registry, reference, platform).await?;
    record(context, &pulled, reference).await?;
    Ok(pulled)
}

/// Records an image that was fetched, under its digest in the repository and, where it was asked for by one, its tag.
///
/// # Errors
/// The store cannot record it.
pub async fn record(context: &TransferContext, pulled: &Pulled, reference: &Reference) -> Result<(), FetchError> {
    let (context, pulled, reference) = (context.clone(), pulled.clone(), reference.clone());
    blocking(move || {
        let images = context.store.images();
        let target = pulled.target();
        images
            .put(&pulled.image(), &pulled.resolved.config_bytes, &context.lease)
            .map_err(FetchError::store("record the image"))?;
        let pinned = reference.with_digest(pulled.resolved.root.digest.clone());
        images.pin_digest(&pinned, &target).map_err(FetchError::store("record the image's digest"))?;
        if reference.tag().is_some() && reference.digest().is_none() {
            images.tag(&reference, &target).map_err(FetchError::store("name the image"))?;
        }
        Ok(())
    })
    .await
}
