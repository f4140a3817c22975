//! Results of a steered build, each made when somebody needs it.

use super::DOCKERFILE_CONTEXT;
use crate::EngineError;
use crate::attest::{FileOrigin, dockerfile};
use crate::build::{Build, step_failed};
use crate::dockerfile::DockerfileText;
use forge_buildkit_proto::SourceFile;
use forge_frontend::LoweredImage;
use forge_image::{Digest, ErrorKind};
use forge_llb::Graph;
use forge_solver::{Remembered, SolveError, Solved};
use std::sync::Arc;
use tokio::sync::OnceCell;

/// A result that there is, or that there will be when somebody needs it.
#[derive(Clone)]
pub struct JobResult(pub(super) Arc<Lazy>);

/// The definition of what makes a result.
pub struct NamedDefinition {
    /// In BuildKit's format.
    pub bytes: Vec<u8>,
    /// What its steps are called, in the build and in the definition.
    pub names: Vec<(Digest, Digest)>,
}

pub(super) struct Lazy {
    /// The build that it is of: its session has the contexts that the graph reads.
    pub(super) build: Arc<Build>,
    pub(super) image: LoweredImage,
    pub(super) text: SourceTexts,
    /// What it is compared with.
    pub(super) remembered: Option<Remembered>,
    /// What is allowed was checked when it was made.
    pub(super) solved: OnceCell<Solved>,
}

/// The files that steps come from.
pub(super) enum SourceTexts {
    Dockerfile(DockerfileText),
    Definition(Vec<SourceFile>),
}

impl JobResult {
    /// The steps that make it.
    pub(crate) fn graph(&self) -> &Graph {
        &self.0.image.graph
    }

    /// What it is compared with.
    pub(crate) fn remembered(&self) -> Option<&Remembered> {
        self.0.remembered.as_ref()
    }

    /// The build that it is of.
    pub(crate) fn build(&self) -> &Build {
        &self.0.build
    }

    /// One of its steps that failed, with the lines that it comes from.
    pub(crate) async fn failed(&self, error: SolveError) -> EngineError {
        let Lazy { build, image, text, .. } = &*self.0;
        match text {
            SourceTexts::Dockerfile(text) => build.failed(error, image, text).await,
            SourceTexts::Definition(sources) => {
                let text = crate::definition::text_of(&error, sources);
                step_failed(error, &text)
            }
        }
    }

    /// The files that its steps come from, and where these were found.
    pub(crate) fn files(&self) -> (Vec<SourceFile>, FileOrigin) {
        match &self.0.text {
            SourceTexts::Definition(sources) => (sources.clone(), FileOrigin::Other),
            SourceTexts::Dockerfile(text) => {
                let is_local = self.0.build.locals_read().contains(DOCKERFILE_CONTEXT);
                let local = || FileOrigin::Context(DOCKERFILE_CONTEXT.to_owned());
                (vec![dockerfile(text)], if is_local { local() } else { FileOrigin::Other })
            }
        }
    }

    /// The definition of what makes it, in BuildKit's format.
    ///
    /// # Errors
    /// It holds what the format has no words for.
    pub fn definition(&self) -> Result<Vec<u8>, EngineError> {
        Ok(self.named_definition()?.bytes)
    }

    /// The same, and what its steps are called: in this build, and in the definition.
    ///
    /// # Errors
    /// As [`JobResult::definition`].
    pub fn named_definition(&self) -> Result<NamedDefinition, EngineError> {
        let (sources, _) = self.files();
        let encoded = forge_buildkit_proto::encode_named(&self.0.image.graph, &sources)
            .map_err(|error| EngineError::caused(ErrorKind::UserInput, error))?;
        let names = encoded.digests.into_iter().map(|(vertex, op)| (vertex.digest().clone(), op)).collect();
        Ok(NamedDefinition { bytes: forge_buildkit_proto::definition_bytes(&encoded.definition), names })
    }

    /// A result that there is already.
    pub(crate) fn there(build: &Arc<Build>, result: forge_cache::ResultRef) -> Self {
        Self(Arc::new(Lazy {
            build: build.clone(),
            image: crate::failed_steps::nameless(build),
            text: SourceTexts::Definition(Vec::new()),
            remembered: None,
            solved: OnceCell::new_with(Some(Solved { result, steps: Vec::new() })),
        }))
    }

    /// Whether two are the same.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
