use super::optional_index;
use crate::error::Refusal;
use crate::pb;
use forge_llb::{
    CacheSharing, CdiDevice, ExecMount, ExecOp, ExtraHost, MountKind, NetworkMode, SecretEnv, SecretMount,
    SecurityMode, Ulimit,
};
use std::collections::HashSet;

pub fn decode(exec: pb::ExecOp, inputs: usize) -> Result<ExecOp, Refusal> {
    let (network, security) = (network(exec.network)?, security(exec.security)?);
    let Some(meta) = exec.meta else { return Refusal::malformed("an exec without meta") };
    if meta.args.is_empty() {
        return Refusal::malformed("an exec without arguments");
    }
    let cwd = absolute("/", &meta.cwd);
    let outputs = exec.mounts.len();
    let mounts = exec.mounts.into_iter().map(|mount| decode_mount(mount, &cwd, inputs, outputs));
    let mounts = mounts.collect::<Result<Vec<_>, _>>()?;
    check_mounts(&mounts)?;
    let hosts = meta.extra_hosts.into_iter().map(|extra| ExtraHost { host: extra.host, address: extra.ip });
    let ulimits = meta.ulimit.into_iter().map(|limit| Ulimit { name: limit.name, soft: limit.soft, hard: limit.hard });
    let secrets = exec.secretenv.into_iter();
    let devices = exec.cdi_devices.into_iter();
    Ok(ExecOp {
        args: meta.args,
        env: meta.env,
        cwd,
        user: meta.user,
        mounts,
        network,
        security,
        hostname: meta.hostname,
        extra_hosts: hosts.collect(),
        proxy_env: meta.proxy_env.map(decode_proxies).unwrap_or_default(),
        secret_env: secrets.map(|s| SecretEnv { id: s.id, name: s.name, optional: s.optional }).collect(),
        ulimits: ulimits.collect(),
        cgroup_parent: meta.cgroup_parent,
        devices: devices.map(|device| CdiDevice { name: device.name, optional: device.optional }).collect(),
        valid_exit_codes: meta.valid_exit_codes,
        remove_mount_stubs: meta.remove_mount_stubs_recursive,
    })
}

fn network(value: i32) -> Result<NetworkMode, Refusal> {
    match pb::NetMode::try_from(value) {
        Ok(pb::NetMode::Unset) => Ok(NetworkMode::Default),
        Ok(pb::NetMode::Host) => Ok(NetworkMode::Host),
        Ok(pb::NetMode::None) => Ok(NetworkMode::None),
        Err(_) => Refusal::unsupported(format!("network mode {value}")),
    }
}

fn security(value: i32) -> Result<SecurityMode, Refusal> {
    match pb::SecurityMode::try_from(value) {
        Ok(pb::SecurityMode::Sandbox) => Ok(SecurityMode::Sandbox),
        Ok(pb::SecurityMode::Insecure) => Ok(SecurityMode::Insecure),
        Err(_) => Refusal::malformed(format!("invalid security mode {value}")),
    }
}

/// Each setting in both spellings, as BuildKit hands it to processes.
fn decode_proxies(proxies: pb::ProxyEnv) -> Vec<String> {
    let settings = [
        ("HTTP_PROXY", proxies.http_proxy),
        ("HTTPS_PROXY", proxies.https_proxy),
        ("FTP_PROXY", proxies.ftp_proxy),
        ("NO_PROXY", proxies.no_proxy),
        ("ALL_PROXY", proxies.all_proxy),
    ];
    let set = settings.into_iter().filter(|(_, value)| !value.is_empty());
    set.flat_map(|(name, value)| [format!("{name}={value}"), format!("{}={value}", name.to_ascii_lowercase())])
        .collect()
}

fn decode_mount(mount: pb::Mount, cwd: &str, inputs: usize, outputs: usize) -> Result<ExecMount, Refusal> {
    if !mount.result_id.is_empty() {
        return Refusal::unsupported("a mount of a result by its id");
    }
    let kind = decode_kind(&mount)?;
    let output = match (&kind, usize::try_from(mount.output)) {
        (MountKind::Bind, Ok(output)) if output < outputs => Some(output),
        (MountKind::Bind, Ok(output)) => return Refusal::malformed(format!("output {output} is out of order")),
        // The state of other mounts is nobody's output; clients leave 0 there.
        _ => None,
    };
    Ok(ExecMount {
        target: absolute(cwd, &mount.dest),
        input: optional_index(mount.input, inputs)?,
        selector: if mount.selector.is_empty() { "/".to_owned() } else { mount.selector },
        output,
        readonly: mount.readonly,
        kind,
    })
}

fn decode_kind(mount: &pb::Mount) -> Result<MountKind, Refusal> {
    let lacks = |what: &str| Refusal::malformed(format!("the mount {} has no {what} options", mount.dest));
    match pb::MountType::try_from(mount.mount_type) {
        Ok(pb::MountType::Bind) => Ok(MountKind::Bind),
        Ok(pb::MountType::Tmpfs) => {
            let size = mount.tmpfs_opt.and_then(|options| u64::try_from(options.size).ok()).filter(|size| *size > 0);
            Ok(MountKind::Tmpfs { size })
        }
        Ok(pb::MountType::Cache) => {
            let Some(options) = &mount.cache_opt else { return lacks("cache") };
            let id = if options.id.is_empty() { &mount.dest } else { &options.id };
            Ok(MountKind::Cache { id: id.clone(), sharing: sharing(options.sharing)? })
        }
        Ok(pb::MountType::Secret) => {
            let Some(pb::SecretOpt { id, uid, gid, mode, optional }) = mount.secret_opt.clone() else {
                return lacks("secret");
            };
            Ok(MountKind::Secret(SecretMount { id, uid, gid, mode, optional }))
        }
        Ok(pb::MountType::Ssh) => {
            let Some(pb::SshOpt { id, uid, gid, mode, optional }) = mount.ssh_opt.clone() else {
                return lacks("ssh");
            };
            Ok(MountKind::Ssh(SecretMount { id, uid, gid, mode, optional }))
        }
        Err(_) => Refusal::unsupported(format!("a mount of type {}", mount.mount_type)),
    }
}

fn sharing(value: i32) -> Result<CacheSharing, Refusal> {
    match pb::CacheSharingOpt::try_from(value) {
        Ok(pb::CacheSharingOpt::Shared) => Ok(CacheSharing::Shared),
        Ok(pb::CacheSharingOpt::Private) => Ok(CacheSharing::Private),
        Ok(pb::CacheSharingOpt::Locked) => Ok(CacheSharing::Locked),
        Err(_) => Refusal::unsupported(format!("cache sharing mode {value}")),
    }
}

fn check_mounts(mounts: &[ExecMount]) -> Result<(), Refusal> {
    match mounts.iter().filter(|mount| mount.target == "/").count() {
        1 => {}
        0 => return Refusal::malformed("an exec without a root file system"),
        _ => return Refusal::malformed("an exec with several root file systems"),
    }
    let mut outputs = HashSet::new();
    match mounts.iter().filter_map(|mount| mount.output).all(|output| outputs.insert(output)) {
        true => Ok(()),
        false => Refusal::malformed("two mounts have the same output"),
    }
}

/// Relative targets are relative to the working directory.
fn absolute(base: &str, path: &str) -> String {
    match path {
        "" => base.to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("{}/{path}", base.trim_end_matches('/')),
    }
}
