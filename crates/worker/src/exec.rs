//! Runs a step's process in the sandbox and hands on what it writes.

mod caches;
pub(crate) mod container;
mod copies;
mod devices;
mod mounts;
mod secrets;
mod ssh;
mod step;

pub(crate) use step::run;

use crate::context_files::ContextFiles;
use crate::limits;
use crate::network::{ProcessNetwork, Resolver, network_files};
use crate::users::{self, Identity, UserError};
use forge_cache::ResultRef;
use forge_cache::remote::RemoteMounts;
use forge_executor::{
    Container, ContainerId, Executor, ExecutorError, ExitStatus, Hidden, MountSpec, ProcessSpec, ProcessUser, RootFs,
    SandboxSpec, Stdio, StdioTarget, StubRemoval,
};
use forge_image::{Digest, ErrorKind};
use forge_llb::{ExecOp, SecurityMode, StepResources};
use forge_session::{Event, EventSink, LogStream, SecretError, Session};
use forge_store::{ActiveLayer, CacheMountKey, Lease, Store, StoreError};
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// What BuildKit calls its sandboxes; scripts look at it.
const HOSTNAME: &str = "buildkitsandbox";
/// What docker gives an image that sets none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How many of the last lines of a failed step are repeated.
const LAST_LINES: usize = 20;
/// A line longer than this is cut in the repetition.
const LAST_LINE_BYTES: usize = 2048;

/// Why a step could not be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot make a pipe for the step's output")]
    Pipe(#[source] rustix::io::Errno),
    /// The words are BuildKit's.
    #[error("secret {id}: not found")]
    NoSecret { id: String },
    /// The words are BuildKit's.
    #[error("no SSH key {id:?} forwarded from the client")]
    NoAgent { id: String },
    #[error(transparent)]
    Session(#[from] SecretError),
    #[error("cannot serve the agent's socket")]
    Socket(#[source] std::io::Error),
    /// The words are BuildKit's.
    #[error("required device {name:?} is not registered")]
    NoDevice { name: String },
    /// The words are BuildKit's.
    #[error("invalid device {name:?}")]
    BadDevice { name: String },
    #[error("cannot read the device specification {path}")]
    DeviceSpec { path: PathBuf, source: std::io::Error },
    #[error("cannot use the device node {path}")]
    DeviceNode { path: PathBuf, source: std::io::Error },
    #[error("device {name:?} asks for {what}, which steps cannot have")]
    DeviceNeeds { name: String, what: &'static str },
    #[error("the devices of the step have more than {most} nodes")]
    TooManyDevices { most: usize },
    #[error("cannot make the first content of a mount")]
    Seed { source: std::io::Error },
    #[error("cache mount {id} was not taken into use")]
    NoCache { id: String },
    #[error("the container has stopped")]
    Released,
}

impl ExecError {
    /// Who is to blame.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Executor(error) => crate::executor_kind(error),
            Self::Store(error) => error.kind(),
            Self::Session(error) => error.kind(),
            Self::User(_) | Self::NoSecret { .. } | Self::NoAgent { .. } | Self::Released => ErrorKind::UserInput,
            Self::NoDevice { .. } | Self::BadDevice { .. } => ErrorKind::UserInput,
            Self::DeviceNeeds { .. } | Self::TooManyDevices { .. } => ErrorKind::Unsupported,
            Self::DeviceSpec { .. } | Self::DeviceNode { .. } => ErrorKind::Environment,
            Self::Pipe(_) | Self::Socket(_) | Self::Seed { .. } => ErrorKind::Environment,
            Self::NoCache { .. } => ErrorKind::Internal,
        }
    }
}

/// The cache mounts that began anew in a build.
pub(crate) type RenewedMounts = Arc<Mutex<HashSet<CacheMountKey>>>;

/// What a step works with.
#[derive(Clone)]
pub(crate) struct StepContext {
    pub(crate) store: Store,
    pub(crate) lease: Arc<Lease>,
    pub(crate) session: Arc<dyn Session>,
    /// What the build sees of its contexts.
    pub(crate) contexts: Arc<ContextFiles>,
    /// What events call the step.
    pub(crate) vertex: Digest,
    /// The results of the vertex's inputs.
    pub(crate) inputs: Vec<ResultRef>,
    /// Where specifications of devices are.
    pub(crate) device_folders: Arc<[PathBuf]>,
    /// Where cache mounts are looked for that are not here.
    pub(crate) shared_mounts: Option<Arc<dyn RemoteMounts>>,
    /// The cache mounts that began anew in this build; `None` where the step takes them as they are.
    pub(crate) renewed_mounts: Option<RenewedMounts>,
    /// What becomes of what a step leaves that fails.
    pub(crate) failures: Failures,
    /// What the step's processes may take from the machine.
    pub(crate) resources: Option<Arc<StepResources>>,
}

/// What becomes of what steps leave that fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Failures {
    /// Nobody is to see it.
    #[default]
    Dropped,
    /// It is kept as results are, and told with the failure.
    Kept,
}

