//! A context that a client sends as one stream.

use super::{ClientSession, MOST_MESSAGE};
use forge_buildkit_proto::moby::upload::v1::BytesMessage;
use forge_buildkit_proto::moby::upload::v1::upload_client::UploadClient;
use std::io::{self, Read};
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::metadata::AsciiMetadataValue;
use tonic::{Request, Status};

/// Where clients say that such a context is.
pub(crate) const ADDRESS: &str = "http://buildkit-session/";

/// The stream that an address names. To be read on a thread that may block.
pub(crate) fn open(session: &Arc<ClientSession>, address: &str) -> Result<impl Read + Send + use<>, Status> {
    let path = address.strip_prefix("http://buildkit-session").unwrap_or(address);
    let path = AsciiMetadataValue::try_from(path).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let (sender, receiver) = mpsc::channel(8);
    let session = session.clone();
    tokio::spawn(async move {
        let pulled = pull(&session, path, &sender).await;
        if let Err(status) = pulled {
            // Whoever read it may have had enough.
            let _ = sender.send(Err(io::Error::other(status.message().to_owned()))).await;
        }
    });
    Ok(Pulled { receiver, rest: Vec::new(), position: 0 })
}

async fn pull(
    session: &ClientSession,
    path: AsciiMetadataValue,
    sender: &mpsc::Sender<io::Result<Vec<u8>>>,
) -> Result<(), Status> {
    let mut request = Request::new(tokio_stream::pending::<BytesMessage>());
    request.metadata_mut().insert("urlpath", path);
    request.metadata_mut().insert("urlhost", AsciiMetadataValue::from_static("buildkit-session"));
    let client = UploadClient::new(session.channel.clone());
    let mut messages = client.max_decoding_message_size(MOST_MESSAGE).pull(request).await?.into_inner();
    while let Some(message) = messages.message().await? {
        if sender.send(Ok(message.data)).await.is_err() {
            break;
        }
    }
    Ok(())
}

struct Pulled {
    receiver: mpsc::Receiver<io::Result<Vec<u8>>>,
    rest: Vec<u8>,
    position: usize,
}

impl Read for Pulled {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.rest.len() {
            let Some(next) = self.receiver.blocking_recv() else { return Ok(0) };
            (self.rest, self.position) = (next?, 0);
        }
        let count = buffer.len().min(self.rest.len() - self.position);
        buffer[..count].copy_from_slice(&self.rest[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}
