//! Spans that clients tell of their builds, by OpenTelemetry's `collector/trace/v1/trace_service.proto`. Those of a build's trace are part of
//! what is kept of the build; others are accepted and forgotten, since there is nobody to hand them on to.

use crate::builds::Builds;
use crate::timestamp::rfc3339;
use bytes::Bytes;
use forge_buildkit_proto::telemetry::{
    Attribute, ExportRequest, ExportResponse, PartialSuccess, SERVICE, Scalar, Span, SpanStatus,
};
use prost::Message as _;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, UNIX_EPOCH};
use tonic::body::Body as Answer;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// What the spans of one build may take, as they came.
const MOST: usize = 4 << 20;

/// The span that a call was made in (W3C Trace Context, `traceparent`), in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TraceContext {
    pub trace: String,
    pub span: String,
}

impl TraceContext {
    /// What a call says, where it says something that is one.
    pub(crate) fn of(metadata: &MetadataMap) -> Option<Self> {
        let mut parts = metadata.get("traceparent")?.to_str().ok()?.split('-');
        let (_version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
        let is = |text: &str, length: usize| {
            let digits = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            text.len() == length && text.bytes().all(digits) && text.bytes().any(|byte| byte != b'0')
        };
        (is(trace, 32) && is(span, 16)).then(|| Self { trace: trace.to_owned(), span: span.to_owned() })
    }
}

/// The trace that a build is part of, and what its client told of that.
#[derive(Default)]
pub(crate) struct ClientTrace {
    /// Nothing where the client keeps no trace.
    pub context: Option<TraceContext>,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    spans: Vec<Span>,
    bytes: usize,
}

impl ClientTrace {
    pub(crate) fn new(context: Option<TraceContext>) -> Self {
        Self { context, told: Mutex::default() }
    }

    pub(crate) fn is_part_of(&self, trace: &str) -> bool {
        self.context.as_ref().is_some_and(|context| context.trace == trace)
    }

    /// Takes a span, unless there is no room for it.
    pub(crate) fn take(&self, span: &Span) -> bool {
        let mut told = self.told();
        let bytes = told.bytes + span.encoded_len();
        if bytes > MOST {
            return false;
        }
        told.bytes = bytes;
        told.spans.push(span.clone());
        true
    }

