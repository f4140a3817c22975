//! Certificates of the daemon and of whoever asks it.

use forge_engine::EngineError;
use forge_image::ErrorKind;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsConnector;

/// PEM files by which daemon and client show who they are, as buildctl takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority that the daemon's certificate is of.
    pub authority: PathBuf,
    /// The client's certificate and its key.
    pub own: Option<(PathBuf, PathBuf)>,
    /// The name in the daemon's certificate, where it is not the host of its address.
    pub server_name: Option<String>,
}

/// What a connection is protected by.
#[derive(Clone)]
pub(crate) struct Protection {
    pub connector: TlsConnector,
    pub name: ServerName<'static>,
}

impl Protection {
    /// Reads the files; `host` is the host and port of the address.
    pub(crate) fn open(files: &TlsFiles, host: &str) -> Result<Self, EngineError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| EngineError::caused(ErrorKind::Internal, error))?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.authority)? {
            roots.add(certificate).map_err(|error| refused(&files.authority, &error.to_string()))?;
        }
        let builder = builder.with_root_certificates(roots);
        let mut config = match &files.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let own = PrivateKeyDer::from_pem_file(key).map_err(|error| refused(key, &error.to_string()))?;
                let config = builder.with_client_auth_cert(certificates(certificate)?, own);
                config.map_err(|error| refused(certificate, &error.to_string()))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let bare = host.rsplit_once(':').map_or(host, |(bare, _)| bare).trim_matches(['[', ']']);
        let name = files.server_name.as_deref().unwrap_or(bare).to_owned();
        let name = ServerName::try_from(name.clone()).map_err(|_| {
            EngineError::new(ErrorKind::UserInput, format!("{name:?} is no name that a certificate could have"))
        })?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, EngineError> {
    let read = CertificateDer::pem_file_iter(path).map_err(|error| refused(path, &error.to_string()))?;
    let read: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| refused(path, &error.to_string()))?;
    match read.is_empty() {
        true => Err(refused(path, "there is no certificate in it")),
        false => Ok(read),
    }
}

fn refused(path: &Path, reason: &str) -> EngineError {
    EngineError::new(ErrorKind::UserInput, format!("cannot use {}: {reason}", path.display()))
}
