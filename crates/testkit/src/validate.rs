use flate2::read::MultiGzDecoder;
use forge_image::{Descriptor, DiffId, Digest, ImageConfig, Index, Manifest, MediaType};
use std::fs;
use std::io::Read as _;
use std::path::Path;

/// An image that was found valid.
#[derive(Clone, Debug)]
pub struct ValidImage {
    /// The manifest's descriptor, with the annotations of the index it was found in.
    pub descriptor: Descriptor,
    /// The manifest.
    pub manifest: Manifest,
    /// The config.
    pub config: ImageConfig,
    /// The layers' tar archives, lowest first.
    pub tars: Vec<Vec<u8>>,
}

/// Checks everything that an OCI layout's `index.json` leads to, and that the layout is one. This is the oracle for
/// whatever writes images.
///
/// # Errors
/// The first thing that is wrong.
pub fn validate_layout(folder: &Path) -> Result<Vec<ValidImage>, String> {
    let read = |name: &str| fs::read(folder.join(name)).map_err(|error| format!("{name}: {error}"));
    let marker: serde_json::Value =
        serde_json::from_slice(&read("oci-layout")?).map_err(|error| format!("oci-layout: {error}"))?;
    if marker["imageLayoutVersion"] != "1.0.0" {
        return Err(format!("oci-layout says {marker}"));
    }
    let index = Index::from_json(&read("index.json")?, None).map_err(|error| format!("index.json: {error}"))?;
    let fetch = |digest: &Digest| fs::read(folder.join("blobs").join(digest.algorithm()).join(digest.hex())).ok();
    let mut images = Vec::new();
    for entry in &index.manifests {
        images.extend(validate(entry, &fetch)?);
    }
    Ok(images)
}

/// Checks a manifest, or an index with all it leads to: digests and sizes of everything, media types, the layers' DiffIds
/// against the config, history against layers, the config's platform against the index.
///
/// # Errors
/// The first thing that is wrong.
pub fn validate(
    descriptor: &Descriptor,
    fetch: &dyn Fn(&Digest) -> Option<Vec<u8>>,
) -> Result<Vec<ValidImage>, String> {
    let bytes = exact(descriptor, fetch)?;
    let kind = &descriptor.media_type;
    if kind.is_manifest() {
        return Ok(vec![image(descriptor, &bytes, fetch)?]);
    }
    if !kind.is_index() {
        return Err(format!("{} is a {kind}, neither manifest nor index", descriptor.digest));
    }
    let index = Index::from_json(&bytes, Some(kind)).map_err(|error| format!("{}: {error}", descriptor.digest))?;
    let mut images = Vec::new();
    for entry in &index.manifests {
        images.extend(validate(entry, fetch)?);
    }
    Ok(images)
}

fn exact(descriptor: &Descriptor, fetch: &dyn Fn(&Digest) -> Option<Vec<u8>>) -> Result<Vec<u8>, String> {
    let digest = &descriptor.digest;
    let bytes = fetch(digest).ok_or_else(|| format!("{digest} ({}) is missing", descriptor.media_type))?;
    let found = Digest::sha256(&bytes);
    if found != *digest {
        return Err(format!("the blob {digest} has the digest {found}"));
    }
    if bytes.len() as u64 != descriptor.size {
        return Err(format!("{digest} has {} bytes, declared are {}", bytes.len(), descriptor.size));
    }
    Ok(bytes)
}

fn image(
    descriptor: &Descriptor,
    bytes: &[u8],
    fetch: &dyn Fn(&Digest) -> Option<Vec<u8>>,
) -> Result<ValidImage, String> {
    let digest = &descriptor.digest;
    let manifest =
        Manifest::from_json(bytes, Some(&descriptor.media_type)).map_err(|error| format!("{digest}: {error}"))?;
    if !manifest.config.media_type.is_config() {
        // Attestations and other artefacts have manifests too: their blobs are checked, they have no file tree.
        for part in manifest.layers.iter().chain([&manifest.config]) {
            exact(part, fetch)?;
        }
        let config = ImageConfig::new(&forge_image::Platform::new("unknown", "unknown", None));
        return Ok(ValidImage { descriptor: descriptor.clone(), manifest, config, tars: Vec::new() });
    }
    let config =
        ImageConfig::from_json(&exact(&manifest.config, fetch)?).map_err(|error| format!("{digest}: {error}"))?;
    let mut tars = Vec::new();
    for layer in &manifest.layers {
        tars.push(uncompress(layer, &exact(layer, fetch)?)?);
    }
    let attestation = descriptor.platform.as_ref().is_some_and(|platform| platform.os == "unknown");
    if !attestation {
        agree(digest, &config, &tars)?;
        match &descriptor.platform {
            Some(platform) if !platform.accepts(&config.platform()) => {
                return Err(format!("{digest} is for {platform}, its config for {}", config.platform()));
            }
            _ => {}
        }
    }
    Ok(ValidImage { descriptor: descriptor.clone(), manifest, config, tars })
}

