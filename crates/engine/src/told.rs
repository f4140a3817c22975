//! What the caller is told of a build's outputs.

use crate::BuildOutcome;
use forge_exporter::Exported;
use forge_image::{Digest, Reference};

/// What the caller is told of all outputs. The first one with a manifest speaks for all: its digest is what others
/// know the image by. Names are those of all.
pub(crate) fn told(exported: &[Exported]) -> BuildOutcome {
    let spokesman = exported.iter().find(|exported| exported.descriptor.is_some()).or(exported.first());
    let mut names: Vec<Reference> = Vec::new();
    for name in exported.iter().flat_map(|exported| &exported.names) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let metadata = spokesman.map(|exported| Exported { names: names.clone(), ..exported.clone() }.metadata());
    BuildOutcome {
        image: spokesman.and_then(image_of),
        descriptor: spokesman.and_then(|exported| exported.descriptor.clone()),
        names,
        metadata: metadata.into_iter().flatten().collect(),
        ..BuildOutcome::default()
    }
}

/// Images of several platforms get their index, and so a digest in common, when they leave the store; until then the
/// first one's id stands for them.
fn image_of(exported: &Exported) -> Option<Digest> {
    match (&exported.descriptor, exported.images.as_slice()) {
        (Some(index), [_, _, ..]) => Some(index.digest.clone()),
        (_, images) => images.first().map(|image| image.id.digest().clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_exporter::ExportedImage;
    use forge_image::{Descriptor, ImageId, MediaType, Platform};

    fn exported(images: &[&str], manifest: Option<&str>, names: &[&str]) -> Exported {
        let of = |text: &str| Descriptor::of(MediaType::OciManifest, text.as_bytes());
        let image = |text: &&str| ExportedImage {
            platform: Platform::host(),
            id: ImageId::new(Digest::sha256(text.as_bytes())),
            manifest: None,
        };
        Exported {
            descriptor: manifest.map(of),
            images: images.iter().map(image).collect(),
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
            remarks: Vec::new(),
        }
    }

    fn keys(outcome: &BuildOutcome) -> String {
        let known = [Digest::sha256(b"image"), Digest::sha256(b"manifest")];
        let shown = |value: &serde_json::Value| match value.as_str() {
            Some(text) if text == known[0].as_str() => "image".to_owned(),
            Some(text) if text == known[1].as_str() => "manifest".to_owned(),
            Some(text) => text.to_owned(),
            None => "{}".to_owned(),
        };
        let lines = outcome.metadata.iter().map(|(key, value)| format!("{key} {}\n", shown(value)));
        lines.collect()
    }

    #[test]
    fn metadata_is_buildxs() {
        let stored = told(&[exported(&["image"], None, &["app:1"])]);
        insta::assert_snapshot!(keys(&stored), @r"
        containerimage.config.digest image
        containerimage.digest image
        image.name docker.io/library/app:1
        ");
        assert!(told(&[exported(&[], None, &[])]).metadata.is_empty());
        assert!(told(&[]).metadata.is_empty());
    }

    // Fails when the digest comes from one output and the descriptor from another.
    #[test]
    fn of_several_outputs_the_one_with_a_manifest_speaks() {
        let archive = exported(&["image"], Some("manifest"), &["app:1", "r.test/x:2"]);
        let outcome = told(&[exported(&["image"], None, &["app:1"]), exported(&[], None, &[]), archive]);
        insta::assert_snapshot!(keys(&outcome), @r"
        containerimage.config.digest image
        containerimage.descriptor {}
        containerimage.digest manifest
        image.name docker.io/library/app:1,r.test/x:2
        ");
        assert_eq!(outcome.image, Some(Digest::sha256(b"image")));
    }

    #[test]
    fn several_platforms_are_known_by_their_index() {
        let pushed = told(&[exported(&["a", "b"], Some("index"), &[])]);
        assert_eq!(pushed.image, Some(Digest::sha256(b"index")));
        let stored = told(&[exported(&["a", "b"], None, &[])]);
        assert_eq!(stored.image, Some(Digest::sha256(b"a")));
    }
}
