//! What a build says of its result: how it was made (provenance) and what is in it (a list of software).
//!
//! Reading order: [`Attest`] is what is asked for; `materials` finds out what a build was made of, `predicate` writes it down;
//! `scan` runs whoever lists software; `given` takes statements that a client made.

mod build_config;
mod given;
mod make;
mod materials;
mod predicate;
mod scan;

pub use given::{GivenAttestation, GivenKind};
pub use predicate::{Invocation, RequestOrigin};

pub(crate) use build_config::{FileOrigin, dockerfile};
pub(crate) use materials::{Materials, git_url, redacted};
pub(crate) use predicate::Provenance;
pub(crate) use scan::Extras;

/// The version of the Dockerfile language that forge's own front end reads.
pub const DOCKERFILE_VERSION: &str = predicate::DOCKERFILE_VERSION;

use crate::EngineError;
use forge_image::{ErrorKind, Reference};
use std::collections::BTreeMap;

/// The attestations that a build makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attest {
    /// How the result was made.
    pub provenance: Option<ProvenanceRequest>,
    /// What software is in it.
    pub sbom: Option<SbomRequest>,
    /// Further things that provenance says of the machine.
    pub environment: serde_json::Map<String, serde_json::Value>,
}

/// How much provenance says, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenanceRequest {
    /// The version of the SLSA format.
    pub version: SlsaVersion,
    /// How much is said.
    pub mode: ProvenanceMode,
    /// Whether it is left out where it would make an index of an image.
    pub inline_only: bool,
    /// Whether the user says that the build is reproducible.
    pub reproducible: bool,
    /// Whether the build fails where not all that went into it can be told.
    pub complete_materials: bool,
    /// Who built: a URI.
    pub builder_id: String,
    /// The file that folders get it as.
    pub file_name: String,
}

impl Default for ProvenanceRequest {
    fn default() -> Self {
        Self {
            version: SlsaVersion::V1,
            mode: ProvenanceMode::Max,
            inline_only: false,
            reproducible: false,
            complete_materials: false,
            builder_id: String::new(),
            file_name: "provenance.json".to_owned(),
        }
    }
}

/// Versions of the provenance format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlsaVersion {
    /// `https://slsa.dev/provenance/v0.2`.
    V02,
    /// `https://slsa.dev/provenance/v1`.
    V1,
}

/// How much provenance says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProvenanceMode {
    /// Neither the steps nor the values that were handed in.
    Min,
    /// Everything.
    Max,
}

/// Who lists software.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SbomRequest {
    /// The scanner's image.
    pub generator: Reference,
    /// What it is told, as `BUILDKIT_SCAN_NAME` in its environment.
    pub parameters: BTreeMap<String, String>,
}

/// The scanner of BuildKit.
const DEFAULT_SCANNER: &str = "docker.io/docker/buildkit-syft-scanner:stable-1";

impl Attest {
    /// Adds an attestation of a kind (`provenance`, `sbom`) as BuildKit's clients name it, with its attributes. One that is
    /// `disabled=true` is taken out.
    ///
    /// # Errors
    /// The kind, an attribute or a value is not known.
    pub fn add(&mut self, kind: &str, attributes: &[(String, String)]) -> Result<(), EngineError> {
        let is_disabled = attributes.iter().any(|(name, value)| name == "disabled" && value != "false");
        match kind {
            "provenance" if is_disabled => self.provenance = None,
            "sbom" if is_disabled => self.sbom = None,
            "provenance" => self.provenance = Some(provenance(attributes)?),
            "sbom" => self.sbom = Some(sbom(attributes)?),
            other => return Err(refused(format!("unknown attestation type {other:?}"))),
        }
        Ok(())
    }
}

fn refused(message: String) -> EngineError {
    EngineError::new(ErrorKind::UserInput, message)
}

fn provenance(attributes: &[(String, String)]) -> Result<ProvenanceRequest, EngineError> {
    let mut request = ProvenanceRequest::default();
    for (name, value) in attributes {
        let switch = || match value.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" | "" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err(refused(format!("failed to parse {name} flag {value:?}"))),
        };
        match name.as_str() {
            "version" => {
                request.version = match value.as_str() {
                    "v1" => SlsaVersion::V1,
                    "v0.2" => SlsaVersion::V02,
                    other => return Err(refused(format!("invalid provenance SLSA version: {other}"))),
                }
            }
            "mode" => {
                request.mode = match value.as_str() {
                    "min" => ProvenanceMode::Min,
                    "max" | "full" => ProvenanceMode::Max,
                    other => return Err(refused(format!("invalid mode {other:?}"))),
                }
            }
            "inline-only" => request.inline_only = switch()?,
            "reproducible" => request.reproducible = switch()?,
            "complete-materials" => request.complete_materials = switch()?,
            "builder-id" => request.builder_id.clone_from(value),
            "filename" if !value.contains('/') && !value.is_empty() => request.file_name.clone_from(value),
            "disabled" => {}
            other => {
                let message = format!("attribute {other} of provenance is not supported");
                return Err(EngineError::new(ErrorKind::Unsupported, message));
            }
        }
    }
    Ok(request)
}

fn sbom(attributes: &[(String, String)]) -> Result<SbomRequest, EngineError> {
    let mut generator = DEFAULT_SCANNER;
    let mut parameters = BTreeMap::new();
    for (name, value) in attributes {
        match name.as_str() {
            "generator" if value.is_empty() => return Err(refused("sbom generator cannot be empty".to_owned())),
            "generator" => generator = value,
            "disabled" => {}
            _ => _ = parameters.insert(name.clone(), value.clone()),
        }
    }
    let parsed = generator.parse();
    let generator = parsed.map_err(|error| refused(format!("failed to parse sbom generator {generator}: {error}")))?;
    Ok(SbomRequest { generator, parameters })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(kind: &str, attributes: &[(&str, &str)]) -> Result<Attest, String> {
        let mut attest = Attest::default();
        let attributes: Vec<_> = attributes.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        attest.add(kind, &attributes).map(|()| attest).map_err(|error| error.to_string())
    }

    #[test]
    fn attributes_are_those_of_buildkit() {
        let provenance = add("provenance", &[]).unwrap().provenance.unwrap();
        assert_eq!((provenance.mode, provenance.version), (ProvenanceMode::Max, SlsaVersion::V1));
        let provenance = add("provenance", &[("mode", "min"), ("version", "v0.2"), ("inline-only", "true")]).unwrap();
        let provenance = provenance.provenance.unwrap();
        assert_eq!((provenance.mode, provenance.inline_only), (ProvenanceMode::Min, true));
        assert!(add("provenance", &[("disabled", "true")]).unwrap().provenance.is_none());
        let sbom = add("sbom", &[("generator", "x"), ("ARG", "a")]).unwrap().sbom.unwrap();
        assert_eq!((sbom.generator.familiar(), sbom.parameters["ARG"].as_str()), ("x:latest".into(), "a"));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        type Case = (&'static str, &'static [(&'static str, &'static str)], &'static str);
        let cases: [Case; 5] = [
            ("x", &[], "unknown attestation type \"x\""),
            ("provenance", &[("mode", "x")], "invalid mode \"x\""),
            ("provenance", &[("version", "v2")], "invalid provenance SLSA version: v2"),
            ("provenance", &[("capture-usage", "1")], "attribute capture-usage of provenance is not supported"),
            ("sbom", &[("generator", "")], "sbom generator cannot be empty"),
        ];
        for (kind, attributes, expected) in cases {
            assert_eq!(add(kind, attributes).unwrap_err(), expected);
        }
    }
}
