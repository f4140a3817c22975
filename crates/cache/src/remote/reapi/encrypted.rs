//! Connections by TLS. They are made here, and not by the gRPC client, so that certificates are found as for every other service.

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

/// Where servers listen that say nothing else.
const PORT: u16 = 443;

/// Makes no connection yet.
pub(super) fn channel(endpoint: Endpoint, authority: &str, mut tls: ClientConfig) -> io::Result<Channel> {
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
    let origin: Uri = format!("https://{authority}").parse().map_err(|_| invalid("no address".to_owned()))?;
    let host = origin.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = origin.port_u16().unwrap_or(PORT);
    let name = ServerName::try_from(host.clone()).map_err(|error| invalid(error.to_string()))?;
    let connector = TlsConnector::from(Arc::new(tls));
    let connect = move |_: Uri| {
        let (connector, name, host) = (connector.clone(), name.clone(), host.clone());
        async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    };
    Ok(endpoint.origin(origin).connect_with_connector_lazy(tower::service_fn(connect)))
}