/// What a process gets beyond what its op says.
struct Extras {
    mounts: Vec<MountSpec>,
    secret_env: Vec<Hidden>,
    /// The path of an agent's socket.
    agent: Option<String>,
    device_folders: Arc<[PathBuf]>,
    resources: Option<Arc<StepResources>>,
}

/// Makes container ids that no other build of this process has.
pub(crate) fn container_id(purpose: &str) -> Result<ContainerId, ExecutorError> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    ContainerId::new(format!("{purpose}-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)))
}

/// A step that is set up and can be started.
pub(crate) struct Step {
    pub container: Box<dyn Container>,
    output: [File; 2],
}

/// How a step ended.
pub(crate) struct StepEnd {
    pub status: ExitStatus,
    /// Its last lines of output, oldest first.
    pub last_lines: Vec<String>,
}

/// Sets up the sandbox of a step. Blocks.
fn prepare(executor: &dyn Executor, op: &ExecOp, active: &ActiveLayer, extras: Extras) -> Result<Step, ExecError> {
    let mut spec = sandbox(op, active, ProcessNetwork::of(op.network, executor))?;
    devices::grant(&op.devices, &extras.device_folders, &mut spec)?;
    if let Some(resources) = &extras.resources {
        limits::bound(resources, &mut spec.resources);
    }
    spec.mounts.extend(extras.mounts);
    spec.process.secret_env = extras.secret_env;
    let named = op.env.iter().any(|pair| pair.starts_with("SSH_AUTH_SOCK="));
    let agent = extras.agent.filter(|_| !named).map(|socket| format!("SSH_AUTH_SOCK={socket}").into());
    spec.process.env.extend(agent);
    let (stdout, stdout_end) = pipe()?;
    let (stderr, stderr_end) = pipe()?;
    let io =
        Stdio { stdin: StdioTarget::Null, stdout: StdioTarget::Fd(stdout_end), stderr: StdioTarget::Fd(stderr_end) };
    let container = executor.create(&container_id("step")?, &spec, io)?;
    Ok(Step { container, output: [stdout.into(), stderr.into()] })
}

fn pipe() -> Result<(OwnedFd, OwnedFd), ExecError> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(ExecError::Pipe)
}

fn sandbox(op: &ExecOp, active: &ActiveLayer, network: ProcessNetwork) -> Result<SandboxSpec, ExecError> {
    let identity = users::identity(active.lower(), &op.user)?;
    let root = RootFs::Overlay {
        lower: active.lower_dirs().to_vec(),
        upper: active.upper().to_owned(),
        work: active.work().to_owned(),
        volatile: true,
    };
    let hostname = if op.hostname.is_empty() { HOSTNAME } else { &op.hostname };
    let mut spec = SandboxSpec::for_root(root, process(op, &identity, hostname));
    hostname.clone_into(&mut spec.hostname);
    limits::apply(op, &mut spec)?;
    spec.network = network.mode();
    spec.mounts.extend(network_files(network, hostname, &op.extra_hosts, &Resolver::default()));
    spec.readonly_root = op.mounts.iter().any(|mount| mount.target == "/" && mount.readonly);
    spec.stubs = match op.remove_mount_stubs {
        true => StubRemoval::WithParents,
        false => StubRemoval::PointsOnly,
    };
    match op.security {
        SecurityMode::Sandbox => Ok(spec),
        SecurityMode::Insecure => Ok(spec.privileged()),
    }
}

