//! Pushing and pulling against a registry in this process.

use crate::support::{Pipe, Site, reference, run, settings, tar_files};
use forge_exporter::{
    ArchiveFormat, ExistingNames, ExportSettings, ImageSet, LayoutDestination, LoadInput, LoadLimits, Nondistributable,
    Pushed, SavedImage, load, package, push, save, to_oci, to_store, to_store_packaged,
};
use forge_image::{Descriptor, Digest, Manifest, MediaType, Platform};
use forge_registry::{
    FetchError, LayoutName, Pulled, Registry, RegistryOptions, bring_layers, from_oci_layout, know_layers, pull,
    record, resolve_image,
};
use forge_session::Event;
use forge_store::{Compression, StoreError};
use forge_testkit::{ImageBuilder, LayerCompression, Script, TarBuilder, TarEntry, TestImage, TestRegistry};
use std::sync::Arc;

fn client() -> Arc<Registry> {
    Arc::new(Registry::new(RegistryOptions::default()).unwrap())
}

fn amd64() -> Platform {
    Platform::new("linux", "amd64", None)
}

/// Two layers of files of this user, so that no test needs root to unpack them.
fn image(text: &str, compression: LayerCompression) -> ImageBuilder {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let file = |name: &str, data: &str| {
        let entry = TarEntry { data: data.into(), ..TarEntry::new(b'0', name) };
        TarBuilder::new().entry(entry.owner(uid.into(), gid.into())).finish()
    };
    let base = ImageBuilder::for_platform(&amd64()).layer_as(file("base", "base"), compression);
    base.layer_as(file("text", text), compression)
}

async fn pushed(site: &Site, images: &ImageSet, settings: &ExportSettings) -> Pushed {
    push(&site.context, &client(), images, settings).await.unwrap()
}

fn validate(registry: &TestRegistry, repository: &str, tag: &str) -> Digest {
    let (digest, media_type, bytes) = registry.tagged(repository, tag).unwrap();
    let root = forge_image::Descriptor::of(MediaType::from(media_type), &bytes);
    forge_testkit::validate(&root, &|digest| registry.content(repository, digest)).unwrap();
    digest
}

#[tokio::test]
async fn privileged_what_was_pushed_is_valid_and_comes_back() {
    if !forge_testkit::privileged("privileged_what_was_pushed_is_valid_and_comes_back") {
        return;
    }
    let registry = TestRegistry::start();
    let name = format!("{}/team/app:1", registry.authority());
    let site = Site::new();
    let settings = settings(&[&name]);
    let images = site.image(&settings).await;
    to_store(&site.context, &images, &settings).await.unwrap();
    let first = pushed(&site, &images, &settings).await;
    assert_eq!((first.existed, first.mounted, first.uploaded), (0, 0, 4));
    let digest = validate(&registry, "team/app", "1");
    assert_eq!(first.exported.descriptor.as_ref().unwrap().digest, digest);
    let id = &images.images()[0].id;
    let stored = site.context.store.images();
    assert_eq!(stored.get(id).unwrap().unwrap().manifest.unwrap().digest, digest);
    assert_eq!(stored.repo_digests(id).unwrap(), [reference(&name).with_digest(digest.clone())]);

    let other = Site::new();
    let pulled = pull(&other.context, &client(), &reference(&name), &amd64()).await.unwrap();
    assert_eq!((&pulled.resolved.id, &pulled.resolved.root.digest), (id, &digest));
    let tree = other.context.store.layers().tree(&pulled.layers).unwrap();
    assert!(tree.lookup("/hello".as_ref()).unwrap().is_some());
    assert_eq!(other.target(&name), site_target(&other, &name));

    let again = pushed(&site, &images, &settings).await;
    assert_eq!((again.existed, again.uploaded), (4, 0));
}

fn site_target(site: &Site, name: &str) -> forge_store::Target {
    site.context.store.images().resolve(name).unwrap().target
}

#[tokio::test]
async fn privileged_layers_are_mounted_from_where_they_are_known_to_be() {
    if !forge_testkit::privileged("privileged_layers_are_mounted_from_where_they_are_known_to_be") {
        return;
    }
    let registry = TestRegistry::start();
    let site = Site::new();
    let first = settings(&[&format!("{}/one/app:1", registry.authority())]);
    let images = site.image(&first).await;
    to_store(&site.context, &images, &first).await.unwrap();
    pushed(&site, &images, &first).await;
    let second = settings(&[&format!("{}/two/app:1", registry.authority())]);
    let outcome = pushed(&site, &images, &second).await;
    assert_eq!((outcome.mounted, outcome.uploaded), (3, 1), "the config is not looked for elsewhere");
    validate(&registry, "two/app", "1");
}

