use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What an image runs on: `os/architecture[/variant]`, normalised as containerd does
/// (`x86_64` is `amd64`, `aarch64` is `arm64`, `arm64/v8` is `arm64`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// The operating system, `linux`.
    pub os: String,
    /// The processor architecture in Go's spelling, `amd64`.
    pub architecture: String,
    /// The variant of the architecture, `v7`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub variant: Option<String>,
    /// The version of the operating system (Windows only).
    #[serde(rename = "os.version", skip_serializing_if = "Option::is_none", default)]
    pub os_version: Option<String>,
    /// Features of the operating system that the image needs.
    #[serde(rename = "os.features", skip_serializing_if = "Vec::is_empty", default)]
    pub os_features: Vec<String>,
}

/// Why a string is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct PlatformError {
    /// The rejected text.
    pub value: String,
}

impl fmt::Display for PlatformError {
    /// In the words that BuildKit's clients look for, where a part of it is to blame.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = &self.value;
        let is_word = |word: &&str| word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        match value.split('/').find(|word| word.is_empty() || !is_word(word)) {
            Some(word) => write!(
                f,
                "{word:?} is an invalid component of {value:?}: platform specifier component must match \
                 \"^[A-Za-z0-9_.-]+$\": invalid argument"
            ),
            None => write!(f, "invalid platform {value:?}: expected os/architecture[/variant]"),
        }
    }
}

impl Platform {
    /// A platform of two words, normalised.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let (architecture, variant) = normalise(&architecture.to_ascii_lowercase(), variant);
        Self { os, architecture, variant, os_version: None, os_features: Vec::new() }
    }

    /// The platform that forge itself runs on.
    pub fn host() -> Self {
        Self::new(std::env::consts::OS, std::env::consts::ARCH, None)
    }

    /// Whether something made for `other` runs where `self` is asked for: equal os and architecture, and
    /// equal variants where both name one; on Windows builds that fit.
    pub fn accepts(&self, other: &Platform) -> bool {
        let own = normalise(&self.architecture, self.variant.as_deref());
        let theirs = normalise(&other.architecture, other.variant.as_deref());
        self.os == other.os
            && own.0 == theirs.0
            && (own.1 == theirs.1 || own.1.is_none() || theirs.1.is_none())
            && self.accepts_version(other)
    }

    /// Whether something made for the system version of `other` may run where `self` is asked for: on Windows both must be of
    /// one build, the first three numbers, where both name one. Other systems' versions say nothing.
    pub fn accepts_version(&self, other: &Platform) -> bool {
        let build = |version: &str| version.splitn(4, '.').take(3).map(str::to_owned).collect::<Vec<_>>();
        match (self.os.as_str(), &self.os_version, &other.os_version) {
            ("windows", Some(own), Some(theirs)) => build(own) == build(theirs),
            _ => true,
        }
    }
}

fn normalise(architecture: &str, variant: Option<&str>) -> (String, Option<String>) {
    let variant = variant.filter(|v| !v.is_empty()).map(str::to_ascii_lowercase);
    let (architecture, variant) = match (architecture, variant.as_deref()) {
        ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
        ("x86_64" | "x86-64", _) => ("amd64", variant),
        ("i386" | "x86", _) => ("386", None),
        ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64", None),
        ("aarch64", _) => ("arm64", variant),
        ("armhf", _) => ("arm", Some("v7".to_owned())),
        ("armel", _) => ("arm", Some("v6".to_owned())),
        ("arm", None | Some("7")) => ("arm", Some("v7".to_owned())),
        ("arm", Some("5" | "6" | "8")) => ("arm", variant.map(|v| format!("v{v}"))),
        (other, _) => (other, variant),
    };
    (architecture.to_owned(), variant)
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(value: &str) -> Result<Self, PlatformError> {
        let error = || PlatformError { value: value.to_owned() };
        let word = |w: &&str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        let words: Vec<&str> = value.split('/').collect();
        if !words.iter().all(|w| word(w) && *w != "." && *w != "..") {
            return Err(error());
        }
        match words[..] {
            ["local"] => Ok(Self::host()),
            ["linux" | "windows" | "darwin" | "freebsd"] => Ok(Self::new(words[0], &Self::host().architecture, None)),
            [architecture] => Ok(Self::new("linux", architecture, None)),
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_normalised() {
        let check = |text: &str, expect: &str| assert_eq!(text.parse::<Platform>().unwrap().to_string(), expect);
        check("linux/x86_64", "linux/amd64");
        check("linux/arm64/v8", "linux/arm64");
        check("linux/arm", "linux/arm/v7");
        check("linux/arm/v6", "linux/arm/v6");
        check("arm64", "linux/arm64");
        let windows = |version: Option<&str>| Platform {
            os_version: version.map(str::to_owned),
            ..Platform::new("windows", "amd64", None)
        };
        assert!(windows(Some("10.0.17763.1")).accepts(&windows(Some("10.0.17763.2"))));
        assert!(!windows(Some("10.0.17763.1")).accepts(&windows(Some("10.0.20348.1"))));
        assert!(
            windows(Some("10.0.17763.1")).accepts(&windows(None)) && windows(None).accepts(&windows(Some("1.2.3")))
        );
        for bad in ["", "linux/", "linux/../x", "a/b/c/d", "linux/am d64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?}");
        }
    }
}
