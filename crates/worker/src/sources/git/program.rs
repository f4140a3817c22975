//! The git program of the machine, in a sandbox that shows it programs, libraries and certificates, the folders that it
//! works in, and nothing else of the machine (A108, A109).

use super::super::error::RemoteError;
use super::super::{Asked, Sources};
use super::ssh::SshAgent;
use crate::exec::container_id;
use forge_executor::{
    Capabilities, Container, ExecutorError, ExitStatus, Hidden, MountSource, MountSpec, NetworkMode, ProcessSpec,
    RootFs, SandboxSpec, Stdio, StdioTarget,
};
use forge_session::Redacted;
use forge_store::ScratchDir;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Folders of programs and libraries; what is a link on the machine is the same link in the sandbox.
const PROGRAMS: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// What finding servers and checking certificates needs.
const SETTINGS: [&str; 8] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/ssl/openssl.cnf",
    "/etc/ssh/ssh_known_hosts",
    "/etc/ld.so.cache",
];
const CERTIFICATES: [&str; 3] = ["/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted"];

/// Where the programs look for others. The distribution's git comes first: it is the one that gets its fixes.
const PATH: &str = "/usr/bin:/bin:/usr/local/bin:/usr/sbin:/sbin";

const USERS: &str = "root:x:0:0:root:/home:/bin/false\n";

/// Git's own protections, and what a repository or a server must not decide. Nothing of the machine's or a user's
/// configuration is read.
const CONFIGURATION: &[(&str, &str)] = &[
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.untrackedCache", "false"),
    ("core.askPass", ""),
    ("core.protectHFS", "true"),
    ("core.protectNTFS", "true"),
    ("core.symlinks", "true"),
    ("core.autocrlf", "false"),
    ("core.logAllRefUpdates", "false"),
    ("credential.helper", ""),
    ("protocol.allow", "never"),
    ("http.followRedirects", "false"),
    ("submodule.recurse", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("safe.directory", "*"),
    ("init.defaultBranch", "master"),
    ("pack.threads", "1"),
    ("transfer.fsckObjects", "true"),
    // Mistakes of old programs in dates and modes; harmless, and found in well-known repositories.
    ("fetch.fsck.zeroPaddedFilemode", "ignore"),
    ("fetch.fsck.missingSpaceBeforeDate", "ignore"),
    ("fetch.fsck.badTimezone", "ignore"),
    ("fetch.fsck.missingEmail", "ignore"),
    ("fetch.fsck.missingNameBeforeEmail", "ignore"),
    ("fetch.fsck.badDate", "ignore"),
    ("fetch.fsck.zeroPaddedDate", "ignore"),
];

const SSH: &str = "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=yes -o ForwardAgent=no \
     -o PermitLocalCommand=no -o ProxyCommand=none -o ControlPath=none -o UpdateHostKeys=no \
     -o UserKnownHostsFile=/run/forge/known_hosts -o GlobalKnownHostsFile=/etc/ssh/ssh_known_hosts";

/// A list of the entries of the largest trees.
const MOST_OUTPUT: u64 = 512 << 20;
/// What git may say about a failure.
const MOST_MESSAGE: usize = 4096;

/// Whether a run may reach servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Network {
    Reached,
    None,
}

/// Prepared for several runs about one repository.
pub(super) struct Program<'a> {
    sources: &'a Sources,
    remote: String,
    network: Network,
    root: ScratchDir,
    pub settings: Vec<(String, Redacted)>,
    pub environment: Vec<String>,
    pub secret_environment: Vec<Hidden>,
    pub secrets: Vec<String>,
    pub known_hosts: Option<Vec<u8>>,
    pub certificates: Option<Vec<u8>>,
    pub agent: Option<SshAgent>,
}

/// One run.
pub(super) struct Run {
    /// What it is for, in messages: `fetch`.
    action: &'static str,
    args: Vec<String>,
    mounts: Vec<MountSpec>,
    environment: Vec<String>,
}

impl Run {
    pub(super) fn new<'a>(action: &'static str, args: impl IntoIterator<Item = &'a str>) -> Self {
        let args = std::iter::once("git").chain(args).map(str::to_owned).collect();
        Self { action, args, mounts: Vec::new(), environment: Vec::new() }
    }

    /// Shows it a folder that it may write to.
    pub(super) fn folder(mut self, folder: &Path, target: &str) -> Self {
        self.mounts.push(MountSpec::new(target, MountSource::Bind(folder.to_owned()), false));
        self
    }

    /// Shows it a folder below another, whatever links lie on the way.
    pub(super) fn folder_beneath(mut self, root: &Path, path: &str, target: &str) -> Self {
        let source = MountSource::BindBeneath { root: root.to_owned(), path: PathBuf::from(path) };
        self.mounts.push(MountSpec::new(target, source, false));
        self
    }

    /// Sets a variable.
    pub(super) fn env(mut self, pair: &str) -> Self {
        self.environment.push(pair.to_owned());
        self
    }
}

