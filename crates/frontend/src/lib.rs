//! The Dockerfile front end: text to syntax tree, syntax tree to stages, stages to graph and image config.
//!
//! Parsing and lowering take text and data and return a value and diagnostics. The crate touches no disk and
//! no network, runs nothing, and does not know how a graph is evaluated or where an image is kept: what it must
//! know of images it asks for ([`Lowered::Need`]) and is given ([`ResolvedImages`]).
//!
//! Reading order: [`parse()`], [`Dockerfile`], [`Instruction`], [`Span`]; [`lower()`], [`LowerOptions`],
//! [`ImageRequest`], [`LoweredImage`]; [`check()`], [`Warning`], [`Rule`]; [`outline()`], [`targets()`];
//! [`FrontendError`], [`Problem`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod ast;
mod checks;
mod command;
mod csv;
mod doc_comment;
mod duration;
mod error;
mod expand;
mod flags;
mod ignore_file;
mod keyword;
mod lint;
mod lower;
mod mount;
mod outline;
mod parse;
mod program;
mod quote;
mod render;
mod request;
mod run_flags;
mod sexpr;
mod signal;
mod span;
mod suggest;
mod targets;

pub use ast::{Arguments, Directive, Dockerfile, Heredoc, Instruction, Pair};
pub use checks::{Rule, Warning};
pub use error::{FrontendError, Problem};
pub use ignore_file::{IgnoreRule, ignore_patterns, ignore_rules};
pub use lower::{check, lower, outline};
pub use outline::{CheckResults, Checked, Outline, OutlineArg, OutlineCache, OutlineRequirement, Outlined};
pub use parse::{other_front_end, parse};
pub use request::{
    Entitlement, EntitlementUse, GraphInput, ImageKey, ImageKeySource, ImageRequest, LowerOptions, Lowered,
    LoweredImage, NamedContext, ResolvedImage, ResolvedImages, SourceTime, TimeRequest, TriggerRight,
};
pub use span::{Span, Token};
pub use suggest::{nearest, suggest_image};
pub use targets::{Target, targets};
