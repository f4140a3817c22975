//! Where else a registry, or another one, has what is pushed.

use crate::package::Bundle;
use crate::work::blocking;
use crate::{ExportError, ImageSet};
use forge_image::{Digest, ImageId, Reference};
use forge_registry::TransferContext;
use forge_store::LayerId;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Where the blobs of images can be had.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origins {
    /// Other repositories of the same registry that have a blob, by what the store knows, likeliest first.
    mounts: HashMap<Digest, Vec<String>>,
    /// The repository that a layer is known from.
    homes: HashMap<Digest, Reference>,
}

impl Origins {
    /// For a push to `place`.
    pub(crate) async fn find(
        context: &TransferContext,
        place: &Reference,
        images: &ImageSet,
        bundle: &Bundle,
    ) -> Result<Self, ExportError> {
        let pairs = images.images().iter().zip(&bundle.packages);
        let blobs: Vec<(LayerId, Digest)> = pairs
            .flat_map(|(image, package)| image.layers.iter().zip(&package.layers))
            .map(|(layer, blob)| (layer.id, blob.digest.clone()))
            .collect();
        Self::of_layers(context, place, blobs).await
    }

    /// The same for single layers.
    pub(crate) async fn of_layers(
        context: &TransferContext,
        place: &Reference,
        blobs: Vec<(LayerId, Digest)>,
    ) -> Result<Self, ExportError> {
        let (context, place) = (context.clone(), place.clone());
        blocking(move || Self::find_now(&context, &place, &blobs)).await
    }

    fn find_now(
        context: &TransferContext,
        place: &Reference,
        blobs: &[(LayerId, Digest)],
    ) -> Result<Self, ExportError> {
        let mut origins = Self::default();
        for (layer, blob) in blobs {
            let remote = context.store.layers().remote(layer).map_err(ExportError::store("look for a layer"))?;
            let Some(remote) = remote.filter(|remote| remote.blob.digest == *blob) else { continue };
            if remote.repository.registry() == place.registry() {
                origins.prefer(blob, remote.repository.repository());
            }
            origins.homes.insert(blob.clone(), remote.repository);
        }
        for (repository, layers) in known_repositories(context, place)? {
            for (_, blob) in blobs.iter().filter(|(layer, _)| layers.contains(layer)) {
                origins.mounts.entry(blob.clone()).or_default().push(repository.clone());
            }
        }
        Ok(origins)
    }

    /// Says that a repository of the registry surely has a blob.
    pub(crate) fn prefer(&mut self, blob: &Digest, repository: &str) {
        self.mounts.entry(blob.clone()).or_default().insert(0, repository.to_owned());
    }

    /// What to mount a blob from.
    pub(crate) fn mounts(&self, blob: &Digest) -> Vec<String> {
        self.mounts.get(blob).cloned().unwrap_or_default()
    }

    /// What to fetch a blob from that is not here.
    pub(crate) fn home(&self, blob: &Digest) -> Option<Reference> {
        self.homes.get(blob).cloned()
    }
}

/// The other repositories of the registry that images were pulled from or pushed to, with those images' layers.
fn known_repositories(
    context: &TransferContext,
    place: &Reference,
) -> Result<BTreeMap<String, BTreeSet<LayerId>>, ExportError> {
    let images = context.store.images();
    let listed = images.list().map_err(ExportError::store("list images"))?;
    let ids: BTreeSet<ImageId> = listed.into_iter().flat_map(|(_, target)| target.images).collect();
    let mut known: BTreeMap<String, BTreeSet<LayerId>> = BTreeMap::new();
    for id in ids {
        let names = images.repo_digests(&id).map_err(ExportError::store("list an image's digests"))?;
        let elsewhere =
            |name: &&Reference| name.registry() == place.registry() && name.repository() != place.repository();
        for name in names.iter().filter(elsewhere) {
            let Some(image) = images.get(&id).map_err(ExportError::store("read an image"))? else { continue };
            known.entry(name.repository().to_owned()).or_default().extend(image.layers);
        }
    }
    Ok(known)
}
