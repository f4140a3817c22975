//! Pushes images to registries.

use crate::origins::Origins;
use crate::package::{Bundle, Document, GZIP, Package};
use crate::work::blocking;
use crate::{ExportError, ExportSettings, Exported, ImageSet};
use forge_image::{Descriptor, Reference};
use forge_registry::{Registry, RegistryError, RegistrySource, TransferContext, bring_layers, ensure_blob};
use forge_store::{StoreError, Target};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};
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
    let bundle = match Bundle::of(context, images, settings, GZIP).await {
        // A layer that is to be compressed in another way has to be here.
        Err(ExportError::Store { source: StoreError::LayerAbsent { .. }, .. }) => {
            bring(context, registry, images).await?;
            Bundle::of(context, images, settings, GZIP).await?
        }
        bundle => bundle?,
    };
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

/// Fetches what layers of images are not here.
async fn bring(context: &TransferContext, registry: &Arc<Registry>, images: &ImageSet) -> Result<(), ExportError> {
    for image in images.images() {
        let brought = bring_layers(context, registry, &image.layer_ids()).await;
        brought.map_err(|source| ExportError::FetchLayers { source: Box::new(source) })?;
    }
    Ok(())
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
        let mut origins = Origins::find(self.context, place, images, self.bundle).await?;
        for done in self.done.iter().filter(|done| done.registry() == place.registry()) {
            for blob in unique_blobs(self.bundle) {
                origins.prefer(&blob.digest, done.repository());
            }
        }
        let progress = self.context.begin("pushing layers", "pushing layers", 0);
        self.blobs(place, &origins).await?;
        progress.complete();
        match self.documents(names, place).await {
            Err(error) if names_missing_blobs(&error) => {
                // It had them and lost them, as registries that collect their garbage meanwhile do (F37).
                self.blobs(place, &origins).await?;
                self.documents(names, place).await?;
            }
            result => result?,
        }
        self.done.push(place);
        Ok(())
    }

    async fn documents(&self, names: &[&Reference], place: &Reference) -> Result<(), ExportError> {
        if let Some(index) = &self.bundle.index {
            for package in &self.bundle.packages {
                self.manifest(place, &package.manifest).await?;
            }
            for said in &self.bundle.attestations {
                self.manifest(place, &said.manifest).await?;
            }
            return self.tags(names, index).await;
        }
        let only = self.bundle.packages.first().expect("an image set is not empty");
        self.tags(names, &only.manifest).await
    }

    async fn blobs(&mut self, place: &Reference, origins: &Origins) -> Result<(), ExportError> {
        let context = self.context;
        let registry = self.registry;
        let one = |blob: Descriptor| push_blob(context, registry, place, blob, origins);
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
        let shown = match name.digest() {
            Some(_) => name.to_string(),
            None => format!("{name}@{digest}"),
        };
        let progress = self.context.begin(format!("pushing manifest for {shown}"), digest.to_string(), *size);
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

/// Whether a registry refused a manifest because it does not have all that it names.
fn names_missing_blobs(error: &ExportError) -> bool {
    let ExportError::Registry { source, .. } = error else { return false };
    let message = match &**source {
        RegistryError::Status { message, .. } | RegistryError::NotFound { message, .. } => message,
        _ => return false,
    };
    message.codes().iter().any(|code| code == "MANIFEST_BLOB_UNKNOWN" || code == "BLOB_UNKNOWN")
}

fn unique_blobs(bundle: &Bundle) -> Vec<Descriptor> {
    let mut seen = BTreeSet::new();
    // Who may have a layer that is not to be handed on fetches it where it says.
    let is_sent = |layer: &&Descriptor| layer.media_type.distributable() == layer.media_type;
    let all = bundle.packages.iter();
    let all = all.flat_map(|it| it.layers.iter().filter(is_sent).chain([&it.config.descriptor]));
    let said = bundle.attestations.iter().flat_map(|said| said.statements.iter().chain([&said.config]));
    let all = all.chain(said.map(|document| &document.descriptor));
    all.filter(|blob| seen.insert(blob.digest.clone())).cloned().collect()
}

/// Brings a blob to a registry. One that is not here is fetched only if the registry cannot have it from itself.
pub(crate) async fn push_blob(
    context: &TransferContext,
    registry: &Arc<Registry>,
    place: &Reference,
    blob: Descriptor,
    origins: &Origins,
) -> Result<forge_registry::Pushed, ExportError> {
    let mut mounts = origins.mounts(&blob.digest);
    let source = match open(context, &blob).await? {
        Some(source) => source,
        None => {
            let offered = registry.offer_blob(place, &blob, &mounts, &*context.session).await;
            if let Some(pushed) = offered.map_err(failed(place))? {
                return Ok(pushed);
            }
            mounts.clear();
            fetch(context, registry, &blob, origins).await?
        }
    };
    let progress = context.begin(blob.digest.to_string(), "pushing", blob.size);
    let report = |done| progress.set(done);
    let pushed = registry.push_blob(place, &blob, source, &mounts, &*context.session, &report).await;
    let pushed = pushed.map_err(failed(place))?;
    progress.complete();
    Ok(pushed)
}

async fn fetch(
    context: &TransferContext,
    registry: &Arc<Registry>,
    blob: &Descriptor,
    origins: &Origins,
) -> Result<File, ExportError> {
    let gone = || ExportError::BlobGone { digest: blob.digest.clone() };
    let home = origins.home(&blob.digest).ok_or_else(gone)?;
    let source = RegistrySource::new(registry.clone(), home.clone());
    let fetched = ensure_blob(context, &source, blob, "downloading").await;
    fetched.map_err(|source| ExportError::Fetch { reference: Box::new(home), source: Box::new(source) })?;
    open(context, blob).await?.ok_or_else(gone)
}

/// `None` where the store does not have it.
pub(crate) async fn open(context: &TransferContext, blob: &Descriptor) -> Result<Option<File>, ExportError> {
    let (context, digest) = (context.clone(), blob.digest.clone());
    blocking(move || match context.store.blobs().open(&digest) {
        Ok(file) => Ok(Some(file)),
        Err(StoreError::BlobNotFound { .. }) => Ok(None),
        Err(error) => Err(ExportError::store("open a blob")(error)),
    })
    .await
}

/// Puts configs, manifests and the index into the store: blobs are pushed from there, and the image keeps them.
pub(crate) async fn keep_documents(context: &TransferContext, bundle: &Bundle) -> Result<(), ExportError> {
    let (context, bundle) = (context.clone(), bundle.clone());
    blocking(move || {
        for document in bundle.documents().chain(&bundle.index) {
            let written = context.store.blobs().write(&document.bytes, &context.lease);
            written.map_err(ExportError::store("keep a document"))?;
        }
        Ok(())
    })
    .await
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
