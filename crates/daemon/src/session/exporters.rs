//! Outputs that a client decides on only when it has seen the result, and its last word on what was written.
//!
//! The generated types have no such service (`moby.exporter.v1`), so the messages are written down here.

use super::{ClientSession, MOST_MESSAGE};
use forge_buildkit_proto::moby::buildkit::v1::Exporter;
use std::collections::HashMap;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

const FIND: &str = "/moby.exporter.v1.Exporter/FindExporters";
const FINALIZE: &str = "/moby.exporter.v1.Exporter/FinalizeExport";

#[derive(Clone, PartialEq, prost::Message)]
struct FindExportersRequest {
    #[prost(map = "string, bytes", tag = "1")]
    metadata: HashMap<String, Vec<u8>>,
    #[prost(string, repeated, tag = "2")]
    refs: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FindExportersResponse {
    #[prost(message, repeated, tag = "1")]
    exporters: Vec<ExporterRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExporterRequest {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(map = "string, string", tag = "2")]
    attributes: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FinalizeExportRequest {
    #[prost(map = "string, string", tag = "1")]
    response: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FinalizeExportResponse {}

/// The outputs that a client wants of a result whose parts it can look at under the names `refs`.
pub(crate) async fn find(
    session: &ClientSession,
    metadata: HashMap<String, Vec<u8>>,
    refs: Vec<String>,
) -> Result<Vec<Exporter>, Status> {
    let asked = FindExportersRequest { metadata, refs };
    let answer: Option<FindExportersResponse> = call(session, FIND, asked).await?;
    let exporters = answer.map(|answer| answer.exporters).unwrap_or_default().into_iter();
    Ok(exporters.map(|exporter| Exporter { r#type: exporter.kind, attrs: exporter.attributes }).collect())
}

/// Tells a client what was written; it may still fail the build.
pub(crate) async fn finalize(session: &ClientSession, response: HashMap<String, String>) -> Result<(), Status> {
    // The answer has nothing to say but that the client agrees.
    let answer = call::<_, FinalizeExportResponse>(session, FINALIZE, FinalizeExportRequest { response });
    answer.await.map(|_| ())
}

/// `None` where the client does not serve the method, or only another part of the service.
async fn call<Q, A>(session: &ClientSession, method: &'static str, request: Q) -> Result<Option<A>, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    if !session.supports(method) {
        return Ok(None);
    }
    let mut client = Grpc::new(session.channel.clone()).max_decoding_message_size(MOST_MESSAGE);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static(method);
    match client.unary(Request::new(request), path, ProstCodec::default()).await {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) if matches!(status.code(), Code::Unavailable | Code::Unimplemented) => Ok(None),
        Err(status) => Err(status),
    }
}
