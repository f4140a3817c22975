//! One build: Dockerfile, graph, solution, outputs.

mod lowering;
mod refusal;
mod solving;

pub(crate) use lowering::{ignore_patterns, is_true, no_input};
pub(crate) use refusal::{refused, step_failed, unsolved};
pub(crate) use solving::count;

use crate::context::{MAIN_CONTEXT, MainContext, open_folder};
use crate::dockerfile::read_from_context;
use crate::engine::{Engine, blocking, briefly, until_cancelled};
use crate::failed_steps::FailedSteps;
use crate::handed::Handed;
use crate::job::DOCKERFILE_CONTEXT;
use crate::remote::GitDefaults;
use crate::source_guard::{RuleGuard, SourceGuard};
use crate::{
    BuildContext, BuildOutcome, BuildRequest, DockerfileSource, EngineError, NamedContext, entitlements, plausible,
};
use forge_cache::remote::SharedCache;
use forge_exporter::{Attestation, BuiltImage, MissingHistory};
use forge_frontend::LoweredImage;
use forge_image::Platform;
use forge_registry::TransferContext;
use forge_session::{Context, ContextPath, EventSink, Session};
use forge_solver::{OnFailure, Solved, Solver};
use forge_worker::{ImageResolver, LocalWorker};
use futures_util::future::{join_all, try_join_all};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

