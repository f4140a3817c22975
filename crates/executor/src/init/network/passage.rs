//! Whether what a container sends comes through the host, whatever firewalls are there.
//!
//! A datagram is sent from the container's namespace to an address that the host has a route to, and ends on the host, just
//! before it would leave: forge's own table counts it before and after everything that filters.

use super::firewall::{PROBE_PORT, Probes, Table};
use super::forwarding::lock_shared;
use super::{PREFIX, Reason, foreign};
use crate::init::sys;
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, Result};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Packets pass while they are sent, so this is for machines that are very busy.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(1);
/// How long one is waited for. Whoever carries it on may have lost the processor in between.
const ON_ITS_WAY: Duration = Duration::from_millis(20);
/// How many a firewall has to drop. Those of other forge processes are counted too.
const ENOUGH: u64 = 4;
/// How long a passage is taken to be open. Firewalls are loaded anew now and then.
const TRUSTED: Duration = Duration::from_secs(1);

/// The way of packets through the host.
pub(super) struct Passage {
    network: [u8; 2],
    routes: Routes,
    last_seen_open: Option<Instant>,
    /// That docker's chain has a rule of forge's.
    admitted: Option<Admission>,
}

impl Passage {
    pub(super) fn new(network: [u8; 2], routes: Routes) -> Self {
        Self { network, routes, last_seen_open: None, admitted: None }
    }

    /// Sees to it that packets from this namespace come through, or tells why they do not.
    pub(super) fn open(
        &mut self,
        table: &mut Table,
        namespace: BorrowedFd<'_>,
        own: BorrowedFd<'_>,
    ) -> std::result::Result<(), Reason> {
        let Some(probed) = self.routes.probed else { return Ok(()) };
        if self.last_seen_open.is_some_and(|instant| instant.elapsed() < TRUSTED) {
            return Ok(());
        }
        let failed = |errno: Errno| format!("it cannot be told whether packets come through ({errno})");
        if !probe(table, probed, namespace, own).map_err(failed)? {
            self.admit(table)?;
            if !probe(table, probed, namespace, own).map_err(failed)? {
                return Err(foreign::explain(self.network));
            }
        }
        self.last_seen_open = Some(Instant::now());
        Ok(())
    }

    /// Has docker's chain let marked packets through, and marks them.
    fn admit(&mut self, table: &mut Table) -> std::result::Result<(), Reason> {
        let failed = |errno: Errno| format!("packets cannot be marked for docker's firewall ({errno})");
        // Somebody who ends at this moment takes no rule away that was just found there.
        let admission = match self.admitted.take() {
            Some(admission) => admission,
            None => {
                let admission = Admission::begin(Path::new("/run")).map_err(failed)?;
                table.mark(self.network, &self.routes.uplinks).map_err(failed)?;
                admission
            }
        };
        match foreign::admit() {
            true => self.admitted = Some(admission),
            false => return Err(foreign::explain(self.network)),
        }
        Ok(())
    }
}

/// Sends datagrams until one comes through, or enough have set out that did not. Where none even sets out (an interface that was
/// made just now may lose them), no firewall is to blame.
fn probe(table: &mut Table, to: Ipv4Addr, namespace: BorrowedFd<'_>, own: BorrowedFd<'_>) -> Result<bool> {
    let before = table.probes()?;
    let begin = Instant::now();
    loop {
        send(to, namespace, own)?;
        let sent = Instant::now();
        let mut gone = 0;
        while sent.elapsed() < ON_ITS_WAY {
            let Probes { set_out, came_through } = table.probes()?;
            if came_through > before.came_through {
                return Ok(true);
            }
            gone = set_out - before.set_out;
            std::thread::sleep(PAUSE);
        }
        if gone >= ENOUGH || begin.elapsed() > PATIENCE {
            return Ok(gone == 0);
        }
    }
}

fn send(to: Ipv4Addr, namespace: BorrowedFd<'_>, own: BorrowedFd<'_>) -> Result<()> {
    sys::enter_network(namespace)?;
    let sent = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| socket.send_to(&[], (to, PROBE_PORT)));
    // Also after a failure: the next container's parent must be in the host's namespace.
    sys::enter_network(own)?;
    sent.map(drop).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// That this process needs the rule in docker's chain. Whoever is last takes it away.
