//! Messages of netlink(7), and the conversation with the kernel.

use rustix::io::{Errno, Result, retry_on_intr};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use std::os::fd::OwnedFd;

/// Flags of a request, linux/netlink.h.
pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACKNOWLEDGE: u16 = 0x4;
pub(super) const EXCLUSIVE: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;
pub(super) const DUMP: u16 = 0x300;

const ERROR: u16 = 2;
const HEADER: usize = 16;
const NESTED: u16 = 0x8000;

/// A list of attributes, each padded to four bytes.
#[derive(Clone, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Starts with a structure that some attributes carry before their own.
    pub(super) fn after(structure: &[u8]) -> Self {
        Self(structure.to_vec())
    }

    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).expect("attributes made here are short");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn word(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A number as nftables takes it.
    pub(super) fn network_word(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn nested(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// One request.
pub(super) struct Request {
    pub(super) kind: u16,
    pub(super) flags: u16,
    /// The structure that requests of this kind begin with.
    pub(super) structure: Vec<u8>,
    pub(super) attributes: Attributes,
}

impl Request {
    fn encode(&self, sequence: u32, into: &mut Vec<u8>) {
        let length = HEADER + self.structure.len() + self.attributes.0.len();
        let length = u32::try_from(length).expect("requests made here are short");
        into.extend(length.to_ne_bytes());
        into.extend(self.kind.to_ne_bytes());
        into.extend((self.flags | REQUEST).to_ne_bytes());
        into.extend(sequence.to_ne_bytes());
        into.extend(0u32.to_ne_bytes());
        into.extend(&self.structure);
        into.extend(&self.attributes.0);
    }
}

/// A socket of one netlink family, in the network namespace it was opened in.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open(family: Option<Protocol>) -> Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, family)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends requests together; fails with the first that fails, when all that asked for it were acknowledged.
    pub(super) fn call(&mut self, requests: &[Request]) -> Result<()> {
        let mut bytes = Vec::new();
        let first = self.sequence + 1;
        for request in requests {
            self.sequence += 1;
            request.encode(self.sequence, &mut bytes);
        }
        retry_on_intr(|| send(&self.socket, &bytes, SendFlags::empty()))?;
        let mut awaited = requests.iter().filter(|request| request.flags & ACKNOWLEDGE != 0).count();
        let mut failure = None;
        while awaited > 0 {
            for (sequence, errno) in self.receive()? {
                if sequence < first {
                    continue;
                }
                awaited = awaited.saturating_sub(1);
                failure = failure.or(errno);
                // nftables answers a refused batch as a whole.
                if errno.is_some() && requests[0].flags & ACKNOWLEDGE == 0 {
                    return Err(errno.unwrap_or(Errno::IO));
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Asks for a list; gives the messages without their headers.
    pub(super) fn list(&mut self, request: &Request) -> Result<Vec<Vec<u8>>> {
        const DONE: u16 = 3;
        let mut bytes = Vec::new();
        self.sequence += 1;
        request.encode(self.sequence, &mut bytes);
        retry_on_intr(|| send(&self.socket, &bytes, SendFlags::empty()))?;
        let mut all = Vec::new();
        loop {
            let mut buffer = vec![0; 32 << 10];
            let (count, _) = retry_on_intr(|| recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty()))?;
            for (kind, _, body) in messages(&buffer[..count]) {
                match kind {
                    DONE => return Ok(all),
                    ERROR => return Err(error_code(body).unwrap_or(Errno::IO)),
                    _ => all.push(body.to_vec()),
                }
            }
        }
    }

    /// The acknowledgements of one datagram: sequence number and error.
    fn receive(&self) -> Result<Vec<(u32, Option<Errno>)>> {
        let mut buffer = vec![0; 32 << 10];
        let (count, _) = retry_on_intr(|| recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty()))?;
        Ok(acknowledgements(&buffer[..count]))
    }
}

/// The messages of one datagram: kind, sequence number, body.
fn messages(mut bytes: &[u8]) -> Vec<(u16, u32, &[u8])> {
    let mut all = Vec::new();
    while let Some(header) = bytes.get(..HEADER) {
        let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|index| header[at + index]));
        let length = (word(0) as usize).max(HEADER);
        let Some(body) = bytes.get(HEADER..length) else { break };
        all.push((u16::from_ne_bytes([header[4], header[5]]), word(8), body));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

fn acknowledgements(bytes: &[u8]) -> Vec<(u32, Option<Errno>)> {
    let errors = messages(bytes).into_iter().filter(|(kind, ..)| *kind == ERROR);
    errors.map(|(_, sequence, body)| (sequence, error_code(body))).collect()
}

/// The error of an acknowledgement, if it is one.
fn error_code(body: &[u8]) -> Option<Errno> {
    let code = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
    (code != 0).then(|| Errno::from_raw_os_error(-code))
}

/// The attributes in some bytes, by kind, without the flag of nested ones.
pub(super) fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut all = Vec::new();
    while let Some(header) = bytes.get(..4) {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]])).max(4);
        let Some(value) = bytes.get(4..length) else { break };
        all.push((u16::from_ne_bytes([header[2], header[3]]) & !NESTED, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let inner = Attributes::new().text(1, "veth");
        let outer = Attributes::new().word(2, 7).nested(3, inner);
        let expected = [&[8, 0, 2, 0, 7, 0, 0, 0, 16, 0, 3, 0x80, 9, 0, 1, 0][..], b"veth\0\0\0\0"].concat();
        assert_eq!(outer.0, expected);
        let read = attributes(&outer.0);
        assert_eq!((read[0], read[1].0), ((2, &7u32.to_ne_bytes()[..]), 3));
        assert_eq!(attributes(read[1].1), [(1, &b"veth\0"[..])]);
    }

    #[test]
    fn acknowledgements_are_told_from_errors() {
        let message = |sequence: u32, code: i32| {
            let mut bytes = [36u32.to_ne_bytes(), [2, 0, 0, 0], sequence.to_ne_bytes(), [0; 4]].concat();
            bytes.extend(code.to_ne_bytes());
            bytes.extend([0; 16]);
            bytes
        };
        let both = [message(4, 0), message(5, -17)].concat();
        assert_eq!(acknowledgements(&both), [(4, None), (5, Some(Errno::EXIST))]);
        assert_eq!(acknowledgements(&both[..40]).len(), 1);
        assert_eq!(acknowledgements(&[1; 7]), []);
    }
}
