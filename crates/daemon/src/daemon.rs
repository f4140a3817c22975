use crate::builds::Builds;
use crate::content::ContentService;
use crate::control::ControlService;
use crate::gateway_service::{self, GatewayService};
use crate::history_files::HistoryFiles;
use crate::info_service::WithInfo;
use crate::listen::Listener;
use crate::origins::Origins;
use crate::session::{MOST_MESSAGE, SessionFiles, Sessions};
use crate::solve_service::WithSolve;
use crate::traces::TraceService;
use crate::{DaemonError, DaemonOptions, debug, worker_record};
use forge_buildkit_proto::Serving;
use forge_buildkit_proto::health::health_server::HealthServer;
use forge_buildkit_proto::moby::buildkit::v1::control_server::ControlServer;
use forge_buildkit_proto::moby::buildkit::v1::types::WorkerRecord;
use forge_engine::Engine;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;

/// How long builds have to clean up when the daemon is told to end.
const GRACE: Duration = Duration::from_secs(10);

/// HTTP/2 windows: contexts and results are large.
const WINDOW: u32 = 4 << 20;

/// A builder that clients connect to.
pub struct Daemon {
    shared: Arc<Shared>,
    listeners: Vec<Listener>,
    debug: Option<Listener>,
    stop: CancellationToken,
}

/// What all services work with.
pub(crate) struct Shared {
    pub engine: Engine,
    pub options: DaemonOptions,
    pub worker: WorkerRecord,
    pub sessions: Arc<Sessions>,
    pub files: Arc<SessionFiles>,
    pub builds: Arc<Builds>,
    pub origins: Origins,
}

impl Daemon {
    /// Binds all addresses: whoever connects from now on is served once [`Daemon::serve`] runs. `root` is the engine's.
    ///
    /// # Errors
    /// An address is taken or must not be used, or a file in `root` cannot be written.
    pub async fn bind(engine: Engine, root: &Path, options: DaemonOptions) -> Result<Self, DaemonError> {
        let mut listeners = Vec::new();
        for address in &options.addresses {
            listeners.extend(Listener::bind(address, &options).await?);
        }
        let debug = match &options.debug_address {
            Some(address) => Listener::bind(address, &options).await?.into_iter().next(),
            None => None,
        };
        let stop = CancellationToken::new();
        // They are for clients to look at: a file system that tells nothing is a reason for none.
        let policies = engine.gc_policies().unwrap_or_default();
        let shared = Arc::new(Shared {
            engine,
            worker: worker_record::make(root, &options, &policies)?,
            options,
            sessions: Arc::new(Sessions::new()),
            files: Arc::new(SessionFiles::new(root)),
            builds: Arc::new(Builds::open(stop.clone(), HistoryFiles::new(root))),
            origins: Origins::default(),
        });
        Ok(Self { shared, listeners, debug, stop })
    }

    /// Serves until `end` is cancelled; then builds are cancelled, and have a while to clean up.
    ///
    /// # Errors
    /// The server fails by itself.
    pub async fn serve(self, end: CancellationToken) -> Result<(), DaemonError> {
        let Self { shared, listeners, debug, stop } = self;
        let debug = debug.map(|listener| tokio::spawn(debug::serve(listener, shared.builds.clone())));
        let (streams, files): (Vec<_>, Vec<_>) = listeners.into_iter().map(Listener::incoming).unzip();
        let servers = streams.into_iter().map(|incoming| router(&shared).serve_with_incoming(incoming));
        let served = tokio::select! {
            served = join_all(servers) => served.into_iter().collect::<Result<(), _>>(),
            () = async {
                end.cancelled().await;
                stop.cancel();
                // Whoever does not end in time ends with the process; the store is made for that.
                let _ = tokio::time::timeout(GRACE, shared.builds.idle()).await;
            } => Ok(()),
        };
        if let Some(debug) = debug {
            debug.abort();
        }
        drop(files);
        Ok(served?)
    }
}

impl Daemon {
    /// Serves one connection until `end` is cancelled, and then as [`Daemon::serve`] ends.
    ///
    /// # Errors
    /// The server fails by itself.
    pub async fn serve_one(self, connection: DuplexStream, end: CancellationToken) -> Result<(), DaemonError> {
        let connections = stream::once(async { Ok::<_, std::io::Error>(connection) }).chain(stream::pending());
        tokio::select! {
            served = router(&self.shared).serve_with_incoming(connections) => Ok(served?),
            () = async {
                end.cancelled().await;
                self.stop.cancel();
                let _ = tokio::time::timeout(GRACE, self.shared.builds.idle()).await;
            } => Ok(()),
        }
    }
}

fn router(shared: &Arc<Shared>) -> Router {
    let (control, gateway) = (ControlService::new(shared.clone()), GatewayService::new(shared.clone()));
    let (control, gateway) = (Arc::new(control), Arc::new(gateway));
    let controls = ControlServer::from_arc(control.clone());
    let controls = controls.max_decoding_message_size(MOST_MESSAGE).max_encoding_message_size(MOST_MESSAGE);
    Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .add_service(HealthServer::new(Serving))
        .add_service(ContentService::new(shared.builds.clone()))
        .add_service(TraceService::new(shared.builds.clone()))
        .add_service(gateway_service::server(gateway))
        .add_service(WithInfo {
            inner: WithSolve { inner: controls, solver: control },
            version: worker_record::full_version(&shared.options),
        })
}
