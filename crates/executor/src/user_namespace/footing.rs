//! On what forge stands: root of the machine, or root of a user namespace that has to be entered first. Root of a container
//! mostly is the latter: the first one's rights are not given to it.

use super::{Map, NamespaceIds, enter_user_namespace, refusal, unshare_mapped};
use crate::init::sys;
use crate::{Capabilities, ExecutorError};
use rustix::io::Errno;
use rustix::process::{WaitOptions, waitpid};

/// As what this process can make containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Footing {
    /// Root that may mount.
    Root,
    /// Root of a user namespace, which this process is in by now.
    Namespace {
        /// What is mapped into it.
        ids: NamespaceIds,
        /// What root lacks, where it was root that needed a namespace.
        lacking: Option<String>,
    },
    /// Root that may only change its root directory: containers are processes there, and nothing more.
    ChangedRoot {
        /// What root lacks.
        lacking: String,
        /// Why there is no user namespace.
        refused: String,
    },
}

/// Takes the best footing that there is, which may move this process into namespaces of its own.
///
/// To be called before any thread is started.
///
/// # Errors
/// As [`enter_user_namespace`]; for root that lacks rights, [`ExecutorError::NamespaceRefused`] names both what it lacks and
/// why there is no namespace in its place.
pub fn find_footing() -> Result<Footing, ExecutorError> {
    if !rustix::process::geteuid().is_root() {
        return enter_user_namespace().map(|ids| Footing::Namespace { ids, lacking: None });
    }
    let Some(lacking) = lacking() else { return Ok(Footing::Root) };
    // Entering cannot be undone: a child tries first.
    let tried = rehearse(|| enter_as_root().map_err(|error| errno_of(&error)).and_then(|()| sys::can_change_root()));
    match tried {
        Ok(()) => {
            enter_as_root()?;
            Ok(Footing::Namespace { ids: NamespaceIds::Same, lacking: Some(lacking) })
        }
        Err(errno) => {
            let reason = refusal::reason(errno);
            let held = sys::permitted().unwrap_or(Capabilities::NONE);
            if held.contains(Capabilities::SYS_CHROOT.union(Capabilities::MKNOD)) {
                // What a security module forbids all the same is not tried again.
                sys::set_capabilities(held.difference(Capabilities::SYS_ADMIN).bits())
                    .map_err(|errno| ExecutorError::system("give up CAP_SYS_ADMIN", errno))?;
                return Ok(Footing::ChangedRoot { lacking, refused: reason });
            }
            Err(ExecutorError::NamespaceRefused {
                reason: format!("{reason}; as root it lacks {lacking}, and CAP_SYS_CHROOT and CAP_MKNOD for less"),
            })
        }
    }
}

/// Whether this process certainly makes containers as it is. Costs next to nothing; [`find_footing`] may find the same of others.
pub fn stands_as_root() -> bool {
    let may_mount = || sys::permitted().is_ok_and(|held| held.contains(Capabilities::SYS_ADMIN));
    rustix::process::geteuid().is_root() && may_mount() && apparmor_profile().is_none()
}

/// What keeps root from making containers directly.
fn lacking() -> Option<String> {
    let held = sys::permitted().unwrap_or(Capabilities::NONE);
    if !held.contains(Capabilities::SYS_ADMIN) {
        return Some("CAP_SYS_ADMIN".to_owned());
    }
    // A profile may forbid what the capability allows. Trying costs a process, so only the confined do.
    let profile = apparmor_profile()?;
    let tried = rehearse(|| sys::new_mount_namespace().and_then(|()| sys::can_change_root()));
    tried.err().map(|_| format!("the right to mount (AppArmor's profile {profile})"))
}

/// The profile that confines this process.
pub(super) fn apparmor_profile() -> Option<String> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let text = read("/proc/self/attr/apparmor/current").or_else(|| read("/proc/self/attr/current"))?;
    let (name, mode) = text.trim_end_matches(['\0', '\n']).rsplit_once(" (")?;
    (mode == "enforce)").then(|| name.to_owned())
}

/// Enters a namespace with all ids of this one, which takes CAP_SETUID, CAP_SETGID and CAP_SETFCAP in it.
fn enter_as_root() -> Result<(), ExecutorError> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let maps = ["uid_map", "gid_map"].map(|file| Map::Own { file, lines: same(&read(file)) });
    let (entered, told) = unshare_mapped(&maps)?;
    // The number is what the caller explains.
    entered.map_err(|errno| ExecutorError::system("enter a user namespace", errno))?;
    if told != super::DONE {
        return Err(ExecutorError::system(format!("map ids ({told})"), Errno::PERM));
    }
    sys::can_attach().map_err(|errno| ExecutorError::system("mount in a user namespace", errno))
}

/// Lines that map every id of this namespace to itself. The last one stays out: a map of all ids would look like that of the
/// first namespace.
fn same(map: &str) -> String {
    let line = |line: &str| {
        let mut fields = line.split_whitespace().map(|field| field.parse::<u32>().ok());
        let (first, _, count) = (fields.next()??, fields.next()??, fields.next()??);
        let count = count.min(u32::MAX - 1 - first);
        (count > 0).then(|| format!("{first} {first} {count}\n"))
    };
    map.lines().filter_map(line).collect()
}

fn errno_of(error: &ExecutorError) -> Errno {
    match error {
        ExecutorError::System { source, .. } => Errno::from_io_error(source).unwrap_or(Errno::PERM),
        _ => Errno::PERM,
    }
}

/// Does something in a child that ends at once.
pub(super) fn rehearse(work: impl FnOnce() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    let Some(child) = sys::fork_alone()? else {
        let code = work().map_or_else(Errno::raw_os_error, |()| 0);
        sys::exit_now(code);
    };
    let ended = waitpid(Some(child), WaitOptions::empty())?;
    match ended.and_then(|(_, status)| status.exit_status()) {
        Some(0) => Ok(()),
        Some(code) => Err(Errno::from_raw_os_error(code)),
        None => Err(Errno::PERM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_is_mapped_to_itself() {
        assert_eq!(same("         0          0 4294967295\n"), "0 0 4294967294\n");
        assert_eq!(same("0 1000 1\n1 100000 65536\n"), "0 0 1\n1 1 65536\n");
        assert_eq!(same(""), "");
    }
}
