//! Text to syntax tree. Lines first ([`mod@line`]), then words ([`words`], [`json`], [`heredoc`]).

mod directive;
mod heredoc;
mod json;
mod line;
mod words;

pub(crate) use directive::check_frontend;
pub use directive::other_front_end;

/// Whether a word opens a heredoc.
pub(crate) fn heredoc_opening(word: &str) -> bool {
    heredoc::opening(word).is_some()
}

use crate::checks::{Rule, Warning};
use crate::keyword::Keyword;
use crate::{Arguments, Dockerfile, FrontendError, Instruction, Problem, Span, Token, span::At};
use line::{Fragment, Lines, LogicalLine, PhysicalLine};

/// Far beyond what people write; what is larger is a mistake or an attack (A113).
const MAX_FILE: usize = 16 << 20;

/// Instructions of a file: each costs some hundred bytes until it is lowered, and a line of it seven.
const MAX_INSTRUCTIONS: usize = 80_000;

/// Words of all instructions, heredocs aside: each costs some fifty bytes, and may be one letter long.
const MAX_WORDS: usize = 500_000;

/// Comments that are kept for the instruction below them. Only the nearest say something of it.
const MAX_COMMENTS: usize = 1_000;

/// Reads a Dockerfile. `name` is what diagnostics call it.
///
/// The result says what is written, not whether it makes sense: flags, argument counts and names of
/// instructions are looked at by [`lower`](crate::lower()).
///
/// # Errors
/// The file is empty or too large (16 MiB, lines of 1 MiB), a directive is wrong, an instruction does not
/// follow the grammar, or the file asks for another front end.
pub fn parse(name: &str, text: &[u8]) -> Result<Dockerfile, FrontendError> {
    read_file(name, text).map_err(|error| FrontendError { file: name.to_owned(), ..error })
}

fn read_file(name: &str, source: &[u8]) -> Result<Dockerfile, FrontendError> {
    match source.len() {
        0 => return Err(Problem::EmptyFile.into()),
        length if length > MAX_FILE => {
            return Err(Problem::TooLarge { what: "the Dockerfile", limit: "16 MiB" }.into());
        }
        _ => {}
    }
    let directives = directive::read(source)?;
    directive::check_syntax(source, &directives)?;
    let mut reader = Reader {
        lines: Lines::new(source, directive::text_start(source)),
        escape: directive::escape(&directives)?,
        directive_lines: directives.last().map_or(0, |last| last.key.span.last_line),
        comments: Vec::new(),
        warnings: Vec::new(),
        words: 0,
    };
    let instructions = reader.read_instructions()?;
    let Reader { escape, warnings, .. } = reader;
    match instructions.is_empty() {
        true => Err(Problem::NoInstructions.into()),
        false => Ok(Dockerfile {
            name: name.to_owned(),
            source: source.to_vec(),
            directives,
            escape,
            instructions,
            warnings,
        }),
    }
}

struct Reader<'a> {
    lines: Lines<'a>,
    escape: char,
    /// The last line with a directive: up to it, comments describe nothing.
    directive_lines: u32,
    comments: Vec<Token>,
    warnings: Vec<Warning>,
    /// The words so far.
    words: usize,
}