/// What a registry was asked, without the question for whether something is there.
fn asked(registry: &TestRegistry) -> Vec<String> {
    let lines = registry.lines().into_iter().filter(|line| !line.starts_with("HEAD"));
    lines.map(|line| line.split("sha256").next().unwrap_or_default().to_owned()).collect()
}

/// Has an image known to the store and none of its layers here, under a name.
async fn known(site: &Site, registry: &Arc<Registry>, name: &str) -> ImageSet {
    let (context, name) = (&site.context, reference(name));
    let resolved = resolve_image(context, registry, &name, &amd64()).await.unwrap();
    let layers = know_layers(context, &resolved, &name).await.unwrap();
    record(context, &Pulled { resolved, layers }, &name).await.unwrap();
    ImageSet::from_store(context, &site_target(site, &name.to_string())).await.unwrap()
}

// Meant to fail with `push_blob` fetching what is not here before it asks the registry.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_is_not_here_is_pushed_without_being_fetched() {
    let (registry, site) = (TestRegistry::start(), Site::new());
    let base = image("text", LayerCompression::Gzip).build();
    base.put(&registry, "base", "1");
    let images = known(&site, &client(), &format!("{}/base:1", registry.authority())).await;
    assert_eq!(asked(&registry), ["GET /v2/base/manifests/1", "GET /v2/base/blobs/"], "the manifest and the config");
    registry.clear_log();
    let counts = pushed(&site, &images, &settings(&[&format!("{}/app:1", registry.authority())])).await;
    assert_eq!((counts.existed, counts.mounted, counts.uploaded), (0, 2, 1), "the config alone is sent");
    assert!(registry.lines().iter().all(|line| !line.starts_with("GET")), "{:?}", registry.lines());
    assert_eq!(validate(&registry, "app", "1"), base.manifest.descriptor.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_registry_is_given_what_is_not_here() {
    let (home, other, site) = (TestRegistry::start(), TestRegistry::start(), Site::new());
    image("text", LayerCompression::Gzip).build().put(&home, "base", "1");
    let images = known(&site, &client(), &format!("{}/base:1", home.authority())).await;
    let plain = settings(&[&format!("{}/app:1", other.authority())]);
    let counts = pushed(&site, &images, &plain).await;
    assert_eq!((counts.existed, counts.mounted, counts.uploaded), (0, 0, 3));
    validate(&other, "app", "1");
    let absent = site.context.store.layers().absent(&images.images()[0].layer_ids()).unwrap();
    assert_eq!(absent.len(), 2, "their blobs went by, and nothing was unpacked");
    // Compressed in another way they have to be here.
    let zstd = Compression::Zstd { level: None };
    pushed(&site, &images, &ExportSettings { compression: Some(zstd), force_compression: true, ..plain }).await;
    validate(&other, "app", "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_its_registry_lost_is_told_as_such() {
    let (home, other, site) = (TestRegistry::start(), TestRegistry::start(), Site::new());
    image("text", LayerCompression::Gzip).build().put(&home, "base", "1");
    let client = client();
    let images = known(&site, &client, &format!("{}/base:1", home.authority())).await;
    home.script(Script::on("GET", "/blobs/").reply(forge_testkit::Reply::status(404)));
    let settings = settings(&[&format!("{}/app:1", other.authority())]);
    let error = push(&site.context, &client, &images, &settings).await.unwrap_err();
    assert!(error.to_string().contains("cannot fetch a layer from"), "{error}");
    assert!(other.tagged("app", "1").is_none());
    let layers = images.images()[0].layer_ids();
    let error = bring_layers(&site.context, &client, &layers).await.unwrap_err();
    assert!(error.to_string().contains("which nothing needed before"), "{error}");
    assert!(error.hint().is_some());
    home.clear_scripts();
    bring_layers(&site.context, &client, &layers).await.unwrap();
    site.context.store.layers().tree(&layers).unwrap();
}

// Meant to fail without the second round of blobs.
#[tokio::test(flavor = "multi_thread")]
async fn f37_blobs_that_a_registry_lost_are_sent_again() {
    let (registry, site) = (TestRegistry::start(), Site::new());
    image("text", LayerCompression::Gzip).build().put(&registry, "base", "1");
    let images = known(&site, &client(), &format!("{}/base:1", registry.authority())).await;
    // It says that it took the config, and did not.
    registry.script(Script::on("PUT", "/blobs/uploads/").times(1).reply(forge_testkit::Reply::status(201)));
    pushed(&site, &images, &settings(&[&format!("{}/app:1", registry.authority())])).await;
    validate(&registry, "app", "1");
}

/// Several platforms go out as an index, come back one by one or together, and leave again as they were.
#[tokio::test]
async fn privileged_several_platforms_are_pushed_as_an_index() {
    if !forge_testkit::privileged("privileged_several_platforms_are_pushed_as_an_index") {
        return;
    }
    let registry = TestRegistry::start();
    let name = format!("{}/app:1", registry.authority());
    let (site, settings) = (Site::new(), settings(&[&name]));
    let images = site.two_platforms(&settings).await;
    to_store(&site.context, &images, &settings).await.unwrap();
    let index = pushed(&site, &images, &settings).await.exported.descriptor.unwrap();
    assert_eq!(validate(&registry, "app", "1"), index.digest);
    assert!(index.media_type.is_index());
    let arm = "linux/arm64".parse().unwrap();
    let pulled = pull(&Site::new().context, &client(), &reference(&name), &arm).await.unwrap();
    assert_eq!(pulled.resolved.id, images.images()[0].id);

    let pipe = Pipe::default();
    let saved = SavedImage { names: vec![reference(&name)], target: site.target(&name) };
    save(&site.context, &[saved], ArchiveFormat::Oci, pipe.writer()).await.unwrap();
    let (other, input) = (Site::new(), LoadInput::Stream(Box::new(std::io::Cursor::new(pipe.bytes()))));
    load(&other.context, input, LoadLimits::default(), ExistingNames::Refuse).await.unwrap();
    assert_eq!(other.target(&name).images, site.target(&name).images);
    let again = ImageSet::from_store(&other.context, &other.target(&name)).await.unwrap();
    assert_eq!(pushed(&other, &again, &settings).await.exported.descriptor.unwrap().digest, index.digest);
}

#[tokio::test]
async fn privileged_a_push_by_digest_moves_no_tag() {
    if !forge_testkit::privileged("privileged_a_push_by_digest_moves_no_tag") {
        return;
    }
    let registry = TestRegistry::start();
    let settings = settings(&[&format!("{}/app:1", registry.authority())]);
    let settings = ExportSettings { push_by_digest: true, ..settings };
    let site = Site::new();
    let outcome = pushed(&site, &site.image(&settings).await, &settings).await;
    assert!(registry.tagged("app", "1").is_none());
    assert!(registry.content("app", &outcome.exported.descriptor.unwrap().digest).is_some());
}

/// Trial 1 of the design: foreign bytes stay what they were through pull, push and save.
#[tokio::test]
async fn privileged_a_pulled_image_leaves_as_it_came() {
    if !forge_testkit::privileged("privileged_a_pulled_image_leaves_as_it_came") {
        return;
    }
    for (compression, docker) in [
        (LayerCompression::Gzip, false),
        (LayerCompression::Gzip, true),
        (LayerCompression::Zstd, false),
        (LayerCompression::None, false),
    ] {
        let registry = TestRegistry::start();
        let builder = image("one", compression);
        let image = if docker { builder.docker().build() } else { builder.build() };
        image.put(&registry, "from/app", "1");
        let name = format!("{}/from/app:1", registry.authority());
        let site = Site::new();
        let pulled = pull(&site.context, &client(), &reference(&name), &amd64()).await.unwrap();
        assert_eq!(pulled.resolved.manifest.digest, image.manifest.descriptor.digest);

        let images = ImageSet::from_store(&site.context, &site.target(&name)).await.unwrap();
        let to = settings(&[&format!("{}/to/app:1", registry.authority())]);
        let outcome = pushed(&site, &images, &to).await;
        assert_eq!(validate(&registry, "to/app", "1"), image.manifest.descriptor.digest);
        assert_eq!(outcome.mounted, 2);

        let pipe = Pipe::default();
        let saved = SavedImage { names: vec![reference(&name)], target: site.target(&name) };
        save(&site.context, &[saved], ArchiveFormat::Docker, pipe.writer()).await.unwrap();
        let files = tar_files(&pipe.bytes());
        for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
            let path = format!("blobs/sha256/{}", blob.descriptor.digest.hex());
            let found = files.iter().find(|(file, _)| *file == path).unwrap();
            assert!(found.1 == blob.bytes, "{path}");
        }
    }
}

#[tokio::test]
async fn privileged_force_compression_converts_foreign_layers() {
    if !forge_testkit::privileged("privileged_force_compression_converts_foreign_layers") {
        return;
    }
    let registry = TestRegistry::start();
    let image = image("one", LayerCompression::Gzip).docker().build();
    image.put(&registry, "from/app", "1");
    let name = format!("{}/from/app:1", registry.authority());
    let site = Site::new();
    pull(&site.context, &client(), &reference(&name), &amd64()).await.unwrap();
    let images = ImageSet::from_store(&site.context, &site.target(&name)).await.unwrap();
    for (number, force) in [false, true].into_iter().enumerate() {
        let compression = Some(Compression::Zstd { level: None });
        let settings = ExportSettings { compression, force_compression: force, ..settings(&["app:1"]) };
        let folder = site.path(&format!("layout{number}"));
        let destination = LayoutDestination::Folder(folder.clone());
        to_oci(&site.context, &images, &settings, destination).await.unwrap();
        let found = forge_testkit::validate_layout(&folder).unwrap().remove(0);
        let wanted = if force { MediaType::OciLayerZstd } else { MediaType::OciLayerGzip };
        assert!(found.manifest.layers.iter().all(|layer| layer.media_type == wanted), "{force}");
        assert_eq!(found.config.rootfs.diff_ids, image.diff_ids, "{force}");
    }
}

#[tokio::test]
async fn privileged_layers_that_are_there_are_not_fetched() {
    if !forge_testkit::privileged("privileged_layers_that_are_there_are_not_fetched") {
        return;
    }
    let registry = TestRegistry::start();
    let (one, two) = (image("one", LayerCompression::Gzip).build(), image("two", LayerCompression::Gzip).build());
    one.put(&registry, "app", "1");
    two.put(&registry, "app", "2");
    let site = Site::new();
    let name = |tag: &str| reference(&format!("{}/app:{tag}", registry.authority()));
    pull(&site.context, &client(), &name("1"), &amd64()).await.unwrap();
    registry.clear_log();
    pull(&site.context, &client(), &name("2"), &amd64()).await.unwrap();
    let fetched = |image: &TestImage, layer: usize| {
        let digest = image.layers[layer].descriptor.digest.to_string();
        registry.lines().iter().filter(|line| line.contains(&digest)).count()
    };
    assert_eq!((fetched(&two, 0), fetched(&two, 1)), (0, 1));
    registry.clear_log();
    let pinned = name("2").with_digest(two.manifest.descriptor.digest.clone());
    pull(&site.context, &client(), &pinned, &amd64()).await.unwrap();
    assert_eq!(registry.lines(), Vec::<String>::new(), "what is pinned and there needs no registry");
}

#[tokio::test]
async fn privileged_progress_is_told_for_each_blob() {
    if !forge_testkit::privileged("privileged_progress_is_told_for_each_blob") {
        return;
    }
    let registry = TestRegistry::start();
    let image = image("one", LayerCompression::Gzip).build();
    image.put(&registry, "app", "1");
    let site = Site::new();
    let name = reference(&format!("{}/app:1", registry.authority()));
    pull(&site.context, &client(), &name, &amd64()).await.unwrap();
    for layer in &image.layers {
        let done = |verb: &str| {
            site.session.events_so_far().iter().any(|event| match event {
                Event::Status(status) => {
                    status.vertex == site.context.vertex
                        && status.id == layer.descriptor.digest.as_str()
                        && status.name == verb
                        && status.completed.is_some()
                        && status.current == layer.descriptor.size
                }
                _ => false,
            })
        };
        assert!(done("downloading") && done("extracting"));
    }
}

#[tokio::test]
async fn privileged_an_index_gives_the_image_of_the_platform() {
    if !forge_testkit::privileged("privileged_an_index_gives_the_image_of_the_platform") {
        return;
    }
    let registry = TestRegistry::start();
    let arm: Platform = "linux/arm64".parse().unwrap();
    let images = [image("amd", LayerCompression::Gzip).build(), ImageBuilder::for_platform(&arm).build()];
    let index = TestImage::put_index(&images, &registry, "app", "1");
    let site = Site::new();
    let name = format!("{}/app:1", registry.authority());
    let pulled = pull(&site.context, &client(), &reference(&name), &amd64()).await.unwrap();
    assert_eq!(pulled.resolved.index().unwrap().digest, index.descriptor.digest);
    assert_eq!(pulled.resolved.manifest.digest, images[0].manifest.descriptor.digest);
    assert_eq!(site.target(&name).index.unwrap().digest, index.descriptor.digest);
    let missing = "linux/s390x".parse().unwrap();
    let error = resolve_image(&site.context, &client(), &reference(&name), &missing).await.unwrap_err();
    assert!(matches!(error, FetchError::Registry(_)), "{error}");
    // One platform of several leaves as the one image that it is.
    let images_there = ImageSet::from_store(&site.context, &site.target(&name)).await.unwrap();
    let to = settings(&[&format!("{}/to:1", registry.authority())]);
    pushed(&site, &images_there, &to).await;
    assert_eq!(validate(&registry, "to", "1"), images[0].manifest.descriptor.digest);
}

#[tokio::test]
async fn privileged_a67_a_pull_of_lies_leaves_no_image() {
    if !forge_testkit::privileged("privileged_a67_a_pull_of_lies_leaves_no_image") {
        return;
    }
    let image = image("one", LayerCompression::Gzip).build();
    for victim in image.layers.iter().chain([&image.config, &image.manifest]) {
        let registry = TestRegistry::start();
        image.put(&registry, "app", "1");
        let mut body = victim.bytes.clone();
        body[20] ^= 1;
        let path = if victim.descriptor == image.manifest.descriptor { "1" } else { victim.descriptor.digest.as_str() };
        registry.script(Script::on("GET", path).body(body));
        let site = Site::new();
        let name = reference(&format!("{}/app:1", registry.authority()));
        pull(&site.context, &client(), &name, &amd64()).await.unwrap_err();
        assert!(site.context.store.images().list().unwrap().is_empty());
        assert_eq!(site.context.store.blobs().stat(&victim.descriptor.digest).unwrap(), None);
    }
}

// Seen to fail without the depth limit.
#[tokio::test]
async fn a70_an_index_that_names_itself_or_nests_deep_is_refused() {
    let registry = TestRegistry::start();
    let mut inner = TestImage::index(&[image("one", LayerCompression::Gzip).build()]);
    for _ in 0..20 {
        registry.put_manifest("app", Some("1"), inner.descriptor.media_type.as_str(), inner.bytes.clone());
        let entry = serde_json::to_string(&inner.descriptor).unwrap();
        let text = format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{entry}]}}"#, MediaType::OciIndex);
        inner.descriptor = forge_image::Descriptor::of(MediaType::OciIndex, text.as_bytes());
        inner.bytes = text.into_bytes();
    }
    let site = Site::new();
    let name = reference(&format!("{}/app:1", registry.authority()));
    let error = resolve_image(&site.context, &client(), &name, &amd64()).await.unwrap_err();
    assert!(matches!(error, FetchError::IndexLimit), "{error}");
    assert!(registry.lines().len() < 12, "{:?}", registry.lines());
}

