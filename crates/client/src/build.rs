use crate::connection::Client;
use crate::outputs::{self, Targets};
use crate::session::Handed;
use crate::{failure, progress, request};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forge_buildkit_proto::moby::buildkit::v1::{
    CacheOptions, CacheOptionsEntry, SolveRequest, SolveResponse, StatusRequest,
};
use forge_buildkit_proto::pb;
use forge_engine::{BuildContext, BuildOutcome, BuildRequest, EngineError, EngineOptions, Handover, TokenFetcher};
use forge_image::{Digest, ErrorKind};
use forge_session::{Event, EventSink};
use prost::Message;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
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
        let given = (build.request.clone(), build.options.docker_config.clone(), events.clone(), stop.clone());
        let opened = tokio::task::spawn_blocking(move || given.0.hand_over(given.1, given.2, given.3));
        let handover = opened.await??;
        let id = random()?;
        let (asked, targets) = asked(&build, &handover, &id, stop.clone())?;
        let stream = match &build.request.context {
            BuildContext::Stream(stream) => Some(stream.clone()),
            _ => None,
        };
        let shared_key = Digest::sha256(format!("{}:{}", build.machine, handover.identity).as_bytes());
        let tokens = TokenFetcher::new(&build.options)?;
        let handed = Handed::new(handover.session, stream, tokens);
        let session = self.open_session(&id, shared_key.hex(), handed, Arc::new(targets));
        let session = session.await.map_err(|status| failure::of_build(&status))?;
        let told = Arc::new(Told { events, outcome: Mutex::default() });
        let following = tokio::spawn(self.clone().follow(id, told.clone()));
        let mut control = self.control();
        let solved = tokio::select! {
            solved = control.solve(asked) => solved,
            () = cancel.cancelled() => Err(Status::cancelled("cancelled")),
        };
        // What was told last is shown before the end.
        let _ = tokio::time::timeout(PATIENCE, following).await;
        drop(session);
        let solved = solved.map_err(|status| failure::of_build(&status))?.into_inner();
        let outcome = std::mem::take(&mut *told.outcome.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(outcome_of(outcome, &build.request, solved))
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

/// What the daemon is asked, and what is done with what it sends.
fn asked(
    build: &RemoteBuild,
    handover: &Handover,
    id: &str,
    cancel: CancellationToken,
) -> Result<(SolveRequest, Targets), EngineError> {
    let request = &build.request;
    let frontend_attrs = request::options(request, handover.dockerfile.as_deref())?;
    let (exporters, targets) = outputs::outputs(request, cancel)?;
    let entry = |entry: &CacheEntry| CacheOptionsEntry { r#type: entry.kind.clone(), attrs: entry.attributes.clone() };
    let cache = CacheOptions {
        imports: build.imports.iter().map(entry).collect(),
        exports: build.exports.iter().map(entry).collect(),
        ..CacheOptions::default()
    };
    let definition = build.definition.as_deref().map(pb::Definition::decode).transpose();
    let definition = definition.map_err(|error| {
        EngineError::new(ErrorKind::UserInput, format!("the definition is none of BuildKit's format: {error}"))
    })?;
    let asked = SolveRequest {
        r#ref: id.to_owned(),
        session: id.to_owned(),
        frontend: if definition.is_some() { String::new() } else { "dockerfile.v0".to_owned() },
        definition,
        frontend_attrs,
        exporters,
        cache: Some(cache),
        entitlements: request::entitlements(&request.allowed, request.network),
        ..SolveRequest::default()
    };
    Ok((asked, targets))
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

/// What is no text crosses as the base64 of its JSON.
fn value(text: &str) -> Value {
    let decoded = STANDARD.decode(text).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    decoded.filter(|value| value.is_object() || value.is_array()).unwrap_or_else(|| Value::String(text.to_owned()))
}
