//! What forge's tests are made of: a registry that can be told to misbehave, images made in memory, an oracle for images
//! that forge wrote. Only ever a dev-dependency; no crate that is shipped may use it.
//!
//! The crate knows the image specification and nothing of forge's store, solver or exporters, so that it does not repeat
//! their mistakes: it writes and reads tar, compression and digests by itself.
//!
//! Reading order: [`TestRegistry`], [`Script`], [`Received`]; [`RawServer`]; [`GitServer`]; [`TestCa`]; [`DockerRegistry`];
//! [`TarBuilder`], [`ImageBuilder`], [`TestImage`]; [`validate_layout`]; [`TestSession`]; [`privileged`];
//! [`run_again_as_user`]; [`fuzz`].
//!
//! Everything in here panics when something does not work: that is a failed test.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod certificate;
mod docker_registry;
pub mod fuzz;
mod gate;
mod git_server;
mod image;
mod ordinary_user;
mod raw_server;
mod registry;
mod session;
mod tar;
mod validate;

pub use certificate::{ServerCertificate, TestCa};
pub use docker_registry::DockerRegistry;
pub use gate::{installed, privileged};
pub use git_server::{GitRepository, GitServer};
pub use image::{ImageBuilder, LayerCompression, TestBlob, TestImage, write_layout};
pub use ordinary_user::run_again_as_user;
pub use raw_server::RawServer;
pub use registry::{Received, Reply, Script, TestRegistry, TestRegistryBuilder};
pub use session::TestSession;
pub use tar::{TarBuilder, TarEntry};
pub use validate::{ValidImage, validate, validate_layout};
