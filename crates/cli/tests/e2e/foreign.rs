//! A layer that somebody else made stays what it is (docs/design/001-foreign-layers.md).

use crate::fixture::{Forge, have, may_run, system};
use crate::registry::Registry;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// An OCI layout of layers as GNU tar and gzip write them.
struct ForeignImage {
    layout: String,
    manifest: Vec<u8>,
    diff_ids: Vec<String>,
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn put(layout: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = digest(bytes);
    fs::write(layout.join("blobs/sha256").join(&digest[7..]), bytes).unwrap();
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
}

/// A layer of the named members of a folder, in that order, without the folders that they lie in.
fn layer(folder: &Path, members: &[&str]) -> (Vec<u8>, Vec<u8>) {
    let tar = folder.with_extension("tar");
    let (from, to) = (folder.to_str().unwrap(), tar.to_str().unwrap());
    let mut words = vec!["tar", "--format=gnu", "--no-recursion", "--owner=7", "--group=8", "-C", from, "-cf", to];
    words.extend(members);
    system(&words);
    let bytes = fs::read(&tar).unwrap();
    system(&["gzip", "-1", "-f", to]);
    (bytes, fs::read(format!("{to}.gz")).unwrap())
}

impl ForeignImage {
    /// A base with a `/tmp` that all may write to, and a layer that has entries out of order, a name too long for
    /// ustar, and nothing about `/tmp` but a file in it.
    fn make(forge: &Forge) -> Self {
        let (base, top) = (forge.path("base"), forge.path("top"));
        for folder in ["bin", "tmp"] {
            fs::create_dir_all(base.join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", base.join("bin/sh")).unwrap();
        fs::set_permissions(base.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        let long = format!("srv/{}", "long".repeat(40));
        for file in ["tmp/inner", "etc/second", &long] {
            fs::create_dir_all(top.join(file).parent().unwrap()).unwrap();
            fs::write(top.join(file), file).unwrap();
        }
        let layers = [layer(&base, &["tmp", "bin", "bin/sh"]), layer(&top, &["tmp/inner", &long, "etc/second"])];
        let layout = forge.path("foreign");
        fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| digest(tar)).collect();
        let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
        let layers: Vec<Value> = layers.iter().map(|(_, blob)| put(&layout, gzip, blob)).collect();
        // Order, spaces and fields that forge does not know: only the very bytes give this digest.
        let config = format!(
            "{{\"rootfs\": {{\"diff_ids\": {}, \"type\": \"layers\"}}, \"x-unknown\":1,\"os\":\"linux\",\"architecture\":\"amd64\", \"config\": {{\"Entrypoint\":[\"/bin/sh\"]}}}}",
            json!(diff_ids)
        );
        let config = put(&layout, "application/vnd.oci.image.config.v1+json", config.as_bytes());
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        let manifest = serde_json::to_vec_pretty(&manifest).unwrap();
        let mut entry = put(&layout, media_type, &manifest);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "app"});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        fs::write(layout.join("index.json"), index.to_string()).unwrap();
        fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
        Self { layout: layout.to_str().unwrap().to_owned(), manifest, diff_ids }
    }
}

/// The manifest that a registry has under a name, as it is.
fn manifest(name: &str) -> String {
    system(&["skopeo", "inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")])
}

#[track_caller]
fn check(forge: &Forge, name: &str, image: &ForeignImage) {
    let layers = forge.ok(&["inspect", "-f", "{{json .RootFS.Layers}}", name]).stdout;
    assert_eq!(serde_json::from_str::<Vec<String>>(&layers).unwrap(), image.diff_ids);
    let seen = forge.shell(name, "stat -c %a:%u /tmp /etc; cat /tmp/inner");
    assert_eq!(seen, "1777:7\n755:0\ntmp/inner");
}

#[test]
fn privileged_foreign_layer_round_trip() {
    let test = "foreign_layer_round_trip";
    if !may_run(test) || !have(test, &["skopeo", "tar", "gzip"]) {
        return;
    }
    let Some(registry) = Registry::start(test) else { return };
    let forge = Forge::new();
    let image = ForeignImage::make(&forge);
    let name = format!("{}/foreign:1", registry.host);
    let source = format!("oci:{}:app", image.layout);
    let target = format!("docker://{name}");
    system(&["skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", &source, &target]);

    // Pulled and run.
    let pulled = forge.ok(&["pull", &name]).stdout;
    assert!(pulled.contains(&format!("Digest: {}\n", digest(&image.manifest))), "{pulled}");
    check(&forge, &name, &image);

    // Pushed under another name, and pulled from there into another store.
    let again = format!("{}/elsewhere/again:2", registry.host);
    forge.ok(&["tag", &name, &again]);
    let pushed = forge.ok(&["push", &again]).stdout;
    assert!(pushed.contains(&format!("digest: {} ", digest(&image.manifest))), "{pushed}");
    assert_eq!(manifest(&again).as_bytes(), image.manifest);
    let other = Forge::new();
    other.ok(&["pull", &again]);
    check(&other, &again, &image);

    // Saved: the archive has the very blobs.
    let archive = other.path("saved.tar").to_str().unwrap().to_owned();
    other.ok(&["save", "--format", "oci", "-o", &archive, &again]);
    fs::create_dir(other.path("saved")).unwrap();
    system(&["tar", "-C", other.path("saved").to_str().unwrap(), "-xf", &archive]);
    for blob in fs::read_dir(Path::new(&image.layout).join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        let saved = other.path("saved/blobs/sha256").join(blob.file_name());
        assert!(fs::read(saved).unwrap() == fs::read(blob.path()).unwrap(), "{:?} differs", blob.file_name());
    }

    // Built upon: the layers below stay, and so does what they say of `/tmp`.
    let built = format!("{}/built:1", registry.host);
    let dockerfile = format!("FROM {again}\nRUN [\"/bin/sh\", \"-c\", \"echo more > /tmp/more\"]\n");
    other.build(&["--push", "-t", &built, &other.context("context", &[("Dockerfile", &dockerfile)])]);
    let layers = |manifest: &str| {
        let document: Value = serde_json::from_str(manifest).unwrap();
        document["layers"].as_array().unwrap().iter().map(|layer| layer["digest"].clone()).collect::<Vec<_>>()
    };
    let (below, all) = (layers(&manifest(&name)), layers(&manifest(&built)));
    assert_eq!((all.len(), &all[..2]), (3, &below[..]));
    assert_eq!(other.shell(&built, "stat -c %a:%u /tmp; cat /tmp/more"), "1777:7\nmore\n");
}
