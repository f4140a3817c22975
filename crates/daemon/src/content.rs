//! containerd's content service, as far as the control socket has it: what is known of builds, by digest.
//!
//! Nothing of it is kept as content by this daemon, so that there is nothing to be listed.

use bytes::Bytes;
use std::convert::Infallible;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body as Answer;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, ServerStreamingService};

/// The messages hold nothing that is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
struct Nothing {}

/// Serves the content service.
#[derive(Clone, Copy)]
pub(crate) struct ContentService;

impl NamedService for ContentService {
    const NAME: &'static str = "containerd.services.content.v1.Content";
}

/// Lists nothing.
struct List;

impl ServerStreamingService<Nothing> for List {
    type Response = Nothing;
    type ResponseStream = futures_util::stream::Empty<Result<Nothing, Status>>;
    type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: tonic::Request<Nothing>) -> Self::Future {
        std::future::ready(Ok(tonic::Response::new(futures_util::stream::empty())))
    }
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
        Box::pin(async move {
            match method.as_str() {
                "List" => {
                    let mut grpc = Grpc::new(tonic_prost::ProstCodec::<Nothing, Nothing>::default());
                    Ok(grpc.server_streaming(List, request).await)
                }
                "Info" | "Read" => Ok(Status::not_found("content not found").into_http()),
                other => Ok(Status::unimplemented(format!("{other}: the content is read-only")).into_http()),
            }
        })
    }
}
