//! The real binary, real namespaces, a real registry. Few tests: most cases belong a layer lower.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a skipped test says so")]

mod archives;
mod arguments;
mod attacks;
mod build;
#[path = "../../../../xtask/src/busybox.rs"]
mod busybox;
mod cache;
mod cache_mounts;
mod cache_services;
mod call;
mod certificates;
mod cleanliness;
mod compare;
mod contained;
mod contexts;
mod corpus;
#[path = "../../../../xtask/src/corpus_case.rs"]
mod corpus_case;
mod credentials;
mod elsewhere;
mod explain;
mod exporters;
mod faults;
mod firewalls;
mod fixture;
mod foreign;
mod garbage;
mod hand_over;
mod hostile;
mod interoperation;
mod interrupt;
mod isolation;
mod language;
mod llb;
mod load;
mod mounts;
mod outputs;
mod platforms;
mod pushes;
mod registry;
mod remote;
mod remote_layers;
mod rootless;
mod routes;
mod run;
mod runtime;
mod sandbox;
mod shared_cache;
mod source_policy;
mod store;
mod unread_bases;
