//! What a container may see and do, from the user's wishes and the image's.

use crate::limits::bound;
use crate::{EngineError, Ipc, Isolation, Limits, Network, Rights, RunRequest, SyscallFilter, TmpfsMount, devices};
use forge_executor::{
    Capabilities, MountFlags, MountSource, MountSpec, ProcessSpec, ProcessUser, RootFs, SandboxSpec, Seccomp,
    SeccompProfile, SharedNamespaces, Sysctl,
};
use forge_image::{ErrorKind, ImageConfig};
use forge_store::ActiveLayer;
use forge_worker::{ProcessNetwork, add_groups, environment, identity, network_files, rlimit, set_rlimit};
use std::path::PathBuf;

pub(crate) fn wanted_network(network: Network) -> forge_llb::NetworkMode {
    match network {
        Network::Default => forge_llb::NetworkMode::Default,
        Network::Host => forge_llb::NetworkMode::Host,
        Network::None => forge_llb::NetworkMode::None,
    }
}

pub(crate) fn sandbox(
    request: &RunRequest,
    config: &ImageConfig,
    files: &ActiveLayer,
    network: ProcessNetwork,
) -> Result<SandboxSpec, EngineError> {
    let user = request.user.as_deref().unwrap_or(&config.config.user);
    let mut identity = identity(files.lower(), user).map_err(|error| {
        EngineError::caused(ErrorKind::UserInput, error).with_exit_code(crate::container::EXIT_NOT_EXECUTABLE)
    })?;
    let added = add_groups(&mut identity, files.lower(), &request.rights.groups);
    added.map_err(|error| EngineError::caused(ErrorKind::UserInput, error))?;
    let hostname = request.hostname.clone().unwrap_or_else(|| match request.isolation.host_uts {
        true => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        false => forge_store::LayerId::random().as_str()[..12].to_owned(),
    });
    let mut process = ProcessSpec::new(arguments(request, config)?);
    let mut env = merged_env(&config.config.env, &request.env);
    if request.terminal && !env.iter().any(|pair| pair.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    process.env = environment(&[&env], &hostname, &identity.home).into_iter().map(Into::into).collect();
    let workdir = request.workdir.as_deref().unwrap_or(&config.config.working_dir);
    process.cwd = PathBuf::from(if workdir.is_empty() { "/" } else { workdir });
    if !process.cwd.is_absolute() {
        let message = format!("the working directory {workdir:?} is invalid, it needs to be an absolute path");
        return Err(EngineError::new(ErrorKind::UserInput, message));
    }
    process.user = ProcessUser { uid: identity.uid, gid: identity.gid, additional_gids: identity.groups };
    process.terminal = request.terminal;
    process.reaper = request.init;
    process.oom_score = request.isolation.oom_score;
    let root = RootFs::Overlay {
        lower: files.lower_dirs().to_vec(),
        upper: files.upper().to_owned(),
        work: files.work().to_owned(),
        volatile: true,
    };
    let mut spec = SandboxSpec::for_root(root, process);
    spec.readonly_root = request.readonly_root;
    limit(&mut spec, &request.limits)?;
    spec.network = network.mode();
    spec.mounts.extend(network_files(network, &hostname, &request.extra_hosts, &request.resolver));
    spec.mounts.extend(binds(request));
    spec.mounts.extend(request.tmpfs.iter().map(tmpfs));
    spec.hostname = hostname;
    isolate(&mut spec, &request.isolation)?;
    let mut spec = grant(spec, &request.rights)?;
    if request.rights.privileged {
        devices::show_all(&mut spec);
    }
    devices::grant(&request.devices, &request.device_rules, &mut spec)?;
    Ok(spec)
}

fn isolate(spec: &mut SandboxSpec, isolation: &Isolation) -> Result<(), EngineError> {
    let Isolation { ipc, host_uts, host_cgroup, sysctls, domain, .. } = isolation;
    spec.shared = SharedNamespaces { ipc: *ipc == Ipc::Host, uts: *host_uts, cgroup: *host_cgroup };
    if *ipc == Ipc::WithoutSharedMemory {
        spec.shm_size = None;
    }
    spec.domain = domain.clone().unwrap_or_default();
    spec.sysctls = sysctls.iter().map(|(name, value)| Sysctl::new(name, value)).collect::<Result<_, _>>()?;
    Ok(())
}

fn limit(spec: &mut SandboxSpec, limits: &Limits) -> Result<(), EngineError> {
    bound(spec, &limits.resources);
    for ulimit in &limits.ulimits {
        set_rlimit(&mut spec.process.rlimits, rlimit(ulimit)?);
    }
    spec.shm_size = limits.shm_size.or(spec.shm_size);
    spec.group.parent = Some(&limits.cgroup_parent).filter(|parent| !parent.is_empty()).map(PathBuf::from);
    Ok(())
}

/// Bind mounts of the host; a missing source is an error of the executor.
fn binds(request: &RunRequest) -> impl Iterator<Item = MountSpec> {
    let mount =
        |bind: &crate::Bind| MountSpec::new(&bind.target, MountSource::Bind(bind.source.clone()), bind.readonly);
    request.binds.iter().map(mount)
}

fn tmpfs(mount: &TmpfsMount) -> MountSpec {
    let source = MountSource::Tmpfs { size: mount.size, mode: mount.mode.unwrap_or(0o1777) };
    let flags = MountFlags { nosuid: !mount.suid, nodev: !mount.dev, noexec: !mount.exec };
    MountSpec { flags, ..MountSpec::new(&mount.target, source, mount.readonly) }
}

/// Gives and takes rights as docker does.
fn grant(spec: SandboxSpec, rights: &Rights) -> Result<SandboxSpec, EngineError> {
    let mut spec = if rights.privileged { spec.privileged() } else { spec };
    if !rights.privileged {
        spec.process.capabilities = capabilities(&rights.added, &rights.dropped)?;
    }
    spec.process.no_new_privileges = rights.no_new_privileges;
    spec.process.apparmor = rights.apparmor.clone().unwrap_or(spec.process.apparmor);
    spec.seccomp = match &rights.filter {
        SyscallFilter::Default => spec.seccomp,
        SyscallFilter::Builtin => Seccomp::Default,
        SyscallFilter::Unconfined => Seccomp::Unconfined,
        SyscallFilter::Profile(text) => {
            let profile = SeccompProfile::from_docker(text, spec.process.capabilities);
            Seccomp::Profile(Box::new(profile?))
        }
    };
    if rights.bare_system_paths {
        spec.masked_paths.clear();
        spec.readonly_paths.clear();
    }
    Ok(spec)
}

/// docker's default set with changes. `ALL` is what the others are exceptions of.
fn capabilities(added: &[String], dropped: &[String]) -> Result<Capabilities, EngineError> {
    let read = |name: &String| {
        Capabilities::from_name(name)
            .ok_or_else(|| EngineError::new(ErrorKind::UserInput, format!("invalid capability: {name:?}")))
    };
    let set = |names: &[String]| {
        let mut all = names.iter().filter(|name| !is_all(name)).map(read);
        all.try_fold(Capabilities::NONE, |set, one| Ok::<_, EngineError>(set.union(one?)))
    };
    let (added_set, dropped_set) = (set(added)?, set(dropped)?);
    let every = |names: &[String]| names.iter().any(|name| is_all(name));
    let base = match (every(added), every(dropped)) {
        (true, _) => Capabilities::ALL,
        (false, true) => return Ok(added_set),
        (false, false) => Capabilities::DEFAULT,
    };
    Ok(base.difference(dropped_set).union(added_set))
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("all") || name.eq_ignore_ascii_case("cap_all")
}

/// What is run: the entry point and the command, each from the command line before the image. A new entry point
/// does away with the image's command.
fn arguments(request: &RunRequest, config: &ImageConfig) -> Result<Vec<String>, EngineError> {
    let (entrypoint, default_command) = match request.entrypoint.as_deref() {
        Some("") => (Vec::new(), Vec::new()),
        Some(program) => (vec![program.to_owned()], Vec::new()),
        None => (config.config.entrypoint.clone().unwrap_or_default(), config.config.cmd.clone().unwrap_or_default()),
    };
    let command = if request.command.is_empty() { default_command } else { request.command.clone() };
    let arguments = [entrypoint, command].concat();
    match arguments.is_empty() {
        true => Err(EngineError::new(ErrorKind::UserInput, "no command specified")
            .with_hint("the image sets none: name one after the image")),
        false => Ok(arguments),
    }
}

/// The image's environment with that of the command line; of equal names the last one stays, in the first's place.
fn merged_env(image: &[String], given: &[String]) -> Vec<String> {
    let name = |pair: &String| pair.split('=').next().unwrap_or_default().to_owned();
    let mut merged: Vec<String> = image.to_vec();
    for pair in given {
        match merged.iter_mut().find(|other| name(other) == name(pair)) {
            Some(place) => place.clone_from(pair),
            None => merged.push(pair.clone()),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_docker_s_with_changes() {
        let of = |added: &[&str], dropped: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            capabilities(&owned(added), &owned(dropped)).map(Capabilities::bits).map_err(|error| error.to_string())
        };
        assert_eq!(of(&[], &[]), Ok(0xa804_25fb));
        assert_eq!(of(&["NET_ADMIN"], &["cap_mknod"]), Ok((0xa804_25fb | 1 << 12) & !(1 << 27)));
        assert_eq!(of(&["chown"], &["ALL"]), Ok(1));
        assert_eq!(of(&["all"], &["CHOWN"]), Ok(Capabilities::ALL.bits() & !1));
        assert_eq!(of(&["NONSENSE"], &[]), Err("invalid capability: \"NONSENSE\"".to_owned()));
    }

    #[test]
    fn the_command_line_wins_over_the_image() {
        let image = ["A=1".to_owned(), "B=2".to_owned()];
        let merged = merged_env(&image, &["B=3".to_owned(), "C=4".to_owned()]);
        assert_eq!(merged, ["A=1", "B=3", "C=4"]);
    }
}
