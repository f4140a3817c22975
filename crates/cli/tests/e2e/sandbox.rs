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

/// What the tests of the executor expect of S5 is what `forge run` gives, but for what a container has of its own: a name,
/// and files with names of hosts. Not where an OCI runtime is asked for, whose differences those tests know.
#[test]
fn privileged_s5_probe_by_forge_run() {
    let Some(forge) = Forge::privileged("s5_probe_by_forge_run") else { return };
    if std::env::var_os("FORGE_OCI_RUNTIME").is_some() {
        println!("SKIPPED (an OCI runtime is asked for): s5_probe_by_forge_run");
        return;
    }
    let script = include_str!("../../../executor/tests/sandbox/probe.sh");
    for (user, expected) in [
        ("0:0", include_str!("../../../executor/tests/sandbox/expected-root.txt")),
        ("1000:1000", include_str!("../../../executor/tests/sandbox/expected-user.txt")),
    ] {
        let words =
            ["run", "--rm", "-q", "--network", "none", "-e", "HOME=/root", "--user", user, "busybox", "sh", "-c"];
        let seen = forge.ok(&[&words[..], &[script]].concat()).stdout;
        let (machine, rest): (Vec<&str>, Vec<&str>) = seen.lines().partition(|line| depends_on_the_machine(line));
        let same = |line: &&str| !depends_on_the_machine(line);
        let missing: Vec<_> = expected.lines().filter(same).filter(|line| !rest.contains(line)).collect();
        let more: Vec<_> = rest.iter().filter(|line| !expected.lines().any(|other| other == **line)).collect();
        assert!(missing.is_empty() && more.is_empty(), "{user}: missing {missing:#?}, more {more:#?}");
        for line in machine {
            assert!(is_as_it_must_be(line), "{user}: {line}");
        }
    }
}

fn depends_on_the_machine(line: &str) -> bool {
    let files = ["mnt /etc/hosts=", "mnt /etc/resolv.conf=", "mnt /proc/", "mnt /sys/firmware"];
    let others = ["ns_", "mask ", "write ", "fd ", "umask=", "env="];
    files.iter().chain(&others).any(|start| line.starts_with(start))
}

