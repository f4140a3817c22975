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
const IPV4: u8 = 2;
const UP: u32 = 1;

/// rtnetlink in the network namespace of whoever opened it.
pub(super) struct Links(Netlink);

impl Links {
    pub(super) fn open() -> Result<Self> {
        // Protocol 0 is NETLINK_ROUTE.
        Netlink::open(None).map(Self)
    }

    /// Makes a pair of interfaces: one here, its other end as `peer` in another namespace.
    pub(super) fn make_pair(&mut self, name: &str, peer: &str, namespace: BorrowedFd<'_>) -> Result<()> {
        const NAME: u16 = 3;
        const LINK_INFO: u16 = 18;
        const NAMESPACE: u16 = 28;
        const INFO_KIND: u16 = 1;
        const INFO_DATA: u16 = 2;
        const VETH_PEER: u16 = 1;
        let descriptor = namespace.as_raw_fd() as u32; // never negative
        let other = Attributes::after(&link(0, 0)).text(NAME, peer).word(NAMESPACE, descriptor);
        let data = Attributes::new().nested(VETH_PEER, other);
        let info = Attributes::new().text(INFO_KIND, "veth").nested(INFO_DATA, data);
        self.0.call(&[Request {
            kind: NEW_LINK,
            flags: ACKNOWLEDGE | CREATE | EXCLUSIVE,
            structure: link(0, 0).to_vec(),
            attributes: Attributes::new().text(NAME, name).nested(LINK_INFO, info),
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
        requests.extend(routes.iter().map(|route| new_route(index, *route)));
        self.0.call(&requests)
    }
}

/// A way that packets take.
#[derive(Clone, Copy)]
pub(super) enum Route {
    /// To one machine at the other end.
    Host(Ipv4Addr),
    /// To everywhere, by that machine.
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
