//! Steps and containers through an OCI runtime, and what else of the host is let into a container.

use crate::fixture::{Forge, find, have, run};
use std::net::UdpSocket;
use std::time::Duration;

/// The runtimes of this machine; says so where there is none.
fn runtimes(test: &str) -> Vec<&'static str> {
    let found: Vec<_> = ["runc", "crun"].into_iter().filter(|name| find(name).is_some()).collect();
    if found.is_empty() {
        let required = std::env::var("FORGE_REQUIRE_PRIVILEGED").is_ok_and(|value| value == "1");
        assert!(!required, "{test} needs runc or crun");
        println!("SKIPPED (needs runc or crun): {test}");
    }
    found
}

#[test]
fn privileged_oci_runtimes_build_and_run() {
    let Some(forge) = Forge::privileged("oci_runtimes_build_and_run") else { return };
    let dockerfile = "FROM busybox\nWORKDIR /made\nRUN --mount=type=cache,target=/cache echo $HOSTNAME > f && touch /cache/x\n\
                      RUN --network=none ls /sys/class/net > net\nUSER 1:2\nRUN id > /tmp/id; test ! -e /run/x\n";
    let context = forge.context("context", &[("Dockerfile", dockerfile)]);
    let own = forge.ok(&["build", "-q", "--no-cache", &context]).stdout;
    for name in runtimes("oci_runtimes_build_and_run") {
        let built = forge.ok(&["build", "-q", "--no-cache", "--oci-runtime", name, "-t", "built", &context]).stdout;
        let listed = |id: &str| forge.shell(id.trim(), "cat /made/f /made/net /tmp/id; ls -la /made /tmp | cut -c1-40");
        assert_eq!(listed(&built), listed(&own), "{name}");
        let code = |words: &[&str]| forge.forge(&[&["run", "--rm", "--runtime", name, "busybox"], words].concat()).code;
        assert_eq!((code(&["true"]), code(&["sh", "-c", "exit 42"])), (0, 42), "{name}");
        assert_eq!((code(&["/etc/passwd"]), code(&["nosuch"])), (126, 127), "{name}");
        let init = [
            "run",
            "--rm",
            "--init",
            "--user",
            "7",
            "--runtime",
            name,
            "busybox",
            "sh",
            "-c",
            "cat /proc/1/comm; exit 5",
        ];
        let ran = forge.forge(&init);
        assert_eq!((ran.stdout.as_str(), ran.code), ("forge-init\n", 5), "{name} {}", ran.stderr);
        let domain =
            ["run", "--rm", "--domainname", "x", "--runtime", name, "busybox", "cat", "/proc/sys/kernel/domainname"];
        assert_eq!(forge.ok(&domain).stdout, "x\n", "{name}");
        assert_eq!(code(&["sh", "-c", "kill -9 $$"]), code(&["sh", "-c", "kill -9 $$; exit 0"]), "{name}");
    }
    let missing = forge.fails(125, &["run", "--rm", "--oci-runtime", "nosuch", "busybox", "true"]);
    assert!(missing.stderr.contains("--oci-runtime nosuch: there is no such program"), "{}", missing.stderr);
    let broken = forge.forge(&["run", "--rm", "--oci-runtime", "/bin/false", "busybox", "true"]);
    assert!(broken.code == 125 && broken.stderr.contains("/bin/false cannot run the container"), "{}", broken.stderr);
}

