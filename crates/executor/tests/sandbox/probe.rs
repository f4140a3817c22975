//! The whole picture from inside: one script, one expected file.

use crate::fixture::{Fixture, executor, run_on};
use forge_executor::{Executor, NetworkMode};
use std::fs;

pub const TESTS: &[(&str, fn())] =
    &[("privileged_s5_probe_as_root", as_root), ("privileged_s5_probe_as_user", as_user)];

pub const SCRIPT: &str = include_str!("probe.sh");

/// Replaces what differs from machine to machine: namespace numbers by whether they are the caller's own, pipe numbers,
/// a clamped limit, and kernel files that may be missing.
pub fn normalise(text: &str) -> String {
    let (masks, rest): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with("mask "));
    assert_eq!(masks.len(), 9, "{text}");
    let (mut mounts, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|line| line.starts_with("mnt "));
    // The kernel lists them in the order in which they were made, which means nothing.
    mounts.sort_unstable();
    rest.into_iter()
        .chain(mounts)
        .chain(masks.into_iter().filter(|line| !masked_well(line)))
        .filter(|line| !line.starts_with("write ") || !line.ends_with("=denied"))
        .filter(|line| !line.starts_with("mnt /proc/") && !line.starts_with("mnt /sys/firmware"))
        .map(|line| general(line) + "\n")
        .collect()
}

fn general(line: &str) -> String {
    if let Some((name, number)) = line.strip_prefix("ns_").and_then(|rest| rest.split_once('=')) {
        let own = fs::read_link(format!("/proc/self/ns/{name}")).expect("namespace");
        let relation = if own.as_os_str() == number { "the caller's" } else { "its own" };
        return format!("ns_{name}={relation}");
    }
    if let Some((descriptor, _)) = line.split_once("=pipe:[") {
        return format!("{descriptor}=pipe");
    }
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    line.replace(&format!("nofile=1024/{}", hard.min(1_048_576)), "nofile=1024/1048576")
}

fn masked_well(line: &str) -> bool {
    ["=absent", "=bytes:0", "=dir:0"].iter().any(|end| line.ends_with(end))
}

pub fn probe(user: u32) -> String {
    of(executor(), user)
}

/// The same on another executor.
pub fn of(executor: &dyn Executor, user: u32) -> String {
    let fixture = Fixture::new();
    let mut spec = fixture.shell(SCRIPT);
    spec.network = NetworkMode::None;
    spec.process.user.uid = user;
    spec.process.user.gid = user;
    spec.process.env.push("HOME=/root".into());
    normalise(&run_on(executor, &spec).expect("runs").stdout)
}

/// Docker's picture but for three places where it is stricter: tun does not open, the cgroup root is read-only, and
/// cgroup and time namespaces are the container's own.
fn as_root() {
    assert_eq!(probe(0), include_str!("expected-root.txt"));
}

fn as_user() {
    assert_eq!(probe(1000), include_str!("expected-user.txt"));
}
