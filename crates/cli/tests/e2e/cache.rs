//! What runs again, and what does not.

use crate::fixture::{Forge, Step, run, state};

/// A step that leaves something new whenever it really runs.
const NEW: &str = "cat /proc/sys/kernel/random/uuid";

#[test]
fn privileged_a_changed_file_reruns_only_its_copy_and_what_follows() {
    let Some(forge) = Forge::privileged("a_changed_file_reruns_only_its_copy_and_what_follows") else { return };
    let dockerfile =
        format!("FROM busybox\nRUN {NEW} > /first\nCOPY a /a\nRUN {NEW} > /second\nCOPY b /b\nRUN {NEW} > /third\n");
    let context = forge.context("context", &[("Dockerfile", &dockerfile), ("a", "1"), ("b", "1"), ("unread", "1")]);
    let ids = || {
        let steps = forge.build(&["-t", "x", &context]);
        let shown = forge.shell("x", "cat /first /second /third");
        (steps, shown.lines().map(str::to_owned).collect::<Vec<_>>())
    };
    let (_, before) = ids();
    forge.context("context", &[("unread", "2")]);
    assert_eq!(ids().1, before);
    forge.context("context", &[("b", "2")]);
    let (steps, after) = ids();
    assert_eq!((state(&steps, "COPY a"), state(&steps, "COPY b")), (Step::Cached, Step::Ran));
    assert_eq!(after[..2], before[..2]);
    assert_ne!(after[2], before[2]);
    forge.context("context", &[("b", "1")]);
    assert_eq!(ids().1, before, "going back finds the old results");
}

/// A step of another text that leaves what it left before: what follows is cached, and the image is the same to the byte.
/// Fails when results are kept as they come: the image's last layer is another one then, with other times.
#[test]
fn privileged_a_step_that_comes_out_as_before_stays_what_it_was() {
    let Some(forge) = Forge::privileged("a_step_that_comes_out_as_before_stays_what_it_was") else { return };
    let dockerfile = |remark: &str, text: &str| {
        format!("FROM busybox\nARG A\nRUN echo {text} > /made # {remark}\nRUN {NEW} > /id\nCOPY f /f\n")
    };
    let context = forge.context("context", &[("Dockerfile", &dockerfile("one", "x")), ("f", "1")]);
    let build = |argument: &str| forge.build(&["-t", "x", "--build-arg", argument, &context]);
    let layers = || forge.ok(&["inspect", "--format", "{{json .RootFS.Layers}}", "x"]).stdout;
    let states = |steps: &_| [state(steps, "RUN echo"), state(steps, "RUN cat"), state(steps, "COPY f")];
    build("A=1");
    let before = layers();
    forge.context("context", &[("Dockerfile", &dockerfile("two", "x"))]);
    assert_eq!(states(&build("A=1")), [Step::Ran, Step::Cached, Step::Cached]);
    assert_eq!(layers(), before);
    // The argument is in the environment of every RUN: the second one runs too, and leaves something new.
    assert_eq!(states(&build("A=2"))[..2], [Step::Ran, Step::Ran]);
    let others: Vec<String> = serde_json::from_str(layers().trim()).unwrap();
    let first: Vec<String> = serde_json::from_str(before.trim()).unwrap();
    assert_eq!(others[..others.len() - 2], first[..first.len() - 2], "what came out as before is the earlier layer");
    forge.context("context", &[("Dockerfile", &dockerfile("two", "y"))]);
    // What was copied is the same on another base.
    assert_eq!(states(&build("A=1")), [Step::Ran, Step::Ran, Step::Cached]);
}

/// What a step sets is content, the moment at which it ran is not. Fails when no times are content, as in BuildKit.
#[test]
fn privileged_times_that_a_step_sets_are_content() {
    let Some(forge) = Forge::privileged("times_that_a_step_sets_are_content") else { return };
    let dockerfile = |remark: &str, day: &str| {
        format!(
            "FROM busybox AS made\nRUN mkdir /d && echo x > /d/f && touch -d '{day} 12:00:00' /d/f # {remark}\n\
             FROM busybox\nCOPY --from=made /d /d\nRUN stat -c %y /d/f > /day\n"
        )
    };
    let context = forge.context("context", &[("Dockerfile", &dockerfile("one", "2020-01-01"))]);
    let build = || forge.build(&["-t", "x", &context]);
    build();
    forge.context("context", &[("Dockerfile", &dockerfile("two", "2020-01-01"))]);
    let steps = build();
    assert_eq!((state(&steps, "COPY --from"), state(&steps, "RUN stat")), (Step::Cached, Step::Cached));
    forge.context("context", &[("Dockerfile", &dockerfile("two", "2021-01-01"))]);
    let steps = build();
    assert_eq!((state(&steps, "COPY --from"), state(&steps, "RUN stat")), (Step::Ran, Step::Ran));
    assert!(forge.shell("x", "cat /day").starts_with("2021-01-01"));
}

