//! How a result was made, in the SLSA provenance format.

use super::build_config::layers;
use super::materials::redacted;
use super::{Materials, ProvenanceMode, ProvenanceRequest, SlsaVersion};
use crate::{EngineError, RemoteContext};
use forge_exporter::{Attestation, Placement, Predicate};
use forge_image::{Descriptor, Digest, ErrorKind, Platform};
use forge_llb::{UrlCredentials, VertexDigest, without_credentials};
use forge_solver::Solved;
use forge_store::LayerId;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

const BUILD_TYPE: &str = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
const BUILD_TYPE_02: &str = "https://mobyproject.org/buildkit@v1";
const PREDICATE: &str = "https://slsa.dev/provenance/v1";
const PREDICATE_02: &str = "https://slsa.dev/provenance/v0.2";

/// The version of the Dockerfile language that forge's own front end reads.
pub(crate) const DOCKERFILE_VERSION: &str = "1.26";

/// Options of a front end that say something of the machine, not of the result.
const OF_THE_MACHINE: [&str; 4] = ["cgroup-parent", "image-resolve-mode", "platform", "cache-imports"];

/// What was asked of a front end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invocation {
    /// Its name; empty for steps that came as they are.
    pub frontend: String,
    /// Its options.
    pub options: BTreeMap<String, String>,
    /// What came of other front ends and was handed to this one.
    pub inputs: BTreeMap<String, RequestOrigin>,
    /// What the client asked for that asked this front end.
    pub root: Option<Box<RequestOrigin>>,
}

/// What was asked for, as provenance tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestOrigin {
    source: ConfigSource,
    frontend: String,
    options: BTreeMap<String, String>,
    inputs: BTreeMap<String, RequestOrigin>,
    root: Option<Box<RequestOrigin>>,
}

/// Where the file is that says what is built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ConfigSource {
    uri: String,
    digest: Option<String>,
    path: String,
}

impl Invocation {
    /// Whether anything was asked that provenance tells.
    pub fn says_anything(&self) -> bool {
        !self.frontend.is_empty() || !self.inputs.is_empty() || !filtered(&self.options).is_empty()
    }

    /// As a part of what is told of another one: a front end's input, or its root.
    pub fn origin(&self) -> RequestOrigin {
        self.request(&Materials::default())
    }

    fn request(&self, materials: &Materials) -> RequestOrigin {
        let mut options = filtered(&self.options);
        let given = |options: &BTreeMap<String, String>, name: &str| {
            options.get(name).filter(|value| !value.is_empty()).cloned()
        };
        let key = match given(&options, "contextkey") {
            Some(key) => key,
            None if given(&options, "input:context").is_some() => "input:context".to_owned(),
            None => "context".to_owned(),
        };
        let mut source = ConfigSource::default();
        if let Some(context) = given(&options, &key) {
            options.remove(&key);
            (source.uri, source.digest) = config_source(&self.options[&key], &context, materials);
        }
        if let Some(file) = given(&options, "filename") {
            source.path = file;
            options.remove("filename");
        }
        let (frontend, inputs) = (self.frontend.clone(), self.inputs.clone());
        RequestOrigin { source, frontend, options, inputs, root: self.root.clone() }
    }
}

/// Without what belongs to one machine, and without credentials.
fn filtered(options: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let told = |(name, value): (&String, &String)| {
        if OF_THE_MACHINE.contains(&name.as_str()) || name.starts_with("attest:") {
            return None;
        }
        let is_address = name == "context" || name.starts_with("context:") || name == "vcs:source";
        let value = if is_address { told_address(value) } else { value.clone() };
        Some((name.clone(), value))
    };
    options.iter().filter_map(told).collect()
}

/// An address without what lets its readers in.
fn told_address(address: &str) -> String {
    let (url, credentials) = UrlCredentials::split(address);
    redacted(&without_credentials(&url), credentials.as_ref())
}

/// The address of a context as it is told, and the digest of what it stood for.
fn config_source(given: &str, shown: &str, materials: &Materials) -> (String, Option<String>) {
    let Ok(Some(remote)) = RemoteContext::parse_main(given) else { return (shown.to_owned(), None) };
    let (uri, material) = remote.told();
    let digest = materials.digest_of(&material).map(|digest| digest.to_string());
    (uri, digest)
}

