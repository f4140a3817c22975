//! The exec form: a JSON array of strings.

use super::line::Fragment;
use crate::{FrontendError, Problem, Token};
use serde_json::Value;

/// Strings of an array need no blank between them, and cost more than they take to write (A113).
const MAX_QUOTES: usize = 200_000;

/// Reads a JSON array of strings; `None` where the text is no JSON array, which makes it the shell form.
///
/// # Errors
/// It is a JSON array, but not of strings only.
pub(super) fn string_array(text: Fragment<'_>) -> Result<Option<Vec<Token>>, FrontendError> {
    let text = text.trimmed();
    if !text.text().starts_with('[') {
        return Ok(None);
    }
    if text.text().bytes().filter(|byte| *byte == b'"').count() > MAX_QUOTES {
        let problem = Problem::TooLarge { what: "the number of strings in an array", limit: "100,000" };
        return Err(FrontendError::from(problem).or_at(text.span()));
    }
    let Ok(values) = serde_json::from_str::<Vec<Value>>(text.text()) else { return Ok(None) };
    let mut ranges = string_ranges(text.text()).into_iter();
    let tokens = values.into_iter().map(|value| match (value, ranges.next()) {
        (Value::String(string), Some((start, end))) => Ok(text.part(start..end).token_as(string)),
        _ => {
            let reason = "when using JSON array syntax, arrays must be comprised of strings only";
            Err(FrontendError::from(Problem::syntax(reason)).or_at(text.span()))
        }
    });
    tokens.collect::<Result<_, _>>().map(Some)
}

/// Where the strings of a valid JSON text stand, quotes included.
fn string_ranges(text: &str) -> Vec<(usize, usize)> {
    let mut ranges = Vec::new();
    let mut open = None;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match (open, byte) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(start), b'"') => {
                ranges.push((start, at + 1));
                open = None;
            }
            (None, b'"') => open = Some(at),
            _ => {}
        }
    }
    ranges
}
