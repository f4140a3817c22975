//! Sockets that clients connect to.

use crate::{Address, DaemonError, DaemonOptions};
use futures_util::stream::{self, BoxStream, StreamExt};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tonic::transport::server::Connected;

/// A socket that is bound. Dropping it removes a Unix socket's file.
pub(crate) enum Listener {
    Unix { listener: UnixListener, path: SocketFile },
    Tcp(TcpListener),
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
    /// Binds an address. Needs a runtime.
    pub(crate) async fn bind(address: &Address, options: &DaemonOptions) -> Result<Self, DaemonError> {
        let failed = |source| DaemonError::Listen { address: address.clone(), source };
        match address {
            Address::Unix(path) => bind_unix(path, options.group).map_err(failed),
            Address::Tcp(_) if !options.unprotected_tcp => Err(DaemonError::Unprotected { address: address.clone() }),
            Address::Tcp(host) => Ok(Self::Tcp(TcpListener::bind(host).await.map_err(failed)?)),
        }
    }

    /// The connections as they come in. The file of a Unix socket stays with the second part.
    pub(crate) fn incoming(self) -> (BoxStream<'static, io::Result<Connection>>, Option<SocketFile>) {
        match self {
            Self::Unix { listener, path } => {
                let connections = stream::unfold(listener, |listener| async move {
                    let accepted = listener.accept().await.map(|(stream, _)| Connection::Unix(stream));
                    Some((accepted, listener))
                });
                (connections.boxed(), Some(path))
            }
            Self::Tcp(listener) => {
                let connections = stream::unfold(listener, |listener| async move {
                    let accepted = listener.accept().await.map(|(stream, _)| {
                        // Small messages go back and forth; a failure costs time only.
                        let _ = stream.set_nodelay(true);
                        Connection::Tcp(stream)
                    });
                    Some((accepted, listener))
                });
                (connections.boxed(), None)
            }
        }
    }
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
    Ok(Listener::Unix { listener, path: SocketFile(path.to_owned()) })
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
}
