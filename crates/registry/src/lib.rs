//! The client of the OCI distribution protocol: what forge pulls from and pushes to registries.
//!
//! Knows nothing of builds, Dockerfiles or how images are put together: it moves manifests as bytes and blobs between
//! servers and the store, and believes no server. Everything is checked against digests and sizes here.
//!
//! Reading order: [`RegistryOptions`]; [`Registry`]; [`Document`], [`Pushed`], [`LoginOutcome`]; [`select_platform`];
//! [`DockerConfig`]; [`RegistryError`]. Above them, whole images: [`TransferContext`], [`ImageSource`], [`OciLayout`],
//! [`resolve_image`], [`fetch_image`], [`pull`], [`from_oci_layout`], [`FetchError`]. Beside them, files of
//! ordinary web servers: [`WebRequest`], [`WebFile`]; services: [`WebCall`], [`WebReply`].
//!
//! # Why not `oci-client`
//! That crate was looked at (0.18), and what forge asks of a client (A71, A74, A75, mirrors, retries) would have replaced
//! all of it but its types: `docs/design/006-libraries.md`. Tests use it as another client to exchange images with.
//!
//! # HTTP
//! HTTP/1.1 only: blobs come over parallel connections anyway, and the attacks on HTTP/2 framing (A79) have nothing
//! to attack. TLS by `rustls` with `ring`, names by `hickory`, so that a static binary needs no system library.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod answer;
mod attestation_chain;
mod auth;
mod blob_fetch;
mod content_hash;
mod credential_helper;
mod docker_config;
mod document;
mod document_store;
mod endpoint;
mod error;
mod exchange;
mod fetch;
mod fetch_error;
mod http_date;
mod image_source;
mod index_walk;
mod layer_fetch;
mod layout;
mod login;
mod manifests;
mod message;
mod options;
mod proxy;
mod pull_image;
mod push;
mod ranges;
mod registry;
mod resolve_image;
mod resolver;
mod retry;
mod select;
mod sink;
mod table_fetch;
mod tls;
mod transfer;
mod transport;
mod upload;
mod upload_body;
mod web;
mod web_call;

pub use attestation_chain::{AttestationChain, attestation_chain};
pub use blob_fetch::ensure_blob;
pub use content_hash::ContentHash;
pub use docker_config::DockerConfig;
pub use document::Document;
pub use document_store::{MAX_CONFIG, MAX_MANIFEST};
pub use error::RegistryError;
pub use fetch_error::FetchError;
pub use image_source::{ImageSource, RegistrySource};
pub use index_walk::image_manifests;
pub use layer_fetch::{OfferedLayer, bring_layers, fetch_layers, fetch_stack, know_layers};
pub use layout::{IMAGE_NAME, LayoutName, OciLayout, REF_NAME, from_oci_layout, resolve_oci_layout};
pub use login::LoginOutcome;
pub use message::ServerMessage;
pub use options::{HostOptions, ProxyOptions, RegistryOptions, RetryPolicy, Timeouts};
pub use pull_image::{Pulled, fetch_image, pull, record};
pub use push::Pushed;
pub use registry::Registry;
pub use resolve_image::{ResolvedImage, resolve_image, resolve_manifest, resolve_root};
pub use select::select_platform;
pub use table_fetch::tell_layers;
pub use transfer::{TransferContext, TransferProgress};
pub use web::{WebAnswer, WebError, WebFile, WebPacking, WebRequest, http_date};
pub use web_call::{WebBody, WebCall, WebMethod, WebReply};
