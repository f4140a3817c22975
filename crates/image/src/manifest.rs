use crate::{Digest, MediaType, Platform};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Annotations in their order in the document.
pub type Annotations = Map<String, Value>;

/// Why bytes are not a document that forge accepts.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON, or not of the expected shape.
    #[error("malformed {what}")]
    Json {
        /// What the document was taken for.
        what: &'static str,
        /// Where the parser stopped.
        source: serde_json::Error,
    },
    /// The document has parts of a manifest and of an index (A69).
    #[error("document is both an image manifest and an index")]
    Ambiguous,
    /// The document's own media type is not the one it was announced as (A69).
    #[error("media type mismatch: announced as {announced}, the document says {found}")]
    MediaType {
        /// What the descriptor or the header said.
        announced: MediaType,
        /// What the document says.
        found: MediaType,
    },
    /// The schema version is not 2.
    #[error("unsupported schema version {version}")]
    SchemaVersion {
        /// The version found.
        version: u64,
    },
}

/// Points at a blob: media type, digest, size in bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: MediaType,
    /// The digest of the blob's bytes.
    pub digest: Digest,
    /// The number of bytes.
    pub size: u64,
    /// Free-form notes.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub annotations: Annotations,
    /// The platform, for entries of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Fields that forge does not read (`urls`, `data`, `artifactType`, …).
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl Descriptor {
    /// A descriptor with no annotations and no platform.
    pub fn new(media_type: MediaType, digest: Digest, size: u64) -> Self {
        Self { media_type, digest, size, annotations: Map::new(), platform: None, unknown: Map::new() }
    }

    /// Describes bytes that are at hand.
    pub fn of(media_type: MediaType, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::sha256(bytes), bytes.len() as u64)
    }
}

/// An image manifest, OCI or docker schema 2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u64,
    /// The document's own media type; older OCI writers leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// The image config.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Free-form notes.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub annotations: Annotations,
    /// Fields that forge does not read.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// An image index, OCI or docker manifest list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u64,
    /// The document's own media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// One entry for each platform (or further index, or attestation).
    pub manifests: Vec<Descriptor>,
    /// Free-form notes.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub annotations: Annotations,
    /// Fields that forge does not read.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl Manifest {
    /// Reads a manifest that was announced as `announced`.
    ///
    /// # Errors
    /// Refuses what is not a manifest, what is an index at the same time, and media types that disagree.
    pub fn from_json(bytes: &[u8], announced: Option<&MediaType>) -> Result<Self, DocumentError> {
        let manifest: Self = parse(bytes, "image manifest")?;
        check(manifest.schema_version, manifest.media_type.as_ref(), announced)?;
        if manifest.unknown.contains_key("manifests") {
            return Err(DocumentError::Ambiguous);
        }
        Ok(manifest)
    }

    /// The bytes that are digested, stored and pushed: two-space indented, as BuildKit writes them.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a manifest holds only JSON values")
    }
}

impl Index {
    /// Reads an index that was announced as `announced`.
    ///
    /// # Errors
    /// Refuses what is not an index, what is a manifest at the same time, and media types that disagree.
    pub fn from_json(bytes: &[u8], announced: Option<&MediaType>) -> Result<Self, DocumentError> {
        let index: Self = parse(bytes, "image index")?;
        check(index.schema_version, index.media_type.as_ref(), announced)?;
        if index.unknown.contains_key("layers") || index.unknown.contains_key("config") {
            return Err(DocumentError::Ambiguous);
        }
        Ok(index)
    }

    /// The bytes that are digested, stored and pushed.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("an index holds only JSON values")
    }
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, DocumentError> {
    serde_json::from_slice(bytes).map_err(|source| DocumentError::Json { what, source })
}

fn check(version: u64, own: Option<&MediaType>, announced: Option<&MediaType>) -> Result<(), DocumentError> {
    if version != 2 {
        return Err(DocumentError::SchemaVersion { version });
    }
    match (own, announced) {
        (Some(found), Some(announced)) if found != announced => {
            Err(DocumentError::MediaType { announced: announced.clone(), found: found.clone() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"{
  "schemaVersion": 2,
  "mediaType": "application/vnd.oci.image.manifest.v1+json",
  "config": {
    "mediaType": "application/vnd.oci.image.config.v1+json",
    "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "size": 0
  },
  "layers": [],
  "subject": {
    "x": 1
  }
}"#;

    #[test]
    fn manifest_round_trips_with_unknown_fields() {
        let manifest = Manifest::from_json(MANIFEST.as_bytes(), Some(&MediaType::OciManifest)).unwrap();
        assert_eq!(String::from_utf8(manifest.to_json()).unwrap(), MANIFEST);
    }

    #[test]
    fn a69_type_confusion_is_refused() {
        let both = MANIFEST.replace("\"subject\": {\n    \"x\": 1\n  }", "\"manifests\": []");
        assert!(matches!(Manifest::from_json(both.as_bytes(), None), Err(DocumentError::Ambiguous)));
        let announced = Some(&MediaType::DockerManifest);
        assert!(matches!(Manifest::from_json(MANIFEST.as_bytes(), announced), Err(DocumentError::MediaType { .. })));
        assert!(Index::from_json(MANIFEST.as_bytes(), None).is_err());
    }

    #[test]
    fn a71_deep_nesting_is_an_error_not_a_crash() {
        let bomb = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert!(Manifest::from_json(bomb.as_bytes(), None).is_err());
    }
}
