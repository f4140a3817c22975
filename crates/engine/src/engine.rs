use crate::expected::ExpectedContainer;
use crate::handed::Handed;
use crate::session::LocalSession;
use crate::steps::ShownStep;
use crate::{EngineError, EngineInfo, EngineOptions, PullOutcome, PushOutcome};
use forge_cache::{CacheIndex, Flights, SqliteIndex};
use forge_executor::{Belongings, Executor, ExecutorError, NamespaceExecutor, RuntimeExecutor};
use forge_exporter::{ExportError, ExportSettings, ImageSet, Pushed};
use forge_image::{ErrorKind, Platform, Reference};
use forge_registry::{
    DockerConfig, HostOptions, LoginOutcome, ProxyOptions, Registry, RegistryOptions, RetryPolicy, Timeouts,
    TransferContext,
};
use forge_session::{Context, Credentials, EventSink, Redacted, Session};
use forge_store::{Store, Target};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;

/// The door to everything that forge can do. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Parts>);

struct Parts {
    options: EngineOptions,
    store: Store,
    // Made when first needed: a cached build needs no sandbox, `images` no registry.
    executor: OnceLock<Arc<dyn Executor>>,
    /// Holds what was started of it before the engine was opened, until somebody needs it.
    executor_turn: Mutex<Option<ExpectedContainer>>,
    registry: OnceLock<Arc<Registry>>,
    index: OnceLock<Arc<SqliteIndex>>,
    index_turn: Mutex<()>,
    flights: OnceLock<Arc<Flights>>,
}

/// Runs blocking work beside the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(work).await?
}

/// The same for what is mostly over before another thread would have begun it.
pub(crate) async fn briefly<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    forge_session::at_once(work).await?
}

/// Waits for work, but no longer than somebody wants its result. Blocking work that was begun ends by itself.
///
/// The work is on the heap: a future that waits for one that it was handed has room for it twice.
pub(crate) fn until_cancelled<T, E: Into<EngineError>>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, EngineError>> {
    let work = Box::pin(work);
    async move {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(EngineError::cancelled()),
            done = work => done.map_err(Into::into),
        }
    }
}

/// The value of a cell, made by the first who asks. Two who ask at once may both make one; one of them is kept.
fn made<T: Clone, E>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    match cell.get() {
        Some(value) => Ok(value.clone()),
        None => make().map(|value| cell.get_or_init(|| value).clone()),
    }
}

impl Engine {
    /// Opens the store, making it where there is none.
    ///
    /// # Errors
    /// The store's folder cannot be used, or belongs to somebody else.
    pub fn open(options: EngineOptions) -> Result<Self, EngineError> {
        Self::open_expecting(options, None)
    }

