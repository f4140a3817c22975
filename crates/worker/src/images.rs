//! Finds images by name and brings their layers in: from the store, a registry or an OCI layout.

use crate::error::WorkError;
use forge_cache::ResultRef;
use forge_image::{Digest, ImageConfig, ImageId, Platform, Reference};
use forge_llb::{ImageSource, OciLayoutSource, ResolveMode};
use forge_registry::{
    AttestationChain, FetchError, LayoutName, OciLayout, Pulled, Registry, ResolvedImage, TransferContext,
    bring_layers, fetch_layers, know_layers, record, resolve_image, resolve_oci_layout, tell_layers,
};
use forge_session::at_once;
use forge_store::{Image, LayerId, StoreError};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Resolves the images of one build and remembers what it found, so that the layers that are unpacked are
/// those of the manifest that the graph was made for.
pub struct ImageResolver {
    context: TransferContext,
    registry: Arc<Registry>,
    /// Folders of OCI layouts by the names that the graph uses.
    layouts: BTreeMap<String, PathBuf>,
    known: Mutex<HashMap<Digest, Known>>,
}

/// An image that was found.
#[derive(Clone)]
enum Known {
    Stored(ImageId),
    Remote(Reference, Box<ResolvedImage>),
    Layout(PathBuf, Box<ResolvedImage>),
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub struct FoundImage {
    /// The manifest's digest; for an image that was built here and never left, its id.
    pub digest: Digest,
    /// What the name itself stands for: an index, or the manifest.
    pub root: Digest,
    /// The config.
    pub config: ImageConfig,
}

impl ImageResolver {
    /// Works for the build that `context` belongs to.
    pub fn new(context: TransferContext, registry: Arc<Registry>, layouts: BTreeMap<String, PathBuf>) -> Self {
        Self { context, registry, layouts, known: Mutex::new(HashMap::new()) }
    }

    /// What transfers of this build work with.
    pub(crate) fn context(&self) -> &TransferContext {
        &self.context
    }

    /// The client, which also speaks to ordinary web servers.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The same, for those who keep it.
    pub(crate) fn shared_registry(&self) -> Arc<Registry> {
        self.registry.clone()
    }

    /// Finds the image that a name stands for, in the store first unless `mode` says otherwise.
    ///
    /// # Errors
    /// No such image, not for that platform, or the registry fails.
    pub async fn image(
        &self,
        reference: &Reference,
        platform: &Platform,
        mode: ResolveMode,
    ) -> Result<FoundImage, WorkError> {
        if mode == ResolveMode::PreferLocal
            && let Some(found) = self.stored(reference, platform).await?
        {
            return Ok(found);
        }
        // On the heap: a build that finds all its images in the store makes no room for it.
        let resolved = Box::pin(resolve_image(&self.context, &self.registry, reference, platform)).await?;
        let known = Known::Remote(reference.clone(), Box::new(resolved.clone()));
        Ok(self.remember(resolved.manifest.digest, resolved.root.digest, resolved.config, known))
    }

    /// What the registry says of an image, see [`forge_registry::attestation_chain`].
    ///
    /// # Errors
    /// As [`ImageResolver::image`].
    pub async fn attestation_chain(
        &self,
        reference: &Reference,
        platform: &Platform,
        statements: &[String],
    ) -> Result<Option<AttestationChain>, WorkError> {
        Ok(forge_registry::attestation_chain(&self.context, &self.registry, reference, platform, statements).await?)
    }

    /// Finds an image in the folder of an OCI layout.
    ///
    /// # Errors
    /// The folder is no layout, or has no such image.
    pub async fn layout(
        &self,
        name: &str,
        tag: Option<&str>,
        digest: Option<&Digest>,
        platform: &Platform,
    ) -> Result<FoundImage, WorkError> {
        let folder = self.layout_folder(name, digest).await?;
        let wanted = match (tag, digest) {
            (_, Some(digest)) => LayoutName::Digest(digest.clone()),
            (Some(tag), None) => LayoutName::Tag(tag.to_owned()),
            (None, None) => LayoutName::Default,
        };
        let resolved = Box::pin(resolve_oci_layout(&self.context, &folder, &wanted, platform)).await?;
        let known = Known::Layout(folder, Box::new(resolved.clone()));
        Ok(self.remember(resolved.manifest.digest, resolved.root.digest, resolved.config, known))
    }

