//! The control service, with one answer made by hand: clients ask which version of the Dockerfile language is read, and the
//! generated types have no field for that.

use bytes::Bytes;
use prost::Message;
use std::convert::Infallible;
use std::task::{Context, Poll};
use tonic::body::Body as Answer;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
struct InfoRequest {}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
struct InfoResponse {
    #[prost(message, optional, tag = "1")]
    version: Option<Version>,
}

/// The version that clients are told.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub(crate) struct Version {
    #[prost(string, tag = "1")]
    pub package: String,
    #[prost(string, tag = "2")]
    pub version: String,
    #[prost(string, tag = "3")]
    pub revision: String,
    /// Of the Dockerfile language.
    #[prost(string, tag = "4")]
    pub dockerfile: String,
}

/// Answers `Info`, and hands every other call on.
#[derive(Clone)]
pub(crate) struct WithInfo<S> {
    pub inner: S,
    pub version: Version,
}

impl<S: NamedService> NamedService for WithInfo<S> {
    const NAME: &'static str = S::NAME;
}

struct Inform(Version);

impl UnaryService<InfoRequest> for Inform {
    type Response = InfoResponse;
    type Future = std::future::Ready<Result<Response<InfoResponse>, Status>>;

    fn call(&mut self, _: Request<InfoRequest>) -> Self::Future {
        std::future::ready(Ok(Response::new(InfoResponse { version: Some(self.0.clone()) })))
    }
}

impl<S, B> Service<http::Request<B>> for WithInfo<S>
where
    S: Service<http::Request<B>, Response = http::Response<Answer>, Error = Infallible>,
    S::Future: Send + 'static,
    B: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send + 'static,
{
    type Response = http::Response<Answer>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path().ends_with("/Info") {
            let inform = Inform(self.version.clone());
            return Box::pin(async move { Ok(Grpc::new(ProstCodec::default()).unary(inform, request).await) });
        }
        Box::pin(self.inner.call(request))
    }
}
