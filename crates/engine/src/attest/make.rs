//! Makes the attestations of results.

use super::build_config::{self, FileOrigin};
use super::scan::Scanner;
use super::{Attest, GivenAttestation, Invocation, Provenance, ProvenanceMode, ProvenanceRequest, dockerfile};
use crate::build::{Build, PlatformResult, step_failed};
use crate::dockerfile::DockerfileText;
use crate::engine::blocking;
use crate::job::{DOCKERFILE_CONTEXT, Job, JobImage, JobResult};
use crate::{BuildContext, DockerfileSource, EngineError, NamedContext, Network};
use forge_buildkit_proto::SourceFile;
use forge_exporter::{Attestation, Predicate, SPDX};
use forge_image::{Digest, Reference};
use forge_llb::{Graph, Op, SourceOp};
use forge_solver::Solved;
use forge_store::LayerId;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A result as provenance sees it.
pub(crate) struct Made<'a> {
    pub graph: &'a Graph,
    pub solved: &'a Solved,
    pub files: Vec<SourceFile>,
    pub origin: FileOrigin,
    pub invocation: Invocation,
    /// The images that made it as front ends.
    pub front_ends: Vec<(Reference, Digest)>,
}

impl Build {
    /// Says how a result was made.
    pub(crate) async fn provenance(
        &self,
        request: &ProvenanceRequest,
        environment: &Map<String, Value>,
        made: Made<'_>,
    ) -> Result<Attestation, EngineError> {
        let mut materials = self.materials(made.graph).await?;
        materials.add_front_ends(made.front_ends);
        let steps = match request.mode {
            ProvenanceMode::Min => None,
            ProvenanceMode::Max => {
                let steps = build_config::steps(made.graph, &made.files, &made.origin)?;
                Some((steps, self.with_bases(made.graph, made.solved).await?))
            }
        };
        let provenance = Provenance {
            request: request.clone(),
            invocation: made.invocation,
            materials,
            steps,
            environment: environment.clone(),
            started: self.request.now,
        };
        provenance.attestation()
    }

    /// The same with the layers of images that nothing had to look at, because what was made from them was in the cache.
    async fn with_bases(&self, graph: &Graph, solved: &Solved) -> Result<Solved, EngineError> {
        let mut solved = solved.clone();
        for outcome in solved.steps.iter_mut().filter(|outcome| outcome.result.is_empty()) {
            let Some(vertex) = graph.get(&outcome.digest) else { continue };
            let Op::Source(source @ SourceOp::Image(_)) = &vertex.op else { continue };
            let worker = self.local_worker().await?;
            let found = worker.source_result(source, vertex.platform.as_ref(), &self.session).await;
            outcome.result = vec![found.map_err(|error| EngineError::caused(error.kind(), error))?];
        }
        Ok(solved)
    }
}

impl Job {
    /// Makes what is asked for and reads what the client made, for all images of a result.
    ///
    /// # Errors
    /// A step fails, a scanner cannot be had, or a statement cannot be read.
    pub async fn attest(&self, attest: &Attest, images: &mut [JobImage]) -> Result<(), EngineError> {
        let has_sbom = images.iter().flat_map(|image| &image.given).any(|given| given.predicate_type == SPDX);
        let scanner = match attest.sbom.as_ref().filter(|_| !has_sbom) {
            Some(request) => Some(Scanner::find(self.build(), request).await?),
            None => None,
        };
        for image in images {
            let mut said = Vec::new();
            for given in &image.given {
                said.extend(given.read(self).await?);
            }
            if let (Some(scanner), Some(result)) = (&scanner, &image.result) {
                let name = image.platform.to_string();
                let graph = scanner.graph(&name, result.graph(), &image.scanned)?;
                let listed = self.result_of(result, graph, false)?;
                said.extend(Scanner::attestation(listed).read(self).await?);
            }
            if let (Some(request), Some(result)) = (&attest.provenance, &image.result) {
                said.push(self.provenance_of(request, &attest.environment, image, result).await?);
            }
            // The list of the image itself comes first.
            said.sort_by_key(|attestation| !attestation.is_core_sbom);
            image.said = said;
        }
        Ok(())
    }

    /// How a result was made, all of it, as a predicate of the first version; `None` for the empty file system.
    ///
    /// # Errors
    /// A step fails, or a source cannot be asked what it was.
    pub async fn provenance(
        &self,
        environment: &Map<String, Value>,
        image: &JobImage,
    ) -> Result<Option<Vec<u8>>, EngineError> {
        let Some(result) = &image.result else { return Ok(None) };
        let said = self.provenance_of(&ProvenanceRequest::default(), environment, image, result).await?;
        match said.predicate {
            Predicate::Made(make) => Ok(Some(make(&BTreeMap::new()))),
            Predicate::Json(bytes) => Ok(Some(bytes)),
        }
    }

