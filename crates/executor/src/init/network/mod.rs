//! Private networks of containers: a namespace, a pair of interfaces, translated addresses.
//!
//! ```text
//! container                    host
//! eth0 10.209.x.y/16  <veth>   forgeXXYY, 10.209.0.1/32, route 10.209.x.y/32
//! ```
//! There is no bridge: each container has a wire of its own, on which nobody but the host answers. Everything belongs
//! to the set-up process, so that nothing survives it: interfaces go with their namespaces, the firewall table with its
//! socket. Namespaces are used again by the next container once every process in them is dead.
//!
//! Who may not do this has a program of theirs carry the packets, see [`userspace`].

mod expression;
mod firewall;
mod foreign;
mod forwarding;
mod link;
mod netlink;
mod passage;
mod userspace;

use super::sys;
use firewall::{Plan, Table};
use forwarding::Forwarding;
use link::{End, Links, Route, index_of};
use passage::{Passage, Routes};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, Result};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use userspace::Helper;

/// First halves of networks that are tried, until one is in nobody's way.
const NETWORKS: [[u8; 2]; 6] = [[10, 209], [10, 217], [10, 241], [172, 29], [172, 30], [10, 83]];
/// How many namespaces wait for the next container.
const MOST_FREE: usize = 8;
/// How many addresses are tried before giving up.
const ATTEMPTS: u32 = 4096;
const INTERFACE: &str = "eth0";
/// What the host's ends are called, followed by the second half of the address.
pub(crate) const PREFIX: &str = "forge";

/// The private networks of one set-up process.
pub(super) struct Networks {
    carrier: Option<Carrier>,
    free: Vec<PrivateNetwork>,
    /// Whether the host's network is this process's to change.
    trusted: bool,
    runtime: PathBuf,
}

/// What brings packets out of namespaces.
enum Carrier {
    Router(Box<Router>),
    /// A program for each; the first half of the network in all of them, and how many were begun.
    Helpers {
        network: [u8; 2],
        begun: u32,
    },
}

impl Carrier {
    fn helpers() -> std::result::Result<Self, Reason> {
        Ok(Self::Helpers { network: unused_network()?, begun: 0 })
    }
}

/// A network namespace with a way out.
pub(super) struct PrivateNetwork {
    namespace: OwnedFd,
    /// Of the container.
    pub(super) address: Ipv4Addr,
    helper: Option<Helper>,
}

impl PrivateNetwork {
    pub(super) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Whether the host has a way to its address.
    pub(super) fn is_routed(&self) -> bool {
        self.helper.is_none()
    }
}

/// Why there is no private network, as words to follow a colon.
pub(super) type Reason = String;

impl Networks {
    pub(super) fn new(trusted: bool) -> Self {
        Self { carrier: None, free: Vec::new(), trusted, runtime: PathBuf::from("/nowhere") }
    }

    /// Makes the first namespace, and tells the host's address in all of them.
    pub(super) fn prepare(&mut self, runtime: &Path) -> std::result::Result<Ipv4Addr, Reason> {
        runtime.clone_into(&mut self.runtime);
        let network = self.take().inspect_err(|_| self.carrier = None)?;
        self.free.push(network);
        match self.carrier.as_ref().ok_or("there is no router")? {
            Carrier::Router(router) => Ok(router.gateway()),
            Carrier::Helpers { network: [a, b], .. } => Ok(own_address().unwrap_or(Ipv4Addr::new(*a, *b, 0, 2))),
        }
    }

