//! What a newcomer runs first: forge builds, lists, runs and rebuilds an image.

use crate::command::{self, command};
use crate::{busybox, packages};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

pub fn run() -> Result<()> {
    packages::ensure(packages::DEMO)?;
    let binary = release_binary()?;
    let folder = std::path::absolute("target/demo")?;
    std::fs::create_dir_all(&folder)?;
    show(&Forge { binary: binary.clone(), root: folder.join("store") }, &folder)?;
    println!("\nforge is {}; the images of this demo are in a store of their own:", binary.display());
    println!("  export FORGE_ROOT={}", folder.join("store").display());
    Ok(())
}

fn show(forge: &Forge, folder: &Path) -> Result<()> {
    let archive = folder.join("busybox.tar");
    busybox::write_archive(&archive)?;
    forge.run(&format!("load --replace -i {}", archive.display()))?;
    for line in ["build -t app:1.0 testdata/hello", "images", "run --rm app:1.0", "build -t app:1.0 testdata/hello"] {
        println!();
        forge.run(line)?;
    }
    Ok(())
}

/// A forge binary with a store.
pub struct Forge {
    pub binary: PathBuf,
    pub root: PathBuf,
}

impl Forge {
    /// A command of forge's.
    pub fn command(&self, line: &str) -> Command {
        let mut forge = Command::new(&self.binary);
        forge.args(line.split_whitespace()).env("FORGE_ROOT", &self.root);
        forge
    }

    /// Shows a command of forge's and runs it.
    pub fn run(&self, line: &str) -> Result<()> {
        command::run(&mut self.command(line))
    }
}

/// Builds the static release binary, or takes the one that `FORGE_BINARY` names. Naming the target keeps the flags away from build scripts and macros,
/// which cannot be linked statically.
pub fn release_binary() -> Result<PathBuf> {
    if let Ok(binary) = std::env::var("FORGE_BINARY") {
        return Ok(std::path::absolute(binary)?);
    }
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut build = command(&format!("cargo build --release --package forge --target {target}"));
    build.env("RUSTFLAGS", "-C target-feature=+crt-static");
    command::run(&mut build)?;
    let folder = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
    Ok(std::path::absolute(Path::new(&folder).join(target).join("release/forge"))?)
}
