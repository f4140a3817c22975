//! forge beside the bare cost of the same job, measured in one run: disks and clocks drift, ratios less so.

mod buildkit;
mod cases;
mod contexts;
mod growth;
mod layer;
mod measure;
mod pull;

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
    /// Contexts up to a million files.
    Million,
}

/// Runs the cases of these names, all where there are none.
pub fn run(size: Size, cases: &[&str]) -> Result<()> {
    packages::ensure(packages::BENCH)?;
    let folder = folder()?;
    let forge = Forge { binary: installed(&folder)?, root: folder.path().join("store") };
    let archive = folder.path().join("busybox.tar");
    busybox::write_archive(&archive)?;
    crate::command::output(&mut forge.command(&format!("load -i {}", archive.display())))?;
    let bench = cases::Bench { forge, folder: folder.path().to_owned(), size };
    println!("{:<44} {:>10} {:>10} {:>7} {:>8}   bare job", "case", "forge", "bare", "ratio", "goal");
    bench.run(cases)
}

/// Only how costs grow with files, layers and steps.
pub fn growth(size: Size) -> Result<()> {
    packages::ensure(packages::BENCH)?;
    let folder = folder()?;
    let forge = Forge { binary: installed(&folder)?, root: folder.path().join("store") };
    let bench = cases::Bench { forge, folder: folder.path().to_owned(), size };
    match size {
        Size::Million => bench.growth_of_files(&[growth::MILLION / 5, growth::MILLION]),
        Size::Full | Size::Quick => bench.curves(),
    }
}

/// The program as an installation leaves it. What a linker has just written lies in the page cache page by page, which costs each
/// start a hundred page faults more than what was copied.
fn installed(folder: &tempfile::TempDir) -> Result<std::path::PathBuf> {
    let copy = folder.path().join("forge");
    std::fs::copy(release_binary()?, &copy)?;
    Ok(copy)
}

fn folder() -> Result<tempfile::TempDir> {
    std::fs::create_dir_all("target")?;
    Ok(tempfile::Builder::new().prefix("bench-").tempdir_in(std::path::absolute("target")?)?)
}
