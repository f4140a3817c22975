//! Definitions of BuildKit's format: what a Dockerfile is lowered to, shown without building it, and builds that
//! start from one instead of a Dockerfile.

use crate::build::{Build, PlatformResult, refused, step_failed, unsolved};
use crate::dockerfile::DockerfileText;
use crate::engine::blocking;
use crate::entitlements;
use crate::source_guard::ToldSources;
use crate::steps::ShownStep;
use crate::{BuildContext, BuildOutcome, BuildRequest, Engine, EngineError, NamedContext, plausible};
use forge_buildkit_proto::{DecodeError, Decoded, SourceFile};
use forge_exporter::MissingHistory;
use forge_frontend::{Entitlement, EntitlementUse, LoweredImage, Span};
use forge_image::{ErrorKind, ImageConfig, Platform};
use forge_llb::{Graph, NetworkMode, Op, SecurityMode, Vertex};
use forge_session::EventSink;
use forge_solver::SolveError;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// How a definition is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefinitionFormat {
    /// Forge's own text: one paragraph for each step.
    Text,
    /// The bytes of BuildKit's `pb.Definition`.
    Protobuf,
    /// A line of JSON for each op, as `buildctl debug dump-llb` prints them.
    Json,
    /// A graph in Graphviz's language.
    Dot,
}

/// What users see while a definition is read.
const LOAD_DEFINITION: &str = "[internal] load build definition";

