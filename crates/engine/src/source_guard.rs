//! Who judges the sources of a build before they are fetched.

use crate::build::Build;
use crate::source_policy::{SourcePolicy, evaluate};
use crate::{EngineError, Job};
use async_trait::async_trait;
use forge_buildkit_proto::pb;
use forge_frontend::ImageKeySource;
use forge_image::{Digest, ErrorKind, Platform};
use forge_llb::{Graph, ImageSource, Op, ResolveMode, SourceOp, VertexDigest};
use futures_util::future::try_join_all;
use std::collections::HashMap;
use std::sync::Arc;

/// Judges sources. Each is judged before it is asked about and before it is fetched, and may become another one.
#[async_trait]
pub trait SourceGuard: Send + Sync {
    /// What the source becomes: most often what it is.
    ///
    /// # Errors
    /// It is denied.
    async fn check(&self, source: pb::SourceOp, platform: &pb::Platform) -> Result<pb::SourceOp, EngineError>;
}

/// Rules that are known beforehand.
pub(crate) struct RuleGuard(pub Vec<SourcePolicy>);

#[async_trait]
impl SourceGuard for RuleGuard {
    async fn check(&self, mut source: pb::SourceOp, _: &pb::Platform) -> Result<pb::SourceOp, EngineError> {
        evaluate(&self.0, &mut source)?;
        Ok(source)
    }
}

impl Job {
    /// The same build, of which every source is judged.
    #[must_use]
    pub fn guarded(&self, guard: Arc<dyn SourceGuard>) -> Self {
        let mut build = self.build().fork(self.build().request.clone());
        build.guard = Some(guard);
        Self::of(build)
    }

    /// Has a source judged by itself.
    ///
    /// # Errors
    /// It is denied.
    pub async fn checked(
        &self,
        source: pb::SourceOp,
        platform: Option<&pb::Platform>,
    ) -> Result<pb::SourceOp, EngineError> {
        let Some(guard) = &self.build().guard else { return Ok(source) };
        let platform = platform.cloned().unwrap_or_else(|| forge_buildkit_proto::encode_platform(&Platform::host()));
        guard.check(normalized(source), &platform).await
    }
}

/// What a definition says of its sources, as it says it.
pub(crate) type ToldSources = HashMap<Digest, pb::SourceOp>;

impl Build {
    /// The graph with what its sources became. Steps keep their names.
    pub(crate) async fn guarded_graph(&self, graph: Graph, told: &ToldSources) -> Result<Graph, EngineError> {
        let Some(guard) = &self.guard else { return Ok(graph) };
        let host = Platform::host();
        let judged = graph.named().filter_map(|(digest, vertex)| match &vertex.op {
            Op::Source(source) => Some((digest.clone(), source.clone(), vertex.platform.clone())),
            _ => None,
        });
        let judged = judged.map(|(digest, source, platform)| {
            let host = &host;
            async move {
                let source = match told.get(digest.digest()) {
                    Some(source) => normalized(source.clone()),
                    None => forge_buildkit_proto::encode_source(&source),
                };
                let platform = forge_buildkit_proto::encode_platform(platform.as_ref().unwrap_or(host));
                let became = guard.check(source.clone(), &platform).await?;
                let changed = (became != source).then(|| decoded(became, &source)).transpose()?;
                Ok::<_, EngineError>(changed.map(|source| (digest, source)))
            }
        });
        let changed: HashMap<VertexDigest, SourceOp> = try_join_all(judged).await?.into_iter().flatten().collect();
        match changed.is_empty() {
            true => Ok(graph),
            false => with_sources(&graph, &changed),
        }
    }

    /// What a source becomes that is looked at beside the graph.
    pub(crate) async fn guarded_source(&self, source: &SourceOp, platform: &Platform) -> Result<SourceOp, EngineError> {
        let Some(guard) = &self.guard else { return Ok(source.clone()) };
        let told = forge_buildkit_proto::encode_source(source);
        let became = guard.check(told.clone(), &forge_buildkit_proto::encode_platform(platform)).await?;
        if became == told { Ok(source.clone()) } else { decoded(became, &told) }
    }

