//! A store, a session and a worker, with trees made from text and steps written as in a Dockerfile.

use crate::tree_text;
use forge_cache::{ResultRef, ResultStore, Selector};
use forge_executor::{Executor, NamespaceExecutor};
use forge_image::Digest;
use forge_llb::{
    CopyAction, Edge, FileAction, FileInput, FileKind, FileOp, Metadata, ModeChange, Op, Owner, Vertex, VertexDigest,
};
use forge_registry::{Registry, RegistryOptions, TransferContext};
use forge_session::{LocalContext, Session};
use forge_solver::{ExecuteRequest, InputKey, Worker, WorkerError};
use forge_store::{ContentDigest, LayerId, LayerRecord, Lease, Store};
use forge_testkit::TestSession;
use forge_worker::{ImageResolver, LocalResults, LocalWorker};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The inputs of every step.
const BASE: usize = 0;
const CONTEXT: usize = 1;
const STAGE: usize = 2;

pub struct Site {
    pub store: Store,
    pub lease: Arc<Lease>,
    pub session: Arc<TestSession>,
    pub worker: LocalWorker,
    images: Arc<ImageResolver>,
    pub base: ResultRef,
    pub stage: ResultRef,
    pub ignore: Vec<String>,
    pub include: Vec<String>,
    pub runtime: Runtime,
    // Last: the others lie in it.
    folder: TempDir,
}

/// The executor that all tests share. It lives as long as the process.
pub fn executor() -> Arc<dyn Executor> {
    static EXECUTOR: OnceLock<(TempDir, Arc<NamespaceExecutor>)> = OnceLock::new();
    let make = || {
        let folder = tempfile::tempdir().unwrap();
        let executor = NamespaceExecutor::new(&folder.path().join("run")).unwrap();
        (folder, Arc::new(executor))
    };
    EXECUTOR.get_or_init(make).1.clone()
}

