//! Statements about an image: what it was made of and what is in it, in the in-toto format, and the manifest that carries them.
//!
//! In an index each image's statements are the layers of one manifest for the platform `unknown/unknown`, whose descriptor
//! names the image's manifest (`vnd.docker.reference.digest`): BuildKit's attestation storage.

use crate::package::{Document, Package};
use crate::{ExportError, supplement};
use forge_image::{Descriptor, Manifest, MediaType, Platform, Reference};
use forge_registry::TransferContext;
use forge_store::LayerId;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The in-toto statement's own version.
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// What a statement's blob is.
const PAYLOAD: &str = "application/vnd.in-toto+json";
/// What a manifest is that carries statements as an artifact.
const ARTIFACT: &str = "application/vnd.docker.attestation.manifest.v1+json";
/// What software is in an image, as an SPDX document.
pub const SPDX: &str = "https://spdx.dev/Document";

/// What is said of one image.
#[derive(Clone, Debug)]
pub struct Attestation {
    /// What kind of thing is said: a URI.
    pub predicate_type: String,
    /// What is said.
    pub predicate: Predicate,
    /// What it is said of; the image itself where empty.
    pub subjects: Vec<Subject>,
    /// The name of the file that folders and plain tars get it as, without a slash.
    pub file_name: String,
    /// Where it is written.
    pub placement: Placement,
    /// Whether it is the list of what is in the image itself, to which the layers of files are added.
    pub is_core_sbom: bool,
}

/// Where a statement is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// Wherever the result goes: an image alone becomes an index for it.
    #[default]
    Everywhere,
    /// In an index that there is anyway.
    InlineOnly,
}

/// What is said.
#[derive(Clone)]
pub enum Predicate {
    /// A JSON value; nothing at all stands for `null`.
    Json(Vec<u8>),
    /// Made when it is written, by the blobs of the image's layers.
    Made(Arc<MakePredicate>),
}

/// Makes a predicate: JSON, by what the layers left the store as; empty where the output has no layers.
pub type MakePredicate = dyn Fn(&BTreeMap<LayerId, Descriptor>) -> Vec<u8> + Send + Sync;

impl fmt::Debug for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(bytes) => write!(f, "Json({} bytes)", bytes.len()),
            Self::Made(_) => f.write_str("Made"),
        }
    }
}

impl Predicate {
    fn value(&self, layers: &BTreeMap<LayerId, Descriptor>) -> Result<Value, ExportError> {
        let made;
        let bytes = match self {
            Self::Json(bytes) => bytes,
            Self::Made(make) => {
                made = make(layers);
                &made
            }
        };
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(bytes).map_err(|source| ExportError::Predicate { source })
    }
}

/// What a statement is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The image, or the files of the result; with a further name.
    Itself {
        /// The name.
        name: Option<String>,
    },
    /// Something else.
    Other {
        /// Its name.
        name: String,
        /// Its digests, `algorithm:hex`.
        digests: Vec<String>,
    },
}

/// A subject as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct WrittenSubject {
    pub name: String,
    pub digest: BTreeMap<String, String>,
}

impl WrittenSubject {
    pub(crate) fn new(name: String, digests: &[String]) -> Self {
        let digest = digests.iter().filter_map(|digest| digest.split_once(':'));
        Self { name, digest: digest.map(|(algorithm, hex)| (algorithm.to_owned(), hex.to_owned())).collect() }
    }
}

#[derive(Serialize)]
struct Statement<'a> {
    #[serde(rename = "_type")]
    kind: &'static str,
    #[serde(rename = "predicateType")]
    predicate_type: &'a str,
    subject: Vec<WrittenSubject>,
    predicate: Value,
}

