//! forge and `oci-client`, another implementation of the same protocol, through one registry: what one pushes the
//! other pulls, byte for byte.

use crate::{Bench, noise, options};
use forge_image::{Descriptor, Digest, Manifest, MediaType, Platform, Reference};
use forge_registry::{Pushed, select_platform};
use forge_testkit::{
    DockerRegistry, ImageBuilder, LayerCompression, TarBuilder, TestBlob, TestImage, TestRegistry, TestSession,
    validate,
};
use oci_client::client::{Client, ClientConfig, ClientProtocol, Config, ImageData, ImageLayer};
use oci_client::manifest::{OciImageManifest, OciManifest};
use oci_client::secrets::RegistryAuth;
use std::fs::File;
use std::io::Write as _;

const USER: &str = "anna";
const PASSWORD: &str = "geheim-7f3a";

/// One registry with both clients at it.
struct Pair {
    bench: Bench,
    client: Client,
    auth: RegistryAuth,
    authority: String,
}

impl Pair {
    fn open(authority: &str) -> Self {
        Self::with(authority, TestSession::new(), RegistryAuth::Anonymous)
    }

    fn known(authority: &str) -> Self {
        let session = TestSession::new().with_login(authority, USER, PASSWORD);
        Self::with(authority, session, RegistryAuth::Basic(USER.to_owned(), PASSWORD.to_owned()))
    }

    fn with(authority: &str, session: TestSession, auth: RegistryAuth) -> Self {
        let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
        // It is plain HTTP, but the HTTP library wants TLS to be there. An error is that another test was here first.
        _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::try_from(config).unwrap();
        Self { bench: Bench::with(options(), session), client, auth, authority: authority.to_owned() }
    }

    fn name(&self, rest: &str) -> (Reference, oci_client::Reference) {
        let text = format!("{}/{rest}", self.authority);
        (text.parse().unwrap(), text.parse().unwrap())
    }

    async fn forge_pushes(&self, name: &Reference, image: &TestImage) {
        for part in image.layers.iter().chain([&image.config]) {
            let (session, source) = (&self.bench.session, file(&part.bytes));
            let pushed = self.bench.client.push_blob(name, &part.descriptor, source, &[], session, &|_| {}).await;
            assert_eq!(pushed.unwrap(), Pushed::Uploaded);
        }
        self.forge_pushes_document(name, &image.manifest).await;
    }

    async fn forge_pushes_document(&self, name: &Reference, document: &TestBlob) {
        let (kind, bytes) = (&document.descriptor.media_type, &document.bytes);
        let digest = self.bench.client.push_manifest(name, kind, bytes, &self.bench.session).await.unwrap();
        assert_eq!(digest, document.descriptor.digest);
    }

    /// The image's documents and layers from a store that had nothing before, checked by the oracle.
    async fn forge_pulls(&self, name: &Reference) -> (Descriptor, Vec<Vec<u8>>) {
        let document = self.bench.client.resolve(name, &self.bench.session).await.unwrap();
        let manifest = Manifest::from_json(&document.bytes, None).unwrap();
        for part in manifest.layers.iter().chain([&manifest.config]) {
            self.bench.fetch(name, part).await.unwrap();
        }
        let read = |digest: &Digest| self.bench.store.blobs().read(digest, 1 << 30).ok();
        let fetch = |digest: &Digest| match *digest == document.descriptor.digest {
            true => Some(document.bytes.clone()),
            false => read(digest),
        };
        validate(&document.descriptor, &fetch).unwrap();
        let layers = manifest.layers.iter().map(|layer| read(&layer.digest).unwrap()).collect();
        (document.descriptor, layers)
    }

    async fn oci_client_pulls(&self, name: &oci_client::Reference) -> ImageData {
        self.client.pull(name, &self.auth, ACCEPTED.to_vec()).await.unwrap()
    }
}

const ACCEPTED: [&str; 3] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
];

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Layers of each compression; one is larger than what either client sends at once.
fn image(text: &str) -> TestImage {
    let large = TarBuilder::new().file("large", noise(9 << 20)).finish();
    ImageBuilder::new()
        .layer(TarBuilder::new().file("small", text))
        .layer_as(large, LayerCompression::Zstd)
        .layer_as(TarBuilder::new().file("plain", "x").finish(), LayerCompression::None)
        .config(|config| config.config.env = vec!["A=1".to_owned()])
        .build()
}

/// A layer's digest and bytes, in an order that does not depend on which came first: `oci-client` gives them as they
/// arrive.
fn sorted<'a>(layers: impl Iterator<Item = &'a [u8]>) -> Vec<(Digest, &'a [u8])> {
    let mut layers: Vec<_> = layers.map(|bytes| (Digest::sha256(bytes), bytes)).collect();
    layers.sort();
    layers
}

