//! Containers that an OCI runtime makes: the same promises, kept by other means.

use crate::fixture::{DEADLINE, Fixture, drain, executor, id, pipe, run_on, wait};
use crate::probe;
use forge_executor::{
    Container, ContainerId, Executor, ExecutorError, ExitStatus, Hidden, MountSource, MountSpec, NamespaceExecutor,
    Resources, RuntimeExecutor, SharedGroup, Stdio, StdioTarget, SwapLimit,
};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use tempfile::TempDir;

pub const TESTS: &[(&str, fn())] = &[
    ("privileged_oci_runs_and_tells_how_it_ended", ends),
    ("privileged_oci_programs_that_cannot_run", programs),
    ("privileged_oci_mounts_and_secrets", mounts),
    ("privileged_oci_names", names),
    ("privileged_oci_terminal", terminal),
    ("privileged_oci_signals_and_kill", signals),
    ("privileged_oci_memory", memory),
    ("privileged_oci_init", init),
    ("privileged_oci_containers_can_share_a_limit", shared_limit),
    ("privileged_oci_leaves_nothing", leaves_nothing),
    ("privileged_oci_dropping_kills", dropping_kills),
    ("privileged_oci_a01_working_directory_in_procfs", a01_working_directory),
    ("privileged_oci_a81_a84_system_calls", a81_a84_surface),
    ("privileged_oci_s5_probe", s5_probe),
    ("privileged_s5_table_beside_runc", s5_table),
];

/// The runtimes of this machine.
pub fn runtimes() -> &'static [(&'static str, RuntimeExecutor)] {
    static ALL: OnceLock<(TempDir, Vec<(&str, RuntimeExecutor)>)> = OnceLock::new();
    let make = || {
        let directory = tempfile::tempdir().expect("temporary directory");
        let namespaces = Arc::new(NamespaceExecutor::new(&directory.path().join("run")).expect("executor"));
        let found = ["runc", "crun"].into_iter().filter_map(|name| Some((name, program(name)?)));
        let all = found.map(|(name, path)| (name, RuntimeExecutor::new(namespaces.clone(), &path))).collect();
        (directory, all)
    };
    let (_, all) = ALL.get_or_init(make);
    if all.is_empty() {
        let required = std::env::var_os("FORGE_REQUIRE_PRIVILEGED").is_some_and(|value| value == "1");
        assert!(!required, "needs runc or crun");
        println!("SKIPPED (needs runc or crun)");
    }
    all
}

fn program(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.exists())
}

fn ends() {
    for (name, runtime) in runtimes() {
        let fixture = Fixture::new();
        let ran = run_on(runtime, &fixture.shell("echo out; echo err >&2; echo $PPID; exit 7")).expect(name);
        assert_eq!((ran.status, ran.stderr.as_str()), (ExitStatus::Exited(7), "err\n"), "{name}");
        assert_eq!(ran.stdout, "out\n0\n", "{name}");
        let daemon = run_on(runtime, &fixture.shell("(setsid sleep 1000 &); echo done")).expect(name);
        assert_eq!((daemon.status, daemon.stdout.as_str()), (ExitStatus::Exited(0), "done\n"), "{name}");
    }
}

fn programs() {
    for (name, runtime) in runtimes() {
        let fixture = Fixture::new();
        fs::write(fixture.base("bin/text"), "no program").expect("file");
        let error = |program: &str| run_on(runtime, &fixture.spec(&[program])).err();
        assert!(matches!(error("nosuch"), Some(ExecutorError::NotFound { .. })), "{name} {:?}", error("nosuch"));
        assert!(matches!(error("/bin/text"), Some(ExecutorError::NotExecutable { .. })), "{name}");
        assert!(matches!(error("/etc"), Some(ExecutorError::NotExecutable { .. })), "{name}");
    }
}

