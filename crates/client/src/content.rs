//! Blobs of folders of this machine, as a daemon reads and writes them: containerd's content service.

use crate::connection::MOST_MESSAGE;
use crate::stores::{Access, Stores};
use bytes::Bytes;
use forge_buildkit_proto::content::{
    READ, ReadRequest, ReadResponse, SERVICE, STORE, WRITE, WriteAction, WriteRequest, WriteResponse,
};
use forge_image::{Digest, Hasher};
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use tempfile::NamedTempFile;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body as Answer;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, ServerStreamingService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

/// Bytes of one message.
const CHUNK: usize = 1 << 20;

/// Serves the folders.
#[derive(Clone)]
pub(crate) struct Contents(Arc<Stores>);

impl Contents {
    pub(crate) fn new(stores: Arc<Stores>) -> Self {
        Self(stores)
    }

    /// The folder that a call is about.
    fn folder<T>(&self, request: &Request<T>, access: Access) -> Result<PathBuf, Status> {
        let name = request.metadata().get(STORE).and_then(|name| name.to_str().ok()).unwrap_or_default();
        let folder = self.0.folder(name, access).map(Path::to_owned);
        folder.ok_or_else(|| Status::not_found(format!("there is no such content store: {name:?}")))
    }
}

impl NamedService for Contents {
    const NAME: &'static str = SERVICE;
}

impl<B> Service<http::Request<B>> for Contents
where
    B: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send + 'static,
{
    type Response = http::Response<Answer>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let contents = self.clone();
        match request.uri().path() {
            READ => Box::pin(async move {
                Ok(Grpc::new(ProstCodec::default()).server_streaming(Reads(contents), request).await)
            }),
            WRITE => Box::pin(async move {
                let grpc = Grpc::new(ProstCodec::default());
                Ok(grpc.max_decoding_message_size(MOST_MESSAGE).streaming(Writes(contents), request).await)
            }),
            other => {
                let refused = Status::unimplemented(format!("{other} is not served"));
                Box::pin(async move { Ok(refused.into_http()) })
            }
        }
    }
}

type Answers<T> = ReceiverStream<Result<T, Status>>;

struct Reads(Contents);

impl ServerStreamingService<ReadRequest> for Reads {
    type Response = ReadResponse;
    type ResponseStream = Answers<ReadResponse>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<ReadRequest>) -> Self::Future {
        let folder = self.0.folder(&request, Access::Read);
        let asked = request.into_inner();
        Box::pin(async move {
            let folder = folder?;
            let (answers, receiver) = mpsc::channel(2);
            tokio::task::spawn_blocking(move || {
                if let Err(status) = read(&folder, &asked, &answers) {
                    let _ = answers.blocking_send(Err(status));
                }
            });
            Ok(Response::new(ReceiverStream::new(receiver)))
        })
    }
}

struct Writes(Contents);

impl StreamingService<WriteRequest> for Writes {
    type Response = WriteResponse;
    type ResponseStream = Answers<WriteResponse>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<WriteRequest>>) -> Self::Future {
        let folder = self.0.folder(&request, Access::Write);
        let incoming = request.into_inner();
        Box::pin(async move {
            let folder = folder?;
            let (answers, receiver) = mpsc::channel(2);
            tokio::task::spawn_blocking(move || {
                if let Err(status) = write(&folder, incoming, &answers) {
                    let _ = answers.blocking_send(Err(status));
                }
            });
            Ok(Response::new(ReceiverStream::new(receiver)))
        })
    }
}

fn failed(error: io::Error) -> Status {
    Status::unknown(error.to_string())
}

fn blob(folder: &Path, digest: &str) -> Result<(PathBuf, Digest), Status> {
    let digest: Digest = digest.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
    Ok((folder.join("blobs").join(digest.algorithm()).join(digest.hex()), digest))
}

