//! Devices of the Container Device Interface (`RUN --device`).
//!
//! A specification is a JSON file in one of a few folders: it names devices of one kind (`vendor.com/class`), and what a
//! container needs to use each: device nodes, mounts, variables. The rules are those of CDI 1.0 and of BuildKit; what
//! would have to run on this machine (hooks) or change its network is refused.

use super::ExecError;
use forge_executor::{DeviceKind, DeviceNode, DevicePolicy, GrantedNodes, MountSource, MountSpec, SandboxSpec};
use forge_llb::CdiDevice;
use rustix::fs::{FileType, major, minor};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Lets a name stand for several devices of a kind.
const CLASS: &str = "org.mobyproject.buildkit.device.class";
/// A specification is a page or two.
const SPEC_BYTES: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    container_edits: Edits,
    #[serde(default)]
    devices: Vec<Device>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    container_edits: Edits,
}

/// What a container needs.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Mount>,
    #[serde(rename = "additionalGids")]
    additional_gids: Vec<u32>,
    hooks: Vec<Value>,
    net_devices: Vec<Value>,
    intel_rdt: Option<Value>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: PathBuf,
    host_path: Option<PathBuf>,
    /// Letters of `rwm`.
    permissions: Option<String>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    host_path: PathBuf,
    container_path: PathBuf,
    #[serde(default)]
    options: Vec<String>,
}

/// The devices of this machine by their full names.
struct Registered(BTreeMap<String, Known>);

struct Known {
    class: Option<String>,
    edits: Vec<Edits>,
}

/// Gives a sandbox the devices that a step asks for. Optional ones that are not there are left out. Blocks.
pub(super) fn grant(wanted: &[CdiDevice], folders: &[PathBuf], spec: &mut SandboxSpec) -> Result<(), ExecError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let registered = Registered::read(folders)?;
    let mut names: Vec<&str> = Vec::new();
    for device in wanted {
        let found = registered.find(&device.name)?;
        if found.is_empty() && !device.optional {
            return Err(ExecError::NoDevice { name: device.name.clone() });
        }
        names.extend(found);
    }
    names.sort_unstable();
    names.dedup();
    let mut nodes = Vec::new();
    for name in names {
        for edits in &registered.0[name].edits {
            apply(name, edits, spec, &mut nodes)?;
        }
    }
    permit(&nodes, spec)
}

impl Registered {
    /// Reads the specifications; of two of one name that in the later folder counts.
    fn read(folders: &[PathBuf]) -> Result<Self, ExecError> {
        let mut known = BTreeMap::new();
        for folder in folders {
            let Ok(entries) = std::fs::read_dir(folder) else { continue };
            let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
            files.sort();
            for file in files {
                let spec = read(&file)?;
                for device in spec.devices {
                    let class = device.annotations.get(CLASS).or_else(|| spec.annotations.get(CLASS)).cloned();
                    let edits = vec![spec.container_edits.clone(), device.container_edits];
                    known.insert(format!("{}={}", spec.kind, device.name), Known { class, edits });
                }
            }
        }
        Ok(Self(known))
    }

    /// The devices that a name stands for: itself; the first of a kind for the kind alone; all for `*`; else those of the
    /// class.
    fn find(&self, wanted: &str) -> Result<Vec<&str>, ExecError> {
        let (kind, name) = wanted.split_once('=').unwrap_or((wanted, ""));
        if !is_kind(kind) {
            return Err(ExecError::BadDevice { name: wanted.to_owned() });
        }
        let of_kind = || {
            let prefix = format!("{kind}=");
            self.0.iter().filter(move |(name, _)| name.starts_with(&prefix)).map(|(name, known)| (name.as_str(), known))
        };
        let names: Vec<&str> = of_kind().map(|(name, _)| name).collect();
        Ok(match name {
            "" => names.into_iter().take(1).collect(),
            "*" => names,
            _ if self.0.contains_key(wanted) => names.into_iter().filter(|found| *found == wanted).collect(),
            class => {
                of_kind().filter(|(_, known)| known.class.as_deref() == Some(class)).map(|(name, _)| name).collect()
            }
        })
    }
}

