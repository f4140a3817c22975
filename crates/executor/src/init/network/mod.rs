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
mod wires;

use firewall::{Plan, Table};
use forwarding::Forwarding;
use passage::{Passage, Routes};
use rustix::io::{Errno, Result};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use userspace::Helper;
pub use wires::BegunNetwork;
pub(crate) use wires::Wire;
use wires::Wires;

/// First halves of networks that are tried, until one is in nobody's way.
const NETWORKS: [[u8; 2]; 6] = [[10, 209], [10, 217], [10, 241], [172, 29], [172, 30], [10, 83]];
/// How many namespaces wait for the next container.
const MOST_FREE: usize = 8;
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

impl From<Wire> for PrivateNetwork {
    fn from(Wire { namespace, address }: Wire) -> Self {
        Self { namespace, address, helper: None }
    }
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

    /// Makes the first namespace, and tells the host's address in all of them. Where somebody else has `begun` a wire with
    /// addresses of a network, it is waited for once the rest is there.
    pub(super) fn prepare(
        &mut self,
        runtime: &Path,
        begun: Option<([u8; 2], impl FnOnce() -> Option<Wire>)>,
    ) -> std::result::Result<Ipv4Addr, Reason> {
        runtime.clone_into(&mut self.runtime);
        if let Some((network, wire)) = begun {
            let router = Router::set_up(Some(network));
            let wire = wire();
            self.carrier = Some(Carrier::Router(Box::new(router?)));
            self.free.extend(wire.map(PrivateNetwork::from));
        }
        let network = self.take().inspect_err(|_| self.carrier = None)?;
        self.free.push(network);
        match self.carrier.as_ref().ok_or("there is no router")? {
            Carrier::Router(router) => Ok(router.wires.gateway()),
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
        match Router::set_up(None) {
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
    wires: Wires,
    // In the order in which they end: the table protects as long as packets are forwarded.
    passage: Passage,
    forwarding: Forwarding,
    table: Table,
    /// Whether packets are forwarded: once there is a table that says which.
    is_open: bool,
}

impl Router {
    /// `network` is that of wires which are there already.
    fn set_up(network: Option<[u8; 2]>) -> std::result::Result<Self, Reason> {
        let told = |what: &'static str| {
            move |errno: Errno| match errno {
                Errno::ACCESS | Errno::PERM => "only root of the machine can make one".to_owned(),
                errno => format!("{what} ({errno})"),
            }
        };
        let network = network.map_or_else(unused_network, Ok)?;
        let highest = highest_interface().map_err(told("interfaces cannot be counted"))?;
        let forwarding = Forwarding::claim(Path::new("/run")).map_err(told("packets cannot be forwarded"))?;
        let routes = Routes::read();
        let unrouted = forwarding.is_forge_s().then_some(highest);
        let plan = Plan { network, unrouted, probed: routes.probed() };
        let table = Table::make(&plan).map_err(told("nftables refuses the rules"))?;
        let wires = Wires::open(network).map_err(told("netlink cannot be used"))?;
        Ok(Self { wires, passage: Passage::new(network, routes), forwarding, table, is_open: false })
    }

    /// A namespace that packets come out of: this one, or a new one.
    fn take(&mut self, free: Option<PrivateNetwork>) -> std::result::Result<PrivateNetwork, Reason> {
        let network = match free {
            Some(network) => network,
            None => {
                let made = self.wires.make().map(PrivateNetwork::from);
                made.map_err(|errno| format!("a network namespace cannot be connected ({errno})"))?
            }
        };
        if !self.is_open {
            self.forwarding.switch_on().map_err(|errno| format!("packets cannot be forwarded ({errno})"))?;
            self.is_open = true;
        }
        self.passage.open(&mut self.table, network.namespace(), self.wires.own_namespace())?;
        Ok(network)
    }
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
