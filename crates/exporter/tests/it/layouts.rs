//! OCI layouts and docker archives, judged by the oracle and by the programs that others read them with.

use crate::support::{Pipe, Site, run, settings, tar_files};
use forge_exporter::{Annotation, AnnotationScope, ExportSettings, LayoutDestination, to_docker, to_oci};
use forge_image::{ErrorKind, ImageConfig};
use forge_store::Compression;
use std::path::Path;

async fn oci_tar(site: &Site, settings: &ExportSettings) -> Vec<u8> {
    let pipe = Pipe::default();
    let destination = LayoutDestination::Archive(pipe.writer());
    to_oci(&site.context, &site.image(settings).await, settings, destination).await.unwrap();
    pipe.bytes()
}

/// Two stores, two moments, two orders of work: the same bytes.
#[tokio::test]
async fn privileged_with_an_epoch_two_builds_give_the_same_bytes() {
    if !forge_testkit::privileged("privileged_with_an_epoch_two_builds_give_the_same_bytes") {
        return;
    }
    let mut archives = Vec::new();
    for round in 0..2_u64 {
        let site = Site::new();
        if round == 1 {
            site.layer(&[], |upper| std::fs::write(upper.join("unrelated"), "x").unwrap());
            tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        }
        let mut settings = settings(&["app:1"]);
        settings.now += std::time::Duration::from_secs(round);
        (settings.source_date_epoch, settings.rewrite_timestamp) = (Some(1_600_000_000), true);
        archives.push(oci_tar(&site, &settings).await);
    }
    assert!(archives[0] == archives[1], "the archives differ");
    let site = Site::new();
    let other = oci_tar(&site, &settings(&["app:1"])).await;
    assert!(archives[0] != other, "without an epoch the time is in it");
}

#[tokio::test]
async fn privileged_names_and_platform_stand_in_the_index() {
    if !forge_testkit::privileged("privileged_names_and_platform_stand_in_the_index") {
        return;
    }
    let site = Site::new();
    let settings = settings(&["r.io/app:1", "app:2"]);
    let files = tar_files(&oci_tar(&site, &settings).await);
    let names: Vec<&String> = files.iter().map(|(name, _)| name).collect();
    assert!(names.is_sorted(), "{names:?}");
    let index = &files.iter().find(|(name, _)| name == "index.json").unwrap().1;
    let index: serde_json::Value = serde_json::from_slice(index).unwrap();
    let entries: Vec<String> =
        index["manifests"].as_array().unwrap().iter().map(|entry| entry["annotations"].to_string()).collect();
    assert_eq!(
        entries,
        [
            r#"{"io.containerd.image.name":"r.io/app:1","org.opencontainers.image.ref.name":"1"}"#,
            r#"{"io.containerd.image.name":"docker.io/library/app:2","org.opencontainers.image.ref.name":"2"}"#,
        ]
    );
    assert_eq!(index["manifests"][0]["platform"]["architecture"], "amd64");
}

