use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A certificate authority of a test.
pub struct TestCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A server's certificate with its key.
pub struct ServerCertificate {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
    /// Key and certificate.
    pem: (String, String),
}

impl TestCa {
    /// Makes an authority that nobody trusts yet.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names to be wrong");
        // What it signs has other names: OpenSSL takes a certificate of its issuer's name for one that signed itself.
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("a certificate") }
    }

    /// Writes the authority's certificate as `ca.pem` into a folder.
    pub fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join("ca.pem");
        std::fs::write(&path, self.issuer.pem()).expect("a writable folder");
        path
    }

    /// A certificate for names or addresses.
    pub fn issue(&self, names: &[&str]) -> ServerCertificate {
        self.sign(params(names))
    }

    /// A certificate that is no longer valid.
    pub fn issue_expired(&self, names: &[&str]) -> ServerCertificate {
        let mut params = params(names);
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        self.sign(params)
    }

    /// Writes a client's key and certificate into a folder: `(key, certificate)`.
    pub fn write_client(&self, folder: &Path) -> (PathBuf, PathBuf) {
        let mut params = params(&["client"]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let paths = (folder.join("client.key"), folder.join("client.pem"));
        std::fs::write(&paths.0, key.serialize_pem()).expect("a writable folder");
        std::fs::write(&paths.1, certificate.pem()).expect("a writable folder");
        paths
    }

    fn sign(&self, params: CertificateParams) -> ServerCertificate {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let pem = (key.serialize_pem(), certificate.pem());
        ServerCertificate { certificate: certificate.der().clone(), key: key.serialize_der(), pem }
    }
}

impl Default for TestCa {
    fn default() -> Self {
        Self::new()
    }
}

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    CertificateParams::new(names).expect("valid names")
}

impl ServerCertificate {
    /// Writes the key and the certificate into a folder: `(key, certificate)`.
    pub fn write(&self, folder: &Path) -> (PathBuf, PathBuf) {
        let paths = (folder.join("server.key"), folder.join("server.pem"));
        std::fs::write(&paths.0, &self.pem.0).expect("a writable folder");
        std::fs::write(&paths.1, &self.pem.1).expect("a writable folder");
        paths
    }

    /// A server's TLS; with `clients`, only for those who show a certificate of that authority.
    pub(crate) fn config(&self, clients: Option<&TestCa>) -> Arc<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("the provider has the usual suites");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(ca.issuer.der().clone()).expect("our own certificate");
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.expect("a root"))
            }
        };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        Arc::new(builder.with_single_cert(vec![self.certificate.clone()], key).expect("key and certificate fit"))
    }
}
