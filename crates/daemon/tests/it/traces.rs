//! Spans that a client tells of its builds.

use crate::client::{Client, TestDaemon};
use forge_buildkit_proto::content::{READ, ReadRequest, ReadResponse};
use forge_buildkit_proto::moby::buildkit::v1::{BuildHistoryRequest, SolveRequest, UpdateBuildHistoryRequest};
use forge_buildkit_proto::telemetry::{ExportRequest, ExportResponse, ResourceSpans, SERVICE, ScopeSpans, Span};
use serde_json::Value;
use tonic::client::Grpc;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// Has a span exported.
async fn export(client: &Client, trace: [u8; 16], name: &str) -> Result<ExportResponse, Status> {
    let span = Span { trace: trace.to_vec(), id: vec![7; 8], name: name.to_owned(), ..Span::default() };
    let scope = ScopeSpans { spans: vec![span] };
    let request = ExportRequest { resource_spans: vec![ResourceSpans { scope_spans: vec![scope] }] };
    let path = format!("/{SERVICE}/Export").parse().unwrap();
    let mut grpc = Grpc::new(client.channel.clone());
    grpc.ready().await.unwrap();
    grpc.unary(Request::new(request), path, ProstCodec::default()).await.map(tonic::Response::into_inner)
}

/// What is kept of the build's trace.
async fn kept(client: &Client) -> Vec<Value> {
    let finalize = UpdateBuildHistoryRequest { r#ref: "traced".into(), finalize: true, ..Default::default() };
    client.control().update_build_history(finalize).await.unwrap();
    let request = BuildHistoryRequest { early_exit: true, ..BuildHistoryRequest::default() };
    let mut events = client.control().listen_build_history(request).await.unwrap().into_inner();
    let record = events.message().await.unwrap().unwrap().record.unwrap();
    let request = ReadRequest { digest: record.trace.unwrap().digest, ..ReadRequest::default() };
    let path = READ.parse().unwrap();
    let mut grpc = Grpc::new(client.channel.clone());
    grpc.ready().await.unwrap();
    let codec: ProstCodec<ReadRequest, ReadResponse> = ProstCodec::default();
    let mut parts = grpc.server_streaming(Request::new(request), path, codec).await.unwrap().into_inner();
    let bytes = parts.message().await.unwrap().unwrap().data;
    serde_json::from_slice(&bytes).unwrap()
}

/// Seen to fail (the call is not known) before there was such a service.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_s_spans_are_kept_with_its_build() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    let request = SolveRequest { r#ref: "traced".into(), frontend: "none".into(), ..SolveRequest::default() };
    let mut request = Request::new(request);
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    client.control().solve(request).await.unwrap_err();
    let before = kept(&client).await.len();

    let trace = std::array::from_fn(|index| u8::from_str_radix(&TRACE[index * 2..index * 2 + 2], 16).unwrap());
    assert_eq!(export(&client, trace, "build").await.unwrap(), ExportResponse::default());
    assert_eq!(export(&client, [9; 16], "of nobody").await.unwrap(), ExportResponse::default());
    let spans = kept(&client).await;
    assert_eq!(spans.len(), before + 1, "{spans:?}");
    let told = spans.iter().find(|span| span["Name"] == "build").unwrap();
    assert_eq!(
        (&told["SpanContext"]["TraceID"], &told["SpanContext"]["SpanID"]),
        (&TRACE.into(), &"07".repeat(8).into())
    );
    // What is kept stays when the daemon starts anew.
    let daemon = daemon.again().await;
    assert_eq!(kept(&daemon.client().await).await, spans);
    daemon.stop().await.unwrap();
}
