//! RUN's mounts in Dockerfiles, and what flags hand to them.

use crate::fixture::{Forge, Outcome, Step, state};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn dockerfile(forge: &Forge, text: &str) -> String {
    forge.context("context", &[("Dockerfile", text), ("src/f", "F"), ("hidden.log", "L"), (".dockerignore", "*.log\n")])
}

#[test]
fn privileged_caches_are_kept_between_builds() {
    let Some(forge) = Forge::privileged("caches_are_kept_between_builds") else { return };
    let step = "RUN --mount=type=cache,target=/c,id=e2e echo x >>/c/runs; wc -l </c/runs >/count";
    let context = dockerfile(&forge, &format!("FROM busybox\n{step}\n"));
    let count = |flags: &[&str]| {
        let built = forge.ok(&[["build", "--progress", "plain", "-t", "app"].as_slice(), flags, &[&context]].concat());
        (forge.shell("app", "cat /count; ls -d /c 2>&1 || true"), built.stderr)
    };
    let (first, log) = count(&[]);
    assert_eq!(first, "1\nls: /c: No such file or directory\n");
    assert!(log.contains("cache mount e2e: new, 0B"), "{log}");
    let (again, log) = count(&["--no-cache"]);
    assert!(again.starts_with("2\n") && log.contains(": reused, 2B"), "{again}{log}");
    let du = forge.ok(&["du", "--verbose"]).stdout;
    assert!(du.contains("exec.cachemount"), "{du}");
    forge.ok(&["prune", "-f"]);
    assert!(count(&["--no-cache"]).0.starts_with("3\n"));
    forge.ok(&["prune", "-af"]);
    assert!(!forge.ok(&["du", "--verbose"]).stdout.contains("exec.cachemount"));
    assert!(count(&["--no-cache"]).0.starts_with("1\n"));
}