// Fails when the copy is made on the layers below, as without --link.
#[test]
fn privileged_a_linked_copy_stays_when_what_is_below_changes() {
    let Some(forge) = Forge::privileged("a_linked_copy_stays_when_what_is_below_changes") else { return };
    let dockerfile = |flag: &str| {
        format!("FROM busybox\nARG A\nRUN {NEW} > /id && echo $A > /below && chmod 1777 /tmp\nCOPY {flag} f /app/f\n")
    };
    let context = forge.context("context", &[("Dockerfile", &dockerfile("--link")), ("f", "1"), ("unread", "1")]);
    let build = |value: &str| forge.build(&["-t", "x", "--build-arg", &format!("A={value}"), &context]);
    let layers = || {
        let shown = forge.ok(&["inspect", "--format", "{{json .RootFS.Layers}}", "x"]).stdout;
        serde_json::from_str::<Vec<String>>(shown.trim()).unwrap()
    };
    build("1");
    let before = layers();
    let steps = build("2");
    assert_eq!((state(&steps, "RUN cat"), state(&steps, "COPY --link")), (Step::Ran, Step::Cached));
    assert_eq!(forge.shell("x", "cat /below /app/f"), "2\n1");
    let after = layers();
    assert_eq!(after.last(), before.last());
    assert_ne!(after[after.len() - 2], before[before.len() - 2]);
    forge.context("context", &[("f", "2")]);
    assert_eq!(state(&build("2"), "COPY --link"), Step::Ran);
}

/// A COPY whose destination's parents are as they were adds the layer that it added before: a new base does not redo it.
/// Fails when such a step is only found by its whole base, and when its layer is taken whatever the base has there.
#[test]
fn privileged_a_plain_copy_stays_when_what_is_below_changes() {
    let Some(forge) = Forge::privileged("a_plain_copy_stays_when_what_is_below_changes") else { return };
    let dockerfile = |below: &str| format!("FROM busybox\nRUN {NEW} > /id; {below}\nCOPY f /app/f\n");
    let context = forge.context("context", &[("Dockerfile", ""), ("f", "1")]);
    let build = |below: &str| {
        forge.context("context", &[("Dockerfile", &dockerfile(below))]);
        let steps = forge.build(&["-t", "x", &context]);
        assert_eq!(state(&steps, "RUN cat"), Step::Ran);
        (state(&steps, "COPY f"), forge.shell("x", "stat -c %a /app; cat /app/f"))
    };
    let layer = || {
        let shown = forge.ok(&["inspect", "--format", "{{json .RootFS.Layers}}", "x"]).stdout;
        serde_json::from_str::<Vec<String>>(shown.trim()).unwrap().pop().unwrap()
    };
    assert_eq!(build("true"), (Step::Ran, "755\n1".to_owned()));
    let first = layer();
    assert_eq!(build("echo 2 > /below"), (Step::Cached, "755\n1".to_owned()));
    assert_eq!(layer(), first);
    // The folder is there now, with a mode of its own.
    assert_eq!(build("mkdir -m 0711 /app"), (Step::Ran, "711\n1".to_owned()));
    assert_eq!(build("mkdir -m 0711 /app /other"), (Step::Cached, "711\n1".to_owned()));
    assert_eq!(build("echo 3 > /below"), (Step::Cached, "755\n1".to_owned()));
    assert_eq!(layer(), first);
    forge.context("context", &[("f", "2")]);
    assert_eq!(build("echo 4 > /below"), (Step::Ran, "755\n2".to_owned()));
    // What runs on it sees it, and the whole is what a store of its own makes of it.
    let all = format!("{}RUN cat /app/f /below > /seen\n", dockerfile("echo 5 > /below"));
    forge.context("context", &[("Dockerfile", &all)]);
    let steps = forge.build(&["-t", "x", &context]);
    assert_eq!((state(&steps, "COPY f"), state(&steps, "/seen")), (Step::Cached, Step::Ran));
    assert_eq!(forge.shell("x", "cat /seen"), "25\n");
}

