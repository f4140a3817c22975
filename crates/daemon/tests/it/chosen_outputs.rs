//! Outputs of a client that sees the result first.

use bytes::Bytes;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// The outputs that a client chooses when there is a result, and what it heard of it.
#[derive(Clone, Default)]
pub struct ChosenOutputs {
    pub chosen: Vec<(String, HashMap<String, String>)>,
    /// The names of the parts of the result.
    pub refs: Arc<Mutex<Vec<String>>>,
    /// What was written.
    pub finished: Arc<Mutex<HashMap<String, String>>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Find {
    #[prost(map = "string, bytes", tag = "1")]
    metadata: HashMap<String, Vec<u8>>,
    #[prost(string, repeated, tag = "2")]
    refs: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Found {
    #[prost(message, repeated, tag = "1")]
    exporters: Vec<Chosen>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Chosen {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(map = "string, string", tag = "2")]
    attributes: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Finished {
    #[prost(map = "string, string", tag = "1")]
    response: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Agreed {}

impl ChosenOutputs {
    pub const METHODS: [&'static str; 2] =
        ["/moby.exporter.v1.Exporter/FindExporters", "/moby.exporter.v1.Exporter/FinalizeExport"];
}

impl NamedService for ChosenOutputs {
    const NAME: &'static str = "moby.exporter.v1.Exporter";
}

impl UnaryService<Find> for ChosenOutputs {
    type Response = Found;
    type Future = std::future::Ready<Result<Response<Found>, Status>>;

    fn call(&mut self, request: Request<Find>) -> Self::Future {
        *self.refs.lock().unwrap() = request.into_inner().refs;
        let chosen = self.chosen.iter().cloned();
        let exporters = chosen.map(|(kind, attributes)| Chosen { kind, attributes }).collect();
        std::future::ready(Ok(Response::new(Found { exporters })))
    }
}

impl UnaryService<Finished> for ChosenOutputs {
    type Response = Agreed;
    type Future = std::future::Ready<Result<Response<Agreed>, Status>>;

    fn call(&mut self, request: Request<Finished>) -> Self::Future {
        *self.finished.lock().unwrap() = request.into_inner().response;
        std::future::ready(Ok(Response::new(Agreed {})))
    }
}

impl<B> Service<http::Request<B>> for ChosenOutputs
where
    B: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path().ends_with("/FindExporters") {
                true => Grpc::new(ProstCodec::<Found, Find>::default()).unary(this, request).await,
                false => Grpc::new(ProstCodec::<Agreed, Finished>::default()).unary(this, request).await,
            })
        })
    }
}