/// Sends a part of a blob. Blocks.
fn read(
    folder: &Path,
    asked: &ReadRequest,
    answers: &mpsc::Sender<Result<ReadResponse, Status>>,
) -> Result<(), Status> {
    let (path, digest) = blob(folder, &asked.digest)?;
    // Nothing but a file is opened: what else has its name could wait for ever.
    if !path.symlink_metadata().is_ok_and(|found| found.is_file()) {
        return Err(Status::not_found(format!("content {digest}: not found")));
    }
    let refused = |_| Status::out_of_range("no such part of the content");
    let (start, size) = (u64::try_from(asked.offset).map_err(refused)?, u64::try_from(asked.size).map_err(refused)?);
    let mut file = File::open(&path).map_err(failed)?;
    file.seek(SeekFrom::Start(start)).map_err(failed)?;
    let (mut part, mut offset) = (file.take(if size == 0 { u64::MAX } else { size }), asked.offset);
    loop {
        let mut data = Vec::new();
        let count = part.by_ref().take(CHUNK as u64).read_to_end(&mut data).map_err(failed)?;
        if count == 0 || answers.blocking_send(Ok(ReadResponse { offset, data })).is_err() {
            return Ok(());
        }
        offset += i64::try_from(count).unwrap_or(i64::MAX);
    }
}

/// A blob that comes in.
struct Incoming {
    file: NamedTempFile,
    hash: Hasher,
    size: i64,
}