    async fn provenance_of(
        &self,
        request: &ProvenanceRequest,
        environment: &Map<String, Value>,
        image: &JobImage,
        result: &JobResult,
    ) -> Result<Attestation, EngineError> {
        let solved = self.solved(result).await?;
        let invocation = image.invocation.as_deref().cloned().unwrap_or_default();
        let (files, origin) = result.files();
        let front_ends = image.front_ends.clone();
        let made = Made { graph: result.graph(), solved, files, origin, invocation, front_ends };
        result.build().provenance(request, environment, made).await
    }
}

impl Build {
    /// Says of the results of a build of this process what the request asks for.
    pub(crate) async fn attested(
        &self,
        mut results: Vec<PlatformResult>,
        text: &DockerfileText,
    ) -> Result<Vec<PlatformResult>, EngineError> {
        let attest = self.request.attest.clone();
        let scanner = match &attest.sbom {
            Some(request) => Some(Box::pin(Scanner::find(self, request)).await?),
            None => None,
        };
        for result in &mut results {
            if result.lowered.graph.goal().is_none() {
                continue;
            }
            let mut said = Vec::new();
            if let Some(scanner) = &scanner {
                let graph =
                    scanner.graph(&result.platform.to_string(), &result.lowered.graph, &result.lowered.scanned)?;
                let listed = Box::pin(self.solver().await?.solve(&graph, self.session.clone())).await;
                let listed = listed.map_err(|error| step_failed(error, text))?;
                said.extend(Box::pin(self.read_statements(listed.result.layers().to_vec())).await?);
            }
            if let Some(request) = &attest.provenance {
                let (files, origin) = match text.name.is_empty() {
                    true => (Vec::new(), FileOrigin::Other),
                    false => (vec![dockerfile(text)], self.file_origin()),
                };
                let (graph, solved, invocation) = (&result.lowered.graph, &result.solved, self.invocation(text));
                let made = Made { graph, solved, files, origin, invocation, front_ends: Vec::new() };
                said.push(Box::pin(self.provenance(request, &attest.environment, made)).await?);
            }
            result.said = said;
        }
        Ok(results)
    }

    async fn read_statements(&self, layers: Vec<LayerId>) -> Result<Vec<Attestation>, EngineError> {
        self.engine.bring(&self.transfer, layers.clone()).await?;
        let store = self.transfer.store.clone();
        blocking(move || {
            let tree = store.layers().tree(&layers).map_err(|error| EngineError::caused(error.kind(), error))?;
            GivenAttestation::of_scanner(None).bundle(&tree)
        })
        .await
    }

    fn file_origin(&self) -> FileOrigin {
        match self.request.dockerfile {
            DockerfileSource::Inline(_) | DockerfileSource::Remote(_) => FileOrigin::Other,
            _ if self.locals_read().is_empty() => FileOrigin::Other,
            _ => FileOrigin::Context(DOCKERFILE_CONTEXT.to_owned()),
        }
    }

    /// The request in the words of a front end's options.
    fn invocation(&self, text: &DockerfileText) -> Invocation {
        if text.name.is_empty() {
            return Invocation::default();
        }
        let request = &self.request;
        let mut options = BTreeMap::new();
        let mut set = |name: String, value: String| _ = options.insert(name, value);
        if let BuildContext::Remote(remote) = &request.context {
            set("context".to_owned(), remote.told().0);
        }
        set("filename".to_owned(), text.name.clone());
        request.target.iter().for_each(|target| set("target".to_owned(), target.clone()));
        request.build_args.iter().for_each(|(name, value)| set(format!("build-arg:{name}"), value.clone()));
        request.labels.iter().for_each(|(name, value)| set(format!("label:{name}"), value.clone()));
        if request.no_cache {
            set("no-cache".to_owned(), String::new());
        } else if !request.no_cache_stages.is_empty() {
            set("no-cache".to_owned(), request.no_cache_stages.join(","));
        }
        match request.network {
            Network::Default => {}
            Network::Host => set("force-network-mode".to_owned(), "host".to_owned()),
            Network::None => set("force-network-mode".to_owned(), "none".to_owned()),
        }
        for (name, context) in &request.named_contexts {
            set(format!("context:{name}"), named(name, context));
        }
        Invocation { frontend: "dockerfile.v0".to_owned(), options, ..Invocation::default() }
    }
}

/// A named context as a client far away would name it: paths of this machine are nobody's business.
fn named(name: &str, context: &NamedContext) -> String {
    match context {
        NamedContext::Directory(_) => format!("local:{name}"),
        NamedContext::Image(reference) => format!("docker-image://{reference}"),
        NamedContext::OciLayout { digest, .. } => match digest {
            Some(digest) => format!("oci-layout://{name}@{digest}"),
            None => format!("oci-layout://{name}"),
        },
        NamedContext::Remote(remote) => remote.told().0,
        NamedContext::Stage(stage) => format!("target:{stage}"),
        NamedContext::Scratch => "docker-image://scratch".to_owned(),
        NamedContext::Input { name, .. } => format!("input:{name}"),
    }
}
