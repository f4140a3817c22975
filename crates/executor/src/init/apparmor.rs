//! AppArmor: what the kernel forbids a container's processes whatever their capabilities, on machines that have it.
//!
//! A profile is entered with the execution of the program (apparmor(7), `aa_change_onexec`). It has to be in the kernel by
//! then: administrators load theirs, and forge its own, by the one program that can compile them.

use super::rights::Rights;
use crate::message::Failure;
use crate::{AppArmor, ProcessSpec};
use rustix::io::Errno;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// The profile of containers that ask for no other. It stays in the kernel until the machine stops, so the number has to change
/// with the text.
const NAME: &str = "forge-default-1";
const TEXT: &str = include_str!("apparmor.profile");

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// A folder for each profile: its name, a dot and a number.
const LOADED: &str = "/sys/kernel/security/apparmor/policy/profiles";
/// A line for each profile: its name, a blank and the mode in brackets.
const ALL_LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const PARSERS: [&str; 2] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];
const UNCONFINED: &str = "unconfined";

/// What containers are confined by.
#[derive(Default)]
pub(super) struct Profiles {
    has_default: bool,
    /// Why the default profile is not there, where it should be.
    refusal: Option<String>,
}

impl Profiles {
    /// Sees to it that the default profile is in the kernel. Only root of the machine may do that; for the containers of others the
    /// kernel's own rules have to do.
    pub(super) fn find(rights: &Rights) -> Self {
        let able = rights.trusted && rights.mounts && is_enabled();
        // Who is confined already may change to no other profile, or only if that one says so.
        if !able || label("self").as_deref() != Some(UNCONFINED) {
            return Self::default();
        }
        let parser = PARSERS.into_iter().map(Path::new).find(|parser| parser.exists());
        match (is_loaded(), parser) {
            (Ok(true), _) => Self { has_default: true, refusal: None },
            (Ok(false), Some(parser)) => {
                let refusal = load(parser).err();
                Self { has_default: refusal.is_none(), refusal }
            }
            // Without what they need nobody has set profiles up here.
            (Ok(false), None) | (Err(_), _) => Self::default(),
        }
    }

    pub(super) fn notices(&self) -> Option<String> {
        let reason = self.refusal.as_ref()?;
        Some(format!("AppArmor does not confine containers: its profile {NAME} cannot be loaded ({reason})"))
    }

    /// The profile that a process is to be executed under.
    pub(super) fn of<'a>(&self, process: &'a ProcessSpec) -> Option<&'a str> {
        match &process.apparmor {
            AppArmor::Default => self.has_default.then_some(NAME),
            AppArmor::Unconfined => None,
            AppArmor::Profile(name) => Some(name),
        }
    }
}

/// Whether profiles can be entered at all.
pub(super) fn is_enabled() -> bool {
    std::fs::read(ENABLED).is_ok_and(|answer| answer.starts_with(b"Y"))
}

/// Has this process confined: from the execution of its program on, or, if it goes on without one (`at_once`), now. `write` writes
/// to a file of its own folder in procfs.
pub(super) fn enter(
    profile: &str,
    at_once: bool,
    write: impl FnOnce(&str, &str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (file, command) = if at_once { ("current", "changeprofile") } else { ("exec", "exec") };
    let explained = |failure| match failure {
        Failure::System { errno, .. } if errno == Errno::NOENT.raw_os_error() => missing(profile),
        other => other,
    };
    write(&format!("attr/apparmor/{file}"), &format!("{command} {profile}")).map_err(explained)
}

/// Refuses a profile that this kernel does not have. OCI runtimes may go on without, or name nothing but a file.
pub(super) fn require(profile: &str) -> Result<(), Failure> {
    let is_it = |line: &str| line.rsplit_once(" (").is_some_and(|(name, _)| name == profile);
    match is_enabled() {
        // Names of other namespaces are not in the list, nor is it there where securityfs is not: the runtime decides.
        true if profile.starts_with(':') => Ok(()),
        true => match std::fs::read_to_string(ALL_LOADED) {
            Ok(list) if !list.lines().any(is_it) => Err(missing(profile)),
            _ => Ok(()),
        },
        false => Err(missing(profile)),
    }
}

fn missing(profile: &str) -> Failure {
    let what = match is_enabled() {
        true => format!(
            "AppArmor's profile {profile:?}, which is not loaded in the kernel (apparmor_parser(8) loads profiles),"
        ),
        false => format!("AppArmor's profile {profile:?} with a kernel that has no AppArmor"),
    };
    Failure::Unsupported { what }
}

/// The profile that a process is confined by, as it is seen in procfs.
pub(super) fn confinement_of(number: i32) -> Option<String> {
    label(&number.to_string()).filter(|label| label != UNCONFINED)
}

fn label(process: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{process}/attr/apparmor/current")).ok()?;
    let text = text.trim_end_matches(['\0', '\n']);
    // The mode stands behind it.
    Some(text.rsplit_once(" (").map_or(text, |(label, _)| label).to_owned())
}

fn is_loaded() -> io::Result<bool> {
    let is_ours = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        name.to_str().and_then(|name| name.rsplit_once('.')).is_some_and(|(name, _)| name == NAME)
    };
    Ok(std::fs::read_dir(LOADED)?.flatten().any(is_ours))
}

/// Two processes may do this at the same time: the second one replaces what the first one loaded, with the same.
fn load(parser: &Path) -> Result<(), String> {
    let mut command = Command::new(parser);
    command.args(["--replace", "--skip-cache", "--quiet"]).env_clear().env("PATH", crate::profile::DEFAULT_PATH);
    let told = |error: io::Error| format!("{}: {error}", parser.display());
    let streams = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = streams.spawn().map_err(told)?;
    // It reads all of it before it says anything; where it does not, its words say why.
    let given = child.stdin.take().map_or(Ok(()), |mut input| input.write_all(TEXT.as_bytes()));
    let output = child.wait_with_output().map_err(told)?;
    match output.status.success() {
        true => given.map_err(told),
        false => {
            let words = String::from_utf8_lossy(&output.stderr);
            let first = words.lines().next().unwrap_or("it said nothing");
            Err(format!("{} ended with {}: {first}", parser.display(), output.status))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where this fails, give the profile its next number, and put the new sum here.
    #[test]
    fn a_new_text_has_a_new_name() {
        let sum = TEXT.bytes().fold(0u32, |sum, byte| sum.rotate_left(5) ^ u32::from(byte));
        assert_eq!((NAME, sum), ("forge-default-1", 95_117_418));
        assert!(TEXT.contains(&format!("profile {NAME} ")) && TEXT.contains(&format!("peer={NAME},")));
    }
}
