//! From a Dockerfile to a graph: the text, what it must know of images, and what the checks say.

use super::Build;
use super::refusal::{refused, unresolved};
use crate::dockerfile::{DockerfileText, read_dockerfile, read_ignore_file};
use crate::engine::briefly;
use crate::error::work_hint;
use crate::excerpt::SourceLines;
use crate::source_guard::ToldSources;
use crate::steps::ShownStep;
use crate::{DockerfileSource, EngineError, Network};
use forge_frontend::{
    Dockerfile, ImageKeySource, ImageRequest, LowerOptions, Lowered, LoweredImage, ResolvedImage, ResolvedImages,
    SourceTime, TimeRequest, Warning,
};
use forge_image::{Digest, ErrorKind, ImageConfig, Platform};
use forge_llb::{ExtraHost, ImageSource, NetworkMode, ResolveMode, SourceOp};
use forge_session::{Event, SourceSpan, WarningNotice};
use futures_util::future::try_join_all;
use std::time::{SystemTime, UNIX_EPOCH};

/// What users see while the Dockerfile is read. What the checks find belongs to this step.
const LOAD_DOCKERFILE: &str = "[internal] load build definition from Dockerfile";

impl Build {
    pub(crate) async fn load_dockerfile(&self) -> Result<DockerfileText, EngineError> {
        let source = match &self.request.dockerfile {
            DockerfileSource::Remote(remote) => return Box::pin(self.fetch_dockerfile(remote)).await,
            source => source.clone(),
        };
        self.load_dockerfile_from(source).await
    }

    pub(crate) async fn load_dockerfile_from(&self, source: DockerfileSource) -> Result<DockerfileText, EngineError> {
        let main = self.main.clone();
        let shown = ShownStep::start(self.session.events(), LOAD_DOCKERFILE);
        shown.end(briefly(move || read_dockerfile(&source, &main)).await)
    }

    pub(crate) async fn load_ignore_patterns(&self) -> Result<Vec<String>, EngineError> {
        let (source, main) = (self.request.dockerfile.clone(), self.main.clone());
        let shown = ShownStep::start(self.session.events(), "[internal] load .dockerignore");
        shown.end(briefly(move || ignore_patterns(&read_ignore_file(&source, &main)?.text)).await)
    }

    /// Lowers until nothing more must be known of images.
    pub(crate) async fn lower(
        &self,
        dockerfile: &Dockerfile,
        text: &DockerfileText,
        ignore: &[String],
        platform: &Platform,
    ) -> Result<LoweredImage, EngineError> {
        let mut options = self.lower_options(ignore, platform);
        let mut known = ResolvedImages::new();
        loop {
            match forge_frontend::lower(dockerfile, &options, &known).map_err(|error| refused(&error, text))? {
                Lowered::Done(image) => {
                    let graph = self.guarded_graph(image.graph, &ToldSources::new()).await?;
                    return Ok(LoweredImage { graph, ..*image });
                }
                Lowered::NeedTime(request) => options.source_time = self.source_time(&request).await?,
                Lowered::Need(requests) => {
                    let found = requests.iter().map(|request| self.resolve(request, text));
                    let found = try_join_all(found).await?;
                    known.extend(requests.into_iter().map(|request| request.key).zip(found));
                }
            }
        }
    }

    /// Finds out when the source was made that `SOURCE_DATE_EPOCH` names.
    async fn source_time(&self, request: &TimeRequest) -> Result<SourceTime, EngineError> {
        let worker = self.local_worker().await?;
        let shown = ShownStep::start(self.session.events(), &request.step);
        let source = self.guarded_source(&request.source, &Platform::host()).await?;
        let time = worker.source_time(&source, &self.session).await.map_err(|error| {
            let hint = work_hint(&error);
            let error = EngineError::caused(error.kind(), error);
            hint.into_iter().fold(error, EngineError::with_hint)
        });
        Ok(match shown.end(time)? {
            Some(time) => SourceTime::Seconds(seconds(time)),
            None => SourceTime::None,
        })
    }

    /// Whether the result is an index even for one platform: the build argument `BUILDKIT_MULTI_PLATFORM` says so.
    pub(crate) fn wants_index(&self) -> bool {
        self.request.build_args.get("BUILDKIT_MULTI_PLATFORM").is_some_and(|value| is_true(value))
    }

