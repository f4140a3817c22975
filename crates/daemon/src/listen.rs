//! Sockets that clients connect to.

use crate::{Address, DaemonError, DaemonOptions, tls};
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// A socket that is bound. Dropping it removes a Unix socket's file.
pub(crate) enum Listener {
    Unix { listener: UnixListener, path: Option<SocketFile> },
    Tcp { listener: TcpListener, tls: Option<TlsAcceptor> },
}

/// The file of a Unix socket, gone when this is.
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whoever removed it already, or replaced the folder, did our work.
        let _ = fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Binds an address; one may stand for several sockets. Needs a runtime.
    pub(crate) async fn bind(address: &Address, options: &DaemonOptions) -> Result<Vec<Self>, DaemonError> {
        let failed = |source| DaemonError::Listen { address: address.clone(), source };
        match address {
            Address::Unix(path) => bind_unix(path, options.group).map(|bound| vec![bound]).map_err(failed),
            Address::Tcp(host) => {
                let tls = protection(address, options)?;
                let listener = TcpListener::bind(host).await.map_err(failed)?;
                Ok(vec![Self::Tcp { listener, tls }])
            }
            Address::Inherited if options.inherited.is_empty() => Err(DaemonError::NothingInherited),
            Address::Inherited => options.inherited.iter().map(|socket| Self::inherit(socket, options)).collect(),
        }
    }

    /// Takes over a socket that is bound already. Its file stays when the daemon ends: it is not its own.
    fn inherit(socket: &OwnedFd, options: &DaemonOptions) -> Result<Self, DaemonError> {
        let address = Address::Inherited;
        let failed = |source| DaemonError::Listen { address: address.clone(), source };
        let bound = rustix::net::getsockname(socket).map_err(|errno| failed(errno.into()))?;
        let socket = socket.try_clone().map_err(failed)?;
        if bound.address_family() == rustix::net::AddressFamily::UNIX {
            let listener = std::os::unix::net::UnixListener::from(socket);
            listener.set_nonblocking(true).map_err(failed)?;
            return Ok(Self::Unix { listener: UnixListener::from_std(listener).map_err(failed)?, path: None });
        }
        let tls = protection(&address, options)?;
        let listener = std::net::TcpListener::from(socket);
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self::Tcp { listener: TcpListener::from_std(listener).map_err(failed)?, tls })
    }

    /// The connections as they come in. The file of a Unix socket stays with the second part.
    pub(crate) fn incoming(self) -> (BoxStream<'static, io::Result<Connection>>, Option<SocketFile>) {
        match self {
            Self::Unix { listener, path } => {
                let connections = stream::unfold(listener, |listener| async move {
                    let accepted = listener.accept().await.map(|(stream, _)| Connection::Unix(stream));
                    Some((accepted, listener))
                });
                (connections.boxed(), path)
            }
            Self::Tcp { listener, tls: None } => {
                let connections = stream::unfold(listener, |listener| async move {
                    let accepted = listener.accept().await.map(|(stream, _)| Connection::Tcp(without_delay(stream)));
                    Some((accepted, listener))
                });
                (connections.boxed(), None)
            }
            Self::Tcp { listener, tls: Some(tls) } => (protected(listener, tls).boxed(), None),
        }
    }
}

/// Small messages go back and forth; a failure costs time only.
fn without_delay(stream: TcpStream) -> TcpStream {
    let _ = stream.set_nodelay(true);
    stream
}

/// What protects a TCP socket; an error where nothing does and that was not allowed.
fn protection(address: &Address, options: &DaemonOptions) -> Result<Option<TlsAcceptor>, DaemonError> {
    let knows_clients = options.tls.as_ref().is_some_and(|files| files.authority.is_some());
    if !knows_clients && !options.unprotected_tcp {
        return Err(DaemonError::Unprotected { address: address.clone() });
    }
    options.tls.as_ref().map(tls::acceptor).transpose()
}

/// How long a client has to say who it is.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How many clients may be about to say so.
const GREETING: usize = 64;

