//! Where results go, and what others make of them.

use crate::fixture::{Forge, have, shared, system, testdata};
use std::fs;

#[test]
fn privileged_files_as_folder_and_tar() {
    let Some(forge) = Forge::privileged("files_as_folder_and_tar") else { return };
    let context = forge.context("context", &[("Dockerfile", "FROM busybox AS made\nRUN mkdir /out && echo made > /out/file && ln -s file /out/link\nFROM scratch\nCOPY --from=made /out/ /\n")]);
    forge.build(&["-o", "files", &context]);
    assert_eq!(fs::read_to_string(forge.path("files/file")).unwrap(), "made\n");
    assert_eq!(fs::read_link(forge.path("files/link")).unwrap().to_str().unwrap(), "file");
    forge.build(&["-o", "type=tar,dest=files.tar", &context]);
    let listed = system(&["tar", "-tf", forge.path("files.tar").to_str().unwrap()]);
    assert!(listed.lines().any(|name| name.ends_with("file")), "{listed}");
    let streamed = forge.ok(&["build", "-q", "-o", "-", &context]).stdout;
    assert!(streamed.contains("made\n") && streamed.contains("ustar"));
    assert_eq!(forge.ok(&["images", "-q"]).stdout.lines().count(), 1, "no image was asked for");
}

#[test]
fn privileged_others_read_what_forge_writes() {
    let test = "others_read_what_forge_writes";
    let Some(forge) = Forge::privileged(test) else { return };
    if !have(test, &["skopeo", "umoci"]) {
        return;
    }
    let hello = testdata("hello");
    forge.build(&[
        "-t",
        "app:1.0",
        "-o",
        "type=oci,dest=app.oci.tar",
        "-o",
        "type=oci,dest=layout,tar=false",
        "-o",
        "type=docker,dest=app.docker.tar",
        &hello,
    ]);
    let at = |name: &str| forge.path(name).to_str().unwrap().to_owned();
    for source in [
        format!("oci-archive:{}", at("app.oci.tar")),
        format!("oci:{}", at("layout")),
        format!("docker-archive:{}", at("app.docker.tar")),
    ] {
        let seen: serde_json::Value = serde_json::from_str(&system(&["skopeo", "inspect", &source])).unwrap();
        assert_eq!(seen["Labels"]["org.opencontainers.image.title"], "hello", "{source}");
        let copied = at("copied");
        system(&["skopeo", "copy", "-q", &source, &format!("dir:{copied}")]);
        fs::remove_dir_all(copied).unwrap();
    }
    let tag = layout_tag(&at("layout"));
    system(&["umoci", "unpack", "--image", &format!("{}:{tag}", at("layout")), &at("bundle")]);
    assert_eq!(
        fs::read_to_string(forge.path("bundle/rootfs/app/greeting.txt")).unwrap(),
        "Hello, world, from a forge build\n"
    );
    if let Some(dump) = shared(test, "tools/oci-dump") {
        for archive in ["app.oci.tar", "layout", "app.docker.tar"] {
            let seen: serde_json::Value =
                serde_json::from_str(&system(&[dump.to_str().unwrap(), &at(archive)])).unwrap();
            assert_eq!(
                seen["config"]["config"]["User"].as_str().or(seen["config"]["User"].as_str()),
                Some("nobody"),
                "{archive}"
            );
            assert!(seen["files"].to_string().contains("app/greeting.txt"), "{archive}");
        }
    }
}

/// The name that skopeo and umoci know the image of a layout by.
fn layout_tag(layout: &str) -> String {
    let index: serde_json::Value = serde_json::from_slice(&fs::read(format!("{layout}/index.json")).unwrap()).unwrap();
    index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap().to_owned()
}

#[test]
fn privileged_save_and_load_keep_the_image() {
    let test = "save_and_load_keep_the_image";
    let Some(forge) = Forge::privileged(test) else { return };
    forge.build(&["-t", "app:1.0", &testdata("hello")]);
    let id = |forge: &Forge| forge.ok(&["inspect", "-f", "{{.Id}}", "app:1.0"]).stdout;
    for format in ["docker", "oci"] {
        let archive = forge.path(&format!("{format}.tar")).to_str().unwrap().to_owned();
        forge.ok(&["save", "--format", format, "-o", &archive, "app:1.0"]);
        if have(test, &["skopeo"]) {
            system(&["skopeo", "inspect", &format!("{format}-archive:{archive}")]);
        }
        let other = Forge::new();
        assert_eq!(other.ok(&["load", "-i", &archive]).stdout, "Loaded image: app:1.0\n");
        assert_eq!(id(&other), id(&forge), "{format}");
        assert!(other.ok(&["run", "--rm", "app:1.0"]).stdout.starts_with("Hello, world"));
    }
    let streamed = forge.path("streamed.tar");
    let saved = crate::fixture::run(
        std::process::Command::new("sh")
            .args(["-c", "exec \"$0\" save app:1.0 > \"$1\""])
            .arg(crate::fixture::binary())
            .arg(&streamed)
            .env("FORGE_ROOT", forge.store())
            .env("FORGE_CONFIG", forge.path("forge.toml")),
        b"",
    );
    assert_eq!(saved.code, 0, "{}", saved.stderr);
    let loaded = forge.with_input(&["load"], &fs::read(&streamed).unwrap());
    assert_eq!(loaded.stdout, "Loaded image: app:1.0\n");
    forge.fails(1, &["save", "-o", "/nonexistent/x.tar", "app:1.0"]);
    forge.fails(1, &["save", "-o", "x.tar", "nosuch"]);
    assert!(!forge.path("x.tar").exists());
}

