//! The exporters against a real store, a registry in this process, and the programs that others read images with.

mod archives;
mod attestations;
mod layouts;
mod support;
mod transfers;
mod trees;
