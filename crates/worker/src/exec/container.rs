//! A container of a build's own: set up as a step's sandbox is, but its processes are chosen one by one, and nothing of it is
//! kept.

use super::caches::Caches;
use super::mounts::{ChangedMount, Found, StepMounts, tree_of};
use super::secrets::Secrets;
use super::ssh::{self, Relays};
use super::{ExecError, HOSTNAME, StepContext, container_id, devices, pipe, process, sandbox};
use crate::WorkError;
use crate::network::ProcessNetwork;
use crate::users;
use forge_executor::{
    Container, Executor, ExecutorError, ExitStatus, Hidden, MountSpec, ProcessSpec, Stdio, StdioTarget,
};
use forge_llb::{ExecOp, MountKind, SecretEnv, SecurityMode};
use forge_session::Session;
use forge_store::{ActiveLayer, LowerDirs, MergedTree};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// A process to run in a [`BuildContainer`].
#[derive(Clone, Debug, Default)]
pub struct ProcessRequest {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// The environment, `KEY=value`.
    pub env: Vec<String>,
    /// Secrets of the session that it finds in its environment.
    pub secret_env: Vec<SecretEnv>,
    /// The working directory; empty for the root.
    pub cwd: String,
    /// `user[:group]`; empty for root, or whom the first process runs as.
    pub user: String,
    /// How far it is confined. A further process is as the first one.
    pub security: SecurityMode,
    /// Whether it has a terminal instead of the streams.
    pub terminal: bool,
    /// Which of standard input, output and error somebody holds the other end of.
    pub streams: [bool; 3],
    /// Whether folders made only to mount something are removed with their parents.
    pub remove_mount_stubs: bool,
}

/// The other ends of a process's streams. A terminal is input and output in one.
#[derive(Debug, Default)]
pub struct ProcessStreams {
    /// What is written here the process reads.
    pub stdin: Option<OwnedFd>,
    /// What it writes.
    pub stdout: Option<OwnedFd>,
    /// What it complains about.
    pub stderr: Option<OwnedFd>,
}

/// A process that was started.
pub struct BuildProcess {
    container: Arc<dyn Container>,
    streams: Mutex<ProcessStreams>,
}

/// Mounts that are ready, and processes on them. The first process is that of the sandbox: with it all others end.
///
/// Whoever opened it releases it; dropping it does the same, but blocks.
pub struct BuildContainer {
    op: ExecOp,
    session: Arc<dyn Session>,
    executor: Arc<dyn Executor>,
    device_folders: Arc<[PathBuf]>,
    state: tokio::sync::Mutex<State>,
    /// What each of the mounts shows, in the order of the request.
    views: Vec<Option<MergedTree>>,
}

enum State {
    Ready(Arc<Files>),
    Running { files: Arc<Files>, first: Arc<dyn Container>, process: Box<ProcessSpec>, relays: Relays },
    Released,
}

/// What the mounts are made of.
struct Files {
    root: ActiveLayer,
    changed: Vec<ChangedMount>,
    /// Kept as long as they are mounted.
    _fixed: Vec<LowerDirs>,
    caches: Caches,
    mounts: Vec<MountSpec>,
    /// The path of an agent's socket.
    agent: Option<String>,
    /// The agents that are there, in the order of the mounts.
    agents: Vec<String>,
}

impl BuildContainer {
    /// Makes the mounts ready; no process runs. `op` has them, and what all processes have in common.
    pub(crate) async fn open(
        op: ExecOp,
        executor: Arc<dyn Executor>,
        context: &StepContext,
    ) -> Result<Self, WorkError> {
        let session = context.session.clone();
        let secrets = Secrets::fetch(&op, &*session).await?;
        let agents = ssh::available(&op, &*session).await?;
        let caches = Caches::acquire(&op, context).await?;
        let (wanted, used) = (op.clone(), context.clone());
        let prepare = move || -> Result<(Files, Vec<Option<MergedTree>>), WorkError> {
            let root = used.store.layers().prepare(&super::step::root_layers(&wanted, &used)?)?;
            let found = Found { secrets: &secrets, agents: &agents, caches: &caches };
            let StepMounts { specs, changed, fixed } = StepMounts::prepare(&wanted, &used, &found)?;
            let views = views(&wanted, &used, &root, &changed, &caches)?;
            let agent = super::step::agent_socket(&wanted, &agents);
            let agents = agents.into_iter().flatten().collect();
            Ok((Files { root, changed, _fixed: fixed, caches, mounts: specs, agent, agents }, views))
        };
        let (files, views) = tokio::task::spawn_blocking(prepare).await??;
        let state = tokio::sync::Mutex::new(State::Ready(Arc::new(files)));
        Ok(Self { op, session, executor, device_folders: context.device_folders.clone(), state, views })
    }

