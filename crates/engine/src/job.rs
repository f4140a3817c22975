//! A build that somebody steers: it solves what it is given, looks into results, and says at last what is to be exported.
//!
//! This is what a client far away has instead of [`Engine::build`]: its session comes from outside, a result is looked
//! at before the next step is decided, and nothing runs before it is needed.

mod image;
mod result;
mod session_files;

pub use image::JobImage;
pub use result::{JobResult, NamedDefinition};

use crate::build::{Build, PlatformResult, refused, unsolved};
use crate::context::{MAIN_CONTEXT, MainContext};
use crate::dockerfile::DockerfileText;
use crate::engine::blocking;
use crate::provided::{Below, ProvidedContexts, TreeContext};
use crate::source_guard::ToldSources;
use crate::steps::ShownStep;
use crate::{
    BuildContext, BuildOutcome, BuildRequest, CacheImport, Call, CallOutcome, Engine, EngineError, OnFailure,
    entitlements,
};
use forge_buildkit_proto::Decoded;
use forge_exporter::{Attestation, StatementFile};
use forge_frontend::LoweredImage;
use forge_image::{Descriptor, Digest, ErrorKind, ImageConfig, Platform, Reference};
use forge_llb::{
    CopyAction, FileAction, FileInput, FileKind, FileOp, Graph, Metadata, Op, ResolveMode, SourceOp, Vertex,
};
use forge_session::{Context, Session, WarningNotice};
use forge_solver::Solved;
use forge_worker::{ReadObjects, SourceFacts};
use futures_util::future::{join_all, try_join_all};
use result::{Lazy, SourceTexts};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::OnceCell;

pub use forge_registry::AttestationChain;
pub use forge_store::{MergedTree, TreeEntry, TreeKind};

/// The name of the context that a client's Dockerfile lies in.
pub(crate) const DOCKERFILE_CONTEXT: &str = "dockerfile";

/// A build at work. Cheap to clone; its results stay in the store until the last copy is gone.
#[derive(Clone)]
pub struct Job(Arc<Build>);

/// A Dockerfile of a client's session.
#[derive(Clone, Default)]
pub struct SessionDockerfile {
    /// Its name within the context of Dockerfiles; the usual one where `None`.
    pub name: Option<String>,
    /// The name that steps see of their machine; empty for the usual one.
    pub hostname: String,
    /// The context of the session that it lies in, where the build's context is elsewhere.
    pub context: Option<String>,
    /// The folder of a context that is a stream which is all that is looked at; empty for all of it.
    pub subdir: String,
    /// Results that are contexts: `context` and `dockerfile` stand for those of the session, others are named by
    /// [`NamedContext::Input`].
    pub inputs: BTreeMap<String, JobResult>,
}

/// What a Dockerfile came to.
pub struct JobDockerfile {
    /// One for each platform, in the order of the request.
    pub images: Vec<JobImage>,
    /// The remarks of the checks.
    pub warnings: Vec<WarningNotice>,
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub struct JobSource {
    /// The manifest's digest.
    pub digest: Digest,
    /// The config.
    pub config: ImageConfig,
}

impl Engine {
    /// Begins a build for a session. What the request says of files of this machine is not looked at.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn job(&self, request: BuildRequest, session: Arc<dyn Session>) -> Result<Job, EngineError> {
        let build = self.blocking(move |engine| {
            let main = MainContext::empty(engine.store(), None)?;
            let mut build = Build::with(engine.clone(), request, session, main, BTreeMap::new(), BTreeMap::new())?;
            build.failures = Some(Arc::default());
            Ok(build)
        });
        Ok(Job(Arc::new(build.await?)))
    }
}

impl Job {
    fn session(&self) -> &Arc<dyn Session> {
        &self.0.session
    }

