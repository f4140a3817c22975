//! Published ports: connections to the host, and packets, are handed on to a container.

mod datagrams;
mod way;

use crate::EngineError;
use forge_image::{ErrorKind, ImageConfig};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

pub(crate) use way::{Way, to as way_to};

/// A port of the host that leads to one of the container (`-p`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// What is spoken.
    pub protocol: Protocol,
    /// The host's address; every one where `None`.
    pub address: Option<IpAddr>,
    /// The host's port: the first of these that is free; 0 for any.
    pub host: RangeInclusive<u16>,
    /// The container's port.
    pub container: u16,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Packets.
    Udp,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// The ports that an image exposes, each on any free one of the host (`-P`). What is no port is passed over.
pub(crate) fn exposed(config: &ImageConfig) -> Vec<Port> {
    let port = |text: &String| {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return None,
        };
        let container = number.parse().ok().filter(|number| *number != 0)?;
        Some(Port { protocol, address: None, host: 0..=0, container })
    };
    config.config.exposed_ports.keys().filter_map(port).collect()
}

/// A port that is taken on the host.
enum Socket {
    Stream(TcpListener),
    Datagram(UdpSocket),
}

/// Ports that are taken on the host.
#[derive(Default)]
pub(crate) struct Published {
    sockets: Vec<(Socket, u16)>,
    notices: Vec<String>,
}

impl Published {
    /// Takes the ports, so that a container whose port is in use is not started.
    pub(crate) async fn take(ports: &[Port]) -> Result<Self, EngineError> {
        let mut published = Self::default();
        for port in ports {
            let (socket, address) = bind(port).await.map_err(|error| {
                let place = SocketAddr::new(port.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), *port.host.start());
                EngineError::caused(ErrorKind::Environment, error).context(&format!("cannot publish {place}"))
            })?;
            if port.host.start() != port.host.end() || *port.host.start() == 0 {
                let (container, protocol) = (port.container, port.protocol.name());
                published.notices.push(format!("port {container}/{protocol} is published on {address}"));
            }
            published.sockets.push((socket, port.container));
        }
        Ok(published)
    }

    /// Which ports were chosen, one line each.
    pub(crate) fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Hands on what comes until the tasks are aborted.
    pub(crate) fn lead_to(self, way: &Arc<dyn Way>) -> Vec<JoinHandle<()>> {
        let serve = |(socket, port)| {
            let way = Arc::clone(way);
            match socket {
                Socket::Stream(listener) => tokio::spawn(serve(listener, way, port)),
                Socket::Datagram(outside) => tokio::spawn(datagrams::serve(outside, way, port)),
            }
        };
        self.sockets.into_iter().map(serve).collect()
    }
}

async fn bind(port: &Port) -> io::Result<(Socket, SocketAddr)> {
    let mut outcome = Err(io::ErrorKind::AddrInUse.into());
    for number in port.host.clone() {
        outcome = match port.address {
            Some(address) => bind_to(port.protocol, (address, number).into()).await,
            // Of both versions, where the machine has the sixth.
            None => match bind_to(port.protocol, (Ipv6Addr::UNSPECIFIED, number).into()).await {
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                    bind_to(port.protocol, (Ipv4Addr::UNSPECIFIED, number).into()).await
                }
                bound => bound,
            },
        };
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

async fn bind_to(protocol: Protocol, address: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    match protocol {
        Protocol::Tcp => {
            let listener = TcpListener::bind(address).await?;
            let bound = listener.local_addr()?;
            Ok((Socket::Stream(listener), bound))
        }
        Protocol::Udp => {
            let socket = UdpSocket::bind(address).await?;
            let bound = socket.local_addr()?;
            Ok((Socket::Datagram(socket), bound))
        }
    }
}

async fn serve(listener: TcpListener, way: Arc<dyn Way>, port: u16) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        // What fails is one connection, or what passes, as too many open files.
        match listener.accept().await {
            Ok((stream, _)) => _ = connections.spawn(hand_on(stream, Arc::clone(&way), port)),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

/// A container that refuses ends the connection, as one whose port is closed.
async fn hand_on(mut outside: TcpStream, way: Arc<dyn Way>, port: u16) {
    if let Ok(mut inside) = way.connect(port).await {
        // Either side may break off.
        let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn port(protocol: Protocol, host: RangeInclusive<u16>, container: u16) -> Port {
        Port { protocol, address: Some(Ipv4Addr::LOCALHOST.into()), host, container }
    }

    fn loopback() -> Arc<dyn Way> {
        Arc::new(Ipv4Addr::LOCALHOST)
    }

    fn address(published: &Published) -> SocketAddr {
        match &published.sockets[0].0 {
            Socket::Stream(listener) => listener.local_addr().unwrap(),
            Socket::Datagram(socket) => socket.local_addr().unwrap(),
        }
    }

    #[tokio::test]
    async fn what_comes_in_goes_through_in_both_directions() {
        let inside = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let container = inside.local_addr().unwrap().port();
        let published = Published::take(&[port(Protocol::Tcp, 0..=0, container)]).await.unwrap();
        let outside = address(&published);
        assert_eq!(published.notices(), [format!("port {container}/tcp is published on {outside}")]);
        let taken = outside.port();
        assert!(Published::take(&[port(Protocol::Tcp, taken..=taken, container)]).await.is_err());
        let next = taken..=taken.saturating_add(20);
        assert_ne!(address(&Published::take(&[port(Protocol::Tcp, next, container)]).await.unwrap()), outside);
        let tasks = published.lead_to(&loopback());
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

    #[tokio::test]
    async fn packets_find_their_way_back_to_who_sent_them() {
        let inside = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let container = inside.local_addr().unwrap().port();
        let published = Published::take(&[port(Protocol::Udp, 0..=0, container)]).await.unwrap();
        let outside = address(&published);
        let tasks = published.lead_to(&loopback());
        tokio::spawn(async move {
            let mut packet = [0; 64];
            loop {
                let (length, from) = inside.recv_from(&mut packet).await.unwrap();
                inside.send_to(&packet[..length].to_ascii_uppercase(), from).await.unwrap();
            }
        });
        let mut clients = Vec::new();
        for text in ["one", "two"] {
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            client.send_to(text.as_bytes(), outside).await.unwrap();
            clients.push((client, text.to_uppercase()));
        }
        for (client, expect) in clients {
            let mut answer = [0; 64];
            let (length, from) = client.recv_from(&mut answer).await.unwrap();
            assert_eq!((std::str::from_utf8(&answer[..length]).unwrap(), from), (expect.as_str(), outside));
        }
        tasks.iter().for_each(JoinHandle::abort);
    }

    #[test]
    fn what_an_image_exposes_is_published() {
        let mut config = ImageConfig::new(&forge_image::Platform::host());
        for text in ["80/tcp", "53/udp", "8080", "99/sctp", "x/tcp", "0/tcp"] {
            config.config.exposed_ports.insert(text.to_owned(), serde_json::json!({}));
        }
        let found: Vec<_> = exposed(&config).iter().map(|port| (port.protocol, port.container)).collect();
        assert_eq!(found, [(Protocol::Tcp, 80), (Protocol::Udp, 53), (Protocol::Tcp, 8080)]);
    }
}