// Seen to fail without the check of the announced size.
#[tokio::test]
async fn a71_a_config_that_claims_to_be_huge_is_not_fetched() {
    let registry = TestRegistry::start();
    let image = image("one", LayerCompression::Gzip).build();
    image.put(&registry, "app", "1");
    let size = format!("\"size\": {}", image.config.descriptor.size);
    let text = String::from_utf8(image.manifest.bytes.clone()).unwrap();
    let text = text.replacen(&size, "\"size\": 9223372036854775807", 1);
    registry.put_manifest("app", Some("1"), image.manifest.descriptor.media_type.as_str(), text);
    let site = Site::new();
    let name = reference(&format!("{}/app:1", registry.authority()));
    let error = resolve_image(&site.context, &client(), &name, &amd64()).await.unwrap_err();
    assert!(matches!(error, FetchError::DocumentSize { .. }), "{error}");
}

#[tokio::test]
async fn privileged_a64_a_wrong_diff_id_is_refused() {
    if !forge_testkit::privileged("privileged_a64_a_wrong_diff_id_is_refused") {
        return;
    }
    let registry = TestRegistry::start();
    let lie = forge_image::DiffId::new(Digest::sha256(b"lie"));
    let image = image("one", LayerCompression::Gzip).build();
    let mut config = forge_image::ImageConfig::from_json(&image.config.bytes).unwrap();
    config.rootfs.diff_ids[1] = lie;
    let bytes = config.to_json();
    let old = &image.config.descriptor;
    let text = String::from_utf8(image.manifest.bytes.clone()).unwrap();
    let text = text.replace(old.digest.as_str(), Digest::sha256(&bytes).as_str());
    let text = text.replacen(&format!("\"size\": {}", old.size), &format!("\"size\": {}", bytes.len()), 1);
    image.put(&registry, "app", "1");
    registry.put_blob("app", bytes);
    registry.put_manifest("app", Some("1"), image.manifest.descriptor.media_type.as_str(), text);
    let site = Site::new();
    let name = reference(&format!("{}/app:1", registry.authority()));
    let error = pull(&site.context, &client(), &name, &amd64()).await.unwrap_err();
    assert!(matches!(error, FetchError::Store { source: StoreError::Layer { .. }, .. }), "{error:?}");
    assert!(site.context.store.images().list().unwrap().is_empty());
}

