//! `forge daemon`: BuildKit's interface, served until a signal ends it.

use super::{Start, block_on_many};
use crate::args::DaemonArgs;
use crate::config::{DaemonConfig, TlsConfig};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output;
use anyhow::{Context as _, anyhow};
use forge_daemon::{Address, Daemon, DaemonError, DaemonOptions, TlsFiles};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

const SOCKET: &str = "unix:///run/forge/forged.sock";

pub fn daemon(start: &Start, args: &DaemonArgs, config: DaemonConfig) -> Result<u8, Failure> {
    refuse(args)?;
    for remark in &config.remarks {
        output::note(&format!("forge: {remark}"));
    }
    let options = options(start, args, config)?;
    let addresses: Vec<String> = options.addresses.iter().map(Address::to_string).collect();
    let root = start.options.root.clone();
    block_on_many(async {
        let interrupts = Interrupts::watch()?;
        let engine = start.engine_of_daemon(&options.version)?;
        let daemon = Daemon::bind(engine, &root, options).await.map_err(failure)?;
        output::note(&format!("forge: serving BuildKit's interface on {}", addresses.join(", ")));
        daemon.serve(interrupts.token()).await.map_err(failure)?;
        Ok(0)
    })
}

pub(super) fn failure(error: DaemonError) -> Failure {
    let hint = error.hint().map(str::to_owned);
    let failed = forge_engine::EngineError::caused(error.kind(), error);
    Failure::from(match hint {
        Some(hint) => failed.with_hint(hint),
        None => failed,
    })
}

/// What buildkitd does and forge does not.
fn refuse(args: &DaemonArgs) -> anyhow::Result<()> {
    let is = |value: &Option<String>, words: &[&str]| value.as_deref().is_none_or(|value| words.contains(&value));
    if !is(&args.oci_worker, &["true", "1", "auto"]) {
        return Err(anyhow!("--oci-worker=false: forge has this one worker only"));
    }
    if !is(&args.containerd_worker, &["false", "0", "auto"]) {
        return Err(anyhow!("--containerd-worker: forge does not use containerd"));
    }
    if !is(&args.oci_worker_snapshotter, &["overlayfs", "auto"]) {
        return Err(anyhow!("--oci-worker-snapshotter: forge has overlayfs only"));
    }
    if !is(&args.oci_worker_net, &["auto", "host"]) {
        return Err(anyhow!("--oci-worker-net: forge gives each step a network of its own where it can"));
    }
    Ok(())
}

fn options(start: &Start, args: &DaemonArgs, config: DaemonConfig) -> anyhow::Result<DaemonOptions> {
    let named = [args.addr.clone(), config.addresses].into_iter().find(|addresses| !addresses.is_empty());
    let addresses = named.unwrap_or_else(|| vec![default_address(start)]);
    let debug = args.debugaddr.clone().or_else(|| start.environment.filled("BUILDKITD_DEBUGADDR").map(str::to_owned));
    let debug = debug.or(config.debug_address);
    let labels = args.labels.iter().filter(|label| !label.is_empty()).map(|label| {
        let (name, value) = label.split_once('=').with_context(|| format!("label {label:?} has no value"))?;
        Ok((name.to_owned(), value.to_owned()))
    });
    let labels = labels.collect::<anyhow::Result<BTreeMap<_, _>>>()?;
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(DaemonOptions {
        addresses: addresses.iter().map(|address| Ok(address.parse()?)).collect::<anyhow::Result<_>>()?,
        debug_address: debug.as_deref().map(str::parse).transpose()?,
        group: args.group.as_deref().map(group).transpose()?.or(config.gid),
        labels: config.labels.into_iter().chain(labels).collect(),
        entitlements: [config.entitlements, args.allow_insecure_entitlement.clone()].concat(),
        front_ends: config.front_ends,
        tls: tls(args, config.tls)?,
        inherited: inherited(start)?,
        unprotected_tcp: args.allow_unprotected_tcp,
        provenance: config.provenance,
        version: format!("v{}+forge", env!("CARGO_PKG_VERSION")),
        hostname,
    })
}

/// The certificates of the flags, else those of the configuration.
fn tls(args: &DaemonArgs, configured: TlsConfig) -> anyhow::Result<Option<TlsFiles>> {
    let certificate = args.tlscert.clone().or(configured.cert);
    let key = args.tlskey.clone().or(configured.key);
    let authority = args.tlscacert.clone().or(configured.ca);
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key, authority })),
        (None, None) if authority.is_none() => Ok(None),
        _ => Err(anyhow!("--tlscert and --tlskey go together, and --tlscacert goes with both")),
    }
}

/// The sockets that systemd hands over (sd_listen_fds(3)): descriptors from 3 on, if they are meant for this process.
fn inherited(start: &Start) -> anyhow::Result<Vec<Arc<OwnedFd>>> {
    let number = |name: &str| start.environment.filled(name).and_then(|text| text.parse::<i32>().ok());
    let own = rustix::process::getpid();
    let (Some(process), Some(count)) = (number("LISTEN_PID"), number("LISTEN_FDS")) else { return Ok(Vec::new()) };
    if process != own.as_raw_nonzero().get() || count <= 0 {
        return Ok(Vec::new());
    }
    let this = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty())?;
    let take = |descriptor: i32| {
        let flags = rustix::process::PidfdGetfdFlags::empty();
        let taken = rustix::process::pidfd_getfd(&this, descriptor, flags);
        taken.map(Arc::new).with_context(|| format!("cannot use descriptor {descriptor} of LISTEN_FDS"))
    };
    (3..3 + count.min(64)).map(take).collect()
}

fn default_address(start: &Start) -> String {
    match (rustix::process::getuid().is_root(), start.environment.filled("XDG_RUNTIME_DIR")) {
        (false, Some(folder)) => format!("unix://{folder}/forge/forged.sock"),
        _ => SOCKET.to_owned(),
    }
}

/// A group's number.
fn group(name: &str) -> anyhow::Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let groups = std::fs::read_to_string("/etc/group").context("cannot read /etc/group")?;
    let found = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    });
    found.with_context(|| format!("there is no group {name}"))
}
