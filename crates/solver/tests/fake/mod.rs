//! A worker, results and a session that only remember: what solver tests are made of.
//!
//! A step's result is a text, a function of the step's name and what it reads; [`Fake::model`] computes the same
//! text without a solver. A step is described by its vertex's name alone, so that equal graphs have equal digests.
#![allow(dead_code, reason = "each test file uses a part")]

use async_trait::async_trait;
use forge_cache::*;
use forge_image::{Digest, ErrorKind};
use forge_llb::*;
use forge_session::*;
use forge_solver::*;
use forge_store::{ContentDigest, LayerId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How a step behaves. Only `reads` is part of its key.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// How long it runs.
    pub takes: Duration,
    /// Whether it fails.
    pub fails: bool,
    /// Whether it panics.
    pub panics: bool,
    /// Whether it is a local context of that name.
    pub context: Option<String>,
    /// The inputs that are keyed by content.
    pub reads: BTreeSet<usize>,
    /// Its result, whatever its inputs are: setting another is what a mirror with newer packages does.
    pub text: Option<String>,
    /// Never kept.
    pub uncacheable: bool,
    /// The input that it lies on.
    pub beneath: Option<usize>,
    /// Whether what it made on another input will do: the same text.
    pub is_kept: bool,
    /// It has to wait for another step's end, as for a folder that both use.
    pub waits_for: Option<String>,
}

/// The worker and the results in one. Clones share everything.
#[derive(Clone, Default)]
pub struct Fake(Arc<State>);

#[derive(Default)]
struct State {
    behaviours: Mutex<HashMap<String, Behaviour>>,
    contexts: Mutex<BTreeMap<String, String>>,
    texts: Mutex<HashMap<LayerId, String>>,
    folder: Mutex<Option<PathBuf>>,
    log: Mutex<Option<PathBuf>>,
    ran: Mutex<Vec<String>>,
    mapped: Mutex<Vec<String>>,
    ended: Mutex<BTreeSet<String>>,
    running: AtomicUsize,
    most: AtomicUsize,
    digests: AtomicUsize,
}

/// Builds graphs of vertices that are names.
#[derive(Default)]
pub struct GraphBuilder {
    pub graph: Graph,
}

impl GraphBuilder {
    pub fn add(&mut self, name: &str, inputs: &[&Edge]) -> Edge {
        self.add_vertex(vertex(name, inputs))
    }

    pub fn add_ignoring_cache(&mut self, name: &str, inputs: &[&Edge]) -> Edge {
        let mut vertex = vertex(name, inputs);
        vertex.metadata.ignore_cache = true;
        self.add_vertex(vertex)
    }

    fn add_vertex(&mut self, vertex: Vertex) -> Edge {
        self.graph.add(vertex).unwrap()
    }

    pub fn goal(mut self, edge: &Edge) -> Graph {
        self.graph.set_goal(Some(edge.clone())).unwrap();
        self.graph
    }
}

pub fn vertex(name: &str, inputs: &[&Edge]) -> Vertex {
    let action = RmAction { path: name.to_owned(), allow_not_found: true, allow_wildcard: false };
    let span = InstructionSpan { file: "Dockerfile".to_owned(), first_line: 3, last_line: 3, text: name.to_owned() };
    Vertex {
        op: Op::File(FileOp { actions: vec![FileAction { base: FileInput::Scratch, kind: FileKind::Rm(action) }] }),
        inputs: inputs.iter().map(|edge| (*edge).clone()).collect(),
        platform: None,
        metadata: Metadata { name: name.to_owned(), span: Some(span), ..Metadata::default() },
    }
}

/// A chain of steps, the last one the goal.
pub fn chain(names: &[&str]) -> Graph {
    let mut builder = GraphBuilder::default();
    let mut last: Option<Edge> = None;
    for name in names {
        last = Some(builder.add(name, &last.iter().collect::<Vec<_>>()));
    }
    builder.goal(&last.unwrap())
}

