//! The one conversation between the two sides of the set-up.
//!
//! *Caller*: a thread of the process that uses this crate. *Server*: the single-threaded process it re-executes itself
//! as, which clones containers. *Init*: the cloned process, until it executes the payload. Each message is a
//! little-endian `u32` length and as many bytes of JSON, in one stream socket; descriptors travel with the length.
//!
//! Both sides are the same binary, so the format may change at will.

use crate::{DevicePolicy, ExecutorError, GroupPlacement, NetworkMode, Resources, SandboxSpec, SharedNamespaces, wire};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    Shutdown, recvmsg, sendmsg, shutdown,
};
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// More descriptors than any message carries.
const MAX_DESCRIPTORS: usize = 8;

/// The words of the conversation, in the order in which they are spoken.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// Server to caller, once: ready to serve, and what cannot be enforced on this machine.
    Serving { notices: Vec<String> },
    /// Caller to server: clone an init. Descriptors: init's end of its own channel, write end of the exit pipe.
    Spawn(Box<Order>),
    /// Caller to server: clone a process into a container that runs. Descriptors: the process's end of its own channel, write
    /// end of the exit pipe, pidfd of the container's first process.
    Join,
    /// What a go-between tells the server: it has cloned that process. Descriptor: pidfd of it.
    Joined { process: i32 },
    /// Caller to server: prepare private networks. Answered by `Network`.
    PrepareNetwork {
        /// Where files of the executor may be.
        #[serde(with = "wire::one")]
        runtime_dir: PathBuf,
        /// First half of the addresses, where the caller makes the first network meanwhile: `Wire` follows.
        begun: Option<[u8; 2]>,
    },
    /// Caller to server: the address in the first network. Descriptor: its namespace. Neither where it cannot be made.
    Wire(Option<Ipv4Addr>),
    /// Caller to server: no more containers are wanted; the server ends after the last one. Descriptors where there are belongings
    /// to remove should the caller be killed: their lock, and a pipe to which he writes before he ends.
    Finish { belongings: Option<Paths> },
    /// Server to caller: the host's address in them, or why there are none.
    Network(Result<Ipv4Addr, String>),
    /// Server to an init that waits: enter this network. Descriptor: its namespace; without one, an empty one is to be made.
    Enter,
    /// Server to an init that waits: a container is wanted. Descriptor: the container's channel.
    Begin,
    /// Init to server, never received. Descriptor: its mount namespace, which is kept until the server closes its end.
    Room,
    /// Server to caller, on the container's channel. Descriptors: pidfd of the init, and its private network where the host has
    /// no way there.
    Spawned {
        /// Its address in a private network.
        address: Option<Ipv4Addr>,
        /// Limits that could not be set.
        notices: Vec<String>,
    },
    /// Caller to init. Descriptors: the streams that are given.
    Configure(Box<Configuration>),
    /// Init to caller: it is in its control groups.
    Confined {
        /// Cgroup directories to remove at the end, of each controller the innermost first.
        groups: Vec<GroupPaths>,
        /// Limits that could not be set.
        notices: Vec<String>,
    },
    /// Init to caller: what this machine does not allow.
    Notice(String),
    /// Init to caller: something was created in the root only to be mounted upon. Descriptor: its parent directory.
    Stub(StubRecord),
    /// Init to caller, for each socket of the mounts, in their order. Descriptor: the listening socket.
    Listener,
    /// Init to caller. Descriptor: controlling side of the terminal.
    Terminal,
    /// Init to caller: `Start` will execute the program.
    Ready,
    /// Shim to caller: an OCI runtime has made the container. Descriptor: pidfd of its first process.
    Process,
    /// Caller to init. Answered by end of file (the channel closes on exec), `Started` or `Failed`.
    Start,
    /// Shim to caller: the runtime has started the program.
    Started,
    /// Shim to caller, its last word: how the first process ended, and what its memory group counted.
    Ended { status: i32, group_peak_bytes: u64, memory_kills: u64 },
    /// Init or server to caller, its last word.
    Failed(Failure),
}

/// Of [`crate::Belongings`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Paths {
    #[serde(with = "wire::one")]
    pub(crate) folder: PathBuf,
    #[serde(with = "wire::one")]
    pub(crate) mark: PathBuf,
}