impl Attestation {
    /// The statement about what `itself` names.
    fn statement(&self, itself: &[WrittenSubject], predicate: Value) -> Statement<'_> {
        let default = [Subject::Itself { name: None }];
        let subjects = if self.subjects.is_empty() { &default[..] } else { &self.subjects };
        let mut written = Vec::new();
        for subject in subjects {
            match subject {
                Subject::Itself { name } => {
                    for itself in itself {
                        written.push(itself.clone());
                        written.extend(name.clone().map(|name| WrittenSubject { name, ..itself.clone() }));
                    }
                }
                Subject::Other { name, digests } => written.push(WrittenSubject::new(name.clone(), digests)),
            }
        }
        Statement { kind: STATEMENT, predicate_type: &self.predicate_type, subject: written, predicate }
    }

    /// The statement as a file.
    pub(crate) fn file(&self, files: &[WrittenSubject]) -> Result<Vec<u8>, ExportError> {
        let predicate = self.predicate.value(&BTreeMap::new())?;
        Ok(serde_json::to_vec_pretty(&self.statement(files, predicate)).expect("a statement holds only JSON values"))
    }
}

/// A package URL of an image, as BuildKit names images in statements.
pub fn package_url(kind: &str, reference: &Reference, platform: Option<&Platform>) -> String {
    let familiar = reference.familiar_name();
    let path: Vec<String> = familiar.split('/').map(|part| escape(part, "-_.~")).collect();
    let mut url = format!("pkg:{kind}/{}", path.join("/"));
    if let Some(tag) = reference.tag() {
        url += &format!("@{}", escape(tag, PATH));
    }
    let digest = reference.digest().map(|digest| format!("digest={}", escape(digest.as_str(), PATH)));
    let platform = platform.map(|platform| format!("platform={}", escape(&platform.to_string(), PATH)));
    let qualifiers: Vec<String> = digest.into_iter().chain(platform).collect();
    if !qualifiers.is_empty() {
        url += &format!("?{}", qualifiers.join("&"));
    }
    url
}

/// The address of a package that has qualifiers, with another one behind them.
pub fn with_qualifier(url: String, name: &str, value: &str) -> String {
    format!("{url}&{name}={}", escape(value, PATH))
}

/// What stays as it is in a segment of a path (RFC 3986).
const PATH: &str = "-_.~$&+=:@";

fn escape(text: &str, plain: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || plain.as_bytes().contains(&byte) {
            true => escaped.push(byte.into()),
            false => escaped += &format!("%{byte:02X}"),
        }
    }
    escaped
}

/// The manifest of an image's statements, and all that it names.
#[derive(Clone, Debug)]
pub(crate) struct AttestationManifest {
    /// With the platform and annotations that an index gives it.
    pub manifest: Document,
    pub config: Document,
    pub statements: Vec<Document>,
}

/// The form of a manifest of statements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttestationForm {
    /// An artifact whose subject is the image.
    #[default]
    Artifact,
    /// A manifest with an image config, for registries that know no other.
    Image,
}

/// Writes what is said of an image.
pub(crate) fn manifest(
    context: &TransferContext,
    package: &Package,
    layers: &[LayerId],
    attestations: &[Attestation],
    names: &[Reference],
    form: AttestationForm,
) -> Result<AttestationManifest, ExportError> {
    let blobs: BTreeMap<LayerId, Descriptor> = layers.iter().cloned().zip(package.layers.iter().cloned()).collect();
    let digest = [package.manifest.descriptor.digest.to_string()];
    let itself = |name: &Reference| WrittenSubject::new(package_url("docker", name, Some(&package.platform)), &digest);
    let itself: Vec<WrittenSubject> = names.iter().map(itself).collect();
    let mut statements = Vec::new();
    for attestation in attestations {
        let mut predicate = attestation.predicate.value(&blobs)?;
        if attestation.is_core_sbom {
            supplement::name_layers(context, &mut predicate, layers, &package.layers)?;
        }
        let statement = attestation.statement(&itself, predicate);
        let bytes = serde_json::to_vec(&statement).expect("a statement holds only JSON values");
        let mut document = Document::new(MediaType::Other(PAYLOAD.to_owned()), bytes);
        let kind = attestation.predicate_type.clone();
        document.descriptor.annotations.insert("in-toto.io/predicate-type".to_owned(), kind.into());
        statements.push(document);
    }
    let (config, mut unknown) = match form {
        AttestationForm::Artifact => {
            let mut config = Document::new(MediaType::OciEmpty, b"{}".to_vec());
            // The two bytes themselves, in base64, as the specification has it for the empty descriptor.
            config.descriptor.unknown.insert("data".to_owned(), "e30=".into());
            let subject = &package.manifest.descriptor;
            let subject = Descriptor::new(subject.media_type.clone(), subject.digest.clone(), subject.size);
            let subject = serde_json::to_value(subject).expect("a descriptor holds only JSON values");
            let unknown = [("artifactType".to_owned(), ARTIFACT.into()), ("subject".to_owned(), subject)];
            (config, unknown.into_iter().collect())
        }
        AttestationForm::Image => (image_config(&statements), Map::new()),
    };
    let subject = unknown.remove("subject");
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(MediaType::OciManifest),
        config: config.descriptor.clone(),
        layers: statements.iter().map(|statement| statement.descriptor.clone()).collect(),
        annotations: Map::new(),
        unknown: unknown.into_iter().chain(subject.map(|subject| ("subject".to_owned(), subject))).collect(),
    };
    let mut manifest = Document::new(MediaType::OciManifest, manifest.to_json());
    let notes = [
        ("vnd.docker.reference.digest".to_owned(), digest[0].clone().into()),
        ("vnd.docker.reference.type".to_owned(), "attestation-manifest".into()),
    ];
    manifest.descriptor.annotations = notes.into_iter().collect();
    manifest.descriptor.platform = Some(nowhere());
    Ok(AttestationManifest { manifest, config, statements })
}

