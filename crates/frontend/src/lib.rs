//! The Dockerfile front end: text to syntax tree, syntax tree to stages, stages to graph and image config.
//!
//! Parsing and lowering take text and data and return a value and diagnostics. The crate touches no disk and
//! no network, runs nothing, and does not know how a graph is evaluated or where an image is kept: what it must
//! know of images it asks for ([`Lowered::Need`]) and is given ([`ResolvedImages`]).
//!
//! Reading order: [`parse`], [`Dockerfile`], [`Instruction`], [`Span`]; [`lower`], [`LowerOptions`],
//! [`ImageRequest`], [`LoweredImage`]; [`Warning`], [`Rule`]; [`FrontendError`], [`Problem`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod ast;
mod checks;
mod error;
mod expand;
mod keyword;
mod parse;
mod quote;
mod render;
mod request;
mod sexpr;
mod span;
mod suggest;

pub use ast::{Arguments, Directive, Dockerfile, Heredoc, Instruction, Pair};
pub use checks::{Rule, Warning};
pub use error::{FrontendError, Problem};
pub use parse::parse;
pub use request::{
    ImageKey, ImageKeySource, ImageRequest, LowerOptions, Lowered, LoweredImage, NamedContext, ResolvedImage,
    ResolvedImages,
};
pub use span::{Span, Token};

/// Turns a Dockerfile into a graph. Pure; called until it no longer needs images.
///
/// # Errors
/// The Dockerfile is refused.
pub fn lower(
    dockerfile: &Dockerfile,
    options: &LowerOptions,
    images: &ResolvedImages,
) -> Result<Lowered, FrontendError> {
    let _ = (dockerfile, options, images);
    Err(Problem::NotBuilt { what: "lowering".to_owned() }.into())
}

/// Reads an ignore file into patterns.
///
/// # Errors
/// A pattern is wrong.
pub fn ignore_patterns(text: &[u8]) -> Result<Vec<String>, FrontendError> {
    let _ = text;
    Err(Problem::NotBuilt { what: "ignore files".to_owned() }.into())
}