fn mounts() {
    for (name, runtime) in runtimes() {
        let fixture = Fixture::new();
        let mut spec = fixture.shell(
            "cat /new/place/file /run/secret; stat -c %a:%U /run/secret; echo $TOKEN; ls /scratch; touch /new/place/x",
        );
        let secret = Hidden::new(*b"quiet\n");
        spec.mounts = vec![
            MountSpec::new("/new/place/file", MountSource::File { content: b"shown\n".to_vec(), mode: 0o644 }, true),
            MountSpec::new("/run/secret", MountSource::Secret { content: secret, mode: 0o400, uid: 0, gid: 0 }, true),
            MountSpec::new("/scratch", MountSource::Tmpfs { size: Some(4096), mode: 0o777 }, false),
            MountSpec::new("/dev/given", MountSource::Bind(fixture.path("canary")), true),
        ];
        spec.process.secret_env = vec![Hidden::new(*b"TOKEN=hidden")];
        let ran = run_on(runtime, &spec).expect(name);
        assert_eq!(ran.stdout, "shown\nquiet\n400:root\nhidden\n", "{name} {}", ran.stderr);
        assert_eq!(fixture.upper(), ["new", "new/place", "new/place/x"], "{name}: what was made for mounts is gone");
        let mut seen = fixture.shell("cat /dev/given/flag");
        seen.mounts = vec![MountSpec::new("/dev/given", MountSource::Bind(fixture.path("canary")), true)];
        assert_eq!(run_on(runtime, &seen).expect(name).stdout, fixture.token, "{name}");
    }
}

fn names() {
    let (host, domain) = (read("kernel/hostname"), read("kernel/domainname"));
    for (name, runtime) in runtimes() {
        let fixture = Fixture::new();
        let mut spec = fixture.shell("cd /proc/sys/kernel; cat hostname domainname");
        spec.hostname = "box".into();
        spec.domain = "nis".into();
        assert_eq!(run_on(runtime, &spec).expect(name).stdout, "box\nnis\n", "{name}");
    }
    assert_eq!((read("kernel/hostname"), read("kernel/domainname")), (host, domain));
}

fn read(setting: &str) -> String {
    fs::read_to_string(Path::new("/proc/sys").join(setting)).expect("a setting")
}

fn terminal() {
    for (name, runtime) in runtimes() {
        let fixture = Fixture::new();
        let mut spec = fixture.shell("tty; stty size; read line; echo \"<$line>\"");
        spec.process.terminal = true;
        let container: Arc<dyn Container> = runtime.create(&id(), &spec, Stdio::default()).expect(name).into();
        container.resize(97, 31).expect("resizes");
        let mut pty = fs::File::from(container.pty().expect("a terminal"));
        container.start().expect("starts");
        pty.write_all(b"typed\n").expect("types");
        let output = drain(pty.try_clone().expect("copies").into());
        assert_eq!(wait(&container).expect("ends"), ExitStatus::Exited(0), "{name}");
        drop((pty, container));
        let text = output.recv_timeout(DEADLINE).expect("the end");
        for part in ["/dev/pts/0", "31 97", "<typed>"] {
            assert!(text.contains(part), "{name}: {part} is missing in {text:?}");
        }
    }
}

fn signals() {
    for (name, runtime) in runtimes() {
        let fixture = Fixture::new();
        let (out, out_write) = pipe();
        let io = Stdio { stdout: StdioTarget::Fd(out_write), ..Stdio::default() };
        let spec = fixture.shell("trap 'echo caught' TERM; echo ready; while :; do sleep 0.05; done");
        let container: Arc<dyn Container> = runtime.create(&id(), &spec, io).expect(name).into();
        container.start().expect("starts");
        let mut lines = BufReader::new(fs::File::from(out)).lines();
        assert_eq!(lines.next().expect("a line").expect("text"), "ready");
        container.signal(libc::SIGTERM).expect("signals");
        assert_eq!(lines.next().expect("a line").expect("text"), "caught");
        container.kill_all().expect("kills");
        assert_eq!(wait(&container).expect("ends"), ExitStatus::Signaled { signal: 9 }, "{name}");
    }
}

fn memory() {
    for (name, runtime) in runtimes() {
        let fixture = Fixture::new();
        let mut spec = fixture.shell("x=a; while :; do x=$x$x; done");
        spec.resources.memory = Some(16 << 20);
        let ended = run_on(runtime, &spec).expect(name).status;
        assert_eq!(ended, ExitStatus::OutOfMemory { limit: 16 << 20 }, "{name}");
    }
}

