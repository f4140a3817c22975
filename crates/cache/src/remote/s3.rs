//! A bucket of S3, or of what speaks as S3 does, as a shared cache.

use super::objects::{NewObject, ObjectRecords, ObjectStore, unexpected};
use super::signature_v4::{Signed, escaped, sign};
use super::{RecordStore, S3Credentials, failed};
use crate::{CacheError, CacheKey};
use async_trait::async_trait;
use forge_image::Digest;
use forge_registry::{Registry, TransferContext, WebBody, WebCall, WebMethod, WebReply, http_date};
use forge_session::Redacted;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Where in S3 records and blobs lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Place {
    /// The bucket.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// Whose service it is, `https://host[:port]`; Amazon's where `None`.
    pub endpoint: Option<String>,
    /// Whether the bucket is named in paths, not in the host.
    pub path_style: bool,
    /// What the names of all objects begin with.
    pub prefix: String,
    /// What follows in those of blobs.
    pub blobs_prefix: String,
    /// What follows in those of records.
    pub records_prefix: String,
    /// Tells several caches in the bucket apart. Written are all of these; of those that are read the first counts that has
    /// something.
    pub names: Vec<String>,
    /// Who asks; anybody where `None`.
    pub credentials: Option<S3Credentials>,
    /// Blobs older than this are made new when they are needed, so that rules of the bucket by age do not remove them.
    pub touch_refresh: Duration,
}

/// Records in a bucket.
pub fn s3_records(registry: Arc<Registry>, place: S3Place) -> Arc<dyn RecordStore> {
    Arc::new(ObjectRecords(Arc::new(Bucket { registry, place })))
}

struct Bucket {
    registry: Arc<Registry>,
    place: S3Place,
}

/// The SHA-256 of nothing.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

impl Bucket {
    /// The origin, the host as it is signed, and the path of an object.
    fn address(&self, name: &str) -> (String, String, String) {
        let S3Place { bucket, region, endpoint, path_style, prefix, .. } = &self.place;
        let amazon = || format!("https://s3.{region}.amazonaws.com");
        let endpoint = endpoint.clone().unwrap_or_else(amazon);
        let (scheme, host) = endpoint.trim_end_matches('/').split_once("://").unwrap_or(("https", &endpoint));
        let default_port = if scheme == "http" { ":80" } else { ":443" };
        let host = host.strip_suffix(default_port).unwrap_or(host);
        let (host, path) = match path_style {
            true => (host.to_owned(), format!("/{bucket}/{prefix}{name}")),
            false => (format!("{bucket}.{host}"), format!("/{prefix}{name}")),
        };
        (format!("{scheme}://{host}"), host, escaped(&path))
    }

    async fn ask(
        &self,
        context: &TransferContext,
        method: WebMethod,
        name: &str,
        headers: &[(&'static str, String)],
        object: Option<&NewObject>,
    ) -> Result<WebReply, CacheError> {
        let (origin, host, path) = self.address(name);
        let sha256 = object.map_or(EMPTY, |object| &object.sha256);
        let word = match method {
            WebMethod::Get => "GET",
            WebMethod::Head => "HEAD",
            WebMethod::Post => "POST",
            WebMethod::Put => "PUT",
        };
        let (headers, authorization) = match &self.place.credentials {
            None => (headers.to_vec(), None),
            Some(who) => {
                let (region, now) = (&self.place.region, SystemTime::now());
                let request = Signed { method: word, host: &host, path: &path, headers, sha256, region, now };
                let (headers, authorization) = sign(&request, who);
                (headers, Some(authorization))
            }
        };
        let body = object.map_or(WebBody::Empty, |object| object.body.clone());
        let call = WebCall { method, url: Redacted::new(format!("{origin}{path}")), headers, authorization, body };
        self.registry.call(&call, &*context.session).await.map_err(|error| failed(self.name(), error))
    }

    /// Writes an object over itself: it is as new as any then.
    async fn touch(&self, context: &TransferContext, name: &str) -> Result<(), CacheError> {
        let S3Place { bucket, prefix, .. } = &self.place;
        let source = escaped(&format!("/{bucket}/{prefix}{name}"));
        let headers = [("x-amz-copy-source", source), ("x-amz-metadata-directive", "REPLACE".to_owned())];
        let reply = self.ask(context, WebMethod::Put, name, &headers, None).await?;
        match reply.status() {
            200..=299 => Ok(()),
            _ => Err(unexpected(self.name(), reply).await),
        }
    }
}

#[async_trait]
impl ObjectStore for Bucket {
    fn name(&self) -> String {
        format!("s3://{}/{}", self.place.bucket, self.place.prefix)
    }

    fn record_names(&self, key: &CacheKey) -> Vec<String> {
        let S3Place { records_prefix, names, .. } = &self.place;
        names.iter().map(|name| format!("{records_prefix}{name}/{key}")).collect()
    }

    fn blob_name(&self, digest: &Digest) -> String {
        format!("{}{digest}", self.place.blobs_prefix)
    }

    async fn exists(&self, context: &TransferContext, name: &str) -> Result<bool, CacheError> {
        let reply = self.ask(context, WebMethod::Head, name, &[], None).await?;
        match reply.status() {
            200 => {
                let written = reply.header("last-modified").and_then(http_date);
                let age = written.and_then(|time| SystemTime::now().duration_since(time).ok()).unwrap_or_default();
                if age > self.place.touch_refresh {
                    self.touch(context, name).await?;
                }
                Ok(true)
            }
            404 => Ok(false),
            _ => Err(unexpected(self.name(), reply).await),
        }
    }

    async fn open(&self, context: &TransferContext, name: &str) -> Result<Option<WebReply>, CacheError> {
        let reply = self.ask(context, WebMethod::Get, name, &[], None).await?;
        match reply.status() {
            200 => Ok(Some(reply)),
            404 => Ok(None),
            _ => Err(unexpected(self.name(), reply).await),
        }
    }

    async fn put(&self, context: &TransferContext, name: &str, object: &NewObject) -> Result<(), CacheError> {
        let reply = self.ask(context, WebMethod::Put, name, &[], Some(object)).await?;
        match reply.status() {
            200..=299 => Ok(()),
            _ => Err(unexpected(self.name(), reply).await),
        }
    }
}
