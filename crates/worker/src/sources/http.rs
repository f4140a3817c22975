//! Files of web servers, each as the only entry of a tree.

use super::download::Receiving;
use super::error::RemoteError;
use super::single_file::{SingleFile, seconds};
use super::{Asked, ReadObjects, Source, SourceFacts, SourceState, Sources, auth, file_name, remote_key, time};
use crate::error::WorkError;
use async_trait::async_trait;
use forge_cache::{Download, DownloadKey, ResultRef};
use forge_image::{Digest, Hasher};
use forge_llb::HttpSource;
use forge_registry::{ContentHash, TransferContext, WebAnswer, WebError, WebFile, WebRequest, http_date};
use forge_session::Redacted;
use forge_solver::CacheMap;
use forge_store::ScratchDir;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

/// What ADD gives a download.
const DEFAULT_MODE: u32 = 0o600;

/// Where clients of BuildKit's say that streams of theirs are.
const UPLOADS: &str = "http://buildkit-session/";

/// Bytes that are read at once of such a stream.
const PIECE: usize = 256 << 10;

/// What was found in this build, by what was asked for.
pub(super) type Downloads = Mutex<HashMap<DownloadKey, Arc<Found>>>;

/// A file as it is now.
pub(super) struct Found {
    what: Download,
    /// The bytes, where the server sent them in this build and no snapshot took them yet.
    body: Mutex<Option<Body>>,
}

impl Found {
    fn has_body(&self) -> bool {
        self.body.lock().expect("no holder panics").is_some()
    }
}

/// Bytes that came in.
struct Body {
    path: PathBuf,
    _folder: ScratchDir,
}

pub(super) struct Http<'a> {
    pub sources: &'a Sources,
    pub op: &'a HttpSource,
}

#[async_trait]
impl Source for Http<'_> {
    /// A file with a checksum is known without asking anybody; any other is asked for in every build.
    async fn cache_map(&self, asked: &Asked<'_>) -> Result<CacheMap, WorkError> {
        let (digest, name, mtime) = match &self.op.checksum {
            Some(checksum) => (checksum.clone(), self.name(None, &self.op.url)?, None),
            None => {
                let found = self.pin(asked).await?;
                (found.what.digest.clone(), found.what.filename.clone(), found.what.mtime)
            }
        };
        let (uid, gid) = self.op.owner.unwrap_or_default();
        let mtime = mtime.map_or_else(String::new, |time| seconds(time).to_string());
        let key = format!("http {digest} {:o} {uid}:{gid} {mtime} {name}", self.mode());
        let shown = self.shown();
        Ok(remote_key(&key, [("http", shown), ("digest", digest.to_string()), ("name", name)]))
    }

    async fn state(&self, asked: &Asked<'_>) -> Result<SourceState, WorkError> {
        Ok(SourceState::File(match &self.op.checksum {
            Some(checksum) => checksum.clone(),
            None => self.pin(asked).await?.what.digest.clone(),
        }))
    }

    async fn snapshot(&self, asked: &Asked<'_>) -> Result<ResultRef, WorkError> {
        let found = self.with_body(asked).await?;
        let body = found.body.lock().expect("no holder panics").take();
        match body {
            Some(body) => self.commit(&found.what, body).await,
            // Another vertex took it.
            None => {
                let found = self.fetch(&found.what.digest, asked).await?;
                let body = found.body.into_inner().expect("no holder panics");
                self.commit(&found.what, body.expect("it was fetched just now")).await
            }
        }
    }

    async fn facts(&self, _objects: ReadObjects, asked: &Asked<'_>) -> Result<SourceFacts, WorkError> {
        let what = self.pin(asked).await?.what.clone();
        Ok(SourceFacts::File { digest: what.digest, name: what.filename, modified: what.mtime })
    }

    /// What the server says, else the newest file of the archive that it is.
    async fn time(&self, asked: &Asked<'_>) -> Result<Option<SystemTime>, WorkError> {
        if self.op.checksum.is_none() {
            let found = self.pin(asked).await?;
            if found.what.mtime.is_some() {
                return Ok(found.what.mtime);
            }
        }
        let found = self.with_body(asked).await?;
        if found.what.mtime.is_some() {
            return Ok(found.what.mtime);
        }
        let path = found.body.lock().expect("no holder panics").as_ref().map(|body| body.path.clone());
        let newest = move || path.and_then(|path| time::newest_in_archive(&path));
        Ok(tokio::task::spawn_blocking(newest).await?)
    }
}

