//! Pushes images to registries.

use crate::package::{Bundle, Document, GZIP, Package};
use crate::work::blocking;
use crate::{ExportError, ExportSettings, Exported, ImageSet};
use forge_image::{Descriptor, Digest, ImageId, Reference};
use forge_registry::{Registry, RegistryError, TransferContext};
use forge_store::{LayerId, Target};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::sync::Arc;

/// How many blobs go out at once, as BuildKit.
const CONCURRENT_BLOBS: usize = 4;

/// What a push did.
#[derive(Clone, Debug, PartialEq)]
pub struct Pushed {
    /// What now stands in the registry under the names.
    pub exported: Exported,
    /// Blobs that the registry had already.
    pub existed: usize,
    /// Blobs that it took from another of its repositories.
    pub mounted: usize,
    /// Blobs that were sent.
    pub uploaded: usize,
}

/// Pushes images under all names of the settings: blobs first, then manifests, then the tag, so that no name ever
/// points at something incomplete. An image that was pulled and is unchanged goes out with its original manifest.
///
/// The store remembers the manifest of each image, and the digest under each name.
///
/// # Errors
/// There is no name, a layer is gone, or the registry refuses. Blobs that went out before stay there.
pub async fn push(
    context: &TransferContext,
    registry: &Arc<Registry>,
    images: &ImageSet,
    settings: &ExportSettings,
) -> Result<Pushed, ExportError> {
    if settings.names.is_empty() {
        return Err(ExportError::Nothing { what: "there is no name to push to" });
    }
    let bundle = Bundle::of(context, images, settings, GZIP).await?;
    keep_documents(context, &bundle).await?;
    let exported = Exported::of(&bundle, &settings.names);
    let mut push = Push {
        context,
        registry,
        bundle: &bundle,
        settings,
        done: Vec::new(),
        counts: Pushed { exported, existed: 0, mounted: 0, uploaded: 0 },
    };
    let cancelled = context.session.cancellation().cancelled();
    tokio::select! {
        pushed = push.all(images) => pushed?,
        () = cancelled => return Err(ExportError::Cancelled),
    }
    let counts = push.counts;
    record(context, &bundle, &settings.names).await?;
    Ok(counts)
}

struct Push<'a> {
    context: &'a TransferContext,
    registry: &'a Arc<Registry>,
    bundle: &'a Bundle,
    settings: &'a ExportSettings,
    /// Repositories that have everything already.
    done: Vec<&'a Reference>,
    counts: Pushed,
}

impl<'a> Push<'a> {
    async fn all(&mut self, images: &ImageSet) -> Result<(), ExportError> {
        let mut repositories: BTreeMap<String, Vec<&Reference>> = BTreeMap::new();
        for name in &self.settings.names {
            repositories.entry(name.name()).or_default().push(name);
        }
        for names in repositories.values() {
            self.repository(names, images).await?;
        }
        Ok(())
    }