async fn oci_client_pulls_what_forge_pushed(pair: &Pair) {
    let image = image("by forge");
    let (ours, theirs) = pair.name("by/forge:1.0");
    pair.forge_pushes(&ours, &image).await;
    let pulled = pair.oci_client_pulls(&theirs).await;
    assert_eq!(pulled.digest.unwrap(), image.manifest.descriptor.digest.as_str());
    assert_eq!(pulled.config.data, image.config.bytes);
    assert_eq!(pulled.config.media_type, MediaType::OciConfig.as_str());
    let (got, pushed) =
        (pulled.layers.iter().map(|layer| &*layer.data), image.layers.iter().map(|layer| &*layer.bytes));
    assert_eq!(sorted(got), sorted(pushed));
    let (bytes, digest) =
        pair.client.pull_manifest_raw(&theirs, &pair.auth, &[MediaType::OciManifest.as_str()]).await.unwrap();
    assert_eq!((&*bytes, digest.as_str()), (&*image.manifest.bytes, image.manifest.descriptor.digest.as_str()));
}

async fn forge_pulls_what_oci_client_pushed(pair: &Pair) {
    let image = image("by oci-client");
    let (ours, theirs) = pair.name("by/oci-client:1.0");
    let layer = |layer: &TestBlob| ImageLayer::new(layer.bytes.clone(), layer.descriptor.media_type.to_string(), None);
    let layers: Vec<ImageLayer> = image.layers.iter().map(layer).collect();
    let config = Config::oci_v1(image.config.bytes.clone(), None);
    // Its own manifest, not that of the image: another writer's order and spacing.
    let manifest = OciImageManifest::build(&layers, &config, None);
    pair.client.push(&theirs, &layers, config, &pair.auth, Some(manifest)).await.unwrap();
    let digest = pair.client.fetch_manifest_digest(&theirs, &pair.auth).await.unwrap();
    let (found, layers) = pair.forge_pulls(&ours).await;
    assert_eq!(found.digest.as_str(), digest);
    assert_eq!(layers, image.layers.iter().map(|layer| layer.bytes.clone()).collect::<Vec<_>>());
}

async fn both_ways(pair: &Pair) {
    oci_client_pulls_what_forge_pushed(pair).await;
    forge_pulls_what_oci_client_pushed(pair).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_go_both_ways_between_forge_and_oci_client() {
    let registry = TestRegistry::start();
    both_ways(&Pair::open(registry.authority())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_go_both_ways_with_a_password() {
    let registry = TestRegistry::builder().basic(USER, PASSWORD).start();
    both_ways(&Pair::known(registry.authority())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_go_both_ways_with_tokens() {
    let registry = TestRegistry::builder().bearer(USER, PASSWORD).start();
    both_ways(&Pair::known(registry.authority())).await;
    assert!(registry.received().iter().any(|request| request.path == "/token"));
}

#[tokio::test(flavor = "multi_thread")]
async fn images_go_both_ways_through_dockers_registry() {
    let Some(registry) = DockerRegistry::start("images_go_both_ways_through_dockers_registry") else { return };
    both_ways(&Pair::open(registry.authority())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_choose_the_same_image_of_an_index() {
    let registry = TestRegistry::start();
    let pair = Pair::open(registry.authority());
    let platforms = ["linux/s390x".parse().unwrap(), Platform::host(), "linux/riscv64".parse().unwrap()];
    let small = |platform: &Platform| {
        ImageBuilder::for_platform(platform).layer(TarBuilder::new().file("platform", platform.to_string())).build()
    };
    let images = platforms.each_ref().map(small);
    let (ours, theirs) = pair.name("by/forge:index");
    for image in &images {
        pair.forge_pushes(&ours.with_digest(image.manifest.descriptor.digest.clone()), image).await;
    }
    pair.forge_pushes_document(&ours, &TestImage::index(&images)).await;
    let pulled = pair.oci_client_pulls(&theirs).await;
    assert_eq!(pulled.digest.unwrap(), images[1].manifest.descriptor.digest.as_str());

    let (manifest, _) = pair.client.pull_manifest(&theirs, &pair.auth).await.unwrap();
    let OciManifest::ImageIndex(index) = manifest else { panic!("an index was pushed") };
    let (ours, theirs) = pair.name("by/forge:again");
    pair.client.push_manifest_list(&theirs, &pair.auth, index).await.unwrap();
    let document = pair.bench.client.resolve(&ours, &pair.bench.session).await.unwrap();
    let index = forge_image::Index::from_json(&document.bytes, Some(&document.descriptor.media_type)).unwrap();
    assert_eq!(select_platform(&index, &Platform::host()).unwrap().digest, images[1].manifest.descriptor.digest);
}