impl RequestOrigin {
    /// The same without what the client asked for that asked this.
    #[must_use]
    pub fn without_root(self) -> Self {
        Self { root: None, ..self }
    }

    fn source_json(&self, path: &str) -> Value {
        let mut value = Map::new();
        if !self.source.uri.is_empty() {
            value.insert("uri".to_owned(), self.source.uri.clone().into());
        }
        if let Some(digest) = self.source.digest.as_deref().and_then(|text| serde_json::from_str(text).ok()) {
            value.insert("digest".to_owned(), digest);
        }
        if !self.source.path.is_empty() {
            value.insert(path.to_owned(), self.source.path.clone().into());
        }
        value.into()
    }

    fn json(&self) -> Value {
        json!({ "configSource": self.source_json("path"), "request": self.request_json() })
    }

    fn request_json(&self) -> Map<String, Value> {
        let mut value = Map::new();
        if !self.frontend.is_empty() {
            value.insert("frontend".to_owned(), self.frontend.clone().into());
        }
        if !self.options.is_empty() {
            value.insert("args".to_owned(), json!(self.options));
        }
        if !self.inputs.is_empty() {
            let inputs = self.inputs.iter().map(|(name, input)| (name.clone(), input.json()));
            value.insert("inputs".to_owned(), inputs.collect::<Map<_, _>>().into());
        }
        if let Some(root) = &self.root {
            value.insert("root".to_owned(), root.json());
        }
        value
    }

    /// Takes out the values that were handed in; whether there were any.
    fn scrub(&mut self) -> bool {
        let before = self.options.len();
        self.options.retain(|name, _| !name.starts_with("build-arg:") && !name.starts_with("label:"));
        let mut is_less = self.options.len() != before;
        for input in self.inputs.values_mut() {
            input.root = None;
            is_less |= input.scrub();
        }
        if let Some(root) = &mut self.root {
            is_less |= root.scrub();
        }
        is_less
    }
}

/// The steps of a build in the format's words.
#[derive(Clone, Debug)]
pub(crate) struct Steps {
    /// `buildConfig`.
    pub config: Value,
    /// The files that they come from.
    pub source: Option<Value>,
    /// The number of each vertex.
    pub numbered: Vec<(VertexDigest, usize)>,
}

/// All that provenance says of one result, before it is written.
pub(crate) struct Provenance {
    pub request: ProvenanceRequest,
    pub invocation: Invocation,
    pub materials: Materials,
    /// In the mode that tells them.
    pub steps: Option<(Steps, Solved)>,
    pub environment: Map<String, Value>,
    pub started: SystemTime,
}

impl Provenance {
    /// As an attestation; its predicate is made when it is written, and ends then.
    pub(crate) fn attestation(self) -> Result<Attestation, EngineError> {
        if self.request.complete_materials && !self.materials.are_complete() {
            return Err(incomplete(&self.materials));
        }
        let predicate_type = match self.request.version {
            SlsaVersion::V1 => PREDICATE,
            SlsaVersion::V02 => PREDICATE_02,
        };
        let placement = if self.request.inline_only { Placement::InlineOnly } else { Placement::Everywhere };
        let file_name = self.request.file_name.clone();
        let id = invocation_id(&self);
        let made = move |blobs: &BTreeMap<LayerId, Descriptor>| self.predicate(&id, blobs).to_string().into_bytes();
        Ok(Attestation {
            predicate_type: predicate_type.to_owned(),
            predicate: Predicate::Made(Arc::new(made)),
            subjects: Vec::new(),
            file_name,
            placement,
            is_core_sbom: false,
        })
    }