#[test]
fn privileged_caches_are_shared_by_processes() {
    let Some(forge) = Forge::privileged("caches_are_shared_by_processes") else { return };
    // Fails if another step was in at the same time.
    let alone = "ls /c/inside 2>/dev/null && exit 7; touch /c/inside; sleep 0.3; rm /c/inside; echo $N >>/c/runs";
    let mount = "--mount=type=cache,target=/c,id=e2e,sharing=locked";
    let context = dockerfile(&forge, &format!("FROM busybox\nARG N\nRUN {mount} {alone}\n"));
    let build = |number: u32| {
        let argument = format!("N={number}");
        let mut command = forge.command(&["build", "--progress", "plain", "--build-arg", &argument, &context]);
        command.stderr(Stdio::piped()).spawn().unwrap()
    };
    let ended: Vec<_> = [1, 2, 3].map(build).into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let logs = ended.iter().map(|output| String::from_utf8_lossy(&output.stderr)).collect::<Vec<_>>().join("\n");
    assert!(ended.iter().all(|output| output.status.success()) && logs.contains("waiting for cache mount"), "{logs}");
    // Whoever is killed holds nothing, and what it wrote is there.
    let stuck = dockerfile(&forge, &format!("FROM busybox\nRUN {mount} echo killed >>/c/runs; sleep 60\n"));
    let mut killed = forge.command(&["build", "--progress", "plain", &stuck]).stderr(Stdio::null()).spawn().unwrap();
    let runs = || {
        let mounts = std::fs::read_dir(forge.path("store/cache-mounts")).unwrap().next().unwrap().unwrap().path();
        std::fs::read_to_string(mounts.join("tree/runs")).unwrap_or_default()
    };
    let begin = Instant::now();
    while !runs().contains("killed") {
        assert!(begin.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(10));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let read = dockerfile(&forge, &format!("FROM busybox\nRUN {mount} wc -l </c/runs >/count\n"));
    forge.build(&["-t", "app", &read]);
    assert_eq!(forge.shell("app", "cat /count"), "4\n");
}

#[test]
fn privileged_caches_belong_to_whom_the_step_says() {
    let Some(forge) = Forge::privileged("caches_belong_to_whom_the_step_says") else { return };
    let lines = "RUN --mount=type=cache,target=/c,uid=7,gid=8,mode=0750 stat -c %a:%u:%g /c >/owner\n\
        RUN --mount=type=cache,target=/d,from=busybox,source=/bin ls /d/busybox >/seeded\n\
        RUN --mount=type=cache,target=/l,sharing=locked --mount=type=tmpfs,target=/t,size=1m touch /l/x /t/y";
    let context = dockerfile(&forge, &format!("FROM busybox\n{lines}\n"));
    forge.build(&["-t", "app", &context]);
    assert_eq!(forge.shell("app", "cat /owner /seeded"), "750:7:8\n/d/busybox\n");
    // The same after the layer that it began with was collected and made again.
    let before = forge.ok(&["du", "--verbose"]).stdout.matches("exec.cachemount").count();
    forge.ok(&["rmi", "app"]);
    forge.ok(&["prune", "-f"]);
    forge.build(&["-t", "app", &context]);
    assert_eq!(forge.ok(&["du", "--verbose"]).stdout.matches("exec.cachemount").count(), before);
}

#[test]
fn privileged_binds_show_context_and_stages() {
    let Some(forge) = Forge::privileged("binds_show_context_and_stages") else { return };
    let lines = "FROM busybox AS made\nRUN mkdir /out && echo made >/out/m\nFROM busybox\n\
        RUN --mount=target=/ctx cat /ctx/src/f >/one; ls -A /ctx >/all\n\
        RUN --mount=type=bind,from=made,source=/out,target=/m,rw echo changed >/m/m; cat /m/m >/two\n\
        RUN --mount=type=bind,from=made,source=/out/m,target=/file cat /file >/three; ls -d /file /m /ctx 2>/dev/null; true\n";
    let context = dockerfile(&forge, lines);
    forge.build(&["-t", "app", &context]);
    let shown = forge.shell("app", "cat /one /all /two /three; ls -d /m /ctx 2>/dev/null; true");
    assert_eq!(shown, "F.dockerignore\nDockerfile\nsrc\nchanged\nmade\n");
    assert_eq!(std::fs::read_to_string(Path::new(&context).join("src/f")).unwrap(), "F");
    // The key is what the mount shows.
    let built = forge.build(&["-t", "app", &context]);
    assert_eq!(state(&built, "RUN --mount=target=/ctx"), Step::Cached);
    std::fs::write(Path::new(&context).join("hidden.log"), "other").unwrap();
    assert_eq!(state(&forge.build(&["-t", "app", &context]), "RUN --mount=target=/ctx"), Step::Cached);
    std::fs::write(Path::new(&context).join("src/f"), "G").unwrap();
    let built = forge.build(&["-t", "app", &context]);
    assert_eq!(state(&built, "RUN --mount=target=/ctx"), Step::Ran);
}

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzEXAMPLEKEY";

/// The texts under which a secret could be found.
fn traces() -> [Vec<u8>; 3] {
    let hex: String = SECRET.bytes().map(|byte| format!("{byte:02x}")).collect();
    let base64 = "d0phbHJYVXRuRkVNSS9LN01ERU5HK2JQeFJmaUNZekVYQU1QTEVLRVk";
    [SECRET.as_bytes().to_vec(), hex.into_bytes(), base64.as_bytes().to_vec()]
}

fn holds(bytes: &[u8]) -> bool {
    traces().iter().any(|trace| bytes.windows(trace.len()).any(|window| window == trace))
}

fn files_with_secret(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files_with_secret(&entry.path()));
        } else if kind.is_file() && holds(&std::fs::read(entry.path()).unwrap()) {
            found.push(entry.path().display().to_string());
        }
    }
    found
}