impl Reader<'_> {
    fn read_instructions(&mut self) -> Result<Vec<Instruction>, FrontendError> {
        let mut instructions = Vec::new();
        while let Some(line) = self.lines.next_line()? {
            if is_comment(line.content()) {
                self.remember_comment(&line);
            } else if let Some((logical, last_line)) = self.read_logical_line(line)? {
                self.book(&logical, instructions.len()).at(line.span())?;
                instructions.push(self.read_instruction(&logical, line.number, last_line)?);
            }
        }
        Ok(instructions)
    }

    /// Refuses what costs far more to keep than it took to write (A113).
    fn book(&mut self, logical: &LogicalLine, instructions: usize) -> Result<(), Problem> {
        self.words += logical.text.split_ascii_whitespace().count();
        if instructions >= MAX_INSTRUCTIONS {
            return Err(Problem::TooLarge { what: "the number of instructions", limit: "80,000" });
        }
        if self.words > MAX_WORDS {
            return Err(Problem::TooLarge { what: "the number of words", limit: "500,000" });
        }
        Ok(())
    }

    fn remember_comment(&mut self, line: &PhysicalLine<'_>) {
        let text = String::from_utf8_lossy(line.content());
        let text = text.trim_start().trim_start_matches('#').trim();
        if text.is_empty() || line.number <= self.directive_lines {
            self.comments.clear();
        } else {
            if self.comments.len() == 2 * MAX_COMMENTS {
                self.comments.drain(..MAX_COMMENTS);
            }
            self.comments.push(Token { text: text.to_owned(), span: line.span() });
        }
    }

    /// Joins a line with those that continue it; `None` where it is blank. Also returns the last line's number.
    fn read_logical_line(&mut self, first: PhysicalLine<'_>) -> Result<Option<(LogicalLine, u32)>, FrontendError> {
        let mut logical = LogicalLine::default();
        let text = utf8(&first)?;
        let blanks = text.len() - text.trim_start().len();
        let (text, mut continued) = strip_continuation(&text[blanks..], self.escape);
        if text.is_empty() && !continued {
            return Ok(None);
        }
        logical.push(text, first.start + blanks, first.number);
        let mut last = first;
        let mut has_empty_line = false;
        while continued {
            let Some(line) = self.lines.next_line()? else { break };
            last = line;
            if is_comment(line.content()) {
                continue;
            }
            let text = utf8(&line)?;
            if text.trim_start().is_empty() {
                has_empty_line = true;
                continue;
            }
            let (text, more) = strip_continuation(text, self.escape);
            logical.push(text, line.start, line.number);
            continued = more;
        }
        // The line where the instruction ends, as docker tells it.
        self.warnings.extend(has_empty_line.then(|| Rule::NoEmptyContinuation.at(last.span(), &[])));
        Ok(Some((logical, last.number)))
    }

    fn read_instruction(
        &mut self,
        logical: &LogicalLine,
        first_line: u32,
        last_line: u32,
    ) -> Result<Instruction, FrontendError> {
        let fragment = logical.fragment();
        let mut span = fragment.trimmed().span();
        (span.first_line, span.last_line) = (first_line, last_line);
        let mut instruction = split_instruction(fragment, self.escape).at(span)?;
        instruction.comments = std::mem::take(&mut self.comments);
        instruction.span = span;
        self.read_heredocs(fragment, &mut instruction).at(span)?;
        Ok(instruction)
    }

    /// Reads the bodies of the heredocs that an instruction opens. Those of a trigger belong to the trigger.
    fn read_heredocs(&mut self, line: Fragment<'_>, instruction: &mut Instruction) -> Result<(), FrontendError> {
        let Some(owner) = heredoc_owner(instruction) else { return Ok(()) };
        let mut last = None;
        for (opening, token) in heredoc::openings(line) {
            let (heredoc, end) = heredoc::read_body(opening, token, &mut self.lines)?;
            owner.heredocs.push(heredoc);
            last = Some(end);
        }
        if let Some(end) = last {
            owner.span = owner.span.to(end);
            instruction.span = instruction.span.to(end);
        }
        Ok(())
    }
}

/// The instruction, or the trigger in it, that may have heredocs.
fn heredoc_owner(instruction: &mut Instruction) -> Option<&mut Instruction> {
    if !matches!(instruction.arguments, Arguments::Trigger(_)) {
        let takes_heredocs = matches!(instruction.kind(), Some(Keyword::Add | Keyword::Copy | Keyword::Run));
        return (takes_heredocs && !matches!(instruction.arguments, Arguments::Json(_))).then_some(instruction);
    }
    match &mut instruction.arguments {
        Arguments::Trigger(trigger) => heredoc_owner(trigger),
        _ => None,
    }
}

fn utf8<'a>(line: &PhysicalLine<'a>) -> Result<&'a str, FrontendError> {
    std::str::from_utf8(line.content())
        .map_err(|_| FrontendError::from(Problem::NotUtf8 { what: "the line" }).or_at(line.span()))
}

