//! What the process is and gets.

use crate::fixture::{Fixture, drain, executor, id, output, pipe, run, wait};
use forge_executor::{
    Capabilities, Container, ErrorKind, Executor, ExecutorError, ExitStatus, NetworkMode, ProcessUser, Rlimit,
    RlimitResource, RootFs, Stdio, StdioTarget,
};
use std::io::Write;
use std::sync::Arc;

pub const TESTS: &[(&str, fn())] = &[
    ("privileged_exit_codes_and_signals", exit_codes),
    ("privileged_environment_is_the_given_one", environment),
    ("privileged_working_directory", working_directory),
    ("privileged_user_and_groups", user_and_groups),
    ("privileged_missing_and_unfit_programs_differ", unfit_programs),
    ("privileged_program_is_found_in_the_root", program_in_root),
    ("privileged_host_name", host_name),
    ("privileged_umask_and_limits", umask_and_limits),
    ("privileged_standard_streams", standard_streams),
    ("privileged_terminal", terminal),
    ("privileged_read_only_root", read_only_root),
    ("privileged_network_none", network_none),
    ("privileged_no_new_privileges", no_new_privileges),
    ("privileged_a20_oversized_arguments", oversized_arguments),
    ("privileged_full_privileges", full_privileges),
    ("privileged_plain_directory_as_root", plain_directory),
    ("privileged_no_signal_is_ignored", signals),
    ("privileged_many_layers", many_layers),
    ("privileged_invalid_specifications", invalid_specifications),
];

fn exit_codes() {
    let status = |script: &str| run(&Fixture::new().shell(script)).expect("runs").status;
    assert_eq!(status("exit 0"), ExitStatus::Exited(0));
    assert_eq!(status("exit 7"), ExitStatus::Exited(7));
    assert_eq!(status("sh -c 'kill -9 $$'; exit $?"), ExitStatus::Exited(137));
    let fixture = Fixture::new();
    let container = executor().create(&id(), &fixture.shell("sleep 100"), Stdio::default()).expect("creates");
    container.start().expect("starts");
    container.signal(libc::SIGKILL).expect("signals");
    let status = container.wait().expect("ends");
    assert_eq!((status, status.code()), (ExitStatus::Signaled { signal: 9 }, 137));
    container.signal(libc::SIGTERM).expect("no error after the end");
}

fn environment() {
    let fixture = Fixture::new();
    let mut spec = fixture.spec(&["/bin/env"]);
    spec.process.env = vec!["A=1".into(), "B=two words".into()];
    assert_eq!(run(&spec).expect("runs").success(), "A=1\nB=two words\n");
    spec.process.env = Vec::new();
    assert_eq!(run(&spec).expect("runs").success(), "");
}

fn working_directory() {
    let fixture = Fixture::new();
    std::os::unix::fs::symlink("/tmp", fixture.base("link")).expect("link");
    let at = |cwd: &str| {
        let mut spec = fixture.shell("/bin/pwd -P");
        spec.process.cwd = cwd.into();
        run(&spec).expect("runs").success()
    };
    assert_eq!(at("/"), "/\n");
    assert_eq!(at("/etc"), "/etc\n");
    assert_eq!(at("/new/deep"), "/new/deep\n");
    assert_eq!(at("/link"), "/tmp\n");
    assert_eq!(fixture.upper(), ["new", "new/deep"]);
    let mut spec = fixture.shell("stat -c '%a %u %g' /own /own/deep; touch here");
    spec.process.cwd = "/own/deep".into();
    spec.process.user = ProcessUser { uid: 1000, gid: 100, additional_gids: Vec::new() };
    assert_eq!(run(&spec).expect("runs").success(), "755 1000 100\n755 1000 100\n");
    let mut spec = fixture.shell("pwd");
    spec.process.cwd = "relative".into();
    assert!(matches!(run(&spec), Err(ExecutorError::WorkingDirectory { .. })));
    spec.process.cwd = "/etc/passwd".into();
    let error = run(&spec).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::UserInput, "{error}");
}

fn user_and_groups() {
    let fixture = Fixture::new();
    let mut spec =
        fixture.shell("id -u; id -g; id -G; grep ^Cap /proc/self/status; touch /tmp/mine; stat -c %u:%g /tmp/mine");
    spec.process.user = ProcessUser { uid: 1000, gid: 100, additional_gids: vec![100, 7, 2000] };
    let text = run(&spec).expect("runs").success();
    let capabilities = "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
                        CapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\n";
    assert_eq!(text, format!("1000\n100\n100 7 2000\n{capabilities}1000:100\n"));
}

