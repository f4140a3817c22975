//! The table of nftables that translates the containers' addresses.
//!
//! The table is *owned* by the socket that made it: it goes with the set-up process, also when that is killed.
//! Several forge processes have a table each.
//!
//! ```text
//! chain      hook         priority
//! first      forward      raw        counts probes that set out
//! marked     forward      filter-1   marks what may pass docker's rules, where it is told to
//! forward    forward      filter     drops what is between containers, and what no container asked for
//! last       postrouting  raw        counts probes that came through; takes marks off
//! ended      postrouting  raw+1      ends probes, once the tables of all forge processes have counted them
//! postrouting postrouting srcnat     gives packets the host's address
//! ```

use super::PREFIX;
use super::expression::{
    COUNTER, DESTINATION, EQUAL, INPUT_INTERFACE, INPUT_NAME, NOT_EQUAL, OUTPUT_INTERFACE, OUTPUT_NAME, SOURCE,
    Verdict, address, an_answer, count, datagram, decide, has_mark, interface_at_most, interface_other_than, leaves_by,
    leaves_by_kind, masquerade, no_answer, set_mark,
};
use super::netlink::{ACKNOWLEDGE, APPEND, Attributes, CREATE, DUMP, Netlink, Request, attributes};
use rustix::io::Result;
use rustix::net::netlink;
use std::net::Ipv4Addr;

const SUBSYSTEM: u16 = 10;
pub(super) const IPV4: u8 = 2;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
pub(super) const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
pub(super) const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
pub(super) const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
pub(super) const DELETE_RULE: u16 = SUBSYSTEM << 8 | 8;
const NEW_OBJECT: u16 = SUBSYSTEM << 8 | 18;
const GET_OBJECT: u16 = SUBSYSTEM << 8 | 19;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Linux 5.12: the table belongs to the socket.
const OWNED: u32 = 2;

pub(super) const FORWARD: u32 = 2;
const POSTROUTING: u32 = 4;
/// Where source addresses are translated, NF_IP_PRI_NAT_SRC.
const SOURCE_NAT: i32 = 100;
/// Before what filters, NF_IP_PRI_RAW.
const RAW: i32 = -300;
/// Where firewalls of iptables filter, NF_IP_PRI_FILTER.
const FILTER: i32 = 0;

/// Where probes are sent: to the port of who throws away what comes.
pub(super) const PROBE_PORT: u16 = 9;
/// The mark by which docker's chain knows the packets of containers: the letters `forg`. A whole word, since single bits are
/// in use for everything.
pub(super) const PASSING: u32 = 0x666f_7267;

const SET_OUT: &str = "set-out";
const CAME_THROUGH: &str = "came-through";

/// What the table is made for.
pub(super) struct Plan {
    /// First two octets of the containers' network.
    pub(super) network: [u8; 2],
    /// Where forge switched forwarding on: the highest number of an interface that was there then. Packets between those
    /// are dropped as they were before, but for the wires of containers.
    pub(super) unrouted: Option<u32>,
    /// Where probes go, if anything can be reached.
    pub(super) probed: Option<Ipv4Addr>,
}

/// The table, as long as this exists.
pub(super) struct Table {
    socket: Netlink,
    name: String,
}

/// How many probes there were so far, of all forge processes on the host.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(super) struct Probes {
    /// That were about to be forwarded.
    pub(super) set_out: u64,
    /// That no firewall dropped.
    pub(super) came_through: u64,
}

impl Table {
    pub(super) fn make(plan: &Plan) -> Result<Self> {
        let mut socket = Netlink::open(Some(netlink::NETFILTER))?;
        let name = format!("forge-{}", std::process::id());
        let mut all = table(plan, &name);
        all.extend(plan.probed.into_iter().flat_map(|probed| probing(&name, plan.network, probed)));
        socket.call(&batch(all))?;
        Ok(Self { socket, name })
    }

    /// Marks what containers send to the world and what the world answers, for who lets marked packets through. What
    /// leaves by bridges and pairs of interfaces goes to other programs' containers mostly, and is not marked: whether it
    /// passes is for the firewall to say as before. `uplinks` are the interfaces that lead to the world all the same.
    pub(super) fn mark(&mut self, network: [u8; 2], uplinks: &[String]) -> Result<()> {
        let rule = |expressions: Vec<Vec<Attributes>>| rule(&self.name, "marked", expressions.concat());
        let (from, to) = (|| address(SOURCE, EQUAL, &network), || address(DESTINATION, EQUAL, &network));
        let done = || vec![decide(Verdict::Accept)];
        let mut all = vec![
            request(NEW_CHAIN, ACKNOWLEDGE | CREATE, chain(&self.name, "marked", "filter", FORWARD, FILTER - 1)),
            rule(vec![to(), an_answer(), set_mark(PASSING), done()]),
        ];
        all.extend(uplinks.iter().map(|uplink| rule(vec![from(), leaves_by(uplink), set_mark(PASSING), done()])));
        all.extend(["bridge", "veth"].map(|kind| rule(vec![from(), leaves_by_kind(kind), done()])));
        all.push(rule(vec![from(), set_mark(PASSING)]));
        self.socket.call(&batch(all))
    }

    pub(super) fn probes(&mut self) -> Result<Probes> {
        let attributes = Attributes::new().text(1, &self.name);
        let request = Request { kind: GET_OBJECT, flags: DUMP, structure: general(IPV4, 0), attributes };
        let mut probes = Probes::default();
        for message in self.socket.list(&request)? {
            match counted(&message) {
                Some((name, packets)) if name == SET_OUT => probes.set_out = packets,
                Some((name, packets)) if name == CAME_THROUGH => probes.came_through = packets,
                _ => {}
            }
        }
        Ok(probes)
    }
}

