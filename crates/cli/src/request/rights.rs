//! What a container may do: `--cap-add` and its like.

use super::unsupported;
use crate::args::RunArgs;
use anyhow::{Context, bail};
use forge_engine::{AppArmor, Rights, SyscallFilter};
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
            ("apparmor", "unconfined") => rights.apparmor = Some(AppArmor::Unconfined),
            // What the kernel cannot do, or has not loaded, it says itself.
            ("apparmor", profile) if !profile.is_empty() => {
                rights.apparmor = Some(AppArmor::Profile(profile.to_owned()));
            }
            // Labels are set for no container.
            ("label", "disable") => {}
            ("label", _) if !has_module("selinux") => {
                bail!("--security-opt {option}: SELinux is not enabled on this machine");
            }
            ("seccomp" | "label" | "systempaths" | "writable-cgroups", _) => {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use std::ffi::OsString;

    fn read(options: &[&str]) -> anyhow::Result<Rights> {
        let options = options.iter().flat_map(|option| ["--security-opt", option]);
        let words = ["forge", "run"].into_iter().chain(options).chain(["busybox"]).map(OsString::from);
        let Command::Run(args) = Cli::read(words).unwrap().command else { panic!() };
        rights(&args, Path::new("/nowhere"))
    }

    #[test]
    fn security_options_are_dockers() {
        let all =
            ["no-new-privileges", "seccomp=unconfined", "systempaths=unconfined", "label:disable", "apparmor=mine"];
        let expect = Rights {
            no_new_privileges: true,
            filter: SyscallFilter::Unconfined,
            bare_system_paths: true,
            apparmor: Some(AppArmor::Profile("mine".into())),
            ..Rights::default()
        };
        assert_eq!(read(&all).unwrap(), expect);
        let last = read(&["apparmor=mine", "apparmor:unconfined"]).unwrap();
        assert_eq!(last.apparmor, Some(AppArmor::Unconfined));
        assert_eq!(read(&[]).unwrap().apparmor, None);
    }

    #[test]
    fn what_is_no_option_or_not_there_is_refused_by_name() {
        let error = |option: &str| format!("{:#}", read(&[option]).unwrap_err());
        assert_eq!(error("apparmor="), "invalid --security-opt: \"apparmor=\"");
        assert_eq!(error("nonsense"), "invalid --security-opt: \"nonsense\"");
        assert!(error("label=type:x").contains("--security-opt label=type:x"));
        assert!(error("seccomp=policy.json").contains("opening seccomp profile (/nowhere/policy.json) failed"));
    }
}
