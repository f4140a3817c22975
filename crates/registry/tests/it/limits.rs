use crate::{Bench, impatient, layer, noise, options, reference, whole};
use forge_image::{Descriptor, Digest, MediaType};
use forge_registry::{ProxyOptions, RegistryError, RegistryOptions};
use forge_session::Redacted;
use forge_testkit::{ImageBuilder, RawServer, Reply, Script, TestRegistry, TestSession};
use std::io::Write as _;
use std::time::{Duration, Instant};

fn raw(server: &RawServer) -> forge_image::Reference {
    format!("{}/a", server.authority()).parse().unwrap()
}

// Seen to fail with `Answer::bytes` reading without its limit.
#[tokio::test(flavor = "multi_thread")]
async fn a71_oversized_documents_are_not_read() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let large = Reply { chunked: true, ..Reply::status(200) }.body(vec![b' '; 5 << 20]);
    registry.script(Script::on("GET", "/manifests/").reply(large));
    let name = reference(&registry, "a");
    let error = bench.client.resolve(&name, &bench.session).await.unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { limit: 4_194_304, .. }), "{error}");
    let declared = Descriptor::new(MediaType::OciManifest, Digest::sha256(b""), 1 << 63);
    registry.clear_log();
    let error = bench.client.manifest(&name, &declared, &bench.session).await.unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { .. }), "{error}");
    assert!(registry.received().is_empty(), "what is declared too large is not even asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn a71_oversized_tokens_and_errors_are_not_read() {
    let registry = TestRegistry::builder().bearer("u", "p").start();
    registry.script(Script::on("GET", "/token").body(format!("{{\"token\":\"{}\"}}", "a".repeat(2 << 20))));
    let bench = Bench::with(options(), TestSession::new().with_login(registry.authority(), "u", "p"));
    let error = bench.client.resolve(&reference(&registry, "a"), &bench.session).await.unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { limit: 1_048_576, .. }), "{error}");
    let registry = TestRegistry::start();
    registry.script(Script::on("GET", "").reply(Reply::status(400).body(vec![b'x'; 2 << 20])));
    let error = Bench::new().client.resolve(&reference(&registry, "a"), &bench.session).await.unwrap_err();
    assert!(matches!(error, RegistryError::Status { status: 400, .. }));
    assert!(error.to_string().len() < 1000);
}

// Seen to fail with no timeout in `Answer::chunk`.
#[tokio::test(flavor = "multi_thread")]
async fn a79_silence_ends() {
    let (registry, bench) = (TestRegistry::start(), Bench::with(impatient(), TestSession::new()));
    let bytes = noise(100_000);
    registry.put_blob("a", bytes.clone());
    registry.script(Script::on("GET", "/blobs/").stall_after(10_000));
    let error = bench.fetch(&reference(&registry, "a"), &layer(&bytes)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Stalled { .. }), "{error}");
    let mute = RawServer::start(|_, _| std::thread::sleep(Duration::from_secs(30)));
    let error = bench.client.resolve(&raw(&mute), &bench.session).await.unwrap_err();
    assert!(matches!(error, RegistryError::Stalled { .. }), "{error}");
}

// Seen to fail with progress counted from one byte on.
#[tokio::test(flavor = "multi_thread")]
async fn a79_a_byte_now_and_then_is_no_progress() {
    let (registry, bench) = (TestRegistry::start(), Bench::with(impatient(), TestSession::new()));
    let bytes = noise(100_000);
    registry.put_blob("a", bytes.clone());
    let drop_by_drop = |_: &_, reply: &mut Reply| reply.trickle = Some((1, Duration::from_millis(50)));
    registry.script(Script::on("GET", "/blobs/").amend(drop_by_drop));
    let (name, descriptor) = (reference(&registry, "a"), layer(&bytes));
    let fetch = tokio::time::timeout(Duration::from_secs(10), bench.fetch(&name, &descriptor));
    let error = fetch.await.expect("it ends").unwrap_err();
    assert!(matches!(error, RegistryError::Stalled { .. }), "{error}");
}

