//! A container as its caller sees it: the other end of what the set-up process cloned.

use crate::container::{Container, ExitStatus, InnerSocket, Stdio};
use crate::copied::Copies;
use crate::init::sys;
use crate::message::{Channel, Configuration, ExitReport, GroupPaths, Maker, Message, StubRecord};
use crate::set_up_process::{SetUpProcess, channel_pair, died, lock, unexpected};
use crate::streams::Streams;
use crate::{ExecutorError, ProcessSpec, RootFs, SandboxSpec, Usage};
use rustix::fs::{AtFlags, FileType, fstat, statat, unlinkat};
use rustix::io::{Errno, fcntl_dupfd_cloexec, retry_on_intr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, pidfd_send_signal};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

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
pub(crate) struct NamespaceContainer {
    /// Keeps the set-up process alive, whose end would be the container's.
    server: Arc<SetUpProcess>,
    maker: Maker,
    channel: Mutex<Channel>,
    /// Of the first process. Set before `create` returns.
    pidfd: OnceLock<OwnedFd>,
    address: OnceLock<Option<Ipv4Addr>>,
    /// A private network that the host does not reach by an address.
    network: OnceLock<OwnedFd>,
    exit: Mutex<Exit>,
    terminal: Mutex<Option<OwnedFd>>,
    listeners: Mutex<Vec<OwnedFd>>,
    stubs: Mutex<Vec<Stub>>,
    cgroups: Mutex<Vec<GroupPaths>>,
    copies: Mutex<Copies>,
    memory_limit: Option<u64>,
    /// What further processes are under too. Set before `create` returns.
    profile: OnceLock<Configuration>,
}

/// What of a container holds for all of its processes: nothing of its files, which are mounted once.
fn profile(configuration: &Configuration) -> Configuration {
    let Configuration { id, spec, runtime_dir, .. } = configuration;
    let process = ProcessSpec { secret_env: Vec::new(), ..spec.process.clone() };
    let spec = SandboxSpec {
        root: RootFs::Directory("/".into()),
        mounts: Vec::new(),
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        process,
        hostname: spec.hostname.clone(),
        domain: spec.domain.clone(),
        sysctls: Vec::new(),
        seccomp: spec.seccomp.clone(),
        resources: spec.resources.clone(),
        group: spec.group.clone(),
        id_mappings: None,
        ..*spec
    };
    let (id, runtime_dir) = (id.clone(), runtime_dir.clone());
    Configuration { id, spec, streams: [false; 3], runtime_dir, oci_runtime: None }
}

/// The memory limit that is reached first.
pub(crate) fn smallest_memory_limit(spec: &SandboxSpec) -> Option<u64> {
    let shared = spec.group.shared.as_ref().and_then(|shared| shared.resources.memory);
    [spec.resources.memory, shared].into_iter().flatten().min()
}

impl NamespaceContainer {
    /// A container that is about to be cloned; `exit` is where its end will be reported.
    pub(crate) fn new(
        server: Arc<SetUpProcess>,
        maker: Maker,
        channel: Channel,
        exit: OwnedFd,
        memory_limit: Option<u64>,
    ) -> Self {
        Self {
            server,
            maker,
            channel: Mutex::new(channel),
            pidfd: OnceLock::new(),
            address: OnceLock::new(),
            network: OnceLock::new(),
            exit: Mutex::new(Exit::Pending(exit)),
            terminal: Mutex::new(None),
            listeners: Mutex::default(),
            stubs: Mutex::default(),
            cgroups: Mutex::default(),
            copies: Mutex::default(),
            memory_limit,
            profile: OnceLock::new(),
        }
    }

    /// What is to be settled with the container's end, and the sockets among its mounts where no init tells of them.
    pub(crate) fn keep(&mut self, copies: Copies, listeners: Option<Vec<OwnedFd>>) {
        self.copies = Mutex::new(copies);
        if let Some(listeners) = listeners {
            self.listeners = Mutex::new(listeners);
        }
    }

