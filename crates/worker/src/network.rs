//! The network of a process: which one it gets, and the files that describe it.

use forge_executor::{Executor, MountSource, MountSpec, NetworkMode};
use forge_llb::ExtraHost;
use std::net::{IpAddr, Ipv4Addr};

/// The file of a local resolver's own configuration, with the nameservers behind it.
const BEHIND_LOCAL_RESOLVER: &str = "/run/systemd/resolve/resolv.conf";
/// What docker takes where the host's nameservers cannot be reached.
const PUBLIC_NAMESERVERS: [&str; 2] = ["8.8.8.8", "8.8.4.4"];
/// An address that stands for the host's own.
const HOST_GATEWAY: &str = "host-gateway";

/// The network that a process gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessNetwork {
    /// The host's.
    Host,
    /// A loopback interface.
    None,
    /// Its own, in which the host has this address.
    Private(Ipv4Addr),
}

impl ProcessNetwork {
    /// What a wish comes to: the default is a private network where there can be one, and the host's elsewhere. The
    /// executor's notices then tell why.
    pub fn of(wanted: forge_llb::NetworkMode, executor: &dyn Executor) -> Self {
        match wanted {
            forge_llb::NetworkMode::Host => Self::Host,
            forge_llb::NetworkMode::None => Self::None,
            forge_llb::NetworkMode::Default => executor.private_network().map_or(Self::Host, Self::Private),
        }
    }

    /// What the executor is told.
    pub fn mode(self) -> NetworkMode {
        match self {
            Self::Host => NetworkMode::Host,
            Self::None => NetworkMode::None,
            Self::Private(_) => NetworkMode::Private,
        }
    }

    /// The host's address as the process sees it.
    fn host_address(self) -> Ipv4Addr {
        match self {
            Self::Private(gateway) => gateway,
            Self::Host | Self::None => Ipv4Addr::LOCALHOST,
        }
    }
}

/// How names are found, where it is not as on the host (`--dns`, `--dns-search`, `--dns-option`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Nameservers.
    pub servers: Vec<IpAddr>,
    /// Domains that are tried; a single dot for none.
    pub search: Vec<String>,
    /// Options of resolv.conf(5).
    pub options: Vec<String>,
}

/// `/etc/hosts` and `/etc/resolv.conf`, made for the sandbox and read-only in it.
pub fn network_files(
    network: ProcessNetwork,
    hostname: &str,
    extra: &[ExtraHost],
    resolver: &Resolver,
) -> Vec<MountSpec> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let of_host = match network {
        ProcessNetwork::None => String::new(),
        ProcessNetwork::Host => read("/etc/resolv.conf"),
        ProcessNetwork::Private(_) => reachable(&read("/etc/resolv.conf"), || read(BEHIND_LOCAL_RESOLVER)),
    };
    let file = |path: &str, content: String| {
        MountSpec::new(path, MountSource::File { content: content.into_bytes(), mode: 0o644 }, true)
    };
    let hosts = hosts(network, hostname, extra);
    vec![file("/etc/hosts", hosts), file("/etc/resolv.conf", resolver.applied(&of_host))]
}

fn hosts(network: ProcessNetwork, hostname: &str, extra: &[ExtraHost]) -> String {
    let mut hosts = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for ExtraHost { host, address } in extra {
        match address.as_str() {
            HOST_GATEWAY => hosts += &format!("{}\t{host}\n", network.host_address()),
            address => hosts += &format!("{address}\t{host}\n"),
        }
    }
    hosts
}

/// The host's configuration without nameservers that a private network does not reach: those on the host's loopback and
/// those of version 6.
fn reachable(own: &str, behind: impl Fn() -> String) -> String {
    let is_loopback = |line: &&str| nameserver(line).is_some_and(|address| address.is_loopback());
    let only_loopback = !own.lines().any(|line| nameserver(line).is_some_and(|address| !address.is_loopback()));
    let text = match only_loopback && own.lines().any(|line| is_loopback(&line)) {
        true => Some(behind()).filter(|text| !text.is_empty()).unwrap_or_else(|| own.to_owned()),
        false => own.to_owned(),
    };
    let fits = |address: IpAddr| address.is_ipv4() && !address.is_loopback();
    let is_kept = |line: &&str| !line.trim_start().starts_with("nameserver") || nameserver(line).is_some_and(fits);
    let mut kept: String = text.lines().filter(is_kept).flat_map(|line| [line, "\n"]).collect();
    if !kept.lines().any(|line| nameserver(line).is_some()) {
        kept.extend(PUBLIC_NAMESERVERS.map(|server| format!("nameserver {server}\n")));
    }
    kept
}

