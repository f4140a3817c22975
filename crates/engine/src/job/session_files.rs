//! The files of a session that are read beside the graph: Dockerfiles, ignore files, contexts that are streams.

use super::{DOCKERFILE_CONTEXT, JobResult};
use crate::build::Build;
use crate::context::{MAIN_CONTEXT, MainContext};
use crate::dockerfile::{DockerfileText, read_from_context};
use crate::engine::blocking;
use crate::steps::ShownStep;
use crate::{BuildContext, EngineError, NamedContext};
use forge_frontend::GraphInput;
use forge_image::ErrorKind;
use forge_session::{ContextSelection, Event, SourceSpan, WarningNotice};
use std::collections::BTreeMap;

/// The files that are fetched for a Dockerfile of that name.
fn paths_of(file: &str) -> Vec<String> {
    let mut paths = vec![file.to_owned(), format!("{file}.dockerignore")];
    if file == "Dockerfile" {
        paths.push("dockerfile".to_owned());
    }
    paths
}

impl Build {
    /// Fetches the Dockerfile, and the ignore file that is named after it, from where the client has them.
    pub(super) async fn session_dockerfile(
        &self,
        context: &str,
        name: Option<&str>,
    ) -> Result<DockerfileText, EngineError> {
        let file = name.unwrap_or("Dockerfile");
        let step = format!("[internal] load build definition from {file}");
        let shown = ShownStep::start(self.session.events(), &step);
        let found = async {
            let paths = paths_of(file);
            let (folder, base) = file.rsplit_once('/').unwrap_or(("", file));
            let text = self.read_of_session(context, &paths, file, &step).await?;
            if let Some(text) = text {
                return Ok(DockerfileText { name: file.to_owned(), text });
            }
            if name.is_none() && folder.is_empty() {
                let text = self.read_of_session(context, &paths, "dockerfile", &step).await?;
                if let Some(text) = text {
                    return Ok(DockerfileText { name: "dockerfile".to_owned(), text });
                }
            }
            let message = format!("failed to read dockerfile: open {base}: no such file or directory");
            Err(EngineError::new(ErrorKind::UserInput, message))
        };
        shown.end(found.await)
    }

    async fn read_of_session(
        &self,
        context: &str,
        follow: &[String],
        file: &str,
        step: &str,
    ) -> Result<Option<Vec<u8>>, EngineError> {
        let vertex = ShownStep::digest_of(step);
        if !context.starts_with("input:") {
            self.note_local(context);
        }
        let wanted = ContextSelection { follow, vertex: Some(&vertex), ..ContextSelection::all(context) };
        self.session.fetch_context(&wanted).await?;
        let Some(files) = self.session.selected_context(&wanted) else { return Ok(None) };
        let file = file.to_owned();
        blocking(move || read_from_context(&*files, &file)).await
    }

    /// The patterns of the ignore file: the one named after the Dockerfile, else the context's own. Contexts from elsewhere
    /// have none.
    pub(super) async fn ignore_of_session(&self, dockerfile: &str) -> Result<Vec<String>, EngineError> {
        if matches!(self.request.context, BuildContext::Remote(_) | BuildContext::Stream(_)) {
            return Ok(Vec::new());
        }
        let step = "[internal] load .dockerignore";
        let shown = ShownStep::start(self.session.events(), step);
        let read = async {
            let own = format!("{dockerfile}.dockerignore");
            let found = self.read_of_session(DOCKERFILE_CONTEXT, &paths_of(dockerfile), &own, step).await?;
            let text = match found {
                Some(text) => text,
                None => self.own_ignore_file(MAIN_CONTEXT, step).await.unwrap_or_default(),
            };
            crate::build::ignore_patterns(&text)
        };
        shown.end(read.await)
    }

    async fn own_ignore_file(&self, context: &str, step: &str) -> Result<Vec<u8>, EngineError> {
        let name = ".dockerignore".to_owned();
        let read = self.read_of_session(context, std::slice::from_ref(&name), &name, step).await?;
        Ok(read.unwrap_or_default())
    }

    /// Named contexts that are folders are the session's, under their own names.
    pub(super) async fn name_session_contexts(
        &mut self,
        inputs: &BTreeMap<String, JobResult>,
    ) -> Result<(), EngineError> {
        let contexts = self.request.named_contexts.clone();
        for (name, context) in contexts {
            let lowered = match context {
                NamedContext::Directory(folder) => {
                    let local = folder.to_string_lossy().into_owned();
                    let step = format!("[context {name}] load .dockerignore");
                    let shown = ShownStep::start(self.session.events(), &step);
                    let exclude = async { crate::build::ignore_patterns(&self.own_ignore_file(&local, &step).await?) };
                    let exclude = shown.end(exclude.await)?;
                    forge_frontend::NamedContext::Local { name: local, exclude }
                }
                NamedContext::OciLayout { path, tag, digest } => {
                    let name = path.to_string_lossy().into_owned();
                    forge_frontend::NamedContext::OciLayout { name, tag, digest }
                }
                NamedContext::Image(reference) => forge_frontend::NamedContext::Image(reference),
                NamedContext::Remote(remote) => remote.lowered(crate::remote::GitDefaults::default()),
                NamedContext::Stage(stage) => forge_frontend::NamedContext::Stage(stage),
                NamedContext::Scratch => forge_frontend::NamedContext::Scratch,
                NamedContext::Input { name, config } => {
                    let input = inputs.get(&name).ok_or_else(|| crate::build::no_input(&name))?;
                    let config = config.map(|config| *config);
                    forge_frontend::NamedContext::Graph(GraphInput::new(input.graph().clone(), config))
                }
            };
            self.name_context(name, lowered);
        }
        Ok(())
    }

    /// A context that the client sends as one stream.
    pub(super) async fn stream_context(&self, context: BuildContext) -> Result<MainContext, EngineError> {
        let (store, session) = (self.transfer.store.clone(), self.session.clone());
        blocking(move || MainContext::open(&context, &store, session.events(), session.cancellation())).await
    }

    /// Tells what the checks found in a Dockerfile that cannot be built.
    pub(super) async fn report_findings(&self, text: &DockerfileText, ignore: &[String]) {
        // The build fails for a reason of its own.
        let Ok(report) = self.check(text, ignore).await else { return };
        for finding in report.findings {
            let (first_line, last_line) = (finding.span.first_line, finding.span.last_line);
            self.session.events().emit(Event::Warning(WarningNotice {
                vertex: None,
                level: 1,
                short: format!("{}: {} (line {first_line})", finding.rule, finding.message),
                detail: vec![finding.description.into_owned()],
                url: finding.url,
                span: Some(SourceSpan { file: text.name.clone(), first_line, last_line }),
                excerpt: None,
            }));
        }
    }

    /// The Dockerfile of a context from elsewhere.
    pub(super) async fn remote_dockerfile(&self, name: Option<String>) -> Result<DockerfileText, EngineError> {
        let source = match name.filter(|_| !self.has_own_dockerfile()) {
            Some(name) => crate::DockerfileSource::InContext(name),
            None => crate::DockerfileSource::Default,
        };
        self.load_dockerfile_from(source).await
    }
}
