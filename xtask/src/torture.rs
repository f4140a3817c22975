//! F01–F05: forge killed at its n-th system call, for many n, in a build, a pull, a push, a save, a load and a prune.
//!
//! After each kill nothing may run on and nothing be mounted; the store must be whole to the byte; the same command must
//! then succeed, and have the result that it has undisturbed.

use crate::command::{command, output, text};
use crate::demo::Forge;
use crate::registry::Registry;
use crate::{busybox, packages};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The calls that change something, or hand a change to somebody else: between two of them a kill makes no difference.
const CALLS: &str = "openat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,write,pwrite64,fsync,fdatasync,syncfs,\
ftruncate,flock,linkat,symlinkat,mknodat,fchmod,fchownat,utimensat,copy_file_range,clone3,clone,mount,move_mount,umount2,\
sendto,sendmsg";

/// What a process that was killed may take to take its children along.
const PATIENCE: Duration = Duration::from_secs(5);

const DOCKERFILE: &str = "FROM busybox AS a
RUN mkdir /data && for i in 1 2 3 4 5 6 7 8; do echo $i > /data/$i; done
FROM busybox AS b
COPY files /files
RUN --mount=type=cache,target=/cache echo x > /cache/x; echo b > /b
FROM busybox
COPY --from=a /data /data
COPY --from=b /b /files/ /from-b/
RUN rm /data/1 && ln /data/2 /data/two
";

/// One command to be killed, and how the store gets to where it begins.
struct Case {
    name: &'static str,
    /// Commands of forge's before each run; each must succeed.
    before: &'static [&'static str],
    /// What is killed.
    killed: &'static str,
    /// What prints the result; equal after every kill and repeat.
    result: &'static str,
}

/// The n-th call of a name that a thread makes.
struct Call {
    name: String,
    number: usize,
}

impl Call {
    fn new(name: &str, number: usize) -> Self {
        Self { name: name.to_owned(), number }
    }
}

/// `REGISTRY` and `FOLDER` stand for themselves.
const CASES: &[Case] = &[
    Case {
        name: "build",
        before: &["rmi -f app", "prune -af"],
        killed: "build -q --build-arg SOURCE_DATE_EPOCH=1 -o type=image,rewrite-timestamp=true -t app FOLDER/context",
        result: "inspect -f {{.RootFS.Layers}} app",
    },
    Case {
        name: "pull",
        before: &["rmi -f REGISTRY/pulled:1", "prune -af"],
        killed: "pull -q REGISTRY/pulled:1",
        result: "inspect -f {{.RootFS.Layers}} REGISTRY/pulled:1",
    },
    Case {
        name: "push",
        before: &["build -q --no-cache -t REGISTRY/pushed:1 FOLDER/context"],
        killed: "push -q REGISTRY/pushed:1",
        result: "inspect -f {{.Os}} REGISTRY/pushed:1",
    },
    Case {
        name: "save",
        before: &["build -q -t app FOLDER/context"],
        killed: "save -o FOLDER/saved.tar app",
        result: "load -q -i FOLDER/saved.tar",
    },
    Case {
        name: "load",
        before: &["rmi -f pulled:1", "prune -af"],
        killed: "load --replace -q -i FOLDER/pulled.tar",
        result: "inspect -f {{.RootFS.Layers}} pulled:1",
    },
    Case {
        name: "prune",
        before: &["build -q -t app FOLDER/context", "rmi -f app"],
        killed: "prune -af",
        result: "images -q busybox",
    },
];

/// A few points of each case, with the binary that the tests made: what CI has time for.
pub fn run_sampled() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED (needs root): torture");
        return Ok(());
    }
    let folder = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
    let built = Path::new(&folder).join("debug/forge");
    let binary = std::env::var_os("FORGE_BINARY").map_or(built, PathBuf::from);
    run(std::path::absolute(binary)?, 4, &[])
}

/// Kills each case, or those of these names, at so many points.
pub fn run(binary: PathBuf, points: usize, names: &[&str]) -> Result<()> {
    packages::ensure(packages::TESTS)?;
    ensure!(rustix::process::geteuid().is_root(), "torture needs root: it builds in sandboxes under strace");
    fs::create_dir_all("target")?;
    let scratch = tempfile::Builder::new().prefix("torture-").tempdir_in("target")?;
    let bench = Bench::prepare(binary, std::path::absolute(scratch.path())?)?;
    let mut failures = 0;
    for case in CASES.iter().filter(|case| names.is_empty() || names.contains(&case.name)) {
        failures += bench.torture(case, points)?;
    }
    match failures {
        0 => Ok(()),
        count => bail!("{count} kills left damage"),
    }
}

/// What all cases share.
struct Bench {
    forge: Forge,
    folder: PathBuf,
    registry: Registry,
}

