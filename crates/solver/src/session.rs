use async_trait::async_trait;
use forge_session::{Context, CredentialError, Credentials, EventSink, Secret, SecretError, Session};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The caller's session with a token of the build's own, so that a failed step can stop the others without
/// cancelling what else the caller does.
pub(crate) struct BuildSession {
    pub session: Arc<dyn Session>,
    pub cancellation: CancellationToken,
}

#[async_trait]
impl Session for BuildSession {
    fn context(&self, name: &str) -> Option<Arc<dyn Context>> {
        self.session.context(name)
    }

    async fn credentials(&self, registry: &str) -> Result<Option<Credentials>, CredentialError> {
        self.session.credentials(registry).await
    }

    async fn secret(&self, id: &str) -> Result<Option<Secret>, SecretError> {
        self.session.secret(id).await
    }

    async fn ssh_agent(&self, id: &str) -> Result<Option<OwnedFd>, SecretError> {
        self.session.ssh_agent(id).await
    }

    fn events(&self) -> &dyn EventSink {
        self.session.events()
    }

    fn cancellation(&self) -> &CancellationToken {
        &self.cancellation
    }
}
