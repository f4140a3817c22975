//! Writes a folder as the only layer of an OCI image layout, as forge compresses layers: for trials with other readers.
//!
//! `cargo run -p forge-store --example layer_layout -- FOLDER LAYOUT none|gzip|zstd [LEVEL]`

use forge_image::{Descriptor, MediaType};
use forge_store::{Compression, LayerBlob, Store, TarOptions};
use std::error::Error;
use std::path::Path;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, layout, compression, rest @ ..] = &arguments[..] else {
        return Err("usage: layer_layout FOLDER LAYOUT none|gzip|zstd [LEVEL]".into());
    };
    let level = rest.first().map(|level| level.parse()).transpose()?;
    let compression = match compression.as_str() {
        "none" => Compression::None,
        "gzip" => Compression::Gzip { level: level.map(|level: i32| level as u32) },
        "zstd" => Compression::Zstd { level },
        other => return Err(format!("no such compression: {other}").into()),
    };
    let root = tempfile::tempdir()?;
    let store = Store::open(&root.path().join("store"))?;
    let blob = layer_of(&store, Path::new(folder), &compression)?;
    write_layout(&store, Path::new(layout), &blob)
}

fn layer_of(store: &Store, folder: &Path, compression: &Compression) -> Result<LayerBlob, Box<dyn Error>> {
    let lease = store.lease("example")?;
    let active = store.layers().prepare(&[])?;
    let copied = Command::new("cp").arg("-a").arg(folder.join(".")).arg(active.upper()).status()?;
    if !copied.success() {
        return Err("cp failed".into());
    }
    let layer = store.layers().commit(active, &lease)?;
    let started = std::time::Instant::now();
    let blob = store.layers().blob(&layer.id, compression, &TarOptions::default(), &lease, &mut |_| {})?;
    let tar: u64 = {
        struct Count(u64);
        impl std::io::Write for Count {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0 += bytes.len() as u64;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let elapsed = started.elapsed();
        let mut count = Count(0);
        store.layers().write_tar(&layer.id, &TarOptions::default(), &mut count)?;
        report(&format!("{} bytes of tar to {} bytes in {elapsed:.2?}", count.0, blob.descriptor.size));
        count.0
    };
    report(&format!("ratio {:.4}", blob.descriptor.size as f64 / tar as f64));
    Ok(blob)
}

fn write_layout(store: &Store, layout: &Path, blob: &LayerBlob) -> Result<(), Box<dyn Error>> {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    std::fs::copy(store.blobs().path(&blob.descriptor.digest), blobs.join(blob.descriptor.digest.hex()))?;
    let put = |kind, bytes: Vec<u8>| -> Result<Descriptor, std::io::Error> {
        let descriptor = Descriptor::of(kind, &bytes);
        std::fs::write(blobs.join(descriptor.digest.hex()), bytes)?;
        Ok(descriptor)
    };
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [blob.diff_id]}, "history": [{"created_by": "layer_layout"}]});
    let config = put(MediaType::OciConfig, serde_json::to_vec(&config)?)?;
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": MediaType::OciManifest,
        "config": config, "layers": [blob.descriptor]});
    let manifest = put(MediaType::OciManifest, serde_json::to_vec(&manifest)?)?;
    let mut named = serde_json::to_value(&manifest)?;
    named["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "latest"});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [named]});
    std::fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    report(&format!("{} {}", blob.descriptor.media_type, blob.descriptor.digest));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a command line tool")]
fn report(line: &str) {
    println!("{line}");
}
