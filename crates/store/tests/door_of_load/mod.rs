//! The same attacks at the door of `forge load`: the layer comes in a docker archive.

use crate::layer_store::{Fixture, Packed, chain, pack};
use crate::raw_tar::RawTar;
use forge_exporter::{ExistingNames, LoadInput, LoadLimits, load};
use forge_image::Digest;
use forge_registry::TransferContext;
use forge_store::ContentDigest;
use forge_testkit::TestSession;
use std::sync::Arc;

/// Loads an image of these layers, bare and in gzip, and demands the outcome that unpacking the last one alone had.
pub fn attack(tars: &[Vec<u8>], expected: Result<&ContentDigest, &str>) {
    for packed in [Packed::Bare, Packed::Gzip] {
        let fixture = Fixture::new();
        let found = load_archive(&fixture, archive(tars, packed));
        fixture.check_canary();
        match (found, expected) {
            (Ok(content), Ok(expected)) => assert_eq!(content, *expected),
            (Err(text), Err(expected)) => {
                assert!(text.ends_with(expected), "{text} instead of {expected}");
                assert!(fixture.store.images().list().unwrap().is_empty(), "nothing of a refused archive is kept");
            }
            (found, expected) => panic!("loading: {found:?}, unpacking: {expected:?}"),
        }
    }
}

fn archive(tars: &[Vec<u8>], packed: Packed) -> Vec<u8> {
    let diff_ids: Vec<String> = tars.iter().map(|tar| Digest::sha256(tar).to_string()).collect();
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let names: Vec<String> = (0..tars.len()).map(|number| format!("{number}.tar")).collect();
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": ["evil:1"], "Layers": names}]);
    let archive = RawTar::new().file("manifest.json", manifest.to_string().as_bytes());
    let archive = archive.file("config.json", config.to_string().as_bytes());
    let layers = names.iter().zip(tars);
    layers.fold(archive, |archive, (name, tar)| archive.file(name, &pack(tar, packed))).end()
}

/// The content of the image's last layer.
fn load_archive(fixture: &Fixture, archive: Vec<u8>) -> Result<ContentDigest, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = fixture.store.clone();
    let context = TransferContext {
        lease: Arc::new(store.lease("load").unwrap()),
        store,
        session: Arc::new(TestSession::new()),
        vertex: Digest::sha256(b"test"),
    };
    let input = LoadInput::Stream(Box::new(std::io::Cursor::new(archive)));
    let loading = load(&context, input, LoadLimits::default(), ExistingNames::Refuse);
    let loaded = runtime.block_on(loading).map_err(|error| chain(&error))?;
    let image = fixture.store.images().get(&loaded[0].target.images[0]).unwrap().unwrap();
    Ok(fixture.layers().contents(&image.layers[image.layers.len() - 1..]).unwrap()[0].unwrap())
}
