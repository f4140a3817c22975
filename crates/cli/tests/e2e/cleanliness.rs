//! Processes, mounts and signals: whatever happens to a forge, nothing stays.

use crate::fixture::{self, Forge, run, wait};
use crate::interrupt::{eventually, processes_with, read_until, signal};
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What forges of a test had on the machine while they lived. Other tests run at the same time, and what is theirs comes and goes.
#[derive(Default)]
struct Belongings {
    processes: BTreeSet<u32>,
    /// The host's ends of networks, by name and number: a name is soon given again.
    interfaces: BTreeSet<(String, String)>,
}

impl Belongings {
    /// Adds what a running forge has at this moment.
    fn note(&mut self, forge: &Child) {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let parents: BTreeMap<u32, u32> = pids.filter_map(|pid| Some((pid, parent(pid)?))).collect();
        let mut pending = vec![forge.id()];
        while let Some(process) = pending.pop() {
            pending.extend(parents.iter().filter(|(_, parent)| **parent == process).map(|(pid, _)| *pid));
            self.interfaces.extend(wires(process).filter_map(|name| number(&name).map(|known| (name, known))));
            self.processes.insert(process);
        }
    }

    /// Containers' groups have the process in their names that made them.
    fn has_group(&self, line: &str) -> bool {
        let names = line.strip_prefix("cgroup ").into_iter().flat_map(|path| path.split('/'));
        let mut parts = names.flat_map(|name| name.split('-'));
        parts.any(|part| part.parse().is_ok_and(|pid| self.processes.contains(&pid)))
    }

    /// The kernel takes networks apart in the background.
    fn wires_left(&self) -> impl Iterator<Item = &str> {
        let left = self.interfaces.iter().filter(|(name, known)| number(name).as_ref() == Some(known));
        left.map(|(name, _)| &name[..])
    }
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The names of the host's ends for the addresses that a process has.
fn wires(pid: u32) -> impl Iterator<Item = String> {
    let own = fs::read_link("/proc/self/ns/net").ok();
    let other = fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| Some(link) != own);
    let text =
        if other { fs::read_to_string(format!("/proc/{pid}/net/fib_trie")).unwrap_or_default() } else { String::new() };
    let addresses: Vec<Ipv4Addr> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    addresses.into_iter().map(|address| format!("forge{:02x}{:02x}", address.octets()[2], address.octets()[3]))
}

fn number(interface: &str) -> Option<String> {
    fs::read_to_string(format!("/sys/class/net/{interface}/ifindex")).ok()
}

/// What `forge debug leaks` says of this test's store and forges, and whether its exit code agrees; and wires that stay.
#[track_caller]
fn leaks(forge: &Forge, own: &Belongings) -> String {
    let shown = forge.forge(&["debug", "leaks"]);
    assert_eq!(shown.code, i32::from(!shown.stdout.is_empty()), "{}{}", shown.stdout, shown.stderr);
    let ours = |line: &&str| line.contains(forge.store().to_str().unwrap()) || own.has_group(line);
    shown.stdout.lines().filter(ours).chain(own.wires_left()).map(|line| format!("{line}\n")).collect()
}

#[test]
fn privileged_f03_f22_a_forge_killed_at_any_time_leaves_what_the_next_one_removes() {
    let Some(forge) = Forge::privileged("f03_f22") else { return };
    let steps: String =
        (0..8).map(|step| format!("RUN echo {step} > /{step}; sleep 0.0{step} & sleep 0.02\n")).collect();
    let context = forge.context("context", &[("Dockerfile", &format!("FROM busybox\n{steps}"))]);
    let (mut seen, mut own) = (0, Belongings::default());
    let whole = Instant::now();
    forge.ok(&["build", "--no-cache", "-q", &context]);
    let whole = whole.elapsed().as_micros() as usize;
    for turn in 0..fixture::rounds(20) {
        let mut child = forge.command(&["build", "--no-cache", "-q", &context]).stdout(Stdio::null()).spawn().unwrap();
        // All over a build, and never the same moments.
        let moment = (turn * 2_654_435_761 + std::process::id() as usize) % whole;
        std::thread::sleep(Duration::from_micros(moment as u64));
        own.note(&child);
        signal(&child, Signal::KILL);
        wait(&mut child);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(forge.store().to_str().unwrap()), "{mounts}");
        seen += usize::from(!leaks(&forge, &own).is_empty());
        if turn % 4 == 3 {
            forge.ok(&["run", "--rm", "--network", "none", "busybox", "true"]);
            eventually("the next forge removes it", || leaks(&forge, &own).is_empty());
        }
    }
    assert!(seen > 0, "killed forges leave something, or the list is blind");
    let id = |words: &[&str]| forge.with_env(words, "SOURCE_DATE_EPOCH", "1700000000").stdout;
    let after = id(&["build", "-q", &context]);
    assert_eq!(after, id(&["build", "-q", "--no-cache", &context]), "what was kept of killed builds is what they make");
    eventually("nothing stays", || leaks(&forge, &own).is_empty());
}

