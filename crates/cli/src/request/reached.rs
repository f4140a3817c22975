//! `-p`, `-P` and `--device`: what of the host leads into a container.

use anyhow::{Context, bail};
use forge_engine::{Device, Port, Protocol};
use std::ops::RangeInclusive;

use super::unsupported;

/// More ports in one flag are a slip of the pen; each is a socket.
const MOST: u16 = 1000;

/// `[IP:][HOST[-HOST]:]CONTAINER[-CONTAINER][/PROTOCOL]`. Ranges of equal length go side by side; several ports of the
/// host for one of the container mean the first that is free.
pub fn ports(text: &str) -> anyhow::Result<Vec<Port>> {
    let invalid = || format!("invalid port specification: {text:?}");
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => return Err(unsupported(&format!("--publish {text} (SCTP)"))),
        _ => bail!(invalid()),
    };
    let (outside, container) =
        numbers.rsplit_once(':').map_or((None, numbers), |(outside, port)| (Some(outside), port));
    let (address, host) = match outside.map(|outside| outside.rsplit_once(':').unwrap_or(("", outside))) {
        Some((address, host)) => (address, host),
        None => ("", ""),
    };
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let address =
        Some(address).filter(|text| !text.is_empty()).map(str::parse).transpose().ok().with_context(invalid)?;
    let container = range(container).filter(|range| *range.start() != 0).with_context(invalid)?;
    let host = if host.is_empty() { 0..=0 } else { range(host).with_context(invalid)? };
    if container.len() > MOST.into() {
        bail!("{}: more than {MOST} ports", invalid());
    }
    let port = |host, container| Port { protocol, address, host, container };
    match (host.len(), container.len()) {
        (_, 1) => Ok(vec![port(host, *container.start())]),
        (1, _) if *host.start() == 0 => Ok(container.map(|one| port(0..=0, one)).collect()),
        (wide, narrow) if wide == narrow => Ok(host.zip(container).map(|(host, one)| port(host..=host, one)).collect()),
        _ => bail!("{}: the ranges have different lengths", invalid()),
    }
}

/// `PORT[-PORT][/PROTOCOL]` of `--expose`, as an image's configuration has them.
pub fn exposed(text: &str) -> anyhow::Result<Vec<String>> {
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let known = ["tcp", "udp", "sctp"].contains(&protocol);
    let range = range(numbers).filter(|range| known && *range.start() != 0 && range.len() <= MOST.into());
    let range = range.with_context(|| format!("invalid range format for --expose: {text}"))?;
    Ok(range.map(|number| format!("{number}/{protocol}")).collect())
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

/// `HOST[:CONTAINER][:rwm]`.
pub fn device(text: &str) -> anyhow::Result<Device> {
    let rights = |text: &str| !text.is_empty() && text.bytes().all(|byte| b"rwm".contains(&byte));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, granted) = match parts.as_slice() {
        [source] => (*source, *source, "rwm"),
        [source, granted] if rights(granted) => (*source, *source, *granted),
        [source, target] => (*source, *target, "rwm"),
        [source, target, granted] if rights(granted) => (*source, *target, *granted),
        [_, _, granted] => bail!("invalid device mode: {granted}"),
        _ => bail!("invalid device specification: {text}"),
    };
    if source.contains('=') {
        return Err(unsupported(&format!("--device {text} (the Container Device Interface)")));
    }
    if !source.starts_with('/') || !target.starts_with('/') {
        bail!("{text} is not an absolute path");
    }
    let (read, write) = (granted.contains('r'), granted.contains('w'));
    Ok(Device { source: source.into(), target: target.into(), read, write })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_dockers_forms() {
        let read = |text: &str| {
            let port = |port: &Port| {
                let protocol = if port.protocol == Protocol::Udp { "udp" } else { "tcp" };
                let address = port.address.map(|address| address.to_string()).unwrap_or_default();
                format!("{address}|{}-{}>{}/{protocol}", port.host.start(), port.host.end(), port.container)
            };
            ports(text).unwrap().iter().map(port).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(read("80"), "|0-0>80/tcp");
        assert_eq!(read("8080:80/tcp"), "|8080-8080>80/tcp");
        assert_eq!(read("127.0.0.1:8080:80"), "127.0.0.1|8080-8080>80/tcp");
        assert_eq!(read("127.0.0.1::80"), "127.0.0.1|0-0>80/tcp");
        assert_eq!(read("[::1]:8080:80"), "::1|8080-8080>80/tcp");
        assert_eq!(read("53:53/udp"), "|53-53>53/udp");
        assert_eq!(read("8000-8001:90-91"), "|8000-8000>90/tcp |8001-8001>91/tcp");
        assert_eq!(read("8000-8010:80"), "|8000-8010>80/tcp");
        assert_eq!(read("90-91/udp"), "|0-0>90/udp |0-0>91/udp");
        for wrong in ["", "0", "80:", "x:80", "99999:80", "1.2.3:1:2", "80-70", "1-2:1-3", "80/icmp", "1-2000"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
        assert!(ports("80/sctp").unwrap_err().to_string().contains("not supported"));
    }

    #[test]
    fn devices_have_dockers_forms() {
        let read = |text: &str| {
            device(text)
                .map(|one| (one.source.display().to_string(), one.target.display().to_string(), one.read, one.write))
        };
        let is = |source: &str, target: &str, read, write| (source.to_owned(), target.to_owned(), read, write);
        assert_eq!(read("/dev/fuse").unwrap(), is("/dev/fuse", "/dev/fuse", true, true));
        assert_eq!(read("/dev/fuse:r").unwrap(), is("/dev/fuse", "/dev/fuse", true, false));
        assert_eq!(read("/dev/fuse:/dev/x").unwrap(), is("/dev/fuse", "/dev/x", true, true));
        assert_eq!(read("/dev/fuse:/dev/x:wm").unwrap(), is("/dev/fuse", "/dev/x", false, true));
        for wrong in ["", "dev", "/dev/a:/dev/b:x", "/a:/b:r:w", "acme.com/gpu=0"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