fn is_as_it_must_be(line: &str) -> bool {
    let Some((key, value)) = line.rsplit_once('=') else { return false };
    let own = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
    match key.split_once([' ', '_']).unwrap_or((key, "")) {
        ("ns", name) => (own(name).to_str() == Some(value)) == (name == "user"),
        ("mask", _) => ["absent", "bytes:0", "dir:0"].contains(&value),
        ("write", _) => value == "denied",
        ("fd", _) => value == "/dev/null" || value.starts_with("pipe:["),
        ("mnt", _) => value.starts_with("ro,nosuid,"),
        ("env", _) => value == "HOME,HOSTNAME,PATH,PWD,SHLVL,",
        _ => line.starts_with("umask=0022 cwd=/ nofile=1024/") && line.contains(" oom=0 "),
    }
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

fn status_of(forge: &Forge, flags: &[&str]) -> String {
    let script = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'";
    let words = [&["run", "--rm", "-q", "--network", "none"], flags, &["busybox", "sh", "-c", script]].concat();
    forge.ok(&words).stdout.replace('\n', " ")
}

#[test]
fn privileged_rights_are_dockers() {
    let Some(forge) = Forge::privileged("rights_are_dockers") else { return };
    let default = "CapEff:00000000a80425fb CapBnd:00000000a80425fb NoNewPrivs:0 Seccomp:2 ";
    assert_eq!(status_of(&forge, &[]), default);
    let less = status_of(&forge, &["--cap-drop", "ALL", "--cap-add", "CHOWN", "--security-opt", "no-new-privileges"]);
    assert_eq!(less, "CapEff:0000000000000001 CapBnd:0000000000000001 NoNewPrivs:1 Seccomp:2 ");
    assert!(status_of(&forge, &["--security-opt", "seccomp=unconfined"]).ends_with("Seccomp:0 "));
    let everything = status_of(&forge, &["--privileged"]);
    assert!(everything.ends_with("Seccomp:0 ") && !everything.contains("a80425fb"), "{everything}");
    forge.fails(125, &["run", "--rm", "--cap-add", "NONSENSE", "busybox", "true"]);
    forge.fails(125, &["run", "--rm", "--security-opt", "seccomp=/profile.json", "busybox", "true"]);
    let profile = ["run", "--rm", "--security-opt", "apparmor=forge-nosuch", "busybox", "true"];
    assert!(forge.fails(125, &profile).stderr.contains("AppArmor's profile \"forge-nosuch\""));
    let groups = ["run", "--rm", "-q", "--group-add", "4242", "-u", "7:8", "busybox", "id", "-G"];
    assert_eq!(forge.ok(&groups).stdout, "8 4242\n");
}

#[test]
fn privileged_mounts_are_dockers() {
    let Some(forge) = Forge::privileged("mounts_are_dockers") else { return };
    let folder = forge.context("shared", &[("file", "data")]);
    let bind = format!("type=bind,source={folder},target=/shared,readonly");
    let script = "cat /shared/file; (: > /shared/x) 2>/dev/null || echo read-only; stat -c %a /t /m; \
                  grep -E ' (/t|/m) ' /proc/mounts | cut -d ' ' -f 2,4 | cut -d , -f 1-4; (: > /x) 2>/dev/null || echo root read-only";
    let words = [
        "run",
        "--rm",
        "-q",
        "--network",
        "none",
        "--read-only",
        "--mount",
        &bind,
        "--tmpfs",
        "/t:size=1m,mode=750,exec",
        "--mount",
        "type=tmpfs,dst=/m",
        "busybox",
        "sh",
        "-c",
        script,
    ];
    let seen = forge.ok(&words).stdout;
    assert!(seen.starts_with("dataread-only\n750\n1777\n"), "{seen}");
    assert!(seen.contains("/t rw,nosuid,nodev,relatime") && seen.contains("/m rw,nosuid,nodev,noexec"), "{seen}");
    assert!(seen.ends_with("root read-only\n"), "{seen}");
    let missing = forge.path("missing").display().to_string();
    let bind = format!("type=bind,src={missing},dst=/x");
    forge.fails(125, &["run", "--rm", "--mount", &bind, "busybox", "true"]);
    assert!(!forge.path("missing").exists(), "--mount makes nothing");
    let refused = forge.fails(125, &["run", "--rm", "--mount", "type=volume,src=v,dst=/x", "busybox", "true"]);
    assert!(refused.stderr.contains("not supported"), "{}", refused.stderr);
}

#[test]
fn privileged_names_ids_and_init() {
    let Some(forge) = Forge::privileged("names_ids_and_init") else { return };
    let file = forge.path("cid").display().to_string();
    let sleeper = [
        "run",
        "--rm",
        "-q",
        "--network",
        "none",
        "--name",
        "web",
        "--cidfile",
        &file,
        "-l",
        "a=b",
        "busybox",
        "sleep",
        "60",
    ];
    let mut child = forge.command(&sleeper).spawn().unwrap();
    let begin = std::time::Instant::now();
    let id = loop {
        let id = std::fs::read_to_string(&file).unwrap_or_default();
        if id.len() == 64 {
            break id;
        }
        assert!(begin.elapsed().as_secs() < 60);
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    let record = forge.store().join("run/containers").join(format!("{id}.json"));
    assert!(std::fs::read_to_string(&record).unwrap().contains(r#""Name":"web""#));
    let taken = forge.fails(125, &["run", "--rm", "--name", "web", "busybox", "true"]);
    assert!(taken.stderr.contains(&id), "{}", taken.stderr);
    forge.fails(125, &["run", "--rm", "--cidfile", &file, "busybox", "true"]);
    child.kill().unwrap();
    child.wait().unwrap();
    forge.ok(&["run", "--rm", "--name", "web", "busybox", "true"]);
    assert!(!record.exists());
    // The first process takes orphans in, and passes the code on.
    let script = "(sh -c 'sleep 0.1 &'); sleep 0.3; cat /proc/1/comm; ps | grep -c '\\[sleep\\]'; exit 7";
    let with = forge.fails(7, &["run", "--rm", "-q", "--network", "none", "--init", "busybox", "sh", "-c", script]);
    assert_eq!(with.stdout, "forge-init\n0\n");
    forge.fails(127, &["run", "--rm", "--init", "busybox", "nosuch"]);
}

/// SIGTERM is handed on as it is, or asks for the end as `docker stop` does.
#[test]
fn privileged_stop_signals() {
    let Some(forge) = Forge::privileged("stop_signals") else { return };
    let script =
        "trap 'echo usr1; exit 3' USR1; trap 'echo term; exit 4' TERM; echo ready; while :; do sleep 0.05; done";
    for (flags, code, words) in [
        (&["--stop-signal", "USR1"][..], 3, "ready\nusr1\n"),
        (&[][..], 4, "ready\nterm\n"),
        (&["--init"][..], 4, "ready\nterm\n"),
        (&["--stop-signal", "SIGHUP", "--stop-timeout", "1"][..], 137, "ready\n"),
    ] {
        let ignoring = format!("trap '' HUP; {script}");
        let command =
            [&["run", "--rm", "-q", "--network", "none"], flags, &["busybox", "sh", "-c", &ignoring]].concat();
        let mut child = forge.command(&command).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut reader = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        std::io::BufRead::read_line(&mut reader, &mut text).unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
        assert_eq!((crate::fixture::wait(&mut child), text.as_str()), (code, words), "{flags:?}");
    }
}

#[test]
fn privileged_published_ports_lead_to_the_container() {
    let Some(forge) = Forge::privileged("published_ports") else { return };
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let port = format!("127.0.0.1:{free}:80");
    let script = "while :; do echo hello | nc -l -p 80; done";
    let mut child = forge.command(&["run", "--rm", "-q", "-p", &port, "busybox", "sh", "-c", script]).spawn().unwrap();
    let begin = std::time::Instant::now();
    let answer = loop {
        let mut text = String::new();
        let stream = std::net::TcpStream::connect(("127.0.0.1", free));
        let read = stream.and_then(|mut stream| {
            stream.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
            std::io::Read::read_to_string(&mut stream, &mut text)
        });
        if read.is_ok_and(|count| count > 0) || begin.elapsed().as_secs() > 20 {
            break text;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    let taken = forge.forge(&["run", "--rm", "-q", "-p", &port, "busybox", "true"]);
    child.kill().unwrap();
    child.wait().unwrap();
    if answer.is_empty() && !forge.ok(&["run", "--rm", "busybox", "true"]).stderr.is_empty() {
        println!("SKIPPED: no private network");
        return;
    }
    assert_eq!(answer, "hello\n");
    assert_eq!(taken.code, 125, "{}", taken.stderr);
}
