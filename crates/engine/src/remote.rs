//! Files from elsewhere: Git repositories and downloads.

use crate::attest::{git_url, redacted};
use crate::build::{Build, is_true, step_failed, unsolved};
use crate::context::{MainContext, dockerfile_of, is_archive};
use crate::dockerfile::DockerfileText;
use crate::source_guard::ToldSources;
use crate::{BuildContext, BuildRequest, DockerfileSource, Engine, EngineError, engine::blocking};
use forge_frontend::{LowerOptions, Lowered, NamedContext, ResolvedImages};
use forge_image::{ErrorKind, Platform};
use forge_llb::{GitMtime, GitUrl, Graph, HttpSource, Metadata, Op, SourceOp, Vertex};
use forge_session::EventSink;
use forge_solver::SolveError;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The name of a download's only file; what a context is called in the graph that fetches it.
const FILE_NAME: &str = "context";

/// A Git repository or a file on a web server, by its address. What is shown of it holds no user information (A102).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteContext(Place);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Git(Box<GitUrl>),
    Http(HttpSource),
}

impl RemoteContext {
    /// Reads an address; `None` is for what is none, a path for example.
    ///
    /// # Errors
    /// A Git address with a part that is refused. The message does not repeat the address.
    pub fn parse(text: &str) -> Result<Option<Self>, EngineError> {
        Self::of(GitUrl::parse(text), text)
    }

    /// The same for the main context, where `github.com/owner/name` is an address too.
    ///
    /// # Errors
    /// As [`RemoteContext::parse`].
    pub fn parse_main(text: &str) -> Result<Option<Self>, EngineError> {
        Self::of(GitUrl::parse_main_context(text), text)
    }

    /// Reads the address of a single file.
    pub fn parse_download(text: &str) -> Option<Self> {
        is_http(text).then(|| Self(Place::Http(HttpSource::new(text))))
    }

    fn of(git: Result<Option<GitUrl>, forge_llb::GitUrlError>, text: &str) -> Result<Option<Self>, EngineError> {
        match git.map_err(|error| EngineError::caused(error.kind(), error))? {
            Some(url) => Ok(Some(Self(Place::Git(Box::new(url))))),
            None => Ok(Self::parse_download(text)),
        }
    }

    /// What the front end takes. The context's options of a build decide what the address leaves open.
    pub(crate) fn lowered(&self, defaults: GitDefaults) -> NamedContext {
        match &self.0 {
            Place::Git(url) => {
                let mut source = url.source();
                source.keep_git_dir = url.keep_git_dir.unwrap_or(defaults.keep_git_dir);
                source.mtime = url.mtime.unwrap_or(defaults.mtime);
                NamedContext::Git(source)
            }
            Place::Http(http) => {
                NamedContext::Http(HttpSource { filename: Some(FILE_NAME.to_owned()), ..http.clone() })
            }
        }
    }
}

impl RemoteContext {
    /// Whether its address has user information, which is not shown.
    pub fn has_credentials(&self) -> bool {
        match &self.0 {
            Place::Git(url) => url.credentials.is_some(),
            Place::Http(http) => http.credentials.is_some(),
        }
    }

    /// The address with the place of its user information, and the same without the folder of a repository: what it is
    /// listed as among what a build was made of.
    pub(crate) fn told(&self) -> (String, String) {
        match &self.0 {
            Place::Git(url) => {
                let source = url.source();
                let material = git_url(&source);
                let uri = match (source.subdir.as_str(), source.reference.is_some()) {
                    ("", _) => material.clone(),
                    (subdir, true) => format!("{material}:{subdir}"),
                    (subdir, false) => format!("{material}#:{subdir}"),
                };
                (uri, material)
            }
            Place::Http(http) => {
                let url = redacted(&http.url, http.credentials.as_ref());
                (url.clone(), url)
            }
        }
    }
}

impl fmt::Display for RemoteContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Git(url) => write!(f, "{url}"),
            Place::Http(http) => f.write_str(&http.url),
        }
    }
}

fn is_http(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https"))
}

/// What holds for Git contexts whose address does not say it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GitDefaults {
    pub keep_git_dir: bool,
    pub mtime: GitMtime,
}

