//! Physical lines, and the logical lines that continuations make of them. A logical line knows for each of its
//! bytes where that stands in the file.

use crate::{Problem, Span, Token};
use std::ops::Range;

/// No one writes longer lines; generated files that do are mistakes or attacks (A113).
const MAX_LINE: usize = 1 << 20;

/// A line of the file.
#[derive(Clone, Copy)]
pub(super) struct PhysicalLine<'a> {
    /// The bytes, with the line's end.
    pub bytes: &'a [u8],
    /// The offset of the first byte.
    pub start: usize,
    /// Its number, from 1.
    pub number: u32,
}

impl<'a> PhysicalLine<'a> {
    /// The bytes without the line's end, be it LF or CRLF.
    pub fn content(&self) -> &'a [u8] {
        let end = self.bytes.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
        &self.bytes[..end]
    }

    /// The line's place, without its end.
    pub fn span(&self) -> Span {
        let end = (self.start + self.content().len()) as u32;
        Span { start: self.start as u32, end, first_line: self.number, last_line: self.number }
    }
}

/// Walks over the lines of a file.
pub(super) struct Lines<'a> {
    source: &'a [u8],
    offset: usize,
    number: u32,
}

impl<'a> Lines<'a> {
    /// The lines from an offset on.
    pub fn new(source: &'a [u8], offset: usize) -> Self {
        Self { source, offset, number: 0 }
    }

    /// The next line.
    pub fn next_line(&mut self) -> Result<Option<PhysicalLine<'a>>, crate::FrontendError> {
        let rest = &self.source[self.offset..];
        if rest.is_empty() {
            return Ok(None);
        }
        let length = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |newline| newline + 1);
        self.number += 1;
        let line = PhysicalLine { bytes: &rest[..length], start: self.offset, number: self.number };
        self.offset += length;
        match length > MAX_LINE {
            true => {
                let problem = Problem::TooLarge { what: "a line of the Dockerfile", limit: "1 MiB" };
                Err(crate::FrontendError::from(problem).or_at(line.span()))
            }
            false => Ok(Some(line)),
        }
    }
}

/// Bytes of a logical line that stand together in the file.
struct Segment {
    logical: u32,
    source: u32,
    line: u32,
}

/// A line after continuations are joined.
#[derive(Default)]
pub(super) struct LogicalLine {
    pub text: String,
    segments: Vec<Segment>,
}

impl LogicalLine {
    /// Adds bytes that stand at an offset in a line of the file.
    pub fn push(&mut self, text: &str, source: usize, line: u32) {
        // A line that adds nothing but the first needs no place.
        if text.is_empty() && !self.segments.is_empty() {
            return;
        }
        self.segments.push(Segment { logical: self.text.len() as u32, source: source as u32, line });
        self.text.push_str(text);
    }

    /// Where a range of the line stands in the file.
    pub fn span(&self, range: Range<usize>) -> Span {
        let (start, first_line) = self.locate(range.start);
        match range.is_empty() {
            true => Span { start, end: start, first_line, last_line: first_line },
            false => {
                let (last, last_line) = self.locate(range.end - 1);
                Span { start, end: last + 1, first_line, last_line }
            }
        }
    }

    fn locate(&self, at: usize) -> (u32, u32) {
        let index = self.segments.partition_point(|segment| segment.logical as usize <= at);
        match self.segments.get(index.saturating_sub(1)) {
            Some(segment) => (segment.source + (at as u32 - segment.logical), segment.line),
            None => (0, 0),
        }
    }

    /// All of it.
    pub fn fragment(&self) -> Fragment<'_> {
        Fragment { line: self, start: 0, end: self.text.len() }
    }
}

/// A part of a logical line.
#[derive(Clone, Copy)]
pub(super) struct Fragment<'a> {
    line: &'a LogicalLine,
    start: usize,
    end: usize,
}

impl<'a> Fragment<'a> {
    /// The text.
    pub fn text(&self) -> &'a str {
        &self.line.text[self.start..self.end]
    }

    /// Where it stands.
    pub fn span(&self) -> Span {
        self.line.span(self.start..self.end)
    }

    /// Text and place.
    pub fn token(&self) -> Token {
        self.token_as(self.text().to_owned())
    }

    /// The place with a text that was made from what stands there.
    pub fn token_as(&self, text: String) -> Token {
        Token { text, span: self.span() }
    }

    /// A part, by byte range within this one.
    pub fn part(&self, range: Range<usize>) -> Self {
        Self { line: self.line, start: self.start + range.start, end: self.start + range.end }
    }

    /// Everything from an offset on.
    pub fn from(&self, offset: usize) -> Self {
        self.part(offset..self.text().len())
    }

    /// Without blanks at both ends.
    pub fn trimmed(&self) -> Self {
        let text = self.text();
        let front = text.len() - text.trim_start().len();
        self.part(front..front.max(text.trim_end().len()))
    }

    /// The first word and what follows the blanks behind it.
    pub fn split_word(&self) -> (Self, Self) {
        let text = self.text();
        let end = text.find(is_blank).unwrap_or(text.len());
        let rest = text[end..].find(|c| !is_blank(c)).map_or(text.len(), |blanks| end + blanks);
        (self.part(0..end), self.from(rest))
    }

    /// The words between blanks.
    pub fn words(&self) -> Vec<Token> {
        let mut words = Vec::new();
        let mut rest = self.trimmed();
        while !rest.text().is_empty() {
            let (word, behind) = rest.split_word();
            words.push(word.token());
            rest = behind;
        }
        words
    }
}

/// What separates words of an instruction. Other white space of Unicode is part of a word.
pub(super) fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ')
}