/// `vendor.com/class`, in the letters that CDI allows.
fn is_kind(kind: &str) -> bool {
    let word = |text: &str, more: &[char]| {
        let inner = |letter: char| letter.is_ascii_alphanumeric() || more.contains(&letter);
        text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text.ends_with(|last: char| last.is_ascii_alphanumeric())
            && text.chars().all(inner)
    };
    kind.split_once('/').is_some_and(|(vendor, class)| word(vendor, &['_', '-', '.']) && word(class, &['_', '-', '.']))
}

fn read(file: &Path) -> Result<Spec, ExecError> {
    let failed = |source: std::io::Error| ExecError::DeviceSpec { path: file.to_owned(), source };
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(failed)?;
    std::io::Read::read_to_end(&mut std::io::Read::take(opened, SPEC_BYTES), &mut bytes).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}

fn apply(device: &str, edits: &Edits, spec: &mut SandboxSpec, nodes: &mut Vec<DeviceNode>) -> Result<(), ExecError> {
    let asks = [
        ("hooks", !edits.hooks.is_empty()),
        ("network devices", !edits.net_devices.is_empty()),
        ("Intel RDT", edits.intel_rdt.is_some()),
    ];
    if let Some((what, _)) = asks.into_iter().find(|(_, asked)| *asked) {
        return Err(ExecError::DeviceNeeds { name: device.to_owned(), what });
    }
    for pair in &edits.env {
        let name = [pair.split('=').next().unwrap_or_default(), "="].concat();
        spec.process.env.retain(|other| !other.as_encoded_bytes().starts_with(name.as_bytes()));
        spec.process.env.push(pair.into());
    }
    spec.process.user.additional_gids.extend(&edits.additional_gids);
    for node in &edits.device_nodes {
        let host = node.host_path.as_ref().unwrap_or(&node.path);
        nodes.push(numbers(host, node.permissions.as_deref().unwrap_or("rwm"))?);
        let mut mount = MountSpec::new(&node.path, MountSource::Bind(host.clone()), false);
        mount.flags.nodev = false;
        mount.flags.noexec = true;
        spec.mounts.push(mount);
    }
    for mount in &edits.mounts {
        let has = |option: &str| mount.options.iter().any(|other| other == option);
        let mut made = MountSpec::new(&mount.container_path, MountSource::Bind(mount.host_path.clone()), has("ro"));
        made.flags.noexec = has("noexec");
        spec.mounts.push(made);
    }
    Ok(())
}

/// What a node of this machine is. Nothing but a device is handed to a step as one.
fn numbers(path: &Path, permissions: &str) -> Result<DeviceNode, ExecError> {
    let failed = |source: std::io::Error| ExecError::DeviceNode { path: path.to_owned(), source };
    let found = rustix::fs::stat(path).map_err(|errno| failed(errno.into()))?;
    let kind = match FileType::from_raw_mode(found.st_mode) {
        FileType::BlockDevice => DeviceKind::Block,
        FileType::CharacterDevice => DeviceKind::Character,
        _ => return Err(failed(std::io::Error::other("it is no device"))),
    };
    Ok(DeviceNode {
        kind,
        major: Some(major(found.st_rdev)),
        minor: Some(minor(found.st_rdev)),
        read: permissions.contains('r'),
        write: permissions.contains('w'),
    })
}

