//! A registry in memory that speaks the distribution protocol, logs everything and misbehaves on demand.

mod answer;
mod protocol;
mod script;
mod server;
mod state;

pub use script::{Reply, Script};
pub use server::{TestRegistry, TestRegistryBuilder};
pub use state::Received;
