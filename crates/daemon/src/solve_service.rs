//! Services whose requests to build are read by hand: the generated types would drop the limits of steps.

use crate::control::ControlService;
use crate::gateway_service::GatewayService;
use crate::session::MOST_MESSAGE;
use bytes::{Buf, Bytes};
use forge_buildkit_proto::Holder;
use forge_buildkit_proto::moby::buildkit::v1::control_server::Control;
use forge_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_server::LlbBridge;
use forge_buildkit_proto::moby::buildkit::v1::{SolveRequest, SolveResponse, frontend};
use prost::Message;
use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::body::Body as Answer;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstEncoder;

/// Whoever builds when asked.
pub(crate) trait Solves: Send + Sync + 'static {
    type Asked: Message + Default + 'static;
    type Answered: Message + Default + 'static;
    /// Where what is asked has definitions.
    const HOLDER: &'static Holder;

    fn answer(
        &self,
        request: Request<Self::Asked>,
    ) -> impl Future<Output = Result<Response<Self::Answered>, Status>> + Send;
}

impl Solves for ControlService {
    type Asked = SolveRequest;
    type Answered = SolveResponse;
    const HOLDER: &'static Holder = Holder::CONTROL_SOLVE;

    async fn answer(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        Control::solve(self, request).await
    }
}

impl Solves for GatewayService {
    type Asked = frontend::SolveRequest;
    type Answered = frontend::SolveResponse;
    const HOLDER: &'static Holder = Holder::BRIDGE_SOLVE;

    async fn answer(
        &self,
        request: Request<frontend::SolveRequest>,
    ) -> Result<Response<frontend::SolveResponse>, Status> {
        LlbBridge::solve(self, request).await
    }
}

/// Answers `Solve`, and hands every other call on.
pub(crate) struct WithSolve<S, T> {
    pub inner: S,
    pub solver: Arc<T>,
}

impl<S: Clone, T> Clone for WithSolve<S, T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), solver: self.solver.clone() }
    }
}

impl<S: NamedService, T> NamedService for WithSolve<S, T> {
    const NAME: &'static str = S::NAME;
}

impl<S, T, B> Service<http::Request<B>> for WithSolve<S, T>
where
    S: Service<http::Request<B>, Response = http::Response<Answer>, Error = Infallible>,
    S::Future: Send + 'static,
    T: Solves,
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
        if !request.uri().path().ends_with("/Solve") {
            return Box::pin(self.inner.call(request));
        }
        let solve = Solve(self.solver.clone());
        Box::pin(async move {
            let grpc = Grpc::new(Reading(PhantomData::<T>));
            let mut grpc = grpc.max_decoding_message_size(MOST_MESSAGE).max_encoding_message_size(MOST_MESSAGE);
            Ok(grpc.unary(solve, request).await)
        })
    }
}

struct Solve<T>(Arc<T>);

impl<T: Solves> UnaryService<T::Asked> for Solve<T> {
    type Response = T::Answered;
    type Future = BoxFuture<Response<T::Answered>, Status>;

    fn call(&mut self, request: Request<T::Asked>) -> Self::Future {
        let solver = self.0.clone();
        Box::pin(async move { solver.answer(request).await })
    }
}

struct Reading<T>(PhantomData<T>);

impl<T: Solves> Codec for Reading<T> {
    type Encode = T::Answered;
    type Decode = T::Asked;
    type Encoder = ProstEncoder<T::Answered>;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self {
        Self(PhantomData)
    }
}

impl<T: Solves> Decoder for Reading<T> {
    type Item = T::Asked;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<T::Asked>, Status> {
        let bytes = bytes.copy_to_bytes(bytes.remaining());
        let bytes = forge_buildkit_proto::with_described_resources(&bytes, T::HOLDER);
        let bytes = bytes.map_err(|error| Status::internal(error.to_string()))?;
        let asked = T::Asked::decode(bytes.as_slice()).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Some(asked))
    }
}