    fn predicate(&self, id: &str, blobs: &BTreeMap<LayerId, Descriptor>) -> Value {
        let mut origin = self.invocation.request(&self.materials);
        let vcs = take_vcs(&mut origin.options);
        let is_max = self.request.mode == ProvenanceMode::Max;
        let is_scrubbed = !is_max && origin.scrub();
        let mut request = origin.request_json();
        if is_max {
            let ids = |ids: &BTreeMap<String, bool>| -> Vec<Value> {
                let one = |(id, optional): (&String, &bool)| match optional {
                    true => json!({ "id": id, "optional": true }),
                    false => json!({ "id": id }),
                };
                ids.iter().map(one).collect()
            };
            for (name, ids) in [("secrets", ids(&self.materials.secrets)), ("ssh", ids(&self.materials.ssh))] {
                if !ids.is_empty() {
                    request.insert(name.to_owned(), ids.into());
                }
            }
        }
        let locals: Vec<Value> = self.materials.locals.iter().map(|name| json!({ "name": name })).collect();
        if !locals.is_empty() {
            request.insert("locals".to_owned(), locals.into());
        }
        let mut notes = Map::new();
        if !vcs.is_empty() {
            notes.insert("vcs".to_owned(), vcs.into());
        }
        if let Some((steps, solved)) = &self.steps {
            notes.extend(steps.source.clone().map(|source| ("source".to_owned(), source)));
            let layers = layers(steps, solved, blobs);
            if !layers.is_empty() {
                notes.insert("layers".to_owned(), layers.into());
            }
        }
        let is_complete = self.materials.are_complete();
        let facts = Facts {
            id,
            origin: &origin,
            request,
            notes,
            is_request_complete: !origin.frontend.is_empty() && !is_scrubbed,
            is_complete,
            is_hermetic: is_complete && !self.materials.network,
        };
        match self.request.version {
            SlsaVersion::V1 => self.version_1(facts),
            SlsaVersion::V02 => self.version_02(facts),
        }
    }

    fn environment(&self, facts: &Facts<'_>, platform: &str) -> Map<String, Value> {
        let mut environment = Map::new();
        environment.insert(platform.to_owned(), Platform::host().to_string().into());
        if facts.origin.frontend == "dockerfile.v0" {
            environment.insert("dockerfileVersion".to_owned(), DOCKERFILE_VERSION.into());
        }
        environment.extend(self.environment.clone());
        environment
    }

    fn version_1(&self, facts: Facts<'_>) -> Value {
        let mut internal = self.environment(&facts, "builderPlatform");
        if let Some((steps, _)) = &self.steps {
            internal.insert("buildConfig".to_owned(), steps.config.clone());
        }
        let mut metadata = json!({
            "invocationId": facts.id,
            "startedOn": rfc3339(self.started),
            "finishedOn": rfc3339(SystemTime::now()),
            "buildkit_metadata": facts.notes,
            "buildkit_completeness": {
                "request": facts.is_request_complete,
                "resolvedDependencies": facts.is_complete,
            },
        });
        if facts.is_hermetic {
            metadata["buildkit_hermetic"] = true.into();
        }
        if self.request.reproducible {
            metadata["buildkit_reproducible"] = true.into();
        }
        json!({
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "configSource": facts.origin.source_json("path"),
                    "request": facts.request,
                },
                "internalParameters": internal,
                "resolvedDependencies": self.materials.list(),
            },
            "runDetails": { "builder": { "id": self.request.builder_id }, "metadata": metadata },
        })
    }

    fn version_02(&self, facts: Facts<'_>) -> Value {
        let environment = self.environment(&facts, "platform");
        let mut metadata = json!({
            "buildInvocationID": facts.id,
            "buildStartedOn": rfc3339(self.started),
            "buildFinishedOn": rfc3339(SystemTime::now()),
            "completeness": {
                "parameters": facts.is_request_complete,
                "environment": true,
                "materials": facts.is_complete,
            },
            "reproducible": self.request.reproducible,
            "https://mobyproject.org/buildkit@v1#metadata": facts.notes,
        });
        if facts.is_hermetic {
            metadata["https://mobyproject.org/buildkit@v1#hermetic"] = true.into();
        }
        let mut predicate = json!({
            "builder": { "id": self.request.builder_id },
            "buildType": BUILD_TYPE_02,
            "materials": self.materials.list(),
            "invocation": {
                "configSource": facts.origin.source_json("entryPoint"),
                "parameters": facts.request,
                "environment": environment,
            },
        });
        if let Some((steps, _)) = &self.steps {
            predicate["buildConfig"] = steps.config.clone();
        }
        predicate["metadata"] = metadata;
        predicate
    }
}

