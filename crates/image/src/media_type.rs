use serde::{Deserialize, Serialize};
use std::fmt;

/// A media type of the OCI image specification or of docker's schema 2, or any other kept as text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
#[expect(missing_docs, reason = "each variant is named after the media type that `as_str` prints")]
pub enum MediaType {
    OciManifest,
    OciIndex,
    OciConfig,
    OciLayer,
    OciLayerGzip,
    OciLayerZstd,
    OciEmpty,
    DockerManifest,
    DockerManifestList,
    DockerConfig,
    DockerLayer,
    DockerLayerGzip,
    DockerLayerZstd,
    Other(String),
}

const KNOWN: [(MediaType, &str); 13] = [
    (MediaType::OciManifest, "application/vnd.oci.image.manifest.v1+json"),
    (MediaType::OciIndex, "application/vnd.oci.image.index.v1+json"),
    (MediaType::OciConfig, "application/vnd.oci.image.config.v1+json"),
    (MediaType::OciLayer, "application/vnd.oci.image.layer.v1.tar"),
    (MediaType::OciLayerGzip, "application/vnd.oci.image.layer.v1.tar+gzip"),
    (MediaType::OciLayerZstd, "application/vnd.oci.image.layer.v1.tar+zstd"),
    (MediaType::OciEmpty, "application/vnd.oci.empty.v1+json"),
    (MediaType::DockerManifest, "application/vnd.docker.distribution.manifest.v2+json"),
    (MediaType::DockerManifestList, "application/vnd.docker.distribution.manifest.list.v2+json"),
    (MediaType::DockerConfig, "application/vnd.docker.container.image.v1+json"),
    (MediaType::DockerLayer, "application/vnd.docker.image.rootfs.diff.tar"),
    (MediaType::DockerLayerGzip, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    (MediaType::DockerLayerZstd, "application/vnd.docker.image.rootfs.diff.tar.zstd"),
];

/// Layers that may not be handed on, by those that may.
const NONDISTRIBUTABLE: [(MediaType, &str); 6] = [
    (MediaType::OciLayer, "application/vnd.oci.image.layer.nondistributable.v1.tar"),
    (MediaType::OciLayerGzip, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
    (MediaType::OciLayerZstd, "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"),
    (MediaType::DockerLayer, "application/vnd.docker.image.rootfs.foreign.diff.tar"),
    (MediaType::DockerLayerGzip, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
    (MediaType::DockerLayerZstd, "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd"),
];

impl MediaType {
    /// The media type as it stands in documents and headers.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Other(text) => text,
            known => KNOWN.iter().find(|(kind, _)| kind == known).expect("every other variant is in the table").1,
        }
    }

    /// Whether this is a manifest of one image.
    pub fn is_manifest(&self) -> bool {
        matches!(self, Self::OciManifest | Self::DockerManifest)
    }

    /// Whether this is an index (docker: manifest list).
    pub fn is_index(&self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerManifestList)
    }

    /// Whether this is the config document of a container image.
    pub fn is_config(&self) -> bool {
        matches!(self, Self::OciConfig | Self::DockerConfig)
    }

    /// Whether this is a file system layer that forge can unpack.
    pub fn is_layer(&self) -> bool {
        use MediaType::*;
        let kind = self.distributable();
        matches!(kind, OciLayer | OciLayerGzip | OciLayerZstd | DockerLayer | DockerLayerGzip | DockerLayerZstd)
    }

    /// The same layer as one that may be handed on: itself, unless it is one of those that their makers want to be fetched
    /// from them alone ("foreign" with docker, "nondistributable" with OCI).
    pub fn distributable(&self) -> Self {
        let found = NONDISTRIBUTABLE.iter().find(|(_, text)| *text == self.as_str());
        found.map_or_else(|| self.clone(), |(kind, _)| kind.clone())
    }

    /// A layer as one that is not to be handed on; what is no layer stays what it is.
    pub fn nondistributable(&self) -> Self {
        let found = NONDISTRIBUTABLE.iter().find(|(kind, _)| kind == self);
        found.map_or_else(|| self.clone(), |(_, text)| Self::Other((*text).to_owned()))
    }
}

impl From<String> for MediaType {
    fn from(text: String) -> Self {
        match KNOWN.iter().find(|(_, known)| *known == text) {
            Some((kind, _)) => kind.clone(),
            None => Self::Other(text),
        }
    }
}

impl From<&str> for MediaType {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl From<MediaType> for String {
    fn from(kind: MediaType) -> String {
        kind.as_str().to_owned()
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