    /// The folder of a layout; of one that the session keeps elsewhere, what `digest` stands for is brought here.
    pub(crate) async fn layout_folder(&self, name: &str, digest: Option<&Digest>) -> Result<PathBuf, WorkError> {
        let folder = match (self.layouts.get(name), digest) {
            (Some(folder), _) => Some(folder.clone()),
            (None, Some(digest)) => self.context.session.layout(name, digest).await?,
            (None, None) => None,
        };
        folder.ok_or_else(|| WorkError::NoContext { name: name.to_owned() })
    }

    fn remember(&self, digest: Digest, root: Digest, config: ImageConfig, known: Known) -> FoundImage {
        self.known.lock().expect("no holder panics").insert(digest.clone(), known);
        FoundImage { digest, root, config }
    }

    async fn stored(&self, reference: &Reference, platform: &Platform) -> Result<Option<FoundImage>, WorkError> {
        let (store, reference, platform) = (self.context.store.clone(), reference.clone(), platform.clone());
        let find = move || -> Result<Option<(Option<Digest>, Image, ImageConfig)>, StoreError> {
            let images = store.images();
            let Some(target) = images.target(&reference)? else { return Ok(None) };
            for id in &target.images {
                if let Some(image) = images.get(id)?.filter(|image| platform.accepts(&image.platform)) {
                    return Ok(Some((target.index.map(|index| index.digest), image, images.config(id)?)));
                }
            }
            Ok(None)
        };
        let found = at_once(find).await??;
        Ok(found.map(|(index, image, config)| {
            let digest = image.manifest.map_or_else(|| image.id.digest().clone(), |manifest| manifest.digest);
            self.remember(digest.clone(), index.unwrap_or(digest), config, Known::Stored(image.id))
        }))
    }

    /// What the manifest of an image source is: what the graph says, or what its name stands for now.
    pub(crate) async fn pin(&self, source: &ImageSource, platform: &Platform) -> Result<Digest, WorkError> {
        if let Some(checksum) = &source.checksum {
            return self.checked(source, checksum, platform).await;
        }
        match &source.pinned {
            Some(digest) if self.is_known(digest) => Ok(digest.clone()),
            Some(digest) if self.is_stored(&source.reference, digest, platform).await? => Ok(digest.clone()),
            Some(digest) => {
                let pinned = source.reference.with_digest(digest.clone());
                Ok(self.image(&pinned, platform, ResolveMode::PreferLocal).await?.digest)
            }
            None => Ok(self.image(&source.reference, platform, source.resolve).await?.digest),
        }
    }

    /// The manifest of a name that must stand for what the graph says. What the store has under the name may be older than
    /// the graph; then the registry is asked.
    async fn checked(&self, source: &ImageSource, checksum: &Digest, platform: &Platform) -> Result<Digest, WorkError> {
        let mut found = self.image(&source.reference, platform, source.resolve).await?;
        if [&found.root, &found.digest].iter().all(|digest| *digest != checksum) {
            found = self.image(&source.reference, platform, ResolveMode::ForcePull).await?;
        }
        match [&found.root, &found.digest].contains(&checksum) {
            true => Ok(found.digest),
            false => Err(WorkError::Checksum {
                reference: Box::new(source.reference.clone()),
                found: found.root,
                expected: checksum.clone(),
            }),
        }
    }

    /// Whether the store has the image that a graph was made for elsewhere: under its name, or by its id.
    async fn is_stored(&self, name: &Reference, digest: &Digest, platform: &Platform) -> Result<bool, WorkError> {
        if self.stored(name, platform).await?.is_some_and(|found| found.digest == *digest) {
            return Ok(true);
        }
        let (store, id) = (self.context.store.clone(), ImageId::new(digest.clone()));
        let find = move || -> Result<Option<(Image, ImageConfig)>, StoreError> {
            let Some(image) = store.images().get(&id)? else { return Ok(None) };
            Ok(Some((image, store.images().config(&id)?)))
        };
        let found = at_once(find).await??;
        let found = found.filter(|(image, _)| platform.accepts(&image.platform));
        let is_found = found.is_some();
        if let Some((image, config)) = found {
            self.remember(digest.clone(), digest.clone(), config, Known::Stored(image.id));
        }
        Ok(is_found)
    }

    /// What the manifest of a layout source is.
    pub(crate) async fn pin_layout(&self, source: &OciLayoutSource, platform: &Platform) -> Result<Digest, WorkError> {
        match &source.digest {
            Some(digest) if self.is_known(digest) => Ok(digest.clone()),
            digest => {
                let found = self.layout(&source.name, source.tag.as_deref(), digest.as_ref(), platform).await?;
                Ok(found.digest)
            }
        }
    }

