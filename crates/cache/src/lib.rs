//! What is known of steps that ran before: which key led to which result, and who is working on which key now.
//!
//! The crate does not know what a step does, how its result is kept or how a graph is evaluated. It is told keys
//! and records; results are [`ResultRef`]s that a [`ResultStore`] answers for.
//!
//! Reading order: [`CacheKey`], [`OpKey`]; [`ResultRef`], [`Selector`], [`ResultStore`]; [`StepRecord`],
//! [`StepInputs`], [`Listing`], [`changes`]; [`BuildSteps`]; [`CacheIndex`], [`SqliteIndex`], [`MemoryIndex`]; [`Flights`]; [`Download`];
//! [`remote`], the caches that machines share; [`CacheError`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod downloads;
mod error;
mod eviction;
mod explain;
mod filter;
mod flights;
mod history;
mod holdings;
mod index;
mod key;
mod listing;
mod memory;
mod opening;
mod record;
pub mod remote;
mod result;
mod sqlite;
mod stacks;

pub use downloads::{Download, DownloadKey};
pub use error::CacheError;
pub use eviction::{Candidate, Eviction, Policy, Reason, Selected, Space, Weight, select};
pub use explain::{Change, changes};
pub use filter::{Facts, Filter, FilterError};
pub use flights::{FlightGuard, Flights};
pub use history::{BuildId, BuildSteps, BuiltStep, Counterpart, EarlierSteps};
pub use holdings::{HeldRecord, Holdings, Stand};
pub use index::CacheIndex;
pub use key::{CacheKey, CacheKeyError, InputPart, OpKey};
pub use listing::{EntryChange, ListedEntry, ListedKind, Listing, MOST_LISTED};
pub use memory::MemoryIndex;
pub use record::{StepInputs, StepRecord, StepUsage};
pub use result::{MadeLayer, ResultRef, ResultStore, SelectedPath, Selector};
pub use sqlite::SqliteIndex;
