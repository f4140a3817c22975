use crate::FrontendError;

/// A stretch of the Dockerfile: bytes `start..end` of the file, and the lines (from 1) of both ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The offset of the first byte.
    pub start: u32,
    /// The offset behind the last byte.
    pub end: u32,
    /// The line of the first byte.
    pub first_line: u32,
    /// The line of the last byte.
    pub last_line: u32,
}

impl Span {
    /// The smallest span that holds both.
    pub fn to(self, other: Span) -> Span {
        Span {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
            first_line: self.first_line.min(other.first_line),
            last_line: self.last_line.max(other.last_line),
        }
    }

    /// The bytes in a source; empty where the span lies outside of it.
    pub fn slice<'a>(&self, source: &'a [u8]) -> &'a [u8] {
        source.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// A piece of text and where it stands. The text may differ from the source: continuations are joined, flags
/// lose their quotes, JSON strings their escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The text.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

/// Attaches a place to what may fail.
pub(crate) trait At<T> {
    /// Says where the failure lies, unless that is known already.
    fn at(self, span: Span) -> Result<T, FrontendError>;
}

impl<T, E: Into<FrontendError>> At<T> for Result<T, E> {
    fn at(self, span: Span) -> Result<T, FrontendError> {
        self.map_err(|error| error.into().or_at(span))
    }
}
