//! Devices of the host that a container may use (`--device`, `--privileged`).

use crate::EngineError;
use forge_executor::{DeviceKind, DeviceNode, DevicePolicy, GrantedNodes, MountSource, MountSpec, SandboxSpec};
use forge_image::ErrorKind;
use rustix::fs::{FileType, major, minor};
use std::path::{Path, PathBuf};

/// A device of the host, or a folder of them, in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// On the host.
    pub source: PathBuf,
    /// In the container, absolute.
    pub target: PathBuf,
    /// Whether it may be read.
    pub read: bool,
    /// Whether it may be written.
    pub write: bool,
}

/// Devices that may be opened by a node of the container's own (`--device-cgroup-rule`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// Whether block devices are meant.
    pub block: bool,
    /// Whether character devices are meant.
    pub character: bool,
    /// The driver; every one where `None`.
    pub major: Option<u32>,
    /// Which of its devices; every one where `None`.
    pub minor: Option<u32>,
    /// Whether they may be read.
    pub read: bool,
    /// Whether they may be written.
    pub write: bool,
}

impl DeviceRule {
    fn nodes(&self) -> impl Iterator<Item = DeviceNode> {
        let Self { major, minor, read, write, .. } = *self;
        let kinds = [(self.block, DeviceKind::Block), (self.character, DeviceKind::Character)];
        let kinds = kinds.into_iter().filter_map(|(meant, kind)| meant.then_some(kind));
        kinds.map(move |kind| DeviceNode { kind, major, minor, read, write })
    }
}

/// Every container has its own of these.
const OWN: [&str; 16] = [
    "console", "core", "fd", "full", "initctl", "log", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr",
    "stdin", "stdout", "urandom",
];
const MORE_OWN: [&str; 2] = ["tty", "zero"];

/// Shows devices, and lets them be opened.
///
/// # Errors
/// What is no device is named, and so are more of them than a container can have.
pub(crate) fn grant(devices: &[Device], rules: &[DeviceRule], spec: &mut SandboxSpec) -> Result<(), EngineError> {
    let mut nodes: Vec<_> = rules.iter().flat_map(DeviceRule::nodes).collect();
    for device in devices {
        for (source, target, node) in found(device)? {
            nodes.push(node);
            spec.mounts.push(mount(source, target));
        }
    }
    if nodes.is_empty() || spec.devices == DevicePolicy::All {
        return Ok(());
    }
    let mut granted: GrantedNodes = [None; 16];
    if nodes.len() > granted.len() {
        let message = format!("more than {} devices", granted.len());
        return Err(EngineError::new(ErrorKind::Unsupported, message).with_hint("--privileged shows all of them"));
    }
    granted.iter_mut().zip(nodes).for_each(|(place, node)| *place = Some(node));
    spec.devices = DevicePolicy::StandardAnd(granted);
    Ok(())
}

/// Shows all devices of the host, as far as they can be found and the container has none of its own.
pub(crate) fn show_all(spec: &mut SandboxSpec) {
    let mut pending = vec![PathBuf::from("/dev")];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let own = OWN.iter().chain(&MORE_OWN).any(|own| name == *own);
            if own && folder == Path::new("/dev") {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => pending.push(path),
                Ok(_) if node(&path, true, true, false).is_ok() => spec.mounts.push(mount(path.clone(), path)),
                _ => {}
            }
        }
    }
}

fn mount(source: PathBuf, target: PathBuf) -> MountSpec {
    let mut mount = MountSpec::new(target, MountSource::Bind(source), false);
    mount.flags.nodev = false;
    mount.flags.noexec = true;
    mount
}

/// The device itself, or all of a folder.
fn found(device: &Device) -> Result<Vec<(PathBuf, PathBuf, DeviceNode)>, EngineError> {
    let Device { source, target, read, write } = device;
    if !source.is_dir() {
        return Ok(vec![(source.clone(), target.clone(), node(source, *read, *write, true)?)]);
    }
    let (mut all, mut pending) = (Vec::new(), vec![source.clone()]);
    while let Some(folder) = pending.pop() {
        let failed = |error| EngineError::caused(ErrorKind::Environment, error).context("cannot look for devices");
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let below = path.strip_prefix(source).unwrap_or(&path);
            let place = target.join(below);
            if let Ok(node) = node(&path, *read, *write, true) {
                all.push((path, place, node));
            }
        }
    }
    match all.is_empty() {
        true => Err(not_a_device(source, "there are no devices in it")),
        false => Ok(all),
    }
}

/// docker's words, which name the path.
fn not_a_device(path: &Path, reason: &str) -> EngineError {
    let message = format!("error gathering device information while adding custom device {path:?}: {reason}");
    EngineError::new(ErrorKind::UserInput, message)
}

fn node(path: &Path, read: bool, write: bool, follow: bool) -> Result<DeviceNode, EngineError> {
    let stat = if follow { rustix::fs::stat(path) } else { rustix::fs::lstat(path) };
    let stat = stat.map_err(|errno| match errno {
        rustix::io::Errno::NOENT => not_a_device(path, "no such file or directory"),
        errno => not_a_device(path, &errno.to_string()),
    })?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => DeviceKind::Block,
        FileType::CharacterDevice => DeviceKind::Character,
        _ => return Err(not_a_device(path, "not a device node")),
    };
    let (major, minor) = (Some(major(stat.st_rdev)), Some(minor(stat.st_rdev)));
    Ok(DeviceNode { kind, major, minor, read, write })
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_executor::{ProcessSpec, RootFs};

    fn spec() -> SandboxSpec {
        SandboxSpec::for_root(RootFs::Directory("/r".into()), ProcessSpec::new(["true"]))
    }

    fn device(source: &str) -> Device {
        Device { source: source.into(), target: "/dev/x".into(), read: true, write: false }
    }

    #[test]
    fn a_device_is_shown_and_may_be_opened() {
        let mut spec = spec();
        grant(&[device("/dev/zero")], &[], &mut spec).unwrap();
        let DevicePolicy::StandardAnd(granted) = spec.devices else { panic!("{:?}", spec.devices) };
        let node = granted[0].unwrap();
        assert_eq!((node.major, node.minor, node.read, node.write), (Some(1), Some(5), true, false));
        assert_eq!((spec.mounts[0].target.as_path(), spec.mounts[0].flags.nodev), (Path::new("/dev/x"), false));
        assert!(granted[1].is_none());
    }

    #[test]
    fn a_rule_opens_without_showing() {
        let mut spec = spec();
        let rule = DeviceRule { block: true, character: true, major: Some(42), minor: None, read: true, write: true };
        grant(&[], &[rule], &mut spec).unwrap();
        let DevicePolicy::StandardAnd(granted) = spec.devices else { panic!("{:?}", spec.devices) };
        let kinds: Vec<_> = granted.iter().flatten().map(|node| (node.kind, node.major, node.minor)).collect();
        assert_eq!(kinds, [(DeviceKind::Block, Some(42), None), (DeviceKind::Character, Some(42), None)]);
        assert!(spec.mounts.is_empty());
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for (source, reason) in
            [("/etc/passwd", "not a device node"), ("/nosuch", "no such file"), ("/etc", "no devices")]
        {
            let error = grant(&[device(source)], &[], &mut spec()).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(source), "{error}");
        }
        let many = vec![device("/dev/null"); 17];
        assert!(grant(&many, &[], &mut spec()).unwrap_err().to_string().contains("more than 16 devices"));
    }
}
