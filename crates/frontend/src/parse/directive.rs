//! Parser directives: `# key=value` comments before anything else in the file.

use super::line::{Lines, PhysicalLine};
use crate::{Directive, FrontendError, Problem, Span, Token};

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Where the text begins: behind a byte order mark.
pub(super) fn text_start(source: &[u8]) -> usize {
    if source.starts_with(BOM) { BOM.len() } else { 0 }
}

/// Reads the directives. A `#!` line before them is passed over.
pub(super) fn read(source: &[u8]) -> Result<Vec<Directive>, FrontendError> {
    let mut lines = Lines::new(source, text_start(source));
    let mut directives: Vec<Directive> = Vec::new();
    while let Some(line) = lines.next_line()? {
        if line.number == 1 && line.content().starts_with(b"#!") {
            continue;
        }
        let Some(directive) = directive(&line) else { break };
        if directives.iter().any(|known| known.key.text == directive.key.text) {
            let reason = format!("only one {} parser directive can be used", directive.key.text);
            return Err(refused(reason, directive.key.span));
        }
        directives.push(directive);
    }
    Ok(directives)
}

fn directive(line: &PhysicalLine<'_>) -> Option<Directive> {
    let text = std::str::from_utf8(line.content()).ok()?;
    let comment = text.trim_start().strip_prefix('#')?;
    let (key, value) = comment.split_once('=')?;
    let (key, value) = (key.trim(), value.trim());
    let known = ["syntax", "escape", "check"].contains(&key.to_ascii_lowercase().as_str());
    let token = |text: &str, part: &str| {
        let start = line.start as u32 + (part.as_ptr() as usize - text.as_ptr() as usize) as u32;
        Span { start, end: start + part.len() as u32, first_line: line.number, last_line: line.number }
    };
    (known && !value.is_empty()).then(|| Directive {
        key: Token { text: key.to_ascii_lowercase(), span: token(text, key) },
        value: Token { text: value.to_owned(), span: token(text, value) },
    })
}

/// The escape character that the directives ask for.
pub(super) fn escape(directives: &[Directive]) -> Result<char, FrontendError> {
    let Some(directive) = directives.iter().find(|directive| directive.key.text == "escape") else { return Ok('\\') };
    match directive.value.text.as_str() {
        "\\" => Ok('\\'),
        "`" => Ok('`'),
        other => Err(refused(format!("invalid escape token '{other}' does not match ` or \\"), directive.value.span)),
    }
}

/// Refuses a syntax that is not this one. What `docker/dockerfile` images do, forge does itself.
pub(super) fn check_syntax(source: &[u8], directives: &[Directive]) -> Result<(), FrontendError> {
    match directives.iter().find(|directive| directive.key.text == "syntax") {
        Some(directive) => check_frontend(&directive.value.text).map_err(|error| error.or_at(directive.value.span)),
        None => match slash_directive(source)? {
            Some(value) => check_frontend(&value.text).map_err(|error| error.or_at(value.span)),
            None => Ok(()),
        },
    }
}

/// Files in other languages name their front end with `// syntax=image`.
fn slash_directive(source: &[u8]) -> Result<Option<Token>, FrontendError> {
    let Some(line) = Lines::new(source, text_start(source)).next_line()? else { return Ok(None) };
    let value = std::str::from_utf8(line.content()).ok().and_then(|text| {
        let (key, value) = text.strip_prefix("//")?.split_once('=')?;
        key.trim().eq_ignore_ascii_case("syntax").then(|| value.trim().to_owned())
    });
    Ok(value.map(|text| Token { text, span: line.span() }))
}

/// Refuses a front end image that forge does not stand in for.
///
/// # Errors
/// It is not `docker/dockerfile` of whatever version.
pub(crate) fn check_frontend(value: &str) -> Result<(), FrontendError> {
    let image = value.split_whitespace().next().unwrap_or_default();
    let name = image.strip_prefix("docker.io/").unwrap_or(image);
    let name = name.split('@').next().unwrap_or_default();
    match name.split(':').next() {
        Some("docker/dockerfile" | "docker/dockerfile-upstream" | "dockerfile.v0") => Ok(()),
        _ => Err(Problem::NotBuilt { what: format!("the front end image {image:?} (syntax directive)") }.into()),
    }
}

fn refused(reason: String, span: Span) -> FrontendError {
    FrontendError::from(Problem::Directive { reason }).or_at(span)
}
