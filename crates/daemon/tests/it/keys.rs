//! Secrets and agents of a client.

use crate::client::Served;
use forge_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::Secrets;
use forge_buildkit_proto::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
use forge_buildkit_proto::moby::sshforward::v1::ssh_server::Ssh;
use forge_buildkit_proto::moby::sshforward::v1::{BytesMessage, CheckAgentRequest, CheckAgentResponse};
use futures_util::stream::{BoxStream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

#[tonic::async_trait]
impl Secrets for Served {
    async fn get_secret(&self, request: Request<GetSecretRequest>) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let found = self.secrets.get(&id).cloned();
        let data = found.ok_or_else(|| Status::not_found(format!("secret {id}: not found")))?;
        Ok(Response::new(GetSecretResponse { data }))
    }
}

#[tonic::async_trait]
impl Ssh for Served {
    async fn check_agent(&self, request: Request<CheckAgentRequest>) -> Result<Response<CheckAgentResponse>, Status> {
        match self.agent.as_deref() == Some(&request.into_inner().id) {
            true => Ok(Response::new(CheckAgentResponse {})),
            false => Err(Status::unknown("unset ssh forward key")),
        }
    }

    type ForwardAgentStream = BoxStream<'static, Result<BytesMessage, Status>>;

    async fn forward_agent(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        Ok(Response::new(request.into_inner().boxed()))
    }
}