    /// Hands the specification over and waits until the container is ready. One that does not get so far is given up: whoever
    /// makes it hears that nobody waits for it.
    pub(crate) fn configure(
        &self,
        configuration: Configuration,
        streams: &[BorrowedFd<'_>],
    ) -> Result<(), ExecutorError> {
        // It is set once.
        let _ = self.profile.set(profile(&configuration));
        self.try_configure(configuration, streams).inspect_err(|_| lock(&self.channel).end())
    }

    /// Whether the set-up process ended before it said anything of this container, which is not made then.
    pub(crate) fn is_unheard_of(&self) -> bool {
        self.address.get().is_none() && self.server.has_ended()
    }

    fn try_configure(&self, configuration: Configuration, streams: &[BorrowedFd<'_>]) -> Result<(), ExecutorError> {
        let message = Message::Configure(Box::new(configuration));
        let sent = lock(&self.channel).send(&message, streams);
        let mut outcome = None;
        // Init and server speak independently: the process handle may come after init's last word, and is needed.
        while outcome.is_none() || self.pidfd.get().is_none() {
            let Some((message, descriptors)) = self.receive("set a container up")? else {
                break;
            };
            outcome = self.take(message, descriptors).or(outcome);
        }
        match (outcome, sent) {
            (Some(Ok(())), _) if self.pidfd.get().is_none() => Err(died("set a container up")),
            (Some(outcome), _) => outcome,
            // An init that fails early says why before it closes the channel.
            (None, Err(source)) => Err(ExecutorError::system("hand the specification over", source)),
            (None, Ok(())) => Err(died("set a container up")),
        }
    }

    /// Keeps what one message of the set-up brings; the last one is its outcome.
    fn take(&self, message: Message, mut descriptors: Vec<OwnedFd>) -> Option<Result<(), ExecutorError>> {
        let descriptor = (!descriptors.is_empty()).then(|| descriptors.remove(0));
        match (message, descriptor) {
            (Message::Spawned { notices, address }, Some(pidfd)) => {
                // They come once.
                let _ = self.address.set(address);
                descriptors.pop().map(|network| self.network.set(network));
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

/// Makes a socket in another network. A thread of its own goes there: none comes back without rights over both.
fn inner_socket(network: BorrowedFd<'_>, kind: InnerSocket) -> io::Result<OwnedFd> {
    let kind = match kind {
        InnerSocket::Stream => SocketType::STREAM,
        InnerSocket::Datagram => SocketType::DGRAM,
    };
    let make = move || {
        sys::enter_network(network)?;
        socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
    };
    let made = std::thread::scope(|scope| scope.spawn(make).join());
    Ok(made.map_err(|_| io::Error::other("the thread that makes a socket has panicked"))??)
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

    fn inner_socket(&self, kind: InnerSocket) -> Option<io::Result<OwnedFd>> {
        self.network.get().map(|network| inner_socket(network.as_fd(), kind))
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
        // A container without a handle was given up before it was ready, and ends by itself.
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

    fn exec(&self, process: &ProcessSpec, io: Stdio) -> Result<Box<dyn Container>, ExecutorError> {
        let failed = |source| ExecutorError::system("talk to the sandbox set-up process", source);
        let (Some(first), Some(profile)) = (self.pidfd.get(), self.profile.get()) else {
            return Err(died("run a further process"));
        };
        let streams = Streams::collect(io, process.terminal)?;
        let spec = SandboxSpec { process: process.clone(), ..profile.spec.clone() };
        let (id, runtime_dir) = (profile.id.clone(), profile.runtime_dir.clone());
        let configuration = Configuration { id, spec, streams: streams.given, runtime_dir, oci_runtime: None };
        let (ours, theirs) = channel_pair().map_err(failed)?;
        let (exit_read, exit_write) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
        self.server.request(&Message::Join, &[theirs.as_fd(), exit_write.as_fd(), first.as_fd()])?;
        drop((theirs, exit_write));
        let (server, channel) = (Arc::clone(&self.server), Channel::new(ours));
        let further = Self::new(server, Maker::Init, channel, exit_read, None);
        further.configure(configuration, &streams.borrowed())?;
        Ok(Box::new(further))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RootFs;
    use crate::set_up_process::channel_pair;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::process::Command;
    use std::sync::mpsc;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn configuration() -> Configuration {
        let spec = SandboxSpec::for_root(RootFs::Directory("/".into()), ProcessSpec::new(["true"]));
        Configuration {
            id: "test".into(),
            spec,
            streams: [false; 3],
            runtime_dir: "/nowhere".into(),
            oci_runtime: None,
        }
    }

    /// The other side says something that is no message, before it has sent a handle of the container, and waits, as init does.
    ///
    /// Fails (nobody ends) when the channel stays open after an error.
    #[test]
    fn a_container_whose_conversation_has_failed_is_given_up_at_once() {
        let (ours, theirs) = channel_pair().unwrap();
        let (exit, exit_write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let init = std::thread::spawn(move || {
            let mut stream = UnixStream::from(theirs);
            stream.write_all(b"\x05\0\0\0hello").unwrap();
            let heard = stream.read_to_end(&mut Vec::new());
            drop(exit_write);
            heard.unwrap()
        });
        let (told, tells) = mpsc::channel();
        std::thread::spawn(move || {
            let (unused, _) = channel_pair().unwrap();
            let server = SetUpProcess::of(Command::new("true").spawn().unwrap(), unused);
            let channel = Channel::new(ours);
            let container = NamespaceContainer::new(Arc::new(server), Maker::Init, channel, exit, None);
            let failure = container.configure(configuration(), &[]).unwrap_err();
            drop(container);
            told.send(failure.to_string())
        });
        let failure = tells.recv_timeout(DEADLINE).expect("it was given up");
        assert!(failure.contains("set a container up"), "{failure}");
        assert!(init.join().unwrap() > 0, "it was sent its configuration");
    }
}
