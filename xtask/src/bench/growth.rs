//! How costs grow with files, layers and steps: time and memory for each must stay what they are (L03, L05).

use super::cases::Bench;
use super::contexts::write_files;
use super::measure::{Used, used};
use crate::demo::Forge;
use anyhow::Result;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// A million files are looked at in a run of their own: they take minutes to make.
pub(super) const MILLION: usize = 1_000_000;

impl Bench {
    pub(super) fn curves(&self) -> Result<()> {
        self.growth_of_files(&[2_000, 5_000, 10_000, 20_000].map(|full| self.scaled(full)))?;
        self.growth_of_layers()?;
        self.growth_of_steps()
    }

    /// Builds of contexts of so many files: cold, unchanged, with one changed.
    pub(super) fn growth_of_files(&self, counts: &[usize]) -> Result<()> {
        println!(
            "{:<44} {:>10} {:>10} {:>10} {:>12} {:>10}",
            "files", "cold", "same", "one other", "cold/1000", "memory"
        );
        for count in counts {
            let context = self.folder.join(format!("growth-files-{count}"));
            write_files(&context.join("tree"), *count)?;
            fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY . /srv/\n")?;
            let forge = self.fresh(&format!("growth-{count}"));
            let build = || used(&mut forge.command(&format!("build -q -t files {}", context.display())));
            let (cold, same) = (build()?, build()?);
            fs::write(context.join("tree/0/0"), "changed")?;
            let other = build()?;
            let memory = cold.kilobytes.max(same.kilobytes).max(other.kilobytes);
            let each = cold.time / (count / 1000).max(1) as u32;
            println!(
                "{count:>44} {:>10} {:>10} {:>10} {:>12} {:>7} MB",
                cold.shown(),
                same.shown(),
                other.shown(),
                Used { time: each, ..cold }.shown(),
                memory / 1024
            );
        }
        Ok(())
    }

    /// An image of so many layers.
    fn growth_of_layers(&self) -> Result<()> {
        println!("{:<44} {:>10} {:>10} {:>10} {:>10}", "layers, to an archive", "cold", "same", "cold/10", "memory");
        for count in [10, 30, 60, 120] {
            let context = self.copies(&format!("layers-{count}"), count)?;
            let forge = self.fresh(&format!("layers-{count}"));
            let archive = self.folder.join("oci.tar");
            let line = format!("build -q -o type=oci,dest={} {}", archive.display(), context.display());
            self.line(count, || used(&mut forge.command(&line)))?;
        }
        Ok(())
    }

    /// A chain of so many steps, a plan of it, and what the cache's file takes for each.
    fn growth_of_steps(&self) -> Result<()> {
        println!("{:<44} {:>10} {:>10} {:>10} {:>10}", "steps of a chain", "cold", "same", "cold/10", "memory");
        for count in [100, 300, 1000].map(|full| self.scaled(full)) {
            let context = self.copies(&format!("steps-{count}"), count)?;
            let forge = self.fresh(&format!("steps-{count}"));
            self.line(count, || used(&mut forge.command(&format!("build -q -t steps {}", context.display()))))?;
            let plan = used(&mut forge.command(&format!("plan {}", context.display())))?;
            println!(
                "{:>44} {:>10}   cache: {} bytes a step",
                "plan",
                plan.shown(),
                cache_size(&forge)? / count as u64
            );
        }
        Ok(())
    }

    fn line(&self, count: usize, build: impl Fn() -> Result<Used>) -> Result<()> {
        let (cold, same) = (build()?, build()?);
        let each = Used { time: cold.time / (count / 10).max(1) as u32, ..cold };
        let memory = cold.kilobytes.max(same.kilobytes) / 1024;
        println!("{count:>44} {:>10} {:>10} {:>10} {memory:>7} MB", cold.shown(), same.shown(), each.shown());
        Ok(())
    }

    /// A Dockerfile of so many COPY, each of a file of its own.
    fn copies(&self, name: &str, count: usize) -> Result<PathBuf> {
        let mut dockerfile = "FROM scratch\n".to_owned();
        (0..count).try_for_each(|layer| writeln!(dockerfile, "COPY file-{layer} /folder/file-{layer}"))?;
        let context = self.context_of(name, &dockerfile)?;
        (0..count).try_for_each(|layer| fs::write(context.join(format!("file-{layer}")), format!("{layer}\n")))?;
        Ok(context)
    }
}

/// The bytes of the index of steps, what is not in its file yet among them.
fn cache_size(forge: &Forge) -> Result<u64> {
    let size = |name: &str| fs::metadata(Path::new(&forge.root).join(name)).map_or(0, |found| found.len());
    Ok(size("cache.db") + size("cache.db-wal"))
}