fn process(op: &ExecOp, identity: &Identity, hostname: &str) -> ProcessSpec {
    let mut process = ProcessSpec::new(&op.args);
    let env = environment(&[&op.proxy_env, &op.env], hostname, &identity.home);
    process.env = env.into_iter().map(Into::into).collect();
    process.cwd = PathBuf::from(if op.cwd.is_empty() { "/" } else { &op.cwd });
    process.user = ProcessUser { uid: identity.uid, gid: identity.gid, additional_gids: identity.groups.clone() };
    process
}

/// What a process of docker's finds in its environment: PATH, HOSTNAME and HOME where the image sets none.
pub fn environment(given: &[&[String]], hostname: &str, home: &str) -> Vec<String> {
    let given: Vec<String> = given.concat();
    let has = |name: &str| given.iter().any(|pair| pair.split('=').next() == Some(name));
    let defaults = [DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}"), format!("HOME={home}")];
    let missing = defaults.into_iter().filter(|pair| !has(pair.split('=').next().unwrap_or_default()));
    missing.collect::<Vec<_>>().into_iter().chain(given.iter().cloned()).collect()
}

impl Step {
    /// Starts the process, hands its output on and waits until everything that it started is dead. Blocks.
    pub(crate) fn run(container: &dyn Container, output: [File; 2], log: &StepLog<'_>) -> Result<StepEnd, ExecError> {
        container.start()?;
        let last_lines = pump(output, log);
        let status = container.wait()?;
        Ok(StepEnd { status, last_lines })
    }

    /// Takes the step apart, so that its container can be killed while [`Step::run`] waits for it.
    pub(crate) fn into_parts(self) -> (Box<dyn Container>, [File; 2]) {
        (self.container, self.output)
    }
}

/// Where a step's output goes.
pub(crate) struct StepLog<'a> {
    pub vertex: &'a Digest,
    pub events: &'a dyn EventSink,
}

/// Reads both streams until both have ended.
fn pump(output: [File; 2], log: &StepLog<'_>) -> Vec<String> {
    let mut tail = Tail::default();
    let mut buffer = vec![0; 64 << 10];
    let mut open: Vec<(LogStream, File)> = [LogStream::Stdout, LogStream::Stderr].into_iter().zip(output).collect();
    while !open.is_empty() {
        let mut waiting: Vec<PollFd<'_>> = open.iter().map(|(_, file)| PollFd::new(file, PollFlags::IN)).collect();
        if poll(&mut waiting, None).is_err() {
            continue;
        }
        let ready: Vec<bool> = waiting.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        open.retain_mut(|(stream, file)| {
            if !ready.next().unwrap_or(false) {
                return true;
            }
            let read = file.read(&mut buffer).unwrap_or(0);
            let data = &buffer[..read];
            tail.push(data);
            if read > 0 {
                let timestamp = SystemTime::now();
                let vertex = log.vertex.clone();
                log.events.emit(Event::Log { vertex, stream: *stream, data: data.to_vec(), timestamp });
            }
            read > 0
        });
    }
    tail.into_lines()
}

/// Keeps the last lines of a stream of bytes.
#[derive(Default)]
struct Tail {
    lines: VecDeque<Vec<u8>>,
    partial: Vec<u8>,
}

impl Tail {
    fn push(&mut self, data: &[u8]) {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            let room = LAST_LINE_BYTES.saturating_sub(self.partial.len());
            self.partial.extend(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        if self.lines.len() == LAST_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(std::mem::take(&mut self.partial));
    }

    fn into_lines(mut self) -> Vec<String> {
        if !self.partial.is_empty() {
            self.end_line();
        }
        self.lines.iter().map(|line| String::from_utf8_lossy(line).trim_end().to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_lines_and_cuts_long_ones() {
        let mut tail = Tail::default();
        for number in 0..30 {
            tail.push(format!("line {number}").as_bytes());
            tail.push(b"\n");
        }
        tail.push(&[b'x'; 10_000]);
        let lines = tail.into_lines();
        assert_eq!(lines.len(), LAST_LINES);
        assert_eq!(lines[0], "line 11");
        assert_eq!(lines[LAST_LINES - 1].len(), LAST_LINE_BYTES);
    }

    #[test]
    fn the_image_wins_over_the_defaults() {
        let env = environment(&[&["PATH=/x".to_owned()], &["A=1".to_owned()]], "h", "/root");
        assert_eq!(env, ["HOSTNAME=h", "HOME=/root", "PATH=/x", "A=1"]);
    }
}
