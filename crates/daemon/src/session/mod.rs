//! Clients that serve what a build asks of them: files, secrets, credentials, places for results.
//!
//! Reading order: [`Sessions`], [`ClientSession`]; `hijack` (the connection), `health` (whether it still works); `remote` (a
//! client as a build sees it), `files` (folders), `agent` (SSH), `tokens` (of registries).

mod agent;
pub(crate) mod content;
pub(crate) mod exporters;
mod files;
mod health;
mod hijack;
mod remote;
pub(crate) mod send;
mod tokens;
pub(crate) mod upload;

pub(crate) use files::{Kept, SessionFiles};
pub(crate) use remote::RemoteSession;

use forge_buildkit_proto::moby::buildkit::v1::BytesMessage;
use hijack::Outgoing;
use hyper_util::rt::TokioIo;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokens::Tokens;
use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};
use tower::service_fn;

/// How long a session is waited for that a build names before it is there.
const WAIT: Duration = Duration::from_secs(5);

/// Messages of clients may be as large.
pub(crate) const MOST_MESSAGE: usize = 16 << 20;

/// HTTP/2 windows: at the default of 64 KiB a transfer waits for the other side most of the time.
const WINDOW: u32 = 4 << 20;

/// A client that is connected.
pub(crate) struct ClientSession {
    /// What tells folders of one user's machine from those of another.
    pub shared_key: String,
    pub channel: Channel,
    /// Tells it from all others that there are and were.
    pub owner: String,
    /// Those of all clients.
    pub tokens: Arc<Tokens>,
    /// Cancelled when the client has gone.
    pub gone: CancellationToken,
    /// `/service/method`, in lower case.
    methods: HashSet<String>,
    _disconnect: DropGuard,
}

impl ClientSession {
    /// Whether the client serves a method. No other may be called.
    pub(crate) fn supports(&self, method: &str) -> bool {
        self.methods.contains(&method.to_ascii_lowercase())
    }
}

/// The clients that are connected, by their ids.
pub(crate) struct Sessions {
    connected: Mutex<HashMap<String, Arc<ClientSession>>>,
    tokens: Arc<Tokens>,
    /// How many there have been.
    count: AtomicU64,
    changed: watch::Sender<()>,
}

impl Sessions {
    pub(crate) fn new() -> Self {
        let (connected, tokens, count) = Default::default();
        Self { connected, tokens, count, changed: watch::Sender::new(()) }
    }

    fn connected(&self) -> MutexGuard<'_, HashMap<String, Arc<ClientSession>>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a client in; it stays until its stream ends.
    pub(crate) fn connect(
        self: &Arc<Self>,
        metadata: &MetadataMap,
        incoming: Streaming<BytesMessage>,
    ) -> Result<Outgoing, Status> {
        let text = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let id = text("x-docker-expose-session-uuid");
        if id.is_empty() {
            return Err(Status::invalid_argument("the session has no id"));
        }
        let methods = metadata.get_all("x-docker-expose-session-grpc-method").iter();
        let gone = CancellationToken::new();
        let (connection, outgoing) = hijack::connection(incoming, gone.clone());
        let session = Arc::new(ClientSession {
            shared_key: text("x-docker-expose-session-sharedkey"),
            channel: channel(connection),
            owner: format!("client {}", self.count.fetch_add(1, Ordering::Relaxed)),
            tokens: self.tokens.clone(),
            gone: gone.clone(),
            methods: methods.filter_map(|method| Some(method.to_str().ok()?.to_ascii_lowercase())).collect(),
            _disconnect: gone.clone().drop_guard(),
        });
        health::watch(&session, &text("x-buildkit-session-health-custom-timeout"));
        self.connected().insert(id.clone(), session);
        self.changed.send_replace(());
        let sessions = self.clone();
        tokio::spawn(async move {
            gone.cancelled().await;
            let mut connected = sessions.connected();
            // Another one may have taken the id in the meantime.
            if connected.get(&id).is_some_and(|session| session.gone.is_cancelled()) {
                connected.remove(&id);
            }
        });
        Ok(outgoing)
    }

    /// The client of that id, which may be about to connect.
    pub(crate) async fn get(&self, id: &str) -> Result<Arc<ClientSession>, Status> {
        let mut changes = self.changed.subscribe();
        let find = async {
            loop {
                if let Some(session) = self.connected().get(id).filter(|session| !session.gone.is_cancelled()) {
                    return session.clone();
                }
                // The sender lives as long as this does.
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let found = tokio::time::timeout(WAIT, find).await;
        found.map_err(|_| Status::unavailable(format!("no active session for {id}: context deadline exceeded")))
    }
}

/// A gRPC client over a connection that there is already.
fn channel(connection: DuplexStream) -> Channel {
    let connection = Mutex::new(Some(connection));
    let once = service_fn(move |_: Uri| {
        let taken = connection.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { taken.map(TokioIo::new).ok_or_else(|| io::Error::other("the client has gone")) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let endpoint = endpoint.initial_stream_window_size(WINDOW).initial_connection_window_size(4 * WINDOW);
    endpoint.connect_with_connector_lazy(once)
}
