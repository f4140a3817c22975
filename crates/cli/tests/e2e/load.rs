//! Load, a part of it in the usual run; all of it and its figures with `cargo xtask load`.

use crate::fixture::{Forge, base_image, binary, run, wait};
use crate::interrupt::{eventually, signal};
use rustix::process::Signal;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// How much of the load is tried: 1 for all.
fn part_of(number: usize) -> usize {
    let scale: f64 = std::env::var("FORGE_LOAD_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(0.03);
    (number as f64 * scale) as usize
}

/// L15: builds are begun and cancelled at any time.
#[test]
fn privileged_l15_a_storm_of_cancelled_builds_leaves_nothing() {
    let Some(forge) = Forge::privileged("l15_a_storm_of_cancelled_builds") else { return };
    let stage = |name: &str| format!("FROM busybox AS {name}\nRUN echo {name} > /{name}; sleep 0.1\nRUN sleep 0.2\n");
    let stages: String = ["a", "b", "c", "d"].map(stage).concat();
    let text = format!(
        "{stages}FROM busybox\nCOPY --from=a /a /\nCOPY --from=b /b /\nCOPY --from=c /c /\nCOPY --from=d /d /\n"
    );
    let context = forge.context("context", &[("Dockerfile", &text)]);
    let storms = part_of(1000);
    let mut taken: Vec<Duration> = Vec::new();
    for turn in 0..storms {
        let words = ["build", "--no-cache", "-q", "-t", "x", &context];
        let mut child = forge.command(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis((turn as u64 * 7919) % 700));
        let begin = Instant::now();
        if child.try_wait().unwrap().is_none() {
            signal(&child, if turn % 2 == 0 { Signal::INT } else { Signal::TERM });
        }
        let code = wait(&mut child);
        assert!(matches!(code, 0 | 130 | 143), "turn {turn}: {code}");
        taken.push(begin.elapsed());
    }
    taken.sort();
    let (median, slowest) = (taken[taken.len() / 2], taken[taken.len() - 1]);
    println!("L15: {storms} builds cancelled, median {median:.1?}, slowest {slowest:.1?}");
    // Two seconds on a quiet machine; other tests run beside this one.
    assert!(slowest < Duration::from_secs(6), "{slowest:?}");
    let store = forge.store();
    // What is killed before it heeds signals leaves its lease to the next one.
    forge.ok(&["images"]);
    let leaks = || forge.forge(&["debug", "leaks"]).stdout.lines().any(|line| line.contains(store.to_str().unwrap()));
    eventually("something stays", || !leaks());
    forge.ok(&["build", "-q", "-t", "x", &context]);
    assert_eq!(forge.shell("x", "cat /a /b /c /d"), "a\nb\nc\nd\n");
}

/// L13: little memory, few descriptors, one processor: a build of many files, and one that compiles as far as a shell can.
#[test]
fn privileged_l13_a_small_machine_builds() {
    let Some(forge) = Forge::privileged("l13_a_small_machine_builds") else { return };
    let count = part_of(20_000).max(300);
    let names: Vec<String> =
        (0..count).map(|number| format!("work/context/modules/m{}/{number}.js", number % 50)).collect();
    let mut files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "module.exports = 1;\n")).collect();
    let text = "FROM busybox AS build\nCOPY modules /modules\nRUN cd /modules && tar c . | gzip > /all.tgz\n\
                RUN mkdir /out && tar xzf /all.tgz -C /out && find /out -type f | wc -l > /count\n\
                FROM busybox\nCOPY --from=build /all.tgz /count /\n";
    files.push(("work/context/Dockerfile", text));
    forge.context("", &files);
    fs::copy(base_image(), forge.path("work/busybox.tar")).unwrap();
    fs::copy(binary(), forge.path("work/forge")).unwrap();
    let script = "cd /work && ./forge --root /store load -q -i busybox.tar && \
                  ./forge --root /store build -q -t x -o type=oci,dest=/work/x.tar context && \
                  ./forge --root /store build -q -t x context && ./forge --root /store run --rm --network none x cat /count";
    let (work, store) = (forge.path("work"), forge.path("inner"));
    fs::create_dir(&store).unwrap();
    let libraries = ["/lib", "/lib64", "/usr/lib"].map(|folder| format!("{folder}:{folder}:ro"));
    let (work, store) = (format!("{}:/work", work.display()), format!("{}:/store", store.display()));
    let mut words = vec!["run", "--rm", "--privileged", "--network", "none", "--memory", "256m", "--cpus", "1"];
    words.extend(["--ulimit", "nofile=64:64", "-v", &work, "-v", &store]);
    libraries.iter().for_each(|bind| words.extend(["-v", bind.as_str()]));
    words.extend(["busybox", "sh", "-c", script]);
    let begin = Instant::now();
    let built = run(&mut forge.command(&words), b"");
    println!("L13: {count} files in 256 MiB, 64 descriptors, 1 processor: {:.1?}", begin.elapsed());
    assert_eq!(built.code, 0, "{}{}", built.stdout, built.stderr);
    assert!(built.stdout.ends_with(&format!("{count}\n")), "{}", built.stdout);
    let inner = forge.path("inner");
    let verified = forge.forge(&["--root", inner.to_str().unwrap(), "store", "verify", "--full"]);
    assert_eq!(verified.code, 0, "{}{}", verified.stdout, verified.stderr);
}
