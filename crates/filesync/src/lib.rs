//! Trees of files that cross a connection by difference: the protocol by which BuildKit's clients and daemons hand each other
//! contexts and results.
//!
//! The crate knows packets and folders. Which connection they cross and when is the business of whoever has one.
//!
//! Reading order: [`packet`] and [`stat_packet`], what is sent; [`list`], the side that has a tree; [`Receiver`], the side that
//! brings its folder up to date.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod list;
mod packets;
mod receive;

pub use list::{Selected, list};
pub use packets::{Kind, kind, mode, packet, stat_packet};
pub use receive::{Others, Owners, Receiver, Reply, Trust, request};
