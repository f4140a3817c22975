//! What others make of forge's images, and forge of theirs: Debian's skopeo, umoci, buildah and podman.

use crate::fixture::{Forge, have, system};
use crate::registry::Registry;
use serde_json::Value;
use std::path::Path;

/// A program that keeps its images in a folder of the test, and is ended when it takes too long.
fn containers(program: &str, folder: &Path, words: &[&str]) -> String {
    let (root, run) = (folder.join("storage"), folder.join("run"));
    let (root, run) = (root.display().to_string(), run.display().to_string());
    let start = ["timeout", "120", program, "--root", &root, "--runroot", &run, "--storage-driver", "vfs"];
    system(&[&start, words].concat())
}

/// An image with a layer of each kind that says hello.
fn small(forge: &Forge) -> String {
    let dockerfile = "FROM busybox\nCOPY greeting /greeting\nRUN echo made > /made\nCMD [\"cat\", \"/greeting\"]\n";
    forge.context("small", &[("Dockerfile", dockerfile), ("greeting", "Hello, world\n")])
}

fn plain(host: &str, name: &str) -> String {
    format!("docker://{host}/{name}")
}

#[test]
fn privileged_skopeo_and_umoci_take_what_was_pushed() {
    let test = "skopeo_and_umoci_take_what_was_pushed";
    let Some(forge) = Forge::privileged(test) else { return };
    let Some(registry) = Registry::start(test) else { return };
    if !have(test, &["skopeo", "umoci"]) {
        return;
    }
    let name = format!("{}/app:1", registry.host);
    let context = small(&forge);
    for compression in ["gzip", "zstd", "uncompressed"] {
        let output = format!("type=registry,name={name},compression={compression},force-compression=true");
        forge.build(&["-o", &output, &context]);
        let layout = forge.path(&format!("layout-{compression}")).display().to_string();
        let from = plain(&registry.host, "app:1");
        system(&["timeout", "120", "skopeo", "copy", "--src-tls-verify=false", &from, &format!("oci:{layout}:1")]);
        if compression == "zstd" {
            // Debian's umoci reads gzip only.
            continue;
        }
        let bundle = forge.path(&format!("bundle-{compression}"));
        system(&[
            "timeout",
            "120",
            "umoci",
            "unpack",
            "--image",
            &format!("{layout}:1"),
            &bundle.display().to_string(),
        ]);
        assert!(bundle.join("rootfs/bin/busybox").exists(), "{compression}");
    }
}

#[test]
fn privileged_buildah_builds_on_what_was_pushed_and_forge_on_what_it_made() {
    let test = "buildah_builds_on_what_was_pushed_and_forge_on_what_it_made";
    let Some(forge) = Forge::privileged(test) else { return };
    let Some(registry) = Registry::start(test) else { return };
    if !have(test, &["buildah"]) {
        return;
    }
    let folder = forge.path("buildah");
    let (base, theirs) = (format!("{}/app:1", registry.host), format!("{}/theirs", registry.host));
    forge.build(&["--push", "-t", &base, &small(&forge)]);
    let buildah = |words: &[&str]| containers("buildah", &folder, words).trim().to_owned();
    let container = buildah(&["from", "--tls-verify=false", &base]);
    let said = buildah(&["run", "--isolation", "chroot", &container, "/bin/busybox", "echo", "from buildah"]);
    assert!(said.contains("from buildah"), "{said}");
    buildah(&["run", "--isolation", "chroot", &container, "/bin/busybox", "sh", "-c", "echo more > /more"]);
    for (format, media_type) in [
        ("oci", "application/vnd.oci.image.manifest.v1+json"),
        // Docker's schema 2.
        ("docker", "application/vnd.docker.distribution.manifest.v2+json"),
    ] {
        let name = format!("{theirs}:{format}");
        buildah(&["commit", "-q", "--format", format, &container, &name]);
        buildah(&["push", "-q", "--tls-verify=false", &name, &format!("docker://{name}")]);
        let shown = forge.ok(&["imagetools", "inspect", "--format", "{{.Manifest.MediaType}}", &name]).stdout;
        assert_eq!(shown.trim(), media_type);
        let other = Forge::new();
        other.ok(&["pull", &name]);
        assert_eq!(other.ok(&["run", "--rm", &name, "/bin/busybox", "cat", "/more"]).stdout, "more\n");
        let context = other.context("context", &[("Dockerfile", &format!("FROM {name}\nRUN test -f /more\n"))]);
        other.build(&["-t", "on-theirs", &context]);
    }
}

#[test]
fn privileged_archives_go_both_ways() {
    let test = "archives_go_both_ways";
    let Some(forge) = Forge::privileged(test) else { return };
    if !have(test, &["skopeo"]) {
        return;
    }
    forge.build(&["-t", "app:1", &small(&forge)]);
    for (format, transport) in [("docker", "docker-archive"), ("oci", "oci-archive")] {
        let ours = forge.path(&format!("ours-{format}.tar")).display().to_string();
        let theirs = forge.path(&format!("theirs-{format}.tar")).display().to_string();
        forge.ok(&["save", "--format", format, "-o", &ours, "app:1"]);
        let (from, to) = (format!("{transport}:{ours}"), format!("{transport}:{theirs}:docker.io/library/app:2"));
        system(&["timeout", "120", "skopeo", "copy", "-q", &from, &to]);
        let seen: Value =
            serde_json::from_str(&system(&["skopeo", "inspect", &format!("{transport}:{theirs}")])).unwrap();
        assert!(!seen["Layers"].as_array().unwrap().is_empty());
        let other = Forge::new();
        let loaded = other.ok(&["load", "-i", &theirs]).stdout;
        let name = loaded.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(other.ok(&["run", "--rm", &name]).stdout.starts_with("Hello, world"), "{loaded}");
    }
}

#[test]
fn privileged_podman_loads_and_runs_what_was_saved() {
    let test = "podman_loads_and_runs_what_was_saved";
    let Some(forge) = Forge::privileged(test) else { return };
    if !have(test, &["podman"]) {
        return;
    }
    let folder = forge.path("podman");
    forge.build(&["-t", "app:1", &small(&forge)]);
    let podman = |words: &[&str]| containers("podman", &folder, words);
    for format in ["docker", "oci"] {
        let archive = forge.path(&format!("{format}.tar")).display().to_string();
        forge.ok(&["save", "--format", format, "-o", &archive, "app:1"]);
        let loaded = podman(&["load", "-q", "-i", &archive]);
        assert!(loaded.contains("library/app:1"), "{loaded}");
        // Its own limits are higher than those that a process without CAP_SYS_RESOURCE may set, and its usual runtime knows
        // no mixed control groups.
        let how = ["--runtime", "runc", "--cgroup-manager", "cgroupfs", "run", "--rm", "--network", "none"];
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "docker.io/library/app:1"];
        assert_eq!(podman(&[&how[..], &limits].concat()), "Hello, world\n");
        let back = forge.path(&format!("back-{format}.tar")).display().to_string();
        let archived = if format == "docker" { "docker-archive" } else { "oci-archive" };
        podman(&["save", "-q", "--format", archived, "-o", &back, "docker.io/library/app:1"]);
        let other = Forge::new();
        other.ok(&["load", "-i", &back]);
        podman(&["rmi", "-f", "docker.io/library/app:1"]);
    }
}
