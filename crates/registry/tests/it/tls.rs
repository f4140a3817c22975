use crate::{Bench, host_options, options, reference, whole};
use forge_registry::{HostOptions, RegistryError, RegistryOptions};
use forge_testkit::{ImageBuilder, Script, ServerCertificate, TestCa, TestRegistry, TestSession};

fn secure(certificate: &ServerCertificate) -> TestRegistry {
    let registry = TestRegistry::builder().tls(certificate).start();
    ImageBuilder::small("x").put(&registry, "a", "latest");
    registry
}

fn https() -> HostOptions {
    HostOptions { http: Some(false), ..HostOptions::default() }
}

async fn pull(registry: &TestRegistry, options: RegistryOptions) -> Result<(), RegistryError> {
    let bench = Bench::with(options, TestSession::new());
    bench.client.resolve(&reference(registry, "a"), &bench.session).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hosts_own_authority_is_trusted_for_that_host() {
    let (ca, folder) = (TestCa::new(), tempfile::tempdir().unwrap());
    let registry = secure(&ca.issue(&["127.0.0.1"]));
    let trusting = HostOptions { ca: vec![ca.write(folder.path())], ..https() };
    pull(&registry, host_options(registry.authority(), trusting.clone())).await.unwrap();
    let mut elsewhere = host_options("r.test", trusting);
    elsewhere.hosts.insert(registry.authority().to_owned(), https());
    assert!(pull(&registry, elsewhere).await.is_err());
    let mut roots = host_options(registry.authority(), https());
    roots.roots = vec![ca.write(folder.path())];
    pull(&registry, roots).await.unwrap();
}

// Seen to fail with the verifier of `insecure` used for every host.
#[tokio::test(flavor = "multi_thread")]
async fn a78_bad_certificates_are_refused() {
    let (ca, folder) = (TestCa::new(), tempfile::tempdir().unwrap());
    let trusting = HostOptions { ca: vec![ca.write(folder.path())], ..https() };
    let stranger = TestCa::new();
    for (certificate, why) in [
        (stranger.issue(&["127.0.0.1"]), "unknown authority"),
        (ca.issue_expired(&["127.0.0.1"]), "expired"),
        (ca.issue(&["r.test", "127.0.0.2"]), "another name"),
    ] {
        let registry = secure(&certificate);
        let error = pull(&registry, host_options(registry.authority(), trusting.clone())).await.unwrap_err();
        assert!(matches!(error, RegistryError::Connection { .. }), "{why}: {error}");
        assert!(whole(&error).contains("certificate"), "{why}: {}", whole(&error));
        assert!(registry.received().is_empty(), "{why}");
        let insecure = HostOptions { insecure: true, ..https() };
        pull(&registry, host_options(registry.authority(), insecure)).await.unwrap();
    }
}

// Seen to fail with one client, made from the first host's options, for all.
#[tokio::test(flavor = "multi_thread")]
async fn a78_token_servers_and_redirects_are_verified_too() {
    let (ca, stranger, folder) = (TestCa::new(), TestCa::new(), tempfile::tempdir().unwrap());
    let bad = secure(&stranger.issue(&["127.0.0.1"]));
    let registry = TestRegistry::builder()
        .bearer("u", "p")
        .realm(&format!("{}/token", bad.origin()))
        .tls(&ca.issue(&["127.0.0.1"]))
        .start();
    for trust in [
        HostOptions { ca: vec![ca.write(folder.path())], ..https() },
        // That one host is not verified says nothing of where it leads.
        HostOptions { insecure: true, ..https() },
    ] {
        let error = pull(&registry, host_options(registry.authority(), trust.clone())).await.unwrap_err();
        assert!(matches!(error, RegistryError::Connection { .. }), "{error}");
        let open = secure(&ca.issue(&["127.0.0.1"]));
        open.script(Script::on("GET", "").redirect(&format!("{}/v2/a/manifests/latest", bad.origin())));
        let error = pull(&open, host_options(open.authority(), trust)).await.unwrap_err();
        assert!(matches!(error, RegistryError::Connection { .. }), "{error}");
    }
    assert!(bad.received().is_empty());
}

// Seen to fail without the rule on schemes in `checked_target`.
#[tokio::test(flavor = "multi_thread")]
async fn a74_a75_https_never_leads_to_http() {
    let (ca, folder, plain) = (TestCa::new(), tempfile::tempdir().unwrap(), TestRegistry::start());
    let trusting = HostOptions { ca: vec![ca.write(folder.path())], ..https() };
    let redirecting = secure(&ca.issue(&["127.0.0.1"]));
    redirecting.script(Script::on("GET", "").redirect(&format!("{}/v2/a/manifests/latest", plain.origin())));
    let realm = format!("{}/token", plain.origin());
    let sending = TestRegistry::builder().bearer("u", "p").realm(&realm).tls(&ca.issue(&["127.0.0.1"])).start();
    for registry in [redirecting, sending] {
        let error = pull(&registry, host_options(registry.authority(), trusting.clone())).await.unwrap_err();
        assert!(error.to_string().contains("from https to http"), "{error}");
    }
    assert!(plain.received().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown() {
    let (ca, folder) = (TestCa::new(), tempfile::tempdir().unwrap());
    let registry = TestRegistry::builder().mutual_tls(&ca.issue(&["127.0.0.1"]), &ca).start();
    ImageBuilder::small("x").put(&registry, "a", "latest");
    let trusting = HostOptions { ca: vec![ca.write(folder.path())], ..https() };
    assert!(pull(&registry, host_options(registry.authority(), trusting.clone())).await.is_err());
    let known = HostOptions { keypair: vec![ca.write_client(folder.path())], ..trusting };
    pull(&registry, host_options(registry.authority(), known)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_certificate_is_named() {
    let registry = secure(&TestCa::new().issue(&["127.0.0.1"]));
    let trusting = HostOptions { ca: vec!["/nowhere/ca.pem".into()], ..https() };
    let error = pull(&registry, host_options(registry.authority(), trusting)).await.unwrap_err();
    assert!(error.to_string().contains("cannot read /nowhere/ca.pem"), "{error}");
    // Nothing that plain HTTP would need.
    let plain = TestRegistry::start();
    ImageBuilder::small("x").put(&plain, "a", "latest");
    pull(&plain, RegistryOptions { roots: vec!["/nowhere".into()], ..options() }).await.unwrap();
}