/// What both versions say.
struct Facts<'a> {
    id: &'a str,
    origin: &'a RequestOrigin,
    request: Map<String, Value>,
    notes: Map<String, Value>,
    is_request_complete: bool,
    is_complete: bool,
    is_hermetic: bool,
}

/// Takes out what is known of the version control of the files.
fn take_vcs(options: &mut BTreeMap<String, String>) -> Map<String, Value> {
    let mut vcs = Map::new();
    options.retain(|name, value| match name.strip_prefix("vcs:") {
        Some(name) => {
            if !value.is_empty() {
                vcs.insert(name.to_owned(), value.clone().into());
            }
            false
        }
        None => true,
    });
    vcs
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

/// A name that no other build has.
fn invocation_id(provenance: &Provenance) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let seed = format!("{:?} {number} {} {:?}", SystemTime::now(), std::process::id(), provenance.started);
    Digest::sha256(seed.as_bytes()).hex()[..25].to_owned()
}

fn incomplete(materials: &Materials) -> EngineError {
    let mut text = "provenance materials are incomplete\n\nThe build requested complete provenance materials, \
                    but not all dependencies could be captured.\n\nUncaptured local sources:"
        .to_owned();
    for name in &materials.locals {
        text += &format!("\n  - {name}\n    reason: local_source");
    }
    EngineError::new(ErrorKind::UserInput, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invocation(options: &[(&str, &str)]) -> Invocation {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Invocation { frontend: "dockerfile.v0".to_owned(), options, ..Invocation::default() }
    }

    fn predicate(mode: ProvenanceMode, version: SlsaVersion, options: &[(&str, &str)]) -> Value {
        let mut materials = Materials::default();
        materials.locals.insert("context".to_owned());
        materials.secrets.insert("s".to_owned(), true);
        let provenance = Provenance {
            request: ProvenanceRequest { mode, version, ..ProvenanceRequest::default() },
            invocation: invocation(options),
            materials,
            steps: None,
            environment: Map::new(),
            started: SystemTime::UNIX_EPOCH,
        };
        provenance.predicate("id", &BTreeMap::new())
    }

    const OPTIONS: [(&str, &str); 6] = [
        ("build-arg:A", "1"),
        ("target", "t"),
        ("platform", "linux/amd64"),
        ("attest:provenance", ""),
        ("vcs:source", "https://u:p@h/r.git"),
        ("filename", "D"),
    ];

    #[test]
    fn what_was_asked_for_is_told() {
        let told = predicate(ProvenanceMode::Max, SlsaVersion::V1, &OPTIONS);
        let external = &told["buildDefinition"]["externalParameters"];
        assert_eq!(external["request"]["args"], json!({ "build-arg:A": "1", "target": "t" }));
        assert_eq!(external["configSource"], json!({ "path": "D" }));
        assert_eq!(external["request"]["secrets"], json!([{ "id": "s", "optional": true }]));
        let metadata = &told["runDetails"]["metadata"];
        assert_eq!(metadata["buildkit_completeness"], json!({ "request": true, "resolvedDependencies": false }));
        assert_eq!(metadata["buildkit_metadata"]["vcs"]["source"], "https://xxxxx:xxxxx@h/r.git");
    }

    #[test]
    fn the_least_holds_no_values() {
        let told = predicate(ProvenanceMode::Min, SlsaVersion::V02, &OPTIONS);
        assert_eq!(told["invocation"]["parameters"]["args"], json!({ "target": "t" }));
        assert_eq!(told["invocation"]["parameters"].get("secrets"), None);
        assert_eq!(told["metadata"]["completeness"]["parameters"], false);
        assert_eq!(told["invocation"]["configSource"], json!({ "entryPoint": "D" }));
    }

    #[test]
    fn incomplete_materials_are_refused_where_that_is_asked() {
        let mut materials = Materials::default();
        materials.locals.insert("context".to_owned());
        let request = ProvenanceRequest { complete_materials: true, ..ProvenanceRequest::default() };
        let (invocation, environment) = (Invocation::default(), Map::new());
        let started = SystemTime::UNIX_EPOCH;
        let refused = Provenance { request, invocation, materials, steps: None, environment, started }.attestation();
        assert!(refused.unwrap_err().to_string().contains("- context\n    reason: local_source"));
    }
}
