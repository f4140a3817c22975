//! The content stores of a client: blobs by digest, read and written by containerd's protocol.

use super::{ClientSession, MOST_MESSAGE};
use async_trait::async_trait;
use forge_buildkit_proto::content::{
    READ, ReadRequest, ReadResponse, STORE, WRITE, WriteAction, WriteRequest, WriteResponse,
};
use forge_image::Digest;
use forge_session::BlobFolder;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::fs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// Documents are read into memory.
const MOST_DOCUMENT: u64 = 8 << 20;

/// Bytes of one message of a blob that is written.
const CHUNK: usize = 1 << 20;

/// Whether a client has content stores.
pub(crate) fn is_served(session: &ClientSession) -> bool {
    session.supports(READ)
}

async fn grpc(session: &ClientSession) -> Result<Grpc<Channel>, Status> {
    let mut grpc = Grpc::new(session.channel.clone()).max_decoding_message_size(MOST_MESSAGE);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(grpc)
}

fn of_store<T>(message: T, store: &str) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let refused =
        || Status::internal(format!("header key {STORE:?} contains value with non-printable ASCII characters"));
    let plain = Some(store).filter(|store| store.bytes().all(|byte| matches!(byte, b' '..=b'~')));
    let store = plain.and_then(|store| AsciiMetadataValue::try_from(store).ok()).ok_or_else(refused)?;
    request.metadata_mut().insert(STORE, store);
    Ok(request)
}

fn failed(error: &io::Error) -> Status {
    Status::internal(error.to_string())
}

/// Makes a layout in a folder of everything that a digest stands for. Whoever reads it verifies the blobs.
pub(super) async fn fetch_layout(
    session: &Arc<ClientSession>,
    store: &str,
    root: &Digest,
    folder: &Path,
) -> Result<(), Status> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).await.map_err(|error| failed(&error))?;
    let mut todo = vec![root.clone()];
    let mut seen = HashSet::new();
    let mut kind = None;
    while let Some(digest) = todo.pop() {
        if !seen.insert(digest.clone()) {
            continue;
        }
        let file = blobs.join(digest.as_str().trim_start_matches("sha256:"));
        match fetch(session, store, &digest, &file).await {
            Ok(()) => {}
            // A store need not have the images of other platforms.
            Err(status) if status.code() == Code::NotFound && digest != *root => continue,
            Err(status) => return Err(status),
        }
        let size = fs::metadata(&file).await.map_err(|error| failed(&error))?.len();
        if size > MOST_DOCUMENT {
            continue;
        }
        let bytes = fs::read(&file).await.map_err(|error| failed(&error))?;
        let Ok(document) = serde_json::from_slice::<Value>(&bytes) else { continue };
        if digest == *root {
            kind = Some(descriptor(&document, root, size));
        }
        todo.extend(named_by(&document));
    }
    let index = json!({ "schemaVersion": 2, "manifests": [kind.unwrap_or_default()] });
    let written = fs::write(folder.join("index.json"), index.to_string()).await;
    written.map_err(|error| failed(&error))?;
    let layout = fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).await;
    layout.map_err(|error| failed(&error))
}

fn descriptor(document: &Value, digest: &Digest, size: u64) -> Value {
    let guessed = match document.get("manifests") {
        Some(_) => "application/vnd.oci.image.index.v1+json",
        None => "application/vnd.oci.image.manifest.v1+json",
    };
    let media_type = document.get("mediaType").and_then(Value::as_str).unwrap_or(guessed);
    json!({ "mediaType": media_type, "digest": digest.as_str(), "size": size })
}

/// The digests that a manifest or an index names.
fn named_by(document: &Value) -> Vec<Digest> {
    let lists = ["manifests", "layers"].iter().filter_map(|list| document.get(list)?.as_array());
    let descriptors = lists.flatten().chain(document.get("config"));
    descriptors.filter_map(|descriptor| descriptor.get("digest")?.as_str()?.parse().ok()).collect()
}

/// The bytes of a blob, message by message.
async fn read(session: &ClientSession, store: &str, digest: &Digest) -> Result<Streaming<ReadResponse>, Status> {
    let request = ReadRequest { digest: digest.to_string(), offset: 0, size: 0 };
    let codec = ProstCodec::<ReadRequest, ReadResponse>::default();
    let path = PathAndQuery::from_static(READ);
    let mut grpc = grpc(session).await?;
    Ok(grpc.server_streaming(of_store(request, store)?, path, codec).await?.into_inner())
}

async fn fetch(session: &ClientSession, store: &str, digest: &Digest, file: &Path) -> Result<(), Status> {
    let mut messages = read(session, store, digest).await?;
    let mut out = fs::File::create(file).await.map_err(|error| failed(&error))?;
    while let Some(message) = messages.message().await? {
        out.write_all(&message.data).await.map_err(|error| failed(&error))?;
    }
    out.flush().await.map_err(|error| failed(&error))
}

