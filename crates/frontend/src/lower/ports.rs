//! The ports of EXPOSE.

use crate::{FrontendError, Problem};

/// One word of EXPOSE: `80`, `8000-8010/udp`, and docker's tolerated `ip:host:container/proto`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ports {
    first: u16,
    last: u16,
    /// The protocol as written.
    protocol: String,
    /// Whether an address or a port of the host was given, which means nothing here.
    pub maps_host: bool,
}

impl Ports {
    /// Reads a word.
    pub fn parse(word: &str) -> Result<Self, FrontendError> {
        let (host, container) = match word.rsplit_once(':') {
            Some((host, container)) => (Some(host), container),
            None => (None, word),
        };
        let (ports, protocol) = container.split_once('/').unwrap_or((container, "tcp"));
        let protocol = if protocol.is_empty() { "tcp" } else { protocol };
        let wrong = |reason: &str| FrontendError::from(Problem::value(format!("invalid port: {word:?}: {reason}")));
        if ports.is_empty() {
            return Err(wrong("no port specified"));
        }
        if !["tcp", "udp", "sctp"].contains(&protocol.to_lowercase().as_str()) {
            return Err(wrong(&format!("invalid proto: {protocol}")));
        }
        let invalid = || FrontendError::from(Problem::value(format!("invalid containerPort: {ports}")));
        let (first, last) = port_range(ports).ok_or_else(invalid)?;
        if let Some(host) = host {
            check_host(host, last - first)?;
        }
        Ok(Self { first, last, protocol: protocol.to_owned(), maps_host: host.is_some_and(|host| !host.is_empty()) })
    }

    /// Whether the protocol is not written in lower case.
    pub fn shouts(&self) -> bool {
        self.protocol != self.protocol.to_lowercase()
    }

    /// How many ports they are.
    pub fn count(&self) -> usize {
        usize::from(self.last - self.first) + 1
    }

    /// The ports as configs hold them, `80/tcp`.
    pub fn entries(&self) -> impl Iterator<Item = String> + '_ {
        (self.first..=self.last).map(|port| format!("{port}/{}", self.protocol.to_lowercase()))
    }
}

/// `host` or `ip:host`; an IPv6 address stands in brackets.
fn check_host(host: &str, width: u16) -> Result<(), FrontendError> {
    let (ip, port) = host.rsplit_once(':').unwrap_or(("", host));
    let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
    if !ip.is_empty() && bare.parse::<std::net::IpAddr>().is_err() {
        return Err(Problem::value(format!("invalid IP address: {ip}")).into());
    }
    if port.is_empty() {
        return Ok(());
    }
    match port_range(port) {
        None => Err(Problem::value(format!("invalid hostPort: {port}")).into()),
        Some((first, last)) if width > 0 && last - first != width => {
            Err(Problem::value(format!("invalid ranges specified for container and host Ports: {host}")).into())
        }
        Some(_) => Ok(()),
    }
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::Ports;

    #[test]
    fn ports_and_ranges() {
        let check = |word: &str, expect: &[&str]| {
            assert_eq!(Ports::parse(word).unwrap().entries().collect::<Vec<_>>(), expect, "{word}");
        };
        check("80", &["80/tcp"]);
        check("53/UDP", &["53/udp"]);
        check("8000-8002/sctp", &["8000/sctp", "8001/sctp", "8002/sctp"]);
        check("127.0.0.1:80:8080", &["8080/tcp"]);
        check("[::1]:80:8080/tcp", &["8080/tcp"]);
        for bad in ["", "x", "80/ftp", "70000", "9-8", "1.2.3:80:80", "/tcp", "-1", "80-82:1-2", "a:80"] {
            assert!(Ports::parse(bad).is_err(), "{bad}");
        }
    }
}
