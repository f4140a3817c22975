//! Interfaces, addresses and routes (rtnetlink(7)).

use super::netlink::{ACKNOWLEDGE, Attributes, CREATE, EXCLUSIVE, Netlink, Request};
use rustix::io::Result;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const NEW_NEIGHBOUR: u16 = 28;
const IPV4: u8 = 2;
const UP: u32 = 1;

/// rtnetlink in the network namespace of whoever opened it.
pub(super) struct Links(Netlink);

impl Links {
    pub(super) fn open() -> Result<Self> {
        // Protocol 0 is NETLINK_ROUTE.
        Netlink::open(None).map(Self)
    }

    /// Makes a pair of interfaces: one here, its other end in another namespace.
    pub(super) fn make_pair(&mut self, own: &End<'_>, other: &End<'_>, namespace: BorrowedFd<'_>) -> Result<()> {
        const HARDWARE_ADDRESS: u16 = 1;
        const NAME: u16 = 3;
        const LINK_INFO: u16 = 18;
        const NAMESPACE: u16 = 28;
        const INFO_KIND: u16 = 1;
        const INFO_DATA: u16 = 2;
        const VETH_PEER: u16 = 1;
        let descriptor = namespace.as_raw_fd() as u32; // never negative
        let end = |start: Attributes, end: &End<'_>| {
            start.text(NAME, end.name).bytes(HARDWARE_ADDRESS, &hardware_address(end.address))
        };
        let peer = end(Attributes::after(&link(0, 0)), other).word(NAMESPACE, descriptor);
        let data = Attributes::new().nested(VETH_PEER, peer);
        let info = Attributes::new().text(INFO_KIND, "veth").nested(INFO_DATA, data);
        self.0.call(&[Request {
            kind: NEW_LINK,
            flags: ACKNOWLEDGE | CREATE | EXCLUSIVE,
            structure: link(0, 0).to_vec(),
            attributes: end(Attributes::new(), own).nested(LINK_INFO, info),
        }])
    }

    /// Switches an interface on with an address, and adds routes through it, in one conversation.
    pub(super) fn configure(&mut self, index: u32, address: Option<(Ipv4Addr, u8)>, routes: &[Route]) -> Result<()> {
        let mut requests: Vec<_> =
            address.map(|(address, prefix)| new_address(index, address, prefix)).into_iter().collect();
        requests.push(Request {
            kind: NEW_LINK,
            flags: ACKNOWLEDGE,
            structure: link(index, UP).to_vec(),
            attributes: Attributes::new(),
        });
        for route in routes {
            requests.push(new_route(index, *route));
            // Nobody has to be asked for it: the answer would be lost as long as the other end is not quite up yet, and the
            // next question is asked after a second.
            if let Route::Default(gateway) = route {
                requests.push(new_neighbour(index, *gateway));
            }
        }
        self.0.call(&requests)
    }
}

/// One of a pair of interfaces.
pub(super) struct End<'a> {
    pub(super) name: &'a str,
    /// What its hardware address is made from.
    pub(super) address: Ipv4Addr,
}

/// As docker makes it: one that is locally administered, of the address on the interface.
fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

/// A way that packets take.
#[derive(Clone, Copy)]
pub(super) enum Route {
    /// To one machine at the other end.
    Host(Ipv4Addr),
    /// To everywhere, by that machine, whose hardware address is made of this one.
    Default(Ipv4Addr),
}

/// The number of an interface of this namespace.
pub(super) fn index_of(name: &str) -> Result<u32> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    name_to_index(socket.as_fd(), name)
}

/// struct ifinfomsg.
fn link(index: u32, flags: u32) -> [u8; 16] {
    let mut structure = [0; 16];
    structure[4..8].copy_from_slice(&index.to_ne_bytes());
    structure[8..12].copy_from_slice(&flags.to_ne_bytes());
    structure[12..16].copy_from_slice(&flags.to_ne_bytes());
    structure
}

fn new_address(index: u32, address: Ipv4Addr, prefix: u8) -> Request {
    const ADDRESS: u16 = 1;
    const LOCAL: u16 = 2;
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    let structure = [&[IPV4, prefix, 0, 0][..], &index.to_ne_bytes()].concat();
    let octets = address.octets();
    let attributes = Attributes::new().bytes(LOCAL, &octets).bytes(ADDRESS, &octets);
    Request { kind: NEW_ADDRESS, flags: ACKNOWLEDGE | CREATE | EXCLUSIVE, structure, attributes }
}

fn new_neighbour(index: u32, address: Ipv4Addr) -> Request {
    const DESTINATION: u16 = 1;
    const HARDWARE_ADDRESS: u16 = 2;
    const PERMANENT: u16 = 0x80;
    // struct ndmsg: family, padding, index, state, flags, type.
    let structure = [&[IPV4, 0, 0, 0][..], &index.to_ne_bytes(), &PERMANENT.to_ne_bytes(), &[0, 0]].concat();
    let attributes =
        Attributes::new().bytes(DESTINATION, &address.octets()).bytes(HARDWARE_ADDRESS, &hardware_address(address));
    Request { kind: NEW_NEIGHBOUR, flags: ACKNOWLEDGE | CREATE, structure, attributes }
}

fn new_route(index: u32, route: Route) -> Request {
    const DESTINATION: u16 = 1;
    const INTERFACE: u16 = 4;
    const GATEWAY: u16 = 5;
    const MAIN_TABLE: u8 = 254;
    const STATIC: u8 = 4;
    const SCOPE_LINK: u8 = 253;
    const UNICAST: u8 = 1;
    let (length, scope, attributes) = match route {
        Route::Host(address) => (32, SCOPE_LINK, Attributes::new().bytes(DESTINATION, &address.octets())),
        Route::Default(gateway) => (0, 0, Attributes::new().bytes(GATEWAY, &gateway.octets())),
    };
    // struct rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags.
    let structure = vec![IPV4, length, 0, 0, MAIN_TABLE, STATIC, scope, UNICAST, 0, 0, 0, 0];
    let attributes = attributes.word(INTERFACE, index);
    Request { kind: NEW_ROUTE, flags: ACKNOWLEDGE | CREATE | EXCLUSIVE, structure, attributes }
}
