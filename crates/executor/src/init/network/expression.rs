//! Expressions of nftables: what a rule loads, compares and decides. Names and numbers are those of linux/netfilter/nf_tables.h.

use super::netlink::Attributes;

pub(super) const SOURCE: u32 = 12;
pub(super) const DESTINATION: u32 = 16;
pub(super) const EQUAL: u32 = 0;
pub(super) const NOT_EQUAL: u32 = 1;
const AT_MOST: u32 = 3;

pub(super) const INPUT_INTERFACE: u32 = 4;
pub(super) const OUTPUT_INTERFACE: u32 = 5;
pub(super) const INPUT_NAME: u32 = 6;
pub(super) const OUTPUT_NAME: u32 = 7;
const PROTOCOL: u32 = 16;
/// Linux 5.0: what an interface was made as; a network card is none of those.
const OUTPUT_KIND: u32 = 27;
const MARK: u32 = 3;

const REGISTER: u32 = 1;
const VERDICT: u32 = 0;
/// How long names of interfaces and of their kinds are.
const NAME_LENGTH: usize = 16;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// ESTABLISHED and RELATED of connection tracking, as a host-order mask.
const ANSWERS: u32 = 2 | 4;

/// What a rule comes to.
#[derive(Clone, Copy)]
pub(super) enum Verdict {
    Drop = 0,
    Accept = 1,
}

fn expression(name: &str, data: Attributes) -> Attributes {
    Attributes::new().text(1, name).nested(2, data)
}

fn compare(operation: u32, value: &[u8]) -> Attributes {
    let data = Attributes::new().bytes(1, value);
    expression("cmp", Attributes::new().network_word(1, REGISTER).network_word(2, operation).nested(3, data))
}

fn payload(header: u32, offset: u32, length: usize) -> Attributes {
    let load = Attributes::new()
        .network_word(1, REGISTER)
        .network_word(2, header)
        .network_word(3, offset)
        .network_word(4, length as u32); // a few bytes
    expression("payload", load)
}

fn load(key: u32) -> Attributes {
    expression("meta", Attributes::new().network_word(1, REGISTER).network_word(2, key))
}

fn immediate(register: u32, data: Attributes) -> Attributes {
    expression("immediate", Attributes::new().network_word(1, register).nested(2, data))
}

/// Compares the first octets of an address of the packet.
pub(super) fn address(offset: u32, operation: u32, octets: &[u8]) -> Vec<Attributes> {
    vec![payload(NETWORK_HEADER, offset, octets.len()), compare(operation, octets)]
}

/// Datagrams to a port.
pub(super) fn datagram(port: u16) -> Vec<Attributes> {
    const UDP: u8 = 17;
    const PORT: u32 = 2;
    vec![
        load(PROTOCOL),
        compare(EQUAL, &[UDP]),
        payload(TRANSPORT_HEADER, PORT, 2),
        compare(EQUAL, &port.to_be_bytes()),
    ]
}

/// Whether packets answer anything: compares what they have of that with nothing.
fn answers(operation: u32) -> Vec<Attributes> {
    const STATE: u32 = 0;
    let load = Attributes::new().network_word(1, REGISTER).network_word(2, STATE);
    let value = |bits: u32| Attributes::new().bytes(1, &bits.to_ne_bytes());
    let mask = Attributes::new()
        .network_word(1, REGISTER)
        .network_word(2, REGISTER)
        .network_word(3, 4)
        .nested(4, value(ANSWERS))
        .nested(5, value(0));
    vec![expression("ct", load), expression("bitwise", mask), compare(operation, &[0; 4])]
}

/// Packets that answer nothing.
pub(super) fn no_answer() -> Vec<Attributes> {
    answers(EQUAL)
}

/// Packets that answer.
pub(super) fn an_answer() -> Vec<Attributes> {
    answers(NOT_EQUAL)
}

/// Interfaces with a number up to this one.
pub(super) fn interface_at_most(key: u32, highest: u32) -> Vec<Attributes> {
    const TO_NETWORK_ORDER: u32 = 1;
    let swap = Attributes::new()
        .network_word(1, REGISTER)
        .network_word(2, REGISTER)
        .network_word(3, TO_NETWORK_ORDER)
        .network_word(4, 4)
        .network_word(5, 4);
    vec![load(key), expression("byteorder", swap), compare(AT_MOST, &highest.to_be_bytes())]
}

/// Interfaces whose names begin otherwise.
pub(super) fn interface_other_than(key: u32, prefix: &str) -> Vec<Attributes> {
    vec![load(key), compare(NOT_EQUAL, prefix.as_bytes())]
}

fn padded(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(NAME_LENGTH, 0);
    bytes
}

/// Packets that leave by the interface of that name.
pub(super) fn leaves_by(interface: &str) -> Vec<Attributes> {
    vec![load(OUTPUT_NAME), compare(EQUAL, &padded(interface))]
}

/// Packets that leave by an interface of that kind.
pub(super) fn leaves_by_kind(kind: &str) -> Vec<Attributes> {
    vec![load(OUTPUT_KIND), compare(EQUAL, &padded(kind))]
}

/// Packets with that mark and no other.
pub(super) fn has_mark(mark: u32) -> Vec<Attributes> {
    vec![load(MARK), compare(EQUAL, &mark.to_ne_bytes())]
}

/// Gives a packet a mark in the place of the one it has.
pub(super) fn set_mark(mark: u32) -> Vec<Attributes> {
    const SOURCE_REGISTER: u16 = 3;
    let set = Attributes::new().network_word(2, MARK).network_word(SOURCE_REGISTER, REGISTER);
    vec![immediate(REGISTER, Attributes::new().bytes(1, &mark.to_ne_bytes())), expression("meta", set)]
}

/// Counts with the counter of that name.
pub(super) fn count(counter: &str) -> Attributes {
    expression("objref", Attributes::new().network_word(1, COUNTER).text(2, counter))
}

/// The kind of object that is a counter.
pub(super) const COUNTER: u32 = 1;

/// Counts within the rule.
pub(super) fn count_here() -> Attributes {
    expression("counter", Attributes::new())
}

/// Gives the address of the interface that the packet leaves by as its source.
pub(super) fn masquerade() -> Attributes {
    expression("masq", Attributes::new())
}

pub(super) fn decide(verdict: Verdict) -> Attributes {
    let code = Attributes::new().network_word(1, verdict as u32);
    immediate(VERDICT, Attributes::new().nested(2, code))
}

/// A match of iptables in the form in which iptables itself writes it into nftables: it refuses to work with tables that
/// have rules of another form.
pub(super) fn iptables_match(name: &str, revision: u32, information: &[u8]) -> Attributes {
    expression("match", Attributes::new().text(1, name).network_word(2, revision).bytes(3, information))
}

/// What the match `mark` is told, struct xt_mark_mtinfo1: mark, mask, whether it is inverted; padded to eight bytes.
pub(super) fn mark_information(mark: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&mark.to_ne_bytes());
    bytes[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    bytes
}
