//! Writes to a store until the power fails, and says afterwards what survived. The recipe that uses it is in
//! `docs/design/003-durability.md`.
//!
//! `power_cut write ROOT` names images until it cannot, and prints one line for each that `tag` acknowledged; after each
//! it stores an image without a name, which nothing promises to keep. `power_cut check ROOT < LINES` verifies every
//! acknowledged image down to the bytes of its file, and that of the others the store offers no damaged one.

use forge_store::{Image, LayerId, Lease, Store, StoreError, Target};
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::SystemTime;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", root] => write(Path::new(root)),
        ["check", root] => check(Path::new(root)),
        _ => Err("usage: power_cut write|check ROOT".into()),
    }
}

fn say(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// What the file in a layer of that name holds: long enough to lose a part of it.
fn content(name: &str) -> Vec<u8> {
    name.as_bytes().repeat(10_000)
}

fn put(store: &Store, name: &str, lease: &Lease) -> Result<Target, StoreError> {
    let active = store.layers().prepare(&[])?;
    let path = active.upper().join("file");
    std::fs::write(&path, content(name)).map_err(|source| StoreError::Io { action: "write", path, source })?;
    let layer = store.layers().commit(active, lease)?;
    let platform = forge_image::Platform::new("linux", "amd64", None);
    let mut config = forge_image::ImageConfig::new(&platform);
    config.author = Some(name.to_owned());
    let bytes = config.to_json();
    let id = forge_image::ImageConfig::id_of(&bytes);
    let (layers, stored) = (vec![layer.id], SystemTime::now());
    let image = Image { id: id.clone(), platform, layers, manifest: None, created: None, stored };
    store.images().put(&image, &bytes, lease)?;
    Ok(Target { index: None, images: vec![id] })
}

fn write(root: &Path) -> Result<(), Failure> {
    let store = Store::open(root)?;
    let lease = store.lease("power cut")?;
    // Other names than in the last cycle: tagging what is there already would need no sync.
    let run = &LayerId::random().as_str()[..8].to_owned();
    for number in 0.. {
        let name = format!("n{run}-{number}");
        let target = put(&store, &name, &lease)?;
        store.images().tag(&name.parse()?, &target)?;
        say(&name)?;
        put(&store, &format!("unnamed{run}-{number}"), &lease)?;
    }
    Ok(())
}

fn check(root: &Path) -> Result<(), Failure> {
    let store = Store::open(root)?;
    let mut acknowledged = 0;
    for line in std::io::stdin().lock().lines() {
        let name = line?;
        let target = store.images().target(&name.parse()?)?.ok_or(format!("{name} is gone"))?;
        if !is_whole(&store, &target)? {
            return Err(format!("{name} is damaged").into());
        }
        acknowledged += 1;
    }
    let (mut unnamed, mut dropped) = (0, 0);
    for (name, target) in store.images().list()? {
        match name {
            None if is_whole(&store, &target)? => unnamed += 1,
            None => dropped += 1,
            Some(_) => {}
        }
    }
    say(&format!(
        "{acknowledged} acknowledged images whole; of others {unnamed} whole, {dropped} dropped, none damaged"
    ))
}

/// `false` when the store says so itself; what it offers must be right.
fn is_whole(store: &Store, target: &Target) -> Result<bool, Failure> {
    let lease = store.lease("check")?;
    let image = store.images().get(&target.images[0])?.ok_or("the image is gone")?;
    for layer in &image.layers {
        if !lease.hold_layer(layer)? || !store.verify_layer(layer)? {
            return Ok(false);
        }
    }
    let Some(name) = store.images().config(&image.id)?.author else { return Err("another config".into()) };
    let file = store.layers().lower_dirs(&image.layers)?[0].join("file");
    match std::fs::read(&file)? == content(&name) {
        true => Ok(true),
        false => Err(format!("{} is not what was written", file.display()).into()),
    }
}
