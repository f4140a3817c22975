//! Beginning, end, and what is left afterwards: nothing.

use crate::fixture::{DEADLINE, Fixture, drain, executor, id, output, pipe, run, wait};
use crate::payload::CALLER;
use forge_executor::{
    Belongings, Container, Executor, ExitStatus, MountSource, MountSpec, NamespaceExecutor, Stdio, StdioTarget,
};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const TESTS: &[(&str, fn())] = &[
    ("privileged_signals_reach_the_process", signals),
    ("privileged_kill_ends_daemons_too", kill_ends_daemons),
    ("privileged_the_end_of_the_process_is_the_end_of_all", exit_ends_daemons),
    ("privileged_everything_dies_with_the_caller", dies_with_caller),
    ("privileged_everything_dies_with_the_executor", dies_with_executor),
    ("privileged_nothing_survives_the_set_up_process", dies_with_server),
    ("privileged_a_dead_set_up_process_is_asked_again", dies_with_server_before_it_reads),
    ("privileged_dropping_kills", dropping_kills),
    ("privileged_belongings_of_a_caller_who_ends_in_order_are_his", belongings),
    ("privileged_host_mounts_never_change", host_mounts),
    ("privileged_mount_points_leave_no_trace", mount_points),
    ("privileged_generated_files_leave_no_trace", generated_files),
    ("privileged_many_at_once", many_at_once),
    ("privileged_whiteouts_and_changes_stay", changes_stay),
];

/// What becomes of those of a killed one is seen by the tests of the command line. Seen to fail with a set-up process that does not
/// wait for its caller, and with one that hears nothing from him.
fn belongings() {
    let fixture = Fixture::new();
    let executor = NamespaceExecutor::new(&fixture.path("run")).expect("executor");
    let (folder, mark) = (fixture.path("scratch"), fixture.path("mark"));
    fs::create_dir_all(folder.join("a/b")).expect("folders");
    let lock = fs::File::create(&mark).expect("mark");
    let held: std::os::fd::OwnedFd = lock.try_clone().expect("copy").into();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).expect("locks");
    drop(lock);
    let spec = fixture.shell("read line");
    let (input, input_write) = pipe();
    let io = Stdio { stdin: StdioTarget::Fd(input), ..Stdio::default() };
    let container: Arc<dyn Container> = executor.create(&id(), &spec, io).expect("creates").into();
    let given = Belongings { folder: folder.clone(), mark: mark.clone(), lock: held };
    executor.finish(Some(given));
    container.start().expect("starts");
    drop(input_write);
    assert_eq!(wait(&container).expect("ends"), ExitStatus::Exited(1));
    // The caller still works with them.
    std::thread::sleep(Duration::from_millis(100));
    assert!(folder.join("a/b").exists() && mark.exists());
    let other = fs::File::open(&mark).expect("opens");
    let taken = rustix::fs::flock(&other, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    assert!(taken.is_err(), "somebody holds the lock");
    drop((container, executor));
    let begin = Instant::now();
    while rustix::fs::flock(&other, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        assert!(begin.elapsed() < DEADLINE);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(folder.join("a/b").exists() && mark.exists());
}

fn signals() {
    let fixture = Fixture::new();
    let (out, out_write) = pipe();
    let io = Stdio { stdout: StdioTarget::Fd(out_write), ..Stdio::default() };
    let spec = fixture.shell("trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    let container: Arc<dyn Container> = executor().create(&id(), &spec, io).expect("creates").into();
    container.start().expect("starts");
    let mut lines = BufReader::new(fs::File::from(out)).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "ready");
    container.signal(libc::SIGTERM).expect("signals");
    assert_eq!(lines.next().expect("a line").expect("text"), "caught");
    assert_eq!(wait(&container).expect("ends"), ExitStatus::Exited(3));
    assert_eq!(wait(&container).expect("again"), ExitStatus::Exited(3));
}

/// A pipe that only the container's processes hold ends when the last of them is dead.
fn kill_ends_daemons() {
    let fixture = Fixture::new();
    let (out, out_write) = pipe();
    let io = Stdio { stdout: StdioTarget::Fd(out_write), ..Stdio::default() };
    let spec = fixture.shell("(setsid sh -c 'trap \"\" TERM HUP; sleep 1000' &); sleep 1000");
    let container: Arc<dyn Container> = executor().create(&id(), &spec, io).expect("creates").into();
    container.start().expect("starts");
    std::thread::sleep(Duration::from_millis(100));
    container.kill_all().expect("kills");
    assert_eq!(wait(&container).expect("ends"), ExitStatus::Signaled { signal: 9 });
    container.kill_all().expect("idempotent");
    drain(out).recv_timeout(DEADLINE).expect("all dead");
}

fn exit_ends_daemons() {
    let begin = Instant::now();
    let text = output("(setsid sleep 1000 &); echo done");
    assert_eq!(text, "done\n");
    assert!(begin.elapsed() < DEADLINE);
}

/// Runs this program as a caller in another process and kills that.
fn dies_with_caller() {
    let fixture = Fixture::new();
    let (out, out_write) = pipe();
    let mut caller = Command::new(std::env::current_exe().expect("own path"))
        .arg0(CALLER)
        .arg(fixture.path(""))
        .stdout(out_write)
        .spawn()
        .expect("caller");
    let mut reader = BufReader::new(fs::File::from(out));
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    caller.kill().expect("kills");
    caller.wait().expect("dead");
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(reader.read_line(&mut line)));
    receive.recv_timeout(DEADLINE).expect("the container is dead").expect("end of file");
}