/// The first process is forge's, in a container that has no program but one, and does what it does in containers of forge's own.
fn init() {
    for (name, runtime) in runtimes() {
        let with = |script: &str| {
            let fixture = Fixture::new();
            let mut spec = fixture.shell(script);
            spec.process.reaper = true;
            let ran = run_on(runtime, &spec).expect(name);
            // Nothing of it is part of the image.
            assert_eq!(fixture.upper(), Vec::<String>::new(), "{name}");
            ran
        };
        let script =
            "(sh -c 'sleep 0.1 &'); sleep 0.3; cat /proc/1/comm; echo $PPID; ps | grep -c '\\[sleep\\]'; exit 7";
        let ran = with(script);
        assert_eq!(
            (ran.stdout.as_str(), ran.status),
            ("forge-init\n1\n0\n", ExitStatus::Exited(7)),
            "{name} {}",
            ran.stderr
        );
        // What the first process of a namespace is sent from within it reaches the program.
        let ran = with("trap 'echo told; exit 3' TERM; kill -TERM 1; while :; do sleep 0.05; done");
        assert_eq!((ran.stdout.as_str(), ran.status), ("told\n", ExitStatus::Exited(3)), "{name} {}", ran.stderr);
        let fixture = Fixture::new();
        let mut missing = fixture.spec(&["nosuch"]);
        missing.process.reaper = true;
        assert!(matches!(run_on(runtime, &missing).err(), Some(ExecutorError::NotFound { .. })), "{name}");
    }
}

/// Two containers have less together than either may have.
///
/// Seen to fail (both ended by themselves) without the limit set on the group of both.
fn shared_limit() {
    for (name, runtime) in runtimes() {
        let id_of_both = ContainerId::new(format!("oci-shared-{name}-{}", std::process::id())).expect("id");
        let resources = Resources { memory: Some(48 << 20), cpuset_cpus: Some("0".into()), ..Resources::default() };
        let shared = SharedGroup { id: id_of_both.clone(), resources };
        let script =
            "grep Cpus_allowed_list /proc/self/status; dd if=/dev/zero of=/dev/shm/x bs=1M count=30 && sleep 4";
        let fixtures = [Fixture::new(), Fixture::new()];
        let spec = |fixture: &Fixture| {
            let mut spec = fixture.shell(script);
            spec.resources.memory = Some(40 << 20);
            spec.resources.memory_swap = Some(SwapLimit::Total(40 << 20));
            spec.group.shared = Some(shared.clone());
            spec
        };
        let [one, other] = fixtures.each_ref().map(spec);
        let (first, second) = std::thread::scope(|scope| {
            let first = scope.spawn(|| run_on(runtime, &one).expect(name));
            let second = run_on(runtime, &other).expect(name);
            (first.join().expect("ran"), second)
        });
        let killed = [&first, &second].iter().filter(|ran| ran.status != ExitStatus::Exited(0)).count();
        assert!(killed >= 1, "{name} {:?} {:?}", first.status, second.status);
        assert!(first.stdout.contains("list:\t0\n") && second.stdout.contains("list:\t0\n"), "{}", first.stdout);
        // One alone has enough, and nothing of the group stays.
        assert_eq!(run_on(runtime, &spec(&Fixture::new())).expect(name).status, ExitStatus::Exited(0), "{name}");
        assert_eq!(folders_of(id_of_both.as_str()), Vec::<PathBuf>::new(), "{name}");
    }
}

/// Groups of that name in any hierarchy.
fn folders_of(name: &str) -> Vec<PathBuf> {
    let found = Command::new("find").args(["/sys/fs/cgroup", "-name", &format!("*{name}*")]).output().expect("finds");
    String::from_utf8_lossy(&found.stdout).lines().map(PathBuf::from).collect()
}

fn groups() -> Vec<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").expect("groups");
    let top = Path::new("/sys/fs/cgroup");
    let controllers = fs::read_dir(top).expect("hierarchies").flatten().map(|entry| entry.path());
    let paths =
        own.lines().filter_map(|line| line.rsplit(':').next()).map(|path| path.trim_start_matches('/').to_owned());
    let paths: Vec<_> = paths.collect();
    let places = controllers.flat_map(|folder| paths.iter().map(move |path| folder.join(path)).collect::<Vec<_>>());
    let entries = places.filter_map(|place| fs::read_dir(place).ok()).flat_map(|entries| entries.flatten());
    let mut all: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.display().to_string().contains("forge-c-oci-own"))
        .collect();
    all.sort();
    all
}