/// The path that processes of images without a config look programs up in, as BuildKit sets it.
pub(crate) const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Engine {
    /// Lowers a Dockerfile for one platform and shows what a build would solve. Base images are resolved as for a
    /// build; no step runs.
    ///
    /// # Errors
    /// The Dockerfile is refused, several platforms are asked for, or the result does not fit into the format.
    pub async fn definition(
        &self,
        request: BuildRequest,
        format: DefinitionFormat,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<Vec<u8>, EngineError> {
        plausible::check(&request)?;
        let platform = one_platform(&request)?;
        let build = Build::start(self, request, events, cancel).await?;
        let shown = async {
            let text = build.load_dockerfile().await?;
            let dockerfile = forge_frontend::parse(&text.name, &text.text).map_err(|error| refused(&error, &text))?;
            let ignore = build.load_ignore_patterns().await?;
            let lowered = build.lower(&dockerfile, &text, &ignore, &platform).await?;
            show(&lowered.graph, &text, format)
        };
        shown.await.map_err(unsolved)
    }

    /// Solves a definition and puts the result where the request wants it. What the request says of Dockerfiles is
    /// not looked at. The image's config is that of `buildctl build`, with the request's labels: the platform, a search
    /// path and the root as the working directory.
    ///
    /// # Errors
    /// The definition is refused, several platforms or contexts from elsewhere are asked for, a step fails, or an output cannot be written. No
    /// name of the store is given or moved then.
    pub async fn build_definition(
        &self,
        definition: Vec<u8>,
        request: BuildRequest,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<BuildOutcome, EngineError> {
        plausible::check(&request)?;
        only_local_contexts(&request)?;
        let platform = one_platform(&request)?;
        let build = async {
            let build = Build::start(self, request, events, cancel).await?;
            build.run_definition(definition, platform).await.map_err(unsolved)
        };
        let (built, notice) = self.collecting(build).await;
        built.map(|outcome| outcome.with_notice(notice)).map_err(|error| self.explain_full_disk(error))
    }
}

impl Build {
    async fn run_definition(self, definition: Vec<u8>, platform: Platform) -> Result<BuildOutcome, EngineError> {
        let shown = ShownStep::start(self.session.events(), LOAD_DEFINITION);
        let is_judged = self.guard.is_some();
        let decoded = blocking(move || decode(&definition, is_judged)).await;
        let (Decoded { graph, sources }, told) = shown.end(decoded)?;
        forge_buildkit_proto::check_in_place(&graph).map_err(unreadable)?;
        let graph = self.guarded_graph(graph, &told).await?;
        let lowered = self.image_of(graph, &platform, self.request.no_cache)?;
        let nowhere = DockerfileText { name: String::new(), text: Vec::new() };
        entitlements::check(&lowered, &self.request, &nowhere)?;
        let solved = self.solve_and_send(self.solver().await?, &lowered, None).await;
        let solved = solved.map_err(|error| {
            let text = text_of(&error, &sources);
            step_failed(error, &text)
        })?;
        let said = Vec::new();
        let text = nowhere;
        let missing_history = MissingHistory::Uppermost;
        let result = PlatformResult { lowered, solved, platform, said, missing_history };
        let results = self.attested(vec![result], &text).await?;
        let stacks: Vec<_> = results.iter().map(|result| result.solved.result.layers().to_vec()).collect();
        let outcome = self.export(results, Vec::new()).await?;
        self.finish_caches(&stacks).await?;
        Ok(outcome)
    }

    /// The graph with what a Dockerfile would have said beside it.
    pub(crate) fn image_of(
        &self,
        graph: Graph,
        platform: &Platform,
        no_cache: bool,
    ) -> Result<LoweredImage, EngineError> {
        let mut config = default_config(platform);
        let labels = self.request.labels.iter();
        config.config.labels.extend(labels.map(|(name, value)| (name.clone(), value.clone().into())));
        let graph = if no_cache { without_cache(&graph)? } else { graph };
        Ok(LoweredImage {
            entitlements: graph.vertices().iter().flat_map(needed_entitlements).collect(),
            graph,
            config,
            base_history: 0,
            base: None,
            warnings: Vec::new(),
            unused_build_args: Vec::new(),
            context_names_used: Vec::new(),
            source_date_epoch: self.request.source_date_epoch,
            triggers: Vec::new(),
            scanned: Vec::new(),
        })
    }
}

/// A definition, and its sources as it has them where they are to be judged.
pub(crate) fn decode(definition: &[u8], is_judged: bool) -> Result<(Decoded, ToldSources), EngineError> {
    let decoded = forge_buildkit_proto::decode(definition).map_err(unreadable)?;
    let told = match is_judged {
        true => forge_buildkit_proto::source_ops(definition).map_err(unreadable)?,
        false => ToldSources::new(),
    };
    Ok((decoded, told))
}

/// The config of an image about which nothing is said.
pub(crate) fn default_config(platform: &Platform) -> ImageConfig {
    let mut config = ImageConfig::new(platform);
    config.config.env = vec![DEFAULT_PATH.to_owned()];
    config.config.working_dir = "/".to_owned();
    config
}

fn one_platform(request: &BuildRequest) -> Result<Platform, EngineError> {
    match request.platforms.as_slice() {
        [] => Ok(Platform::host()),
        [platform] => Ok(platform.clone()),
        _ => Err(EngineError::new(ErrorKind::UserInput, "a definition is for one platform: name one with --platform")),
    }
}

/// A definition reads the files and layouts of its caller; everything else it names itself.
fn only_local_contexts(request: &BuildRequest) -> Result<(), EngineError> {
    let refuse = |what: &str| {
        let message = format!("{what} cannot be used with a definition: it names its sources itself");
        Err(EngineError::new(ErrorKind::UserInput, message).with_hint("name a folder, or an OCI layout"))
    };
    if matches!(request.context, BuildContext::Remote(_)) {
        return refuse("a context from elsewhere");
    }
    let local = |context: &NamedContext| matches!(context, NamedContext::Directory(_) | NamedContext::OciLayout { .. });
    match request.named_contexts.iter().find(|(_, context)| !local(context)) {
        Some((name, _)) => refuse(&format!("the context {name}")),
        None => Ok(()),
    }
}

fn show(graph: &Graph, text: &DockerfileText, format: DefinitionFormat) -> Result<Vec<u8>, EngineError> {
    let language = "Dockerfile".to_owned();
    let source = SourceFile { name: text.name.clone(), data: text.text.clone(), language, ..SourceFile::default() };
    let definition = || {
        forge_buildkit_proto::encode(graph, std::slice::from_ref(&source))
            .map_err(|error| EngineError::caused(ErrorKind::UserInput, error))
    };
    match format {
        DefinitionFormat::Text => Ok(graph.to_string().into_bytes()),
        DefinitionFormat::Protobuf => Ok(forge_buildkit_proto::definition_bytes(&definition()?)),
        DefinitionFormat::Json => {
            forge_buildkit_proto::json_lines(&definition()?).map(String::into_bytes).map_err(unreadable)
        }
        DefinitionFormat::Dot => forge_buildkit_proto::dot(&definition()?).map(String::into_bytes).map_err(unreadable),
    }
}

fn unreadable(error: DecodeError) -> EngineError {
    EngineError::caused(error.kind(), error)
}

/// The file that a failed step comes from.
pub(crate) fn text_of(error: &SolveError, sources: &[SourceFile]) -> DockerfileText {
    let file = match error {
        SolveError::Step { span: Some(span), .. } => span.file.clone(),
        _ => String::new(),
    };
    let found = sources.iter().find(|source| source.name == file);
    DockerfileText { name: file, text: found.map(|source| source.data.clone()).unwrap_or_default() }
}

/// The same steps, none of which asks the cache.
fn without_cache(graph: &Graph) -> Result<Graph, EngineError> {
    let failed = |error| EngineError::caused(ErrorKind::Internal, error);
    let mut changed = Graph::new();
    for (digest, vertex) in graph.named() {
        let mut vertex = vertex.clone();
        vertex.metadata.ignore_cache = true;
        changed.add_as(digest.clone(), vertex).map_err(failed)?;
    }
    changed.set_goal(graph.goal().cloned()).map_err(failed)?;
    Ok(changed)
}

/// What a step needs that must be allowed.
fn needed_entitlements(vertex: &Vertex) -> Vec<EntitlementUse> {
    let Op::Exec(exec) = &vertex.op else { return Vec::new() };
    let network = (exec.network == NetworkMode::Host).then_some(Entitlement::NetworkHost);
    let security = (exec.security == SecurityMode::Insecure).then_some(Entitlement::SecurityInsecure);
    let devices = exec.devices.iter().map(|device| Entitlement::Device(device.name.clone()));
    let span = vertex.metadata.span.as_ref().map_or_else(Span::default, |span| Span {
        first_line: span.first_line,
        last_line: span.last_line,
        ..Span::default()
    });
    let needed = network.into_iter().chain(security).chain(devices);
    needed.map(|entitlement| EntitlementUse { entitlement, span }).collect()
}
