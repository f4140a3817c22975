//! Why steps run, what a build would do, and the shortcuts that keys must not take.

use crate::fixture::{Forge, Step, run, state};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// A step that leaves something new whenever it really runs.
const NEW: &str = "cat /proc/sys/kernel/random/uuid";

/// The lines that say why steps ran, without what stands before.
fn causes(forge: &Forge, words: &[&str]) -> Vec<String> {
    let words: Vec<&str> = ["build", "--progress", "plain"].iter().chain(words).copied().collect();
    let shown = forge.forge(&words).stderr;
    shown.lines().filter_map(|line| Some(line.split_once("forge: not cached: ")?.1.to_owned())).collect()
}

fn set_mode(forge: &Forge, file: &str, mode: u32) {
    fs::set_permissions(forge.path(file), fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn privileged_a_step_that_runs_says_what_changed() {
    let Some(forge) = Forge::privileged("a_step_that_runs_says_what_changed") else { return };
    let dockerfile = |command: &str| {
        format!("FROM busybox\nARG V=1\nCOPY src /src\nRUN {command} > /out\nENV SECRET_KEY=one\nRUN {NEW} > /id\n")
    };
    let files = [("Dockerfile", dockerfile("cat /src/a")), ("src/a", "1".into()), ("src/b", "1".into())];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let context = forge.context("context", &files);
    ["a", "b"].iter().for_each(|name| set_mode(&forge, &format!("context/src/{name}"), 0o644));
    let told = |flags: &[&str]| causes(&forge, &[flags, &["-t", "x", &context]].concat());
    assert!(told(&[]).is_empty(), "nothing was there before");
    assert!(told(&[]).is_empty(), "everything is there");
    set_mode(&forge, "context/src/a", 0o664);
    assert_eq!(told(&[]), ["src/a: mode 0644 → 0664"]);
    forge.context("context", &[("src/b", "2"), ("src/c", "1")]);
    assert_eq!(told(&[]), ["src/b: bytes changed; src/c: added"]);
    fs::remove_file(forge.path("context/src/c")).unwrap();
    fs::remove_file(forge.path("context/src/b")).unwrap();
    std::os::unix::fs::symlink("a", forge.path("context/src/b")).unwrap();
    assert_eq!(told(&[]), ["src/b: file → link; src/c: removed"]);
    assert_eq!(told(&["--build-arg", "V=2"]), ["ARG V: 1 → 2", "ARG V: 1 → 2"]);
    forge.context("context", &[("Dockerfile", &dockerfile("cat /src/a /src/a"))]);
    assert_eq!(told(&["--build-arg", "V=2"]), ["command: cat /src/a > /out → cat /src/a /src/a > /out"]);
    // Only the first cause is told; with --explain every step tells its own.
    let all = told(&["--build-arg", "V=2", "--explain", "--no-cache"]);
    assert_eq!(all, ["the cache is not to be used"; 3]);
    let hidden = dockerfile("cat /src/a /src/a").replace("=one", "=two");
    forge.context("context", &[("Dockerfile", &hidden)]);
    assert_eq!(told(&["--build-arg", "V=2"]).last().unwrap(), "ENV SECRET_KEY: (hidden) → (hidden)");
}

#[test]
fn privileged_another_base_is_named_by_its_digest() {
    let Some(forge) = Forge::privileged("another_base_is_named_by_its_digest") else { return };
    let base = forge.context("base", &[("Dockerfile", "FROM busybox\nARG V\nRUN echo $V > /v\n")]);
    let context = forge.context("context", &[("Dockerfile", &format!("FROM base:1\nRUN {NEW} > /id\n"))]);
    for version in ["1", "2"] {
        forge.build(&["-t", "base:1", "--build-arg", &format!("V={version}"), &base]);
        let told = causes(&forge, &["-t", "x", &context]);
        match version {
            "1" => assert!(told.is_empty(), "{told:?}"),
            _ => assert!(told[0].contains("digest: sha256:") && told[0].contains(" → sha256:"), "{told:?}"),
        }
    }
}

#[test]
fn privileged_a_plan_says_what_a_build_would_do_and_does_nothing() {
    let Some(forge) = Forge::privileged("a_plan_says_what_a_build_would_do_and_does_nothing") else { return };
    let dockerfile = format!("FROM busybox\nCOPY f /f\nRUN {NEW} > /id\nRUN cat /f > /copy\n");
    let context = forge.context("context", &[("Dockerfile", &dockerfile), ("f", "1"), ("idle/big", &"x".repeat(5000))]);
    let plan = |code: i32, flags: &[&str]| -> Value {
        let words = [&["plan", "--format", "json"], flags, &[context.as_str()]].concat();
        let outcome = forge.forge(&words);
        assert_eq!(outcome.code, code, "{}{}", outcome.stdout, outcome.stderr);
        serde_json::from_str(&outcome.stdout).unwrap()
    };
    let states = |plan: &Value| -> Vec<String> {
        let steps = plan["platforms"][0]["steps"].as_array().unwrap().clone();
        let steps = steps.into_iter().filter(|step| step["isSource"] == false);
        steps.map(|step| step["state"].as_str().unwrap().to_owned()).collect()
    };
    let cold = plan(2, &[]);
    assert_eq!(states(&cold), ["unknown", "unknown", "unknown"], "the base comes first");
    let after = |step: &Value| step["after"].as_str().is_some_and(|after| after.contains("FROM"));
    assert!(
        cold["platforms"][0]["steps"].as_array().unwrap().iter().all(|step| step["isSource"] == true || after(step))
    );
    assert_eq!(forge.ok(&["images", "-q"]).stdout.lines().count(), 1, "a plan makes no image");
    let steps = forge.build(&["-t", "x", &context]);
    assert!(steps.iter().all(|(_, state)| *state != Step::Cached) || state(&steps, "RUN cat /proc") == Step::Ran);
    assert_eq!(states(&plan(0, &[])), ["cached", "cached", "cached"]);
    forge.context("context", &[("f", "2")]);
    let changed = plan(2, &["--context-report"]);
    assert_eq!(states(&changed), ["runs", "unknown", "unknown"]);
    let steps = changed["platforms"][0]["steps"].as_array().unwrap();
    let copy = steps.iter().find(|step| step["state"] == "runs").unwrap();
    assert_eq!(copy["changes"][0]["kind"], "bytes");
    assert_eq!(copy["changes"][0]["subject"], "f");
    assert!(copy["expectedMilliseconds"].is_u64() && copy["expectedBytes"] == 1, "{copy}");
    assert_eq!(changed["context"]["unused"][0]["path"], "idle/");
    assert_eq!(changed["context"]["largest"][0]["path"], "idle/big");
    let text = forge.fails(2, &["plan", &context]).stdout;
    assert!(text.contains("f: bytes changed") && text.contains("1 to run, 2 unknown"), "{text}");
    assert_eq!(forge.fails(1, &["plan", "-f", "none", &context]).stdout, "");
}

/// Two checkouts under different masks are one context, where the user says so; and never is their time.
#[test]
fn privileged_the_umask_of_a_checkout_does_not_matter_with_gits_modes() {
    let Some(forge) = Forge::privileged("the_umask_of_a_checkout_does_not_matter_with_gits_modes") else { return };
    let dockerfile = "FROM busybox\nCOPY d /d\nRUN stat -c '%a %n' /d /d/* > /modes\n";
    let files = [("Dockerfile", dockerfile), ("d/plain", "1"), ("d/run", "2")];
    for (name, modes) in [("one", [0o755, 0o644, 0o755]), ("two", [0o700, 0o600, 0o700])] {
        forge.context(name, &files);
        for (path, mode) in ["d", "d/plain", "d/run"].iter().zip(modes) {
            set_mode(&forge, &format!("{name}/{path}"), mode);
        }
        let when = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(if name == "one" { 1 } else { 2 });
        fs::File::open(forge.path(&format!("{name}/d/plain"))).unwrap().set_modified(when).unwrap();
    }
    let build = |flags: &[&str], name: &str| {
        let folder = forge.path(name);
        forge.build(&[flags, &["-t", "x", folder.to_str().unwrap()]].concat())
    };
    build(&["--context-modes=git"], "one");
    assert_eq!(state(&build(&["--context-modes=git"], "two"), "COPY d"), Step::Cached);
    assert_eq!(forge.shell("x", "cat /modes"), "755 /d\n644 /d/plain\n755 /d/run\n");
    assert_eq!(state(&build(&[], "one"), "COPY d"), Step::Cached, "these are the modes on the disk");
    assert_eq!(state(&build(&[], "two"), "COPY d"), Step::Ran);
}

/// What `make` looks at: a step that is run again because of another file must not see a target older than a source that
/// came out as before. Fails when a step's new tree is kept beside what was made from the old one.
#[test]
fn privileged_what_came_out_as_before_has_the_times_that_later_steps_saw() {
    let Some(forge) = Forge::privileged("what_came_out_as_before_has_the_times_that_later_steps_saw") else { return };
    let dockerfile = |remark: &str| {
        format!(
            "FROM busybox AS source\nRUN echo text > /source # {remark}\n\
             FROM source AS target\nRUN cp /source /target\n\
             FROM busybox\nCOPY --from=source /source /\nCOPY --from=target /target /\n\
             RUN test /target -nt /source -o ! /source -nt /target && {NEW} > /id\n"
        )
    };
    let context = forge.context("context", &[("Dockerfile", &dockerfile("one"))]);
    let id = || {
        forge.build(&["-t", "x", &context]);
        forge.shell("x", "cat /id; stat -c '%Y' /source /target")
    };
    let before = id();
    std::thread::sleep(Duration::from_millis(1100));
    forge.context("context", &[("Dockerfile", &dockerfile("two"))]);
    assert_eq!(id(), before);
}

/// What Python looks at: a compiled file names the time and the size of its source, and is of no use beside another one.
/// Whatever is run again, copied again or touched, the two in the image belong together. Meant to fail when a step's new tree
/// is kept beside what was made from the old one, and when unchanged files are linked to earlier ones of other times.
#[test]
fn privileged_a_compiled_file_names_the_time_of_the_source_beside_it() {
    let Some(forge) = Forge::privileged("a_compiled_file_names_the_time_of_the_source_beside_it") else { return };
    let compile = |file: &str| format!("stat -c '%Y %s' {file} > {file}c");
    let dockerfile = |remark: &str| {
        format!(
            "FROM busybox AS generated\nRUN echo 'x = 1' > /made.py # {remark}\n\
             FROM generated AS compiled\nRUN {}\n\
             FROM busybox\nCOPY src /src\nRUN {}\nCOPY --from=generated /made.py /\nCOPY --from=compiled /made.pyc /\n",
            compile("/made.py"),
            compile("/src/a.py")
        )
    };
    let context =
        forge.context("context", &[("Dockerfile", &dockerfile("one")), ("src/a.py", "a = 1"), ("src/b.py", "b = 1")]);
    let touch = |name: &str, second: u64| {
        let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        fs::File::open(forge.path(&format!("context/src/{name}"))).unwrap().set_modified(time).unwrap();
    };
    let build = || {
        let steps = forge.build(&["-t", "x", &context]);
        let check = "for f in /made.py /src/a.py; do [ \"$(stat -c '%Y %s' $f)\" = \"$(cat ${f}c)\" ] || echo $f; done";
        assert_eq!(forge.shell("x", check), "", "a compiled file is of another source");
        (state(&steps, "COPY src"), forge.shell("x", "stat -c %Y /src/a.py"))
    };
    touch("a.py", 1_000_000_000);
    assert_eq!(build(), (Step::Ran, "1000000000\n".to_owned()));
    // The time of a file of the context is no reason to run anything, and the earlier result is as it was.
    touch("a.py", 1_100_000_000);
    assert_eq!(build(), (Step::Cached, "1000000000\n".to_owned()));
    // With a file beside it that did change, it is copied as it is now, and compiled again.
    forge.context("context", &[("src/b.py", "b = 2")]);
    assert_eq!(build(), (Step::Ran, "1100000000\n".to_owned()));
    // Back to the earlier files: the earlier result, with what was made of it.
    forge.context("context", &[("src/b.py", "b = 1")]);
    assert_eq!(build(), (Step::Cached, "1000000000\n".to_owned()));
    std::thread::sleep(Duration::from_millis(1100));
    forge.context("context", &[("Dockerfile", &dockerfile("two"))]);
    assert_eq!(build().0, Step::Cached);
}

/// The folders above a copy's destination, and links among them, are those of what it is copied onto.
#[test]
fn privileged_a_copy_heeds_the_parents_and_links_of_its_destination() {
    let Some(forge) = Forge::privileged("a_copy_heeds_the_parents_and_links_of_its_destination") else { return };
    let dockerfile = |below: &str| format!("FROM busybox\nRUN {below}\nCOPY f /app/sub/f\n");
    let context = forge.context("context", &[("Dockerfile", ""), ("f", "1")]);
    let build = |below: &str| {
        forge.context("context", &[("Dockerfile", &dockerfile(below))]);
        forge.build(&["-t", "x", &context]);
        forge
            .shell("x", "stat -c '%a %N' /app /app/sub; find /srv -type f 2>/dev/null; cat /app/sub/f")
            .replace('\'', "")
    };
    assert_eq!(build("mkdir -m 0700 /app"), "700 /app\n755 /app/sub\n1");
    assert_eq!(build("mkdir -m 0711 /app /app/sub"), "711 /app\n711 /app/sub\n1");
    assert_eq!(build("mkdir /srv && ln -s srv /app"), "777 /app -> srv\n755 /app/sub\n/srv/sub/f\n1");
    assert_eq!(build("mkdir -m 0700 /app"), "700 /app\n755 /app/sub\n1");
}

#[test]
fn privileged_with_keep_going_the_other_stages_finish() {
    let Some(forge) = Forge::privileged("with_keep_going_the_other_stages_finish") else { return };
    let dockerfile = "FROM busybox AS bad\nRUN exit 3\nFROM busybox AS good\nRUN sleep 1; echo done\n\
                      FROM busybox\nCOPY --from=bad / /\nCOPY --from=good / /\n";
    let context = forge.context("context", &[("Dockerfile", dockerfile)]);
    let states = |flags: &[&str]| {
        let words = [&["build", "--progress", "plain"], flags, &[context.as_str()]].concat();
        let outcome = forge.forge(&words);
        assert_eq!(outcome.code, 1, "{}", outcome.stderr);
        assert!(outcome.stderr.contains("exit code: 3"), "{}", outcome.stderr);
        let steps = outcome.steps();
        assert_eq!(state(&steps, "RUN exit"), Step::Failed);
        // Told to stop before it began, it is not shown.
        steps.iter().find(|(name, _)| name.contains("RUN sleep")).map_or(Step::Failed, |(_, step)| *step)
    };
    assert_eq!(states(&[]), Step::Failed);
    assert_eq!(states(&["--keep-going"]), Step::Ran);
    assert_eq!(states(&["--keep-going"]), Step::Cached, "what failed is never kept");
}

/// Stages that would run at the same time run one after the other.
#[test]
fn privileged_max_parallelism_bounds_what_runs_at_once() {
    let Some(forge) = Forge::privileged("max_parallelism_bounds_what_runs_at_once") else { return };
    let stage = |name: &str| format!("FROM busybox AS {name}\nRUN sleep 1; echo {name} > /{name}\n");
    let dockerfile = format!("{}{}FROM busybox\nCOPY --from=a /a /\nCOPY --from=b /b /\n", stage("a"), stage("b"));
    let context = forge.context("context", &[("Dockerfile", &dockerfile)]);
    let begin = Instant::now();
    forge.build(&["-t", "x", "--max-parallelism", "1", &context]);
    assert!(begin.elapsed() >= Duration::from_secs(2));
    assert_eq!(forge.fails(125, &["build", "--max-parallelism", "0", &context]).stdout, "");
}

/// L01: fifty builds of one Dockerfile at once run each step once and make one image.
#[test]
fn privileged_l01_fifty_builds_at_once() {
    let Some(forge) = Forge::privileged("l01_fifty_builds_at_once") else { return };
    let dockerfile = format!("FROM busybox\nRUN sleep 1; {NEW} > /first\nCOPY f /f\nRUN {NEW} > /second\n");
    let context = forge.context("context", &[("Dockerfile", &dockerfile), ("f", "1")]);
    let names: Vec<String> = (0..50).map(|number| format!("n{number}")).collect();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for name in &names {
            let (forge, context) = (&forge, &context);
            scope.spawn(move || {
                let built = run(&mut forge.command(&["build", "--progress", "plain", "-t", name, context]), b"");
                assert_eq!(built.code, 0, "{}", built.stderr);
            });
        }
    });
    println!("L01: 50 builds at once in {:.1?}", begin.elapsed());
    let ids = forge.ok(&["images", "-q", "--no-trunc"]).stdout;
    let mut ids: Vec<&str> = ids.lines().collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 2, "the base and one image");
    let flights = fs::read_dir(forge.store().join("flights")).map_or(0, Iterator::count);
    assert_eq!(flights, 0, "lock files stay behind");
}
