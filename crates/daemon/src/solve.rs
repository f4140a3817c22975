//! A build, from the request to its results.

use crate::attestations;
use crate::bridge::Bridge;
use crate::builds::Build;
use crate::daemon::Shared;
use crate::exporters::{self, Plan};
use crate::frontend::{self, empty_request};
use crate::nested;
use crate::policy::{Guard, Policy};
use crate::progress::time;
use crate::reply;
use crate::session::{self, ClientSession, RemoteSession, upload};
use crate::solution::{Found, Results, Solution};
use crate::traces::TraceContext;
use crate::verify;
use forge_buildkit_proto::google::rpc;
use forge_buildkit_proto::moby::buildkit::v1::sourcepolicy as wire;
use forge_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryRecord, Exporter, SolveRequest, SolveResponse, VertexWarning,
};
use forge_buildkit_proto::pb;
use forge_engine::{
    Allowed, Attest, BuildContext, BuildRequest, ContextStream, Invocation, Job, OwnOptions, PLAN_OUTPUT,
};
use forge_session::{Event, EventSink, Session, WarningNotice};
use prost::Message;
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tonic::Status;

/// What is asked of a front end.
pub(crate) struct FrontendRequest {
    pub frontend: String,
    pub options: HashMap<String, String>,
    pub definition: Option<pb::Definition>,
    pub inputs: HashMap<String, pb::Definition>,
    /// What the client asked for that steers the build, where it was not this.
    pub root: Option<Arc<Invocation>>,
}