fn unfit_programs() {
    let fixture = Fixture::new();
    std::fs::write(fixture.base("etc/data"), "no program").expect("file");
    std::fs::write(fixture.base("bin/garbage"), "\x7fELF garbage").expect("file");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(fixture.base("bin/garbage"), mode).expect("mode");
    for missing in ["nothing", "/bin/nothing", "./nothing", "/etc/passwd/x"] {
        let error = run(&fixture.spec(&[missing])).err().expect("fails");
        assert!(matches!(&error, ExecutorError::NotFound { program } if *program == *missing), "{error}");
    }
    for unfit in ["/etc/data", "/etc", "/bin/garbage", "garbage"] {
        let error = run(&fixture.spec(&[unfit])).err().expect("fails");
        assert!(matches!(&error, ExecutorError::NotExecutable { program, .. } if *program == *unfit), "{error}");
    }
}

/// The host's PATH and the host's /usr/bin are of no account.
fn program_in_root() {
    let fixture = Fixture::new();
    std::fs::create_dir(fixture.base("tools")).expect("directory");
    std::os::unix::fs::symlink("/bin/busybox", fixture.base("tools/hostname-is-not-here")).expect("link");
    let mut spec = fixture.spec(&["busybox", "echo", "found"]);
    spec.process.env = vec!["PATH=/nowhere:/bin".into()];
    assert_eq!(run(&spec).expect("runs").success(), "found\n");
    spec.process.env = vec!["PATH=/tools".into()];
    assert!(matches!(run(&spec), Err(ExecutorError::NotFound { .. })));
    let python = fixture.spec(&["/usr/bin/unshare"]);
    assert!(matches!(run(&python), Err(ExecutorError::NotFound { .. })));
}

fn host_name() {
    let fixture = Fixture::new();
    let mut spec = fixture.shell("hostname");
    spec.hostname = "inside".into();
    let before = rustix::system::uname().nodename().to_owned();
    assert_eq!(run(&spec).expect("runs").success(), "inside\n");
    assert_eq!(rustix::system::uname().nodename(), before.as_c_str());
}

fn umask_and_limits() {
    let fixture = Fixture::new();
    let mut spec = fixture.shell("umask; ulimit -Sn; ulimit -Hc; ulimit -St");
    spec.process.umask = 0o027;
    spec.process.rlimits.push(Rlimit { resource: RlimitResource::Cpu, soft: 77, hard: 78 });
    assert_eq!(run(&spec).expect("runs").success(), "0027\n1024\n0\n77\n");
}

fn standard_streams() {
    let fixture = Fixture::new();
    let text = run(&fixture.shell("readlink /proc/self/fd/0; echo to-stderr >&2")).expect("runs");
    assert_eq!((text.stdout.as_str(), text.stderr.as_str()), ("/dev/null\n", "to-stderr\n"));
    let ((input, mut feed), (out, out_write)) = (pipe_files(), pipe());
    feed.write_all(b"through").expect("writes");
    drop(feed);
    let mut spec = fixture.shell("cat; echo and-anew >/dev/stdout");
    spec.process.user.uid = 1000;
    let io = Stdio { stdin: StdioTarget::Fd(input), stdout: StdioTarget::Fd(out_write), stderr: StdioTarget::Null };
    let text = drain(out);
    let container: Arc<dyn Container> = executor().create(&id(), &spec, io).expect("creates").into();
    container.start().expect("starts");
    assert_eq!(wait(&container).expect("ends"), ExitStatus::Exited(0));
    assert_eq!(text.recv().expect("text"), "throughand-anew\n");
}

fn pipe_files() -> (std::os::fd::OwnedFd, std::fs::File) {
    let (read, write) = pipe();
    (read, write.into())
}

fn terminal() {
    let fixture = Fixture::new();
    let mut spec =
        fixture.shell("tty; stty size; : >/dev/tty && echo has-tty; stat -c %t:%u /dev/console /dev/pts/0; exit 5");
    spec.process.terminal = true;
    spec.process.user.uid = 1000;
    let container: Arc<dyn Container> = executor().create(&id(), &spec, Stdio::default()).expect("creates").into();
    container.resize(91, 33).expect("resizes");
    let text = drain(container.pty().expect("terminal"));
    container.start().expect("starts");
    assert_eq!(wait(&container).expect("ends"), ExitStatus::Exited(5));
    container.delete().expect("deletes");
    assert_eq!(text.recv().expect("text"), "/dev/pts/0\r\n33 91\r\nhas-tty\r\n88:1000\r\n88:1000\r\n");
    let without = executor().create(&id(), &fixture.shell("true"), Stdio::default()).expect("creates");
    assert!(without.pty().is_none() && without.resize(1, 1).is_err());
}

fn read_only_root() {
    let fixture = Fixture::new();
    let mut spec = fixture.shell("touch /x 2>&1; touch /dev/shm/x && echo shm");
    spec.readonly_root = true;
    assert_eq!(run(&spec).expect("runs").success(), "touch: /x: Read-only file system\nshm\n");
}

