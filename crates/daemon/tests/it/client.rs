//! A client of BuildKit's interface: it calls the daemon, and serves what it is called back for.

use crate::account::Account;
use crate::chosen_outputs::ChosenOutputs;
use forge_buildkit_proto::fsutil::types::packet::PacketType;
use forge_buildkit_proto::fsutil::types::{Packet, Stat};
use forge_buildkit_proto::health::health_server::{Health, HealthServer};
use forge_buildkit_proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
    health_check_response::ServingStatus,
};
use forge_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::SecretsServer;
use forge_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use forge_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_client::LlbBridgeClient;
use forge_buildkit_proto::moby::buildkit::v1::{
    BytesMessage, CacheOptions, Exporter, SolveRequest, SolveResponse, StatusRequest, StatusResponse,
};
use forge_buildkit_proto::moby::filesync::packet::file_sync_server::{FileSync, FileSyncServer};
use forge_buildkit_proto::moby::filesync::v1::BytesMessage as FileBytes;
use forge_buildkit_proto::moby::filesync::v1::auth_server::AuthServer;
use forge_buildkit_proto::moby::filesync::v1::file_send_server::{FileSend, FileSendServer};
use forge_buildkit_proto::moby::sshforward::v1::ssh_server::SshServer;
use forge_daemon::{Address, Daemon, DaemonOptions};
use forge_engine::{Engine, EngineOptions, GcOptions, Proxy};
use futures_util::stream::{self, BoxStream, StreamExt};
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Response, Status, Streaming};
use tower::service_fn;

/// A daemon with a store of its own, gone when this is.
pub struct TestDaemon {
    pub folder: tempfile::TempDir,
    pub socket: PathBuf,
    stop: Option<DropGuard>,
    served: tokio::task::JoinHandle<Result<(), forge_daemon::DaemonError>>,
}

impl TestDaemon {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// One that may reach registries of the test.
    pub async fn start_online() -> Self {
        Self::start_with(|options| options.offline = false).await
    }

    /// One that is told more of how it serves.
    pub async fn start_as(change: impl FnOnce(&mut DaemonOptions)) -> Self {
        Self::start_changed(|options| options.offline = false, change).await
    }

    async fn start_with(change: impl FnOnce(&mut EngineOptions)) -> Self {
        Self::start_changed(change, |_| {}).await
    }

    async fn start_changed(
        change: impl FnOnce(&mut EngineOptions),
        change_daemon: impl FnOnce(&mut DaemonOptions),
    ) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), change, change_daemon).await
    }

    /// Ends it, and starts it anew with what it left.
    pub async fn again(self) -> Self {
        let Self { folder, stop, served, .. } = self;
        drop(stop);
        served.await.unwrap().unwrap();
        Self::start_in(folder, |_| {}, |_| {}).await
    }

    async fn start_in(
        folder: tempfile::TempDir,
        change: impl FnOnce(&mut EngineOptions),
        change_daemon: impl FnOnce(&mut DaemonOptions),
    ) -> Self {
        let root = folder.path().join("root");
        let mut options = EngineOptions {
            root: root.clone(),
            registries: BTreeMap::new(),
            docker_config: folder.path().join("config.json"),
            offline: true,
            intake: forge_engine::IntakeLimits::default(),
            proxy: Proxy::default(),
            max_parallelism: None,
            device_folders: Vec::new(),
            oci_runtime: None,
            gc: GcOptions::default(),
            user_agent: None,
        };
        change(&mut options);
        let socket = folder.path().join("d.sock");
        let addresses = vec![Address::Unix(socket.clone())];
        let mut daemon = DaemonOptions { addresses, version: "v0.0.0+test".into(), ..DaemonOptions::default() };
        change_daemon(&mut daemon);
        let daemon = Daemon::bind(Engine::open(options).unwrap(), &root, daemon).await.unwrap();
        let stop = CancellationToken::new();
        let served = tokio::spawn(daemon.serve(stop.clone()));
        Self { folder, socket, stop: Some(stop.drop_guard()), served }
    }

    pub async fn client(&self) -> Client {
        Client::connect(&self.socket).await
    }

    /// Ends it as a signal does.
    pub async fn stop(mut self) -> Result<(), forge_daemon::DaemonError> {
        drop(self.stop.take());
        self.served.await.unwrap()
    }
}

