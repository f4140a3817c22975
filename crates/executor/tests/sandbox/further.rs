//! Further processes in containers that run: the same sandbox, entered later.

use crate::fixture::{Fixture, drain, executor, id, library_mounts, pipe, wait};
use crate::{oci, probe};
use forge_executor::{
    Container, ErrorKind, Executor, ExecutorError, ExitStatus, NamespaceExecutor, NetworkMode, ProcessSpec,
    ProcessUser, SandboxSpec, Stdio, StdioTarget,
};
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const TESTS: &[(&str, fn())] = &[
    ("privileged_further_processes_share_the_container", share),
    ("privileged_further_processes_end_with_the_first", end_with_first),
    ("privileged_further_processes_are_killed_alone", killed_alone),
    ("privileged_further_processes_have_terminals", terminals),
    ("privileged_further_processes_that_cannot_run", unfit),
    ("privileged_a01_a02_further_processes_leak_nothing", a01_a02_leaks),
    ("privileged_a03_further_processes_hide_the_binary", a03_binary),
    ("privileged_further_processes_cannot_be_traced", not_traced),
    ("privileged_further_processes_are_in_the_limits", limits),
    ("privileged_s5_probe_of_a_further_process", s5_probe),
    ("privileged_further_processes_beside_a_runtime_s", beside_runtime),
];

/// A container whose first process waits until its standard input ends.
pub struct Waiting {
    container: Arc<dyn Container>,
    input: Option<std::fs::File>,
}

impl Waiting {
    pub fn start(executor: &dyn Executor, spec: SandboxSpec) -> Self {
        let (read, write) = pipe();
        let io = Stdio { stdin: StdioTarget::Fd(read), ..Stdio::default() };
        let container: Arc<dyn Container> = executor.create(&id(), &spec, io).expect("creates").into();
        container.start().expect("starts");
        Self { container, input: Some(write.into()) }
    }

    pub fn of(fixture: &Fixture) -> Self {
        Self::start(executor(), fixture.spec(&["/bin/cat"]))
    }

    /// Runs a script to its end.
    pub fn output(&self, process: &ProcessSpec) -> Result<(ExitStatus, String), ExecutorError> {
        let (out, out_write) = pipe();
        let io = Stdio { stdout: StdioTarget::Fd(out_write), ..Stdio::default() };
        let text = drain(out);
        let further: Arc<dyn Container> = self.container.exec(process, io)?.into();
        further.start()?;
        let status = wait(&further)?;
        drop(further);
        Ok((status, text.recv_timeout(crate::fixture::DEADLINE).expect("end of output")))
    }

    pub fn shell(&self, script: &str) -> String {
        let (status, text) = self.output(&shell(script)).expect("runs");
        assert_eq!(status, ExitStatus::Exited(0), "{text}");
        text
    }

    pub fn end(mut self) {
        drop(self.input.take());
        assert_eq!(wait(&self.container).expect("ends"), ExitStatus::Exited(0));
    }
}

pub fn shell(script: &str) -> ProcessSpec {
    ProcessSpec::new(["/bin/sh", "-c", script])
}

/// What one leaves the others find: files, processes, namespaces.
fn share() {
    let fixture = Fixture::new();
    std::fs::write(fixture.base("etc/passwd"), "root:x:0:0::/root:/bin/sh\nu:x:7:7::/:/bin/sh\n").expect("passwd");
    let mut spec = fixture.spec(&["/bin/cat"]);
    spec.hostname = "within".into();
    spec.network = NetworkMode::None;
    let waiting = Waiting::start(executor(), spec);
    waiting.shell("echo left >/tmp/left");
    assert_eq!(waiting.shell("cat /tmp/left; hostname; cat /proc/1/comm"), "left\nwithin\ncat\n");
    let namespaces = "for n in ipc uts net cgroup time pid mnt; do [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo $n; done";
    assert_eq!(waiting.shell(namespaces), "");
    let mut process = shell("id -u; pwd; echo $A");
    process.user = ProcessUser { uid: 7, gid: 7, additional_gids: vec![7] };
    process.cwd = "/made/for/it".into();
    process.env.push("A=1".into());
    assert_eq!(waiting.output(&process).expect("runs"), (ExitStatus::Exited(0), "7\n/made/for/it\n1\n".into()));
    assert_eq!(waiting.output(&shell("exit 7")).expect("runs").0, ExitStatus::Exited(7));
    waiting.end();
    assert_eq!(std::fs::read_to_string(fixture.path("upper/tmp/left")).expect("a file"), "left\n");
}

