//! Who the process is and what it may do, in the order the kernel's rules ask for.

use super::rights::Rights;
use super::sys;
use crate::message::{Doing, Failure};
use crate::{Capabilities, ProcessSpec, RlimitResource, SandboxSpec, Seccomp, seccomp};
use nix::sys::resource::Resource;
use rustix::fs::{Gid, Mode, Uid};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Highest number a 64-bit capability set can hold.
const CAPABILITY_LIMIT: u32 = 64;

/// What leads out of a changed root: changing it again, and nodes of disks.
const KEYS_OF_A_CHANGED_ROOT: Capabilities = Capabilities::SYS_CHROOT.union(Capabilities::MKNOD);

/// Sets what must be set while still privileged: limits and mask.
pub(super) fn limit(process: &ProcessSpec) -> Result<(), Failure> {
    for limit in &process.rlimits {
        sys::set_rlimit(kernel_resource(limit.resource), limit.soft, limit.hard)
            .doing(|| format!("set the {:?} limit", limit.resource))?;
    }
    rustix::process::umask(Mode::from_raw_mode(process.umask & 0o777));
    Ok(())
}

/// Becomes the process's user with its capabilities, under the filter.
///
/// The filter is installed while CAP_SYS_ADMIN is still effective, which spares no_new_privs; everything after it
/// (setgroups, setresuid, capset, execve) is in docker's allow list.
pub(super) fn become_user(spec: &SandboxSpec, rights: &Rights) -> Result<(), Failure> {
    let process = &spec.process;
    let held = sys::permitted().doing(|| "read capabilities".into())?;
    let granted = process.capabilities.intersection(held);
    let granted = if rights.mounts { granted } else { granted.difference(KEYS_OF_A_CHANGED_ROOT) };
    // Without rights over the whole set, or for a filter without CAP_SYS_ADMIN, nothing must be gained any more.
    let bounded = match drop_bounding_set(granted.bits()) {
        Err(failure) if failure.is_refusal() && !rights.mounts => false,
        other => other.map(|()| true)?,
    };
    let filters = rights.mounts || !rights.filtered;
    if process.no_new_privileges || !bounded || (filters && !rights.mounts) {
        set_no_new_privs(true).doing(|| "set no_new_privs".into())?;
    }
    if filters && let Some(filter) = filter(&spec.seccomp, granted)? {
        sys::install_filter(&filter).doing(|| "install the system call filter".into())?;
    }
    set_ids(process, rights)?;
    let effective = if process.user.uid == 0 { granted } else { Capabilities::NONE };
    sys::set_capabilities(effective.bits()).doing(|| "set capabilities".into())?;
    // Changing credentials has cleared it.
    set_parent_process_death_signal(Some(Signal::KILL)).doing(|| "set the parent-death signal".into())
}

fn filter(policy: &Seccomp, granted: Capabilities) -> Result<Option<Vec<sys::BpfInstruction>>, Failure> {
    let unknown = || Failure::Unsupported { what: "a system call filter on this architecture".into() };
    match policy {
        Seccomp::Unconfined => Ok(None),
        Seccomp::Default => seccomp::default_filter(granted).ok_or_else(unknown).map(Some),
        Seccomp::Profile(profile) => seccomp::profile_filter(profile).ok_or_else(unknown).map(Some),
    }
}

fn drop_bounding_set(keep: u64) -> Result<(), Failure> {
    for number in 0..CAPABILITY_LIMIT {
        if keep >> number & 1 == 1 {
            continue;
        }
        if !sys::drop_bounding(number).doing(|| "drop capabilities".into())? {
            break;
        }
    }
    Ok(())
}

fn set_ids(process: &ProcessSpec, rights: &Rights) -> Result<(), Failure> {
    let user = &process.user;
    let groups: Vec<_> = user.additional_gids.iter().map(|&gid| Gid::from_raw(gid)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    // Where they cannot be set they are those of whoever started forge, who may be kept out of something by them.
    let set_groups = if rights.sets_groups() { set_thread_groups(&groups) } else { Ok(()) };
    set_groups
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .doing(|| format!("become user {}:{}", user.uid, user.gid))
}

/// How far this process may raise a limit, and now has.
pub(super) fn hard_limit(limit: &crate::Rlimit) -> u64 {
    sys::raised_limit(kernel_resource(limit.resource), limit.hard)
}

fn kernel_resource(resource: RlimitResource) -> Resource {
    match resource {
        RlimitResource::As => Resource::RLIMIT_AS,
        RlimitResource::Core => Resource::RLIMIT_CORE,
        RlimitResource::Cpu => Resource::RLIMIT_CPU,
        RlimitResource::Data => Resource::RLIMIT_DATA,
        RlimitResource::Fsize => Resource::RLIMIT_FSIZE,
        RlimitResource::Locks => Resource::RLIMIT_LOCKS,
        RlimitResource::Memlock => Resource::RLIMIT_MEMLOCK,
        RlimitResource::Msgqueue => Resource::RLIMIT_MSGQUEUE,
        RlimitResource::Nice => Resource::RLIMIT_NICE,
        RlimitResource::Nofile => Resource::RLIMIT_NOFILE,
        RlimitResource::Nproc => Resource::RLIMIT_NPROC,
        RlimitResource::Rss => Resource::RLIMIT_RSS,
        RlimitResource::Rtprio => Resource::RLIMIT_RTPRIO,
        RlimitResource::Rttime => Resource::RLIMIT_RTTIME,
        RlimitResource::Sigpending => Resource::RLIMIT_SIGPENDING,
        RlimitResource::Stack => Resource::RLIMIT_STACK,
    }
}
