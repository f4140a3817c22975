//! Why a program of another platform does not start on this machine.
//!
//! The kernel hands such programs to an emulator that is registered with it (`Documentation/admin-guide/binfmt-misc.rst`).
//! With flag `F` the emulator is opened when it is registered, so that it works in every sandbox; without, it is looked for
//! within the image, where it is not.

use forge_image::Platform;
use std::path::Path;

/// Where the kernel lists what is registered.
const REGISTERED: &str = "/proc/sys/fs/binfmt_misc";

/// What the kernel knows of programs of an architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Emulator {
    /// Nothing.
    Absent,
    /// An emulator that is switched off.
    Disabled,
    /// One that sandboxes do not see: it is registered without flag `F`.
    Outside { interpreter: String },
    /// One that works everywhere.
    Ready,
}

/// What to do about a program that did not start because the kernel does not know its format, or has no interpreter for
/// it; `None` where that has nothing to do with platforms.
pub(crate) fn hint(platform: &Platform, error: &str) -> Option<String> {
    let unknown = error.contains("Exec format error");
    if !unknown && !error.contains("No such file or directory") {
        return None;
    }
    let host = Platform::host();
    if host.accepts(platform) {
        let hint = "an image for another platform, or a script whose first line names no interpreter";
        return unknown.then(|| format!("it is no program for {host}: {hint}"));
    }
    advice(platform, &host, &emulator(Path::new(REGISTERED), platform), unknown)
}

fn advice(platform: &Platform, host: &Platform, emulator: &Emulator, unknown: bool) -> Option<String> {
    let start = format!("this machine is {host}, and programs for {platform} need an emulator");
    let install = "on Debian, install qemu-user-static and binfmt-support";
    match emulator {
        Emulator::Absent => unknown.then(|| format!("{start}: none is registered with the kernel; {install}")),
        Emulator::Disabled => unknown.then(|| {
            format!("{start}: {} is registered but disabled; `update-binfmts --enable` enables it", name(platform))
        }),
        Emulator::Outside { interpreter } => Some(format!(
            "{start}: {interpreter} is registered without flag F, so that steps do not see it; {install}, which sets it"
        )),
        Emulator::Ready => None,
    }
}

/// The name under which Debian and others register QEMU.
fn name(platform: &Platform) -> String {
    let architecture = match platform.architecture.as_str() {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        "386" => "i386",
        "mips64le" => "mips64el",
        "mipsle" => "mipsel",
        "loong64" => "loongarch64",
        other => other,
    };
    format!("qemu-{architecture}")
}

fn emulator(registered: &Path, platform: &Platform) -> Emulator {
    match std::fs::read_to_string(registered.join(name(platform))) {
        Ok(text) => read(&text),
        // Not there, or the list itself is not mounted.
        Err(_) => Emulator::Absent,
    }
}

/// Reads an entry as the kernel prints it.
fn read(text: &str) -> Emulator {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim();
    match (text.lines().next(), value("flags:").contains('F')) {
        (Some("enabled"), true) => Emulator::Ready,
        (Some("enabled"), false) => Emulator::Outside { interpreter: value("interpreter").to_owned() },
        _ => Emulator::Disabled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: PF\noffset 0\nmagic 7f454c46\n";

    #[test]
    fn what_is_registered_is_read_as_the_kernel_prints_it() {
        let platform: Platform = "linux/arm64".parse().unwrap();
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(emulator(folder.path(), &platform), Emulator::Absent);
        for (text, expect) in [
            (ENTRY.to_owned(), Emulator::Ready),
            (ENTRY.replace("enabled", "disabled"), Emulator::Disabled),
            (ENTRY.replace("PF", ""), Emulator::Outside { interpreter: "/usr/bin/qemu-aarch64-static".into() }),
        ] {
            std::fs::write(folder.path().join("qemu-aarch64"), text).unwrap();
            assert_eq!(emulator(folder.path(), &platform), expect);
        }
    }

    #[test]
    fn the_hint_says_what_is_missing() {
        let (arm, host): (Platform, Platform) = ("linux/arm64".parse().unwrap(), "linux/amd64".parse().unwrap());
        let told = |emulator: Emulator, unknown: bool| advice(&arm, &host, &emulator, unknown).unwrap_or_default();
        let start = "this machine is linux/amd64, and programs for linux/arm64 need an emulator: ";
        let absent = told(Emulator::Absent, true);
        assert!(absent.starts_with(start) && absent.contains("install qemu-user-static"), "{absent}");
        assert!(told(Emulator::Disabled, true).contains("qemu-aarch64 is registered but disabled"));
        let outside = told(Emulator::Outside { interpreter: "/usr/bin/qemu".into() }, false);
        assert!(outside.contains("/usr/bin/qemu is registered without flag F"), "{outside}");
        assert_eq!(told(Emulator::Absent, false), "", "a missing file has other causes");
        assert_eq!(told(Emulator::Ready, true), "");
    }

    #[test]
    fn programs_of_this_platform_may_be_none() {
        let hinted = hint(&Platform::host(), "cannot execute \"/x\": Exec format error (os error 8)").unwrap();
        assert!(hinted.contains("it is no program for"), "{hinted}");
        assert_eq!(hint(&Platform::host(), "cannot execute \"/x\": No such file or directory"), None);
        assert_eq!(hint(&Platform::host(), "exit code: 1"), None);
    }
}
