//! A client as a build sees it.

use super::files::{Held, Incoming, SessionFiles, Wanted};
use super::{ClientSession, agent, content, upload};
use async_trait::async_trait;
use forge_buildkit_proto::moby::buildkit::secrets::v1::GetSecretRequest;
use forge_buildkit_proto::moby::buildkit::secrets::v1::secrets_client::SecretsClient;
use forge_buildkit_proto::moby::filesync::v1::CredentialsRequest;
use forge_buildkit_proto::moby::filesync::v1::auth_client::AuthClient;
use forge_image::Digest;
use forge_session::{
    Context, ContextEntry, ContextError, ContextPath, ContextSelection, CredentialError, Credentials, Event, EventSink,
    LocalContext, Redacted, RegistryToken, Secret, SecretError, Session, StatusUpdate, TokenRequest,
};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// What a build is handed by a client.
pub(crate) struct RemoteSession {
    /// `None` for a build whose caller has no session: it can be given nothing.
    pub client: Option<Arc<ClientSession>>,
    /// Clients that have single contexts, by the names of these.
    pub others: HashMap<String, Arc<ClientSession>>,
    pub files: Arc<SessionFiles>,
    pub events: Arc<dyn EventSink>,
    pub cancel: CancellationToken,
    fetched: tokio::sync::Mutex<()>,
    contexts: Mutex<HashMap<Key, Fetched>>,
    layouts: tokio::sync::Mutex<HashMap<(String, Digest), tempfile::TempDir>>,
}

type Key = (String, Vec<String>, Vec<String>, Vec<String>, Option<Vec<String>>);

struct Fetched {
    context: Arc<dyn Context>,
    _held: Held,
}

impl RemoteSession {
    pub(crate) fn new(
        client: Option<Arc<ClientSession>>,
        files: Arc<SessionFiles>,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Self {
        let (fetched, contexts, layouts) = Default::default();
        Self { client, others: HashMap::new(), files, events, cancel, fetched, contexts, layouts }
    }

    fn client(&self) -> Result<&Arc<ClientSession>, Status> {
        self.client.as_ref().ok_or_else(|| Status::failed_precondition("the build has no session"))
    }

    /// Waits for a client's answer as long as there is a client.
    async fn ask<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        self.ask_of(self.client()?, call).await
    }

    async fn ask_of<T>(
        &self,
        client: &ClientSession,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Status::cancelled("context canceled")),
            () = client.gone.cancelled() => Err(Status::unavailable("the client has gone: no active session")),
            answer = call => answer,
        }
    }

    fn find(&self, key: &Key) -> Option<Arc<dyn Context>> {
        let contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        contexts.get(key).map(|fetched| fetched.context.clone())
    }

    async fn fetch(&self, wanted: &ContextSelection<'_>) -> Result<(), Status> {
        let key = key(wanted);
        // One after the other: two steps may want the same.
        let _turn = self.fetched.lock().await;
        if self.find(&key).is_some() {
            return Ok(());
        }
        let (name, include, exclude, follow, metadata_only) = key.clone();
        let asked = Wanted { name, include, exclude, follow, metadata_only, is_compared: wanted.trusts_stamps };
        let told = self.reporter(wanted.vertex.cloned(), &asked.name);
        let client = match self.others.get(&asked.name) {
            Some(other) => other,
            None => self.client()?,
        };
        let held = self.ask_of(client, self.files.fetch(client, &asked, told)).await?;
        let files = LocalContext::open(&held.tree).map_err(|error| Status::internal(error.to_string()))?;
        let context = SessionContext { files, identity: held.identity.clone() };
        let fetched = Fetched { context: Arc::new(context), _held: held };
        self.contexts.lock().unwrap_or_else(PoisonError::into_inner).insert(key, fetched);
        Ok(())
    }

    /// Shows how much came in, under the step that wants it.
    fn reporter(&self, vertex: Option<Digest>, name: &str) -> impl Fn(Incoming) + Send + use<> {
        let (events, started, id) = (self.events.clone(), SystemTime::now(), format!("transferring {name}:"));
        move |incoming| {
            let Some(vertex) = vertex.clone() else { return };
            let now = SystemTime::now();
            let (bytes, completed) = match incoming {
                Incoming::SoFar(bytes) => (bytes, None),
                Incoming::Complete(bytes) => (bytes, Some(now)),
            };
            events.emit(Event::Status(StatusUpdate {
                id: id.clone(),
                vertex,
                name: "transferring".to_owned(),
                total: 0,
                current: bytes,
                timestamp: now,
                started: Some(started),
                completed,
            }));
        }
    }
}

/// A client's tree, known by whose it is and not by where it happens to lie.
struct SessionContext {
    files: LocalContext,
    identity: String,
}

impl Context for SessionContext {
    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn stat(&self, path: &ContextPath) -> Result<Option<ContextEntry>, ContextError> {
        self.files.stat(path)
    }

    fn children(&self, path: &ContextPath) -> Result<Vec<ContextEntry>, ContextError> {
        self.files.children(path)
    }

    fn open(&self, path: &ContextPath) -> Result<File, ContextError> {
        self.files.open(path)
    }
}

/// Docker Hub's registry is known to clients under the name that it is reached by.
fn host(registry: &str) -> &str {
    if registry == "docker.io" { "registry-1.docker.io" } else { registry }
}

fn of_client(status: &Status) -> CredentialError {
    CredentialError::Helper { helper: "of the client".to_owned(), message: status.message().to_owned() }
}

