//! Statements about images and trees, wherever these are written to.

use crate::support::{Pipe, Site, settings, tar_files};
use forge_exporter::{
    AssembledImage, Attestation, AttestationForm, BuiltTree, ExportError, ExportSettings, FolderMode, ImageSet,
    LayoutDestination, Placement, PlatformFolders, Predicate, SPDX, to_local, to_oci, to_tar,
};
use forge_image::Platform;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn attestation(predicate_type: &str, predicate: &Value) -> Attestation {
    Attestation {
        predicate_type: predicate_type.to_owned(),
        predicate: Predicate::Json(predicate.to_string().into_bytes()),
        subjects: Vec::new(),
        file_name: "said.json".to_owned(),
        placement: Placement::Everywhere,
        is_core_sbom: predicate_type == SPDX,
    }
}

async fn files(site: &Site, settings: &ExportSettings, said: &[Attestation]) -> BTreeMap<String, Value> {
    let image = AssembledImage { attestations: said.to_vec(), ..site.assembled(settings).await };
    let pipe = Pipe::default();
    let destination = LayoutDestination::Archive(pipe.writer());
    to_oci(&site.context, &ImageSet::new(vec![image]).unwrap(), settings, destination).await.unwrap();
    let json = |(name, bytes): (String, Vec<u8>)| Some((name, serde_json::from_slice(&bytes).ok()?));
    tar_files(&pipe.bytes()).into_iter().filter_map(json).collect()
}

fn blob<'a>(files: &'a BTreeMap<String, Value>, descriptor: &Value) -> &'a Value {
    &files[&format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"))]
}

#[tokio::test]
async fn privileged_attestations_have_a_manifest_in_the_index() {
    if !forge_testkit::privileged("privileged_attestations_have_a_manifest_in_the_index") {
        return;
    }
    let site = Site::new();
    let mut settings = settings(&["r.test:5000/app:1"]);
    let said = attestation("https://example.test/v1", &json!({ "x": 1 }));
    let files = files(&site, &settings, std::slice::from_ref(&said)).await;
    let index = blob(&files, &files["index.json"]["manifests"][0]);
    let [image, statements] = index["manifests"].as_array().unwrap().as_slice() else { panic!("{index}") };
    assert_eq!(statements["platform"], json!({ "architecture": "unknown", "os": "unknown" }));
    let notes = json!({
        "vnd.docker.reference.digest": image["digest"],
        "vnd.docker.reference.type": "attestation-manifest",
    });
    assert_eq!(statements["annotations"], notes);
    let manifest = blob(&files, statements);
    assert_eq!(manifest["subject"]["digest"], image["digest"]);
    assert_eq!(manifest["config"]["data"], "e30=");
    let statement = blob(&files, &manifest["layers"][0]);
    let name = "pkg:docker/r.test%3A5000/app@1?platform=linux%2Famd64";
    let hex = image["digest"].as_str().unwrap().trim_start_matches("sha256:");
    assert_eq!(statement["subject"], json!([{ "name": name, "digest": { "sha256": hex } }]));
    assert_eq!(statement["predicate"], json!({ "x": 1 }));
    settings.attestation_form = AttestationForm::Image;
    let files = self::files(&site, &settings, &[said]).await;
    let index = blob(&files, &files["index.json"]["manifests"][0]);
    let manifest = blob(&files, &index["manifests"][1]);
    assert_eq!((manifest.get("subject"), &blob(&files, &manifest["config"])["os"]), (None, &json!("unknown")));
}

