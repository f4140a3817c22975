//! Words with quotes: flags, `key=value` pairs, heredoc openings.

use super::line::Fragment;
use crate::{FrontendError, Pair, Problem, Token};

/// Takes the flags at the front of an instruction's arguments. Returns them, unquoted, and the rest.
///
/// Only leading words that begin with `--` are flags; a lone `--` ends them.
pub(super) fn take_flags<'a>(arguments: Fragment<'a>, escape: char) -> (Vec<Token>, Fragment<'a>) {
    let mut flags = Vec::new();
    let mut rest = arguments.trimmed();
    while rest.text().starts_with("--") {
        let end = word_end(rest.text(), escape);
        let word = rest.part(0..end);
        rest = rest.from(end).trimmed();
        match unquoted(word.text(), escape) {
            text if text == "--" => break,
            text => flags.push(word.token_as(text)),
        }
    }
    (flags, rest)
}

/// The words between blanks outside of quotes, quotes and escapes left as they are.
pub(super) fn quoted_words<'a>(arguments: Fragment<'a>, escape: char) -> Vec<Fragment<'a>> {
    let mut words = Vec::new();
    let mut rest = arguments.trimmed();
    while !rest.text().is_empty() {
        let end = word_end(rest.text(), escape);
        words.push(rest.part(0..end));
        rest = rest.from(end).trimmed();
    }
    words
}

/// Reads `key=value …` or the legacy `key rest of the line`.
pub(super) fn pairs(arguments: Fragment<'_>, keyword: &str, escape: char) -> Result<Vec<Pair>, FrontendError> {
    let words = quoted_words(arguments, escape);
    match words.first() {
        None => Ok(Vec::new()),
        Some(first) if !first.text().contains('=') => legacy_pair(arguments, keyword).map(|pair| vec![pair]),
        Some(_) => words.into_iter().map(pair).collect(),
    }
}

fn pair(word: Fragment<'_>) -> Result<Pair, FrontendError> {
    let Some(equals) = word.text().find('=') else {
        let reason = format!("Syntax error - can't find = in {:?}. Must be of the form: name=value", word.text());
        return Err(FrontendError::from(Problem::syntax(reason)).or_at(word.span()));
    };
    Ok(Pair { key: word.part(0..equals).token(), value: word.from(equals + 1).token(), legacy: false })
}

fn legacy_pair(arguments: Fragment<'_>, keyword: &str) -> Result<Pair, FrontendError> {
    let (key, value) = arguments.trimmed().split_word();
    match value.text().is_empty() {
        true => Err(Problem::syntax(format!("{} must have two arguments", keyword.to_uppercase())).into()),
        false => Ok(Pair { key: key.token(), value: value.token(), legacy: true }),
    }
}

/// Where the first word ends: at a blank that is neither quoted nor escaped.
fn word_end(text: &str, escape: char) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (_, c) if c == escape => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, c) if c.is_whitespace() => return at,
            _ => {}
        }
    }
    text.len()
}

/// A word without its quotes and escapes.
fn unquoted(word: &str, escape: char) -> String {
    let mut text = String::with_capacity(word.len());
    let mut quote = None;
    let mut escaped = false;
    for c in word.chars() {
        match (quote, c) {
            _ if escaped => {
                escaped = false;
                text.push(c);
            }
            (_, c) if c == escape => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            _ => text.push(c),
        }
    }
    text
}
