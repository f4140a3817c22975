//! The table of nftables that translates the containers' addresses.
//!
//! The table is *owned* by the socket that made it: it goes with the set-up process, also when that is killed.
//! Several forge processes have a table each.

use super::netlink::{ACKNOWLEDGE, APPEND, Attributes, CREATE, DUMP, Netlink, Request, attributes};
use rustix::io::Result;
use rustix::net::netlink;

const SUBSYSTEM: u16 = 10;
const IPV4: u8 = 2;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Linux 5.12: the table belongs to the socket.
const OWNED: u32 = 2;

const FORWARD: u32 = 2;
const POSTROUTING: u32 = 4;
/// Where source addresses are translated, NF_IP_PRI_NAT_SRC.
const SOURCE_NAT: i32 = 100;

const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
const REGISTER: u32 = 1;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const AT_MOST: u32 = 3;

const INPUT_INTERFACE: u32 = 4;
const OUTPUT_INTERFACE: u32 = 5;

/// ESTABLISHED and RELATED of connection tracking, as a host-order mask.
const ANSWERS: u32 = 2 | 4;

/// What the table is made for.
pub(super) struct Plan {
    /// First two octets of the containers' network.
    pub(super) network: [u8; 2],
    /// Where forge switched forwarding on: the highest number of an interface that was there then. Packets between those
    /// are dropped as they were before.
    pub(super) unrouted: Option<u32>,
}

/// The table, as long as this exists.
pub(super) struct Table(#[expect(dead_code, reason = "the kernel removes the table when it is closed")] Netlink);

impl Table {
    pub(super) fn make(plan: &Plan) -> Result<Self> {
        let mut socket = Netlink::open(Some(netlink::NETFILTER))?;
        socket.call(&batch(plan, &format!("forge-{}", std::process::id())))?;
        Ok(Self(socket))
    }
}

/// The first chain that drops forwarded packets by policy, as `table ip filter, chain FORWARD`.
pub(super) fn dropping_chain() -> Result<Option<String>> {
    const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
    let mut socket = Netlink::open(Some(netlink::NETFILTER))?;
    let structure = general(0, 0);
    let request = Request { kind: GET_CHAIN, flags: DUMP, structure, attributes: Attributes::new() };
    Ok(socket.list(&request)?.iter().find_map(|message| dropping(message)))
}

/// What a chain is called, if packets of version 4 meet it on their way through and are dropped at its end.
fn dropping(message: &[u8]) -> Option<String> {
    const INET: u8 = 1;
    let family = match *message.first()? {
        IPV4 => "ip",
        INET => "inet",
        _ => return None,
    };
    let fields = attributes(message.get(4..)?);
    let field = |kind: u16| fields.iter().find(|(other, _)| *other == kind).map(|(_, value)| *value);
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_be_bytes);
    let hooks = attributes(field(4)?);
    let hook = hooks.iter().find(|(kind, _)| *kind == 1).and_then(|(_, value)| number(value))?;
    let drops = number(field(5)?)? == 0;
    let name = |kind: u16| field(kind).map(|bytes| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned());
    (hook == FORWARD && drops).then_some(format!("table {family} {}, chain {}", name(1)?, name(3)?))
}