    /// What one of the mounts shows, as it is at each call; `None` where it is no folder that lasts.
    pub fn tree(&self, mount: usize) -> Option<MergedTree> {
        self.views.get(mount).cloned().flatten()
    }

    /// How many mounts there are.
    pub fn mounts(&self) -> usize {
        self.views.len()
    }

    /// Starts a process: the first makes the sandbox, others join it.
    ///
    /// # Errors
    /// It cannot be run; the container was released, or its first process has ended.
    pub async fn start(&self, request: &ProcessRequest) -> Result<BuildProcess, WorkError> {
        let op = self.op_of(request);
        let variables = ExecOp { mounts: Vec::new(), ..op.clone() };
        let secret_env = Secrets::fetch(&variables, &*self.session).await?.environment(&variables);
        let mut state = self.state.lock().await;
        match &*state {
            State::Released => Err(ExecError::Released.into()),
            State::Running { files, first, process, .. } => {
                let (files, first, base) = (files.clone(), first.clone(), process.clone());
                let request = request.clone();
                let run = move || further(&files, &*first, &base, &op, &request, secret_env);
                Ok(tokio::task::spawn_blocking(run).await??)
            }
            State::Ready(files) => {
                let files = files.clone();
                let (executor, folders) = (self.executor.clone(), self.device_folders.clone());
                let (request, used) = (request.clone(), files.clone());
                let run = move || begin(&used, &*executor, &folders, &op, &request, secret_env);
                let (process, spec) = tokio::task::spawn_blocking(run).await??;
                let first = process.container.clone();
                let relays = Relays::start(first.take_listeners(), &files.agents, &self.session)?;
                *state = State::Running { files, first, process: Box::new(spec), relays };
                Ok(process)
            }
        }
    }

    fn op_of(&self, request: &ProcessRequest) -> ExecOp {
        let request = request.clone();
        ExecOp {
            args: request.args,
            env: request.env,
            secret_env: request.secret_env,
            cwd: request.cwd,
            user: request.user,
            security: request.security,
            remove_mount_stubs: request.remove_mount_stubs,
            ..self.op.clone()
        }
    }

    /// Kills what runs, and removes everything. Idempotent.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub async fn release(&self) -> Result<(), WorkError> {
        let state = std::mem::replace(&mut *self.state.lock().await, State::Released);
        let files = match state {
            State::Released => return Ok(()),
            State::Ready(files) => files,
            State::Running { files, first, relays, .. } => {
                let ended = tokio::task::spawn_blocking(move || first.delete()).await?;
                relays.stop().await;
                ended.map_err(ExecError::from)?;
                files
            }
        };
        let remove = move || match Arc::into_inner(files) {
            Some(Files { root, changed, caches, .. }) => {
                drop((root, changed));
                caches.release()
            }
            // Whoever is about to start a process has the rest of it, and finds that it ended.
            None => Ok(()),
        };
        tokio::task::spawn_blocking(remove).await?
    }
}

/// What each mount shows.
fn views(
    op: &ExecOp,
    context: &StepContext,
    root: &ActiveLayer,
    changed: &[ChangedMount],
    caches: &Caches,
) -> Result<Vec<Option<MergedTree>>, WorkError> {
    let mut changed = changed.iter();
    let mut views = Vec::new();
    for mount in &op.mounts {
        views.push(match &mount.kind {
            _ if mount.target == "/" => Some(root.merged()),
            MountKind::Bind if mount.readonly => {
                let (layers, _) = tree_of(mount, context)?;
                Some(context.store.layers().tree(&layers)?)
            }
            MountKind::Bind => changed.next().map(|changed| changed.active.merged()),
            MountKind::Cache { .. } => {
                caches.tree(&mount.target).map(|folder| MergedTree::new(vec![folder])).transpose()?
            }
            MountKind::Tmpfs { .. } | MountKind::Secret(_) | MountKind::Ssh(_) => None,
        });
    }
    Ok(views)
}

