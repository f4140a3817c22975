//! F01–F05: forge killed at its n-th system call, for many n, in a build, a pull, a push, a save, a load and a prune. F09,
//! F12–F14: the n-th call fails instead, for want of space or of descriptors or because the disk does. F06 is in [`power`].
//!
//! After each fault nothing may run on and nothing be mounted; the store must be whole to the byte; the same command must
//! then succeed, and have the result that it has undisturbed. A command that ends well in spite of a failing call must have
//! that result at once; one that does not ends with an error.

mod power;

use crate::command::{command, output, text};
use crate::demo::Forge;
use crate::registry::Registry;
use crate::{busybox, packages};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// What befalls forge at a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed as the call begins.
    Kill,
    /// The call fails: the disk is full.
    NoSpace,
    /// The call fails: the disk is broken.
    Io,
    /// The call fails: too many files are open.
    NoDescriptors,
}

const FAULTS: [(&str, Fault); 4] =
    [("kill", Fault::Kill), ("enospc", Fault::NoSpace), ("eio", Fault::Io), ("emfile", Fault::NoDescriptors)];

impl Fault {
    fn name(self) -> &'static str {
        FAULTS.iter().find(|(_, fault)| *fault == self).map_or("", |(name, _)| name)
    }

    /// The calls that it befalls. A kill between two that change something, or hand a change to somebody else, makes no
    /// difference.
    fn calls(self) -> &'static str {
        match self {
            Self::Kill => {
                "openat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,write,pwrite64,fsync,fdatasync,syncfs,\
                 ftruncate,flock,linkat,symlinkat,mknodat,fchmod,fchownat,utimensat,copy_file_range,clone3,clone,mount,\
                 move_mount,umount2,sendto,sendmsg"
            }
            Self::NoSpace => {
                "openat,rename,renameat,renameat2,mkdir,mkdirat,write,pwrite64,fsync,fdatasync,syncfs,ftruncate,\
                 fallocate,linkat,symlinkat,mknodat,copy_file_range,setxattr,fsetxattr"
            }
            Self::Io => {
                "pread64,read,recvmsg,getdents64,write,pwrite64,fsync,fdatasync,syncfs,openat,rename,renameat2,unlinkat,\
                 statx,newfstatat"
            }
            Self::NoDescriptors => "openat,openat2,socket,pipe2,dup,dup3,epoll_create1,eventfd2,pidfd_open,accept4",
        }
    }

    fn injection(self) -> &'static str {
        match self {
            Self::Kill => "signal=SIGKILL",
            Self::NoSpace => "error=ENOSPC",
            Self::Io => "error=EIO",
            Self::NoDescriptors => "error=EMFILE",
        }
    }
}

/// The words of others: the runtime's when the call that failed wrote to an eventfd, which is no file on any disk, and the
/// loader's of a program that is not static.
const OF_OTHERS: [&str; 2] = ["failed to wake I/O driver", "error while loading shared libraries"];

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
    let binary = built_binary()?;
    for (_, fault) in FAULTS {
        let points = if fault == Fault::Kill { 4 } else { 2 };
        run(binary.clone(), fault, points, &[])?;
    }
    power::run(binary, 3, 1)
}

/// The binary that the tests made.
pub fn built_binary() -> Result<PathBuf> {
    let folder = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
    let built = Path::new(&folder).join("debug/forge");
    Ok(std::path::absolute(std::env::var_os("FORGE_BINARY").map_or(built, PathBuf::from))?)
}

/// Reads `[--points N] [--fault NAME] [--seed N] [CASE…]` and does that; all faults where none is named.
pub fn run_words(binary: PathBuf, words: &[&str]) -> Result<()> {
    let (mut points, mut fault, mut seed, mut names) = (None, None, 1, Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} takes a value"));
        match *word {
            "--points" => points = Some(value()?.parse().context("--points takes a number")?),
            "--seed" => seed = value()?.parse().context("--seed takes a number")?,
            "--fault" => fault = Some(*value()?),
            name => names.push(name),
        }
    }
    let known = |name: &str| FAULTS.iter().find(|(known, _)| *known == name).map(|(_, fault)| *fault);
    match fault {
        Some("power") => power::run(binary, points.unwrap_or(50), seed),
        Some(name) => {
            let fault = known(name).with_context(|| format!("no fault {name}: kill, enospc, eio, emfile, power"))?;
            run(binary, fault, points.unwrap_or(200), &names)
        }
        None => {
            for (_, fault) in FAULTS {
                run(binary.clone(), fault, points.unwrap_or(200), &names)?;
            }
            match names.is_empty() {
                true => power::run(binary, points.unwrap_or(50), seed),
                false => Ok(()),
            }
        }
    }
}

