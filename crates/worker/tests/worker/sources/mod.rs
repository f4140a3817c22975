//! Files of web servers and repositories: local servers, a store and an index that outlive a build.

mod git;
mod http;
mod image;

use crate::site::{executor, vertex};
use crate::tree_text;
use crate::{Test, site};
use forge_cache::{ResultRef, SqliteIndex};
use forge_image::Digest;
use forge_llb::{Op, SourceOp};
use forge_registry::{Registry, RegistryOptions, RetryPolicy, TransferContext};
use forge_session::Session;
use forge_solver::{CacheMap, ExecuteRequest, Worker, WorkerError};
use forge_store::{LayerId, Store};
use forge_testkit::TestSession;
use forge_worker::{ImageResolver, LocalWorker};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub fn tests() -> Vec<Test> {
    [http::TESTS, git::TESTS, image::TESTS].concat()
}

struct Bench {
    store: Store,
    session: Arc<TestSession>,
    options: RegistryOptions,
    runtime: Runtime,
    // Last: the others lie in it.
    folder: TempDir,
}

/// One build's worker.
struct Build<'a> {
    bench: &'a Bench,
    worker: LocalWorker,
}

impl Bench {
    fn new() -> Self {
        Self::with(TestSession::new())
    }

    fn with(session: TestSession) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let retry = RetryPolicy { attempts: 2, base: Duration::from_millis(1), longest: Duration::from_millis(1) };
        let options = RegistryOptions { retry, ..RegistryOptions::default() };
        Self { store, session: Arc::new(session), options, runtime: Runtime::new().unwrap(), folder }
    }

    fn build(&self) -> Build<'_> {
        let lease = Arc::new(self.store.lease("test").unwrap());
        let session: Arc<dyn Session> = self.session.clone();
        let transfer =
            TransferContext { store: self.store.clone(), lease: lease.clone(), session, vertex: Digest::sha256(b"x") };
        let registry = Arc::new(Registry::new(self.options.clone()).unwrap());
        let images = Arc::new(ImageResolver::new(transfer, registry, BTreeMap::new()));
        let index = Arc::new(SqliteIndex::open(&self.folder.path().join("cache.db")).unwrap());
        let worker = LocalWorker::new(self.store.clone(), lease, executor(), images).with_index(index);
        Build { bench: self, worker }
    }

    /// What one build makes of a source.
    fn tree(&self, source: &SourceOp) -> String {
        self.build().tree(source)
    }
}

impl Build<'_> {
    fn session(&self) -> Arc<dyn Session> {
        self.bench.session.clone()
    }

    fn pin(&self, source: &SourceOp) -> Result<CacheMap, WorkerError> {
        let vertex = site::vertex(Op::Source(source.clone()));
        self.bench.runtime.block_on(self.worker.cache_map(&vertex, &self.session()))
    }

    fn snapshot(&self, source: &SourceOp) -> Result<ResultRef, WorkerError> {
        let vertex = vertex(Op::Source(source.clone()));
        let request = ExecuteRequest { digest: vertex.digest(), vertex: Arc::new(vertex), inputs: Vec::new() };
        let execution = self.bench.runtime.block_on(self.worker.execute(request, &self.session()))?;
        Ok(execution.outputs.into_iter().next().unwrap())
    }

    fn time(&self, source: &SourceOp) -> Option<u64> {
        let time = self.bench.runtime.block_on(self.worker.source_time(source, &self.session())).unwrap();
        time.map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
    }

    /// Pinned and brought in, as text; errors as they are shown.
    fn tree(&self, source: &SourceOp) -> String {
        match self.pin(source).and_then(|_| self.snapshot(source)) {
            Ok(result) => self.print(result.layers().last().unwrap()),
            Err(error) => self.error(&error),
        }
    }

    fn error(&self, error: &WorkerError) -> String {
        format!("{:?}: {error}\n", error.kind())
    }

    fn print(&self, layer: &LayerId) -> String {
        let layers = self.bench.store.layers();
        let tree = layers.lower_dirs(std::slice::from_ref(layer)).unwrap()[0].clone();
        tree_text::print(&layers.index(layer).unwrap(), |path| std::fs::read(tree.join(path)).unwrap())
    }
}
