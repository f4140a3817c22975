//! The Dockerfile language beyond its plain instructions: what flags and contexts come to in the end.

use crate::fixture::{Forge, Step, state};

// Fails when `Allowed::covers` says yes to everything.
#[test]
fn privileged_steps_get_only_what_is_allowed() {
    let Some(forge) = Forge::privileged("steps_get_only_what_is_allowed") else { return };
    let build = |name: &str, run: &str, flags: &[&str]| {
        let context = forge.context(name, &[("Dockerfile", &format!("FROM busybox\nRUN {run} echo $((40 + 2))\n"))]);
        forge.forge(&[&["build", "--progress", "plain"], flags, &[&context]].concat())
    };
    for (name, run, allow, what) in [
        ("network", "--network=host", "network.host", "network.host"),
        ("insecure", "--security=insecure", "security.insecure", "security.insecure"),
        ("device", "--device=vendor.com/class=none", "device=vendor.com/class=none", "device vendor.com/class=none"),
    ] {
        let refused = build(name, run, &[]);
        assert_eq!(refused.code, 1, "{}", refused.stderr);
        assert!(refused.stderr.contains(&format!("entitlement {what} is not allowed")), "{}", refused.stderr);
        assert!(refused.stderr.contains(&format!("--allow {allow}")), "{}", refused.stderr);
        assert!(!refused.stderr.contains("42"), "{}", refused.stderr);
        let other = if name == "network" { "security.insecure" } else { "network.host" };
        assert_eq!(build(name, run, &["--allow", other]).code, 1, "{name}");
    }
    assert_eq!(build("network", "--network=host", &["--allow", "network.host"]).code, 0);
    assert_eq!(build("network", "--network=host", &["--network", "host"]).code, 0);
    assert!(build("network", "", &["--allow", "everything"]).stderr.contains("invalid entitlement: everything"));
}

#[test]
fn privileged_a41_triggers_reach_nothing_unless_allowed() {
    let Some(forge) = Forge::privileged("a41_triggers_reach_nothing_unless_allowed") else { return };
    let base = "FROM busybox\nONBUILD RUN --network=host echo ran > /trigger\n";
    let base = forge.context("base", &[("Dockerfile", base)]);
    forge.build(&["-t", "trapped", &base]);
    let context = forge.context("context", &[("Dockerfile", "FROM trapped\n")]);
    let refused = forge.fails(1, &["build", "--allow", "network.host", &context]);
    assert!(refused.stderr.contains("uses the host's network, which triggers may not"), "{}", refused.stderr);
    assert!(refused.stderr.contains("allow it with --allow onbuild.network.host"), "{}", refused.stderr);
    // The right of triggers is not that of steps.
    forge.fails(1, &["build", "--allow", "onbuild.network.host", &context]);
    forge.build(&["-t", "sprung", "--allow", "onbuild.network.host,network.host", &context]);
    assert_eq!(forge.shell("sprung", "cat /trigger"), "ran\n");
}

#[test]
fn privileged_stages_are_taken_out_of_the_cache_by_name() {
    let Some(forge) = Forge::privileged("stages_are_taken_out_of_the_cache_by_name") else { return };
    let dockerfile = "FROM busybox AS one\nRUN echo one\nFROM one AS two\nRUN echo two\nFROM two\nRUN echo three\n";
    let context = forge.context("context", &[("Dockerfile", dockerfile)]);
    forge.build(&[&context]);
    let again = forge.build(&["--no-cache-filter", "Two,none", &context]);
    assert_eq!(state(&again, "RUN echo one"), Step::Cached);
    assert_eq!(state(&again, "RUN echo two"), Step::Ran);
}

#[test]
fn privileged_copies_keep_parents_and_leave_out_what_they_are_told() {
    let Some(forge) = Forge::privileged("copies_keep_parents_and_leave_out_what_they_are_told") else { return };
    let dockerfile = "FROM busybox\n\
                      COPY --parents a/b/one.txt a/*/two.md /parents/\n\
                      COPY --parents a/./**/*.md /pivot/\n\
                      COPY --exclude=**/*.md --exclude=**/deep a /excluded/\n\
                      COPY --chmod=u=rw,go=r --chown=7:8 a/b/one.txt /owned\n\
                      RUN find /parents /pivot /excluded -type f | sort > /found; stat -c '%a %u:%g' /owned >> /found\n";
    let files =
        [("a/b/one.txt", ""), ("a/b/two.md", ""), ("a/b/deep/x", ""), ("a/top", ""), ("Dockerfile", dockerfile)];
    let context = forge.context("context", &files);
    forge.build(&["-t", "copies", &context]);
    let found = forge.shell("copies", "cat /found");
    let expected =
        "/excluded/b/one.txt\n/excluded/top\n/parents/a/b/one.txt\n/parents/a/b/two.md\n/pivot/b/two.md\n644 7:8\n";
    assert_eq!(found, expected);
    let missing = forge.context("missing", &[("Dockerfile", "FROM busybox\nCOPY --parents a/none /x/\n")]);
    let failed = forge.fails(1, &["build", &missing]);
    assert!(failed.stderr.contains("a/none"), "{}", failed.stderr);
}

#[test]
fn privileged_linked_copies_lie_on_top_and_follow_no_link_below() {
    let Some(forge) = Forge::privileged("linked_copies_lie_on_top_and_follow_no_link_below") else { return };
    let dockerfile = "FROM busybox\n\
                      RUN mkdir /real && ln -s /real /linked && ln -s /real /plain && echo old > /real/old\n\
                      COPY --link file /linked/file\n\
                      COPY file /plain/file\n\
                      RUN test ! -L /linked && test -L /plain && cat /linked/file /real/file && ls /linked > /listed\n";
    let context = forge.context("context", &[("Dockerfile", dockerfile), ("file", "data\n")]);
    forge.build(&["-t", "linked", &context]);
    assert_eq!(forge.shell("linked", "cat /listed"), "file\n");
    let named = "FROM busybox\nCOPY --link --chown=nobody file /file\n";
    let context = forge.context("named", &[("Dockerfile", named), ("file", "data\n")]);
    let refused = forge.fails(1, &["build", &context]);
    assert!(refused.stderr.contains("--chown=nobody cannot be combined with --link"), "{}", refused.stderr);
}

#[test]
fn privileged_contexts_stand_for_stages_and_for_nothing() {
    let Some(forge) = Forge::privileged("contexts_stand_for_stages_and_for_nothing") else { return };
    let dockerfile = "FROM busybox AS built\nRUN echo built > /made\nFROM busybox AS never\nRUN exit 1\nFROM busybox\n\
                      COPY --from=never /made /copied\nCOPY --from=empty / /nothing/\n";
    let context = forge.context("context", &[("Dockerfile", dockerfile)]);
    let contexts = ["--build-context", "never=target:built", "--build-context", "empty=docker-image://scratch"];
    forge.build(&[&contexts, ["-t", "staged"].as_slice(), &[&context]].concat());
    assert_eq!(forge.shell("staged", "cat /copied"), "built\n");
}
