//! Makes an assembled image ready to leave: blobs in the store, a manifest, for several images an index.

use crate::attestation::{self, AttestationManifest};
use crate::leaving_blob::{is_elsewhere, leaving_blob};
use crate::work::blocking;
use crate::{
    AnnotationScope, AssembledImage, AssembledLayer, Attestation, ExportError, ExportSettings, ExportedImage, Placement,
};
use forge_image::{Annotations, Descriptor, ImageId, Index, Manifest, MediaType, Platform};
use forge_registry::{MAX_MANIFEST, TransferContext};
use forge_store::{Compression, Target};
use futures_util::{StreamExt, TryStreamExt, stream};

/// How many layers are compressed at once; one layer alone already uses all cores.
const CONCURRENT_LAYERS: usize = 4;

/// Images that leave together under the same names: one, or one for each platform.
#[derive(Clone, Debug)]
pub struct ImageSet {
    images: Vec<AssembledImage>,
    index: Option<Descriptor>,
    alone: Alone,
}

/// What becomes of an image that is alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alone {
    /// Its manifest stands for it.
    Manifest,
    /// An index with one entry does.
    Index,
}

impl ImageSet {
    /// What a build made, in the order in which platforms were asked for.
    ///
    /// # Errors
    /// There is no image.
    pub fn new(images: Vec<AssembledImage>) -> Result<Self, ExportError> {
        match images.is_empty() {
            true => Err(ExportError::Nothing { what: "there is no image to export" }),
            false => Ok(Self { images, index: None, alone: Alone::Manifest }),
        }
    }

    /// The same images in an index, even if there is but one.
    #[must_use]
    pub fn indexed(self) -> Self {
        Self { alone: Alone::Index, ..self }
    }

    /// What a name in the store points at.
    ///
    /// # Errors
    /// An image or a layer is gone.
    pub async fn from_store(context: &TransferContext, target: &Target) -> Result<Self, ExportError> {
        let mut images = Vec::new();
        for id in &target.images {
            images.push(AssembledImage::from_store(context, id).await?);
        }
        let index = target.index.clone();
        Ok(Self { index, ..Self::new(images)? })
    }

    /// Whether an index stands for it, however many images it has.
    fn is_indexed(&self) -> bool {
        let is_wanted = |said: &Attestation| said.placement == Placement::Everywhere;
        self.alone == Alone::Index || self.images.iter().flat_map(|image| &image.attestations).any(is_wanted)
    }

    /// The images.
    pub fn images(&self) -> &[AssembledImage] {
        &self.images
    }
}

/// A document: its descriptor and its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) descriptor: Descriptor,
    pub(crate) bytes: Vec<u8>,
}

impl Document {
    pub(crate) fn new(media_type: MediaType, bytes: Vec<u8>) -> Self {
        Self { descriptor: Descriptor::of(media_type, &bytes), bytes }
    }
}

/// One image ready to leave. Its layer blobs are in the store, held by the lease.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    pub(crate) platform: Platform,
    pub(crate) id: ImageId,
    pub(crate) manifest: Document,
    pub(crate) config: Document,
    pub(crate) layers: Vec<Descriptor>,
}

impl Package {
    pub(crate) fn exported(&self) -> ExportedImage {
        let manifest = Some(self.manifest.descriptor.clone());
        ExportedImage { platform: self.platform.clone(), id: self.id.clone(), manifest }
    }
}

/// An image set ready to leave.
#[derive(Clone, Debug)]
pub(crate) struct Bundle {
    pub(crate) packages: Vec<Package>,
    /// What is said of the packages; only beside an index.
    pub(crate) attestations: Vec<AttestationManifest>,
    pub(crate) index: Option<Document>,
    /// Stands for the whole; with the annotations that an OCI layout's `index.json` gives it.
    pub(crate) root: Descriptor,
}

/// What layers made here leave with where the settings name no compression.
pub(crate) const GZIP: Compression = Compression::Gzip { level: None };

impl Bundle {
    /// `default` is the compression of layers made here where the settings name none.
    pub(crate) async fn of(
        context: &TransferContext,
        set: &ImageSet,
        settings: &ExportSettings,
        default: Compression,
    ) -> Result<Self, ExportError> {
        let mut packages = Vec::new();
        for image in &set.images {
            packages.push(package(context, image, settings, default).await?);
        }
        let (mut attestations, mut index) = (Vec::new(), original_index(context, set, &packages, settings).await?);
        if index.is_none() && (packages.len() > 1 || set.is_indexed()) {
            attestations = statements(context, set, &packages, settings).await?;
            index = Some(new_index(&packages, &attestations, settings));
        }
        let root = root(&packages, index.as_ref(), settings)?;
        Ok(Self { packages, attestations, index, root })
    }

    /// All documents that the index names, with what these name besides layers.
    pub(crate) fn documents(&self) -> impl Iterator<Item = &Document> {
        let images = self.packages.iter().flat_map(|package| [&package.config, &package.manifest]);
        let said = self.attestations.iter();
        images.chain(said.flat_map(|said| said.statements.iter().chain([&said.config, &said.manifest])))
    }
}

