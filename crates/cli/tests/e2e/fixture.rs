//! A hermetic home for the binary: its own store, configuration and contexts.

use crate::busybox;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// No command of a test takes longer, even on a slow machine.
const LIMIT: Duration = Duration::from_secs(240);

/// A store and the folders around it.
pub struct Forge {
    home: TempDir,
}

/// What a command came to.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A step as the plain progress shows it.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Step {
    Ran,
    Cached,
    Failed,
}

impl Forge {
    /// An empty store.
    pub fn new() -> Self {
        // The target folder, since the system's temporary folder may be one that no overlay can be made on.
        let home = tempfile::Builder::new().prefix("e2e-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::write(home.path().join("forge.toml"), "").unwrap();
        Self { home }
    }

    /// A store with the busybox image, for a test that needs root; `None` after saying that it is skipped.
    pub fn privileged(test: &str) -> Option<Self> {
        let forge = Self::privileged_empty(test)?;
        forge.load_base();
        Some(forge)
    }

    /// An empty store for such a test.
    pub fn privileged_empty(test: &str) -> Option<Self> {
        may_run(test).then(Self::new)
    }

    /// Loads the busybox image.
    pub fn load_base(&self) {
        self.ok(&["load", "-i", base_image().to_str().unwrap()]);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Writes the files of a context; a name that ends in a slash is a folder.
    pub fn context(&self, name: &str, files: &[(&str, &str)]) -> String {
        let folder = self.path(name);
        fs::create_dir_all(&folder).unwrap();
        for (path, text) in files {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder.to_str().unwrap().to_owned()
    }

    /// The binary with nothing of the tester's environment.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(words).env_clear().stdin(Stdio::null()).current_dir(self.home.path());
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", self.home.path()).env("FORGE_ROOT", self.store());
        command.env("FORGE_CONFIG", self.path("forge.toml"));
        // The whole suite can be run through an OCI runtime.
        command.envs(std::env::var_os("FORGE_OCI_RUNTIME").map(|runtime| ("FORGE_OCI_RUNTIME", runtime)));
        command
    }

    pub fn forge(&self, words: &[&str]) -> Outcome {
        run(&mut self.command(words), b"")
    }

    pub fn with_input(&self, words: &[&str], input: &[u8]) -> Outcome {
        run(&mut self.command(words), input)
    }

    pub fn with_env(&self, words: &[&str], name: &str, value: &str) -> Outcome {
        run(self.command(words).env(name, value), b"")
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> Outcome {
        let outcome = self.forge(words);
        assert_eq!(outcome.code, 0, "forge {}\n{}{}", words.join(" "), outcome.stdout, outcome.stderr);
        outcome
    }

    /// Runs a command that must fail with that exit code.
    #[track_caller]
    pub fn fails(&self, code: i32, words: &[&str]) -> Outcome {
        let outcome = self.forge(words);
        assert_eq!(outcome.code, code, "forge {}\n{}{}", words.join(" "), outcome.stdout, outcome.stderr);
        outcome
    }

    /// What a command in a container of an image prints.
    #[track_caller]
    pub fn shell(&self, image: &str, line: &str) -> String {
        self.ok(&["run", "--rm", "--entrypoint", "/bin/sh", image, "-c", line]).stdout
    }

    /// Builds and gives the steps.
    #[track_caller]
    pub fn build(&self, words: &[&str]) -> Vec<(String, Step)> {
        let words: Vec<&str> = ["build", "--progress", "plain"].iter().chain(words).copied().collect();
        self.ok(&words).steps()
    }
}

/// After each test the store must be whole, to the byte (U5 of every row of attacks and faults).
impl Drop for Forge {
    fn drop(&mut self) {
        if std::thread::panicking() || !self.store().join("FORMAT").exists() {
            return;
        }
        let outcome = self.forge(&["store", "verify", "--full"]);
        assert_eq!(outcome.code, 0, "forge store verify --full\n{}{}", outcome.stdout, outcome.stderr);
    }
}

impl Outcome {
    /// The steps of the Dockerfile, in the order of the log.
    pub fn steps(&self) -> Vec<(String, Step)> {
        let mut names = std::collections::BTreeMap::new();
        let mut steps = Vec::new();
        for line in self.stderr.lines() {
            let Some((number, rest)) = line.strip_prefix('#').and_then(|line| line.split_once(' ')) else { continue };
            let state = match rest {
                "CACHED" => Step::Cached,
                rest if rest.starts_with("DONE ") => Step::Ran,
                rest if rest.starts_with("ERROR: ") => Step::Failed,
                name => {
                    names.entry(number.to_owned()).or_insert_with(|| name.to_owned());
                    continue;
                }
            };
            steps.push((names.get(number).cloned().unwrap_or_default(), state));
        }
        steps.retain(|(name, _)| name.starts_with('[') && !name.starts_with("[internal]"));
        steps
    }
}

/// A log with its times replaced, so that it can be compared: `0.0s` and the `0.123` before a line of output.
pub fn without_times(log: &str) -> String {
    let is_time = |word: &str| {
        let digits = word.strip_suffix('s').unwrap_or(word);
        digits.contains('.') && digits.chars().all(|c| c.is_ascii_digit() || c == '.')
    };
    let line = |line: &str| {
        line.split(' ').map(|word| if is_time(word) { "TIME" } else { word }).collect::<Vec<_>>().join(" ")
    };
    log.lines().map(|text| line(text) + "\n").collect()
}

/// The state of the step whose name contains a text.
#[track_caller]
pub fn state(steps: &[(String, Step)], part: &str) -> Step {
    let found = steps.iter().find(|(name, _)| name.contains(part));
    found.unwrap_or_else(|| panic!("no step {part:?} in {steps:#?}")).1
}

/// How often something random is tried: as often as `FORGE_TEST_ROUNDS` says, for a night's run.
pub fn rounds(usually: usize) -> usize {
    std::env::var("FORGE_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usually)
}

/// Whether a test that needs root can run; says so where it cannot, and fails where it must.
pub fn may_run(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    let missing =
        (!root).then_some("root").or_else(|| (!Path::new("/bin/busybox").exists()).then_some("busybox-static"));
    skip_unless(missing.is_none(), missing.unwrap_or_default(), test)
}

/// Whether other programs that a test needs are there.
pub fn have(test: &str, programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| find(program).is_none());
    skip_unless(missing.is_none(), missing.unwrap_or(&""), test)
}

fn skip_unless(possible: bool, what: &str, test: &str) -> bool {
    if !possible {
        let required = std::env::var("FORGE_REQUIRE_PRIVILEGED").is_ok_and(|value| value == "1");
        assert!(!required, "{test} needs {what}");
        println!("SKIPPED (needs {what}): {test}");
    }
    possible
}

pub fn find(program: &str) -> Option<PathBuf> {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.exists())
}

/// A tool from the shared data; `None` after saying that the test is skipped.
pub fn shared(test: &str, path: &str) -> Option<PathBuf> {
    let fallback = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let folder = std::env::var("FORGE_SHARED").map_or(fallback, PathBuf::from);
    let found = folder.join(path);
    if !found.exists() {
        println!("SKIPPED (needs FORGE_SHARED/{path}): {test}");
    }
    found.exists().then_some(found)
}

/// An example of this repository.
pub fn testdata(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name).to_str().unwrap().to_owned()
}

/// The archive with the busybox image, made once for all tests.
pub fn base_image() -> &'static Path {
    static ARCHIVE: OnceLock<PathBuf> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("busybox-{}.tar", std::process::id()));
        busybox::write_archive(&path).unwrap();
        path
    })
}

/// Runs any command to its end.
pub fn run(command: &mut Command, input: &[u8]) -> Outcome {
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_vec();
        // The program may not read it all.
        std::thread::spawn(move || stdin.write_all(&input));
    }
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let code = wait(&mut child);
    Outcome { code, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Runs a program of the system that must succeed and gives its standard output.
#[track_caller]
pub fn system(words: &[&str]) -> String {
    let outcome = run(Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()), b"");
    assert_eq!(outcome.code, 0, "{}\n{}{}", words.join(" "), outcome.stdout, outcome.stderr);
    outcome.stdout
}

fn collect(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.unwrap().read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits for the end; a program that takes too long is killed and fails the test.
#[track_caller]
pub fn wait(child: &mut Child) -> i32 {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return std::os::unix::process::ExitStatusExt::signal(&status)
                .map_or(status.code().unwrap_or(-1), |signal| 128 + signal);
        }
        if start.elapsed() > LIMIT {
            let _ = child.kill();
            panic!("a command took longer than {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The binary under test: that of this build, or the one that `FORGE_BINARY` names, as for a release.
pub fn binary() -> String {
    std::env::var("FORGE_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_forge").to_owned())
}
