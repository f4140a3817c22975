//! Reads images from archives and OCI layouts into the store.

use crate::ExportError;
use crate::archive::{Archive, LoadLimits, Member, open};
use crate::docker_archive::ArchiveEntry;
use crate::work::blocking;
use async_trait::async_trait;
use forge_image::{Descriptor, Digest, ImageConfig, ImageId, Index, Manifest, MediaType, Reference};
use forge_registry::{
    FetchError, IMAGE_NAME, ImageSource, MAX_CONFIG, MAX_MANIFEST, OciLayout, Pulled, REF_NAME, ResolvedImage,
    TransferContext, fetch_layers, image_manifests, resolve_manifest,
};
use forge_store::{BlobWriter, Image, Target};
use std::collections::{HashMap, HashSet};
use std::io::{Read, Seek};
use std::path::PathBuf;
use std::sync::Arc;

/// Where images are loaded from.
pub enum LoadInput {
    /// A tar: docker archive or OCI layout, plain or in gzip or zstd.
    Stream(Box<dyn Read + Send>),
    /// A folder that holds an OCI layout.
    Folder(PathBuf),
}

impl std::fmt::Debug for LoadInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stream(_) => f.write_str("Stream"),
            Self::Folder(path) => f.debug_tuple("Folder").field(path).finish(),
        }
    }
}

/// What happens to a name that points at another image already (A45).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExistingNames {
    /// Nothing is loaded.
    Refuse,
    /// The name moves, as with docker.
    Replace,
}

/// An image that was loaded.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The names that it got.
    pub names: Vec<Reference>,
    /// The image, or the images of all platforms that were there.
    pub target: Target,
}

/// Loads all images of an archive or layout. Everything is verified first: digests, sizes, DiffIds, names. Only then
/// are images recorded and named, all or none.
///
/// # Errors
/// The input is malformed or lies, exceeds a limit, or would move a name that may not be moved.
pub async fn load(
    context: &TransferContext,
    input: LoadInput,
    limits: LoadLimits,
    existing: ExistingNames,
) -> Result<Vec<Loaded>, ExportError> {
    let candidates = match input {
        LoadInput::Stream(stream) => load_stream(context, stream, limits).await?,
        LoadInput::Folder(folder) => load_folder(context, folder).await?,
    };
    if candidates.is_empty() {
        return Err(ExportError::Archive { reason: "it holds no image".to_owned() });
    }
    let context = context.clone();
    blocking(move || record(&context, candidates, existing)).await
}

/// An image that was verified but is not recorded yet.
struct Candidate {
    names: Vec<Reference>,
    index: Option<Descriptor>,
    images: Vec<(Image, Vec<u8>)>,
    /// The manifests of images whose layers are all bare tars.
    bare: HashSet<Digest>,
}

impl Candidate {
    /// docker's format has bare tars, and its manifests are only there to list them: an image that was carried in such
    /// an archive is to be pushed compressed, so that manifest is not the image's.
    fn forget_bare_manifests(&mut self) {
        for (image, _) in &mut self.images {
            image.manifest = image.manifest.take().filter(|manifest| !self.bare.contains(&manifest.digest));
        }
    }
}

fn is_bare(manifest: &Manifest) -> bool {
    manifest.layers.iter().all(|layer| matches!(layer.media_type, MediaType::OciLayer | MediaType::DockerLayer))
}

async fn load_stream(
    context: &TransferContext,
    stream: Box<dyn Read + Send>,
    limits: LoadLimits,
) -> Result<Vec<Candidate>, ExportError> {
    let reading = context.clone();
    let archive = Arc::new(blocking(move || Archive::read(&reading, stream, limits)).await?);
    let index = document::<IndexBytes>(context, &archive, "index.json").await?;
    let entries = document::<Vec<ArchiveEntry>>(context, &archive, "manifest.json").await?;
    match (index, entries) {
        (Some(IndexBytes(index)), entries) => {
            let source: Arc<dyn ImageSource> = Arc::new(Blobs);
            let mut candidates = load_index(context, &source, index).await?;
            if entries.is_some() {
                candidates.iter_mut().for_each(Candidate::forget_bare_manifests);
            }
            add_archive_names(context, &archive, &mut candidates, entries.unwrap_or_default()).await?;
            Ok(candidates)
        }
        (None, Some(entries)) => load_docker(context, &archive, entries).await,
        (None, None) => Err(ExportError::Archive { reason: "it has neither index.json nor manifest.json".to_owned() }),
    }
}

