use crate::container::{Container, Executor, ExitStatus, Stdio, StdioTarget};
use crate::copied::{self, Copies};
use crate::init::{layout, sys};
use crate::message::{Channel, Configuration, ExitReport, GroupPaths, Maker, Message, Order, StubRecord};
use crate::set_up_process::{SetUpProcess, channel_pair, died, unexpected};
use crate::{
    Capabilities, ContainerId, DevicePolicy, ExecutorError, GroupPlacement, NetworkMode, ProcessSpec, Resources,
    RootFs, SandboxSpec, Usage,
};
use rustix::fs::{AtFlags, FileType, fstat, statat, unlinkat};
use rustix::io::{Errno, fcntl_dupfd_cloexec, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, pidfd_send_signal};
use std::fs::DirBuilder;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Runs containers on Linux namespaces, as root.
///
/// One set-up process serves all containers of an executor; it ends, and every container with it, when the executor is
/// dropped or its process dies. Cheap to keep, so make one and share it.
pub struct NamespaceExecutor {
    server: Arc<SetUpProcess>,
    runtime_dir: PathBuf,
    /// Whether anything can be mounted. Where nothing can, containers are processes in a changed root.
    mounts: bool,
}

impl NamespaceExecutor {
    /// Prepares `runtime_dir`, which may be shared by any number of processes, and starts the set-up process.
    ///
    /// # Errors
    /// [`ExecutorError::Unsupported`] when the caller is not root.
    pub fn new(runtime_dir: &Path) -> Result<Self, ExecutorError> {
        Self::with(SetUpProcess::start()?, runtime_dir)
    }

    /// The same with a set-up process that was started before.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with(server: SetUpProcess, runtime_dir: &Path) -> Result<Self, ExecutorError> {
        prepare_directory(runtime_dir)
            .map_err(|source| ExecutorError::system(format!("prepare {}", runtime_dir.display()), source))?;
        let runtime_dir = runtime_dir
            .canonicalize()
            .map_err(|source| ExecutorError::system(format!("resolve {}", runtime_dir.display()), source))?;
        let mounts = sys::permitted().is_ok_and(|held| held.contains(Capabilities::SYS_ADMIN));
        Ok(Self { server: Arc::new(server), runtime_dir, mounts })
    }

    /// Creates a container, through an OCI runtime if one is given.
    pub(crate) fn create_with(
        &self,
        oci_runtime: Option<&Path>,
        id: &ContainerId,
        spec: &SandboxSpec,
        io: Stdio,
    ) -> Result<Box<dyn Container>, ExecutorError> {
        check(spec)?;
        let mut spec = spec.clone();
        let (copies, listeners) = self.copies(&mut spec, id)?;
        let streams = Streams::collect(io, spec.process.terminal)?;
        let configuration = Configuration {
            id: id.as_str().into(),
            spec,
            streams: streams.given,
            runtime_dir: self.runtime_dir.clone(),
            oci_runtime: oci_runtime.map(Path::to_owned),
        };
        let mut container = self.spawn(configuration, &streams)?;
        container.copies = Mutex::new(copies);
        if !self.mounts {
            container.listeners = Mutex::new(listeners);
        }
        Ok(Box::new(container))
    }
}

impl NamespaceExecutor {
    fn spawn(&self, configuration: Configuration, streams: &Streams) -> Result<NamespaceContainer, ExecutorError> {
        let failed = |source| ExecutorError::system("talk to the sandbox set-up process", source);
        let (ours, theirs) = channel_pair().map_err(failed)?;
        let (exit_read, exit_write) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let spec = &configuration.spec;
        let order = order(&configuration);
        let maker = order.maker;
        let request = Message::Spawn(Box::new(order));
        let memory_limit = smallest_memory_limit(spec);
        // The answer comes through the container's own channel, so that nobody waits for anybody else's clone.
        self.server.request(&request, &[theirs.as_fd(), exit_write.as_fd()])?;
        drop((theirs, exit_write));
        let container = NamespaceContainer {
            server: Arc::clone(&self.server),
            maker,
            channel: Mutex::new(Channel::new(ours)),
            pidfd: OnceLock::new(),
            address: OnceLock::new(),
            exit: Mutex::new(Exit::Pending(exit_read)),
            terminal: Mutex::new(None),
            listeners: Mutex::default(),
            stubs: Mutex::default(),
            cgroups: Mutex::default(),
            copies: Mutex::default(),
            memory_limit,
        };
        container.configure(configuration, streams)?;
        Ok(container)
    }