#[tokio::test]
async fn privileged_a_cancelled_pull_ends_soon() {
    if !forge_testkit::privileged("privileged_a_cancelled_pull_ends_soon") {
        return;
    }
    let registry = TestRegistry::start();
    let image = image("one", LayerCompression::Gzip).build();
    image.put(&registry, "app", "1");
    registry.script(Script::on("GET", image.layers[1].descriptor.digest.as_str()).stall_after(10));
    let site = Site::new();
    let (context, name) = (site.context.clone(), reference(&format!("{}/app:1", registry.authority())));
    let pulling = tokio::spawn(async move { pull(&context, &client(), &name, &amd64()).await });
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    site.session.cancel();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(5), pulling).await;
    let error = ended.expect("it ends within five seconds").unwrap().unwrap_err();
    assert_eq!(error.kind(), forge_image::ErrorKind::Cancelled, "{error}");
}

#[tokio::test]
async fn privileged_two_pulls_of_one_image_fetch_each_blob_once() {
    if !forge_testkit::privileged("privileged_two_pulls_of_one_image_fetch_each_blob_once") {
        return;
    }
    let registry = TestRegistry::start();
    let image = image("one", LayerCompression::Gzip).build();
    image.put(&registry, "app", "1");
    let site = Site::new();
    let (client, name) = (client(), reference(&format!("{}/app:1", registry.authority())));
    let platform = amd64();
    let (left, right) =
        tokio::join!(pull(&site.context, &client, &name, &platform), pull(&site.context, &client, &name, &platform),);
    assert_eq!(left.unwrap().layers, right.unwrap().layers);
    for layer in &image.layers {
        let digest = layer.descriptor.digest.as_str();
        assert_eq!(registry.lines().iter().filter(|line| line.starts_with("GET") && line.contains(digest)).count(), 1);
    }
}

