//! Results as they come in: streams of bytes, and trees of files.

use crate::outputs::{Target, Targets};
use bytes::Bytes;
use forge_buildkit_proto::fsutil::types::Packet;
use forge_buildkit_proto::fsutil::types::packet::PacketType;
use forge_buildkit_proto::moby::filesync::packet::file_send_server as trees;
use forge_buildkit_proto::moby::filesync::v1::{BytesMessage, file_send_server as streams};
use forge_engine::{FolderMode, Metadata, OpenedDestination, Recipient};
use forge_filesync::{Others, Owners, Receiver, Reply, Trust, packet, request};
use std::convert::Infallible;
use std::io::{self, BufReader, Cursor, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body as Answer;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};

/// The output that a call is about, by its place among those of the request.
const NUMBER: &str = "buildkit-attachable-exporter-id";

/// So much is written at a time.
const PIECE: usize = 256 << 10;

/// Takes results. One method has two languages: which one a call speaks follows from the output that it is about.
#[derive(Clone)]
pub(crate) struct Results {
    targets: Arc<Targets>,
    streams: streams::FileSendServer<Taker>,
    trees: trees::FileSendServer<Taker>,
}

impl Results {
    pub(crate) fn new(targets: Arc<Targets>) -> Self {
        let taker = Taker(targets.clone());
        let limit = crate::connection::MOST_MESSAGE;
        Self {
            targets,
            streams: streams::FileSendServer::new(taker.clone()).max_decoding_message_size(limit),
            trees: trees::FileSendServer::new(taker).max_decoding_message_size(limit),
        }
    }
}

impl NamedService for Results {
    const NAME: &'static str = "moby.filesync.v1.FileSend";
}

impl<B> Service<http::Request<B>> for Results
where
    B: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send + 'static,
{
    type Response = http::Response<Answer>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let number = request.headers().get(NUMBER).and_then(|number| number.to_str().ok());
        match self.targets.get(number) {
            Some(Target::Folder(..)) => Box::pin(self.trees.call(request)),
            _ => Box::pin(self.streams.call(request)),
        }
    }
}

/// Takes one result.
#[derive(Clone)]
struct Taker(Arc<Targets>);

impl Taker {
    fn target<T>(&self, request: &Request<T>) -> Result<Target, Status> {
        let number = request.metadata().get(NUMBER).and_then(|number| number.to_str().ok());
        self.0.get(number).cloned().ok_or_else(|| Status::invalid_argument("there is no such output"))
    }
}

fn failed(error: impl ToString) -> Status {
    Status::unknown(error.to_string())
}

#[tonic::async_trait]
impl streams::FileSend for Taker {
    type DiffCopyStream = ReceiverStream<Result<BytesMessage, Status>>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let cancel = self.0.cancel.clone();
        let taking = match self.target(&request)? {
            Target::Folder(..) => return Err(Status::invalid_argument("the output is no stream")),
            Target::Engine(recipient) => Taking::Handed(recipient, cancel),
            Target::Layout(folder) => Taking::Unpacked(folder),
            Target::Stream(destination) => {
                let open = move || forge_engine::open_destination(&destination, &Metadata::new(), &cancel);
                Taking::Written(tokio::task::spawn_blocking(open).await.map_err(failed)?.map_err(failed)?)
            }
        };
        let (answers, receiver) = mpsc::channel(1);
        let incoming = Incoming { messages: request.into_inner(), rest: Cursor::default() };
        tokio::task::spawn_blocking(move || {
            let taken = match taking {
                Taking::Written(opened) => write(incoming, opened),
                Taking::Handed(recipient, cancel) => hand(incoming, &recipient, &cancel),
                Taking::Unpacked(folder) => forge_engine::unpack_layout(incoming, &folder).map_err(failed),
            };
            if let Err(status) = taken {
                // An answer is the end of the stream; only a failure has something to say.
                let _ = answers.blocking_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// What becomes of a stream.
enum Taking {
    Written(OpenedDestination),
    Handed(Recipient, CancellationToken),
    Unpacked(PathBuf),
}

/// A stream as it comes in. Reading it blocks.
struct Incoming {
    messages: Streaming<BytesMessage>,
    /// What of the last message was not read.
    rest: Cursor<Vec<u8>>,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.rest.read(buffer)? {
                0 if !buffer.is_empty() => {}
                count => return Ok(count),
            }
            let message = Handle::current().block_on(self.messages.message());
            match message.map_err(|status| io::Error::other(status.message().to_owned()))? {
                Some(message) => self.rest = Cursor::new(message.data),
                None => return Ok(0),
            }
        }
    }
}

/// Writes everything, and then puts it in its place. Blocks.
fn write(incoming: Incoming, opened: OpenedDestination) -> Result<(), Status> {
    let OpenedDestination { mut stream, end } = opened;
    copy(incoming, &mut *stream).map_err(failed)?;
    drop(stream);
    end.complete().map_err(failed)
}

/// Hands everything to another container engine, which takes nothing of what does not come to its end. Blocks.
fn hand(incoming: Incoming, recipient: &Recipient, cancel: &CancellationToken) -> Result<(), Status> {
    let handed = forge_engine::hand_archive(recipient, cancel, |mut stream| copy(incoming, &mut *stream));
    // The daemon tells it as the reason of the build.
    handed.map_err(|error| Status::unknown(error.to_string()))
}

fn copy(incoming: Incoming, stream: &mut (dyn Write + Send)) -> io::Result<()> {
    io::copy(&mut BufReader::with_capacity(PIECE, incoming), stream)?;
    stream.flush()
}

#[tonic::async_trait]
impl trees::FileSend for Taker {
    type DiffCopyStream = ReceiverStream<Result<Packet, Status>>;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Self::DiffCopyStream>, Status> {
        let Target::Folder(folder, mode) = self.target(&request)? else {
            return Err(Status::invalid_argument("the output is no folder"));
        };
        let (answers, receiver) = mpsc::channel(64);
        let incoming = request.into_inner();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = receive(incoming, folder, mode, &answers) {
                let _ = answers.blocking_send(Err(failed(error)));
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Writes a tree into a folder. Files belong to whoever runs this, as with a build here. Blocks.
fn receive(
    mut incoming: Streaming<Packet>,
    folder: PathBuf,
    mode: FolderMode,
    answers: &mpsc::Sender<Result<Packet, Status>>,
) -> io::Result<()> {
    std::fs::create_dir_all(&folder)?;
    let others = match mode {
        FolderMode::Copy => Others::Kept,
        FolderMode::Delete => Others::Removed,
    };
    let mut receiver = Receiver::new(folder, Trust::Nothing, others, Owners::Receiver);
    let runtime = Handle::current();
    let tell = |packet| answers.blocking_send(Ok(packet)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe));
    loop {
        let taken = match runtime.block_on(incoming.message()) {
            Ok(Some(packet)) => receiver.take(packet)?,
            Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(status) => return Err(io::Error::other(status.message().to_owned())),
        };
        match taken {
            Reply::Nothing => {}
            Reply::Request(id) => tell(request(id))?,
            Reply::Complete => tell(packet(PacketType::PacketFin, 0, Vec::new()))?,
            Reply::End => return Ok(()),
        }
    }
}
