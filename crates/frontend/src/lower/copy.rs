//! COPY and ADD.

use super::chmod::mode;
use super::inputs::Inputs;
use super::metadata::{join, owner};
use super::plan::SourceName;
use super::remote::{Remote, check_checksum};
use super::run::is_file_name;
use super::stage::StageBuilder;
use super::state::Layer;
use crate::command::{Command, CopyCommand};
use crate::expand::Quotes;
use crate::span::At;
use crate::{FrontendError, Heredoc, Problem, Rule, Token};
use forge_llb::{CopyAction, Edge, FileAction, FileInput, FileKind, FileOp, MkfileAction, Op};
use forge_session::{ContextPath, PatternMatcher};

/// A COPY whose words are expanded.
pub(super) struct Expansion {
    pub sources: Vec<String>,
    pub destination: String,
    pub chown: String,
    pub chmod: String,
    pub checksum: String,
}

/// What is copied.
enum Source<'a> {
    /// A path, or a pattern of paths, in the tree that is copied from.
    Path(&'a str),
    /// A file or a repository from elsewhere.
    Remote(Box<Remote>),
}

impl StageBuilder<'_, '_> {
    /// All sources of one instruction become actions of one vertex, and so one layer.
    pub(super) fn copy(&mut self, command: &Command, copy: &CopyCommand) -> Result<(), FrontendError> {
        let words = self.expand_words(command, copy)?;
        let template = self.template(copy, &words)?;
        // With permission bits too, docker copies onto the layers below, links in the destination and all.
        let link = copy.link && words.chmod.is_empty();
        if link {
            check_linked_owner(&words).at(copy.chown.as_ref().map_or(command.span, |chown| chown.span))?;
        }
        let sources = read_sources(copy, &words)?;
        let (prefix, text) = (self.step_prefix(command.origin), self.step_text(command));
        let name = format!("{prefix}{text}");
        let mut file = FileBuilder::new(self.state.edge.clone().filter(|_| !link));
        self.copy_sources(command, copy, &sources, &template, &name, &mut file)?;
        for heredoc in &copy.heredocs {
            let mkfile = self.inline_file(command, heredoc)?;
            let sources = vec![mkfile.path.clone()];
            let from = file.make_file(mkfile);
            file.copy(CopyAction { from, sources, ..template.clone() });
        }
        let (op, inputs) = file.finish();
        let layer = self.add_step(command, op, inputs, name)?;
        let below = self.state.edge.take().filter(|_| link);
        self.state.edge = Some(match below {
            Some(below) => self.add_step(command, Op::Merge, vec![below, layer], format!("{prefix}LINK {text}"))?,
            None => layer,
        });
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
            checksum: flag(&copy.checksum)?,
        };
        self.lowering.book(words.sources.iter().map(String::len).sum())?;
        Ok(words)
    }

    /// What all actions of the instruction have in common.
    fn template(&self, copy: &CopyCommand, words: &Expansion) -> Result<CopyAction, FrontendError> {
        let flag = |token: &Option<Token>| token.as_ref().map(|token| token.span).unwrap_or_default();
        let mode = mode(&words.chmod).at(flag(&copy.chmod))?;
        let exclude: Vec<String> = copy.exclude.iter().map(|pattern| pattern.text.clone()).collect();
        if let Err(error) = PatternMatcher::new(&exclude) {
            return Err(Problem::value(format!("invalid --exclude: {error}"))).at(copy.exclude[0].span);
        }
        let several = words.sources.len() + copy.heredocs.len() > 1;
        Ok(CopyAction {
            owner: owner(&words.chown),
            mode,
            allow_wildcard: false,
            exclude,
            ..CopyAction::new(FileInput::Scratch, Vec::new(), self.destination(&words.destination, several))
        })
    }

    /// Where to, absolute; with a slash at the end where it must be a folder.
    fn destination(&self, written: &str, several: bool) -> String {
        let path = join(&self.state.image.config.working_dir, written);
        let folder = several || matches!(written, "" | ".") || written.ends_with('/') || written.ends_with("/.");
        if folder && path != "/" { path + "/" } else { path }
    }

    /// Copies in the order of the sources. Paths next to each other are one action.
    fn copy_sources(
        &mut self,
        command: &Command,
        copy: &CopyCommand,
        sources: &[Source<'_>],
        template: &CopyAction,
        name: &str,
        file: &mut FileBuilder,
    ) -> Result<(), FrontendError> {
        let paths: Vec<&str> = sources.iter().filter_map(Source::path).collect();
        if !paths.is_empty() {
            self.check_ignored(command, copy, &paths);
        }
        let from = match paths.as_slice() {
            [] => FileInput::Scratch,
            _ => self.tree_edge(command, copy)?.map_or(FileInput::Scratch, |edge| file.input(edge)),
        };
        let unpack = copy.unpack.unwrap_or(copy.add);
        let template = CopyAction { from, allow_wildcard: true, unpack_archives: unpack, ..template.clone() };
        for run in sources.chunk_by(|a, b| a.path().is_some() && b.path().is_some() && !copy.parents) {
            match &run[0] {
                Source::Remote(remote) => {
                    let source = self.remote_edge(command, remote, name)?;
                    let from = file.input(source);
                    file.copy(remote.action(&CopyAction { from, ..template.clone() }, copy.unpack));
                }
                Source::Path(path) if copy.parents => file.copy(with_parents(path, &template)),
                Source::Path(_) => {
                    let sources = run.iter().filter_map(Source::path).map(|path| join("/", path)).collect();
                    file.copy(CopyAction { sources, ..template.clone() });
                }
            }
        }
        Ok(())
    }

    /// The tree that paths are copied from; `None` for the empty file system.
    fn tree_edge(&mut self, command: &Command, copy: &CopyCommand) -> Result<Option<Edge>, FrontendError> {
        let plan = self.lowering.plan;
        match &copy.from {
            None => self.lowering.base_edge(&plan.main, command.span, "[internal] "),
            Some(from) => {
                let base = plan.source(self.index, SourceName::Copy(from))?;
                self.lowering.source_edge(&base, command.span)
            }
        }
    }

    /// Warns of sources that the ignore file leaves out.
    fn check_ignored(&self, command: &Command, copy: &CopyCommand, sources: &[&str]) {
        let Some(matcher) = self.lowering.ignored.as_ref().filter(|_| copy.from.is_none()) else { return };
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
            timestamp: self.lowering.epoch.seconds,
        })
    }
}

