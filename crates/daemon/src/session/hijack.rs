//! A byte stream inside of a stream of messages: what clients serve their callbacks on.

use forge_buildkit_proto::moby::buildkit::v1::BytesMessage;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

/// What may be on its way in one direction before the other side is waited for.
const BUFFER: usize = 1 << 20;

/// The bytes of one message; BuildKit's clients send as much.
const CHUNK: usize = 32 << 10;

/// What goes out to the client.
pub(super) type Outgoing = ReceiverStream<Result<BytesMessage, Status>>;

/// Makes a connection of a call's two streams. It is closed, and the token cancelled, when the client has gone.
pub(super) fn connection(incoming: Streaming<BytesMessage>, gone: CancellationToken) -> (DuplexStream, Outgoing) {
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let (reader, writer) = tokio::io::split(theirs);
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn({
        let gone = gone.clone();
        async move {
            tokio::select! {
                () = receive(incoming, writer) => {}
                () = gone.cancelled() => {}
            }
            gone.cancel();
        }
    });
    tokio::spawn(async move {
        tokio::select! {
            () = send(reader, &sender) => {}
            () = gone.cancelled() => {}
            () = sender.closed() => {}
        }
        gone.cancel();
    });
    (ours, ReceiverStream::new(receiver))
}

async fn receive(mut incoming: Streaming<BytesMessage>, mut writer: WriteHalf<DuplexStream>) {
    while let Ok(Some(message)) = incoming.message().await {
        if writer.write_all(&message.data).await.is_err() {
            return;
        }
    }
}

async fn send(mut reader: ReadHalf<DuplexStream>, sender: &mpsc::Sender<Result<BytesMessage, Status>>) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = reader.read(&mut buffer).await {
        let message = BytesMessage { data: buffer[..count].to_vec() };
        if sender.send(Ok(message)).await.is_err() {
            return;
        }
    }
}