impl Site {
    /// Base and stage are empty, and so is the context. Beside it lies `canary`.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        std::fs::create_dir(folder.path().join("context")).unwrap();
        tree_text::write(folder.path(), "canary/flag =d5a1f8c1e3\ncanary/sub/x =\ncanary/sub/\ncanary/");
        let store = Store::open(&folder.path().join("store")).unwrap();
        let lease = Arc::new(store.lease("test").unwrap());
        let context = LocalContext::open(&folder.path().join("context")).unwrap();
        let session = Arc::new(TestSession::new().with_context("context", Arc::new(context)));
        let transfer = TransferContext {
            store: store.clone(),
            lease: lease.clone(),
            session: session.clone(),
            vertex: Digest::sha256(b"test"),
        };
        let registry = Arc::new(Registry::new(RegistryOptions::default()).unwrap());
        let images = Arc::new(ImageResolver::new(transfer, registry, BTreeMap::new()));
        let worker = LocalWorker::new(store.clone(), lease.clone(), executor(), images.clone());
        let (base, stage) = (ResultRef::scratch(), ResultRef::scratch());
        let (ignore, include) = (Vec::new(), Vec::new());
        Self { store, lease, session, worker, images, base, stage, ignore, include, runtime, folder }
    }

    /// What a build has for itself.
    pub fn build(&self) -> (LocalWorker, LocalResults) {
        let (store, lease, images) = (self.store.clone(), self.lease.clone(), self.images.clone());
        let worker = LocalWorker::new(store.clone(), lease.clone(), executor(), images);
        let results = LocalResults::new(store, lease, worker.contexts()).fetching(self.images.clone());
        (worker, results)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Adds to the build context.
    pub fn context(self, text: &str) -> Self {
        tree_text::write(&self.path("context"), text);
        self
    }

    /// Adds a layer to what is built on.
    pub fn base(mut self, text: &str) -> Self {
        self.base = self.with_layer(&self.base, |upper| tree_text::write(upper, text));
        self
    }

    /// Adds a layer to what `--from=stage` copies from.
    pub fn stage(mut self, text: &str) -> Self {
        self.stage = self.with_layer(&self.stage, |upper| tree_text::write(upper, text));
        self
    }

    /// Lines of the ignore file.
    pub fn ignore(mut self, patterns: &[&str]) -> Self {
        self.ignore = patterns.iter().map(ToString::to_string).collect();
        self
    }

    /// Patterns of what there is in the context at all.
    pub fn include(mut self, patterns: &[&str]) -> Self {
        self.include = patterns.iter().map(ToString::to_string).collect();
        self
    }

    pub fn with_layer(&self, below: &ResultRef, fill: impl FnOnce(&Path)) -> ResultRef {
        let layers = self.store.layers();
        let active = layers.prepare(below.layers()).unwrap();
        fill(active.upper());
        let id = layers.commit(active, &self.lease).unwrap().id;
        ResultRef::Layers([below.layers(), &[id]].concat())
    }

    /// What every step sees: base, context and stage.
    pub fn inputs(&self) -> Vec<ResultRef> {
        let (include, exclude) = (self.include.clone(), self.ignore.clone());
        let context = ResultRef::Context {
            name: "context".to_owned(),
            include,
            exclude,
            follow: Vec::new(),
            metadata_only: None,
        };
        vec![self.base.clone(), context, self.stage.clone()]
    }

    /// Does a COPY or ADD.
    pub fn execute(&self, instruction: &str) -> Result<LayerRecord, WorkerError> {
        self.execute_op(file_op(instruction))
    }

    pub fn execute_op(&self, op: FileOp) -> Result<LayerRecord, WorkerError> {
        let layers = self.run(Op::File(op))?;
        let id: &LayerId = layers.layers().last().unwrap();
        Ok(self.store.layers().get(id).unwrap().unwrap())
    }

    pub fn run(&self, op: Op) -> Result<ResultRef, WorkerError> {
        self.run_on(op, self.inputs())
    }

    /// Does an op that sees other inputs.
    pub fn run_on(&self, op: Op, inputs: Vec<ResultRef>) -> Result<ResultRef, WorkerError> {
        self.run_by(&self.build().0, op, inputs)
    }

    pub fn run_by(&self, worker: &LocalWorker, op: Op, inputs: Vec<ResultRef>) -> Result<ResultRef, WorkerError> {
        let vertex = vertex(op);
        let request = ExecuteRequest { digest: vertex.digest(), vertex: Arc::new(vertex), inputs };
        let session: Arc<dyn Session> = self.session.clone();
        let mut execution = self.runtime.block_on(worker.execute(request, &session))?;
        Ok(execution.outputs.remove(0))
    }

    /// The layer that an instruction makes, or its error, as text.
    pub fn does(&self, instruction: &str) -> String {
        self.shown(self.execute(instruction))
    }

    pub fn shown(&self, done: Result<LayerRecord, WorkerError>) -> String {
        self.check_canary();
        match done {
            Ok(record) => self.print(&record.id),
            Err(error) => {
                format!("{:?}: {error}\n", error.kind()).replace(&*self.path("").to_string_lossy(), "<SITE>/")
            }
        }
    }

    pub fn print(&self, layer: &LayerId) -> String {
        let layers = self.store.layers();
        let tree = layers.lower_dirs(std::slice::from_ref(layer)).unwrap()[0].clone();
        tree_text::print(&layers.index(layer).unwrap(), |path| std::fs::read(tree.join(path)).unwrap())
    }

    /// Puts the last step's layer on the base.
    pub fn on_top(mut self, record: &LayerRecord) -> Self {
        self.base = ResultRef::Layers([self.base.layers(), std::slice::from_ref(&record.id)].concat());
        self
    }

    /// Compares what an instruction makes with a text.
    #[track_caller]
    pub fn check(&self, instruction: &str, expected: &str) {
        assert_eq!(self.does(instruction), tree_text::trimmed(expected), "{instruction}");
    }

    /// The content keys that an instruction's inputs have now.
    pub fn keys(&self, instruction: &str) -> Result<Vec<ContentDigest>, String> {
        self.keys_by(&self.build().1, instruction)
    }

    pub fn keys_by(&self, results: &LocalResults, instruction: &str) -> Result<Vec<ContentDigest>, String> {
        let session: Arc<dyn Session> = self.session.clone();
        let map =
            self.runtime.block_on(self.worker.cache_map(&vertex(Op::File(file_op(instruction))), &session)).unwrap();
        let digest = |(input, key): (ResultRef, InputKey)| {
            let InputKey::Content(selector) = key else { panic!("inputs are known by their content") };
            self.digest_by(results, &input, &selector)
        };
        self.inputs().into_iter().zip(map.inputs).map(digest).collect()
    }

    /// What the context contributes to the key of an operation that sees nothing else.
    pub fn key_parts(&self, op: FileOp) -> ContentDigest {
        let session: Arc<dyn Session> = self.session.clone();
        let map = self.runtime.block_on(self.worker.cache_map(&vertex(Op::File(op)), &session)).unwrap();
        let InputKey::Content(selector) = &map.inputs[CONTEXT] else { panic!("inputs are known by their content") };
        self.digest(&self.inputs()[CONTEXT], selector).unwrap()
    }

    pub fn digest(&self, result: &ResultRef, selector: &Selector) -> Result<ContentDigest, String> {
        self.digest_by(&self.build().1, result, selector)
    }

    fn digest_by(
        &self,
        results: &LocalResults,
        result: &ResultRef,
        selector: &Selector,
    ) -> Result<ContentDigest, String> {
        let session: Arc<dyn Session> = self.session.clone();
        let digest = self.runtime.block_on(results.content_digest(result, selector, &session));
        digest.map_err(|error| error.to_string())
    }

    /// The folder beside the context is as it was.
    #[track_caller]
    pub fn check_canary(&self) {
        let folder = self.path("canary");
        let names = |path: &Path| {
            let mut names: Vec<_> = std::fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(&folder), ["flag", "sub"]);
        assert_eq!(names(&folder.join("sub")), ["x"]);
        assert_eq!(std::fs::read_to_string(folder.join("flag")).unwrap(), "d5a1f8c1e3");
        for path in ["", "sub"] {
            let time = std::fs::metadata(folder.join(path)).unwrap().modified().unwrap();
            assert_eq!(time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(), tree_text::TIME as u64);
        }
    }
}

