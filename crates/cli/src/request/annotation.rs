//! Annotations as buildx takes them: `--annotation SCOPE[PLATFORM],…:KEY=VALUE`, and keys of `--output`
//! (`annotation-SCOPE[PLATFORM].KEY=VALUE`).

use super::platform;
use anyhow::{Context, bail};
use forge_engine::{Annotation, AnnotationScope};

/// Reads one `--annotation`. Without a scope it is the manifest's.
///
/// # Errors
/// A scope that there is none of, or no `=`.
pub fn annotations(text: &str) -> anyhow::Result<Vec<Annotation>> {
    let (place, value) = text
        .split_once('=')
        .filter(|(place, _)| !place.is_empty())
        .with_context(|| format!("invalid annotation {text:?}, expected key=value"))?;
    let (scopes, key) = match place.split_once(':') {
        Some((scopes, key)) => (scopes, key),
        None => ("manifest", place),
    };
    scopes.split(',').map(|place| annotation(place, key, value)).collect()
}

/// Reads a key of `--output` that stands for an annotation; `None` if it does not.
///
/// # Errors
/// A scope that there is none of, or no key.
pub(super) fn output_annotation(key: &str, value: &str) -> Option<anyhow::Result<Annotation>> {
    let rest = key.strip_prefix("annotation")?;
    let rest = match rest.strip_prefix('-') {
        Some(rest) => rest.to_owned(),
        None if rest.starts_with(['.', '[']) => format!("manifest{rest}"),
        None => return None,
    };
    // A platform may hold dots, a scope none: the key begins behind the brackets.
    let from = rest.find(']').unwrap_or(0);
    let Some(dot) = rest[from..].find('.').map(|at| from + at) else {
        return Some(Err(anyhow::anyhow!("--output {key}: an annotation needs a key")));
    };
    Some(annotation(&rest[..dot], &rest[dot + 1..], value))
}

fn annotation(place: &str, key: &str, value: &str) -> anyhow::Result<Annotation> {
    let (scope, wanted) = match place.split_once('[') {
        Some((scope, rest)) => {
            let wanted = rest.strip_suffix(']').with_context(|| format!("invalid annotation platform {place:?}"))?;
            (scope, Some(platform(wanted)?))
        }
        None => (place, None),
    };
    let scope = match scope {
        "manifest" => AnnotationScope::Manifest,
        "manifest-descriptor" => AnnotationScope::ManifestDescriptor,
        "index" => AnnotationScope::Index,
        "index-descriptor" => AnnotationScope::IndexDescriptor,
        other => bail!("unknown annotation type {other:?}"),
    };
    if wanted.is_some() && matches!(scope, AnnotationScope::Index | AnnotationScope::IndexDescriptor) {
        bail!("invalid annotation {place:?}: an index is for all platforms");
    }
    if key.is_empty() || key.chars().any(char::is_whitespace) {
        bail!("invalid annotation key {key:?}");
    }
    Ok(Annotation { scope, platform: wanted, key: key.to_owned(), value: value.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(found: &[Annotation]) -> String {
        let one = |it: &Annotation| {
            let platform = it.platform.as_ref().map(|platform| format!("[{platform}]")).unwrap_or_default();
            format!("{:?}{platform} {}={}", it.scope, it.key, it.value)
        };
        found.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn of_the_command_line() {
        let check = |text: &str, expect: &str| match annotations(text) {
            Ok(found) => assert_eq!(shown(&found), expect, "{text}"),
            Err(error) => assert_eq!(error.to_string(), expect, "{text}"),
        };
        check("a.b=c=d", "Manifest a.b=c=d");
        check("a=", "Manifest a=");
        check("index,manifest:a=b", "Index a=b; Manifest a=b");
        check("manifest-descriptor[linux/arm64]:a=b:c", "ManifestDescriptor[linux/arm64] a=b:c");
        check("index-descriptor:a=b", "IndexDescriptor a=b");
        check("other:a=b", "unknown annotation type \"other\"");
        check("index[linux/arm64]:a=b", "invalid annotation \"index[linux/arm64]\": an index is for all platforms");
        check("a", "invalid annotation \"a\", expected key=value");
        check("=a", "invalid annotation \"=a\", expected key=value");
        check("a b=c", "invalid annotation key \"a b\"");
        check("manifest[linux/arm64:a=b", "invalid annotation platform \"manifest[linux/arm64\"");
    }

    #[test]
    fn of_an_output() {
        let check = |key: &str, expect: &str| match output_annotation(key, "v") {
            Some(Ok(found)) => assert_eq!(shown(&[found]), expect, "{key}"),
            Some(Err(error)) => assert_eq!(error.to_string(), expect, "{key}"),
            None => assert_eq!("none", expect, "{key}"),
        };
        check("annotation.org.x", "Manifest org.x=v");
        check("annotation[linux/amd64].org.x", "Manifest[linux/amd64] org.x=v");
        check("annotation-index.A.b", "Index A.b=v");
        check("annotation-manifest-descriptor[linux/arm/v7].a", "ManifestDescriptor[linux/arm/v7] a=v");
        check("annotation-index", "--output annotation-index: an annotation needs a key");
        check("annotation-x.a", "unknown annotation type \"x\"");
        check("annotations.a", "none");
        check("name", "none");
    }
}