/// Lets the sandbox open them. Who may open every device may open these.
fn permit(nodes: &[DeviceNode], spec: &mut SandboxSpec) -> Result<(), ExecError> {
    let mut granted: GrantedNodes = [None; 16];
    if nodes.len() > granted.len() {
        return Err(ExecError::TooManyDevices { most: granted.len() });
    }
    if nodes.is_empty() || spec.devices == DevicePolicy::All {
        return Ok(());
    }
    granted.iter_mut().zip(nodes).for_each(|(place, node)| *place = Some(*node));
    spec.devices = DevicePolicy::StandardAnd(granted);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_executor::{ProcessSpec, RootFs};

    const SPEC: &str = r#"{"cdiVersion": "0.6.0", "kind": "acme.com/null", "containerEdits": {"env": ["ALL=1"]}, "devices": [
        {"name": "a", "containerEdits": {"env": ["A=1", "PATH=/x"], "deviceNodes": [{"path": "/dev/acme", "hostPath": "/dev/null"}],
            "mounts": [{"hostPath": "/etc", "containerPath": "/acme", "options": ["ro", "bind"]}]}},
        {"name": "b", "annotations": {"org.mobyproject.buildkit.device.class": "pair"}, "containerEdits": {"additionalGids": [7]}},
        {"name": "c", "annotations": {"org.mobyproject.buildkit.device.class": "pair"},
            "containerEdits": {"deviceNodes": [{"path": "/dev/zero", "permissions": "r"}]}},
        {"name": "hooked", "containerEdits": {"hooks": [{"hookName": "createContainer", "path": "/bin/sh"}]}},
        {"name": "file", "containerEdits": {"deviceNodes": [{"path": "/etc/passwd"}]}}]}"#;

    fn granted(wanted: &[(&str, bool)]) -> Result<SandboxSpec, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("acme.json"), SPEC).unwrap();
        std::fs::write(folder.path().join("other.yaml"), "kind: x").unwrap();
        let mut spec = SandboxSpec::for_root(RootFs::Directory("/r".into()), ProcessSpec::new(["true"]));
        let device = |(name, optional): &(&str, bool)| CdiDevice { name: (*name).to_owned(), optional: *optional };
        let wanted: Vec<CdiDevice> = wanted.iter().map(device).collect();
        let folders = ["/none".into(), folder.path().to_owned()];
        match grant(&wanted, &folders, &mut spec) {
            Ok(()) => Ok(spec),
            Err(error) => Err(forge_image::chain(&error)),
        }
    }

    fn nodes(spec: &SandboxSpec) -> Vec<(u32, u32, bool)> {
        let DevicePolicy::StandardAnd(nodes) = spec.devices else { return Vec::new() };
        nodes.iter().flatten().map(|node| (node.major.unwrap(), node.minor.unwrap(), node.write)).collect()
    }

    #[test]
    fn a_device_brings_its_nodes_mounts_and_variables() {
        let spec = granted(&[("acme.com/null=a", false)]).unwrap();
        assert_eq!(spec.process.env, ["ALL=1", "A=1", "PATH=/x"]);
        assert_eq!(nodes(&spec), [(1, 3, true)]);
        let targets: Vec<_> = spec.mounts.iter().map(|mount| (mount.target.clone(), mount.readonly)).collect();
        assert_eq!(targets, [("/dev/acme".into(), false), ("/acme".into(), true)]);
        assert!(!spec.mounts[0].flags.nodev && spec.mounts[1].flags.nodev);
    }

    #[test]
    fn names_stand_for_one_device_a_class_or_a_kind() {
        let of = |name: &str| granted(&[(name, false)]).map(|spec| (nodes(&spec), spec.process.user.additional_gids));
        assert_eq!(of("acme.com/null=c"), Ok((vec![(1, 5, false)], Vec::new())));
        assert_eq!(of("acme.com/null=pair"), Ok((vec![(1, 5, false)], vec![7])));
        assert_eq!(of("acme.com/null"), Ok((vec![(1, 3, true)], Vec::new())));
        assert!(of("acme.com/null=*").unwrap_err().contains("/etc/passwd"));
        assert_eq!(of("acme.com/null=d"), Err("required device \"acme.com/null=d\" is not registered".to_owned()));
        for bad in ["null", "acme.com/", "/null=a", "acme.com/nu ll=a", "-/x"] {
            assert_eq!(of(bad), Err(format!("invalid device {bad:?}")));
        }
        assert_eq!(nodes(&granted(&[("acme.com/null=d", true), ("other.com/x", true)]).unwrap()), []);
        let twice = granted(&[("acme.com/null=a", false), ("acme.com/null", false)]).unwrap();
        assert_eq!(nodes(&twice), [(1, 3, true)]);
    }

    #[test]
    fn what_cannot_be_granted_is_refused() {
        let refused = |name: &str| granted(&[(name, true)]).unwrap_err();
        assert!(refused("acme.com/null=hooked").contains("asks for hooks"));
        assert!(refused("acme.com/null=file").contains("it is no device"));
    }

    #[test]
    fn damaged_specifications_are_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("bad.json"), "{").unwrap();
        let error = Registered::read(&[folder.path().to_owned()]).err().unwrap();
        assert!(error.to_string().contains("bad.json"), "{error}");
    }
}