/// Without another forge. Seen to fail with a set-up process that a write to its dead caller ended.
#[test]
fn privileged_f03_f22_files_of_a_container_go_when_its_forge_is_killed() {
    let Some(forge) = Forge::privileged("f03_f22_files") else { return };
    let words = ["run", "--rm", "busybox", "sh", "-c", "echo data > /file; echo ready; sleep 98773"];
    let mut child = forge.command(&words).stdout(Stdio::piped()).spawn().unwrap();
    read_until(child.stdout.as_mut().unwrap(), "ready");
    let left = || ["scratch", "leases"].map(|folder| fs::read_dir(forge.store().join(folder)).unwrap().count());
    assert_eq!(left(), [1, 1]);
    signal(&child, Signal::KILL);
    wait(&mut child);
    eventually("its files are there", || left() == [0, 0]);
    assert_eq!(processes_with("98773"), 0);
}

#[test]
fn privileged_f23_daemons_of_a_step_die_with_it() {
    let Some(forge) = Forge::privileged("f23_daemons") else { return };
    let step =
        "(setsid sleep 98771 &); (setsid sh -c 'setsid sleep 98772 &' &); (while :; do echo x >> /f; done) & exit 0";
    let context = forge.context("context", &[("Dockerfile", &format!("FROM busybox\nRUN {step}\nRUN true\n"))]);
    let begin = Instant::now();
    let mut own = Belongings::default();
    let mut child = forge.command(&["build", "-q", "-t", "x", &context]).stdout(Stdio::null()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() {
        own.note(&child);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(child.wait().unwrap().success());
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(processes_with("9877"), 0);
    eventually("nothing stays", || leaks(&forge, &own).is_empty());
}

#[test]
fn privileged_f24_a_step_that_ignores_signals_ends_at_once() {
    let Some(forge) = Forge::privileged("f24_ignores") else { return };
    let mut own = Belongings::default();
    for step in ["trap '' TERM INT HUP QUIT; echo running; sleep 98781", "echo running; kill -STOP $$; sleep 98781"] {
        let context = forge.context("context", &[("Dockerfile", &format!("FROM busybox\nRUN {step}\n"))]);
        let mut command = forge.command(&["build", "--progress", "plain", &context]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        read_until(&mut stderr, " running");
        own.note(&child);
        let begin = Instant::now();
        signal(&child, Signal::TERM);
        assert_eq!(wait(&mut child), 143);
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        eventually("processes are left", || processes_with("98781") == 0);
    }
    eventually("nothing stays", || leaks(&forge, &own).is_empty());
}

#[test]
fn privileged_f25_a_closed_terminal_ends_a_build() {
    let Some(forge) = Forge::privileged("f25_hangup") else { return };
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nRUN echo running; sleep 98791\n")]);
    let mut command = forge.command(&["build", "--progress", "plain", &context]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    read_until(child.stderr.take().unwrap(), " running");
    let mut own = Belongings::default();
    own.note(&child);
    signal(&child, Signal::HUP);
    assert_eq!(wait(&mut child), 129);
    eventually("processes are left", || processes_with("98791") == 0);
    eventually("nothing stays", || leaks(&forge, &own).is_empty());
}

#[test]
fn privileged_f27_huge_logs_take_no_memory() {
    let Some(forge) = Forge::privileged("f27_logs") else { return };
    let context =
        forge.context("context", &[("Dockerfile", "FROM busybox\nRUN yes 0123456789abcdef | head -c 200000000\n")]);
    let mut child = forge.command(&["build", "-q", &context]).stdout(Stdio::null()).spawn().unwrap();
    let (mut peak, status) = (0, format!("/proc/{}/status", child.id()));
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(now.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(child.wait().unwrap().success());
    assert!(peak < 200_000, "{peak} KiB");
}

#[test]
fn privileged_f29_closed_streams_and_readers_that_leave() {
    let Some(forge) = Forge::privileged("f29_streams") else { return };
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nRUN yes | head -n 100000; echo $RANDOM\n")]);
    let binary = crate::fixture::binary();
    let shell = |line: &str| {
        let mut command = Command::new("/bin/sh");
        let template = forge.command(&[]);
        let set = template.get_envs().filter_map(|(name, value)| Some((name, value?)));
        command.args(["-c", line]).env_clear().envs(set).stdin(Stdio::null());
        run(&mut command, b"")
    };
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let ran = shell(&format!("{binary} run --rm -q busybox true {closed}"));
        assert_eq!(ran.code, 0, "{closed} {}", ran.stderr);
        let built = shell(&format!("{binary} build -q --no-cache {context} {closed}"));
        assert!(closed.contains(">&-") && !closed.contains("2>&-") || built.code == 0, "{closed} {}", built.stderr);
        forge.ok(&["images"]);
    }
    let begin = Instant::now();
    let first = shell(&format!("{binary} build --no-cache --progress plain {context} 2>&1 | head -n 1"));
    assert_eq!((first.code, first.stdout.lines().count()), (0, 1), "{}", first.stderr);
    let first = shell(&format!("{binary} run --rm -q busybox yes | head -n 1"));
    assert_eq!((first.code, first.stdout.as_str()), (0, "y\n"), "{}", first.stderr);
    assert!(begin.elapsed() < Duration::from_secs(30));
    eventually("nothing stays", || leaks(&forge, &Belongings::default()).is_empty());
}

/// What a forge wrote to standard error, byte by byte, and its largest size in KiB.
fn raw_log(forge: &Forge, progress: &str, context: &str) -> (Vec<u8>, u64) {
    let mut command = forge.command(&["build", "--no-cache", "--progress", progress, context]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = child.stderr.take().unwrap();
    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let (mut peak, status) = (0, format!("/proc/{}/status", child.id()));
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = peak.max(line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0));
        std::thread::sleep(Duration::from_millis(10));
    }
    let bytes = reading.join().unwrap();
    assert!(child.wait().unwrap().success(), "{}", String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2000)..]));
    (bytes, peak)
}

