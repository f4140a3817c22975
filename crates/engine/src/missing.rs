//! What a step may have meant that asks for a file which the build context does not have, or does not show.

use crate::dockerfile::IgnoreText;
use crate::{EngineError, context::MAIN_CONTEXT};
use forge_frontend::{IgnoreRule, ignore_rules, nearest};
use forge_image::ErrorKind;
use forge_llb::{FileInput, FileKind, Graph, LocalSource, Op, SourceOp, Vertex, VertexDigest};
use forge_session::{Context, ContextPath, PatternMatcher, Session};
use forge_solver::WorkerError;
use forge_worker::MissingFile;

/// Folders with more entries are not searched for a near name.
const MOST_SIBLINGS: usize = 10_000;

/// A shorter name is the beginning of too many others.
const LEAST_PREFIX: usize = 3;

/// Looks at the files that a step reads from contexts, and says of the first that cannot be had which line of the
/// ignore file hides it, or which file was probably meant. `ignore` is the main context's ignore file. Blocks.
///
/// # Errors
/// A context or an ignore file cannot be read.
pub(crate) fn explain(
    graph: &Graph,
    digest: &VertexDigest,
    session: &dyn Session,
    ignore: &IgnoreText,
) -> Result<Option<String>, EngineError> {
    let Some(vertex) = graph.get(digest) else { return Ok(None) };
    for (input, path) in reads(vertex) {
        let Some(local) = vertex.inputs.get(input).and_then(|edge| local_source(graph, &edge.vertex)) else { continue };
        let Some(context) = session.context(&local.name) else { continue };
        let own;
        let ignore = match local.name.as_str() {
            MAIN_CONTEXT => ignore,
            _ => {
                own = IgnoreText::of_context(&*context)?;
                &own
            }
        };
        let written = written(vertex, &path);
        if let Some(why) = Search::new(&*context, ignore)?.explain(&path)? {
            return Ok(Some(format!("{written}: {why}")));
        }
    }
    Ok(None)
}

/// The paths that a step reads, with the inputs that they are read from. Patterns may match nothing.
fn reads(vertex: &Vertex) -> Vec<(usize, ContextPath)> {
    let path = |input: usize, path: &str| (input, ContextPath::clean(path));
    match &vertex.op {
        Op::File(file) => {
            let copies = file.actions.iter().filter_map(|action| match &action.kind {
                FileKind::Copy(copy) => Some(copy),
                _ => None,
            });
            let paths = copies.filter_map(|copy| match copy.from {
                FileInput::Input(input) => Some((input, copy)),
                _ => None,
            });
            let all = paths.flat_map(|(input, copy)| {
                let below = |source: &String| -> Vec<String> {
                    match copy.required.is_empty() {
                        true => vec![source.clone()],
                        false => copy.required.iter().map(|required| format!("{source}/{required}")).collect(),
                    }
                };
                copy.sources.iter().flat_map(below).map(move |source| path(input, &source)).collect::<Vec<_>>()
            });
            all.filter(|(_, path)| !path.as_bytes().iter().any(|byte| b"*?[\\".contains(byte))).collect()
        }
        Op::Exec(exec) => {
            let mounts = exec.mounts.iter().filter(|mount| mount.selector != "/");
            mounts.filter_map(|mount| Some(path(mount.input?, &mount.selector))).collect()
        }
        _ => Vec::new(),
    }
}

fn local_source<'a>(graph: &'a Graph, digest: &VertexDigest) -> Option<&'a LocalSource> {
    match &graph.get(digest)?.op {
        Op::Source(SourceOp::Local(local)) => Some(local),
        _ => None,
    }
}

/// The instruction's keyword and the path as the Dockerfile has it, where it stands there.
fn written(vertex: &Vertex, path: &ContextPath) -> String {
    let text = vertex.metadata.span.as_ref().map_or("", |span| span.text.as_str());
    let mut words = text.split_whitespace();
    let keyword = words.next().unwrap_or("COPY").to_uppercase();
    let word = words.find(|word| ContextPath::clean(word) == *path).map(str::to_owned);
    format!("{keyword} {}", word.unwrap_or_else(|| path.display().into_owned()))
}

