//! Times empty steps in the sandbox beside `unshare -mpfiu --mount-proc true`, in turns within the same run, since
//! machines drift.
//!
//! `cargo bench -p forge-executor --bench step -- [rounds]`; needs root, util-linux and Debian's busybox-static.
#![allow(clippy::print_stdout)]

use forge_executor::{
    Capabilities, ContainerId, Executor, NamespaceExecutor, ProcessSpec, RootFs, SandboxSpec, Seccomp, Stdio,
};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    forge_executor::init_if_requested(|folder| drop(std::fs::remove_dir_all(folder)));
    let rounds = std::env::args().filter_map(|argument| argument.parse().ok()).next().unwrap_or(100);
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED (needs root): step");
        return Ok(());
    }
    let bench = Bench::new()?;
    let bare = |spec: SandboxSpec| SandboxSpec {
        seccomp: Seccomp::Unconfined,
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        process: ProcessSpec { capabilities: Capabilities::ALL, ..spec.process },
        ..spec
    };
    let mut steps: [(&str, Vec<Duration>); 4] =
        ["forge step", "forge step, no masks or filter", "forge step, plain directory", "unshare true"]
            .map(|name| (name, Vec::new()));
    for round in 0..rounds {
        steps[0].1.push(bench.overlay_step(round, |spec| spec)?);
        steps[1].1.push(bench.overlay_step(round + rounds, bare)?);
        steps[2].1.push(bench.directory_step()?);
        steps[3].1.push(unshare()?);
    }
    for (name, times) in &mut steps {
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        println!("{name:32} median {:.2} ms, p10 {:.2} ms, p90 {:.2} ms", at(50), at(10), at(90));
    }
    Ok(())
}

struct Bench {
    directory: tempfile::TempDir,
    executor: NamespaceExecutor,
}

impl Bench {
    fn new() -> Outcome<Self> {
        let directory = tempfile::tempdir()?;
        let base = directory.path().join("base");
        for name in ["bin", "proc", "dev", "sys", "etc", "tmp"] {
            std::fs::create_dir_all(base.join(name))?;
        }
        std::fs::copy("/bin/busybox", base.join("bin/true"))?;
        spread(&directory.path().join("steps"))?;
        let executor = NamespaceExecutor::new(&directory.path().join("run"))?;
        Ok(Self { directory, executor })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn overlay_step(&self, number: usize, change: impl Fn(SandboxSpec) -> SandboxSpec) -> Outcome<Duration> {
        let (upper, work) = (self.path(&format!("steps/upper{number}")), self.path(&format!("steps/work{number}")));
        std::fs::create_dir(&upper)?;
        std::fs::create_dir(&work)?;
        let root = RootFs::Overlay { lower: vec![self.path("base")], upper, work, volatile: true };
        self.step(&change(SandboxSpec::for_root(root, ProcessSpec::new(["/bin/true"]))))
    }

    fn directory_step(&self) -> Outcome<Duration> {
        let root = RootFs::Directory(self.path("base"));
        self.step(&SandboxSpec::for_root(root, ProcessSpec::new(["/bin/true"])))
    }

    fn step(&self, spec: &SandboxSpec) -> Outcome<Duration> {
        let begin = Instant::now();
        let container = self.executor.create(&ContainerId::new("bench")?, spec, Stdio::default())?;
        container.start()?;
        let status = container.wait()?;
        container.delete()?;
        let elapsed = begin.elapsed();
        match status.code() {
            0 => Ok(elapsed),
            code => Err(format!("the step ended with {code}").into()),
        }
    }
}

/// Makes a directory whose subdirectories ext4 puts into different block groups.
///
/// In one group each new inode steps over those deleted there within the last minutes, and an overlay mount makes and
/// deletes half a dozen: without this the measured times grow with every round.
fn spread(path: &Path) -> Outcome<()> {
    std::fs::create_dir(path)?;
    let directory = std::fs::File::open(path)?;
    let flags = rustix::fs::ioctl_getflags(&directory);
    if let Ok(flags) = flags {
        rustix::fs::ioctl_setflags(&directory, flags | rustix::fs::IFlags::TOPDIR)?;
    }
    Ok(())
}

fn unshare() -> Outcome<Duration> {
    let begin = Instant::now();
    let status = Command::new("unshare").args(["-mpfiu", "--mount-proc", "true"]).status()?;
    let elapsed = begin.elapsed();
    match status.success() && Path::new("/proc/self").exists() {
        true => Ok(elapsed),
        false => Err("unshare failed".into()),
    }
}
