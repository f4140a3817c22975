//! Runs whoever lists the software of a result: an image whose command reads folders and writes statements, as BuildKit's
//! scanner protocol has it.

use super::{GivenAttestation, GivenKind, SbomRequest};
use crate::EngineError;
use crate::build::Build;
use crate::steps::ShownStep;
use forge_exporter::SPDX;
use forge_frontend::ImageKeySource;
use forge_image::{Digest, ErrorKind, ImageConfig, Platform};
use forge_llb::{Edge, ExecMount, ExecOp, Graph, ImageSource, Metadata, MountKind, Op, ResolveMode, SourceOp, Vertex};

/// The list of what is in the image itself.
const CORE: &str = "sbom";
const SOURCE: &str = "/run/src/";
const DESTINATION: &str = "/run/out/";

/// A scanner that was found.
pub(crate) struct Scanner<'a> {
    request: &'a SbomRequest,
    digest: Digest,
    config: ImageConfig,
    mode: ResolveMode,
}

/// Further folders that a scanner is shown, by name.
pub(crate) type Extras = Vec<(String, Edge)>;

impl<'a> Scanner<'a> {
    /// Finds the image of a scanner.
    ///
    /// # Errors
    /// There is none, or it has no command.
    pub(crate) async fn find(build: &Build, request: &'a SbomRequest) -> Result<Self, EngineError> {
        let mode = if build.request.pull { ResolveMode::ForcePull } else { ResolveMode::PreferLocal };
        let named = ImageKeySource::Image(request.generator.clone());
        if build.guarded_image(&named, &Platform::host()).await?.is_some() {
            let message = format!("a source policy converts the scanner {}", request.generator);
            return Err(
                EngineError::new(ErrorKind::UserInput, message).with_hint("name what it becomes as the generator")
            );
        }
        let step = format!("resolve image config for docker-image://{}", request.generator);
        let shown = ShownStep::start(build.session.events(), &step);
        let found = shown.end(build.images().image(&request.generator, &Platform::host(), mode).await);
        let found = found.map_err(|error| EngineError::caused(error.kind(), error))?;
        let config = &found.config.config;
        if config.entrypoint.is_none() && config.cmd.is_none() {
            let message = format!("scanner {} does not have cmd", request.generator);
            return Err(EngineError::new(ErrorKind::UserInput, message));
        }
        Ok(Self { request, digest: found.digest, config: found.config, mode })
    }

    /// The graph whose result are the statements about what another graph makes.
    pub(crate) fn graph(&self, name: &str, scanned: &Graph, extras: &Extras) -> Result<Graph, EngineError> {
        let failed = |error| EngineError::caused(ErrorKind::Internal, error);
        let mut graph = scanned.clone();
        let goal = graph.goal().cloned();
        let image = ImageSource {
            pinned: Some(self.digest.clone()),
            resolve: self.mode,
            ..ImageSource::new(self.request.generator.clone())
        };
        let source = Vertex {
            op: Op::Source(SourceOp::Image(image)),
            inputs: Vec::new(),
            platform: Some(Platform::host()),
            metadata: Metadata { name: format!("[{name}] {}", self.request.generator), ..Metadata::default() },
        };
        let mut inputs = vec![graph.add(source).map_err(failed)?];
        let mut mounts = vec![ExecMount { output: None, ..ExecMount::root() }];
        mounts.push(ExecMount {
            target: "/tmp".to_owned(),
            input: None,
            output: None,
            kind: MountKind::Tmpfs { size: None },
            ..ExecMount::root()
        });
        let mut show = |target: String, edge: Option<Edge>| {
            let input = edge.map(|edge| {
                inputs.push(edge);
                inputs.len() - 1
            });
            mounts.push(ExecMount { target, input, output: None, readonly: true, ..ExecMount::root() });
        };
        show(format!("{SOURCE}core/{CORE}"), goal);
        for (name, edge) in extras {
            show(format!("{SOURCE}extras/{CORE}-{name}"), Some(edge.clone()));
        }
        let target = DESTINATION.trim_end_matches('/').to_owned();
        mounts.push(ExecMount { target, input: None, output: Some(0), ..ExecMount::root() });
        let exec = ExecOp { env: self.env(extras), mounts, cwd: self.folder(), ..ExecOp::new(self.command()) };
        let scan = Vertex {
            op: Op::Exec(exec),
            inputs,
            platform: Some(Platform::host()),
            metadata: Metadata {
                name: format!("[{name}] generating sbom using {}", self.request.generator),
                ..Metadata::default()
            },
        };
        let made = graph.add(scan).map_err(failed)?;
        graph.set_goal(Some(made)).map_err(failed)?;
        Ok(graph)
    }

    fn command(&self) -> Vec<String> {
        let config = &self.config.config;
        config.entrypoint.iter().flatten().chain(config.cmd.iter().flatten()).cloned().collect()
    }

    fn folder(&self) -> String {
        let folder = &self.config.config.working_dir;
        if folder.is_empty() { "/".to_owned() } else { folder.clone() }
    }

    fn env(&self, extras: &Extras) -> Vec<String> {
        let mut env = self.config.config.env.clone();
        if !env.iter().any(|text| text.starts_with("PATH=")) {
            env.push(crate::definition::DEFAULT_PATH.to_owned());
        }
        env.push(format!("BUILDKIT_SCAN_DESTINATION={DESTINATION}"));
        env.push(format!("BUILDKIT_SCAN_SOURCE={SOURCE}core/{CORE}"));
        if !extras.is_empty() {
            env.push(format!("BUILDKIT_SCAN_SOURCE_EXTRAS={SOURCE}extras"));
        }
        env.extend(self.request.parameters.iter().map(|(name, value)| format!("BUILDKIT_SCAN_{name}={value}")));
        env
    }

    /// What the result of [`Scanner::graph`] is to the image.
    pub(crate) fn attestation(result: crate::JobResult) -> GivenAttestation {
        GivenAttestation::of_scanner(Some(result))
    }
}

impl GivenAttestation {
    /// What a scanner wrote.
    pub(crate) fn of_scanner(result: Option<crate::JobResult>) -> Self {
        Self {
            kind: GivenKind::Bundle,
            result,
            path: "/".to_owned(),
            predicate_type: SPDX.to_owned(),
            subjects: Vec::new(),
            sbom_core: Some(CORE.to_owned()),
            inline_only: false,
        }
    }
}
