//! Certificates of the daemon and of those who may talk to it.

use crate::{DaemonError, TlsFiles};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// Reads the files. Where there is an authority, every client has to have a certificate of it.
pub(crate) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, DaemonError> {
    let refused = |path: &Path| {
        let path = path.to_owned();
        move |reason: String| DaemonError::Certificate { path, reason }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| refused(&files.certificate)(error.to_string()))?;
    let builder = match &files.authority {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| refused(path)(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| refused(path)(error.to_string()))?)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| refused(&files.key)(error.to_string()))?;
    let config = builder.with_single_cert(certificates(&files.certificate)?, key);
    let mut config = config.map_err(|error| refused(&files.certificate)(error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, DaemonError> {
    let refused = |reason: String| DaemonError::Certificate { path: path.to_owned(), reason };
    let read = CertificateDer::pem_file_iter(path).map_err(|error| refused(error.to_string()))?;
    let read: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| refused(error.to_string()))?;
    match read.is_empty() {
        true => Err(refused("there is no certificate in it".to_owned())),
        false => Ok(read),
    }
}
