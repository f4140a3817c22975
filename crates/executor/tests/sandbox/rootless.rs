//! The same containers for an ordinary user. Root runs this program again as a user made for it, whom only a mount
//! namespace of the test's own knows.

use crate::fixture::{Fixture, executor, id, output, run as run_in_sandbox, run_on, wait};
use crate::{attacks, further, lifecycle, limits, network, oci, probe, process, surface};
use forge_executor::{
    Container, Executor, InnerSocket, NamespaceExecutor, NamespaceIds, NetworkMode, SandboxSpec, Stdio,
};
use libtest_mimic::{Arguments, Trial};
use std::io::Read;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const TESTS: &[(&str, fn())] = &[("rootless_everything_again_as_a_user", everything_again)];

const ASKED: &str = "FORGE_TEST_ROOTLESS";

/// What cannot be so for a user, with what stands for it below.
const OTHERWISE: [&str; 16] = [
    "privileged_full_privileges",                             // opens a device that it makes
    "privileged_a81_socket_families",                         // rootless_a81
    "privileged_a87_devices",                                 // rootless_a87
    "privileged_a87_granted_devices",                         // the same
    "privileged_a88_cgroups",                                 // rootless_a88
    "privileged_a96_fork_bomb",                               // needs a group
    "privileged_s5_probe",                                    // rootless_s5
    "privileged_a_private_network_has_an_address",            // rootless_private_networks
    "privileged_the_host_reaches_a_container",                // it does not
    "privileged_a93_containers",                              // they have no address for each other
    "privileged_private_networks_leave",                      // rootless_helpers_end
    "privileged_a_killed_set_up_process_leaves_no_interface", // the same
    "privileged_oci_memory",                                  // rootless_oci_limits_are_named
    "privileged_oci_containers_can_share_a_limit",            // the same
    "privileged_oci_leaves_nothing",                          // there are no groups to leave
    "privileged_s5_table_beside_runc",                        // what the runtime alone does for root
];

const INSIDE: &[(&str, fn())] = &[
    ("rootless_s5_probe", s5_probe),
    ("rootless_a81_socket_families", a81_sockets),
    ("rootless_a87_devices", a87_devices),
    ("rootless_a88_cgroups", a88_cgroups),
    ("rootless_a95_groups_and_owners", a95_groups),
    ("rootless_what_is_not_enforced_is_said", notices),
    ("rootless_a92_private_networks_by_a_helper", private_networks),
    ("rootless_sockets_of_a_private_network", sockets),
    ("rootless_oci_limits_are_named", oci_limits),
    ("rootless_helpers_end_with_the_set_up_process", helpers_end),
];

pub fn is_asked_for() -> bool {
    std::env::var_os(ASKED).is_some()
}

