use crate::connection::Client;
use crate::outputs::{self, Targets, unsupported};
use crate::session::Handed;
use crate::stores::{Stores, ToldCaches};
use crate::{failure, progress, request};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forge_buildkit_proto::moby::buildkit::v1::{
    CacheOptions, CacheOptionsEntry, SolveRequest, SolveResponse, StatusRequest,
};
use forge_buildkit_proto::pb;
use forge_engine::{BuildContext, BuildOutcome, BuildRequest, EngineError, EngineOptions, OwnOptions, TokenFetcher};
use forge_image::{Descriptor, Digest, ErrorKind};
use forge_session::{Event, EventSink};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

/// How long the rest of what is told of a build is waited for when it has ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// A shared cache as the user named it: its type and attributes. The daemon reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheEntry {
    /// `registry`, `inline`, …
    pub kind: String,
    /// The attributes.
    pub attributes: HashMap<String, String>,
}

/// A build that a daemon is to do.
#[derive(Clone, Debug)]
pub struct RemoteBuild {
    /// What would be asked of the engine.
    pub request: BuildRequest,
    /// A definition of BuildKit's format instead of the Dockerfile.
    pub definition: Option<Vec<u8>>,
    /// The caches that are asked; those of the request are not looked at.
    pub imports: Vec<CacheEntry>,
    /// The caches that are told.
    pub exports: Vec<CacheEntry>,
    /// How registries are reached from here, and where docker keeps its credentials.
    pub options: EngineOptions,
    /// What tells this machine from others.
    pub machine: String,
}

impl RemoteBuild {
    fn definition(&self) -> Result<Option<pb::Definition>, EngineError> {
        let definition = self.definition.as_deref().map(forge_buildkit_proto::definition).transpose();
        definition.map_err(|error| EngineError::caused(error.kind(), error))
    }

    fn limits_steps(&self) -> Result<bool, EngineError> {
        Ok(self.definition()?.is_some_and(|definition| forge_buildkit_proto::limits_steps(&definition)))
    }
}

/// A build that the daemon does not know yet.
pub(crate) struct Begun {
    pub id: String,
    pub caches: ToldCaches,
    pub stores: Arc<Stores>,
    dockerfile: Option<String>,
    shared_key: String,
    /// What builds are compared by, where the daemon does so.
    compared_as: Option<String>,
    handed: Handed,
    told: Arc<Told>,
    following: tokio::task::JoinHandle<()>,
}

impl Begun {
    /// What the front end is asked.
    pub(crate) fn options(&self, request: &BuildRequest) -> Result<HashMap<String, String>, EngineError> {
        let request = BuildRequest { compared_as: self.compared_as.clone(), ..request.clone() };
        request::options(&request, self.dockerfile.as_deref(), &self.stores)
    }