fn dies_with_executor() {
    let fixture = Fixture::new();
    let executor = NamespaceExecutor::new(&fixture.path("run")).expect("executor");
    let container: Arc<dyn Container> =
        executor.create(&id(), &fixture.shell("sleep 1000"), Stdio::default()).expect("creates").into();
    container.start().expect("starts");
    drop(executor);
    // A container keeps the set-up process it came from, so it must still be in order.
    container.kill_all().expect("kills");
    assert_eq!(wait(&container).expect("ends"), ExitStatus::Signaled { signal: 9 });
}

/// The set-up process is found by its parent and killed: no container may go on, and nobody may hang. The next container has
/// a new one. Fails when a process that cannot be talked to is kept.
fn dies_with_server() {
    let fixture = Fixture::new();
    let executor = NamespaceExecutor::new(&fixture.path("run")).expect("executor");
    let (container, mut reader) = started(&executor, &fixture);
    kill_process(set_up_process_of(&fixture), Signal::KILL).expect("kills");
    assert!(wait(&container).is_err());
    reader.read_line(&mut String::new()).expect("end of file");
    ends_with_seven(&executor);
}

/// The same where it had been asked for the next container and had not read that. Seen to fail where it was not asked again.
fn dies_with_server_before_it_reads() {
    let fixture = Fixture::new();
    let executor = NamespaceExecutor::new(&fixture.path("run")).expect("executor");
    let (_container, _reader) = started(&executor, &fixture);
    let server = set_up_process_of(&fixture);
    kill_process(server, Signal::STOP).expect("stops");
    std::thread::scope(|scope| {
        let next = scope.spawn(|| ends_with_seven(&executor));
        // Too short a pause makes the test a weaker one, never one that fails.
        std::thread::sleep(Duration::from_millis(300));
        kill_process(server, Signal::KILL).expect("kills");
        next.join().expect("a container of a new set-up process");
    });
}

/// A container that goes on, and its output after the first line.
fn started(executor: &NamespaceExecutor, fixture: &Fixture) -> (Arc<dyn Container>, BufReader<fs::File>) {
    let (out, out_write) = pipe();
    let io = Stdio { stdout: StdioTarget::Fd(out_write), ..Stdio::default() };
    let spec = fixture.shell("echo ready; sleep 1000");
    let container: Arc<dyn Container> = executor.create(&id(), &spec, io).expect("creates").into();
    container.start().expect("starts");
    let mut reader = BufReader::new(fs::File::from(out));
    reader.read_line(&mut String::new()).expect("a line");
    (container, reader)
}

fn set_up_process_of(fixture: &Fixture) -> Pid {
    let outside = fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap_or_default();
    let mut servers = children().into_iter().filter(|pid| children_of(*pid).len() == 1 && holds(*pid, fixture));
    let server = servers.next().unwrap_or_else(|| panic!("no set-up process among {outside}"));
    Pid::from_raw(server).expect("pid")
}

fn ends_with_seven(executor: &NamespaceExecutor) {
    let fixture = Fixture::new();
    let container: Arc<dyn Container> =
        executor.create(&id(), &fixture.shell("exit 7"), Stdio::default()).expect("a new set-up process").into();
    container.start().expect("starts");
    assert_eq!(wait(&container).expect("ends"), ExitStatus::Exited(7));
}

/// Processes whose parent is this one.
pub fn children() -> Vec<i32> {
    children_of(std::process::id() as i32)
}

pub fn children_of(parent: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()).collect()
}

/// True when the only child of a process has its root in this fixture.
pub fn holds(server: i32, fixture: &Fixture) -> bool {
    let upper = fixture.path("upper").display().to_string();
    children_of(server)
        .iter()
        .any(|child| fs::read_to_string(format!("/proc/{child}/mountinfo")).is_ok_and(|mounts| mounts.contains(&upper)))
}