/// Noise, lines without end and without their last byte: what is shown is text, to its last line.
///
/// Meant to fail (a control byte came through) with the lines of a step written as they are.
#[test]
fn privileged_f28_logs_that_are_no_text() {
    let Some(forge) = Forge::privileged("f28_logs") else { return };
    let steps = [
        "head -c 3000000 /dev/urandom; echo; echo begun",
        "printf 'nul\\000byte \\377\\376 \\033[2J\\033]0;title\\007 \\342\\202'; echo; echo begun",
        "echo begun; head -c 100000000 /dev/zero | tr '\\000' x",
    ];
    for step in steps {
        let text = format!("FROM busybox\nRUN {step}; printf the-very-last\n");
        let context = forge.context("context", &[("Dockerfile", &text)]);
        for progress in ["plain", "rawjson"] {
            let (bytes, peak) = raw_log(&forge, progress, &context);
            let log = String::from_utf8(bytes).unwrap_or_else(|error| panic!("{progress} {step}: {error}"));
            let control = log.chars().find(|letter| letter.is_control() && !matches!(letter, '\n' | '\t'));
            assert_eq!(control, None, "{progress} {step}");
            assert!(log.contains("begun") || progress == "rawjson", "{progress} {step}");
            if progress == "plain" && !step.contains("100000000") {
                assert!(log.lines().any(|line| line.ends_with("the-very-last")), "{step}");
            }
            if progress == "rawjson" {
                assert!(log.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{step}");
            }
            // Half a GiB is what a row of attacks and faults may take; what is not shown yet waits in memory.
            assert!(peak < 400_000, "{progress} {step}: {peak} KiB");
        }
    }
}

/// The store of a forge that is stopped for a while: whoever needs what it holds waits, all others go on, and it goes on as if
/// nothing had been. `FORGE_TEST_ROUNDS` says how many moments are tried.
///
/// Meant to fail (the layers of the stopped build were collected) with leases that are taken over by their age.
#[test]
fn privileged_f43_a_forge_that_is_stopped_loses_nothing() {
    let Some(forge) = Forge::privileged("f43_stopped") else { return };
    let steps: String = (0..4).map(|step| format!("RUN echo {step} > /{step}; sleep 0.05\n")).collect();
    let stopped = forge.context("stopped", &[("Dockerfile", &format!("FROM busybox\n{steps}"))]);
    let other = forge.context("other", &[("Dockerfile", "FROM busybox\nRUN echo other > /other\n")]);
    forge.ok(&["save", "-o", "busybox.tar", "busybox"]);
    let commands: [&[&str]; 4] = [
        &["build", "--no-cache", "-q", "-t", "stopped", &stopped],
        &["prune", "-af"],
        &["build", "--no-cache", "-q", "-o", "type=oci,dest=stopped.tar", &stopped],
        &["load", "-q", "-i", "busybox.tar"],
    ];
    for round in 0..fixture::rounds(2) {
        for (number, words) in commands.iter().enumerate() {
            let begin = Instant::now();
            forge.ok(words);
            let whole = begin.elapsed().as_micros() as usize;
            let mut child = forge.command(words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let moment = ((round * 4 + number) * 2_654_435_761 + std::process::id() as usize) % whole;
            std::thread::sleep(Duration::from_micros(moment as u64));
            signal(&child, Signal::STOP);
            // What has to wait is at it when the stopped one goes on; nothing fails.
            let others = ["build --no-cache -q -t other", "prune -af", "images"].map(|line| {
                let words: Vec<&str> = line.split(' ').chain(line.starts_with("build").then_some(&other[..])).collect();
                let mut command = forge.command(&words);
                command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
            });
            std::thread::sleep(Duration::from_secs(1));
            signal(&child, Signal::CONT);
            for other in others {
                let ended = other.wait_with_output().unwrap();
                assert!(ended.status.success(), "beside {words:?}: {}", String::from_utf8_lossy(&ended.stderr));
            }
            let mut told = String::new();
            child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
            assert_eq!(wait(&mut child), 0, "{words:?}: {told}");
            if words.contains(&"stopped") {
                assert_eq!(forge.shell("stopped", "cat /0 /1 /2 /3"), "0\n1\n2\n3\n");
            }
            forge.ok(&["store", "verify", "--full"]);
            forge.ok(&["load", "-q", "-i", "busybox.tar"]);
        }
    }
}