    /// The same, for a command that began to make containers possible before.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_expecting(options: EngineOptions, expected: Option<ExpectedContainer>) -> Result<Self, EngineError> {
        let store = Store::open(&options.root)?.with_unpack_limits(options.intake.unpacked);
        let parts = Parts {
            options,
            store,
            executor: OnceLock::new(),
            executor_turn: Mutex::new(expected),
            registry: OnceLock::new(),
            index: OnceLock::new(),
            index_turn: Mutex::new(()),
            flights: OnceLock::new(),
        };
        Ok(Self(Arc::new(parts)))
    }

    /// How many steps of a build run at the same time; `None` for as many as there are.
    pub fn max_parallelism(&self) -> Option<usize> {
        self.0.options.max_parallelism
    }

    pub(crate) fn options(&self) -> &EngineOptions {
        &self.0.options
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    /// Runs blocking work with the engine beside the async threads.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let engine = self.clone();
        blocking(move || work(&engine)).await
    }

    pub(crate) fn executor(&self) -> Result<Arc<dyn Executor>, ExecutorError> {
        let directory = self.store().root().join("run");
        // Whoever needs it early and whoever needs it later should not start two.
        let mut expected = self.0.executor_turn.lock().unwrap_or_else(PoisonError::into_inner);
        made(&self.0.executor, || {
            let namespaces = Arc::new(match expected.take() {
                Some(expected) => NamespaceExecutor::with(expected.process()?, &directory)?,
                None => NamespaceExecutor::new(&directory)?,
            });
            Ok(match &self.options().oci_runtime {
                Some(runtime) => Arc::new(RuntimeExecutor::new(namespaces, runtime)),
                None => namespaces as Arc<dyn Executor>,
            })
        })
    }

    /// What makes containers, if any was asked for.
    pub(crate) fn started_executor(&self) -> Option<&Arc<dyn Executor>> {
        self.0.executor.get()
    }

    /// Says that no more containers will be made, so that what makes them ends beside the last one. Should this process be
    /// killed, that removes what the containers wrote.
    pub(crate) fn finish_containers(&self) {
        let Some(executor) = self.started_executor() else { return };
        // Where that cannot be told, the next forge removes it.
        let belongings = self.store().belongings().ok().flatten();
        executor.finish(belongings.map(|forge_store::Belongings { folder, mark, lock }| Belongings {
            folder,
            mark,
            lock,
        }));
    }

    /// What the sandboxes of this engine could not enforce; nothing if there were none.
    pub(crate) fn sandbox_notices(&self) -> Vec<String> {
        self.0.executor.get().map(|executor| executor.notices()).unwrap_or_default()
    }

    /// What a build's user is to know of what it ran on, one line each.
    pub(crate) fn build_notices(&self) -> Vec<String> {
        let mut notices = self.sandbox_notices();
        let emptied = self.0.index.get().and_then(|index| index.emptied());
        notices.extend(emptied.map(|format| {
            format!("the build cache of an earlier forge (format {format}) is of no use any more; a new one was begun")
        }));
        notices
    }

    /// The registry client; certificates are read when it is made.
    pub(crate) fn registry(&self) -> Result<Arc<Registry>, EngineError> {
        made(&self.0.registry, || Ok(Arc::new(Registry::new(registry_options(self.options()))?)))
    }

    /// A client that speaks plain HTTP to the registries of these names, for one output.
    pub(crate) fn plain_registry(&self, names: &[Reference]) -> Result<Arc<Registry>, EngineError> {
        let mut options = self.options().clone();
        for name in names {
            let host = options.registries.entry(name.registry().to_owned()).or_default();
            (host.http, host.insecure) = (Some(true), true);
        }
        Ok(Arc::new(Registry::new(registry_options(&options))?))
    }

    /// A client that gives up soon, for what a build can do without. It speaks plain HTTP to the registries of `plain`.
    pub(crate) fn hasty_registry(&self, plain: &[Reference]) -> Result<Arc<Registry>, EngineError> {
        let mut options = self.options().clone();
        for name in plain {
            let host = options.registries.entry(name.registry().to_owned()).or_default();
            (host.http, host.insecure) = (Some(true), true);
        }
        let usual = registry_options(&options);
        let seconds = Duration::from_secs;
        let retry = RetryPolicy { attempts: 2, base: Duration::from_millis(200), longest: seconds(5) };
        let timeouts = Timeouts { connect: seconds(4), stall: seconds(20), document: seconds(20), ..usual.timeouts };
        Ok(Arc::new(Registry::new(RegistryOptions { retry, timeouts, ..usual })?))
    }

    pub(crate) fn index(&self) -> Result<Arc<SqliteIndex>, EngineError> {
        // Whoever begins early and whoever needs it should not both open it.
        let _turn = self.0.index_turn.lock().unwrap_or_else(PoisonError::into_inner);
        made(&self.0.index, || Ok(Arc::new(SqliteIndex::open(&self.store().root().join("cache.db"))?)))
    }

    /// Begins to open the index, for which there is time while a Dockerfile is read.
    pub(crate) fn expect_index(&self) {
        let engine = self.clone();
        // What fails here fails again for whoever needs it.
        drop(tokio::task::spawn_blocking(move || drop(engine.index())));
    }

    pub(crate) fn flights(&self) -> Result<Arc<Flights>, EngineError> {
        made(&self.0.flights, || Ok(Arc::new(Flights::new(&self.store().root().join("flights")))))
    }

    /// A session without contexts, or with those of a build, and what it hands to steps.
    pub(crate) fn session(
        &self,
        contexts: BTreeMap<String, Arc<dyn Context>>,
        handed: Handed,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Arc<dyn Session> {
        let docker_config = self.options().docker_config.clone();
        Arc::new(LocalSession { contexts, docker_config, events, cancel, handed })
    }

    /// What a transfer works with. `step` is what it is shown as, and the purpose of its lease.
    pub(crate) async fn transfer(&self, session: Arc<dyn Session>, step: &str) -> Result<TransferContext, EngineError> {
        let step = step.to_owned();
        self.blocking(move |engine| engine.transfer_now(session, &step)).await
    }

    /// The same for a thread that may block: a lease is written to the disk.
    pub(crate) fn transfer_now(&self, session: Arc<dyn Session>, step: &str) -> Result<TransferContext, EngineError> {
        let lease = Arc::new(self.store().lease(step)?);
        Ok(TransferContext { store: self.store().clone(), lease, session, vertex: ShownStep::digest_of(step) })
    }

    /// Fetches an image and gives it its name in the store.
    ///
    /// # Errors
    /// The registry fails, or has nothing of that name and platform.
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<PullOutcome, EngineError> {
        let step = format!("pulling {}", reference.familiar());
        let platform = platform.cloned().unwrap_or_else(Platform::host);
        let before = self.target_of(reference).await?;
        let session = self.session(BTreeMap::new(), Handed::default(), events.clone(), cancel);
        let context = self.transfer(session, &step).await?;
        let registry = self.blocking(Self::registry).await?;
        let shown = ShownStep::start(&*events, &step);
        let pulled = forge_registry::pull(&context, &registry, reference, &platform).await;
        let pulled = shown.end(pulled).map_err(|error| self.explain_full_disk(error.into()))?;
        let fetched = before != Some(pulled.target());
        let resolved = pulled.resolved;
        Ok(PullOutcome { reference: reference.clone(), digest: resolved.root.digest, id: resolved.id, fetched })
    }

    /// Sends an image of the store to the registry that its name names.
    ///
    /// # Errors
    /// No such image, or the registry fails or refuses.
    pub async fn push(
        &self,
        reference: &Reference,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<PushOutcome, EngineError> {
        let step = format!("pushing {}", reference.familiar());
        let Some(target) = self.target_of(reference).await? else {
            let message = format!("An image does not exist locally with the tag: {}", reference.familiar_name());
            let hint = "`forge images` lists the names there are; `forge tag` gives an image another one";
            return Err(EngineError::new(ErrorKind::UserInput, message).with_hint(hint));
        };
        let session = self.session(BTreeMap::new(), Handed::default(), events.clone(), cancel.clone());
        let context = self.transfer(session, &step).await?;
        let registry = self.blocking(Self::registry).await?;
        let shown = ShownStep::start(&*events, &step);
        let pushed = until_cancelled(&cancel, push_target(&context, &registry, reference, &target)).await;
        let pushed = shown.end(pushed)?;
        let Some(descriptor) = pushed.exported.descriptor else {
            return Err(EngineError::new(ErrorKind::Internal, "nothing was pushed, although nothing failed"));
        };
        Ok(PushOutcome { reference: reference.clone(), descriptor })
    }

    /// Checks credentials with a registry and keeps them as docker does.
    ///
    /// # Errors
    /// The registry refuses them, or they cannot be kept.
    pub async fn login(&self, registry: &str, username: &str, password: Redacted) -> Result<(), EngineError> {
        let credentials = Credentials::Basic { username: username.to_owned(), password };
        let client = self.blocking(Self::registry).await?;
        let outcome = client.login(registry, &credentials).await?;
        let kept = match outcome {
            LoginOutcome::Accepted { identity_token: Some(token) } => Credentials::RefreshToken(token),
            LoginOutcome::Accepted { identity_token: None } | LoginOutcome::NotRequired => credentials,
        };
        Ok(DockerConfig::open(&self.options().docker_config).store(registry, &kept).await?)
    }

    /// Forgets the credentials for a registry; `false` if there were none.
    ///
    /// # Errors
    /// docker's configuration cannot be changed.
    pub async fn logout(&self, registry: &str) -> Result<bool, EngineError> {
        Ok(DockerConfig::open(&self.options().docker_config).erase(registry).await?)
    }

    /// Says what the store holds and what this machine can do.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn info(&self) -> Result<EngineInfo, EngineError> {
        self.blocking(|engine| {
            let usage = engine.store().usage()?;
            let uname = rustix::system::uname();
            Ok(EngineInfo {
                root: engine.store().root().to_owned(),
                file_system: engine.store().file_system()?,
                images: usage.images.count,
                layers: usage.layers.count,
                bytes: usage.layers.bytes + usage.blobs.bytes,
                platform: Platform::host(),
                kernel: uname.release().to_string_lossy().into_owned(),
                notices: engine.executor()?.notices(),
            })
        })
        .await
    }

    pub(crate) fn cache_index(&self) -> Result<Arc<dyn CacheIndex>, EngineError> {
        Ok(self.index()?)
    }
}