    fn is_known(&self, digest: &Digest) -> bool {
        self.known.lock().expect("no holder panics").contains_key(digest)
    }

    /// Has results ready to be read: layers that lie in a registry only are fetched.
    pub(crate) async fn present(&self, results: &[ResultRef], vertex: &Digest) -> Result<Vec<ResultRef>, WorkError> {
        let mut present = Vec::with_capacity(results.len());
        for result in results {
            present.push(match result {
                ResultRef::Layers(stack) => ResultRef::Layers(self.present_stack(stack, vertex).await?),
                context => context.clone(),
            });
        }
        Ok(present)
    }

    /// The same for all but one of them, of which nothing is to be read.
    pub(crate) async fn present_but(
        &self,
        unread: usize,
        results: &[ResultRef],
        vertex: &Digest,
    ) -> Result<Vec<ResultRef>, WorkError> {
        let mut present = self.present(&results[..unread], vertex).await?;
        present.push(results[unread].clone());
        present.extend(self.present(&results[unread + 1..], vertex).await?);
        Ok(present)
    }

    /// Has known what the tables of contents of absent layers say. `false` where that is not to be known.
    pub(crate) async fn tell(&self, result: &ResultRef, vertex: &Digest) -> Result<bool, WorkError> {
        let context = TransferContext { vertex: vertex.clone(), ..self.context.clone() };
        Ok(tell_layers(&context, &self.registry, result.layers()).await?)
    }

    async fn present_stack(&self, stack: &[LayerId], vertex: &Digest) -> Result<Vec<LayerId>, WorkError> {
        let context = TransferContext { vertex: vertex.clone(), ..self.context.clone() };
        // Asked before every step, and answered by one row of a table that is in memory: a thread would cost more.
        let absent = context.store.layers().absent(stack)?;
        let Some(top) = stack.iter().rposition(|id| absent.iter().any(|remote| remote.layer == *id)) else {
            return Ok(stack.to_vec());
        };
        bring_layers(&context, &self.registry, stack).await?;
        let stack = stack.to_vec();
        // What was laid over layers that were not here could not look at them.
        let fit = move || -> Result<Vec<LayerId>, StoreError> {
            let (mut fitted, above) = (stack[..=top].to_vec(), &stack[top + 1..]);
            for layer in above {
                let layer = context.store.layers().restack(&fitted, layer, &context.lease)?;
                fitted.push(layer);
            }
            Ok(fitted)
        };
        Ok(tokio::task::spawn_blocking(fit).await??)
    }

    /// Has the layers of an image that was found before known to the store and held by the build's lease: those of a
    /// registry need not be here, see [`ImageResolver::present`]. An image of a registry is then in the store under its
    /// name, so that the next build asks nobody.
    pub(crate) async fn layers(&self, digest: &Digest, vertex: &Digest) -> Result<Vec<LayerId>, WorkError> {
        let known = self.known.lock().expect("no holder panics").get(digest).cloned();
        let context = TransferContext { vertex: vertex.clone(), ..self.context.clone() };
        match known {
            Some(Known::Stored(id)) => stored_layers(context, id).await,
            Some(Known::Remote(reference, resolved)) => {
                let layers = know_layers(&context, &resolved, &reference).await?;
                let pulled = Pulled { resolved: *resolved, layers };
                record(&context, &pulled, &reference).await?;
                Ok(pulled.layers)
            }
            Some(Known::Layout(folder, resolved)) => {
                let source = Arc::new(OciLayout::open(&folder)?);
                Ok(fetch_layers(&context, &(source as Arc<_>), &resolved).await?)
            }
            None => Err(WorkError::Unresolved { digest: digest.clone() }),
        }
    }
}

async fn stored_layers(context: TransferContext, id: ImageId) -> Result<Vec<LayerId>, WorkError> {
    let hold = move || -> Result<Vec<LayerId>, WorkError> {
        let image = context.store.images().get(&id)?.ok_or(WorkError::ImageGone { id: id.clone() })?;
        for layer in &image.layers {
            if !context.lease.hold_layer(layer)? {
                return Err(WorkError::ImageGone { id });
            }
        }
        Ok(image.layers)
    };
    at_once(hold).await?
}

impl From<FetchError> for WorkError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Cancelled => Self::Cancelled,
            error => Self::Fetch(error),
        }
    }
}