fn end_with_first() {
    let fixture = Fixture::new();
    let mut waiting = Waiting::of(&fixture);
    let (out, out_write) = pipe();
    let io = Stdio { stdout: StdioTarget::Fd(out_write), ..Stdio::default() };
    let further: Arc<dyn Container> =
        waiting.container.exec(&shell("(sleep 100 &); sleep 100"), io).expect("made").into();
    further.start().expect("starts");
    drop(waiting.input.take());
    assert_eq!(wait(&waiting.container).expect("ends"), ExitStatus::Exited(0));
    assert_eq!(wait(&further).expect("ends"), ExitStatus::Signaled { signal: 9 });
    drain(out).recv_timeout(Duration::from_secs(5)).expect("all dead");
    let refused = waiting.output(&shell("true")).expect_err("no container any more");
    assert_eq!(refused.kind(), ErrorKind::Environment, "{refused}");
}

fn killed_alone() {
    let fixture = Fixture::new();
    let waiting = Waiting::of(&fixture);
    let begin = Instant::now();
    for kill in [true, false] {
        let further: Arc<dyn Container> =
            waiting.container.exec(&shell("sleep 100"), Stdio::default()).expect("made").into();
        further.start().expect("starts");
        match kill {
            true => further.kill_all().expect("kills"),
            false => further.signal(libc::SIGTERM).expect("signals"),
        }
        let signal = if kill { 9 } else { 15 };
        assert_eq!(wait(&further).expect("ends"), ExitStatus::Signaled { signal });
    }
    // One that is given up before it starts.
    drop(waiting.container.exec(&shell("sleep 100"), Stdio::default()).expect("made"));
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(waiting.shell("ps | grep -c '[s]leep 100'; true"), "0\n");
    waiting.end();
}

fn terminals() {
    let fixture = Fixture::new();
    let waiting = Waiting::of(&fixture);
    let mut process = shell("tty; stty size; read line; echo got $line; exit 3");
    process.terminal = true;
    let further: Arc<dyn Container> = waiting.container.exec(&process, Stdio::default()).expect("made").into();
    further.resize(80, 24).expect("resized");
    let mut typed = std::fs::File::from(further.pty().expect("a terminal"));
    let text = drain(further.pty().expect("a terminal"));
    further.start().expect("starts");
    typed.write_all(b"word\n").expect("written");
    assert_eq!(wait(&further).expect("ends"), ExitStatus::Exited(3));
    drop((typed, further));
    let text = text.recv_timeout(crate::fixture::DEADLINE).expect("end of output");
    // What is typed shows where it comes in.
    let has = |line: &str| text.contains(line);
    assert!(has("/dev/pts/0\r\n") && has("24 80\r\n") && text.ends_with("got word\r\n"), "{text:?}");
    waiting.end();
}

fn unfit() {
    let fixture = Fixture::new();
    let waiting = Waiting::of(&fixture);
    let missing = waiting.output(&ProcessSpec::new(["nothing"])).expect_err("no program");
    assert!(matches!(missing, ExecutorError::NotFound { .. }), "{missing}");
    let unfit = waiting.output(&ProcessSpec::new(["/etc/passwd"])).expect_err("no program");
    assert!(matches!(unfit, ExecutorError::NotExecutable { .. }), "{unfit}");
    waiting.shell("true");
    waiting.end();
}

/// As for first processes, with whom they share what was seen to fail there.
fn a01_a02_leaks() {
    let fixture = Fixture::new();
    let waiting = Waiting::of(&fixture);
    let open = "i=0; while [ $i -lt 300 ]; do [ -e /proc/self/fd/$i ] && echo $i; i=$((i+1)); done; true";
    assert_eq!(waiting.shell(open), "0\n1\n2\n");
    waiting.shell("ln -s /proc/self/fd/7 /tmp/link");
    for path in
        (0..20).map(|number| format!("/proc/self/fd/{number}")).chain(["/tmp/link".into(), "/proc/1/cwd".into()])
    {
        let mut process = shell("cat ../../../../canary/flag");
        process.cwd = path.clone().into();
        match waiting.output(&process) {
            Err(ExecutorError::WorkingDirectory { .. } | ExecutorError::System { .. }) => {}
            other => panic!("{path}: {other:?}"),
        }
    }
    waiting.end();
}