    /// Takes a definition of BuildKit's format; no step runs. `None` for the empty file system.
    ///
    /// # Errors
    /// It cannot be read, or asks for what is not supported or not allowed.
    pub async fn definition(&self, bytes: Vec<u8>, no_cache: bool) -> Result<Option<JobResult>, EngineError> {
        let is_judged = self.0.guard.is_some();
        let decoded = blocking(move || {
            let decoded = forge_buildkit_proto::decode(&bytes);
            let decoded = decoded.map_err(|error| EngineError::caused(error.kind(), error))?;
            let told = match is_judged {
                true => forge_buildkit_proto::source_ops(&bytes),
                false => Ok(ToldSources::new()),
            };
            Ok((decoded, told.map_err(|error| EngineError::caused(error.kind(), error))?))
        });
        let (Decoded { graph, sources }, told) = decoded.await?;
        if graph.goal().is_none() {
            return Ok(None);
        }
        let graph = self.0.guarded_graph(graph, &told).await?;
        let graph = with_copied_context(graph)?;
        let image = self.0.image_of(graph, &Platform::host(), no_cache)?;
        let nowhere = DockerfileText { name: String::new(), text: Vec::new() };
        entitlements::check(&image, &self.0.request, &nowhere)?;
        Ok(Some(JobResult(Arc::new(Lazy {
            build: self.0.clone(),
            image,
            text: SourceTexts::Definition(sources),
            remembered: None,
            solved: OnceCell::new(),
        }))))
    }

    /// Lowers a Dockerfile of the session, or of the context that the request names elsewhere; no step runs. `read` is told
    /// its name and text before anything is said of it.
    ///
    /// # Errors
    /// It cannot be had, is refused, or needs what is not allowed.
    pub async fn dockerfile(
        &self,
        request: BuildRequest,
        dockerfile: &SessionDockerfile,
        read: impl FnOnce(&str, &[u8]),
    ) -> Result<JobDockerfile, EngineError> {
        let (build, text) = self.fork(request, dockerfile).await?;
        read(&text.name, &text.text);
        let parsed = forge_frontend::parse(&text.name, &text.text).map_err(|error| refused(&error, &text))?;
        let ignore = build.ignore_of_session(&text.name).await?;
        let host = [Platform::host()];
        let platforms = match build.request.platforms.as_slice() {
            [] => &host[..],
            platforms => platforms,
        };
        let lowered = platforms.iter().map(|platform| build.lower(&parsed, &text, &ignore, platform));
        let lowered = match try_join_all(lowered).await {
            Ok(lowered) => lowered,
            Err(error) => {
                build.report_findings(&text, &ignore).await;
                return Err(error);
            }
        };
        lowered.iter().try_for_each(|image| entitlements::check(image, &build.request, &text))?;
        let warnings = build.report(&lowered[0], &text);
        let platforms: Vec<Platform> = platforms.to_vec();
        let build = Arc::new(build);
        let images = platforms.into_iter().zip(lowered.into_iter().map(crate::followed::narrowed));
        let is_compared = build.request.compared_as.is_some();
        let images = images.map(|(platform, image)| {
            let remembered = is_compared.then(|| build.remembered(&parsed, &platform));
            JobImage::lazy(&build, (platform, image), &text, remembered)
        });
        let images = images.collect();
        Ok(JobDockerfile { images, warnings })
    }

    /// Answers a question about a Dockerfile of the session. `read` is told its name and text first.
    ///
    /// # Errors
    /// As [`Job::dockerfile`], unless the question is what is wrong with it.
    pub async fn call(
        &self,
        request: BuildRequest,
        dockerfile: &SessionDockerfile,
        call: Call,
        read: impl FnOnce(&str, &[u8]),
    ) -> Result<CallOutcome, EngineError> {
        let (build, text) = self.fork(request, dockerfile).await?;
        read(&text.name, &text.text);
        let ignore = build.ignore_of_session(&text.name).await?;
        build.answer_about(text, &ignore, call).await
    }

