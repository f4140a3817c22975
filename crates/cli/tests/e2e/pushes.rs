//! Pushes on the scripted registry: ahead of the build's end, and killed.

use crate::fixture::{Forge, wait};
use forge_testkit::{Script, TestRegistry};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

fn uploads(registry: &TestRegistry) -> usize {
    registry.lines().iter().filter(|line| line.starts_with("PUT ") && line.contains("/blobs/uploads/")).count()
}

fn manifests(registry: &TestRegistry) -> usize {
    registry.lines().iter().filter(|line| line.starts_with("PUT ") && line.contains("/manifests/")).count()
}

const DOCKERFILE: &str = "FROM scratch AS other
COPY big /unrelated
FROM busybox
RUN head -c 300000 /dev/urandom > /noise
COPY --from=other /unrelated /copied
RUN sleep 4; test ! -e /fail
";

// Meant to fail with layers sent only when the whole graph is solved.
#[test]
fn privileged_layers_are_pushed_while_later_steps_run() {
    let Some(forge) = Forge::privileged("layers_are_pushed_while_later_steps_run") else { return };
    let registry = TestRegistry::start();
    let name = format!("{}/app:1", registry.authority());
    let context = forge.context("context", &[("Dockerfile", DOCKERFILE), ("big", "big")]);
    let mut command = forge.command(&["build", "--progress", "plain", "--push", "-t", &name, &context]);
    let mut build = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = BufReader::new(build.stderr.take().unwrap());
    let over = std::thread::spawn(move || {
        let (mut sleeping, mut over) = (None, None);
        for line in stderr.lines().map_while(Result::ok) {
            let number = || line.split(' ').next().map(str::to_owned);
            if line.contains("RUN sleep 4") {
                sleeping = number();
            }
            if sleeping.is_some() && sleeping == number() && line.contains(" DONE ") {
                over = Some(Instant::now());
            }
        }
        over.expect("the last step ends")
    });
    // The base's layer and those of the first steps, of which the last one's own is not.
    let start = Instant::now();
    while uploads(&registry) < 3 && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let (received, named) = (Instant::now(), manifests(&registry));
    assert_eq!(wait(&mut build), 0);
    assert!(received < over.join().unwrap(), "layers came when all steps were over");
    assert_eq!(named, 0, "the manifest comes last");
    let (digest, _, _) = registry.tagged("app", "1").unwrap();
    assert!(registry.content("app", &digest).is_some());
    let lines = registry.lines();
    let put = |line: &&String| line.starts_with("PUT ") && line.contains("/blobs/uploads/");
    let sent: Vec<_> = lines.iter().filter(put).filter_map(|line| line.split("digest=").nth(1)).collect();
    let unique: std::collections::BTreeSet<_> = sent.iter().collect();
    assert_eq!(sent.len(), unique.len(), "nothing is sent twice: {lines:#?}");
    let other = Forge::new();
    other.ok(&["pull", &name]);
    assert_eq!(other.shell(&name, "cat /copied; wc -c < /noise"), "big300000\n");
}

#[test]
fn privileged_a_build_that_fails_leaves_no_name_in_the_registry() {
    let Some(forge) = Forge::privileged("a_build_that_fails_leaves_no_name_in_the_registry") else { return };
    let registry = TestRegistry::start();
    let name = format!("{}/app:1", registry.authority());
    let dockerfile = DOCKERFILE.replace("RUN sleep 4", "RUN touch /fail\nRUN sleep 2");
    let context = forge.context("context", &[("Dockerfile", &dockerfile), ("big", "big")]);
    forge.fails(1, &["build", "--push", "-t", &name, &context]);
    assert!(uploads(&registry) > 0, "layers went out before");
    assert_eq!(manifests(&registry), 0);
    assert!(registry.tagged("app", "1").is_none());
    forge.fails(1, &["inspect", &name]);
}

/// F05: after a kill at any time no manifest is there before what it names, and the next push succeeds. A dozen kills here,
/// `FORGE_KILLS` as many as one likes.
#[test]
fn privileged_f05_a_push_that_is_killed_leaves_nothing_incomplete() {
    let Some(forge) = Forge::privileged("f05_a_push_that_is_killed_leaves_nothing_incomplete") else { return };
    let context = forge.context(
        "context",
        &[(
            "Dockerfile",
            "FROM busybox\nRUN head -c 3000000 /dev/urandom > /a\nRUN head -c 2000000 /dev/urandom > /b\n",
        )],
    );
    forge.build(&["-t", "app", &context]);
    let kills = std::env::var("FORGE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let mut died = 0;
    for round in 0..kills {
        let registry = TestRegistry::start();
        registry.script(Script::on("PATCH", "/blobs/uploads/").slow_upload(Duration::from_millis(1)));
        let name = format!("{}/app:1", registry.authority());
        forge.ok(&["tag", "app", &name]);
        let mut push = forge.command(&["push", &name]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(5 + round * 331 % 600));
        push.kill().unwrap();
        died += usize::from(wait(&mut push) != 0);
        check_named(&registry);
        registry.clear_scripts();
        forge.ok(&["push", &name]);
        assert!(registry.tagged("app", "1").is_some());
        check_named(&registry);
        forge.ok(&["rmi", &name]);
    }
    assert!(died > 0, "every push was over before it was killed");
}

/// Whatever manifest a registry has, it has all that the manifest names.
fn check_named(registry: &TestRegistry) {
    let Some((_, _, bytes)) = registry.tagged("app", "1") else { return };
    let manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter();
    for blob in layers.chain([&manifest["config"]]) {
        let digest = blob["digest"].as_str().unwrap().parse().unwrap();
        assert!(registry.content("app", &digest).is_some(), "{digest} is named and not there");
    }
}