fn nameserver(line: &str) -> Option<IpAddr> {
    let mut words = line.split_whitespace();
    let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
    // The interface of a link-local address is no part of it.
    address.split('%').next()?.parse().ok()
}

impl Resolver {
    /// The host's configuration with what is given in its place.
    fn applied(&self, of_host: &str) -> String {
        let replaced = |line: &&str| {
            let given = [
                ("nameserver", self.servers.is_empty()),
                ("search", self.search.is_empty()),
                ("options", self.options.is_empty()),
            ];
            let keyword = line.split_whitespace().next().unwrap_or_default();
            // `domain` is the older word for a search list of one.
            let keyword = if keyword == "domain" { "search" } else { keyword };
            given.iter().any(|(name, empty)| *name == keyword && !empty)
        };
        let mut text: String = of_host.lines().filter(|line| !replaced(line)).flat_map(|line| [line, "\n"]).collect();
        text.extend(self.servers.iter().map(|server| format!("nameserver {server}\n")));
        if !self.search.is_empty() && self.search != ["."] {
            text += &format!("search {}\n", self.search.join(" "));
        }
        if !self.options.is_empty() {
            text += &format!("options {}\n", self.options.join(" "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: ProcessNetwork = ProcessNetwork::Private(Ipv4Addr::new(10, 209, 0, 1));

    #[test]
    fn nameservers_out_of_reach_are_replaced() {
        let none = String::new;
        assert_eq!(reachable("search a\nnameserver 10.0.0.1\n", none), "search a\nnameserver 10.0.0.1\n");
        assert_eq!(
            reachable("nameserver 127.0.0.53\noptions edns0\n", || "nameserver 9.9.9.9\n".into()),
            "nameserver 9.9.9.9\n"
        );
        let public = "options edns0\nnameserver 8.8.8.8\nnameserver 8.8.4.4\n";
        assert_eq!(reachable("nameserver 127.0.0.53\noptions edns0\n", none), public);
        assert_eq!(
            reachable("nameserver ::1\nnameserver 1.1.1.1\nnameserver fe80::1%eth0\n", none),
            "nameserver 1.1.1.1\n"
        );
        assert_eq!(reachable("", none), "nameserver 8.8.8.8\nnameserver 8.8.4.4\n");
    }

    #[test]
    fn what_is_given_takes_the_place_of_the_host_s() {
        let host = "# note\nnameserver 1.1.1.1\nsearch a b\noptions x\n";
        let resolver = Resolver { servers: vec![[9, 9, 9, 9].into()], search: vec![".".into()], options: Vec::new() };
        assert_eq!(resolver.applied(host), "# note\noptions x\nnameserver 9.9.9.9\n");
        assert_eq!(Resolver::default().applied(host), host);
        let resolver = Resolver { options: vec!["ndots:2".into()], ..Resolver::default() };
        assert_eq!(resolver.applied("domain a\noptions x\n"), "domain a\noptions ndots:2\n");
    }

    #[test]
    fn the_host_has_an_address_in_every_network() {
        let extra = |address: &str| [ExtraHost { host: "db".into(), address: address.into() }];
        let last = |network, address| hosts(network, "box", &extra(address)).lines().last().map(str::to_owned);
        assert_eq!(last(GATEWAY, "host-gateway").as_deref(), Some("10.209.0.1\tdb"));
        assert_eq!(last(ProcessNetwork::Host, "host-gateway").as_deref(), Some("127.0.0.1\tdb"));
        assert_eq!(last(GATEWAY, "1.2.3.4").as_deref(), Some("1.2.3.4\tdb"));
    }
}