#[test]
fn privileged_a_changed_argument_reruns_from_its_first_use() {
    let Some(forge) = Forge::privileged("a_changed_argument_reruns_from_its_first_use") else { return };
    let dockerfile = format!("FROM busybox\nARG A=1\nRUN {NEW} > /first\nENV B=$A\nRUN {NEW} > /second\n");
    // The argument is in the environment of the first RUN too, as docker has it: only what stands above ARG stays.
    let early = format!("FROM busybox\nRUN {NEW} > /zero\n{}", dockerfile.trim_start_matches("FROM busybox\n"));
    let context = forge.context("context", &[("Dockerfile", &early)]);
    let ids = |value: &str| {
        forge.build(&["-t", "x", "--build-arg", &format!("A={value}"), &context]);
        forge.shell("x", "cat /zero /first /second").lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let (before, after) = (ids("1"), ids("2"));
    assert_eq!(after[0], before[0]);
    assert!(after[1] != before[1] && after[2] != before[2]);
    assert_eq!(ids("1"), before);
}

#[test]
fn privileged_no_cache_runs_everything_again() {
    let Some(forge) = Forge::privileged("no_cache_runs_everything_again") else { return };
    let context = forge.context("context", &[("Dockerfile", &format!("FROM busybox\nRUN {NEW} > /id\n"))]);
    let id = |flags: &[&str]| {
        forge.build(&[flags, &["-t", "x", &context]].concat());
        forge.shell("x", "cat /id")
    };
    let first = id(&[]);
    assert_eq!(id(&[]), first);
    let second = id(&["--no-cache"]);
    assert_ne!(second, first);
    assert_eq!(id(&[]), second, "what ran last is what later builds find");
}

#[test]
fn privileged_a_failed_step_is_never_cached() {
    let Some(forge) = Forge::privileged("a_failed_step_is_never_cached") else { return };
    let context =
        forge.context("context", &[("Dockerfile", "FROM busybox\nCOPY ok /ok\nRUN grep -q yes /ok\n"), ("ok", "no")]);
    forge.fails(1, &["build", &context]);
    forge.fails(1, &["build", &context]);
    forge.context("context", &[("ok", "yes")]);
    forge.build(&[&context]);
}

#[test]
fn privileged_two_processes_run_a_step_once() {
    let Some(forge) = Forge::privileged("two_processes_run_a_step_once") else { return };
    let context = forge.context("context", &[("Dockerfile", &format!("FROM busybox\nRUN sleep 1; {NEW} > /id\n"))]);
    std::thread::scope(|scope| {
        for name in ["one", "two", "three"] {
            let (forge, context) = (&forge, &context);
            scope.spawn(move || {
                let built = run(&mut forge.command(&["build", "--progress", "plain", "-t", name, context]), b"");
                assert_eq!(built.code, 0, "{}", built.stderr);
            });
        }
    });
    let ids: Vec<String> = ["one", "two", "three"].iter().map(|name| forge.shell(name, "cat /id")).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[test]
fn privileged_independent_stages_run_at_the_same_time() {
    let Some(forge) = Forge::privileged("independent_stages_run_at_the_same_time") else { return };
    // Each stage waits for the other through a folder of the host's /tmp that both see by its clock only: each
    // records when it started and ended, and the spans must overlap.
    let stage = |name: &str| {
        format!(
            "FROM busybox AS {name}\nRUN cut -d' ' -f1 /proc/uptime > /{name}; sleep 1; cut -d' ' -f1 /proc/uptime >> /{name}\n"
        )
    };
    let dockerfile = format!("{}{}FROM busybox\nCOPY --from=a /a /a\nCOPY --from=b /b /b\n", stage("a"), stage("b"));
    let context = forge.context("context", &[("Dockerfile", &dockerfile)]);
    forge.build(&["-t", "x", &context]);
    let times: Vec<f64> = forge.shell("x", "cat /a /b").lines().map(|line| line.parse().unwrap()).collect();
    assert!(times[0] < times[3] && times[2] < times[1], "{times:?}");
}

#[test]
fn privileged_prune_frees_and_builds_still_work() {
    let Some(forge) = Forge::privileged("prune_frees_and_builds_still_work") else { return };
    let context = forge.context(
        "context",
        &[("Dockerfile", "FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count=8\nRUN rm /big\n")],
    );
    forge.build(&["-t", "x", &context]);
    assert!(forge.ok(&["du"]).stdout.contains("Total:"));
    forge.ok(&["rmi", "x"]);
    let rehearsed = forge.ok(&["prune", "-a", "--dry-run"]).stdout;
    assert!(rehearsed.contains("Would reclaim: "), "{rehearsed}");
    let pruned = forge.ok(&["prune", "-a", "-f"]).stdout;
    assert!(pruned.contains("Total reclaimed space: 8."), "{pruned}");
    assert!(forge.fails(1, &["prune"]).stderr.contains("--force"));
    let steps = forge.build(&["-t", "x", &context]);
    assert_eq!(state(&steps, "RUN dd"), Step::Ran);
    assert_eq!(forge.shell("busybox", "echo still there"), "still there\n");
}
