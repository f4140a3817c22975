//! Why an ordinary user gets no user namespace: the kernel gives a number, the settings tell.

use super::footing;
use crate::ExecutorError;
use crate::init::sys;
use rustix::io::Errno;
use std::path::Path;

/// Settings that forbid it, with the value that does.
const SETTINGS: [(&str, &str); 3] = [
    ("user.max_user_namespaces", "0"),
    // Debian's and Arch's kernels.
    ("kernel.unprivileged_userns_clone", "0"),
    // Ubuntu since 23.10: there is a namespace, without rights.
    ("kernel.apparmor_restrict_unprivileged_userns", "1"),
];

/// Puts the kernel's answer into words.
pub(super) fn explained(errno: Errno) -> ExecutorError {
    ExecutorError::NamespaceRefused { reason: reason(errno) }
}

/// What stands against a namespace.
pub(super) fn reason(errno: Errno) -> String {
    match (forbidding(Path::new("/proc/sys")), errno) {
        (Some(setting), _) => format!("{setting} forbids it"),
        (None, Errno::ACCESS) => match footing::apparmor_profile() {
            Some(profile) => format!("AppArmor's profile {profile} forbids what containers take in one"),
            None => "a security module forbids what containers take in one".into(),
        },
        (None, Errno::NOSPC) => "as many as user.max_user_namespaces allows are in use, or too deeply nested".into(),
        (None, Errno::PERM) => {
            "a system call filter, a security module or a changed root forbids it, as in most containers".into()
        }
        (None, Errno::INVAL | Errno::NOSYS) => "this kernel was built without them".into(),
        (None, errno) => std::io::Error::from(errno).to_string(),
    }
}

/// The first setting that says no, as `name=value`.
fn forbidding(folder: &Path) -> Option<String> {
    SETTINGS.iter().find_map(|(name, forbids)| {
        let value = std::fs::read_to_string(folder.join(name.replace('.', "/"))).ok()?;
        (value.trim() == *forbids).then(|| format!("the setting {name}={forbids}"))
    })
}

/// Makes sure that root of the namespace may mount, which is what it is for.
pub(super) fn require_rights() -> Result<(), ExecutorError> {
    let confined = footing::apparmor_profile().is_some();
    // Trying costs a process.
    let try_all = || footing::rehearse(|| sys::new_mount_namespace().and_then(|()| sys::can_change_root()));
    let more = || if confined { try_all() } else { Ok(()) };
    match sys::can_mount().and_then(|()| more()) {
        Ok(()) => Ok(()),
        Err(errno @ (Errno::PERM | Errno::ACCESS)) => Err(explained(errno)),
        Err(errno) => Err(ExecutorError::system("mount in a user namespace", errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_that_forbids_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::create_dir_all(folder.path().join("kernel")).expect("folder");
        assert_eq!(forbidding(folder.path()), None);
        std::fs::write(folder.path().join("kernel/unprivileged_userns_clone"), "1\n").expect("setting");
        assert_eq!(forbidding(folder.path()), None);
        std::fs::write(folder.path().join("kernel/apparmor_restrict_unprivileged_userns"), "1\n").expect("setting");
        let expect = "the setting kernel.apparmor_restrict_unprivileged_userns=1";
        assert_eq!(forbidding(folder.path()).as_deref(), Some(expect));
    }
}
