use crate::{Digest, DigestError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The name of an image: `[registry/]repository[:tag][@digest]`, normalised as docker does.
///
/// `alpine` is `docker.io/library/alpine:latest`. The grammar is that of the `distribution/reference`
/// specification. A reference with a digest and no tag has no tag; one with neither has the tag `latest`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a string is not an image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The text does not follow the grammar.
    #[error("invalid reference format: {value:?}: {reason}")]
    Format {
        /// The rejected text, cut to 300 characters.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The part after `@` is not a digest.
    #[error("invalid reference format: bad digest")]
    Digest(#[from] DigestError),
}

const DOCKER_HUB: &str = "docker.io";

impl Reference {
    /// The registry's host name with an optional port; `docker.io` where none was written.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path within the registry, `library/alpine`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if there is one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference is pinned.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same repository with a digest instead of tag and digest.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The same repository with another tag and no digest.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        format!("{}/{}:{tag}", self.registry, self.repository).parse()
    }

    /// Registry and repository, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The name as docker prints it: without `docker.io/` and `library/`, without tag and digest.
    pub fn familiar_name(&self) -> String {
        if self.registry != DOCKER_HUB {
            return self.name();
        }
        self.repository.strip_prefix("library/").unwrap_or(&self.repository).to_owned()
    }

    /// The whole reference as docker prints it.
    pub fn familiar(&self) -> String {
        self.suffixed(self.familiar_name())
    }

    fn suffixed(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text = format!("{text}:{tag}");
        }
        match &self.digest {
            Some(digest) => format!("{text}@{digest}"),
            None => text,
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(value: &str) -> Result<Self, ReferenceError> {
        let error = |reason| ReferenceError::Format { value: value.chars().take(300).collect(), reason };
        let (rest, digest) = match value.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (value, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !valid_tag(tag)) {
            return Err(error("a tag is a letter, digit or '_', then up to 127 of those, '.' and '-'"));
        }
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" || host.starts_with('[') => {
                (host, path.to_owned())
            }
            Some(_) => (DOCKER_HUB, name.to_owned()),
            None if digest.is_none() && tag.is_none() && is_image_id(name) => {
                return Err(error("64 hexadecimal digits are an image ID, not a name"));
            }
            None => (DOCKER_HUB, format!("library/{name}")),
        };
        let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
        let repository = match path.split_once('/') {
            None if registry == DOCKER_HUB => format!("library/{path}"),
            _ => path,
        };
        if !valid_registry(registry) {
            return Err(error("the part before the first '/' is not a host name with an optional port"));
        }
        if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(error("repository name must be lowercase"));
        }
        if !repository.split('/').all(valid_component) || registry.len() + repository.len() > 255 {
            return Err(error(
                "a name is made of lower-case letters and digits, joined by '.', '_', '__', '-' and '/'",
            ));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

fn is_image_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn valid_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    bytes.next().is_some_and(word) && tag.len() <= 128 && bytes.all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

fn valid_registry(registry: &str) -> bool {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    };
    let port_ok = port.is_none_or(|port| !port.is_empty() && port.parse::<u16>().is_ok());
    port_ok && (valid_ipv6(host) || host.split('.').all(valid_label))
}

fn valid_ipv6(host: &str) -> bool {
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
}

fn valid_label(label: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    edge(label.bytes().next())
        && edge(label.bytes().last())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn valid_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut separator = String::new();
    let mut seen_word = false;
    for byte in component.bytes() {
        if alphanumeric(byte) {
            let joined = matches!(separator.as_str(), "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-');
            if !joined || (!seen_word && !separator.is_empty()) {
                return false;
            }
            separator.clear();
            seen_word = true;
        } else if matches!(byte, b'.' | b'_' | b'-') {
            separator.push(char::from(byte));
        } else {
            return false;
        }
    }
    seen_word && separator.is_empty()
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;
    fn try_from(value: String) -> Result<Self, ReferenceError> {
        value.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> String {
        reference.to_string()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.suffixed(self.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_as_docker_does() {
        let check = |text: &str, full: &str, familiar: &str| {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((reference.to_string().as_str(), reference.familiar().as_str()), (full, familiar));
        };
        check("alpine", "docker.io/library/alpine:latest", "alpine:latest");
        check("docker.io/alpine:3", "docker.io/library/alpine:3", "alpine:3");
        check("index.docker.io/a/b", "docker.io/a/b:latest", "a/b:latest");
        check("localhost/x", "localhost/x:latest", "localhost/x:latest");
        check("127.0.0.1:5000/a/b:t", "127.0.0.1:5000/a/b:t", "127.0.0.1:5000/a/b:t");
        check("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest");
        check("a__b/c-d--e.f", "docker.io/a__b/c-d--e.f:latest", "a__b/c-d--e.f:latest");
        let digest = Digest::sha256(b"");
        check(&format!("r.io/a@{digest}"), &format!("r.io/a@{digest}"), &format!("r.io/a@{digest}"));
    }

    #[test]
    fn bad_names_are_refused() {
        let long = "a".repeat(300);
        let tag = format!("a:{}", "b".repeat(129));
        let id = "0".repeat(64);
        for bad in [
            "",
            ":",
            "a:",
            "A",
            "a//b",
            "-a",
            "a-",
            "a___b",
            "a/../b",
            "a b",
            "a@sha256:1",
            "r.io:x/a",
            "a:b c",
            "/a",
            "é",
            &long,
            &tag,
            &id,
            "r.io:99999/a",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }
}