/// Name and number of a counter.
fn counted(message: &[u8]) -> Option<(String, u64)> {
    let fields = attributes(message.get(4..)?);
    let data = attributes(field(&fields, 4)?);
    let packets = field(&data, 2)?.try_into().ok().map(u64::from_be_bytes)?;
    Some((text(field(&fields, 2)?), packets))
}

/// The value of an attribute.
pub(super) fn field<'a>(fields: &[(u16, &'a [u8])], kind: u16) -> Option<&'a [u8]> {
    fields.iter().find(|(other, _)| *other == kind).map(|(_, value)| *value)
}

/// What an attribute that ends in a zero byte says.
pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

/// Requests that are done together or not at all.
pub(super) fn batch(requests: Vec<Request>) -> Vec<Request> {
    let whole = |kind| Request { kind, flags: 0, structure: general(0, SUBSYSTEM), attributes: Attributes::new() };
    let mut all = vec![whole(BATCH_BEGIN)];
    all.extend(requests);
    all.push(whole(BATCH_END));
    all
}

fn table(plan: &Plan, table: &str) -> Vec<Request> {
    let flags = ACKNOWLEDGE | CREATE;
    let mut all = vec![
        request(NEW_TABLE, flags, Attributes::new().text(1, table).network_word(2, OWNED)),
        request(NEW_CHAIN, flags, chain(table, "postrouting", "nat", POSTROUTING, SOURCE_NAT)),
        request(NEW_CHAIN, flags, chain(table, "forward", "filter", FORWARD, FILTER)),
    ];
    let rule = |chain: &str, expressions: Vec<Attributes>| rule(table, chain, expressions);
    let dropped = || vec![decide(Verdict::Drop)];
    let (from, to) = (address(SOURCE, EQUAL, &plan.network), address(DESTINATION, EQUAL, &plan.network));
    let outward = address(DESTINATION, NOT_EQUAL, &plan.network);
    all.push(rule("postrouting", [from.clone(), outward, vec![masquerade()]].concat()));
    // Containers are strangers to each other.
    all.push(rule("forward", [from, to.clone(), dropped()].concat()));
    // The world may answer, not ask.
    all.push(rule("forward", [to, no_answer(), dropped()].concat()));
    if let Some(highest) = plan.unrouted {
        let old = |key| interface_at_most(key, highest);
        // Wires of other forge processes may be as old. They are known by their names: an address is what a packet says.
        let host_s = |key| interface_other_than(key, PREFIX);
        let (from, to) = (host_s(INPUT_NAME), host_s(OUTPUT_NAME));
        all.push(rule("forward", [from, to, old(INPUT_INTERFACE), old(OUTPUT_INTERFACE), dropped()].concat()));
    }
    all
}

/// Counts probes on both sides of all that filters. None leaves the machine.
fn probing(table: &str, network: [u8; 2], probed: Ipv4Addr) -> Vec<Request> {
    let flags = ACKNOWLEDGE | CREATE;
    let counter = |name: &str| {
        let attributes = Attributes::new().text(1, table).text(2, name).network_word(3, COUNTER);
        request(NEW_OBJECT, flags, attributes.nested(4, Attributes::new()))
    };
    let probe = || {
        let (from, to) = (address(SOURCE, EQUAL, &network), address(DESTINATION, EQUAL, &probed.octets()));
        [from, to, datagram(PROBE_PORT)].concat()
    };
    vec![
        counter(SET_OUT),
        counter(CAME_THROUGH),
        request(NEW_CHAIN, flags, chain(table, "first", "filter", FORWARD, RAW)),
        request(NEW_CHAIN, flags, chain(table, "last", "filter", POSTROUTING, RAW)),
        rule(table, "first", [probe(), vec![count(SET_OUT)]].concat()),
        request(NEW_CHAIN, flags, chain(table, "ended", "filter", POSTROUTING, RAW + 1)),
        rule(table, "last", [probe(), vec![count(CAME_THROUGH)]].concat()),
        rule(table, "last", [has_mark(PASSING), set_mark(0)].concat()),
        rule(table, "ended", [probe(), vec![decide(Verdict::Drop)]].concat()),
    ]
}

/// A rule at the end of a chain.
pub(super) fn rule(table: &str, chain: &str, expressions: Vec<Attributes>) -> Request {
    let list = expressions.into_iter().fold(Attributes::new(), |list, one| list.nested(1, one));
    let attributes = Attributes::new().text(1, table).text(2, chain).nested(4, list);
    request(NEW_RULE, ACKNOWLEDGE | CREATE | APPEND, attributes)
}

pub(super) fn request(kind: u16, flags: u16, attributes: Attributes) -> Request {
    Request { kind, flags, structure: general(IPV4, 0), attributes }
}

/// struct nfgenmsg: family, version, resource.
pub(super) fn general(family: u8, resource: u16) -> Vec<u8> {
    [&[family, 0][..], &resource.to_be_bytes()].concat()
}

fn chain(table: &str, name: &str, kind: &str, hook: u32, priority: i32) -> Attributes {
    let hook = Attributes::new().network_word(1, hook).network_word(2, priority as u32);
    Attributes::new().text(1, table).text(3, name).nested(4, hook).text(7, kind)
}