fn network_none() {
    let fixture = Fixture::new();
    let mut spec = fixture.shell("ls /sys/class/net; ip -o link show lo | grep -c LOOPBACK,UP; ip route");
    spec.network = NetworkMode::None;
    assert_eq!(run(&spec).expect("runs").success(), "lo\n1\n");
}

fn no_new_privileges() {
    let fixture = Fixture::new();
    let mut spec = fixture.shell("grep NoNewPrivs /proc/self/status");
    spec.process.no_new_privileges = true;
    assert_eq!(run(&spec).expect("runs").success(), "NoNewPrivs:\t1\n");
}

fn oversized_arguments() {
    let fixture = Fixture::new();
    let mut spec = fixture.shell("true");
    // The kernel takes 6 MiB in all at most, and 128 KiB in one string.
    spec.process.env.extend((0..100).map(|number| format!("V{number}={}", "x".repeat(100_000)).into()));
    assert!(matches!(run(&spec), Err(ExecutorError::ArgumentsTooLong)));
    spec.process.env = vec![format!("V={}", "x".repeat(200_000)).into()];
    assert!(matches!(run(&spec), Err(ExecutorError::ArgumentsTooLong)));
    spec.process.env = vec!["V=zero\0byte".into()];
    assert!(matches!(run(&spec), Err(ExecutorError::InvalidSpec { .. })));
}

fn full_privileges() {
    let fixture = Fixture::new();
    let script = "grep -E 'CapEff|Seccomp:' /proc/self/status; mount -t tmpfs x /mnt && echo mounted; \
                  mknod /tmp/mem c 1 11 && : </tmp/mem && echo opened";
    let spec = fixture.shell(script).privileged();
    let held = Capabilities::from_bits(u64::MAX);
    let text = run(&spec).expect("runs").success();
    assert!(text.ends_with("Seccomp:\t0\nmounted\nopened\n"), "{text}");
    assert!(held.contains(Capabilities::DEFAULT) && !text.contains("a80425fb"), "{text}");
}

fn plain_directory() {
    let fixture = Fixture::new();
    let mut spec = fixture.shell("echo written >/tmp/file; ls /");
    spec.root = RootFs::Directory(fixture.path("base"));
    assert_eq!(run(&spec).expect("runs").success(), "bin\ndev\netc\nmnt\nproc\nroot\nsys\ntmp\n");
    assert_eq!(std::fs::read_to_string(fixture.base("tmp/file")).expect("file"), "written\n");
    // The mount points were made for the container and are gone with it.
    assert!(!fixture.base("proc").exists() && !fixture.base("dev").exists() && !fixture.base("sys").exists());
}

/// Seen to fail with the actions that the C library lets one reset.
fn signals() {
    let none = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n";
    assert_eq!(output("exec grep -E 'SigBlk|SigIgn' /proc/self/status"), none);
}

/// As many as the kernel takes: Linux before 6.7 reads them from one option of 255 bytes.
fn many_layers() {
    let fixture = Fixture::new();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map_while(|part| part.parse::<u32>().ok());
    let old = (numbers.next(), numbers.next()) < (Some(6), Some(7));
    let count = if old { 59 } else { 499 };
    let mut lower: Vec<_> = (0..count)
        .map(|number| {
            let path = fixture.path(&format!("layer{number}"));
            std::fs::create_dir(&path).expect("layer");
            std::fs::write(path.join(format!("file{number}")), "").expect("file");
            path
        })
        .collect();
    lower.push(fixture.path("base"));
    let mut spec = fixture.shell("ls / | grep -c file");
    let RootFs::Overlay { lower: layers, .. } = &mut spec.root else { unreachable!("an overlay") };
    *layers = lower.clone();
    assert_eq!(run(&spec).expect("many layers").success(), format!("{count}\n"));
    assert_eq!(fixture.upper(), Vec::<String>::new());
    let RootFs::Overlay { lower: layers, .. } = &mut spec.root else { unreachable!("an overlay") };
    layers.resize(501, fixture.path("base"));
    assert!(matches!(run(&spec), Err(ExecutorError::InvalidSpec { .. })));
}

fn invalid_specifications() {
    let fixture = Fixture::new();
    let mut spec = fixture.shell("true");
    spec.id_mappings = Some(Default::default());
    let error = run(&spec).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(matches!(run(&fixture.spec(&[])), Err(ExecutorError::InvalidSpec { .. })));
    assert!(matches!(run(&fixture.spec(&[""])), Err(ExecutorError::InvalidSpec { .. })));
    assert_eq!(output("echo the executor still works"), "the executor still works\n");
}