    /// What an image becomes that a Dockerfile names; `None` for what it is.
    pub(crate) async fn guarded_image(
        &self,
        source: &ImageKeySource,
        platform: &Platform,
    ) -> Result<Option<SourceOp>, EngineError> {
        let (Some(guard), ImageKeySource::Image(reference)) = (&self.guard, source) else { return Ok(None) };
        let resolve = if self.request.pull { ResolveMode::ForcePull } else { ResolveMode::PreferLocal };
        let image = SourceOp::Image(ImageSource { resolve, ..ImageSource::new(reference.clone()) });
        let source = forge_buildkit_proto::encode_source(&image);
        let became = guard.check(source.clone(), &forge_buildkit_proto::encode_platform(platform)).await?;
        (became != source).then(|| decoded(became, &source)).transpose()
    }
}

/// With the whole name of an image, and the plain one of a repository and its folder: what rules are written for.
fn normalized(source: pb::SourceOp) -> pb::SourceOp {
    match forge_buildkit_proto::decode_source(&source) {
        Ok(known @ (SourceOp::Image(_) | SourceOp::Git(_))) => {
            let identifier = forge_buildkit_proto::encode_source(&known).identifier;
            pb::SourceOp { identifier, ..source }
        }
        // What cannot be read is refused where it is used.
        _ => source,
    }
}

/// What a source became. Rules may note things of their own in attributes, which are nobody's.
fn decoded(mut source: pb::SourceOp, before: &pb::SourceOp) -> Result<SourceOp, EngineError> {
    const WHOLE_ADDRESS: &str = "git.fullurl";
    // It says where a repository is more exactly than its name, and would win over another name.
    if source.identifier != before.identifier && source.attrs.get(WHOLE_ADDRESS) == before.attrs.get(WHOLE_ADDRESS) {
        source.attrs.remove(WHOLE_ADDRESS);
    }
    source
        .attrs
        .retain(|name, _| ["image.", "local.", "git.", "http.", "oci."].iter().any(|prefix| name.starts_with(prefix)));
    let decoded = forge_buildkit_proto::decode_source(&source);
    decoded.map_err(|error| EngineError::caused(error.kind(), error).context("a source policy's source"))
}

fn with_sources(graph: &Graph, changed: &HashMap<VertexDigest, SourceOp>) -> Result<Graph, EngineError> {
    let failed = |error| EngineError::caused(ErrorKind::Internal, error);
    let mut rewritten = Graph::new();
    for (digest, vertex) in graph.named() {
        let mut vertex = vertex.clone();
        if let Some(source) = changed.get(digest) {
            vertex.op = Op::Source(source.clone());
        }
        rewritten.add_as(digest.clone(), vertex).map_err(failed)?;
    }
    rewritten.set_goal(graph.goal().cloned()).map_err(failed)?;
    Ok(rewritten)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(identifier: &str, attrs: &[(&str, &str)]) -> pb::SourceOp {
        let attrs = attrs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        pb::SourceOp { identifier: identifier.to_owned(), attrs }
    }

    #[test]
    fn rules_see_one_name_for_one_source() {
        let check = |told: &str, expect: &str| assert_eq!(normalized(source(told, &[])).identifier, expect);
        check("docker-image://alpine", "docker-image://docker.io/library/alpine:latest");
        check(
            "git://github.com/user/repo.git#main:../absolute/path",
            "git://github.com/user/repo.git#main:absolute/path",
        );
        check("local://context", "local://context");
    }

    // Meant to fail where the address is left: the repository that was to be replaced is fetched.
    #[test]
    fn a_repository_is_where_its_new_name_says() {
        let whole = [("git.fullurl", "https://old.test/x.git")];
        let became = decoded(source("git://new.test/x.git", &whole), &source("git://old.test/x.git", &whole)).unwrap();
        let SourceOp::Git(git) = became else { panic!("{became:?}") };
        assert_eq!(git.remote, "https://new.test/x.git");
    }

    #[test]
    fn attributes_of_the_rules_own_are_nobody_s() {
        let became = source("docker-image://busybox", &[("foo", "bar")]);
        assert!(decoded(became, &source("docker-image://alpine", &[])).is_ok());
        let became = source("docker-image://busybox", &[("image.foo", "bar")]);
        assert!(decoded(became, &source("docker-image://alpine", &[])).is_err());
    }
}
