//! What a container may do: `--cap-add` and its like.

use super::unsupported;
use crate::args::RunArgs;
use anyhow::{Context, bail};
use forge_engine::{Rights, SyscallFilter};
use std::io::Read;
use std::path::Path;

/// docker's own policy has 15 KiB.
const PROFILE_BYTES: u64 = 4 << 20;

/// Reads the flags.
///
/// # Errors
/// An option of `--security-opt` that forge does not have.
pub fn rights(args: &RunArgs, folder: &Path) -> anyhow::Result<Rights> {
    let mut rights = Rights {
        privileged: args.privileged,
        added: args.cap_add.clone(),
        dropped: args.cap_drop.clone(),
        groups: args.groups.clone(),
        ..Rights::default()
    };
    for option in &args.security {
        // docker took a colon once.
        let (key, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (key, value) {
            ("no-new-privileges", "" | "true") => rights.no_new_privileges = true,
            ("no-new-privileges", "false") => rights.no_new_privileges = false,
            ("seccomp", "unconfined") => rights.filter = SyscallFilter::Unconfined,
            ("seccomp", "builtin") => rights.filter = SyscallFilter::Builtin,
            ("seccomp", file) if !file.is_empty() => {
                rights.filter = SyscallFilter::Profile(profile(&folder.join(file))?)
            }
            ("systempaths", "unconfined") => rights.bare_system_paths = true,
            // Neither profiles nor labels are set for any container.
            ("apparmor", "unconfined") | ("label", "disable") => {}
            ("apparmor", _) if !has_module("apparmor") => {
                bail!("--security-opt {option}: AppArmor is not enabled on this machine");
            }
            ("label", _) if !has_module("selinux") => {
                bail!("--security-opt {option}: SELinux is not enabled on this machine");
            }
            ("seccomp" | "apparmor" | "label" | "systempaths" | "writable-cgroups", _) => {
                return Err(unsupported(&format!("--security-opt {option}")));
            }
            _ => bail!("invalid --security-opt: {option:?}"),
        }
    }
    Ok(rights)
}

fn profile(file: &Path) -> anyhow::Result<Vec<u8>> {
    let failed = || format!("opening seccomp profile ({}) failed", file.display());
    let mut text = Vec::new();
    let opened = std::fs::File::open(file).with_context(failed)?;
    opened.take(PROFILE_BYTES + 1).read_to_end(&mut text).with_context(failed)?;
    match text.len() as u64 > PROFILE_BYTES {
        true => bail!("{}: it has more than {PROFILE_BYTES} bytes", failed()),
        false => Ok(text),
    }
}

/// Whether the kernel has a security module at work.
fn has_module(name: &str) -> bool {
    let listed = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    listed.trim().split(',').any(|module| module == name)
}