#[tokio::test]
async fn privileged_a_base_image_comes_from_an_oci_layout() {
    if !forge_testkit::privileged("privileged_a_base_image_comes_from_an_oci_layout") {
        return;
    }
    let site = Site::new();
    let folder = site.path("layout");
    for name in ["r.io/a:1", "r.io/b:2"] {
        let settings = settings(&[name]);
        let images = site.image(&settings).await;
        to_oci(&site.context, &images, &settings, LayoutDestination::Folder(folder.clone())).await.unwrap();
    }
    let other = Site::new();
    let find = async |name: LayoutName| from_oci_layout(&other.context, &folder, &name, &amd64()).await;
    let tagged = find(LayoutName::Tag("2".to_owned())).await.unwrap();
    let named = find(LayoutName::Tag("r.io/b:2".to_owned())).await.unwrap();
    let pinned = find(LayoutName::Digest(tagged.resolved.root.digest.clone())).await.unwrap();
    assert_eq!((&tagged.layers, &tagged.layers), (&named.layers, &pinned.layers));
    assert!(other.context.store.images().list().unwrap().is_empty(), "a base image gets no name");
    let error = find(LayoutName::Default).await.unwrap_err();
    let shown = folder.display();
    assert_eq!(error.to_string(), format!("{shown} has no image \"latest\"; it has 1, 2"));
    std::fs::write(folder.join("oci-layout"), "{\"imageLayoutVersion\":\"2.0.0\"}").unwrap();
    assert!(matches!(find(LayoutName::Default).await, Err(FetchError::LayoutFormat { .. })));
}

