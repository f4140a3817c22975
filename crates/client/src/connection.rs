use crate::tls::Protection;
use crate::{Address, TlsFiles};
use forge_buildkit_proto::moby::buildkit::v1::ListWorkersRequest;
use forge_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use forge_engine::{EngineError, OwnOptions};
use forge_image::ErrorKind;
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// Messages are as large as the daemon's at most.
pub(crate) const MOST_MESSAGE: usize = 16 << 20;

/// HTTP/2 windows: at the default of 64 KiB a transfer waits for the other side most of the time.
const WINDOW: u32 = 4 << 20;

/// A daemon that can be reached.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    /// Whether the daemon has words of forge's own.
    is_forge: bool,
}

/// Bytes both ways.
trait Stream: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

impl Client {
    /// Connects, and finds out whether whoever is there answers.
    ///
    /// # Errors
    /// Nobody does, or one of the two does not believe the other's certificate.
    pub async fn connect(address: &Address, tls: Option<&TlsFiles>) -> Result<Self, EngineError> {
        let protection = match (address, tls) {
            (Address::Tcp(host), Some(files)) => Some(Protection::open(files, host)?),
            _ => None,
        };
        let to = address.clone();
        // What the library tells of a connection that failed is little: the reason is kept here.
        let failure = Arc::new(Mutex::new(None));
        let noted = failure.clone();
        let connect = service_fn(move |_: Uri| {
            let (to, protection, noted) = (to.clone(), protection.clone(), noted.clone());
            async move {
                let opened = open(&to, protection).await;
                opened.map(TokioIo::new).inspect_err(|error| {
                    *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                })
            }
        });
        let failed = |reason: String| {
            EngineError::new(ErrorKind::Remote, format!("cannot connect to the daemon at {address}: {reason}"))
                .with_hint(
                    "is `forge daemon` running there, with certificates of the same authority where it asks for them?",
                )
        };
        let connected = endpoint().connect_with_connector(connect).await;
        let reason = |other: String| failure.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(other);
        let channel = connected.map_err(|error| failed(reason(error.to_string())))?;
        let client = Self { channel, is_forge: false };
        // With TLS the daemon says only now whether it takes our certificate.
        let greeted = client.control().list_workers(ListWorkersRequest::default()).await;
        let workers = greeted.map_err(|status| failed(reason(status.message().to_owned())))?.into_inner().record;
        let is_forge = workers.iter().any(|worker| worker.labels.contains_key(OwnOptions::LABEL));
        Ok(Self { is_forge, ..client })
    }

    /// Uses a connection that there is, to a daemon of forge's.
    pub fn over(connection: DuplexStream) -> Self {
        let connection = Mutex::new(Some(connection));
        let once = service_fn(move |_: Uri| {
            let taken = connection.lock().unwrap_or_else(PoisonError::into_inner).take();
            async move { taken.map(TokioIo::new).ok_or_else(|| io::Error::other("the daemon has gone")) }
        });
        Self { channel: endpoint().connect_with_connector_lazy(once), is_forge: true }
    }

    pub(crate) fn is_forge(&self) -> bool {
        self.is_forge
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn control(&self) -> ControlClient<Channel> {
        let client = ControlClient::new(self.channel.clone());
        client.max_decoding_message_size(MOST_MESSAGE).max_encoding_message_size(MOST_MESSAGE)
    }
}

fn endpoint() -> Endpoint {
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.initial_stream_window_size(WINDOW).initial_connection_window_size(4 * WINDOW)
}

async fn open(address: &Address, protection: Option<Protection>) -> io::Result<Pin<Box<dyn Stream>>> {
    match (address, protection) {
        (Address::Unix(path), _) => Ok(Box::pin(UnixStream::connect(path).await?)),
        (Address::Tcp(host), protection) => {
            let stream = TcpStream::connect(host).await?;
            // Small messages go back and forth.
            stream.set_nodelay(true)?;
            match protection {
                None => Ok(Box::pin(stream)),
                Some(protection) => Ok(Box::pin(protection.connector.connect(protection.name, stream).await?)),
            }
        }
    }
}