/// What enters a container is forge itself, whose file the container then sees as `/proc/PID/exe`.
fn a03_binary() {
    let fixture = Fixture::new();
    let before = std::fs::read(std::env::current_exe().expect("own path")).expect("own bytes");
    let script =
        "while :; do for exe in /proc/[0-9]*/exe; do (echo overwritten >$exe) 2>/dev/null && echo WRITTEN; done; done";
    let mut spec = fixture.shell(script);
    spec.mounts = library_mounts();
    let (out, out_write) = pipe();
    let io = Stdio { stdout: StdioTarget::Fd(out_write), ..Stdio::default() };
    let container: Arc<dyn Container> = executor().create(&id(), &spec, io).expect("creates").into();
    container.start().expect("starts");
    let written = drain(out);
    let waiting = Waiting { container: container.clone(), input: None };
    for _ in 0..30 {
        waiting.shell("true");
    }
    container.kill_all().expect("kills");
    wait(&container).expect("ends");
    drop((waiting, container));
    assert_eq!(written.recv_timeout(crate::fixture::DEADLINE).expect("end of output"), "");
    assert!(std::fs::read(std::env::current_exe().expect("own path")).expect("own bytes") == before);
}

/// What a process has open before it executes its program is not the container's to see: who may trace a process can open its
/// descriptors. Seen to fail with the process left dumpable once it has given its capabilities up: its channel to forge could be
/// looked up.
fn not_traced() {
    let fixture = Fixture::new();
    let waiting = Waiting::of(&fixture);
    let pending = waiting.container.exec(&shell("true"), Stdio::default()).expect("made");
    let script = "for p in /proc/[0-9]*; do n=${p#/proc/}; [ $n = 1 ] || [ $n = $$ ] || for f in fd/3 root cwd; do readlink $p/$f; \
                  done; done; true";
    assert_eq!(waiting.shell(script), "");
    drop(pending);
    waiting.end();
}

/// Seen to fail with the groups of the container left out of `enter`.
fn limits() {
    let fixture = Fixture::new();
    let mut spec = fixture.spec(&["/bin/cat"]);
    spec.resources.memory = Some(64 << 20);
    let waiting = Waiting::start(executor(), spec);
    let groups = |process: &str| waiting.shell(&format!("sort /proc/{process}/cgroup"));
    assert_eq!(groups("self"), groups("1"));
    let large =
        "yes x | dd bs=100M count=1 iflag=fullblock of=/dev/null 2>/dev/null; [ $? = 0 ] && echo unlimited; true";
    let enforced = !executor().notices().iter().any(|notice| notice.contains("memory"));
    // The kernel may kill the shell after dd, whose memory it has yet to get back.
    let (_, said) = waiting.output(&shell(large)).expect("runs");
    assert_eq!(said, if enforced { "" } else { "unlimited\n" });
    waiting.end();
}

/// The whole picture from inside is that of a first process, but for what has to do with being the first.
fn s5_probe() {
    for user in [0, 1000] {
        let fixture = Fixture::new();
        let mut spec = fixture.spec(&["/bin/cat"]);
        spec.network = NetworkMode::None;
        let waiting = Waiting::start(executor(), spec);
        let mut process = shell(probe::SCRIPT);
        process.env.push("HOME=/root".into());
        process.user = ProcessUser { uid: user, gid: user, additional_gids: Vec::new() };
        let (_, text) = waiting.output(&process).expect("runs");
        let first = probe::probe(user).replace("pids=1\n", "pids=2\n").replace("fd 2=pipe", "fd 2=/dev/null");
        assert_eq!(probe::normalise(&text), first);
        waiting.end();
    }
}

fn beside_runtime() {
    for (name, runtime) in oci::runtimes() {
        let fixture = Fixture::new();
        let waiting = Waiting::start(runtime, fixture.spec(&["/bin/cat"]));
        waiting.shell("echo left >/tmp/left");
        assert_eq!(waiting.shell("cat /tmp/left /proc/1/comm"), "left\ncat\n", "{name}");
        waiting.end();
    }
    // As long as there is a container, there is who takes others in.
    let fixture = Fixture::new();
    let own = NamespaceExecutor::new(&fixture.path("run")).expect("executor");
    let waiting = Waiting::start(&own, fixture.spec(&["/bin/cat"]));
    drop(own);
    waiting.shell("true");
    waiting.end();
}
