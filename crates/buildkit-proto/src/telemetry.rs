//! OpenTelemetry's `collector/trace/v1/trace_service.proto`, by which clients tell spans, and of `trace/v1/trace.proto` what is shown.

use prost::{Message, Oneof};

/// The service.
pub const SERVICE: &str = "opentelemetry.proto.collector.trace.v1.TraceService";

/// What a client tells.
#[derive(Clone, PartialEq, Message)]
pub struct ExportRequest {
    /// By program.
    #[prost(message, repeated, tag = "1")]
    pub resource_spans: Vec<ResourceSpans>,
}

/// Spans of one program.
#[derive(Clone, PartialEq, Message)]
pub struct ResourceSpans {
    /// By library.
    #[prost(message, repeated, tag = "2")]
    pub scope_spans: Vec<ScopeSpans>,
}

/// Spans of one library of it.
#[derive(Clone, PartialEq, Message)]
pub struct ScopeSpans {
    /// In the order in which they ended.
    #[prost(message, repeated, tag = "2")]
    pub spans: Vec<Span>,
}

/// As `trace/v1/trace.proto` has it, without what is not shown.
#[derive(Clone, PartialEq, Message)]
pub struct Span {
    /// Which trace it is part of, 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub trace: Vec<u8>,
    /// Its own number, 8 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub id: Vec<u8>,
    /// The span that it is part of, if any.
    #[prost(bytes = "vec", tag = "4")]
    pub parent: Vec<u8>,
    /// What was done.
    #[prost(string, tag = "5")]
    pub name: String,
    /// 1 within a program, 2 as a server, 3 as a client.
    #[prost(int32, tag = "6")]
    pub kind: i32,
    /// Nanoseconds since 1970.
    #[prost(fixed64, tag = "7")]
    pub start: u64,
    /// Nanoseconds since 1970.
    #[prost(fixed64, tag = "8")]
    pub end: u64,
    /// Remarks.
    #[prost(message, repeated, tag = "9")]
    pub attributes: Vec<Attribute>,
    /// How it ended, where that was noted.
    #[prost(message, optional, tag = "15")]
    pub status: Option<SpanStatus>,
}

/// A remark on a span.
#[derive(Clone, PartialEq, Message)]
pub struct Attribute {
    /// Its name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// What it says.
    #[prost(message, optional, tag = "2")]
    pub value: Option<AttributeValue>,
}

/// What it says; lists and maps are not read.
#[derive(Clone, PartialEq, Message)]
pub struct AttributeValue {
    /// A single value.
    #[prost(oneof = "Scalar", tags = "1, 2, 3, 4")]
    pub scalar: Option<Scalar>,
}

/// A value that is none of those.
#[derive(Clone, PartialEq, Oneof)]
pub enum Scalar {
    /// Text.
    #[prost(string, tag = "1")]
    Text(String),
    /// Yes or no.
    #[prost(bool, tag = "2")]
    Bool(bool),
    /// A whole number.
    #[prost(int64, tag = "3")]
    Int(i64),
    /// Any number.
    #[prost(double, tag = "4")]
    Float(f64),
}

/// How a span ended: `code` is 1 where well, 2 where not.
#[derive(Clone, PartialEq, Message)]
pub struct SpanStatus {
    /// Why, for people.
    #[prost(string, tag = "2")]
    pub message: String,
    /// 1 where it succeeded, 2 where it failed.
    #[prost(int32, tag = "3")]
    pub code: i32,
}

/// What a client is told.
#[derive(Clone, PartialEq, Message)]
pub struct ExportResponse {
    /// Nothing where all was taken.
    #[prost(message, optional, tag = "1")]
    pub partial: Option<PartialSuccess>,
}

/// That something of it was not taken, and why.
#[derive(Clone, PartialEq, Message)]
pub struct PartialSuccess {
    /// How many spans were not.
    #[prost(int64, tag = "1")]
    pub rejected: i64,
    /// Why, for people.
    #[prost(string, tag = "2")]
    pub message: String,
}