    /// The spans in the form of those that BuildKit keeps.
    pub(crate) fn shown(&self) -> Vec<Value> {
        self.told().spans.iter().map(shown).collect()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shown(span: &Span) -> Value {
    let moment = |nanoseconds| rfc3339(UNIX_EPOCH + Duration::from_nanos(nanoseconds));
    let context = |id: &[u8]| json!({ "TraceID": hex::encode(&span.trace), "SpanID": hex::encode(id) });
    let (code, description) = match &span.status {
        Some(SpanStatus { code: 1, .. }) => ("Ok", ""),
        Some(SpanStatus { code: 2, message }) => ("Error", message.as_str()),
        _ => ("Unset", ""),
    };
    let mut shown = json!({
        "Name": span.name, "SpanContext": context(&span.id), "SpanKind": span.kind, "StartTime": moment(span.start),
        "EndTime": moment(span.end), "Attributes": span.attributes.iter().filter_map(attribute).collect::<Vec<_>>(),
        "Status": { "Code": code, "Description": description },
    });
    if !span.parent.is_empty() {
        shown["Parent"] = context(&span.parent);
    }
    shown
}

/// Lists and maps are left out.
fn attribute(attribute: &Attribute) -> Option<Value> {
    let (kind, value) = match attribute.value.as_ref()?.scalar.as_ref()? {
        Scalar::Text(text) => ("STRING", json!(text)),
        Scalar::Bool(value) => ("BOOL", json!(value)),
        Scalar::Int(number) => ("INT64", json!(number)),
        Scalar::Float(number) => ("FLOAT64", json!(number)),
    };
    Some(json!({ "Key": attribute.key, "Value": { "Type": kind, "Value": value } }))
}

/// Serves the collector's protocol.
#[derive(Clone)]
pub(crate) struct TraceService {
    builds: Arc<Builds>,
}

impl TraceService {
    pub(crate) fn new(builds: Arc<Builds>) -> Self {
        Self { builds }
    }
}

impl NamedService for TraceService {
    const NAME: &'static str = SERVICE;
}

struct Export(TraceService);

impl UnaryService<ExportRequest> for Export {
    type Response = ExportResponse;
    type Future = Ready<Result<Response<ExportResponse>, Status>>;

    fn call(&mut self, request: Request<ExportRequest>) -> Self::Future {
        let resources = request.into_inner().resource_spans;
        let spans = resources.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans);
        let is_refused = |span: &&Span| !self.0.builds.take_span(&hex::encode(&span.trace), span);
        let rejected = i64::try_from(spans.filter(is_refused).count()).unwrap_or(i64::MAX);
        let message = format!("spans of a build may take {MOST} bytes");
        let partial = (rejected > 0).then_some(PartialSuccess { rejected, message });
        ready(Ok(Response::new(ExportResponse { partial })))
    }
}

impl<B> Service<http::Request<B>> for TraceService
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
        let export = Export(self.clone());
        let is_export = request.uri().path().ends_with("/Export");
        Box::pin(async move {
            Ok(match is_export {
                true => Grpc::new(ProstCodec::default()).unary(export, request).await,
                false => Status::unimplemented("the only call is Export").into_http(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_buildkit_proto::telemetry::AttributeValue;

    fn context(text: &str) -> Option<TraceContext> {
        let mut metadata = MetadataMap::new();
        metadata.insert("traceparent", text.parse().unwrap());
        TraceContext::of(&metadata)
    }

    #[test]
    fn calls_say_which_span_they_are_made_in() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let found = context(&format!("00-{trace}-{span}-01")).unwrap();
        assert_eq!((found.trace.as_str(), found.span.as_str()), (trace, span));
        let zeros = "0".repeat(32);
        for text in [
            "",
            "00",
            "00-0af7-b7ad-01",
            &format!("00-{zeros}-{span}-01"),
            &format!("00-{}-{span}-01", trace.to_uppercase()),
            &format!("00-{trace}-../../etc/passwd-01"),
        ] {
            assert_eq!(context(text), None, "{text}");
        }
        assert_eq!(TraceContext::of(&MetadataMap::new()), None);
    }

    /// Seen to fail without a bound.
    #[test]
    fn spans_of_a_build_are_bounded() {
        let trace = ClientTrace::default();
        let span = Span { name: "x".repeat(1 << 20), ..Span::default() };
        let taken = (0..10).filter(|_| trace.take(&span)).count();
        assert_eq!((taken, trace.shown().len()), (3, 3));
    }

    #[test]
    fn spans_are_shown_as_those_of_steps_are() {
        let value = |scalar| Some(AttributeValue { scalar: Some(scalar) });
        let span = Span {
            trace: vec![0xaa; 16],
            id: vec![1; 8],
            parent: vec![2; 8],
            name: "solve".into(),
            kind: 3,
            start: 1_500_000_000,
            end: 2_000_000_000,
            attributes: vec![
                Attribute { key: "n".into(), value: value(Scalar::Int(7)) },
                Attribute { key: "list".into(), value: None },
            ],
            status: Some(SpanStatus { message: "no".into(), code: 2 }),
        };
        let shown = shown(&span);
        assert_eq!(shown["SpanContext"], json!({ "TraceID": "aa".repeat(16), "SpanID": "01".repeat(8) }));
        assert_eq!(shown["Parent"]["SpanID"], "02".repeat(8));
        assert!(shown["StartTime"].as_str().unwrap().starts_with("1970-01-01T00:00:01.5"));
        assert_eq!(shown["Attributes"], json!([{ "Key": "n", "Value": { "Type": "INT64", "Value": 7 } }]));
        assert_eq!(shown["Status"], json!({ "Code": "Error", "Description": "no" }));
    }
}