/// What a client serves to the daemon.
#[derive(Clone, Default)]
pub struct Served {
    /// Files by the names of their contexts.
    pub files: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// How many files were asked for.
    pub requests: Arc<Mutex<Vec<String>>>,
    /// What came in as a stream.
    pub received: Arc<Mutex<Vec<u8>>>,
    /// Secrets by their ids.
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// The id of an agent that answers every message with itself.
    pub agent: Option<String>,
    /// What was told of the stream before it came.
    pub told: Arc<Mutex<BTreeMap<String, String>>>,
    /// Who it is to a registry.
    pub account: Option<Account>,
    /// Outputs that are chosen when there is a result.
    pub exporters: Option<ChosenOutputs>,
}

impl Served {
    pub fn context(name: &str, files: &[(&str, &str)]) -> Self {
        Self::default().and(name, files)
    }

    pub fn and(mut self, name: &str, files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect();
        self.files.insert(name.to_owned(), files);
        self
    }
}

/// A connection to a daemon.
#[derive(Clone)]
pub struct Client {
    pub channel: Channel,
}

impl Client {
    pub async fn connect(socket: &Path) -> Self {
        let socket = socket.to_owned();
        let connect = service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connect).await.unwrap();
        Self { channel }
    }

    pub fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone()).max_encoding_message_size(64 << 20).max_decoding_message_size(64 << 20)
    }

    pub fn gateway(&self) -> LlbBridgeClient<Channel> {
        LlbBridgeClient::new(self.channel.clone())
    }

    /// Opens a session; it ends when the guard is dropped.
    pub async fn session(&self, id: &str, shared_key: &str, served: Served) -> DropGuard {
        let (sender, receiver) = mpsc::channel::<BytesMessage>(16);
        let mut request = Request::new(ReceiverStream::new(receiver));
        let metadata = request.metadata_mut();
        metadata.insert("x-docker-expose-session-uuid", id.parse().unwrap());
        metadata.insert("x-docker-expose-session-sharedkey", shared_key.parse().unwrap());
        let exporters = served.exporters.iter().flat_map(|_| ChosenOutputs::METHODS);
        let files = [
            "/moby.filesync.v1.FileSync/DiffCopy",
            "/moby.filesync.v1.FileSend/DiffCopy",
            "/moby.buildkit.secrets.v1.Secrets/GetSecret",
            "/moby.sshforward.v1.SSH/CheckAgent",
            "/moby.sshforward.v1.SSH/ForwardAgent",
        ];
        let accounts = served.account.iter().flat_map(|_| Account::METHODS);
        for method in files.into_iter().chain(exporters).chain(accounts) {
            metadata.append("x-docker-expose-session-grpc-method", method.parse().unwrap());
        }
        let mut incoming = self.control().session(request).await.unwrap().into_inner();
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (mut reader, mut writer) = tokio::io::split(theirs);
        let stop = CancellationToken::new();
        let ended = stop.clone();
        tokio::spawn(async move {
            let receive = async {
                while let Ok(Some(message)) = incoming.message().await {
                    if writer.write_all(&message.data).await.is_err() {
                        return;
                    }
                }
            };
            let send = async {
                let mut buffer = vec![0; 32 << 10];
                while let Ok(count @ 1..) = reader.read(&mut buffer).await {
                    if sender.send(BytesMessage { data: buffer[..count].to_vec() }).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = receive => {}
                () = send => {}
                () = ended.cancelled() => {}
            }
        });
        let server = Server::builder()
            .add_service(HealthServer::new(Healthy))
            .add_service(FileSyncServer::new(served.clone()))
            .add_service(served.exporters.clone().unwrap_or_default())
            .add_service(AuthServer::new(served.account.clone().unwrap_or_default()))
            .add_service(FileSendServer::new(served.clone()))
            .add_service(SecretsServer::new(served.clone()))
            .add_service(SshServer::new(served));
        let connection = stream::once(async { Ok::<_, std::io::Error>(ours) }).chain(stream::pending());
        let ended = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = server.serve_with_incoming(connection) => {}
                () = ended.cancelled() => {}
            }
        });
        stop.drop_guard()
    }

    /// Builds a Dockerfile of a session into a plain tar; gives what the daemon answered and the files.
    pub async fn build(
        &self,
        reference: &str,
        served: Served,
        options: &[(&str, &str)],
    ) -> Result<(SolveResponse, BTreeMap<String, Vec<u8>>), Status> {
        self.build_with(reference, served, options, None).await
    }

    /// The same with shared caches.
    pub async fn build_with(
        &self,
        reference: &str,
        served: Served,
        options: &[(&str, &str)],
        cache: Option<CacheOptions>,
    ) -> Result<(SolveResponse, BTreeMap<String, Vec<u8>>), Status> {
        let received = served.received.clone();
        let session = format!("session-{reference}");
        let _open = self.session(&session, "key", served).await;
        let request = SolveRequest {
            r#ref: reference.to_owned(),
            session,
            frontend: "dockerfile.v0".to_owned(),
            frontend_attrs: options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            exporters: vec![Exporter { r#type: "tar".to_owned(), ..Exporter::default() }],
            cache,
            ..SolveRequest::default()
        };
        let response = self.control().solve(request).await?.into_inner();
        let bytes = std::mem::take(&mut *received.lock().unwrap());
        Ok((response, untar(&bytes)))
    }

    /// Everything that the status stream of a build tells.
    pub async fn status(&self, reference: &str) -> Vec<StatusResponse> {
        let request = StatusRequest { r#ref: reference.to_owned() };
        let mut told = self.control().status(request).await.unwrap().into_inner();
        let mut all = Vec::new();
        while let Some(message) = told.message().await.unwrap() {
            all.push(message);
        }
        all
    }
}

pub fn untar(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            files.insert(entry.path().unwrap().to_string_lossy().into_owned(), bytes);
        }
    }
    files
}