    pub(crate) fn lower_options(&self, ignore: &[String], platform: &Platform) -> LowerOptions {
        let request = &self.request;
        LowerOptions {
            target: request.target.clone(),
            build_args: request.build_args.clone(),
            labels: request.labels.clone(),
            platform_requested: !request.platforms.is_empty(),
            build_platform: Platform::host(),
            no_cache: request.no_cache,
            no_cache_stages: request.no_cache_stages.clone(),
            allow_in_triggers: request.allowed.in_triggers.clone(),
            pull: request.pull,
            network: match request.network {
                Network::Default => NetworkMode::Default,
                Network::Host => NetworkMode::Host,
                Network::None => NetworkMode::None,
            },
            main_context: self.main.lowered(ignore),
            named_contexts: self.named.clone(),
            proxy_env: request.proxy_env.clone(),
            source_date_epoch: request.source_date_epoch,
            multi_platform: request.platforms.len() > 1 || self.wants_index(),
            extra_hosts: request
                .extra_hosts
                .iter()
                .map(|(host, address)| ExtraHost { host: host.clone(), address: address.clone() })
                .collect(),
            ulimits: request.limits.ulimits.clone(),
            resources: crate::limits::of_steps(&request.limits.resources),
            cgroup_parent: request.limits.cgroup_parent.clone(),
            shm_size: request.limits.shm_size,
            hostname: self.hostname.clone(),
            scans: request.attest.sbom.is_some(),
            ..LowerOptions::new(platform.clone())
        }
    }

    pub(crate) async fn resolve(
        &self,
        wanted: &ImageRequest,
        text: &DockerfileText,
    ) -> Result<ResolvedImage, EngineError> {
        let shown = ShownStep::start(self.session.events(), &wanted.step);
        let platform = &wanted.key.platform;
        let replaced = match self.guarded_image(&wanted.key.source, platform).await {
            Ok(replaced) => replaced,
            Err(error) => return shown.end(Err(unresolved(wanted, text, error))),
        };
        let found = match (&replaced, &wanted.key.source) {
            (Some(SourceOp::Image(image)), _) => {
                let reference = image
                    .pinned
                    .clone()
                    .map_or_else(|| image.reference.clone(), |digest| image.reference.with_digest(digest));
                self.images.image(&reference, platform, image.resolve).await
            }
            (Some(SourceOp::OciLayout(layout)), _) => {
                self.images.layout(&layout.name, layout.tag.as_deref(), layout.digest.as_ref(), platform).await
            }
            // Files that are no image have no config.
            (Some(_), _) => {
                let (digest, config) = (Digest::sha256(b""), ImageConfig::new(platform));
                return shown.end(Ok(ResolvedImage { digest, config, replaced }));
            }
            (None, ImageKeySource::Image(reference)) => {
                let mode = if self.request.pull { ResolveMode::ForcePull } else { ResolveMode::PreferLocal };
                self.images.image(reference, platform, mode).await
            }
            (None, ImageKeySource::OciLayout { name, tag, digest }) => {
                self.images.layout(name, tag.as_deref(), digest.as_ref(), platform).await
            }
        };
        let found = shown.end(found).map_err(|error| unresolved(wanted, text, error.into()))?;
        let replaced = replaced.map(|source| match source {
            SourceOp::Image(image) => SourceOp::Image(ImageSource { pinned: Some(found.digest.clone()), ..image }),
            other => other,
        });
        Ok(ResolvedImage { digest: found.digest, config: found.config, replaced })
    }

    /// Tells the user what the checks found.
    pub(crate) fn report(&self, lowered: &LoweredImage, text: &DockerfileText) -> Vec<WarningNotice> {
        let source = String::from_utf8_lossy(&text.text);
        let lines = SourceLines::new(&text.name, &source);
        let mut notices: Vec<WarningNotice> =
            lowered.warnings.iter().map(|warning| notice(warning, &text.name, &lines)).collect();
        if !lowered.unused_build_args.is_empty() {
            let names = lowered.unused_build_args.join(" ");
            notices.push(plain_notice(format!("One or more build-args [{names}] were not consumed")));
        }
        let triggers = lowered.triggers.iter();
        notices
            .extend(triggers.map(|trigger| plain_notice(format!("the base image's ONBUILD trigger runs: {trigger}"))));
        for notice in &notices {
            self.session.events().emit(Event::Warning(notice.clone()));
        }
        notices
    }
}

/// A result that nobody handed in.
pub(crate) fn no_input(name: &str) -> EngineError {
    EngineError::new(ErrorKind::UserInput, format!("invalid input {name} for build context: there is none"))
}

pub(crate) fn ignore_patterns(text: &[u8]) -> Result<Vec<String>, EngineError> {
    forge_frontend::ignore_patterns(text)
        .map_err(|error| EngineError::new(error.kind(), error.to_string()).context("cannot read the ignore file"))
}

/// The words that Go's `strconv.ParseBool` takes for true: build arguments that steer the builder are read so.
pub(crate) fn is_true(value: &str) -> bool {
    matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

fn plain_notice(short: String) -> WarningNotice {
    WarningNotice { vertex: None, level: 1, short, detail: Vec::new(), url: None, span: None, excerpt: None }
}

fn notice(warning: &Warning, file: &str, lines: &SourceLines<'_>) -> WarningNotice {
    let (first_line, last_line) = (warning.span.first_line, warning.span.last_line);
    WarningNotice {
        vertex: Some(ShownStep::digest_of(LOAD_DOCKERFILE)),
        level: 1,
        short: warning.to_string(),
        detail: vec![warning.rule.description().to_owned()],
        url: warning.url.clone(),
        span: Some(SourceSpan { file: file.to_owned(), first_line, last_line }),
        excerpt: Some(lines.excerpt(first_line, last_line)),
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
