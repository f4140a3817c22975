//! Ctrl-C and signals.

use crate::fixture::{Forge, wait};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

pub fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id().try_into().unwrap()).unwrap(), signal).unwrap();
}

/// Reads a stream until a line contains a text.
pub fn read_until(stream: impl Read, part: &str) {
    let found = BufReader::new(stream).lines().map_while(Result::ok).any(|line| line.contains(part));
    assert!(found, "{part:?} never came");
}

fn mounts_below(folder: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(folder)).map(str::to_owned).collect()
}

pub fn processes_with(argument: &str) -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| {
            fs::read(entry.path().join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(argument))
        })
        .count()
}

/// Waits until something is so: the end of a process group takes the kernel a moment.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn privileged_ctrl_c_leaves_nothing_behind() {
    let Some(forge) = Forge::privileged("ctrl_c_leaves_nothing_behind") else { return };
    let context =
        forge.context("context", &[("Dockerfile", "FROM busybox\nRUN echo running; sleep 98761 & sleep 98762\n")]);
    let mut command = forge.command(&["build", "--progress", "plain", "-t", "x", &context]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    read_until(&mut stderr, " running");
    signal(&child, Signal::INT);
    let started = Instant::now();
    assert_eq!(wait(&mut child), 130);
    assert!(started.elapsed() < Duration::from_secs(10));
    eventually("processes are left", || processes_with("9876") == 0);
    eventually("mounts are left", || mounts_below(forge.store().to_str().unwrap()).is_empty());
    forge.fails(1, &["inspect", "x"]);
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nRUN echo after\n")]);
    forge.build(&["-t", "y", &context]);
    let scratch: Vec<_> = fs::read_dir(forge.store().join("scratch")).into_iter().flatten().flatten().collect();
    assert!(scratch.is_empty(), "{scratch:?}");
}

#[test]
fn privileged_a_load_that_waits_for_input_can_be_stopped() {
    let Some(forge) = Forge::privileged("a_load_that_waits_for_input_can_be_stopped") else { return };
    let mut child = forge.command(&["load"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("forge watches for signals", || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap();
        u64::from_str_radix(caught, 16).unwrap() & 2 != 0
    });
    signal(&child, Signal::INT);
    let stderr = child.stderr.take().unwrap();
    assert_eq!(wait(&mut child), 130);
    read_until(stderr, "forge: cancelled");
    forge.ok(&["images"]);
}

#[test]
fn privileged_a_killed_forge_leaves_a_usable_store() {
    let Some(forge) = Forge::privileged("a_killed_forge_leaves_a_usable_store") else { return };
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nRUN echo running; sleep 98763\n")]);
    let mut child = forge.command(&["build", "--progress", "plain", &context]).stderr(Stdio::piped()).spawn().unwrap();
    read_until(child.stderr.take().unwrap(), " running");
    signal(&child, Signal::KILL);
    assert_eq!(wait(&mut child), 137);
    eventually("processes are left", || processes_with("98763") == 0);
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nRUN echo after\n")]);
    forge.build(&["-t", "y", &context]);
    assert!(mounts_below(forge.store().to_str().unwrap()).is_empty());
}

#[test]
fn privileged_signals_reach_the_command() {
    let Some(forge) = Forge::privileged("signals_reach_the_command") else { return };
    let script = "trap 'echo got it; exit 3' TERM; echo ready; while true; do sleep 0.1; done";
    let mut command = forge.command(&["run", "--rm", "busybox", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    read_until(&mut stdout, "ready");
    signal(&child, Signal::TERM);
    assert_eq!(wait(&mut child), 3);
}

#[test]
fn privileged_the_third_request_to_end_kills() {
    let Some(forge) = Forge::privileged("the_third_request_to_end_kills") else { return };
    let mut command = forge.command(&["run", "--rm", "busybox", "sh", "-c", "trap '' INT; echo ready; sleep 98764"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    read_until(child.stdout.take().unwrap(), "ready");
    for _ in 0..3 {
        assert!(child.try_wait().unwrap().is_none());
        signal(&child, Signal::INT);
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(wait(&mut child), 137);
    eventually("processes are left", || processes_with("98764") == 0);
}
