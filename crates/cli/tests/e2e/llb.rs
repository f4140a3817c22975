//! Definitions of BuildKit's format: shown and built.

use crate::fixture::Forge;
use std::fs;

const SCRATCH: &str = "FROM scratch AS base\nCOPY a b /d/\nFROM base\nCOPY --chmod=600 a /c\n";

#[test]
fn a_dockerfile_is_shown_as_a_definition() {
    let forge = Forge::new();
    let context =
        forge.context("context", &[("Dockerfile", SCRATCH), ("a", "1"), ("b", "2"), (".dockerignore", "x\n")]);
    let text = forge.ok(&["debug", "llb", &context]);
    assert!(text.stdout.contains("local context exclude [\"x\"]\n"), "{}", text.stdout);
    assert!(text.stdout.contains("copy on scratch: #0 [\"/a\", \"/b\"] -> \"/d/\""), "{}", text.stdout);
    assert_eq!(text.stderr, "");
    let base = forge.ok(&["debug", "llb", "--target", "base", "--platform", "linux/arm64", &context]).stdout;
    assert!(!base.contains("/c"), "{base}");
    let json = forge.ok(&["debug", "llb", "--format", "json", &context]).stdout;
    let ops: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(ops[0]["Op"]["Op"]["source"]["identifier"], "local://context");
    assert_eq!(ops[0]["Op"]["Op"]["source"]["attrs"]["local.excludepatterns"], "[\"x\"]");
    let actions = ops[1]["Op"]["Op"]["file"]["actions"].as_array().unwrap();
    assert_eq!(actions.iter().map(|action| action["output"].as_i64()).collect::<Vec<_>>(), [Some(-1), Some(0)]);
    assert_eq!(ops.last().unwrap()["Op"]["inputs"][0]["digest"], ops[2]["Digest"]);
    let dot = forge.ok(&["debug", "llb", "--format", "dot", &context]).stdout;
    assert!(
        dot.starts_with("digraph {\n  \"sha256:") && dot.contains("[label=\"local://context\" shape=\"ellipse\"];")
    );
    let failed = forge.fails(1, &["debug", "llb", "--target", "nosuch", &context]);
    assert!(failed.stderr.starts_with("forge: failed to solve: target stage \"nosuch\""), "{}", failed.stderr);
}

/// The definition of a Dockerfile, written to a file.
pub fn definition(forge: &Forge, context: &str) -> String {
    let path = forge.path("definition.pb");
    let file = fs::File::create(&path).unwrap();
    let status = forge.command(&["debug", "llb", "--format", "pb", context]).stdout(file).status().unwrap();
    assert!(status.success());
    path.to_str().unwrap().to_owned()
}

#[test]
fn privileged_a_definition_builds_what_its_dockerfile_builds() {
    let Some(forge) = Forge::privileged("privileged_a_definition_builds_what_its_dockerfile_builds") else { return };
    let text = "FROM busybox\nCOPY a /\nRUN cat /a > /b && echo app:x:7:7::/:/bin/sh >> /etc/passwd\nCOPY --chown=app b /c\nRUN test \"$(stat -c %u /c)\" = 7\n";
    let context = forge.context("context", &[("Dockerfile", text), ("a", "1"), ("b", "2")]);
    let definition = definition(&forge, &context);
    forge.ok(&["build", "-t", "from-dockerfile", &context]);
    let arguments =
        ["build", "--progress", "plain", "--llb", &definition, "-t", "from-llb", "--label", "a=b", &context];
    let built = forge.ok(&arguments);
    assert_eq!(built.stderr.matches("CACHED").count(), 5, "{}", built.stderr);
    let field = |image: &str, format: &str| forge.ok(&["inspect", "--format", format, image]).stdout;
    let layers = "{{json .RootFS.Layers}}";
    assert_eq!(field("from-llb", layers), field("from-dockerfile", layers));
    assert_eq!(field("from-llb", "{{json .Config.Labels}}").trim(), r#"{"a":"b"}"#);
    assert!(field("from-llb", "{{json .Config.Env}}").contains("PATH=/usr/local/sbin:"));
    assert_eq!(field("from-llb", "{{.Config.WorkingDir}}").trim(), "/");
    let bytes = fs::read(&definition).unwrap();
    let anew = forge.command(&["build", "--progress", "plain", "--no-cache", "--llb", "-", "-o", "out", &context]);
    let anew = crate::fixture::run(&mut { anew }, &bytes);
    assert_eq!((anew.code, anew.stderr.matches("CACHED").count()), (0, 0), "{}", anew.stderr);
    assert_eq!(fs::read_to_string(forge.path("out/b")).unwrap(), "1");
}

#[test]
fn privileged_steps_of_a_definition_are_known_by_its_digests_and_lines() {
    let name = "privileged_steps_of_a_definition_are_known_by_its_digests_and_lines";
    let Some(forge) = Forge::privileged(name) else { return };
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nRUN echo hello && false\n")]);
    let definition = definition(&forge, &context);
    let json = forge.ok(&["debug", "llb", "--format", "json", &context]).stdout;
    let failed = forge.fails(1, &["build", "--progress", "rawjson", "--llb", &definition, &context]);
    for line in json.lines().filter(|line| line.contains("\"exec\"")) {
        let op: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(failed.stderr.contains(op["Digest"].as_str().unwrap()), "{}", failed.stderr);
    }
    let failed = forge.fails(1, &["build", "--progress", "plain", "--llb", &definition, &context]);
    assert!(failed.stderr.contains("   2 | >>> RUN echo hello && false\n"), "{}", failed.stderr);
}

#[test]
fn p16_what_is_no_definition_is_refused() {
    let forge = Forge::new();
    let context = forge.context("context", &[("Dockerfile", "FROM scratch\n"), ("noise", "FROM scratch\n")]);
    let noise = forge.path("context/noise");
    let refused = forge.fails(1, &["build", "--llb", noise.to_str().unwrap(), &context]);
    let message = "ERROR: failed to solve: the definition cannot be read: it is not a protobuf message of that kind";
    assert!(refused.stderr.contains(message), "{}", refused.stderr);
    let refused = forge.fails(1, &["build", "--llb", noise.to_str().unwrap(), "--target", "x", &context]);
    assert!(refused.stderr.contains("--target is about Dockerfiles and cannot be used with --llb"));
    let elsewhere = ["--build-context", "x=docker-image://busybox"];
    let refused = forge.fails(1, &[&["build", "--llb", noise.to_str().unwrap()][..], &elsewhere, &[&context]].concat());
    assert!(refused.stderr.contains("the context x cannot be used with a definition"), "{}", refused.stderr);
}