/// A document of an archive.
trait ArchiveDocument: Sized + Send + 'static {
    fn parse(name: &str, bytes: &[u8]) -> Result<Self, ExportError>;
}

struct IndexBytes(Index);

impl ArchiveDocument for IndexBytes {
    fn parse(name: &str, bytes: &[u8]) -> Result<Self, ExportError> {
        let index = Index::from_json(bytes, None);
        index.map(Self).map_err(|source| ExportError::Document { what: name.to_owned(), source })
    }
}

impl ArchiveDocument for Vec<ArchiveEntry> {
    fn parse(name: &str, bytes: &[u8]) -> Result<Self, ExportError> {
        serde_json::from_slice(bytes)
            .map_err(|error| ExportError::Archive { reason: format!("{name} is malformed: {error}") })
    }
}

async fn document<T: ArchiveDocument>(
    context: &TransferContext,
    archive: &Arc<Archive>,
    name: &'static str,
) -> Result<Option<T>, ExportError> {
    let (context, archive) = (context.clone(), archive.clone());
    blocking(move || {
        let bytes = archive.bytes(&context, name, MAX_MANIFEST)?;
        bytes.map(|bytes| T::parse(name, &bytes)).transpose()
    })
    .await
}

async fn load_folder(context: &TransferContext, folder: PathBuf) -> Result<Vec<Candidate>, ExportError> {
    let archive = folder.display().to_string();
    let opened = blocking(move || {
        let layout = OciLayout::open(&folder).map_err(unreadable(archive.clone()))?;
        let index = layout.index().map_err(unreadable(archive))?;
        Ok((layout, index))
    });
    let (layout, index) = opened.await?;
    let source: Arc<dyn ImageSource> = Arc::new(layout);
    load_index(context, &source, index).await
}

fn unreadable(archive: String) -> impl FnOnce(FetchError) -> ExportError {
    move |source| ExportError::Load { archive, source: Box::new(source) }
}

/// The blobs of an archive are in the store already; whatever is asked for beyond them is missing.
struct Blobs;

#[async_trait]
impl ImageSource for Blobs {
    async fn manifest(&self, _: &TransferContext, descriptor: &Descriptor) -> Result<Vec<u8>, FetchError> {
        Err(FetchError::BlobMissing { digest: descriptor.digest.clone() })
    }

    async fn blob(
        &self,
        _: &TransferContext,
        descriptor: &Descriptor,
        _: BlobWriter,
        _: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), FetchError> {
        Err(FetchError::BlobMissing { digest: descriptor.digest.clone() })
    }
}

async fn load_index(
    context: &TransferContext,
    source: &Arc<dyn ImageSource>,
    index: Index,
) -> Result<Vec<Candidate>, ExportError> {
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut known: HashMap<Digest, usize> = HashMap::new();
    for entry in index.manifests {
        let name = entry_name(&entry)?;
        let at = match known.get(&entry.digest) {
            Some(at) => *at,
            None => {
                let Some(candidate) = load_entry(context, source, &entry).await? else { continue };
                known.insert(entry.digest, candidates.len());
                candidates.push(candidate);
                candidates.len() - 1
            }
        };
        candidates[at].names.extend(name);
    }
    Ok(candidates)
}

/// The name that an entry asks for. A bare tag is not one: it has no repository.
fn entry_name(entry: &Descriptor) -> Result<Option<Reference>, ExportError> {
    let annotation = |key: &str| entry.annotations.get(key).and_then(|value| value.as_str());
    let text = annotation(IMAGE_NAME).or(annotation(REF_NAME).filter(|name| name.contains(['/', ':'])));
    let Some(text) = text else { return Ok(None) };
    parse_name(text).map(|name| Some(name).filter(|name| name.tag().is_some()))
}

/// Only the strict grammar is a name, whatever an archive says (A45).
fn parse_name(text: &str) -> Result<Reference, ExportError> {
    text.parse().map_err(|error| ExportError::Archive { reason: format!("{error}") })
}

