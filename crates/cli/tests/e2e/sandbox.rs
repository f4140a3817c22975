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

/// The host listens on its loopback and on all addresses: a step on the default network reaches the second by the
/// host's address alone, one on the host's network both.
#[test]
fn privileged_a93_steps_do_not_reach_the_host_s_loopback() {
    let Some(forge) = Forge::privileged("a93_loopback") else { return };
    let open = |address: &str| {
        let listener = std::net::TcpListener::bind(address).unwrap();
        let port = listener.local_addr().unwrap().port();
        // Ends with the test process.
        std::thread::spawn(move || {
            listener.incoming().flatten().for_each(|mut s| drop(std::io::Write::write(&mut s, b"open\n")))
        });
        port
    };
    let (inner, outer) = (open("127.0.0.1:0"), open("0.0.0.0:0"));
    let script = format!(
        "nc -w 2 127.0.0.1 {inner} </dev/null || echo closed; nc -w 2 host {outer} </dev/null || echo unreachable"
    );
    let ran = |network: &str| {
        forge.ok(&[
            "run",
            "--rm",
            "--network",
            network,
            "--add-host",
            "host:host-gateway",
            "busybox",
            "sh",
            "-c",
            &script,
        ])
    };
    assert_eq!(ran("host").stdout, "open\nopen\n");
    let private = ran("default");
    if private.stderr.contains("the host's network is used") {
        println!("SKIPPED (no private network): {}", private.stderr);
        return;
    }
    assert_eq!(private.stdout, "closed\nopen\n");
    let dockerfile = format!("FROM busybox\nRUN {script}\n");
    let context = forge.context("reach", &[("Dockerfile", &dockerfile)]);
    let built = forge.ok(&["build", "--progress", "plain", "--add-host", "host:host-gateway", &context]);
    let seen: Vec<_> = built.stderr.lines().filter_map(|line| line.rsplit(' ').next()).collect();
    assert!(seen.contains(&"closed") && seen.contains(&"open"), "{}", built.stderr);
}