#[test]
fn privileged_policies_are_docker_s_files() {
    let Some(forge) = Forge::privileged("policies_are_docker_s_files") else { return };
    let policy = r#"{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
                     {"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}}]}"#;
    std::fs::write(forge.path("policy.json"), policy).unwrap();
    let script = "mkdir /x; chmod 700 /tmp && echo changed";
    let with = |flags: &[&str]| {
        forge.forge(&[&["run", "--rm", "-q", "--network", "none"], flags, &["busybox", "sh", "-c", script]].concat())
    };
    let filtered = with(&["--security-opt", "seccomp=policy.json"]);
    assert!(filtered.stderr.contains("No space left"), "{}", filtered.stderr);
    assert!(
        filtered.stderr.contains("/tmp: Operation not permitted") && filtered.stdout.is_empty(),
        "{}",
        filtered.stderr
    );
    let trusted = with(&["--security-opt", "seccomp=policy.json", "--cap-add", "SYS_ADMIN"]);
    assert_eq!(trusted.stdout, "changed\n", "{}", trusted.stderr);
    std::fs::write(forge.path("policy.json"), "{\"defaultAction\": \"SCMP_ACT_NOTIFY\"}").unwrap();
    let refused = with(&["--security-opt", "seccomp=policy.json"]);
    assert!(refused.code == 125 && refused.stderr.contains("SCMP_ACT_NOTIFY"), "{}", refused.stderr);
    assert!(with(&["--security-opt", "seccomp=nosuch.json"]).stderr.contains("opening seccomp profile"));
}

#[test]
fn privileged_devices_are_given_one_by_one_or_all() {
    let Some(forge) = Forge::privileged("devices_are_given_one_by_one_or_all") else { return };
    let with = |flags: &[&str], script: &str| {
        forge.forge(&[&["run", "--rm", "-q", "--network", "none"], flags, &["busybox", "sh", "-c", script]].concat())
    };
    let read = "head -c 1 /dev/given | wc -c; (: > /dev/given) && echo written";
    assert_eq!(with(&["--device", "/dev/kmsg:/dev/given"], "test -c /dev/given && echo there").stdout, "there\n");
    assert_eq!(with(&["--device", "/dev/zero:/dev/given"], read).stdout, "1\nwritten\n");
    // The six standard nodes can be opened in any case; what is refused must be another one.
    let kernel = with(&["--device", "/dev/kmsg:/dev/given:w"], "head -c 1 /dev/given");
    assert!(kernel.stderr.contains("not permitted"), "{}", kernel.stderr);
    let wrong = with(&["--device", "/etc/passwd"], "true");
    assert!(wrong.code == 125 && wrong.stderr.contains("not a device node"), "{}", wrong.stderr);
    let all = with(&["--privileged"], "ls /dev | wc -l; test -c /dev/kmsg && head -c 0 /dev/kmsg && echo opens");
    let count: usize = all.stdout.lines().next().unwrap_or_default().parse().unwrap();
    assert!(count > 14 && all.stdout.ends_with("opens\n"), "{}{}", all.stdout, all.stderr);
}

#[test]
fn privileged_packets_and_exposed_ports_are_published() {
    let Some(forge) = Forge::privileged("packets_and_exposed_ports_are_published") else { return };
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nEXPOSE 7/udp\n")]);
    forge.build(&["-t", "exposing", &context]);
    // No program of busybox's answers packets; perl is on every Debian.
    let script = "socket(S, PF_INET, SOCK_DGRAM, 0); bind(S, sockaddr_in(7, INADDR_ANY)); \
                  while (1) { my $from = recv(S, my $text, 99, 0); send(S, $text, 0, $from) }";
    if !have("packets_and_exposed_ports_are_published", &["perl"]) {
        return;
    }
    let mut words = vec!["run", "--rm", "-P", "-v", "/usr:/usr:ro", "-v", "/lib:/lib:ro"];
    if std::path::Path::new("/lib64").exists() {
        words.extend(["-v", "/lib64:/lib64:ro"]);
    }
    words.extend(["exposing", "/usr/bin/perl", "-MSocket", "-e", script]);
    let mut command = forge.command(&words);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stderr.take().unwrap()), &mut line).unwrap();
    let port = line.trim().rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    let answer = port.filter(|_| line.contains("port 7/udp is published on")).and_then(|port| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        (0..20).find_map(|_| {
            socket.send_to(b"echo", ("127.0.0.1", port)).unwrap();
            let mut answer = [0; 16];
            socket.recv(&mut answer).ok().map(|length| answer[..length].to_vec())
        })
    });
    child.kill().unwrap();
    child.wait().unwrap();
    if port.is_none() && line.contains("the host's network is used") {
        println!("SKIPPED: no private network");
        return;
    }
    assert_eq!(answer.as_deref(), Some(&b"echo"[..]), "{line}");
    // A range: the first that is free.
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let first = taken.local_addr().unwrap().port();
    let range = format!("127.0.0.1:{first}-{}:9/udp", first.saturating_add(30));
    let chosen = run(&mut forge.command(&["run", "--rm", "-p", &range, "busybox", "true"]), b"").stderr;
    assert!(chosen.contains("port 9/udp is published on 127.0.0.1:"), "{chosen}");
}
