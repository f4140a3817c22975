//! Questions about a Dockerfile: no root, no step, no network.

use crate::fixture::Forge;

const DOCKERFILE: &str =
    "# V is the version\nARG V=1\nFROM scratch AS base\n# app is it\nFROM base AS app\nARG V\nCMD serve\n";

#[test]
fn checks_print_what_they_find_and_fail() {
    let forge = Forge::new();
    let context = forge.context("context", &[("Dockerfile", DOCKERFILE)]);
    let found = forge.fails(1, &["build", "--check", &context]);
    assert!(found.stdout.starts_with("Check complete, 1 warning has been found!\n\nWARNING: JSONArgsRecommended - "));
    assert!(found.stdout.contains("\n   7 | >>> CMD serve\n"), "{}", found.stdout);
    assert!(!found.stderr.contains("ERROR"), "{}", found.stderr);
    forge.ok(&["build", "--call=check,ignorestatus=true", &context]);
    let document = forge.fails(1, &["build", "--call=check,format=json", &context]).stdout;
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["warnings"][0]["location"]["ranges"][0]["start"]["line"], 7);
    let clean = forge.context("clean", &[("Dockerfile", "FROM scratch\n")]);
    assert_eq!(forge.ok(&["build", "--check", &clean]).stdout, "Check complete, no warnings found.\n");
    let wrong = forge.context("wrong", &[("Dockerfile", "FROM scratch\nRUM x\n")]);
    let refused = forge.fails(1, &["build", "--check", &wrong]);
    assert!(
        refused.stderr.contains(
            "ERROR: dockerfile parse error on line 2: unknown instruction: RUM (did you mean RUN?)\nDockerfile:2\n"
        ),
        "{}",
        refused.stderr
    );
}

#[test]
fn outlines_and_targets_are_listed() {
    let forge = Forge::new();
    let context = forge.context("context", &[("Dockerfile", DOCKERFILE)]);
    let outline = forge.ok(&["build", "--call=outline", "--build-arg", "V=2", &context]).stdout;
    assert_eq!(
        outline,
        "TARGET:      app\nDESCRIPTION: is it\n\nBUILD ARG   VALUE   DESCRIPTION\nV           2       \n\n"
    );
    let outline = forge.ok(&["build", "--call=outline", &context]).stdout;
    assert!(outline.contains("V           1       is the version\n"), "{outline}");
    let targets = forge.ok(&["build", "--call=targets", &context]).stdout;
    assert_eq!(targets, "TARGET        DESCRIPTION\nbase          \napp (default) is it\n");
    let document = forge.ok(&["build", "--print=targets,format=json", &context]).stdout;
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["targets"][1]["default"], true);
    assert_eq!(forge.fails(1, &["build", "--call=describe", &context]).stdout, "");
}

#[test]
fn findings_of_a_build_stand_below_their_step_and_at_its_end() {
    let forge = Forge::new();
    let context = forge.context("context", &[("Dockerfile", DOCKERFILE)]);
    let built = forge.ok(&["build", "--progress", "plain", "--debug", "-o", "type=cacheonly", &context]).stderr;
    for part in [
        "#1 WARN: JSONArgsRecommended: ",
        "\n 1 warning found:\n - JSONArgsRecommended: ",
        "More info: https://docs.docker.com/go/dockerfile/rule/json-args-recommended/\nDockerfile:7\n",
        "   7 | >>> CMD serve\n",
    ] {
        assert!(built.contains(part), "{part} is missing in\n{built}");
    }
    let strict = forge.context("strict", &[("Dockerfile", &format!("# check=error=true\n{DOCKERFILE}"))]);
    let failed = forge.fails(1, &["build", "--progress", "plain", "-o", "type=cacheonly", &strict]);
    assert!(failed.stderr.contains("ERROR: failed to solve: lint violation found for rules: JSONArgsRecommended\n"));
}