    /// The same build for another request, and the Dockerfile that it names.
    async fn fork(
        &self,
        request: BuildRequest,
        dockerfile: &SessionDockerfile,
    ) -> Result<(Build, DockerfileText), EngineError> {
        let context = request.context.clone();
        let mut build = self.0.fork(request);
        build.hostname.clone_from(&dockerfile.hostname);
        let mut provided = BTreeMap::new();
        for (name, input) in &dockerfile.inputs {
            if matches!(name.as_str(), MAIN_CONTEXT | DOCKERFILE_CONTEXT) {
                provided.insert(name.clone(), self.as_context(input).await?);
            }
        }
        let is_elsewhere = match &context {
            BuildContext::Remote(remote) => {
                let main = build.fetch_main(remote).await?;
                build.set_main(main);
                true
            }
            BuildContext::Stream(_) => {
                let mut main = build.stream_context(context.clone()).await?;
                if !dockerfile.subdir.is_empty() {
                    main.files = Arc::new(Below::open(main.files, &dockerfile.subdir)?);
                }
                provided.insert(MAIN_CONTEXT.to_owned(), main.files.clone());
                build.set_main(main);
                true
            }
            BuildContext::Directory(_) | BuildContext::Empty => false,
        };
        if !provided.is_empty() {
            let session = build.session.clone();
            build.session = Arc::new(ProvidedContexts { session, contexts: provided });
        }
        let text = match (is_elsewhere, &dockerfile.context) {
            (true, None) => build.remote_dockerfile(dockerfile.name.clone()).await?,
            (_, context) => {
                let context = context.as_deref().unwrap_or(DOCKERFILE_CONTEXT);
                build.session_dockerfile(context, dockerfile.name.as_deref()).await?
            }
        };
        build.name_session_contexts(&dockerfile.inputs).await?;
        Ok((build, text))
    }

