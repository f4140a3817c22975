//! The worker of this machine: one function for each op.

use crate::error::WorkError;
use crate::exec::{self, ExecError, Step, StepLog};
use crate::file;
use crate::images::ImageResolver;
use crate::keys;
use crate::results::source_tree;
use crate::source_tree::Stop;
use crate::sources::{Asked, Sources};
use crate::stack::Place;
use async_trait::async_trait;
use forge_cache::{ResultRef, SqliteIndex, StepUsage};
use forge_executor::{Container, Executor, ExecutorError, ExitStatus, Usage};
use forge_image::chain;
use forge_llb::{ExecOp, FileOp, Op, SourceOp, Vertex};
use forge_session::Session;
use forge_solver::{CacheMap, ExecuteRequest, Execution, Worker, WorkerError};
use forge_store::{ActiveLayer, LayerId, Lease, Store};
use std::sync::Arc;
use std::time::SystemTime;

/// Does the steps of one build on this machine.
pub struct LocalWorker {
    store: Store,
    lease: Arc<Lease>,
    executor: Arc<dyn Executor>,
    sources: Sources,
}

impl LocalWorker {
    /// Works for the build that holds `lease`.
    pub fn new(store: Store, lease: Arc<Lease>, executor: Arc<dyn Executor>, images: Arc<ImageResolver>) -> Self {
        let sources = Sources::new(store.clone(), lease.clone(), executor.clone(), images);
        Self { store, lease, executor, sources }
    }

    /// Remembers downloads from build to build in an index.
    #[must_use]
    pub fn with_index(self, index: Arc<SqliteIndex>) -> Self {
        _ = self.sources.index.set(index);
        self
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

    async fn file(
        &self,
        op: &FileOp,
        inputs: &[ResultRef],
        session: &Arc<dyn Session>,
    ) -> Result<ResultRef, WorkError> {
        let (store, lease, op) = (self.store.clone(), self.lease.clone(), op.clone());
        let (inputs, session) = (inputs.to_vec(), session.clone());
        let work = move || -> Result<ResultRef, WorkError> {
            let trees = inputs.iter().map(|input| source_tree(&store, input, &session));
            let trees = trees.collect::<Result<Vec<_>, _>>()?;
            let layers = inputs.iter().map(|input| base_layers(input).ok()).collect();
            let inputs = file::Inputs { layers, trees, stop: Stop(session) };
            let active = file::execute(&op, &store, &lease, &inputs, SystemTime::now())?;
            let parents = active.parents().to_vec();
            commit(&store, &lease, active, parents)
        };
        tokio::task::spawn_blocking(work).await?
    }

    /// Merges or compares trees.
    async fn stack(
        &self,
        inputs: &[ResultRef],
        session: &Arc<dyn Session>,
        work: impl FnOnce(&Place, &[ResultRef]) -> Result<ResultRef, WorkError> + Send + 'static,
    ) -> Result<ResultRef, WorkError> {
        let place = Place { store: self.store.clone(), lease: self.lease.clone(), session: session.clone() };
        let inputs = inputs.to_vec();
        tokio::task::spawn_blocking(move || work(&place, &inputs)).await?
    }

    async fn exec(
        &self,
        op: &ExecOp,
        request: &ExecuteRequest,
        session: &Arc<dyn Session>,
    ) -> Result<Execution, WorkerError> {
        let parents = root_layers(op, &request.inputs)?;
        let (store, executor, step_op, below) =
            (self.store.clone(), self.executor.clone(), op.clone(), parents.clone());
        let inputs = request.inputs.clone();
        let prepare = move || -> Result<(ActiveLayer, Step), WorkError> {
            let active = store.layers().prepare(&below)?;
            let mounts = exec::input_mounts(&store, &step_op, &inputs)?;
            let step = exec::prepare(&*executor, &step_op, &active, mounts)?;
            Ok((active, step))
        };
        let (active, step) = tokio::task::spawn_blocking(prepare).await.map_err(WorkError::from)??;
        let (container, output) = step.into_parts();
        let container: Arc<dyn Container> = container.into();
        let (running, vertex, reporter) = (container.clone(), request.digest.digest().clone(), session.clone());
        let run = move || {
            let log = StepLog { vertex: &vertex, events: reporter.events() };
            let ended = Step::run(&*running, output, &log);
            running.delete().map_err(ExecError::from).and(ended).map(|ended| (ended, running.usage()))
        };
        let mut running = tokio::task::spawn_blocking(run);
        let ended = tokio::select! {
            ended = &mut running => ended,
            () = session.cancellation().cancelled() => {
                // Whatever it says, the wait below ends: every process of the sandbox dies with its first one.
                let _ = container.kill_all();
                let _ = running.await;
                return Err(WorkerError::Cancelled);
            }
        };
        let (ended, usage) = ended.map_err(WorkError::from)?.map_err(|error| explain(op, error))?;
        if ended.status != ExitStatus::Exited(0) {
            return Err(failure(op, ended.status, ended.last_lines));
        }
        let (store, lease) = (self.store.clone(), self.lease.clone());
        let commit = tokio::task::spawn_blocking(move || commit(&store, &lease, active, parents));
        let outputs = vec![commit.await.map_err(WorkError::from)??];
        Ok(Execution { outputs, usage: usage.map(step_usage) })
    }
}

#[async_trait]
impl Worker for LocalWorker {
    async fn cache_map(&self, vertex: &Vertex, session: &Arc<dyn Session>) -> Result<CacheMap, WorkerError> {
        Ok(match &vertex.op {
            Op::Exec(op) => keys::of_exec(vertex, op),
            Op::File(op) => keys::of_file(vertex, op),
            Op::Merge | Op::Diff(_) => keys::of_stack(vertex),
            Op::Source(source) => {
                let asked = Asked { vertex: vertex.digest().digest().clone(), session };
                self.sources.get(source, vertex.platform.as_ref()).cache_map(&asked).await?
            }
        })
    }

