//! A build that its client steers: it solves, looks at results, and says at last what the result is.

use crate::attestations;
use crate::containers::Containers;
use crate::failed::ToldFailures;
use crate::reply;
use crate::session::send::stat_of;
use crate::solution::{self, Found, Results, Solution};
use crate::solve::{FrontendRequest, JobContext};
use forge_buildkit_proto::fsutil::types::Stat;
use forge_buildkit_proto::google::rpc;
use forge_buildkit_proto::moby::buildkit::v1::VertexWarning;
use forge_buildkit_proto::moby::buildkit::v1::apicaps::ApiCap;
use forge_buildkit_proto::moby::buildkit::v1::frontend::{
    self as wire, EvaluateResponse, InputsResponse, PongResponse, ReadDirRequest, ReadDirResponse, ReadFileRequest,
    ReadFileResponse, Ref, RefMap, RefMapDeprecated, ReturnRequest, SolveRequest, SolveResponse, StatFileRequest,
    StatFileResponse, WarnRequest, result,
};
use forge_buildkit_proto::pb;
use forge_engine::{Invocation, Job, JobResult, MergedTree, TreeEntry, TreeKind};
use forge_session::{ContextPath, PatternMatcher};
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tonic::{Code, Status};

/// Messages are bounded; a file is not.
const MOST_FILE: u64 = (16 << 20) - 1024;

/// What front ends can ask of a bridge.
const FRONTEND_CAPABILITIES: [&str; 26] = [
    "solve.base",
    "solve.inlinereturn",
    "resolveimage",
    "resolveimage.resolvemode",
    "readfile",
    "return",
    "returnmap",
    "readdir",
    "statfile",
    "importcaches",
    "proto.refarray",
    "reference.output",
    "frontend.inputs",
    "gateway.solve.metadata",
    "frontend.caps",
    "gateway.solve.evaluate",
    "gateway.evaluate",
    "gateway.warnings",
    "reference.attestations",
    "source.metaresolver",
    "gateway.exec",
    "gateway.exec.extrahosts",
    "gateway.exec.secretenv",
    "gateway.exec.signals",
    "gateway.exec.filesystem",
    "source.metaresolver.image.attestations",
];

/// What a client has made of a build so far.
pub(crate) struct Bridge {
    context: JobContext,
    inputs: HashMap<String, pb::Definition>,
    /// What the client itself asked for.
    root: Arc<Invocation>,
    results: Mutex<HashMap<String, Found>>,
    next: AtomicU64,
    pub(crate) containers: Containers,
    pub(crate) told: ToldFailures,
    returned: watch::Sender<Option<Result<Solution, Status>>>,
}

impl Bridge {
    pub(crate) fn new(context: JobContext, inputs: HashMap<String, pb::Definition>, root: Arc<Invocation>) -> Self {
        let (results, next) = (Mutex::default(), AtomicU64::new(1));
        let (containers, told, returned) = Default::default();
        Self { context, inputs, root, results, next, containers, told, returned }
    }

    /// What the client says the result is, once it does.
    pub(crate) async fn wait(&self) -> Result<Solution, Status> {
        let mut returned = self.returned.subscribe();
        let cancel = &self.context.build.cancel;
        tokio::select! {
            () = cancel.cancelled() => Err(Status::cancelled("context canceled")),
            said = returned.wait_for(Option::is_some) => match said {
                Ok(said) => said.clone().unwrap_or_else(|| Err(Status::internal("the build has no result"))),
                Err(_) => Err(Status::internal("the build has no result")),
            },
        }
    }

    /// What the client said the result is, if it has.
    pub(crate) fn returned(&self) -> Option<Result<Solution, Status>> {
        self.returned.borrow().clone()
    }

    pub(crate) fn job(&self) -> &Job {
        &self.context.job
    }