/// What is said of the images, in their order.
async fn statements(
    context: &TransferContext,
    set: &ImageSet,
    packages: &[Package],
    settings: &ExportSettings,
) -> Result<Vec<AttestationManifest>, ExportError> {
    let said = set.images.iter().zip(packages).filter(|(image, _)| !image.attestations.is_empty());
    let said: Vec<(AssembledImage, Package)> = said.map(|(image, package)| (image.clone(), package.clone())).collect();
    if !said.is_empty() && !settings.oci_mediatypes {
        return Err(ExportError::Conflict { first: "an attestation", second: "docker media types" });
    }
    let (context, names, form) = (context.clone(), settings.names.clone(), settings.attestation_form);
    blocking(move || {
        let one = |(image, package): &(AssembledImage, Package)| {
            attestation::manifest(&context, package, &image.layer_ids(), &image.attestations, &names, form)
        };
        said.iter().map(one).collect()
    })
    .await
}

fn root(packages: &[Package], index: Option<&Document>, settings: &ExportSettings) -> Result<Descriptor, ExportError> {
    use AnnotationScope::{Index, IndexDescriptor, ManifestDescriptor};
    let Some(index) = index else {
        let unplaced = settings.annotations.iter().find(|entry| matches!(entry.scope, Index | IndexDescriptor));
        if let Some(entry) = unplaced {
            return Err(ExportError::NoIndex { key: entry.key.clone() });
        }
        let only = packages.first().expect("an image set is not empty");
        let annotations = annotations(settings, ManifestDescriptor, Some(&only.platform));
        let platform = Some(only.platform.clone());
        return Ok(Descriptor { annotations, platform, ..only.manifest.descriptor.clone() });
    };
    Ok(Descriptor { annotations: annotations(settings, IndexDescriptor, None), ..index.descriptor.clone() })
}

fn annotations(settings: &ExportSettings, scope: AnnotationScope, platform: Option<&Platform>) -> Annotations {
    let applies = |wanted: &Option<Platform>| match (wanted, platform) {
        (Some(wanted), Some(platform)) => wanted == platform,
        _ => true,
    };
    let matching = settings.annotations.iter().filter(|entry| entry.scope == scope && applies(&entry.platform));
    matching.map(|entry| (entry.key.clone(), entry.value.clone().into())).collect()
}

fn new_index(packages: &[Package], said: &[AttestationManifest], settings: &ExportSettings) -> Document {
    let media_type = match settings.oci_mediatypes {
        true => MediaType::OciIndex,
        false => MediaType::DockerManifestList,
    };
    let entry = |package: &Package| Descriptor {
        annotations: annotations(settings, AnnotationScope::ManifestDescriptor, Some(&package.platform)),
        platform: Some(package.platform.clone()),
        ..package.manifest.descriptor.clone()
    };
    let index = Index {
        schema_version: 2,
        media_type: Some(media_type.clone()),
        manifests: packages.iter().map(entry).chain(said.iter().map(|said| said.manifest.descriptor.clone())).collect(),
        annotations: annotations(settings, AnnotationScope::Index, None),
        unknown: Default::default(),
    };
    Document::new(media_type, index.to_json())
}

/// The index that the images came with, if they leave unchanged and it names nothing else.
async fn original_index(
    context: &TransferContext,
    set: &ImageSet,
    packages: &[Package],
    settings: &ExportSettings,
) -> Result<Option<Document>, ExportError> {
    let Some(descriptor) = set.index.clone().filter(|_| keeps_documents(settings)) else { return Ok(None) };
    let Some(bytes) = stored(context, &descriptor).await? else { return Ok(None) };
    let index = Index::from_json(&bytes, Some(&descriptor.media_type))
        .map_err(|source| ExportError::Document { what: format!("index {}", descriptor.digest), source })?;
    let leaves = |entry: &Descriptor| packages.iter().any(|it| it.manifest.descriptor.digest == entry.digest);
    let document = Document { descriptor: plain(&descriptor), bytes };
    Ok(index.manifests.iter().all(leaves).then_some(document))
}

/// Whether nothing in the settings asks for other documents than an image came with.
fn keeps_documents(settings: &ExportSettings) -> bool {
    use AnnotationScope::{Index, Manifest, ManifestDescriptor};
    let changing = |scope| matches!(scope, Index | Manifest | ManifestDescriptor);
    settings.compression.is_none()
        && settings.oci_mediatypes
        && !settings.annotations.iter().any(|entry| changing(entry.scope))
}

async fn stored(context: &TransferContext, descriptor: &Descriptor) -> Result<Option<Vec<u8>>, ExportError> {
    let (context, digest) = (context.clone(), descriptor.digest.clone());
    blocking(move || {
        if !context.lease.hold_blob(&digest).map_err(ExportError::store("hold a document"))? {
            return Ok(None);
        }
        context.store.blobs().read(&digest, MAX_MANIFEST).map(Some).map_err(ExportError::store("read a document"))
    })
    .await
}

