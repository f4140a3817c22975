//! The stream by which a client starts processes in containers and talks to them.
//!
//! For each process: the client sends `Init`, then `File`, `Resize` and `Signal`; it is told `Started`, `File` for each piece of
//! output, `Exit`, and last of all `Done`.

use crate::bridge::Bridge;
use crate::containers::OpenContainer;
use forge_buildkit_proto::moby::buildkit::v1::frontend::exec_message::Input;
use forge_buildkit_proto::moby::buildkit::v1::frontend::{
    DoneMessage, ExecMessage, FdMessage, InitMessage, StartedMessage,
};
use forge_engine::{BuildProcess, ProcessStreams};
use futures_util::stream::{BoxStream, StreamExt};
use rustix::fs::OFlags;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Pieces of output; messages have a limit.
const PIECE: usize = 32 << 10;

/// Messages that wait for the client, or for a process to read its input.
const WAITING: usize = 16;

/// By the place among the signals, from 1.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

type Answers = mpsc::Sender<Result<ExecMessage, Status>>;

/// What the stream knows of a process.
struct Process {
    /// `None` for one that did not start.
    process: Option<Arc<BuildProcess>>,
    /// Where what the client sends goes; `None` after its end.
    input: Option<mpsc::Sender<Vec<u8>>>,
}

/// Serves a stream until the client ends it; processes go on until they or their containers end.
pub(crate) fn serve(
    bridge: Arc<Bridge>,
    mut incoming: Streaming<ExecMessage>,
) -> BoxStream<'static, Result<ExecMessage, Status>> {
    let (answers, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let mut processes = HashMap::new();
        loop {
            let message = tokio::select! {
                () = answers.closed() => return,
                message = incoming.message() => message,
            };
            let Ok(Some(message)) = message else { return };
            if let Err(status) = take(&bridge, &mut processes, message, &answers).await {
                // A client that has gone need not be told.
                let _ = answers.send(Err(status)).await;
                return;
            }
        }
    });
    ReceiverStream::new(receiver).boxed()
}