/// Disturbs each case, or those of these names, at so many points.
fn run(binary: PathBuf, fault: Fault, points: usize, names: &[&str]) -> Result<()> {
    packages::ensure(packages::TESTS)?;
    ensure!(rustix::process::geteuid().is_root(), "torture needs root: it builds in sandboxes under strace");
    fs::create_dir_all("target")?;
    let scratch = tempfile::Builder::new().prefix("torture-").tempdir_in("target")?;
    let bench = Bench::prepare(binary, std::path::absolute(scratch.path())?, fault)?;
    let mut failures = 0;
    for case in CASES.iter().filter(|case| names.is_empty() || names.contains(&case.name)) {
        failures += bench.torture(case, points)?;
    }
    match failures {
        0 => Ok(()),
        count => bail!("{count} faults left damage"),
    }
}

/// What all cases share.
struct Bench {
    forge: Forge,
    folder: PathBuf,
    registry: Registry,
    fault: Fault,
}

impl Bench {
    fn prepare(binary: PathBuf, folder: PathBuf, fault: Fault) -> Result<Self> {
        let forge = Forge { binary, root: folder.join("store") };
        let bench = Self { forge, registry: Registry::start(&folder.join("registry"))?, folder, fault };
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

    /// The number of faults after which something was wrong.
    fn torture(&self, case: &Case, points: usize) -> Result<usize> {
        self.start(case)?;
        let calls = self.calls_of(case)?;
        let expected = self.must(case.result)?;
        let (mut failures, mut ended) = (0, 0);
        for point in 0..points {
            let call = &calls[point * calls.len() / points];
            self.start(case)?;
            let disturbed = self.disturb(case, call)?;
            ended += usize::from(!disturbed.status.success());
            let checked = self.check_end(case, call, &disturbed, &expected).and_then(|()| self.check(case, &expected));
            if let Err(error) = checked {
                let (fault, name) = (self.fault.name(), case.name);
                println!("FAILED {name} with {fault} at its {}. {}: {error:#}", call.number, call.name);
                failures += 1;
            }
        }
        let (name, fault, calls) = (case.name, self.fault.name(), calls.len());
        println!("{name}: {fault} at {points} of {calls} calls ended it {ended} times, {failures} failures");
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

    /// Every call that the fault can befall, as strace counts: for each thread and each name anew.
    fn calls_of(&self, case: &Case) -> Result<Vec<Call>> {
        let log = self.folder.join("calls");
        let mut strace = command("strace -f -qqq -o");
        let calls = self.fault.calls().replace(' ', "");
        strace.arg(&log).args(["-e", &format!("trace={calls}"), "-e", "signal=none"]);
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

    fn disturb(&self, case: &Case, call: &Call) -> Result<Output> {
        // Longer than any of the commands takes, and short enough for a hang to be told.
        let mut strace = command("timeout -k 5 180 strace -f -qqq -o /dev/null");
        let inject = format!("inject={}:{}:when={}", call.name, self.fault.injection(), call.number);
        strace.args(["-e", &format!("trace={}", call.name), "-e", &inject]);
        Ok(self.forge_after(&mut strace, case.killed).stdin(Stdio::null()).output()?)
    }

    /// A command that is not killed ends as commands do, and what it says is true.
    fn check_end(&self, case: &Case, call: &Call, ended: &Output, expected: &str) -> Result<()> {
        let told = String::from_utf8_lossy(&ended.stderr);
        if OF_OTHERS.iter().any(|words| told.contains(words)) {
            return Ok(());
        }
        ensure!(!told.contains("panicked at"), "it panicked: {told}");
        ensure!(ended.status.code() != Some(124), "it did not end within three minutes: {told}");
        match (self.fault, ended.status.code()) {
            (Fault::Kill, _) => Ok(()),
            (_, Some(0)) => {
                let result = self.must(case.result)?;
                ensure!(
                    result == expected,
                    "it said nothing, and the result is {result}, undisturbed it is {expected}"
                );
                Ok(())
            }
            // 125: before a container began.
            (_, Some(1 | 125)) => {
                // Of several threads each has an n-th write, and one of these may be the word.
                ensure!(!told.trim().is_empty() || call.name == "write", "it failed without a word");
                Ok(())
            }
            _ => bail!("it ended with {}: {told}", ended.status),
        }
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