impl Http<'_> {
    fn mode(&self) -> u32 {
        self.op.mode.unwrap_or(DEFAULT_MODE) & 0o7777
    }

    /// The address without its query, which may hold tokens.
    fn shown(&self) -> String {
        self.op.url.split(['?', '#']).next().unwrap_or_default().to_owned()
    }

    fn name(&self, disposition: Option<&[u8]>, url: &str) -> Result<String, RemoteError> {
        file_name::choose(self.op.filename.as_deref(), disposition, url)
            .map_err(|(name, reason)| RemoteError::FileName { url: self.shown(), name, reason })
    }

    /// Finds out what the file is now, once for a build. What is sent is kept for the snapshot.
    async fn pin(&self, asked: &Asked<'_>) -> Result<Arc<Found>, WorkError> {
        let authorization = self.authorization(asked).await?;
        let key = self.key(authorization.as_ref(), None);
        if let Some(found) = self.found(&key) {
            return Ok(found);
        }
        if self.op.url.starts_with(UPLOADS) {
            return Ok(self.keep(key, self.uploaded(asked).await?));
        }
        let known = self.known(&key).await?;
        let request = WebRequest {
            etag: known.as_ref().and_then(|known| known.etag.clone()),
            last_modified: known.as_ref().and_then(|known| known.last_modified.clone()),
            ..self.request(authorization)
        };
        let found = match (self.ask(&request, asked).await?, known) {
            (WebAnswer::Unchanged, Some(what)) => Found { what, body: Mutex::default() },
            (WebAnswer::Unchanged, None) => return Err(self.unasked().into()),
            (WebAnswer::File(file), _) => self.receive(*file, None, asked).await?,
        };
        self.remember(&key, &found.what).await?;
        Ok(self.keep(key, found))
    }

    /// Takes what the session itself has for the address: no server is asked.
    async fn uploaded(&self, asked: &Asked<'_>) -> Result<Found, WorkError> {
        let shown = self.shown();
        let filename = self.name(None, &self.op.url)?;
        let failed = move |source| RemoteError::Read { what: shown.clone(), source };
        let absent = || std::io::Error::new(std::io::ErrorKind::NotFound, "the session has no such stream");
        let opened = asked.session.upload(&self.op.url).map_err(&failed)?;
        let mut stream = opened.ok_or_else(absent).map_err(&failed)?;
        let store = self.sources.store.clone();
        let taking = move || -> Result<(Body, Digest, u64), WorkError> {
            let folder = store.scratch("download")?;
            let path = folder.path().join("file");
            let mut take = || -> std::io::Result<(Digest, u64)> {
                let (mut out, mut hasher, mut size) = (File::create_new(&path)?, Hasher::new(), 0);
                let mut buffer = vec![0; PIECE];
                loop {
                    let count = stream.read(&mut buffer)?;
                    if count == 0 {
                        return Ok((hasher.finish(), size));
                    }
                    hasher.update(&buffer[..count]);
                    out.write_all(&buffer[..count])?;
                    size += count as u64;
                }
            };
            let (digest, size) = take().map_err(failed)?;
            Ok((Body { path, _folder: folder }, digest, size))
        };
        let (body, digest, size) = tokio::task::spawn_blocking(taking).await??;
        let what = Download { etag: None, last_modified: None, digest, size, filename, mtime: None };
        Ok(Found { what, body: Mutex::new(Some(body)) })
    }

    /// The file with its bytes: those that came when it was pinned, or the ones that it was pinned to.
    async fn with_body(&self, asked: &Asked<'_>) -> Result<Arc<Found>, WorkError> {
        let expected = match &self.op.checksum {
            Some(checksum) => checksum.clone(),
            None => {
                let found = self.pin(asked).await?;
                if found.has_body() {
                    return Ok(found);
                }
                // A snapshot took them, or the server said that nothing changed and the layer of that time is gone.
                found.what.digest.clone()
            }
        };
        let key = self.key(self.authorization(asked).await?.as_ref(), Some(&expected));
        match self.found(&key).filter(|found| found.has_body()) {
            Some(found) => Ok(found),
            None => Ok(self.keep(key, self.fetch(&expected, asked).await?)),
        }
    }

    fn found(&self, key: &DownloadKey) -> Option<Arc<Found>> {
        self.sources.downloads.lock().expect("no holder panics").get(key).cloned()
    }

    fn keep(&self, key: DownloadKey, found: Found) -> Arc<Found> {
        let found = Arc::new(found);
        self.sources.downloads.lock().expect("no holder panics").insert(key, found.clone());
        found
    }

    async fn fetch(&self, expected: &Digest, asked: &Asked<'_>) -> Result<Found, WorkError> {
        if self.op.url.starts_with(UPLOADS) {
            let found = self.uploaded(asked).await?;
            return match found.what.digest == *expected {
                true => Ok(found),
                false => {
                    let (url, expected, found) = (self.shown(), expected.clone(), found.what.digest);
                    Err(RemoteError::Mismatch { url, expected, found }.into())
                }
            };
        }
        let request = self.request(self.authorization(asked).await?);
        match self.ask(&request, asked).await? {
            WebAnswer::File(file) => self.receive(*file, Some(expected), asked).await,
            WebAnswer::Unchanged => Err(self.unasked().into()),
        }
    }

    /// A server that says "not modified" to whoever has nothing.
    fn unasked(&self) -> RemoteError {
        WebError::Status { url: self.shown(), status: 304 }.into()
    }

    async fn ask(&self, request: &WebRequest, asked: &Asked<'_>) -> Result<WebAnswer, RemoteError> {
        Ok(self.sources.images.registry().file(request, &**asked.session).await?)
    }

    fn request(&self, authorization: Option<Redacted>) -> WebRequest {
        let (url, headers) = (self.op.url.clone(), self.op.headers.clone());
        WebRequest { url, authorization, headers, ..WebRequest::default() }
    }

    /// Takes the bytes to the disk.
    async fn receive(
        &self,
        mut file: WebFile,
        expected: Option<&Digest>,
        asked: &Asked<'_>,
    ) -> Result<Found, WorkError> {
        // The name of a redirect's target says nothing: BuildKit takes that of the address that was asked for.
        let filename = self.name(file.content_disposition(), &self.op.url)?;
        let (etag, last_modified) = (file.etag().map(str::to_owned), file.last_modified().map(str::to_owned));
        let store = self.sources.store.clone();
        let folder = tokio::task::spawn_blocking(move || store.scratch("download")).await??;
        let path = folder.path().join("file");
        let (digest, size) = self.write(&mut file, &path, expected, asked).await?;
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            let (url, expected) = (self.shown(), expected.clone());
            return Err(RemoteError::Mismatch { url, expected, found: digest }.into());
        }
        let mtime = last_modified.as_deref().and_then(http_date);
        let what = Download { etag, last_modified, digest, size, filename, mtime };
        Ok(Found { what, body: Mutex::new(Some(Body { path, _folder: folder })) })
    }

    async fn write(
        &self,
        file: &mut WebFile,
        path: &Path,
        expected: Option<&Digest>,
        asked: &Asked<'_>,
    ) -> Result<(Digest, u64), RemoteError> {
        let context = TransferContext { vertex: asked.vertex.clone(), ..self.sources.images.context().clone() };
        let announced = file.length();
        let progress = context.begin(self.shown(), "downloading", announced.unwrap_or_default());
        let hasher = match expected {
            Some(digest) => ContentHash::like(digest),
            None => ContentHash::default(),
        };
        let out = File::create_new(path).map_err(|source| RemoteError::Write { what: self.shown(), source })?;
        let mut receiving = Receiving::new(out, hasher, file.packing(), self.sources.store.layers().clone());
        while let Some(chunk) = file.chunk(&**asked.session).await? {
            receiving.take(&chunk).map_err(|error| error.of(self.shown()))?;
            progress.set(receiving.received());
        }
        match announced {
            Some(expected) if expected != receiving.received() => {
                Err(RemoteError::Length { url: self.shown(), expected, found: receiving.received() })
            }
            _ => {
                let whole = receiving.finish().map_err(|error| error.of(self.shown()))?;
                progress.complete();
                Ok(whole)
            }
        }
    }

    /// Makes a layer of the file.
    async fn commit(&self, what: &Download, body: Body) -> Result<ResultRef, WorkError> {
        let (mode, owner) = (self.mode(), self.op.owner.unwrap_or_default());
        let (name, mtime) = (what.filename.clone(), what.mtime.unwrap_or(UNIX_EPOCH));
        let Body { path: bytes, _folder: folder } = body;
        self.sources.commit_file(SingleFile { bytes, folder, name, mode, owner, mtime }).await
    }

    /// What this download is known by from build to build: everything that decides what is sent and what it becomes. Of
    /// credentials only that there are some: whether they still open the file the server says in every build.
    fn key(&self, authorization: Option<&Redacted>, digest: Option<&Digest>) -> DownloadKey {
        let authorization = if authorization.is_some() { "authorized" } else { "" };
        let filename = self.op.filename.as_deref().unwrap_or_default();
        let owner = format!("{:?} {:o}", self.op.owner, self.mode());
        let digest = digest.map(Digest::as_str).unwrap_or_default();
        let headers: String = self.op.headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        if !headers.is_empty() {
            let parts = [&self.op.url, authorization, filename, &owner, digest, &headers];
            return DownloadKey::new(&parts.map(str::as_bytes));
        }
        let parts = [&self.op.url, authorization, filename, &owner, digest];
        DownloadKey::new(&parts.map(str::as_bytes))
    }

    async fn known(&self, key: &DownloadKey) -> Result<Option<Download>, WorkError> {
        let Some(index) = self.sources.index.get().cloned() else { return Ok(None) };
        let key = *key;
        Ok(tokio::task::spawn_blocking(move || index.download(&key)).await?.map_err(RemoteError::from)?)
    }

    async fn remember(&self, key: &DownloadKey, what: &Download) -> Result<(), WorkError> {
        let Some(index) = self.sources.index.get().cloned() else { return Ok(()) };
        if what.etag.is_none() && what.last_modified.is_none() {
            return Ok(());
        }
        let (key, what) = (*key, what.clone());
        let save = move || index.save_download(&key, &what, SystemTime::now());
        Ok(tokio::task::spawn_blocking(save).await?.map_err(RemoteError::from)?)
    }

    /// The user and password of the address, or a secret of the session: the one that the source names, else those for
    /// the host.
    async fn authorization(&self, asked: &Asked<'_>) -> Result<Option<Redacted>, RemoteError> {
        if let Some(id) = &self.op.auth_header_secret
            && let Some(secret) = asked.session.secret(id).await?
        {
            return Ok(Some(Redacted::new(auth::text(id, &secret)?)));
        }
        if let Some(credentials) = &self.op.credentials {
            return Ok(Some(auth::basic(&credentials.user(), &credentials.reveal_password())));
        }
        for host in hosts(&self.op.url) {
            for (name, before) in [("HTTP_AUTH_HEADER", ""), ("HTTP_AUTH_TOKEN", "Bearer ")] {
                let id = format!("{name}_{host}");
                if let Some(secret) = asked.session.secret(&id).await? {
                    return Ok(Some(Redacted::new(format!("{before}{}", auth::text(&id, &secret)?))));
                }
            }
        }
        Ok(None)
    }
}

/// The address's host as it stands there, and without its port.
fn hosts(url: &str) -> Vec<String> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let bare = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    match bare == authority {
        true => vec![authority.to_owned()],
        false => vec![authority.to_owned(), bare.to_owned()],
    }
}
