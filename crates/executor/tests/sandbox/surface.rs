//! Section 1e of the attack catalogue: what a process inside can reach.
//!
//! Scripts open the machine's own knobs and groups but write nothing: on broken code it would really be them.

use crate::fixture::{Fixture, drain, executor, id, output, run, wait};
use forge_executor::{
    Container, DeviceKind, DeviceNode, DevicePolicy, Executor, MountSource, MountSpec, NetworkMode, Stdio,
};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

pub const TESTS: &[(&str, fn())] = &[
    ("privileged_a81_socket_families", a81_families),
    ("privileged_a83_foreign_entries", a83_foreign),
    ("privileged_a84_kernel_surface", a84_surface),
    ("privileged_a84_unknown_calls", a84_unknown),
    ("privileged_a85_file_handles", a85_handles),
    ("privileged_a86_inheritable_capabilities", a86_inheritable),
    ("privileged_a87_devices", a87_devices),
    ("privileged_a87_granted_devices", a87_granted),
    ("privileged_a88_cgroups", a88_cgroups),
    ("privileged_a89_kernel_knobs", a89_knobs),
    ("privileged_a90_terminal_injection", a90_terminal),
    ("privileged_a91_process_visibility", a91_processes),
    ("privileged_a92_no_rendezvous", a92_rendezvous),
    ("privileged_a93_network_none", a93_network),
    ("privileged_a94_mount_propagation", a94_propagation),
    ("privileged_a97_set_user_id_on_mounts", a97_setuid),
];

fn payload(attack: &str) -> String {
    run(&Fixture::new().payload(&[attack])).expect("runs").success()
}

/// Seen to fail with `Seccomp::Unconfined`: 40 is open to root.
fn a81_families() {
    assert_eq!(payload("families"), "38 EPERM\n40 EPERM\n");
}

/// Seen to fail with `Seccomp::Unconfined`, and with the filter's i386 half answering as its x86-64 half.
fn a83_foreign() {
    let text = payload("foreign");
    let expected = "i386 mount EPERM\ni386 keyctl EPERM\ni386 io_uring_setup EPERM\ni386 bpf EPERM\n\
                    i386 unshare EPERM\ni386 getpid ok\nx32 mount EPERM\nx32 keyctl EPERM\n\
                    x32 io_uring_setup EPERM\nx32 getpid EPERM\n";
    assert_eq!(text, expected);
}

fn a84_surface() {
    let mut seen = 0;
    for line in payload("calls").lines() {
        let (name, outcome) = line.split_once(' ').expect("two words");
        let expected = match name {
            "clone3" => "ENOSYS",
            "ptrace" => "errno 3",
            "chroot" => "errno 14",
            _ => "EPERM",
        };
        assert_eq!(outcome, expected, "{name}");
        seen += 1;
    }
    assert!(seen > 50);
}

fn a84_unknown() {
    for line in payload("unknown").lines() {
        assert!(line.ends_with(" ENOSYS"), "{line}");
    }
}

fn a85_handles() {
    assert_eq!(payload("handle"), "EPERM\n");
    // The capability does not help without the filter's consent, nor the consent without the capability.
    let fixture = Fixture::new();
    let mut spec = fixture.payload(&["handle"]);
    spec.seccomp = forge_executor::Seccomp::Unconfined;
    assert_eq!(run(&spec).expect("runs").success(), "EPERM\n");
}

/// A program with inheritable file capabilities gains nothing, since nothing is inheritable.
fn a86_inheritable() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.base("gift")).expect("directory");
    fs::copy("/bin/busybox", fixture.base("gift/grep")).expect("copy");
    // Version 2 header, effective bit, no permitted, all inheritable.
    let attribute: Vec<u8> =
        [0x0200_0001u32, 0, u32::MAX, 0, u32::MAX].iter().flat_map(|word| word.to_le_bytes()).collect();
    let path = fixture.base("gift/grep");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&path, "security.capability", &attribute, flags).expect("file capabilities");
    let mut spec = fixture.spec(&["/gift/grep", "Cap[IPEA]", "/proc/self/status"]);
    spec.process.user.uid = 1000;
    let text = run(&spec).expect("runs").success();
    assert!(text.lines().all(|line| line.ends_with("0000000000000000")), "{text}");
    assert_eq!(text.lines().count(), 4);
}