impl Engine {
    /// The request with a Dockerfile that it names by its address in its place, so that it can be handed to whoever builds.
    ///
    /// # Errors
    /// The Dockerfile cannot be fetched, or is none.
    pub async fn with_own_dockerfile(
        &self,
        request: BuildRequest,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<BuildRequest, EngineError> {
        let DockerfileSource::Remote(remote) = request.dockerfile.clone() else { return Ok(request) };
        // Of the contexts nothing is wanted yet; a stream can be read once only.
        let alone = BuildRequest { context: BuildContext::Empty, named_contexts: BTreeMap::new(), ..request.clone() };
        let build = Build::start(self, alone, events, cancel).await?;
        let text = build.fetch_dockerfile(&remote).await.map_err(unsolved)?.text;
        Ok(BuildRequest { dockerfile: DockerfileSource::Inline(text), ..request })
    }
}

impl Build {
    /// Fetches the main context, so that the Dockerfile can be read from it. The build's own graph finds it in the
    /// cache then.
    pub(crate) async fn fetch_main(&self, remote: &RemoteContext) -> Result<MainContext, EngineError> {
        let lowered = remote.lowered(self.git_defaults());
        if let NamedContext::Http(http) = &lowered {
            let (folder, source) = (self.fetch_file(http).await?, lowered.clone());
            let file = folder.join(FILE_NAME);
            let alone = blocking(move || match is_archive(&file)? {
                true => Ok(None),
                false => MainContext::download(source, &folder, dockerfile_of(&file)?).map(Some),
            });
            if let Some(main) = alone.await? {
                return Ok(main);
            }
        }
        let graph = context_graph(&lowered)?;
        match self.folder(&graph).await? {
            Some(folder) => blocking(move || MainContext::fetched(lowered, &folder)).await,
            None => self.engine.blocking(|engine| MainContext::empty(engine.store(), None)).await,
        }
    }

    /// Fetches a Dockerfile that `-f` names by its address.
    pub(crate) async fn fetch_dockerfile(&self, remote: &RemoteContext) -> Result<DockerfileText, EngineError> {
        let NamedContext::Http(http) = remote.lowered(GitDefaults::default()) else {
            return Err(EngineError::new(ErrorKind::UserInput, "a Dockerfile cannot be a Git repository")
                .with_hint("name the repository as the context, and the file within it with -f"));
        };
        let file = self.fetch_file(&http).await?.join(FILE_NAME);
        let text = blocking(move || dockerfile_of(&file)).await?;
        Ok(DockerfileText { name: "Dockerfile".to_owned(), text })
    }

    /// The build arguments that are meant for Git contexts.
    fn git_defaults(&self) -> GitDefaults {
        let arguments = &self.request.build_args;
        let is_set = |name: &str| arguments.get(name).is_some_and(|value| !value.is_empty());
        let keep_git_dir = arguments.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR");
        GitDefaults {
            keep_git_dir: keep_git_dir.is_some_and(|value| is_true(value)),
            mtime: if is_set("SOURCE_DATE_EPOCH") { GitMtime::Commit } else { GitMtime::Checkout },
        }
    }

    /// The folder of a download.
    async fn fetch_file(&self, http: &HttpSource) -> Result<PathBuf, EngineError> {
        let folder = self.folder(&download_graph(http)?).await?;
        folder.ok_or_else(|| EngineError::new(ErrorKind::Internal, "a download has no file"))
    }

