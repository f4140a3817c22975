//! The life of a step: what it needs is found, its sandbox made, its process run, its changes kept.

use super::caches::Caches;
use super::mounts::{ChangedMount, Found, StepMounts};
use super::secrets::Secrets;
use super::ssh::{self, Relays};
use super::{ExecError, Extras, Step, StepContext, StepEnd, StepLog};
use crate::WorkError;
use crate::stack::Place;
use forge_cache::{MadeLayer, ResultRef, StepUsage};
use forge_executor::{Container, Executor, ExecutorError, ExitStatus, Usage};
use forge_image::chain;
use forge_llb::{ExecMount, ExecOp, MountKind};
use forge_solver::{Execution, WorkerError};
use forge_store::{ActiveLayer, FileTimes, LayerId};
use std::sync::Arc;
use std::time::SystemTime;

/// Runs a step and keeps what it changed.
pub(crate) async fn run(
    op: &ExecOp,
    executor: &Arc<dyn Executor>,
    context: &StepContext,
) -> Result<Execution, WorkerError> {
    let session = &*context.session;
    let secrets = Secrets::fetch(op, session).await.map_err(WorkError::from)?;
    let agents = ssh::available(op, session).await.map_err(WorkError::from)?;
    let caches = Caches::acquire(op, context).await?;
    let prepared = Prepared::new(op, executor, context, secrets, agents.clone(), caches).await?;
    let Prepared { root, changed, step, caches } = prepared;
    let agents: Vec<String> = agents.into_iter().flatten().collect();
    let started = SystemTime::now();
    let files = Files { op: op.clone(), context: context.clone(), root, changed, caches, started };
    let Ran { ended, usage, made } = run_process(op, step, &agents, context, files).await?;
    match made {
        Some(made) => Ok(Execution { usage: usage.map(step_usage), ..made }),
        None => Err(failure(op, ended.status, ended.last_lines)),
    }
}

/// What became of a step.
struct Ran {
    ended: StepEnd,
    usage: Option<Usage>,
    /// `None` if the process failed.
    made: Option<Execution>,
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
    fn settle(self, status: ExitStatus) -> Result<Option<Execution>, WorkError> {
        let times = FileTimes::of_step(self.started, SystemTime::now());
        // First of all: others may wait for a cache.
        if !self.caches.is_empty() {
            self.caches.release()?;
        }
        match succeeded(&self.op, status) {
            true => outputs(&self.op, &self.context, self.root, self.changed, times).map(Some),
            false => Ok(None),
        }
    }
}

/// A step that can be started.
struct Prepared {
    root: ActiveLayer,
    changed: Vec<ChangedMount>,
    step: Step,
    caches: Caches,
}

impl Prepared {
    async fn new(
        op: &ExecOp,
        executor: &Arc<dyn Executor>,
        context: &StepContext,
        secrets: Secrets,
        agents: Vec<Option<String>>,
        caches: Caches,
    ) -> Result<Self, WorkerError> {
        let (op, executor, context) = (op.clone(), executor.clone(), context.clone());
        let prepare = move || -> Result<Self, WorkError> {
            let root = context.store.layers().prepare(&root_layers(&op, &context)?)?;
            let found = Found { secrets: &secrets, agents: &agents, caches: &caches };
            let StepMounts { specs, changed } = StepMounts::prepare(&op, &context, &found)?;
            let extras = Extras {
                mounts: specs,
                secret_env: secrets.environment(&op),
                agent: agent_socket(&op, &agents),
                device_folders: context.device_folders.clone(),
            };
            let step = super::prepare(&*executor, &op, &root, extras)?;
            Ok(Self { root, changed, step, caches })
        };
        Ok(tokio::task::spawn_blocking(prepare).await.map_err(WorkError::from)??)
    }
}

/// The layers of the root file system of a process.
fn root_layers(op: &ExecOp, context: &StepContext) -> Result<Vec<LayerId>, WorkError> {
    let root = op.mounts.iter().find(|mount| mount.target == "/");
    let Some(input) = root.and_then(|root| root.input) else { return Ok(Vec::new()) };
    let StepContext { store, lease, session, contexts, .. } = context.clone();
    Place { store, lease, session, contexts }.layers(&context.inputs[input])
}

/// The first socket that there is.
fn agent_socket(op: &ExecOp, agents: &[Option<String>]) -> Option<String> {
    let sockets = op.mounts.iter().filter(|mount| matches!(mount.kind, MountKind::Ssh(_)));
    sockets.zip(agents).find(|(_, agent)| agent.is_some()).map(|(mount, _)| mount.target.clone())
}

/// Runs the process to its end and keeps its files, all on one thread; kills it when the build is to stop.
async fn run_process(
    op: &ExecOp,
    step: Step,
    agents: &[String],
    context: &StepContext,
    files: Files,
) -> Result<Ran, WorkerError> {
    let (container, output) = step.into_parts();
    let container: Arc<dyn Container> = container.into();
    let relays = Relays::start(container.take_listeners(), agents, &context.session).map_err(WorkError::from)?;
    let (running, vertex, reporter) = (container.clone(), context.vertex.clone(), context.session.clone());
    let run = move || -> Result<Result<Ran, WorkError>, ExecError> {
        let log = StepLog { vertex: &vertex, events: reporter.events() };
        let ended = Step::run(&*running, output, &log);
        let ended = running.delete().map_err(ExecError::from).and(ended)?;
        let made = files.settle(ended.status);
        Ok(made.map(|made| Ran { ended, usage: running.usage(), made }))
    };
    let mut running = tokio::task::spawn_blocking(run);
    let ended = tokio::select! {
        ended = &mut running => Some(ended),
        () = context.session.cancellation().cancelled() => {
            // Whatever it says, the wait below ends: every process of the sandbox dies with its first one.
            let _ = container.kill_all();
            let _ = running.await;
            None
        }
    };
    relays.stop().await;
    match ended {
        None => Err(WorkerError::Cancelled),
        Some(ended) => Ok(ended.map_err(WorkError::from)?.map_err(|error| explain(op, error))??),
    }
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
    let root_mount = op.mounts.iter().find(|mount| mount.target == "/" && !mount.readonly);
    let root = root_mount.map(|mount| ChangedMount { output: mount.output, active: root });
    for ChangedMount { output, mut active } in changed.into_iter().chain(root) {
        if let Some(output) = output {
            active.set_times(times);
            commit(context, active, output, &mut made)?;
        }
    }
    Ok(made)
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
