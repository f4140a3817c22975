use async_trait::async_trait;
use forge_image::Digest;
use forge_session::{
    Context, ContextError, ContextSelection, CredentialError, Credentials, EventSink, RegistryToken, Secret,
    SecretError, Session, TokenRequest,
};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
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

    async fn fetch_context(&self, wanted: &ContextSelection<'_>) -> Result<(), ContextError> {
        let cancelled = || ContextError::Read {
            path: wanted.name.to_owned(),
            source: std::io::Error::other("the build was cancelled"),
        };
        let fetched = self.cancellation.run_until_cancelled(self.session.fetch_context(wanted)).await;
        fetched.unwrap_or_else(|| Err(cancelled()))
    }

    fn selected_context(&self, wanted: &ContextSelection<'_>) -> Option<Arc<dyn Context>> {
        self.session.selected_context(wanted)
    }

    async fn layout(&self, name: &str, digest: &Digest) -> Result<Option<PathBuf>, ContextError> {
        self.session.layout(name, digest).await
    }

    fn upload(&self, address: &str) -> std::io::Result<Option<Box<dyn std::io::Read + Send>>> {
        self.session.upload(address)
    }

    async fn credentials(&self, registry: &str) -> Result<Option<Credentials>, CredentialError> {
        self.session.credentials(registry).await
    }

    async fn token(&self, wanted: &TokenRequest<'_>) -> Result<Option<RegistryToken>, CredentialError> {
        self.session.token(wanted).await
    }

    fn owner(&self) -> &str {
        self.session.owner()
    }

    async fn secret(&self, id: &str) -> Result<Option<Secret>, SecretError> {
        // It may come through a pipe that nobody writes to.
        let answer = self.cancellation.run_until_cancelled(self.session.secret(id)).await;
        answer.unwrap_or(Err(SecretError::Cancelled))
    }

    async fn ssh_agent(&self, id: &str) -> Result<Option<OwnedFd>, SecretError> {
        let answer = self.cancellation.run_until_cancelled(self.session.ssh_agent(id)).await;
        answer.unwrap_or(Err(SecretError::Cancelled))
    }

    fn has_raw_sockets(&self) -> bool {
        self.session.has_raw_sockets()
    }

    fn events(&self) -> &dyn EventSink {
        self.session.events()
    }

    fn cancellation(&self) -> &CancellationToken {
        &self.cancellation
    }
}

/// The build's session with one step's place among those that run at once.
pub(crate) struct StepSession {
    build: Arc<dyn Session>,
    slots: Arc<Semaphore>,
    place: Mutex<Option<OwnedSemaphorePermit>>,
}

impl StepSession {
    /// A step without a place.
    pub fn new(build: Arc<dyn Session>, slots: Arc<Semaphore>) -> Self {
        Self { build, slots, place: Mutex::default() }
    }
}

#[async_trait]
impl Session for StepSession {
    fn context(&self, name: &str) -> Option<Arc<dyn Context>> {
        self.build.context(name)
    }

    fn upload(&self, address: &str) -> std::io::Result<Option<Box<dyn std::io::Read + Send>>> {
        self.build.upload(address)
    }

    async fn credentials(&self, registry: &str) -> Result<Option<Credentials>, CredentialError> {
        self.build.credentials(registry).await
    }

    async fn token(&self, wanted: &TokenRequest<'_>) -> Result<Option<RegistryToken>, CredentialError> {
        self.build.token(wanted).await
    }

    fn owner(&self) -> &str {
        self.build.owner()
    }

    async fn secret(&self, id: &str) -> Result<Option<Secret>, SecretError> {
        self.build.secret(id).await
    }

    async fn ssh_agent(&self, id: &str) -> Result<Option<OwnedFd>, SecretError> {
        self.build.ssh_agent(id).await
    }

    fn has_raw_sockets(&self) -> bool {
        self.build.has_raw_sockets()
    }

    fn events(&self) -> &dyn EventSink {
        self.build.events()
    }

    fn cancellation(&self) -> &CancellationToken {
        self.build.cancellation()
    }

    async fn leave_place(&self) {
        self.place.lock().await.take();
    }

    async fn take_place(&self) {
        let mut place = self.place.lock().await;
        if place.is_none() {
            let taken = self.cancellation().run_until_cancelled(self.slots.clone().acquire_owned()).await;
            // The semaphore is never closed; whoever is cancelled sees it by the token.
            *place = taken.and_then(Result::ok);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_session::Event;

    /// Never answers.
    struct Silent(CancellationToken);

    impl EventSink for Silent {
        fn emit(&self, _event: Event) {}
    }

    #[async_trait]
    impl Session for Silent {
        fn context(&self, _name: &str) -> Option<Arc<dyn Context>> {
            None
        }

        async fn credentials(&self, _registry: &str) -> Result<Option<Credentials>, CredentialError> {
            std::future::pending().await
        }

        async fn secret(&self, _id: &str) -> Result<Option<Secret>, SecretError> {
            std::future::pending().await
        }

        async fn ssh_agent(&self, _id: &str) -> Result<Option<OwnedFd>, SecretError> {
            std::future::pending().await
        }

        fn events(&self) -> &dyn EventSink {
            self
        }

        fn cancellation(&self) -> &CancellationToken {
            &self.0
        }
    }

    #[tokio::test]
    async fn nobody_waits_for_a_secret_when_the_build_has_failed() {
        let caller = CancellationToken::new();
        let cancellation = caller.child_token();
        let session = BuildSession { session: Arc::new(Silent(caller)), cancellation: cancellation.clone() };
        cancellation.cancel();
        assert!(matches!(session.secret("s").await, Err(SecretError::Cancelled)));
        assert!(matches!(session.ssh_agent("a").await, Err(SecretError::Cancelled)));
    }
}
