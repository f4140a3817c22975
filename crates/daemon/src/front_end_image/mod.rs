//! `gateway.v0`: a front end that is an image. It runs in the sandbox as a step does, without any right that a step lacks, and
//! speaks the bridge's interface over its standard input and output: HTTP/2 of which the daemon is the server.

mod found;
mod streams;

use crate::bridge::Bridge;
use crate::gateway_service::{self, GatewayService};
use crate::reply;
use crate::solution::{self, Solution};
use crate::solve::{FrontendRequest, JobContext};
use forge_buildkit_proto::Serving;
use forge_buildkit_proto::health::health_server::HealthServer;
use forge_buildkit_proto::moby::buildkit::v1::types::WorkerRecord;
use forge_buildkit_proto::pb;
use forge_engine::{EngineError, ExitStatus, JobContainer, ProcessRequest, ProcessStreams};
use found::{FrontEnd, label};
use futures_util::stream::{self, StreamExt};
use serde_json::json;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::transport::Server;

/// The label by which an image says what it understands.
const CAPABILITIES: &str = "moby.buildkit.frontend.caps";
/// The label by which an image asks for no network.
const NO_NETWORK: &str = "moby.buildkit.frontend.network.none";
/// What a front end understands that takes inputs.
const INPUTS: &str = "moby.buildkit.frontend.inputs";
/// What front ends read as the name of the builder.
const PRODUCT: &str = "buildkit";
/// Where a front end finds the definition of its own image.
const OWN_DEFINITION: &str = "/run/config/buildkit/metadata";
/// How long a front end may take to end after it gave its result, or after nobody can hear it any more.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes on the way between a front end and the bridge.
const WINDOW: usize = 1 << 20;
/// How many front ends may ask each other.
const MOST_NESTED: usize = 8;

impl JobContext {
    /// Asks an image. `request` has its name among the options.
    pub(crate) async fn front_end_image(&self, request: FrontendRequest) -> Result<Solution, Status> {
        let name = request.options.get("source").cloned();
        let name = name.ok_or_else(|| Status::unknown("no source specified for gateway"))?;
        self.shared.options.front_ends.check(&name).map_err(Status::unknown)?;
        if self.nested >= MOST_NESTED {
            return Err(Status::unknown(format!(
                "front end {name}: more than {MOST_NESTED} front ends ask each other"
            )));
        }
        let context = Self { nested: self.nested + 1, ..self.clone() };
        let front_end = context.find_front_end(name, &request).await?;
        require_capabilities(&front_end, &request)?;
        let asked = Arc::new(self.invocation(&request.frontend, &request.options, &request.inputs));
        let bridge = Arc::new(Bridge::new(context, request.inputs.clone(), asked));
        let ran = self.run_front_end(&front_end, &request, &bridge).await;
        bridge.containers.close().await;
        // What it said of a failure counts more than how it ended, and that more than a result.
        match (bridge.returned(), ran) {
            (Some(Err(status)), _) => Err(status),
            (_, Err(status)) => Err(status),
            (Some(Ok(mut solution)), Ok(())) => {
                solution.images.iter_mut().for_each(|image| image.front_ends.extend(front_end.image.clone()));
                Ok(solution)
            }
            (None, Ok(())) => {
                Err(Status::unknown(format!("front end {}: no result for incomplete build", front_end.name)))
            }
        }
    }

    /// Runs a front end until it ends, or is not waited for any more.
    async fn run_front_end(
        &self,
        front_end: &FrontEnd,
        request: &FrontendRequest,
        bridge: &Arc<Bridge>,
    ) -> Result<(), Status> {
        let is_apart = label(&front_end.config, NO_NETWORK).is_some_and(is_true);
        let network = if is_apart { pb::NetMode::None } else { pb::NetMode::Unset };
        let root = pb::Mount { dest: "/".to_owned(), input: 0, output: -1, ..pb::Mount::default() };
        let own = pb::Mount { dest: OWN_DEFINITION.to_owned(), input: 1, readonly: true, ..root.clone() };
        let meta = pb::Meta { args: vec!["-".to_owned()], cwd: "/".to_owned(), ..pb::Meta::default() };
        let mounts = vec![root, own];
        let exec = pb::ExecOp { meta: Some(meta), mounts, network: network.into(), ..pb::ExecOp::default() };
        let inputs = vec![front_end.files.clone(), self.own_definition(front_end).await?];
        let container = self.job.container(&format!("front end {}", front_end.name), exec, inputs).await;
        let container = container.map_err(|error| reply::status(&error))?;
        let ran = self.speak(&container, front_end, request, bridge).await;
        let released = container.release().await.map_err(|error| reply::status(&error));
        ran.and(released)
    }

