use crate::registry::TestRegistry;
use crate::tar::TarBuilder;
use flate2::Compression;
use flate2::write::GzEncoder;
use forge_image::{Descriptor, DiffId, Digest, HistoryEntry, ImageConfig, Index, Manifest, MediaType, Platform};
use serde_json::{Map, json};
use std::fs;
use std::io::Write as _;
use std::path::Path;

/// Bytes with their descriptor.
#[derive(Clone, Debug)]
pub struct TestBlob {
    /// Media type, digest and size.
    pub descriptor: Descriptor,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// An image in memory: small and valid.
#[derive(Clone, Debug)]
pub struct TestImage {
    /// The config document.
    pub config: TestBlob,
    /// The layers as they are stored, lowest first.
    pub layers: Vec<TestBlob>,
    /// The layers' uncompressed digests.
    pub diff_ids: Vec<DiffId>,
    /// The manifest.
    pub manifest: TestBlob,
    /// What it is for.
    pub platform: Platform,
}

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerCompression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// Makes images.
#[derive(Clone)]
pub struct ImageBuilder {
    config: ImageConfig,
    layers: Vec<(Vec<u8>, LayerCompression)>,
    docker: bool,
}

impl ImageBuilder {
    /// An image without layers for this machine's platform, of OCI media types.
    pub fn new() -> Self {
        Self::for_platform(&Platform::host())
    }

    /// An image without layers for a platform.
    pub fn for_platform(platform: &Platform) -> Self {
        Self { config: ImageConfig::new(platform), layers: Vec::new(), docker: false }
    }

    /// An image of one layer with one small file; `text` tells it from others.
    pub fn small(text: &str) -> TestImage {
        Self::new().layer(TarBuilder::new().directory("etc").file("etc/motd", text)).build()
    }

    /// Adds a layer, compressed by gzip.
    pub fn layer(self, tar: TarBuilder) -> Self {
        self.layer_as(tar.finish(), LayerCompression::Gzip)
    }

    /// Adds a layer of any bytes.
    pub fn layer_as(mut self, tar: Vec<u8>, compression: LayerCompression) -> Self {
        self.layers.push((tar, compression));
        self
    }

    /// Changes the config before digests are computed.
    pub fn config(mut self, change: impl FnOnce(&mut ImageConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Uses docker's schema 2 media types.
    pub fn docker(self) -> Self {
        Self { docker: true, ..self }
    }

    /// Makes the image.
    pub fn build(mut self) -> TestImage {
        let mut layers = Vec::new();
        for (tar, compression) in &self.layers {
            let diff_id = DiffId::new(Digest::sha256(tar));
            self.config.rootfs.diff_ids.push(diff_id);
            let created_by = Some(format!("layer {}", layers.len()));
            self.config.history.push(HistoryEntry { created_by, ..HistoryEntry::default() });
            layers.push(blob(self.layer_type(*compression), compress(tar, *compression)));
        }
        let config = blob(self.pick(MediaType::OciConfig, MediaType::DockerConfig), self.config.to_json());
        let kind = self.pick(MediaType::OciManifest, MediaType::DockerManifest);
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(kind.clone()),
            config: config.descriptor.clone(),
            layers: layers.iter().map(|layer| layer.descriptor.clone()).collect(),
            annotations: Map::new(),
            unknown: Map::new(),
        };
        TestImage {
            platform: self.config.platform(),
            diff_ids: self.config.rootfs.diff_ids.clone(),
            config,
            layers,
            manifest: blob(kind, manifest.to_json()),
        }
    }

    fn pick(&self, oci: MediaType, docker: MediaType) -> MediaType {
        if self.docker { docker } else { oci }
    }

    fn layer_type(&self, compression: LayerCompression) -> MediaType {
        match compression {
            LayerCompression::None => self.pick(MediaType::OciLayer, MediaType::DockerLayer),
            LayerCompression::Gzip => self.pick(MediaType::OciLayerGzip, MediaType::DockerLayerGzip),
            LayerCompression::Zstd => self.pick(MediaType::OciLayerZstd, MediaType::DockerLayerZstd),
        }
    }
}

impl Default for ImageBuilder {
    fn default() -> Self {
        Self::new()
    }
}

fn blob(media_type: MediaType, bytes: Vec<u8>) -> TestBlob {
    TestBlob { descriptor: Descriptor::of(media_type, &bytes), bytes }
}

fn compress(tar: &[u8], compression: LayerCompression) -> Vec<u8> {
    match compression {
        LayerCompression::None => tar.to_vec(),
        LayerCompression::Zstd => zstd::encode_all(tar, 3).expect("compressing in memory"),
        LayerCompression::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(tar).and_then(|()| encoder.finish()).expect("compressing in memory")
        }
    }
}

impl TestImage {
    /// Puts the image into a registry under a tag.
    pub fn put(&self, registry: &TestRegistry, repository: &str, tag: &str) {
        self.put_parts(registry, repository, Some(tag));
    }

    fn put_parts(&self, registry: &TestRegistry, repository: &str, tag: Option<&str>) {
        for part in self.layers.iter().chain([&self.config]) {
            registry.put_blob(repository, part.bytes.clone());
        }
        let kind = self.manifest.descriptor.media_type.as_str();
        registry.put_manifest(repository, tag, kind, self.manifest.bytes.clone());
    }

    /// An index of several images.
    pub fn index(images: &[TestImage]) -> TestBlob {
        let entry = |image: &TestImage| {
            let platform = Some(image.platform.clone());
            Descriptor { platform, ..image.manifest.descriptor.clone() }
        };
        let index = Index {
            schema_version: 2,
            media_type: Some(MediaType::OciIndex),
            manifests: images.iter().map(entry).collect(),
            annotations: Map::new(),
            unknown: Map::new(),
        };
        blob(MediaType::OciIndex, index.to_json())
    }

    /// Puts several images and an index of them into a registry; the tag is the index's.
    pub fn put_index(images: &[TestImage], registry: &TestRegistry, repository: &str, tag: &str) -> TestBlob {
        for image in images {
            image.put_parts(registry, repository, None);
        }
        let index = Self::index(images);
        registry.put_manifest(repository, Some(tag), MediaType::OciIndex.as_str(), index.bytes.clone());
        index
    }
}

/// Writes images as an OCI layout, each under a name (`org.opencontainers.image.ref.name`).
///
/// # Panics
/// The folder cannot be written.
pub fn write_layout(folder: &Path, images: &[(&str, &TestImage)]) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a writable folder");
    let mut manifests = Vec::new();
    for (name, image) in images {
        for part in image.layers.iter().chain([&image.config, &image.manifest]) {
            fs::write(blobs.join(part.descriptor.digest.hex()), &part.bytes).expect("a writable folder");
        }
        let mut entry = Descriptor { platform: Some(image.platform.clone()), ..image.manifest.descriptor.clone() };
        entry.annotations.insert("org.opencontainers.image.ref.name".to_owned(), json!(name));
        manifests.push(entry);
    }
    let index = json!({"schemaVersion": 2, "mediaType": MediaType::OciIndex, "manifests": manifests});
    fs::write(folder.join("index.json"), index.to_string()).expect("a writable folder");
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a writable folder");
}