impl<'a> Program<'a> {
    pub(super) fn new(sources: &'a Sources, remote: String, network: Network) -> Result<Self, RemoteError> {
        let root = sources.store.scratch("git").map_err(RemoteError::Store)?;
        let failed = |source| RemoteError::Write { what: "the root of a sandbox".to_owned(), source };
        for name in PROGRAMS {
            if let Ok(target) = std::fs::read_link(Path::new("/").join(name)) {
                symlink(target, root.path().join(name)).map_err(failed)?;
            }
        }
        Ok(Self {
            sources,
            remote,
            network,
            root,
            settings: Vec::new(),
            environment: Vec::new(),
            secret_environment: Vec::new(),
            secrets: Vec::new(),
            known_hosts: None,
            certificates: None,
            agent: None,
        })
    }

    /// Runs git to its end and returns what it wrote.
    ///
    /// # Errors
    /// It is not there, or fails; the session is cancelled.
    pub(super) async fn run(&self, run: Run, asked: &Asked<'_>) -> Result<Vec<u8>, RemoteError> {
        let action = run.action;
        let spec = self.sandbox(run);
        let executor = self.sources.executor.clone();
        let create = move || -> Result<(Arc<dyn Container>, [File; 2]), RemoteError> {
            let (stdout, stdout_end) = pipe()?;
            let (stderr, stderr_end) = pipe()?;
            let io = Stdio {
                stdin: StdioTarget::Null,
                stdout: StdioTarget::Fd(stdout_end.into()),
                stderr: StdioTarget::Fd(stderr_end.into()),
            };
            let container = executor.create(&container_id("git")?, &spec, io)?;
            Ok((container.into(), [stdout, stderr]))
        };
        let (container, output) = blocking(create).await?;
        let relay = match (&self.agent, container.take_listeners().pop()) {
            (Some(agent), Some(listener)) => Some(agent.relay(listener).map_err(pipe_failed)?),
            _ => None,
        };
        let running = container.clone();
        let mut ended = tokio::task::spawn_blocking(move || wait(&*running, output));
        let ended = tokio::select! {
            ended = &mut ended => ended,
            () = asked.session.cancellation().cancelled() => {
                // Whatever it says, the wait below ends: every process of the sandbox dies with its first one.
                let _ = container.kill_all();
                let _ = ended.await;
                return Err(RemoteError::Cancelled);
            }
        };
        drop(relay);
        let ended = ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        match ended {
            Ok((ExitStatus::Exited(0), stdout, _)) => Ok(stdout),
            Ok((_, _, stderr)) => Err(self.failed(action, &stderr)),
            Err(RemoteError::Executor(ExecutorError::NotFound { .. })) => {
                Err(RemoteError::NoGit { remote: self.remote.clone() })
            }
            Err(error) => Err(error),
        }
    }

    fn failed(&self, action: &'static str, stderr: &[u8]) -> RemoteError {
        let text = String::from_utf8_lossy(stderr);
        let message = self
            .secrets
            .iter()
            .filter(|secret| !secret.is_empty())
            .fold(text.trim().to_owned(), |text, secret| text.replace(secret.as_str(), "****"));
        RemoteError::Git { action, remote: self.remote.clone(), message }
    }

    fn sandbox(&self, run: Run) -> SandboxSpec {
        let mut process = ProcessSpec::new(&run.args);
        process.env = self.process_environment(run.environment).into_iter().map(Into::into).collect();
        process.secret_env = self.secret_environment.clone();
        self.configure(&mut process);
        process.capabilities = Capabilities::NONE;
        process.no_new_privileges = true;
        let mut spec = SandboxSpec::for_root(RootFs::Directory(self.root.path().to_owned()), process);
        spec.hostname = "forge".to_owned();
        spec.network = match self.network {
            Network::Reached => NetworkMode::Host,
            Network::None => NetworkMode::None,
        };
        spec.mounts = self.mounts();
        spec.mounts.extend(run.mounts);
        spec
    }

    fn process_environment(&self, more: Vec<String>) -> Vec<String> {
        let mut env: Vec<String> = [
            "HOME=/home",
            "LC_ALL=C",
            "GIT_CONFIG_NOSYSTEM=1",
            "GIT_CONFIG_GLOBAL=/dev/null",
            "GIT_TERMINAL_PROMPT=0",
            "GIT_ATTR_NOSYSTEM=1",
            "GIT_NO_REPLACE_OBJECTS=1",
            "GIT_OPTIONAL_LOCKS=0",
            "GIT_SSH_VARIANT=ssh",
            "SSH_AUTH_SOCK=/run/forge/agent",
        ]
        .map(str::to_owned)
        .to_vec();
        env.push(format!("PATH={PATH}"));
        env.push(format!("GIT_SSH_COMMAND={SSH}"));
        env.push(format!(
            "GIT_ALLOW_PROTOCOL={}",
            if self.network == Network::Reached { "https:http:git:ssh" } else { "" }
        ));
        if self.certificates.is_some() {
            env.push("GIT_SSL_CAINFO=/run/forge/certificates.pem".to_owned());
        }
        env.extend(self.environment.iter().cloned());
        env.extend(more);
        env
    }

