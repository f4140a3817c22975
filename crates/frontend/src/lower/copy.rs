//! COPY and ADD.

use super::metadata::{join, owner};
use super::plan::Base;
use super::run::is_file_name;
use super::stage::StageBuilder;
use super::state::Layer;
use crate::command::{Command, CopyCommand};
use crate::expand::Quotes;
use crate::span::At;
use crate::{FrontendError, Heredoc, Problem, Rule, Token};
use forge_llb::{CopyAction, Edge, FileAction, FileInput, FileKind, FileOp, MkfileAction, ModeChange, Op};
use forge_session::{ContextPath, PatternMatcher};

/// A COPY whose words are expanded.
struct Expansion {
    sources: Vec<String>,
    destination: String,
    chown: String,
    chmod: String,
}

impl StageBuilder<'_, '_> {
    /// All sources of one instruction become actions of one vertex, and so one layer.
    pub(super) fn copy(&mut self, command: &Command, copy: &CopyCommand) -> Result<(), FrontendError> {
        let words = self.expand_words(command, copy)?;
        for (source, token) in words.sources.iter().zip(&copy.sources) {
            check_remote(copy, source).at(token.span)?;
        }
        let mode = mode(&words.chmod).at(copy.chmod.as_ref().map_or(command.span, |chmod| chmod.span))?;
        let exclude = copy.exclude.iter().map(|pattern| pattern.text.clone()).collect::<Vec<_>>();
        if let Err(error) = PatternMatcher::new(&exclude) {
            return Err(Problem::value(format!("invalid --exclude: {error}")).into());
        }
        let several = words.sources.len() + copy.heredocs.len() > 1;
        let template = CopyAction {
            owner: owner(&words.chown),
            mode,
            allow_wildcard: false,
            exclude,
            ..CopyAction::new(FileInput::Scratch, Vec::new(), self.destination(&words.destination, several))
        };
        let name = self.step_name(command, Quotes::Removed, "");
        let mut file = FileBuilder::new(self.state.edge.clone());
        if !words.sources.is_empty() {
            let source = self.source_edge(command, copy, &words.sources)?;
            let sources = words.sources.iter().map(|source| join("/", source)).collect();
            let from = source.map_or(FileInput::Scratch, |edge| file.input(edge));
            file.copy(CopyAction {
                from,
                sources,
                allow_wildcard: true,
                unpack_archives: copy.add,
                ..template.clone()
            });
        }
        for heredoc in &copy.heredocs {
            let mkfile = self.inline_file(command, heredoc)?;
            let sources = vec![mkfile.path.clone()];
            let from = file.make_file(mkfile);
            file.copy(CopyAction { from, sources, ..template.clone() });
        }
        let (op, inputs) = file.finish();
        self.state.edge = Some(self.add_step(command, op, inputs, name)?);
        let history = history_text(copy, &words);
        self.record(history, Layer::Made)
    }

    fn expand_words(&mut self, command: &Command, copy: &CopyCommand) -> Result<Expansion, FrontendError> {
        let text = |token: &Token| match self.text(command, token)? {
            text if text.contains('\0') => {
                Err(FrontendError::from(Problem::value("a path cannot hold a NUL byte")).or_at(token.span))
            }
            text => Ok(text),
        };
        let flag = |token: &Option<Token>| token.as_ref().map_or(Ok(String::new()), text);
        let words = Expansion {
            sources: copy.sources.iter().map(text).collect::<Result<_, _>>()?,
            destination: text(&copy.destination)?,
            chown: flag(&copy.chown)?,
            chmod: flag(&copy.chmod)?,
        };
        self.lowering.book(words.sources.iter().map(String::len).sum())?;
        Ok(words)
    }

    /// Where to, absolute; with a slash at the end where it must be a folder.
    fn destination(&self, written: &str, several: bool) -> String {
        let path = join(&self.state.image.config.working_dir, written);
        let folder = several || matches!(written, "" | ".") || written.ends_with('/') || written.ends_with("/.");
        if folder && path != "/" { path + "/" } else { path }
    }

    /// What is copied from; `None` for the empty file system.
    fn source_edge(
        &mut self,
        command: &Command,
        copy: &CopyCommand,
        sources: &[String],
    ) -> Result<Option<Edge>, FrontendError> {
        let Some(from) = &copy.from else {
            self.check_ignored(command, copy, sources);
            let base = self.lowering.plan.main_context()?;
            return self.lowering.base_edge(&base, command.span, "[internal] ");
        };
        let base = self.lowering.plan.copy_source(self.index, from, &self.lowering.options.platform)?;
        let name = match &base {
            Base::Image { context: Some(context), .. } => format!("[context {context}] "),
            _ => "FROM ".to_owned(),
        };
        self.lowering.base_edge(&base, command.span, &name)
    }

    /// Warns of sources that the ignore file leaves out.
    fn check_ignored(&self, command: &Command, copy: &CopyCommand, sources: &[String]) {
        let Some(matcher) = &self.lowering.ignored else { return };
        let patterns = self.lowering.options.ignore_patterns();
        for source in sources {
            let path = ContextPath::clean(source);
            let ignored = match path.is_root() {
                true => patterns.iter().any(|pattern| matches!(pattern.as_str(), "*" | "**" | "**/*")),
                false => matcher.matches(&path),
            };
            if ignored {
                let shown = if path.is_root() { ".".into() } else { path.display() };
                self.report(Rule::CopyIgnoredFile, command, &[if copy.add { "Add" } else { "Copy" }, &shown]);
            }
        }
    }