    /// A namespace that no process is in, and that packets come out of.
    pub(super) fn take(&mut self) -> std::result::Result<PrivateNetwork, Reason> {
        if self.carrier.is_none() {
            self.carrier = Some(self.find_carrier()?);
        }
        if let Some(Carrier::Router(router)) = &mut self.carrier {
            let taken = router.take(self.free.pop());
            if taken.is_ok() || self.trusted {
                return taken;
            }
            // Packets of programs pass where forwarded ones do not.
            self.carrier = Some(Carrier::helpers()?);
        }
        match (self.free.pop(), self.carrier.as_mut()) {
            (Some(network), _) => Ok(network),
            (None, Some(Carrier::Helpers { network, begun })) => {
                *begun += 1;
                let point = self.runtime.join(format!("network-{}-{begun}", std::process::id()));
                let (namespace, helper) = userspace::connect(*network, &point)?;
                Ok(PrivateNetwork { namespace, address: userspace::address(*network), helper: Some(helper) })
            }
            (None, _) => Err("there is no router".to_owned()),
        }
    }

    /// Root of a namespace may be root of the network too, and mostly is not.
    fn find_carrier(&self) -> std::result::Result<Carrier, Reason> {
        match Router::set_up() {
            Ok(router) => Ok(Carrier::Router(Box::new(router))),
            Err(reason) if self.trusted => Err(reason),
            Err(_) => Carrier::helpers(),
        }
    }

    /// Takes back a namespace that nobody could change.
    pub(super) fn give_back(&mut self, network: PrivateNetwork) {
        if self.free.len() < MOST_FREE {
            self.free.push(network);
        }
    }
}

/// The address by which the host sends to the world, and by which it can be reached from there. No packet is sent.
fn own_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Of a block for documentation, which is nobody's.
    socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) if !address.is_loopback() && !address.is_unspecified() => Some(address),
        _ => None,
    }
}

fn unused_network() -> std::result::Result<[u8; 2], Reason> {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    free_network(&routes).ok_or_else(|| "all networks that forge may use are taken".to_owned())
}

/// What all namespaces share.
struct Router {
    links: Links,
    network: [u8; 2],
    next: u16,
    own_namespace: OwnedFd,
    // In the order in which they end: the table protects as long as packets are forwarded.
    passage: Passage,
    _forwarding: Forwarding,
    table: Table,
}

