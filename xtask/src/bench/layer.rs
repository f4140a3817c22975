//! One large layer: six copies of a system's files and noise, as it leaves to a layout.

use super::cases::{Bench, Row};
use super::measure::{Used, median, plain, settle, shell, used};
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// What a layer may take while it is compressed.
const MEGABYTES: u64 = 100;

impl Bench {
    pub(super) fn layer(&self) -> Result<()> {
        let megabytes = self.scaled(900);
        let context = self.context_of("layer", "FROM scratch\nCOPY data /\n")?;
        let data = context.join("data");
        collect(&data, megabytes as u64 * 1_000_000)?;
        plain(1, || self.forge.command(&format!("build -q -t layer {}", context.display())))?;
        let mut first = None;
        for (compression, compressor, goal, bytes) in
            [("gzip", "pigz -6", "0.25", "1.02"), ("zstd", "zstd -q -3 -T2", "1.1", "1.03")]
        {
            settle()?;
            let forge = self.to_layout(&context, compression)?;
            first.get_or_insert(forge);
            let bare_file = self.folder.join("bare");
            let line = format!("tar -C {} -c . | {compressor} > {}", data.display(), bare_file.display());
            let bare = median(1, settle, || shell(&line))?;
            let case = format!("{megabytes} MB layer to OCI {compression}");
            Row { case: &case, forge: forge.time, bare, goal, bare_job: &format!("tar | {compressor}") }.print();
            let theirs = fs::metadata(&bare_file)?.len();
            print_ratio("    bytes", fs::metadata(self.blob(compression)?)?.len(), theirs, bytes);
            let most = format!("{MEGABYTES} MB");
            println!("{:<44} {:>7} MB {:>10} {:>7} {most:>8}", "    memory", forge.kilobytes / 1024, "", "");
        }
        let first = first.context("there are two compressions")?;
        let again = self.to_layout(&context, "gzip")?;
        print_work("    processor time, nothing changed", again, first, "0.05");
        self.one_percent_changed(&context, first)
    }

    /// Exports it with the chunks of the last time at hand.
    fn to_layout(&self, context: &Path, compression: &str) -> Result<Used> {
        let layout = self.folder.join(format!("layout-{compression}"));
        let (layout, context) = (layout.display(), context.display());
        let line = format!("build -q -o type=oci,tar=false,dest={layout},compression={compression} {context}");
        used(&mut self.forge.command(&line))
    }

    fn blob(&self, compression: &str) -> Result<PathBuf> {
        largest_path(&self.folder.join(format!("layout-{compression}")))
    }

    /// One file in a hundred, those that lie together: a package that was updated.
    fn one_percent_changed(&self, context: &Path, first: Used) -> Result<()> {
        let blob = self.blob("gzip")?;
        let before: HashSet<[u8; 32]> = members(&blob)?.into_iter().collect();
        fs::remove_file(blob)?;
        let copy = context.join("data/copy-3");
        let mut files: Vec<PathBuf> = fs::read_dir(&copy)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        files.sort();
        let (mut left, mut changed) = (fs::metadata(context.join("data/noise"))?.len() / 25, 0);
        for file in files {
            let length = fs::metadata(&file)?.len();
            if length > left {
                break;
            }
            fs::write(&file, [fs::read(&file)?, b"updated".to_vec()].concat())?;
            (left, changed) = (left - length, changed + 1);
        }
        ensure!(changed > 0, "no file was small enough to be changed");
        let forge = self.to_layout(context, "gzip")?;
        let after = members(&self.blob("gzip")?)?;
        let fresh = after.iter().filter(|member| !before.contains(*member)).count();
        print_ratio("    chunks that are others, 1 % changed", fresh as u64, after.len() as u64, "0.05");
        print_work("    processor time, 1 % changed", forge, first, "");
        Ok(())
    }
}

/// What was calculated beside what was calculated at first.
fn print_work(case: &str, ours: Used, first: Used, goal: &str) {
    let (ours, first) = (ours.calculated, first.calculated);
    let ratio = ours.as_secs_f64() / first.as_secs_f64();
    println!("{case:<44} {:>7} ms {:>7} ms {ratio:>7.3} {goal:>8}", ours.as_millis(), first.as_millis());
}

fn print_ratio(case: &str, ours: u64, theirs: u64, goal: &str) {
    println!("{case:<44} {ours:>10} {theirs:>10} {:>7.3} {goal:>8}", ours as f64 / theirs as f64);
}

/// The members of a layer that forge compressed, by their digests. They say in their headers how long they are.
fn members(blob: &Path) -> Result<Vec<[u8; 32]>> {
    let mut bytes = Vec::new();
    File::open(blob)?.read_to_end(&mut bytes)?;
    let (mut rest, mut members) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let length = rest.get(16..20).filter(|_| rest[12..14] == *b"FG").context("a member without its length")?;
        let length = u32::from_le_bytes(length.try_into()?) as usize;
        let (member, behind) = rest.split_at_checked(length).context("a member that is cut off")?;
        members.push(Sha256::digest(member).into());
        rest = behind;
    }
    Ok(members)
}

/// Six copies of programs, libraries and texts of this machine, and noise for two ninths of the bytes.
fn collect(folder: &Path, wanted: u64) -> Result<()> {
    let noise = wanted / 9 * 2;
    let of_each = (wanted - noise) / 6;
    let sources = ["/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/lib/python3.11", "/usr/share/doc"];
    for copy in 0..6 {
        let copy = folder.join(format!("copy-{copy}"));
        fs::create_dir_all(&copy)?;
        let mut have = 0;
        for (number, source) in sources.iter().enumerate() {
            let limit = of_each * (number as u64 + 1) / sources.len() as u64;
            gather(Path::new(source), &format!("{number}"), &copy, (&mut have, limit))?;
        }
        ensure!(have > of_each / 2, "this machine has too few files to make a layer from");
    }
    let mut random = File::open("/dev/urandom")?.take(noise);
    std::io::copy(&mut random, &mut File::create(folder.join("noise"))?)?;
    Ok(())
}

/// Copies regular files of a folder and those in it, until there are enough bytes.
fn gather(from: &Path, prefix: &str, to: &Path, (have, limit): (&mut u64, u64)) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(from).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for entry in entries {
        let metadata = entry.symlink_metadata()?;
        let name = format!("{prefix}-{}", entry.file_name().unwrap_or_default().to_string_lossy());
        if metadata.is_dir() && name.len() < 150 {
            gather(&entry, &name, to, (have, limit))?;
        } else if metadata.is_file() && *have + metadata.len() <= limit && name.len() < 250 {
            *have += fs::copy(&entry, to.join(name)).unwrap_or(0);
        }
    }
    Ok(())
}

/// The path of the largest file in a folder.
pub(super) fn largest_path(folder: &Path) -> Result<PathBuf> {
    let mut largest = (0, PathBuf::new());
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if metadata.len() > largest.0 {
                largest = (metadata.len(), entry.path());
            }
        }
    }
    Ok(largest.1)
}