/// Writes all blobs of a layout into a store of the client; what it has already is passed over.
pub(crate) async fn push_layout(session: &Arc<ClientSession>, store: &str, folder: &Path) -> Result<(), Status> {
    if !session.supports(WRITE) {
        return Err(Status::unimplemented(format!("method {WRITE} not supported by the client")));
    }
    let mut entries = fs::read_dir(folder.join("blobs/sha256")).await.map_err(|error| failed(&error))?;
    while let Some(entry) = entries.next_entry().await.map_err(|error| failed(&error))? {
        let digest = format!("sha256:{}", entry.file_name().to_string_lossy());
        let blob = fs::File::open(entry.path()).await.map_err(|error| failed(&error))?;
        match push(session, store, &digest, blob).await {
            Err(status) if status.code() == Code::AlreadyExists => {}
            pushed => pushed?,
        }
    }
    Ok(())
}

/// A name for writing a blob. Clients give one to a single writer at a time, and let it go some time after the last word.
fn new_reference(digest: &str) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("forge-{digest}-{now:x}-{number}")
}

async fn push(session: &ClientSession, store: &str, digest: &str, mut blob: fs::File) -> Result<(), Status> {
    let total = blob.metadata().await.map_err(|error| failed(&error))?.len();
    let total = i64::try_from(total).unwrap_or(i64::MAX);
    let (sender, receiver) = mpsc::channel(1);
    let reference = new_reference(digest);
    let message = |action: WriteAction, offset, data| WriteRequest {
        action: action.into(),
        reference: reference.clone(),
        total,
        expected: digest.to_owned(),
        offset,
        data,
    };
    let gone = |_| Status::unavailable("the client has gone");
    sender.send(message(WriteAction::Stat, 0, Vec::new())).await.map_err(gone)?;
    let codec = ProstCodec::<WriteRequest, WriteResponse>::default();
    let mut grpc = grpc(session).await?;
    let request = of_store(ReceiverStream::new(receiver), store)?;
    let mut answers = grpc.streaming(request, PathAndQuery::from_static(WRITE), codec).await?.into_inner();
    answers.message().await?;
    let mut offset = 0;
    loop {
        let mut data = vec![0; CHUNK];
        let count = blob.read(&mut data).await.map_err(|error| failed(&error))?;
        if count == 0 {
            break;
        }
        data.truncate(count);
        sender.send(message(WriteAction::Write, offset, data)).await.map_err(gone)?;
        answers.message().await?;
        offset += i64::try_from(count).unwrap_or(i64::MAX);
    }
    sender.send(message(WriteAction::Commit, offset, Vec::new())).await.map_err(gone)?;
    answers.message().await?;
    Ok(())
}

/// A content store of a client as a place for blobs.
pub(crate) struct ContentFolder {
    session: Arc<ClientSession>,
    store: String,
}

impl ContentFolder {
    pub(crate) fn new(session: Arc<ClientSession>, store: String) -> Self {
        Self { session, store }
    }

    /// Waits for the client as long as there is one.
    async fn ask<T>(&self, call: impl Future<Output = Result<T, Status>>) -> io::Result<T> {
        let answer = tokio::select! {
            biased;
            () = self.session.gone.cancelled() => Err(Status::unavailable("the client has gone")),
            answer = call => answer,
        };
        answer.map_err(|status| match status.code() {
            Code::NotFound => io::Error::new(io::ErrorKind::NotFound, status.message().to_owned()),
            _ => io::Error::other(status.message().to_owned()),
        })
    }
}

#[async_trait]
impl BlobFolder for ContentFolder {
    fn name(&self) -> String {
        self.store.clone()
    }

    async fn read(&self, digest: &Digest, into: &mut (dyn Write + Send)) -> io::Result<()> {
        let mut messages = self.ask(read(&self.session, &self.store, digest)).await?;
        while let Some(message) = self.ask(messages.message()).await? {
            into.write_all(&message.data)?;
        }
        Ok(())
    }

    async fn write(&self, digest: &Digest, from: std::fs::File) -> io::Result<()> {
        let blob = fs::File::from_std(from);
        let pushed = async {
            if !self.session.supports(WRITE) {
                return Err(Status::unimplemented(format!("method {WRITE} not supported by the client")));
            }
            match push(&self.session, &self.store, digest.as_str(), blob).await {
                Err(status) if status.code() == Code::AlreadyExists => Ok(()),
                pushed => pushed,
            }
        };
        self.ask(pushed).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_document_names_is_fetched_with_it() {
        let digest = |text: &str| Digest::sha256(text.as_bytes());
        let manifest =
            json!({ "config": { "digest": digest("c").as_str() }, "layers": [{ "digest": digest("l").as_str() }] });
        assert_eq!(named_by(&manifest), [digest("l"), digest("c")]);
        let index = json!({ "manifests": [{ "digest": digest("m").as_str() }, { "digest": "nonsense" }] });
        assert_eq!(named_by(&index), [digest("m")]);
        assert_eq!(descriptor(&index, &digest("i"), 3)["mediaType"], "application/vnd.oci.image.index.v1+json");
    }
}