/// Connections whose clients have shown who they are. One that takes its time keeps nobody else waiting.
fn protected(listener: TcpListener, tls: TlsAcceptor) -> impl Stream<Item = io::Result<Connection>> + Send {
    let (sender, receiver) = mpsc::channel(1);
    let greeting = Arc::new(Semaphore::new(GREETING));
    tokio::spawn(async move {
        loop {
            let Ok(permit) = greeting.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let (tls, sender) = (tls.clone(), sender.clone());
            match accepted {
                Ok((stream, _)) => drop(tokio::spawn(async move {
                    let _permit = permit;
                    let greeted = tokio::time::timeout(HANDSHAKE, tls.accept(without_delay(stream))).await;
                    // Whoever cannot show who it is is told so by the handshake itself.
                    if let Ok(Ok(stream)) = greeted {
                        let _ = sender.send(Ok(Connection::Tls(Box::new(stream)))).await;
                    }
                })),
                Err(error) => _ = sender.send(Err(error)).await,
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// The socket is made under a name of its own and gets its mode and owner before anybody can connect to it.
fn bind_unix(path: &Path, group: Option<u32>) -> io::Result<Listener> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    remove_stale(path)?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}", std::process::id()));
    let partial = PathBuf::from(partial);
    let listener = UnixListener::bind(&partial)?;
    let own = SocketFile(partial);
    if let Some(group) = group {
        std::os::unix::fs::chown(&own.0, None, Some(group))?;
    }
    fs::set_permissions(&own.0, Permissions::from_mode(0o660))?;
    fs::rename(&own.0, path)?;
    Ok(Listener::Unix { listener, path: Some(SocketFile(path.to_owned())) })
}

/// Removes a socket that nobody listens on any more; anything else stays and is an error.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens there")),
        Err(_) => fs::remove_file(path),
    }
}

/// A client's connection.
pub(crate) enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

macro_rules! to_socket {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Connection::Unix($stream) => $call,
            Connection::Tcp($stream) => $call,
            Connection::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        to_socket!(self, stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        to_socket!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        to_socket!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        to_socket!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: PathBuf) -> Address {
        Address::Unix(path)
    }

    #[tokio::test]
    async fn a_socket_is_for_its_group_only_and_goes_with_the_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/d.sock");
        let bound = Listener::bind(&at(path.clone()), &DaemonOptions::default()).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let taken = Listener::bind(&at(path.clone()), &DaemonOptions::default()).await;
        assert!(matches!(taken, Err(DaemonError::Listen { .. })));
        drop(bound);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_never_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "mine").unwrap();
        assert!(Listener::bind(&at(path.clone()), &DaemonOptions::default()).await.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[tokio::test]
    async fn tcp_must_be_allowed() {
        let address = Address::Tcp("127.0.0.1:0".to_owned());
        let refused = Listener::bind(&address, &DaemonOptions::default()).await;
        assert!(matches!(refused, Err(DaemonError::Unprotected { .. })));
        let open = DaemonOptions { unprotected_tcp: true, ..DaemonOptions::default() };
        assert!(Listener::bind(&address, &open).await.is_ok());
    }

    #[tokio::test]
    async fn bound_sockets_are_taken_over_and_their_files_stay() {
        let nothing = Listener::bind(&Address::Inherited, &DaemonOptions::default()).await;
        assert!(matches!(nothing, Err(DaemonError::NothingInherited)));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.sock");
        let bound: OwnedFd = std::os::unix::net::UnixListener::bind(&path).unwrap().into();
        let options = DaemonOptions { inherited: vec![Arc::new(bound)], ..DaemonOptions::default() };
        let taken = Listener::bind(&Address::Inherited, &options).await.unwrap();
        let (mut incoming, file) = taken.into_iter().next().unwrap().incoming();
        let client = UnixStream::connect(&path);
        let (client, accepted) = tokio::join!(client, incoming.next());
        assert!(client.is_ok() && accepted.unwrap().is_ok() && file.is_none());
        drop(incoming);
        assert!(path.exists());
        let tcp: OwnedFd = std::net::TcpListener::bind("127.0.0.1:0").unwrap().into();
        let options = DaemonOptions { inherited: vec![Arc::new(tcp)], ..DaemonOptions::default() };
        let refused = Listener::bind(&Address::Inherited, &options).await;
        assert!(matches!(refused, Err(DaemonError::Unprotected { .. })));
    }

    struct Authority {
        issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
    }

    impl Authority {
        fn new() -> Self {
            let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
            parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let issuer = rcgen::CertifiedIssuer::self_signed(parameters, rcgen::KeyPair::generate().unwrap()).unwrap();
            Self { issuer }
        }

        /// A certificate and its key, in PEM.
        fn issue(&self) -> (String, String) {
            let key = rcgen::KeyPair::generate().unwrap();
            let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            (parameters.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
        }
    }

    /// Whether a client with this certificate, or with none, gets through.
    async fn gets_in(port: u16, authority: &Authority, certificate: Option<(String, String)>) -> bool {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        use tokio::io::AsyncReadExt;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.issuer.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.unwrap().with_root_certificates(roots);
        let mut config = match certificate {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let Ok(mut stream) = connector.connect("localhost".try_into().unwrap(), stream).await else { return false };
        // In TLS 1.3 the refusal comes after the client's side is done.
        matches!(stream.read_u8().await, Ok(7))
    }

    // Seen to fail with `with_no_client_auth` in `tls::acceptor`.
    #[tokio::test]
    async fn only_clients_with_a_certificate_of_the_authority_get_in() {
        use tokio::io::AsyncWriteExt;
        let (authority, stranger) = (Authority::new(), Authority::new());
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (certificate, key) = authority.issue();
        let files = crate::TlsFiles {
            certificate: file("cert.pem", &certificate),
            key: file("key.pem", &key),
            authority: Some(file("ca.pem", &authority.issuer.pem())),
        };
        let options = DaemonOptions { tls: Some(files), ..DaemonOptions::default() };
        let address = Address::Tcp("127.0.0.1:0".to_owned());
        let listener = Listener::bind(&address, &options).await.unwrap().remove(0);
        let Listener::Tcp { listener: socket, .. } = &listener else { panic!("a TCP address") };
        let port = socket.local_addr().unwrap().port();
        let (mut incoming, _) = listener.incoming();
        let served = tokio::spawn(async move {
            while let Some(Ok(mut connection)) = incoming.next().await {
                let _ = connection.write_all(&[7]).await;
                let _ = connection.flush().await;
            }
        });
        assert!(gets_in(port, &authority, Some(authority.issue())).await);
        assert!(!gets_in(port, &authority, None).await);
        assert!(!gets_in(port, &authority, Some(stranger.issue())).await);
        served.abort();
    }
}
