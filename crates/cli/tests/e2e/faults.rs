//! Disks that are full, files that cannot be opened, clocks that jump: a clear error, a store that stays whole, and the next
//! command works.

use crate::fixture::{Forge, Outcome, have, run, system};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// An ext4 file system in a file, with a store on it.
struct SmallDisk {
    forge: Option<Forge>,
    folder: TempDir,
}

impl SmallDisk {
    /// `None` after saying that the test is skipped.
    fn new(test: &str, megabytes: u32, options: &[&str]) -> Option<Self> {
        let forge = Forge::privileged_empty(test)?;
        if !have(test, &["mkfs.ext4", "mount", "umount"]) {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("disk-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = Self { forge: None, folder };
        let (file, mount) = (disk.folder.path().join("disk"), disk.mount());
        fs::create_dir(&mount).unwrap();
        fs::File::create(&file).unwrap().set_len(u64::from(megabytes) << 20).unwrap();
        let file = file.to_str().unwrap();
        system(&[&["mkfs.ext4", "-q", "-m", "0"], options, &[file]].concat());
        system(&["mount", "-o", "loop", file, mount.to_str().unwrap()]);
        fs::remove_dir(mount.join("lost+found")).unwrap();
        symlink(&mount, forge.store()).unwrap();
        Some(Self { forge: Some(forge), folder: disk.into_folder() })
    }

    /// Takes the folder without unmounting.
    fn into_folder(mut self) -> TempDir {
        std::mem::replace(&mut self.folder, TempDir::new().unwrap())
    }

    fn mount(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    fn forge(&self) -> &Forge {
        self.forge.as_ref().unwrap()
    }

    /// Fills the disk up to so many bytes.
    fn fill(&self, left: u64) {
        let found = rustix::fs::statvfs(self.mount()).unwrap();
        let free = found.f_bavail * found.f_frsize;
        let ballast = fs::File::create(self.mount().join("ballast")).unwrap();
        let bytes = free.saturating_sub(left + 32 * 1024);
        if bytes > 0 {
            rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
        }
    }

    fn empty(&self) {
        fs::remove_file(self.mount().join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Looks through the store, which must be there still.
        drop(self.forge.take());
        let mount = self.mount();
        if mount.exists() {
            let _ = Command::new("umount").arg(&mount).status();
        }
    }
}

/// It ended by itself, with an error line or without one, and did not panic.
#[track_caller]
fn ended_well(outcome: &Outcome) {
    let told = outcome.stderr.lines().any(|line| line.starts_with("ERROR: ") || line.starts_with("forge: "));
    assert!(matches!(outcome.code, 0 | 1 | 125) && (told || outcome.code == 0), "{outcome:?}");
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
}

const SMALL: &str = "FROM busybox\nCOPY file /file\nRUN head -c 600000 /dev/zero > /zeros\nRUN echo done > /done\n";

fn small_context(forge: &Forge) -> String {
    forge.context("small", &[("Dockerfile", SMALL), ("file", &"x".repeat(300_000))])
}

#[test]
fn privileged_f09_a_full_disk_is_named_and_the_next_build_works() {
    let Some(disk) = SmallDisk::new("f09_a_full_disk", 64, &[]) else { return };
    let forge = disk.forge();
    forge.load_base();
    let big = forge.context("big", &[("Dockerfile", "FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count=80\n")]);
    let failed = forge.fails(1, &["build", "-t", "big", &big]);
    assert!(failed.stderr.contains("No space left on device"), "{failed:?}");
    assert!(failed.stderr.contains("the file system of ") && failed.stderr.contains("`forge prune -a`"), "{failed:?}");
    fs::write(forge.path("large"), vec![b'x'; 80_000_000]).unwrap();
    let large = forge.context("copy", &[("Dockerfile", "FROM busybox\nCOPY large /\n")]);
    fs::rename(forge.path("large"), Path::new(&large).join("large")).unwrap();
    let failed = forge.fails(1, &["build", "-t", "big", &large]);
    assert!(failed.stderr.contains("the file system of "), "{failed:?}");

    let small = small_context(forge);
    for left in [0, 50_000, 200_000, 500_000, 900_000, 1_500_000, 3_000_000] {
        disk.fill(left);
        ended_well(&forge.forge(&["build", "--no-cache", "-t", "small", &small]));
        ended_well(&forge.forge(&["images"]));
        disk.empty();
        forge.ok(&["build", "-q", "-t", "small", &small]);
        assert_eq!(forge.shell("small", "cat /done; wc -c < /zeros"), "done\n600000\n", "with {left} bytes left");
        forge.ok(&["store", "verify", "--full"]);
        forge.ok(&["rmi", "small"]);
    }
}

#[test]
fn privileged_f09_prune_works_on_a_full_disk() {
    let Some(disk) = SmallDisk::new("f09_prune_works_on_a_full_disk", 64, &[]) else { return };
    let forge = disk.forge();
    forge.load_base();
    let small = small_context(forge);
    forge.ok(&["build", "-q", "-o", "type=cacheonly", &small]);
    disk.fill(0);
    // The very last blocks too.
    fs::write(disk.mount().join("more"), vec![1; 1 << 20]).unwrap_err();
    let pruned = forge.ok(&["prune", "-af"]).stdout;
    assert!(pruned.contains("Total reclaimed space: "), "{pruned}");
    let free = rustix::fs::statvfs(disk.mount()).unwrap();
    assert!(free.f_bavail * free.f_frsize > 500_000, "{}", free.f_bavail);
    disk.empty();
    fs::remove_file(disk.mount().join("more")).unwrap();
    forge.ok(&["build", "-q", "-t", "small", &small]);
}

#[test]
fn privileged_f10_a_disk_without_inodes_is_named_and_the_next_build_works() {
    let Some(disk) = SmallDisk::new("f10_a_disk_without_inodes", 64, &["-N", "1500"]) else { return };
    let forge = disk.forge();
    forge.load_base();
    let step = "RUN for i in $(seq 3000); do echo x > /file$i || exit 1; done";
    let many = forge.context("many", &[("Dockerfile", &format!("FROM busybox\n{step}\n"))]);
    let failed = forge.fails(1, &["build", "-t", "many", &many]);
    assert!(failed.stderr.contains("No space left on device"), "{failed:?}");
    assert!(failed.stderr.contains(" files, of which "), "{failed:?}");
    let names: Vec<String> = (0..3000).map(|number| format!("files/{number}")).collect();
    let mut files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
    files.push(("Dockerfile", "FROM busybox\nCOPY files /files\n"));
    ended_well(&forge.forge(&["build", "-t", "many", &forge.context("copy", &files)]));
    forge.ok(&["store", "verify", "--full"]);
    let small = small_context(forge);
    forge.ok(&["build", "-q", "-t", "small", &small]);
    assert_eq!(forge.shell("small", "cat /done"), "done\n");
}

/// A command under a limit of `prlimit`.
fn limited(forge: &Forge, limit: &str, words: &[&str]) -> Outcome {
    let inner = forge.command(words);
    let mut outer = Command::new("prlimit");
    outer.arg(limit).arg(inner.get_program()).args(inner.get_args()).env_clear().current_dir(forge.path(""));
    outer.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    run(&mut outer, b"")
}

#[test]
fn privileged_f12_few_descriptors_are_an_error_or_enough() {
    let Some(forge) = Forge::privileged("f12_few_descriptors") else { return };
    let names: Vec<String> = (0..2000).map(|number| format!("files/{}/{number}", number % 40)).collect();
    let mut files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
    let steps: String = (0..20).map(|step| format!("RUN echo {step} > /{step}\n")).collect();
    let text = format!("FROM busybox\nCOPY files /files\n{steps}RUN ls -R /files | wc -l > /count\n");
    files.push(("Dockerfile", &text));
    let context = forge.context("context", &files);
    for count in [16, 24, 32, 48, 64, 128, 256] {
        let limit = format!("--nofile={count}:{count}");
        let built = limited(&forge, &limit, &["build", "--no-cache", "-t", "x", &context]);
        ended_well(&built);
        assert!(built.code == 0 || count < 256, "{built:?}");
        forge.ok(&["store", "verify", "--full"]);
    }
    forge.ok(&["build", "-q", "-t", "x", &context]);
    assert_eq!(forge.shell("x", "cat /19 /count"), "19\n2121\n");
}

#[test]
fn privileged_f11_a_limit_of_file_sizes_is_an_error() {
    let Some(forge) = Forge::privileged("f11_a_limit_of_file_sizes") else { return };
    let context =
        forge.context("context", &[("Dockerfile", "FROM busybox\nCOPY file /\n"), ("file", &"x".repeat(3_000_000))]);
    for bytes in [0, 4096, 100_000, 1_000_000] {
        ended_well(&limited(&forge, &format!("--fsize={bytes}:{bytes}"), &["build", "-t", "x", &context]));
        forge.ok(&["store", "verify", "--full"]);
    }
    forge.ok(&["build", "-q", "-t", "x", &context]);
    assert_eq!(forge.shell("x", "wc -c < /file"), "3000000\n");
}

#[test]
fn privileged_f30_a_read_only_store_is_refused_in_a_line() {
    let Some(disk) = SmallDisk::new("f30_a_read_only_store", 64, &[]) else { return };
    let forge = disk.forge();
    forge.load_base();
    let small = small_context(forge);
    let mount = disk.mount();
    system(&["mount", "-o", "remount,ro", mount.to_str().unwrap()]);
    for words in
        [&["build", "-t", "x", &small][..], &["images"], &["prune", "-af"], &["run", "--rm", "busybox", "true"]]
    {
        let outcome = forge.forge(words);
        ended_well(&outcome);
        assert!(outcome.code == 0 || outcome.stderr.contains("ead-only"), "{words:?}: {outcome:?}");
    }
    system(&["mount", "-o", "remount,rw", mount.to_str().unwrap()]);
    forge.ok(&["build", "-q", "-t", "x", &small]);
    assert_eq!(forge.shell("x", "cat /done"), "done\n");
}

/// A command at another time.
fn at(forge: &Forge, offset: &str, words: &[&str]) -> Outcome {
    let inner = forge.command(words);
    let mut outer = Command::new("faketime");
    outer.args(["-f", offset]).arg(inner.get_program()).args(inner.get_args()).env_clear();
    outer.current_dir(forge.path("")).envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // Waiting is done by the true clock.
    outer.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
    run(&mut outer, b"")
}

#[test]
fn privileged_f21_a_clock_that_jumps_makes_nothing_old_and_nothing_wrong() {
    let Some(forge) = Forge::privileged("f21_a_clock_that_jumps") else { return };
    // A static binary has a clock that nobody can replace.
    if !have("f21_a_clock_that_jumps", &["faketime"]) || std::env::var_os("FORGE_BINARY").is_some() {
        return;
    }
    let text = "FROM busybox\nCOPY file /file\nRUN cat /file > /copy\n";
    let context = forge.context("context", &[("Dockerfile", text), ("file", "one")]);
    forge.ok(&["build", "-q", "-t", "x", &context]);
    for (turn, offset) in ["-10y", "+10y", "-1h", "+0", "-30y"].iter().enumerate() {
        let content = format!("turn {turn}");
        fs::write(forge.path("context/file"), &content).unwrap();
        // Of a time to come, as files are after the clock was set back.
        let future = std::time::SystemTime::now() + std::time::Duration::from_secs(400 * 86_400);
        fs::File::open(forge.path("context/file")).unwrap().set_modified(future).unwrap();
        let built = at(&forge, offset, &["build", "-t", "x", &context]);
        assert_eq!(built.code, 0, "{offset}: {}", built.stderr);
        assert_eq!(forge.shell("x", "cat /copy"), content, "{offset}");
        let again = at(&forge, "+1d", &["build", "--progress", "plain", "-t", "x", &context]);
        assert_eq!((again.code, again.stderr.contains("CACHED")), (0, true), "{offset}: {}", again.stderr);
        for words in [&["du"][..], &["prune", "-f", "--filter", "until=1h"], &["images"]] {
            let outcome = at(&forge, offset, words);
            assert_eq!(outcome.code, 0, "{offset} {words:?}: {}", outcome.stderr);
        }
        assert_eq!(forge.shell("x", "cat /copy"), content, "{offset}");
    }
}

/// P19 and F08: the order of system calls by which things come into the store. Whatever a disk makes of writes that are not
/// synced (P18 tries that), nothing is acknowledged before this order is complete.
///
/// Fails when `make_durable` does not sync, or the id is printed before the name is given.
#[test]
fn privileged_p19_f08_files_are_moved_into_place_synced_named_and_only_then_acknowledged() {
    let Some(forge) = Forge::privileged("p19_f08_the_order_of_calls") else { return };
    if !have("p19_f08_the_order_of_calls", &["strace"]) {
        return;
    }
    let small = small_context(&forge);
    let (log, inner) = (forge.path("calls"), forge.command(&["build", "-q", "-t", "small", &small]));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-qq", "-s", "200", "-e", "signal=none", "-o", log.to_str().unwrap()]);
    strace.args(["-e", "trace=openat,rename,renameat,renameat2,write,pwrite64,fsync,fdatasync,syncfs"]);
    strace.arg(inner.get_program()).args(inner.get_args()).env_clear().current_dir(forge.path(""));
    strace.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let built = run(&mut strace, b"");
    assert_eq!(built.code, 0, "{}", built.stderr);
    let text = fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once(' ')?.1.trim_start())).collect();
    let store = forge.store().canonicalize().unwrap();
    let place = |name: &str| format!("{}/{name}/", store.display());
    let places = ["blobs", "layers", "names"].map(place);
    let calls = |names: &[&str]| -> Vec<usize> {
        let is_one =
            |line: &str| names.iter().any(|name| line.strip_prefix(name).is_some_and(|it| it.starts_with('(')));
        lines.iter().enumerate().filter(|(_, line)| is_one(line)).map(|(number, _)| number).collect()
    };

    // Nothing is written where it is found by its name.
    for number in calls(&["openat"]) {
        let line = lines[number];
        let opened = line.split('"').nth(1).unwrap_or_default();
        let writes = line.contains("O_WRONLY") || line.contains("O_RDWR") || line.contains("O_CREAT");
        assert!(!writes || !places.iter().any(|place| opened.starts_with(place)), "{line}");
    }
    let moved = calls(&["rename", "renameat", "renameat2"]);
    let into_place = |number: &&usize| {
        let to = lines[**number].rsplit('"').nth(1).unwrap_or_default();
        places.iter().any(|place| to.starts_with(place))
    };
    let moved: Vec<usize> = moved.iter().filter(into_place).copied().collect();
    assert!(moved.len() >= 5, "layers, blobs and a name: {moved:?}");
    let synced = *calls(&["syncfs"]).last().expect("the store is synced");
    let of_log = |number: &usize| lines[*number].contains("forge.db-wal");
    let recorded = calls(&["fsync", "fdatasync"]).into_iter().rfind(of_log).expect("the name is synced");
    let told = |number: &usize| lines[*number].starts_with("write(1<") && lines[*number].contains("sha256:");
    let acknowledged = calls(&["write"]).into_iter().find(told).expect("the image's id is printed");
    let last = *moved.last().unwrap();
    assert!(last < synced && synced < recorded && recorded < acknowledged, "{last} {synced} {recorded} {acknowledged}");
}