impl Router {
    fn set_up() -> std::result::Result<Self, Reason> {
        let told = |what: &'static str| {
            move |errno: Errno| match errno {
                Errno::ACCESS | Errno::PERM => "only root of the machine can make one".to_owned(),
                errno => format!("{what} ({errno})"),
            }
        };
        let network = unused_network()?;
        let highest = highest_interface().map_err(told("interfaces cannot be counted"))?;
        let forwarding = Forwarding::ensure(Path::new("/run")).map_err(told("packets cannot be forwarded"))?;
        let routes = Routes::read();
        let unrouted = forwarding.is_forge_s().then_some(highest);
        let plan = Plan { network, unrouted, probed: routes.probed() };
        let table = Table::make(&plan).map_err(told("nftables refuses the rules"))?;
        let own_namespace = current_namespace().map_err(told("the network namespace cannot be opened"))?;
        let links = Links::open().map_err(told("netlink cannot be used"))?;
        // Processes that start at once should not try the same addresses.
        let next = (std::process::id() as u16).wrapping_mul(251);
        Ok(Self {
            links,
            network,
            next,
            own_namespace,
            passage: Passage::new(network, routes),
            _forwarding: forwarding,
            table,
        })
    }

    fn gateway(&self) -> Ipv4Addr {
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

    /// A namespace that packets come out of: this one, or a new one.
    fn take(&mut self, free: Option<PrivateNetwork>) -> std::result::Result<PrivateNetwork, Reason> {
        let network = match free {
            Some(network) => network,
            None => self.connect().map_err(|errno| format!("a network namespace cannot be connected ({errno})"))?,
        };
        self.passage.open(&mut self.table, network.namespace(), self.own_namespace.as_fd())?;
        Ok(network)
    }

    /// Makes a namespace and a wire to it.
    fn connect(&mut self) -> Result<PrivateNetwork> {
        let made = self.connect_from_within();
        // Also after a failure: the next container's parent must be in the host's namespace.
        sys::enter_network(self.own_namespace.as_fd())?;
        let (namespace, mut inner) = made?;
        let (address, name) = self.wire(namespace.as_fd())?;
        disable_version_6(&name);
        let gateway = self.gateway();
        self.links.configure(index_of(&name)?, Some((gateway, 32)), &[Route::Host(address)])?;
        sys::enter_network(namespace.as_fd())?;
        let configured = index_of(INTERFACE)
            .and_then(|index| inner.configure(index, Some((address, 16)), &[Route::Default(gateway)]));
        sys::enter_network(self.own_namespace.as_fd())?;
        configured?;
        Ok(PrivateNetwork { namespace, address, helper: None })
    }

    /// Leaves this process in the new namespace.
    fn connect_from_within(&mut self) -> Result<(OwnedFd, Links)> {
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
    fn wire(&mut self, namespace: BorrowedFd<'_>) -> Result<(Ipv4Addr, String)> {
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

fn current_namespace() -> Result<OwnedFd> {
    open("/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Containers have version 4 only. A kernel without version 6 has nothing to switch off.
fn disable_version_6(interface: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1");
}

/// As docker has it: the namespace is the container's own, so anybody may ping and take low ports.
fn allow_unprivileged() {
    let set = |file: &str, text: &str| std::fs::write(Path::new("/proc/sys/net/ipv4").join(file), text);
    // Conveniences; a kernel that lacks them has neither.
    let _ = set("ping_group_range", "0 2147483647").and(set("ip_unprivileged_port_start", "0"));
}

fn highest_interface() -> Result<u32> {
    let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let entries = std::fs::read_dir("/sys/class/net").map_err(failed)?;
    let number =
        |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("ifindex")).ok()?.trim().parse().ok();
    Ok(entries.flatten().filter_map(number).max().unwrap_or(1))
}

/// The first network that no route of the host, as `/proc/net/route` lists them, leads into. Routes of other forge
/// processes are in nobody's way.
fn free_network(routes: &str) -> Option<[u8; 2]> {
    // Bytes in network order, printed as a number of the machine.
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::from_be);
    let foreign: Vec<(u32, u32)> = routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let (destination, mask) = (number(fields.get(1)?)?, number(fields.get(7)?)?);
            (!fields[0].starts_with(PREFIX) && mask != 0).then_some((destination, mask))
        })
        .collect();
    let crosses = |network: u32, (destination, mask): &(u32, u32)| {
        let common = mask & 0xffff_0000;
        network & common == destination & common
    };
    NETWORKS.into_iter().find(|[a, b]| {
        let network = u32::from_be_bytes([*a, *b, 0, 0]);
        !foreign.iter().any(|route| crosses(network, route))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

    fn chosen(routes: &[(&str, &str, &str)]) -> Option<[u8; 2]> {
        let lines = routes
            .iter()
            .map(|(interface, to, mask)| format!("{interface}\t{to}\t0\t0001\t0\t0\t0\t{mask}\t0\t0\t0\n"));
        free_network(&(HEADER.to_owned() + &lines.collect::<String>()))
    }

    #[test]
    fn a_network_is_chosen_that_no_route_leads_into() {
        // The kernel prints addresses as numbers of the machine: 10.209.4.0 is 0004D10A.
        assert_eq!(chosen(&[("eth0", "00000000", "00000000")]), Some([10, 209]));
        assert_eq!(chosen(&[("eth0", "0004D10A", "00FFFFFF")]), Some([10, 217]));
        assert_eq!(chosen(&[("vpn", "0000000A", "000000FF")]), Some([172, 29]));
        assert_eq!(chosen(&[("forge0102", "0201D10A", "FFFFFFFF")]), Some([10, 209]));
        assert_eq!(chosen(&[("a", "0000000A", "000000FF"), ("b", "000010AC", "0000F0FF")]), None);
    }
}
