//! The client against registries that behave, and against such that do not. One binary, to link once.
#![allow(clippy::print_stdout, reason = "a skipped test says so")]

mod auth;
mod blackhole;
mod config_file;
mod docker_registry;
mod limits;
mod oci_client;
mod pull;
mod push;
mod redirects;
mod tls;
mod web;

use forge_image::{Descriptor, Digest, MediaType, Reference};
use forge_registry::{HostOptions, Registry, RegistryError, RegistryOptions, RetryPolicy, Timeouts};
use forge_store::Store;
use forge_testkit::{TestRegistry, TestSession};
use std::collections::BTreeMap;
use std::time::Duration;
use tempfile::TempDir;

/// A store of its own and a client.
struct Bench {
    client: Registry,
    session: TestSession,
    store: Store,
    _folder: TempDir,
}

/// Options with which failures are tried again soon. Nothing is too slow, however busy the machine.
fn options() -> RegistryOptions {
    RegistryOptions {
        timeouts: Timeouts {
            connect: Duration::from_secs(60),
            stall: Duration::from_secs(60),
            document: Duration::from_secs(60),
            commit: Duration::from_secs(60),
        },
        retry: RetryPolicy { attempts: 3, base: Duration::from_millis(5), longest: Duration::from_millis(1200) },
        ..RegistryOptions::default()
    }
}

/// Options for servers that fall silent.
fn impatient() -> RegistryOptions {
    let timeouts =
        Timeouts { stall: Duration::from_millis(600), document: Duration::from_millis(1500), ..options().timeouts };
    RegistryOptions { timeouts, ..options() }
}

fn host_options(host: &str, options_of_host: HostOptions) -> RegistryOptions {
    RegistryOptions { hosts: BTreeMap::from([(host.to_owned(), options_of_host)]), ..options() }
}

impl Bench {
    fn new() -> Self {
        Self::with(options(), TestSession::new())
    }

    fn with(options: RegistryOptions, session: TestSession) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        Self { client: Registry::new(options).unwrap(), session, store, _folder: folder }
    }

    async fn fetch(&self, reference: &Reference, descriptor: &Descriptor) -> Result<(), RegistryError> {
        let lease = self.store.lease("test").unwrap();
        let writer = self.store.blobs().writer(Some((&descriptor.digest, descriptor.size))).unwrap();
        self.client.fetch_blob(reference, descriptor, writer, &lease, &self.session, &|_| {}).await
    }

    fn has(&self, digest: &Digest) -> bool {
        self.store.blobs().stat(digest).unwrap().is_some()
    }
}

fn reference(registry: &TestRegistry, rest: &str) -> Reference {
    format!("{}/{rest}", registry.authority()).parse().unwrap()
}

fn layer(bytes: &[u8]) -> Descriptor {
    Descriptor::of(MediaType::OciLayerGzip, bytes)
}

/// Bytes that do not compress and differ everywhere.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// An error with its causes, as a user sees it.
fn whole(error: &RegistryError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