#[tokio::test]
async fn privileged_what_is_for_an_index_makes_none() {
    if !forge_testkit::privileged("privileged_what_is_for_an_index_makes_none") {
        return;
    }
    let (site, settings) = (Site::new(), settings(&["app:1"]));
    let said = Attestation { placement: Placement::InlineOnly, ..attestation("https://example.test/v1", &json!(1)) };
    let files = files(&site, &settings, &[said]).await;
    assert_eq!(files["index.json"]["manifests"][0]["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    let docker = ExportSettings { oci_mediatypes: false, ..settings };
    let image = site.assembled(&docker).await;
    let image = AssembledImage { attestations: vec![attestation("x", &json!(1))], ..image };
    let destination = LayoutDestination::Folder(site.path("out"));
    let refused = to_oci(&site.context, &ImageSet::new(vec![image]).unwrap(), &docker, destination).await;
    assert!(matches!(refused, Err(ExportError::Conflict { .. })));
}

#[tokio::test]
async fn privileged_lists_of_software_name_the_layers_of_files() {
    if !forge_testkit::privileged("privileged_lists_of_software_name_the_layers_of_files") {
        return;
    }
    let (site, settings) = (Site::new(), settings(&["app:1"]));
    let listed = json!({
        "spdxVersion": "SPDX-2.3",
        "files": [{ "fileName": "/hello" }, { "fileName": "data", "comment": "mine" }, { "fileName": "/none" }],
    });
    let files = files(&site, &settings, &[attestation(SPDX, &listed)]).await;
    let index = blob(&files, &files["index.json"]["manifests"][0]);
    let top = &blob(&files, &index["manifests"][0])["layers"][2]["digest"];
    let predicate = &blob(&files, &blob(&files, &index["manifests"][1])["layers"][0])["predicate"];
    assert_eq!(predicate["files"][0]["comment"], format!("layerID: {}", top.as_str().unwrap()));
    assert_eq!((&predicate["files"][1]["comment"], predicate["files"][2].get("comment")), (&json!("mine"), None));
}

#[tokio::test]
async fn privileged_statements_lie_beside_the_files() {
    if !forge_testkit::privileged("privileged_statements_lie_beside_the_files") {
        return;
    }
    let site = Site::new();
    let layer = site.layer(&[], |upper| std::fs::write(upper.join("hello"), "hello\n").unwrap());
    let tree = |platform: &str, file_name: &str| BuiltTree {
        platform: platform.parse::<Platform>().unwrap(),
        layers: vec![layer],
        attestations: vec![Attestation { file_name: file_name.to_owned(), ..attestation("x", &json!(1)) }],
    };
    let trees = [tree("linux/amd64", "p.said.json"), tree("linux/arm64", "p.said.json")];
    let folder = site.path("out");
    std::fs::create_dir_all(folder.join("linux_amd64")).unwrap();
    std::fs::write(folder.join("linux_amd64/stale"), "").unwrap();
    to_local(&site.context, &trees, None, PlatformFolders::Always, FolderMode::Delete, &folder).await.unwrap();
    let statement = std::fs::read(folder.join("linux_arm64/p.said.json")).unwrap();
    let statement: Value = serde_json::from_slice(&statement).unwrap();
    assert_eq!(statement["subject"][0]["name"], "hello");
    let names: Vec<_> =
        std::fs::read_dir(folder.join("linux_amd64")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.len() == 2 && !names.contains(&"stale".into()), "{names:?}");
    let pipe = Pipe::default();
    to_tar(&site.context, &trees[..1], None, PlatformFolders::Never, pipe.writer()).await.unwrap();
    assert!(tar_files(&pipe.bytes()).iter().any(|(name, _)| name == "p.said.json"));
}

// Seen to fail without the test of names in `statement_files`.
#[tokio::test]
async fn privileged_a30_statements_stay_in_their_folder() {
    if !forge_testkit::privileged("privileged_a30_statements_stay_in_their_folder") {
        return;
    }
    let site = Site::new();
    for name in ["../out", "a/b", "..", ""] {
        let attestations = vec![Attestation { file_name: name.to_owned(), ..attestation("x", &json!(1)) }];
        let tree = BuiltTree { platform: Platform::host(), layers: Vec::new(), attestations };
        let folder = site.path("out");
        let refused = to_local(&site.context, &[tree], None, PlatformFolders::Never, FolderMode::Copy, &folder)
            .await
            .unwrap_err();
        assert!(matches!(refused, ExportError::FileName { .. }), "{name}");
    }
}