fn agree(digest: &Digest, config: &ImageConfig, tars: &[Vec<u8>]) -> Result<(), String> {
    let diff_ids: Vec<DiffId> = tars.iter().map(|tar| DiffId::new(Digest::sha256(tar))).collect();
    if config.rootfs.kind != "layers" || config.rootfs.diff_ids != diff_ids {
        return Err(format!("{digest}: the layers are {diff_ids:?}, the config says {:?}", config.rootfs.diff_ids));
    }
    let described = config.history.iter().filter(|entry| !entry.empty_layer).count();
    if !config.history.is_empty() && described != tars.len() {
        return Err(format!("{digest}: the history tells of {described} layers, there are {}", tars.len()));
    }
    if config.os.is_empty() || config.architecture.is_empty() {
        return Err(format!("{digest}: the config names no platform"));
    }
    Ok(())
}

fn uncompress(layer: &Descriptor, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let wrong = |error: std::io::Error| format!("{}: {error}", layer.digest);
    match &layer.media_type {
        MediaType::OciLayer | MediaType::DockerLayer => Ok(bytes.to_vec()),
        MediaType::OciLayerZstd | MediaType::DockerLayerZstd => zstd::decode_all(bytes).map_err(wrong),
        MediaType::OciLayerGzip | MediaType::DockerLayerGzip => {
            let mut tar = Vec::new();
            MultiGzDecoder::new(bytes).read_to_end(&mut tar).map_err(wrong)?;
            Ok(tar)
        }
        other => Err(format!("{} is a {other}, no layer", layer.digest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ImageBuilder, LayerCompression, TarBuilder, write_layout};

    #[test]
    fn what_the_builder_makes_is_valid() {
        let folder = tempfile::tempdir().unwrap();
        let tar = || TarBuilder::new().file("a", "b").finish();
        let image = ImageBuilder::new()
            .layer(TarBuilder::new().file(&"long/".repeat(60), "x"))
            .layer_as(tar(), LayerCompression::Zstd)
            .layer_as(tar(), LayerCompression::None)
            .build();
        write_layout(folder.path(), &[("a", &image), ("b", &ImageBuilder::small("b"))]);
        let images = validate_layout(folder.path()).unwrap();
        assert_eq!(images.iter().map(|image| image.tars.len()).collect::<Vec<_>>(), [3, 1]);
    }

    #[test]
    fn lies_are_found() {
        let image = ImageBuilder::small("x");
        let check = |fetch: &dyn Fn(&Digest) -> Option<Vec<u8>>, expect: &str| {
            let error = validate(&image.manifest.descriptor, fetch).unwrap_err();
            assert!(error.contains(expect), "{error}");
        };
        let find = |digest: &Digest| {
            let mut parts = image.layers.iter().chain([&image.config, &image.manifest]);
            parts.find(|part| part.descriptor.digest == *digest).map(|part| part.bytes.clone())
        };
        assert_eq!(validate(&image.manifest.descriptor, &find).unwrap().len(), 1);
        check(&|_| None, "is missing");
        check(&|digest| find(digest).map(|bytes| [bytes, vec![0]].concat()), "has the digest");
        let other = ImageBuilder::small("x").config;
        let mut config = ImageConfig::from_json(&other.bytes).unwrap();
        config.rootfs.diff_ids.clear();
        let broken = ImageBuilder::new()
            .layer(TarBuilder::new())
            .config(|config| config.history.push(Default::default()))
            .build();
        let find = |digest: &Digest| {
            let mut parts = broken.layers.iter().chain([&broken.config, &broken.manifest]);
            parts.find(|part| part.descriptor.digest == *digest).map(|part| part.bytes.clone())
        };
        assert!(validate(&broken.manifest.descriptor, &find).unwrap_err().contains("history"));
    }
}
