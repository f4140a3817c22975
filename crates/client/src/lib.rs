//! A forge daemon elsewhere: it builds, and this side hands it files, secrets and agents and takes what it makes.
//!
//! The request, the events and the outcome are those of a build in this process, so that whoever asks need not know where it
//! runs. What a daemon cannot be asked for is refused by name. The crate knows BuildKit's interfaces from the client's side; it
//! reads no environment and prints nothing.
//!
//! Reading order: [`Address`], [`TlsFiles`], [`Client`]; [`RemoteBuild`], [`Answered`]; then `request` and `outputs` (what is asked
//! for), `session`, `stores` and `content` (what is served meanwhile), `progress` and `failure` (what is told).
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod address;
mod answers;
mod build;
mod call;
mod connection;
mod content;
mod failure;
mod files;
mod handed;
mod outputs;
mod plan;
mod progress;
mod request;
mod results;
mod session;
mod stores;
mod tls;
mod usage;

pub use address::Address;
pub use answers::Answered;
pub use build::{CacheEntry, RemoteBuild};
pub use connection::Client;
pub use tls::TlsFiles;
