//! The options of `--output` and `--annotation`, each seen in what came out.

use crate::fixture::{Forge, testdata};
use serde_json::Value;
use std::fs;

fn json(forge: &Forge, path: &str) -> Value {
    serde_json::from_slice(&fs::read(forge.path(path)).unwrap()).unwrap()
}

/// A document of the layout `l` of a test.
fn blob(forge: &Forge, layout: &str, digest: &Value) -> Value {
    json(forge, &format!("{layout}/blobs/sha256/{}", digest.as_str().unwrap().trim_start_matches("sha256:")))
}

/// Builds into a layout; the entry of its index, and its manifest.
fn layout(forge: &Forge, name: &str, words: &[&str]) -> (Value, Value) {
    let output = match words.first() {
        Some(options) => format!("type=oci,dest={name},tar=false,{options}"),
        None => format!("type=oci,dest={name},tar=false"),
    };
    let rest = words.get(1..).unwrap_or_default();
    let context = testdata("hello");
    let words = [&["-o", &output], rest, &[&context]].concat();
    forge.build(&words);
    let entry = json(forge, &format!("{name}/index.json"))["manifests"][0].clone();
    let manifest = blob(forge, name, &entry["digest"]);
    (entry, manifest)
}

#[test]
fn privileged_annotations_stand_where_they_were_asked_for() {
    let Some(forge) = Forge::privileged("annotations_stand_where_they_were_asked_for") else { return };
    let (entry, manifest) = layout(
        &forge,
        "one",
        &[
            "annotation.a=1,annotation-manifest-descriptor.b=2",
            "--annotation",
            "c=3",
            "--annotation",
            "manifest-descriptor:d=4",
        ],
    );
    assert_eq!(manifest["annotations"].to_string(), r#"{"a":"1","c":"3"}"#);
    assert_eq!((&entry["annotations"]["b"], &entry["annotations"]["d"]), (&"2".into(), &"4".into()));
    let (entry, index) = layout(
        &forge,
        "many",
        &[
            "annotation-index.a=1",
            "--build-arg",
            "BUILDKIT_MULTI_PLATFORM=1",
            "--annotation",
            "index-descriptor,manifest:b=2",
        ],
    );
    assert_eq!((&entry["annotations"]["b"], &index["annotations"]["a"]), (&"2".into(), &"1".into()));
    assert_eq!(blob(&forge, "many", &index["manifests"][0]["digest"])["annotations"]["b"], "2");
    let refused = forge.fails(1, &["build", "-o", "type=oci,dest=x", "--annotation", "index:a=b", &testdata("hello")]);
    assert!(
        refused.stderr.contains("index annotations not supported for single platform export"),
        "{}",
        refused.stderr
    );
}

#[test]
fn privileged_compression_and_media_types_are_those_asked_for() {
    let Some(forge) = Forge::privileged("compression_and_media_types_are_those_asked_for") else { return };
    let types = |manifest: &Value| {
        let layers: Vec<&str> =
            manifest["layers"].as_array().unwrap().iter().map(|it| it["mediaType"].as_str().unwrap()).collect();
        (layers.first().copied().unwrap().to_owned(), layers.last().copied().unwrap().to_owned())
    };
    let oci = |kind: &str| format!("application/vnd.oci.image.layer.v1.tar{kind}");
    let check = |name: &str, options: &str, first: &str, last: &str| {
        let (_, manifest) = layout(&forge, name, &[options]);
        assert_eq!(types(&manifest), (first.to_owned(), last.to_owned()), "{options}");
        manifest
    };
    // The base came as a bare tar, and stays so unless it is forced or nothing is asked for.
    check("zstd", "compression=zstd,compression-level=7", &oci(""), &oci("+zstd"));
    check("forced", "compression=zstd,force-compression=true", &oci("+zstd"), &oci("+zstd"));
    check("bare", "compression=uncompressed", &oci(""), &oci(""));
    let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let manifest = check("docker", "oci-mediatypes=false", docker, docker);
    assert_eq!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.docker.container.image.v1+json");
    let size = |manifest: &Value| manifest["layers"].as_array().unwrap().last().unwrap()["size"].as_u64().unwrap();
    let (fast, small) =
        (layout(&forge, "l1", &["compression-level=1"]).1, layout(&forge, "l9", &["compression-level=9"]).1);
    assert!(size(&small) <= size(&fast));
}

#[test]
fn privileged_several_outputs_of_one_build() {
    let Some(forge) = Forge::privileged("several_outputs_of_one_build") else { return };
    forge.build(&[
        "-t",
        "app:1.0",
        "-o",
        "type=image,compression=zstd,name-canonical=true,dangling-name-prefix=dangling",
        "-o",
        "type=oci,dest=app.oci.tar",
        "-o",
        "type=local,dest=files,platform-split=true,source-date-epoch=5",
        "-o",
        "type=tar,dest=files.tar",
        "--metadata-file",
        "metadata.json",
        &testdata("hello"),
    ]);
    let digest = json(&forge, "metadata.json")["containerimage.digest"].as_str().unwrap().to_owned();
    for name in ["app", "dangling"] {
        let pinned = format!("{name}@{digest}");
        assert_eq!(forge.ok(&["inspect", "-f", "{{.Id}}", &pinned]).code, 0);
    }
    forge.ok(&["save", "--format", "oci", "-o", "saved.tar", "app:1.0"]);
    let saved = fs::read(forge.path("saved.tar")).unwrap();
    let zstd = b"application/vnd.oci.image.layer.v1.tar+zstd";
    assert!(saved.windows(zstd.len()).any(|window| window == zstd), "the manifest that was asked for is saved");
    let machine = if cfg!(target_arch = "x86_64") { "linux_amd64" } else { "linux_arm64" };
    let file = forge.path("files").join(machine).join("app/greeting.txt");
    assert_eq!(std::os::unix::fs::MetadataExt::mtime(&file.metadata().unwrap()), 5);
    assert!(forge.path("app.oci.tar").is_file() && forge.path("files.tar").is_file());
}

#[test]
fn privileged_an_output_that_is_not_stored_leaves_no_image() {
    let Some(forge) = Forge::privileged("an_output_that_is_not_stored_leaves_no_image") else { return };
    let images = || forge.ok(&["images", "-q"]).stdout.lines().count();
    let before = images();
    forge.build(&["-t", "app:1.0", "-o", "type=image,store=false", &testdata("hello")]);
    forge.fails(1, &["inspect", "app:1.0"]);
    assert_eq!(images(), before, "the base image was there");
}

#[test]
fn privileged_a_folder_is_mirrored() {
    let Some(forge) = Forge::privileged("a_folder_is_mirrored") else { return };
    let context = forge.context("context", &[("Dockerfile", "FROM scratch\nCOPY new /kept/\n"), ("new", "x")]);
    fs::create_dir_all(forge.path("out/stale/deep")).unwrap();
    fs::create_dir_all(forge.path("out/kept")).unwrap();
    fs::write(forge.path("out/kept/old"), "x").unwrap();
    forge.build(&["-o", "type=local,dest=out,mode=copy", &context]);
    assert!(forge.path("out/stale/deep").exists() && forge.path("out/kept/new").exists());
    forge.build(&["-o", "type=local,dest=out,mode=delete", &context]);
    assert!(!forge.path("out/stale").exists() && !forge.path("out/kept/old").exists());
    assert!(forge.path("out/kept/new").exists());
    let refused = forge.fails(1, &["build", "-o", "type=local,dest=/,mode=delete", &context]);
    assert!(refused.stderr.contains("the root of the file system is not emptied"), "{}", refused.stderr);
}

/// docker's limit is 127 layers, the kernel's 500 in one mount: higher stacks are mounted as fewer trees.
#[test]
fn privileged_images_of_127_500_and_501_layers() {
    let Some(forge) = Forge::privileged("images_of_127_500_and_501_layers") else { return };
    let dockerfile = |layers: usize| {
        let copies: String = (1..layers).map(|number| format!("COPY file /f{number}\n")).collect();
        format!("FROM busybox\n{copies}")
    };
    let context = forge.context("context", &[("Dockerfile", &dockerfile(127)), ("file", "x")]);
    forge.build(&["-t", "many", "-o", "type=oci,dest=many,tar=false", &context]);
    let entry = json(&forge, "many/index.json")["manifests"][0].clone();
    assert_eq!(blob(&forge, "many", &entry["digest"])["layers"].as_array().unwrap().len(), 127);
    fs::write(forge.path("context/Dockerfile"), dockerfile(500)).unwrap();
    forge.build(&["-t", "most", &context]);
    assert_eq!(forge.shell("most", "ls / | grep -c ^f").trim(), "499");
    fs::write(forge.path("context/Dockerfile"), dockerfile(501)).unwrap();
    forge.build(&["-t", "more", &context]);
    assert_eq!(forge.shell("more", "ls / | grep -c ^f").trim(), "500");
}