    /// Copies in the place of overlays that cannot be mounted, and of everything else where nothing can.
    fn copies(&self, spec: &mut SandboxSpec, id: &ContainerId) -> Result<(Copies, Vec<OwnedFd>), ExecutorError> {
        let reason = match self.mounts {
            true => copied::upper_of(spec).and_then(copied::refusal),
            false => Some("forge may mount nothing".to_owned()),
        };
        let Some(reason) = reason else { return Ok((Copies::default(), Vec::new())) };
        let notice = format!("the layers are copied for each step, which takes time and space: {reason}");
        self.server.note([notice]);
        let mut copies = Copies::replace(spec, &self.runtime_dir, id.as_str())?;
        let listeners = if self.mounts { Vec::new() } else { copies.place(spec)? };
        Ok((copies, listeners))
    }
}

fn prepare_directory(runtime: &Path) -> io::Result<()> {
    let mut private = DirBuilder::new();
    private.recursive(true).mode(0o700).create(runtime)?;
    let mut open = DirBuilder::new();
    open.recursive(true).mode(0o755);
    for name in [layout::ROOT, layout::STAGING, layout::EMPTY, layout::BUNDLE] {
        open.create(runtime.join(name))?;
    }
    for layer in [layout::STUBS, layout::STUBS_ETC] {
        for name in layout::DIRECTORIES {
            open.create(runtime.join(layer).join(name))?;
        }
    }
    open.create(runtime.join(layout::STUBS_ETC).join("etc"))?;
    for name in layout::ETC_FILES {
        let path = runtime.join(layout::STUBS_ETC).join(name);
        if !path.exists() {
            std::fs::File::create(path)?;
        }
    }
    Ok(())
}

impl Executor for NamespaceExecutor {
    fn create(&self, id: &ContainerId, spec: &SandboxSpec, io: Stdio) -> Result<Box<dyn Container>, ExecutorError> {
        self.create_with(None, id, spec, io)
    }

    fn private_network(&self) -> Result<Ipv4Addr, ExecutorError> {
        let answer = self.server.private_network(&self.runtime_dir)?;
        answer.map_err(|reason| ExecutorError::Unsupported { what: format!("a private network ({reason})") })
    }

    fn notices(&self) -> Vec<String> {
        self.server.notices()
    }

    fn finish(&self) {
        self.server.finish();
    }
}

/// Refuses what can be refused without trying.
fn check(spec: &SandboxSpec) -> Result<(), ExecutorError> {
    let invalid = |reason: &str| Err(ExecutorError::InvalidSpec { reason: reason.to_owned() });
    if spec.id_mappings.is_some() {
        return Err(ExecutorError::Unsupported { what: "a user namespace".into() });
    }
    if let RootFs::Overlay { lower, .. } = &spec.root
        && lower.len() > 500
    {
        return invalid("more than 500 layers");
    }
    if spec.process.args.first().is_none_or(|program| program.is_empty()) {
        return invalid("no program given");
    }
    spec.group.check()
}

/// The descriptors a process is given.
struct Streams {
    given: [bool; 3],
    descriptors: Vec<OwnedFd>,
}

impl Streams {
    fn collect(io: Stdio, terminal: bool) -> Result<Self, ExecutorError> {
        let mut streams = Self { given: [false; 3], descriptors: Vec::new() };
        if terminal {
            return Ok(streams);
        }
        let own = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        for (index, target) in [io.stdin, io.stdout, io.stderr].into_iter().enumerate() {
            let descriptor = match target {
                StdioTarget::Null => continue,
                StdioTarget::Fd(descriptor) => descriptor,
                StdioTarget::Inherit => fcntl_dupfd_cloexec(own[index], 3)
                    .map_err(|errno| ExecutorError::system("duplicate a standard stream", errno))?,
            };
            streams.given[index] = true;
            streams.descriptors.push(descriptor);
        }
        Ok(streams)
    }

    fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.descriptors.iter().map(AsFd::as_fd).collect()
    }
}

/// What is to be cloned for a container. An OCI runtime makes groups and empty networks itself.
fn order(configuration: &Configuration) -> Order {
    let Configuration { id, spec, oci_runtime, .. } = configuration;
    let holds = |capability| spec.process.capabilities.contains(capability);
    let order = Order {
        maker: Maker::Init,
        network: spec.network,
        owns_network: holds(Capabilities::NET_ADMIN),
        devices: spec.devices,
        own_group: matches!(spec.devices, DevicePolicy::StandardAnd(_))
            || spec.writable_sys
            || holds(Capabilities::SYS_ADMIN),
        id: id.clone(),
        resources: spec.resources.clone(),
        group: spec.group.clone(),
    };
    match oci_runtime {
        None => order,
        Some(_) => Order {
            maker: Maker::Shim,
            network: if spec.network == NetworkMode::None { NetworkMode::Host } else { spec.network },
            resources: Resources::default(),
            group: GroupPlacement::default(),
            ..order
        },
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section leaves its data usable at each point where it could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far the end of a container has been learnt.
enum Exit {
    Pending(OwnedFd),
    Known(ExitStatus, Usage),
    Lost,
}

/// A mount point to remove, by handle of its parent as the container sees it.
struct Stub {
    parent: OwnedFd,
    record: StubRecord,
}

/// A container of [`NamespaceExecutor`].
struct NamespaceContainer {
    /// Keeps the set-up process alive, whose end would be the container's.
    server: Arc<SetUpProcess>,
    maker: Maker,
    channel: Mutex<Channel>,
    /// Of the first process. Set before `create` returns.
    pidfd: OnceLock<OwnedFd>,
    address: OnceLock<Option<Ipv4Addr>>,
    exit: Mutex<Exit>,
    terminal: Mutex<Option<OwnedFd>>,
    listeners: Mutex<Vec<OwnedFd>>,
    stubs: Mutex<Vec<Stub>>,
    cgroups: Mutex<Vec<GroupPaths>>,
    copies: Mutex<Copies>,
    memory_limit: Option<u64>,
}

/// The memory limit that is reached first.
fn smallest_memory_limit(spec: &SandboxSpec) -> Option<u64> {
    let shared = spec.group.shared.as_ref().and_then(|shared| shared.resources.memory);
    [spec.resources.memory, shared].into_iter().flatten().min()
}

impl NamespaceContainer {
    /// Hands the specification over and waits until the container is ready.
    fn configure(&self, configuration: Configuration, streams: &Streams) -> Result<(), ExecutorError> {
        let message = Message::Configure(Box::new(configuration));
        let sent = lock(&self.channel).send(&message, &streams.borrowed());
        let mut outcome = None;
        // Init and server speak independently: the process handle may come after init's last word, and is needed.
        while outcome.is_none() || self.pidfd.get().is_none() {
            let Some((message, descriptors)) = self.receive("set a container up")? else {
                break;
            };
            outcome = self.take(message, descriptors).or(outcome);
        }
        match (outcome, sent) {
            (Some(outcome), _) => outcome,
            // An init that fails early says why before it closes the channel.
            (None, Err(source)) => Err(ExecutorError::system("hand the specification over", source)),
            (None, Ok(())) => Err(died("set a container up")),
        }
    }

    /// Keeps what one message of the set-up brings; the last one is its outcome.
    fn take(&self, message: Message, mut descriptors: Vec<OwnedFd>) -> Option<Result<(), ExecutorError>> {
        match (message, descriptors.pop()) {
            (Message::Spawned { notices, address }, Some(pidfd)) => {
                let _ = self.address.set(address); // it comes once
                self.server.note(notices);
                if self.maker == Maker::Init {
                    drop(self.pidfd.set(pidfd));
                }
            }
            (Message::Process, Some(pidfd)) => drop(self.pidfd.set(pidfd)),
            (Message::Confined { groups, notices }, _) => {
                *lock(&self.cgroups) = groups;
                self.server.note(notices);
            }
            (Message::Notice(notice), _) => self.server.note([notice]),
            (Message::Stub(record), Some(parent)) => lock(&self.stubs).push(Stub { parent, record }),
            (Message::Listener, Some(listener)) => lock(&self.listeners).push(listener),
            (Message::Terminal, terminal) => *lock(&self.terminal) = terminal,
            (Message::Ready, _) => return Some(Ok(())),
            (Message::Failed(failure), _) => return Some(Err(failure.into())),
            (message, _) => return Some(Err(unexpected(&message))),
        }
        None
    }

    fn receive(&self, action: &str) -> Result<Option<(Message, Vec<OwnedFd>)>, ExecutorError> {
        let received = lock(&self.channel).receive();
        received.map_err(|source| ExecutorError::system(action, source))
    }

    /// Blocks until the status is there.
    fn await_exit(&self) -> Result<ExitStatus, ExecutorError> {
        let mut exit = lock(&self.exit);
        if let Exit::Pending(pipe) = &*exit {
            let mut raw = [0; ExitReport::SIZE];
            let count = retry_on_intr(|| rustix::io::read(pipe, &mut raw));
            *exit = match count {
                Ok(ExitReport::SIZE) => self.conclude(&self.completed(ExitReport::from_bytes(raw))),
                _ => Exit::Lost,
            };
        }
        match *exit {
            Exit::Known(status, _) => Ok(status),
            _ => {
                // The server died; its containers must not outlive it.
                self.kill_all()?;
                Err(died("wait for a container"))
            }
        }
    }

    /// What is reported of a shim is its own end; how the container ended is its last word.
    fn completed(&self, report: ExitReport) -> ExitReport {
        if self.maker == Maker::Init {
            return report;
        }
        while let Ok(Some((message, _))) = self.receive("hear how a container ended") {
            if let Message::Ended { status, group_peak_bytes, memory_kills } = message {
                return ExitReport { status, group_peak_bytes, memory_kills, ..report };
            }
        }
        report
    }

    /// Reads the counters of the container's groups as long as they exist.
    fn conclude(&self, report: &ExitReport) -> Exit {
        let groups = lock(&self.cgroups);
        let innermost = || groups.iter().filter_map(|GroupPaths(paths)| paths.first());
        let peak = innermost().find_map(|group| number_in(group, "memory.max_usage_in_bytes"));
        let killed = report.memory_kills > 0 || innermost().any(|group| was_killed_in(group));
        let usage = Usage {
            user: Duration::from_micros(report.user_us),
            system: Duration::from_micros(report.system_us),
            peak_memory: [peak, Some(report.group_peak_bytes)].into_iter().flatten().fold(0, u64::max),
        };
        let usage = match usage.peak_memory {
            0 => Usage { peak_memory: report.peak_bytes, ..usage },
            _ => usage,
        };
        let status = status(report.status);
        match (self.memory_limit, status.code() != 0 && killed) {
            (Some(limit), true) => Exit::Known(ExitStatus::OutOfMemory { limit }, usage),
            _ => Exit::Known(status, usage),
        }
    }

    /// Removes what the container leaves behind. Idempotent.
    fn clean(&self) -> Result<(), ExecutorError> {
        for GroupPaths(paths) in std::mem::take(&mut *lock(&self.cgroups)) {
            let Some((own, shared)) = paths.split_first() else { continue };
            match std::fs::remove_dir(own) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(ExecutorError::system(format!("remove cgroup {}", own.display()), error)),
            }
            // Goes with the last container that is in it.
            shared.iter().for_each(|group| drop(std::fs::remove_dir(group)));
        }
        self.remove_stubs()
    }

    /// Removes the mount points made for this container, last one first, if they still are what was made.
    fn remove_stubs(&self) -> Result<(), ExecutorError> {
        let stubs = std::mem::take(&mut *lock(&self.stubs));
        for stub in stubs.into_iter().rev() {
            stub.remove().map_err(|errno| ExecutorError::system("remove a mount point", errno))?;
        }
        Ok(())
    }
}

impl Stub {
    fn remove(&self) -> rustix::io::Result<()> {
        let StubRecord { name, directory, .. } = &self.record;
        let now = match statat(&self.parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        let identity = (now.st_dev, now.st_ino) == (self.record.device, self.record.inode);
        let is_directory = FileType::from_raw_mode(now.st_mode) == FileType::Directory;
        let written = !is_directory && now.st_size != 0;
        if !identity || is_directory != *directory || written {
            return Ok(()); // the process put something else there
        }
        let before = fstat(&self.parent)?;
        let flags = if *directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match unlinkat(&self.parent, name, flags) {
            Ok(()) => crate::init::restore_mtime(self.parent.as_fd(), &before),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => Ok(()),
            // The changes of a root that was mounted read-only are nobody's result.
            Err(Errno::ROFS) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

fn number_in(group: &Path, file: &str) -> Option<u64> {
    std::fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()
}

/// Whether the kernel killed a process of this version 1 group for want of memory.
fn was_killed_in(group: &Path) -> bool {
    let control = std::fs::read_to_string(group.join("memory.oom_control")).unwrap_or_default();
    control.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count != "0"))
}

fn status(raw: i32) -> ExitStatus {
    let (exited, signaled) = (libc::WIFEXITED(raw), libc::WTERMSIG(raw));
    match exited {
        true => ExitStatus::Exited(libc::WEXITSTATUS(raw)),
        false => ExitStatus::Signaled { signal: signaled },
    }
}

impl Container for NamespaceContainer {
    fn start(&self) -> Result<(), ExecutorError> {
        let sent = lock(&self.channel).send(&Message::Start, &[]);
        sent.map_err(|source| ExecutorError::system("start a container", source))?;
        match self.receive("start a container")? {
            None | Some((Message::Started, _)) => Ok(()), // the channel closes on exec
            Some((Message::Failed(failure), _)) => Err(failure.into()),
            Some((message, _)) => Err(unexpected(&message)),
        }
    }

    fn wait(&self) -> Result<ExitStatus, ExecutorError> {
        let status = self.await_exit()?;
        self.clean()?;
        lock(&self.copies).settle()?;
        Ok(status)
    }

    fn address(&self) -> Option<Ipv4Addr> {
        self.address.get().copied().flatten()
    }

    fn usage(&self) -> Option<Usage> {
        // Whoever waits holds the lock until there is an answer.
        match self.exit.try_lock().as_deref() {
            Ok(&Exit::Known(_, usage)) => Some(usage),
            _ => None,
        }
    }

    fn signal(&self, signal: i32) -> Result<(), ExecutorError> {
        let Some(signal) = Signal::from_named_raw(signal) else {
            return Err(ExecutorError::InvalidSpec { reason: format!("unknown signal {signal}") });
        };
        // A container without a handle has lost its channel too, and ends by itself.
        let Some(pidfd) = self.pidfd.get() else {
            return Ok(());
        };
        match pidfd_send_signal(pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(ExecutorError::system("send a signal", errno)),
        }
    }

    fn kill_all(&self) -> Result<(), ExecutorError> {
        // The death of a PID namespace's init is the death of all of it.
        self.signal(libc::SIGKILL)
    }

    fn resize(&self, columns: u16, rows: u16) -> Result<(), ExecutorError> {
        let terminal = lock(&self.terminal);
        let Some(terminal) = &*terminal else {
            return Err(ExecutorError::InvalidSpec { reason: "the process has no terminal".into() });
        };
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal, size)
            .map_err(|errno| ExecutorError::system("resize the terminal", errno))
    }

    fn pty(&self) -> Option<OwnedFd> {
        let terminal = lock(&self.terminal);
        fcntl_dupfd_cloexec(terminal.as_ref()?, 3).ok()
    }

    fn take_listeners(&self) -> Vec<OwnedFd> {
        std::mem::take(&mut *lock(&self.listeners))
    }

    fn exec(&self, _process: &ProcessSpec, _io: Stdio) -> Result<Box<dyn Container>, ExecutorError> {
        Err(ExecutorError::Unsupported { what: "running a further process in a container".into() })
    }

    fn delete(&self) -> Result<(), ExecutorError> {
        self.kill_all()?;
        self.await_exit()?;
        *lock(&self.terminal) = None;
        lock(&self.listeners).clear();
        self.clean()
    }
}

impl Drop for NamespaceContainer {
    fn drop(&mut self) {
        // Whoever wants to hear of errors calls `delete`.
        let _ = self.delete();
    }
}