pub fn vertex(op: Op) -> Vertex {
    let edge = |name: &str| Edge { vertex: VertexDigest::new(Digest::sha256(name.as_bytes())), output: 0 };
    let inputs = vec![edge("base"), edge("context"), edge("stage")];
    Vertex { op, inputs, platform: None, metadata: Metadata::default() }
}

/// `COPY [--flag…] source… destination` as an op; ADD unpacks. Besides docker's flags there are those of the op.
pub fn file_op(instruction: &str) -> FileOp {
    FileOp {
        actions: vec![FileAction { base: FileInput::Input(BASE), kind: FileKind::Copy(copy_action(instruction)) }],
    }
}

pub fn copy_action(instruction: &str) -> CopyAction {
    let mut words = instruction.split_whitespace();
    let unpack_archives = match words.next() {
        Some("COPY") => false,
        Some("ADD") => true,
        _ => panic!("{instruction}"),
    };
    let (flags, paths): (Vec<&str>, Vec<&str>) = words.partition(|word| word.starts_with("--"));
    let values = |name: &str| {
        let prefix = format!("--{name}=");
        flags
            .iter()
            .filter_map(move |flag| flag.strip_prefix(prefix.as_str()).map(ToOwned::to_owned))
            .collect::<Vec<_>>()
    };
    let (destination, sources) = paths.split_last().unwrap();
    let from = FileInput::Input(if values("from").is_empty() { CONTEXT } else { STAGE });
    CopyAction {
        owner: values("chown").first().map(|text| owner(text)),
        mode: values("chmod").first().map(|text| match u32::from_str_radix(text, 8) {
            Ok(bits) => ModeChange::Octal(bits),
            Err(_) => ModeChange::Symbolic(text.clone()),
        }),
        unpack_archives,
        include: values("include"),
        exclude: values("exclude"),
        required: values("required"),
        follow_links: !flags.contains(&"--no-follow"),
        contents_only: !flags.contains(&"--itself"),
        make_parents: !flags.contains(&"--no-parents"),
        allow_empty_wildcard: !flags.contains(&"--no-empty"),
        replace: flags.contains(&"--replace"),
        timestamp: values("timestamp").first().map(|text| text.parse().unwrap()),
        ..CopyAction::new(from, sources.iter().map(ToString::to_string).collect(), *destination)
    }
}

pub fn owner(text: &str) -> Owner {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    Owner { user: user.to_owned(), group: group.map(ToOwned::to_owned) }
}
