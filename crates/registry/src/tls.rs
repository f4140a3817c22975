use crate::{HostOptions, RegistryError};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{Error as PemError, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where Linux distributions keep the certificates that they trust; Debian and Alpine, Fedora, SUSE, older ones.
const PLACES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How TLS is spoken to a host. The crypto provider is passed explicitly: which one a process installs as its default
/// is not this library's to say.
///
/// # Errors
/// A file of the host's options, or of `roots`, cannot be read or holds no certificate.
pub(crate) fn client_config(
    host: &str,
    options: &HostOptions,
    roots: &[PathBuf],
) -> Result<ClientConfig, RegistryError> {
    let provider = Arc::new(ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder = versions(provider).with_root_certificates(root_store(host, options, roots)?);
    let mut config = match options.keypair.first() {
        None => builder.with_no_client_auth(),
        Some((key, chain)) => {
            let chain = certificates(host, chain)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(host, key, error))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| RegistryError::Options {
                host: host.to_owned(),
                option: "keypair",
                reason: error.to_string(),
            })?
        }
    };
    if options.insecure {
        config.dangerous().set_certificate_verifier(Arc::new(Unverified(algorithms)));
    }
    Ok(config)
}

/// A TLS configuration that trusts nobody, for hosts that are asked over plain HTTP: it costs no reading of files.
pub(crate) fn distrusting_config() -> ClientConfig {
    let provider = Arc::new(ring::default_provider());
    versions(provider).with_root_certificates(RootCertStore::empty()).with_no_client_auth()
}

fn versions(provider: Arc<CryptoProvider>) -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the cipher suites of TLS 1.2 and 1.3")
}

fn root_store(host: &str, options: &HostOptions, roots: &[PathBuf]) -> Result<RootCertStore, RegistryError> {
    let usual = PLACES.iter().map(PathBuf::from).find(|place| place.is_file());
    let trusted = if roots.is_empty() { usual.as_slice() } else { roots };
    let mut store = RootCertStore::empty();
    for path in trusted {
        // Bundles of distributions hold certificates that no verifier takes; the others still count.
        store.add_parsable_certificates(certificates(host, path)?);
    }
    for path in &options.ca {
        for certificate in certificates(host, path)? {
            store.add(certificate).map_err(|error| RegistryError::Options {
                host: host.to_owned(),
                option: "ca",
                reason: format!("{}: {error}", path.display()),
            })?;
        }
    }
    Ok(store)
}

fn certificates(host: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let unreadable = |error| unreadable(host, path, error);
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<_, _>>().map_err(unreadable)?;
    match certificates.is_empty() {
        true => Err(unreadable(PemError::NoItemsFound)),
        false => Ok(certificates),
    }
}

fn unreadable(host: &str, path: &Path, error: PemError) -> RegistryError {
    let source = match error {
        PemError::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    };
    RegistryError::Certificate { host: host.to_owned(), path: path.to_owned(), source }
}

/// Takes every certificate: what `insecure` asks for. The handshake's signatures are still checked, so that the peer at
/// least holds the key of the certificate it shows.
#[derive(Debug)]
struct Unverified(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
