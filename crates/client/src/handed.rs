//! Secrets, agents, credentials and streams as a daemon asks for them.

use crate::session::Handed;
use forge_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::Secrets;
use forge_buildkit_proto::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
use forge_buildkit_proto::moby::filesync::v1::auth_server::Auth;
use forge_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse,
};
use forge_buildkit_proto::moby::sshforward::v1::ssh_server::Ssh;
use forge_buildkit_proto::moby::sshforward::v1::{BytesMessage, CheckAgentRequest, CheckAgentResponse};
use forge_buildkit_proto::moby::upload::v1::BytesMessage as Uploaded;
use forge_buildkit_proto::moby::upload::v1::upload_server::Upload;
use forge_session::{Credentials, TokenRequest};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of a message of an agent.
const CHUNK: usize = 32 << 10;

/// Bytes of a message of a context that is a stream.
const PIECE: usize = 256 << 10;

fn failed(error: impl ToString) -> Status {
    Status::unknown(error.to_string())
}

#[tonic::async_trait]
impl Secrets for Handed {
    async fn get_secret(&self, request: Request<GetSecretRequest>) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let found = self.session().secret(&id).await.map_err(|error| failed(forge_image::chain(&error)))?;
        let secret = found.ok_or_else(|| Status::not_found(format!("secret {id}: not found")))?;
        Ok(Response::new(GetSecretResponse { data: secret.reveal().to_vec() }))
    }
}

impl Handed {
    async fn agent(&self, id: &str) -> Result<OwnedFd, Status> {
        let id = if id.is_empty() { "default" } else { id };
        let found = self.session().ssh_agent(id).await.map_err(|error| failed(forge_image::chain(&error)))?;
        found.ok_or_else(|| Status::not_found(format!("unset ssh forward key {id}")))
    }
}

#[tonic::async_trait]
impl Ssh for Handed {
    async fn check_agent(&self, request: Request<CheckAgentRequest>) -> Result<Response<CheckAgentResponse>, Status> {
        self.agent(&request.into_inner().id).await?;
        Ok(Response::new(CheckAgentResponse {}))
    }

    type ForwardAgentStream = ReceiverStream<Result<BytesMessage, Status>>;

    async fn forward_agent(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let id =
            request.metadata().get("buildkit.ssh.id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
        let agent = std::os::unix::net::UnixStream::from(self.agent(&id).await?);
        agent.set_nonblocking(true).map_err(failed)?;
        let (mut reader, mut writer) = UnixStream::from_std(agent).map_err(failed)?.into_split();
        let (answers, receiver) = mpsc::channel(4);
        let mut asked = request.into_inner();
        tokio::spawn(async move {
            let asks = async {
                while let Ok(Some(message)) = asked.message().await {
                    if writer.write_all(&message.data).await.is_err() {
                        return;
                    }
                }
                // Whoever asked has heard enough, and the agent is told so.
                let _ = writer.shutdown().await;
            };
            // The stream of answers ends with the agent's own.
            let answered = async move {
                let mut buffer = vec![0; CHUNK];
                while let Ok(count @ 1..) = reader.read(&mut buffer).await {
                    if answers.send(Ok(BytesMessage { data: buffer[..count].to_vec() })).await.is_err() {
                        return;
                    }
                }
            };
            tokio::join!(asks, answered);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Tokens are good for the build that they are fetched for.
const NO_AUTHORITY: &str = "tokens are not shared with other builds";

/// Docker Hub is asked for by the name of its registry, and known by that of its images.
fn registry(host: &str) -> &str {
    if host == "registry-1.docker.io" { "docker.io" } else { host }
}

#[tonic::async_trait]
impl Auth for Handed {
    async fn credentials(&self, request: Request<CredentialsRequest>) -> Result<Response<CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        let found =
            self.session().credentials(registry(&host)).await.map_err(|error| failed(forge_image::chain(&error)))?;
        let (username, secret) = match found {
            None => (String::new(), String::new()),
            Some(Credentials::Basic { username, password }) => (username, password.reveal().to_owned()),
            Some(Credentials::RefreshToken(token)) => (String::new(), token.reveal().to_owned()),
            Some(Credentials::Bearer(_)) => {
                return Err(Status::unknown(format!(
                    "the credentials for {host} are a token that cannot be handed on"
                )));
            }
        };
        Ok(Response::new(CredentialsResponse { username, secret }))
    }

    async fn fetch_token(&self, request: Request<FetchTokenRequest>) -> Result<Response<FetchTokenResponse>, Status> {
        let asked = request.into_inner();
        let wanted = TokenRequest {
            registry: registry(&asked.host),
            realm: &asked.realm,
            service: Some(asked.service.as_str()).filter(|service| !service.is_empty()),
            scopes: &asked.scopes,
            refused: None,
        };
        let fetched = self.tokens().fetch(&wanted, self.session()).await;
        let fetched = fetched.map_err(|error| failed(forge_image::chain(&error)))?;
        let given = fetched.ok_or_else(|| Status::unimplemented("tokens of that server are not fetched from here"))?;
        let expires_in = i64::try_from(given.life.as_secs()).unwrap_or(i64::MAX).max(1);
        Ok(Response::new(FetchTokenResponse { token: given.token.reveal().to_owned(), expires_in, issued_at: 0 }))
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented(NO_AUTHORITY))
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented(NO_AUTHORITY))
    }
}

#[tonic::async_trait]
impl Upload for Handed {
    type PullStream = ReceiverStream<Result<Uploaded, Status>>;

    async fn pull(&self, _: Request<Streaming<Uploaded>>) -> Result<Response<Self::PullStream>, Status> {
        let stream = self.stream().and_then(|stream| stream.take());
        let mut stream = stream.ok_or_else(|| Status::not_found("there is no such stream, or it was read already"))?;
        let (pieces, receiver) = mpsc::channel(8);
        tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; PIECE];
            loop {
                let piece = match stream.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(count) => Ok(Uploaded { data: buffer[..count].to_vec() }),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => Err(failed(error)),
                };
                let is_last = piece.is_err();
                if pieces.blocking_send(piece).is_err() || is_last {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