/// The last lines show that the search finds what is there.
#[test]
fn privileged_a98_secrets_reach_steps_and_nothing_else() {
    let Some(forge) = Forge::privileged("a98_secrets_reach_steps_and_nothing_else") else { return };
    let lines = "FROM busybox\n\
        RUN --mount=type=secret,id=file test $(wc -c </run/secrets/file) = 41 && stat -c %a /run/secrets/file >/mode\n\
        RUN --mount=type=secret,id=env,env=TOKEN test ${#TOKEN} = 41\n\
        RUN --mount=type=secret,id=none ls /run/secrets 2>/dev/null || echo absent >/absent\n";
    let context = dockerfile(&forge, lines);
    let build = |more: &[&str]| -> Outcome {
        let mut command = forge.command(&["build", "--progress", "rawjson", "--debug", "-t", "app"]);
        command.env("TOKEN_SOURCE", SECRET).args(["--secret", "id=env,env=TOKEN_SOURCE"]);
        command.args(["--secret", "id=file,src=/dev/fd/0"]).args(more).arg(&context);
        crate::fixture::run(&mut command, SECRET.as_bytes())
    };
    let built = build(&[]);
    assert_eq!(built.code, 0, "{}", built.stderr);
    assert!(!holds(built.stderr.as_bytes()) && !holds(built.stdout.as_bytes()));
    assert_eq!(forge.shell("app", "cat /mode /absent; ls -A /run 2>/dev/null; true"), "400\nabsent\n");
    forge.ok(&["save", "-o", "image.tar", "app"]);
    assert!(!holds(forge.ok(&["inspect", "app"]).stdout.as_bytes()));
    assert!(!holds(forge.ok(&["history", "--no-trunc", "app"]).stdout.as_bytes()));
    assert_eq!(files_with_secret(&forge.path("")), Vec::<String>::new());
    // Neither a value nor its absence is part of the key (A100).
    let again = forge.build(&["-t", "app", &context]);
    assert_eq!(state(&again, "RUN --mount=type=secret,id=file"), Step::Cached);
    // What fails tells nothing either, and what must be there and is not fails.
    let context = dockerfile(&forge, "FROM busybox\nRUN --mount=type=secret,id=file,required=true sh -xc 'exit 3'\n");
    let failed = forge.fails(1, &["build", "--progress", "plain", &context]);
    assert!(failed.stderr.contains("secret file: not found"), "{}", failed.stderr);
    let leaked = forge.path("store/leak");
    std::fs::write(&leaked, &traces()[2]).unwrap();
    assert_eq!(files_with_secret(&forge.path("")).len(), 1, "the oracle can fail");
}

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn privileged_agents_are_forwarded() {
    let Some(forge) = Forge::privileged("agents_are_forwarded") else { return };
    let socket = forge.path("agent");
    let Ok(agent) = Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn() else {
        return println!("SKIPPED (needs openssh-client): agents_are_forwarded");
    };
    let _agent = Agent(agent);
    let begin = Instant::now();
    while !socket.exists() {
        assert!(begin.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(5));
    }
    let lines = "FROM busybox\n\
        RUN --mount=type=ssh stat -c %a:%u:%F $SSH_AUTH_SOCK >/socket && echo $SSH_AUTH_SOCK >>/socket\n\
        RUN test -z \"$SSH_AUTH_SOCK\" && test ! -e /run/buildkit\n";
    let context = dockerfile(&forge, lines);
    let socket = socket.to_str().unwrap();
    forge.build(&["-t", "app", "--ssh", &format!("default={socket}"), &context]);
    assert_eq!(forge.shell("app", "cat /socket"), "600:0:socket\n/run/buildkit/ssh_agent.0\n");
    let context = dockerfile(&forge, "FROM busybox\nRUN --mount=type=ssh,required=true true\n");
    let failed = forge.fails(1, &["build", &context]);
    assert!(failed.stderr.contains("no SSH key \"default\" forwarded from the client"), "{}", failed.stderr);
    let built = forge.with_env(&["build", "--ssh", "default", &context], "SSH_AUTH_SOCK", socket);
    assert_eq!(built.code, 0, "{}", built.stderr);
}

#[test]
fn privileged_privileges_are_asked_for() {
    let Some(forge) = Forge::privileged("privileges_are_asked_for") else { return };
    let context = dockerfile(&forge, "FROM busybox\nRUN --security=insecure mount -t tmpfs x /tmp && umount /tmp\n");
    let refused = forge.fails(1, &["build", &context]);
    assert!(refused.stderr.contains("security.insecure is not allowed"), "{}", refused.stderr);
    forge.ok(&["build", "--allow", "security.insecure", &context]);
}
