use super::answer::{ReplyBody, into_response};
use super::script::UploadFate;
use super::state::{Access, State};
use super::{Received, Reply, Script, protocol};
use crate::certificate::{ServerCertificate, TestCa};
use forge_image::Digest;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

/// A registry on a loopback port, with a thread and a runtime of its own, so that blocking tests can use it too. Stops
/// when it is dropped.
pub struct TestRegistry {
    authority: String,
    state: Arc<Mutex<State>>,
    stop: Option<oneshot::Sender<()>>,
}

/// How a registry is to be.
#[derive(Default)]
pub struct TestRegistryBuilder {
    address: Option<String>,
    access: Access,
    tls: Option<Arc<rustls::ServerConfig>>,
}

impl TestRegistryBuilder {
    /// Listens on another loopback address than 127.0.0.1: another host.
    pub fn address(self, address: &str) -> Self {
        Self { address: Some(address.to_owned()), ..self }
    }

    /// Wants user and password with each request.
    pub fn basic(self, user: &str, password: &str) -> Self {
        Self { access: Access::Basic { user: user.to_owned(), password: password.to_owned() }, ..self }
    }

    /// Wants tokens; `/token` gives them for user and password. Strangers may not even pull.
    pub fn bearer(self, user: &str, password: &str) -> Self {
        let (user, password) = (user.to_owned(), password.to_owned());
        Self { access: Access::Bearer { user, password, realm: None, anonymous_pull: false }, ..self }
    }

    /// Lets strangers pull, with a token.
    pub fn anonymous_pull(mut self) -> Self {
        if let Access::Bearer { anonymous_pull, .. } = &mut self.access {
            *anonymous_pull = true;
        }
        self
    }

    /// Names another token server than its own.
    pub fn realm(mut self, address: &str) -> Self {
        if let Access::Bearer { realm, .. } = &mut self.access {
            *realm = Some(address.to_owned());
        }
        self
    }

    /// Speaks TLS.
    pub fn tls(self, certificate: &ServerCertificate) -> Self {
        Self { tls: Some(certificate.config(None)), ..self }
    }

    /// Speaks TLS with those who show a certificate of an authority.
    pub fn mutual_tls(self, certificate: &ServerCertificate, clients: &TestCa) -> Self {
        Self { tls: Some(certificate.config(Some(clients))), ..self }
    }

    /// Starts it.
    pub fn start(self) -> TestRegistry {
        let address = self.address.as_deref().unwrap_or("127.0.0.1");
        let listener = TcpListener::bind((address, 0)).expect("a loopback port");
        listener.set_nonblocking(true).expect("a socket");
        let authority = listener.local_addr().expect("the listener is bound").to_string();
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let state = State { access: self.access, origin: format!("{scheme}://{authority}"), ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let (stop, stopped) = oneshot::channel();
        let (serving, tls) = (state.clone(), self.tls.map(TlsAcceptor::from));
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, serving, tls) => {}
                    _ = stopped => {}
                }
            });
        });
        TestRegistry { authority, state, stop: Some(stop) }
    }
}

impl TestRegistry {
    /// Starts an open registry over plain HTTP.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// A registry with other manners.
    pub fn builder() -> TestRegistryBuilder {
        TestRegistryBuilder::default()
    }

    /// `127.0.0.1:port`, as it stands in references.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// `http://127.0.0.1:port`.
    pub fn origin(&self) -> String {
        self.state().origin.clone()
    }

    /// Adds a script behind those that there are.
    pub fn script(&self, script: Script) {
        self.state().scripts.push(script);
    }

    /// Drops all scripts.
    pub fn clear_scripts(&self) {
        self.state().scripts.clear();
    }

    /// Puts a blob into a repository.
    pub fn put_blob(&self, repository: &str, bytes: impl Into<Vec<u8>>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        self.state().repositories.entry(repository.to_owned()).or_default().blobs.insert(digest.clone(), bytes);
        digest
    }