fn batch(plan: &Plan, table: &str) -> Vec<Request> {
    let whole = |kind| Request { kind, flags: 0, structure: general(0, SUBSYSTEM), attributes: Attributes::new() };
    let rule = |chain: &str, expressions: Vec<Attributes>| {
        let list = expressions.into_iter().fold(Attributes::new(), |list, one| list.nested(1, one));
        let attributes = Attributes::new().text(1, table).text(2, chain).nested(4, list);
        request(NEW_RULE, ACKNOWLEDGE | CREATE | APPEND, attributes)
    };
    let flags = ACKNOWLEDGE | CREATE;
    let mut all = vec![
        whole(BATCH_BEGIN),
        request(NEW_TABLE, flags, Attributes::new().text(1, table).network_word(2, OWNED)),
        request(NEW_CHAIN, flags, chain(table, "postrouting", "nat", POSTROUTING, SOURCE_NAT)),
        request(NEW_CHAIN, flags, chain(table, "forward", "filter", FORWARD, 0)),
    ];
    let (from, to) = (address(SOURCE, EQUAL, plan.network), address(DESTINATION, EQUAL, plan.network));
    let outward = address(DESTINATION, NOT_EQUAL, plan.network);
    all.push(rule("postrouting", [from.clone(), outward, vec![expression("masq", Attributes::new())]].concat()));
    // Containers are strangers to each other.
    all.push(rule("forward", [from, to.clone(), vec![drop_packet()]].concat()));
    // The world may answer, not ask.
    all.push(rule("forward", [to, no_answer(), vec![drop_packet()]].concat()));
    if let Some(highest) = plan.unrouted {
        let old = |key| interface_at_most(key, highest);
        all.push(rule("forward", [old(INPUT_INTERFACE), old(OUTPUT_INTERFACE), vec![drop_packet()]].concat()));
    }
    all.push(whole(BATCH_END));
    all
}

fn request(kind: u16, flags: u16, attributes: Attributes) -> Request {
    Request { kind, flags, structure: general(IPV4, 0), attributes }
}

/// struct nfgenmsg: family, version, resource.
fn general(family: u8, resource: u16) -> Vec<u8> {
    [&[family, 0][..], &resource.to_be_bytes()].concat()
}

fn chain(table: &str, name: &str, kind: &str, hook: u32, priority: i32) -> Attributes {
    let hook = Attributes::new().network_word(1, hook).network_word(2, priority as u32);
    Attributes::new().text(1, table).text(3, name).nested(4, hook).text(7, kind)
}

fn expression(name: &str, data: Attributes) -> Attributes {
    Attributes::new().text(1, name).nested(2, data)
}

fn compare(operation: u32, value: &[u8]) -> Attributes {
    let data = Attributes::new().bytes(1, value);
    expression("cmp", Attributes::new().network_word(1, REGISTER).network_word(2, operation).nested(3, data))
}

/// Compares the first half of an address of the packet.
fn address(offset: u32, operation: u32, network: [u8; 2]) -> Vec<Attributes> {
    const NETWORK_HEADER: u32 = 1;
    let load = Attributes::new()
        .network_word(1, REGISTER)
        .network_word(2, NETWORK_HEADER)
        .network_word(3, offset)
        .network_word(4, 2);
    vec![expression("payload", load), compare(operation, &network)]
}

/// Packets that answer nothing.
fn no_answer() -> Vec<Attributes> {
    const STATE: u32 = 0;
    let load = Attributes::new().network_word(1, REGISTER).network_word(2, STATE);
    let value = |bits: u32| Attributes::new().bytes(1, &bits.to_ne_bytes());
    let mask = Attributes::new()
        .network_word(1, REGISTER)
        .network_word(2, REGISTER)
        .network_word(3, 4)
        .nested(4, value(ANSWERS))
        .nested(5, value(0));
    vec![expression("ct", load), expression("bitwise", mask), compare(EQUAL, &[0; 4])]
}

/// Interfaces with a number up to this one.
fn interface_at_most(key: u32, highest: u32) -> Vec<Attributes> {
    const TO_NETWORK_ORDER: u32 = 1;
    let load = Attributes::new().network_word(1, REGISTER).network_word(2, key);
    let swap = Attributes::new()
        .network_word(1, REGISTER)
        .network_word(2, REGISTER)
        .network_word(3, TO_NETWORK_ORDER)
        .network_word(4, 4)
        .network_word(5, 4);
    vec![expression("meta", load), expression("byteorder", swap), compare(AT_MOST, &highest.to_be_bytes())]
}

fn drop_packet() -> Attributes {
    const VERDICT: u32 = 0;
    const DROP: u32 = 0;
    let code = Attributes::new().network_word(1, DROP);
    let data = Attributes::new().nested(2, code);
    expression("immediate", Attributes::new().network_word(1, VERDICT).nested(2, data))
}
