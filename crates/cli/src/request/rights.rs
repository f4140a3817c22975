//! What a container may do: `--cap-add` and its like.

use super::unsupported;
use crate::args::RunArgs;
use anyhow::bail;
use forge_engine::Rights;

/// Reads the flags.
///
/// # Errors
/// An option of `--security-opt` that forge does not have.
pub fn rights(args: &RunArgs) -> anyhow::Result<Rights> {
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
            ("seccomp", "unconfined") => rights.unfiltered = true,
            ("seccomp", "builtin") => rights.unfiltered = false,
            ("systempaths", "unconfined") => rights.bare_system_paths = true,
            // Neither profiles nor labels are set for any container.
            ("apparmor", "unconfined") | ("label", "disable") => {}
            ("seccomp" | "apparmor" | "label" | "systempaths" | "writable-cgroups", _) => {
                return Err(unsupported(&format!("--security-opt {option}")));
            }
            _ => bail!("invalid --security-opt: {option:?}"),
        }
    }
    Ok(rights)
}
