//! L12: random commands for as long as one likes: builds, builds that are killed or cancelled, pushes and pulls, collections
//! of all kinds, other clocks; two at a time. What is right is checked after each command, and again and again that nothing
//! stays: no mount, process, group, lease, scratch folder; the store whole to the byte. The seed repeats the commands.

use crate::command::text;
use crate::demo::Forge;
use crate::registry::Registry;
use crate::{busybox, packages, torture};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const DOCKERFILE: &str = "FROM busybox AS one
ARG NUMBER
RUN echo one $NUMBER > /one
FROM busybox AS two
COPY files /files
RUN --mount=type=cache,target=/cache echo x >> /cache/x; cat /files/* | sha256sum > /two
FROM busybox
ARG NUMBER
COPY --from=one /one /one
COPY --from=two /two /two
RUN cat /one /two > /all; echo $NUMBER > /number
";

/// How many commands run at once.
const WORKERS: u64 = 2;

/// After so many commands of each worker everything is looked at.
const ROUND: usize = 25;

/// A cancelled build ends within this time.
const CANCELLED: Duration = Duration::from_secs(2);

/// Reads `[--seconds N] [--seed N]`; an hour where nothing is said.
pub fn run_words(binary: PathBuf, words: &[&str]) -> Result<()> {
    let (mut seconds, mut seed) = (3600, 1);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} takes a number"))?;
        match *word {
            "--seconds" => seconds = value.parse().context("--seconds takes a number")?,
            "--seed" => seed = value.parse().context("--seed takes a number")?,
            other => bail!("soak: unknown word {other}"),
        }
    }
    run(binary, Duration::from_secs(seconds), seed)
}

/// A few rounds with the binary that the tests made: what CI has time for.
pub fn run_sampled() -> Result<()> {
    match rustix::process::geteuid().is_root() {
        true => run(torture::built_binary()?, Duration::from_secs(20), 1),
        false => {
            println!("SKIPPED (needs root): soak");
            Ok(())
        }
    }
}

/// Runs for so long.
pub fn run(binary: PathBuf, time: Duration, seed: u64) -> Result<()> {
    packages::ensure(packages::TESTS)?;
    ensure!(rustix::process::geteuid().is_root(), "the soak needs root: it builds in sandboxes");
    fs::create_dir_all("target")?;
    let scratch = tempfile::Builder::new().prefix("soak-").tempdir_in("target")?;
    let soak = Soak::prepare(binary, std::path::absolute(scratch.path())?)?;
    let end = Instant::now() + time;
    let mut figures = Vec::new();
    let mut round = 0;
    while Instant::now() < end {
        round += 1;
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS)
                .map(|worker| {
                    let mut random = Random::new(seed ^ (round * WORKERS + worker));
                    let soak = &soak;
                    scope.spawn(move || soak.work(worker, &mut random, end))
                })
                .collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
        })
        .with_context(|| format!("round {round} of seed {seed}"))?;
        figures.push(soak.look().with_context(|| format!("after round {round} of seed {seed}"))?);
    }
    soak.report(round, seed, &figures);
    soak.is_flat(&figures)
}

struct Soak {
    forge: Forge,
    folder: PathBuf,
    registry: Registry,
    /// Whether the binary heeds another clock: a static one does not.
    has_clock: bool,
    commands: AtomicU64,
    killed: AtomicU64,
    cancelled: AtomicU64,
    slowest_cancel: AtomicU64,
    most_memory: AtomicU64,
}

/// What must not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Figures {
    mounts: usize,
    groups: usize,
    interfaces: usize,
    layers: usize,
    store_files: usize,
}

impl Soak {
    fn prepare(binary: PathBuf, folder: PathBuf) -> Result<Self> {
        let is_dynamic = fs::read(&binary)?.windows(14).any(|bytes| bytes == b"/ld-linux-x86-");
        let zero = || AtomicU64::new(0);
        let soak = Self {
            forge: Forge { binary, root: folder.join("store") },
            registry: Registry::start(&folder.join("registry"))?,
            folder,
            has_clock: is_dynamic,
            commands: zero(),
            killed: zero(),
            cancelled: zero(),
            slowest_cancel: zero(),
            most_memory: zero(),
        };
        for worker in 0..WORKERS {
            let files = soak.context(worker).join("files");
            fs::create_dir_all(&files)?;
            (0..30).try_for_each(|name| fs::write(files.join(name.to_string()), name.to_string().repeat(500)))?;
            fs::write(soak.context(worker).join("Dockerfile"), DOCKERFILE)?;
        }
        let archive = soak.folder.join("busybox.tar");
        busybox::write_archive(&archive)?;
        text(&mut soak.forge.command(&format!("load -q -i {}", archive.display())))?;
        Ok(soak)
    }

    fn context(&self, worker: u64) -> PathBuf {
        self.folder.join(format!("context{worker}"))
    }

    /// One worker's commands of a round. Each has names of its own; layers, cache and registry are everybody's.
    fn work(&self, worker: u64, random: &mut Random, end: Instant) -> Result<()> {
        let mut names: BTreeMap<String, u64> = self.names_of(worker)?;
        for _ in 0..ROUND {
            if Instant::now() >= end {
                break;
            }
            self.commands.fetch_add(1, Ordering::Relaxed);
            let name = format!("w{worker}n{}", random.below(3));
            match random.below(12) {
                0..4 => {
                    let number = random.below(6);
                    self.must(&self.build_line(worker, &name, number, random), random)?;
                    names.insert(name.clone(), number);
                    self.check(&name, number)?;
                }
                4 => self.interrupted(worker, random, Signal::KILL)?,
                5 => self.interrupted(worker, random, Signal::INT)?,
                6 => {
                    let lines =
                        ["prune -f", "prune -af", "prune -af --max-used-space 100000", "prune -f --filter until=1s"];
                    self.must(lines[random.below(4) as usize], random)?;
                }
                7 => {
                    if names.remove(&name).is_some() {
                        self.must(&format!("rmi -f {name}"), random)?;
                    }
                }
                8 => self.change_a_file(worker, random)?,
                9 => {
                    if let Some(number) = names.get(&name).copied() {
                        self.send_and_fetch(&name, number, random)?;
                    }
                }
                10 => _ = self.must("du", random)?,
                _ => {
                    if let Some(number) = names.get(&name) {
                        self.check(&name, *number)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn build_line(&self, worker: u64, name: &str, number: u64, random: &mut Random) -> String {
        let cold = if random.below(4) == 0 { "--no-cache " } else { "" };
        format!("build -q {cold}--build-arg NUMBER={number} -t {name} {}", self.context(worker).display())
    }

    fn change_a_file(&self, worker: u64, random: &mut Random) -> Result<()> {
        let path = self.context(worker).join("files").join(random.below(30).to_string());
        Ok(fs::write(path, random.below(1000).to_string().repeat(300))?)
    }

    fn send_and_fetch(&self, name: &str, number: u64, random: &mut Random) -> Result<()> {
        let remote = format!("{}/{name}:1", self.registry.authority);
        self.must(&format!("tag {name} {remote}"), random)?;
        self.must(&format!("push -q {remote}"), random)?;
        self.must(&format!("rmi -f {remote}"), random)?;
        self.must(&format!("pull -q {remote}"), random)?;
        self.check(&remote, number)?;
        self.must(&format!("rmi -f {remote}"), random).map(drop)
    }

    /// A build that does not come to its end, most often.
    fn interrupted(&self, worker: u64, random: &mut Random, signal: Signal) -> Result<()> {
        let number = 100 + random.below(50);
        let line = self.build_line(worker, &format!("w{worker}gone"), number, random);
        let mut child = self.forge.command(&line).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::thread::sleep(Duration::from_millis(random.below(400)));
        let begin = Instant::now();
        if child.try_wait()?.is_none()
            && let Some(process) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
        {
            kill_process(process, signal)?;
            if signal == Signal::KILL { &self.killed } else { &self.cancelled }.fetch_add(1, Ordering::Relaxed);
        }
        child.wait()?;
        let took = begin.elapsed();
        self.slowest_cancel.fetch_max(took.as_millis() as u64, Ordering::Relaxed);
        // Others compete for the processors.
        ensure!(took < CANCELLED * 5, "a build took {took:?} to end after {signal:?}");
        Ok(())
    }

    /// Runs a command, at another time now and then.
    fn must(&self, line: &str, random: &mut Random) -> Result<String> {
        let clocks = ["-400d", "-1h", "+30s", "+400d"];
        let chosen = random.below(12) as usize;
        let mut forge = self.forge.command(line);
        if let (true, Some(clock)) = (self.has_clock, clocks.get(chosen)) {
            let mut faketime = Command::new("faketime");
            faketime.args(["-f", clock]).arg(&self.forge.binary).args(line.split_whitespace());
            faketime.env("FORGE_ROOT", &self.forge.root).env("DONT_FAKE_MONOTONIC", "1");
            forge = faketime;
        }
        let ended = self.measured(&mut forge)?;
        ensure!(ended.status.success(), "{line}: {}\n{}", ended.status, String::from_utf8_lossy(&ended.stderr));
        Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
    }

    /// Runs a command and looks how much memory it takes, every few milliseconds.
    fn measured(&self, forge: &mut Command) -> Result<Output> {
        let child = forge.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let status = format!("/proc/{}/status", child.id());
        let watched = std::thread::spawn(move || {
            let mut most = 0;
            while let Ok(text) = fs::read_to_string(&status) {
                let Some(line) = text.lines().find_map(|line| line.strip_prefix("VmHWM:")) else { break };
                most = line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(most);
                std::thread::sleep(Duration::from_millis(20));
            }
            most
        });
        let ended = child.wait_with_output()?;
        self.most_memory.fetch_max(watched.join().unwrap_or(0), Ordering::Relaxed);
        Ok(ended)
    }

    fn check(&self, name: &str, number: u64) -> Result<()> {
        let line = format!("run --rm --network none {name} cat /one /number");
        let found = text(&mut self.forge.command(&line))?;
        ensure!(found == format!("one {number}\n{number}\n"), "{name} holds {found:?} instead of {number}");
        Ok(())
    }

    /// What earlier rounds left of a worker's names.
    fn names_of(&self, worker: u64) -> Result<BTreeMap<String, u64>> {
        let listed = text(&mut self.forge.command("images --format {{.Repository}}"))?;
        let mine = listed.lines().filter(|name| name.starts_with(&format!("w{worker}n")));
        let number = |name: &str| -> Result<(String, u64)> {
            let line = format!("run --rm --network none {name} cat /number");
            Ok((name.to_owned(), text(&mut self.forge.command(&line))?.trim().parse()?))
        };
        mine.map(number).collect()
    }

    /// Between two rounds nothing runs: whatever is there then has stayed.
    fn look(&self) -> Result<Figures> {
        // What killed ones left is removed by the next that opens the store and makes a container.
        text(&mut self.forge.command("run --rm --network none busybox true"))?;
        let verified = text(&mut self.forge.command("store verify --full"))?;
        // A process that was killed before it had a record leaves a file, which the next collection removes.
        ensure!(verified.contains(": whole"), "{verified}");
        let store = self.forge.root.to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo")?.lines().filter(|line| line.contains(&store)).count();
        let interfaces = fs::read_dir("/sys/class/net")?.flatten();
        let interfaces = interfaces.filter(|entry| entry.file_name().to_string_lossy().starts_with("forge")).count();
        // The size of what is kept depends on what was built last; that nothing else is kept does not.
        text(&mut self.forge.command("prune -af"))?;
        let verified = text(&mut self.forge.command("store verify"))?;
        ensure!(verified.trim_end().ends_with(": whole"), "after a collection: {verified}");
        let leaks = self.forge.command("debug leaks").output()?;
        let leaks = String::from_utf8_lossy(&leaks.stdout).into_owned();
        let groups = leaks.lines().filter(|line| line.contains(&store)).count();
        let layers = fs::read_dir(self.forge.root.join("layers"))?.count();
        let count = |name: &str| fs::read_dir(self.forge.root.join(name)).map_or(0, |entries| entries.count());
        let store_files = ["scratch", "leases", "locks", "flights", "run"].iter().map(|name| count(name)).sum();
        let figures = Figures { mounts, groups, interfaces, layers, store_files };
        ensure!(mounts == 0 && groups == 0, "{figures:?}\n{leaks}");
        Ok(figures)
    }

    fn report(&self, rounds: u64, seed: u64, figures: &[Figures]) {
        let number = |of: &AtomicU64| of.load(Ordering::Relaxed);
        println!(
            "L12: seed {seed}, {rounds} rounds, {} commands, {} killed, {} cancelled (slowest {} ms), most memory {} MB",
            number(&self.commands),
            number(&self.killed),
            number(&self.cancelled),
            number(&self.slowest_cancel),
            number(&self.most_memory) / 1000,
        );
        if let (Some(first), Some(last)) = (figures.first(), figures.last()) {
            println!("L12: first {first:?}\nL12: last  {last:?}");
        }
    }

    /// The last round leaves no more than any of the first did.
    fn is_flat(&self, figures: &[Figures]) -> Result<()> {
        let Some(last) = figures.last() else { bail!("there was no time for a round") };
        let most = |of: fn(&Figures) -> usize| figures.iter().take(5).map(of).max().unwrap_or(0);
        ensure!(last.layers <= most(|it| it.layers) + 20, "layers stay: {figures:?}");
        ensure!(last.store_files <= most(|it| it.store_files) + 10, "files stay: {figures:?}");
        Ok(())
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
