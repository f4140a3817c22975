//! What steps and containers may take and reach.

use crate::fixture::Forge;

/// A failure names the bound that was met. Where the machine has no memory controller, the build says that instead.
#[test]
fn privileged_a96_a_step_that_eats_memory_names_its_limit() {
    let Some(forge) = Forge::privileged("a96_memory") else { return };
    let context =
        forge.context("eater", &[("Dockerfile", "FROM busybox\nRUN dd if=/dev/zero bs=100M count=1 of=/dev/null\n")]);
    for limit in [["--memory", "64m"], ["--total-resource", "memory=64m"]] {
        let built = forge.forge(&["build", "--no-cache", limit[0], limit[1], &context]);
        let enforced = !built.stderr.contains("the memory limit is not enforced");
        assert_eq!(built.stderr.contains("killed: out of memory (limit 64 MiB)"), enforced, "{}", built.stderr);
        assert_eq!(built.code != 0, enforced);
    }
}

#[test]
fn privileged_limits_reach_steps_and_containers() {
    let Some(forge) = Forge::privileged("limits_reach_steps") else { return };
    let seen = "RUN ulimit -n; ulimit -Hn; df -k /dev/shm | tail -1 | tr -s ' ' | cut -d ' ' -f 2";
    let context = forge.context("limits", &[("Dockerfile", &format!("FROM busybox\n{seen}\n"))]);
    let flags = ["--ulimit", "nofile=77:99", "--shm-size", "3m"];
    let built = forge.ok(&[&["build", "--progress", "plain"], &flags[..], &[&context]].concat());
    for number in ["77", "99", "3072"] {
        assert!(built.stderr.lines().any(|line| line.ends_with(&format!(" {number}"))), "{}", built.stderr);
    }
    let command = ["busybox", "sh", "-c", "ulimit -n; ulimit -Hn"];
    let ran = forge.ok(&[&["run", "--rm", "-q"], &flags[..], &command].concat());
    assert_eq!(ran.stdout, "77\n99\n");
}
