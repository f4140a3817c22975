//! Heredocs: `<<EOF`, `3<<-"EOF"` and the lines up to the word that ends them.

use super::line::{Fragment, Lines};
use crate::{FrontendError, Heredoc, Problem, Span, Token};

/// What opens a heredoc.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    pub name: String,
    pub descriptor: u32,
    pub expand: bool,
    pub strip_tabs: bool,
}

/// Reads a word as the opening of a heredoc. Heredocs always escape with `\`, as a shell does.
pub(crate) fn opening(word: &str) -> Option<Opening> {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    let rest = word[digits..].strip_prefix("<<")?;
    let (strip_tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start();
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let name = delimiter(rest)?;
    let expand = !rest.contains(['\'', '"']);
    Some(Opening { name, descriptor: word[..digits].parse().unwrap_or(0), expand, strip_tabs })
}

/// The delimiter without quotes and escapes; `None` where quotes do not close or it is not one word.
fn delimiter(word: &str) -> Option<String> {
    let mut name = String::new();
    let mut chars = word.chars();
    let mut quote = None;
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '\\') => name.extend(chars.next()),
            (None, c) if c.is_whitespace() => return None,
            (_, c) => name.push(c),
        }
    }
    (quote.is_none() && !name.is_empty()).then_some(name)
}

/// Whether a line's quotes close, so that its words are what they seem.
fn balanced(text: &str) -> bool {
    let mut quote = None;
    let mut escaped = false;
    for c in text.chars() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (Some('\''), _) => {}
            (_, '\\') => escaped = true,
            (None, '\'' | '"') => quote = Some(c),
            _ => {}
        }
    }
    quote.is_none()
}

/// The words of an instruction that open heredocs.
pub(super) fn openings(line: Fragment<'_>) -> Vec<(Opening, Token)> {
    if !line.text().contains("<<") || !balanced(line.text()) {
        return Vec::new();
    }
    let words = shell_words(line);
    words.into_iter().filter_map(|word| Some((opening(word.text())?, word.token()))).collect()
}

/// Words as a shell splits them: nothing is escaped between single quotes.
fn shell_words(line: Fragment<'_>) -> Vec<Fragment<'_>> {
    let mut words = Vec::new();
    let (mut start, mut quote, mut escaped) = (None, None, false);
    for (at, c) in line.text().char_indices() {
        let blank = c.is_whitespace() && quote.is_none() && !escaped;
        match (start, blank) {
            (None, false) => start = Some(at),
            (Some(first), true) => {
                words.push(line.part(first..at));
                start = None;
            }
            _ => {}
        }
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(open), c) if c == open => quote = None,
            (Some('\''), _) => {}
            (_, '\\') => escaped = true,
            (None, '\'' | '"') => quote = Some(c),
            _ => {}
        }
    }
    words.extend(start.map(|first| line.from(first)));
    words
}

/// Reads the body of a heredoc. Returns it and the span of the line that ends it.
pub(super) fn read_body(
    opening: Opening,
    token: Token,
    lines: &mut Lines<'_>,
) -> Result<(Heredoc, Span), FrontendError> {
    let Opening { name, descriptor, expand, strip_tabs } = opening;
    let mut bytes = Vec::new();
    let mut place: Option<Span> = None;
    while let Some(line) = lines.next_line()? {
        if ends(line.content(), &name, strip_tabs) {
            let span = place.unwrap_or(Span { end: line.span().start, ..line.span() });
            let text = String::from_utf8(bytes).map_err(|_| not_utf8(span))?;
            let body = Token { text, span };
            return Ok((Heredoc { name, descriptor, expand, strip_tabs, opening: token, body }, line.span()));
        }
        bytes.extend_from_slice(line.bytes);
        place = Some(place.unwrap_or(line.span()).to(line.span()));
    }
    Err(FrontendError::from(Problem::syntax("unterminated heredoc")).or_at(token.span))
}

fn not_utf8(span: Span) -> FrontendError {
    FrontendError::from(Problem::NotUtf8 { what: "the heredoc" }).or_at(span)
}

fn ends(line: &[u8], name: &str, strip_tabs: bool) -> bool {
    let tabs = if strip_tabs { line.iter().take_while(|byte| **byte == b'\t').count() } else { 0 };
    &line[tabs..] == name.as_bytes()
}

impl Heredoc {
    /// The text that the heredoc stands for: its body, without leading tabs where `<<-` asks for that.
    pub fn content(&self) -> String {
        match self.strip_tabs {
            false => self.body.text.clone(),
            true => self.body.text.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect(),
        }
    }
}
