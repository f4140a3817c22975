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
    let asked = asked_syntax(source, directives)?;
    asked.map_or(Ok(()), |value| check_frontend(&value.text).map_err(|error| error.or_at(value.span)))
}

/// The front end that a file asks for, an image and what it is told, where [`parse`](super::parse) refuses it for that.
pub fn other_front_end(source: &[u8]) -> Option<String> {
    let asked = asked_syntax(source, &read(source).ok()?).ok()??;
    check_frontend(&asked.text).is_err().then_some(asked.text)
}

fn asked_syntax(source: &[u8], directives: &[Directive]) -> Result<Option<Token>, FrontendError> {
    let own = directives.iter().find(|directive| directive.key.text == "syntax").map(|own| own.value.clone());
    Ok(match own {
        Some(value) => Some(value),
        None => match slash_syntax(source)? {
            Some(value) => Some(value),
            None => json_syntax(source)?,
        },
    })
}

/// Files in other languages name their front end with `// syntax=image`, among directives of that form.
fn slash_syntax(source: &[u8]) -> Result<Option<Token>, FrontendError> {
    let mut lines = Lines::new(source, text_start(source));
    while let Some(line) = lines.next_line()? {
        let content = line.content();
        if line.number == 1 && content.starts_with(b"#!") {
            continue;
        }
        let comment = std::str::from_utf8(content).ok().and_then(|text| text.strip_prefix("//"));
        let Some((key, value)) = comment.and_then(|comment| comment.split_once('=')) else { return Ok(None) };
        match key.trim().to_ascii_lowercase().as_str() {
            "syntax" => return Ok(Some(Token { text: value.trim().to_owned(), span: line.span() })),
            "escape" | "check" => {}
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// Or they are JSON, with the front end in a field.
fn json_syntax(source: &[u8]) -> Result<Option<Token>, FrontendError> {
    #[derive(serde::Deserialize)]
    struct Document {
        syntax: String,
    }
    let mut lines = Lines::new(source, text_start(source));
    let Some(mut first) = lines.next_line()? else { return Ok(None) };
    if first.content().starts_with(b"#!") {
        let Some(second) = lines.next_line()? else { return Ok(None) };
        first = second;
    }
    let text = &source[first.start..];
    if text.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Ok(None);
    }
    let document = serde_json::from_slice::<Document>(text).ok();
    Ok(document.map(|document| Token { text: document.syntax, span: first.span() }))
}

/// Refuses a front end image that forge does not stand in for.
///
/// # Errors
/// It is not `docker/dockerfile` of whatever version.
pub(crate) fn check_frontend(value: &str) -> Result<(), FrontendError> {
    let image = value.split_whitespace().next().unwrap_or_default();
    let hosts = ["docker.io/", "index.docker.io/"];
    let name = hosts.iter().find_map(|host| image.strip_prefix(host)).unwrap_or(image);
    let name = name.split('@').next().unwrap_or_default();
    match name.split_once(':').unwrap_or((name, "latest")) {
        ("docker/dockerfile" | "docker/dockerfile-upstream", tag) if !tag.is_empty() => Ok(()),
        ("dockerfile.v0", _) => Ok(()),
        _ => Err(Problem::NotBuilt { what: format!("the front end image {image:?} (syntax directive)") }.into()),
    }
}

fn refused(reason: String, span: Span) -> FrontendError {
    FrontendError::from(Problem::Directive { reason }).or_at(span)
}