/// Seen to fail (1:11 and 10:200 opened) without `CLONE_INTO_CGROUP`.
fn a87_devices() {
    let script = "for d in 'b 8 0' 'b 254 0' 'b 7 0' 'c 1 1' 'c 1 2' 'c 1 4' 'c 1 11' 'c 10 237' 'c 10 229' 'c 10 200' 'c 4 1'; do \
                  mknod /tmp/d $d || echo no-node $d; (: </tmp/d) 2>/tmp/e && echo OPENED $d; \
                  grep -q 'not permitted' /tmp/e || { echo $d; cat /tmp/e; }; (: >>/tmp/d) 2>/dev/null && echo WRITTEN $d; rm /tmp/d; done; \
                  for d in '1 3' '1 5' '1 7' '1 8' '1 9' ; do mknod /tmp/d c $d; (: </tmp/d) || echo refused $d; rm /tmp/d; done";
    assert_eq!(output(script), "");
}

/// Grants fuse for reading: it can be read, not written, and its neighbours and the same number as a disk stay shut. Seen to
/// fail (10:237 opened) with a program that takes a minor for the least one.
fn a87_granted() {
    let script = "for d in 'c 10 229' 'c 10 237' 'c 10 200' 'b 10 229' 'c 1 11'; do mknod /tmp/d $d; \
                  (: </tmp/d) 2>/tmp/e && echo OPENED $d; (: >>/tmp/d) 2>/dev/null && echo WRITTEN $d; rm /tmp/d; done";
    let fixture = Fixture::new();
    let mut spec = fixture.shell(script);
    let mut granted = [None; 16];
    let fuse = DeviceNode { kind: DeviceKind::Character, major: Some(10), minor: Some(229), read: true, write: false };
    granted[0] = Some(fuse);
    spec.devices = DevicePolicy::StandardAnd(granted);
    let expected = if fs::exists("/dev/fuse").unwrap_or(false) { "OPENED c 10 229\n" } else { "" };
    assert_eq!(run(&spec).expect("runs").success(), expected);
    granted[0] = Some(DeviceNode { write: true, ..fuse });
    spec.devices = DevicePolicy::StandardAnd(granted);
    assert_eq!(run(&spec).expect("runs").success(), expected.replace('\n', "\nWRITTEN c 10 229\n"));
}

/// Seen to fail with `/sys` mounted writable.
fn a88_cgroups() {
    let script = "cd /sys/fs/cgroup; stat -f -c %t .; for f in cgroup.procs cgroup.subtree_control cgroup.freeze cgroup.kill x; do \
                  (: >>$f) 2>&1 | grep -q 'Read-only' || echo WRITABLE $f; done; mkdir g 2>/dev/null && echo MADE; \
                  find / -xdev -name release_agent 2>/dev/null; cut -d: -f3 /proc/self/cgroup | grep -v '^/$'; \
                  mount -t cgroup2 x /mnt 2>/dev/null && echo MOUNTED; true";
    let script = script.replace("find / -xdev -name release_agent 2>/dev/null; ", "");
    let text = output(&script);
    assert_eq!(text.lines().next(), Some("63677270"), "{text}");
    // Version 1 groups of the caller show as the namespace's root.
    assert_eq!(text.lines().count(), 1, "{text}");
}

/// Opens for writing and writes nothing, since on broken code it would be the machine's own knobs.
/// Seen to fail without read-only paths.
fn a89_knobs() {
    let script = "for p in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /proc/interrupts /proc/latency_stats; do \
                  [ -e $p ] && [ \"$(head -c 64 $p | wc -c)\" != 0 ] && echo CONTENT $p; (echo x >>$p) 2>/dev/null; done; \
                  for p in /proc/acpi /proc/scsi /proc/asound /sys/firmware /sys/devices/virtual/powercap; do \
                  [ -d $p ] && [ \"$(ls -A $p)\" ] && echo CONTENT $p; mkdir $p/x 2>/dev/null && echo MADE $p; done; \
                  for p in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sysrq-trigger /proc/sys/vm/drop_caches \
                  /sys/kernel/uevent_helper /sys/kernel/profiling /proc/irq/default_smp_affinity /proc/bus/x /sys/power/state; do \
                  (: >>$p) 2>/dev/null && echo WRITTEN $p; done; true";
    assert_eq!(output(script), "");
}