/// Blanks of any kind may stand before the `#`.
fn is_comment(line: &[u8]) -> bool {
    String::from_utf8_lossy(line).trim_start().starts_with('#')
}

/// Takes the escape character off the end of a line that goes on. Two of them are not one.
fn strip_continuation(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(text) if !text.ends_with(escape) => (text, true),
        _ => (line, false),
    }
}

/// Splits an instruction into keyword, flags and arguments.
fn split_instruction(line: Fragment<'_>, escape: char) -> Result<Instruction, FrontendError> {
    let line = line.trimmed();
    let (keyword, rest) = line.split_word();
    let (flags, rest) = words::take_flags(rest, escape);
    Ok(Instruction {
        arguments: read_arguments(Keyword::named(keyword.text()), rest.trimmed(), escape)?,
        keyword: keyword.token(),
        flags,
        heredocs: Vec::new(),
        comments: Vec::new(),
        text: line.text().to_owned(),
        span: line.span(),
    })
}

fn read_arguments(keyword: Option<Keyword>, rest: Fragment<'_>, escape: char) -> Result<Arguments, FrontendError> {
    use Keyword::*;
    if rest.text().is_empty() {
        return Ok(Arguments::None);
    }
    match keyword {
        Some(Add | Copy | Volume) => Ok(json_or(rest, |rest| Arguments::Words(rest.words()))?),
        Some(Run | Cmd | Entrypoint | Shell) => Ok(json_or(rest, |rest| Arguments::Text(rest.token()))?),
        Some(Expose | From) => Ok(Arguments::Words(rest.words())),
        Some(Arg) => {
            let words = words::quoted_words(rest, escape);
            Ok(Arguments::Words(words.into_iter().map(|word| word.token()).collect()))
        }
        Some(keyword @ (Env | Label)) => Ok(Arguments::Pairs(words::pairs(rest, keyword.name(), escape)?)),
        Some(Healthcheck) => read_check(rest),
        Some(Onbuild) => Ok(Arguments::Trigger(Box::new(read_trigger(rest, escape)?))),
        Some(Maintainer | Stopsignal | User | Workdir) | None => Ok(Arguments::Text(rest.token())),
    }
}

/// Chains are refused here and not later, so that no nesting is deeper than one.
fn read_trigger(rest: Fragment<'_>, escape: char) -> Result<Instruction, FrontendError> {
    let (keyword, _) = rest.split_word();
    match Keyword::named(keyword.text()) {
        Some(Keyword::Onbuild) => {
            let reason = "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed";
            Err(FrontendError::from(Problem::syntax(reason)).or_at(keyword.span()))
        }
        _ => split_instruction(rest, escape),
    }
}

fn json_or(rest: Fragment<'_>, otherwise: fn(Fragment<'_>) -> Arguments) -> Result<Arguments, FrontendError> {
    Ok(json::string_array(rest)?.map_or_else(|| otherwise(rest), Arguments::Json))
}

fn read_check(rest: Fragment<'_>) -> Result<Arguments, FrontendError> {
    let (kind, command) = rest.split_word();
    let command = match command.text().is_empty() {
        true => Arguments::None,
        false => json_or(command, |command| Arguments::Text(command.token()))?,
    };
    Ok(Arguments::Check { kind: kind.token(), command: Box::new(command) })
}

impl Instruction {
    /// The keyword, if there is one of that name.
    pub(crate) fn kind(&self) -> Option<Keyword> {
        Keyword::named(&self.keyword.text)
    }
}

/// Reads a trigger that an image stores, as if it stood at `span`.
pub(crate) fn parse_trigger(text: &str, span: Span) -> Result<Instruction, FrontendError> {
    let misplaced = |error: FrontendError| FrontendError { span: Some(span), ..error };
    let file = read_file("", text.as_bytes()).map_err(misplaced)?;
    match <[Instruction; 1]>::try_from(file.instructions) {
        Ok([instruction]) => Ok(instruction.moved_to(span)),
        Err(_) => {
            Err(FrontendError::from(Problem::syntax("onbuild trigger should be a single expression")).or_at(span))
        }
    }
}