    /// Solves a graph whose result is one layer, and gives its folder; `None` for the empty file system.
    async fn folder(&self, graph: &Graph) -> Result<Option<PathBuf>, EngineError> {
        let nothing = DockerfileText { name: String::new(), text: Vec::new() };
        let graph = self.guarded_graph(graph.clone(), &ToldSources::new()).await?;
        let solved = self.solver().await?.solve(&graph, self.session.clone()).await;
        let solved = solved.map_err(|error| step_failed(without_span(error), &nothing))?;
        let (store, layers) = (self.transfer.store.clone(), solved.result.layers().to_vec());
        blocking(move || match &*store.layers().lower_dirs(&layers)? {
            [] => Ok(None),
            [folder] => Ok(Some(folder.clone())),
            _ => Err(EngineError::new(ErrorKind::Internal, "the build context has several layers")),
        })
        .await
    }
}

/// No instruction is to blame for a context.
fn without_span(error: SolveError) -> SolveError {
    match error {
        SolveError::Step { vertex, name, failed, source, .. } => {
            SolveError::Step { vertex, name, span: None, failed, source }
        }
        other => other,
    }
}

fn download_graph(http: &HttpSource) -> Result<Graph, EngineError> {
    let name = "[internal] load remote build context".to_owned();
    let metadata = Metadata { name, ..Metadata::default() };
    let op = Op::Source(SourceOp::Http(http.clone()));
    let mut graph = Graph::new();
    let edge = graph.add(Vertex { op, inputs: Vec::new(), platform: None, metadata }).map_err(defect)?;
    graph.set_goal(Some(edge)).map_err(defect)?;
    Ok(graph)
}

/// The vertices of a context as the front end makes them: those of a Dockerfile that is built from it alone, so that
/// they are the same as in the build.
fn context_graph(context: &NamedContext) -> Result<Graph, EngineError> {
    let dockerfile = forge_frontend::parse("Dockerfile", b"FROM files\n").map_err(defect)?;
    let named_contexts = [("files".to_owned(), context.clone())].into();
    let options = LowerOptions { named_contexts, ..LowerOptions::new(Platform::host()) };
    match forge_frontend::lower(&dockerfile, &options, &ResolvedImages::new()).map_err(defect)? {
        Lowered::Done(image) => Ok(image.graph),
        Lowered::Need(_) | Lowered::NeedTime(_) => {
            Err(EngineError::new(ErrorKind::Internal, "the build context needs an image"))
        }
    }
}

fn defect(error: impl std::error::Error + Send + Sync + 'static) -> EngineError {
    EngineError::caused(ErrorKind::Internal, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_paths() {
        let shown = |text: &str| RemoteContext::parse(text).unwrap().map(|remote| remote.to_string());
        assert_eq!(shown("https://host/a.git#v1:sub").as_deref(), Some("https://host/a.git#v1:sub"));
        assert_eq!(shown("https://host/a.tar.gz").as_deref(), Some("https://host/a.tar.gz"));
        assert_eq!(shown("git@host:a/b.git").as_deref(), Some("git@host:a/b.git"));
        for path in ["src", "/src", "github.com/a/b", "C:/src", "./a@b:c"] {
            assert_eq!(shown(path), None, "{path}");
        }
        let main = RemoteContext::parse_main("github.com/a/b#main").unwrap().unwrap();
        assert_eq!(main.to_string(), "https://github.com/a/b#main");
    }

    #[test]
    fn a102_no_address_shows_user_information() {
        for text in ["https://user:geheim@host/a.git#main", "https://user:geheim@host/a.tar"] {
            let remote = RemoteContext::parse(text).unwrap().unwrap();
            assert!(!format!("{remote} {remote:?}").contains("geheim"), "{remote:?}");
        }
        for text in ["https://user:geheim@host/a.git#-x", "https://user:geheim@/a.git", "ssh://user:geheim@-h/a.git"] {
            let error = RemoteContext::parse(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("geheim"), "{error:?}");
            assert_eq!(error.kind(), ErrorKind::UserInput);
        }
    }

    #[test]
    fn the_address_wins_over_the_builds_options() {
        let defaults = GitDefaults { keep_git_dir: true, mtime: GitMtime::Commit };
        let source = |text: &str| match RemoteContext::parse(text).unwrap().unwrap().lowered(defaults) {
            NamedContext::Git(source) => (source.keep_git_dir, source.mtime),
            other => panic!("{other:?}"),
        };
        assert_eq!(source("https://host/a.git"), (true, GitMtime::Commit));
        assert_eq!(source("https://host/a.git?keep-git-dir=false&mtime=checkout"), (false, GitMtime::Checkout));
    }

    #[test]
    fn a_context_is_fetched_as_the_build_will() {
        let http = NamedContext::Http(HttpSource { filename: Some(FILE_NAME.into()), ..HttpSource::new("http://h/a") });
        let graph = context_graph(&http).unwrap();
        assert_eq!(graph.vertices().len(), 2, "the file, and what it unpacks to");
        let dockerfile = forge_frontend::parse("Dockerfile", b"FROM scratch\nCOPY a b\n").unwrap();
        let options = LowerOptions { main_context: http, ..LowerOptions::new(Platform::host()) };
        let lowered = forge_frontend::lower(&dockerfile, &options, &ResolvedImages::new()).unwrap();
        let Lowered::Done(image) = lowered else { panic!("{lowered:?}") };
        assert!(image.graph.get(&graph.goal().unwrap().vertex).is_some());
    }
}