/// What is to be cloned.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Who makes the rest of the container.
    pub(crate) maker: Maker,
    /// The network to see.
    pub(crate) network: NetworkMode,
    /// Whether its network may be changed, which nobody else can use then.
    pub(crate) owns_network: bool,
    /// The namespaces that are not made.
    pub(crate) shared: SharedNamespaces,
    /// The devices to reach.
    pub(crate) devices: DevicePolicy,
    /// A cgroup that no other container is in, since this one could freeze or kill it.
    pub(crate) own_group: bool,
    /// The name of a group made for limits.
    pub(crate) id: String,
    /// Its limits.
    pub(crate) resources: Resources,
    /// Its place.
    pub(crate) group: GroupPlacement,
}

/// What init needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Configuration {
    pub(crate) id: String,
    pub(crate) spec: SandboxSpec,
    /// Which of the three standard streams come as descriptors; the others are `/dev/null`.
    pub(crate) streams: [bool; 3],
    #[serde(with = "wire::one")]
    pub(crate) runtime_dir: PathBuf,
    /// The OCI runtime to make the container with, if any.
    #[serde(with = "wire::optional")]
    pub(crate) oci_runtime: Option<PathBuf>,
}

/// What the set-up process clones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Maker {
    /// The container's first process.
    Init,
    /// A process that has an OCI runtime make the container, in a mount and a PID namespace around it.
    Shim,
}

/// The groups made for one controller, the innermost first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct GroupPaths(#[serde(with = "wire::many")] pub(crate) Vec<PathBuf>);

/// What the server tells of a container's end, through a pipe of its own: eight-byte little-endian numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ExitReport {
    /// As wait(2) gives it.
    pub(crate) status: i32,
    pub(crate) user_us: u64,
    pub(crate) system_us: u64,
    /// Of the largest process.
    pub(crate) peak_bytes: u64,
    /// Of the container's version 2 memory group, 0 where it has none.
    pub(crate) group_peak_bytes: u64,
    /// How many processes of that group the kernel killed for want of memory.
    pub(crate) memory_kills: u64,
}

impl ExitReport {
    pub(crate) const SIZE: usize = 48;

    pub(crate) fn to_bytes(self) -> [u8; Self::SIZE] {
        let Self { status, user_us, system_us, peak_bytes, group_peak_bytes, memory_kills } = self;
        let words = [i64::from(status) as u64, user_us, system_us, peak_bytes, group_peak_bytes, memory_kills];
        let mut bytes = [0; Self::SIZE];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let word = |index: usize| u64::from_le_bytes(std::array::from_fn(|at| bytes[index * 8 + at]));
        Self {
            status: word(0) as i32,
            user_us: word(1),
            system_us: word(2),
            peak_bytes: word(3),
            group_peak_bytes: word(4),
            memory_kills: word(5),
        }
    }
}

/// A mount point made for the occasion, see [`Message::Stub`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StubRecord {
    #[serde(with = "wire::one")]
    pub(crate) name: PathBuf,
    pub(crate) directory: bool,
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// An [`ExecutorError`] that can travel.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    System {
        action: String,
        errno: i32,
    },
    NotFound {
        #[serde(with = "wire::one")]
        program: std::ffi::OsString,
    },
    NotExecutable {
        #[serde(with = "wire::one")]
        program: std::ffi::OsString,
        errno: i32,
    },
    ArgumentsTooLong,
    InvalidSpec {
        reason: String,
    },
    WorkingDirectory {
        #[serde(with = "wire::one")]
        path: PathBuf,
        reason: String,
    },
    MountRefused {
        #[serde(with = "wire::one")]
        target: PathBuf,
        reason: String,
    },
    RootRefused {
        reason: String,
    },
    Unsupported {
        what: String,
    },
    Runtime {
        #[serde(with = "wire::one")]
        runtime: PathBuf,
        message: String,
    },
}

impl Failure {
    /// Whether it is the kernel's "you may not".
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::System { errno: libc::EPERM | libc::EACCES, .. })
    }
}

impl From<Failure> for ExecutorError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::System { action, errno: libc::ENOSYS } => {
                let release = rustix::system::uname().release().to_string_lossy().into_owned();
                Self::NoSuchCall { action, release }
            }
            Failure::System { action, errno } => Self::system(action, io::Error::from_raw_os_error(errno)),
            Failure::NotFound { program } => Self::NotFound { program },
            Failure::NotExecutable { program, errno } => {
                Self::NotExecutable { program, source: io::Error::from_raw_os_error(errno) }
            }
            Failure::ArgumentsTooLong => Self::ArgumentsTooLong,
            Failure::InvalidSpec { reason } => Self::InvalidSpec { reason },
            Failure::WorkingDirectory { path, reason } => Self::WorkingDirectory { path, reason },
            Failure::MountRefused { target, reason } => Self::MountRefused { target, reason },
            Failure::RootRefused { reason } => Self::RootRefused { reason },
            Failure::Unsupported { what } => Self::Unsupported { what },
            Failure::Runtime { runtime, message } => Self::Runtime { runtime, message },
        }
    }
}

