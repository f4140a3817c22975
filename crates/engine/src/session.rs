//! The session of a build in this process: folders of this machine, docker's credentials, the caller's sink.

use crate::handed::Handed;
use async_trait::async_trait;
use forge_registry::DockerConfig;
use forge_session::{Context, CredentialError, Credentials, EventSink, Secret, SecretError, Session};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What a build, pull or push of this process is handed.
pub(crate) struct LocalSession {
    pub contexts: BTreeMap<String, Arc<dyn Context>>,
    pub docker_config: PathBuf,
    pub events: Arc<dyn EventSink>,
    pub cancel: CancellationToken,
    pub handed: Handed,
}

#[async_trait]
impl Session for LocalSession {
    fn context(&self, name: &str) -> Option<Arc<dyn Context>> {
        self.contexts.get(name).cloned()
    }

    async fn credentials(&self, registry: &str) -> Result<Option<Credentials>, CredentialError> {
        DockerConfig::open(&self.docker_config).credentials(registry).await
    }

    async fn secret(&self, id: &str) -> Result<Option<Secret>, SecretError> {
        self.handed.secret(id).await
    }

    async fn ssh_agent(&self, id: &str) -> Result<Option<OwnedFd>, SecretError> {
        self.handed.agent(id).await
    }

    fn events(&self) -> &dyn EventSink {
        &*self.events
    }

    fn cancellation(&self) -> &CancellationToken {
        &self.cancel
    }
}
