//! `--host`: a build with a daemon is as one in this process.

use crate::fixture::{Forge, Outcome, Step, have, state, system, wait, without_times};
use crate::interrupt::{eventually, processes_with, read_until, signal};
use forge_testkit::{RawServer, TestCa, TestRegistry};
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A daemon with a store of its own.
pub struct Daemon {
    child: Child,
    pub address: String,
}

impl Daemon {
    pub fn start(forge: &Forge) -> Self {
        let address = format!("unix://{}", forge.path("d.sock").display());
        Self::start_at(forge, &address, &[])
    }

    fn start_at(forge: &Forge, address: &str, words: &[&str]) -> Self {
        let root = forge.path("daemon");
        let root = root.to_str().unwrap();
        forge.ok(&["--root", root, "load", "-i", crate::fixture::base_image().to_str().unwrap()]);
        let words = [&["--root", root, "daemon", "--addr", address], words].concat();
        let mut command = forge.command(&words);
        // Its configuration is another file than that of builds here.
        command.env_remove("FORGE_CONFIG").stderr(Stdio::from(fs::File::create(forge.path("daemon.log")).unwrap()));
        let child = command.spawn().unwrap();
        let started = Instant::now();
        while !fs::read_to_string(forge.path("daemon.log")).unwrap().contains("serving") {
            assert!(started.elapsed() < Duration::from_secs(20), "the daemon does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, address: address.to_owned() }
    }

    fn build(&self, forge: &Forge, words: &[&str]) -> Outcome {
        let words = [&["--host", &self.address, "build", "--progress", "plain"], words].concat();
        forge.forge(&words)
    }

    #[track_caller]
    fn ok(&self, forge: &Forge, words: &[&str]) -> Outcome {
        let outcome = self.build(forge, words);
        assert_eq!(outcome.code, 0, "{}{}", outcome.stdout, outcome.stderr);
        outcome
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        signal(&self.child, Signal::TERM);
        wait(&mut self.child);
    }
}

/// What a process holds: kilobytes of its own, open files, mounts.
fn held(process: &Child) -> [usize; 3] {
    let folder = format!("/proc/{}", process.id());
    let status = fs::read_to_string(format!("{folder}/status")).unwrap();
    let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let memory = memory.trim().trim_end_matches(" kB").parse().unwrap();
    let mounts = fs::read_to_string(format!("{folder}/mountinfo")).unwrap().lines().count();
    [memory, fs::read_dir(format!("{folder}/fd")).unwrap().count(), mounts]
}

/// Meant to fail where a build is not forgotten: 40 KB for each are too much.
#[test]
fn privileged_l02_two_hundred_builds_hold_nothing() {
    let Some(forge) = Forge::privileged("l02_two_hundred_builds_hold_nothing") else { return };
    let daemon = Daemon::start(&forge);
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nARG N\nCOPY a /\nRUN echo $N >/n\n")]);
    let build = |number: usize| {
        fs::write(Path::new(&context).join("a"), format!("text {number}")).unwrap();
        daemon.ok(&forge, &["--build-arg", &format!("N={number}"), &context]);
    };
    // Fifty are remembered.
    (0..80).for_each(build);
    let before = held(&daemon.child);
    (80..280).for_each(build);
    let after = held(&daemon.child);
    let more: Vec<usize> = before.iter().zip(after).map(|(before, after)| after.saturating_sub(*before)).collect();
    assert!(more[0] < 8_000 && more[1] < 8 && more[2] == 0, "{before:?} {after:?}");
}

/// What is said below the log.
fn failure(stderr: &str) -> String {
    let lines = stderr.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| format!("{line}\n")).collect()
}

const DOCKERFILE: &str = "FROM busybox\nARG WORD=none\nCOPY a b /in/\nRUN echo said $WORD; cat /in/a > /out\n";

#[test]
fn privileged_a_build_elsewhere_is_as_one_here() {
    let Some(forge) = Forge::privileged("a_build_elsewhere_is_as_one_here") else { return };
    let daemon = Daemon::start(&forge);
    let files =
        [("Dockerfile", DOCKERFILE), ("a", "text of a\n"), ("b", "text of b\n"), (".dockerignore", "ignored\n")];
    let context = forge.context("context", &files);
    fs::write(Path::new(&context).join("ignored"), vec![7; 1 << 20]).unwrap();
    let here = forge.ok(&["build", "--progress", "plain", "--build-arg", "WORD=x", "-o", "here", &context]);
    let there = daemon.ok(&forge, &["--build-arg", "WORD=x", "-o", "there", &context]);
    assert_eq!(there.steps(), here.steps());
    assert!(there.stderr.contains("said x"), "{}", there.stderr);
    for path in ["out", "in/a", "in/b", "bin/busybox"] {
        assert_eq!(fs::read(forge.path("here").join(path)).unwrap(), fs::read(forge.path("there").join(path)).unwrap());
    }
    // By difference: of the context nothing but what changed crosses.
    fs::write(Path::new(&context).join("b"), "other text of b\n").unwrap();
    let again = daemon.ok(&forge, &["--build-arg", "WORD=x", "-o", "there", &context]);
    assert!(again.stderr.contains("transferring context: 16B"), "{}", again.stderr);
    assert_eq!(fs::read_to_string(forge.path("there/in/b")).unwrap(), "other text of b\n");
    let cached = daemon.ok(&forge, &["--build-arg", "WORD=x", "-o", "there", &context]);
    assert_eq!(state(&cached.steps(), "RUN"), Step::Cached);
    assert!(!forge.path("store/images").join("x").exists());
}

#[test]
fn privileged_what_fails_elsewhere_fails_in_the_same_words() {
    let Some(forge) = Forge::privileged("what_fails_elsewhere_fails_in_the_same_words") else { return };
    let daemon = Daemon::start(&forge);
    for (name, dockerfile) in [
        ("step", "FROM busybox\nRUN echo last words; exit 7\n"),
        ("syntax", "FROM busybox\nRUM x\n"),
        ("missing", "FROM busybox\nCOPY none /x\n"),
        ("secret", "FROM busybox\nRUN --mount=type=secret,id=s,required true\n"),
    ] {
        let context = forge.context(name, &[("Dockerfile", dockerfile), ("a", "")]);
        let here = forge.fails(1, &["build", "--progress", "plain", &context]);
        let there = daemon.build(&forge, &[&context]);
        assert_eq!(there.code, here.code, "{name}: {}", there.stderr);
        assert_eq!(without_times(&failure(&there.stderr)), without_times(&failure(&here.stderr)), "{name}");
    }
    let none = forge.context("none", &[("x", "")]);
    let (here, there) = (forge.fails(1, &["build", &none]), daemon.build(&forge, &[&none]));
    assert_eq!((there.code, failure(&there.stderr)), (1, failure(&here.stderr)));
}

#[test]
fn privileged_results_come_from_elsewhere() {
    let Some(forge) = Forge::privileged("results_come_from_elsewhere") else { return };
    let daemon = Daemon::start(&forge);
    let registry = TestRegistry::start();
    let context = forge.context("context", &[("Dockerfile", DOCKERFILE), ("a", "text\n"), ("b", "")]);
    // Archives, which are loaded here.
    for (kind, file) in [("oci", "oci.tar"), ("docker", "docker.tar")] {
        let output = format!("type={kind},dest={file}");
        daemon.ok(&forge, &["-t", "far/away:1", "-o", &output, &context]);
        forge.ok(&["load", "-i", file]);
        assert_eq!(forge.shell("far/away:1", "cat /out"), "text\n", "{kind}");
        forge.ok(&["rmi", "far/away:1"]);
    }
    let tar = daemon.build(&forge, &["-o", "-", &context]);
    assert!(tar.code == 0 && tar.stdout.contains("ustar"), "{}", tar.stderr);
    // An image stays with the daemon, or goes to a registry; what is told of it is written here.
    let name = format!("{}/team/app:1", registry.authority());
    let words = ["--push", "-t", &name, "--iidfile", "id", "--metadata-file", "metadata", "--label", "l=v", &context];
    daemon.ok(&forge, &words);
    forge.ok(&["pull", &name]);
    let id = fs::read_to_string(forge.path("id")).unwrap();
    let inspected = forge.ok(&["inspect", &name]).stdout;
    assert!(inspected.contains(&id) && inspected.contains("\"l\": \"v\""), "{id}\n{inspected}");
    let metadata = fs::read_to_string(forge.path("metadata")).unwrap();
    assert!(metadata.contains("containerimage.digest") && metadata.contains(&id), "{metadata}");
    let quiet = forge.ok(&["--host", &daemon.address, "build", "-q", "-t", "stays", &context]);
    assert!(quiet.stdout.starts_with("sha256:") && quiet.stderr.is_empty(), "{quiet:?}");
    let root = forge.path("daemon");
    let images = forge.ok(&["--root", root.to_str().unwrap(), "images"]).stdout;
    assert!(images.contains("stays") && !forge.ok(&["images"]).stdout.contains("stays"), "{images}");
}

#[test]
fn privileged_passwords_stay_where_tokens_are_fetched() {
    let Some(forge) = Forge::privileged("passwords_stay_where_tokens_are_fetched") else { return };
    let daemon = Daemon::start(&forge);
    let registry = TestRegistry::builder().bearer("anna", "geheim-7f3a").start();
    let name = format!("{}/team/app:1", registry.authority());
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nCOPY Dockerfile /\n")]);
    let words = ["--push", "-t", &name, &context];
    let stranger = daemon.build(&forge, &words);
    assert!(stranger.code == 1 && stranger.stderr.contains("refuses access"), "{}", stranger.stderr);
    fs::create_dir_all(forge.path(".docker")).unwrap();
    // The base64 of user and password.
    let config = format!(r#"{{"auths":{{"{}":{{"auth":"YW5uYTpnZWhlaW0tN2YzYQ=="}}}}}}"#, registry.authority());
    fs::write(forge.path(".docker/config.json"), config).unwrap();
    registry.clear_log();
    daemon.ok(&forge, &words);
    // Whoever has the password says forge, and the daemon says what such daemons say.
    for request in registry.received() {
        let is_daemon = request.header("user-agent").unwrap().starts_with("buildkit/");
        assert_eq!(is_daemon, request.path != "/token", "{request:?}");
    }
    assert!(registry.tagged("team/app", "1").is_some());
    // A registry without tokens gets what it wants.
    let registry = TestRegistry::builder().basic("anna", "geheim-7f3a").start();
    let config = format!(r#"{{"auths":{{"{}":{{"auth":"YW5uYTpnZWhlaW0tN2YzYQ=="}}}}}}"#, registry.authority());
    fs::write(forge.path(".docker/config.json"), config).unwrap();
    daemon.ok(&forge, &["--push", "-t", &format!("{}/team/app:1", registry.authority()), &context]);
    assert!(registry.tagged("team/app", "1").is_some());
}

#[test]
fn privileged_a_build_elsewhere_is_handed_secrets_and_named_contexts() {
    let Some(forge) = Forge::privileged("a_build_elsewhere_is_handed_secrets_and_named_contexts") else { return };
    let daemon = Daemon::start(&forge);
    let dockerfile = "FROM busybox\nCOPY --from=more file /file\n\
        RUN --mount=type=secret,id=s cat /run/secrets/s /file > /out\n";
    forge.context("more", &[("file", " and a file")]);
    fs::write(forge.path("secret"), "a secret").unwrap();
    let words = ["--secret", "id=s,src=secret", "--build-context", "more=more", "-o", "out", "-"];
    let words = [&["--host", &daemon.address, "build"], &words[..]].concat();
    let outcome = forge.with_input(&words, dockerfile.as_bytes());
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert_eq!(fs::read_to_string(forge.path("out/out")).unwrap(), "a secret and a file");
    // A Dockerfile that is none of the context's, by the variable.
    fs::write(forge.path("other"), "FROM busybox\nCOPY file /given\n").unwrap();
    let words = ["build", "-f", "other", "-o", "given", "more"];
    let outcome = forge.with_env(&words, "FORGE_HOST", &daemon.address);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert_eq!(fs::read_to_string(forge.path("given/given")).unwrap(), " and a file");
}

#[test]
fn privileged_daemons_are_believed_by_their_certificates() {
    let Some(forge) = Forge::privileged("daemons_are_believed_by_their_certificates") else { return };
    let (ca, stranger) = (TestCa::new(), TestCa::new());
    let authority = ca.write(&forge.path(""));
    let (key, certificate) = ca.write_client(&forge.path(""));
    let server = ca.issue(&["127.0.0.1"]);
    let (server_key, server_certificate) = server.write(&forge.path(""));
    fs::create_dir(forge.path("strange")).unwrap();
    let strange = stranger.write(&forge.path("strange"));
    let (strange_key, strange_certificate) = stranger.write_client(&forge.path("strange"));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("tcp://127.0.0.1:{port}");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let files = [text(&server_certificate), text(&server_key), text(&authority)];
    let words = ["--tlscert", &files[0], "--tlskey", &files[1], "--tlscacert", &files[2]];
    let daemon = Daemon::start_at(&forge, &address, &words);
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nRUN echo it ran\n")]);
    let build = |authority: &Path, key: &Path, certificate: &Path| {
        let files = [text(authority), text(key), text(certificate)];
        let words = ["--tlscacert", &files[0], "--tlskey", &files[1], "--tlscert", &files[2], &context];
        daemon.build(&forge, &words)
    };
    let good = build(&authority, &key, &certificate);
    assert!(good.code == 0 && good.stderr.contains("it ran"), "{}", good.stderr);
    for bad in [build(&strange, &key, &certificate), build(&authority, &strange_key, &strange_certificate)] {
        assert!(bad.code == 1 && bad.stderr.contains("cannot connect to the daemon at tcp://127"), "{}", bad.stderr);
        assert!(!bad.stderr.contains("it ran"));
    }
    let plain = daemon.build(&forge, &[&context]);
    assert!(plain.code == 1 && plain.stderr.contains("cannot connect"), "{}", plain.stderr);
}

#[test]
fn privileged_what_has_no_meaning_elsewhere_is_refused_by_name() {
    let Some(forge) = Forge::privileged_empty("what_has_no_meaning_elsewhere_is_refused_by_name") else { return };
    let daemon = Daemon::start(&forge);
    let context = forge.context("context", &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]);
    for (words, name) in [
        (vec!["--cache-to", "type=local,dest=x,sign-key=k"], "--cache-to sign-key"),
        (vec!["--oci-runtime", "runc"], "--oci-runtime"),
    ] {
        let words = [words, vec![context.as_str()]].concat();
        let outcome = daemon.build(&forge, &words);
        assert!(outcome.code == 1 && outcome.stderr.contains(name), "{words:?}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains("not supported for a build by a daemon or a front end image"),
            "{words:?}: {}",
            outcome.stderr
        );
    }
    let run = forge.forge(&["--host", &daemon.address, "run", "busybox"]);
    assert!(run.stderr.contains("`forge run` works on this machine only"), "{}", run.stderr);
    let nobody = forge.forge(&["--host", "unix:///none.sock", "build", &context]);
    assert!(nobody.code == 1 && nobody.stderr.contains("cannot connect to the daemon at unix:///none.sock"));
}

/// What bounds steps crosses, for definitions too. Where the machine has no memory controller, the build says that instead.
#[test]
fn privileged_limits_hold_elsewhere() {
    let Some(forge) = Forge::privileged("limits_hold_elsewhere") else { return };
    let daemon = Daemon::start(&forge);
    let seen = "RUN ulimit -n; ulimit -Hn; df -k /dev/shm | tail -1 | tr -s ' ' | cut -d ' ' -f 2";
    let context = forge.context("limits", &[("Dockerfile", &format!("FROM busybox\n{seen}\n"))]);
    let built = daemon.ok(&forge, &["--ulimit", "nofile=77:99", "--shm-size", "3m", &context]);
    for number in ["77", "99", "3072"] {
        assert!(built.stderr.lines().any(|line| line.ends_with(&format!(" {number}"))), "{}", built.stderr);
    }
    let eater = "FROM busybox\nRUN dd if=/dev/zero bs=100M count=1 of=/dev/null\n";
    let context = forge.context("eater", &[("Dockerfile", eater)]);
    let llb = crate::llb::definition(&forge, &context);
    for limit in [["--memory", "64m"], ["--total-resource", "memory=64m"]] {
        for build in [vec![&*context], vec!["--llb", &llb, &context]] {
            let built = daemon.build(&forge, &[&["--no-cache"], &limit[..], &build].concat());
            let enforced = !built.stderr.contains("the memory limit is not enforced");
            assert_eq!(built.stderr.contains("killed: out of memory (limit 64 MiB)"), enforced, "{}", built.stderr);
            assert_eq!(built.code != 0, enforced, "{}", built.stderr);
        }
    }
}

/// Names of one file in a context are names of one file in the image, as far as they are copied together.
#[test]
fn privileged_hard_links_of_contexts_stay_here_and_elsewhere() {
    let Some(forge) = Forge::privileged("hard_links_of_contexts_stay_here_and_elsewhere") else { return };
    let daemon = Daemon::start(&forge);
    let dockerfile = "FROM busybox\nCOPY . /in\nCOPY bar /alone\nCOPY fo* /foos/\n\
        RUN stat -c '%h %n' /in/bar /in/d/foo /in/foo1 /alone /foos/*\n";
    let context = forge.context("context", &[("Dockerfile", dockerfile), ("bar", "of bar"), ("d/other", "")]);
    let at = |name: &str| Path::new(&context).join(name);
    ["d/foo", "foo1", "foo2"].iter().for_each(|name| fs::hard_link(at("bar"), at(name)).unwrap());
    let told = |outcome: &Outcome| -> Vec<String> {
        let lines = outcome.stderr.lines().filter_map(|line| line.split_once(" /"));
        lines.filter_map(|(before, path)| Some(format!("{} /{path}", before.rsplit(' ').next()?))).collect()
    };
    let both = || {
        let here = forge.ok(&["build", "--progress", "plain", "-o", "here", &context]);
        let there = daemon.ok(&forge, &["-o", "there", &context]);
        assert_eq!(told(&there), told(&here));
        (here, there)
    };
    let linked = ["4 /in/bar", "4 /in/d/foo", "4 /in/foo1", "1 /alone", "2 /foos/foo1", "2 /foos/foo2"];
    let (here, _) = both();
    for line in linked {
        assert!(told(&here).iter().any(|told| told == line), "{line}: {}", here.stderr);
    }
    for folder in ["here", "there"] {
        use std::os::unix::fs::MetadataExt;
        let inode = |name: &str| fs::metadata(forge.path(folder).join(name)).unwrap().ino();
        assert_eq!(inode("in/bar"), inode("in/d/foo"), "{folder}");
        assert!(inode("alone") != inode("in/bar"), "{folder}");
    }
    // A name that is not of the context changes nothing, and crosses no more than before.
    fs::hard_link(at("bar"), forge.path("outside")).unwrap();
    let (here, there) = both();
    assert!([&here, &there].iter().all(|outcome| state(&outcome.steps(), "COPY . /in") == Step::Cached));
    let crossed = there.stderr.lines().any(|line| line.contains(" transferring ") && line.contains("B "));
    assert!(!crossed, "{}", there.stderr);
    // A copy of the file that looks the same is another file.
    let time = fs::metadata(at("bar")).unwrap().modified().unwrap();
    fs::remove_file(at("d/foo")).unwrap();
    fs::write(at("d/foo"), "of bar").unwrap();
    fs::File::open(at("d/foo")).unwrap().set_modified(time).unwrap();
    let (here, there) = both();
    assert!([&here, &there].iter().all(|outcome| state(&outcome.steps(), "COPY . /in") == Step::Ran));
    assert!(told(&here).iter().any(|told| told == "1 /in/d/foo"), "{}", here.stderr);
    assert!([&here, &there].iter().all(|outcome| state(&outcome.steps(), "COPY fo*") == Step::Cached));
}

/// As in a build here, with the flag and without it.
#[test]
fn privileged_steps_elsewhere_say_why_they_run() {
    let Some(forge) = Forge::privileged("steps_elsewhere_say_why_they_run") else { return };
    let daemon = Daemon::start(&forge);
    let dockerfile = "FROM busybox\nARG WORD=one\nCOPY a /a\nRUN echo $WORD; cat /a > /out\nRUN cat /out\n";
    let context = forge.context("context", &[("Dockerfile", dockerfile), ("a", "one")]);
    let other = forge.context("other", &[("Dockerfile", dockerfile), ("a", "other")]);
    let said = |stderr: &str| -> Vec<String> {
        let causes = stderr.lines().filter_map(|line| Some(line.split_once("forge: not cached: ")?.1.to_owned()));
        causes.collect()
    };
    let both = |words: &[&str]| {
        let here = forge.ok(&[&["build", "--progress", "plain"], words].concat());
        let there = daemon.ok(&forge, words);
        let (here, there) = (said(&here.stderr), said(&there.stderr));
        assert_eq!(there, here, "{words:?}");
        there
    };
    // The base is known to both then.
    let base = forge.context("base", &[("Dockerfile", "FROM busybox\nCOPY Dockerfile /\n")]);
    forge.build(&[&base]);
    daemon.ok(&forge, &[&base]);
    assert_eq!(both(&["--explain", &context]), ["it is built for the first time"; 3]);
    assert!(both(&["--explain", &context]).is_empty());
    forge.context("context", &[("a", "two")]);
    assert_eq!(both(&[&context]), ["a: bytes changed"]);
    let told = both(&["--explain", "--build-arg", "WORD=two", &context]);
    assert_eq!(told[0], "ARG WORD: one → two");
    assert!(both(&["--explain", "--build-arg", "WORD=two", "--no-cache", &context]).len() == 3);
    // Another folder is another build.
    assert_eq!(both(&["--explain", &other])[0], "it is built for the first time");
    let asked = forge.ok(&["--host", &daemon.address, "build", "--explain", "--call", "outline", &context]);
    assert!(asked.stdout.contains("WORD"), "{}", asked.stdout);
    // A plan compares, too.
    forge.context("context", &[("a", "three")]);
    let planned = forge.fails(2, &["--host", &daemon.address, "plan", "--build-arg", "WORD=two", &context]);
    assert!(planned.stdout.contains("a: bytes changed"), "{}", planned.stdout);
}

#[test]
fn privileged_dockerfiles_by_their_address_are_built_elsewhere() {
    let Some(forge) = Forge::privileged("dockerfiles_by_their_address_are_built_elsewhere") else { return };
    let daemon = Daemon::start(&forge);
    let web = RawServer::start(|stream, head| match head.starts_with("GET /Dockerfile") {
        true => RawServer::respond(stream, "200 OK", "", b"FROM busybox\nARG WORD\nCOPY . /in\nRUN cp /in/a /out\n"),
        false => RawServer::respond(stream, "404 Not Found", "", b""),
    });
    let [file, missing] = ["Dockerfile", "none"].map(|name| format!("http://{}/{name}", web.authority()));
    let files = [("a", "text"), ("ignored", ""), (".dockerignore", "ignored\n")];
    let context = forge.context("context", &files);
    let here = forge.ok(&["build", "--progress", "plain", "-f", &file, "-o", "here", &context]);
    let there = daemon.ok(&forge, &["-f", &file, "-o", "there", &context]);
    assert_eq!(state(&there.steps(), "RUN"), state(&here.steps(), "RUN"));
    for out in ["here", "there"] {
        assert_eq!(fs::read_to_string(forge.path(out).join("out")).unwrap(), "text");
        assert!(!forge.path(out).join("in/ignored").exists(), "{out}");
    }
    let (here, there) =
        (forge.fails(1, &["build", "-f", &missing, &context]), daemon.build(&forge, &["-f", &missing, &context]));
    assert_eq!((there.code, failure(&there.stderr)), (here.code, failure(&here.stderr)));
    let outline = ["build", "--call", "outline", "-f", &file, &context];
    let there = forge.ok(&[&["--host", &daemon.address], &outline[..]].concat());
    assert_eq!(there.stdout, forge.ok(&outline).stdout);
    let planned = forge.ok(&["--host", &daemon.address, "plan", "-f", &file, &context]);
    assert!(planned.stdout.contains("2 cached, 0 to run"), "{}", planned.stdout);
}

#[test]
fn privileged_layouts_come_from_elsewhere_into_folders() {
    let Some(forge) = Forge::privileged("layouts_come_from_elsewhere_into_folders") else { return };
    let daemon = Daemon::start(&forge);
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nCOPY a /a\n"), ("a", "one")]);
    let listed = |folder: &str| -> Vec<String> {
        let index = fs::read(forge.path(folder).join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let name = |image: &serde_json::Value| image["annotations"]["io.containerd.image.name"].to_string();
        index["manifests"].as_array().unwrap().iter().map(name).collect()
    };
    let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=1700000000"];
    // Several at once, each into its own.
    let outputs = ["-o", "type=oci,dest=there,tar=false", "-o", "type=oci,dest=zstd,tar=false,compression=zstd"];
    daemon.ok(&forge, &[&epoch[..], &outputs, &["-t", "app:1", &context]].concat());
    forge.ok(&[&["build"], &epoch[..], &["-o", "type=oci,dest=here,tar=false", "-t", "app:1", &context]].concat());
    for layout in ["here", "there", "zstd"] {
        assert_eq!(listed(layout), ["\"docker.io/library/app:1\""], "{layout}");
    }
    for layout in ["there", "zstd"] {
        let using = forge.context("using", &[("Dockerfile", "FROM base\nRUN cat /a > /out\n")]);
        let base = format!("base=oci-layout://{layout}:1");
        forge.ok(&["build", "--build-context", &base, "-o", "used", &using]);
        assert_eq!(fs::read_to_string(forge.path("used/out")).unwrap(), "one", "{layout}");
    }
    // Images that the folder has stay, and a name moves.
    fs::write(forge.path("context/a"), "two").unwrap();
    daemon.ok(&forge, &["-o", "type=oci,dest=there,tar=false", "-t", "app:2", &context]);
    daemon.ok(&forge, &["-o", "type=oci,dest=there,tar=false", "-t", "app:1", &context]);
    assert_eq!(listed("there").len(), 2);
    // What cannot be written fails as it does here.
    fs::write(forge.path("file"), "").unwrap();
    for output in ["type=oci,dest=file/x,tar=false", "type=docker,dest=x,tar=false"] {
        let (here, there) =
            (forge.fails(1, &["build", "-o", output, &context]), daemon.build(&forge, &["-o", output, &context]));
        // The first blob that comes is another one.
        let told = |stderr: &str| {
            let words = failure(stderr);
            words.split_whitespace().filter(|word| !word.contains("sha256")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!((there.code, told(&there.stderr)), (here.code, told(&here.stderr)), "{output}");
    }
}

#[test]
fn privileged_a_plan_says_what_would_be_done_elsewhere() {
    let Some(forge) = Forge::privileged("a_plan_says_what_would_be_done_elsewhere") else { return };
    let daemon = Daemon::start(&forge);
    let context = forge.context("context", &[("Dockerfile", DOCKERFILE), ("a", "text\n"), ("b", "")]);
    let plan = |code: i32, words: &[&str]| {
        let words = [&["--host", &daemon.address, "plan"], words, &[&context]].concat();
        let outcome = forge.forge(&words);
        assert_eq!(outcome.code, code, "{}{}", outcome.stdout, outcome.stderr);
        (outcome.stdout, outcome.stderr)
    };
    let (cold, _) = plan(2, &[]);
    assert!(cold.contains("unknown  [3/3] RUN") && cold.ends_with("0 to run, 2 unknown\n"), "{cold}");
    assert_eq!(plan(2, &[]).0, cold, "a plan makes nothing");
    daemon.ok(&forge, &[&context]);
    assert!(plan(0, &[]).0.ends_with("2 cached, 0 to run, 0 unknown\n"));
    assert!(plan(2, &["--build-arg", "WORD=other"]).0.contains("runs     [3/3] RUN"));
    assert!(plan(1, &["--context-report"]).1.contains("--context-report is not supported"));
}

#[test]
fn privileged_with_keep_going_the_other_stages_finish_elsewhere() {
    let Some(forge) = Forge::privileged("with_keep_going_the_other_stages_finish_elsewhere") else { return };
    let daemon = Daemon::start(&forge);
    let dockerfile = "FROM busybox AS bad\nRUN exit 3\nFROM busybox AS good\nRUN sleep 1; echo done\n\
                      FROM busybox\nCOPY --from=bad / /\nCOPY --from=good / /\n";
    let context = forge.context("context", &[("Dockerfile", dockerfile)]);
    let of_good = |flags: &[&str]| {
        let outcome = daemon.build(&forge, &[flags, &[context.as_str()]].concat());
        assert!(outcome.code == 1 && outcome.stderr.contains("exit code: 3"), "{}", outcome.stderr);
        outcome.steps().iter().find(|(name, _)| name.contains("RUN sleep")).map_or(Step::Failed, |(_, step)| *step)
    };
    assert_eq!(of_good(&[]), Step::Failed);
    assert_eq!(of_good(&["--keep-going"]), Step::Ran);
    assert_eq!(of_good(&["--keep-going"]), Step::Cached);
}

#[test]
fn privileged_a_build_elsewhere_ends_with_its_client_and_its_daemon() {
    let Some(forge) = Forge::privileged_empty("a_build_elsewhere_ends_with_its_client_and_its_daemon") else { return };
    let daemon = Daemon::start(&forge);
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nRUN echo running; sleep 87651\n")]);
    let begin = || {
        let words = ["--host", &daemon.address, "build", "--progress", "plain", "-t", "x", &context];
        let mut child = forge.command(&words).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        read_until(&mut stderr, " running");
        (child, stderr)
    };
    // By Ctrl-C, and by a client that is gone at once.
    let (mut child, _stderr) = begin();
    signal(&child, Signal::INT);
    assert_eq!(wait(&mut child), 130);
    eventually("the step of a cancelled build runs", || processes_with("sleep 87651") == 0);
    let (mut child, _stderr) = begin();
    child.kill().unwrap();
    wait(&mut child);
    eventually("the step of a client that is gone runs", || processes_with("sleep 87651") == 0);
    // The daemon ends in the middle: the client says so.
    let (mut child, mut stderr) = begin();
    drop(daemon);
    let mut told = String::new();
    std::io::Read::read_to_string(&mut stderr, &mut told).unwrap();
    assert_eq!(wait(&mut child), 1, "{told}");
    assert!(told.contains("ERROR: "), "{told}");
    eventually("the step of a daemon that ended runs", || processes_with("sleep 87651") == 0);
}

#[test]
fn privileged_agents_and_caches_of_a_build_elsewhere() {
    let test = "agents_and_caches_of_a_build_elsewhere";
    let Some(forge) = Forge::privileged_empty(test) else { return };
    if !have(test, &["ssh-keygen"]) {
        return;
    }
    let daemon = Daemon::start(&forge);
    let key = forge.path("key");
    system(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()]);
    let dockerfile = "FROM busybox\nRUN --mount=type=ssh,required=true stat -c %F $SSH_AUTH_SOCK > /socket\n";
    let context = forge.context("ssh", &[("Dockerfile", dockerfile)]);
    let without = daemon.build(&forge, &[&context]);
    assert!(without.code == 1 && without.stderr.contains("ssh"), "{}", without.stderr);
    daemon.ok(&forge, &["--ssh", "default=key", "-o", "out", &context]);
    assert_eq!(fs::read_to_string(forge.path("out/socket")).unwrap(), "socket\n");
    // The daemon tells the cache, and one without anything of its own asks it.
    let registry = TestRegistry::start();
    let cache = format!("{}/team/cache:one", registry.authority());
    let context = forge.context("cached", &[("Dockerfile", "FROM busybox\nRUN date +%N > /when\n")]);
    daemon.ok(&forge, &["--cache-to", &cache, "-o", "first", &context]);
    drop(daemon);
    fs::remove_dir_all(forge.path("daemon")).unwrap();
    let daemon = Daemon::start(&forge);
    let second = daemon.ok(&forge, &["--cache-from", &cache, "-o", "second", &context]);
    assert_eq!(state(&second.steps(), "RUN"), Step::Cached);
    assert_eq!(fs::read(forge.path("first/when")).unwrap(), fs::read(forge.path("second/when")).unwrap());
}

#[test]
fn privileged_layouts_of_this_machine_are_contexts_elsewhere() {
    let Some(forge) = Forge::privileged("layouts_of_this_machine_are_contexts_elsewhere") else { return };
    let daemon = Daemon::start(&forge);
    let made = forge.context("made", &[("Dockerfile", "FROM busybox\nRUN echo of the layout > /said\n")]);
    forge.ok(&["build", "-o", "type=oci,dest=layout,tar=false", "-t", "base:1", &made]);
    let context = forge.context("context", &[("Dockerfile", "FROM base\nRUN cat /said > /out\n")]);
    for layout in ["layout", "layout:1"] {
        let named = format!("base=oci-layout://{layout}");
        daemon.ok(&forge, &["--build-context", &named, "-o", "out", &context]);
        assert_eq!(fs::read_to_string(forge.path("out/out")).unwrap(), "of the layout\n");
    }
    let named = ["--build-context", "base=oci-layout://layout:none", &context];
    let (here, there) = (forge.fails(1, &[&["build"], &named[..]].concat()), daemon.build(&forge, &named));
    assert_eq!(there.code, 1, "{}", there.stderr);
    assert!(there.stderr.contains("none") && here.stderr.contains("none"), "{}{}", here.stderr, there.stderr);
}

#[test]
fn privileged_folders_of_this_machine_are_caches_elsewhere() {
    let Some(forge) = Forge::privileged("folders_of_this_machine_are_caches_elsewhere") else { return };
    let daemon = Daemon::start(&forge);
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nRUN date +%N > /when\n")]);
    let empty = daemon.ok(&forge, &["--cache-from", "type=local,src=cache", "-o", "none", &context]);
    assert!(empty.stderr.contains("the cache in cache has nothing"), "{}", empty.stderr);
    daemon.ok(&forge, &["--no-cache", "--cache-to", "type=local,dest=cache,tag=one", "-o", "first", &context]);
    assert!(forge.path("cache/index.json").exists() && !forge.path("daemon/cache").exists());
    drop(daemon);
    fs::remove_dir_all(forge.path("daemon")).unwrap();
    let daemon = Daemon::start(&forge);
    let second = daemon.ok(&forge, &["--cache-from", "type=local,src=cache,tag=one", "-o", "second", &context]);
    assert_eq!(state(&second.steps(), "RUN"), Step::Cached);
    assert_eq!(fs::read(forge.path("first/when")).unwrap(), fs::read(forge.path("second/when")).unwrap());
    // The same folder serves builds here.
    let words =
        ["build", "--progress", "plain", "--cache-from", "type=local,src=cache,tag=one", "-o", "third", &context];
    assert_eq!(state(&forge.ok(&words).steps(), "RUN"), Step::Cached);
    assert_eq!(fs::read(forge.path("first/when")).unwrap(), fs::read(forge.path("third/when")).unwrap());
}

#[test]
fn privileged_questions_are_answered_elsewhere() {
    let Some(forge) = Forge::privileged_empty("questions_are_answered_elsewhere") else { return };
    let daemon = Daemon::start(&forge);
    let dockerfile = "# comment\nFROM scratch AS Base\n# what it is for\nARG WORD=one\nCOPY a /\n\
        FROM scratch as app\nRUN --mount=type=secret,id=s,required x\nCMD echo\n";
    let context = forge.context("context", &[("Dockerfile", dockerfile), ("a", "")]);
    let wrong = forge.context("wrong", &[("Dockerfile", "FROM scratch\nRUM x\n")]);
    let words: [&[&str]; 9] = [
        &["--check", &context],
        &["--call", "check,format=json", &context],
        &["--call", "outline", &context],
        &["--call", "outline,format=json", "--target", "Base", &context],
        &["--call", "targets", &context],
        &["--call", "targets,format=json", &context],
        &["--call", "subrequests.describe", &context],
        &["--check", &wrong],
        &["--call", "outline", &wrong],
    ];
    for words in words {
        let here = forge.forge(&[&["build"], words].concat());
        let there = forge.forge(&[&["--host", &daemon.address, "build"], words].concat());
        assert_eq!((there.code, &there.stdout), (here.code, &here.stdout), "{words:?}: {}", there.stderr);
        assert_eq!(failure(&there.stderr), failure(&here.stderr), "{words:?}");
        assert!(!here.stdout.is_empty() || here.code == 1, "{words:?}");
    }
}

#[test]
fn privileged_policies_about_sources_hold_elsewhere() {
    let Some(forge) = Forge::privileged("policies_about_sources_hold_elsewhere") else { return };
    let daemon = Daemon::start(&forge);
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nCOPY Dockerfile /\n")]);
    let rule = r#"{"rules": [{"action": "DENY", "selector": {"identifier": "docker-image://*"}}]}"#;
    fs::write(forge.path("policy.json"), rule).unwrap();
    let words = ["--host", &daemon.address, "build", "-o", "out", &context];
    let denied = forge.with_env(&words, "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY", "policy.json");
    assert!(denied.code == 1 && denied.stderr.contains("denied by policy"), "{}", denied.stderr);
    let words = ["--host", &daemon.address, "build", "--call", "outline", &context];
    let denied = forge.with_env(&words, "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY", "policy.json");
    assert!(denied.code == 1 && denied.stderr.contains("denied by policy"), "{}", denied.stderr);
    daemon.ok(&forge, &["-o", "out", &context]);
}

#[test]
fn privileged_the_store_of_a_daemon_is_looked_at_and_cleared() {
    let Some(forge) = Forge::privileged_empty("the_store_of_a_daemon_is_looked_at_and_cleared") else { return };
    let daemon = Daemon::start(&forge);
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nRUN echo kept > /file\n")]);
    daemon.ok(&forge, &["-o", "type=cacheonly", &context]);
    let host = ["--host", daemon.address.as_str()];
    let du = |words: &[&str]| forge.ok(&[&host[..], &["du"], words].concat()).stdout;
    let all = du(&["--verbose"]);
    assert!(all.contains("RUN echo kept") && all.contains("local source for context"), "{all}");
    let only = du(&["--verbose", "--filter", "type=source.local"]);
    assert!(!only.contains("RUN echo kept") && only.contains("local source for context"), "{only}");
    assert!(!forge.ok(&["du", "--verbose"]).stdout.contains("RUN echo kept"));
    let dry = forge.fails(1, &[&host[..], &["prune", "--dry-run"]].concat());
    assert!(dry.stderr.contains("--dry-run is not supported with --host"), "{}", dry.stderr);
    let pruned = forge.ok(&[&host[..], &["prune", "--all", "--force"]].concat()).stdout;
    assert!(pruned.contains("Total reclaimed space:"), "{pruned}");
    let left = du(&["--verbose"]);
    assert!(!left.contains("RUN echo kept") && !left.contains("local source"), "{left}");
}
