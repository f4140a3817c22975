//! The worker of this machine: one function for each op.

use crate::context_files::ContextFiles;
use crate::error::WorkError;
use crate::exec::container::BuildContainer;
use crate::exec::{self, Failures, RenewedMounts, StepContext};
use crate::file;
use crate::images::ImageResolver;
use crate::keys;
use crate::results::source_tree;
use crate::source_tree::Stop;
use crate::sources::{Asked, ReadObjects, SourceFacts, SourceState, Sources};
use crate::stack::Place;
use async_trait::async_trait;
use forge_cache::remote::RemoteMounts;
use forge_cache::{MadeLayer, ResultRef, SqliteIndex};
use forge_executor::Executor;
use forge_image::{Digest, ErrorKind, Platform};
use forge_llb::{ExecOp, FileOp, Op, SourceOp, Vertex};
use forge_session::Session;
use forge_solver::{CacheMap, ExecuteRequest, Execution, FailedPart, FailedStep, Worker, WorkerError};
use forge_store::{Lease, Store};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// Does the steps of one build on this machine.
pub struct LocalWorker {
    pub(crate) store: Store,
    pub(crate) lease: Arc<Lease>,
    executor: Arc<dyn Executor>,
    contexts: Arc<ContextFiles>,
    pub(crate) sources: Sources,
    device_folders: Arc<[PathBuf]>,
    shared_mounts: Option<Arc<dyn RemoteMounts>>,
    renewed_mounts: Option<RenewedMounts>,
    failures: Failures,
}

impl LocalWorker {
    /// Works for the build that holds `lease`.
    pub fn new(store: Store, lease: Arc<Lease>, executor: Arc<dyn Executor>, images: Arc<ImageResolver>) -> Self {
        let contexts = Arc::new(ContextFiles::new(&store));
        let sources = Sources::new(store.clone(), lease.clone(), executor.clone(), images);
        Self {
            store,
            lease,
            executor,
            contexts,
            sources,
            device_folders: Arc::default(),
            shared_mounts: None,
            renewed_mounts: None,
            failures: Failures::default(),
        }
    }

    /// What the build sees of its contexts; its [`LocalResults`](crate::LocalResults) must see the same.
    pub fn contexts(&self) -> Arc<ContextFiles> {
        self.contexts.clone()
    }

    /// Remembers downloads from build to build in an index.
    #[must_use]
    pub fn with_index(self, index: Arc<SqliteIndex>) -> Self {
        _ = self.sources.index.set(index);
        self
    }

    /// Looks for cache mounts that are not here in caches that machines share.
    #[must_use]
    pub fn with_shared_mounts(self, shared_mounts: Option<Arc<dyn RemoteMounts>>) -> Self {
        Self { shared_mounts, ..self }
    }

    /// Has the cache mounts of steps that ask no cache begin anew, each once in this build.
    #[must_use]
    pub fn renewing_mounts(self) -> Self {
        Self { renewed_mounts: Some(RenewedMounts::default()), ..self }
    }

    /// Keeps what steps were given and what they leave that fail, and says so with the failure.
    #[must_use]
    pub fn keeping_failures(self) -> Self {
        Self { failures: Failures::Kept, ..self }
    }

    /// Grants the devices that specifications of the Container Device Interface in these folders describe. Without it there
    /// is none.
    #[must_use]
    pub fn with_devices(self, folders: &[PathBuf]) -> Self {
        Self { device_folders: folders.into(), ..self }
    }

    /// When the files of a source were made: the time of the commit; what the web server says, else the newest file of the
    /// archive that it is. `None` where nothing says so.
    ///
    /// # Errors
    /// The source cannot be reached, or has no such files.
    pub async fn source_time(
        &self,
        source: &SourceOp,
        session: &Arc<dyn Session>,
    ) -> Result<Option<SystemTime>, WorkError> {
        let asked = Asked { vertex: self.sources.images.context().vertex.clone(), session };
        self.sources.get(source, None).time(&asked).await
    }

    /// What a source stands for. It is what the build's steps see of it.
    ///
    /// # Errors
    /// It cannot be found out.
    pub async fn source_state(
        &self,
        source: &SourceOp,
        platform: Option<&Platform>,
        session: &Arc<dyn Session>,
    ) -> Result<SourceState, WorkError> {
        let asked = Asked { vertex: self.sources.images.context().vertex.clone(), session };
        self.sources.get(source, platform).state(&asked).await
    }

    /// What can be told of a source, which is then what the build's steps see of it.
    ///
    /// # Errors
    /// It cannot be found out.
    pub async fn source_facts(
        &self,
        source: &SourceOp,
        objects: ReadObjects,
        session: &Arc<dyn Session>,
    ) -> Result<SourceFacts, WorkError> {
        let asked = Asked { vertex: self.sources.images.context().vertex.clone(), session };
        self.sources.get(source, None).facts(objects, &asked).await
    }

