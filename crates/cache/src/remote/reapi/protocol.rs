//! The messages of Bazel's Remote Execution API (version 2) and of Google's ByteStream that a cache needs, with the numbers of
//! `build/bazel/remote/execution/v2/remote_execution.proto` and `google/bytestream/bytestream.proto`. Fields that forge neither
//! writes nor reads are left out: prost passes over what it does not know.

/// Names a blob.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub(super) struct Digest {
    /// Of its bytes, in hexadecimal.
    #[prost(string, tag = "1")]
    pub hash: String,
    #[prost(int64, tag = "2")]
    pub size_bytes: i64,
}

/// What is asked of a server that executes. Servers of caches read it too.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Action {
    #[prost(message, optional, tag = "1")]
    pub command_digest: Option<Digest>,
    /// An empty folder is an empty message.
    #[prost(message, optional, tag = "2")]
    pub input_root_digest: Option<Digest>,
    /// Tells actions apart that are alike in all else.
    #[prost(bytes = "vec", tag = "9")]
    pub salt: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Command {
    #[prost(string, repeated, tag = "1")]
    pub arguments: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct GetActionResultRequest {
    #[prost(string, tag = "1")]
    pub instance_name: String,
    #[prost(message, optional, tag = "2")]
    pub action_digest: Option<Digest>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct UpdateActionResultRequest {
    #[prost(string, tag = "1")]
    pub instance_name: String,
    #[prost(message, optional, tag = "2")]
    pub action_digest: Option<Digest>,
    #[prost(message, optional, tag = "3")]
    pub action_result: Option<ActionResult>,
}

/// What an action made.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ActionResult {
    #[prost(message, repeated, tag = "2")]
    pub output_files: Vec<OutputFile>,
    #[prost(int32, tag = "4")]
    pub exit_code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OutputFile {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(message, optional, tag = "2")]
    pub digest: Option<Digest>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FindMissingBlobsRequest {
    #[prost(string, tag = "1")]
    pub instance_name: String,
    #[prost(message, repeated, tag = "2")]
    pub blob_digests: Vec<Digest>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FindMissingBlobsResponse {
    #[prost(message, repeated, tag = "2")]
    pub missing_blob_digests: Vec<Digest>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ReadRequest {
    #[prost(string, tag = "1")]
    pub resource_name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ReadResponse {
    #[prost(bytes = "vec", tag = "10")]
    pub data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WriteRequest {
    #[prost(string, tag = "1")]
    pub resource_name: String,
    #[prost(int64, tag = "2")]
    pub write_offset: i64,
    #[prost(bool, tag = "3")]
    pub finish_write: bool,
    #[prost(bytes = "vec", tag = "10")]
    pub data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WriteResponse {
    #[prost(int64, tag = "1")]
    pub committed_size: i64,
}

pub(super) const GET_ACTION_RESULT: &str = "/build.bazel.remote.execution.v2.ActionCache/GetActionResult";
pub(super) const UPDATE_ACTION_RESULT: &str = "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult";
pub(super) const FIND_MISSING_BLOBS: &str =
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs";
pub(super) const READ: &str = "/google.bytestream.ByteStream/Read";
pub(super) const WRITE: &str = "/google.bytestream.ByteStream/Write";
