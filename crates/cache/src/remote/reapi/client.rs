use super::encrypted;
use super::protocol::{
    ActionResult, Digest, FIND_MISSING_BLOBS, FindMissingBlobsRequest, FindMissingBlobsResponse, GET_ACTION_RESULT,
    GetActionResultRequest, READ, ReadRequest, ReadResponse, UPDATE_ACTION_RESULT, UpdateActionResultRequest, WRITE,
    WriteRequest, WriteResponse,
};
use crate::CacheError;
use crate::remote::failed;
use futures_util::{Stream, stream};
use prost::Message;
use rustls::ClientConfig;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// For a connection. A cache that is not there must not hold up a build.
const CONNECT: Duration = Duration::from_secs(4);
/// Of a blob, in one message; servers take 4 MiB.
const PIECE: usize = 1 << 20;

/// Speaks to a server.
#[derive(Clone)]
pub(super) struct Client {
    name: String,
    channel: Channel,
    instance: String,
}

/// Bytes that are sent.
pub(super) enum Upload {
    Bytes(Vec<u8>),
    File(Arc<File>),
}

impl Client {
    /// Makes no connection yet.
    pub fn new(name: String, authority: &str, instance: String, tls: Option<ClientConfig>) -> Result<Self, CacheError> {
        let endpoint = Endpoint::from_shared(format!("http://{authority}"));
        let endpoint = endpoint.map_err(|error| failed(name.clone(), error))?;
        let endpoint = endpoint.connect_timeout(CONNECT).user_agent(concat!("forge/", env!("CARGO_PKG_VERSION")));
        let endpoint = endpoint.map_err(|error| failed(name.clone(), error))?;
        let channel = match tls {
            None => endpoint.connect_lazy(),
            Some(tls) => encrypted::channel(endpoint, authority, tls).map_err(|error| failed(name.clone(), error))?,
        };
        Ok(Self { name, channel, instance })
    }

    /// A failure that is told in the server's words, which come from far away.
    fn refused(&self, status: &Status) -> CacheError {
        let words: String = status.message().chars().filter(|one| !one.is_control()).take(200).collect();
        failed(self.name.clone(), std::io::Error::other(format!("{:?}: {words}", status.code())))
    }

