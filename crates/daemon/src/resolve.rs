//! What clients that steer a build ask about sources before anything is made of them.

use crate::bridge::Bridge;
use crate::progress::time;
use crate::{reply, solution};
use forge_buildkit_proto::moby::buildkit::v1::frontend::{
    self as wire, ResolveImageConfigRequest, ResolveImageConfigResponse, ResolveSourceGitResponse,
    ResolveSourceHttpResponse, ResolveSourceImageResponse, ResolveSourceMetaRequest, ResolveSourceMetaResponse,
};
use forge_buildkit_proto::pb;
use forge_engine::{AttestationChain, ReadObjects, SourceFacts};
use forge_image::Reference;
use forge_llb::ResolveMode;
use tonic::Status;

impl Bridge {
    pub(crate) async fn resolve_image_config(
        &self,
        request: ResolveImageConfigRequest,
    ) -> Result<ResolveImageConfigResponse, Status> {
        let name = request.r#ref.strip_prefix("docker-image://").unwrap_or(&request.r#ref);
        let identifier = format!("docker-image://{name}");
        let source = pb::SourceOp { identifier, ..pb::SourceOp::default() };
        let source = self.judged(source, request.platform.as_ref()).await?;
        let Some(name) = source.identifier.strip_prefix("docker-image://") else {
            let message = format!("{name} is to be {}, which is no image", source.identifier);
            return Err(Status::unknown(message));
        };
        let found = self.image(name, request.platform.as_ref(), &request.resolve_mode, &request.log_name);
        let (digest, config) = found.await?;
        Ok(ResolveImageConfigResponse { digest, config, r#ref: request.r#ref })
    }

    pub(crate) async fn resolve_source_meta(
        &self,
        request: ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse, Status> {
        let source = request.source.clone().ok_or_else(|| Status::invalid_argument("source is required"))?;
        let source = self.judged(source, request.platform.as_ref()).await?;
        if source.identifier.starts_with("oci-layout://") {
            return self.layout(source, &request).await;
        }
        let Some(name) = source.identifier.strip_prefix("docker-image://") else {
            return self.source_facts(source, &request).await;
        };
        let wanted = request.image.clone().unwrap_or_default();
        let (mut digest, mut config) = (String::new(), Vec::new());
        if !wanted.no_config {
            let found = self.image(name, request.platform.as_ref(), &request.resolve_mode, &request.log_name);
            (digest, config) = found.await?;
        }
        let mut attestation_chain = None;
        if wanted.attestation_chain || !wanted.resolve_attestations.is_empty() {
            let step = format!("resolve attestations of {name}");
            let platform = solution::platform(request.platform.as_ref());
            let statements = &wanted.resolve_attestations;
            let chain = self.job().attestation_chain(&reference(name)?, &platform, statements, &step).await;
            attestation_chain = chain.map_err(|error| reply::status(&error))?.map(chain_of);
        }
        if digest.is_empty() {
            digest = match &attestation_chain {
                Some(chain) => chain.root.clone(),
                None => self.image(name, request.platform.as_ref(), &request.resolve_mode, &request.log_name).await?.0,
            };
        }
        let image = ResolveSourceImageResponse { digest, config, attestation_chain };
        let (source, image) = (Some(source), Some(image));
        Ok(ResolveSourceMetaResponse { source, image, ..ResolveSourceMetaResponse::default() })
    }

    /// What is known of an image in a layout of the client.
    async fn layout(
        &self,
        source: pb::SourceOp,
        request: &ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse, Status> {
        let step = match request.log_name.as_str() {
            "" => format!("resolve image config for {}", source.identifier),
            name => name.to_owned(),
        };
        let platform = solution::platform(request.platform.as_ref());
        let found = self.job().resolve_layout(&source, &platform, &step).await;
        let found = found.map_err(|error| reply::status(&error))?;
        let (digest, config) = (found.digest.to_string(), found.config.to_json());
        let image = Some(ResolveSourceImageResponse { digest, config, attestation_chain: None });
        Ok(ResolveSourceMetaResponse { source: Some(source), image, ..ResolveSourceMetaResponse::default() })
    }

    /// What a source becomes that a client asks about.
    async fn judged(&self, source: pb::SourceOp, platform: Option<&pb::Platform>) -> Result<pb::SourceOp, Status> {
        self.job().checked(source, platform).await.map_err(|error| reply::status(&error))
    }

    /// What is known of a source that is no image.
    async fn source_facts(
        &self,
        source: pb::SourceOp,
        request: &ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse, Status> {
        let step = match request.log_name.as_str() {
            "" => format!("resolve {}", source.identifier),
            name => name.to_owned(),
        };
        let is_wanted = request.git.is_some_and(|git| git.return_object);
        let objects = if is_wanted { ReadObjects::Yes } else { ReadObjects::No };
        let facts = self.job().source_facts(&source, objects, &step).await.map_err(|error| reply::status(&error))?;
        let mut response = ResolveSourceMetaResponse { source: Some(source), ..ResolveSourceMetaResponse::default() };
        match facts {
            SourceFacts::Nothing => {}
            SourceFacts::File { digest, name, modified } => {
                response.http = Some(ResolveSourceHttpResponse {
                    checksum: digest.to_string(),
                    filename: name,
                    last_modified: modified.map(time),
                    checksum_response: None,
                });
            }
            SourceFacts::Revision { object, commit, name, objects } => {
                let (commit_object, tag_object) = objects.unwrap_or_default();
                response.git = Some(ResolveSourceGitResponse {
                    checksum: object,
                    r#ref: name,
                    commit_checksum: commit.unwrap_or_default(),
                    commit_object,
                    tag_object: tag_object.unwrap_or_default(),
                });
            }
        }
        Ok(response)
    }

    async fn image(
        &self,
        name: &str,
        platform: Option<&pb::Platform>,
        mode: &str,
        step: &str,
    ) -> Result<(String, Vec<u8>), Status> {
        let reference = reference(name)?;
        let mode = if mode == "pull" { ResolveMode::ForcePull } else { ResolveMode::PreferLocal };
        let step = match step {
            "" => format!("resolve image config for docker-image://{reference}"),
            step => step.to_owned(),
        };
        let found = self.job().resolve_image(&reference, &solution::platform(platform), mode, &step).await;
        let found = found.map_err(|error| reply::status(&error))?;
        Ok((found.digest.to_string(), found.config.to_json()))
    }
}

fn reference(name: &str) -> Result<Reference, Status> {
    name.parse().map_err(|error| Status::unknown(format!("failed to parse reference {name:?}: {error}")))
}

/// A chain as clients read it.
fn chain_of(chain: AttestationChain) -> wire::AttestationChain {
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let blob = |(descriptor, data): (forge_image::Descriptor, Vec<u8>)| {
        let annotations = descriptor.annotations.iter();
        let told = wire::Descriptor {
            media_type: descriptor.media_type.to_string(),
            digest: descriptor.digest.to_string(),
            size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
            annotations: annotations.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect(),
        };
        (descriptor.digest.to_string(), wire::Blob { descriptor: Some(told), data })
    };
    wire::AttestationChain {
        root: chain.root.to_string(),
        image_manifest: chain.image_manifest.to_string(),
        attestation_manifest: chain.attestation_manifest.map(|digest| digest.to_string()).unwrap_or_default(),
        signature_manifests: Vec::new(),
        blobs: chain.documents.into_iter().map(blob).collect(),
    }
}