/// Loads the image or, of an index, the images of all platforms that are there. `None` for an attestation.
async fn load_entry(
    context: &TransferContext,
    source: &Arc<dyn ImageSource>,
    entry: &Descriptor,
) -> Result<Option<Candidate>, ExportError> {
    let failed = || unreadable(entry.digest.to_string());
    let mut images = Vec::new();
    let mut bare = HashSet::new();
    let manifests = image_manifests(context, &**source, entry).await.map_err(failed())?;
    for manifest in &manifests {
        match load_manifest(context, source, entry, manifest).await {
            Ok(pulled) => {
                if is_bare(&pulled.resolved.document) {
                    bare.insert(manifest.digest.clone());
                }
                images.push((pulled.image(), pulled.resolved.config_bytes));
            }
            // An index may name platforms that were left out of the archive.
            Err(FetchError::BlobMissing { digest }) if digest == manifest.digest && *entry != *manifest => {}
            Err(error) => return Err(failed()(error)),
        }
    }
    match (images.is_empty(), manifests.first()) {
        (false, _) => {
            let index = Some(entry.clone()).filter(|entry| entry.media_type.is_index());
            let index = index.map(|it| Descriptor::new(it.media_type, it.digest, it.size));
            Ok(Some(Candidate { names: Vec::new(), index, images, bare }))
        }
        (true, Some(first)) => Err(failed()(FetchError::BlobMissing { digest: first.digest.clone() })),
        (true, None) => Ok(None),
    }
}

async fn load_manifest(
    context: &TransferContext,
    source: &Arc<dyn ImageSource>,
    root: &Descriptor,
    manifest: &Descriptor,
) -> Result<Pulled, FetchError> {
    let resolved = resolve_manifest(context, &**source, root.clone(), manifest.clone()).await?;
    let layers = fetch_layers(context, source, &resolved).await?;
    Ok(Pulled { resolved, layers })
}

/// Archives that are both formats may give their names in `manifest.json` only.
async fn add_archive_names(
    context: &TransferContext,
    archive: &Arc<Archive>,
    candidates: &mut [Candidate],
    entries: Vec<ArchiveEntry>,
) -> Result<(), ExportError> {
    for entry in entries {
        let id = archive_image(context, archive, &entry.config).await?.0;
        let of_image = |it: &&mut Candidate| it.images.iter().any(|(image, _)| image.id == id);
        let Some(candidate) = candidates.iter_mut().find(of_image) else { continue };
        for name in tags(&entry)? {
            if !candidate.names.contains(&name) {
                candidate.names.push(name);
            }
        }
    }
    Ok(())
}

fn tags(entry: &ArchiveEntry) -> Result<Vec<Reference>, ExportError> {
    entry.repo_tags.iter().flatten().map(|tag| parse_name(tag)).collect()
}

/// The id and bytes of a config in an archive.
async fn archive_image(
    context: &TransferContext,
    archive: &Arc<Archive>,
    path: &str,
) -> Result<(ImageId, Vec<u8>), ExportError> {
    let (context, archive, path) = (context.clone(), archive.clone(), path.to_owned());
    blocking(move || {
        let bytes = archive.bytes(&context, &path, MAX_CONFIG)?.ok_or_else(|| missing(&path))?;
        Ok((ImageConfig::id_of(&bytes), bytes))
    })
    .await
}

fn missing(path: &str) -> ExportError {
    ExportError::Archive { reason: format!("{path:?} is missing") }
}

async fn load_docker(
    context: &TransferContext,
    archive: &Arc<Archive>,
    entries: Vec<ArchiveEntry>,
) -> Result<Vec<Candidate>, ExportError> {
    let mut candidates = Vec::new();
    for entry in entries {
        candidates.push(load_docker_image(context, archive, entry).await?);
    }
    Ok(candidates)
}

/// A docker archive has no manifest: one is made up to have the layers verified and unpacked, and is not kept.
async fn load_docker_image(
    context: &TransferContext,
    archive: &Arc<Archive>,
    entry: ArchiveEntry,
) -> Result<Candidate, ExportError> {
    let names = tags(&entry)?;
    let (id, config_bytes) = archive_image(context, archive, &entry.config).await?;
    let config = ImageConfig::from_json(&config_bytes)
        .map_err(|source| ExportError::Document { what: entry.config.clone(), source })?;
    if config.rootfs.diff_ids.len() != entry.layers.len() {
        let (diff_ids, layers) = (config.rootfs.diff_ids.len(), entry.layers.len());
        return Err(ExportError::LayerCount { image: id, diff_ids, layers });
    }
    let mut layers = Vec::new();
    for path in entry.layers {
        layers.push(docker_layer(context, archive, path).await?);
    }
    let document = Manifest {
        schema_version: 2,
        media_type: Some(MediaType::DockerManifest),
        config: Descriptor::of(MediaType::DockerConfig, &config_bytes),
        layers,
        annotations: Default::default(),
        unknown: Default::default(),
    };
    let manifest = Descriptor::of(MediaType::DockerManifest, &document.to_json());
    let platform = config.platform();
    let root = manifest.clone();
    let resolved = ResolvedImage { root, manifest, document, config, config_bytes, id, platform };
    let source: Arc<dyn ImageSource> = Arc::new(Blobs);
    let layers = fetch_layers(context, &source, &resolved).await.map_err(unreadable(entry.config))?;
    let pulled = Pulled { resolved, layers };
    let image = Image { manifest: None, ..pulled.image() };
    Ok(Candidate { names, index: None, images: vec![(image, pulled.resolved.config_bytes)], bare: HashSet::new() })
}

