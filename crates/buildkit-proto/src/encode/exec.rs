use super::{Encoded, optional_index};
use crate::{capabilities as cap, pb};
use forge_llb::{CacheSharing, ExecMount, ExecOp, MountKind, NetworkMode, SecretMount, SecurityMode};
use std::collections::BTreeSet;

pub fn encode(exec: &ExecOp) -> Encoded {
    let op = pb::ExecOp {
        meta: Some(encode_meta(exec)),
        mounts: exec.mounts.iter().map(encode_mount).collect(),
        network: match exec.network {
            NetworkMode::Default => pb::NetMode::Unset,
            NetworkMode::Host => pb::NetMode::Host,
            NetworkMode::None => pb::NetMode::None,
        }
        .into(),
        security: match exec.security {
            SecurityMode::Sandbox => pb::SecurityMode::Sandbox,
            SecurityMode::Insecure => pb::SecurityMode::Insecure,
        }
        .into(),
        secretenv: exec
            .secret_env
            .iter()
            .map(|secret| pb::SecretEnv { id: secret.id.clone(), name: secret.name.clone(), optional: secret.optional })
            .collect(),
        cdi_devices: exec
            .devices
            .iter()
            .map(|device| pb::CdiDevice { name: device.name.clone(), optional: device.optional })
            .collect(),
    };
    Encoded { op: pb::op::Op::Exec(op), needs: needs(exec) }
}

fn encode_meta(exec: &ExecOp) -> pb::Meta {
    let hosts = exec.extra_hosts.iter();
    let limits = exec.ulimits.iter();
    pb::Meta {
        args: exec.args.clone(),
        env: exec.env.clone(),
        cwd: exec.cwd.clone(),
        user: exec.user.clone(),
        proxy_env: encode_proxies(&exec.proxy_env),
        extra_hosts: hosts.map(|extra| pb::HostIp { host: extra.host.clone(), ip: extra.address.clone() }).collect(),
        hostname: exec.hostname.clone(),
        ulimit: limits.map(|l| pb::Ulimit { name: l.name.clone(), soft: l.soft, hard: l.hard }).collect(),
        cgroup_parent: exec.cgroup_parent.clone(),
        remove_mount_stubs_recursive: exec.remove_mount_stubs,
        valid_exit_codes: exec.valid_exit_codes.clone(),
    }
}

/// The five settings that a definition knows; either spelling is taken, the first one wins.
fn encode_proxies(settings: &[String]) -> Option<pb::ProxyEnv> {
    let mut proxies = pb::ProxyEnv::default();
    for (name, value) in settings.iter().filter_map(|setting| setting.split_once('=')) {
        let field = match name.to_ascii_uppercase().as_str() {
            "HTTP_PROXY" => &mut proxies.http_proxy,
            "HTTPS_PROXY" => &mut proxies.https_proxy,
            "FTP_PROXY" => &mut proxies.ftp_proxy,
            "NO_PROXY" => &mut proxies.no_proxy,
            "ALL_PROXY" => &mut proxies.all_proxy,
            _ => continue,
        };
        if field.is_empty() {
            value.clone_into(field);
        }
    }
    (proxies != pb::ProxyEnv::default()).then_some(proxies)
}

fn encode_mount(mount: &ExecMount) -> pb::Mount {
    let mut encoded = pb::Mount {
        input: optional_index(mount.input),
        selector: if mount.selector == "/" { String::new() } else { mount.selector.clone() },
        dest: mount.target.clone(),
        output: optional_index(mount.output),
        readonly: mount.readonly,
        ..pb::Mount::default()
    };
    match &mount.kind {
        MountKind::Bind => {}
        MountKind::Tmpfs { size } => {
            encoded.set_mount_type(pb::MountType::Tmpfs);
            let size = size.map_or(0, |size| i64::try_from(size).unwrap_or(i64::MAX));
            encoded.tmpfs_opt = Some(pb::TmpfsOpt { size });
        }
        MountKind::Cache { id, sharing } => {
            encoded.set_mount_type(pb::MountType::Cache);
            let sharing = match sharing {
                CacheSharing::Shared => pb::CacheSharingOpt::Shared,
                CacheSharing::Private => pb::CacheSharingOpt::Private,
                CacheSharing::Locked => pb::CacheSharingOpt::Locked,
            };
            encoded.cache_opt = Some(pb::CacheOpt { id: id.clone(), sharing: sharing.into() });
        }
        // BuildKit's client leaves the output of these two at 0, where nobody looks.
        MountKind::Secret(SecretMount { id, uid, gid, mode, optional }) => {
            let (id, uid, gid, mode, optional) = (id.clone(), *uid, *gid, *mode, *optional);
            encoded.set_mount_type(pb::MountType::Secret);
            encoded.output = 0;
            encoded.secret_opt = Some(pb::SecretOpt { id, uid, gid, mode, optional });
        }
        MountKind::Ssh(SecretMount { id, uid, gid, mode, optional }) => {
            let (id, uid, gid, mode, optional) = (id.clone(), *uid, *gid, *mode, *optional);
            encoded.set_mount_type(pb::MountType::Ssh);
            encoded.output = 0;
            encoded.ssh_opt = Some(pb::SshOpt { id, uid, gid, mode, optional });
        }
    }
    encoded
}

fn needs(exec: &ExecOp) -> BTreeSet<&'static str> {
    let conditions = [
        (cap::EXEC_BASE, true),
        (cap::EXEC_NETWORK, exec.network != NetworkMode::Default),
        (cap::EXEC_SECURITY, exec.security != SecurityMode::Sandbox),
        (cap::EXEC_PROXY, encode_proxies(&exec.proxy_env).is_some()),
        (cap::EXEC_ULIMIT, !exec.ulimits.is_empty()),
        (cap::EXEC_CGROUP_PARENT, !exec.cgroup_parent.is_empty()),
        (cap::EXEC_CDI, !exec.devices.is_empty()),
        (cap::EXEC_MOUNT_SECRET, !exec.secret_env.is_empty()),
        (cap::EXEC_SECRET_ENV, !exec.secret_env.is_empty()),
        (cap::EXEC_VALID_EXIT_CODES, !exec.valid_exit_codes.is_empty()),
    ];
    let own = conditions.into_iter().filter(|(_, needed)| *needed).map(|(need, _)| need);
    own.chain(exec.mounts.iter().flat_map(mount_needs)).collect()
}

fn mount_needs(mount: &ExecMount) -> Vec<&'static str> {
    let mut needs = match &mount.kind {
        MountKind::Bind if mount.input.is_some() => vec![cap::EXEC_MOUNT_BIND],
        MountKind::Bind => vec![],
        MountKind::Tmpfs { size: None } => vec![cap::EXEC_MOUNT_TMPFS],
        MountKind::Tmpfs { size: Some(_) } => vec![cap::EXEC_MOUNT_TMPFS, cap::EXEC_MOUNT_TMPFS_SIZE],
        MountKind::Cache { .. } => vec![cap::EXEC_MOUNT_CACHE, cap::EXEC_MOUNT_CACHE_SHARING],
        MountKind::Secret(_) => vec![cap::EXEC_MOUNT_SECRET],
        MountKind::Ssh(_) => vec![cap::EXEC_MOUNT_SSH],
    };
    if mount.selector != "/" {
        needs.push(cap::EXEC_MOUNT_SELECTOR);
    }
    if mount.kind == MountKind::Bind && mount.input.is_some() && !mount.readonly && mount.output.is_none() {
        needs.push(cap::EXEC_MOUNT_BIND_NO_OUTPUT);
    }
    needs
}
