//! The life of a step: what it needs is found, its sandbox made, its process run, its changes kept.

use super::caches::Caches;
use super::mounts::{ChangedMount, Found, StepMounts};
use super::secrets::Secrets;
use super::ssh::{self, Relays};
use super::{ExecError, Extras, Failures, Step, StepContext, StepEnd, StepLog};
use crate::WorkError;
use crate::stack::Place;
use forge_cache::{MadeLayer, ResultRef, StepUsage};
use forge_executor::{Container, Executor, ExecutorError, ExitStatus, Usage};
use forge_image::chain;
use forge_llb::{ExecMount, ExecOp, MountKind};
use forge_solver::{Execution, FailedPart, FailedStep, WorkerError};
use forge_store::{ActiveLayer, FileTimes, LayerId, LowerDirs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Runs a step and keeps what it changed, all on one thread; kills its process when the build is to stop.
pub(crate) async fn run(
    op: &ExecOp,
    executor: &Arc<dyn Executor>,
    context: &StepContext,
) -> Result<Execution, WorkerError> {
    let session = &*context.session;
    let secrets = Secrets::fetch(op, session).await.map_err(WorkError::from)?;
    let agents = ssh::available(op, session).await.map_err(WorkError::from)?;
    let caches = Caches::acquire(op, context).await?;
    let (of, with, on) = (op.clone(), executor.clone(), context.clone());
    let container = Slot::default();
    let slot = container.clone();
    let life = move || Prepared::new(&of, &*with, &on, &secrets, &agents, caches)?.live(of, on, &agents, &slot);
    let mut living = tokio::task::spawn_blocking(life);
    let ended = tokio::select! {
        ended = &mut living => ended,
        () = context.session.cancellation().cancelled() => {
            // Whatever it says, the wait below ends: every process of the sandbox dies with its first one.
            container.kill();
            let _ = living.await;
            return Err(WorkerError::Cancelled);
        }
    };
    let kept = |error: WorkerError, left| match context.failures {
        Failures::Kept => error.keeping(FailedStep { inputs: given(op, context), left, part: FailedPart::Process }),
        Failures::Dropped => error,
    };
    let not_begun = |broken| kept(explain(op, broken), given(op, context));
    let (ran, relays) = ended.map_err(WorkError::from)?.map_err(not_begun)?;
    relays.stop().await;
    let Ran { ended, usage, made } = ran;
    match made {
        Made::Outputs(made) => Ok(Execution { usage: usage.map(step_usage), ..made }),
        Made::Failed(left) => Err(kept(failure(op, ended.status, ended.last_lines), left)),
    }
}

/// The container of a step, once there is one, for whoever may have to kill it.
#[derive(Clone, Default)]
struct Slot(Arc<Mutex<Life>>);

#[derive(Default)]
enum Life {
    #[default]
    Unborn,
    Begun(Arc<dyn Container>),
    /// Nobody wants it any more.
    Over,
}

impl Slot {
    /// Says that the container is there; `false` when it is not wanted any more.
    fn put(&self, container: Arc<dyn Container>) -> bool {
        let mut life = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *life {
            Life::Over => false,
            _ => {
                *life = Life::Begun(container);
                true
            }
        }
    }

    fn kill(&self) {
        let mut life = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Life::Begun(container) = std::mem::replace(&mut *life, Life::Over) {
            // It fails for one that has ended.
            let _ = container.kill_all();
        }
    }
}

/// What became of a step.
struct Ran {
    ended: StepEnd,
    usage: Option<Usage>,
    made: Made,
}

/// What the process left.
enum Made {
    Outputs(Execution),
    /// It failed: what each mount shows, where that is kept.
    Failed(Vec<Option<ResultRef>>),
}

/// The files of a step, until its process has ended.
struct Files {
    op: ExecOp,
    context: StepContext,
    root: ActiveLayer,
    changed: Vec<ChangedMount>,
    caches: Caches,
    /// When its process was about to start.
    started: SystemTime,
}

impl Files {
    /// Keeps what the step changed, if it did what it should. Nothing of it may live any more. Blocks.
    fn settle(self, status: ExitStatus) -> Result<Made, WorkError> {
        let times = FileTimes::of_step(self.started, SystemTime::now());
        // First of all: others may wait for a cache.
        if !self.caches.is_empty() {
            self.caches.release()?;
        }
        match (succeeded(&self.op, status), self.context.failures) {
            (true, _) => outputs(&self.op, &self.context, self.root, self.changed, times).map(Made::Outputs),
            (false, Failures::Kept) => left(&self.op, &self.context, self.root, self.changed).map(Made::Failed),
            (false, Failures::Dropped) => Ok(Made::Failed(Vec::new())),
        }
    }
}

/// A step that can be started.
struct Prepared {
    root: ActiveLayer,
    changed: Vec<ChangedMount>,
    /// Kept as long as they are mounted.
    _fixed: Vec<LowerDirs>,
    step: Step,
    caches: Caches,
}

impl Prepared {
    /// Blocks.
    fn new(
        op: &ExecOp,
        executor: &dyn Executor,
        context: &StepContext,
        secrets: &Secrets,
        agents: &[Option<String>],
        caches: Caches,
    ) -> Result<Self, Broken> {
        let root = context.store.layers().prepare(&root_layers(op, context)?).map_err(WorkError::from)?;
        let found = Found { secrets, agents, caches: &caches };
        let StepMounts { specs, changed, fixed } = StepMounts::prepare(op, context, &found)?;
        let extras = Extras {
            mounts: specs,
            secret_env: secrets.environment(op),
            agent: agent_socket(op, agents),
            device_folders: context.device_folders.clone(),
            resources: context.resources.clone(),
        };
        let step = super::prepare(executor, op, &root, extras)?;
        Ok(Self { root, changed, _fixed: fixed, step, caches })
    }

    /// Runs the process to its end and keeps its files. Blocks.
    fn live(self, op: ExecOp, context: StepContext, agents: &[Option<String>], slot: &Slot) -> Lived {
        let Self { root, changed, _fixed, step, caches } = self;
        let (container, output) = step.into_parts();
        let container: Arc<dyn Container> = container.into();
        if !slot.put(container.clone()) {
            return Err(WorkError::Cancelled.into());
        }
        let agents: Vec<String> = agents.iter().flatten().cloned().collect();
        let relays = Relays::start(container.take_listeners(), &agents, &context.session)?;
        let (vertex, session) = (context.vertex.clone(), context.session.clone());
        let log = StepLog { vertex: &vertex, events: session.events() };
        let files = Files { op, context, root, changed, caches, started: SystemTime::now() };
        let ended = Step::run(&*container, output, &log);
        let ended = container.delete().map_err(ExecError::from).and(ended)?;
        let made = files.settle(ended.status)?;
        Ok((Ran { ended, usage: container.usage(), made }, relays))
    }
}

/// What a step came to, and what still serves its agents.
type Lived = Result<(Ran, Relays), Broken>;

/// Why a step came to nothing.
enum Broken {
    Exec(ExecError),
    Work(WorkError),
}

impl From<ExecError> for Broken {
    fn from(error: ExecError) -> Self {
        Self::Exec(error)
    }
}

impl From<WorkError> for Broken {
    fn from(error: WorkError) -> Self {
        Self::Work(error)
    }
}

/// The layers of the root file system of a process.
pub(super) fn root_layers(op: &ExecOp, context: &StepContext) -> Result<Vec<LayerId>, WorkError> {
    let root = op.mounts.iter().find(|mount| mount.target == "/");
    let Some(input) = root.and_then(|root| root.input) else { return Ok(Vec::new()) };
    let StepContext { store, lease, session, contexts, .. } = context.clone();
    Place { store, lease, session, contexts }.layers(&context.inputs[input])
}

/// The first socket that there is.
pub(super) fn agent_socket(op: &ExecOp, agents: &[Option<String>]) -> Option<String> {
    let sockets = op.mounts.iter().filter(|mount| matches!(mount.kind, MountKind::Ssh(_)));
    sockets.zip(agents).find(|(_, agent)| agent.is_some()).map(|(mount, _)| mount.target.clone())
}

fn succeeded(op: &ExecOp, status: ExitStatus) -> bool {
    match (status, op.valid_exit_codes.as_slice()) {
        (ExitStatus::Exited(code), []) => code == 0,
        (ExitStatus::Exited(code), valid) => valid.contains(&code),
        _ => false,
    }
}

/// Keeps every tree that is an output. Blocks.
fn outputs(
    op: &ExecOp,
    context: &StepContext,
    root: ActiveLayer,
    changed: Vec<ChangedMount>,
    times: FileTimes,
) -> Result<Execution, WorkError> {
    let mut made = Execution::new(vec![ResultRef::scratch(); forge_llb::Op::Exec(op.clone()).outputs()]);
    let unchanged = |mount: &&ExecMount| mount.readonly && mount.kind == MountKind::Bind;
    for mount in op.mounts.iter().filter(unchanged) {
        if let (Some(output), Some(input)) = (mount.output, mount.input) {
            made.outputs[output] = context.inputs[input].clone();
        }
    }
    for ChangedMount { output, mut active, .. } in changed.into_iter().chain(root_mount(op, root)) {
        if let Some(output) = output {
            active.set_times(times);
            commit(context, active, output, &mut made)?;
        }
    }
    Ok(made)
}

fn root_mount(op: &ExecOp, active: ActiveLayer) -> Option<ChangedMount> {
    let mount = op.mounts.iter().position(|mount| mount.target == "/" && !mount.readonly)?;
    Some(ChangedMount { mount, output: op.mounts[mount].output, active })
}

/// What each mount showed at first.
fn given(op: &ExecOp, context: &StepContext) -> Vec<Option<ResultRef>> {
    op.mounts.iter().map(|mount| Some(context.inputs[mount.input?].clone())).collect()
}

/// Keeps what each mount of a process shows that failed, be it an output or not. Blocks.
fn left(
    op: &ExecOp,
    context: &StepContext,
    root: ActiveLayer,
    changed: Vec<ChangedMount>,
) -> Result<Vec<Option<ResultRef>>, WorkError> {
    let mut left = given(op, context);
    // What is shown of a context is a copy that lies elsewhere in its layer.
    let is_copy = |mount: usize| matches!(left[mount], Some(ResultRef::Context { .. }));
    let changed: Vec<ChangedMount> = changed.into_iter().chain(root_mount(op, root)).collect();
    let kept: Vec<ChangedMount> = changed.into_iter().filter(|changed| !is_copy(changed.mount)).collect();
    for ChangedMount { mount, active, .. } in kept {
        let parents = active.parents().to_vec();
        let record = context.store.layers().commit(active, &context.lease)?;
        left[mount] = Some(ResultRef::Layers([parents, vec![record.id]].concat()));
    }
    Ok(left)
}

/// Keeps what changed as a layer, on top of its parents. A layer without entries is kept too: the history counts it.
fn commit(context: &StepContext, active: ActiveLayer, output: usize, made: &mut Execution) -> Result<(), WorkError> {
    let parents = active.parents().to_vec();
    let record = context.store.layers().commit(active, &context.lease)?;
    let result = ResultRef::Layers([parents, vec![record.id]].concat());
    made.set(output, result, MadeLayer { content: record.content, bytes: record.bytes });
    Ok(())
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
fn explain(op: &ExecOp, broken: Broken) -> WorkerError {
    let error = match broken {
        Broken::Exec(error) => error,
        Broken::Work(error) => return error.into(),
    };
    let exit = match &error {
        ExecError::Executor(ExecutorError::NotFound { .. }) => 127,
        ExecError::Executor(ExecutorError::NotExecutable { .. }) => 126,
        _ => return WorkError::from(error).into(),
    };
    let process = op.args.join(" ");
    let message = format!("process {process:?} did not complete successfully: exit code: {exit}: {}", chain(&error));
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