struct Healthy;

#[tonic::async_trait]
impl Health for Healthy {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("list"))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watch"))
    }
}

#[tonic::async_trait]
impl FileSync for Served {
    type DiffCopyStream = ReceiverStream<Result<Packet, Status>>;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Self::DiffCopyStream>, Status> {
        let text = |name: &str| -> Vec<String> {
            let values = request.metadata().get_all(name).iter();
            values.filter_map(|value| value.to_str().ok().map(str::to_owned)).collect()
        };
        let name = text("dir-name").pop().unwrap_or_default();
        let include = [text("include-patterns"), text("followpaths")].concat();
        let Some(files) = self.files.get(&name) else {
            return Err(Status::not_found(format!("no access allowed to dir {name:?}")));
        };
        let files: Vec<(String, Vec<u8>)> = files
            .iter()
            .filter(|(path, _)| include.is_empty() || include.contains(path))
            .map(|(path, bytes)| (path.clone(), bytes.clone()))
            .collect();
        let requests = self.requests.clone();
        let (sender, receiver) = mpsc::channel(16);
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            let packet = |kind: PacketType, id, data| Packet { r#type: kind.into(), id, data, ..Packet::default() };
            for (path, bytes) in &files {
                let stat = Stat {
                    path: path.clone(),
                    mode: 0o644,
                    size: bytes.len() as i64,
                    // As if each text had been written at a time of its own.
                    mod_time: bytes.iter().fold(1_700_000_000_000_000_000, |time, byte| time + i64::from(*byte))
                        + i64::from(bytes.last().copied().unwrap_or_default()) * 1_000,
                    ..Stat::default()
                };
                let listed = Packet { stat: Some(stat), ..packet(PacketType::PacketStat, 0, Vec::new()) };
                sender.send(Ok(listed)).await.unwrap();
            }
            sender.send(Ok(packet(PacketType::PacketStat, 0, Vec::new()))).await.unwrap();
            while let Ok(Some(message)) = incoming.message().await {
                match message.r#type() {
                    PacketType::PacketReq => {
                        let (path, bytes) = &files[message.id as usize];
                        requests.lock().unwrap().push(path.clone());
                        for data in bytes.chunks(1 << 20).chain([&[][..]]) {
                            let _ = sender.send(Ok(packet(PacketType::PacketData, message.id, data.to_vec()))).await;
                        }
                    }
                    PacketType::PacketFin => {
                        let _ = sender.send(Ok(packet(PacketType::PacketFin, 0, Vec::new()))).await;
                        return;
                    }
                    other => panic!("{other:?}"),
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type TarStreamStream = ReceiverStream<Result<Packet, Status>>;

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("tar"))
    }
}

#[tonic::async_trait]
impl FileSend for Served {
    type DiffCopyStream = BoxStream<'static, Result<FileBytes, Status>>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<FileBytes>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let received = self.received.clone();
        for entry in request.metadata().iter() {
            let tonic::metadata::KeyAndValueRef::Ascii(name, value) = entry else { continue };
            let Some(name) = name.as_str().strip_prefix("exporter-md-") else { continue };
            self.told.lock().unwrap().insert(name.to_owned(), value.to_str().unwrap().to_owned());
        }
        let mut incoming = request.into_inner();
        let taken = stream::once(async move {
            while let Some(message) = incoming.message().await? {
                received.lock().unwrap().extend(message.data);
            }
            Ok::<(), Status>(())
        });
        // An answer is the end of the stream; only a failure has something to say.
        Ok(Response::new(taken.filter_map(|taken| async move { taken.err().map(Err) }).boxed()))
    }
}
