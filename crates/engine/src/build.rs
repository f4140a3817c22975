//! One build: Dockerfile, graph, solution, outputs.

use crate::context::{MAIN_CONTEXT, MainContext, open_folder};
use crate::dockerfile::{DockerfileText, read_dockerfile, read_from_context, read_ignore_file};
use crate::emulation;
use crate::engine::{Engine, blocking, until_cancelled};
use crate::entitlements;
use crate::error::work_hint;
use crate::excerpt::{SourceLines, excerpt};
use crate::failed_steps::FailedSteps;
use crate::handed::Handed;
use crate::job::DOCKERFILE_CONTEXT;
use crate::limits::BoundedExecutor;
use crate::missing;
use crate::plausible;
use crate::remote::GitDefaults;
use crate::source_guard::{RuleGuard, SourceGuard, ToldSources};
use crate::steps::ShownStep;
use crate::{
    BuildContext, BuildOutcome, BuildRequest, DockerfileSource, EngineError, NamedContext, Network, SourcePlace,
    StepCounts,
};
use forge_cache::BuildId;
use forge_cache::remote::{RemoteCache, RemoteMounts, SharedCache};
use forge_exporter::{Attestation, BuiltImage, MissingHistory};
use forge_frontend::{
    Arguments, Dockerfile, FrontendError, ImageKeySource, ImageRequest, Instruction, LowerOptions, Lowered,
    LoweredImage, Problem, ResolvedImage, ResolvedImages, SourceTime, TimeRequest, Warning,
};
use forge_image::{Digest, ErrorKind, ImageConfig, Platform, chain};
use forge_llb::{ExtraHost, ImageSource, NetworkMode, ResolveMode, SourceOp, without_credentials};
use forge_registry::TransferContext;
use forge_session::{Context, ContextPath, Event, EventSink, Session, SourceSpan, WarningNotice};
use forge_solver::{OnFailure, Remembered, SolveError, Solved, Solver, WorkerError};
use forge_worker::{ImageResolver, LocalResults, LocalWorker, WorkError};
use futures_util::future::{join_all, try_join_all};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

/// What users see while the Dockerfile is read. What the checks find belongs to this step.
const LOAD_DOCKERFILE: &str = "[internal] load build definition from Dockerfile";

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