impl<'a> Source<'a> {
    fn path(&self) -> Option<&'a str> {
        match self {
            Self::Path(path) => Some(path),
            Self::Remote(_) => None,
        }
    }
}

/// Tells paths from addresses.
fn read_sources<'a>(copy: &CopyCommand, words: &'a Expansion) -> Result<Vec<Source<'a>>, FrontendError> {
    let read = |(source, token): (&'a String, &Token)| -> Result<Source<'a>, FrontendError> {
        Ok(match Remote::read(copy, source, &words.checksum).at(token.span)? {
            Some(remote) => Source::Remote(Box::new(remote)),
            None => Source::Path(source),
        })
    };
    let sources = words.sources.iter().zip(&copy.sources).map(read).collect::<Result<Vec<_>, _>>()?;
    if let Some(checksum) = copy.checksum.as_ref().filter(|_| !words.checksum.is_empty()) {
        check_checksum(sources.len(), sources.iter().any(|source| source.path().is_none())).at(checksum.span)?;
    }
    Ok(sources)
}

/// The action of a source whose folders are kept: the source is a pattern below the root, or below what stands before
/// `/./`.
fn with_parents(source: &str, template: &CopyAction) -> CopyAction {
    let (pivot, pattern) = source.split_once("/./").unwrap_or(("/", source));
    let below = join("/", pattern).trim_start_matches('/').to_owned();
    let whole = below.is_empty();
    let literal = !whole && !has_wildcards(pivot) && !has_wildcards(&below);
    CopyAction {
        sources: vec![join("/", pivot)],
        required: literal.then(|| below.clone()).into_iter().collect(),
        include: (!whole).then_some(below).into_iter().collect(),
        ..template.clone()
    }
}

/// Whether a pattern may stand for several paths.
fn has_wildcards(pattern: &str) -> bool {
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '*' | '?' | '[' => return true,
            '\\' => drop(letters.next()),
            _ => {}
        }
    }
    false
}

/// The files of `--link` are made without the layers below, which alone say what a name stands for.
fn check_linked_owner(words: &Expansion) -> Result<(), Problem> {
    let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    match words.chown.split(':').find(|name| !is_number(name)) {
        None => Ok(()),
        Some(name) => Err(Problem::value(format!(
            "--chown={} cannot be combined with --link: {name:?} can be looked up only in the layers below, \
             which --link leaves out; write numbers, or take one of the flags away",
            words.chown
        ))),
    }
}

/// Puts together the actions of one vertex.
struct FileBuilder {
    inputs: Inputs,
    actions: Vec<FileAction>,
    /// The tree that the next copy changes.
    tip: FileInput,
}

impl FileBuilder {
    fn new(base: Option<Edge>) -> Self {
        let mut inputs = Inputs::default();
        let tip = base.map_or(FileInput::Scratch, |edge| FileInput::Input(inputs.index(edge)));
        Self { inputs, actions: Vec::new(), tip }
    }

    fn input(&mut self, edge: Edge) -> FileInput {
        FileInput::Input(self.inputs.index(edge))
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
        (Op::File(FileOp { actions: self.actions }), self.inputs.into_edges())
    }
}

/// docker shows of the flags only those that change what is written.
fn history_text(copy: &CopyCommand, words: &Expansion) -> String {
    let mut text = String::from(if copy.add { "ADD" } else { "COPY" });
    if copy.parents {
        text += " --parents";
    }
    for (flag, value) in [("chown", &words.chown), ("chmod", &words.chmod)] {
        if !value.is_empty() {
            text += &format!(" --{flag}={value}");
        }
    }
    words.sources.iter().for_each(|source| text += &format!(" {source}"));
    copy.heredocs.iter().for_each(|heredoc| text += &format!(" <<{}", heredoc.name));
    format!("{text} {} # buildkit", words.destination)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_cut_at_the_pivot() {
        let template = CopyAction::new(FileInput::Scratch, Vec::new(), "/");
        let check = |source: &str, root: &str, include: &[&str], required: &[&str]| {
            let copy = with_parents(source, &template);
            assert_eq!((copy.sources[0].as_str(), copy.sources.len()), (root, 1), "{source}");
            assert_eq!((copy.include, copy.required), (owned(include), owned(required)), "{source}");
        };
        check("a/b", "/", &["a/b"], &["a/b"]);
        check("./a/../b/", "/", &["b"], &["b"]);
        check("/x/./y/z", "/x", &["y/z"], &["y/z"]);
        check("x/*/./y", "/x/*", &["y"], &[]);
        check("x/./**/y", "/x", &["**/y"], &[]);
        check("a/\\*", "/", &["a/\\*"], &["a/\\*"]);
        check(".", "/", &[], &[]);
        check("a/./", "/a", &[], &[]);
    }

    fn owned(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }
}
