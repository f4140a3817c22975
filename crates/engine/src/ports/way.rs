//! How a container's ports are reached: by an address, or by sockets of its own network.

use async_trait::async_trait;
use forge_executor::{Container, InnerSocket};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

/// A way to a container.
#[async_trait]
pub(crate) trait Way: Send + Sync {
    /// A connection to one of its ports.
    async fn connect(&self, port: u16) -> io::Result<TcpStream>;

    /// A socket for packets to and from one of its ports.
    async fn packets(&self, port: u16) -> io::Result<UdpSocket>;
}

/// The way to a container's private network, if it has one.
pub(crate) fn to(container: &Arc<dyn Container>) -> Option<Arc<dyn Way>> {
    let address = container.address()?;
    Some(match container.inner_socket(InnerSocket::Stream) {
        None => Arc::new(address),
        Some(_) => Arc::new(Inside { container: Arc::clone(container), address }),
    })
}

/// An address that the host reaches.
#[async_trait]
impl Way for Ipv4Addr {
    async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        TcpStream::connect((*self, port)).await
    }

    async fn packets(&self, port: u16) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((Self::UNSPECIFIED, 0)).await?;
        socket.connect((*self, port)).await?;
        Ok(socket)
    }
}

/// A network that the host has no way to, as all of an ordinary user's.
struct Inside {
    container: Arc<dyn Container>,
    address: Ipv4Addr,
}

impl Inside {
    async fn socket(&self, kind: InnerSocket) -> io::Result<OwnedFd> {
        let container = Arc::clone(&self.container);
        let made = tokio::task::spawn_blocking(move || container.inner_socket(kind)).await?;
        made.unwrap_or_else(|| Err(io::ErrorKind::NetworkUnreachable.into()))
    }
}

#[async_trait]
impl Way for Inside {
    async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let socket = TcpSocket::from_std_stream(self.socket(InnerSocket::Stream).await?.into());
        socket.connect((self.address, port).into()).await
    }

    async fn packets(&self, port: u16) -> io::Result<UdpSocket> {
        let socket = UdpSocket::from_std(self.socket(InnerSocket::Datagram).await?.into())?;
        socket.connect((self.address, port)).await?;
        Ok(socket)
    }
}
