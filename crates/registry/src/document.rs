use crate::RegistryError;
use crate::content_hash::ContentHash;
use forge_image::{Descriptor, Digest, DocumentError, Index, Manifest, MediaType};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::collections::HashSet;
use std::fmt;

/// A manifest or an index as it came: its bytes, and a descriptor whose digest and size are those of the bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Media type, digest and size.
    pub descriptor: Descriptor,
    /// The bytes, unchanged.
    pub bytes: Vec<u8>,
}

/// The largest manifest or index (A71); what the specification recommends registries to take.
pub(crate) const LARGEST_DOCUMENT: u64 = 4 << 20;

/// The most entries of an index (A70), and layers of a manifest.
const MOST_ENTRIES: usize = 4096;

impl Document {
    /// Checks what a server sent (A68, A69, A71): the digest of the bytes is computed here, whatever headers say; the
    /// document is one of the four known kinds, and not two of them; its own media type is the announced one.
    pub(crate) fn accept(
        url: &str,
        bytes: Vec<u8>,
        announced: Option<&str>,
        digest: Option<&Digest>,
    ) -> Result<Self, RegistryError> {
        let found = match digest {
            Some(expected) => ContentHash::of(&bytes, expected),
            None => Digest::sha256(&bytes),
        };
        if let Some(expected) = digest.filter(|expected| **expected != found) {
            return Err(RegistryError::DigestMismatch { url: url.to_owned(), expected: expected.clone(), found });
        }
        let broken = |source| RegistryError::Document { url: url.to_owned(), source };
        let (media_type, entries) = Self::inspect(&bytes, announced).map_err(|error| match error {
            Inspection::Document(source) => broken(source),
            Inspection::MediaType(media_type) => RegistryError::MediaType { url: url.to_owned(), media_type },
        })?;
        if entries > MOST_ENTRIES {
            let reason = format!("the document has {entries} entries, more than {MOST_ENTRIES}");
            return Err(RegistryError::Protocol { url: url.to_owned(), reason });
        }
        let descriptor = Descriptor::new(media_type, found, bytes.len() as u64);
        Ok(Self { descriptor, bytes })
    }

    fn inspect(bytes: &[u8], announced: Option<&str>) -> Result<(MediaType, usize), Inspection> {
        let announced = announced.map(essence).filter(|text| !is_general(text)).map(MediaType::from);
        if let Some(other) = announced.as_ref().filter(|kind| !kind.is_manifest() && !kind.is_index()) {
            return Err(Inspection::MediaType(other.clone()));
        }
        let json = |source| Inspection::Document(DocumentError::Json { what: "manifest", source });
        serde_json::from_slice::<Strict>(bytes).map_err(json)?;
        let named: Named = serde_json::from_slice(bytes).map_err(json)?;
        let kind = match named.media_type.or(announced.clone()) {
            Some(kind) => kind,
            None => return Err(json(de::Error::custom("neither the document nor the server says what it is"))),
        };
        let entries = match (kind.is_manifest(), kind.is_index()) {
            (true, _) => Manifest::from_json(bytes, announced.as_ref()).map(|manifest| manifest.layers.len()),
            (_, true) => Index::from_json(bytes, announced.as_ref()).map(|index| index.manifests.len()),
            _ => return Err(Inspection::MediaType(kind)),
        };
        Ok((kind, entries.map_err(Inspection::Document)?))
    }

    /// Whether this is an index rather than the manifest of one image.
    pub fn is_index(&self) -> bool {
        self.descriptor.media_type.is_index()
    }
}

enum Inspection {
    Document(DocumentError),
    MediaType(MediaType),
}

#[derive(serde::Deserialize)]
struct Named {
    #[serde(rename = "mediaType", default)]
    media_type: Option<MediaType>,
}

/// A media type without its parameters.
fn essence(header: &str) -> &str {
    header.split(';').next().unwrap_or_default().trim()
}

/// Content types of servers that do not know what they serve.
fn is_general(text: &str) -> bool {
    matches!(text, "" | "application/json" | "application/octet-stream" | "binary/octet-stream" | "text/plain")
}

