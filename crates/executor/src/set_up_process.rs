use crate::init::{BegunNetwork, SERVER_NAME, Wire, sys};
use crate::message::{Channel, Message, Paths};
use crate::{Belongings, ExecutorError};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The small process that clones containers, as whoever asks it sees it. It ends, and every container with it, when this
/// is dropped.
///
/// Its start takes as long as opening a store, so a command that will run a container for certain starts it first of all
/// and hands it to [`crate::NamespaceExecutor::with`] later.
pub struct SetUpProcess {
    connection: Mutex<Connection>,
    process: Mutex<Child>,
    /// Whether it was given up, as is done when anything is wrong with the conversation.
    has_failed: AtomicBool,
    /// What could not be enforced for some container, each once.
    limit_notices: Mutex<BTreeSet<String>>,
    /// Where it is told that this process was not killed.
    farewell: Mutex<Option<OwnedFd>>,
}

/// The conversation with the set-up process.
struct Connection {
    channel: Channel,
    /// What it said when it was ready, once that has been read.
    notices: Option<Vec<String>>,
    network: NetworkAnswer,
}

/// How far private networks have been asked for.
enum NetworkAnswer {
    Unasked,
    Awaited,
    Known(Result<Ipv4Addr, String>),
}

impl SetUpProcess {
    /// Starts it, and does not wait until it is ready.
    ///
    /// # Errors
    /// [`ExecutorError::Unsupported`] when the caller is not root.
    pub fn start() -> Result<Self, ExecutorError> {
        if !rustix::process::geteuid().is_root() {
            return Err(ExecutorError::Unsupported { what: "running a sandbox without root privileges".into() });
        }
        Self::try_start().map_err(|source| ExecutorError::system("start the sandbox set-up process", source))
    }

    fn try_start() -> io::Result<Self> {
        let (ours, theirs) = channel_pair()?;
        let binary = sys::shielded_binary()?;
        // No working directory is asked for: a static program would then fork, which copies page tables and waits for
        // the exec, where posix_spawn shares memory. The process goes to `/` by itself.
        let process = Command::new(sys::descriptor_path(binary.as_fd()))
            .arg0(SERVER_NAME)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self::of(process, ours))
    }

    pub(crate) fn of(process: Child, ours: OwnedFd) -> Self {
        let connection = Connection { channel: Channel::new(ours), notices: None, network: NetworkAnswer::Unasked };
        Self {
            connection: Mutex::new(connection),
            process: Mutex::new(process),
            has_failed: AtomicBool::new(false),
            limit_notices: Mutex::default(),
            farewell: Mutex::default(),
        }
    }

    /// A new one in the place of one that was given up: with its notices, and with a private network if that had one.
    pub(crate) fn start_again(&self, runtime: &Path) -> Result<Self, ExecutorError> {
        let started = Self::start()?;
        if !matches!(lock(&self.connection).network, NetworkAnswer::Unasked) {
            started.expect_network(runtime, None)?;
        }
        started.note(lock(&self.limit_notices).iter().cloned());
        Ok(started)
    }

    /// Whether it was given up. Its containers are gone then, and nothing can be asked of it any more.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// Whether it has ended by itself; it is given up then.
    pub(crate) fn has_ended(&self) -> bool {
        let ended = lock(&self.connection).channel.has_ended();
        self.has_failed.fetch_or(ended, Ordering::Relaxed) || ended
    }

    /// Gives it up where a conversation with it has failed. It ends then, and its containers with it: the next answer could be
    /// that to any question, or never come.
    fn unless_failed<T>(&self, result: Result<T, ExecutorError>) -> Result<T, ExecutorError> {
        result.inspect_err(|_| {
            self.has_failed.store(true, Ordering::Relaxed);
            lock(&self.connection).channel.end();
        })
    }

    /// Has a private network made beside whatever the caller does next; the answer is read by who needs it.
    ///
    /// What has begun with it does its part while the process starts and does the rest.
    ///
    /// # Errors
    /// The process cannot be talked to.
    pub fn expect_network(&self, runtime: &Path, begun: Option<BegunNetwork>) -> Result<(), ExecutorError> {
        let asked = ask_for_network(&mut lock(&self.connection), runtime, begun);
        self.unless_failed(asked)
    }

    /// The connection, after the first word of the other side. Starting up goes on beside whatever the caller does.
    fn greeted(&self) -> Result<MutexGuard<'_, Connection>, ExecutorError> {
        let mut connection = lock(&self.connection);
        if connection.notices.is_none() {
            let greeting = connection.channel.receive();
            let greeting =
                greeting.map_err(|source| ExecutorError::system("start the sandbox set-up process", source))?;
            connection.notices = match greeting {
                Some((Message::Serving { notices }, _)) => Some(notices),
                Some((message, _)) => return Err(unexpected(&message)),
                None => return Err(died("start")),
            };
        }
        Ok(connection)
    }

    /// Asks once.
    pub(crate) fn private_network(&self, runtime: &Path) -> Result<Result<Ipv4Addr, String>, ExecutorError> {
        let answer = self.network_answer(runtime);
        self.unless_failed(answer)
    }

    fn network_answer(&self, runtime: &Path) -> Result<Result<Ipv4Addr, String>, ExecutorError> {
        let mut connection = self.greeted()?;
        ask_for_network(&mut connection, runtime, None)?;
        if let NetworkAnswer::Known(answer) = &connection.network {
            return Ok(answer.clone());
        }
        let answer = match connection.channel.receive().map_err(not_talking)? {
            Some((Message::Network(answer), _)) => answer,
            Some((message, _)) => return Err(unexpected(&message)),
            None => return Err(died("prepare the network")),
        };
        if let Err(reason) = &answer {
            self.note([format!("the host's network is used, there is no private one: {reason}")]);
        }
        connection.network = NetworkAnswer::Known(answer.clone());
        Ok(answer)
    }

    /// Sends a message that is answered elsewhere.
    pub(crate) fn request(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> Result<(), ExecutorError> {
        let sent = self.greeted().and_then(|it| it.channel.send(message, descriptors).map_err(not_talking));
        self.unless_failed(sent)
    }

    /// Lets it end by itself after the last of its containers, which takes a while that nobody has to wait for then.
    pub(crate) fn finish(&self, belongings: Option<Belongings>) {
        // A process that is dead has ended.
        let _ = match belongings {
            Some(belongings) => self.finish_for(belongings),
            None => self.request(&Message::Finish { belongings: None }, &[]),
        };
    }

    fn finish_for(&self, Belongings { folder, mark, lock: held }: Belongings) -> Result<(), ExecutorError> {
        let (end, farewell) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| not_talking(errno.into()))?;
        let message = Message::Finish { belongings: Some(Paths { folder, mark }) };
        self.request(&message, &[held.as_fd(), end.as_fd()])?;
        *lock(&self.farewell) = Some(farewell);
        Ok(())
    }

    /// Keeps what could not be enforced.
    pub(crate) fn note(&self, notices: impl IntoIterator<Item = String>) {
        lock(&self.limit_notices).extend(notices);
    }

    /// What this machine does not offer, and what could not be enforced so far.
    pub(crate) fn notices(&self) -> Vec<String> {
        let machine = self.greeted().map(|connection| connection.notices.clone().unwrap_or_default());
        // The next container says why, or has a new process.
        let machine = self.unless_failed(machine).unwrap_or_default();
        machine.into_iter().chain(lock(&self.limit_notices).iter().cloned()).collect()
    }
}