    async fn repository(&mut self, names: &[&'a Reference], images: &ImageSet) -> Result<(), ExportError> {
        let place = *names.first().expect("a repository is listed with its first name");
        let mut origins = mount_candidates(self.context, place, images, self.bundle).await?;
        for done in self.done.iter().filter(|done| done.registry() == place.registry()) {
            for blob in unique_blobs(self.bundle) {
                origins.entry(blob.digest).or_default().insert(0, done.repository().to_owned());
            }
        }
        self.blobs(place, &origins).await?;
        self.done.push(place);
        if let Some(index) = &self.bundle.index {
            for package in &self.bundle.packages {
                self.manifest(place, &package.manifest).await?;
            }
            return self.tags(names, index).await;
        }
        let only = self.bundle.packages.first().expect("an image set is not empty");
        self.tags(names, &only.manifest).await
    }

    async fn blobs(&mut self, place: &Reference, origins: &HashMap<Digest, Vec<String>>) -> Result<(), ExportError> {
        let context = self.context;
        let registry = self.registry;
        let one = |blob: Descriptor| {
            let origins = origins.get(&blob.digest).cloned().unwrap_or_default();
            push_blob(context, registry, place, blob, origins)
        };
        let outcomes = stream::iter(unique_blobs(self.bundle)).map(one).buffer_unordered(CONCURRENT_BLOBS);
        let outcomes: Vec<_> = outcomes.try_collect().await?;
        for outcome in outcomes {
            match outcome {
                forge_registry::Pushed::Existed => self.counts.existed += 1,
                forge_registry::Pushed::Mounted => self.counts.mounted += 1,
                forge_registry::Pushed::Uploaded => self.counts.uploaded += 1,
            }
        }
        Ok(())
    }

    async fn tags(&self, names: &[&Reference], root: &Document) -> Result<(), ExportError> {
        for name in names {
            match self.settings.push_by_digest || name.tag().is_none() {
                true => self.manifest(name, root).await?,
                false => self.document(name, root).await?,
            }
        }
        Ok(())
    }

    /// Pushes a manifest under its digest.
    async fn manifest(&self, place: &Reference, document: &Document) -> Result<(), ExportError> {
        self.document(&place.with_digest(document.descriptor.digest.clone()), document).await
    }

    async fn document(&self, name: &Reference, document: &Document) -> Result<(), ExportError> {
        let Descriptor { media_type, digest, size, .. } = &document.descriptor;
        let progress = self.context.begin(format!("pushing manifest for {name}"), digest.to_string(), *size);
        let session = &*self.context.session;
        let answered = self.registry.push_manifest(name, media_type, &document.bytes, session).await;
        let answered = answered.map_err(failed(name))?;
        if answered != *digest {
            return Err(ExportError::PushedDigest {
                reference: Box::new(name.clone()),
                pushed: digest.clone(),
                answered,
            });
        }
        progress.complete();
        Ok(())
    }
}

fn failed(reference: &Reference) -> impl FnOnce(RegistryError) -> ExportError + use<> {
    let reference = Box::new(reference.clone());
    move |source| ExportError::Registry { reference, source: Box::new(source) }
}

fn unique_blobs(bundle: &Bundle) -> Vec<Descriptor> {
    let mut seen = BTreeSet::new();
    let all = bundle.packages.iter().flat_map(|it| it.layers.iter().chain([&it.config.descriptor]));
    all.filter(|blob| seen.insert(blob.digest.clone())).cloned().collect()
}

async fn push_blob(
    context: &TransferContext,
    registry: &Arc<Registry>,
    place: &Reference,
    blob: Descriptor,
    origins: Vec<String>,
) -> Result<forge_registry::Pushed, ExportError> {
    let source = open(context, &blob).await?;
    let progress = context.begin(blob.digest.to_string(), "pushing", blob.size);
    let report = |done| progress.set(done);
    let pushed = registry.push_blob(place, &blob, source, &origins, &*context.session, &report).await;
    let pushed = pushed.map_err(failed(place))?;
    progress.complete();
    Ok(pushed)
}

async fn open(context: &TransferContext, blob: &Descriptor) -> Result<File, ExportError> {
    let (context, digest) = (context.clone(), blob.digest.clone());
    blocking(move || context.store.blobs().open(&digest).map_err(ExportError::store("open a blob"))).await
}

/// Puts configs, manifests and the index into the store: blobs are pushed from there, and the image keeps them.
pub(crate) async fn keep_documents(context: &TransferContext, bundle: &Bundle) -> Result<(), ExportError> {
    let (context, bundle) = (context.clone(), bundle.clone());
    blocking(move || {
        let documents = bundle.packages.iter().flat_map(|it| [&it.config, &it.manifest]);
        for document in documents.chain(&bundle.index) {
            let written = context.store.blobs().write(&document.bytes, &context.lease);
            written.map_err(ExportError::store("keep a document"))?;
        }
        Ok(())
    })
    .await
}

/// For each layer blob the other repositories of the same registry that have, by what the store knows, the layer.
async fn mount_candidates(
    context: &TransferContext,
    place: &Reference,
    images: &ImageSet,
    bundle: &Bundle,
) -> Result<HashMap<Digest, Vec<String>>, ExportError> {
    let pairs = images.images().iter().zip(&bundle.packages);
    let blobs: Vec<(LayerId, Digest)> = pairs
        .flat_map(|(image, package)| image.layers.iter().zip(&package.layers))
        .map(|(layer, blob)| (layer.id.clone(), blob.digest.clone()))
        .collect();
    let (context, place) = (context.clone(), place.clone());
    blocking(move || {
        let mut candidates: HashMap<Digest, Vec<String>> = HashMap::new();
        for (repository, layers) in known_repositories(&context, &place)? {
            for (_, blob) in blobs.iter().filter(|(layer, _)| layers.contains(layer)) {
                candidates.entry(blob.clone()).or_default().push(repository.clone());
            }
        }
        Ok(candidates)
    })
    .await
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

/// Remembers the manifests, and the digest under each name, of images that the store has.
async fn record(context: &TransferContext, bundle: &Bundle, names: &[Reference]) -> Result<(), ExportError> {
    let (context, bundle, names) = (context.clone(), bundle.clone(), names.to_vec());
    blocking(move || {
        let images = context.store.images();
        for package in &bundle.packages {
            if !record_manifest(&context, package)? {
                return Ok(());
            }
        }
        let index = bundle.index.as_ref().map(|index| index.descriptor.clone());
        let target = Target { index, images: bundle.packages.iter().map(|it| it.id.clone()).collect() };
        for name in &names {
            let pinned = name.with_digest(bundle.root.digest.clone());
            images.pin_digest(&pinned, &target).map_err(ExportError::store("record the image's digest"))?;
        }
        Ok(())
    })
    .await
}

/// `false` where the store does not have the image: one that was built only to be pushed.
fn record_manifest(context: &TransferContext, package: &Package) -> Result<bool, ExportError> {
    let images = context.store.images();
    let Some(mut image) = images.get(&package.id).map_err(ExportError::store("read an image"))? else {
        return Ok(false);
    };
    image.manifest = Some(package.manifest.descriptor.clone());
    let recorded = images.put(&image, &package.config.bytes, &context.lease);
    recorded.map_err(ExportError::store("record the image's manifest"))?;
    Ok(true)
}