/// A pipe where a file should be must not hang a build (A14).
#[tokio::test]
async fn a14_a_pipe_in_a_layout_is_refused() {
    let site = Site::new();
    let folder = site.path("layout");
    std::fs::create_dir(&folder).unwrap();
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mknodat(rustix::fs::CWD, folder.join("oci-layout"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let platform = amd64();
    let work = from_oci_layout(&site.context, &folder, &LayoutName::Default, &platform);
    let ended = tokio::time::timeout(std::time::Duration::from_secs(5), work).await;
    assert!(matches!(ended.expect("it does not wait"), Err(FetchError::LayoutFile { .. })));
}

/// The whole way with programs that others run: one platform by tag, several by index, mounted layers.
#[tokio::test]
async fn privileged_a_real_registry_takes_and_gives_images() {
    if !forge_testkit::privileged("privileged_a_real_registry_takes_and_gives_images") {
        return;
    }
    let name = "privileged_a_real_registry_takes_and_gives_images";
    let Some(registry) = forge_testkit::DockerRegistry::start(name) else { return };
    if !forge_testkit::installed("skopeo", name) {
        return;
    }
    let site = Site::new();
    let name = |repository: &str| format!("{}/{repository}:1", registry.authority());
    let first = settings(&[&name("one/app"), &name("other/app")]);
    let images = site.image(&first).await;
    to_store(&site.context, &images, &first).await.unwrap();
    let outcome = pushed(&site, &images, &first).await;
    assert_eq!((outcome.existed, outcome.mounted, outcome.uploaded), (0, 4, 4));
    let outcome = pushed(&site, &images, &settings(&[&name("two/app")])).await;
    assert_eq!((outcome.mounted, outcome.uploaded), (3, 1));
    for repository in ["one/app", "two/app"] {
        let source = format!("docker://{}", name(repository));
        let raw = run("skopeo", &["inspect", "--tls-verify=false", "--raw", &source]);
        assert_eq!(Digest::sha256(raw.as_bytes()), outcome.exported.descriptor.as_ref().unwrap().digest);
        let copy = format!("oci:{}:1", site.path(repository.split('/').next().unwrap()).display());
        run("skopeo", &["copy", "--insecure-policy", "--src-tls-verify=false", &source, &copy]);
    }
    forge_testkit::validate_layout(&site.path("two")).unwrap();
    let other = Site::new();
    let pulled = pull(&other.context, &client(), &reference(&name("two/app")), &amd64()).await.unwrap();
    assert_eq!(pulled.resolved.id, images.images()[0].id);
}

/// What was asked of an image's documents holds when it leaves later; digests that were asked for are names.
#[tokio::test]
async fn privileged_an_image_keeps_the_manifest_that_was_asked_for() {
    if !forge_testkit::privileged("privileged_an_image_keeps_the_manifest_that_was_asked_for") {
        return;
    }
    let site = Site::new();
    let zstd = Some(Compression::Zstd { level: None });
    let digest_names = vec![reference("app:1"), reference("dangling")];
    let settings = ExportSettings { compression: zstd, digest_names, ..settings(&["app:1"]) };
    let images = site.image(&settings).await;
    let stored = to_store_packaged(&site.context, &images, &settings).await.unwrap();
    let digest = stored.descriptor.clone().unwrap().digest;
    let names: Vec<String> = stored.names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["docker.io/library/app:1".to_owned(), format!("docker.io/library/dangling@{digest}")]);
    for name in ["app", "dangling"] {
        let pinned = reference(name).with_digest(digest.clone());
        assert!(site.context.store.images().target(&pinned).unwrap().is_some(), "{pinned}");
    }
    let saved = SavedImage { names: vec![reference("app:1")], target: site.target("app:1") };
    let pipe = Pipe::default();
    let exported = save(&site.context, &[saved], ArchiveFormat::Oci, pipe.writer()).await.unwrap();
    assert_eq!(exported[0].descriptor.as_ref().unwrap().digest, digest);
    let nothing = package(&site.context, &images, &settings).await.unwrap();
    assert_eq!(nothing.descriptor, stored.descriptor);
}

#[tokio::test]
async fn privileged_foreign_layers_are_handed_on_or_referred_to() {
    if !forge_testkit::privileged("privileged_foreign_layers_are_handed_on_or_referred_to") {
        return;
    }
    let registry = TestRegistry::start();
    let mut image = image("one", LayerCompression::Gzip).docker().build();
    let manifest = &image.manifest;
    let mut document = Manifest::from_json(&manifest.bytes, Some(&manifest.descriptor.media_type)).unwrap();
    document.layers[0].media_type = document.layers[0].media_type.nondistributable();
    document.layers[0].unknown.insert("urls".to_owned(), vec!["https://maker.test/layer"].into());
    image.manifest.bytes = document.to_json();
    image.manifest.descriptor = Descriptor::of(MediaType::DockerManifest, &image.manifest.bytes);
    image.put(&registry, "from/app", "1");
    let name = format!("{}/from/app:1", registry.authority());
    let site = Site::new();
    pull(&site.context, &client(), &reference(&name), &amd64()).await.unwrap();
    let images = ImageSet::from_store(&site.context, &site.target(&name)).await.unwrap();
    let foreign = document.layers[0].clone();
    for (nondistributable, repository) in
        [(Nondistributable::Referred, "referred"), (Nondistributable::Embedded, "embedded")]
    {
        let to = settings(&[&format!("{}/{repository}:1", registry.authority())]);
        let to = ExportSettings { nondistributable, oci_mediatypes: false, ..to };
        pushed(&site, &images, &to).await;
        let (_, _, bytes) = registry.tagged(repository, "1").unwrap();
        let made = Manifest::from_json(&bytes, Some(&MediaType::DockerManifest)).unwrap();
        let is_there = registry.content(repository, &foreign.digest).is_some();
        match nondistributable {
            Nondistributable::Referred => assert_eq!((made.layers[0].clone(), is_there), (foreign.clone(), false)),
            Nondistributable::Embedded => {
                assert_eq!((&made.layers[0].media_type, is_there), (&MediaType::DockerLayerGzip, true));
                assert!(made.layers[0].unknown.is_empty());
            }
        }
        assert_eq!(made.layers[1].media_type, MediaType::DockerLayerGzip);
    }
}

#[tokio::test]
async fn privileged_what_is_said_of_an_image_is_found() {
    if !forge_testkit::privileged("privileged_what_is_said_of_an_image_is_found") {
        return;
    }
    let registry = TestRegistry::start();
    let (image, site) = (image("one", LayerCompression::Gzip).build(), Site::new());
    image.put(&registry, "app", "alone");
    let statement = br#"{"_type":"https://in-toto.io/Statement/v1"}"#.to_vec();
    registry.put_blob("app", statement.clone());
    let mut said = Manifest::from_json(&image.manifest.bytes, None).unwrap();
    let mut layer = Descriptor::of(MediaType::from("application/vnd.in-toto+json"), &statement);
    layer.annotations.insert("in-toto.io/predicate-type".to_owned(), "https://slsa.dev/provenance/v1".into());
    said.layers = vec![layer];
    registry.put_manifest("app", None, MediaType::OciManifest.as_str(), said.to_json());
    let mut entry = Descriptor::of(MediaType::OciManifest, &said.to_json());
    entry.annotations.insert("vnd.docker.reference.type".to_owned(), "attestation-manifest".into());
    let about = image.manifest.descriptor.digest.to_string();
    entry.annotations.insert("vnd.docker.reference.digest".to_owned(), about.into());
    let mut index = forge_image::Index::from_json(&TestImage::index(std::slice::from_ref(&image)).bytes, None).unwrap();
    index.manifests.push(entry.clone());
    registry.put_manifest("app", Some("said"), MediaType::OciIndex.as_str(), index.to_json());
    let find = async |tag: &str, statements: &[&str]| {
        let name = reference(&format!("{}/app:{tag}", registry.authority()));
        let statements: Vec<String> = statements.iter().map(|text| (*text).to_owned()).collect();
        forge_registry::attestation_chain(&site.context, &client(), &name, &amd64(), &statements).await.unwrap()
    };
    assert!(find("alone", &[]).await.is_none(), "beside a manifest nothing is said");
    let chain = find("said", &["https://slsa.dev/provenance/v1"]).await.unwrap();
    assert_eq!(
        (chain.image_manifest, chain.attestation_manifest),
        (image.manifest.descriptor.digest, Some(entry.digest))
    );
    assert_eq!(chain.documents.len(), 3);
    assert_eq!(chain.documents[2].1, statement);
    assert_eq!(find("said", &["https://spdx.dev/Document"]).await.unwrap().documents.len(), 2);
}
