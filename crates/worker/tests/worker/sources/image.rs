use super::Bench;
use crate::Test;
use crate::tree_text::trimmed;
use forge_image::Digest;
use forge_llb::{BlobSource, ImageSource, SourceOp};
use forge_testkit::{ImageBuilder, TarBuilder, TestImage, TestRegistry};

pub const TESTS: &[Test] = &[
    ("privileged_a_checksum_of_a_name_is_verified", checksums),
    ("privileged_the_lowest_layers_of_an_image_are_a_source", limits),
    ("privileged_a_digest_is_looked_for_where_it_is_said_to_be", origins),
    ("privileged_a_blob_of_a_registry_is_a_file", blobs),
];

fn image(text: &str) -> TestImage {
    let builder = ImageBuilder::new().layer(TarBuilder::new().file("low", "L"));
    builder.layer(TarBuilder::new().file("high", text)).build()
}

fn named(registry: &TestRegistry, name: &str) -> ImageSource {
    ImageSource::new(format!("{}/{name}", registry.authority()).parse().unwrap())
}

fn checksums() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let (old, new) = (image("old"), image("new"));
    old.put(&registry, "a", "1");
    let wanted = |image: &TestImage| {
        let checksum = Some(image.manifest.descriptor.digest.clone());
        SourceOp::Image(ImageSource { checksum, ..named(&registry, "a:1") })
    };
    let pin = |image: &TestImage| bench.build().pin(&wanted(image));
    assert!(pin(&old).is_ok());
    let refused = pin(&new).unwrap_err();
    let (found, expected) = (&old.manifest.descriptor.digest, &new.manifest.descriptor.digest);
    let message =
        format!("image digest {found} for {}/a:1 does not match expected checksum {expected}", registry.authority());
    assert_eq!(refused.to_string(), message);
    // What the store has under the name is older than the graph.
    new.put(&registry, "a", "1");
    assert!(pin(&new).is_ok());
}

fn limits() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    image("high").put(&registry, "a", "1");
    let whole = SourceOp::Image(named(&registry, "a:1"));
    let lowest = SourceOp::Image(ImageSource { layer_limit: Some(1), ..named(&registry, "a:1") });
    let build = bench.build();
    assert_ne!(build.pin(&whole).unwrap(), build.pin(&lowest).unwrap());
    assert_eq!(build.snapshot(&whole).unwrap().layers().len(), 2);
    let found = build.snapshot(&lowest).unwrap();
    assert_eq!(found.layers(), &build.snapshot(&whole).unwrap().layers()[..1]);
}

/// Seen to fail with documents taken from the store whatever their repository.
fn origins() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let image = image("high");
    image.put(&registry, "mine", "1");
    let digest = &image.manifest.descriptor.digest;
    let of = |repository: &str| SourceOp::Image(named(&registry, &format!("{repository}@{digest}")));
    let build = bench.build();
    build.pin(&of("mine")).and_then(|_| build.snapshot(&of("mine"))).unwrap();
    registry.clear_log();
    assert!(bench.build().pin(&of("mine")).is_ok() && registry.lines().is_empty(), "it is known from there");
    let elsewhere = bench.build().pin(&of("theirs")).unwrap_err();
    assert!(elsewhere.to_string().contains("not found"), "{elsewhere}");
}

fn blobs() {
    let (registry, bench) = (TestRegistry::start(), Bench::new());
    let digest = registry.put_blob("a/b", "bytes");
    let blob = |digest: &Digest| BlobSource {
        reference: format!("{}/a/b@{digest}", registry.authority()).parse().unwrap(),
        digest: digest.clone(),
        layout: None,
        filename: None,
        mode: None,
        owner: None,
    };
    assert_eq!(bench.tree(&SourceOp::Blob(blob(&digest))), trimmed(&format!("{} =bytes 0600 @0", digest.hex())));
    let named = BlobSource { filename: Some("f".into()), mode: Some(0o741), owner: Some((1, 2)), ..blob(&digest) };
    assert_eq!(bench.tree(&SourceOp::Blob(named.clone())), trimmed("f =bytes 0741 1:2 @0"));
    let outside = BlobSource { filename: Some("../f".into()), ..named };
    assert!(bench.tree(&SourceOp::Blob(outside)).starts_with("Remote: "));
    let missing = bench.tree(&SourceOp::Blob(blob(&Digest::sha256(b"other"))));
    assert!(missing.starts_with("UserInput: ") && missing.contains("there is no such blob"), "{missing}");
}
