use crate::{Bench, layer, noise, options, reference};
use forge_image::{Digest, MediaType, Reference};
use forge_registry::{Pushed, RegistryError};
use forge_testkit::{ImageBuilder, Reply, Script, TestRegistry, TestSession};
use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

impl Bench {
    async fn push(&self, name: &Reference, bytes: &[u8], mount_from: &[&str]) -> Result<Pushed, RegistryError> {
        let from: Vec<String> = mount_from.iter().map(|from| (*from).to_owned()).collect();
        self.client.push_blob(name, &layer(bytes), file(bytes), &from, &self.session, &|_| {}).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_sent_once() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let (bytes, seen) = (noise(1_000_000), AtomicU64::new(0));
    let name = reference(&registry, "a/b");
    let progress = |so_far: u64| seen.store(so_far, Ordering::SeqCst);
    let pushed = bench.client.push_blob(&name, &layer(&bytes), file(&bytes), &[], &bench.session, &progress).await;
    assert_eq!(pushed.unwrap(), Pushed::Uploaded);
    assert_eq!(seen.load(Ordering::SeqCst), 1_000_000);
    assert_eq!(registry.content("a/b", &Digest::sha256(&bytes)).unwrap(), bytes);
    assert_eq!(bench.push(&name, &bytes, &[]).await.unwrap(), Pushed::Existed);
    let methods: Vec<_> = registry.received().iter().map(|request| request.method.clone()).collect();
    assert_eq!(methods, ["HEAD", "POST", "PUT", "HEAD"]);
    let put = &registry.received()[2];
    assert_eq!(put.header("content-length"), Some("1000000"));
    // The state in the location's query came back as it was given (A76).
    assert!(put.query.starts_with("_state=a%2Fb%3D&n=0&digest=sha256"), "{}", put.query);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_blob_is_sent() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    assert_eq!(bench.push(&reference(&registry, "a"), b"", &[]).await.unwrap(), Pushed::Uploaded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_another_repository_is_mounted() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let bytes = noise(1000);
    registry.put_blob("lib/base", bytes.clone());
    let name = reference(&registry, "a");
    assert_eq!(bench.push(&name, &bytes, &["a", "Bad Name", "other", "lib/base"]).await.unwrap(), Pushed::Mounted);
    let methods: Vec<_> = registry.received().iter().map(|request| request.method.clone()).collect();
    assert_eq!(methods, ["HEAD", "POST", "POST"], "invalid candidates and the repository itself are not tried");
    registry.clear_log();
    let fresh = noise(2000);
    assert_eq!(bench.push(&name, &fresh, &["other"]).await.unwrap(), Pushed::Uploaded);
    let methods: Vec<_> = registry.received().iter().map(|request| request.method.clone()).collect();
    assert_eq!(methods, ["HEAD", "POST", "PUT"], "the upload that the mount began is used");
    registry.script(Script::on("POST", "mount=").reply(Reply::status(403)));
    assert_eq!(bench.push(&name, &noise(3000), &["lib/base"]).await.unwrap(), Pushed::Uploaded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_upload_is_begun_again() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    registry.script(Script::on("PUT", "/uploads/").times(1).reply(Reply::status(502)));
    registry.script(Script::on("POST", "/uploads/").times(1).hang_up());
    assert_eq!(bench.push(&reference(&registry, "a"), &noise(100_000), &[]).await.unwrap(), Pushed::Uploaded);
}

/// Methods and ranges of what a registry received.
fn steps(registry: &TestRegistry) -> Vec<String> {
    let step = |request: &forge_testkit::Received| match request.header("content-range") {
        Some(range) => format!("{} {range}", request.method),
        None => request.method.clone(),
    };
    registry.received().iter().map(step).collect()
}

/// How many bytes of bodies of uploads a registry took.
fn taken(registry: &TestRegistry) -> usize {
    let uploads = registry.received().into_iter().filter(|request| request.path.contains("/uploads/"));
    uploads.map(|request| request.body.len()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_what_is_too_large_goes_in_chunks() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let bytes = noise(70 << 20);
    registry.script(Script::on("PATCH", "/uploads/").times(1).reply(Reply::status(413)));
    registry.script(Script::on("PATCH", "/uploads/").skip(1).times(1).reply(Reply::status(503)));
    assert_eq!(bench.push(&reference(&registry, "a"), &bytes, &[]).await.unwrap(), Pushed::Uploaded);
    assert!(registry.content("a", &Digest::sha256(&bytes)).is_some());
    let (a, b, c) = ("PATCH 0-33554431", "PATCH 33554432-67108863", "PATCH 67108864-73400319");
    assert_eq!(steps(&registry), ["HEAD", "POST", "PATCH", "POST", a, b, "GET", b, c, "PUT"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_chunks_that_are_too_large_end_the_push_at_once() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    registry.script(Script::on("PATCH", "/uploads/").reply(Reply::status(413)));
    let error = bench.push(&reference(&registry, "a"), &noise(2 << 20), &[]).await.unwrap_err();
    assert!(matches!(error, RegistryError::Status { status: 413, .. }), "{error}");
    assert_eq!(steps(&registry), ["HEAD", "POST", "PATCH", "POST", "PATCH"]);
}

// Meant to fail with `settle` beginning anew.
#[tokio::test(flavor = "multi_thread")]
async fn f36_a_broken_upload_goes_on_where_the_registry_is() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let bytes = noise(8 << 20);
    for cut in [1_000_000, 3_000_000, 100_000] {
        registry.script(Script::on("PATCH", "/uploads/").times(1).cut_upload_after(cut));
    }
    assert_eq!(bench.push(&reference(&registry, "a"), &bytes, &[]).await.unwrap(), Pushed::Uploaded);
    assert_eq!(registry.content("a", &Digest::sha256(&bytes)).unwrap(), bytes);
    let (a, b, c) = ("PATCH 1000000-8388607", "PATCH 4000000-8388607", "PATCH 4100000-8388607");
    assert_eq!(steps(&registry), ["HEAD", "POST", "PATCH", "GET", a, "GET", b, "GET", c, "PUT"]);
    assert_eq!(taken(&registry), bytes.len(), "nothing was sent twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_what_the_registry_kept_counts() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let bytes = noise(4 << 20);
    // Where the registry is must be asked for as patiently as anything else.
    registry.script(Script::on("PATCH", "/uploads/").times(1).cut_upload_after(1 << 20));
    registry.script(Script::on("GET", "/uploads/").times(1).reply(Reply::status(503)));
    registry.script(Script::on("GET", "/uploads/").times(1).reply(Reply::status(429).header("retry-after", "0")));
    assert_eq!(bench.push(&reference(&registry, "a"), &bytes, &[]).await.unwrap(), Pushed::Uploaded);
    assert_eq!(steps(&registry), ["HEAD", "POST", "PATCH", "GET", "GET", "GET", "PATCH 1048576-4194303", "PUT"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_an_upload_that_is_forgotten_or_out_of_step_still_ends() {
    let gone = || Reply::status(404);
    let cases: [(&str, Vec<Script>); 3] = [
        (
            "forgotten",
            vec![
                Script::on("PATCH", "/uploads/").times(1).cut_upload_after(1 << 20),
                Script::on("GET", "/uploads/").times(1).reply(gone()),
            ],
        ),
        ("forgotten at the end", vec![Script::on("PUT", "/uploads/").times(1).reply(gone())]),
        ("out of step", vec![Script::on("PATCH", "/uploads/").times(1).reply(Reply::status(416))]),
    ];
    for (case, scripts) in cases {
        let (registry, bench) = (TestRegistry::start(), Bench::new());
        scripts.into_iter().for_each(|script| registry.script(script));
        let bytes = noise(3 << 20);
        assert_eq!(bench.push(&reference(&registry, "a"), &bytes, &[]).await.unwrap(), Pushed::Uploaded, "{case}");
        assert_eq!(registry.content("a", &Digest::sha256(&bytes)).unwrap(), bytes, "{case}");
    }
}

// Meant to fail with `Grant::is_valid` always true and the challenge of a PUT left unanswered.
#[tokio::test(flavor = "multi_thread")]
async fn f35_tokens_that_end_on_the_way_are_renewed() {
    let registry = TestRegistry::builder().bearer("anna", "geheim").start();
    let session = TestSession::new().with_login(registry.authority(), "anna", "geheim");
    let bench = Bench::with(options(), session);
    // Every token is good for one second, and every request takes longer.
    registry.script(Script::on("GET", "/token").amend(|_, reply| {
        let text = String::from_utf8_lossy(&reply.body).replace("300", "1");
        reply.body = text.into_bytes();
    }));
    registry.script(Script::on("PATCH", "/uploads/").delay(Duration::from_millis(1100)));
    registry.expire_tokens_after(Duration::from_secs(1));
    let image = ImageBuilder::small("x");
    let name = reference(&registry, "a:1");
    let large = noise(2 << 20);
    assert_eq!(bench.push(&name, &large, &[]).await.unwrap(), Pushed::Uploaded);
    for part in image.layers.iter().chain([&image.config]) {
        bench.push(&name, &part.bytes, &[]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let (kind, bytes) = (MediaType::OciManifest, &image.manifest.bytes);
    bench.client.push_manifest(&name, &kind, bytes, &bench.session).await.unwrap();
    assert_eq!(taken(&registry) - large.len(), image.layers[0].bytes.len() + image.config.bytes.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn f35_what_is_forbidden_is_not_asked_for_again() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    registry.script(Script::on("POST", "/uploads/").reply(Reply::status(403)));
    assert!(bench.push(&reference(&registry, "a"), &noise(1000), &[]).await.is_err());
    assert_eq!(steps(&registry), ["HEAD", "POST"]);
}

/// A line that is slow, far and breaks, a hundredth of L14's size and time: each request and answer is late, one piece in
/// twenty breaks the connection.
// Meant to fail with uploads and downloads that begin anew.
#[tokio::test(flavor = "multi_thread")]
async fn l14_a_bad_line_costs_less_than_a_tenth() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let bytes = noise(6 << 20);
    let far = Duration::from_millis(5);
    // Pieces are 64 KiB; the breaks lie as a dice of twenty sides would throw them.
    for pieces in [11, 3, 27, 19, 8] {
        registry
            .script(Script::on("PATCH", "").times(1).slow_upload(far / 5).delay(far).cut_upload_after(pieces << 16));
        registry.script(Script::on("GET", "/blobs/sha256:").times(1).delay(far).cut_after(pieces << 16));
    }
    registry.script(Script::on("GET", "").delay(far));
    let name = reference(&registry, "a");
    assert_eq!(bench.push(&name, &bytes, &[]).await.unwrap(), Pushed::Uploaded);
    let sent = taken(&registry);
    assert!(sent < bytes.len() + bytes.len() / 10, "{sent} bytes were sent for {}", bytes.len());
    bench.fetch(&name, &layer(&bytes)).await.unwrap();
    assert!(bench.has(&Digest::sha256(&bytes)));
    let asked: Vec<_> = registry.received().into_iter().filter(|r| r.path.contains("/blobs/sha256:")).collect();
    let resumed = asked.iter().filter(|request| request.header("range").is_some()).count();
    assert_eq!((asked.len() - resumed, resumed), (2, 5), "one question whether it is there, one download, resumed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_another_size_is_not_sent() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let mut descriptor = layer(b"abc");
    descriptor.size = 4;
    let name = reference(&registry, "a");
    let error =
        bench.client.push_blob(&name, &descriptor, file(b"abc"), &[], &bench.session, &|_| {}).await.unwrap_err();
    assert!(matches!(error, RegistryError::Source { .. }), "{error}");
    assert!(registry.received().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_are_pushed_by_tag_and_digest() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let image = ImageBuilder::small("x");
    let name = reference(&registry, "a:1");
    let (kind, bytes) = (MediaType::OciManifest, &image.manifest.bytes);
    let error = bench.client.push_manifest(&name, &kind, bytes, &bench.session).await.unwrap_err();
    assert!(error.to_string().contains("MANIFEST_BLOB_UNKNOWN"), "{error}");
    for part in image.layers.iter().chain([&image.config]) {
        bench.push(&name, &part.bytes, &[]).await.unwrap();
    }
    let digest = bench.client.push_manifest(&name, &kind, bytes, &bench.session).await.unwrap();
    assert_eq!(registry.tagged("a", "1").unwrap(), (digest.clone(), kind.to_string(), bytes.clone()));
    let pinned = name.with_digest(digest);
    bench.client.push_manifest(&pinned, &kind, bytes, &bench.session).await.unwrap();
    let other = name.with_digest(Digest::sha256(b"other"));
    assert!(matches!(
        bench.client.push_manifest(&other, &kind, bytes, &bench.session).await,
        Err(RegistryError::Source { .. })
    ));
    let lie = Digest::sha256(b"lie");
    registry.script(Script::on("PUT", "/manifests/").header("docker-content-digest", lie.as_str()));
    assert!(matches!(
        bench.client.push_manifest(&name, &kind, bytes, &bench.session).await,
        Err(RegistryError::DigestMismatch { .. })
    ));
}