    /// The file that a heredoc stands for.
    fn inline_file(&mut self, command: &Command, heredoc: &Heredoc) -> Result<MkfileAction, FrontendError> {
        if !is_file_name(&heredoc.name) {
            let reason = format!("the heredoc's name {:?} cannot be that of a file", heredoc.name);
            return Err(FrontendError::from(Problem::value(reason)).or_at(heredoc.opening.span));
        }
        let content = heredoc.content();
        let content = match heredoc.expand {
            true => {
                let token = Token { text: content, span: heredoc.body.span };
                self.expand_quoted(command, &token, Quotes::Literal)?.text
            }
            false => content,
        };
        self.lowering.book(content.len())?;
        Ok(MkfileAction {
            path: format!("/{}", heredoc.name),
            mode: 0o644,
            data: content.into_bytes(),
            owner: None,
            timestamp: self.lowering.epoch,
        })
    }
}

/// Puts together the actions of one vertex.
struct FileBuilder {
    inputs: Vec<Edge>,
    actions: Vec<FileAction>,
    /// The tree that the next copy changes.
    tip: FileInput,
}

impl FileBuilder {
    fn new(base: Option<Edge>) -> Self {
        let inputs: Vec<Edge> = base.into_iter().collect();
        let tip = if inputs.is_empty() { FileInput::Scratch } else { FileInput::Input(0) };
        Self { inputs, actions: Vec::new(), tip }
    }

    fn input(&mut self, edge: Edge) -> FileInput {
        let known = self.inputs.iter().position(|input| *input == edge);
        FileInput::Input(known.unwrap_or_else(|| {
            self.inputs.push(edge);
            self.inputs.len() - 1
        }))
    }

    fn make_file(&mut self, mkfile: MkfileAction) -> FileInput {
        self.actions.push(FileAction { base: FileInput::Scratch, kind: FileKind::Mkfile(mkfile) });
        FileInput::Action(self.actions.len() - 1)
    }

    fn copy(&mut self, copy: CopyAction) {
        self.actions.push(FileAction { base: self.tip, kind: FileKind::Copy(copy) });
        self.tip = FileInput::Action(self.actions.len() - 1);
    }

    fn finish(self) -> (Op, Vec<Edge>) {
        (Op::File(FileOp { actions: self.actions }), self.inputs)
    }
}

/// docker shows of the flags only those that change what is written.
fn history_text(copy: &CopyCommand, words: &Expansion) -> String {
    let mut text = String::from(if copy.add { "ADD" } else { "COPY" });
    for (flag, value) in [("chown", &words.chown), ("chmod", &words.chmod)] {
        if !value.is_empty() {
            text += &format!(" --{flag}={value}");
        }
    }
    words.sources.iter().for_each(|source| text += &format!(" {source}"));
    copy.heredocs.iter().for_each(|heredoc| text += &format!(" <<{}", heredoc.name));
    format!("{text} {} # buildkit", words.destination)
}

/// What kind of source that is not a path.
enum Remote {
    Git,
    Http,
}

/// Git URLs are told by their scheme, or by `.git` at the end of an HTTP one.
fn remote(source: &str) -> Option<Remote> {
    let lower = source.to_ascii_lowercase();
    if ["git://", "ssh://", "git@"].iter().any(|scheme| lower.starts_with(scheme)) {
        return Some(Remote::Git);
    }
    if !lower.starts_with("http://") && !lower.starts_with("https://") {
        return None;
    }
    let path = lower.split(['#', '?']).next().unwrap_or_default();
    Some(if path.ends_with(".git") { Remote::Git } else { Remote::Http })
}

fn check_remote(copy: &CopyCommand, source: &str) -> Result<(), Problem> {
    match (remote(source), copy.add) {
        (None, _) => Ok(()),
        (Some(Remote::Git), true) => Err(Problem::NotBuilt { what: "ADD of a Git repository".to_owned() }),
        (Some(Remote::Http), true) => Err(Problem::NotBuilt { what: "ADD of a URL".to_owned() }),
        (Some(Remote::Git), false) => Err(Problem::value("source can't be a git ref for COPY")),
        (Some(Remote::Http), false) => Err(Problem::value("source can't be a URL for COPY")),
    }
}

/// Reads `--chmod`.
fn mode(text: &str) -> Result<Option<ModeChange>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    match u32::from_str_radix(text, 8) {
        Ok(bits) if bits <= 0o7777 && !text.starts_with('+') => Ok(Some(ModeChange::Octal(bits))),
        _ if is_symbolic(text) => Ok(Some(ModeChange::Symbolic(text.to_owned()))),
        _ => Err(Problem::value(format!(
            "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
        ))),
    }
}

/// `u=rwX,go=rX` and the like, as `chmod(1)` takes them.
fn is_symbolic(text: &str) -> bool {
    text.split(',').all(|clause| {
        let actions = clause.trim_start_matches(['u', 'g', 'o', 'a']);
        actions.starts_with(['+', '-', '=']) && {
            let mut parts = actions.split(['+', '-', '=']).skip(1);
            parts.all(|part| {
                matches!(part, "u" | "g" | "o") || part.chars().all(|c| matches!(c, 'r' | 'w' | 'x' | 'X' | 's' | 't'))
            })
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        for good in ["755", "0644", "7777", "0", "u=rwX,go=rX", "+x", "a-w", "g=u", "u+x-w"] {
            assert!(matches!(mode(good), Ok(Some(_))), "{good}");
        }
        for bad in ["8", "10000", "u", "x=r", "u=rwz", "755,", "+755", "u=r,"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }
}
