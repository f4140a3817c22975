//! Makes an index out of images and indexes that exist, as `docker buildx imagetools create` does.

use crate::{Annotation, AnnotationScope, ExportError};
use forge_image::{Annotations, Descriptor, Digest, Index, MediaType, Platform};

/// What an index is made of: a manifest or an index of a registry.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Its descriptor; for a manifest with the platform that its config says.
    pub descriptor: Descriptor,
    /// Its entries, if it is an index.
    pub entries: Option<Vec<Descriptor>>,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A document, and what it names.
#[derive(Clone, Debug, PartialEq)]
pub struct Composed {
    /// Its descriptor.
    pub descriptor: Descriptor,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What must be in the repository before it: nothing where it is one image.
    pub entries: Vec<Descriptor>,
}

/// What becomes of a single manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Single {
    /// It gets an index of its own.
    Index,
    /// It stays what it is.
    Copy,
}

/// Makes one document of several. An index with nothing to be changed stays as it is, byte by byte. Of entries with one
/// digest there is one; annotations of later ones are added to it. The index is docker's only where every part is.
///
/// # Errors
/// There is no part, no entry for one of `platforms`, or an annotation that has no place in an index.
pub fn compose(
    parts: &[Part],
    annotations: &[Annotation],
    platforms: &[Platform],
    single: Single,
) -> Result<Composed, ExportError> {
    check(annotations)?;
    if let [only] = parts
        && annotations.is_empty()
        && platforms.is_empty()
        && (only.entries.is_some() || single == Single::Copy)
    {
        let entries = only.entries.clone().unwrap_or_default();
        return Ok(Composed { descriptor: only.descriptor.clone(), bytes: only.bytes.clone(), entries });
    }
    let mut entries = merged(parts);
    retain(&mut entries, platforms)?;
    if entries.is_empty() {
        return Err(ExportError::Nothing { what: "there is nothing to make an index of" });
    }
    for entry in &mut entries {
        let noted = of(annotations, AnnotationScope::ManifestDescriptor, entry.platform.as_ref());
        entry.annotations.extend(noted);
    }
    let noted = of(annotations, AnnotationScope::Index, None);
    let docker = noted.is_empty() && parts.iter().all(|part| is_docker(&part.descriptor.media_type));
    let media_type = if docker { MediaType::DockerManifestList } else { MediaType::OciIndex };
    let index = Index {
        schema_version: 2,
        media_type: Some(media_type.clone()),
        manifests: entries.clone(),
        annotations: noted,
        unknown: Default::default(),
    };
    let bytes = index.to_json();
    Ok(Composed { descriptor: Descriptor::of(media_type, &bytes), bytes, entries })
}

fn check(annotations: &[Annotation]) -> Result<(), ExportError> {
    let misplaced =
        annotations.iter().find(|it| matches!(it.scope, AnnotationScope::Manifest | AnnotationScope::IndexDescriptor));
    match misplaced {
        Some(it) => Err(ExportError::AnnotationPlace { key: it.key.clone() }),
        None => Ok(()),
    }
}

fn merged(parts: &[Part]) -> Vec<Descriptor> {
    let all = parts.iter().flat_map(|part| match &part.entries {
        Some(entries) => entries.clone(),
        None => vec![part.descriptor.clone()],
    });
    let mut merged: Vec<Descriptor> = Vec::new();
    for entry in all {
        match merged.iter_mut().find(|known| known.digest == entry.digest) {
            Some(known) => {
                known.annotations.extend(entry.annotations);
                known.platform = entry.platform.or(known.platform.take());
            }
            None => merged.push(entry),
        }
    }
    merged
}

/// Keeps entries for some platforms, and what is attested of them.
fn retain(entries: &mut Vec<Descriptor>, platforms: &[Platform]) -> Result<(), ExportError> {
    if platforms.is_empty() {
        return Ok(());
    }
    let fits = |wanted: &Platform, entry: &Descriptor| entry.platform.as_ref().is_some_and(|has| wanted.accepts(has));
    if let Some(missing) = platforms.iter().find(|wanted| !entries.iter().any(|entry| fits(wanted, entry))) {
        return Err(ExportError::NoPlatform { platform: missing.clone() });
    }
    let kept: Vec<Digest> = entries
        .iter()
        .filter(|entry| platforms.iter().any(|wanted| fits(wanted, entry)))
        .map(|entry| entry.digest.clone())
        .collect();
    let subject = |entry: &Descriptor| entry.annotations.get("vnd.docker.reference.digest").cloned();
    entries.retain(|entry| {
        let about = subject(entry).is_some_and(|digest| kept.iter().any(|kept| digest == kept.as_str()));
        kept.contains(&entry.digest) || about
    });
    Ok(())
}

fn of(annotations: &[Annotation], scope: AnnotationScope, platform: Option<&Platform>) -> Annotations {
    let applies = |wanted: &Option<Platform>| match (wanted, platform) {
        (Some(wanted), Some(platform)) => wanted == platform,
        (Some(_), None) => false,
        (None, _) => true,
    };
    let matching = annotations.iter().filter(|it| it.scope == scope && applies(&it.platform));
    matching.map(|it| (it.key.clone(), it.value.clone().into())).collect()
}