#[tokio::test]
async fn privileged_several_platforms_become_an_index_in_the_order_asked_for() {
    if !forge_testkit::privileged("privileged_several_platforms_become_an_index_in_the_order_asked_for") {
        return;
    }
    let site = Site::new();
    let mut settings = settings(&["app:1"]);
    let annotation = |scope, platform: Option<&str>, key: &str| Annotation {
        scope,
        platform: platform.map(|platform| platform.parse().unwrap()),
        key: key.to_owned(),
        value: "v".to_owned(),
    };
    settings.annotations = vec![
        annotation(AnnotationScope::Index, None, "on.index"),
        annotation(AnnotationScope::IndexDescriptor, None, "on.index.descriptor"),
        annotation(AnnotationScope::Manifest, Some("linux/amd64"), "on.manifest"),
        annotation(AnnotationScope::ManifestDescriptor, None, "on.descriptor"),
    ];
    let folder = site.path("layout");
    let images = site.two_platforms(&settings).await;
    let destination = LayoutDestination::Folder(folder.clone());
    let exported = to_oci(&site.context, &images, &settings, destination).await.unwrap();
    forge_testkit::validate_layout(&folder).unwrap();
    let read = |digest: &str| -> serde_json::Value {
        let path = folder.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let root: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("index.json")).unwrap()).unwrap();
    assert_eq!(root["manifests"][0]["annotations"]["on.index.descriptor"], "v");
    let index = read(exported.descriptor.as_ref().unwrap().digest.as_str());
    assert_eq!(index["annotations"]["on.index"], "v");
    let entries = index["manifests"].as_array().unwrap();
    let architectures: Vec<&str> = entries.iter().map(|it| it["platform"]["architecture"].as_str().unwrap()).collect();
    assert_eq!(architectures, ["arm64", "amd64"]);
    assert!(entries.iter().all(|entry| entry["annotations"]["on.descriptor"] == "v"));
    let annotated: Vec<bool> =
        entries.iter().map(|entry| !read(entry["digest"].as_str().unwrap())["annotations"].is_null()).collect();
    assert_eq!(annotated, [false, true]);
    assert!(exported.metadata().get("containerimage.config.digest").is_none());
}

#[tokio::test]
async fn privileged_settings_that_exclude_each_other_are_refused() {
    if !forge_testkit::privileged("privileged_settings_that_exclude_each_other_are_refused") {
        return;
    }
    let site = Site::new();
    let images = site.image(&settings(&[])).await;
    let refused = async |settings: ExportSettings| {
        let destination = LayoutDestination::Archive(Pipe::default().writer());
        let error = to_oci(&site.context, &images, &settings, destination).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UserInput);
        error.to_string()
    };
    let estargz = Some(Compression::Estargz { level: None });
    let docker_estargz = ExportSettings { oci_mediatypes: false, compression: estargz, ..settings(&[]) };
    assert_eq!(refused(docker_estargz).await, "estargz compression cannot be combined with docker media types");
    let key = "a".to_owned();
    let index = Annotation { scope: AnnotationScope::Index, platform: None, key, value: String::new() };
    let annotated = ExportSettings { annotations: vec![index], ..settings(&[]) };
    assert_eq!(refused(annotated).await, "index annotations not supported for single platform export: \"a\"");
}

/// Every compression and both vocabularies, read by the oracle, which shares no code with the writer.
#[tokio::test]
async fn privileged_every_kind_of_layout_is_valid() {
    if !forge_testkit::privileged("privileged_every_kind_of_layout_is_valid") {
        return;
    }
    let site = Site::new();
    let gzip = Some(Compression::Gzip { level: Some(9) });
    let zstd = Some(Compression::Zstd { level: None });
    for (number, (compression, oci)) in [
        (None, true),
        (None, false),
        (gzip, true),
        (zstd, true),
        (Some(Compression::None), true),
        (Some(Compression::None), false),
    ]
    .into_iter()
    .enumerate()
    {
        let settings = ExportSettings { compression, oci_mediatypes: oci, ..settings(&["app:1"]) };
        let folder = site.path(&format!("layout{number}"));
        let images = site.image(&settings).await;
        to_oci(&site.context, &images, &settings, LayoutDestination::Folder(folder.clone())).await.unwrap();
        forge_testkit::validate_layout(&folder).unwrap();
    }
}