impl Fake {
    /// Changes how a step behaves.
    pub fn set(&self, name: &str, change: impl FnOnce(&mut Behaviour)) -> &Self {
        change(self.0.behaviours.lock().unwrap().entry(name.to_owned()).or_default());
        self
    }

    pub fn set_context(&self, name: &str, text: &str) {
        self.0.contexts.lock().unwrap().insert(name.to_owned(), text.to_owned());
    }

    /// Keeps results in a folder too, for other processes.
    pub fn share(&self, folder: PathBuf) {
        *self.0.folder.lock().unwrap() = Some(folder);
    }

    /// Writes the names of what runs to a file, for other processes.
    pub fn log_runs_to(&self, file: PathBuf) {
        *self.0.log.lock().unwrap() = Some(file);
    }

    fn note_run(&self, name: &str) {
        self.0.ran.lock().unwrap().push(name.to_owned());
        if let Some(file) = &*self.0.log.lock().unwrap() {
            let mut file = std::fs::File::options().append(true).create(true).open(file).unwrap();
            file.write_all(format!("{name}\n").as_bytes()).unwrap();
        }
    }

    /// What ran since the last call, in order of starting.
    pub fn ran(&self) -> Vec<String> {
        std::mem::take(&mut self.0.ran.lock().unwrap())
    }

    /// What was mapped since the last call, sorted.
    pub fn mapped(&self) -> Vec<String> {
        let mut mapped = std::mem::take(&mut *self.0.mapped.lock().unwrap());
        mapped.sort();
        mapped
    }

    pub fn running(&self) -> usize {
        self.0.running.load(Ordering::SeqCst)
    }

    /// The most steps that ever ran at once.
    pub fn most(&self) -> usize {
        self.0.most.load(Ordering::SeqCst)
    }

    /// How often the content of a result was read since the last call.
    pub fn digests(&self) -> usize {
        self.0.digests.swap(0, Ordering::SeqCst)
    }

    /// Loses all results, as a garbage collection that knew no roots would.
    pub fn forget_results(&self) {
        self.0.texts.lock().unwrap().clear();
    }

    pub fn text(&self, result: &ResultRef) -> String {
        match result {
            ResultRef::Context { name, .. } => self.context_text(name),
            ResultRef::Layers(layers) => layers.iter().map(|layer| self.layer_text(layer).unwrap()).collect(),
        }
    }

    fn context_text(&self, name: &str) -> String {
        self.0.contexts.lock().unwrap().get(name).cloned().unwrap_or_default()
    }

    fn layer_text(&self, layer: &LayerId) -> Option<String> {
        let kept = self.0.texts.lock().unwrap().get(layer).cloned();
        let folder = self.0.folder.lock().unwrap().clone();
        kept.or_else(|| std::fs::read_to_string(folder?.join(layer.as_str())).ok())
    }

    fn keep(&self, text: String) -> ResultRef {
        let layer = LayerId::random();
        if let Some(folder) = &*self.0.folder.lock().unwrap() {
            std::fs::write(folder.join(layer.as_str()), &text).unwrap();
        }
        self.0.texts.lock().unwrap().insert(layer, text);
        ResultRef::Layers(vec![layer])
    }

    fn behaviour(&self, name: &str) -> Behaviour {
        self.0.behaviours.lock().unwrap().get(name).cloned().unwrap_or_default()
    }

    fn result_text(&self, name: &str, inputs: &[String]) -> String {
        let behaviour = self.behaviour(name);
        match (behaviour.text, behaviour.context) {
            (Some(text), _) => text,
            (None, Some(context)) => self.context_text(&context),
            // A hash, so that texts do not grow with the graph.
            (None, None) => blake3::hash(format!("{name}({})", inputs.join(",")).as_bytes()).to_hex()[..16].to_owned(),
        }
    }

    /// The text of every vertex of a graph, computed one after the other.
    pub fn model(&self, graph: &Graph) -> HashMap<VertexDigest, String> {
        let mut texts: HashMap<VertexDigest, String> = HashMap::new();
        for vertex in graph.vertices() {
            let inputs: Vec<String> = vertex.inputs.iter().map(|edge| texts[&edge.vertex].clone()).collect();
            texts.insert(vertex.digest(), self.result_text(&vertex.metadata.name, &inputs));
        }
        texts
    }
}