/// Without what belongs to the place where the descriptor stood.
pub(crate) fn plain(descriptor: &Descriptor) -> Descriptor {
    Descriptor::new(descriptor.media_type.clone(), descriptor.digest.clone(), descriptor.size)
}

async fn package(
    context: &TransferContext,
    image: &AssembledImage,
    settings: &ExportSettings,
    default: Compression,
) -> Result<Package, ExportError> {
    if let Some(package) = original_package(context, image, settings).await? {
        return Ok(package);
    }
    check_settings(settings)?;
    let layers = layer_blobs(context, image, settings, default).await?;
    Ok(new_package(image, layers, settings))
}

fn check_settings(settings: &ExportSettings) -> Result<(), ExportError> {
    let second = "docker media types";
    match settings.compression.filter(|_| !settings.oci_mediatypes) {
        Some(Compression::ZstdChunked { .. }) => {
            Err(ExportError::Conflict { first: "zstd:chunked compression", second })
        }
        Some(Compression::Estargz { .. }) => Err(ExportError::Conflict { first: "estargz compression", second }),
        _ => Ok(()),
    }
}

/// The image with the manifest that it came with, byte by byte, if all that the manifest names is still there.
async fn original_package(
    context: &TransferContext,
    image: &AssembledImage,
    settings: &ExportSettings,
) -> Result<Option<Package>, ExportError> {
    let Some(descriptor) = image.manifest.clone().filter(|_| keeps_documents(settings)) else { return Ok(None) };
    let Some(bytes) = stored(context, &descriptor).await? else { return Ok(None) };
    let manifest = Manifest::from_json(&bytes, Some(&descriptor.media_type))
        .map_err(|source| ExportError::Document { what: format!("manifest {}", descriptor.digest), source })?;
    if manifest.config.digest != *image.id.digest() || !hold_all(context, image, &manifest.layers).await? {
        return Ok(None);
    }
    let config = Document { descriptor: plain(&manifest.config), bytes: image.config_bytes.clone() };
    let manifest_document = Document { descriptor: plain(&descriptor), bytes };
    Ok(Some(Package {
        platform: image.platform.clone(),
        id: image.id.clone(),
        manifest: manifest_document,
        config,
        layers: manifest.layers,
    }))
}

/// Holds the blobs of an image; `false` where one is neither here nor in a registry.
async fn hold_all(
    context: &TransferContext,
    image: &AssembledImage,
    blobs: &[Descriptor],
) -> Result<bool, ExportError> {
    let (context, layers, blobs) = (context.clone(), image.layer_ids(), blobs.to_vec());
    blocking(move || {
        for (number, blob) in blobs.iter().enumerate() {
            let here = context.lease.hold_blob(&blob.digest).map_err(ExportError::store("hold a blob"))?;
            let elsewhere = match layers.get(number) {
                Some(layer) if !here => is_elsewhere(&context, layer, &blob.digest)?,
                _ => false,
            };
            if !here && !elsewhere {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await
}

async fn layer_blobs(
    context: &TransferContext,
    image: &AssembledImage,
    settings: &ExportSettings,
    default: Compression,
) -> Result<Vec<Descriptor>, ExportError> {
    let one = |layer: AssembledLayer| leaving_blob(context, layer, settings, default);
    stream::iter(image.layers.clone()).map(one).buffered(CONCURRENT_LAYERS).try_collect().await
}

fn new_package(image: &AssembledImage, layers: Vec<Descriptor>, settings: &ExportSettings) -> Package {
    let (manifest_type, config_type) = match settings.oci_mediatypes {
        true => (MediaType::OciManifest, MediaType::OciConfig),
        false => (MediaType::DockerManifest, MediaType::DockerConfig),
    };
    let config = Document::new(config_type, image.config_bytes.clone());
    let retyped =
        |layer: Descriptor| Descriptor { media_type: layer_type(layer.media_type, settings.oci_mediatypes), ..layer };
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(manifest_type.clone()),
        config: config.descriptor.clone(),
        layers: layers.into_iter().map(retyped).collect(),
        annotations: annotations(settings, AnnotationScope::Manifest, Some(&image.platform)),
        unknown: Default::default(),
    };
    Package {
        platform: image.platform.clone(),
        id: image.id.clone(),
        manifest: Document::new(manifest_type, manifest.to_json()),
        config,
        layers: manifest.layers,
    }
}

/// The same layer's media type in the vocabulary of the manifest: the two must not be mixed.
fn layer_type(media_type: MediaType, oci: bool) -> MediaType {
    use MediaType::*;
    let kind = media_type.distributable();
    if kind != media_type {
        return layer_type(kind, oci).nondistributable();
    }
    match (media_type, oci) {
        (DockerLayer, true) => OciLayer,
        (DockerLayerGzip, true) => OciLayerGzip,
        (DockerLayerZstd, true) => OciLayerZstd,
        (OciLayer, false) => DockerLayer,
        (OciLayerGzip, false) => DockerLayerGzip,
        (OciLayerZstd, false) => DockerLayerZstd,
        (other, _) => other,
    }
}