/// F22: no group, no mount, no process, no file of the runtime.
fn leaves_nothing() {
    for (name, runtime) in runtimes() {
        let fixture = Fixture::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let spec = fixture.shell("sleep 1000");
        let own = forge_executor::ContainerId::new(format!("oci-own-{name}")).expect("valid id");
        let container: Arc<dyn Container> = runtime.create(&own, &spec, Stdio::default()).expect(name).into();
        container.start().expect("starts");
        assert!(!groups().is_empty(), "{name}: the container is in groups of its own");
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").expect("mounts"), mounts, "{name}");
        container.delete().expect("deletes");
        assert_eq!(groups(), Vec::<PathBuf>::new(), "{name}");
        assert!(!Path::new("/run").join(name).join("container").exists(), "{name}");
    }
}

fn dropping_kills() {
    for (name, runtime) in runtimes() {
        let fixture = Fixture::new();
        for start in [false, true] {
            let (out, out_write) = pipe();
            let io = Stdio { stdout: StdioTarget::Fd(out_write), ..Stdio::default() };
            let container = runtime.create(&id(), &fixture.shell("sleep 1000"), io).expect(name);
            if start {
                container.start().expect("starts");
            }
            drop(container);
            drain(out).recv_timeout(DEADLINE).expect("all dead");
        }
    }
}

fn a01_working_directory() {
    for (name, runtime) in runtimes() {
        let fixture = Fixture::new();
        std::os::unix::fs::symlink("/proc/self/fd", fixture.base("way")).expect("link");
        for folder in (3..12).flat_map(|number| [format!("/proc/self/fd/{number}"), format!("/way/{number}")]) {
            let mut spec = fixture.shell("cat ../../../../canary/flag");
            spec.process.cwd = folder.clone().into();
            let ran = run_on(runtime, &spec);
            assert!(ran.is_err(), "{name} {folder} {:?}", ran.ok().map(|ran| ran.stdout));
        }
        assert_eq!(fixture.upper(), Vec::<String>::new(), "{name}: nothing is made in what is procfs later");
    }
}

fn a81_a84_surface() {
    for (name, runtime) in runtimes() {
        let fixture = Fixture::new();
        for attack in ["families", "calls"] {
            let spec = fixture.payload(&[attack]);
            let own = run_on(executor(), &spec).expect("runs").success();
            assert_eq!(run_on(runtime, &spec).expect(name).success(), own, "{name} {attack}");
        }
    }
}

/// Where what a runtime makes differs from what forge makes, and why: `docs/design/008-sandbox-profile.md`.
fn s5_probe() {
    for (name, runtime) in runtimes() {
        let own = probe::of(executor(), 0);
        let through = probe::of(runtime, 0);
        let differs: Vec<_> = through.lines().filter(|line| !own.lines().any(|other| other == *line)).collect();
        let allowed = |line: &str| {
            ["dev_list=", "mnt /", "fd 3=", "Seccomp_filters="].iter().any(|start| line.starts_with(start))
        };
        let surprising: Vec<_> = differs.iter().filter(|line| !allowed(line)).collect();
        assert!(surprising.is_empty(), "{name}: {surprising:#?}");
        for line in ["cgroup_root=denied", "ns_cgroup=its own", "ns_time=its own"] {
            assert!(through.lines().any(|other| other == line), "{name}: {line}\n{through}");
        }
        // A user cannot even make it.
        let tun = |text: &str| text.lines().find(|line| line.starts_with("dev c 10 200=")).map(str::to_owned);
        assert!(tun(&through) == tun(&own) && tun(&own) != Some("dev c 10 200=OPENED".to_owned()), "{name}\n{through}");
    }
}

