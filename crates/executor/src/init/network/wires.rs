//! Namespaces with a wire to the host.

use super::link::{End, Links, Route, index_of};
use super::{PREFIX, unused_network};
use crate::init::{is_trusted, sys};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, Result};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread::JoinHandle;

/// How many addresses are tried before giving up.
const ATTEMPTS: u32 = 4096;
const INTERFACE: &str = "eth0";

/// A namespace, and a pair of interfaces of which one is in it. They go with the last descriptor of the namespace.
pub(crate) struct Wire {
    pub(crate) namespace: OwnedFd,
    /// Of the container.
    pub(crate) address: Ipv4Addr,
}

/// A wire that is being made before anything translates addresses or forwards packets, on a thread of its own: that is in one
/// namespace and then in the other.
pub struct BegunNetwork {
    /// First half of the addresses of containers.
    pub(crate) network: [u8; 2],
    thread: JoinHandle<Result<Wire>>,
}

impl BegunNetwork {
    /// Begins; `None` where the host's network is not this process's to change.
    pub fn begin() -> Option<Self> {
        let network = is_trusted().then(unused_network)?.ok()?;
        let make = move || Wires::open(network)?.make();
        let thread = std::thread::Builder::new().name("network".to_owned()).spawn(make).ok()?;
        Some(Self { network, thread })
    }

    /// Waits for it. What keeps it from being made has to be found out by who makes the next one.
    pub(crate) fn wire(self) -> Option<Wire> {
        self.thread.join().ok()?.ok()
    }
}

/// What makes them.
pub(super) struct Wires {
    links: Links,
    network: [u8; 2],
    next: u16,
    own_namespace: OwnedFd,
}

impl Wires {
    pub(super) fn open(network: [u8; 2]) -> Result<Self> {
        let (own_namespace, links) = (current_namespace()?, Links::open()?);
        // Processes that start at once should not try the same addresses.
        let next = (std::process::id() as u16).wrapping_mul(251);
        Ok(Self { links, network, next, own_namespace })
    }

    pub(super) fn own_namespace(&self) -> BorrowedFd<'_> {
        self.own_namespace.as_fd()
    }

    pub(super) fn gateway(&self) -> Ipv4Addr {
        let [a, b] = self.network;
        Ipv4Addr::new(a, b, 0, 1)
    }

    /// The next address that is neither the gateway's nor the network's own.
    fn next_address(&mut self) -> Ipv4Addr {
        loop {
            self.next = self.next.wrapping_add(1);
            let [a, b] = self.network;
            let [c, d] = self.next.to_be_bytes();
            if c != 0 && !matches!(d, 0 | 255) {
                return Ipv4Addr::new(a, b, c, d);
            }
        }
    }

    /// Makes a namespace and a wire to it.
    pub(super) fn make(&mut self) -> Result<Wire> {
        let made = self.make_namespace();
        // Also after a failure: the next container's parent must be in the host's namespace.
        sys::enter_network(self.own_namespace.as_fd())?;
        let (namespace, mut inner) = made?;
        let (address, name) = self.connect(namespace.as_fd())?;
        disable_version_6(&name);
        let gateway = self.gateway();
        self.links.configure(index_of(&name)?, Some((gateway, 32)), &[Route::Host(address)])?;
        sys::enter_network(namespace.as_fd())?;
        let configured = index_of(INTERFACE)
            .and_then(|index| inner.configure(index, Some((address, 16)), &[Route::Default(gateway)]));
        sys::enter_network(self.own_namespace.as_fd())?;
        configured?;
        Ok(Wire { namespace, address })
    }

    /// Leaves this thread in the new namespace.
    fn make_namespace(&mut self) -> Result<(OwnedFd, Links)> {
        sys::new_network_namespace()?;
        let namespace = current_namespace()?;
        // Before there is an interface: it would give itself an address.
        disable_version_6("default");
        allow_unprivileged();
        let mut links = Links::open()?;
        links.configure(index_of("lo")?, None, &[])?;
        Ok((namespace, links))
    }

    /// The host's end has the address in its name, which nobody else can have then.
    fn connect(&mut self, namespace: BorrowedFd<'_>) -> Result<(Ipv4Addr, String)> {
        for _ in 0..ATTEMPTS {
            let address = self.next_address();
            let [_, _, c, d] = address.octets();
            let name = format!("{PREFIX}{c:02x}{d:02x}");
            let own = End { name: &name, address: self.gateway() };
            let inner = End { name: INTERFACE, address };
            match self.links.make_pair(&own, &inner, namespace) {
                Ok(()) => return Ok((address, name)),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::ADDRNOTAVAIL)
    }
}

/// That of this thread.
fn current_namespace() -> Result<OwnedFd> {
    open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Containers have version 4 only. A kernel without version 6 has nothing to switch off.
pub(super) fn disable_version_6(interface: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1");
}

/// As docker has it: the namespace is the container's own, so anybody may ping and take low ports.
pub(super) fn allow_unprivileged() {
    let set = |file: &str, text: &str| std::fs::write(Path::new("/proc/sys/net/ipv4").join(file), text);
    // Conveniences; a kernel that lacks them has neither.
    let _ = set("ping_group_range", "0 2147483647").and(set("ip_unprivileged_port_start", "0"));
}