fn write(path: &Path, bytes: &[u8]) -> String {
    std::fs::write(path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn privileged_skopeo_reads_every_format() {
    if !forge_testkit::privileged("privileged_skopeo_reads_every_format") {
        return;
    }
    if !forge_testkit::installed("skopeo", "privileged_skopeo_reads_every_format") {
        return;
    }
    let site = Site::new();
    for (number, compression) in [None, Some(Compression::Zstd { level: None })].into_iter().enumerate() {
        let settings = ExportSettings { compression, ..settings(&["app:1"]) };
        let images = site.image(&settings).await;
        let folder = site.path(&format!("layout{number}"));
        let exported =
            to_oci(&site.context, &images, &settings, LayoutDestination::Folder(folder.clone())).await.unwrap();
        let pipe = Pipe::default();
        to_docker(&site.context, &images, &settings, pipe.writer()).await.unwrap();
        let archive = write(&site.path(&format!("archive{number}.tar")), &pipe.bytes());
        let sources = [
            format!("oci:{}:1", folder.display()),
            format!("oci-archive:{archive}:1"),
            format!("docker-archive:{archive}:app:1"),
        ];
        for (copy, source) in sources.iter().enumerate() {
            let inspected: serde_json::Value = serde_json::from_str(&run("skopeo", &["inspect", source])).unwrap();
            assert_eq!(inspected["Architecture"], "amd64");
            let config = run("skopeo", &["inspect", "--config", "--raw", source]);
            assert_eq!(ImageConfig::id_of(config.as_bytes()), exported.images[0].id, "{source}");
            let copied = format!("dir:{}", site.path(&format!("copy{number}{copy}")).display());
            run("skopeo", &["copy", "--insecure-policy", source, &copied]);
        }
    }
}

#[tokio::test]
async fn privileged_umoci_unpacks_the_layout() {
    let name = "privileged_umoci_unpacks_the_layout";
    if !forge_testkit::privileged(name) || !forge_testkit::installed("umoci", name) {
        return;
    }
    let site = Site::new();
    let settings = settings(&["app:1"]);
    let folder = site.path("layout");
    let images = site.image(&settings).await;
    to_oci(&site.context, &images, &settings, LayoutDestination::Folder(folder.clone())).await.unwrap();
    let bundle = site.path("bundle");
    let image = format!("{}:1", folder.display());
    run("umoci", &["unpack", "--image", &image, bundle.to_str().unwrap()]);
    assert_eq!(std::fs::read(bundle.join("rootfs/hello")).unwrap(), b"hello\n");
    assert_eq!(std::fs::read_link(bundle.join("rootfs/bin")).unwrap(), Path::new("usr/bin"));
}

#[tokio::test]
async fn privileged_oci_dump_finds_no_fault() {
    if !forge_testkit::privileged("privileged_oci_dump_finds_no_fault") {
        return;
    }
    let shared =
        std::env::var("FORGE_SHARED").unwrap_or_else(|_| format!("{}/../../../shared", env!("CARGO_MANIFEST_DIR")));
    let script = Path::new(&shared).join("tools/oci-dump");
    if !script.is_file() {
        #[expect(clippy::print_stdout, reason = "a skipped test says so")]
        {
            println!("SKIPPED (needs FORGE_SHARED/tools/oci-dump): privileged_oci_dump_finds_no_fault");
        }
        return;
    }
    let site = Site::new();
    let settings = settings(&["app:1"]);
    let images = site.image(&settings).await;
    let pipe = Pipe::default();
    to_docker(&site.context, &images, &settings, pipe.writer()).await.unwrap();
    let archive = write(&site.path("archive.tar"), &pipe.bytes());
    let folder = site.path("layout");
    to_oci(&site.context, &images, &settings, LayoutDestination::Folder(folder.clone())).await.unwrap();
    for image in [archive, folder.to_str().unwrap().to_owned()] {
        let dump: serde_json::Value = serde_json::from_str(&run(script.to_str().unwrap(), &[&image])).unwrap();
        assert_eq!(dump["layers"], 3);
        assert_eq!(dump["history"][2]["empty"], false, "the step that changed nothing made a layer");
        assert_eq!(dump["files"]["/hello"]["size"], 6);
        assert_eq!(dump["files"]["/usr/bin/tool"]["nlink_group"], "/usr/bin/alias");
    }
}