impl Engine {
    /// Builds what a Dockerfile says and puts the result where the request wants it.
    ///
    /// # Errors
    /// The Dockerfile is refused, a step fails, or an output cannot be written. No name of the store is given or
    /// moved then, but the steps that succeeded stay in the cache.
    pub async fn build(
        &self,
        request: BuildRequest,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<BuildOutcome, EngineError> {
        plausible::check(&request)?;
        let build = async { Build::start(self, request, events, cancel).await?.run().await.map_err(unsolved) };
        let (built, notice) = self.collecting(build).await;
        built.map(|outcome| outcome.with_notice(notice)).map_err(|error| self.explain_full_disk(error))
    }
}

/// A build at work.
pub(crate) struct Build {
    pub engine: Engine,
    pub request: BuildRequest,
    pub session: Arc<dyn Session>,
    pub transfer: TransferContext,
    images: Arc<ImageResolver>,
    main: Arc<MainContext>,
    named: BTreeMap<String, forge_frontend::NamedContext>,
    /// The name that steps see of their machine; empty for the usual one.
    pub hostname: String,
    solver: Arc<OnceCell<Solver>>,
    /// The solver's own, for what is asked beside the graph.
    worker: Arc<OnceLock<Arc<LocalWorker>>>,
    /// Made with the solver too; `None` where the build shares none.
    shared_cache: Arc<OnceLock<Option<Arc<SharedCache>>>>,
    /// The contexts that were read beside the graph.
    locals: Arc<Mutex<BTreeSet<String>>>,
    /// What there is of steps that failed; `None` where nobody can look at it.
    pub failures: Option<Arc<FailedSteps>>,
    /// Who judges what the build is made of.
    pub guard: Option<Arc<dyn SourceGuard>>,
}

/// What was built for one platform.
pub(crate) struct PlatformResult {
    pub lowered: LoweredImage,
    pub solved: Solved,
    pub platform: Platform,
    /// What is said of it.
    pub said: Vec<Attestation>,
    /// What its config's history may lack.
    pub missing_history: MissingHistory,
}

impl Build {
    /// Opens everything that the build reads, and fetches the main context where it is elsewhere.
    pub(crate) async fn start(
        engine: &Engine,
        request: BuildRequest,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<Self, EngineError> {
        engine.expect_index();
        let opened = engine.clone();
        let stop = cancel.clone();
        let is_stream = matches!(request.context, BuildContext::Stream(_));
        let open = move || Self::open(opened, request, events, cancel);
        let mut build = match is_stream {
            // It may never end.
            true => until_cancelled(&stop, blocking(open)).await?,
            false => briefly(open).await?,
        };
        if let BuildContext::Remote(remote) = &build.request.context {
            let main = Box::pin(build.fetch_main(remote)).await.map_err(unsolved)?;
            build.main = Arc::new(main);
        }
        Ok(build)
    }

    fn open(
        engine: Engine,
        request: BuildRequest,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<Self, EngineError> {
        let main = MainContext::open(&request.context, engine.store(), &*events, &cancel)?;
        let modes = request.context_modes;
        let mut contexts = BTreeMap::from([(MAIN_CONTEXT.to_owned(), modes.of(main.files.clone()))]);
        let (mut named, mut layouts) = (BTreeMap::new(), BTreeMap::new());
        for (name, context) in &request.named_contexts {
            let lowered = match context {
                NamedContext::Image(reference) => forge_frontend::NamedContext::Image(reference.clone()),
                NamedContext::Directory(folder) => {
                    let context = open_folder(folder)?;
                    let exclude = ignore_patterns(&read_from_context(&*context, ".dockerignore")?.unwrap_or_default())?;
                    contexts.insert(name.clone(), modes.of(context));
                    forge_frontend::NamedContext::Local { name: name.clone(), exclude }
                }
                NamedContext::OciLayout { path, tag, digest } => {
                    layouts.insert(name.clone(), path.clone());
                    let (name, tag, digest) = (name.clone(), tag.clone(), digest.clone());
                    forge_frontend::NamedContext::OciLayout { name, tag, digest }
                }
                NamedContext::Remote(remote) => remote.lowered(GitDefaults::default()),
                NamedContext::Stage(stage) => forge_frontend::NamedContext::Stage(stage.clone()),
                NamedContext::Scratch => forge_frontend::NamedContext::Scratch,
                NamedContext::Input { name, .. } => return Err(no_input(name)),
            };
            named.insert(name.clone(), lowered);
        }
        let handed = Handed::new(request.secrets.clone(), &request.ssh)?;
        let session = engine.session(contexts, handed, events, cancel);
        Self::with(engine, request, session, main, named, layouts)
    }

    /// Puts a build together from what was opened.
    pub(crate) fn with(
        engine: Engine,
        request: BuildRequest,
        session: Arc<dyn Session>,
        main: MainContext,
        named: BTreeMap<String, forge_frontend::NamedContext>,
        layouts: BTreeMap<String, std::path::PathBuf>,
    ) -> Result<Self, EngineError> {
        let transfer = engine.transfer_now(session.clone(), "[internal] fetching images")?;
        let rules = Some(request.source_policies.clone()).filter(|rules| !rules.is_empty());
        let guard = rules.map(|rules| Arc::new(RuleGuard(rules)) as Arc<dyn SourceGuard>);
        let images = Arc::new(ImageResolver::new(transfer.clone(), engine.registry()?, layouts));
        Ok(Self {
            engine,
            request,
            session,
            transfer,
            images,
            main: Arc::new(main),
            named,
            hostname: String::new(),
            solver: Arc::default(),
            worker: Arc::default(),
            shared_cache: Arc::default(),
            locals: Arc::default(),
            failures: None,
            guard,
        })
    }

    /// The same build for another request: what was found out so far holds for both.
    pub(crate) fn fork(&self, request: BuildRequest) -> Self {
        Self {
            engine: self.engine.clone(),
            request,
            session: self.session.clone(),
            transfer: self.transfer.clone(),
            images: self.images.clone(),
            main: self.main.clone(),
            named: BTreeMap::new(),
            hostname: String::new(),
            solver: self.solver.clone(),
            worker: self.worker.clone(),
            shared_cache: self.shared_cache.clone(),
            locals: Arc::default(),
            failures: self.failures.clone(),
            guard: self.guard.clone(),
        }
    }

    pub(crate) fn images(&self) -> &ImageResolver {
        &self.images
    }

    /// Whether the context is nothing but a Dockerfile.
    pub(crate) fn has_own_dockerfile(&self) -> bool {
        self.main.dockerfile.is_some()
    }

    pub(crate) fn set_main(&mut self, main: MainContext) {
        self.main = Arc::new(main);
    }

    pub(crate) fn name_context(&mut self, name: String, context: forge_frontend::NamedContext) {
        self.named.insert(name, context);
    }

    async fn run(self) -> Result<BuildOutcome, EngineError> {
        let text = self.load_dockerfile().await?;
        let dockerfile = forge_frontend::parse(&text.name, &text.text).map_err(|error| refused(&error, &text))?;
        let ignore = self.load_ignore_patterns().await?;
        self.note_own_files();
        let platforms = self.platforms();
        let lowered = platforms.iter().map(|platform| self.lower(&dockerfile, &text, &ignore, platform));
        let lowered = try_join_all(lowered).await?;
        lowered.iter().try_for_each(|image| entitlements::check(image, &self.request, &text))?;
        let warnings = self.report(&lowered[0], &text);
        let solver = self.solver().await?;
        let read = (&dockerfile, &text);
        let solved = lowered.iter().zip(&platforms).map(|(image, platform)| self.solve(solver, image, read, platform));
        let solved = match self.request.on_failure {
            OnFailure::CancelOthers => try_join_all(solved).await,
            OnFailure::FinishOthers => join_all(solved).await.into_iter().collect::<Result<_, _>>(),
        };
        let solved = match solved {
            Ok(solved) => solved,
            Err(error) => {
                self.finish_caches_of_failure().await;
                return Err(error);
            }
        };
        let parts = platforms.into_iter().zip(lowered).zip(solved);
        let results = parts.map(|((platform, lowered), solved)| {
            let said = Vec::new();
            PlatformResult { lowered, solved, platform, said, missing_history: MissingHistory::Lowest }
        });
        let results = self.attested(results.collect(), &text).await?;
        self.worker.get().inspect(|worker| worker.contexts().forget());
        self.transfer.store.layers().forget_folds();
        let stacks: Vec<_> = results.iter().map(|result| result.solved.result.layers().to_vec()).collect();
        let outcome = self.export(results, warnings).await?;
        self.finish_caches(&stacks).await?;
        Ok(outcome)
    }

    /// What the Dockerfile calls a layout.
    pub(crate) fn layout_context(&self, layout: &str) -> Option<&str> {
        let is_it = |context: &forge_frontend::NamedContext| match context {
            forge_frontend::NamedContext::OciLayout { name, .. } => name == layout,
            _ => false,
        };
        self.named.iter().find(|(_, context)| is_it(context)).map(|(name, _)| name.as_str())
    }

    /// Notes the contexts that the Dockerfile and the ignore file are from, where these are the user's own files.
    fn note_own_files(&self) {
        let is_own = matches!(self.request.context, BuildContext::Directory(_) | BuildContext::Stream(_));
        let has_own_dockerfile = match self.request.dockerfile {
            DockerfileSource::File(_) | DockerfileSource::Inline(_) => true,
            DockerfileSource::Default | DockerfileSource::InContext(_) => is_own,
            DockerfileSource::Remote(_) => false,
        };
        let noted = [(MAIN_CONTEXT, is_own), (DOCKERFILE_CONTEXT, has_own_dockerfile)];
        noted.iter().filter(|(_, is_read)| *is_read).for_each(|(name, _)| self.note_local(name));
    }

    /// Notes that a context was read.
    pub(crate) fn note_local(&self, name: &str) {
        self.locals.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
    }

    /// The contexts that were read beside the graph.
    pub(crate) fn locals_read(&self) -> BTreeSet<String> {
        self.locals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The worker that the solver works with.
    pub(crate) async fn local_worker(&self) -> Result<&Arc<LocalWorker>, EngineError> {
        self.solver().await?;
        Ok(self.worker.get().expect("it was made with the solver"))
    }

    /// The platforms that are built for.
    pub(crate) fn platforms(&self) -> Vec<Platform> {
        match self.request.platforms.as_slice() {
            [] => vec![Platform::host()],
            platforms => platforms.to_vec(),
        }
    }

    /// The files of the main context, where they are the user's own.
    pub(crate) fn main_files(&self) -> Option<Arc<dyn Context>> {
        matches!(self.request.context, BuildContext::Directory(_)).then(|| self.main.files.clone())
    }

    /// What steps read of the main context, as far as that was looked at.
    pub(crate) fn used_files(&self) -> HashSet<ContextPath> {
        self.worker.get().map(|worker| worker.contexts().read_of(MAIN_CONTEXT)).unwrap_or_default()
    }
}

impl PlatformResult {
    /// What the exporter takes.
    pub(crate) fn built(&self) -> BuiltImage {
        BuiltImage {
            platform: self.platform.clone(),
            layers: self.solved.result.layers().to_vec(),
            config: self.lowered.config.clone(),
            missing_history: self.missing_history,
        }
    }
}
