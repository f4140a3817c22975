//! BuildKit's gRPC interfaces, served from the engine: a builder for `buildctl`, for buildx and for whatever is made
//! with BuildKit's client library.
//!
//! The crate knows sockets, gRPC and the shapes of requests; what is built and how is the engine's business. It reads no
//! environment and no configuration file, and prints nothing.
//!
//! Reading order: [`DaemonOptions`], [`Address`]; [`Daemon`]; then `control` (the services), `session` (what is called
//! back on clients), `builds` (what runs now), `reply` (errors as clients know them).
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod address;
mod attestations;
mod bridge;
mod builds;
mod caches;
mod containers;
mod content;
mod control;
mod daemon;
mod debug;
mod error;
mod exec_process;
mod exporters;
mod failed;
mod filter;
mod front_end_image;
mod frontend;
mod gateway_service;
mod history_files;
mod info_service;
mod listen;
mod nested;
mod options;
mod origins;
mod places;
mod policy;
mod progress;
mod reply;
mod resolve;
mod resources;
mod session;
mod solution;
mod solve;
mod solve_service;
mod subrequest;
mod timestamp;
mod tls;
mod traces;
mod verify;
mod worker_record;

pub use address::Address;
pub use daemon::Daemon;
pub use error::DaemonError;
pub use options::{DaemonOptions, FrontEndImages, TlsFiles};