/// The same for a step that reads from another stage or an image, where the worker says what is there instead.
pub(crate) fn explain_result(graph: &Graph, digest: &VertexDigest, error: &WorkerError) -> Option<String> {
    let WorkerError::Other { source: Some(cause), .. } = error else { return None };
    let missing = cause.downcast_ref::<MissingFile>()?;
    let near = near_name(&missing.name, &missing.siblings)?;
    let near = ContextPath::clean(&missing.found).join(near.as_bytes());
    let written = written(graph.get(digest)?, &ContextPath::clean(&missing.path));
    Some(format!("{written}: did you mean /{}?", near.display()))
}

/// The name that may have been meant: one that differs in case, is few letters away, or is longer or shorter.
fn near_name(name: &str, names: &[String]) -> Option<String> {
    let other_case = || names.iter().find(|other| other.to_lowercase() == name.to_lowercase()).cloned();
    let longer = || {
        let begins = |other: &&String| {
            let (short, long) = if other.len() < name.len() { (other.as_str(), name) } else { (name, other.as_str()) };
            short.len() >= LEAST_PREFIX && long.starts_with(short)
        };
        names.iter().filter(begins).min_by_key(|other| other.len().abs_diff(name.len())).cloned()
    };
    // Any two short names are few letters away from each other.
    let alike = |other: &&str| name.len() > 4 || other.chars().next() == name.chars().next();
    let few_letters = || nearest(name, names.iter().map(String::as_str).filter(alike));
    other_case().or_else(few_letters).or_else(longer)
}

/// A context, and what of it is hidden.
struct Search<'a> {
    context: &'a dyn Context,
    file: &'a str,
    rules: Vec<IgnoreRule>,
    ignored: PatternMatcher,
}