fn nowhere() -> Platform {
    let unknown = || "unknown".to_owned();
    Platform { os: unknown(), architecture: unknown(), variant: None, os_version: None, ..Platform::host() }
}

fn image_config(statements: &[Document]) -> Document {
    let diff_ids: Vec<&str> = statements.iter().map(|statement| statement.descriptor.digest.as_str()).collect();
    let config = json!({
        "architecture": "unknown",
        "os": "unknown",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    Document::new(MediaType::OciConfig, config.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(name: &str) -> String {
        package_url("docker", &name.parse().unwrap(), Some(&"linux/amd64".parse().unwrap()))
    }

    #[test]
    fn images_have_package_urls() {
        assert_eq!(url("busybox"), "pkg:docker/busybox@latest?platform=linux%2Famd64");
        assert_eq!(url("localhost:5000/a/b:v1"), "pkg:docker/localhost%3A5000/a/b@v1?platform=linux%2Famd64");
        let digest = format!("sha256:{}", "a".repeat(64));
        let expected = format!("pkg:docker/x?digest={digest}&platform=linux%2Famd64");
        assert_eq!(url(&format!("x@{digest}")), expected);
        assert_eq!(url(&format!("x:1@{digest}")), expected.replace("x?", "x@1?"));
    }

    fn attestation(predicate: &str, subjects: Vec<Subject>) -> Attestation {
        Attestation {
            predicate_type: "https://example.test/v1".to_owned(),
            predicate: Predicate::Json(predicate.as_bytes().to_vec()),
            subjects,
            file_name: "x.json".to_owned(),
            placement: Placement::Everywhere,
            is_core_sbom: false,
        }
    }

    fn text(attestation: &Attestation) -> String {
        let files = [WrittenSubject::new("a/b".to_owned(), &["sha256:00".to_owned()])];
        let bytes = attestation.file(&files).unwrap();
        serde_json::from_slice::<Value>(&bytes).unwrap().to_string()
    }

    #[test]
    fn statements_say_what_of_what() {
        assert_eq!(
            text(&attestation(r#"{"x":1}"#, Vec::new())),
            concat!(
                r#"{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://example.test/v1","#,
                r#""subject":[{"name":"a/b","digest":{"sha256":"00"}}],"predicate":{"x":1}}"#
            )
        );
        let other = Subject::Other { name: "o".to_owned(), digests: vec!["sha512:ff".to_owned()] };
        let told = text(&attestation("", vec![other, Subject::Itself { name: Some("n".to_owned()) }]));
        let told: Value = serde_json::from_str(&told).unwrap();
        let names: Vec<&str> =
            told["subject"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
        assert_eq!((names, &told["predicate"]), (vec!["o", "a/b", "n"], &Value::Null));
    }

    #[test]
    fn what_is_no_json_is_refused() {
        assert!(matches!(attestation("{", Vec::new()).file(&[]), Err(ExportError::Predicate { .. })));
    }
}