    /// Configuration goes through the environment: arguments are for everybody to read (A102).
    fn configure(&self, process: &mut ProcessSpec) {
        let fixed = CONFIGURATION.iter().map(|(key, value)| ((*key).to_owned(), Redacted::new(*value)));
        let all: Vec<(String, Redacted)> = fixed.chain(self.settings.iter().cloned()).collect();
        process.env.push(format!("GIT_CONFIG_COUNT={}", all.len()).into());
        for (number, (key, value)) in all.iter().enumerate() {
            process.env.push(format!("GIT_CONFIG_KEY_{number}={key}").into());
            process.secret_env.push(Hidden::new(format!("GIT_CONFIG_VALUE_{number}={}", value.reveal())));
        }
    }

    fn mounts(&self) -> Vec<MountSpec> {
        let bind = |path: &Path| MountSpec::new(path, MountSource::Bind(path.to_owned()), true);
        let file =
            |path: &str, content: Vec<u8>| MountSpec::new(path, MountSource::File { content, mode: 0o644 }, true);
        let memory = |path: &str| MountSpec::new(path, MountSource::Tmpfs { size: Some(64 << 20), mode: 0o700 }, false);
        let folders = PROGRAMS.iter().map(|name| Path::new("/").join(name));
        let folders = folders.filter(|path| path.symlink_metadata().is_ok_and(|found| found.is_dir()));
        let mut mounts: Vec<MountSpec> = folders.map(|path| bind(&path)).collect();
        mounts.extend([memory("/home"), memory("/tmp")]);
        mounts.push(file("/etc/passwd", USERS.into()));
        let known = SETTINGS.iter().filter_map(|path| Some(file(path, std::fs::read(path).ok()?)));
        mounts.extend(known);
        mounts.extend(CERTIFICATES.iter().map(Path::new).filter(|path| path.is_dir()).map(bind));
        mounts.extend(self.known_hosts.iter().map(|hosts| file("/run/forge/known_hosts", hosts.clone())));
        mounts.extend(self.certificates.iter().map(|all| file("/run/forge/certificates.pem", all.clone())));
        if self.agent.is_some() {
            let socket = MountSource::Socket { mode: 0o600, uid: 0, gid: 0 };
            mounts.push(MountSpec::new("/run/forge/agent", socket, false));
        }
        mounts
    }
}

fn pipe_failed(source: std::io::Error) -> RemoteError {
    RemoteError::Write { what: "a pipe for git's output".to_owned(), source }
}

fn pipe() -> Result<(File, File), RemoteError> {
    let ends = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    ends.map(|(read, write)| (read.into(), write.into())).map_err(|errno| pipe_failed(errno.into()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RemoteError> + Send + 'static,
) -> Result<T, RemoteError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Starts it, reads all that it writes, and waits until everything that it started is dead. Blocks.
fn wait(container: &dyn Container, output: [File; 2]) -> Result<(ExitStatus, Vec<u8>, Vec<u8>), RemoteError> {
    let started = container.start();
    let [stdout, stderr] = output;
    let read = |stream: File| std::thread::spawn(move || read_all(stream, MOST_OUTPUT));
    let result = match started {
        Err(error) => Err(error.into()),
        Ok(()) => {
            let (stdout, stderr) = (read(stdout), read(stderr));
            let status = container.wait();
            let ends = [stdout, stderr].map(|reader| reader.join().expect("reading does not panic"));
            status.map_err(RemoteError::from).and_then(|status| {
                let [stdout, stderr] = ends;
                let (stdout, mut stderr) = (stdout.map_err(pipe_failed)?, stderr.map_err(pipe_failed)?);
                stderr.drain(..stderr.len().saturating_sub(MOST_MESSAGE));
                Ok((status, stdout, stderr))
            })
        }
    };
    container.delete().map_err(RemoteError::from).and(result)
}

/// The whole of a stream. One that is longer is an error and never cut: what was cut off would not be judged.
fn read_all(stream: impl Read, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(std::io::ErrorKind::FileTooLarge.into()),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Seen to fail with the stream cut at the limit.
    #[test]
    fn a110_a_list_is_whole_or_none() {
        assert_eq!(read_all(&b"abc"[..], 3).unwrap(), b"abc");
        assert!(read_all(&b"abcd"[..], 3).is_err());
    }
}