/// Takes a blob; it comes into its place when it is whole and what it should be. Blocks.
fn write(
    folder: &Path,
    mut messages: Streaming<WriteRequest>,
    answers: &mpsc::Sender<Result<WriteResponse, Status>>,
) -> Result<(), Status> {
    let runtime = Handle::current();
    let mut incoming: Option<Incoming> = None;
    while let Some(message) = runtime.block_on(messages.message())? {
        let (path, digest) = blob(folder, &message.expected)?;
        if path.is_file() {
            return Err(Status::already_exists(format!("content {digest}: already exists")));
        }
        let blob = match &mut incoming {
            Some(blob) => blob,
            none => none.insert(Incoming::begin(&path).map_err(failed)?),
        };
        if message.offset != 0 && message.offset != blob.size {
            return Err(Status::out_of_range(format!("bytes at {} after {}", message.offset, blob.size)));
        }
        blob.add(&message.data).map_err(failed)?;
        let offset = blob.size;
        if message.action == i32::from(WriteAction::Commit) {
            let Some(Incoming { file, hash, .. }) = incoming.take() else { continue };
            if hash.finish() != digest {
                return Err(Status::failed_precondition(format!("what came is not {digest}")));
            }
            keep(file, &path).map_err(failed)?;
        }
        if answers.blocking_send(Ok(WriteResponse { offset })).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

impl Incoming {
    fn begin(path: &Path) -> io::Result<Self> {
        let folder = path.parent().unwrap_or(path);
        std::fs::create_dir_all(folder)?;
        Ok(Self { file: NamedTempFile::new_in(folder)?, hash: Hasher::new(), size: 0 })
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.size += i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        Ok(())
    }
}

/// With the mode that files of a layout have, not that of what is temporary.
fn keep(file: NamedTempFile, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Client;
    use futures_util::stream::{self, StreamExt};
    use tonic::Code;
    use tonic::codegen::http::uri::PathAndQuery;
    use tonic::transport::{Channel, Server};

    fn all(folder: &Path, digest: &str, offset: i64, size: i64) -> Result<Vec<u8>, tonic::Code> {
        let (answers, mut receiver) = mpsc::channel(100);
        let request = ReadRequest { digest: digest.to_owned(), offset, size };
        read(folder, &request, &answers).map_err(|status| status.code())?;
        drop(answers);
        let mut bytes = Vec::new();
        while let Some(Ok(part)) = receiver.blocking_recv() {
            bytes.extend(part.data);
        }
        Ok(bytes)
    }

    // Seen to fail with links followed, and with the digest taken for a path as it comes.
    #[test]
    fn a28_nothing_but_blobs_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let digest = Digest::sha256(b"some text");
        let blobs = folder.path().join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(digest.hex()), "some text").unwrap();
        std::fs::write(folder.path().join("secret"), "secret").unwrap();
        let of = |digest: &str, offset, size| all(folder.path(), digest, offset, size);
        assert_eq!(of(digest.as_str(), 0, 0).unwrap(), b"some text");
        assert_eq!(of(digest.as_str(), 5, 2).unwrap(), b"te");
        assert_eq!(of(digest.as_str(), 5, -2), Err(tonic::Code::OutOfRange));
        assert_eq!(of(Digest::sha256(b"none").as_str(), 0, 0), Err(tonic::Code::NotFound));
        let link = Digest::sha256(b"link");
        std::os::unix::fs::symlink(folder.path().join("secret"), blobs.join(link.hex())).unwrap();
        assert_eq!(of(link.as_str(), 0, 0), Err(tonic::Code::NotFound));
        assert_eq!(of("sha256:../../secret", 0, 0), Err(tonic::Code::InvalidArgument));
        assert_eq!(of("../secret", 0, 0), Err(tonic::Code::InvalidArgument));
    }

    /// Serves the folders on a connection; gives its other end.
    fn served(stores: Stores) -> Channel {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let connections = stream::once(async { Ok::<_, io::Error>(theirs) }).chain(stream::pending());
        let server = Server::builder().add_service(Contents::new(Arc::new(stores)));
        tokio::spawn(server.serve_with_incoming(connections));
        Client::over(ours).channel()
    }

    fn call<T>(store: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(STORE, store.parse().unwrap());
        request
    }

    async fn written(channel: &Channel, store: &str, expected: &str, data: &[u8]) -> Result<(), Code> {
        let action = WriteAction::Commit.into();
        let message =
            WriteRequest { action, expected: expected.to_owned(), data: data.to_vec(), ..WriteRequest::default() };
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let codec = ProstCodec::<WriteRequest, WriteResponse>::default();
        let path = PathAndQuery::from_static(WRITE);
        let answers = grpc.streaming(call(store, tokio_stream::once(message)), path, codec).await;
        let mut answers = answers.map_err(|status| status.code())?.into_inner();
        while answers.message().await.map_err(|status| status.code())?.is_some() {}
        Ok(())
    }

    async fn sent(channel: &Channel, store: &str, digest: &Digest) -> Result<Vec<u8>, Code> {
        let asked = ReadRequest { digest: digest.to_string(), ..ReadRequest::default() };
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let codec = ProstCodec::<ReadRequest, ReadResponse>::default();
        let answers = grpc.server_streaming(call(store, asked), PathAndQuery::from_static(READ), codec).await;
        let mut answers = answers.map_err(|status| status.code())?.into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = answers.message().await.map_err(|status| status.code())? {
            bytes.extend(part.data);
        }
        Ok(bytes)
    }

    /// The files below a folder.
    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
    }

    // Seen to fail with writing asked for as reading is, with the digest taken for a path as it comes, and with what came not
    // compared with it.
    #[tokio::test]
    async fn a28_a_daemon_writes_blobs_into_caches_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (layout, cache) = (folder.path().join("layout"), folder.path().join("cache"));
        let mut stores = Stores::default();
        stores.add_layout("base", &layout, &Digest::sha256(b"x"));
        let attributes = [("dest".to_owned(), cache.to_str().unwrap().to_owned())].into();
        stores.export(&crate::CacheEntry { kind: "local".to_owned(), attributes }).unwrap();
        let channel = served(stores);
        let [layout, cache] =
            [("oci", &layout), ("local", &cache)].map(|(kind, path)| format!("{kind}:{}", path.display()));
        let digest = Digest::sha256(b"text");
        for (store, expected, data, code) in [
            (&*layout, digest.as_str(), "text", Code::NotFound),
            ("local:/etc", digest.as_str(), "text", Code::NotFound),
            ("", digest.as_str(), "text", Code::NotFound),
            (&cache, digest.as_str(), "other", Code::FailedPrecondition),
            (&cache, "sha256:../../../out", "text", Code::InvalidArgument),
            (&cache, "../out", "text", Code::InvalidArgument),
        ] {
            assert_eq!(written(&channel, store, expected, data.as_bytes()).await, Err(code), "{store} {expected}");
            assert!(files(folder.path()).is_empty(), "{store} {expected}");
        }
        written(&channel, &cache, digest.as_str(), b"text").await.unwrap();
        assert_eq!(files(folder.path()).len(), 1);
        assert_eq!(sent(&channel, &cache, &digest).await.unwrap(), b"text");
        assert_eq!(sent(&channel, &layout, &digest).await, Err(Code::NotFound));
    }

    #[test]
    fn a_blob_that_comes_in_is_kept_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = blob(folder.path(), Digest::sha256(b"text").as_str()).unwrap();
        let mut incoming = Incoming::begin(&path).unwrap();
        incoming.add(b"te").unwrap();
        incoming.add(b"xt").unwrap();
        assert!(!path.exists() && incoming.size == 4);
        assert_eq!(incoming.hash.finish(), Digest::sha256(b"text"));
        keep(incoming.file, &path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"text");
    }
}