async fn push_target(
    context: &TransferContext,
    registry: &Arc<Registry>,
    reference: &Reference,
    target: &Target,
) -> Result<Pushed, ExportError> {
    let images = ImageSet::from_store(context, target).await?;
    let settings = ExportSettings { names: vec![reference.clone()], ..ExportSettings::new(SystemTime::now()) };
    forge_exporter::push(context, registry, &images, &settings).await
}

pub(crate) fn registry_options(options: &EngineOptions) -> RegistryOptions {
    let host = |host: &crate::RegistryHost| HostOptions {
        mirrors: host.mirrors.clone(),
        http: host.http,
        insecure: host.insecure,
        ca: host.ca.clone(),
        keypair: host.keypair.iter().map(|pair| (pair.key.clone(), pair.cert.clone())).collect(),
    };
    let usual = RegistryOptions::default();
    RegistryOptions {
        user_agent: options.user_agent.clone().unwrap_or(usual.user_agent),
        hosts: options.registries.iter().map(|(name, options)| (name.clone(), host(options))).collect(),
        offline: options.offline,
        proxy: ProxyOptions {
            http: options.proxy.http.clone(),
            https: options.proxy.https.clone(),
            no_proxy: options.proxy.no_proxy.clone(),
        },
        ..usual
    }
}