impl Bench {
    fn prepare(binary: PathBuf, folder: PathBuf) -> Result<Self> {
        let forge = Forge { binary, root: folder.join("store") };
        let bench = Self { forge, registry: Registry::start(&folder.join("registry"))?, folder };
        let files = bench.folder.join("context/files");
        fs::create_dir_all(&files)?;
        for name in 0..20 {
            fs::write(files.join(name.to_string()), name.to_string().repeat(1000))?;
        }
        fs::write(bench.folder.join("context/Dockerfile"), DOCKERFILE)?;
        busybox::write_archive(&bench.folder.join("busybox.tar"))?;
        for line in [
            "load -q -i FOLDER/busybox.tar",
            "build -q -t REGISTRY/pulled:1 -t pulled:1 FOLDER/context",
            "push -q REGISTRY/pulled:1",
            "save -o FOLDER/pulled.tar pulled:1",
        ] {
            bench.must(line)?;
        }
        Ok(bench)
    }

    /// The number of kills after which something was wrong.
    fn torture(&self, case: &Case, points: usize) -> Result<usize> {
        self.start(case)?;
        let calls = self.calls_of(case)?;
        let expected = self.must(case.result)?;
        let mut failures = 0;
        let mut killed = 0;
        for point in 0..points {
            let call = &calls[point * calls.len() / points];
            self.start(case)?;
            killed += usize::from(self.kill(case, call)?);
            if let Err(error) = self.check(case, &expected) {
                println!("FAILED {} at its {}. {}: {error:#}", case.name, call.number, call.name);
                failures += 1;
            }
        }
        println!("{}: killed {killed} of {points} times at {} calls, {failures} failures", case.name, calls.len());
        Ok(failures)
    }

    fn start(&self, case: &Case) -> Result<()> {
        for line in case.before {
            // What is to be removed may be gone already.
            if let Err(error) = self.must(line)
                && !line.starts_with("rmi ")
            {
                return Err(error.context(format!("before {}", case.name)));
            }
        }
        Ok(())
    }

    /// Every call of [`CALLS`], as strace counts: for each thread and each name anew.
    fn calls_of(&self, case: &Case) -> Result<Vec<Call>> {
        let log = self.folder.join("calls");
        let mut strace = command("strace -f -qqq -o");
        strace.arg(&log).args(["-e", &format!("trace={CALLS}"), "-e", "signal=none"]);
        output(self.forge_after(&mut strace, case.killed))?;
        let mut made: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        let text = fs::read_to_string(&log)?;
        for line in text.lines().filter(|line| !line.contains(" resumed>")) {
            let Some((thread, call)) = line.split_once(' ') else { continue };
            let Some((name, _)) = call.trim_start().split_once('(') else { continue };
            *made.entry((name, thread)).or_default() += 1;
        }
        let mut most: BTreeMap<&str, usize> = BTreeMap::new();
        for ((name, _), count) in made {
            let longest = most.entry(name).or_default();
            *longest = count.max(*longest);
        }
        let calls = most.into_iter().flat_map(|(name, count)| (1..=count).map(move |number| Call::new(name, number)));
        let calls: Vec<Call> = calls.collect();
        ensure!(!calls.is_empty(), "strace saw no call");
        Ok(calls)
    }

    /// Whether the kill came before the end.
    fn kill(&self, case: &Case, call: &Call) -> Result<bool> {
        let mut strace = command("strace -f -qqq -o /dev/null");
        let inject = format!("inject={}:signal=SIGKILL:when={}", call.name, call.number);
        strace.args(["-e", &format!("trace={}", call.name), "-e", &inject]);
        let status = self.forge_after(&mut strace, case.killed).stdin(Stdio::null()).output()?.status;
        Ok(!status.success())
    }

    fn check(&self, case: &Case, expected: &str) -> Result<()> {
        self.nothing_runs_on()?;
        self.must("store verify --full").context("the store is not whole")?;
        self.must(case.killed).context("the repeated command")?;
        let result = self.must(case.result)?;
        ensure!(result == expected, "the result is {result}, undisturbed it is {expected}");
        self.must("store verify --full").context("after the repeated command")?;
        Ok(())
    }

    /// No process of the killed forge, and no mount, is left.
    fn nothing_runs_on(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let left = self.left_behind()?;
            if left.is_empty() {
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "left behind: {left:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn left_behind(&self) -> Result<Vec<String>> {
        let store = self.forge.root.to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mut left: Vec<String> = mounts.lines().filter(|line| line.contains(&store)).map(str::to_owned).collect();
        for process in fs::read_dir("/proc")?.filter_map(Result::ok) {
            let environment = fs::read(process.path().join("environ")).unwrap_or_default();
            if String::from_utf8_lossy(&environment).contains(&store) {
                let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
                left.push(String::from_utf8_lossy(&words).replace('\0', " "));
            }
        }
        Ok(left)
    }

    fn must(&self, line: &str) -> Result<String> {
        text(&mut self.forge.command(&self.filled(line)))
    }

    fn forge_after<'a>(&self, program: &'a mut Command, line: &str) -> &'a mut Command {
        program.arg(&self.forge.binary).args(self.filled(line).split_whitespace());
        program.env("FORGE_ROOT", &self.forge.root)
    }

    fn filled(&self, line: &str) -> String {
        let folder: &Path = &self.folder;
        line.replace("REGISTRY", &self.registry.authority).replace("FOLDER", &folder.to_string_lossy())
    }
}
