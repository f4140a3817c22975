//! An image of one large layer, from a registry on loopback into a store that has nothing.

use super::buildkit::BuildKit;
use super::cases::{Bench, Row};
use super::layer::largest_path;
use super::measure::{median, once, plain, settle, shell};
use crate::registry::Registry;
use anyhow::Result;
use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

/// How often each of them does it.
const RUNS: usize = 3;

impl Bench {
    /// Pulls what [`Bench::layer`] built.
    pub(super) fn pull(&self) -> Result<()> {
        let registry = Registry::start(&self.folder.join("registry"))?;
        let context = self.folder.join("layer");
        fs::write(context.join("data/small"), "read by who only wants the image unpacked\n")?;
        let name = format!("{}/layer:1", registry.authority);
        plain(1, || self.forge.command(&format!("build -q --push -t {name} {}", context.display())))?;
        let blob = largest_path(&self.folder.join("registry"))?;
        // Each time into a new folder: ext4 looks for numbers of files that were not removed just now, which takes seconds
        // after tens of thousands were.
        let places = Cell::new(0);
        let new_place = || {
            places.set(places.get() + 1);
            self.folder.join(format!("pulled-{}", places.get()))
        };
        let pull = || self.forge.command(&format!("--root {} pull -q {name}", new_place().display()));
        let forge = median(RUNS, settle, pull)?;
        let unpack = || {
            let folder = new_place().display().to_string();
            shell(&format!("mkdir {folder} && tar -C {folder} -xzf {}", blob.display()))
        };
        let bare = median(RUNS, settle, unpack)?;
        let case = "the same image pulled and unpacked";
        Row { case, forge, bare, goal: "3 s", bare_job: "tar -xz of its layer" }.print();
        if BuildKit::is_here() {
            let bare = self.pull_by_buildkit(&name, new_place)?;
            Row { case, forge, bare, goal: "0.26", bare_job: "BuildKit, which copies one small file from it" }.print();
        }
        Ok(())
    }

    /// BuildKit unpacks an image when a step reads it.
    fn pull_by_buildkit(&self, name: &str, new_place: impl Fn() -> PathBuf) -> Result<std::time::Duration> {
        let dockerfile = format!("FROM {name} AS image\nFROM scratch\nCOPY --from=image /small /\n");
        let context = self.context_of("reader", &dockerfile)?;
        let mut times = Vec::new();
        for _ in 0..RUNS {
            let buildkit = BuildKit::start(new_place())?;
            settle()?;
            times.push(once(&mut buildkit.build(&context))?);
        }
        times.sort();
        Ok(times[RUNS / 2])
    }
}
