//! containerd's content service: blobs by digest. The generated types do not have it.

use prost::Message;

/// Its name.
pub const SERVICE: &str = "containerd.services.content.v1.Content";
/// Sends a blob, or a part of it.
pub const READ: &str = "/containerd.services.content.v1.Content/Read";
/// Takes a blob.
pub const WRITE: &str = "/containerd.services.content.v1.Content/Write";
/// The metadata of a call that name the store it is for, where a client has several.
pub const STORE: &str = "buildkit-attachable-store-id";

/// A part of a blob.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ReadRequest {
    /// Which blob.
    #[prost(string, tag = "1")]
    pub digest: String,
    /// Where the part begins.
    #[prost(int64, tag = "2")]
    pub offset: i64,
    /// How long it is; 0 is all that is left.
    #[prost(int64, tag = "3")]
    pub size: i64,
}

/// Some bytes.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ReadResponse {
    /// Where they are.
    #[prost(int64, tag = "1")]
    pub offset: i64,
    /// The bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
}

/// What is to be done with a blob that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum WriteAction {
    /// Nothing but to say how much there is.
    Stat = 0,
    /// The bytes are added.
    Write = 1,
    /// The bytes are added, and that was all.
    Commit = 2,
}

/// Some bytes of a blob that is written.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct WriteRequest {
    /// What to do.
    #[prost(enumeration = "WriteAction", tag = "1")]
    pub action: i32,
    /// A name for the writing.
    #[prost(string, tag = "2")]
    pub reference: String,
    /// How long the blob will be.
    #[prost(int64, tag = "3")]
    pub total: i64,
    /// Its digest.
    #[prost(string, tag = "4")]
    pub expected: String,
    /// Where the bytes belong.
    #[prost(int64, tag = "5")]
    pub offset: i64,
    /// The bytes.
    #[prost(bytes = "vec", tag = "6")]
    pub data: Vec<u8>,
}

/// How far the writing of a blob is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct WriteResponse {
    /// How much there is.
    #[prost(int64, tag = "4")]
    pub offset: i64,
}
