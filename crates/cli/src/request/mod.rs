//! From flags to the engine's requests. Pure but for the files that flags name.

mod annotation;
mod build;
mod call;
mod context;
mod handed;
pub mod imagetools;
mod intake;
mod isolation;
mod limits;
mod llb;
mod mounts;
mod output;
mod reached;
mod recipient;
mod rights;
mod run;
mod shared_cache;
mod source_policy;

pub use build::{Input, InputNeeds, build_request, input_needs, notes};
pub use call::{CallFormat, CallRequest, Method, call_request};
pub use intake::set_limit;
pub use limits::bytes;
pub use llb::{DefinitionFile, definition_file, with_dockerfile_context};
pub use run::{check_terminal, run_request};
pub use shared_cache::cache_entries;

use crate::sanitise;
use anyhow::{Context, bail};
use forge_engine::Network;
use forge_image::{Platform, Reference};

/// What is said of flags that docker has and forge does not.
pub fn unsupported(what: &str) -> anyhow::Error {
    anyhow::anyhow!("{} is not supported by this version of forge", sanitise::line(what))
}

/// Refuses the first of some flags.
fn refuse(flags: &[&str]) -> anyhow::Result<()> {
    match flags.first() {
        Some(flag) => Err(unsupported(&format!("--{flag}"))),
        None => Ok(()),
    }
}

/// Reads an image name.
pub fn reference(text: &str) -> anyhow::Result<Reference> {
    text.parse().with_context(|| format!("{:?} is not an image name", sanitise::line(text)))
}

/// Reads a platform; `local` is the host's.
pub fn platform(text: &str) -> anyhow::Result<Platform> {
    match text {
        "local" => Ok(Platform::host()),
        text => Ok(text.parse()?),
    }
}

/// Reads `--network`. docker's `bridge` is its default network.
fn network(text: &str) -> anyhow::Result<Network> {
    match text {
        "" | "default" | "bridge" => Ok(Network::Default),
        "host" => Ok(Network::Host),
        "none" => Ok(Network::None),
        other => bail!(
            "--network {} is not supported by this version of forge: use default, host or none",
            sanitise::line(other)
        ),
    }
}
