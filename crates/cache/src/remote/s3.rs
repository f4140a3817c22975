//! A bucket of S3, or of what speaks as S3 does, as a shared cache.

use super::objects::{NewObject, ObjectRecords, ObjectStore, unexpected};
use super::s3_parts::PART;
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

pub(super) struct Bucket {
    registry: Arc<Registry>,
    place: S3Place,
}

/// The SHA-256 of nothing.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The largest object that can be copied by one request.
const MOST_COPIED: u64 = 5 << 30;

/// One request about an object.
pub(super) struct Asked<'a> {
    pub method: WebMethod,
    /// The object's, without the prefix.
    pub name: &'a str,
    /// As in [`Signed::query`].
    pub query: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: WebBody,
    /// The body's, in hexadecimal.
    pub sha256: String,
}

impl<'a> Asked<'a> {
    /// One without a body.
    pub fn about(name: &'a str, method: WebMethod) -> Self {
        let (query, sha256) = (String::new(), EMPTY.to_owned());
        Self { method, name, query, headers: Vec::new(), body: WebBody::Empty, sha256 }
    }
}

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

    pub(super) async fn ask(&self, context: &TransferContext, asked: Asked<'_>) -> Result<WebReply, CacheError> {
        let Asked { method, name, query, headers, body, sha256 } = asked;
        let (origin, host, path) = self.address(name);
        let word = match method {
            WebMethod::Get => "GET",
            WebMethod::Head => "HEAD",
            WebMethod::Post => "POST",
            WebMethod::Put => "PUT",
            WebMethod::Delete => "DELETE",
        };
        let (headers, authorization) = match &self.place.credentials {
            None => (headers, None),
            Some(who) => {
                let (region, now) = (&self.place.region, SystemTime::now());
                let (headers, sha256, query) = (&headers, &sha256, &query);
                let request = Signed { method: word, host: &host, path: &path, query, headers, sha256, region, now };
                let (headers, authorization) = sign(&request, who);
                (headers, Some(authorization))
            }
        };
        let mark = if query.is_empty() { "" } else { "?" };
        let url = Redacted::new(format!("{origin}{path}{mark}{query}"));
        let call = WebCall { method, url, headers, authorization, body };
        self.registry.call(&call, &*context.session).await.map_err(|error| failed(self.name(), error))
    }

    /// Writes an object over itself: it is as new as any then.
    async fn touch(&self, context: &TransferContext, name: &str) -> Result<(), CacheError> {
        let S3Place { bucket, prefix, .. } = &self.place;
        let source = escaped(&format!("/{bucket}/{prefix}{name}"));
        let headers = vec![("x-amz-copy-source", source), ("x-amz-metadata-directive", "REPLACE".to_owned())];
        let reply = self.ask(context, Asked { headers, ..Asked::about(name, WebMethod::Put) }).await?;
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
        let reply = self.ask(context, Asked::about(name, WebMethod::Head)).await?;
        match reply.status() {
            200 => {
                let size = reply.header("content-length").and_then(|size| size.parse().ok()).unwrap_or(0);
                let written = reply.header("last-modified").and_then(http_date);
                let age = written.and_then(|time| SystemTime::now().duration_since(time).ok()).unwrap_or_default();
                if age > self.place.touch_refresh {
                    if size > MOST_COPIED {
                        // It is sent again, and is new then.
                        return Ok(false);
                    }
                    self.touch(context, name).await?;
                }
                Ok(true)
            }
            404 => Ok(false),
            _ => Err(unexpected(self.name(), reply).await),
        }
    }

    async fn open(&self, context: &TransferContext, name: &str) -> Result<Option<WebReply>, CacheError> {
        let reply = self.ask(context, Asked::about(name, WebMethod::Get)).await?;
        match reply.status() {
            200 => Ok(Some(reply)),
            404 => Ok(None),
            _ => Err(unexpected(self.name(), reply).await),
        }
    }

    async fn put(&self, context: &TransferContext, name: &str, object: &NewObject) -> Result<(), CacheError> {
        if let WebBody::File(file, size) = &object.body
            && *size > PART
        {
            return self.put_in_parts(context, name, file, *size).await;
        }
        let (body, sha256) = (object.body.clone(), object.sha256.clone());
        let reply = self.ask(context, Asked { body, sha256, ..Asked::about(name, WebMethod::Put) }).await?;
        match reply.status() {
            200..=299 => Ok(()),
            _ => Err(unexpected(self.name(), reply).await),
        }
    }
}
