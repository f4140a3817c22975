//! What a layer costs on its way: committing an upper folder, writing it as tar and compressed, unpacking it again.
//!
//! Needs root, since layers keep owners. Run by `cargo bench`; `cargo test --benches` runs each case once on a small layer.

use forge_store::{Compression, Layers, Store, TarOptions};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

/// Small files of different sizes, a hundred in a folder.
fn fill(folder: &Path, files: usize) {
    for number in 0..files {
        let folder = folder.join((number / 100).to_string());
        fs::create_dir_all(&folder).expect("the folder can be made");
        let text = format!("file {number}: {:x}\n", number.wrapping_mul(2_654_435_761)).repeat(1 + number % 200);
        fs::write(folder.join((number % 100).to_string()), text).expect("the file can be written");
    }
}

fn timed<T>(name: &str, run: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = run();
    let line = format!("{name:40} {:10.1?}\n", begin.elapsed());
    std::io::stdout().write_all(line.as_bytes()).expect("standard output is open");
    result
}

fn main() {
    if !rustix::process::geteuid().is_root() {
        std::io::stdout().write_all(b"SKIPPED (needs root): layers\n").expect("standard output is open");
        return;
    }
    let files = if std::env::args().any(|argument| argument == "--bench") { 20_000 } else { 200 };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (here, there) = (open(&folder.path().join("here")), open(&folder.path().join("there")));
    let layers: &Layers = here.layers();
    let lease = here.lease("bench").expect("a lease");
    let active = layers.prepare(&[]).expect("an upper folder");
    timed(&format!("write {files} files"), || fill(active.upper(), files));
    let record = timed("commit", || layers.commit(active, &lease).expect("a layer"));
    let tar = TarOptions::default();
    timed("write as tar", || layers.write_tar(&record.id, &tar, &mut std::io::sink()).expect("a tar"));
    timed("compress with zstd", || {
        let zstd = Compression::Zstd { level: None };
        layers.blob(&record.id, &zstd, &tar, &lease, &mut |_| {}).expect("a blob")
    });
    let blob = timed("compress with gzip", || {
        let gzip = Compression::Gzip { level: None };
        layers.blob(&record.id, &gzip, &tar, &lease, &mut |_| {}).expect("a blob")
    });
    let lease = there.lease("bench").expect("a lease");
    let bytes = here.blobs().read(&blob.descriptor.digest, u64::MAX).expect("the blob is there");
    there.blobs().write(&bytes, &lease).expect("the blob can be written");
    timed("unpack", || {
        there.layers().unpack(&[], &blob.descriptor, &blob.diff_id, &lease, &mut |_| {}).expect("the layer is whole")
    });
}

fn open(root: &Path) -> Store {
    Store::open(root).expect("a store")
}
