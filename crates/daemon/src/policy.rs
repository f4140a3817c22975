//! Who judges the sources of a client's build: rules that it sends, and the client itself, which is asked for each.

use crate::bridge::Bridge;
use crate::session::{ClientSession, MOST_MESSAGE};
use async_trait::async_trait;
use forge_buildkit_proto::moby::buildkit::v1::frontend::{ResolveSourceMetaRequest, ResolveSourceMetaResponse};
use forge_buildkit_proto::moby::buildkit::v1::sourcepolicy::{self as wire, PolicyAction};
use forge_buildkit_proto::pb;
use forge_engine::{EngineError, SourceGuard, SourcePolicy, evaluate};
use forge_image::ErrorKind;
use prost::Message;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

const CHECK: &str = "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy";

/// How often a client is asked about one source, as BuildKit has it.
const MOST_QUESTIONS: usize = 10;

#[derive(Clone, PartialEq, Message)]
struct CheckRequest {
    #[prost(message, optional, tag = "1")]
    platform: Option<pb::Platform>,
    #[prost(message, optional, tag = "2")]
    source: Option<ResolveSourceMetaResponse>,
}

/// One of both.
#[derive(Clone, PartialEq, Message)]
struct CheckResponse {
    #[prost(message, optional, tag = "1")]
    decision: Option<Decision>,
    #[prost(message, optional, tag = "2")]
    request: Option<ResolveSourceMetaRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct Decision {
    #[prost(enumeration = "PolicyAction", tag = "1")]
    action: i32,
    #[prost(message, repeated, tag = "2")]
    denials: Vec<Denial>,
    #[prost(message, optional, tag = "3")]
    update: Option<pb::SourceOp>,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
struct Denial {
    #[prost(string, tag = "1")]
    message: String,
}

/// What judges the sources of a build.
#[derive(Clone, Default)]
pub(crate) struct Policy {
    pub rules: Vec<SourcePolicy>,
    /// The client that is asked.
    pub verifier: Option<Arc<ClientSession>>,
}

impl Policy {
    /// Adds rules as a client sends them.
    ///
    /// # Errors
    /// They are none.
    pub(crate) fn add<'a>(&mut self, rules: impl IntoIterator<Item = &'a wire::Policy>) -> Result<(), EngineError> {
        let rules = rules.into_iter().filter(|policy| !policy.rules.is_empty());
        for policy in rules {
            self.rules.push(SourcePolicy::from_wire(policy)?);
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.verifier.is_none()
    }
}

/// Judges sources by a policy. What a client wants to know before it decides is found out without asking it again.
pub(crate) struct Guard {
    pub policy: Policy,
    /// Of the same build, its sources not judged.
    pub bridge: Bridge,
    pub cancel: CancellationToken,
}

#[async_trait]
impl SourceGuard for Guard {
    async fn check(&self, mut source: pb::SourceOp, platform: &pb::Platform) -> Result<pb::SourceOp, EngineError> {
        let mut left = MOST_QUESTIONS;
        loop {
            evaluate(&self.policy.rules, &mut source)?;
            let Some(client) = &self.policy.verifier else { return Ok(source) };
            let decision = self.ask(client, &source, platform, &mut left).await?;
            match PolicyAction::try_from(decision.action) {
                Ok(PolicyAction::Allow) => return Ok(source),
                Ok(PolicyAction::Convert) => {
                    source = decision.update.ok_or_else(|| refused("convert action requires updated source"))?;
                }
                action => {
                    let name = action.map_or_else(|error| error.to_string(), |_| "DENY".to_owned());
                    let message = format!("source {:?} not allowed by policy: action {name}", source.identifier);
                    let denials = decision.denials.into_iter().map(|denial| denial.message).collect();
                    return Err(refused(message).with_denials(denials));
                }
            }
        }
    }
}

impl Guard {
    /// Asks until the client decides.
    async fn ask(
        &self,
        client: &ClientSession,
        source: &pb::SourceOp,
        platform: &pb::Platform,
        left: &mut usize,
    ) -> Result<Decision, EngineError> {
        let mut told = ResolveSourceMetaResponse { source: Some(source.clone()), ..Default::default() };
        loop {
            *left = left.checked_sub(1).ok_or_else(|| refused("too many policy requests"))?;
            let request = CheckRequest { platform: Some(platform.clone()), source: Some(told) };
            let answer = tokio::select! {
                biased;
                () = self.cancel.cancelled() => Err(Status::cancelled("context canceled")),
                () = client.gone.cancelled() => Err(Status::unavailable("the client has gone: no active session")),
                answer = check(client, request) => answer,
            };
            let CheckResponse { decision, request } = answer.map_err(failed)?;
            let Some(request) = request else {
                return decision.ok_or_else(|| refused("no decision in policy response"));
            };
            is_same(source, request.source.as_ref())?;
            let resolved = self.bridge.resolve_source_meta(request).await.map_err(failed);
            told = resolved.map_err(|error| error.context("error resolving source metadata from policy request"))?;
        }
    }
}

/// A client is told only of what is judged.
fn is_same(judged: &pb::SourceOp, asked: Option<&pb::SourceOp>) -> Result<(), EngineError> {
    let asked = asked.ok_or_else(|| refused("policy requested no source"))?;
    if asked.identifier != judged.identifier {
        return Err(refused(format!(
            "policy requested different source identifier: {:?} != {:?}",
            asked.identifier, judged.identifier
        )));
    }
    match asked.attrs == judged.attrs {
        true => Ok(()),
        false => Err(refused("policy requested different source attrs")),
    }
}

async fn check(client: &ClientSession, request: CheckRequest) -> Result<CheckResponse, Status> {
    if !client.supports(CHECK) {
        return Err(Status::unimplemented(format!("method {CHECK} not supported by the client")));
    }
    let mut grpc = Grpc::new(client.channel.clone()).max_decoding_message_size(MOST_MESSAGE);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<CheckRequest, CheckResponse>::default();
    Ok(grpc.unary(Request::new(request), PathAndQuery::from_static(CHECK), codec).await?.into_inner())
}

fn refused(message: impl Into<String>) -> EngineError {
    EngineError::new(ErrorKind::UserInput, message)
}

fn failed(status: Status) -> EngineError {
    let kind = match status.code() {
        tonic::Code::Cancelled => ErrorKind::Cancelled,
        tonic::Code::Unimplemented => ErrorKind::Unsupported,
        _ => ErrorKind::UserInput,
    };
    EngineError::new(kind, status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_of_what_is_judged_alone() {
        let source = |identifier: &str| pb::SourceOp { identifier: identifier.to_owned(), ..pb::SourceOp::default() };
        assert!(is_same(&source("a://x"), Some(&source("a://x"))).is_ok());
        assert!(is_same(&source("a://x"), Some(&source("a://y"))).is_err());
        assert!(is_same(&source("a://x"), None).is_err());
        let mut other = source("a://x");
        other.attrs.insert("k".to_owned(), "v".to_owned());
        assert!(is_same(&source("a://x"), Some(&other)).is_err());
    }
}
