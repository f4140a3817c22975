use crate::{Bench, noise};
use forge_image::{Digest, Manifest, Reference};
use forge_registry::Pushed;
use forge_testkit::{DockerRegistry, ImageBuilder, LayerCompression, TarBuilder, validate};
use std::fs::File;
use std::io::Write as _;

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn dockers_registry_takes_and_gives_back_an_image() {
    let Some(registry) = DockerRegistry::start("dockers_registry_takes_and_gives_back_an_image") else { return };
    let bench = Bench::new();
    let large = TarBuilder::new().file("large", noise(3 << 20)).finish();
    let image =
        ImageBuilder::new().layer(TarBuilder::new().file("small", "x")).layer_as(large, LayerCompression::Zstd).build();
    let name: Reference = format!("{}/some/app:1.0", registry.authority()).parse().unwrap();
    let other: Reference = format!("{}/other/app:2.0", registry.authority()).parse().unwrap();
    let push = async |name: &Reference, from: &[String]| {
        let mut outcomes = Vec::new();
        for part in image.layers.iter().chain([&image.config]) {
            let source = file(&part.bytes);
            outcomes.push(
                bench.client.push_blob(name, &part.descriptor, source, from, &bench.session, &|_| {}).await.unwrap(),
            );
        }
        let kind = &image.manifest.descriptor.media_type;
        let digest = bench.client.push_manifest(name, kind, &image.manifest.bytes, &bench.session).await.unwrap();
        assert_eq!(digest, image.manifest.descriptor.digest);
        outcomes
    };
    assert_eq!(push(&name, &[]).await, [Pushed::Uploaded; 3]);
    assert_eq!(push(&name, &[]).await, [Pushed::Existed; 3]);
    assert_eq!(push(&other, &["some/app".to_owned()]).await, [Pushed::Mounted; 3]);
    for name in [&name, &other.with_digest(image.manifest.descriptor.digest.clone())] {
        let bench = Bench::new();
        let document = bench.client.resolve(name, &bench.session).await.unwrap();
        assert_eq!(document.descriptor, image.manifest.descriptor);
        let manifest = Manifest::from_json(&document.bytes, None).unwrap();
        for part in manifest.layers.iter().chain([&manifest.config]) {
            bench.fetch(name, part).await.unwrap();
        }
        let fetch = |digest: &Digest| match *digest == document.descriptor.digest {
            true => Some(document.bytes.clone()),
            false => bench.store.blobs().read(digest, 1 << 30).ok(),
        };
        assert_eq!(validate(&document.descriptor, &fetch).unwrap()[0].tars.len(), 2);
    }
    let missing: Reference = format!("{}/some/app:none", registry.authority()).parse().unwrap();
    let error = bench.client.resolve(&missing, &bench.session).await.unwrap_err();
    assert!(error.to_string().contains("MANIFEST_UNKNOWN"), "{error}");
}