    async fn execute(&self, request: ExecuteRequest, session: &Arc<dyn Session>) -> Result<Execution, WorkerError> {
        let vertex = request.vertex.clone();
        let output = match &vertex.op {
            Op::Exec(op) => return self.exec(op, &request, session).await,
            Op::Source(source) => {
                let asked = Asked { vertex: request.digest.digest().clone(), session };
                self.sources.get(source, vertex.platform.as_ref()).snapshot(&asked).await?
            }
            Op::File(op) => self.file(op, &request.inputs, session).await?,
            Op::Merge => self.stack(&request.inputs, session, Place::merge).await?,
            Op::Diff(op) => {
                let op = *op;
                self.stack(&request.inputs, session, move |place, inputs| place.diff(&op, inputs)).await?
            }
        };
        Ok(Execution::new(vec![output]))
    }
}

fn base_layers(result: &ResultRef) -> Result<Vec<LayerId>, WorkError> {
    match result {
        ResultRef::Layers(layers) => Ok(layers.clone()),
        ResultRef::Context { .. } => Err(WorkError::NotBuilt { what: "changing the files of a build context" }),
    }
}

/// The layers of the root file system of a process.
fn root_layers(op: &ExecOp, inputs: &[ResultRef]) -> Result<Vec<LayerId>, WorkError> {
    let root = op.mounts.iter().find(|mount| mount.target == "/");
    match root.and_then(|root| root.input) {
        Some(index) => base_layers(&inputs[index]),
        None => Ok(Vec::new()),
    }
}

/// Keeps what changed as a layer, on top of its parents. A layer without entries is kept too: the history counts it.
fn commit(store: &Store, lease: &Lease, active: ActiveLayer, parents: Vec<LayerId>) -> Result<ResultRef, WorkError> {
    let record = store.layers().commit(active, lease)?;
    Ok(ResultRef::Layers([parents, vec![record.id]].concat()))
}

/// The words are BuildKit's, which clients look for.
fn failure(op: &ExecOp, status: ExitStatus, last_lines: Vec<String>) -> WorkerError {
    let process = op.args.join(" ");
    let how = match status {
        ExitStatus::Exited(code) => format!("exit code: {code}"),
        ExitStatus::Signaled { signal } => format!("exit code: {} (killed by signal {signal})", 128 + signal),
        ExitStatus::OutOfMemory { limit } => format!("killed: out of memory (limit {})", bytes(limit)),
    };
    let message = format!("process {process:?} did not complete successfully: {how}");
    WorkerError::Process { exit: status.code(), message, last_lines }
}

/// A limit as its user wrote it, most likely.
fn bytes(count: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| count >= *unit && count.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{} {name}", count / unit),
        None => format!("{count} bytes"),
    }
}

fn step_usage(usage: Usage) -> StepUsage {
    let cpu_us = u64::try_from(usage.cpu().as_micros()).unwrap_or(u64::MAX);
    StepUsage { cpu_us, peak_memory: usage.peak_memory }
}

/// A program that cannot be started is the step's failure, not forge's.
fn explain(op: &ExecOp, error: ExecError) -> WorkerError {
    let exit = match &error {
        ExecError::Executor(ExecutorError::NotFound { .. }) => 127,
        ExecError::Executor(ExecutorError::NotExecutable { .. }) => 126,
        _ => return WorkError::from(error).into(),
    };
    let process = op.args.join(" ");
    let message = format!("process {process:?} did not start: {}", chain(&error));
    WorkerError::Process { exit, message, last_lines: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_shown_in_the_largest_whole_unit() {
        let shown = [64 << 20, 3 << 30, 1 << 10, 1500].map(bytes);
        assert_eq!(shown, ["64 MiB", "3 GiB", "1 KiB", "1500 bytes"]);
    }
}
