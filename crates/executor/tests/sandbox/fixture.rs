//! A small root file system, containers on it, and what they said.

use forge_executor::{
    Container, ContainerId, Executor, ExecutorError, ExitStatus, MountSource, MountSpec, NamespaceExecutor,
    ProcessSpec, RootFs, SandboxSpec, Stdio, StdioTarget,
};
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// No test's container takes longer.
pub const DEADLINE: Duration = Duration::from_secs(20);

const APPLETS: [&str; 42] = [
    "cat", "chmod", "chown", "cut", "dd", "echo", "env", "false", "grep", "head", "hostname", "id", "ip", "kill", "ln",
    "ls", "mkdir", "mknod", "mount", "mv", "nc", "ps", "pwd", "readlink", "rm", "rmdir", "sed", "setsid", "sh",
    "sleep", "sort", "stat", "stty", "tail", "touch", "tr", "true", "tty", "umount", "unshare", "wc", "yes",
];

/// The executor all tests share. It lives as long as the test process.
pub fn executor() -> &'static NamespaceExecutor {
    static EXECUTOR: OnceLock<(TempDir, NamespaceExecutor)> = OnceLock::new();
    let make = || {
        let directory = tempfile::tempdir().expect("temporary directory");
        let executor = NamespaceExecutor::new(&directory.path().join("run")).expect("executor");
        (directory, executor)
    };
    &EXECUTOR.get_or_init(make).1
}

/// A base layer, an upper directory, and a canary outside of both.
pub struct Fixture {
    directory: TempDir,
    pub token: String,
}

impl Fixture {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let fixture = Self { token: format!("token-{}", directory.path().display()), directory };
        for name in ["base/bin", "base/etc", "base/tmp", "base/root", "base/mnt", "upper", "work", "canary/sub"] {
            fs::create_dir_all(fixture.path(name)).expect("directory");
        }
        fs::set_permissions(fixture.path("base/tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))
            .expect("permissions");
        fs::copy("/bin/busybox", fixture.base("bin/busybox")).expect("busybox");
        for applet in APPLETS {
            symlink("busybox", fixture.base("bin").join(applet)).expect("applet");
        }
        fs::write(fixture.base("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").expect("passwd");
        fs::write(fixture.path("canary/flag"), &fixture.token).expect("flag");
        fs::write(fixture.path("canary/b"), "").expect("b");
        fs::write(fixture.path("canary/ptmx"), "").expect("ptmx");
        fixture
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn base(&self, name: &str) -> PathBuf {
        self.path("base").join(name)
    }

    pub fn root(&self) -> RootFs {
        RootFs::Overlay {
            lower: vec![self.path("base")],
            upper: self.path("upper"),
            work: self.path("work"),
            volatile: false,
        }
    }

    pub fn spec(&self, args: &[&str]) -> SandboxSpec {
        SandboxSpec::for_root(self.root(), ProcessSpec::new(args))
    }

    pub fn shell(&self, script: &str) -> SandboxSpec {
        self.spec(&["/bin/sh", "-c", script])
    }

    /// A container that runs this test program as `payload`, with the libraries it needs.
    pub fn payload(&self, arguments: &[&str]) -> SandboxSpec {
        let mut spec = self.spec(&["/payload"]);
        spec.process.args.extend(arguments.iter().map(Into::into));
        spec.mounts = library_mounts();
        spec
    }

    /// Names, sizes and contents of the canary.
    pub fn canary(&self) -> Vec<String> {
        let mut all: Vec<_> = ["", "flag", "b", "ptmx", "sub"]
            .iter()
            .map(|name| {
                let path = self.path("canary").join(name);
                let data = fs::symlink_metadata(&path).expect("canary");
                format!("{name} {:o} {} {} {}", data.mode(), data.uid(), data.len(), data.mtime_nsec())
            })
            .collect();
        all.extend(tree(&self.path("canary")));
        all
    }

    /// Everything in the upper directory.
    pub fn upper(&self) -> Vec<String> {
        tree(&self.path("upper"))
    }
}

pub fn library_mounts() -> Vec<MountSpec> {
    let program = std::env::current_exe().expect("own path");
    let mut mounts = vec![MountSpec::new("/payload", MountSource::Bind(program), true)];
    for path in ["/lib", "/lib64", "/usr/lib"] {
        if Path::new(path).exists() {
            let source = fs::canonicalize(path).expect("library path");
            mounts.push(MountSpec::new(path, MountSource::Bind(source), true));
        }
    }
    mounts
}

/// Paths below a directory, sorted.
pub fn tree(top: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut pending = vec![top.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("directory") {
            let entry = entry.expect("entry");
            all.push(entry.path().strip_prefix(top).expect("below").display().to_string());
            if entry.file_type().expect("type").is_dir() {
                pending.push(entry.path());
            }
        }
    }
    all.sort();
    all
}

pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// The output of a script that must have succeeded.
    pub fn success(self) -> String {
        assert_eq!(self.status, ExitStatus::Exited(0), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }
}

pub fn id() -> ContainerId {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    ContainerId::new(format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed))).expect("valid id")
}

pub fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).expect("pipe")
}

/// Reads to the end in another thread.
pub fn drain(from: OwnedFd) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A terminal's controlling side ends with EIO.
        let _ = fs::File::from(from).read_to_end(&mut bytes);
        let _ = send.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receive
}

/// Creates, starts and awaits a container on the shared executor.
pub fn run(spec: &SandboxSpec) -> Result<Output, ExecutorError> {
    run_on(executor(), spec)
}

pub fn run_on(executor: &dyn Executor, spec: &SandboxSpec) -> Result<Output, ExecutorError> {
    let ((out, out_write), (err, err_write)) = (pipe(), pipe());
    let io = Stdio { stdin: StdioTarget::Null, stdout: StdioTarget::Fd(out_write), stderr: StdioTarget::Fd(err_write) };
    let (stdout, stderr) = (drain(out), drain(err));
    let container: Arc<dyn Container> = Arc::from(executor.create(&id(), spec, io)?);
    container.start()?;
    let status = wait(&container)?;
    container.delete()?;
    let text = |from: mpsc::Receiver<String>| from.recv_timeout(DEADLINE).expect("end of output");
    Ok(Output { status, stdout: text(stdout), stderr: text(stderr) })
}

/// Awaits a container, and kills it if it takes too long.
pub fn wait(container: &Arc<dyn Container>) -> Result<ExitStatus, ExecutorError> {
    let (send, receive) = mpsc::channel::<()>();
    let watched = Arc::clone(container);
    let watchdog = thread::spawn(move || {
        if let Err(mpsc::RecvTimeoutError::Timeout) = receive.recv_timeout(DEADLINE) {
            watched.kill_all().expect("kill");
        }
    });
    let status = container.wait();
    drop(send);
    watchdog.join().expect("watchdog");
    status
}

/// The output of a script in a fresh container.
pub fn output(script: &str) -> String {
    run(&Fixture::new().shell(script)).expect("runs").success()
}