    /// Brings in what a source stands for.
    ///
    /// # Errors
    /// It cannot be had.
    pub async fn source_result(
        &self,
        source: &SourceOp,
        platform: Option<&Platform>,
        session: &Arc<dyn Session>,
    ) -> Result<ResultRef, WorkError> {
        let asked = Asked { vertex: self.sources.images.context().vertex.clone(), session };
        self.sources.get(source, platform).snapshot(&asked).await
    }

    pub(crate) async fn file(
        &self,
        op: &FileOp,
        inputs: &[ResultRef],
        session: &Arc<dyn Session>,
    ) -> Result<Execution, WorkError> {
        let (store, lease, op) = (self.store.clone(), self.lease.clone(), op.clone());
        let (inputs, session, contexts) = (inputs.to_vec(), session.clone(), self.contexts.clone());
        let work = move || -> Result<Execution, WorkError> {
            let is_context = |input: usize| matches!(inputs[input], ResultRef::Context { .. });
            let times = keys::file_times(&op, is_context);
            let inputs = file_inputs(&store, inputs, session, &contexts)?;
            let now = SystemTime::now();
            if let Some(packed) = file::packed::execute(&op, times, &store, &lease, &inputs, now)? {
                return Ok(packed);
            }
            let mut made = file::execute(&op, &store, &lease, &inputs, now)?;
            made.active.set_times(times);
            let parents = made.active.parents().to_vec();
            let record = made.commit(&store, &lease)?;
            let output = ResultRef::Layers([parents, vec![record.id]].concat());
            let mut execution = Execution::new(vec![ResultRef::scratch()]);
            execution.set(0, output, MadeLayer { content: record.content, bytes: record.bytes });
            Ok(execution)
        };
        tokio::task::spawn_blocking(work).await?
    }

    /// A failure of file actions with what those before it made. Who cannot be told more is told why it failed.
    async fn file_left(
        &self,
        op: &FileOp,
        request: &ExecuteRequest,
        session: &Arc<dyn Session>,
        error: WorkError,
    ) -> WorkerError {
        let error = WorkerError::from(error);
        if error.kind() == ErrorKind::Cancelled {
            return error;
        }
        let Ok(inputs) = self.present(request).await else { return error };
        let (store, lease, op) = (self.store.clone(), self.lease.clone(), op.clone());
        let (given, session, contexts) = (inputs.clone(), session.clone(), self.contexts.clone());
        let again = move || {
            let inputs = file_inputs(&store, given, session, &contexts).ok()?;
            file::left(&op, &store, &lease, &inputs, SystemTime::now()).ok().flatten()
        };
        let Ok(Some(left)) = tokio::task::spawn_blocking(again).await else { return error };
        let inputs = inputs.into_iter().map(Some).collect();
        error.keeping(FailedStep { inputs, left: left.trees, part: FailedPart::Action(left.action) })
    }

    /// The layers of a COPY whose own one is kept already.
    async fn find_file(
        &self,
        op: &FileOp,
        inputs: &[ResultRef],
        session: &Arc<dyn Session>,
    ) -> Result<Option<Vec<ResultRef>>, WorkError> {
        let (store, lease, op) = (self.store.clone(), self.lease.clone(), op.clone());
        let (inputs, session, contexts) = (inputs.to_vec(), session.clone(), self.contexts.clone());
        let work = move || -> Result<Option<Vec<ResultRef>>, WorkError> {
            let times = keys::file_times(&op, |input| matches!(inputs[input], ResultRef::Context { .. }));
            let inputs = file_inputs(&store, inputs, session, &contexts)?;
            let found = file::packed::find(&op, times, &store, &lease, &inputs, SystemTime::now())?;
            Ok(found.map(|layers| vec![ResultRef::Layers(layers)]))
        };
        tokio::task::spawn_blocking(work).await?
    }

    /// The inputs of a step, all of them here.
    async fn present(&self, request: &ExecuteRequest) -> Result<Vec<ResultRef>, WorkError> {
        self.sources.images.present(&request.inputs, request.digest.digest()).await
    }

    /// Merges or compares trees.
    async fn stack(
        &self,
        inputs: &[ResultRef],
        session: &Arc<dyn Session>,
        work: impl FnOnce(&Place, &[ResultRef]) -> Result<ResultRef, WorkError> + Send + 'static,
    ) -> Result<ResultRef, WorkError> {
        let (store, lease, contexts) = (self.store.clone(), self.lease.clone(), self.contexts.clone());
        let place = Place { store, lease, session: session.clone(), contexts };
        let inputs = inputs.to_vec();
        tokio::task::spawn_blocking(move || work(&place, &inputs)).await?
    }

