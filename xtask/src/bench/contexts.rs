//! Contexts of many files.

use super::cases::{Bench, Row};
use super::measure::{once, plain, shell};
use crate::demo::Forge;
use anyhow::Result;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Nothing that was made is removed until all is measured, and the cases take turns: ext4 looks at each inode that was
/// freed in the last minutes before it gives out another, so that whoever comes after a removal of 20,000 files pays ten
/// times for each file that it makes.
const ROUNDS: usize = 5;

impl Bench {
    pub(super) fn contexts(&self) -> Result<()> {
        let count = self.scaled(20_000);
        let context = self.files(count)?;
        self.cold(count, &context)?;
        self.unchanged(count, &context)?;
        self.one_changed(count, &context)?;
        self.one_changed_before_run(count, &context)
    }

    fn files(&self, count: usize) -> Result<PathBuf> {
        let context = self.context_of(&format!("files-{count}"), "FROM scratch\nCOPY . /srv/\n")?;
        write_files(&context.join("tree"), count)?;
        Ok(context)
    }

    /// A store of its own, empty.
    pub(super) fn fresh(&self, name: &str) -> Forge {
        Forge { binary: self.forge.binary.clone(), root: self.folder.join("stores").join(name) }
    }

    fn cold(&self, count: usize, context: &Path) -> Result<()> {
        fs::create_dir_all(self.folder.join("stores"))?;
        fs::create_dir_all(self.folder.join("copies"))?;
        let mut times: [Vec<Duration>; 3] = Default::default();
        for round in 0..ROUNDS {
            let copy = self.folder.join("copies").join(round.to_string());
            times[0].push(once(&mut shell(&format!("cp -a {} {}", context.display(), copy.display())))?);
            for (place, compression) in ["gzip", "zstd"].into_iter().enumerate() {
                let forge = self.fresh(&format!("{compression}-{round}"));
                times[place + 1].push(once(&mut self.to_archive(&forge, context, compression))?);
            }
        }
        let [bare, gzip, zstd] = times.map(middle);
        for (compression, forge) in [("gzip", gzip), ("zstd", zstd)] {
            let case = format!("{count} files, cold, to OCI {compression}");
            Row { case: &case, forge, bare, goal: "1.3", bare_job: "cp -a" }.print();
        }
        Ok(())
    }

    fn to_archive(&self, forge: &Forge, context: &Path, compression: &str) -> Command {
        let archive = self.folder.join("oci.tar");
        forge.command(&format!(
            "build -q -o type=oci,dest={},compression={compression} {}",
            archive.display(),
            context.display()
        ))
    }

    fn unchanged(&self, count: usize, context: &Path) -> Result<()> {
        let find = || shell(&format!("find {} -printf '%p %s %T@ %C@ %i\\n' > /dev/null", context.display()));
        let image = || self.forge.command(&format!("build -q -t files {}", context.display()));
        plain(1, image)?;
        let (forge, bare) = (plain(5, image)?, plain(5, find)?);
        let case = format!("{count} files, nothing changed");
        Row { case: &case, forge, bare, goal: "1.5", bare_job: "find -printf (+ 20 ms allowed)" }.print();
        Ok(())
    }

    fn one_changed(&self, count: usize, context: &Path) -> Result<()> {
        let bare = || shell(&format!("tar -C {} -c . | zstd -q -3 > /dev/null", context.display()));
        let mut times: [Vec<Duration>; 2] = Default::default();
        for round in 0..=ROUNDS {
            fs::write(context.join("tree/0/0"), format!("changed {round}"))?;
            let changed = once(&mut self.to_archive(&self.forge, context, "zstd"))?;
            // In the first round everything is compressed for the first time.
            if round > 0 {
                times[0].push(changed);
                times[1].push(once(&mut bare())?);
            }
        }
        let [forge, bare] = times.map(middle);
        let case = format!("{count} files, one changed, to OCI zstd");
        Row { case: &case, forge, bare, goal: "1.3", bare_job: "tar | zstd -3" }.print();
        Ok(())
    }

    /// The case in which a tree is needed.
    fn one_changed_before_run(&self, count: usize, context: &Path) -> Result<()> {
        fs::write(context.join("Dockerfile"), "FROM busybox\nCOPY . /srv/\nRUN true\n")?;
        let mut times: [Vec<Duration>; 2] = Default::default();
        for round in 0..=ROUNDS {
            fs::write(context.join("tree/0/0"), format!("changed again {round}"))?;
            let run = once(&mut self.forge.command(&format!("build -q -t files {}", context.display())))?;
            let copy = self.folder.join("copies").join(format!("run-{round}"));
            let bare = once(&mut shell(&format!("cp -a {} {}", context.display(), copy.display())))?;
            if round > 0 {
                times[0].push(run);
                times[1].push(bare);
            }
        }
        let [forge, bare] = times.map(middle);
        let case = format!("{count} files, one changed, and a RUN");
        Row { case: &case, forge, bare, goal: "1.3", bare_job: "cp -a" }.print();
        Ok(())
    }
}

/// The median.
fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Small files of different sizes, a hundred in a folder, as a checkout has them.
pub(super) fn write_files(folder: &Path, count: usize) -> Result<()> {
    for number in 0..count {
        let folder = folder.join((number / 100).to_string());
        if number % 100 == 0 {
            fs::create_dir_all(&folder)?;
        }
        let text = format!("file {number}: {:x}\n", number.wrapping_mul(2_654_435_761)).repeat(1 + number % 200);
        fs::write(folder.join((number % 100).to_string()), text)?;
    }
    Ok(())
}