/// Reads any JSON and refuses names that come twice in one object: two readers could take different ones (A71).
/// serde_json's own limit of 128 levels guards the stack.
struct Strict;

impl<'de> de::Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Self;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element_seed(Self)?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = entries.next_key::<String>()? {
            entries.next_value_seed(Self)?;
            if !names.insert(name) {
                return Err(de::Error::custom("a name comes twice in one object"));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
    const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

    fn manifest(media_type: Option<&str>) -> String {
        let config =
            json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::sha256(b""), "size": 0});
        let mut document = json!({"schemaVersion": 2, "config": config, "layers": []});
        if let Some(media_type) = media_type {
            document["mediaType"] = media_type.into();
        }
        document.to_string()
    }

    fn accept(text: &str, announced: Option<&str>) -> Result<MediaType, RegistryError> {
        Document::accept("u", text.as_bytes().to_vec(), announced, None).map(|document| document.descriptor.media_type)
    }

    #[test]
    fn the_kind_is_what_server_and_document_agree_on() {
        assert_eq!(accept(&manifest(Some(OCI)), Some(OCI)).unwrap(), MediaType::OciManifest);
        assert_eq!(
            accept(&manifest(Some(DOCKER)), Some("application/json; charset=utf-8")).unwrap(),
            MediaType::DockerManifest
        );
        assert_eq!(accept(&manifest(None), Some(OCI)).unwrap(), MediaType::OciManifest);
        assert_eq!(accept(&manifest(Some(OCI)), None).unwrap(), MediaType::OciManifest);
    }

    // Seen to fail with `inspect` taking the announced kind alone.
    #[test]
    fn a69_confused_documents_are_refused() {
        assert!(accept(&manifest(Some(DOCKER)), Some(OCI)).is_err());
        assert!(accept(&manifest(None), None).is_err());
        assert!(accept(&manifest(None), Some("text/plain")).is_err());
        assert!(accept(&manifest(Some(OCI)).replace("\"layers\"", "\"manifests\":[],\"layers\""), Some(OCI)).is_err());
        assert!(accept(&manifest(Some("application/vnd.oci.image.index.v1+json")), None).is_err());
        let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        assert!(matches!(accept("{}", Some(signed)), Err(RegistryError::MediaType { .. })));
    }

    // Seen to fail without the reading as `Strict`.
    #[test]
    fn a71_ambiguous_or_deep_json_is_refused() {
        let twice = manifest(Some(OCI)).replacen('{', "{\"x\":{\"a\":1,\"a\":2},", 1);
        assert!(accept(&twice, Some(OCI)).is_err());
        let deep =
            manifest(Some(OCI)).replacen('{', &format!("{{\"x\":{}{},", "[".repeat(100_000), "]".repeat(100_000)), 1);
        assert!(accept(&deep, Some(OCI)).is_err());
        assert!(
            accept(
                &manifest(Some(OCI)).replacen('{', "{\"x\":{\"a\":1,\"b\":[true,null,1.5,-1,\"s\"]},", 1),
                Some(OCI)
            )
            .is_ok()
        );
    }

    #[test]
    fn a70_endless_indexes_are_refused() {
        let entry = json!({"mediaType": OCI, "digest": Digest::sha256(b""), "size": 0});
        let index = |count: usize| json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": vec![entry.clone(); count]});
        assert!(accept(&index(MOST_ENTRIES).to_string(), None).is_ok());
        assert!(accept(&index(MOST_ENTRIES + 1).to_string(), None).is_err());
    }

    #[test]
    fn a68_the_digest_is_computed_here() {
        let text = manifest(Some(OCI));
        let accept = |digest: &Digest| Document::accept("u", text.clone().into_bytes(), None, Some(digest));
        assert_eq!(accept(&Digest::sha256(text.as_bytes())).unwrap().descriptor.size, text.len() as u64);
        assert!(matches!(accept(&Digest::sha256(b"x")), Err(RegistryError::DigestMismatch { .. })));
        let long = ContentHash::of(text.as_bytes(), &format!("sha512:{}", "0".repeat(128)).parse().unwrap());
        assert_eq!(accept(&long).unwrap().descriptor.digest, long);
    }
}