    /// Puts a manifest into a repository, unchecked; under a tag, if one is given.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl Into<Vec<u8>>,
    ) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        let mut state = self.state();
        let repository = state.repositories.entry(repository.to_owned()).or_default();
        repository.manifests.insert(digest.clone(), (media_type.to_owned(), bytes));
        if let Some(tag) = tag {
            repository.tags.insert(tag.to_owned(), digest.clone());
        }
        digest
    }

    /// The bytes of a blob or manifest, if a repository has it.
    pub fn content(&self, repository: &str, digest: &Digest) -> Option<Vec<u8>> {
        let state = self.state();
        let repository = state.repositories.get(repository)?;
        let manifest = || repository.manifests.get(digest).map(|(_, bytes)| bytes.clone());
        repository.blobs.get(digest).cloned().or_else(manifest)
    }

    /// What a tag points at: digest, media type and bytes.
    pub fn tagged(&self, repository: &str, tag: &str) -> Option<(Digest, String, Vec<u8>)> {
        let state = self.state();
        let repository = state.repositories.get(repository)?;
        let digest = repository.tags.get(tag)?;
        let (media_type, bytes) = repository.manifests.get(digest)?;
        Some((digest.clone(), media_type.clone(), bytes.clone()))
    }

    /// All requests so far, in order.
    pub fn received(&self) -> Vec<Received> {
        self.state().log.clone()
    }

    /// Methods and paths of all requests so far, one a line each.
    pub fn lines(&self) -> Vec<String> {
        self.state().log.iter().map(|request| format!("{} {}", request.method, request.target())).collect()
    }

    /// Forgets the requests so far.
    pub fn clear_log(&self) {
        self.state().log.clear();
    }

    /// A valid token for scopes as `repository:name:pull`.
    pub fn give_token(&self, scopes: &[String]) -> String {
        let mut state = self.state();
        let token = format!("given-{}", state.number());
        state.tokens.insert(token.clone(), (scopes.to_vec(), std::time::Instant::now()));
        token
    }

    /// Makes all tokens invalid.
    pub fn revoke_tokens(&self) {
        self.state().tokens.clear();
    }

    /// Makes every token invalid so long after it was given, whatever the client was told.
    pub fn expire_tokens_after(&self, life: Duration) {
        self.state().token_life = Some(life);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no handler panics while it holds the lock")
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread has ended by itself if there is nobody to tell.
            let _ = stop.send(());
        }
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>, tls: Option<TlsAcceptor>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (state, tls) = (state.clone(), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => serve(stream, state).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, state).await;
                    }
                }
            }
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, state: Arc<Mutex<State>>) {
    let service = service_fn(move |request| respond(request, state.clone()));
    // Clients hang up, and scripts cut connections: neither is news.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn respond(request: Request<Incoming>, state: Arc<Mutex<State>>) -> io::Result<Response<ReplyBody>> {
    let (parts, body) = request.into_parts();
    let text = |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut received = Received {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body: Vec::new(),
    };
    let script = lock(&state).scripts.iter_mut().find_map(|script| script.take(&received));
    let fate = script.as_ref().map(Script::upload).unwrap_or_default();
    let whole = read(body, &fate, &mut received.body).await;
    if let Err(error) = whole {
        // What arrived of an upload stays, as with real registries; nobody is there to be answered.
        let mut state = lock(&state);
        state.log.push(received.clone());
        if received.method == "PATCH" {
            protocol::answer(&mut state, &received);
        }
        return Err(error);
    }
    let reply = decide(&mut lock(&state), &received, script);
    tokio::time::sleep(reply.delay).await;
    match reply.hang_up {
        true => Err(io::Error::other("hung up by the test")),
        false => Ok(into_response(reply, received.method == "HEAD")),
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no handler panics while it holds the lock")
}

/// Reads a body into `into` until it ends or its fate is sealed.
async fn read(mut body: Incoming, fate: &UploadFate, into: &mut Vec<u8>) -> io::Result<()> {
    while let Some(frame) = body.frame().await {
        let Ok(bytes) = frame.map_err(io::Error::other)?.into_data() else { continue };
        let most = fate.cut_after.unwrap_or(usize::MAX) - into.len();
        into.extend_from_slice(&bytes[..bytes.len().min(most)]);
        if bytes.len() >= most {
            return Err(io::Error::other("cut by the test"));
        }
        if !fate.pause.is_zero() {
            tokio::time::sleep(fate.pause).await;
        }
    }
    Ok(())
}

fn decide(state: &mut State, received: &Received, script: Option<Script>) -> Reply {
    state.log.push(received.clone());
    let instead = script.as_ref().and_then(Script::instead);
    let mut reply = instead.unwrap_or_else(|| protocol::answer(state, received));
    if let Some(script) = script {
        script.apply(received, &mut reply);
    }
    reply
}
