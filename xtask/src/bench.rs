//! forge beside the bare cost of the same job, measured in one run: disks and clocks drift, ratios less so.

mod cases;
mod contexts;
mod measure;

use crate::demo::{Forge, release_binary};
use crate::{busybox, packages};
use anyhow::Result;

/// How much data the cases use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// As the design's table says.
    Full,
    /// A tenth, for a first look.
    Quick,
}

pub fn run(size: Size) -> Result<()> {
    packages::ensure(packages::BENCH)?;
    let binary = release_binary()?;
    std::fs::create_dir_all("target")?;
    std::fs::create_dir_all("target")?;
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(std::path::absolute("target")?)?;
    let forge = Forge { binary, root: folder.path().join("store") };
    let archive = folder.path().join("busybox.tar");
    busybox::write_archive(&archive)?;
    crate::command::output(&mut forge.command(&format!("load -i {}", archive.display())))?;
    let bench = cases::Bench { forge, folder: folder.path().to_owned(), size };
    println!("{:<44} {:>10} {:>10} {:>7} {:>8}   bare job", "case", "forge", "bare", "ratio", "goal");
    bench.run()
}