impl Drop for SetUpProcess {
    fn drop(&mut self) {
        // The end of the conversation is what ends it.
        lock(&self.connection).channel.end();
        // It fails only where nobody is there any more.
        let _ = lock(&self.farewell).take().map(|farewell| rustix::io::write(&farewell, b"."));
        let _ = lock(&self.process).wait();
    }
}

/// Asks once.
fn ask_for_network(
    connection: &mut Connection,
    runtime: &Path,
    begun: Option<BegunNetwork>,
) -> Result<(), ExecutorError> {
    let NetworkAnswer::Unasked = connection.network else { return Ok(()) };
    let send = |message: &Message, descriptors: &[BorrowedFd<'_>]| {
        connection.channel.send(message, descriptors).map_err(not_talking)
    };
    let network = begun.as_ref().map(|begun| begun.network);
    send(&Message::PrepareNetwork { runtime_dir: runtime.to_owned(), begun: network }, &[])?;
    connection.network = NetworkAnswer::Awaited;
    match begun.map(BegunNetwork::wire) {
        Some(Some(Wire { address, namespace })) => send(&Message::Wire(Some(address)), &[namespace.as_fd()]),
        Some(None) => send(&Message::Wire(None), &[]),
        None => Ok(()),
    }
}

fn not_talking(source: io::Error) -> ExecutorError {
    ExecutorError::system("talk to the sandbox set-up process", source)
}

pub(crate) fn unexpected(message: &Message) -> ExecutorError {
    ExecutorError::Protocol { detail: format!("{message:?}") }
}

pub(crate) fn died(action: &str) -> ExecutorError {
    ExecutorError::InitDied { action: action.into() }
}

pub(crate) fn channel_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section leaves its data usable at each point where it could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// Fails (the second question waits for an answer) when the channel is used again after an error.
    #[test]
    fn a_process_that_answers_with_nonsense_is_given_up() {
        let (ours, theirs) = channel_pair().unwrap();
        let process = SetUpProcess::of(Command::new("true").spawn().unwrap(), ours);
        let other = std::thread::spawn(move || {
            let mut stream = UnixStream::from(theirs);
            stream.write_all(b"\x05\0\0\0hello").unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap()
        });
        assert!(!process.has_failed());
        assert!(process.private_network(Path::new("/nowhere")).is_err());
        assert!(process.has_failed());
        assert_eq!(other.join().unwrap(), 0, "it hears that it was given up");
        assert!(process.private_network(Path::new("/nowhere")).is_err());
        assert!(process.request(&Message::Finish { belongings: None }, &[]).is_err());
    }
}