/// Does what one message says.
async fn take(
    bridge: &Arc<Bridge>,
    processes: &mut HashMap<String, Process>,
    message: ExecMessage,
    answers: &Answers,
) -> Result<(), Status> {
    let id = message.process_id;
    if id.is_empty() {
        return Err(Status::invalid_argument("ProcessID required"));
    }
    if let Some(Input::Init(init)) = message.input {
        if processes.contains_key(&id) {
            return Err(Status::already_exists(format!("Process {id} already exists")));
        }
        let process = begin(bridge, &id, init, answers).await?;
        processes.insert(id, process);
        return Ok(());
    }
    let unknown = || Status::not_found(format!("IO for process {id:?} not found"));
    match message.input {
        Some(Input::File(file)) => processes.get_mut(&id).ok_or_else(unknown)?.write(file).await,
        Some(Input::Resize(size)) => {
            let short = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
            if let Some(process) = &processes.get(&id).ok_or_else(unknown)?.process {
                process.resize(short(size.cols), short(size.rows));
            }
            Ok(())
        }
        Some(Input::Signal(signal)) => {
            let process = processes.get(&id).ok_or_else(unknown)?;
            let number = signal_number(&signal.name)
                .ok_or_else(|| Status::invalid_argument(format!("Unknown signal {}", signal.name)))?;
            match &process.process {
                Some(process) => process.signal(number).map_err(|error| Status::unknown(error.to_string())),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn signal_number(name: &str) -> Option<i32> {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    let place = SIGNALS.iter().position(|known| *known == name)?;
    i32::try_from(place + 1).ok()
}

impl Process {
    async fn write(&mut self, file: FdMessage) -> Result<(), Status> {
        if file.fd != 0 {
            return Err(Status::out_of_range(format!("fd {} unavailable to write", file.fd)));
        }
        if let Some(input) = self.input.as_ref().filter(|_| !file.data.is_empty()) {
            // A process that has ended, or closed its input, reads no more.
            let _ = input.send(file.data).await;
        }
        if file.eof {
            self.input = None;
        }
        Ok(())
    }
}

/// Starts a process, and whoever tells of it.
async fn begin(bridge: &Arc<Bridge>, id: &str, init: InitMessage, answers: &Answers) -> Result<Process, Status> {
    let container = bridge.containers.find(&init.container_id).ok_or_else(|| {
        let message = format!("container {:?} previously released or not created", init.container_id);
        Status::not_found(message)
    })?;
    let told = Teller { id: id.to_owned(), answers: answers.clone() };
    // Before it is: BuildKit's client takes the messages of all processes in their order, and hangs where one whose output is for
    // this one has ended before this one is said to have started.
    told.tell(Input::Started(StartedMessage {})).await;
    match container.start(&init).await {
        Err(status) => {
            told.tell(Input::Exit(container.failed(status))).await;
            told.tell(Input::Done(DoneMessage {})).await;
            Ok(Process { process: None, input: None })
        }
        Ok(process) => {
            let process = Arc::new(process);
            let streams = process.take_streams();
            let (input, pieces) = mpsc::channel(WAITING);
            if let Some(end) = streams.stdin {
                tokio::spawn(write_all(end, pieces));
            }
            let outputs = ProcessStreams { stdin: None, ..streams };
            let follow = follow(container.clone(), process.clone(), outputs, init.fds, told);
            container.processes.spawn(follow);
            Ok(Process { process: Some(process), input: Some(input) })
        }
    }
}

/// Who tells the client of one process.
#[derive(Clone)]
struct Teller {
    id: String,
    answers: Answers,
}

impl Teller {
    async fn tell(&self, input: Input) {
        // A client that has gone need not be told.
        let _ = self.answers.send(Ok(ExecMessage { process_id: self.id.clone(), input: Some(input) })).await;
    }
}

/// Hands output on, and tells how the process ended.
async fn follow(
    container: Arc<OpenContainer>,
    process: Arc<BuildProcess>,
    outputs: ProcessStreams,
    wanted: Vec<u32>,
    told: Teller,
) {
    let read = |fd: u32, end: Option<OwnedFd>| -> JoinHandle<()> {
        let told = wanted.contains(&fd).then(|| told.clone());
        tokio::spawn(async move {
            if let Some(end) = end {
                // What cannot be read is at its end.
                let _ = read_all(end, fd, told.as_ref()).await;
            }
            if let Some(told) = told {
                told.tell(Input::File(FdMessage { fd, eof: true, data: Vec::new() })).await;
            }
        })
    };
    let readers = [read(1, outputs.stdout), read(2, outputs.stderr)];
    let exit = container.ended(&process).await;
    told.tell(Input::Exit(exit)).await;
    for reader in readers {
        // It has no panics.
        let _ = reader.await;
    }
    told.tell(Input::Done(DoneMessage {})).await;
}

/// Has a descriptor waited for without a thread.
fn unblock(end: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(end)?;
    Ok(rustix::fs::fcntl_setfl(end, flags | OFlags::NONBLOCK)?)
}

/// Reads a pipe or terminal to its end.
async fn read_all(end: OwnedFd, fd: u32, told: Option<&Teller>) -> io::Result<()> {
    unblock(&end)?;
    let mut end = Receiver::from_owned_fd_unchecked(end)?;
    let mut buffer = vec![0; PIECE];
    loop {
        // A terminal ends with EIO.
        let count = end.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        if let Some(told) = told {
            told.tell(Input::File(FdMessage { fd, eof: false, data: buffer[..count].to_vec() })).await;
        }
    }
}

/// Writes what comes, until there is no more or nobody reads it.
async fn write_all(end: OwnedFd, mut pieces: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    unblock(&end)?;
    let mut end = Sender::from_owned_fd_unchecked(end)?;
    while let Some(piece) = pieces.recv().await {
        end.write_all(&piece).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_their_numbers() {
        assert_eq!([signal_number("HUP"), signal_number("SIGKILL"), signal_number("TERM")], [1, 9, 15].map(Some));
        assert_eq!(signal_number("NONE"), None);
    }

    #[tokio::test]
    async fn input_and_output_cross_a_pipe_larger_than_it_holds() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (input, pieces) = mpsc::channel(WAITING);
        let writer = tokio::spawn(write_all(write, pieces));
        let (answers, mut told) = mpsc::channel(WAITING);
        let reader = tokio::spawn(async move {
            let told = Teller { id: "p".to_owned(), answers };
            read_all(read, 1, Some(&told)).await
        });
        let sent = tokio::spawn(async move { input.send(vec![7; 1 << 20]).await });
        let mut count = 0;
        while let Some(Ok(message)) = told.recv().await {
            let Some(Input::File(file)) = message.input else { panic!("no output") };
            count += file.data.len();
        }
        assert_eq!(count, 1 << 20);
        sent.await.unwrap().unwrap();
        writer.await.unwrap().unwrap();
        reader.await.unwrap().unwrap();
    }
}
