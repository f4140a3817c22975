//! F38: servers that take connections and say nothing, addresses that lead nowhere; F32: what the user sees of a wait.

use crate::{Bench, options, reference, whole};
use forge_image::Reference;
use forge_registry::{RegistryError, RegistryOptions, RetryPolicy, Timeouts};
use forge_session::Event;
use forge_testkit::{ImageBuilder, Reply, Script, TestRegistry, TestSession};
use rustix::net::{AddressFamily, SocketType, bind, connect, listen, socket};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// A listener whose queue is full: the kernel drops what else wants in, as an unroutable network does.
struct Blackhole {
    address: SocketAddr,
    _listener: OwnedFd,
    _queued: Vec<OwnedFd>,
}

impl Blackhole {
    fn at(address: SocketAddr) -> Self {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let listener = socket(family, SocketType::STREAM, None).unwrap();
        bind(&listener, &address).unwrap();
        listen(&listener, 0).unwrap();
        let address: SocketAddr = rustix::net::getsockname(&listener).unwrap().try_into().unwrap();
        let queued = (0..3).map(|_| {
            let client = socket(family, SocketType::STREAM, None).unwrap();
            rustix::io::ioctl_fionbio(&client, true).unwrap();
            // Not done yet, or never: both are meant.
            let _ = connect(&client, &address);
            client
        });
        let queued = queued.collect();
        assert!(TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_err(), "it is no black hole");
        Self { address, _listener: listener, _queued: queued }
    }
}

fn impatient() -> RegistryOptions {
    let timeouts = Timeouts { connect: Duration::from_millis(500), ..options().timeouts };
    let retry = RetryPolicy { attempts: 2, ..options().retry };
    RegistryOptions { timeouts, retry, ..options() }
}

#[tokio::test(flavor = "multi_thread")]
async fn f38_an_address_that_leads_nowhere_is_named_in_time() {
    assert_eq!(Timeouts::default().connect, Duration::from_secs(10));
    let hole = Blackhole::at("127.0.0.1:0".parse().unwrap());
    let bench = Bench::with(impatient(), TestSession::new());
    let name: Reference = format!("{}/a", hole.address).parse().unwrap();
    let start = Instant::now();
    let error = bench.client.resolve(&name, &bench.session).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert!(matches!(error, RegistryError::Connection { .. }), "{error}");
    let text = whole(&error);
    assert!(text.contains(&hole.address.to_string()), "the host: {text}");
    assert!(text.contains("tcp connect error") && text.contains("deadline has elapsed"), "the phase: {text}");
}

/// Of two addresses of a name the one that answers is used, and the other not waited for.
// Meant to fail with the addresses tried one after the other to the end (an `::1` that never answers).
#[tokio::test(flavor = "multi_thread")]
async fn f38_an_address_that_leads_nowhere_does_not_hide_another() {
    let registry = TestRegistry::start();
    ImageBuilder::small("x").put(&registry, "a", "latest");
    let port = registry.authority().rsplit_once(':').unwrap().1;
    let Ok(address) = format!("[::1]:{port}").parse() else { unreachable!("it is an address") };
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        println!("SKIPPED (needs IPv6 on loopback): f38_an_address_that_leads_nowhere_does_not_hide_another");
        return;
    }
    let _hole = Blackhole::at(address);
    let options =
        RegistryOptions { timeouts: Timeouts { connect: Duration::from_secs(10), ..options().timeouts }, ..options() };
    let bench = Bench::with(options, TestSession::new());
    let start = Instant::now();
    let name: Reference = format!("localhost:{port}/a").parse().unwrap();
    bench.client.resolve(&name, &bench.session).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

// Meant to fail with nobody told.
#[tokio::test(flavor = "multi_thread")]
async fn f32_a_wait_is_shown_with_its_reason() {
    let registry = TestRegistry::start();
    ImageBuilder::small("x").put(&registry, "a", "latest");
    let later = Reply::status(429).header("retry-after", "2");
    registry.script(Script::on("GET", "/manifests/").times(1).reply(later));
    let retry = RetryPolicy { longest: Duration::from_secs(60), ..options().retry };
    let bench = Bench::with(RegistryOptions { retry, ..options() }, TestSession::new());
    bench.client.resolve(&reference(&registry, "a"), &bench.session).await.unwrap();
    let events = bench.session.events_so_far();
    let shown: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Vertex(update) => Some((update.name.as_str(), update.completed.is_some())),
            _ => None,
        })
        .collect();
    let [(name, false), (again, true)] = shown[..] else { panic!("{shown:?}") };
    assert!(name == again && name.starts_with("waiting 2 s before the next try: "), "{name}");
    assert!(name.contains(registry.authority()) && name.contains("429"), "{name}");
}