    async fn ready(&self) -> Result<Grpc<Channel>, CacheError> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| failed(self.name.clone(), error))?;
        Ok(grpc)
    }

    async fn call<Q, A>(&self, path: &'static str, message: Q) -> Result<Result<A, Status>, CacheError>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let codec = ProstCodec::<Q, A>::default();
        let answer = self.ready().await?.unary(Request::new(message), PathAndQuery::from_static(path), codec).await;
        Ok(answer.map(tonic::Response::into_inner))
    }

    /// What an action made; `None` where that is not known.
    pub async fn action_result(&self, action: Digest) -> Result<Option<ActionResult>, CacheError> {
        let (instance_name, action_digest) = (self.instance.clone(), Some(action));
        match self.call(GET_ACTION_RESULT, GetActionResultRequest { instance_name, action_digest }).await? {
            Ok(result) => Ok(Some(result)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.refused(&status)),
        }
    }

    /// Says what an action made.
    pub async fn update_action_result(&self, action: Digest, result: ActionResult) -> Result<(), CacheError> {
        let instance_name = self.instance.clone();
        let request =
            UpdateActionResultRequest { instance_name, action_digest: Some(action), action_result: Some(result) };
        let answer: Result<ActionResult, _> = self.call(UPDATE_ACTION_RESULT, request).await?;
        answer.map(drop).map_err(|status| self.refused(&status))
    }

    /// Whether the server lacks a blob.
    pub async fn is_missing(&self, blob: Digest) -> Result<bool, CacheError> {
        let request = FindMissingBlobsRequest { instance_name: self.instance.clone(), blob_digests: vec![blob] };
        let answer: Result<FindMissingBlobsResponse, _> = self.call(FIND_MISSING_BLOBS, request).await?;
        let answer = answer.map_err(|status| self.refused(&status))?;
        Ok(!answer.missing_blob_digests.is_empty())
    }

    /// The bytes of a blob, from their beginning; `None` where the server has none.
    pub async fn read(&self, blob: &Digest) -> Result<Option<Reading>, CacheError> {
        let resource_name = self.resource(&format!("blobs/{}/{}", blob.hash, blob.size_bytes));
        let codec = ProstCodec::<ReadRequest, ReadResponse>::default();
        let path = PathAndQuery::from_static(READ);
        let request = Request::new(ReadRequest { resource_name });
        match self.ready().await?.server_streaming(request, path, codec).await {
            Ok(answer) => Ok(Some(Reading { client: self.clone(), pieces: answer.into_inner() })),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.refused(&status)),
        }
    }

    /// Sends a blob.
    pub async fn write(&self, blob: &Digest, upload: Upload) -> Result<(), CacheError> {
        let number = uuid();
        let name = self.resource(&format!("uploads/{number}/blobs/{}/{}", blob.hash, blob.size_bytes));
        let size = u64::try_from(blob.size_bytes).unwrap_or_default();
        let codec = ProstCodec::<WriteRequest, WriteResponse>::default();
        let path = PathAndQuery::from_static(WRITE);
        let request = Request::new(pieces(name, upload, size));
        let answer = self.ready().await?.client_streaming(request, path, codec).await;
        let committed = answer.map_err(|status| self.refused(&status))?.into_inner().committed_size;
        // -1 says of a compressed upload that the blob was there.
        match committed == blob.size_bytes || committed == -1 {
            true => Ok(()),
            false => Err(failed(self.name.clone(), std::io::Error::other("an upload was cut short"))),
        }
    }

    fn resource(&self, rest: &str) -> String {
        match self.instance.as_str() {
            "" => rest.to_owned(),
            instance => format!("{instance}/{rest}"),
        }
    }
}

/// A blob that comes in.
pub(super) struct Reading {
    client: Client,
    pieces: Streaming<ReadResponse>,
}

impl Reading {
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, CacheError> {
        let piece = self.pieces.message().await.map_err(|status| self.client.refused(&status))?;
        Ok(piece.map(|piece| piece.data))
    }
}

/// The messages of an upload. One that cannot be read ends early, which the server notices.
fn pieces(name: String, upload: Upload, size: u64) -> impl Stream<Item = WriteRequest> + Send + 'static {
    let upload = Arc::new(upload);
    stream::unfold(Some(0u64), move |at| {
        let (name, upload) = (name.clone(), upload.clone());
        async move {
            let at = at?;
            let length = usize::try_from(size - at).unwrap_or(PIECE).min(PIECE);
            let data = tokio::task::spawn_blocking(move || upload.piece(at, length)).await.ok()??;
            let end = at + data.len() as u64;
            let resource_name = if at == 0 { name } else { String::new() };
            let write_offset = i64::try_from(at).ok()?;
            let request = WriteRequest { resource_name, write_offset, finish_write: end == size, data };
            Some((request, (end < size).then_some(end)))
        }
    })
}

impl Upload {
    fn piece(&self, at: u64, length: usize) -> Option<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => {
                let begin = usize::try_from(at).ok()?;
                bytes.get(begin..begin + length).map(<[u8]>::to_vec)
            }
            Self::File(file) => {
                let mut piece = vec![0; length];
                file.read_exact_at(&mut piece, at).ok()?;
                Some(piece)
            }
        }
    }
}

/// A random UUID (RFC 9562, version 4).
fn uuid() -> String {
    let mut bytes = [0u8; 16];
    // Where there is no randomness, two uploads of one blob could meet; servers take both.
    _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes);
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let text = hex::encode(bytes);
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_have_names_of_their_own() {
        let (one, other) = (uuid(), uuid());
        assert!(one != other && one.len() == 36 && one.as_bytes()[14] == b'4', "{one}");
    }
}
