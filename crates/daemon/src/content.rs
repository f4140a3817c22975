//! containerd's content service, as far as the control socket has it: what is known of builds, by digest. It is read-only.

use crate::builds::Builds;
use bytes::Bytes;
use forge_buildkit_proto::content::{ReadRequest, ReadResponse, SERVICE};
use futures_util::stream::{self, Iter};
use prost::Message;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::body::Body as Answer;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// Bytes of one message.
const CHUNK: usize = 1 << 20;

#[derive(Clone, PartialEq, Eq, Hash, Message)]
struct Info {
    #[prost(string, tag = "1")]
    digest: String,
    #[prost(int64, tag = "2")]
    size: i64,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
struct InfoRequest {
    #[prost(string, tag = "1")]
    digest: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
struct InfoResponse {
    #[prost(message, optional, tag = "1")]
    info: Option<Info>,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
struct ListRequest {
    #[prost(string, repeated, tag = "1")]
    filters: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    info: Vec<Info>,
}

/// Serves the content service.
#[derive(Clone)]
pub(crate) struct ContentService {
    builds: Arc<Builds>,
}

impl ContentService {
    pub(crate) fn new(builds: Arc<Builds>) -> Self {
        Self { builds }
    }

    fn find(&self, digest: &str) -> Result<Bytes, Status> {
        self.builds.content(digest).ok_or_else(|| Status::not_found(format!("content {digest}: not found")))
    }
}

impl NamedService for ContentService {
    const NAME: &'static str = SERVICE;
}

type Answers<T> = Iter<std::vec::IntoIter<Result<T, Status>>>;
type Ready<T> = std::future::Ready<Result<Response<T>, Status>>;

struct List(ContentService);
struct Read(ContentService);
struct Inform(ContentService);

impl ServerStreamingService<ListRequest> for List {
    type Response = ListResponse;
    type ResponseStream = Answers<ListResponse>;
    type Future = Ready<Self::ResponseStream>;

    fn call(&mut self, _: Request<ListRequest>) -> Self::Future {
        let info = |(digest, bytes): (String, Bytes)| Info { digest, size: length(&bytes) };
        let info = self.0.builds.contents().into_iter().map(info).collect();
        std::future::ready(Ok(Response::new(stream::iter(vec![Ok(ListResponse { info })]))))
    }
}

impl ServerStreamingService<ReadRequest> for Read {
    type Response = ReadResponse;
    type ResponseStream = Answers<ReadResponse>;
    type Future = Ready<Self::ResponseStream>;

    fn call(&mut self, request: Request<ReadRequest>) -> Self::Future {
        let request = request.into_inner();
        let read = self.0.find(&request.digest).and_then(|bytes| part(&bytes, request.offset, request.size));
        std::future::ready(read.map(|parts| {
            let answers: Vec<_> = parts.into_iter().map(Ok).collect();
            Response::new(stream::iter(answers))
        }))
    }
}

impl UnaryService<InfoRequest> for Inform {
    type Response = InfoResponse;
    type Future = Ready<InfoResponse>;

    fn call(&mut self, request: Request<InfoRequest>) -> Self::Future {
        let digest = request.into_inner().digest;
        let found = self.0.find(&digest);
        std::future::ready(
            found.map(|bytes| Response::new(InfoResponse { info: Some(Info { digest, size: length(&bytes) }) })),
        )
    }
}

fn length(bytes: &Bytes) -> i64 {
    i64::try_from(bytes.len()).unwrap_or(i64::MAX)
}

/// Some of the bytes, in messages. No size is all that is left.
fn part(bytes: &Bytes, offset: i64, size: i64) -> Result<Vec<ReadResponse>, Status> {
    let refused = || Status::out_of_range("read past the end of the content");
    let start = usize::try_from(offset).ok().filter(|start| *start <= bytes.len()).ok_or_else(refused)?;
    let rest = bytes.len() - start;
    let wanted = match size {
        0 => rest,
        size => usize::try_from(size).map_err(|_| refused())?.min(rest),
    };
    let (mut parts, mut at) = (Vec::new(), start);
    for chunk in bytes[start..start + wanted].chunks(CHUNK) {
        parts.push(ReadResponse { offset: i64::try_from(at).unwrap_or(i64::MAX), data: chunk.to_vec() });
        at += chunk.len();
    }
    Ok(parts)
}

impl<B> Service<http::Request<B>> for ContentService
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
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let service = self.clone();
        Box::pin(async move {
            Ok(match method.as_str() {
                "List" => Grpc::new(ProstCodec::default()).server_streaming(List(service), request).await,
                "Read" => Grpc::new(ProstCodec::default()).server_streaming(Read(service), request).await,
                "Info" => Grpc::new(ProstCodec::default()).unary(Inform(service), request).await,
                other => Status::unimplemented(format!("{other}: the content is read-only")).into_http(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_within_the_content() {
        let bytes = Bytes::from_static(b"abcdef");
        let read = |offset, size| {
            part(&bytes, offset, size).map(|parts| parts.into_iter().flat_map(|part| part.data).collect::<Vec<u8>>())
        };
        assert_eq!(read(0, 0).unwrap(), b"abcdef");
        assert_eq!(read(2, 3).unwrap(), b"cde");
        assert_eq!(read(6, 0).unwrap(), b"");
        assert_eq!(read(2, 100).unwrap(), b"cdef");
        assert!(read(7, 0).is_err() && read(-1, 0).is_err() && read(0, -1).is_err());
    }
}