fn is_docker(media_type: &MediaType) -> bool {
    matches!(media_type, MediaType::DockerManifest | MediaType::DockerManifestList)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &str, platform: &str, media_type: MediaType) -> Part {
        let mut descriptor = Descriptor::of(media_type, text.as_bytes());
        descriptor.platform = Some(platform.parse().unwrap());
        Part { descriptor, entries: None, bytes: text.as_bytes().to_vec() }
    }

    fn index(parts: &[Part]) -> Part {
        let made = compose(parts, &[], &[], Single::Index).unwrap();
        Part { descriptor: made.descriptor, entries: Some(made.entries), bytes: made.bytes }
    }

    fn note(scope: AnnotationScope, platform: Option<&str>) -> Annotation {
        let platform = platform.map(|platform| platform.parse().unwrap());
        Annotation { scope, platform, key: "k".to_owned(), value: "v".to_owned() }
    }

    /// One line for each entry: platform and annotations.
    fn check(made: &Composed, expect: &str) {
        let index = Index::from_json(&made.bytes, Some(&made.descriptor.media_type)).unwrap();
        assert_eq!(made.descriptor, Descriptor::of(made.descriptor.media_type.clone(), &made.bytes));
        let line = |entry: &Descriptor| {
            let notes = entry.annotations.iter().map(|(key, value)| format!(" {key}={}", value.as_str().unwrap()));
            format!("{}{}", entry.platform.as_ref().unwrap(), notes.collect::<String>())
        };
        assert_eq!(index.manifests.iter().map(line).collect::<Vec<_>>().join(", "), expect);
    }

    fn two() -> [Part; 2] {
        use MediaType::OciManifest;
        [manifest("a", "linux/amd64", OciManifest), manifest("b", "linux/arm64", OciManifest)]
    }

    #[test]
    fn images_become_an_index() {
        let made = compose(&two(), &[], &[], Single::Index).unwrap();
        assert_eq!(made.descriptor.media_type, MediaType::OciIndex);
        check(&made, "linux/amd64, linux/arm64");
        let [a, b] = two();
        check(
            &compose(&[index(std::slice::from_ref(&a)), b, a], &[], &[], Single::Index).unwrap(),
            "linux/amd64, linux/arm64",
        );
    }

    #[test]
    fn what_need_not_change_stays_to_the_byte() {
        let whole = index(&two());
        let made = compose(std::slice::from_ref(&whole), &[], &[], Single::Index).unwrap();
        assert_eq!((&made.descriptor, &made.bytes), (&whole.descriptor, &whole.bytes));
        let [a, _] = two();
        let made = compose(std::slice::from_ref(&a), &[], &[], Single::Copy).unwrap();
        assert_eq!((made.bytes.as_slice(), made.entries.len()), (&b"a"[..], 0));
        check(&compose(&[a], &[], &[], Single::Index).unwrap(), "linux/amd64");
    }

    #[test]
    fn only_docker_parts_make_a_docker_list() {
        let docker = manifest("d", "linux/amd64", MediaType::DockerManifest);
        let list = |parts: &[Part], notes: &[Annotation]| {
            compose(parts, notes, &[], Single::Index).unwrap().descriptor.media_type
        };
        assert_eq!(list(std::slice::from_ref(&docker), &[]), MediaType::DockerManifestList);
        assert_eq!(list(&[docker.clone(), two()[0].clone()], &[]), MediaType::OciIndex);
        assert_eq!(list(&[docker], &[note(AnnotationScope::Index, None)]), MediaType::OciIndex, "the other has none");
    }

    #[test]
    fn annotations_go_where_they_are_meant_to() {
        let notes = [note(AnnotationScope::ManifestDescriptor, Some("linux/arm64"))];
        check(&compose(&two(), &notes, &[], Single::Index).unwrap(), "linux/amd64, linux/arm64 k=v");
        for scope in [AnnotationScope::Manifest, AnnotationScope::IndexDescriptor] {
            assert!(compose(&two(), &[note(scope, None)], &[], Single::Index).is_err());
        }
    }

    #[test]
    fn platforms_are_chosen_with_what_is_attested_of_them() {
        let [a, b] = two();
        let mut attestation = manifest("c", "unknown/unknown", MediaType::OciManifest);
        let about = b.descriptor.digest.to_string();
        attestation.descriptor.annotations.insert("vnd.docker.reference.digest".to_owned(), about.into());
        let arm = ["linux/arm64".parse().unwrap()];
        let made = compose(&[a.clone(), b, attestation], &[], &arm, Single::Index).unwrap();
        assert_eq!(made.entries.len(), 2);
        let error = compose(&[a], &[], &arm, Single::Index).unwrap_err();
        assert_eq!(error.to_string(), "no source has an image for linux/arm64");
    }
}