fn key(wanted: &ContextSelection<'_>) -> Key {
    let metadata_only = wanted.metadata_only.map(<[String]>::to_vec);
    let (name, include, exclude) = (wanted.name.to_owned(), wanted.include.to_vec(), wanted.exclude.to_vec());
    (name, include, exclude, wanted.follow.to_vec(), metadata_only)
}

#[async_trait]
impl Session for RemoteSession {
    fn context(&self, name: &str) -> Option<Arc<dyn Context>> {
        let contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        contexts.iter().find(|(key, _)| key.0 == name).map(|(_, fetched)| fetched.context.clone())
    }

    async fn fetch_context(&self, wanted: &ContextSelection<'_>) -> Result<(), ContextError> {
        self.fetch(wanted).await.map_err(|status| ContextError::Read {
            path: wanted.name.to_owned(),
            source: io::Error::other(status.message().to_owned()),
        })
    }

    fn selected_context(&self, wanted: &ContextSelection<'_>) -> Option<Arc<dyn Context>> {
        self.find(&key(wanted))
    }

    async fn layout(&self, name: &str, digest: &Digest) -> Result<Option<PathBuf>, ContextError> {
        let failed = |source| ContextError::Read { path: name.to_owned(), source };
        let Some(client) = self.client.as_ref().filter(|client| content::is_served(client)) else { return Ok(None) };
        let mut layouts = self.layouts.lock().await;
        let key = (name.to_owned(), digest.clone());
        if let Some(folder) = layouts.get(&key) {
            return Ok(Some(folder.path().to_owned()));
        }
        let folder = self.files.scratch().map_err(failed)?;
        let fetched = self.ask(content::fetch_layout(client, &format!("oci:{name}"), digest, folder.path())).await;
        fetched.map_err(|status| failed(io::Error::other(status.message().to_owned())))?;
        let path = folder.path().to_owned();
        layouts.insert(key, folder);
        Ok(Some(path))
    }

    fn upload(&self, address: &str) -> io::Result<Option<Box<dyn io::Read + Send>>> {
        let Some(client) = &self.client else { return Ok(None) };
        let opened = upload::open(client, address);
        opened.map(|stream| Some(Box::new(stream) as _)).map_err(|status| io::Error::other(status.message().to_owned()))
    }

    async fn credentials(&self, registry: &str) -> Result<Option<Credentials>, CredentialError> {
        let Some(client) = &self.client else { return Ok(None) };
        if !client.supports("/moby.filesync.v1.Auth/Credentials") {
            return Ok(None);
        }
        let mut auth = AuthClient::new(client.channel.clone());
        let asked = self.ask(auth.credentials(CredentialsRequest { host: host(registry).to_owned() })).await;
        let answer = match asked {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == Code::Unimplemented => return Ok(None),
            Err(status) => return Err(of_client(&status)),
        };
        Ok(match (answer.username.as_str(), answer.secret.as_str()) {
            (_, "") => None,
            ("", _) => Some(Credentials::RefreshToken(Redacted::new(answer.secret))),
            _ => Some(Credentials::Basic { username: answer.username, password: Redacted::new(answer.secret) }),
        })
    }

    async fn token(&self, wanted: &TokenRequest<'_>) -> Result<Option<RegistryToken>, CredentialError> {
        let Some(client) = &self.client else { return Ok(None) };
        let wanted = TokenRequest { registry: host(wanted.registry), ..*wanted };
        self.ask(client.tokens.token(client, &wanted)).await.map_err(|status| of_client(&status))
    }

    fn owner(&self) -> &str {
        self.client.as_ref().map_or("nobody", |client| &client.owner)
    }

    async fn secret(&self, id: &str) -> Result<Option<Secret>, SecretError> {
        let Some(client) = &self.client else { return Ok(None) };
        if !client.supports("/moby.buildkit.secrets.v1.Secrets/GetSecret") {
            return Ok(None);
        }
        let mut secrets = SecretsClient::new(client.channel.clone()).max_decoding_message_size(super::MOST_MESSAGE);
        let asked = secrets.get_secret(GetSecretRequest { id: id.to_owned(), ..GetSecretRequest::default() });
        match self.ask(asked).await {
            Ok(answer) => {
                let data = answer.into_inner().data;
                match data.len() > Secret::MAX_BYTES {
                    true => Err(SecretError::TooLarge { id: id.to_owned() }),
                    false => Ok(Some(Secret::new(data))),
                }
            }
            Err(status) => match status.code() {
                Code::NotFound | Code::Unimplemented => Ok(None),
                Code::Cancelled => Err(SecretError::Cancelled),
                _ => {
                    Err(SecretError::Read { id: id.to_owned(), source: io::Error::other(status.message().to_owned()) })
                }
            },
        }
    }

    async fn ssh_agent(&self, id: &str) -> Result<Option<OwnedFd>, SecretError> {
        let Some(client) = &self.client else { return Ok(None) };
        let failed = |source: io::Error| SecretError::Agent { id: id.to_owned(), source };
        let found = self.ask(agent::check(client, id)).await;
        match found.map_err(|status| failed(io::Error::other(status.message().to_owned())))? {
            false => Ok(None),
            true => agent::connect(client, id).await.map(Some).map_err(failed),
        }
    }

    /// The client says which of its sockets are agents, and filters what these hear.
    fn has_raw_sockets(&self) -> bool {
        true
    }

    fn events(&self) -> &dyn EventSink {
        &*self.events
    }

    fn cancellation(&self) -> &CancellationToken {
        &self.cancel
    }
}