    /// What the daemon is asked, but for outputs.
    pub(crate) fn solve_request(&self, build: &RemoteBuild) -> Result<SolveRequest, EngineError> {
        let request = &build.request;
        let entry =
            |entry: &CacheEntry| CacheOptionsEntry { r#type: entry.kind.clone(), attrs: entry.attributes.clone() };
        let cache = CacheOptions {
            imports: self.caches.imports.iter().map(entry).collect(),
            exports: self.caches.exports.iter().map(entry).collect(),
            ..CacheOptions::default()
        };
        let definition = build.definition()?;
        Ok(SolveRequest {
            r#ref: self.id.clone(),
            session: self.id.clone(),
            frontend: if definition.is_some() { String::new() } else { "dockerfile.v0".to_owned() },
            definition,
            frontend_attrs: self.options(request)?,
            cache: Some(cache),
            entitlements: request::entitlements(&request.allowed, request.network),
            source_policy: request::source_policy(request)?,
            ..SolveRequest::default()
        })
    }

    pub(crate) async fn open_session(&self, client: &Client, targets: Targets) -> Result<DropGuard, EngineError> {
        let (handed, stores) = (self.handed.clone(), self.stores.clone());
        let session = client.open_session(&self.id, &self.shared_key, handed, Arc::new(targets), stores).await;
        session.map_err(|status| failure::of_build(&status))
    }

    /// Waits for what was told last; gives what of it belongs below the build.
    pub(crate) async fn end(self) -> BuildOutcome {
        let _ = tokio::time::timeout(PATIENCE, self.following).await;
        std::mem::take(&mut *self.told.outcome.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Client {
    /// Builds as the engine's own `build` does.
    ///
    /// # Errors
    /// As that; or the request asks for what a daemon cannot be asked for, or the connection ends.
    pub async fn build(
        &self,
        build: RemoteBuild,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<BuildOutcome, EngineError> {
        let stop = cancel.child_token();
        let _stop = stop.clone().drop_guard();
        self.check_own(&build)?;
        let begun = self.begin(&build, events, stop.clone()).await?;
        let (exporters, targets) = outputs::outputs(&build.request, stop)?;
        let asked = SolveRequest { exporters, ..begun.solve_request(&build)? };
        let session = begun.open_session(self, targets).await?;
        let mut control = self.control();
        let solved = tokio::select! {
            solved = control.solve(asked) => solved,
            () = cancel.cancelled() => Err(Status::cancelled("cancelled")),
        };
        let (stores, notices) = (begun.stores.clone(), begun.caches.notices.clone());
        let mut outcome = begun.end().await;
        drop(session);
        let solved = solved.map_err(|status| failure::of_build(&status))?.into_inner();
        if let Some(bundle) = solved.exporter_response.get("cache.manifest").and_then(|text| descriptor(text)) {
            tokio::task::spawn_blocking(move || stores.name_caches(&bundle)).await??;
        }
        outcome.notices.extend(notices);
        Ok(outcome_of(outcome, &build.request, solved))
    }

    /// Refuses by name what only a daemon of forge's has words for, where this is none.
    fn check_own(&self, build: &RemoteBuild) -> Result<(), EngineError> {
        let why = "this one is not forge's, or an earlier version of it";
        match OwnOptions::of(&build.request) {
            _ if self.is_forge() => Ok(()),
            Some(own) => Err(unsupported(own.flags(), why)),
            // The messages that are exchanged with it have no field for them.
            None if build.limits_steps()? => Err(unsupported("a definition with limits of its steps", why)),
            None => Ok(()),
        }
    }

    /// Opens what the build may read here, and listens to what will be told of it.
    pub(crate) async fn begin(
        &self,
        build: &RemoteBuild,
        events: Arc<dyn EventSink>,
        stop: CancellationToken,
    ) -> Result<Begun, EngineError> {
        let (given, sink) = (build.clone(), events.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let handover = given.request.hand_over(given.options.docker_config, sink, stop)?;
            let (stores, caches) = Stores::open(&given.request, &given.imports, &given.exports)?;
            Ok::<_, EngineError>((handover, stores, caches))
        });
        let (handover, stores, caches) = opened.await??;
        let stream = match &build.request.context {
            BuildContext::Stream(stream) => Some(stream.clone()),
            _ => None,
        };
        let shared_key = Digest::sha256(format!("{}:{}", build.machine, handover.identity).as_bytes()).hex().to_owned();
        let handed = Handed::new(handover.session, stream, TokenFetcher::new(&build.options)?);
        let (id, told) = (random()?, Arc::new(Told { events, outcome: Mutex::default() }));
        let following = tokio::spawn(self.clone().follow(id.clone(), told.clone()));
        let (dockerfile, stores) = (handover.dockerfile, Arc::new(stores));
        let compared_as = self.is_forge().then(|| shared_key.clone());
        Ok(Begun { id, caches, stores, dockerfile, shared_key, compared_as, handed, told, following })
    }

    /// Passes on what is told of a build until it ends.
    async fn follow(self, reference: String, told: Arc<Told>) {
        let mut control = self.control();
        // A build that cannot be followed is built all the same.
        let Ok(messages) = control.status(StatusRequest { r#ref: reference }).await else { return };
        let mut messages = messages.into_inner();
        while let Ok(Some(message)) = messages.message().await {
            progress::events(message).into_iter().for_each(|event| told.take(event));
        }
    }
}

/// What has been told of a build.
struct Told {
    events: Arc<dyn EventSink>,
    /// What of it belongs below the build.
    outcome: Mutex<BuildOutcome>,
}

impl Told {
    fn take(&self, event: Event) {
        if let Event::Warning(notice) = &event {
            let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
            match (&notice.vertex, &notice.span) {
                // The remarks of the checks have a place; what has neither is about the build as a whole.
                (_, Some(_)) => outcome.warnings.push(notice.clone()),
                (None, None) => outcome.notices.push(notice.short.clone()),
                (Some(_), None) => {}
            }
        }
        self.events.emit(event);
    }
}

/// A name that nobody else has.
fn random() -> Result<String, EngineError> {
    let mut bytes = [0; 16];
    let failed = |errno: rustix::io::Errno| EngineError::caused(ErrorKind::Environment, std::io::Error::from(errno));
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What the daemon says that it made, as the engine says it.
fn outcome_of(mut outcome: BuildOutcome, request: &BuildRequest, solved: SolveResponse) -> BuildOutcome {
    let mut told: Vec<(String, String)> = solved.exporter_response.into_iter().collect();
    told.sort();
    let metadata: Vec<(String, Value)> = told.iter().map(|(name, text)| (name.clone(), value(text))).collect();
    let digest = |name: &str| told.iter().find(|(key, _)| key == name)?.1.parse::<Digest>().ok();
    outcome.image = digest("containerimage.config.digest").or_else(|| digest("containerimage.digest"));
    let descriptor = metadata.iter().find(|(name, _)| name == "containerimage.descriptor");
    outcome.descriptor = descriptor.and_then(|(_, value)| serde_json::from_value(value.clone()).ok());
    outcome.names.clone_from(&request.tags);
    outcome.metadata = metadata;
    outcome
}

fn descriptor(text: &str) -> Option<Descriptor> {
    serde_json::from_str(text).ok()
}

/// What is no text crosses as the base64 of its JSON.
fn value(text: &str) -> Value {
    let decoded = STANDARD.decode(text).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    decoded.filter(|value| value.is_object() || value.is_array()).unwrap_or_else(|| Value::String(text.to_owned()))
}