impl<'a> Search<'a> {
    fn new(context: &'a dyn Context, ignore: &'a IgnoreText) -> Result<Self, EngineError> {
        let wrong =
            |error: String| EngineError::new(ErrorKind::UserInput, error).context("cannot read the ignore file");
        let rules = ignore_rules(&ignore.text).map_err(|error| wrong(error.to_string()))?;
        let patterns: Vec<String> = rules.iter().map(|rule| rule.pattern.clone()).collect();
        let ignored = PatternMatcher::new(&patterns).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { context, file: &ignore.name, rules, ignored })
    }

    /// Why a path cannot be had; `None` where it can, or nothing is near.
    fn explain(&self, path: &ContextPath) -> Result<Option<String>, EngineError> {
        let mut known = ContextPath::default();
        let mut rest: Vec<&[u8]> = path.components().collect();
        while !rest.is_empty() {
            let next = known.join(rest[0]);
            if self.context.stat(&next)?.is_none() {
                return Ok(self.near(&known, rest[0])?.map(|near| self.did_you_mean(&near, &rest[1..])));
            }
            known = next;
            rest.remove(0);
        }
        let rule = self.ignored.excluding_pattern(path).map(|index| &self.rules[index]);
        Ok(rule.map(|rule| format!("excluded by {} line {} {:?}", self.file, rule.line, rule.written)))
    }

    /// The whole path with the near name in it where that is there, else up to the near name.
    fn did_you_mean(&self, near: &ContextPath, rest: &[&[u8]]) -> String {
        let whole = rest.iter().fold(near.clone(), |path, name| path.join(name));
        let found = matches!(self.context.stat(&whole), Ok(Some(_)));
        format!("did you mean ./{}?", if found { &whole } else { near }.display())
    }

    /// The entry of a folder that may have been meant.
    fn near(&self, folder: &ContextPath, name: &[u8]) -> Result<Option<ContextPath>, EngineError> {
        let Ok(name) = std::str::from_utf8(name) else { return Ok(None) };
        // A link or a file in the way has no entries.
        let Ok(siblings) = self.context.children(folder) else { return Ok(None) };
        let visible = siblings.iter().take(MOST_SIBLINGS).filter(|entry| !self.ignored.matches(&entry.path));
        let last = |path: &ContextPath| path.components().last().map(|name| String::from_utf8_lossy(name).into_owned());
        let names: Vec<String> = visible.filter_map(|entry| last(&entry.path)).collect();
        let near = near_name(name, &names);
        Ok(near.map(|near| folder.join(near.as_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_session::LocalContext;
    use std::fs;

    fn explained(files: &[&str], ignore: &str, path: &str) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let context = LocalContext::open(folder.path()).unwrap();
        let ignore = IgnoreText { name: ".dockerignore".to_owned(), text: ignore.into() };
        Search::new(&context, &ignore).unwrap().explain(&ContextPath::clean(path)).unwrap()
    }

    #[test]
    fn hidden_files_name_the_line_that_hides_them() {
        let files = ["dist/app.js", "keep/a"];
        let by = |ignore: &str, path: &str| explained(&files, ignore, path);
        let line_2 = Some("excluded by .dockerignore line 2 \"dist\"".to_owned());
        assert_eq!(by("# built\ndist\n", "dist/"), line_2);
        assert_eq!(by("# built\ndist\n", "/dist/app.js"), line_2);
        assert_eq!(by("\n/**/*.js\nkeep\n", "dist/app.js").unwrap(), "excluded by .dockerignore line 2 \"/**/*.js\"");
        assert_eq!(by("*\n!dist\n", "dist"), None);
    }

    #[test]
    fn files_missing_in_stages_have_near_names_too() {
        let text = b"FROM scratch AS build\nCOPY x /srv/\nFROM scratch\nCOPY --from=build /srv/dist/ /\n";
        let dockerfile = forge_frontend::parse("Dockerfile", text).unwrap();
        let options = forge_frontend::LowerOptions::new("linux/amd64".parse().unwrap());
        let lowered = forge_frontend::lower(&dockerfile, &options, &Default::default()).unwrap();
        let forge_frontend::Lowered::Done(image) = lowered else { panic!("it needs no image") };
        let goal = image.graph.goal().unwrap().vertex.clone();
        let told = |found: &str, name: &str, siblings: &[&str]| {
            let siblings = siblings.iter().map(ToString::to_string).collect();
            let missing = MissingFile { path: "/srv/dist".into(), found: found.into(), name: name.into(), siblings };
            let (kind, message) = (ErrorKind::UserInput, missing.to_string());
            let error = WorkerError::Other { kind, message, source: Some(Box::new(missing)), hint: None };
            explain_result(&image.graph, &goal, &error)
        };
        let near = told("srv", "dist", &["x", "dist-app"]);
        assert_eq!(near.as_deref(), Some("COPY /srv/dist/: did you mean /srv/dist-app?"));
        assert_eq!(told("", "srv", &["src"]).as_deref(), Some("COPY /srv/dist/: did you mean /src?"));
        assert_eq!(told("srv", "dist", &["x"]), None);
    }

    #[test]
    fn missing_files_have_near_names() {
        let files = ["dist-app/x", "src/main.rs", "README.md", "config.yml", "docs/a"];
        let near = |path: &str| explained(&files, "docs", path);
        let meant = |path: &str| Some(format!("did you mean ./{path}?"));
        assert_eq!(near("dist/"), meant("dist-app"));
        assert_eq!(near("readme.md"), meant("README.md"));
        assert_eq!(near("README"), meant("README.md"));
        assert_eq!(near("config.yaml"), meant("config.yml"));
        assert_eq!(near("srcs/main.rs"), meant("src/main.rs"));
        assert_eq!(near("scr/nothing"), meant("src"));
        assert_eq!(near("src/mian.rs"), meant("src/main.rs"));
        assert_eq!(near("doc"), None, "what is hidden is no help");
        assert_eq!(near("far-away"), None);
        assert_eq!(near("README.md/x"), None);
        assert_eq!(near("src"), None);
    }
}
