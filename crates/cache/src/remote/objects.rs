//! A store of objects by name as a shared cache: an object for each key, and one for each blob.

use super::{RecordStore, blocking, failed};
use crate::{CacheError, CacheKey};
use async_trait::async_trait;
use forge_image::{Descriptor, Digest};
use forge_registry::{FetchError, ImageSource, MAX_MANIFEST, TransferContext, WebBody, WebReply};
use forge_store::BlobWriter;
use std::io::Write as _;
use std::sync::Arc;

/// Objects by name.
#[async_trait]
pub(super) trait ObjectStore: Send + Sync {
    /// What users see.
    fn name(&self) -> String;

    /// What the record under a key is called, by the name that counts first.
    fn record_names(&self, key: &CacheKey) -> Vec<String>;

    /// What a blob is called.
    fn blob_name(&self, digest: &Digest) -> String;

    /// Whether an object is there, and will be for a while.
    async fn exists(&self, context: &TransferContext, name: &str) -> Result<bool, CacheError>;

    /// An object, its bytes still to be read.
    async fn open(&self, context: &TransferContext, name: &str) -> Result<Option<WebReply>, CacheError>;

    /// Writes an object.
    async fn put(&self, context: &TransferContext, name: &str, object: &NewObject) -> Result<(), CacheError>;
}

/// An object that is to be written.
pub(super) struct NewObject {
    pub body: WebBody,
    pub size: u64,
    /// The bytes' SHA-256, in hexadecimal.
    pub sha256: String,
}

/// Records in a store of objects.
pub(super) struct ObjectRecords<S>(pub Arc<S>);

#[async_trait]
impl<S: ObjectStore + 'static> RecordStore for ObjectRecords<S> {
    fn name(&self) -> String {
        self.0.name()
    }

    async fn record(&self, context: &TransferContext, key: &CacheKey) -> Result<Option<Vec<u8>>, CacheError> {
        for name in self.0.record_names(key) {
            if let Some(reply) = self.0.open(context, &name).await? {
                let bytes = reply.bytes(MAX_MANIFEST).await.map_err(|error| failed(self.0.name(), error))?;
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    fn blobs(&self) -> Result<Arc<dyn ImageSource>, CacheError> {
        Ok(Arc::new(ObjectBlobs(self.0.clone())))
    }

    async fn put_blob(&self, context: &TransferContext, blob: &Descriptor) -> Result<(), CacheError> {
        let name = self.0.blob_name(&blob.digest);
        if self.0.exists(context, &name).await? {
            return Ok(());
        }
        let (store, digest) = (context.store.clone(), blob.digest.clone());
        let open = move || store.blobs().open(&digest).map_err(|error| failed("the store", error));
        let body = WebBody::File(Arc::new(blocking(open).await?), blob.size);
        let object = NewObject { body, size: blob.size, sha256: blob.digest.hex().to_owned() };
        self.0.put(context, &name, &object).await
    }

    async fn put_record(&self, context: &TransferContext, key: &CacheKey, document: &[u8]) -> Result<(), CacheError> {
        let sha256 = Digest::sha256(document).hex().to_owned();
        let object = NewObject { body: WebBody::Bytes(document.to_vec()), size: document.len() as u64, sha256 };
        for name in self.0.record_names(key) {
            self.0.put(context, &name, &object).await?;
        }
        Ok(())
    }
}

struct ObjectBlobs<S>(Arc<S>);

#[async_trait]
impl<S: ObjectStore + 'static> ImageSource for ObjectBlobs<S> {
    async fn blob(
        &self,
        context: &TransferContext,
        descriptor: &Descriptor,
        mut into: BlobWriter,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), FetchError> {
        let place = || format!("{} of {}", descriptor.digest, self.0.name());
        let broken = |error: CacheError| FetchError::elsewhere(place(), error);
        let opened = self.0.open(context, &self.0.blob_name(&descriptor.digest)).await.map_err(broken)?;
        let Some(mut reply) = opened else {
            return Err(FetchError::elsewhere(place(), std::io::Error::from(std::io::ErrorKind::NotFound)));
        };
        let mut count = 0;
        while let Some(piece) = reply.chunk().await.map_err(|error| FetchError::elsewhere(place(), error))? {
            count += piece.len() as u64;
            // Digest and size are compared at the end; what is too long already need not come.
            if count > descriptor.size {
                return Err(FetchError::elsewhere(place(), std::io::Error::other("it is longer than it should be")));
            }
            into.write_all(&piece).map_err(|error| FetchError::elsewhere(place(), error))?;
            progress(count);
        }
        let lease = context.lease.clone();
        let finish = move || into.finish(&lease).map_err(|error| failed("the store", error));
        blocking(finish).await.map(drop).map_err(broken)
    }
}

/// An answer that is none of those expected, as an error.
pub(super) async fn unexpected(place: String, reply: WebReply) -> CacheError {
    let status = reply.status();
    let text = reply.bytes(4096).await.unwrap_or_default();
    let message = message_of(&String::from_utf8_lossy(&text));
    failed(place, std::io::Error::other(format!("status {status}{message}")))
}

/// What an answer says, where it is one of S3's (XML) or of GitHub's (JSON).
fn message_of(text: &str) -> String {
    let xml = text.split_once("<Message>").and_then(|(_, rest)| rest.split_once("</Message>")).map(|(found, _)| found);
    let json = serde_json::from_str::<serde_json::Value>(text).ok();
    let json = json.as_ref().and_then(|value| value.get("msg").or(value.get("message"))?.as_str());
    let plain = |character: char| !character.is_control();
    match xml.or(json) {
        Some(message) => format!(": {}", message.chars().filter(|one| plain(*one)).take(200).collect::<String>()),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_says_is_told() {
        let xml =
            "<?xml version=\"1.0\"?><Error><Code>NoSuchBucket</Code><Message>No such\u{1b} bucket</Message></Error>";
        assert_eq!(message_of(xml), ": No such bucket");
        assert_eq!(message_of(r#"{"code":"internal","msg":"broken"}"#), ": broken");
        assert_eq!(message_of("<html>"), "");
    }
}