fn dropping_kills() {
    let fixture = Fixture::new();
    let (out, out_write) = pipe();
    let io = Stdio { stdout: StdioTarget::Fd(out_write), ..Stdio::default() };
    let container = executor().create(&id(), &fixture.shell("sleep 1000"), io).expect("creates");
    container.start().expect("starts");
    drop(container);
    drain(out).recv_timeout(DEADLINE).expect("dead");
    // One that was never started goes as quietly.
    drop(executor().create(&id(), &fixture.shell("true"), Stdio::default()).expect("creates"));
}

fn host_mounts() {
    let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let before = mounts();
    let fixture = Fixture::new();
    let container = executor().create(&id(), &fixture.shell("sleep 1000"), Stdio::default()).expect("creates");
    container.start().expect("starts");
    assert_eq!(mounts(), before);
    container.delete().expect("deletes");
    assert_eq!(mounts(), before);
    let spec = fixture.shell("mount -t tmpfs x /mnt && umount /proc/sys").privileged();
    run(&spec).expect("runs");
    assert_eq!(mounts(), before);
}

fn tmpfs(target: &str) -> MountSpec {
    MountSpec::new(target, MountSource::Tmpfs { size: Some(1 << 20), mode: 0o700 }, false)
}

fn mount_points() {
    let fixture = Fixture::new();
    std::os::unix::fs::symlink("/var/run", fixture.base("run")).expect("dangling link");
    let mtime =
        |name: &str| fs::metadata(fixture.base(name)).map(|data| (data.mtime(), data.mtime_nsec())).expect(name);
    let before = mtime("etc");
    let mut spec =
        fixture.shell("stat -f -c %T /root/.cache/deep /etc/new /run/x; stat -c %a /etc/new; ls -A /etc/new");
    spec.mounts = vec![tmpfs("/root/.cache/deep"), tmpfs("/etc/new"), tmpfs("/run/x")];
    assert_eq!(run(&spec).expect("runs").success(), "tmpfs\ntmpfs\ntmpfs\n700\n");
    // Parents were copied up, since something was made in them, but are as they were.
    assert_eq!(fixture.upper(), ["etc", "root"]);
    let copied = fs::metadata(fixture.path("upper/etc")).expect("etc");
    assert_eq!((copied.mtime(), copied.mtime_nsec()), before);
}

fn file(target: &str, content: &str) -> MountSpec {
    MountSpec::new(target, MountSource::File { content: content.into(), mode: 0o644 }, true)
}

fn generated_files() {
    let fixture = Fixture::new();
    let mut spec = fixture.shell(
        "cat /etc/hosts /etc/resolv.conf /etc/hostname /opt/x; stat -c %a:%u /etc/hosts; echo x 2>&1 >>/etc/hosts; true",
    );
    spec.mounts = vec![file("/etc/hosts", "h\n"), file("/etc/resolv.conf", "r\n"), file("/etc/hostname", "n\n")];
    let mut more = spec.clone();
    more.mounts.push(file("/opt/x", "x\n"));
    spec.process.args[2] = "cat /etc/hosts /etc/resolv.conf /etc/hostname".into();
    assert_eq!(run(&spec).expect("runs").success(), "h\nr\nn\n");
    // The three usual files come from the lowest layer and not even touch the upper one.
    assert_eq!(fixture.upper(), Vec::<String>::new());
    let text = run(&more).expect("runs").success();
    assert_eq!(text, "h\nr\nn\nx\n644:0\n/bin/sh: can't create /etc/hosts: Read-only file system\n");
    assert_eq!(fixture.upper(), Vec::<String>::new());
}

fn many_at_once() {
    let workers: Vec<_> = (0..8)
        .map(|worker| {
            std::thread::spawn(move || {
                for round in 0..8 {
                    let text = output(&format!("set -- /proc/[0-9]*; echo {worker}-{round} $#"));
                    assert_eq!(text, format!("{worker}-{round} 1\n"));
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().expect("all rounds"));
}

fn changes_stay() {
    let fixture = Fixture::new();
    run(&fixture.shell("echo new >/tmp/new; rm /etc/passwd")).expect("runs").success();
    assert_eq!(fixture.upper(), ["etc", "etc/passwd", "tmp", "tmp/new"]);
    let whiteout = fs::symlink_metadata(fixture.path("upper/etc/passwd")).expect("whiteout");
    assert_eq!((whiteout.mode() & 0o170_000, whiteout.rdev()), (0o020_000, 0));
}
