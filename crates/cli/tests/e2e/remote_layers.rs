//! Layers that stay in their registry until somebody reads them, and images put together without a store.

use crate::fixture::{Forge, testdata};
use forge_testkit::{Script, TestRegistry};

/// The blobs that a registry sent.
fn sent(registry: &TestRegistry, repository: &str) -> usize {
    let start = format!("GET /v2/{repository}/blobs/sha256:");
    registry.lines().iter().filter(|line| line.starts_with(&start)).count()
}

/// A registry with `base:1`, which is busybox.
fn with_base(forge: &Forge) -> TestRegistry {
    let registry = TestRegistry::start();
    let name = format!("{}/base:1", registry.authority());
    forge.ok(&["tag", "busybox", &name]);
    forge.ok(&["push", &name]);
    registry.clear_log();
    registry
}

// Seen to fail with an image source that brings its layers.
#[test]
fn privileged_a_base_that_nothing_reads_is_not_fetched() {
    let Some(forge) = Forge::privileged("a_base_that_nothing_reads_is_not_fetched") else { return };
    let registry = with_base(&forge);
    let host = registry.authority();
    let other = Forge::new();
    let dockerfile = format!("FROM {host}/base:1\nCOPY --link file /file\nENV A=1\nCMD [\"cat\", \"/file\"]\n");
    let context = other.context("context", &[("Dockerfile", &dockerfile), ("file", "hello\n")]);
    other.build(&["--push", "-t", &format!("{host}/app:1"), &context]);
    assert_eq!(sent(&registry, "base"), 1, "the config: {:#?}", registry.lines());
    let mounts = registry.lines().iter().filter(|line| line.contains("mount=")).count();
    assert!(mounts >= 1 && registry.tagged("app", "1").is_some());
    other.build(&["-t", "local", &context]);
    assert_eq!(sent(&registry, "base"), 1, "nor by the next build");
    assert_eq!(other.ok(&["run", "--rm", "local"]).stdout, "hello\n");
    assert!(sent(&registry, "base") > 1, "whoever runs it has it fetched");
    let third = Forge::new();
    assert_eq!(third.ok(&["run", "--rm", &format!("{host}/app:1")]).stdout, "hello\n");
}

#[test]
fn privileged_what_is_written_here_has_its_base() {
    let Some(forge) = Forge::privileged("what_is_written_here_has_its_base") else { return };
    let registry = with_base(&forge);
    let host = registry.authority();
    for output in ["oci", "docker", "tar", "local"] {
        let other = Forge::new();
        let context = other.context("context", &[("Dockerfile", &format!("FROM {host}/base:1\nENV A=1\n"))]);
        let destination = other.path(output);
        other.build(&["-o", &format!("type={output},dest={}", destination.display()), &context]);
        assert!(destination.exists(), "{output}");
    }
    let other = Forge::new();
    let context = other.context("context", &[("Dockerfile", &format!("FROM {host}/base:1\nENV A=1\n"))]);
    other.build(&["-t", "named", &context]);
    let archive = other.path("saved.tar").display().to_string();
    other.ok(&["save", "-o", &archive, "named"]);
    let third = Forge::new();
    third.ok(&["load", "-i", &archive]);
    assert_eq!(third.ok(&["run", "--rm", "named", "echo", "hello"]).stdout, "hello\n");
}

#[test]
fn privileged_a_base_that_is_gone_is_told_as_such() {
    let Some(forge) = Forge::privileged("a_base_that_is_gone_is_told_as_such") else { return };
    let registry = with_base(&forge);
    let other = Forge::new();
    let name = format!("{}/base:1", registry.authority());
    let context = other.context("context", &[("Dockerfile", &format!("FROM {name}\nENV A=1\n"))]);
    other.build(&["-t", "named", &context]);
    registry.script(Script::on("GET", "/blobs/").reply(forge_testkit::Reply::status(404)));
    let told = other.fails(125, &["run", "--rm", "named", "true"]).stderr;
    assert!(told.contains("which nothing needed before"), "{told}");
    registry.clear_scripts();
    other.ok(&["run", "--rm", "named", "true"]);
}

#[test]
fn privileged_indexes_are_made_and_shown() {
    let Some(forge) = Forge::privileged("indexes_are_made_and_shown") else { return };
    let registry = with_base(&forge);
    let host = registry.authority();
    let (base, other) = (format!("{host}/base:1"), format!("{host}/other:1"));
    forge.build(&["--push", "-t", &other, &testdata("hello")]);
    let index = format!("{host}/index:1");
    let dry = forge.ok(&["imagetools", "create", "--dry-run", &base, &other]).stdout;
    let document: serde_json::Value = serde_json::from_str(&dry).unwrap();
    assert_eq!(document["manifests"].as_array().unwrap().len(), 2);
    assert!(registry.tagged("index", "1").is_none());
    let metadata = forge.path("metadata.json").display().to_string();
    let note = "index:org.example.note=yes";
    let words =
        ["imagetools", "create", "-t", &index, "--annotation", note, "--metadata-file", &metadata, &base, &other];
    forge.ok(&words);
    let (digest, media_type, bytes) = registry.tagged("index", "1").unwrap();
    assert_eq!(media_type, "application/vnd.oci.image.index.v1+json");
    assert!(String::from_utf8_lossy(&bytes).contains("org.example.note"));
    let metadata: serde_json::Value = serde_json::from_slice(&std::fs::read(metadata).unwrap()).unwrap();
    assert_eq!(metadata["containerimage.digest"], digest.as_str());
    let shown = forge.ok(&["imagetools", "inspect", &index]).stdout;
    assert!(
        shown.starts_with(&format!("Name:      {index}\nMediaType: {media_type}\nDigest:    {digest}\n")),
        "{shown}"
    );
    assert_eq!(shown.matches("  Platform:    linux/").count(), 2, "{shown}");
    assert_eq!(forge.ok(&["imagetools", "inspect", "--raw", &index]).stdout.as_bytes(), bytes);
    let format = |template: &str| forge.ok(&["imagetools", "inspect", "--format", template, &index]).stdout;
    assert_eq!(format("{{.Manifest.Digest}}"), format!("{digest}\n"));
    let image: serde_json::Value = serde_json::from_str(&format("{{json .Image}}")).unwrap();
    assert!(image.as_object().unwrap().keys().all(|platform| platform.starts_with("linux/")), "{image}");
    forge.ok(&["imagetools", "create", "--append", "-t", &index, &base]);
    let again = forge.ok(&["imagetools", "inspect", "--format", "{{json .Manifest}}", &index]).stdout;
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["manifests"].as_array().unwrap().len(), 2, "it was there already");
    let copied = format!("{host}/copy:1");
    forge.ok(&["imagetools", "create", "--prefer-index=false", "-t", &copied, &base]);
    assert_eq!(registry.tagged("copy", "1").unwrap().2, registry.tagged("base", "1").unwrap().2);
    let refused = forge.fails(1, &["imagetools", "create", "-t", &index, "--annotation", "a=b", &base]).stderr;
    assert!(refused.contains("has no place in an index"), "{refused}");
    Forge::new().ok(&["run", "--rm", &index, "true"]);
}
