use crate::{Bench, host_options, layer, noise, options, reference};
use forge_image::{Digest, ErrorKind, Manifest, MediaType, Platform};
use forge_registry::{HostOptions, RegistryError, RegistryOptions};
use forge_testkit::{
    ImageBuilder, Received, Reply, Script, TarBuilder, TestImage, TestRegistry, TestSession, validate,
};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_by_tag_and_by_digest() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let image = ImageBuilder::small("hello");
    image.put(&registry, "a/b", "1.0");
    let tagged = reference(&registry, "a/b:1.0");
    let document = bench.client.resolve(&tagged, &bench.session).await.unwrap();
    assert_eq!(document.descriptor, image.manifest.descriptor);
    let pinned = tagged.with_digest(document.descriptor.digest.clone());
    assert_eq!(bench.client.resolve(&pinned, &bench.session).await.unwrap(), document);
    let manifest = Manifest::from_json(&document.bytes, None).unwrap();
    for part in manifest.layers.iter().chain([&manifest.config]) {
        bench.fetch(&pinned, part).await.unwrap();
    }
    let fetch = |digest: &Digest| match *digest == document.descriptor.digest {
        true => Some(document.bytes.clone()),
        false => bench.store.blobs().read(digest, 1 << 20).ok(),
    };
    assert_eq!(validate(&document.descriptor, &fetch).unwrap().len(), 1);
    assert!(bench.session.asked().is_empty(), "credentials are asked for only when a registry wants some");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_is_chosen_from_an_index() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let image = |platform: &str| {
        let platform: Platform = platform.parse().unwrap();
        ImageBuilder::for_platform(&platform).layer(TarBuilder::new().file("x", platform.to_string())).build()
    };
    let images = [image("linux/amd64"), image("linux/arm64")];
    let index = TestImage::put_index(&images, &registry, "multi", "latest");
    let name = reference(&registry, "multi");
    let platform = "linux/arm64".parse().unwrap();
    let (outer, document) = bench.client.resolve_platform(&name, &platform, &bench.session).await.unwrap();
    assert_eq!(outer.unwrap().descriptor, index.descriptor);
    assert_eq!(document.descriptor.digest, images[1].manifest.descriptor.digest);
    let missing = bench.client.resolve_platform(&name, &"linux/s390x".parse().unwrap(), &bench.session).await;
    assert!(missing.unwrap_err().to_string().contains("linux/amd64, linux/arm64"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_named_with_the_registrys_words() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let error = bench.client.resolve(&reference(&registry, "none:1"), &bench.session).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UserInput);
    let expect =
        format!("manifest 1 of none not found in {}: MANIFEST_UNKNOWN: manifest unknown", registry.authority());
    assert_eq!(error.to_string(), expect);
}