/// The two ends of each stream.
fn streams(request: &ProcessRequest) -> Result<(Stdio, ProcessStreams), ExecError> {
    let (mut io, mut ends) = (Stdio::default(), ProcessStreams::default());
    if request.terminal {
        return Ok((io, ends));
    }
    let [input, output, error] = request.streams;
    if input {
        let (read, write) = pipe()?;
        (io.stdin, ends.stdin) = (StdioTarget::Fd(read), Some(write));
    }
    if output {
        let (read, write) = pipe()?;
        (io.stdout, ends.stdout) = (StdioTarget::Fd(write), Some(read));
    }
    if error {
        let (read, write) = pipe()?;
        (io.stderr, ends.stderr) = (StdioTarget::Fd(write), Some(read));
    }
    Ok((io, ends))
}

/// Makes the sandbox and starts its first process. Blocks.
fn begin(
    files: &Files,
    executor: &dyn Executor,
    device_folders: &[PathBuf],
    op: &ExecOp,
    request: &ProcessRequest,
    secret_env: Vec<Hidden>,
) -> Result<(BuildProcess, ProcessSpec), ExecError> {
    let mut spec = sandbox(op, &files.root, ProcessNetwork::of(op.network, executor))?;
    devices::grant(&op.devices, device_folders, &mut spec)?;
    spec.mounts.extend(files.mounts.iter().cloned());
    complete(&mut spec.process, files, request, secret_env);
    let (io, ends) = streams(request)?;
    let container: Arc<dyn Container> = executor.create(&container_id("gateway")?, &spec, io)?.into();
    Ok((BuildProcess::start(container, ends, request)?, ProcessSpec { secret_env: Vec::new(), ..spec.process }))
}

/// Starts a process beside the first one, with that one's rights. Blocks.
fn further(
    files: &Files,
    first: &dyn Container,
    base: &ProcessSpec,
    op: &ExecOp,
    request: &ProcessRequest,
    secret_env: Vec<Hidden>,
) -> Result<BuildProcess, ExecError> {
    let identity = users::identity(&files.root.merged(), &op.user)?;
    let hostname = if op.hostname.is_empty() { HOSTNAME } else { &op.hostname };
    let asked = process(op, &identity, hostname);
    let user = if op.user.is_empty() { base.user.clone() } else { asked.user };
    let mut spec = ProcessSpec { args: asked.args, env: asked.env, cwd: asked.cwd, user, ..base.clone() };
    complete(&mut spec, files, request, secret_env);
    let (io, ends) = streams(request)?;
    let container = first.exec(&spec, io).map_err(|error| match error {
        // Its set-up found nobody to join.
        ExecutorError::System { source, .. }
            if source.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) =>
        {
            ExecError::Released
        }
        error => error.into(),
    })?;
    BuildProcess::start(container.into(), ends, request)
}

fn complete(process: &mut ProcessSpec, files: &Files, request: &ProcessRequest, secret_env: Vec<Hidden>) {
    process.terminal = request.terminal;
    process.secret_env = secret_env;
    let has = |name: &str| request.env.iter().any(|pair| pair.split('=').next() == Some(name));
    if request.terminal && !has("TERM") {
        process.env.push("TERM=xterm".into());
    }
    if let Some(socket) = files.agent.as_ref().filter(|_| !has("SSH_AUTH_SOCK")) {
        process.env.push(format!("SSH_AUTH_SOCK={socket}").into());
    }
}

impl BuildProcess {
    fn start(
        container: Arc<dyn Container>,
        mut streams: ProcessStreams,
        request: &ProcessRequest,
    ) -> Result<Self, ExecError> {
        if request.terminal {
            let end = |wanted: bool| if wanted { container.pty() } else { None };
            // A terminal that nobody reads would fill up.
            (streams.stdin, streams.stdout) = (end(request.streams[0]), end(true));
        }
        container.start()?;
        Ok(Self { container, streams: Mutex::new(streams) })
    }

    /// The other ends of its streams, once.
    pub fn take_streams(&self) -> ProcessStreams {
        std::mem::take(&mut *self.streams.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until it has ended: the first process, until everything in the container has.
    ///
    /// # Errors
    /// It cannot be known any more.
    pub async fn wait(&self) -> Result<ExitStatus, WorkError> {
        let container = self.container.clone();
        let ended = tokio::task::spawn_blocking(move || container.wait()).await?;
        Ok(ended.map_err(ExecError::from)?)
    }

    /// Sends it a signal; no error if it has ended.
    ///
    /// # Errors
    /// There is no such signal.
    pub fn signal(&self, signal: i32) -> Result<(), WorkError> {
        Ok(self.container.signal(signal).map_err(ExecError::from)?)
    }

    /// Sets the size of its terminal, if it has one.
    pub fn resize(&self, columns: u16, rows: u16) {
        // It has none, or has ended: there is nothing to resize.
        let _ = self.container.resize(columns, rows);
    }
}
