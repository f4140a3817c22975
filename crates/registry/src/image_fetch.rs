//! Brings images into the store: a name or an index becomes one manifest, its config, its layers unpacked.
//!
//! The same code serves registries and OCI layouts; only [`ImageSource`] differs. Bytes are kept exactly as they
//! came, since what was pulled must leave with the same digests.

use crate::{Registry, RegistryError, TransferContext, select_platform};
use async_trait::async_trait;
use forge_image::{
    ChainId, Descriptor, DiffId, Digest, DocumentError, ErrorKind, ImageConfig, ImageId, Index, Manifest, MediaType,
    Platform, Reference,
};
use forge_store::{BlobWriter, Image, LayerId, LockGuard, StoreError, Target};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

/// Manifests and indexes larger than this are refused (A71); what registries accept.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Configs larger than this are refused (A71).
pub const MAX_CONFIG: u64 = 8 << 20;
/// Indexes nested deeper than this are refused (A70).
const MAX_INDEX_DEPTH: usize = 4;
/// Images with more entries in their indexes than this are refused (A70).
const MAX_INDEX_ENTRIES: usize = 10_000;
/// Images with more layers than this are refused: overlayfs mounts at most 500.
const MAX_LAYERS: usize = 500;
/// How many blobs come in at once.
const CONCURRENT_BLOBS: usize = 4;

/// Why an image could not be brought into the store.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The registry failed or lied.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// The store failed.
    #[error("cannot {action}")]
    Store {
        /// What was being done.
        action: &'static str,
        /// The cause.
        source: StoreError,
    },
    /// A manifest, index or config is malformed.
    #[error("cannot read {digest}")]
    Document {
        /// The document.
        digest: Digest,
        /// The cause.
        source: DocumentError,
    },
    /// A document says that it is larger than allowed.
    #[error("document {digest} has {size} bytes, more than the {limit} allowed")]
    DocumentSize {
        /// The document.
        digest: Digest,
        /// Its size by its descriptor.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// Bytes do not have the digest or size that their descriptor says.
    #[error("expected {expected} with {expected_size} bytes, got {actual} with {actual_size} bytes")]
    Mismatch {
        /// The digest asked for.
        expected: Digest,
        /// The size asked for.
        expected_size: u64,
        /// The digest of what came.
        actual: Digest,
        /// The size of what came.
        actual_size: u64,
    },
    /// Indexes are nested too deep, or too many entries are in them.
    #[error("image index is too large or nested too deep")]
    IndexLimit,
    /// What was found is no image.
    #[error("{digest} is no container image: its media type is {media_type}")]
    NotAnImage {
        /// What was found.
        digest: Digest,
        /// Its type.
        media_type: MediaType,
    },
    /// The config and the manifest disagree about the number of layers, or there are too many.
    #[error("config lists {diff_ids} layers, the manifest {layers}; at most {MAX_LAYERS} are possible")]
    LayerCount {
        /// In the config.
        diff_ids: usize,
        /// In the manifest.
        layers: usize,
    },
    /// A layer is of a kind that forge cannot unpack.
    #[error("layer {digest} has the unsupported media type {media_type}")]
    LayerType {
        /// The layer.
        digest: Digest,
        /// Its type.
        media_type: MediaType,
    },
    /// A file of an OCI layout cannot be read.
    #[error("cannot read {path}")]
    LayoutFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A folder is no OCI layout.
    #[error("{path} is no OCI image layout: {reason}")]
    LayoutFormat {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An OCI layout has no image of that name.
    #[error("{path} has no image {wanted}; it has {}", list(available))]
    LayoutName {
        /// The folder.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// The names it has.
        available: Vec<String>,
    },
    /// A blob that an image needs is not there.
    #[error("blob {digest} is missing")]
    BlobMissing {
        /// The blob.
        digest: Digest,
    },
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A thread of ours ended with a panic.
    #[error("a worker thread failed")]
    Thread(#[source] tokio::task::JoinError),
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none with a name".to_owned(),
        names => names.join(", "),
    }
}

impl From<RegistryError> for FetchError {
    fn from(source: RegistryError) -> Self {
        Self::Registry(Box::new(source))
    }
}

impl FetchError {
    /// Who is to blame.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Registry(source) => source.kind(),
            Self::Store { source, .. } => source.kind(),
            Self::Document { .. } | Self::DocumentSize { .. } | Self::Mismatch { .. } => ErrorKind::Remote,
            Self::IndexLimit | Self::LayerCount { .. } | Self::BlobMissing { .. } => ErrorKind::Remote,
            Self::NotAnImage { .. } | Self::LayerType { .. } => ErrorKind::Unsupported,
            Self::LayoutFile { .. } => ErrorKind::Environment,
            Self::LayoutFormat { .. } | Self::LayoutName { .. } => ErrorKind::UserInput,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Thread(_) => ErrorKind::Internal,
        }
    }

    /// What the user may do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Registry(source) => source.hint(),
            Self::Store { source, .. } => source.hint().map(str::to_owned),
            _ => None,
        }
    }

    fn store(action: &'static str) -> impl FnOnce(StoreError) -> Self {
        move |source| Self::Store { action, source }
    }
}