/// The error of a build as BuildKit's clients know it: they look for these words.
pub(crate) fn unsolved(error: EngineError) -> EngineError {
    match error.kind() {
        ErrorKind::Cancelled => error,
        _ => error.context("failed to solve"),
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
        // A stream may never end.
        let mut build = until_cancelled(&stop, blocking(move || Self::open(opened, request, events, cancel))).await?;
        if let BuildContext::Remote(remote) = &build.request.context {
            let main = build.fetch_main(remote).await.map_err(unsolved)?;
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

    pub(crate) async fn load_dockerfile(&self) -> Result<DockerfileText, EngineError> {
        let source = match &self.request.dockerfile {
            DockerfileSource::Remote(remote) => return self.fetch_dockerfile(remote).await,
            source => source.clone(),
        };
        self.load_dockerfile_from(source).await
    }

    pub(crate) async fn load_dockerfile_from(&self, source: DockerfileSource) -> Result<DockerfileText, EngineError> {
        let main = self.main.clone();
        let shown = ShownStep::start(self.session.events(), LOAD_DOCKERFILE);
        shown.end(blocking(move || read_dockerfile(&source, &main)).await)
    }

    pub(crate) async fn load_ignore_patterns(&self) -> Result<Vec<String>, EngineError> {
        let (source, main) = (self.request.dockerfile.clone(), self.main.clone());
        let shown = ShownStep::start(self.session.events(), "[internal] load .dockerignore");
        shown.end(blocking(move || ignore_patterns(&read_ignore_file(&source, &main)?.text)).await)
    }

    /// Lowers until nothing more must be known of images.
    pub(crate) async fn lower(
        &self,
        dockerfile: &Dockerfile,
        text: &DockerfileText,
        ignore: &[String],
        platform: &Platform,
    ) -> Result<LoweredImage, EngineError> {
        let mut options = self.lower_options(ignore, platform);
        let mut known = ResolvedImages::new();
        loop {
            match forge_frontend::lower(dockerfile, &options, &known).map_err(|error| refused(&error, text))? {
                Lowered::Done(image) => {
                    let graph = self.guarded_graph(image.graph, &ToldSources::new()).await?;
                    return Ok(LoweredImage { graph, ..*image });
                }
                Lowered::NeedTime(request) => options.source_time = self.source_time(&request).await?,
                Lowered::Need(requests) => {
                    let found = requests.iter().map(|request| self.resolve(request, text));
                    let found = try_join_all(found).await?;
                    known.extend(requests.into_iter().map(|request| request.key).zip(found));
                }
            }
        }
    }

    /// Finds out when the source was made that `SOURCE_DATE_EPOCH` names.
    async fn source_time(&self, request: &TimeRequest) -> Result<SourceTime, EngineError> {
        let worker = self.local_worker().await?;
        let shown = ShownStep::start(self.session.events(), &request.step);
        let source = self.guarded_source(&request.source, &Platform::host()).await?;
        let time = worker.source_time(&source, &self.session).await.map_err(|error| {
            let hint = work_hint(&error);
            let error = EngineError::caused(error.kind(), error);
            hint.into_iter().fold(error, EngineError::with_hint)
        });
        Ok(match shown.end(time)? {
            Some(time) => SourceTime::Seconds(seconds(time)),
            None => SourceTime::None,
        })
    }

    /// Whether the result is an index even for one platform: the build argument `BUILDKIT_MULTI_PLATFORM` says so.
    pub(crate) fn wants_index(&self) -> bool {
        self.request.build_args.get("BUILDKIT_MULTI_PLATFORM").is_some_and(|value| is_true(value))
    }

    pub(crate) fn lower_options(&self, ignore: &[String], platform: &Platform) -> LowerOptions {
        let request = &self.request;
        LowerOptions {
            target: request.target.clone(),
            build_args: request.build_args.clone(),
            labels: request.labels.clone(),
            platform_requested: !request.platforms.is_empty(),
            build_platform: Platform::host(),
            no_cache: request.no_cache,
            no_cache_stages: request.no_cache_stages.clone(),
            allow_in_triggers: request.allowed.in_triggers.clone(),
            pull: request.pull,
            network: match request.network {
                Network::Default => NetworkMode::Default,
                Network::Host => NetworkMode::Host,
                Network::None => NetworkMode::None,
            },
            main_context: self.main.lowered(ignore),
            named_contexts: self.named.clone(),
            proxy_env: request.proxy_env.clone(),
            source_date_epoch: request.source_date_epoch,
            multi_platform: request.platforms.len() > 1 || self.wants_index(),
            extra_hosts: request
                .extra_hosts
                .iter()
                .map(|(host, address)| ExtraHost { host: host.clone(), address: address.clone() })
                .collect(),
            ulimits: request.limits.ulimits.clone(),
            cgroup_parent: request.limits.cgroup_parent.clone(),
            shm_size: request.limits.shm_size,
            hostname: self.hostname.clone(),
            scans: request.attest.sbom.is_some(),
            ..LowerOptions::new(platform.clone())
        }
    }

    pub(crate) async fn resolve(
        &self,
        wanted: &ImageRequest,
        text: &DockerfileText,
    ) -> Result<ResolvedImage, EngineError> {
        let shown = ShownStep::start(self.session.events(), &wanted.step);
        let platform = &wanted.key.platform;
        let replaced = match self.guarded_image(&wanted.key.source, platform).await {
            Ok(replaced) => replaced,
            Err(error) => return shown.end(Err(unresolved(wanted, text, error))),
        };
        let found = match (&replaced, &wanted.key.source) {
            (Some(SourceOp::Image(image)), _) => {
                let reference = image
                    .pinned
                    .clone()
                    .map_or_else(|| image.reference.clone(), |digest| image.reference.with_digest(digest));
                self.images.image(&reference, platform, image.resolve).await
            }
            (Some(SourceOp::OciLayout(layout)), _) => {
                self.images.layout(&layout.name, layout.tag.as_deref(), layout.digest.as_ref(), platform).await
            }
            // Files that are no image have no config.
            (Some(_), _) => {
                let (digest, config) = (Digest::sha256(b""), ImageConfig::new(platform));
                return shown.end(Ok(ResolvedImage { digest, config, replaced }));
            }
            (None, ImageKeySource::Image(reference)) => {
                let mode = if self.request.pull { ResolveMode::ForcePull } else { ResolveMode::PreferLocal };
                self.images.image(reference, platform, mode).await
            }
            (None, ImageKeySource::OciLayout { name, tag, digest }) => {
                self.images.layout(name, tag.as_deref(), digest.as_ref(), platform).await
            }
        };
        let found = shown.end(found).map_err(|error| unresolved(wanted, text, error.into()))?;
        let replaced = replaced.map(|source| match source {
            SourceOp::Image(image) => SourceOp::Image(ImageSource { pinned: Some(found.digest.clone()), ..image }),
            other => other,
        });
        Ok(ResolvedImage { digest: found.digest, config: found.config, replaced })
    }

    /// Tells the user what the checks found.
    pub(crate) fn report(&self, lowered: &LoweredImage, text: &DockerfileText) -> Vec<WarningNotice> {
        let source = String::from_utf8_lossy(&text.text);
        let lines = SourceLines::new(&text.name, &source);
        let mut notices: Vec<WarningNotice> =
            lowered.warnings.iter().map(|warning| notice(warning, &text.name, &lines)).collect();
        if !lowered.unused_build_args.is_empty() {
            let names = lowered.unused_build_args.join(" ");
            notices.push(plain_notice(format!("One or more build-args [{names}] were not consumed")));
        }
        let triggers = lowered.triggers.iter();
        notices
            .extend(triggers.map(|trigger| plain_notice(format!("the base image's ONBUILD trigger runs: {trigger}"))));
        for notice in &notices {
            self.session.events().emit(Event::Warning(notice.clone()));
        }
        notices
    }

    /// Made when first needed. There is one for a build, so that a source is asked once.
    pub(crate) async fn solver(&self) -> Result<&Solver, EngineError> {
        self.solver.get_or_try_init(|| self.new_solver()).await
    }

    async fn new_solver(&self) -> Result<Solver, EngineError> {
        let (transfer, images) = (self.transfer.clone(), self.images.clone());
        let (on_failure, max_parallelism) = (self.request.on_failure, self.request.max_parallelism);
        let (caches, renews) = (self.request.caches.clone(), self.request.renew_cache_mounts);
        let keeps = self.failures.is_some();
        let (each, together) = (self.request.limits.resources.clone(), self.request.total_limits.clone());
        let solver = self.engine.blocking(move |engine| {
            let shared = caches.open(engine, &transfer)?;
            let (store, lease) = (transfer.store, transfer.lease);
            let executor = Arc::new(BoundedExecutor::new(engine.clone(), each, together)?);
            let worker = LocalWorker::new(store.clone(), lease.clone(), executor, images.clone());
            let worker = worker.with_devices(&engine.options().device_folders);
            let worker = worker.with_shared_mounts(shared.clone().map(|shared| shared as Arc<dyn RemoteMounts>));
            let worker = if renews { worker.renewing_mounts() } else { worker };
            let worker = if keeps { worker.keeping_failures() } else { worker };
            let results = Arc::new(LocalResults::new(store, lease, worker.contexts()).fetching(images));
            let worker = Arc::new(worker.with_index(engine.index()?));
            let solver = Solver {
                worker: worker.clone(),
                results,
                index: engine.cache_index()?,
                remote: shared.clone().map(|shared| shared as Arc<dyn RemoteCache>),
                flights: engine.flights()?,
                max_parallelism: max_parallelism.or(engine.options().max_parallelism),
                on_failure,
            };
            Ok((worker, shared, solver))
        });
        let (worker, shared, solver) = solver.await?;
        // Nobody else sets it: the solver is made once.
        _ = self.worker.set(worker);
        _ = self.shared_cache.set(shared);
        Ok(solver)
    }

    /// The caches that the build shares, once there is a solver.
    pub(crate) fn shared_cache(&self) -> Option<Arc<SharedCache>> {
        self.shared_cache.get().cloned().flatten()
    }

    /// What the build is compared with: the last one of the same file, context, target and platform.
    pub(crate) fn remembered(&self, dockerfile: &Dockerfile, platform: &Platform) -> Remembered {
        let context = self.main.files.identity();
        let target = self.request.target.as_deref().unwrap_or_default();
        let shown = platform.to_string();
        let words = [context.as_bytes(), dockerfile.name().as_bytes(), target.as_bytes(), shown.as_bytes()];
        Remembered { id: BuildId::new(&words), arguments: arguments(dockerfile), explain: self.request.explain }
    }

    async fn solve(
        &self,
        solver: &Solver,
        image: &LoweredImage,
        (dockerfile, text): (&Dockerfile, &DockerfileText),
        platform: &Platform,
    ) -> Result<Solved, EngineError> {
        let remembered = self.remembered(dockerfile, platform);
        let error = match self.solve_and_send(solver, image, Some(remembered)).await {
            Ok(solved) => return Ok(solved),
            Err(error) => error,
        };
        Err(self.failed(error, image, text).await)
    }

    /// A step that failed, and what may have been meant.
    pub(crate) async fn failed(&self, error: SolveError, image: &LoweredImage, text: &DockerfileText) -> EngineError {
        let meant = self.explain_missing(&error, image).await.or_else(|| foreign_program(&error, image));
        let failed = step_failed(error, text);
        match meant {
            Some(hint) => failed.with_hint(hint),
            None => failed,
        }
    }

    /// What a step may have meant that did not find its files.
    async fn explain_missing(&self, error: &SolveError, image: &LoweredImage) -> Option<String> {
        let SolveError::Step { vertex, source, .. } = error else { return None };
        if source.kind() != ErrorKind::UserInput {
            return None;
        }
        let (graph, vertex, session) = (image.graph.clone(), vertex.clone(), self.session.clone());
        let (dockerfile, main) = (self.request.dockerfile.clone(), self.main.clone());
        let in_result = missing::explain_result(&graph, &vertex, source);
        let looked =
            blocking(move || missing::explain(&graph, &vertex, &*session, &read_ignore_file(&dockerfile, &main)?));
        // Another failure must not hide the one that is to be explained.
        looked.await.ok().flatten().or(in_result)
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

/// How many steps ran and how many did not have to. Sources count as neither.
pub(crate) fn count(results: &[PlatformResult]) -> StepCounts {
    let mut counts = StepCounts::default();
    for result in results {
        for step in &result.solved.steps {
            let is_source = matches!(
                result.lowered.graph.get(&step.digest).map(|vertex| &vertex.op),
                Some(forge_llb::Op::Source(_)) | None
            );
            match (is_source, step.cached) {
                (true, _) => {}
                (false, true) => counts.cached += 1,
                (false, false) => counts.executed += 1,
            }
        }
    }
    counts
}

fn name_of(definition: &str) -> String {
    definition.split('=').next().unwrap_or_default().to_owned()
}

/// The names of all build arguments.
fn arguments(dockerfile: &Dockerfile) -> BTreeSet<String> {
    let is_arg = |instruction: &&Instruction| instruction.keyword.text.eq_ignore_ascii_case("ARG");
    let names = |instruction: &Instruction| match &instruction.arguments {
        Arguments::Words(words) => words.iter().map(|word| name_of(&word.text)).collect(),
        _ => Vec::new(),
    };
    dockerfile.instructions().iter().filter(is_arg).flat_map(names).collect()
}

/// A result that nobody handed in.
pub(crate) fn no_input(name: &str) -> EngineError {
    EngineError::new(ErrorKind::UserInput, format!("invalid input {name} for build context: there is none"))
}

pub(crate) fn ignore_patterns(text: &[u8]) -> Result<Vec<String>, EngineError> {
    forge_frontend::ignore_patterns(text)
        .map_err(|error| EngineError::new(error.kind(), error.to_string()).context("cannot read the ignore file"))
}

/// A Dockerfile that was refused, with its lines.
pub(crate) fn refused(error: &FrontendError, text: &DockerfileText) -> EngineError {
    let drawn = error.render(&String::from_utf8_lossy(&text.text));
    let drawn = without_credentials(&drawn).into_owned();
    let mut failed = EngineError::new(error.kind(), error.to_string());
    if let Problem::Trigger { right, .. } = &*error.problem {
        failed = failed.with_hint(format!("allow it with --allow onbuild.{}", right.name()));
    }
    if let Problem::NotBuilt { .. } = &*error.problem {
        failed = failed.with_hint(
            "it is foreign code: allow it with enabled = true in [frontend.\"gateway.v0\"] of the configuration, for `forge build`",
        );
    }
    if let Some(span) = error.span {
        failed = failed.with_place(place(text, &text.name, span.first_line, span.last_line));
    }
    // The first line of the drawing is the message itself.
    match drawn.split_once('\n') {
        Some((_, picture)) if !picture.trim().is_empty() => failed.with_detail(picture),
        _ => failed,
    }
}

fn place(text: &DockerfileText, file: &str, first_line: u32, last_line: u32) -> SourcePlace {
    SourcePlace { file: file.to_owned(), data: text.text.clone(), first_line, last_line }
}

/// A stage or a common image that an image's name may have meant.
fn suggest_image(text: &DockerfileText, name: &str) -> Option<String> {
    let dockerfile = forge_frontend::parse(&text.name, &text.text).ok()?;
    forge_frontend::suggest_image(&dockerfile, name.strip_suffix(":latest").unwrap_or(name))
}

/// A step that failed, with its last lines of output and the instruction that it comes from.
pub(crate) fn step_failed(error: SolveError, text: &DockerfileText) -> EngineError {
    let SolveError::Step { vertex, name, span, source, .. } = error else {
        return EngineError::new(error.kind(), error.to_string());
    };
    let mut detail = String::new();
    if let WorkerError::Process { last_lines, .. } = &*source
        && !last_lines.is_empty()
    {
        detail = format!("------\n > {name}:\n{}\n------\n", last_lines.join("\n"));
    }
    if let Some(span) = &span {
        let source = String::from_utf8_lossy(&text.text);
        detail += &excerpt(&span.file, &source, span.first_line, span.last_line);
    }
    let mut failed = EngineError::new(source.kind(), chain(&*source)).with_detail(detail);
    failed = failed.with_vertex(vertex.digest().clone());
    if let Some(span) = span {
        failed = failed.with_place(place(text, &span.file, span.first_line, span.last_line));
    }
    match step_hint(&source) {
        Some(hint) => failed.with_hint(hint),
        None => failed,
    }
}

/// What is to be done where a step's program is one for another platform.
fn foreign_program(error: &SolveError, image: &LoweredImage) -> Option<String> {
    let SolveError::Step { vertex, source, .. } = error else { return None };
    let vertex = image.graph.get(vertex)?;
    let forge_llb::Op::Exec(_) = &vertex.op else { return None };
    let platform = vertex.platform.clone().unwrap_or_else(|| image.config.platform());
    emulation::hint(&platform, &chain(&**source))
}

/// The words that Go's `strconv.ParseBool` takes for true: build arguments that steer the builder are read so.
pub(crate) fn is_true(value: &str) -> bool {
    matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

fn step_hint(error: &WorkerError) -> Option<String> {
    let cause = match error {
        WorkerError::Other { source: Some(cause), .. } => cause.downcast_ref::<WorkError>(),
        _ => None,
    };
    error.hint().map(str::to_owned).or_else(|| cause.and_then(work_hint))
}

fn plain_notice(short: String) -> WarningNotice {
    WarningNotice { vertex: None, level: 1, short, detail: Vec::new(), url: None, span: None, excerpt: None }
}

/// Says of an image that cannot be had where the Dockerfile names it, in the words that BuildKit's clients look for.
fn unresolved(wanted: &ImageRequest, text: &DockerfileText, error: EngineError) -> EngineError {
    let (name, whole) = match &wanted.key.source {
        ImageKeySource::Image(reference) => (reference.familiar(), reference.to_string()),
        ImageKeySource::OciLayout { name, .. } => (name.clone(), name.clone()),
    };
    let lines = (wanted.span.first_line, wanted.span.last_line);
    let place = excerpt(&text.name, &String::from_utf8_lossy(&text.text), lines.0, lines.1);
    let told = match error.kind() {
        ErrorKind::Cancelled => error,
        _ => error.context(&format!("{name}: failed to resolve source metadata for {whole}")),
    };
    let told = told.with_place(self::place(text, &text.name, lines.0, lines.1));
    told.with_detail(place).with_suggestion(suggest_image(text, &name))
}

fn notice(warning: &Warning, file: &str, lines: &SourceLines<'_>) -> WarningNotice {
    let (first_line, last_line) = (warning.span.first_line, warning.span.last_line);
    WarningNotice {
        vertex: Some(ShownStep::digest_of(LOAD_DOCKERFILE)),
        level: 1,
        short: warning.to_string(),
        detail: vec![warning.rule.description().to_owned()],
        url: warning.url.clone(),
        span: Some(SourceSpan { file: file.to_owned(), first_line, last_line }),
        excerpt: Some(lines.excerpt(first_line, last_line)),
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_image::Digest;

    fn text(text: &str) -> DockerfileText {
        DockerfileText { name: "Dockerfile".to_owned(), text: text.into() }
    }

    #[test]
    fn a_refused_dockerfile_says_its_message_once() {
        let text = text("FROM scratch\nRUM x\n");
        let dockerfile = forge_frontend::parse(&text.name, &text.text).unwrap();
        let options = LowerOptions::new(Platform::host());
        let error = forge_frontend::lower(&dockerfile, &options, &ResolvedImages::new()).unwrap_err();
        let shown = refused(&error, &text);
        assert!(shown.to_string().contains("unknown instruction: RUM"), "{shown}");
        assert_eq!(shown.detail().unwrap(), " --> Dockerfile:2:1\n  |\n2 | RUM x\n  | ^^^ did you mean RUN?\n");
    }

    fn failed_step(source: WorkerError) -> EngineError {
        let vertex = forge_llb::VertexDigest::new(Digest::sha256(b"x"));
        let error =
            SolveError::Step { vertex, name: "[1/1] RUN x".into(), span: None, failed: None, source: Box::new(source) };
        step_failed(error, &text("FROM scratch\nRUN x\n"))
    }

    #[test]
    fn a_failed_step_tells_its_cause_and_what_to_do() {
        let offline = || forge_registry::RegistryError::Offline { registry: "r.test".into() };
        let shown = failed_step(WorkError::Fetch(offline().into()).into());
        assert_eq!(shown.to_string(), "cannot reach registry r.test: offline");
        assert!(shown.hint().is_some_and(|hint| hint.contains("--offline")), "{shown:?}");
        let cause = std::io::Error::other("disk on fire");
        let kind = ErrorKind::Environment;
        let message = "the build cache failed".to_owned();
        let shown = failed_step(WorkerError::Other { kind, message, source: Some(cause.into()), hint: None });
        assert_eq!(shown.to_string(), "the build cache failed: disk on fire");
    }

    #[test]
    fn the_last_words_of_a_step_are_shown() {
        let last_lines = vec!["one".to_owned(), "two".to_owned()];
        let shown = failed_step(WorkerError::Process { exit: 3, message: "exit code: 3".into(), last_lines });
        assert_eq!(shown.to_string(), "exit code: 3");
        assert_eq!(shown.detail().unwrap(), "------\n > [1/1] RUN x:\none\ntwo\n------\n");
    }
}
