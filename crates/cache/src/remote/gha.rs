//! GitHub's cache of Actions as a shared cache: the second version of its service, Twirp in JSON.
//!
//! An entry is written once and stays as it is. That is enough: a record is right whoever wrote it.

use super::objects::{NewObject, ObjectRecords, ObjectStore, unexpected};
use super::{RecordStore, failed};
use crate::{CacheError, CacheKey};
use async_trait::async_trait;
use forge_image::Digest;
use forge_registry::{Registry, TransferContext, WebBody, WebCall, WebMethod, WebReply};
use forge_session::Redacted;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Where GitHub's cache is, and whose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GhaPlace {
    /// The service (`ACTIONS_RESULTS_URL`).
    pub url: String,
    /// Who asks (`ACTIONS_RUNTIME_TOKEN`).
    pub token: Redacted,
    /// Tells several caches of a repository apart.
    pub scope: String,
    /// How long one exchange may take.
    pub timeout: Duration,
}

/// Records in GitHub's cache.
pub fn gha_records(registry: Arc<Registry>, place: GhaPlace) -> Arc<dyn RecordStore> {
    Arc::new(ObjectRecords(Arc::new(Actions { registry, place })))
}

struct Actions {
    registry: Arc<Registry>,
    place: GhaPlace,
}

const SERVICE: &str = "twirp/github.actions.results.api.v1.CacheService";
/// What entries of the service are told apart by, beside their keys: who can read what they hold.
const KIND: &[u8] = b"forge cache 1";
/// No answer of the service is longer.
const LONGEST_ANSWER: u64 = 1 << 20;

#[derive(Deserialize)]
struct Created {
    #[serde(default)]
    ok: bool,
    #[serde(default)]
    signed_upload_url: String,
}

#[derive(Deserialize)]
struct Found {
    #[serde(default)]
    ok: bool,
    #[serde(default)]
    signed_download_url: String,
    #[serde(default)]
    matched_key: String,
}

#[derive(Deserialize)]
struct Finished {
    #[serde(default)]
    ok: bool,
}

impl Actions {
    /// Calls a procedure; `None` where what it names is there, or is not.
    async fn procedure(
        &self,
        context: &TransferContext,
        name: &str,
        request: &Value,
    ) -> Result<Option<Vec<u8>>, CacheError> {
        let GhaPlace { url, token, .. } = &self.place;
        let call = WebCall {
            method: WebMethod::Post,
            url: Redacted::new(format!("{}/{SERVICE}/{name}", url.trim_end_matches('/'))),
            headers: vec![("content-type", "application/json".to_owned())],
            authorization: Some(Redacted::new(format!("Bearer {}", token.reveal()))),
            body: WebBody::Bytes(request.to_string().into_bytes()),
        };
        let reply = self.call(context, &call).await?;
        match reply.status() {
            200 => {
                let bytes = reply.bytes(LONGEST_ANSWER).await.map_err(|error| failed(self.name(), error))?;
                Ok(Some(bytes))
            }
            404 | 409 => Ok(None),
            _ => Err(unexpected(self.name(), reply).await),
        }
    }

    async fn call(&self, context: &TransferContext, call: &WebCall) -> Result<WebReply, CacheError> {
        let answered = tokio::time::timeout(self.place.timeout, self.registry.call(call, &*context.session)).await;
        match answered {
            Ok(reply) => reply.map_err(|error| failed(self.name(), error)),
            Err(elapsed) => Err(failed(self.name(), elapsed)),
        }
    }

    fn read<'a, T: Deserialize<'a>>(&self, bytes: &'a [u8]) -> Result<T, CacheError> {
        serde_json::from_slice(bytes).map_err(|error| failed(self.name(), error))
    }

    fn version() -> String {
        Digest::sha256(KIND).hex().to_owned()
    }

    /// Where an entry can be had.
    async fn find(&self, context: &TransferContext, name: &str) -> Result<Option<Redacted>, CacheError> {
        let request = json!({"key": name, "restore_keys": [], "version": Self::version()});
        let Some(answer) = self.procedure(context, "GetCacheEntryDownloadURL", &request).await? else {
            return Ok(None);
        };
        let found: Found = self.read(&answer)?;
        // The service finds by the beginning of keys, too.
        let is_it = found.ok && (found.matched_key.is_empty() || found.matched_key == name);
        Ok(is_it.then(|| Redacted::new(found.signed_download_url)))
    }
}

#[async_trait]
impl ObjectStore for Actions {
    fn name(&self) -> String {
        format!("gha:{}", self.place.scope)
    }

    fn record_names(&self, key: &CacheKey) -> Vec<String> {
        vec![format!("forge-step-{}-{key}", self.place.scope)]
    }

    fn blob_name(&self, digest: &Digest) -> String {
        format!("forge-blob-{digest}")
    }

    async fn exists(&self, context: &TransferContext, name: &str) -> Result<bool, CacheError> {
        Ok(self.find(context, name).await?.is_some())
    }

    async fn open(&self, context: &TransferContext, name: &str) -> Result<Option<WebReply>, CacheError> {
        let Some(url) = self.find(context, name).await? else { return Ok(None) };
        let body = WebBody::Empty;
        let call = WebCall { method: WebMethod::Get, url, headers: Vec::new(), authorization: None, body };
        let reply = self.call(context, &call).await?;
        match reply.status() {
            200 => Ok(Some(reply)),
            404 => Ok(None),
            _ => Err(unexpected(self.name(), reply).await),
        }
    }

    async fn put(&self, context: &TransferContext, name: &str, object: &NewObject) -> Result<(), CacheError> {
        let version = Self::version();
        let request = json!({"key": name, "version": version});
        let Some(answer) = self.procedure(context, "CreateCacheEntry", &request).await? else { return Ok(()) };
        let created: Created = self.read(&answer)?;
        if !created.ok {
            // It is there, or another builder is about to write it.
            return Ok(());
        }
        // The signed address leads to a store of blobs of Azure's.
        let headers =
            vec![("x-ms-blob-type", "BlockBlob".to_owned()), ("content-type", "application/octet-stream".to_owned())];
        let url = Redacted::new(created.signed_upload_url);
        let call = WebCall { method: WebMethod::Put, url, headers, authorization: None, body: object.body.clone() };
        let reply = self.call(context, &call).await?;
        if !(200..300).contains(&reply.status()) {
            return Err(unexpected(self.name(), reply).await);
        }
        let request = json!({"key": name, "version": version, "size_bytes": object.size.to_string()});
        let finished = self.procedure(context, "FinalizeCacheEntryUpload", &request).await?;
        let finished: Finished = self.read(&finished.unwrap_or_default())?;
        match finished.ok {
            true => Ok(()),
            false => Err(failed(self.name(), std::io::Error::other("an upload was not taken"))),
        }
    }
}