#[async_trait]
impl Worker for Fake {
    async fn cache_map(&self, vertex: &Vertex, _: &Arc<dyn Session>) -> Result<CacheMap, WorkerError> {
        let name = &vertex.metadata.name;
        self.0.mapped.lock().unwrap().push(name.clone());
        let behaviour = self.behaviour(name);
        let key = |index| match behaviour.reads.contains(&index) {
            true => InputKey::Content(Selector::all()),
            false => InputKey::Definition,
        };
        let op = format!("{name} {:?}", behaviour.reads);
        Ok(CacheMap {
            op: behaviour.context.is_none().then(|| OpKey::new(op.as_bytes())),
            inputs: (0..vertex.inputs.len()).map(key).collect(),
            readable: vec![("op".to_owned(), name.clone())],
            beneath: behaviour.beneath,
            cacheable: behaviour.context.is_none() && !behaviour.uncacheable,
        })
    }

    async fn find(
        &self,
        request: ExecuteRequest,
        _session: &Arc<dyn Session>,
    ) -> Result<Option<Vec<ResultRef>>, WorkerError> {
        let behaviour = self.behaviour(&request.vertex.metadata.name);
        let text = behaviour.text.filter(|_| behaviour.is_kept);
        Ok(text.map(|text| vec![self.keep(text)]))
    }

    async fn execute(&self, request: ExecuteRequest, session: &Arc<dyn Session>) -> Result<Execution, WorkerError> {
        let name = &request.vertex.metadata.name;
        self.note_run(name);
        self.0.most.fetch_max(self.0.running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let behaviour = self.behaviour(name);
        // Reading the inputs fails the test when one of them is not there.
        let inputs: Vec<String> = request.inputs.iter().map(|input| self.text(input)).collect();
        if let Some(other) = &behaviour.waits_for {
            session.leave_place().await;
            while !self.0.ended.lock().unwrap().contains(other) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            session.take_place().await;
        }
        let told = session.cancellation().run_until_cancelled(pause(behaviour.takes)).await;
        self.0.ended.lock().unwrap().insert(name.clone());
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        assert!(!behaviour.panics, "{name} panics");
        match (told, behaviour.fails, behaviour.context) {
            (None, ..) => Err(WorkerError::Cancelled),
            (_, true, _) => Err(WorkerError::Process {
                exit: 3,
                message: format!("process {name:?} did not complete successfully: exit code: 3"),
                last_lines: vec!["last words".to_owned()],
            }),
            (_, _, Some(context)) => {
                let context = ResultRef::Context {
                    name: context,
                    include: Vec::new(),
                    exclude: Vec::new(),
                    follow: Vec::new(),
                    metadata_only: None,
                };
                Ok(Execution::new(vec![context]))
            }
            _ => {
                let text = self.result_text(name, &inputs);
                let content = blake3::hash(text.as_bytes()).into();
                let mut execution = Execution::new(vec![ResultRef::scratch()]);
                execution.set(0, self.keep(text), MadeLayer { content, bytes: 7 });
                Ok(execution)
            }
        }
    }
}

/// A sleep of no time would still take a tick of the timer, a millisecond.
async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

#[async_trait]
impl ResultStore for Fake {
    async fn acquire(&self, result: &ResultRef) -> Result<bool, CacheError> {
        Ok(result.layers().iter().all(|layer| self.layer_text(layer).is_some()))
    }