/// Names what was being done when a system call failed.
pub(crate) trait Doing<T> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Doing<T> for rustix::io::Result<T> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|errno| Failure::System { action: action(), errno: errno.raw_os_error() })
    }
}

/// One end of a conversation.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sends one message; `EPIPE` when nobody listens any more.
    pub(crate) fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(self.0.as_fd(), message, descriptors)
    }

    /// Receives the next message, or `None` when the other side has closed its end between two messages.
    ///
    /// A conversation that failed once is over for both sides: nobody knows where the next message begins, and each would
    /// wait for the other.
    pub(crate) fn receive(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        self.receive_one().inspect_err(|_| self.end())
    }

    /// Ends the conversation, whoever else holds this end. What has come already can still be received.
    pub(crate) fn end(&self) {
        // It fails only where the other side has gone.
        let _ = shutdown(&self.0, Shutdown::Both);
    }

    /// Whether the other side has ended it.
    pub(crate) fn has_ended(&self) -> bool {
        let mut watched = [PollFd::new(&self.0, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        retry_on_intr(|| poll(&mut watched, Some(&now))).is_ok_and(|ready| ready > 0)
    }

    fn receive_one(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let mut length = [0; 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = retry_on_intr(|| {
            let mut slices = [IoSliceMut::new(&mut length)];
            recvmsg(&self.0, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        });
        let count = match received {
            // A peer that died with unread messages before it resets the connection.
            Ok(message) if message.bytes == 0 => return Ok(None),
            Err(Errno::CONNRESET) => return Ok(None),
            other => other?.bytes,
        };
        let descriptors = collect(&mut ancillary);
        self.fill(&mut length[count..])?;
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        self.fill(&mut body)?;
        Ok(Some((serde_json::from_slice(&body)?, descriptors)))
    }

    fn fill(&self, mut rest: &mut [u8]) -> io::Result<()> {
        while !rest.is_empty() {
            match retry_on_intr(|| rustix::io::read(&self.0, &mut *rest))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => rest = &mut rest[count..],
            }
        }
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// As [`Channel::send`], for whoever does not own the channel. What was sent in part is followed by the end.
pub(crate) fn send(socket: BorrowedFd<'_>, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_whole(socket, message, descriptors).inspect_err(|_| {
        // It fails only where the other side has gone.
        let _ = shutdown(socket, Shutdown::Write);
    })
}

fn send_whole(socket: BorrowedFd<'_>, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(|_| io::Error::from(Errno::TOOBIG))?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(body);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let first = [IoSlice::new(&bytes)];
    let mut sent = retry_on_intr(|| sendmsg(socket, &first, &mut ancillary, SendFlags::NOSIGNAL))?;
    while sent < bytes.len() {
        sent += retry_on_intr(|| rustix::net::send(socket, &bytes[sent..], SendFlags::NOSIGNAL))?;
    }
    Ok(())
}

/// Receives one descriptor, with whatever text comes along: a runtime's terminal.
pub(crate) fn receive_descriptor(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut text = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    retry_on_intr(|| {
        let mut slices = [IoSliceMut::new(&mut text)];
        recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    collect(&mut ancillary).pop().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn collect(ancillary: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    let mut all = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            all.extend(descriptors);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_a_call_is_told_by_its_release() {
        let failure = Failure::System { action: "make a file".into(), errno: libc::ENOSYS };
        let error = ExecutorError::from(failure).to_string();
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let start = format!("cannot make a file: Linux {} has not every call", release.trim_end());
        assert!(error.starts_with(&start) && error.contains("Linux 5.12 or newer"), "{error}");
    }

    #[test]
    fn a_report_survives_its_pipe() {
        let report = ExitReport {
            status: -1,
            user_us: 1,
            system_us: u64::MAX,
            peak_bytes: 1 << 40,
            group_peak_bytes: 3,
            memory_kills: 4,
        };
        assert_eq!(ExitReport::from_bytes(report.to_bytes()), report);
    }
}
