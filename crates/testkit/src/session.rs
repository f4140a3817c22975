use async_trait::async_trait;
use forge_session::{
    Context, CredentialError, Credentials, Event, EventSink, Redacted, RegistryToken, Secret, SecretError, Session,
    TokenRequest,
};
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A session with whatever a test puts into it: no files, anonymous, recording events.
#[derive(Default)]
pub struct TestSession {
    contexts: HashMap<String, Arc<dyn Context>>,
    credentials: HashMap<String, Credentials>,
    owner: String,
    tokens: Mutex<VecDeque<String>>,
    wanted: Mutex<Vec<String>>,
    secrets: HashMap<String, Secret>,
    agents: HashMap<String, PathBuf>,
    asked: Mutex<Vec<String>>,
    events: Events,
    cancellation: CancellationToken,
}

#[derive(Default)]
struct Events(Mutex<Vec<Event>>);

impl EventSink for Events {
    fn emit(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl TestSession {
    /// An empty session.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tree of files.
    pub fn with_context(mut self, name: &str, context: Arc<dyn Context>) -> Self {
        self.contexts.insert(name.to_owned(), context);
        self
    }

    /// Adds a user and a password for a registry.
    pub fn with_login(self, registry: &str, username: &str, password: &str) -> Self {
        let password = Redacted::new(password);
        self.with_credentials(registry, Credentials::Basic { username: username.to_owned(), password })
    }

    /// Adds credentials for a registry.
    pub fn with_credentials(mut self, registry: &str, credentials: Credentials) -> Self {
        self.credentials.insert(registry.to_owned(), credentials);
        self
    }

    /// Gives tokens of its own, one after the other.
    pub fn with_tokens(self, tokens: &[&str]) -> Self {
        Self { tokens: Mutex::new(tokens.iter().map(|token| (*token).to_owned()).collect()), ..self }
    }

    /// Is that of another one.
    pub fn of(self, owner: &str) -> Self {
        Self { owner: owner.to_owned(), ..self }
    }

    /// Adds a secret.
    pub fn with_secret(mut self, id: &str, value: &str) -> Self {
        self.secrets.insert(id.to_owned(), Secret::new(value));
        self
    }

    /// Adds an SSH agent that listens on a socket.
    pub fn with_agent(mut self, id: &str, socket: impl Into<PathBuf>) -> Self {
        self.agents.insert(id.to_owned(), socket.into());
        self
    }

    /// The registries that credentials were asked for, in order.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// The tokens that were asked for: realm, service, scopes and what was refused.
    pub fn wanted(&self) -> Vec<String> {
        self.wanted.lock().unwrap().clone()
    }

    /// The events so far.
    pub fn events_so_far(&self) -> Vec<Event> {
        self.events.0.lock().unwrap().clone()
    }

    /// Cancels whatever runs for this session.
    pub fn cancel(&self) {
        self.cancellation.cancel();
    }
}

#[async_trait]
impl Session for TestSession {
    fn context(&self, name: &str) -> Option<Arc<dyn Context>> {
        self.contexts.get(name).cloned()
    }

    async fn credentials(&self, registry: &str) -> Result<Option<Credentials>, CredentialError> {
        self.asked.lock().unwrap().push(registry.to_owned());
        Ok(self.credentials.get(registry).cloned())
    }

    async fn token(&self, wanted: &TokenRequest<'_>) -> Result<Option<RegistryToken>, CredentialError> {
        let (service, scopes) = (wanted.service.unwrap_or("-"), wanted.scopes.join(" "));
        let refused = wanted.refused.map_or("-", Redacted::reveal);
        self.wanted.lock().unwrap().push(format!("{} {service} {scopes} {refused}", wanted.realm));
        let token = self.tokens.lock().unwrap().pop_front();
        Ok(token.map(|token| RegistryToken { token: Redacted::new(token), life: Duration::from_secs(300) }))
    }

    fn owner(&self) -> &str {
        &self.owner
    }

    async fn secret(&self, id: &str) -> Result<Option<Secret>, SecretError> {
        Ok(self.secrets.get(id).cloned())
    }

    async fn ssh_agent(&self, id: &str) -> Result<Option<OwnedFd>, SecretError> {
        let Some(socket) = self.agents.get(id) else { return Ok(None) };
        let failed = |source| SecretError::Agent { id: id.to_owned(), source };
        Ok(Some(UnixStream::connect(socket).map_err(failed)?.into()))
    }

    fn events(&self) -> &dyn EventSink {
        &self.events
    }

    fn cancellation(&self) -> &CancellationToken {
        &self.cancellation
    }
}