    async fn speak(
        &self,
        container: &JobContainer,
        front_end: &FrontEnd,
        request: &FrontendRequest,
        bridge: &Arc<Bridge>,
    ) -> Result<(), Status> {
        let failed = |what: String| Status::unknown(format!("front end {}: {what}", front_end.name));
        let process = container.start(&self.process(front_end, request)).await;
        let process = process.map_err(|error| failed(error.to_string()))?;
        let ProcessStreams { stdin: Some(input), stdout: Some(output), stderr: Some(complaints) } =
            process.take_streams()
        else {
            return Err(Status::internal("a front end without streams"));
        };
        let (ours, theirs) = tokio::io::duplex(WINDOW);
        let serving = AbortOnDropHandle::new(tokio::spawn(serve(bridge.clone(), ours)));
        let mut carried = AbortOnDropHandle::new(tokio::spawn(streams::carry(theirs, input, output)));
        let last_words = AbortOnDropHandle::new(tokio::spawn(streams::last_words(complaints)));
        let over = async {
            tokio::select! {
                // A build that is cancelled ends elsewhere.
                _ = bridge.wait() => {}
                _ = &mut carried => {}
            }
            tokio::time::sleep(PATIENCE).await;
        };
        let ended = tokio::select! {
            ended = process.wait() => Some(ended.map_err(EngineError::from)),
            () = over => None,
            () = self.build.cancel.cancelled() => return Err(Status::cancelled("context canceled")),
        };
        drop(serving);
        match ended {
            Some(Ok(ExitStatus::Exited(0))) => Ok(()),
            Some(Ok(status)) => {
                let words = last_words.await.unwrap_or_default();
                let words = words.trim();
                let said = if words.is_empty() { String::new() } else { format!(": {words}") };
                Err(failed(format!("exit code: {}{said}", status.code())))
            }
            Some(Err(error)) => Err(failed(error.to_string())),
            // It has said all that there is to say.
            None if bridge.returned().is_some() => Ok(()),
            None => Err(failed("frontend grpc server closed unexpectedly".to_owned())),
        }
    }

    /// The process that a front end is.
    fn process(&self, front_end: &FrontEnd, request: &FrontendRequest) -> ProcessRequest {
        let config = &front_end.config.config;
        let entrypoint = config.entrypoint.clone().filter(|entrypoint| !entrypoint.is_empty());
        let mut env = config.env.clone();
        let options: BTreeMap<_, _> = request.options.iter().collect();
        for (number, (name, value)) in options.into_iter().enumerate() {
            env.push(format!("BUILDKIT_FRONTEND_OPT_{number}={name}={value}"));
        }
        env.push(format!("BUILDKIT_SESSION_ID={}", self.session));
        env.push(format!("BUILDKIT_WORKERS={}", workers(&self.shared.worker)));
        env.push(format!("BUILDKIT_EXPORTEDPRODUCT={PRODUCT}"));
        ProcessRequest {
            args: entrypoint.unwrap_or_else(|| vec!["/run".to_owned()]),
            env,
            cwd: config.working_dir.clone(),
            streams: [true; 3],
            remove_mount_stubs: true,
            ..ProcessRequest::default()
        }
    }
}

/// Serves one connection, and the front end at its far end.
async fn serve(bridge: Arc<Bridge>, connection: tokio::io::DuplexStream) {
    let service = gateway_service::server(Arc::new(GatewayService::of(bridge)));
    let server = Server::builder().add_service(HealthServer::new(Serving)).add_service(service);
    let connections = stream::once(async { Ok::<_, io::Error>(connection) }).chain(stream::pending());
    // A connection that breaks is seen by whoever has its other end.
    let _ = server.serve_with_incoming(connections).await;
}

fn is_true(value: &str) -> bool {
    matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

/// The workers as front ends read them.
fn workers(worker: &WorkerRecord) -> serde_json::Value {
    let platform = |platform: &pb::Platform| {
        let platform = solution::platform(Some(platform));
        json!({ "os": platform.os, "architecture": platform.architecture, "variant": platform.variant })
    };
    let platforms: Vec<_> = worker.platforms.iter().map(platform).collect();
    json!([{ "ID": worker.id, "Labels": worker.labels, "Platforms": platforms }])
}

/// What is asked of a front end it must understand.
fn require_capabilities(front_end: &FrontEnd, request: &FrontendRequest) -> Result<(), Status> {
    let listed = |text: &str| -> HashSet<String> {
        let names = text.split(',').filter_map(|name| name.split('+').next());
        names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    let known = label(&front_end.config, CAPABILITIES).map(listed).unwrap_or_default();
    let mut wanted = request.options.get("frontend.caps").map(|text| listed(text)).unwrap_or_default();
    if !request.inputs.is_empty() {
        wanted.insert(INPUTS.to_owned());
    }
    match wanted.iter().find(|name| !known.contains(*name)) {
        None => Ok(()),
        Some(name) => {
            let detail = reply::detail("FrontendCap", &json!({ "name": name }));
            let message = format!("unsupported frontend capability {name}");
            Err(reply::with_details(tonic::Code::Unimplemented, message, vec![detail]))
        }
    }
}
