use crate::FrontendError;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// Lines shown of an instruction that is longer; its first one says most.
const MAX_LINES: usize = 12;

impl FrontendError {
    /// The error as users see it: the message, then the lines it is about with the place marked. The first line
    /// is the error's plain text. `source` is the Dockerfile's text.
    pub fn render(&self, source: &str) -> String {
        let excerpt = self.span.and_then(|span| Excerpt::new(source, span.start as usize, span.end as usize));
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
    fn new(source: &'a str, start: usize, end: usize) -> Option<Self> {
        let end = end.min(source.len());
        source.get(start..end)?;
        let from = source[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let to = source[end..].find('\n').map_or(source.len(), |newline| end + newline);
        let text: &str = &source[from..to];
        let shown = text.split_inclusive('\n').take(MAX_LINES).map(str::len).sum::<usize>();
        let first_line = source[..from].bytes().filter(|byte| *byte == b'\n').count() + 1;
        let marked = start - from..(end - from).min(shown).max(start - from);
        Some(Self { text: &text[..shown.max(start - from)], first_line, marked })
    }
}