/// Runs as the user, in place of all else.
pub fn run() -> ! {
    assert!(!rustix::process::geteuid().is_root());
    let ids = forge_executor::enter_user_namespace().expect("a user namespace");
    assert_eq!(ids, NamespaceIds::Subordinate);
    let groups = [
        process::TESTS,
        lifecycle::TESTS,
        limits::TESTS,
        network::TESTS,
        oci::TESTS,
        attacks::TESTS,
        surface::TESTS,
        further::TESTS,
    ];
    let here = |(name, _): &(&str, fn())| !OTHERWISE.iter().any(|other| name.starts_with(other));
    let tests = groups.concat().into_iter().filter(here).chain(INSIDE.iter().copied());
    let trials = tests.map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

fn everything_again() {
    let test = "rootless_everything_again_as_a_user";
    let Some(text) = forge_testkit::run_again_as_user(test, ASKED, env!("CARGO_TARGET_TMPDIR")) else { return };
    assert!(text.contains("test rootless_a95_groups_and_owners"), "{text}");
}

/// As for root but for the map, and for devices: a user's root cannot even make them, and has the host's bound.
fn s5_probe() {
    assert_eq!(probe::probe(0), include_str!("expected-rootless-root.txt"));
    assert_eq!(probe::probe(1000), include_str!("expected-rootless-user.txt"));
}

/// What root is refused is refused here, and what needs rights over the host's network too.
fn a81_sockets() {
    let fixture = Fixture::new();
    let text = run_in_sandbox(&fixture.payload(&["families"])).expect("runs").success();
    assert!(text.contains("38 EPERM\n40 EPERM\n"), "{text}");
}

fn a87_devices() {
    let script = "for d in 'b 8 0' 'b 7 0' 'c 1 1' 'c 1 3' 'c 10 229' 'c 4 1'; do \
                  mknod /tmp/d $d 2>/dev/null && echo MADE $d; done; ls -A /tmp; for n in null zero full random urandom; do \
                  (: </dev/$n) || echo CLOSED $n; rm /dev/$n 2>/dev/null && echo REMOVED $n; done; true";
    assert_eq!(output(script), "");
}

/// Groups of others may go while they are looked at.
fn a88_cgroups() {
    let script = "cd /sys/fs/cgroup; for f in $(find . -type f) x; do \
                  (: >>$f) 2>&1 | grep -qE 'Read-only|Permission denied' || [ $f != x -a ! -e $f ] || \
                  echo WRITABLE $f; done; mkdir g 2>/dev/null && echo MADE; \
                  mount -t cgroup2 x /mnt 2>/dev/null && echo MOUNTED; stat -f -c %t .";
    assert_eq!(output(script), "63677270\n");
}

/// The user comes with a group more than their own, which no step may have. Seen to fail with neither `forget_groups` nor the
/// groups of `set_ids`.
fn a95_groups() {
    let script = "id -G; (echo allow >/proc/self/setgroups) 2>/dev/null && echo SET; (echo 0 0 1 >/proc/self/uid_map) 2>/dev/null && echo MAPPED; \
                  for id in 1 1000 65536; do touch /tmp/$id && chown $id:$id /tmp/$id && stat -c %u:%g /tmp/$id; done; \
                  chown 65537 /tmp/1 2>/dev/null && echo FOREIGN; stat -c %u /proc/sys/kernel/core_pattern";
    assert_eq!(output(script), "0\n1:1\n1000:1000\n65536:65536\n65534\n");
}

/// Whether there is one, after saying that there is none.
fn has_helper() -> bool {
    let found = ["/usr/bin/pasta", "/usr/bin/slirp4netns"].iter().any(|path| std::path::Path::new(path).exists());
    if !found || !std::path::Path::new("/dev/net/tun").exists() {
        println!("SKIPPED (needs pasta or slirp4netns, and /dev/net/tun): private networks of a user");
        return false;
    }
    true
}

fn private(mut spec: SandboxSpec) -> SandboxSpec {
    spec.network = NetworkMode::Private;
    spec
}

/// The host is reached as any other machine would be, its loopback is not. Seen to fail (the listener was reached) with
/// neither `--no-map-gw` nor `--disable-host-loopback`.
fn private_networks() {
    if !has_helper() {
        return;
    }
    executor().private_network().expect("a private network");
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("address").port();
    let script = format!(
        "ip -o addr | tr -s ' ' | cut -d ' ' -f 2,4; g=$(ip route | sed -n 's/default via \\([^ ]*\\) dev eth0.*/\\1/p'); \
         test -n \"$g\" && echo way; for a in 127.0.0.1 $g; do nc -w 1 $a {port} </dev/null && echo REACHED $a; done; true"
    );
    let seen = run_in_sandbox(&private(Fixture::new().shell(&script))).expect("runs").success();
    let lines: Vec<_> = seen.lines().collect();
    assert!(lines[0] == "lo 127.0.0.1/8" && seen.contains("eth0 ") && lines.last() == Some(&"way"), "{seen}");
    listener.set_nonblocking(true).expect("mode");
    assert!(listener.accept().is_err(), "somebody came");
}

/// What published ports are made of: the host reaches the container by a socket of its network, and what listens on the
/// container's own loopback alone is not reached.
fn sockets() {
    if !has_helper() {
        return;
    }
    let fixture = Fixture::new();
    let spec = private(fixture.shell("echo hidden | nc -l -s 127.0.0.1 -p 82 & echo inside | nc -l -p 81"));
    let container: Arc<dyn Container> = executor().create(&id(), &spec, Stdio::default()).expect("creates").into();
    container.start().expect("starts");
    let address = container.address().expect("an address");
    let connect = |port: u16| {
        let socket = container.inner_socket(InnerSocket::Stream).expect("no route").expect("a socket");
        let to = std::net::SocketAddr::from((address, port));
        rustix::io::ioctl_fionbio(&socket, false).expect("mode");
        rustix::net::connect(&socket, &to).map(|()| std::net::TcpStream::from(socket))
    };
    let begin = Instant::now();
    let mut stream = loop {
        match connect(81) {
            Ok(stream) => break stream,
            Err(error) => assert!(begin.elapsed() < Duration::from_secs(5), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut text = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    let _ = stream.read_to_string(&mut text);
    assert_eq!(text, "inside\n");
    assert!(connect(82).is_err(), "the container's loopback was reached");
    container.kill_all().expect("kills");
    wait(&container).expect("ends");
}

fn oci_limits() {
    for (name, runtime) in oci::runtimes() {
        let mut spec = Fixture::new().shell("echo ran");
        let fixture = Fixture::new();
        spec.root = fixture.root();
        spec.resources.memory = Some(16 << 20);
        assert_eq!(run_on(runtime, &spec).expect(name).success(), "ran\n", "{name}");
        let told = runtime.notices();
        let line =
            "the memory limit is not enforced: an OCI runtime without root of the machine makes no control groups";
        assert!(told.iter().any(|notice| notice == line), "{name}: {told:?}");
    }
}

/// Programs of the user that carry packets.
fn helpers() -> usize {
    let name = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
    let all = std::fs::read_dir("/proc").expect("procfs").flatten();
    all.filter(|entry| entry.metadata().is_ok_and(|data| std::os::unix::fs::MetadataExt::uid(&data) == 0))
        .filter(|entry| holds_runtime(entry.path()))
        .map(name)
        .filter(|name| ["pasta", "passt", "slirp4netns"].iter().any(|helper| name.starts_with(helper)))
        .count()
}

/// Whether a process is a child of this one's children.
fn holds_runtime(process: std::path::PathBuf) -> bool {
    let parent = |path: &std::path::Path| -> Option<u32> {
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
    };
    let above = parent(&process).and_then(|pid| parent(std::path::Path::new(&format!("/proc/{pid}"))));
    above == Some(std::process::id())
}

fn helpers_end() {
    if !has_helper() {
        return;
    }
    let fixture = Fixture::new();
    let before = helpers();
    let own = NamespaceExecutor::new(&fixture.path("run")).expect("executor");
    own.private_network().expect("a private network");
    let seen = run_on(&own, &private(fixture.shell("ip route"))).expect("runs").success();
    assert!(seen.contains("default via"), "{seen}");
    assert!(helpers() > before, "none was found");
    assert!(
        std::fs::read_dir(fixture.path("run"))
            .expect("folder")
            .flatten()
            .all(|entry| { !entry.file_name().to_string_lossy().starts_with("network-") })
    );
    drop(own);
    let begin = Instant::now();
    while helpers() > before {
        assert!(begin.elapsed() < Duration::from_secs(5), "a helper is left");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn notices() {
    let network = executor().private_network();
    let told = executor().notices();
    assert_eq!(network.is_err(), told.iter().any(|notice| notice.contains("host's network is used")), "{told:?}");
    assert!(!told.iter().any(|notice| notice.contains("nodev")), "nodes are shut by the kernel: {told:?}");
}
