//! What each op does on this machine.
//!
//! One file for each op and source: [`exec`](self) runs processes in the sandbox, `file` changes trees without one,
//! `images` brings images in, `sources` files of every origin, `results` answers what is in a result. The crate knows
//! neither Dockerfiles nor how images are put together from results; it decides nothing about order or caching.
//!
//! Reading order: [`LocalWorker`]; [`ContextFiles`]; [`ImageResolver`]; [`LocalResults`]; [`WorkError`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod content;
mod context_files;
mod error;
mod exec;
mod file;
mod images;
mod keys;
mod limits;
mod local;
mod missing;
mod network;
mod results;
mod selection;
mod source_tree;
mod sources;
mod stack;
mod stat_index;
mod unread;
mod users;

pub use context_files::ContextFiles;
pub use error::{ExecFailure, FileFailure, RemoteFailure, WorkError, executor_kind};
pub use exec::container::{BuildContainer, BuildProcess, ProcessRequest, ProcessStreams};
pub use exec::environment;
pub use file::archive::{decompress, looks_like_archive};
pub use images::{FoundImage, ImageResolver};
pub use limits::{rlimit, set_rlimit};
pub use local::LocalWorker;
pub use missing::MissingFile;
pub use network::{ProcessNetwork, Resolver, network_files};
pub use results::LocalResults;
pub use sources::{ReadObjects, SourceFacts, SourceState};
pub use users::{Identity, UserError, add_groups, identity};