/// Puts a layer of a docker archive into the store as a blob.
async fn docker_layer(
    context: &TransferContext,
    archive: &Arc<Archive>,
    path: String,
) -> Result<Descriptor, ExportError> {
    let (context, archive) = (context.clone(), archive.clone());
    blocking(move || {
        let member = archive.member(&path)?.ok_or_else(|| missing(&path))?;
        let mut file = open(&context, member)?;
        let media_type = layer_type(&mut file).map_err(ExportError::ReadStream)?;
        if let Member::Blob(digest) = member {
            let size = file.metadata().map_err(ExportError::ReadStream)?.len();
            return Ok(Descriptor::new(media_type, digest.clone(), size));
        }
        let mut writer = context.store.blobs().writer(None).map_err(ExportError::store("make a blob"))?;
        std::io::copy(&mut file, &mut writer).map_err(ExportError::ReadStream)?;
        let (digest, size) = writer.finish(&context.lease).map_err(ExportError::store("keep a layer"))?;
        Ok(Descriptor::new(media_type, digest, size))
    })
    .await
}

/// docker archives do not say how a layer is compressed; its first bytes do.
fn layer_type(file: &mut std::fs::File) -> std::io::Result<MediaType> {
    let mut start = Vec::new();
    (&mut *file).take(4).read_to_end(&mut start)?;
    file.rewind()?;
    Ok(match start.as_slice() {
        [0x1f, 0x8b, ..] => MediaType::DockerLayerGzip,
        [0x28, 0xb5, 0x2f, 0xfd] => MediaType::DockerLayerZstd,
        _ => MediaType::DockerLayer,
    })
}

/// Records everything, or nothing where a name may not be moved.
fn record(
    context: &TransferContext,
    candidates: Vec<Candidate>,
    existing: ExistingNames,
) -> Result<Vec<Loaded>, ExportError> {
    let _only = context.store.lock("load names").map_err(ExportError::store("lock the names"))?;
    check_names(context, &candidates, existing)?;
    let images = context.store.images();
    for (image, config) in candidates.iter().flat_map(|candidate| &candidate.images) {
        images.put(image, config, &context.lease).map_err(ExportError::store("record an image"))?;
    }
    let mut loaded = Vec::new();
    for candidate in candidates {
        let ids = candidate.images.into_iter().map(|(image, _)| image.id).collect();
        let target = Target { index: candidate.index, images: ids };
        for name in &candidate.names {
            images.tag(name, &target).map_err(ExportError::store("name an image"))?;
        }
        loaded.push(Loaded { names: candidate.names, target });
    }
    Ok(loaded)
}

fn check_names(
    context: &TransferContext,
    candidates: &[Candidate],
    existing: ExistingNames,
) -> Result<(), ExportError> {
    let mut claimed: HashMap<&Reference, Vec<&ImageId>> = HashMap::new();
    for candidate in candidates {
        let ids: Vec<&ImageId> = candidate.images.iter().map(|(image, _)| &image.id).collect();
        for name in &candidate.names {
            if claimed.insert(name, ids.clone()).is_some_and(|other| other != ids) {
                return Err(ExportError::Archive { reason: format!("{name} names two images in it") });
            }
            if existing == ExistingNames::Refuse {
                check_free(context, name, &ids)?;
            }
        }
    }
    Ok(())
}

fn check_free(context: &TransferContext, name: &Reference, ids: &[&ImageId]) -> Result<(), ExportError> {
    let target = context.store.images().target(name).map_err(ExportError::store("look up a name"))?;
    let Some(target) = target.filter(|target| !target.images.iter().eq(ids.iter().copied())) else { return Ok(()) };
    let (Some(existing), Some(loaded)) = (target.images.first(), ids.first()) else { return Ok(()) };
    Err(ExportError::NameTaken { name: Box::new(name.clone()), existing: existing.clone(), loaded: (*loaded).clone() })
}
