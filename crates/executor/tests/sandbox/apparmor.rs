//! AppArmor's profiles, on machines whose kernel has it.

use crate::fixture::{Fixture, Output, executor, run_on};
use crate::further::{Waiting, shell};
use crate::oci::runtimes;
use forge_executor::{AppArmor, Capabilities, ExecutorError, ExitStatus, SandboxSpec, Seccomp};
use std::fs;

pub const TESTS: &[(&str, fn())] = &[
    ("privileged_apparmor_confines_whatever_capabilities_allow", confines),
    ("privileged_apparmor_confines_inits_and_further_processes", others),
    ("privileged_apparmor_through_runtimes", through_runtimes),
    ("privileged_apparmor_profiles_that_are_not_loaded", missing),
];

const LABEL: &str = "cat /proc/self/attr/apparmor/current";
const DEFAULT: &str = "forge-default-1 (enforce)\n";

/// Whether forge's own profile can be loaded here.
fn is_there() -> bool {
    let enabled = fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|answer| answer.starts_with(b"Y"));
    let there = enabled && fs::exists("/usr/sbin/apparmor_parser").unwrap_or_default();
    if !there {
        println!("SKIPPED (needs a kernel with AppArmor, and apparmor_parser)");
    }
    there
}

/// A process that neither capabilities nor filter nor read-only mounts keep from anything.
fn mighty(fixture: &Fixture, script: &str) -> SandboxSpec {
    let spec = fixture.shell(script).privileged();
    let mut spec = SandboxSpec { seccomp: Seccomp::Unconfined, ..spec };
    spec.process.capabilities = Capabilities::ALL;
    spec.process.apparmor = AppArmor::Default;
    spec
}

/// Seen to fail where no process entered the profile, as the two that follow; the second half shows that all of it is allowed then.
fn confines() {
    if !is_there() {
        return;
    }
    let fixture = Fixture::new();
    let script = "cat /proc/self/attr/apparmor/current; mount -t tmpfs x /mnt 2>/dev/null && echo mounted; \
                  for file in /proc/sys/vm/swappiness /proc/sys/kernel/panic /sys/kernel/mm/transparent_hugepage/enabled; do \
                  (: >>$file) 2>/dev/null && echo opened $file; done; \
                  (: >>/proc/self/oom_score_adj) && echo own; kill -0 1 && echo signals";
    let spec = mighty(&fixture, script);
    let ran = run_on(executor(), &spec).expect("runs");
    assert_eq!(ran.stdout, [DEFAULT, "own\nsignals\n"].concat(), "{}", ran.stderr);
    let mut free = spec;
    free.process.apparmor = AppArmor::Unconfined;
    let ran = run_on(executor(), &free).expect("runs").stdout;
    assert!(
        ran.starts_with("unconfined\nmounted\nopened /proc/sys/vm/swappiness\nopened /proc/sys/kernel/panic\n"),
        "{ran}"
    );
}

fn others() {
    if !is_there() {
        return;
    }
    let fixture = Fixture::new();
    let script = format!("{LABEL}; cat /proc/1/attr/apparmor/current; kill -0 1 && echo signals");
    let mut spec = fixture.shell(&script);
    spec.process.reaper = true;
    spec.process.no_new_privileges = true;
    spec.process.user.uid = 7;
    let ran = run_on(executor(), &spec).expect("runs");
    assert_eq!(ran.stdout, [DEFAULT, DEFAULT, "signals\n"].concat(), "{}", ran.stderr);
    let waiting = Waiting::of(&fixture);
    assert_eq!(waiting.shell(LABEL), DEFAULT);
    waiting.end();
    let mut spec = fixture.spec(&["/bin/cat"]);
    spec.process.apparmor = AppArmor::Unconfined;
    let waiting = Waiting::start(executor(), spec);
    assert_eq!(waiting.output(&shell(LABEL)).expect("runs"), (ExitStatus::Exited(0), "unconfined\n".to_owned()));
    waiting.end();
}

fn through_runtimes() {
    if !is_there() {
        return;
    }
    for (name, runtime) in runtimes() {
        let fixture = Fixture::new();
        let mut spec = fixture.shell(LABEL);
        assert_eq!(run_on(runtime, &spec).expect(name).stdout, DEFAULT, "{name}");
        spec.process.apparmor = AppArmor::Unconfined;
        assert_eq!(run_on(runtime, &spec).expect(name).stdout, "unconfined\n", "{name}");
    }
}

/// The one test that every kernel has something to say to.
fn missing() {
    let fixture = Fixture::new();
    let mut spec = fixture.shell("echo ran");
    spec.process.apparmor = AppArmor::Profile("forge-nosuch".into());
    let reason = match fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|answer| answer.starts_with(b"Y"))
    {
        true => "not loaded",
        false => "a kernel that has no AppArmor",
    };
    let check = |name: &str, ran: Result<Output, ExecutorError>| {
        let error = ran.err().expect(name).to_string();
        assert!(error.contains("\"forge-nosuch\"") && error.contains(reason), "{name}: {error}");
    };
    check("forge", run_on(executor(), &spec));
    runtimes().iter().for_each(|(name, runtime)| check(name, run_on(runtime, &spec)));
}
