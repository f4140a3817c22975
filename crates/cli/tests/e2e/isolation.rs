//! Which namespaces and settings are a container's own, as root and as an ordinary user.

use crate::fixture::{Forge, Outcome};
use crate::rootless::User;
use std::fs;

fn link(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string()
}

/// What only the host's settings show is not changed by any of it.
fn host_settings() -> Vec<String> {
    [
        "net/ipv4/ip_unprivileged_port_start",
        "kernel/msgmax",
        "fs/mqueue/msg_max",
        "kernel/core_pattern",
        "kernel/hostname",
        "kernel/domainname",
    ]
    .map(|name| fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default())
    .to_vec()
}

/// Meant to fail with settings written before the namespaces are made.
fn settings(forge: &dyn Fn(&[&str]) -> Outcome) {
    let before = host_settings();
    let script = "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/msgmax fs/mqueue/msg_max kernel/domainname; cat /proc/self/oom_score_adj";
    let flags = [
        "--sysctl",
        "net.ipv4.ip_unprivileged_port_start=77",
        "--sysctl",
        "kernel.msgmax=4321",
        "--sysctl",
        "fs/mqueue/msg_max=12",
    ];
    let words = [
        &["run", "--rm", "-q", "--domainname", "nis", "--oom-score-adj", "321"],
        &flags[..],
        &["busybox", "sh", "-c", script],
    ]
    .concat();
    let ran = forge(&words);
    assert_eq!(ran.stdout, "77\n4321\n12\nnis\n321\n", "{}", ran.stderr);
    for (flags, reason) in [
        (&["--sysctl", "kernel.core_pattern=x"][..], "sysctl 'kernel.core_pattern=x' is not allowed"),
        (&["--sysctl", "net/../kernel/core_pattern=x"], "is not allowed"),
        (&["--network", "host", "--sysctl", "net.ipv4.ip_forward=0"], "with the host's network"),
        (&["--ipc", "host", "--sysctl", "kernel.msgmax=1"], "with the host's IPC namespace"),
        (&["--pid", "host"], "--pid host is not supported"),
        (&["--ipc", "container:x"], "--ipc container:x is not supported"),
        (&["--uts", "host", "-h", "x"], "conflicting options"),
        (&["--oom-score-adj", "2000"], "[-1000, 1000]"),
        (&["--device-cgroup-rule", "c 1:3"], "invalid device cgroup format"),
    ] {
        let refused = forge(&[&["run", "--rm"], flags, &["busybox", "true"]].concat());
        assert!(refused.code == 125 && refused.stderr.contains(reason), "{flags:?} {}", refused.stderr);
    }
    assert_eq!(host_settings(), before);
}

/// Of each kind the host's is seen where it is asked for, and nowhere else.
fn namespaces(forge: &dyn Fn(&[&str]) -> Outcome) {
    let script = "for n in ipc uts cgroup; do readlink /proc/self/ns/$n; done; hostname; ls /dev/shm | grep forge-e2e";
    let shown = tempfile::Builder::new().prefix("forge-e2e-").tempfile_in("/dev/shm").unwrap();
    let name = shown.path().file_name().unwrap().to_str().unwrap().to_owned();
    let seen = |flags: &[&str]| -> Vec<String> {
        let ran = forge(&[&["run", "--rm", "-q"], flags, &["busybox", "sh", "-c", script]].concat());
        assert!(ran.stderr.is_empty() || ran.stderr.starts_with("forge: the host's network"), "{}", ran.stderr);
        ran.stdout.lines().map(str::to_owned).collect()
    };
    let (own, shared) = (seen(&["-h", "box"]), seen(&["--ipc", "host", "--uts", "host", "--cgroupns", "host"]));
    let host: Vec<String> = ["ipc", "uts", "cgroup"].map(link).to_vec();
    assert_eq!(shared[..3], host);
    assert_eq!(shared[3], fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim());
    assert!(shared[4..].contains(&name), "{shared:?}");
    assert!(own[..3].iter().zip(&host).all(|(own, host)| own != host), "{own:?}");
    assert_eq!(own[3..], ["box"]);
    let without = forge(&["run", "--rm", "-q", "--ipc", "none", "busybox", "readlink", "/proc/self/ns/ipc"]);
    assert!(without.code == 0 && without.stdout.trim() != host[0], "{without:?}");
    let memory =
        |mode: &str| forge(&["run", "--rm", "-q", "--ipc", mode, "busybox", "ls", "-d", "/dev/shm", "/dev/mqueue"]);
    // Meant to fail with a folder left in the place of the file system.
    assert_eq!((memory("none").stdout.as_str(), memory("none").code), ("/dev/mqueue\n", 1));
    assert_eq!(memory("shareable").stdout, "/dev/mqueue\n/dev/shm\n");
}

#[test]
fn privileged_settings_are_the_container_s_alone() {
    if let Some(forge) = Forge::privileged("settings_are_the_container_s_alone") {
        settings(&|words| forge.forge(words));
    }
}

#[test]
fn rootless_settings_are_the_container_s_alone() {
    if let Some(user) = User::new("rootless_settings") {
        user.load();
        settings(&|words| user.forge(words));
    }
}

#[test]
fn privileged_namespaces_are_shared_on_request() {
    if let Some(forge) = Forge::privileged("namespaces_are_shared_on_request") {
        namespaces(&|words| forge.forge(words));
    }
}

#[test]
fn rootless_namespaces_are_shared_on_request() {
    if let Some(user) = User::new("rootless_namespaces") {
        user.load();
        namespaces(&|words| user.forge(words));
    }
}

/// Meant to fail (it did not open) with a rule's numbers that are never equal.
#[test]
fn privileged_rules_open_devices_that_a_container_makes() {
    let Some(forge) = Forge::privileged("rules_open_devices") else { return };
    if !std::path::Path::new("/dev/fuse").exists() {
        return println!("SKIPPED (needs /dev/fuse): rules_open_devices");
    }
    fs::write(forge.path("labels"), "# note\na=b\n").unwrap();
    let opens = |flags: &[&str]| {
        let script = "mknod /tmp/k c 10 229; (: </tmp/k) 2>/dev/null && echo read; (: >>/tmp/k) 2>/dev/null && echo written; true";
        let words = [
            &["run", "--rm", "-q", "--network", "none", "--label-file", "labels"],
            flags,
            &["busybox", "sh", "-c", script],
        ];
        forge.ok(&words.concat()).stdout
    };
    assert_eq!(opens(&[]), "");
    assert_eq!(opens(&["--device-cgroup-rule", "c 10:229 r"]), "read\n");
    for rule in ["c 10:* rw", "c *:229 rwm", "a *:* rwm", "a 10:229 rw"] {
        assert_eq!(opens(&["--device-cgroup-rule", rule]), "read\nwritten\n", "{rule}");
    }
    for rule in ["b 10:229 rw", "c 2:* rw", "c *:10 rw", "c 10:229 m"] {
        assert_eq!(opens(&["--device-cgroup-rule", rule]), "", "{rule}");
    }
}
