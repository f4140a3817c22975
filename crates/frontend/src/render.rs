use crate::{FrontendError, Span};
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// Lines shown of an instruction that is longer; its first one says most.
const MAX_LINES: usize = 12;

impl FrontendError {
    /// The error as users see it: the message, then the lines it is about with the place marked. The first line
    /// is the error's plain text. `source` is the Dockerfile's text.
    pub fn render(&self, source: &str) -> String {
        let excerpt = self.span.and_then(|span| Excerpt::new(source, span));
        let Some(excerpt) = excerpt else { return format!("{self}\n") };
        let label = match &self.suggestion {
            Some(suggestion) => format!("did you mean {suggestion}?"),
            None => String::new(),
        };
        let annotation = AnnotationKind::Primary.span(excerpt.marked.clone()).label(label);
        let snippet = Snippet::source(excerpt.text).line_start(excerpt.first_line).path(&self.file);
        let group =
            Group::with_title(Level::ERROR.no_name().primary_title("x")).element(snippet.annotation(annotation));
        let drawn = Renderer::plain().render(&[group]).to_string();
        let picture = drawn.split_once('\n').map_or("", |(_, picture)| picture);
        format!("{self}\n{picture}\n")
    }

    /// The first line that is to blame.
    pub fn line(&self) -> Option<u32> {
        self.span.map(|span| span.first_line)
    }
}

/// The whole lines around a stretch of text.
struct Excerpt<'a> {
    text: &'a str,
    first_line: usize,
    marked: std::ops::Range<usize>,
}

impl<'a> Excerpt<'a> {
    /// `None` where the source has no such lines. All of them are marked where offsets may not fit: a source that
    /// was not UTF-8 has replacements in it, which are longer than what they replace.
    fn new(source: &'a str, span: Span) -> Option<Self> {
        let from = line_start(source, span.first_line)?;
        let count = (span.last_line - span.first_line) as usize + 1;
        let lines = source[from..].split_inclusive('\n');
        let text = &source[from..from + lines.take(count.min(MAX_LINES)).map(str::len).sum::<usize>()];
        let text = text.strip_suffix('\n').unwrap_or(text);
        let exact = !source[..from + text.len()].contains('\u{fffd}');
        let start = (span.start as usize).checked_sub(from).filter(|start| exact && *start <= text.len());
        let end = (span.end as usize).saturating_sub(from).min(text.len());
        let marked = start.map(|start| start..end).filter(|marked| text.get(marked.clone()).is_some());
        let first_line = span.first_line as usize;
        Some(Self { text, first_line, marked: marked.unwrap_or(0..text.len()) })
    }
}

/// The offset at which a line begins.
fn line_start(source: &str, line: u32) -> Option<usize> {
    match line {
        0 => None,
        1 => Some(0),
        line => source.match_indices('\n').nth(line as usize - 2).map(|(newline, _)| newline + 1),
    }
}

#[cfg(test)]
mod tests {
    use crate::parse;

    #[test]
    fn long_instructions_and_other_encodings_are_shown() {
        let check = |source: &[u8], expect: &str| {
            let shown = String::from_utf8_lossy(source);
            assert_eq!(parse("d", source).unwrap_err().render(&shown), expect);
        };
        let message = "dockerfile parse error on line 2: Syntax error - can't find = in \"é\". \
                       Must be of the form: name=value\n --> d:2:1\n  |\n";
        check(b"# \xe9\xff\nENV a=b \xc3\xa9\n", &format!("{message}2 | ENV a=b é\n  | ^^^^^^^^^\n"));
        let many = format!("FROM x\nCMD [1,\\\n{}2]", "3,\\\n".repeat(30));
        let error = parse("d", many.as_bytes()).unwrap_err();
        assert!(error.render(&many).lines().count() < 20);
        assert_eq!(error.render("FROM x"), format!("{error}\n"));
    }
}