// Fails when `load` tags whatever the archive says.
#[test]
fn privileged_a45_load_never_retags_silently() {
    let Some(forge) = Forge::privileged("a45_load_never_retags_silently") else { return };
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nRUN echo poisoned > /poisoned\n")]);
    let other = Forge::privileged("a45").unwrap();
    other.build(&["-t", "alpine", &context]);
    let archive = other.path("alpine.tar").to_str().unwrap().to_owned();
    other.ok(&["save", "-o", &archive, "alpine"]);
    forge.ok(&["tag", "busybox", "alpine"]);
    let refused = forge.fails(1, &["load", "-i", &archive]);
    assert!(refused.stderr.contains("alpine:latest already "), "{}", refused.stderr);
    assert_eq!(forge.shell("alpine", "ls /poisoned 2>&1 || true").trim(), "ls: /poisoned: No such file or directory");
    forge.ok(&["load", "--replace", "-i", &archive]);
    assert_eq!(forge.shell("alpine", "cat /poisoned"), "poisoned\n");
}

#[test]
fn privileged_the_same_input_gives_the_same_bytes() {
    let bytes = || {
        let forge = Forge::privileged("the_same_input_gives_the_same_bytes")?;
        let built = forge.with_env(
            &["build", "-q", "-t", "app:1.0", "-o", "type=oci,dest=app.tar", &testdata("hello")],
            "SOURCE_DATE_EPOCH",
            "1000000000",
        );
        assert_eq!(built.code, 0, "{}", built.stderr);
        Some(fs::read(forge.path("app.tar")).unwrap())
    };
    let Some(first) = bytes() else { return };
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert!(bytes().unwrap() == first, "two builds differ");
}

#[test]
fn privileged_files_that_tell_of_the_result() {
    let Some(forge) = Forge::privileged("files_that_tell_of_the_result") else { return };
    forge.build(&["-t", "app:1.0", "--iidfile", "id", "--metadata-file", "meta.json", &testdata("hello")]);
    let id = fs::read_to_string(forge.path("id")).unwrap();
    assert_eq!(forge.ok(&["inspect", "-f", "{{.Id}}", "app:1.0"]).stdout.trim(), id);
    assert_eq!(forge.ok(&["inspect", "-f", "{{.Id}}", &id[7..19]]).stdout.trim(), id);
    let metadata: serde_json::Value = serde_json::from_slice(&fs::read(forge.path("meta.json")).unwrap()).unwrap();
    assert_eq!(metadata["image.name"], "docker.io/library/app:1.0");
    assert_eq!(metadata["containerimage.config.digest"], id);
    let context = forge.context("broken", &[("Dockerfile", "FROM busybox\nRUN false\n")]);
    forge.fails(1, &["build", "--iidfile", "id", &context]);
    assert!(!forge.path("id").exists(), "a failed build leaves no old id");
}

#[test]
fn privileged_names_come_and_go() {
    let Some(forge) = Forge::privileged("names_come_and_go") else { return };
    forge.ok(&["tag", "busybox", "r.test:5000/team/box:2"]);
    let listed = forge.ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).stdout;
    assert!(listed.lines().any(|line| line == "r.test:5000/team/box:2"), "{listed}");
    assert_eq!(forge.ok(&["rmi", "r.test:5000/team/box:2"]).stdout, "Untagged: r.test:5000/team/box:2\n");
    let removed = forge.ok(&["rmi", "busybox"]).stdout;
    assert!(removed.starts_with("Untagged: busybox:latest\nDeleted: sha256:"), "{removed}");
    assert_eq!(forge.ok(&["images", "-q"]).stdout, "");
    let missing = forge.fails(1, &["rmi", "busybox"]);
    assert!(missing.stderr.contains("busybox"), "{}", missing.stderr);
    let missing = forge.fails(1, &["inspect", "busybox"]);
    assert_eq!(missing.stdout, "[]\n");
}

#[test]
fn privileged_raw_json_is_one_object_a_line() {
    let Some(forge) = Forge::privileged("raw_json_is_one_object_a_line") else { return };
    let context =
        forge.context("context", &[("Dockerfile", "FROM busybox\nRUN printf '{\"fake\": 1}\\n\\033[2J\\377'\n")]);
    let built = forge.ok(&["build", "--progress", "rawjson", &context]);
    let lines: Vec<serde_json::Value> = built.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["vertexes"][0]["completed"].is_string()));
    assert!(lines.iter().any(|line| line["logs"][0]["data"].is_string()));
    assert!(lines.iter().all(|line| line.get("fake").is_none()));
}
