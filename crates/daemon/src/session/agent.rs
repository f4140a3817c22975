//! The SSH agents of a client.

use super::ClientSession;
use forge_buildkit_proto::moby::sshforward::v1::ssh_client::SshClient;
use forge_buildkit_proto::moby::sshforward::v1::{BytesMessage, CheckAgentRequest};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

const CHUNK: usize = 32 << 10;

/// Whether the client has an agent of that id.
pub(super) async fn check(session: &ClientSession, id: &str) -> Result<bool, Status> {
    if !session.supports("/moby.sshforward.v1.SSH/CheckAgent") {
        return Ok(false);
    }
    let mut client = SshClient::new(session.channel.clone());
    match client.check_agent(CheckAgentRequest { id: id.to_owned() }).await {
        Ok(_) => Ok(true),
        // Clients that have agents, but not this one, say so in words of their own.
        Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => Ok(false),
        Err(status) => Err(status),
    }
}

/// A new connection to the agent, carried until either side ends it.
pub(super) async fn connect(session: &Arc<ClientSession>, id: &str) -> io::Result<OwnedFd> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let ours = UnixStream::from_std(ours)?;
    let id = MetadataValue::try_from(id).map_err(io::Error::other)?;
    let session = session.clone();
    tokio::spawn(async move {
        tokio::select! {
            // A step notices the end of its connection; there is nobody else to tell.
            _ = carry(&session, id, ours) => {}
            () = session.gone.cancelled() => {}
        }
    });
    Ok(theirs.into())
}

async fn carry(
    session: &ClientSession,
    id: MetadataValue<tonic::metadata::Ascii>,
    connection: UnixStream,
) -> Result<(), Status> {
    let (mut reader, mut writer) = connection.into_split();
    let (sender, receiver) = mpsc::channel(4);
    let mut request = Request::new(ReceiverStream::new(receiver));
    request.metadata_mut().insert("buildkit.ssh.id", id);
    let asks = async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            if sender.send(BytesMessage { data: buffer[..count].to_vec() }).await.is_err() {
                break;
            }
        }
    };
    let mut client = SshClient::new(session.channel.clone());
    let answers = async move {
        let mut answers = client.forward_agent(request).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            writer.write_all(&answer.data).await.map_err(|error| Status::unavailable(error.to_string()))?;
        }
        Ok(())
    };
    let (_, answered) = tokio::join!(asks, answers);
    answered
}