/// Runs a build. It goes on to its end by itself; whoever stops waiting for it cancels it.
pub(crate) async fn solve(
    shared: Arc<Shared>,
    mut request: SolveRequest,
    traced: Option<TraceContext>,
) -> Result<SolveResponse, Status> {
    if request.exporters.is_empty() && !request.exporter_deprecated.is_empty() {
        let attrs = std::mem::take(&mut request.exporter_attrs_deprecated);
        request.exporters.push(Exporter { r#type: std::mem::take(&mut request.exporter_deprecated), attrs });
    }
    let epoch = request.frontend_attrs.get("build-arg:SOURCE_DATE_EPOCH");
    // What is no number is the name of a source, which the front end knows.
    if let Some(epoch) = epoch.filter(|epoch| epoch.parse::<i64>().is_ok()) {
        for exporter in &mut request.exporters {
            exporter.attrs.entry("source-date-epoch".to_owned()).or_insert_with(|| epoch.clone());
        }
    }
    let plans = request.exporters.iter().map(exporters::plan).collect::<Result<Vec<_>, _>>()?;
    let attest = attestations::wanted(&request.frontend_attrs, &shared.options.provenance)?;
    let allowed = allowed(&request.entitlements, &shared.options.entitlements)?;
    // It is no front end's, and nobody's who looks at the build later.
    let own = request.frontend_attrs.remove(OwnOptions::ATTRIBUTE).map(|text| OwnOptions::parse(&text)).transpose();
    let own = own.map_err(|error| reply::status(&error))?.unwrap_or_default();
    let record = BuildHistoryRecord {
        r#ref: request.r#ref.clone(),
        frontend: request.frontend.clone(),
        frontend_attrs: request.frontend_attrs.clone(),
        exporters: request.exporters.clone(),
        created_at: Some(time(SystemTime::now())),
        ..BuildHistoryRecord::default()
    };
    let build = shared.builds.begin(record, traced)?;
    // Whoever waits may go away; the build then ends in its own time, and is noted.
    let _cancel = build.cancel.clone().drop_guard();
    let running = tokio::spawn(async move {
        let running = run(&shared, &build, request, &plans, (allowed, attest, own));
        let (result, notice) = shared.engine.collecting(running).await;
        shared.origins.forget(&build.reference);
        let result = result.map_err(|failed| build.places.complete(failed));
        if let Some(short) = notice {
            let (detail, url, span, excerpt) = (Vec::new(), None, None, None);
            let notice = WarningNotice { vertex: None, level: 1, short, detail, url, span, excerpt };
            build.progress.emit(Event::Warning(notice));
        }
        let failed = result.as_ref().err().map(|status| rpc::Status {
            code: status.code() as i32,
            message: status.message().to_owned(),
            details: reply::details(status),
        });
        if let Some(failed) = &failed {
            build.keep_error(failed);
        }
        shared.builds.end(&build, |record| {
            record.completed_at = Some(time(SystemTime::now()));
            match &result {
                Ok(response) => record.exporter_response = response.exporter_response.clone(),
                // Its details are kept beside it.
                Err(_) => {
                    record.error = failed.map(|failed| rpc::Status { details: Vec::new(), ..failed });
                }
            }
        });
        result
    });
    running.await.map_err(|error| Status::internal(error.to_string()))?
}

async fn run(
    shared: &Arc<Shared>,
    build: &Arc<Build>,
    request: SolveRequest,
    plans: &[Plan],
    (allowed, attest, own): (Allowed, Attest, OwnOptions),
) -> Result<SolveResponse, Status> {
    let client = match request.session.as_str() {
        "" => None,
        id => Some(shared.sessions.get(id).await?),
    };
    let caches = crate::caches::read(&request, client.as_ref())?;
    caches.remarks.into_iter().for_each(|remark| build.progress.warn(remark));
    let base = BuildRequest { attest: attest.clone(), caches: caches.caches, ..empty_request(allowed) };
    let base = own.applied(base, shared.engine.max_parallelism());
    let mut session =
        RemoteSession::new(client.clone(), shared.files.clone(), build.progress.clone(), build.cancel.clone());
    for (name, id) in &request.frontend_attrs {
        if let Some(name) = name.strip_prefix("local-sessionid:") {
            session.others.insert(name.to_owned(), shared.sessions.get(id).await?);
        }
    }
    let session: Arc<dyn Session> = Arc::new(session);
    let job = shared.engine.job(base.clone(), session).await.map_err(|error| reply::status(&error))?;
    let (plain, policy) = (job.clone(), Policy::default());
    let (session, nested) = (request.session.clone(), 0);
    let context =
        JobContext { shared: shared.clone(), build: build.clone(), job, base, client, session, nested, plain, policy };
    let verifier = match request.source_policy_session.as_str() {
        "" => None,
        id => Some(context.shared.sessions.get(id).await?),
    };
    let context = context.judged_by(&request.source_policy, verifier)?;
    let root = Arc::new(context.invocation(&request.frontend, &request.frontend_attrs, &request.frontend_inputs));
    let (options, wants_more) = (request.frontend_attrs.clone(), request.enable_session_exporter);
    let mut outputs: Vec<(Exporter, Plan)> = request.exporters.iter().cloned().zip(plans.iter().cloned()).collect();
    let is_bridged = request.frontend.is_empty() && request.definition.is_none();
    let mut solution = match is_bridged {
        true => {
            let bridge = Arc::new(Bridge::new(context.clone(), request.frontend_inputs, root));
            context.lead_to(&bridge);
            let said = bridge.wait().await;
            bridge.containers.close().await;
            said?
        }
        false => {
            let asked = FrontendRequest {
                frontend: request.frontend,
                options: request.frontend_attrs,
                definition: request.definition,
                inputs: request.frontend_inputs,
                root: None,
            };
            Box::pin(context.frontend(asked)).await?
        }
    };
    if let [Plan::Forecast] = plans {
        let planned = context.job.plan(&solution.images).await.map_err(|error| reply::status(&error))?;
        let exporter_response = HashMap::from([(PLAN_OUTPUT.to_owned(), json!(planned).to_string())]);
        return Ok(SolveResponse { exporter_response });
    }
    solution.evaluate(&context.job).await?;
    context.job.attest(&attest, &mut solution.images).await.map_err(|error| reply::status(&error))?;
    build.keep_provenance(context.provenance(&solution).await);
    for remark in verify::platforms(&options, &solution) {
        build.progress.warn(VertexWarning { short: remark.into_bytes(), ..VertexWarning::default() });
    }
    if wants_more {
        for exporter in context.exporters_of_client(&solution).await? {
            let plan = exporters::plan(&exporter)?;
            outputs.push((exporter, plan));
        }
    }
    let (mut response, mut results) = (HashMap::new(), Vec::new());
    for (number, (exporter, plan)) in outputs.iter().enumerate() {
        let base = context.base.clone();
        let told = solution.with_configs(&exporter.attrs)?;
        let solution = told.as_ref().unwrap_or(&solution);
        let exported =
            exporters::export(plan, number, &context.job, base, context.client.as_ref(), solution, &shared.files);
        let exported = Box::pin(exported).await?;
        results.extend(exporters::descriptor(plan, &exported));
        response.extend(exported);
    }
    build.keep_results(results);
    let cached = context.job.finish_caches(&solution.images).await.map_err(|error| reply::status(&error))?;
    response.extend(cached.map(|bundle| ("cache.manifest".to_owned(), json!(bundle).to_string())));
    let told = solution.metadata.iter().filter(|(name, _)| name.starts_with("frontend."));
    response.extend(told.map(|(name, value)| (name.clone(), String::from_utf8_lossy(value).into_owned())));
    if let Some(client) = context.client.as_ref().filter(|_| wants_more) {
        session::exporters::finalize(client, response.clone()).await?;
    }
    Ok(SolveResponse { exporter_response: response })
}

/// What a build works with.
#[derive(Clone)]
pub(crate) struct JobContext {
    pub shared: Arc<Shared>,
    pub build: Arc<Build>,
    pub job: Job,
    pub base: BuildRequest,
    pub client: Option<Arc<ClientSession>>,
    /// The client's name for its session.
    pub session: String,
    /// How many front ends ask each other already.
    pub nested: usize,
    /// The same build, its sources not judged.
    pub plain: Job,
    /// What its sources are judged by.
    pub policy: Policy,
}

impl JobContext {
    /// The same build, whose sources are judged by more.
    pub(crate) fn judged_by<'a>(
        &self,
        rules: impl IntoIterator<Item = &'a wire::Policy>,
        verifier: Option<Arc<ClientSession>>,
    ) -> Result<Self, Status> {
        let mut policy = self.policy.clone();
        policy.add(rules).map_err(|error| reply::status(&error))?;
        policy.verifier = verifier.or(policy.verifier);
        if policy.is_empty() {
            return Ok(self.clone());
        }
        let plain = Self { job: self.plain.clone(), policy: Policy::default(), ..self.clone() };
        let root = Arc::new(plain.invocation("", &HashMap::new(), &HashMap::new()));
        let bridge = Bridge::new(plain, HashMap::new(), root);
        let guard = Guard { policy: policy.clone(), bridge, cancel: self.build.cancel.clone() };
        Ok(Self { job: self.plain.guarded(Arc::new(guard)), policy, ..self.clone() })
    }

    /// Lets the client look at the build's results.
    fn lead_to(&self, bridge: &Arc<Bridge>) {
        self.build.set_bridge(Some(bridge.clone()));
        self.shared.builds.announce();
    }

    /// The outputs that the client wants now that there is a result, which it can look at.
    async fn exporters_of_client(&self, solution: &Solution) -> Result<Vec<Exporter>, Status> {
        let client = self.client.as_ref().ok_or_else(|| Status::failed_precondition("the build has no session"))?;
        let bridge = self.build.bridge().unwrap_or_else(|| {
            let bridge = Arc::new(Bridge::new(self.clone(), HashMap::new(), Arc::new(Invocation::default())));
            self.lead_to(&bridge);
            bridge
        });
        session::exporters::find(client, solution.metadata.clone(), bridge.names(solution)).await
    }

    /// What a front end is asked, as provenance tells it. Forge's own front end is that under every name.
    pub(crate) fn invocation(
        &self,
        frontend: &str,
        options: &HashMap<String, String>,
        inputs: &HashMap<String, pb::Definition>,
    ) -> Invocation {
        let is_own = frontend == "gateway.v0" && options.get("source").is_some_and(|source| is_dockerfile(source));
        let told = options.iter().filter(|(name, _)| !is_own || !matches!(name.as_str(), "source" | "cmdline"));
        let inputs = inputs.iter();
        Invocation {
            frontend: if is_own { "dockerfile.v0".to_owned() } else { frontend.to_owned() },
            options: told.map(|(name, value)| (name.clone(), value.clone())).collect(),
            inputs: inputs.filter_map(|(name, input)| Some((name.clone(), self.shared.origins.find(input)?))).collect(),
            root: None,
        }
    }

    /// How each result was made, for whoever looks at the build later.
    async fn provenance(&self, solution: &Solution) -> Vec<Vec<u8>> {
        let mut told = Vec::new();
        for image in &solution.images {
            // The build itself has succeeded; what cannot be told of it is not told.
            told.extend(self.job.provenance(&self.shared.options.provenance, image).await.ok().flatten());
        }
        told
    }

    /// Asks a front end; nothing runs yet.
    pub(crate) async fn frontend(&self, request: FrontendRequest) -> Result<Solution, Status> {
        let asked = self.invocation(&request.frontend, &request.options, &request.inputs);
        let root = request.root.as_ref();
        let invocation = match (request.frontend.as_str(), root) {
            ("", Some(root)) => root.clone(),
            (_, root) => {
                let origin = root.filter(|root| root.says_anything()).map(|root| Box::new(root.origin()));
                Arc::new(Invocation { root: origin, ..asked })
            }
        };
        let mut solution = Box::pin(self.answer(request)).await?;
        for image in &mut solution.images {
            image.invocation = Some(invocation.clone());
        }
        Ok(solution)
    }

    async fn answer(&self, request: FrontendRequest) -> Result<Solution, Status> {
        match request.frontend.as_str() {
            "" => {
                let definition = nested::expand(&self.job, request.definition.unwrap_or_default()).await?;
                self.build.places.note(&definition);
                let bytes = definition.encode_to_vec();
                let result = self.job.definition(bytes, false).await.map_err(|error| reply::status(&error))?;
                Solution::of_metadata(Results::One(result.map(Found::new)), HashMap::new())
            }
            "dockerfile.v0" => self.dockerfile_or_other(request).await,
            "gateway.v0" => match request.options.get("source") {
                Some(source) if is_dockerfile(source) => self.dockerfile(&request, &OtherFrontEnd::default()).await,
                _ => Box::pin(self.front_end_image(request)).await,
            },
            // It may be as long as a message.
            other => Err(Status::unknown(format!("invalid frontend: {other:.100}"))),
        }
    }

    /// Lowers a Dockerfile, or has that done by the image that it asks for, or that is asked for in its place.
    async fn dockerfile_or_other(&self, request: FrontendRequest) -> Result<Solution, Status> {
        let asked =
            request.options.get("build-arg:BUILDKIT_SYNTAX").filter(|_| !request.options.contains_key("cmdline"));
        let asked = asked.filter(|line| !line.split_whitespace().next().is_none_or(is_dockerfile)).cloned();
        let other = OtherFrontEnd::default();
        let (line, refused) = match asked {
            Some(line) => (line, None),
            None => {
                let answered = self.dockerfile(&request, &other).await;
                let found = other.0.lock().unwrap_or_else(PoisonError::into_inner).take();
                match (answered, found) {
                    // A question about a Dockerfile of another language may have had an answer.
                    (answered, Some(line)) => (line, answered.err()),
                    (answered, None) => return answered,
                }
            }
        };
        let mut options = request.options;
        options.insert("source".to_owned(), line.split_whitespace().next().unwrap_or_default().to_owned());
        options.insert("cmdline".to_owned(), line);
        let request = FrontendRequest { frontend: "gateway.v0".to_owned(), options, ..request };
        let answered = Box::pin(self.front_end_image(request)).await;
        // The line that asks for the image is the place of what it does not place itself.
        answered.map_err(|failed| match refused {
            Some(refused) => reply::placed_as(failed, &refused),
            None => failed,
        })
    }

    async fn dockerfile(&self, asked: &FrontendRequest, other: &OtherFrontEnd) -> Result<Solution, Status> {
        let options = &asked.options;
        let mut request = frontend::dockerfile(options, self.base.clone())?;
        for (name, definition) in &asked.inputs {
            if definition.metadata.is_empty() {
                // On the wire nothing and the empty definition are the same, and BuildKit takes neither.
                return Err(Status::unknown("invalid nil input definition to definition op"));
            }
            let definition = nested::expand(&self.job, definition.clone()).await?;
            self.build.places.note(&definition);
            let input = self.job.definition(definition.encode_to_vec(), false).await;
            if let Some(input) = input.map_err(|error| reply::status(&error))? {
                request.dockerfile.inputs.insert(name.clone(), input);
            }
        }
        if let Some(address) = options.get("context").filter(|context| context.starts_with(upload::ADDRESS)) {
            let client = self.client.as_ref().ok_or_else(|| Status::failed_precondition("the build has no session"))?;
            request.build.context = BuildContext::Stream(ContextStream::new(upload::open(client, address)?));
        }
        let know = |name: &str, text: &[u8]| {
            *other.0.lock().unwrap_or_else(PoisonError::into_inner) = forge_engine::other_front_end(text);
            self.build.progress.know_source(name, text.to_vec());
        };
        if let Some(question) = &request.question {
            return crate::subrequest::answer(self, question, request.build, &request.dockerfile, know).await;
        }
        let is_map = request.build.platforms.len() > 1
            || options.get("multi-platform").is_some_and(|value| !matches!(value.as_str(), "" | "false" | "0"));
        let solved = self.job.dockerfile(request.build, &request.dockerfile, know).await;
        let solved = solved.map_err(|error| reply::status(&error))?;
        Ok(Solution::of_images(solved.images, is_map))
    }
}

/// The front end that a Dockerfile asks for, where it is not this one: an image, and what it is told.
#[derive(Default)]
struct OtherFrontEnd(Mutex<Option<String>>);

/// The images that are forge's own front end under another name.
fn is_dockerfile(source: &str) -> bool {
    let name = source.strip_prefix("docker.io/").unwrap_or(source);
    let name = name.split(['@', ':']).next().unwrap_or(name);
    matches!(name, "dockerfile.v0" | "docker/dockerfile" | "docker/dockerfile-upstream")
}

/// What the client asks for, as far as the daemon allows it.
fn allowed(wanted: &[String], granted: &[String]) -> Result<Allowed, Status> {
    let mut allowed = Allowed::default();
    for entitlement in wanted {
        let name = entitlement.split('=').next().unwrap_or(entitlement);
        let is_granted = granted.iter().any(|granted| granted == entitlement || granted == name);
        if !is_granted && name != "device" {
            return Err(Status::unknown(format!(
                "granting entitlement {entitlement} is not allowed by build daemon configuration"
            )));
        }
        match (name, entitlement.split_once('=')) {
            ("network.host", None) => allowed.host_network = true,
            ("security.insecure", None) => allowed.insecure = true,
            ("device", None) => allowed.all_devices = true,
            ("device", Some((_, device))) => _ = allowed.devices.insert(device.to_owned()),
            _ => return Err(Status::unknown(format!("unknown entitlement {entitlement:?}"))),
        }
    }
    Ok(allowed)
}
