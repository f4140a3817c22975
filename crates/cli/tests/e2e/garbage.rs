//! The build cache stays as small as it should, and no running build loses anything by that.

use crate::fixture::{Forge, Step, run};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Each build makes a megabyte, and is long enough for a collection.
const DOCKERFILE: &str = "FROM busybox\nARG NUMBER\nRUN head -c 1000000 /dev/zero > /file$NUMBER && sleep 0.5\n";

const CAP: &str = "[[worker.oci.gcpolicy]]\nall = true\nmaxUsedSpace = 2500000\n";

/// What the build cache takes that no image needs.
fn private_bytes(forge: &Forge) -> u64 {
    let rows = forge.ok(&["du", "--filter", "private", "--format", "json"]).stdout;
    let size = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["Size"].as_u64().unwrap();
    rows.lines().map(size).sum()
}

/// As if the last collection were long ago.
fn make_due(forge: &Forge) {
    let _ = fs::remove_file(forge.store().join("collected"));
}

fn build(forge: &Forge, context: &str, number: usize) {
    make_due(forge);
    let argument = format!("NUMBER={number}");
    forge.ok(&["build", "-q", "-o", "type=cacheonly", "--build-arg", &argument, context]);
}

/// Fails when `collect_garbage` selects by the default policies only.
#[test]
fn privileged_a_cap_of_the_configuration_holds() {
    let Some(forge) = Forge::privileged("a_cap_of_the_configuration_holds") else { return };
    fs::write(forge.path("forge.toml"), CAP).unwrap();
    let context = forge.context("context", &[("Dockerfile", DOCKERFILE)]);
    (0..6).for_each(|number| build(&forge, &context, number));
    // The last build's own megabyte came after its collection had looked.
    let kept = private_bytes(&forge);
    assert!((2_000_000..=3_500_000).contains(&kept), "{kept}");
    let files = fs::read_dir(forge.store().join("layers")).unwrap().count();
    assert!(files <= 5, "{files} layers lie on the disk");

    // Switched off, nothing goes.
    fs::write(forge.path("forge.toml"), format!("[worker.oci]\ngc = false\n{CAP}")).unwrap();
    (6..9).for_each(|number| build(&forge, &context, number));
    assert!(private_bytes(&forge) >= kept + 3_000_000);
    assert!(!forge.store().join("collected").exists());
    // The same limit by hand, rehearsed with reasons.
    let limit = ["prune", "-a", "-f", "--max-used-space", "2500000"];
    let rehearsed = forge.ok(&["prune", "-a", "--dry-run", "--max-used-space", "2500000"]).stdout;
    assert!(rehearsed.contains("REASON") && rehearsed.contains("of building for 1MB, the least that was left"));
    let before = private_bytes(&forge);
    let pruned = forge.ok(&limit).stdout;
    assert!(pruned.contains("Total reclaimed space: "), "{pruned}");
    let after = private_bytes(&forge);
    assert!(after <= 2_500_000 && after < before, "{before} -> {after}\n{pruned}");
    assert!(forge.ok(&["du", "--verbose", "--filter", "private"]).stdout.contains("Description:    [2/2] RUN head"));
}

#[test]
fn privileged_what_is_in_use_exceeds_a_cap_with_a_notice() {
    let Some(forge) = Forge::privileged("what_is_in_use_exceeds_a_cap_with_a_notice") else { return };
    fs::write(forge.path("forge.toml"), CAP).unwrap();
    let text = "FROM busybox\nRUN head -c 6000000 /dev/zero > /big\nRUN sleep 4\nRUN test -s /big\n";
    let holds = forge.context("holds", &[("Dockerfile", text)]);
    let other = forge.context("other", &[("Dockerfile", "FROM busybox\nRUN sleep 1\n")]);
    std::thread::scope(|scope| {
        let holding = scope.spawn(|| forge.forge(&["build", "-q", "-t", "holds", &holds]));
        let begin = Instant::now();
        while private_bytes(&forge) < 6_000_000 {
            assert!(begin.elapsed() < Duration::from_secs(60));
        }
        make_due(&forge);
        let told = forge.ok(&["build", "--progress", "plain", "-o", "type=cacheonly", &other]).stderr;
        assert!(told.contains("forge: the build cache takes 4 MB more than it may: what is in use"), "{told}");
        let held = holding.join().unwrap();
        assert_eq!(held.code, 0, "{}", held.stderr);
    });
    assert_eq!(forge.shell("holds", "wc -c < /big"), "6000000\n");
}