/// Where an image's documents and blobs come from.
#[async_trait]
pub trait ImageSource: Send + Sync {
    /// The bytes of a manifest or index, verified against the descriptor. Not longer than [`MAX_MANIFEST`].
    async fn manifest(&self, context: &TransferContext, descriptor: &Descriptor) -> Result<Vec<u8>, FetchError>;

    /// Writes a blob. Whether its digest is right is for `into` to say. `progress` is told the bytes so far.
    async fn blob(
        &self,
        context: &TransferContext,
        descriptor: &Descriptor,
        into: BlobWriter,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), FetchError>;
}

/// A repository of a registry.
pub struct RegistrySource {
    registry: Arc<Registry>,
    reference: Reference,
}

impl RegistrySource {
    /// Reads from the repository that `reference` names.
    pub fn new(registry: Arc<Registry>, reference: Reference) -> Self {
        Self { registry, reference }
    }
}

#[async_trait]
impl ImageSource for RegistrySource {
    async fn manifest(&self, context: &TransferContext, descriptor: &Descriptor) -> Result<Vec<u8>, FetchError> {
        Ok(self.registry.manifest(&self.reference, descriptor, &*context.session).await?.bytes)
    }

    async fn blob(
        &self,
        context: &TransferContext,
        descriptor: &Descriptor,
        into: BlobWriter,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), FetchError> {
        let (lease, session) = (&context.lease, &*context.session);
        Ok(self.registry.fetch_blob(&self.reference, descriptor, into, lease, session, progress).await?)
    }
}

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

/// Finds the image that a name in a registry stands for. Fetches manifest and config, no layer.
///
/// A reference with a digest asks no registry where the store has the documents.
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
    let Some(bytes) = stored_document(context, digest, MAX_MANIFEST).await? else { return Ok(None) };
    Ok(Some(describe_document(&bytes)))
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

/// All image manifests below a manifest or index, in order; nested indexes are read. Attestations are left out.
///
/// # Errors
/// A document cannot be read, or nesting and number exceed the limits of A70.
pub async fn image_manifests(
    context: &TransferContext,
    source: &dyn ImageSource,
    root: &Descriptor,
) -> Result<Vec<Descriptor>, FetchError> {
    let mut found = Vec::new();
    let mut visited = HashSet::new();
    let mut todo = vec![(root.clone(), 0)];
    let mut entries = 0;
    while let Some((descriptor, depth)) = todo.pop() {
        entries += 1;
        if entries > MAX_INDEX_ENTRIES || depth > MAX_INDEX_DEPTH {
            return Err(FetchError::IndexLimit);
        }
        if is_attestation(&descriptor) || !visited.insert((descriptor.digest.clone(), descriptor.platform.clone())) {
            continue;
        }
        if descriptor.media_type.is_index() {
            let index = read_index(context, source, &descriptor).await?;
            if index.manifests.len() > MAX_INDEX_ENTRIES {
                return Err(FetchError::IndexLimit);
            }
            todo.extend(index.manifests.into_iter().rev().map(|entry| (entry, depth + 1)));
        } else if descriptor.media_type.is_manifest() {
            found.push(descriptor);
        } else if depth == 0 {
            return Err(FetchError::NotAnImage { digest: descriptor.digest, media_type: descriptor.media_type });
        }
    }
    Ok(found)
}

fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor.annotations.get("vnd.docker.reference.type").is_some_and(|kind| kind == "attestation-manifest")
}

async fn read_index(
    context: &TransferContext,
    source: &dyn ImageSource,
    descriptor: &Descriptor,
) -> Result<Index, FetchError> {
    let bytes = manifest_bytes(context, source, descriptor).await?;
    Index::from_json(&bytes, Some(&descriptor.media_type))
        .map_err(|source| FetchError::Document { digest: descriptor.digest.clone(), source })
}

/// The bytes of a manifest or index, from the store if it has them; they are in the store afterwards.
async fn manifest_bytes(
    context: &TransferContext,
    source: &dyn ImageSource,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, FetchError> {
    check_size(descriptor, MAX_MANIFEST)?;
    if let Some(bytes) = stored_document(context, &descriptor.digest, MAX_MANIFEST).await? {
        check_bytes(descriptor, &bytes)?;
        return Ok(bytes);
    }
    let bytes = source.manifest(context, descriptor).await?;
    check_bytes(descriptor, &bytes)?;
    keep(context, bytes.clone()).await?;
    Ok(bytes)
}

async fn config_bytes(
    context: &TransferContext,
    source: &dyn ImageSource,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, FetchError> {
    check_size(descriptor, MAX_CONFIG)?;
    ensure_blob(context, source, descriptor, "resolving").await?;
    let bytes = stored_document(context, &descriptor.digest, MAX_CONFIG).await?;
    let bytes = bytes.ok_or_else(|| FetchError::BlobMissing { digest: descriptor.digest.clone() })?;
    check_bytes(descriptor, &bytes)?;
    Ok(bytes)
}

fn check_size(descriptor: &Descriptor, limit: u64) -> Result<(), FetchError> {
    if descriptor.size > limit {
        return Err(FetchError::DocumentSize { digest: descriptor.digest.clone(), size: descriptor.size, limit });
    }
    Ok(())
}

/// Digest and size are both checked: a right digest with a wrong size is a lie too (A67).
pub(crate) fn check_bytes(descriptor: &Descriptor, bytes: &[u8]) -> Result<(), FetchError> {
    let actual = Descriptor::of(descriptor.media_type.clone(), bytes);
    // Only sha256 can be recomputed here; the store verified any other digest when it took the bytes in.
    let same_digest = descriptor.digest.algorithm() != "sha256" || actual.digest == descriptor.digest;
    if !same_digest || actual.size != descriptor.size {
        return Err(FetchError::Mismatch {
            expected: descriptor.digest.clone(),
            expected_size: descriptor.size,
            actual: actual.digest,
            actual_size: actual.size,
        });
    }
    Ok(())
}

async fn stored_document(
    context: &TransferContext,
    digest: &Digest,
    limit: u64,
) -> Result<Option<Vec<u8>>, FetchError> {
    let (context, digest) = (context.clone(), digest.clone());
    blocking(move || {
        if !context.lease.hold_blob(&digest).map_err(FetchError::store("hold a document"))? {
            return Ok(None);
        }
        context.store.blobs().read(&digest, limit).map(Some).map_err(FetchError::store("read a document"))
    })
    .await
}

async fn keep(context: &TransferContext, bytes: Vec<u8>) -> Result<Digest, FetchError> {
    let context = context.clone();
    let write = move || context.store.blobs().write(&bytes, &context.lease);
    blocking(move || write().map_err(FetchError::store("keep a document"))).await
}

pub(crate) async fn blocking<T, F>(work: F) -> Result<T, FetchError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, FetchError> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(FetchError::Thread)?
}

/// Has a blob in the store and held by the lease. Of several that want the same blob, in any process, one fetches.
///
/// # Errors
/// The source fails, or sends other bytes than the descriptor names.
pub async fn ensure_blob(
    context: &TransferContext,
    source: &dyn ImageSource,
    descriptor: &Descriptor,
    verb: &str,
) -> Result<(), FetchError> {
    if hold(context, &descriptor.digest).await? {
        return Ok(());
    }
    let _only = lock(context, format!("blob {}", descriptor.digest)).await?;
    if hold(context, &descriptor.digest).await? {
        return Ok(());
    }
    let blobs = context.store.blobs();
    let expected = Some((&descriptor.digest, descriptor.size));
    let writer = blobs.writer(expected).map_err(FetchError::store("make a blob"))?;
    let progress = context.begin(descriptor.digest.to_string(), verb, descriptor.size);
    let transfer = async {
        let report = |done| progress.set(done);
        source.blob(context, descriptor, writer, &report).await
    };
    tokio::select! {
        result = transfer => result?,
        () = context.session.cancellation().cancelled() => return Err(FetchError::Cancelled),
    }
    progress.complete();
    Ok(())
}

async fn hold(context: &TransferContext, digest: &Digest) -> Result<bool, FetchError> {
    let (context, digest) = (context.clone(), digest.clone());
    blocking(move || context.lease.hold_blob(&digest).map_err(FetchError::store("hold a blob"))).await
}

/// How often a lock that somebody else holds is asked for. Asking, instead of waiting in the kernel, can be cancelled.
const LOCK_INTERVAL: Duration = Duration::from_millis(25);

async fn lock(context: &TransferContext, name: String) -> Result<LockGuard, FetchError> {
    loop {
        let (store, name) = (context.store.clone(), name.clone());
        let attempt = blocking(move || store.try_lock(&name).map_err(FetchError::store("lock a blob"))).await?;
        if let Some(guard) = attempt {
            return Ok(guard);
        }
        tokio::select! {
            () = tokio::time::sleep(LOCK_INTERVAL) => {}
            () = context.session.cancellation().cancelled() => return Err(FetchError::Cancelled),
        }
    }
}

/// Has the layers of a resolved image in the store, unpacked. Blobs come in side by side and are unpacked in
/// order while later ones are still coming; layers that were unpacked before for the same stack are not fetched.
///
/// # Errors
/// A blob cannot be fetched or unpacked, or is not what manifest and config say.
pub async fn fetch_layers(
    context: &TransferContext,
    source: &Arc<dyn ImageSource>,
    image: &ResolvedImage,
) -> Result<Vec<LayerId>, FetchError> {
    let diff_ids: Arc<[DiffId]> = image.config.rootfs.diff_ids.clone().into();
    let mut layers = known_layers(context, &diff_ids).await?;
    let missing: Vec<Descriptor> = image.document.layers[layers.len()..].to_vec();
    let mut blobs = Incoming::start(context, source, &missing);
    for descriptor in &missing {
        blobs.arrival(descriptor).await?;
        layers = unpack(context, layers, descriptor, &diff_ids).await?;
    }
    Ok(layers)
}

/// The layers of the longest part of the stack, counted from below, that is unpacked already.
async fn known_layers(context: &TransferContext, diff_ids: &Arc<[DiffId]>) -> Result<Vec<LayerId>, FetchError> {
    let (context, diff_ids) = (context.clone(), diff_ids.clone());
    blocking(move || {
        for length in (1..=diff_ids.len()).rev() {
            let found = context.store.layers().find_chain(&diff_ids[..length], &context.lease);
            if let Some(layers) = found.map_err(FetchError::store("look for unpacked layers"))? {
                return Ok(layers);
            }
        }
        Ok(Vec::new())
    })
    .await
}

async fn unpack(
    context: &TransferContext,
    parents: Vec<LayerId>,
    blob: &Descriptor,
    diff_ids: &Arc<[DiffId]>,
) -> Result<Vec<LayerId>, FetchError> {
    let chain = &diff_ids[..=parents.len()];
    let name = ChainId::of(chain).expect("the stack has at least the layer being unpacked");
    let _only = lock(context, format!("unpack {name}")).await?;
    let (context, blob, chain) = (context.clone(), blob.clone(), chain.to_vec());
    blocking(move || {
        let layers = context.store.layers();
        // Somebody else may have unpacked it while this one waited for the lock.
        if let Some(found) = layers.find_chain(&chain, &context.lease).map_err(FetchError::store("find a layer"))? {
            return Ok(found);
        }
        let progress = context.begin(blob.digest.to_string(), "extracting", blob.size);
        let diff_id = chain.last().expect("a chain is not empty");
        let record = layers.unpack(&parents, &blob, diff_id, &context.lease, &mut |done| progress.set(done));
        let record = record.map_err(FetchError::store("unpack a layer"))?;
        progress.complete();
        Ok([parents, vec![record.id]].concat())
    })
    .await
}

/// Blobs on their way. Dropping it stops the transfers.
struct Incoming {
    arrivals: HashMap<Digest, oneshot::Receiver<Result<(), FetchError>>>,
    tasks: JoinSet<()>,
}

impl Incoming {
    fn start(context: &TransferContext, source: &Arc<dyn ImageSource>, blobs: &[Descriptor]) -> Self {
        let slots = Arc::new(Semaphore::new(CONCURRENT_BLOBS));
        let mut incoming = Self { arrivals: HashMap::new(), tasks: JoinSet::new() };
        for blob in blobs {
            if incoming.arrivals.contains_key(&blob.digest) {
                continue;
            }
            let (sender, arrival) = oneshot::channel();
            incoming.arrivals.insert(blob.digest.clone(), arrival);
            let (context, source, blob, slots) = (context.clone(), source.clone(), blob.clone(), slots.clone());
            incoming.tasks.spawn(async move {
                let _slot = slots.acquire_owned().await.expect("the semaphore is never closed");
                // The receiver is gone only when the whole pull was given up.
                let _ = sender.send(ensure_blob(&context, &*source, &blob, "downloading").await);
            });
        }
        incoming
    }

    /// Waits for a blob; a second layer of the same blob finds it arrived.
    async fn arrival(&mut self, blob: &Descriptor) -> Result<(), FetchError> {
        let Some(arrival) = self.arrivals.remove(&blob.digest) else { return Ok(()) };
        match arrival.await {
            Ok(result) => result,
            Err(_) => Err(self.failure().await),
        }
    }

    /// Why a transfer ended without an answer.
    async fn failure(&mut self) -> FetchError {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                return FetchError::Thread(error);
            }
        }
        FetchError::Cancelled
    }
}

/// Has an image of a registry in the store with its layers, held by the lease; gives it no name. For base images.
///
/// # Errors
/// As [`resolve_image`] and [`fetch_layers`].
pub async fn fetch_image(
    context: &TransferContext,
    registry: &Arc<Registry>,
    reference: &Reference,
    platform: &Platform,
) -> Result<Pulled, FetchError> {
    let resolved = resolve_image(context, registry, reference, platform).await?;
    let source: Arc<dyn ImageSource> = Arc::new(RegistrySource::new(registry.clone(), reference.clone()));
    let layers = fetch_layers(context, &source, &resolved).await?;
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
