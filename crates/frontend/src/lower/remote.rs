//! ADD of what is neither in a context nor in a stage.

use super::stage::StageBuilder;
use crate::command::{Command, CopyCommand};
use crate::span::At;
use crate::{FrontendError, Problem};
use forge_image::Digest;
use forge_llb::{CopyAction, Edge, GitUrl, HttpSource, Metadata, Op, SourceOp, checked_git_checksum};

/// A source of ADD from elsewhere.
pub(super) enum Remote {
    /// A repository: its files.
    Git(SourceOp),
    /// A file of a web server, and its name.
    Http(SourceOp, String),
}

impl Remote {
    /// Reads a source; `None` where it is a path.
    ///
    /// # Errors
    /// It is an address that is refused, or one behind COPY, or does not go with the flags.
    pub fn read(copy: &CopyCommand, source: &str, checksum: &str) -> Result<Option<Self>, FrontendError> {
        let git = GitUrl::parse(source).map_err(|error| Problem::value(error.to_string()))?;
        match git {
            Some(_) if !copy.add => Err(Problem::value("source can't be a git ref for COPY").into()),
            Some(url) => Self::git(copy, &url, checksum).map(Some),
            None if !is_web_address(source) => Ok(None),
            None if !copy.add => Err(Problem::value("source can't be a URL for COPY").into()),
            None => Self::http(copy, source, checksum).map(Some),
        }
    }

    fn git(copy: &CopyCommand, url: &GitUrl, checksum: &str) -> Result<Self, FrontendError> {
        let mut source = url.source();
        if let Some(flag) = &copy.keep_git_dir {
            if url.keep_git_dir.is_some_and(|keep| keep != flag.value) {
                return Err(Problem::value("inconsistent keep-git-dir configuration")).at(flag.span);
            }
            source.keep_git_dir = flag.value;
        }
        if !checksum.is_empty() {
            let given = checked_git_checksum(checksum).map_err(|error| Problem::value(error.to_string())).at(copy
                .checksum
                .as_ref()
                .map(|flag| flag.span)
                .unwrap_or_default())?;
            if let Some(other) = url.checksum.as_ref().filter(|other| **other != given) {
                return Err(Problem::value(format!("checksum mismatch {given:?} != {other:?}")).into());
            }
            source.checksum = Some(given);
        }
        Ok(Self::Git(SourceOp::Git(source)))
    }

    fn http(copy: &CopyCommand, url: &str, checksum: &str) -> Result<Self, FrontendError> {
        let checksum = match checksum {
            "" => None,
            text => Some(
                text.parse::<Digest>()
                    .map_err(|_| Problem::value(format!("{} in {text:?}", refused_checksum(text))))
                    .at(copy.checksum.as_ref().map(|flag| flag.span).unwrap_or_default())?,
            ),
        };
        let name = file_name(url);
        let source = HttpSource { checksum, filename: Some(name.clone()), ..HttpSource::new(url) };
        Ok(Self::Http(SourceOp::Http(source), name))
    }

    /// The source itself.
    pub fn source(&self) -> &SourceOp {
        match self {
            Self::Git(source) | Self::Http(source, _) => source,
        }
    }

    /// The action that copies it. Downloads are unpacked only where that is asked for.
    pub fn action(&self, template: &CopyAction, unpack: Option<bool>) -> CopyAction {
        let (path, unpack_archives) = match self {
            Self::Git(_) => ("/".to_owned(), false),
            Self::Http(_, name) => (format!("/{name}"), unpack == Some(true)),
        };
        CopyAction { sources: vec![path], allow_wildcard: false, unpack_archives, ..template.clone() }
    }
}

impl StageBuilder<'_, '_> {
    /// Adds the vertex of a source from elsewhere.
    pub(super) fn remote_edge(
        &mut self,
        command: &Command,
        remote: &Remote,
        name: &str,
    ) -> Result<Edge, FrontendError> {
        let span = Some(self.lowering.span(command.span));
        let metadata = Metadata { name: name.to_owned(), span, ..Metadata::default() };
        self.lowering.add(Op::Source(remote.source().clone()), Vec::new(), None, metadata)
    }
}

/// Whether a checksum can be asked for.
pub(super) fn check_checksum(sources: usize, any_remote: bool) -> Result<(), Problem> {
    match (sources, any_remote) {
        (1, true) => Ok(()),
        (1, false) => Err(Problem::value("checksum requires HTTP(S) or Git sources")),
        _ => Err(Problem::value("checksum can't be specified for multiple sources")),
    }
}

fn is_web_address(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// The last part of an address' path, as a file may be called; docker's `__unnamed__` where there is none.
fn file_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, path)| path);
    let decoded = percent_decoded(path).unwrap_or_default();
    let name = decoded.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    match name {
        "" | "." | ".." => "__unnamed__".to_owned(),
        name if name.contains('\0') => "__unnamed__".to_owned(),
        name => name.to_owned(),
    }
}

/// A path without its `%xx`; `None` where one of them is none, or they are not UTF-8.
fn percent_decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes().iter();
    while let Some(&byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Why a text is no checksum, in the words of the library that BuildKit reads them with.
fn refused_checksum(text: &str) -> &'static str {
    let is_word = |word: &str| {
        !word.is_empty() && word.chars().all(|letter| letter.is_ascii_alphanumeric() || "=_-+.".contains(letter))
    };
    match text.split_once(':') {
        Some(("sha256", digits)) if is_word(digits) && digits.len() != 64 => "invalid checksum digest length",
        Some(("sha512", digits)) if is_word(digits) && digits.len() != 128 => "invalid checksum digest length",
        Some(("sha256" | "sha512", _)) => "invalid checksum digest format",
        Some((algorithm, digits)) if is_word(algorithm) && is_word(digits) => "unsupported digest algorithm",
        _ => "invalid checksum digest format",
    }
}

#[cfg(test)]
mod tests {
    use super::{file_name, refused_checksum};

    #[test]
    fn checksums_are_refused_in_known_words() {
        assert_eq!(refused_checksum("abc"), "invalid checksum digest format");
        assert_eq!(refused_checksum("sha256:"), "invalid checksum digest format");
        assert_eq!(refused_checksum(&format!("sha256:{}", "x".repeat(64))), "invalid checksum digest format");
        assert_eq!(refused_checksum("sha256:abc"), "invalid checksum digest length");
        assert_eq!(refused_checksum("md5:7e55db001d319a94b0b713529a756623"), "unsupported digest algorithm");
    }

    #[test]
    fn files_are_called_as_their_addresses_end() {
        let check = |url: &str, expect: &str| assert_eq!(file_name(url), expect, "{url}");
        check("https://example.com/a/b.tar.gz?x=/y#z", "b.tar.gz");
        check("https://example.com/a%20b", "a b");
        check("https://example.com/a%2Fb/", "b");
        check("http://example.com", "__unnamed__");
        check("http://example.com/", "__unnamed__");
        check("http://example.com/a/..", "__unnamed__");
        check("http://example.com/%zz", "__unnamed__");
        check("http://example.com/%00", "__unnamed__");
    }
}
