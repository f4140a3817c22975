//! From a name or an index to one manifest and its config.

use crate::blob_fetch::blocking;
use crate::document_store::{config_bytes, keep, manifest_bytes, stored_document};
use crate::index_walk::image_manifests;
use crate::{FetchError, ImageSource, MAX_MANIFEST, Registry, RegistrySource, TransferContext, select_platform};
use forge_image::{Descriptor, DiffId, Digest, ImageConfig, ImageId, Index, Manifest, MediaType, Platform, Reference};
use forge_store::StoreError;
use std::sync::Arc;

/// Images with more layers than this are refused: overlayfs mounts at most 500.
pub(crate) const MAX_LAYERS: usize = 500;

/// An image whose manifest and config are known and in the store; its layers need not be.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// What the name points at: the index where there is one, else the manifest.
    pub root: Descriptor,
    /// The manifest of the chosen platform.
    pub manifest: Descriptor,
    /// The manifest, read.
    pub document: Manifest,
    /// The config.
    pub config: ImageConfig,
    /// The config's exact bytes.
    pub config_bytes: Vec<u8>,
    /// The image id.
    pub id: ImageId,
    /// What the image says that it runs on; need not be what was asked for where the name has no index.
    pub platform: Platform,
}

impl ResolvedImage {
    /// The index, where the name points at one.
    pub fn index(&self) -> Option<&Descriptor> {
        Some(&self.root).filter(|root| root.media_type.is_index())
    }

    /// The layers by compressed bytes and DiffId, lowest first.
    pub fn layers(&self) -> impl Iterator<Item = (&Descriptor, &DiffId)> {
        self.document.layers.iter().zip(&self.config.rootfs.diff_ids)
    }
}

/// Finds the image that a name in a registry stands for. Fetches manifest and config, no layer.
///
/// A reference with a digest asks no registry where the store has the documents, and has them from that repository: who
/// names another one has to be let in there.
///
/// # Errors
/// The registry fails or lies, there is nothing for the platform, or the documents are refused.
pub async fn resolve_image(
    context: &TransferContext,
    registry: &Arc<Registry>,
    reference: &Reference,
    platform: &Platform,
) -> Result<ResolvedImage, FetchError> {
    let source = RegistrySource::new(registry.clone(), reference.clone());
    let root = match pinned_root(context, reference).await? {
        Some(root) => root,
        None => {
            let document = registry.resolve(reference, &*context.session).await?;
            keep(context, document.bytes).await?;
            document.descriptor
        }
    };
    resolve_root(context, &source, root, platform).await
}

/// The document that a reference with a digest names, if the store has it.
async fn pinned_root(context: &TransferContext, reference: &Reference) -> Result<Option<Descriptor>, FetchError> {
    let Some(digest) = reference.digest() else { return Ok(None) };
    if !is_of_repository(context, reference, digest).await? {
        return Ok(None);
    }
    let Some(bytes) = stored_document(context, digest, MAX_MANIFEST).await? else { return Ok(None) };
    Ok(Some(describe_document(&bytes)))
}

/// Whether a name of the store, of the same repository, leads to a document.
async fn is_of_repository(
    context: &TransferContext,
    reference: &Reference,
    digest: &Digest,
) -> Result<bool, FetchError> {
    let (context, repository, digest) = (context.clone(), reference.name(), digest.clone());
    let find = move || -> Result<bool, StoreError> {
        let images = context.store.images();
        for (name, target) in images.list()? {
            let Some(name) = name.filter(|name| name.name() == repository) else { continue };
            if name.digest() == Some(&digest) || target.index.is_some_and(|index| index.digest == digest) {
                return Ok(true);
            }
            for id in &target.images {
                let manifest = images.get(id)?.and_then(|image| image.manifest);
                if manifest.is_some_and(|manifest| manifest.digest == digest) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    };
    blocking(move || find().map_err(FetchError::store("look for an image"))).await
}

/// The descriptor of a document whose type nobody announced.
pub(crate) fn describe_document(bytes: &[u8]) -> Descriptor {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        media_type: Option<MediaType>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let guess = match serde_json::from_slice::<Probe>(bytes) {
        Ok(Probe { media_type: Some(media_type), .. }) => media_type,
        Ok(Probe { manifests: Some(_), .. }) => MediaType::OciIndex,
        _ => MediaType::OciManifest,
    };
    Descriptor::of(guess, bytes)
}

/// Finds the image for a platform below a manifest or index of any source.
///
/// # Errors
/// As [`resolve_image`].
pub async fn resolve_root(
    context: &TransferContext,
    source: &dyn ImageSource,
    root: Descriptor,
    platform: &Platform,
) -> Result<ResolvedImage, FetchError> {
    let manifest = choose(context, source, &root, platform).await?;
    resolve_manifest(context, source, root, manifest).await
}

/// Reads manifest and config of an image whose manifest is chosen.
///
/// # Errors
/// As [`resolve_image`].
pub async fn resolve_manifest(
    context: &TransferContext,
    source: &dyn ImageSource,
    root: Descriptor,
    manifest: Descriptor,
) -> Result<ResolvedImage, FetchError> {
    let malformed = |digest: &Digest| {
        let digest = digest.clone();
        move |source| FetchError::Document { digest, source }
    };
    let bytes = manifest_bytes(context, source, &manifest).await?;
    let document = Manifest::from_json(&bytes, Some(&manifest.media_type)).map_err(malformed(&manifest.digest))?;
    if !document.config.media_type.is_config() {
        return Err(FetchError::NotAnImage { digest: manifest.digest, media_type: document.config.media_type });
    }
    let config_bytes = config_bytes(context, source, &document.config).await?;
    let config = ImageConfig::from_json(&config_bytes).map_err(malformed(&document.config.digest))?;
    check_layers(&document, &config)?;
    let platform = config.platform();
    let id = ImageId::new(document.config.digest.clone());
    Ok(ResolvedImage { root, manifest, document, config, config_bytes, id, platform })
}

fn check_layers(manifest: &Manifest, config: &ImageConfig) -> Result<(), FetchError> {
    let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
    if layers != diff_ids || layers > MAX_LAYERS {
        return Err(FetchError::LayerCount { diff_ids, layers });
    }
    match manifest.layers.iter().find(|layer| !layer.media_type.is_layer()) {
        Some(layer) => {
            Err(FetchError::LayerType { digest: layer.digest.clone(), media_type: layer.media_type.clone() })
        }
        None => Ok(()),
    }
}

async fn choose(
    context: &TransferContext,
    source: &dyn ImageSource,
    root: &Descriptor,
    platform: &Platform,
) -> Result<Descriptor, FetchError> {
    if root.media_type.is_manifest() {
        return Ok(root.clone());
    }
    let manifests = image_manifests(context, source, root).await?;
    let flat = Index {
        schema_version: 2,
        media_type: None,
        manifests,
        annotations: Default::default(),
        unknown: Default::default(),
    };
    Ok(select_platform(&flat, platform)?.clone())
}
