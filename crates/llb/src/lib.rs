//! The low-level build graph: what is to be done, without a word on how.
//!
//! A [`Graph`] is a list of vertices in topological order and the edge that is wanted. Front ends make it, the
//! solver evaluates it. The crate knows no Dockerfile, no store and no process; it does no I/O.
//!
//! A vertex is identified by the digest of its canonical bytes ([`Vertex::canonical_bytes`]), which cover the
//! op, its platform and the digests of its inputs, and leave out names, spans and everything in [`Metadata`].
//!
//! Reading order: [`Graph`], [`Vertex`], [`Edge`]; [`Op`], [`SourceOp`], [`ExecOp`], [`FileOp`],
//! [`DiffOp`]; [`Metadata`]; [`GitUrl`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod canonical;
mod contributing;
mod diff;
mod dump;
mod exec;
mod file;
mod git_url;
mod graph;
mod passthrough;
mod resources;
mod source;
mod url_credentials;

pub use diff::DiffOp;
pub use exec::{
    CacheSharing, CdiDevice, ExecMount, ExecOp, ExtraHost, MountKind, NetworkMode, SecretEnv, SecretMount,
    SecurityMode, Ulimit,
};
pub use file::{
    CopyAction, FileAction, FileInput, FileKind, FileOp, MkdirAction, MkfileAction, ModeChange, Owner, RmAction,
    SymlinkAction,
};
pub use git_url::{
    GitRemote, GitTransport, GitUrl, GitUrlError, check_git_reference, checked_git_checksum, cleaned_git_subdir,
    is_whole_commit,
};
pub use graph::{Edge, Graph, GraphError, InstructionSpan, Metadata, Op, Vertex, VertexDigest};
pub use passthrough::PassthroughOp;
pub use resources::{StepResources, is_set_of_numbers};
pub use source::{
    BlobSource, CompareFiles, GitForm, GitMtime, GitSource, HttpSource, ImageSource, LocalSource, OciLayoutSource,
    ResolveMode, SourceOp,
};
pub use url_credentials::{UrlCredentials, without_credentials};