/// The table: forge, forge through runc, and runc with the configuration that docker gives it.
fn s5_table() {
    let Some((_, runtime)) = runtimes().iter().find(|(name, _)| *name == "runc") else { return };
    let columns = [probe::of(executor(), 0), probe::of(runtime, 0), alone()];
    println!("| S5 | forge | forge through runc | runc alone |\n|---|---|---|---|");
    let key = |line: &str| line.split_once('=').map_or(line, |(key, _)| key).to_owned();
    let mut keys: Vec<String> = Vec::new();
    for line in columns.iter().flat_map(|text| text.lines()) {
        if !keys.contains(&key(line)) {
            keys.push(key(line));
        }
    }
    let value = |text: &str, wanted: &str| {
        let line = text.lines().rfind(|line| key(line) == wanted);
        line.map_or("–".to_owned(), |line| line.split_once('=').map_or("yes", |(_, value)| value).to_owned())
    };
    for wanted in &keys {
        let row = columns.each_ref().map(|text| value(text, wanted));
        println!("| {wanted} | {} |", row.join(" | "));
    }
    let [forge, _, runc] = columns.each_ref().map(|text| move |wanted: &str| value(text, wanted));
    for (wanted, ours, theirs) in [
        ("dev c 10 200", "open-denied", "OPENED"),
        ("cgroup_root", "denied", "WRITABLE"),
        ("ns_time", "its own", "the caller's"),
        // What is not forge's merit: docker's filter does the same.
        ("Seccomp", "2", "2"),
        ("userns", "denied", "denied"),
        ("mount", "denied", "denied"),
    ] {
        assert_eq!(forge(wanted), ours, "{wanted}");
        // A later runc, or a machine without version 1, may have caught up: then the table says so.
        if runc(wanted) != theirs {
            println!("runc has caught up: {wanted} is {:?}", runc(wanted));
        }
    }
}

/// docker's default for its fourteen capabilities, by what it denies.
fn filter() -> serde_json::Value {
    let denied = "_sysctl acct add_key bpf clock_settime clock_settime64 create_module delete_module fanotify_init \
                  finit_module fsconfig fsmount fsopen fspick get_kernel_syms get_mempolicy init_module io_uring_enter \
                  io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind \
                  migrate_pages mount mount_setattr move_mount move_pages nfsservctl open_by_handle_at open_tree \
                  perf_event_open pidfd_getfd pivot_root process_madvise query_module quotactl quotactl_fd reboot \
                  request_key set_mempolicy setdomainname sethostname setns settimeofday stime swapoff swapon sysfs syslog \
                  umount umount2 unshare uselib userfaultfd ustat vhangup vm86 vm86old";
    let denied: Vec<_> = denied.split_whitespace().collect();
    // CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
    let namespaces = 0x7e02_0000_u64;
    let any = |bit: u64| serde_json::json!({ "index": 0, "value": bit, "valueTwo": bit, "op": "SCMP_CMP_MASKED_EQ" });
    let bits = (0..64).map(|shift| 1 << shift).filter(|bit| namespaces & bit != 0);
    let clone = bits.map(
        |bit| serde_json::json!({ "names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [any(bit)] }),
    );
    let calls = [
        serde_json::json!({ "names": denied, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }),
        serde_json::json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }),
    ];
    serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": calls.into_iter().chain(clone).collect::<Vec<_>>() })
}

/// runc, told what docker tells it.
fn alone() -> String {
    let fixture = Fixture::new();
    let bundle = fixture.path("base");
    let made = Command::new("runc").args(["spec", "--bundle"]).arg(&bundle).status().expect("runc");
    assert!(made.success());
    let text = fs::read_to_string(bundle.join("config.json")).expect("a bundle");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let names = "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT \
                 KILL AUDIT_WRITE";
    let all: Vec<_> = names.split(' ').map(|name| format!("CAP_{name}")).collect();
    let process = &mut config["process"];
    process["terminal"] = false.into();
    process["noNewPrivileges"] = false.into();
    process["args"] = serde_json::json!(["/bin/sh", "-c", probe::SCRIPT]);
    process["env"] = serde_json::json!([
        format!("PATH={}", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        "HOME=/root"
    ]);
    process["capabilities"] = serde_json::json!({ "bounding": all, "effective": all, "permitted": all });
    config["root"] = serde_json::json!({ "path": ".", "readonly": false });
    config["linux"]["resources"]["devices"] = serde_json::json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "access": "m" },
        { "allow": true, "type": "b", "access": "m" },
    ]);
    config["linux"]["seccomp"] = filter();
    fs::write(bundle.join("config.json"), config.to_string()).expect("writes");
    let state = fixture.path("state");
    let mut command = Command::new("runc");
    command.arg("--root").arg(&state).args(["run", "--bundle"]).arg(&bundle).arg("forge-s5-alone");
    let ran = command.stdin(std::process::Stdio::null()).output().expect("runc");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    probe::normalise(&String::from_utf8_lossy(&ran.stdout))
}