    /// The files of a result as a context.
    async fn as_context(&self, result: &JobResult) -> Result<Arc<dyn Context>, EngineError> {
        let tree = self.tree(result).await?;
        let layers = self.solved(result).await?.result.layers();
        let identity = format!("result:{}", layers.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
        Ok(Arc::new(TreeContext { tree, identity }))
    }

    /// Finds out what an image's name stands for.
    ///
    /// # Errors
    /// There is no such image, or the registry fails.
    pub async fn resolve_image(
        &self,
        reference: &Reference,
        platform: &Platform,
        mode: ResolveMode,
        step: &str,
    ) -> Result<JobSource, EngineError> {
        let shown = ShownStep::start(self.session().events(), step);
        let found = shown.end(self.0.images().image(reference, platform, mode).await)?;
        Ok(JobSource { digest: found.digest, config: found.config })
    }

    /// Finds out what an image in a layout of the session is; the digest is that by which the layout has it.
    ///
    /// # Errors
    /// The source is no such layout, the session has none, or nothing in it has that digest.
    pub async fn resolve_layout(
        &self,
        source: &forge_buildkit_proto::pb::SourceOp,
        platform: &Platform,
        step: &str,
    ) -> Result<JobSource, EngineError> {
        let layout = match forge_buildkit_proto::decode_source(source) {
            Ok(SourceOp::OciLayout(layout)) => layout,
            Ok(_) => return Err(EngineError::new(ErrorKind::UserInput, "the source is no OCI layout")),
            Err(error) => return Err(EngineError::caused(error.kind(), error)),
        };
        let shown = ShownStep::start(self.session().events(), step);
        let found = self.0.images().layout(&layout.name, layout.tag.as_deref(), layout.digest.as_ref(), platform).await;
        let found = shown.end(found)?;
        Ok(JobSource { digest: found.root, config: found.config })
    }

    /// What a registry says of an image besides its files: `None` where the name stands for no index. `statements` are the
    /// predicate types of the statements that are read.
    ///
    /// # Errors
    /// There is no such image, or the registry fails.
    pub async fn attestation_chain(
        &self,
        reference: &Reference,
        platform: &Platform,
        statements: &[String],
        step: &str,
    ) -> Result<Option<AttestationChain>, EngineError> {
        let shown = ShownStep::start(self.session().events(), step);
        Ok(shown.end(self.0.images().attestation_chain(reference, platform, statements).await)?)
    }

    /// What can be told of a source that is no image; what steps of this build see of it is the same then.
    ///
    /// # Errors
    /// It cannot be read, reached or found.
    pub async fn source_facts(
        &self,
        source: &forge_buildkit_proto::pb::SourceOp,
        objects: ReadObjects,
        step: &str,
    ) -> Result<SourceFacts, EngineError> {
        let source = forge_buildkit_proto::decode_source(source);
        let source = source.map_err(|error| EngineError::caused(error.kind(), error))?;
        if matches!(source, SourceOp::Local(_) | SourceOp::Image(_) | SourceOp::OciLayout(_)) {
            return Ok(SourceFacts::Nothing);
        }
        let shown = ShownStep::start(self.session().events(), step);
        let worker = self.0.local_worker().await?;
        Ok(shown.end(worker.source_facts(&source, objects, self.session()).await)?)
    }

    /// Runs what a result needs.
    ///
    /// # Errors
    /// A step fails.
    pub async fn evaluate(&self, result: &JobResult) -> Result<(), EngineError> {
        self.solved(result).await.map(drop)
    }

    /// Runs what results need. Whether a failure stops the others is what the request says.
    ///
    /// # Errors
    /// A step fails; it is the first one that does, or the first result's.
    pub async fn evaluate_all(&self, results: impl Iterator<Item = &JobResult>) -> Result<(), EngineError> {
        let evaluating = results.map(|result| self.evaluate(result));
        match self.0.request.on_failure {
            OnFailure::CancelOthers => try_join_all(evaluating).await.map(drop),
            OnFailure::FinishOthers => join_all(evaluating).await.into_iter().collect(),
        }
    }

    pub(crate) async fn solved<'a>(&self, result: &'a JobResult) -> Result<&'a Solved, EngineError> {
        let Lazy { build, image, solved, remembered, .. } = &*result.0;
        solved
            .get_or_try_init(|| async {
                let solver = build.solver().await?;
                let session = build.session.clone();
                let solving = match remembered.clone() {
                    Some(remembered) => solver.solve_again(&image.graph, session, remembered).await,
                    None => solver.solve(&image.graph, session).await,
                };
                if let (Err(error), Some(failures)) = (&solving, &build.failures) {
                    failures.note(error, &image.graph);
                }
                match solving {
                    Ok(solved) => Ok(solved),
                    Err(error) => Err(result.failed(error).await),
                }
            })
            .await
    }

    /// The files of a result.
    ///
    /// # Errors
    /// A step fails, or the store cannot be read.
    pub async fn tree(&self, result: &JobResult) -> Result<MergedTree, EngineError> {
        let solved = self.solved(result).await?;
        let (store, layers) = (self.0.transfer.store.clone(), solved.result.layers().to_vec());
        self.0.engine.bring(&self.0.transfer, layers.clone()).await?;
        blocking(move || Ok(store.layers().tree(&layers)?)).await
    }

    /// Runs what images need and writes them where the request wants them, as [`Engine::build`] does.
    ///
    /// # Errors
    /// A step fails, or an output cannot be written.
    pub async fn export(&self, mut request: BuildRequest, images: &[JobImage]) -> Result<BuildOutcome, EngineError> {
        request.platforms = images.iter().map(|image| image.platform.clone()).collect();
        crate::plausible::check(&request)?;
        let build = self.0.fork(request);
        let results = try_join_all(images.iter().map(|image| self.platform_result(image))).await?;
        build.export(results, Vec::new()).await
    }

    /// Waits, within bounds, until the shared caches have what this build made; gives back the document that names it all,
    /// where there is one. To be called last.
    ///
    /// # Errors
    /// Something was not sent to a cache that is required; a step fails, where it was not run yet.
    pub async fn finish_caches(&self, images: &[JobImage]) -> Result<Option<Descriptor>, EngineError> {
        let mut stacks = Vec::new();
        for result in images.iter().filter_map(|image| image.result.as_ref()) {
            stacks.push(self.solved(result).await?.result.layers().to_vec());
        }
        self.0.finish_caches(&stacks).await
    }

    /// Asks further caches from now on: for a build that may come to do so.
    ///
    /// # Errors
    /// One cannot be used.
    pub async fn ask_also(&self, imports: &[CacheImport]) -> Result<(), EngineError> {
        self.0.ask_also(imports).await
    }

    async fn platform_result(&self, image: &JobImage) -> Result<PlatformResult, EngineError> {
        let (graph, solved) = match &image.result {
            Some(result) => (result.0.image.graph.clone(), self.solved(result).await?.clone()),
            None => {
                let result = forge_cache::ResultRef::Layers(Vec::new());
                (Graph::new(), Solved { result, steps: Vec::new() })
            }
        };
        let lowered = LoweredImage {
            config: image.config.clone(),
            source_date_epoch: image.source_date_epoch,
            ..self.0.image_of(graph, &image.platform, false)?
        };
        let (platform, said) = (image.platform.clone(), image.said.clone());
        Ok(PlatformResult { lowered, solved, platform, said, missing_history: image.missing_history })
    }

    /// A build as one that somebody steers.
    pub(crate) fn of(build: Build) -> Self {
        Self(Arc::new(build))
    }

    /// The build itself.
    pub(crate) fn build(&self) -> &Build {
        &self.0
    }

    pub(crate) fn shared_build(&self) -> &Arc<Build> {
        &self.0
    }

    /// What a further graph makes that stands on a result.
    pub(crate) fn result_of(&self, result: &JobResult, graph: Graph, no_cache: bool) -> Result<JobResult, EngineError> {
        let build = result.0.build.clone();
        let image = build.image_of(graph, &Platform::host(), no_cache)?;
        let text = SourceTexts::Definition(Vec::new());
        Ok(JobResult(Arc::new(Lazy { build, image, text, remembered: None, solved: OnceCell::new() })))
    }

    /// The files of what is said of an image, as they lie beside its own.
    ///
    /// # Errors
    /// A file cannot be read, or two statements have the same name.
    pub async fn statement_files(
        &self,
        image: &JobImage,
        tree: MergedTree,
        prefix: &str,
        platform: Option<Platform>,
    ) -> Result<Vec<StatementFile>, EngineError> {
        let named =
            |said: &Attestation| Attestation { file_name: format!("{prefix}{}", said.file_name), ..said.clone() };
        let said: Vec<Attestation> = image.said.iter().map(named).collect();
        blocking(move || Ok(forge_exporter::statement_files(&tree, &said, platform.as_ref())?)).await
    }

    /// The config that an image has about which nothing is said.
    pub fn default_config(platform: &Platform) -> ImageConfig {
        crate::definition::default_config(platform)
    }

    /// The error of a build as BuildKit's clients know it.
    pub fn unsolved(error: EngineError) -> EngineError {
        unsolved(error)
    }
}

/// A result that is a context is copied: it lies elsewhere, and nothing but a step can read it.
fn with_copied_context(mut graph: Graph) -> Result<Graph, EngineError> {
    let Some(goal) = graph.goal().cloned() else { return Ok(graph) };
    let is_context = matches!(graph.get(&goal.vertex).map(|vertex| &vertex.op), Some(Op::Source(SourceOp::Local(_))));
    if !is_context {
        return Ok(graph);
    }
    let failed = |error| EngineError::caused(ErrorKind::Internal, error);
    let copy = CopyAction::new(FileInput::Input(0), vec!["/".to_owned()], "/");
    let action = FileAction { base: FileInput::Scratch, kind: FileKind::Copy(copy) };
    let vertex = Vertex {
        op: Op::File(FileOp { actions: vec![action] }),
        inputs: vec![goal],
        platform: None,
        metadata: Metadata { name: "copying the context".to_owned(), ..Metadata::default() },
    };
    let copied = graph.add(vertex).map_err(failed)?;
    graph.set_goal(Some(copied)).map_err(failed)?;
    Ok(graph)
}