    fn results(&self) -> MutexGuard<'_, HashMap<String, Found>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a result a name that no other build has.
    pub(crate) fn name(&self, result: Found) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{number}", self.context.build.reference);
        self.results().insert(id.clone(), result);
        id
    }

    /// A result by its name; no name is the empty file system.
    pub(crate) fn find(&self, id: &str) -> Result<Option<Found>, Status> {
        if id.is_empty() {
            return Ok(None);
        }
        let found = self.results().get(id).cloned();
        found.map(Some).ok_or_else(|| Status::unknown(format!("no such ref: {id}")))
    }

    async fn tree(&self, id: &str) -> Result<MergedTree, Status> {
        let found = self.find(id)?.ok_or_else(|| Status::unknown(format!("empty ref: {id}")))?;
        self.job().tree(&found.result).await.map_err(|error| self.placed(reply::status(&error)))
    }

    /// What makes a result, with all that is known of where its steps come from.
    fn definition(&self, result: &JobResult) -> Option<pb::Definition> {
        // A result that the format has no words for is none the worse for it.
        let named = result.named_definition().ok()?;
        let mut definition = forge_buildkit_proto::definition(&named.bytes).ok()?;
        self.context.build.places.carry_over(&mut definition, &named.names);
        forge_buildkit_proto::without_empty_places(&mut definition);
        Some(definition)
    }

    /// A failure with all places that the step comes from, and what there is of it.
    fn placed(&self, failed: Status) -> Status {
        self.with_results(self.context.build.places.complete(failed))
    }

    /// The names that the parts of a result get, in order; no name is the empty file system.
    pub(crate) fn names(&self, solution: &Solution) -> Vec<String> {
        let found = solution.images.iter().map(|image| {
            let invocation = image.invocation.clone();
            image.result.clone().map(|result| Found { result, invocation })
        });
        found.map(|found| found.map(|found| self.name(found)).unwrap_or_default()).collect()
    }

    pub(crate) fn ping(&self) -> PongResponse {
        let capability = |id: &str| ApiCap { id: id.to_owned(), enabled: true, ..ApiCap::default() };
        PongResponse {
            frontend_api_caps: FRONTEND_CAPABILITIES.iter().map(|id| capability(id)).collect(),
            llb_caps: forge_buildkit_proto::capabilities().iter().map(|id| capability(id)).collect(),
            workers: vec![self.context.shared.worker.clone()],
        }
    }

    pub(crate) async fn solve(&self, request: SolveRequest) -> Result<SolveResponse, Status> {
        let (imports, remarks) = crate::caches::further(&request, self.context.client.as_ref());
        remarks.into_iter().for_each(|remark| self.context.build.progress.warn(remark));
        if !imports.is_empty() {
            self.job().ask_also(&imports).await.map_err(|error| reply::status(&error))?;
        }
        let asked = FrontendRequest {
            frontend: request.frontend,
            options: request.frontend_opt,
            definition: request.definition,
            inputs: request.frontend_inputs,
            root: Some(self.root.clone()),
        };
        let context = self.context.judged_by(&request.source_policies, None)?;
        let solution = Box::pin(context.frontend(asked)).await.map_err(|failed| self.placed(failed))?;
        if request.evaluate {
            solution.evaluate(self.job()).await.map_err(|failed| self.placed(failed))?;
        }
        if solution.is_map && !request.allow_result_return {
            return Err(Status::unknown("solve did not return default result"));
        }
        let mut named = Vec::new();
        for image in &solution.images {
            let (id, def) = match &image.result {
                Some(result) => {
                    let definition = self.definition(result);
                    if let (Some(definition), Some(invocation)) = (&definition, &image.invocation) {
                        let build = &self.context.build.reference;
                        self.context.shared.origins.note(build, definition, invocation.origin());
                    }
                    let found = Found { result: result.clone(), invocation: image.invocation.clone() };
                    (self.name(found), definition)
                }
                None => (String::new(), None),
            };
            named.push((solution::platform_key(&image.platform), Ref { id, def }));
        }
        let only = named.first().map(|(_, named)| named.clone()).unwrap_or_default();
        let old_ref = if request.allow_result_return { String::new() } else { only.id.clone() };
        let result = match (solution.is_map, request.allow_result_array_ref) {
            (true, true) => result::Result::Refs(RefMap { refs: named.into_iter().collect() }),
            (true, false) => {
                let refs = named.into_iter().map(|(key, named)| (key, named.id)).collect();
                result::Result::RefsDeprecated(RefMapDeprecated { refs })
            }
            (false, true) => result::Result::Ref(only),
            (false, false) => result::Result::RefDeprecated(only.id),
        };
        let metadata = solution.metadata;
        let result = wire::Result { metadata, attestations: HashMap::new(), result: Some(result) };
        Ok(SolveResponse { r#ref: old_ref, result: Some(result) })
    }

    pub(crate) async fn read_file(&self, request: ReadFileRequest) -> Result<ReadFileResponse, Status> {
        let tree = self.tree(&request.r#ref).await?;
        blocking(move || read_file(&tree, &request)).await
    }

    pub(crate) async fn read_dir(&self, request: ReadDirRequest) -> Result<ReadDirResponse, Status> {
        let tree = self.tree(&request.r#ref).await?;
        blocking(move || read_dir(&tree, &request)).await
    }

    pub(crate) async fn stat_file(&self, request: StatFileRequest) -> Result<StatFileResponse, Status> {
        let tree = self.tree(&request.r#ref).await?;
        blocking(move || stat_file(&tree, &request.path)).await
    }

    pub(crate) async fn evaluate(&self, id: &str) -> Result<EvaluateResponse, Status> {
        if let Some(found) = self.find(id)? {
            let evaluated = self.job().evaluate(&found.result).await;
            evaluated.map_err(|error| self.placed(reply::status(&error)))?;
        }
        Ok(EvaluateResponse {})
    }

    pub(crate) fn inputs(&self) -> InputsResponse {
        let mut definitions = self.inputs.clone();
        definitions.values_mut().for_each(forge_buildkit_proto::without_empty_places);
        InputsResponse { definitions }
    }

    pub(crate) fn warn(&self, request: WarnRequest) {
        self.context.build.progress.warn(VertexWarning {
            vertex: request.digest,
            level: request.level,
            short: request.short,
            detail: request.detail,
            url: request.url,
            info: request.info,
            ranges: request.ranges,
        });
    }

    /// Ends the build with a result or an error.
    pub(crate) fn return_result(&self, request: ReturnRequest) -> Result<(), Status> {
        let said = match (request.error, request.result) {
            (Some(error), _) => Err(status_of(&error)),
            (None, Some(result)) => self.solution(result),
            (None, None) => return Err(Status::invalid_argument("no result")),
        };
        self.returned.send_replace(Some(said));
        Ok(())
    }

    fn solution(&self, result: wire::Result) -> Result<Solution, Status> {
        let by_key = |refs: Vec<(String, String)>| -> Result<Results, Status> {
            let found = refs.into_iter().map(|(key, id)| Ok((key, self.find(&id)?)));
            Ok(Results::ByKey(found.collect::<Result<BTreeMap<_, _>, Status>>()?))
        };
        let results = match result.result.clone() {
            None => Results::One(None),
            Some(result::Result::RefDeprecated(id)) => Results::One(self.find(&id)?),
            Some(result::Result::Ref(named)) => Results::One(self.find(&named.id)?),
            Some(result::Result::RefsDeprecated(map)) => by_key(map.refs.into_iter().collect())?,
            Some(result::Result::Refs(map)) => {
                by_key(map.refs.into_iter().map(|(key, named)| (key, named.id)).collect())?
            }
        };
        let mut solution = Solution::of_metadata(results, result.metadata)?;
        for (key, said) in &result.attestations {
            let of = |attestation: &wire::Attestation| {
                let found = match &attestation.r#ref {
                    Some(named) => self.find(&named.id)?,
                    None => None,
                };
                attestations::given(attestation, found.map(|found| found.result))
            };
            solution.give(key, said.attestation.iter().map(of).collect::<Result<_, _>>()?)?;
        }
        Ok(solution)
    }
}

/// An error as a client hands it in, with its details.
fn status_of(error: &rpc::Status) -> Status {
    Status::with_details(Code::from_i32(error.code), error.message.clone(), error.encode_to_vec().into())
}

pub(crate) fn read_file(tree: &MergedTree, request: &ReadFileRequest) -> Result<ReadFileResponse, Status> {
    let path = &request.file_path;
    let entry = lookup(tree, path, "open")?;
    if !matches!(entry.kind, TreeKind::File { .. }) {
        return Err(Status::unknown(format!("{path} is not a regular file")));
    }
    let failed = |error: std::io::Error| Status::unknown(format!("read {path}: {error}"));
    let mut file = tree.open(&entry.path).map_err(|error| Status::unknown(error.to_string()))?;
    let mut limit = MOST_FILE;
    if let Some(range) = request.range {
        file.seek(SeekFrom::Start(u64::try_from(range.offset).unwrap_or(0))).map_err(failed)?;
        limit = limit.min(u64::try_from(range.length).unwrap_or(0));
    }
    let mut data = Vec::new();
    file.take(limit).read_to_end(&mut data).map_err(failed)?;
    Ok(ReadFileResponse { data })
}

pub(crate) fn stat_file(tree: &MergedTree, path: &str) -> Result<StatFileResponse, Status> {
    let entry = lookup(tree, path, "lstat")?;
    let name = entry.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stat = Stat { path: name, ..stat_of(&entry, None) };
    Ok(StatFileResponse { stat: Some(stat) })
}

pub(crate) fn read_dir(tree: &MergedTree, request: &ReadDirRequest) -> Result<ReadDirResponse, Status> {
    let is_root = Path::new(&request.dir_path).components().all(|part| !matches!(part, Component::Normal(_)));
    let found = tree.lookup(Path::new("/")).map_err(|error| Status::unknown(error.to_string()))?;
    if is_root && found.is_none() {
        // The empty file system has no layer that would know its root.
        return Ok(ReadDirResponse::default());
    }
    let entry = lookup(tree, &request.dir_path, "lstat")?;
    if !entry.is_directory() {
        return Err(Status::unknown(format!("{}: not a directory", request.dir_path)));
    }
    let pattern = match request.include_pattern.as_str() {
        "" => None,
        pattern => {
            let pattern = PatternMatcher::new(&[pattern.to_owned()]);
            Some(pattern.map_err(|error| Status::unknown(error.to_string()))?)
        }
    };
    let children = tree.children(&entry.path).map_err(|error| Status::unknown(error.to_string()))?;
    let mut entries = Vec::new();
    for child in children {
        let path = child.name.to_string_lossy().into_owned();
        if pattern.as_ref().is_none_or(|pattern| pattern.matches(&ContextPath::clean(&path))) {
            entries.push(Stat { path, ..stat_of(&child, None) });
        }
    }
    Ok(ReadDirResponse { entries })
}

/// An entry of a tree, all links followed inside the tree.
fn lookup(tree: &MergedTree, path: &str, doing: &str) -> Result<TreeEntry, Status> {
    let failed = |why: String| Status::unknown(format!("{doing} {path}: {why}"));
    let resolved = tree.resolve(Path::new(path)).map_err(|error| failed(error.to_string()))?;
    let found = tree.lookup(&resolved).map_err(|error| failed(error.to_string()))?;
    found.ok_or_else(|| failed("no such file or directory".to_owned()))
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))?
}