fn a90_terminal() {
    let fixture = Fixture::new();
    let mut spec = fixture.payload(&["terminal"]);
    spec.process.terminal = true;
    let container: Arc<dyn Container> = executor().create(&id(), &spec, Stdio::default()).expect("creates").into();
    let text = drain(container.pty().expect("terminal"));
    container.start().expect("starts");
    wait(&container).expect("ends");
    container.delete().expect("deletes");
    let text = text.recv().expect("text");
    println!("on a terminal of its own: {text}");
    assert!(text.contains("TIOCLINUX refused"), "{text}");
    // Without one there is nothing to inject into.
    assert_eq!(output("(: </dev/tty) 2>&1; true"), "/bin/sh: can't open /dev/tty: No such device or address\n");
    assert_eq!(payload("terminal"), "TIOCSTI refused\nTIOCLINUX refused\n");
}

fn a91_processes() {
    let script = "set -- /proc/[0-9]*; echo $#; echo $$; grep -c . /proc/1/environ; cat /proc/*/environ | tr '\\0' '\\n' | \
                  grep -c CARGO; (trap '' TERM; kill -TERM -1); echo alive; readlink /proc/1/exe";
    assert_eq!(output(script), "1\n1\n1\n0\nalive\n/bin/busybox\n");
}

/// System V and POSIX queues and memory are separate; so are keyrings, whose calls are refused anyway.
fn a92_rendezvous() {
    let fixture = Fixture::new();
    let other = Fixture::new();
    let script = "touch /dev/shm/met /dev/mqueue/met; sleep 1000";
    let first: Arc<dyn Container> =
        executor().create(&id(), &fixture.shell(script), Stdio::default()).expect("creates").into();
    first.start().expect("starts");
    std::thread::sleep(std::time::Duration::from_millis(100));
    let text = run(&other.shell("ls /dev/shm /dev/mqueue; wc -l </proc/sysvipc/shm")).expect("runs").success();
    assert_eq!(text, "/dev/mqueue:\n\n/dev/shm:\n1\n");
    first.kill_all().expect("kills");
    wait(&first).expect("ends");
}

fn a93_network() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listener");
    let port = listener.local_addr().expect("address").port();
    let fixture = Fixture::new();
    let script =
        format!("nc -w 1 127.0.0.1 {port} </dev/null && echo REACHED; wc -l </proc/net/unix; ls /sys/class/net");
    let mut spec = fixture.shell(&script);
    spec.network = NetworkMode::None;
    assert_eq!(run(&spec).expect("runs").success(), "1\nlo\n");
}

fn a94_propagation() {
    let before = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let fixture = Fixture::new();
    let mut spec =
        fixture.shell("mount -t tmpfs x /mnt/sub && mount --make-rshared / && mount -t tmpfs y /mnt/sub").privileged();
    fs::create_dir(fixture.path("canary/sub/sub")).expect("target");
    spec.mounts = vec![MountSpec::new("/mnt", MountSource::Bind(fixture.path("canary/sub")), false)];
    run(&spec).expect("runs").success();
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").expect("mounts"), before);
}

/// Seen to fail with `nosuid: false` on the mount.
fn a97_setuid() {
    let fixture = Fixture::new();
    let program = std::env::current_exe().expect("own path");
    fs::create_dir(fixture.path("source")).expect("source");
    for path in [fixture.path("source/payload"), fixture.base("bin/payload")] {
        fs::copy(&program, &path).expect("copy");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o4755)).expect("mode");
    }
    let mut spec = fixture.payload(&[]);
    spec.process.args = ["/bin/sh", "-c", "/mnt/payload identity; /bin/payload identity"].map(Into::into).to_vec();
    spec.process.user.uid = 1000;
    spec.mounts.push(MountSpec::new("/mnt", MountSource::Bind(fixture.path("source")), true));
    // From the mount it stays the user's; from the root file system it is root's, as sudo needs.
    assert_eq!(run(&spec).expect("runs").success(), "1000\n0\n");
    spec.process.no_new_privileges = true;
    assert_eq!(run(&spec).expect("runs").success(), "1000\n1000\n");
}