    async fn exec(
        &self,
        op: &ExecOp,
        request: &ExecuteRequest,
        session: &Arc<dyn Session>,
    ) -> Result<Execution, WorkerError> {
        let context = StepContext {
            renewed_mounts: self.renewed_mounts.clone().filter(|_| request.vertex.metadata.ignore_cache),
            resources: request.vertex.metadata.resources.clone(),
            ..self.step(request.digest.digest().clone(), request.inputs.clone(), session)
        };
        exec::run(op, &self.executor, &context).await
    }

    fn step(&self, vertex: Digest, inputs: Vec<ResultRef>, session: &Arc<dyn Session>) -> StepContext {
        StepContext {
            store: self.store.clone(),
            lease: self.lease.clone(),
            session: session.clone(),
            contexts: self.contexts.clone(),
            vertex,
            inputs,
            device_folders: self.device_folders.clone(),
            shared_mounts: self.shared_mounts.clone(),
            renewed_mounts: None,
            failures: self.failures,
            resources: None,
        }
    }

    /// Makes the mounts of a container ready, in which processes are then run one by one: `op` has them, and what these
    /// processes have in common; its arguments are not looked at. Events name `vertex`.
    ///
    /// # Errors
    /// A mount cannot be made.
    pub async fn container(
        &self,
        op: ExecOp,
        inputs: &[ResultRef],
        vertex: Digest,
        session: &Arc<dyn Session>,
    ) -> Result<BuildContainer, WorkError> {
        let inputs = self.sources.images.present(inputs, &vertex).await?;
        BuildContainer::open(op, self.executor.clone(), &self.step(vertex, inputs, session)).await
    }
}

/// Opens what a file operation reads.
pub(crate) fn file_inputs<'a>(
    store: &Store,
    results: Vec<ResultRef>,
    session: Arc<dyn Session>,
    contexts: &'a ContextFiles,
) -> Result<file::Inputs<'a>, WorkError> {
    let trees = results.iter().map(|input| source_tree(store, input, &session));
    let trees = trees.collect::<Result<Vec<_>, _>>()?;
    Ok(file::Inputs { results, trees, contexts, stop: Stop(session) })
}

#[async_trait]
impl Worker for LocalWorker {
    async fn cache_map(&self, vertex: &Vertex, session: &Arc<dyn Session>) -> Result<CacheMap, WorkerError> {
        Ok(match &vertex.op {
            Op::Exec(op) => keys::of_exec(vertex, op),
            Op::File(op) => keys::of_file(vertex, op),
            Op::Merge | Op::Diff(_) | Op::Passthrough(_) => keys::of_stack(vertex),
            Op::Source(source) => {
                let asked = Asked { vertex: vertex.digest().digest().clone(), session };
                self.sources.get(source, vertex.platform.as_ref()).cache_map(&asked).await?
            }
        })
    }

    async fn find(
        &self,
        request: ExecuteRequest,
        session: &Arc<dyn Session>,
    ) -> Result<Option<Vec<ResultRef>>, WorkerError> {
        let Op::File(op) = &request.vertex.op else { return Ok(None) };
        match self.find_file(op, &request.inputs, session).await {
            // What is not here is fetched when the step runs.
            Err(error) if error.is_absent_layer() => Ok(None),
            found => Ok(found?),
        }
    }

    async fn execute(&self, request: ExecuteRequest, session: &Arc<dyn Session>) -> Result<Execution, WorkerError> {
        let vertex = request.vertex.clone();
        let output = match &vertex.op {
            Op::Exec(op) => {
                let inputs = self.present(&request).await?;
                return self.exec(op, &ExecuteRequest { inputs, ..request }, session).await;
            }
            Op::Source(source) => {
                let asked = Asked { vertex: request.digest.digest().clone(), session };
                self.sources.get(source, vertex.platform.as_ref()).snapshot(&asked).await?
            }
            Op::File(op) => {
                return match (self.file_step(op, &request, session).await, self.failures) {
                    (Err(error), Failures::Kept) => Err(self.file_left(op, &request, session, error).await),
                    (made, _) => Ok(made?),
                };
            }
            Op::Passthrough(op) => {
                let results = op.outputs.iter().map(|index| request.inputs[*index].clone());
                return Ok(Execution::new(results.collect()));
            }
            Op::Merge => match self.stack(&request.inputs, session, Place::merge).await {
                // Most layers can be laid over others without either being here.
                Err(error) if error.is_absent_layer() => {
                    self.stack(&self.present(&request).await?, session, Place::merge).await?
                }
                merged => merged?,
            },
            Op::Diff(op) => {
                let op = *op;
                let inputs = self.present(&request).await?;
                self.stack(&inputs, session, move |place, inputs| place.diff(&op, inputs)).await?
            }
        };
        Ok(Execution::new(vec![output]))
    }
}
