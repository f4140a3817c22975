//! Tests of the parts together. A test that needs a second process starts this test binary again, with the name of
//! what to do there in the environment; [`processes::child_process`] does it.

mod blobs;
mod cache_mounts;
mod collection;
mod crash;
#[allow(dead_code, reason = "other targets use the rest of it")]
#[path = "../../../testkit/src/fuzz.rs"]
pub(crate) mod fuzz;
mod images;
mod opening;
mod power;
mod processes;
mod remote;
mod removal;
mod verify;

use crate::layer_rows::{self, Published};
use crate::{Blobs, ContentDigest, FileTimes, Image, LayerId, LayerRecord, Lease, Store, Target};
use forge_image::{ChainId, Digest, ImageConfig, ImageId, Platform, Reference};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::UNIX_EPOCH;
use tempfile::TempDir;

fn new_store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store")).unwrap();
    (folder, store)
}

/// A layer of one file, `f`, setuid, in the store by the way that all layers take.
fn put_layer(store: &Store, lease: &Lease, text: &str, chain: Option<&ChainId>) -> (LayerId, Published) {
    let scratch = store.scratch("layer").unwrap();
    let staged = scratch.path().join("staged");
    crate::scratch::create_private(&staged).unwrap();
    std::fs::create_dir(staged.join("tree")).unwrap();
    std::fs::write(staged.join("tree/f"), text).unwrap();
    std::fs::set_permissions(staged.join("tree/f"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    std::fs::write(staged.join("index"), format!("f {text}")).unwrap();
    let record = LayerRecord {
        id: LayerId::random(),
        content: ContentDigest::from(blake3::hash(text.as_bytes())),
        times: FileTimes::Content,
        bytes: text.len() as u64,
        entries: 1,
        diff_id: None,
        foreign: false,
        blobs: Vec::new(),
    };
    let published = layer_rows::publish(&store.opened, &staged, &record, chain, lease).unwrap();
    (record.id, published)
}

/// An image whose config says `text`; nothing else about it matters here.
fn image(text: &str, layers: &[LayerId]) -> (Image, Vec<u8>) {
    let platform = Platform::new("linux", "amd64", None);
    let mut config = ImageConfig::new(&platform);
    config.author = Some(text.to_owned());
    let bytes = config.to_json();
    let id = ImageConfig::id_of(&bytes);
    let image = Image { id, platform, layers: layers.to_vec(), manifest: None, created: None, stored: UNIX_EPOCH };
    (image, bytes)
}

fn put_image(store: &Store, lease: &Lease, text: &str, layers: &[LayerId]) -> ImageId {
    let (image, config) = image(text, layers);
    store.images().put(&image, &config, lease).unwrap();
    image.id
}

fn alone(image: &ImageId) -> Target {
    Target { index: None, images: vec![image.clone()] }
}

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

fn blob_files(blobs: &Blobs) -> Vec<String> {
    let path = blobs.path(&Digest::sha256(b""));
    names_in(path.parent().unwrap())
}

fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs SQL on the store's database behind its back.
fn sql(store: &Store, text: &str) {
    store.opened.database().write(|transaction| Ok(transaction.execute_batch(text)?)).unwrap();
}

/// Whether the test may go on. It skips with a line, or fails where the run insists on privileged tests.
fn is_root(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    let required = std::env::var_os("FORGE_REQUIRE_PRIVILEGED").is_some_and(|value| value == "1");
    assert!(!required, "{test} needs root");
    let mut out = std::io::stdout();
    std::io::Write::write_all(&mut out, format!("SKIPPED (needs root): {test}\n").as_bytes()).unwrap();
    false
}