// Seen to fail without `check_encoding`.
#[tokio::test(flavor = "multi_thread")]
async fn a79_encoded_bodies_are_refused() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let bytes = noise(1000);
    registry.put_blob("a", bytes.clone());
    registry.script(Script::on("GET", "").header("content-encoding", "gzip"));
    ImageBuilder::small("x").put(&registry, "a", "latest");
    let error = bench.fetch(&reference(&registry, "a"), &layer(&bytes)).await.unwrap_err();
    assert!(error.to_string().contains("Content-Encoding \"gzip\""), "{error}");
    assert!(bench.client.resolve(&reference(&registry, "a"), &bench.session).await.is_err());
    assert!(registry.received().iter().all(|request| request.header("accept-encoding").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a79_endless_headers_end() {
    let bench = Bench::new();
    let endless = RawServer::start(|stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        let line = format!("X-A: {}\r\n", "a".repeat(1000));
        // Until the client hangs up.
        while stream.write_all(line.as_bytes()).is_ok() {}
    });
    let began = Instant::now();
    let error = bench.client.resolve(&raw(&endless), &bench.session).await.unwrap_err();
    assert!(matches!(error, RegistryError::Connection { .. } | RegistryError::Stalled { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a79_garbage_is_an_error() {
    for answer in ["", "SSH-2.0-x\r\n", "HTTP/1.1 banana\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"] {
        let server = RawServer::start(move |stream, _| drop(stream.write_all(answer.as_bytes())));
        let error = Bench::new().client.resolve(&raw(&server), &TestSession::new()).await.unwrap_err();
        assert!(matches!(error, RegistryError::Connection { .. }), "{answer:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a103_a_servers_words_are_cleaned() {
    let registry = TestRegistry::start();
    let body = r#"{"errors":[{"code":"DENIED","message":"\u001b[2J\u001b]52;c;eA==\u0007\nforge: done"}]}"#;
    registry.script(Script::on("GET", "").reply(Reply::status(400).body(body)));
    let error = Bench::new().client.resolve(&reference(&registry, "a"), &TestSession::new()).await.unwrap_err();
    assert!(!error.to_string().contains(['\u{1b}', '\u{7}', '\n']), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_requests_at_once_than_allowed() {
    let registry = TestRegistry::start();
    let blobs: Vec<_> = (1..7).map(|n| noise(n * 500)).collect();
    blobs.iter().for_each(|blob| drop(registry.put_blob("a", blob.clone())));
    registry.script(Script::on("GET", "/blobs/").amend(|_, reply| reply.delay = Duration::from_millis(100)));
    let bench = Bench::with(RegistryOptions { max_concurrency: 2, ..options() }, TestSession::new());
    let name = reference(&registry, "a");
    let pulls = blobs.iter().map(|blob| {
        let (bench, name, descriptor) = (&bench, &name, layer(blob));
        async move { bench.fetch(name, &descriptor).await }
    });
    let began = Instant::now();
    futures_util::future::try_join_all(pulls).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_through_the_proxy() {
    let proxy = RawServer::start(|stream, _| RawServer::respond(stream, "403 Forbidden", "", b"the proxy says no"));
    let through = ProxyOptions {
        http: Some(Redacted::new(format!("http://user:geheim@{}", proxy.authority()))),
        https: Some(Redacted::new(format!("http://user:geheim@{}", proxy.authority()))),
        no_proxy: None,
    };
    let mut set = RegistryOptions { proxy: through, ..options() };
    let plain = forge_registry::HostOptions { http: Some(true), ..Default::default() };
    set.hosts.insert("r.test".to_owned(), plain);
    let bench = Bench::with(set, TestSession::new());
    let error = bench.client.resolve(&"r.test/a".parse().unwrap(), &bench.session).await.unwrap_err();
    assert!(error.to_string().contains("the proxy says no"), "{error}");
    let error = bench.client.resolve(&"s.test/a".parse().unwrap(), &bench.session).await.unwrap_err();
    assert!(!format!("{} {error:?}", whole(&error)).contains("geheim"), "{error:?}");
    let heads = proxy.heads();
    assert!(heads[0].starts_with("GET http://r.test/v2/a/manifests/latest"), "{heads:?}");
    assert!(heads[0].to_lowercase().contains("proxy-authorization: basic"), "{heads:?}");
    assert!(heads[1].starts_with("CONNECT s.test:443"), "{heads:?}");
}