/// Builds and cached builds, while another process removes everything again and again.
///
/// Failed when an image could go between being stored and being named, and when one that had just been named was still taken
/// for one without a name.
#[test]
fn privileged_f18_no_build_loses_what_it_holds_to_prune() {
    let Some(forge) = Forge::privileged("f18_no_build_loses_what_it_holds") else { return };
    let text = "FROM busybox AS one\nRUN echo one > /one\nRUN echo two > /two\n\
                FROM busybox\nARG NUMBER\nRUN echo $NUMBER > /number\nCOPY --from=one /one /two /\n\
                RUN cat /one /two /number > /all\n";
    let context = forge.context("context", &[("Dockerfile", text)]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let prunes = scope.spawn(|| {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                let words: &[&str] = match count % 2 {
                    0 => &["prune", "-af"],
                    _ => &["prune", "-f", "--max-used-space", "1"],
                };
                let pruned = forge.forge(words);
                assert_eq!(pruned.code, 0, "{}", pruned.stderr);
                count += 1;
            }
            count
        });
        let builders: Vec<_> = (0..2)
            .map(|builder| {
                let (forge, context) = (&forge, &context);
                scope.spawn(move || (0..12).for_each(|round| build_and_look(forge, context, builder, round)))
            })
            .collect();
        let results: Vec<_> = builders.into_iter().map(|builder| builder.join()).collect();
        done.store(true, Ordering::Relaxed);
        assert!(prunes.join().unwrap() > 10);
        assert!(results.into_iter().all(|result| result.is_ok()));
    });
}

fn build_and_look(forge: &Forge, context: &str, builder: usize, round: usize) {
    // Every other round finds what the one before made, as far as it is left.
    let (name, argument) = (format!("app{builder}"), format!("NUMBER={}", round / 2));
    let words = ["build", "--progress", "plain", "-t", &name, "--build-arg", &argument, context];
    let built = run(&mut forge.command(&words), b"");
    assert_eq!(built.code, 0, "round {round}: {}", built.stderr);
    let words = ["run", "--rm", &name, "cat", "/all"];
    let shown = run(&mut forge.command(&words), b"");
    assert_eq!(shown.stdout, format!("one\ntwo\n{}\n", round / 2), "round {round}: {}", shown.stderr);
}

#[test]
fn privileged_prune_takes_what_filters_mean() {
    let Some(forge) = Forge::privileged("prune_takes_what_filters_mean") else { return };
    let text = "FROM busybox\nRUN echo one > /one\nRUN --mount=type=cache,target=/c echo two > /c/two\n";
    let context = forge.context("context", &[("Dockerfile", text)]);
    forge.ok(&["build", "-q", "-o", "type=cacheonly", &context]);
    let rehearsed = forge.ok(&["prune", "--dry-run", "--verbose", "--filter", "description~=RUN echo one"]).stdout;
    assert!(rehearsed.contains("Description:    [2/3] RUN echo one") && !rehearsed.contains("/c/two"), "{rehearsed}");
    assert!(rehearsed.contains("Reason:         meant by what was asked"), "{rehearsed}");
    assert!(forge.ok(&["prune", "-f", "--filter", "until=1h"]).stdout.ends_with("Total reclaimed space: 0B\n"));
    forge.ok(&["prune", "-f", "--filter", "type=exec.cachemount"]);
    let rows = forge.ok(&["du", "--verbose"]).stdout;
    assert!(!rows.contains("exec.cachemount") && rows.contains("RUN echo one"), "{rows}");
    forge.ok(&["prune", "-f", "--filter", "description~=echo one"]);
    let rows = forge.ok(&["du", "--verbose"]).stdout;
    assert!(rows.contains("echo two") && !rows.contains("RUN echo one"), "{rows}");
    let steps = forge.build(&["-o", "type=cacheonly", &context]);
    assert_eq!(crate::fixture::state(&steps, "/c/two"), Step::Cached);
    let refused = forge.fails(1, &["prune", "-f", "--filter", "colour=red"]).stderr;
    assert!(refused.contains("unknown filter \"colour\": there are id, parents, description"), "{refused}");
}
