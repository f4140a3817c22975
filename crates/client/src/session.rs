//! What a daemon may ask of this side while it builds, served on a connection within the connection.

use crate::connection::{Client, MOST_MESSAGE};
use crate::content::Contents;
use crate::outputs::Targets;
use crate::results::Results;
use crate::stores::Stores;
use forge_buildkit_proto::Serving;
use forge_buildkit_proto::content::{READ, WRITE};
use forge_buildkit_proto::health::health_server::HealthServer;
use forge_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::SecretsServer;
use forge_buildkit_proto::moby::buildkit::v1::BytesMessage;
use forge_buildkit_proto::moby::filesync::packet::file_sync_server::FileSyncServer;
use forge_buildkit_proto::moby::filesync::v1::auth_server::AuthServer;
use forge_buildkit_proto::moby::sshforward::v1::ssh_server::SshServer;
use forge_buildkit_proto::moby::upload::v1::upload_server::UploadServer;
use forge_engine::{ContextStream, TokenFetcher};
use forge_session::Session;
use futures_util::stream::{self, StreamExt};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::Server;
use tonic::{Request, Status, Streaming};

/// What may be on its way in one direction before the other side is waited for.
const BUFFER: usize = 1 << 20;

/// The bytes of one message; BuildKit's own clients send as much.
const CHUNK: usize = 32 << 10;

/// HTTP/2 windows of what is asked for.
const WINDOW: u32 = 4 << 20;

/// What the daemon may call.
const METHODS: [&str; 13] = [
    "/moby.filesync.v1.FileSync/DiffCopy",
    "/moby.filesync.v1.FileSend/DiffCopy",
    "/moby.filesync.v1.Auth/Credentials",
    "/moby.filesync.v1.Auth/FetchToken",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    "/moby.sshforward.v1.SSH/CheckAgent",
    "/moby.sshforward.v1.SSH/ForwardAgent",
    "/moby.upload.v1.Upload/Pull",
    READ,
    WRITE,
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
    "/grpc.health.v1.Health/Watch",
];

/// What a build is handed.
#[derive(Clone)]
pub(crate) struct Handed(Arc<Given>);

struct Given {
    session: Arc<dyn Session>,
    /// The main context, where it is a stream.
    stream: Option<ContextStream>,
    tokens: TokenFetcher,
}

impl Handed {
    pub(crate) fn new(session: Arc<dyn Session>, stream: Option<ContextStream>, tokens: TokenFetcher) -> Self {
        Self(Arc::new(Given { session, stream, tokens }))
    }

    pub(crate) fn session(&self) -> &dyn Session {
        &*self.0.session
    }

    pub(crate) fn tokens(&self) -> &TokenFetcher {
        &self.0.tokens
    }

    pub(crate) fn stream(&self) -> Option<&ContextStream> {
        self.0.stream.as_ref()
    }
}

impl Client {
    /// Opens a session of that name; it ends when the guard is dropped.
    pub(crate) async fn open_session(
        &self,
        id: &str,
        shared_key: &str,
        handed: Handed,
        targets: Arc<Targets>,
        stores: Arc<Stores>,
    ) -> Result<DropGuard, Status> {
        let (sender, receiver) = mpsc::channel::<BytesMessage>(16);
        let mut request = Request::new(ReceiverStream::new(receiver));
        describe(id, shared_key, request.metadata_mut())?;
        let incoming = self.control().session(request).await?.into_inner();
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(carry(incoming, sender, theirs)));
        tokio::spawn(stop.clone().run_until_cancelled_owned(serve(handed, targets, stores, ours)));
        Ok(stop.drop_guard())
    }
}

fn describe(id: &str, shared_key: &str, metadata: &mut MetadataMap) -> Result<(), Status> {
    let value = |text: &str| AsciiMetadataValue::try_from(text).map_err(|error| Status::internal(error.to_string()));
    metadata.insert("x-docker-expose-session-uuid", value(id)?);
    metadata.insert("x-docker-expose-session-name", value("forge")?);
    metadata.insert("x-docker-expose-session-sharedkey", value(shared_key)?);
    for method in METHODS {
        metadata.append("x-docker-expose-session-grpc-method", AsciiMetadataValue::from_static(method));
    }
    Ok(())
}

/// Carries bytes between the call and the server until either ends.
async fn carry(mut incoming: Streaming<BytesMessage>, sender: mpsc::Sender<BytesMessage>, connection: DuplexStream) {
    let (mut reader, mut writer) = tokio::io::split(connection);
    let receive = async {
        while let Ok(Some(message)) = incoming.message().await {
            if writer.write_all(&message.data).await.is_err() {
                return;
            }
        }
    };
    let send = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            if sender.send(BytesMessage { data: buffer[..count].to_vec() }).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = receive => {}
        () = send => {}
    }
}

async fn serve(handed: Handed, targets: Arc<Targets>, stores: Arc<Stores>, connection: DuplexStream) {
    let server = Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .add_service(HealthServer::new(Serving))
        .add_service(FileSyncServer::new(handed.clone()).max_decoding_message_size(MOST_MESSAGE))
        .add_service(Results::new(targets))
        .add_service(Contents::new(stores))
        .add_service(AuthServer::new(handed.clone()))
        .add_service(SecretsServer::new(handed.clone()))
        .add_service(SshServer::new(handed.clone()))
        .add_service(UploadServer::new(handed));
    let connections = stream::once(async { Ok::<_, io::Error>(connection) }).chain(stream::pending());
    // A connection that breaks is seen by whoever waits for the build.
    let _ = server.serve_with_incoming(connections).await;
}