#[tokio::test(flavor = "multi_thread")]
async fn offline_makes_no_connection() {
    let registry = TestRegistry::start();
    ImageBuilder::small("x").put(&registry, "a", "latest");
    let bench = Bench::with(RegistryOptions { offline: true, ..options() }, TestSession::new());
    let name = reference(&registry, "a");
    let error = bench.client.resolve(&name, &bench.session).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot reach registry {}: offline", registry.authority()));
    assert!(matches!(bench.fetch(&name, &layer(b"x")).await, Err(RegistryError::Offline { .. })));
    let file = tempfile::tempfile().unwrap();
    let pushed = bench.client.push_blob(&name, &layer(b""), file, &[], &bench.session, &|_| {}).await;
    assert!(matches!(pushed, Err(RegistryError::Offline { .. })));
    assert!(registry.received().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_ends_a_pull_at_once() {
    let (registry, bench) =
        (TestRegistry::start(), Arc::new(Bench::with(RegistryOptions::default(), TestSession::new())));
    let bytes = noise(200_000);
    registry.put_blob("a", bytes.clone());
    registry.script(Script::on("GET", "/blobs/").stall_after(1000));
    let (name, running) = (reference(&registry, "a"), bench.clone());
    // Spawned, so that this also checks that the futures can go to another thread.
    let pull = tokio::spawn(async move { running.fetch(&name, &layer(&bytes)).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    bench.session.cancel();
    let result = tokio::time::timeout(Duration::from_secs(2), pull).await.expect("it ends").unwrap();
    assert!(matches!(result, Err(RegistryError::Cancelled)));
}

#[tokio::test(flavor = "multi_thread")]
async fn passing_failures_are_tried_again() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    ImageBuilder::small("x").put(&registry, "a", "latest");
    registry.script(Script::on("GET", "/manifests/").times(1).reply(Reply::status(503)));
    registry.script(Script::on("GET", "/manifests/").times(1).hang_up());
    bench.client.resolve(&reference(&registry, "a"), &bench.session).await.unwrap();
    assert_eq!(registry.received().len(), 3);
    registry.clear_log();
    registry.script(Script::on("GET", "/manifests/").reply(Reply::status(500)));
    let error = bench.client.resolve(&reference(&registry, "a"), &bench.session).await.unwrap_err();
    assert!(matches!(error, RegistryError::Status { status: 500, .. }), "{error}");
    assert_eq!(registry.received().len(), 3, "three tries, no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_heeded() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    ImageBuilder::small("x").put(&registry, "a", "latest");
    registry.script(Script::on("GET", "/manifests/").times(1).reply(Reply::status(429).header("retry-after", "1")));
    let began = Instant::now();
    bench.client.resolve(&reference(&registry, "a"), &bench.session).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(1000), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_goes_on_where_it_broke() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let bytes = noise(1_000_000);
    let digest = registry.put_blob("a", bytes.clone());
    registry.script(Script::on("GET", "/blobs/").times(2).cut_after(300_000));
    let (lease, seen) = (bench.store.lease("test").unwrap(), AtomicU64::new(0));
    let writer = bench.store.blobs().writer(Some((&digest, bytes.len() as u64))).unwrap();
    let progress = |so_far: u64| assert!(seen.swap(so_far, Ordering::SeqCst) <= so_far);
    let name = reference(&registry, "a");
    bench.client.fetch_blob(&name, &layer(&bytes), writer, &lease, &bench.session, &progress).await.unwrap();
    assert_eq!(bench.store.blobs().read(&digest, 1 << 20).unwrap(), bytes);
    assert_eq!(seen.load(Ordering::SeqCst), 1_000_000);
    let ranges: Vec<_> = registry.received().iter().map(|request| request.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, [None, Some("bytes=300000-".to_owned()), Some("bytes=600000-".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_is_read_from_the_beginning() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let bytes = noise(500_000);
    let digest = registry.put_blob("a", bytes.clone());
    registry.script(Script::on("GET", "/blobs/").times(1).cut_after(200_000));
    registry.script(Script::on("GET", "/blobs/").reply(Reply::status(200).body(bytes.clone())));
    bench.fetch(&reference(&registry, "a"), &layer(&bytes)).await.unwrap();
    assert!(bench.has(&digest));
}

// Seen to fail with the checks of length taken away.
#[tokio::test(flavor = "multi_thread")]
async fn a67_bodies_that_lie_are_not_kept() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let bytes = noise(100_000);
    let digest = registry.put_blob("a", bytes.clone());
    let descriptor = layer(&bytes);
    let name = reference(&registry, "a");
    let mut other = bytes.clone();
    other[50_000] ^= 1;
    let longer = [bytes.clone(), vec![0; 100_000]].concat();
    let chunked =
        |body: &[u8]| Script::on("GET", "/blobs/").reply(Reply { chunked: true, ..Reply::status(200).body(body) });
    let sized = |body: &[u8]| Script::on("GET", "/blobs/").reply(Reply::status(200).body(body));
    for (script, mismatch) in [
        (sized(&other), "digest"),
        (sized(&bytes[..99_999]), "size"),
        (chunked(&bytes[..99_999]), "size"),
        (sized(&longer), "size"),
        (chunked(&longer), "size"),
        (chunked(b""), "size"),
    ] {
        registry.clear_scripts();
        registry.clear_log();
        registry.script(script);
        let error = bench.fetch(&name, &descriptor).await.unwrap_err();
        match (&error, mismatch) {
            (RegistryError::DigestMismatch { expected, found, .. }, "digest") => {
                assert_eq!((expected, found), (&digest, &Digest::sha256(&other)));
                assert!(error.to_string().contains(digest.as_str()) && error.to_string().contains(found.as_str()));
            }
            (RegistryError::SizeMismatch { .. }, "size") => {}
            _ => panic!("{error}"),
        }
        let asked = if mismatch == "digest" { 2 } else { 1 };
        assert_eq!(registry.received().len(), asked, "wrong bytes are asked for once more, a lie about sizes is not");
        assert!(!bench.has(&digest) && !bench.has(&Digest::sha256(&other)));
    }
}

// Seen to fail with `receive` comparing after the whole body.
#[tokio::test(flavor = "multi_thread")]
async fn a67_an_endless_body_is_cut_behind_the_declared_size() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let endless = Reply { chunked: true, trickle: Some((64 << 10, Duration::from_millis(20))), ..Reply::status(200) };
    registry.script(Script::on("GET", "/blobs/").reply(endless.body(vec![0; 64 << 20])));
    let error = bench.fetch(&reference(&registry, "a"), &layer(&[0; 100_000])).await.unwrap_err();
    assert!(matches!(error, RegistryError::SizeMismatch { expected: 100_000, found: 100_001, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a67_the_right_digest_with_a_wrong_size_is_refused() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let bytes = noise(5000);
    registry.put_blob("a", bytes.clone());
    for size in [0, 4999, 5001, 1 << 62, u64::MAX] {
        let mut descriptor = layer(&bytes);
        descriptor.size = size;
        assert!(bench.fetch(&reference(&registry, "a"), &descriptor).await.is_err(), "{size}");
        assert!(!bench.has(&descriptor.digest));
    }
}

// Seen to fail with `Document::accept` given no digest.
#[tokio::test(flavor = "multi_thread")]
async fn a68_another_manifest_under_a_digest_is_refused() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let (asked, other) = (ImageBuilder::small("asked"), ImageBuilder::small("other"));
    asked.put(&registry, "a", "latest");
    registry.script(
        Script::on("GET", "/manifests/sha256:").amend(move |_, reply| reply.body.clone_from(&other.manifest.bytes)),
    );
    let name = reference(&registry, "a").with_digest(asked.manifest.descriptor.digest.clone());
    // The header still says what was asked for; it counts for nothing.
    let error = bench.client.resolve(&name, &bench.session).await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error}");
    let descriptor = &asked.manifest.descriptor;
    assert!(bench.client.manifest(&reference(&registry, "a"), descriptor, &bench.session).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a68_a_lying_digest_header_is_overlooked() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let image = ImageBuilder::small("x");
    image.put(&registry, "a", "latest");
    let lie = Digest::sha256(b"lie");
    registry.script(Script::on("GET", "/manifests/").header("docker-content-digest", lie.as_str()));
    let document = bench.client.resolve(&reference(&registry, "a"), &bench.session).await.unwrap();
    assert_eq!(document.descriptor.digest, image.manifest.descriptor.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a69_confused_documents_are_refused() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let image = ImageBuilder::small("x");
    let kind = image.manifest.descriptor.media_type.as_str();
    let text = String::from_utf8(image.manifest.bytes.clone()).unwrap();
    registry.put_manifest("a", Some("both"), kind, text.replacen('{', "{\"manifests\": [],", 1));
    registry.put_manifest("a", Some("header"), MediaType::OciIndex.as_str(), text.clone());
    registry.put_manifest(
        "a",
        Some("neither"),
        "application/json",
        text.replace("mediaType\": \"application/vnd.oci.image.manifest.v1+json", "other\": \""),
    );
    for tag in ["both", "header", "neither"] {
        let error = bench.client.resolve(&reference(&registry, &format!("a:{tag}")), &bench.session).await.unwrap_err();
        assert!(matches!(error, RegistryError::Document { .. }), "{tag}: {error}");
    }
    let mut descriptor = image.manifest.descriptor.clone();
    registry.put_manifest("a", None, kind, text);
    descriptor.media_type = MediaType::DockerManifest;
    assert!(bench.client.manifest(&reference(&registry, "a"), &descriptor, &bench.session).await.is_err());
}

// Seen to fail with `DEEPEST` at 10,000.
#[tokio::test(flavor = "multi_thread")]
async fn a70_nested_indexes_end() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let kind = MediaType::OciIndex.as_str();
    let mut inner = json!({"schemaVersion": 2, "mediaType": kind, "manifests": []}).to_string();
    for _ in 0..20 {
        let digest = registry.put_manifest("a", None, kind, inner.clone());
        let entry = json!({"mediaType": kind, "digest": digest, "size": inner.len()});
        inner = json!({"schemaVersion": 2, "mediaType": kind, "manifests": [entry]}).to_string();
    }
    registry.put_manifest("a", Some("deep"), kind, inner);
    let platform = Platform::host();
    let error =
        bench.client.resolve_platform(&reference(&registry, "a:deep"), &platform, &bench.session).await.unwrap_err();
    assert!(matches!(error, RegistryError::TooDeep { .. }), "{error}");
    assert!(registry.received().len() <= 5);
}

// Seen to fail with a client that tried `urls` before the registry.
#[tokio::test(flavor = "multi_thread")]
async fn a73_urls_of_descriptors_are_never_followed() {
    let (registry, attacker, bench) = (TestRegistry::start(), TestRegistry::start(), Bench::new());
    let bytes = noise(100);
    let mut descriptor = layer(&bytes);
    let urls = json!([format!("{}/x", attacker.origin()), "http://169.254.169.254/", "file:///etc/passwd"]);
    descriptor.unknown.insert("urls".to_owned(), urls);
    let name = reference(&registry, "a");
    assert!(matches!(bench.fetch(&name, &descriptor).await, Err(RegistryError::NotFound { .. })));
    registry.put_blob("a", bytes);
    bench.fetch(&name, &descriptor).await.unwrap();
    assert!(attacker.received().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a80_mirrors_are_asked_in_order_and_checked() {
    let (host, empty, liar) = (TestRegistry::start(), TestRegistry::start(), TestRegistry::start());
    let mirrors = vec![empty.authority().to_owned(), format!("{}/cache", liar.authority())];
    let set = host_options(host.authority(), HostOptions { mirrors, ..HostOptions::default() });
    let bench = Bench::with(set, TestSession::new());
    let bytes = noise(300_000);
    let digest = host.put_blob("a", bytes.clone());
    liar.put_blob("cache/a", bytes.clone());
    empty.script(Script::on("GET", "/blobs/").times(3).reply(Reply::status(500)));
    liar.script(Script::on("GET", "/blobs/").amend(|_, reply| reply.body[7] ^= 1));
    bench.fetch(&reference(&host, "a"), &layer(&bytes)).await.unwrap();
    assert_eq!(bench.store.blobs().read(&digest, 1 << 20).unwrap(), bytes);
    assert_eq!(empty.received().len(), 3);
    let authority = host.authority().replace(':', "%3A");
    assert_eq!(liar.lines(), [format!("GET /v2/cache/a/blobs/{digest}?ns={authority}")]);
    assert_eq!(host.received().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a80_mirrors_serve_pulls_only_and_their_manifests_are_checked() {
    let (host, mirror) = (TestRegistry::start(), TestRegistry::start());
    let set = host_options(
        host.authority(),
        HostOptions { mirrors: vec![mirror.authority().to_owned()], ..HostOptions::default() },
    );
    let bench = Bench::with(set, TestSession::new());
    let image = ImageBuilder::small("x");
    image.put(&host, "a", "latest");
    ImageBuilder::small("other").put(&mirror, "a", "latest");
    mirror.script(Script::on("GET", "/manifests/sha256:").body("{}"));
    let pinned = reference(&host, "a").with_digest(image.manifest.descriptor.digest.clone());
    bench.client.resolve(&pinned, &bench.session).await.unwrap();
    assert_eq!((mirror.received().len(), host.received().len()), (1, 1));
    let kind = MediaType::OciManifest;
    let pushed = reference(&host, "a:2");
    bench.client.push_manifest(&pushed, &kind, &image.manifest.bytes, &bench.session).await.unwrap();
    assert_eq!(mirror.received().len(), 1, "nothing is pushed to a mirror");
}

/// A blob that comes in ranges.
const BIG: usize = 72 << 20;

/// Where the range begins that a request asks for.
fn start(request: &Received) -> u64 {
    let range = request.header("range").unwrap().trim_start_matches("bytes=");
    range.split('-').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn large_blobs_come_in_ranges_side_by_side() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let bytes = noise(BIG);
    let digest = registry.put_blob("a", bytes.clone());
    registry.script(Script::on("GET", "/blobs/").skip(2).times(2).cut_after(5 << 20));
    registry.script(Script::on("GET", "/blobs/").delay(Duration::from_millis(100)));
    bench.fetch(&reference(&registry, "a"), &layer(&bytes)).await.unwrap();
    assert!(bench.has(&digest));
    let received = registry.received();
    assert_eq!(received.len(), 9 + 2, "nine pieces, two of them broken once");
    assert_eq!(received[0].header("range"), Some("bytes=0-8388607"));
    let starts: Vec<u64> = received.iter().map(start).collect();
    assert_eq!(starts.iter().filter(|start| !start.is_multiple_of(8 << 20)).count(), 2, "{starts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn f33_ranges_that_are_not_served_or_wrong_are_noticed() {
    let bytes = noise(BIG);
    let whole = bytes.clone();
    let shifted = |reply: &mut Reply| reply.set_header("content-range", &format!("bytes 1-8388608/{BIG}"));
    let cases: [(&str, Script, bool); 4] = [
        ("whole instead", Script::on("GET", "/blobs/").reply(Reply::status(200).body(whole)), true),
        ("shifted", Script::on("GET", "/blobs/").skip(2).amend(move |_, reply| shifted(reply)), false),
        ("shifted in secret", Script::on("GET", "/blobs/").skip(2).amend(|_, reply| reply.body.rotate_left(1)), false),
        ("another size", Script::on("GET", "/blobs/").header("content-range", "bytes 0-8388607/8388608"), false),
    ];
    for (case, script, ends_well) in cases {
        let (registry, bench) = (TestRegistry::start(), Bench::new());
        let digest = registry.put_blob("a", bytes.clone());
        registry.script(script);
        let fetched = bench.fetch(&reference(&registry, "a"), &layer(&bytes)).await;
        assert_eq!((fetched.is_ok(), bench.has(&digest)), (ends_well, ends_well), "{case}: {fetched:?}");
    }
}

// Meant to fail without the arm of `ask_all` that asks once more.
#[tokio::test(flavor = "multi_thread")]
async fn f34_bytes_that_are_wrong_once_are_asked_for_once_more() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let bytes = noise(100_000);
    let mut garbled = bytes.clone();
    garbled[5] ^= 1;
    let digest = registry.put_blob("a", bytes.clone());
    registry.script(Script::on("GET", "/blobs/").times(1).body(garbled.clone()));
    bench.fetch(&reference(&registry, "a"), &layer(&bytes)).await.unwrap();
    assert!(bench.has(&digest));
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    registry.put_blob("a", bytes.clone());
    registry.script(Script::on("GET", "/blobs/").body(garbled.clone()));
    let error = bench.fetch(&reference(&registry, "a"), &layer(&bytes)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(digest.as_str()) && text.contains(Digest::sha256(&garbled).as_str()), "{text}");
    assert_eq!(registry.received().len(), 2, "no storm");
}

// Meant to fail with `attempt` taking 206 from wherever it begins.
#[tokio::test(flavor = "multi_thread")]
async fn f33_a_blob_cut_at_every_piece_arrives() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let bytes = noise(4 << 20);
    let digest = registry.put_blob("a", bytes.clone());
    registry.script(Script::on("GET", "/blobs/").cut_after(64 << 10));
    bench.fetch(&reference(&registry, "a"), &layer(&bytes)).await.unwrap();
    assert!(bench.has(&digest));
    assert_eq!(registry.received().len(), 64, "each brought 64 KiB, and none was sent twice");
}
