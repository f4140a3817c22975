use crate::{ContainerId, ExecutorError, SandboxSpec, Usage};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Makes containers.
pub trait Executor: Send + Sync {
    /// Sets a container up to the point where its process could be started.
    ///
    /// Blocks until the root is mounted and everything but the program itself has been checked. Nothing of it is
    /// visible outside: no entry in the host's mount table. Dropping the container kills and cleans it.
    fn create(&self, id: &ContainerId, spec: &SandboxSpec, io: Stdio) -> Result<Box<dyn Container>, ExecutorError>;

    /// Prepares private networks; gives the host's address in them, by which containers reach it.
    ///
    /// The answer never changes. Where there are none, [`Executor::notices`] tells the reason from then on.
    ///
    /// # Errors
    /// [`ExecutorError::Unsupported`] with the reason.
    fn private_network(&self) -> Result<Ipv4Addr, ExecutorError>;

    /// Names, one line each, what was asked of this executor but cannot be enforced on this machine.
    fn notices(&self) -> Vec<String>;

    /// Says that no more containers will be asked for, so that what serves them may end with the last one. Should the caller be
    /// killed, that removes his `belongings`.
    fn finish(&self, belongings: Option<Belongings>);
}

/// What a caller who is killed leaves: a folder, and a file that says that somebody will remove both.
#[derive(Debug)]
pub struct Belongings {
    /// The folder, in which containers may have made anything.
    pub folder: PathBuf,
    /// The file.
    pub mark: PathBuf,
    /// Held open until both are gone.
    pub lock: OwnedFd,
}

/// One process in its sandbox, from creation to removal.
///
/// All methods may be called from any thread, also while another one blocks in [`Container::wait`].
pub trait Container: Send + Sync {
    /// Executes the process. Returns once the kernel has accepted the program.
    ///
    /// # Errors
    /// [`ExecutorError::NotFound`] and [`ExecutorError::NotExecutable`] tell docker's exit codes 127 and 126 apart.
    fn start(&self) -> Result<(), ExecutorError>;

    /// Blocks until the process and everything it left behind in its PID namespace is dead, removes mount point
    /// stubs from the root, and returns how the process ended. Later calls return the same status.
    fn wait(&self) -> Result<ExitStatus, ExecutorError>;

    /// What the container used, once [`Container::wait`] has returned; `None` before.
    fn usage(&self) -> Option<Usage>;

    /// Its address in a private network.
    fn address(&self) -> Option<Ipv4Addr>;

    /// A non-blocking socket of the container's private network, by which whoever hands connections on reaches its
    /// address; `None` where a socket of the host's does.
    fn inner_socket(&self, kind: InnerSocket) -> Option<io::Result<OwnedFd>>;

    /// Sends a signal to the first process. It is no error when that has already ended.
    ///
    /// The process is the init of a PID namespace: signals without a handler are ignored, but SIGKILL and SIGSTOP.
    fn signal(&self, signal: i32) -> Result<(), ExecutorError>;

    /// Kills every process of the container. Idempotent.
    fn kill_all(&self) -> Result<(), ExecutorError>;

    /// Sets the size of the terminal.
    fn resize(&self, columns: u16, rows: u16) -> Result<(), ExecutorError>;

    /// The controlling side of the terminal, a new descriptor each time, if the process has a terminal.
    fn pty(&self) -> Option<OwnedFd>;

    /// The listening sides of the sockets among the mounts, in their order, in non-blocking mode; later calls return
    /// nothing. Only what connects inside the container reaches them.
    fn take_listeners(&self) -> Vec<OwnedFd>;

    /// Sets a further process up in the container: in the same namespaces and groups, under the same filter. It is started,
    /// waited for and killed like a container of its own, but ends with the first process at the latest; what it leaves running
    /// goes on until then.
    ///
    /// # Errors
    /// The first process has ended, or runs in a changed root only ([`ExecutorError::Unsupported`]).
    fn exec(&self, process: &crate::ProcessSpec, io: Stdio) -> Result<Box<dyn Container>, ExecutorError>;

    /// Kills what still runs and removes what the container left on the machine. Idempotent.
    fn delete(&self) -> Result<(), ExecutorError>;
}

/// What a socket of [`Container::inner_socket`] speaks, in version 4 of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InnerSocket {
    /// TCP.
    Stream,
    /// UDP.
    Datagram,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited by itself with this code.
    Exited(i32),
    /// A signal ended it.
    Signaled {
        /// Number of the signal.
        signal: i32,
    },
    /// It failed after the kernel had killed it, or one of its children, since the memory limit was reached.
    OutOfMemory {
        /// The limit in bytes.
        limit: u64,
    },
}

impl ExitStatus {
    /// The code a shell would report: 128 + n for signal n.
    pub fn code(&self) -> i32 {
        match *self {
            Self::Exited(code) => code,
            Self::Signaled { signal } => 128 + signal,
            Self::OutOfMemory { .. } => 128 + libc::SIGKILL,
        }
    }
}

/// What the process gets as descriptors 0, 1 and 2. Unused when it has a terminal.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Standard input.
    pub stdin: StdioTarget,
    /// Standard output.
    pub stdout: StdioTarget,
    /// Standard error.
    pub stderr: StdioTarget,
}

/// Where one standard stream leads.
#[derive(Debug, Default)]
pub enum StdioTarget {
    /// The container's own `/dev/null`.
    #[default]
    Null,
    /// The same as the calling process's.
    Inherit,
    /// This descriptor.
    Fd(OwnedFd),
}
