use crate::RegistryError;
use forge_image::{Descriptor, Index, Platform};

/// Picks the entry of an index that fits a platform best. Of equals the first one wins, as in containerd.
///
/// Attestations (entries for `unknown/unknown`, or that refer to another manifest) are never picked. A processor
/// runs what was made for an older variant of its own: `amd64/v3` takes v3, v2 or none, `arm/v7` takes v7, v6, v5;
/// the newest wins. An entry without a platform fits only where nothing else does.
///
/// # Errors
/// [`RegistryError::NoPlatform`], which names the platforms that there are.
pub fn select_platform<'a>(index: &'a Index, platform: &Platform) -> Result<&'a Descriptor, RegistryError> {
    let mut best: Option<(u32, &Descriptor)> = None;
    for entry in index.manifests.iter().filter(|entry| !is_attestation(entry)) {
        let Some(rank) = rank(platform, entry.platform.as_ref()) else { continue };
        if best.is_none_or(|(highest, _)| rank > highest) {
            best = Some((rank, entry));
        }
    }
    best.map(|(_, entry)| entry)
        .ok_or_else(|| RegistryError::NoPlatform { platform: Box::new(platform.clone()), available: available(index) })
}

fn available(index: &Index) -> Vec<Platform> {
    let mut platforms: Vec<Platform> = Vec::new();
    for platform in index.manifests.iter().filter(|e| !is_attestation(e)).filter_map(|e| e.platform.as_ref()) {
        let platform = normal(platform);
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    platforms
}

/// BuildKit marks attestation manifests with this annotation and the platform `unknown/unknown`.
fn is_attestation(entry: &Descriptor) -> bool {
    entry.annotations.contains_key("vnd.docker.reference.type")
        || entry.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
}

/// How well an entry fits; `None` where it does not.
fn rank(wanted: &Platform, offered: Option<&Platform>) -> Option<u32> {
    let Some(offered) = offered else { return Some(0) };
    if !wanted.accepts_version(offered) {
        return None;
    }
    let (wanted, offered) = (normal(wanted), normal(offered));
    if wanted.os != offered.os || wanted.architecture != offered.architecture {
        return None;
    }
    match (level(&wanted), level(&offered)) {
        (Some(have), Some(need)) => (need <= have).then_some(need + 2),
        _ if wanted.variant == offered.variant => Some(2),
        _ => wanted.accepts(&offered).then_some(1),
    }
}

fn normal(platform: &Platform) -> Platform {
    Platform::new(&platform.os, &platform.architecture, platform.variant.as_deref())
}

/// The variant as a number, where the architecture's variants are a ladder.
fn level(platform: &Platform) -> Option<u32> {
    let base = match platform.architecture.as_str() {
        "amd64" => 1,
        "arm64" => 8,
        "arm" => 7,
        _ => return None,
    };
    match platform.variant.as_deref() {
        None => Some(base),
        Some(variant) => variant.strip_prefix('v').unwrap_or(variant).parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_image::MediaType;
    use serde_json::json;

    fn index(platforms: &[&str]) -> Index {
        let manifests: Vec<_> = platforms
            .iter()
            .enumerate()
            .map(|(number, text)| {
                let mut entry = Descriptor::of(MediaType::OciManifest, number.to_string().as_bytes());
                let words: Vec<&str> = text.split('/').collect();
                entry.platform = (words.len() > 1).then(|| Platform {
                    os: words[0].to_owned(),
                    architecture: words[1].to_owned(),
                    variant: words.get(2).map(|v| (*v).to_owned()),
                    os_version: None,
                    os_features: Vec::new(),
                });
                entry
            })
            .collect();
        Index::from_json(&serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": manifests})).unwrap(), None)
            .unwrap()
    }

    fn check(platforms: &[&str], wanted: &str, expect: Option<usize>) {
        let index = index(platforms);
        let found = select_platform(&index, &wanted.parse().unwrap());
        let expect = expect.map(|number| Descriptor::of(MediaType::OciManifest, number.to_string().as_bytes()).digest);
        assert_eq!(found.ok().map(|entry| entry.digest.clone()), expect, "{platforms:?} {wanted}");
    }

    #[test]
    fn the_best_entry_is_picked() {
        check(&["linux/arm64", "linux/amd64"], "linux/amd64", Some(1));
        check(&["linux/arm64/v8", "linux/amd64"], "linux/arm64", Some(0));
        check(&["linux/amd64/v3", "linux/amd64"], "linux/amd64", Some(1));
        check(&["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], "linux/amd64/v3", Some(1));
        check(&["linux/amd64/v3"], "linux/amd64", None);
        check(&["linux/arm/v5", "linux/arm/v6", "linux/arm64"], "linux/arm/v7", Some(1));
        check(&["linux/arm/v7"], "linux/arm/v6", None);
        check(&["linux/s390x", "windows/amd64"], "linux/amd64", None);
        check(&["unknown/unknown", "linux/amd64"], "linux/amd64", Some(1));
        check(&["", "linux/arm64"], "linux/amd64", Some(0));
        check(&["", "linux/amd64"], "linux/amd64", Some(1));
        check(&["linux/amd64", "linux/amd64"], "linux/amd64", Some(0));
        check(&[], "linux/amd64", None);
    }

    #[test]
    fn what_there_is_is_named() {
        let index = index(&["unknown/unknown", "linux/arm64/v8", "linux/s390x"]);
        let error = select_platform(&index, &"linux/amd64".parse().unwrap());
        assert_eq!(
            error.unwrap_err().to_string(),
            "no image for platform linux/amd64, there are: linux/arm64, linux/s390x"
        );
    }
}
