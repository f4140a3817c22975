//! Rules about what a build may be made of (`EXPERIMENTAL_BUILDKIT_SOURCE_POLICY`).

use crate::fixture::Forge;
use std::fs;

const VARIABLE: &str = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY";

#[test]
fn privileged_sources_are_denied_and_converted_before_they_are_fetched() {
    let Some(forge) = Forge::privileged("privileged_sources_are_denied_and_converted_before_they_are_fetched") else {
        return;
    };
    let policy = forge.path("policy.json");
    let build = |rules: &str, context: &str| {
        fs::write(&policy, format!("{{\"version\": 1, \"rules\": [{rules}]}}")).unwrap();
        forge.with_env(&["build", "--offline", "-t", "made", context], VARIABLE, policy.to_str().unwrap())
    };
    let rule = |action: &str, from: &str, to: &str| {
        format!(
            r#"{{"action": "{action}", "selector": {{"identifier": "{from}"}}, "updates": {{"identifier": "{to}"}}}}"#
        )
    };
    let plain = forge.context("plain", &[("Dockerfile", "FROM busybox\nCOPY Dockerfile /d\n")]);
    let deny = rule("DENY", "docker-image://docker.io/library/*", "");
    let denied = build(&deny, &plain);
    let why = "source \"docker-image://docker.io/library/busybox:latest\" denied by policy: source denied by policy";
    assert!(denied.code != 0 && denied.stderr.contains(why), "{}", denied.stderr);
    // The last word counts, and what is not denied is built.
    let allow = rule("ALLOW", "docker-image://docker.io/library/busybox:*", "");
    assert_eq!(build(&format!("{deny}, {allow}"), &plain).code, 0);
    // An image that is nowhere becomes one that is here.
    let elsewhere = forge.context("elsewhere", &[("Dockerfile", "FROM nowhere.test/base:1\nRUN [\"true\"]\n")]);
    let convert = rule("CONVERT", "docker-image://nowhere.test/*", "docker-image://docker.io/library/busybox:latest");
    let converted = build(&convert, &elsewhere);
    assert_eq!(converted.code, 0, "{}", converted.stderr);
    // What it becomes is judged as well, and so are downloads and contexts.
    assert!(build(&format!("{convert}, {deny}"), &elsewhere).stderr.contains("denied by policy"));
    let download = forge.context("download", &[("Dockerfile", "FROM scratch\nADD http://127.0.0.1:1/x /x\n")]);
    assert!(build(&rule("DENY", "http://*", ""), &download).stderr.contains("denied by policy"));
    assert!(build(&rule("DENY", "local://*", ""), &plain).stderr.contains("denied by policy"));
    let typo = build("{\"act\": 1}", &plain);
    assert!(typo.code != 0 && typo.stderr.contains("unknown field `act`"), "{}", typo.stderr);
}
