//! Published ports: connections to the host are handed on to a container.

use crate::EngineError;
use forge_image::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A port of the host that leads to one of the container (`-p`), by TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// The host's address; every one where `None`.
    pub address: Option<IpAddr>,
    /// The host's port; 0 for any that is free.
    pub host: u16,
    /// The container's port.
    pub container: u16,
}

/// Ports that are taken on the host.
#[derive(Default)]
pub(crate) struct Published {
    listeners: Vec<(TcpListener, u16)>,
}

impl Published {
    /// Takes the ports, so that a container whose port is in use is not started.
    pub(crate) async fn take(ports: &[Port]) -> Result<Self, EngineError> {
        let mut published = Self::default();
        for port in ports {
            let address = SocketAddr::new(port.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), port.host);
            let listener = TcpListener::bind(address).await.map_err(|error| {
                EngineError::caused(ErrorKind::Environment, error).context(&format!("cannot publish {address}"))
            })?;
            published.listeners.push((listener, port.container));
        }
        Ok(published)
    }

    /// Hands connections on until the tasks are aborted.
    pub(crate) fn lead_to(self, container: Ipv4Addr) -> Vec<JoinHandle<()>> {
        let serve = |(listener, port)| tokio::spawn(serve(listener, (container, port).into()));
        self.listeners.into_iter().map(serve).collect()
    }
}

async fn serve(listener: TcpListener, container: SocketAddr) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        // What fails is one connection, or what passes, as too many open files.
        match listener.accept().await {
            Ok((stream, _)) => _ = connections.spawn(hand_on(stream, container)),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

/// A container that refuses ends the connection, as one whose port is closed.
async fn hand_on(mut outside: TcpStream, container: SocketAddr) {
    if let Ok(mut inside) = TcpStream::connect(container).await {
        // Either side may break off.
        let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn what_comes_in_goes_through_in_both_directions() {
        let inside = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port =
            Port { address: Some(Ipv4Addr::LOCALHOST.into()), host: 0, container: inside.local_addr().unwrap().port() };
        let published = Published::take(&[port]).await.unwrap();
        let outside = published.listeners[0].0.local_addr().unwrap();
        assert!(Published::take(&[Port { host: outside.port(), ..port }]).await.is_err());
        let tasks = published.lead_to(Ipv4Addr::LOCALHOST);
        tokio::spawn(async move {
            let (mut stream, _) = inside.accept().await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            stream.write_all(text.to_uppercase().as_bytes()).await.unwrap();
        });
        let mut stream = TcpStream::connect(outside).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "HELLO");
        tasks.iter().for_each(JoinHandle::abort);
    }
}
