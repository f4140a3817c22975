//! A78 at the doors of ADD: files and Git repositories over TLS. Registries, token servers and redirects have theirs in the
//! registry client.

use crate::fixture::{Forge, have};
use forge_testkit::{ServerCertificate, TestCa, TestRegistry};

/// Any server over TLS will do: what counts is whether a request comes through.
fn server(certificate: &ServerCertificate) -> TestRegistry {
    TestRegistry::builder().tls(certificate).start()
}

fn add(forge: &Forge, source: &str) -> (i32, String) {
    let context = forge.context("context", &[("Dockerfile", &format!("FROM scratch\nADD {source} /added\n"))]);
    let outcome = forge.forge(&["build", "--no-cache", &context]);
    (outcome.code, outcome.stderr)
}

// Meant to fail with `http.sslVerify=false` for Git, and with the client of `insecure` hosts for files.
#[test]
fn privileged_a78_add_verifies_certificates_of_files_and_of_git() {
    let test = "a78_add_verifies_certificates_of_files_and_of_git";
    let Some(forge) = Forge::privileged(test) else { return };
    if !have(test, &["git"]) {
        return;
    }
    let (ca, stranger) = (TestCa::new(), TestCa::new());
    let trusted = ca.write(&forge.path(""));
    let configure = |server: &TestRegistry| {
        let text = format!("[registry.\"{}\"]\nca = [{:?}]\n", server.authority(), trusted.display().to_string());
        std::fs::write(forge.path("forge.toml"), text).unwrap();
    };
    for (certificate, why) in [
        (stranger.issue(&["127.0.0.1"]), "unknown authority"),
        (ca.issue_expired(&["127.0.0.1"]), "expired"),
        (ca.issue(&["r.test", "127.0.0.2"]), "another name"),
    ] {
        let server = server(&certificate);
        configure(&server);
        for source in [format!("{}/file", server.origin()), format!("{}/repo.git#main", server.origin())] {
            let (code, told) = add(&forge, &source);
            assert_eq!(code, 1, "{why}: {source}\n{told}");
            assert!(told.to_lowercase().contains("certificate"), "{why}: {source}\n{told}");
        }
        assert!(server.received().is_empty(), "{why}: {:?}", server.lines());
    }
    let good = server(&ca.issue(&["127.0.0.1"]));
    configure(&good);
    let (code, told) = add(&forge, &format!("{}/file", good.origin()));
    assert!(code == 1 && told.contains("404"), "{told}");
    assert_eq!(good.lines(), ["GET /file"], "the request came through, and there is no such file");
}
