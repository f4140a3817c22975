//! `--ipc`, `--sysctl` and their like: what of the host a container is in, and what is set for it alone.

use super::unsupported;
use crate::args::RunArgs;
use anyhow::{Context, bail};
use forge_engine::{DeviceRule, Ipc, Isolation, Network};

/// Reads the flags.
///
/// # Errors
/// A namespace that forge cannot share, or flags that exclude each other.
pub fn isolation(args: &RunArgs) -> anyhow::Result<Isolation> {
    let isolation = Isolation {
        ipc: ipc(&args.ipc)?,
        host_uts: is_host("--uts", &args.uts, &[""])?,
        host_cgroup: is_host("--cgroupns", &args.cgroupns, &["", "private"])?,
        sysctls: args.sysctls.iter().map(|text| sysctl(text)).collect::<anyhow::Result<_>>()?,
        domain: args.domainname.clone(),
        oom_score: args.oom_score_adj.map(score).transpose()?,
    };
    if !matches!(args.pid.as_str(), "" | "private") {
        return Err(unsupported(&format!("--pid {}", args.pid)));
    }
    if !matches!(args.userns.as_str(), "" | "host") {
        return Err(unsupported(&format!("--userns {}", args.userns)));
    }
    if isolation.host_uts && (args.hostname.is_some() || args.domainname.is_some()) {
        bail!("conflicting options: hostname and the UTS mode");
    }
    Ok(isolation)
}

/// A setting of a network that is the host's would be the host's too.
///
/// # Errors
/// There is one.
pub fn check_network(isolation: &Isolation, network: Network) -> anyhow::Result<()> {
    let of_network = |(name, _): &&(String, String)| name.starts_with("net.") || name.starts_with("net/");
    match isolation.sysctls.iter().find(of_network) {
        Some((name, _)) if network == Network::Host => bail!("sysctl {name} is not allowed with the host's network"),
        _ => Ok(()),
    }
}

/// Nobody can share a namespace of a container yet, so that a shareable one is as good as a private one.
fn ipc(mode: &str) -> anyhow::Result<Ipc> {
    match mode {
        "" | "private" | "shareable" => Ok(Ipc::Own),
        "none" => Ok(Ipc::WithoutSharedMemory),
        "host" => Ok(Ipc::Host),
        mode => Err(unsupported(&format!("--ipc {mode}"))),
    }
}

fn is_host(flag: &str, mode: &str, own: &[&str]) -> anyhow::Result<bool> {
    match mode {
        "host" => Ok(true),
        mode if own.contains(&mode) => Ok(false),
        mode => Err(unsupported(&format!("{flag} {mode}"))),
    }
}

fn sysctl(text: &str) -> anyhow::Result<(String, String)> {
    let (name, value) = text.split_once('=').with_context(|| format!("sysctl '{text}' is not allowed"))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn score(number: i32) -> anyhow::Result<i16> {
    let valid = i16::try_from(number).ok().filter(|score| (-1000..=1000).contains(score));
    valid.with_context(|| format!("Invalid value {number}, range for oom score adj is [-1000, 1000]"))
}

/// `a|b|c MAJOR:MINOR rwm`.
///
/// # Errors
/// It has another form.
pub fn device_rule(text: &str) -> anyhow::Result<DeviceRule> {
    let invalid = || format!("invalid device cgroup format '{text}'");
    let words: Vec<&str> = text.split(' ').collect();
    let [kind, numbers, access] = words[..] else { bail!(invalid()) };
    let (major, minor) = numbers.split_once(':').with_context(invalid)?;
    let number = |text: &str| match text {
        "*" => Ok(None),
        // The kernel's device numbers have twelve and twenty bits.
        text => text
            .parse()
            .map(Some)
            .ok()
            .filter(|number| number.is_none_or(|one: u32| one < 1 << 20))
            .with_context(invalid),
    };
    let known = (1..=3).contains(&access.len()) && access.bytes().all(|byte| b"rwm".contains(&byte));
    if !known || !matches!(kind, "a" | "b" | "c") {
        bail!(invalid());
    }
    Ok(DeviceRule {
        block: kind != "c",
        character: kind != "b",
        major: number(major)?,
        minor: number(minor)?,
        read: access.contains('r'),
        write: access.contains('w'),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use std::ffi::OsString;

    fn read(line: &str) -> Result<Isolation, String> {
        let words = ["forge", "run"].into_iter().chain(line.split(' ')).map(OsString::from);
        let Command::Run(args) = Cli::read(words).unwrap().command else { panic!() };
        isolation(&args).map_err(|error| error.to_string())
    }

    #[test]
    fn namespaces_are_the_container_s_own_or_the_host_s() {
        assert_eq!(read("b").unwrap(), Isolation::default());
        assert_eq!(read("--ipc shareable --pid private --userns host --cgroupns= b").unwrap(), Isolation::default());
        let shared = read("--ipc host --uts=host --cgroupns host --oom-score-adj -5 --sysctl net.a=b=c b").unwrap();
        assert!(shared.ipc == Ipc::Host && shared.host_uts && shared.host_cgroup && shared.oom_score == Some(-5));
        assert_eq!(shared.sysctls, [("net.a".to_owned(), "b=c".to_owned())]);
        assert!(check_network(&shared, Network::Host).is_err() && check_network(&shared, Network::None).is_ok());
        for line in ["--ipc container:x", "--ipc x", "--pid host", "--pid container:x", "--userns keep-id", "--uts x"] {
            let error = read(&format!("{line} b")).unwrap_err();
            assert_eq!(error, format!("{line} is not supported by this version of forge"));
        }
        assert!(read("--uts host -h x b").unwrap_err().contains("conflicting options"));
        assert!(read("--oom-score-adj 1001 b").unwrap_err().contains("[-1000, 1000]"));
        assert!(read("--sysctl net.x b").unwrap_err().contains("sysctl 'net.x' is not allowed"));
    }

    #[test]
    fn rules_have_docker_s_form() {
        let rule = device_rule("c 42:* rmw").unwrap();
        assert_eq!((rule.block, rule.character, rule.major, rule.minor), (false, true, Some(42), None));
        assert!(rule.read && rule.write && !device_rule("b 8:0 m").unwrap().read);
        assert!(device_rule("a *:* rwm").unwrap().block);
        for wrong in
            ["", "c", "c 1:3", "x 1:3 r", "c 1 r", "c 1:3 x", "c 1:3 rwmr", "c  1:3 r", "c -1:3 r", "c 1:1048576 r"]
        {
            assert_eq!(device_rule(wrong).unwrap_err().to_string(), format!("invalid device cgroup format '{wrong}'"));
        }
    }
}