    async fn content_digest(
        &self,
        result: &ResultRef,
        _: &Selector,
        _: &Arc<dyn Session>,
    ) -> Result<ContentDigest, CacheError> {
        self.0.digests.fetch_add(1, Ordering::SeqCst);
        Ok(blake3::hash(self.text(result).as_bytes()).into())
    }
}

/// A solver with everything in memory.
pub fn solver(fake: &Fake) -> Solver {
    Solver {
        worker: Arc::new(fake.clone()),
        results: Arc::new(fake.clone()),
        index: Arc::new(MemoryIndex::new()),
        flights: Arc::new(Flights::in_process()),
        remote: None,
        max_parallelism: None,
        on_failure: OnFailure::CancelOthers,
    }
}

/// A session that records events.
#[derive(Default)]
pub struct FakeSession {
    events: Events,
    token: CancellationToken,
}

#[derive(Default)]
struct Events(Mutex<Vec<VertexUpdate>>, Mutex<Vec<String>>);

impl EventSink for Events {
    fn emit(&self, event: Event) {
        match event {
            Event::Vertex(update) => self.0.lock().unwrap().push(update),
            Event::Log { data, .. } => self.1.lock().unwrap().push(String::from_utf8(data).unwrap()),
            _ => {}
        }
    }
}

#[async_trait]
impl Session for FakeSession {
    fn context(&self, _: &str) -> Option<Arc<dyn Context>> {
        None
    }
    async fn credentials(&self, _: &str) -> Result<Option<Credentials>, CredentialError> {
        Ok(None)
    }
    async fn secret(&self, _: &str) -> Result<Option<Secret>, SecretError> {
        Ok(None)
    }
    async fn ssh_agent(&self, _: &str) -> Result<Option<OwnedFd>, SecretError> {
        Ok(None)
    }
    fn events(&self) -> &dyn EventSink {
        &self.events
    }
    fn cancellation(&self) -> &CancellationToken {
        &self.token
    }
}

impl FakeSession {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn updates(&self) -> Vec<VertexUpdate> {
        self.events.0.lock().unwrap().clone()
    }

    /// What the solver wrote into the logs of steps.
    pub fn lines(&self) -> Vec<String> {
        self.events.1.lock().unwrap().iter().map(|line| line.trim_end().to_owned()).collect()
    }

    /// One line for each event: announced `name`, started `> name`, ended `< name`, `= name` from the cache, `! name: error`.
    pub fn log(&self) -> Vec<String> {
        let line = |update: &VertexUpdate| match (&update.started, &update.completed, &update.error) {
            (None, ..) => update.name.clone(),
            (Some(_), None, _) => format!("> {}", update.name),
            (_, Some(_), Some(error)) => format!("! {}: {error}", update.name),
            (_, Some(_), None) if update.cached => format!("= {}", update.name),
            (_, Some(_), None) => format!("< {}", update.name),
        };
        self.updates().iter().map(line).collect()
    }

    /// Fails unless every vertex was announced first, and then started and ended at most once each, in that order.
    /// Gives back the vertices that ended.
    pub fn check(&self, announced: usize) -> BTreeSet<Digest> {
        let updates = self.updates();
        let mut seen: BTreeMap<Digest, (bool, bool)> = BTreeMap::new();
        for (position, update) in updates.iter().enumerate() {
            if position < announced {
                assert!(update.started.is_none() && update.completed.is_none());
                assert!(seen.insert(update.digest.clone(), (false, false)).is_none(), "announced twice");
                continue;
            }
            let (started, ended) = seen.get_mut(&update.digest).expect("announced before");
            assert!(!*ended, "{} goes on after its end", update.name);
            match (&update.completed, update.cached) {
                (None, _) => assert!(!std::mem::replace(started, true), "{} starts twice", update.name),
                (Some(_), true) => assert!(!*started, "{} ran, and is cached", update.name),
                (Some(_), false) => assert!(*started || update.error.is_some(), "{} did not start", update.name),
            }
            *ended = update.completed.is_some();
        }
        assert_eq!(seen.len(), announced);
        assert!(seen.values().all(|(started, ended)| !*started || *ended), "a step that started never ended");
        seen.into_iter().filter(|(_, (_, ended))| *ended).map(|(digest, _)| digest).collect()
    }
}

/// Who is to blame and the texts of an error and its causes.
pub fn describe(error: &SolveError) -> (ErrorKind, String) {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    (error.kind(), text)
}
