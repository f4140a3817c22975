use crate::{Bench, layer, noise, reference};
use forge_image::{Digest, MediaType, Reference};
use forge_registry::{Pushed, RegistryError};
use forge_testkit::{ImageBuilder, Reply, Script, TestRegistry};
use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_goes_in_chunks_where_it_must_and_resumes() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let bytes = noise(70 << 20);
    registry.script(Script::on("PUT", "/uploads/").times(1).reply(Reply::status(413)));
    registry.script(Script::on("PATCH", "/uploads/").skip(1).times(1).reply(Reply::status(503)));
    assert_eq!(bench.push(&reference(&registry, "a"), &bytes, &[]).await.unwrap(), Pushed::Uploaded);
    assert!(registry.content("a", &Digest::sha256(&bytes)).is_some());
    let seen: Vec<_> = registry
        .received()
        .iter()
        .map(|request| format!("{} {}", request.method, request.header("content-range").unwrap_or_default()))
        .collect();
    let (a, b, c) = ("PATCH 0-33554431", "PATCH 33554432-67108863", "PATCH 67108864-73400319");
    assert_eq!(seen, ["HEAD ", "POST ", "PUT ", "POST ", a, b, "GET ", b, c, "PUT "]);
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
