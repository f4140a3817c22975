//! `forge layers`, `forge diff` and `forge verify`.

use crate::fixture::Forge;
use serde_json::Value;
use std::fs;

const DOCKERFILE: &str = "FROM scratch\nCOPY big small /\nCOPY big /other\nCOPY small /big\n";

#[test]
fn privileged_layers_say_what_they_add_and_waste() {
    let Some(forge) = Forge::privileged("layers_say_what_they_add_and_waste") else { return };
    let context = forge.context("context", &[("Dockerfile", DOCKERFILE), ("big", &"b".repeat(5000)), ("small", "s")]);
    forge.build(&["-t", "app", &context]);
    let rows: Vec<Value> = forge
        .ok(&["layers", "--format", "json", "app"])
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let numbers =
        |row: &Value| ["Added", "Changed", "Deleted", "Bytes", "Wasted"].map(|key| row[key].as_u64().unwrap());
    assert_eq!(
        rows.iter().map(numbers).collect::<Vec<_>>(),
        [[2, 0, 0, 5001, 5000], [1, 0, 0, 5000, 0], [0, 1, 0, 1, 0]]
    );
    assert!(rows[2]["CreatedBy"].as_str().unwrap().contains("COPY small /big"));
    let table = forge.ok(&["layers", "app"]).stdout;
    assert!(table.starts_with("LAYER") && table.contains("3 layers, 10kB, of which 5kB are covered"), "{table}");
}

#[test]
fn privileged_images_are_compared_file_by_file() {
    let Some(forge) = Forge::privileged("images_are_compared_file_by_file") else { return };
    let dockerfile = "FROM scratch\nCOPY . /\n";
    let one = forge.context("one", &[("Dockerfile", dockerfile), ("same", "x"), ("gone", "x"), ("changed", "x")]);
    forge.build(&["-t", "one", &one]);
    let two = forge.context("two", &[("Dockerfile", dockerfile), ("same", "x"), ("new", "x"), ("changed", "yy")]);
    forge.build(&["-t", "two", &two]);
    let found = forge.fails(1, &["diff", "--ignore-times", "one", "two"]).stdout;
    let changed = found.lines().next().unwrap();
    assert!(changed.starts_with("C /changed (size 1 -> 2"), "{found}");
    assert_eq!(found.lines().skip(1).collect::<Vec<_>>(), ["D /gone", "A /new"]);
    assert_eq!(forge.ok(&["diff", "one", "one"]).stdout, "");
    let json: Value = serde_json::from_str(
        forge.fails(1, &["diff", "--ignore-times", "--format", "json", "one", "two"]).stdout.lines().last().unwrap(),
    )
    .unwrap();
    assert_eq!((&json["Kind"], &json["Path"]), (&"A".into(), &"/new".into()));
}

// Fails when the rebuilt image is taken from the cache.
#[test]
fn privileged_an_image_is_verified_by_building_it_again() {
    let Some(forge) = Forge::privileged("an_image_is_verified_by_building_it_again") else { return };
    let dockerfile =
        "FROM busybox\nCOPY file /\nRUN cat /file > /made\nRUN cat /proc/sys/kernel/random/uuid > /random\n";
    let context = forge.context("context", &[("Dockerfile", dockerfile), ("file", "x")]);
    let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=1000000000"];
    forge.build(&[&["-t", "app"], &epoch[..], &[&context]].concat());
    let verify = |code: i32| {
        let words = [&["verify"], &epoch[..], &["app", &context]].concat();
        match code {
            0 => forge.ok(&words),
            code => forge.fails(code, &words),
        }
    };
    let found = verify(1).stdout;
    assert!(found.contains("differs (RUN /bin/sh -c cat /proc/sys/kernel/random/uuid"), "{found}");
    assert!(found.contains("C /random (bytes)"), "{found}");
    fs::write(forge.path("context/Dockerfile"), dockerfile.lines().take(3).collect::<Vec<_>>().join("\n")).unwrap();
    forge.build(&[&["-t", "app"], &epoch[..], &[&context]].concat());
    let before = forge.ok(&["images", "-q"]).stdout;
    assert!(verify(0).stdout.starts_with("the same image, byte for byte: sha256:"));
    fs::write(forge.path("context/file"), "y").unwrap();
    let found = verify(1).stdout;
    assert!(found.contains("COPY file /") && found.contains("C /file (bytes"), "{found}");
    assert_eq!(forge.ok(&["images", "-q"]).stdout, before, "what was built for the comparison is gone");
    forge.fails(1, &["verify", "-t", "x", "app", &context]);
    forge.fails(1, &["verify", "nosuch", &context]);
}

/// Fails when the layers of both images are read, whether or not they share them.
#[test]
fn privileged_an_image_is_verified_whose_base_is_not_here() {
    let Some(forge) = Forge::privileged("an_image_is_verified_whose_base_is_not_here") else { return };
    let registry = forge_testkit::TestRegistry::start();
    let host = registry.authority();
    forge.ok(&["tag", "busybox", &format!("{host}/base:1")]);
    forge.ok(&["push", &format!("{host}/base:1")]);
    let other = Forge::new();
    let dockerfile = format!("FROM {host}/base:1\nCOPY file /\nENV A=1\n");
    let context = other.context("context", &[("Dockerfile", &dockerfile), ("file", "x")]);
    other.build(&["-t", &format!("{host}/app:1"), "--push", &context]);
    let sent = || registry.lines().iter().filter(|line| line.contains("GET /v2/base/blobs/")).count();
    let before = sent();
    let words = ["verify", &format!("{host}/app:1"), &context];
    assert!(other.ok(&words).stdout.starts_with("the same image"));
    fs::write(other.path("context/file"), "yy").unwrap();
    let found = other.fails(1, &words).stdout;
    assert!(found.contains("layer 2 differs (COPY file /") && found.contains("C /file"), "{found}");
    assert_eq!(sent(), before, "what both have need not be here");
    // The image itself is only known: what it has is fetched to be compared.
    let third = Forge::new();
    let derived = third.context("derived", &[("Dockerfile", &format!("FROM {host}/app:1\nENV B=1\n"))]);
    third.build(&["-t", "derived", &derived]);
    let context = other.path("context").display().to_string();
    let found = third.fails(1, &["verify", &format!("{host}/app:1"), &context]).stdout;
    assert!(found.contains("layer 2 differs (COPY file /") && found.contains("C /file"), "{found}");
}