struct Admission {
    lock: OwnedFd,
    path: PathBuf,
}

impl Admission {
    fn begin(directory: &Path) -> Result<Self> {
        let network = rustix::fs::stat("/proc/self/ns/net")?.st_ino;
        let path = directory.join(format!("forge-firewall-{network}"));
        Ok(Self { lock: lock_shared(&path)?, path })
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        // Refused while others hold it, who then have the duty.
        if flock(&self.lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            foreign::withdraw();
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Where the host sends what it forwards.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Routes {
    /// An address by which the way out can be tried. None for a host that reaches nothing.
    probed: Option<Ipv4Addr>,
    /// Interfaces with default routes.
    uplinks: Vec<String>,
}

impl Routes {
    /// Reads `/proc/net/route`. `is_way_out` tells whether an address is reached through others, by interfaces that lead
    /// out of the machine.
    pub(super) fn of(table: &str, is_way_out: impl Fn(&str, Ipv4Addr) -> bool) -> Self {
        /// Of a block for documentation, which is nobody's.
        const ANYWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
        let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::from_be);
        let routes = table.lines().skip(1).filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            Some((fields[0].to_owned(), number(fields.get(1)?)?, number(fields.get(7)?)?))
        });
        let (defaults, others): (Vec<_>, Vec<_>) = routes
            .filter(|(interface, ..)| !interface.starts_with(PREFIX) && interface != "lo")
            .partition(|(_, destination, mask)| (*destination, *mask) == (0, 0));
        let mut uplinks: Vec<String> = defaults.into_iter().map(|(interface, ..)| interface).collect();
        uplinks.dedup();
        let within = |(interface, destination, mask): &(String, u32, u32)| {
            let some = if *mask == u32::MAX { 0..1 } else { 1..3 };
            some.map(|number| Ipv4Addr::from(destination | number)).find(|address| is_way_out(interface, *address))
        };
        let probed = if uplinks.is_empty() { others.iter().find_map(within) } else { Some(ANYWHERE) };
        Self { probed, uplinks }
    }

    pub(super) fn probed(&self) -> Option<Ipv4Addr> {
        self.probed
    }

    /// Those of this network namespace.
    pub(super) fn read() -> Self {
        let is_bridge = |interface: &str| Path::new("/sys/class/net").join(interface).join("bridge").exists();
        let is_own = |address: Ipv4Addr| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
            let local = socket.and_then(|socket| socket.connect((address, PROBE_PORT)).and(socket.local_addr()));
            local.is_ok_and(|local| local.ip() == IpAddr::V4(address))
        };
        let table = std::fs::read_to_string("/proc/self/net/route").unwrap_or_default();
        Self::of(&table, |interface, address| !is_bridge(interface) && !is_own(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

    fn routes(lines: &[(&str, &str, &str)]) -> Routes {
        let lines =
            lines.iter().map(|(interface, to, mask)| format!("{interface}\t{to}\t0\t0001\t0\t0\t0\t{mask}\t0\t0\t0\n"));
        // The host itself is 10.1.2.1.
        Routes::of(&(HEADER.to_owned() + &lines.collect::<String>()), |interface, address| {
            interface != "docker0" && address != Ipv4Addr::new(10, 1, 2, 1)
        })
    }

    #[test]
    fn the_way_out_is_tried_where_there_is_one() {
        let out = routes(&[("eth0", "00000000", "00000000"), ("eth0", "0002010A", "00FFFFFF")]);
        assert_eq!((out.probed, out.uplinks), (Some(Ipv4Addr::new(198, 51, 100, 1)), vec!["eth0".to_owned()]));
        // No default route: the first address of a network that is not the host's own.
        let near = routes(&[("docker0", "000011AC", "0000FFFF"), ("eth0", "0002010A", "00FFFFFF")]);
        assert_eq!((near.probed, near.uplinks), (Some(Ipv4Addr::new(10, 1, 2, 2)), Vec::new()));
        let one = routes(&[("tun0", "0702010A", "FFFFFFFF")]);
        assert_eq!(one.probed, Some(Ipv4Addr::new(10, 1, 2, 7)));
        assert_eq!(
            routes(&[("docker0", "000011AC", "0000FFFF"), ("forge0102", "0201D10A", "FFFFFFFF")]),
            Routes::default()
        );
    }
}
