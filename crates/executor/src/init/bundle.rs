//! A specification in the words of the OCI runtime specification (`config.json`).

use super::device_program::ALLOWED;
use super::rights::Rights;
use super::runtime_init;
use crate::message::Failure;
use crate::{
    Capabilities, CpuQuota, DeviceKind, DevicePolicy, Hidden, NetworkMode, ProcessSpec, Resources, Rlimit, SandboxSpec,
    Seccomp, SeccompAction, SeccompComparison, SeccompProfile, SeccompRule, SharedNamespaces, SwapLimit, seccomp,
};
use serde_json::{Value, json};
use std::ffi::CStr;
use std::path::Path;

/// The version of the specification that is written.
const VERSION: &str = "1.0.2";

/// What a bundle needs to know beyond the specification.
pub(super) struct Surroundings<'a> {
    /// Where the root is mounted.
    pub(super) root: &'a Path,
    /// What lies below `/dev`, where the runtime mounts a file system of its own: source and target.
    pub(super) devices: &'a [(String, String)],
    /// With an init: where it finds the program.
    pub(super) initialised: Option<&'a CStr>,
    /// The group for the container; without one there are no limits.
    pub(super) group: Option<String>,
    /// What the shim itself may do.
    pub(super) held: Capabilities,
    pub(super) rights: &'a Rights,
    /// AppArmor's.
    pub(super) profile: Option<&'a str>,
    /// The hard limit that cannot be raised.
    pub(super) hard_limit: &'a dyn Fn(&Rlimit) -> u64,
}

/// The whole of `config.json`.
pub(super) fn config(spec: &SandboxSpec, around: &Surroundings<'_>) -> Result<Value, Failure> {
    let mut config = json!({
        "ociVersion": VERSION,
        "root": { "path": text(around.root.as_os_str().as_encoded_bytes())?, "readonly": spec.readonly_root },
        "mounts": mounts(spec, around),
        "process": process(&spec.process, around)?,
        "linux": {
            "namespaces": namespaces(spec),
            "resources": resources(spec, around.group.is_some()),
            "maskedPaths": paths(&spec.masked_paths)?,
            "readonlyPaths": paths(&spec.readonly_paths)?,
        },
    });
    if let Some(group) = &around.group {
        config["linux"]["cgroupsPath"] = json!(group);
    }
    if !spec.hostname.is_empty() && !spec.shared.uts {
        config["hostname"] = json!(spec.hostname);
    }
    if !spec.sysctls.is_empty() {
        let pairs = spec.sysctls.iter().map(|one| (one.name(), json!(one.value())));
        config["linux"]["sysctl"] = Value::Object(pairs.collect());
    }
    if let Some(profile) = around.profile {
        config["process"]["apparmorProfile"] = json!(profile);
    }
    if let Some(score) = spec.process.oom_score {
        config["process"]["oomScoreAdj"] = json!(score);
    }
    let granted = spec.process.capabilities.intersection(around.held);
    match &spec.seccomp {
        Seccomp::Unconfined => {}
        Seccomp::Default => config["linux"]["seccomp"] = filter(&seccomp::default_profile(granted)),
        Seccomp::Profile(profile) => config["linux"]["seccomp"] = filter(profile),
    }
    Ok(config)
}

fn text(bytes: &[u8]) -> Result<String, Failure> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| Failure::Unsupported { what: "text that is not UTF-8 with an OCI runtime".into() })
}

fn paths(paths: &[std::path::PathBuf]) -> Result<Vec<String>, Failure> {
    paths.iter().map(|path| text(path.as_os_str().as_encoded_bytes())).collect()
}

/// Whether the container is to have the shim's names: this version of the specification has no word for that of the domain,
/// and the kernel's setting of that name is the machine's root's.
pub(super) fn shares_names(spec: &SandboxSpec) -> bool {
    !spec.domain.is_empty() && !spec.shared.uts
}

/// The shim is in a network that was made ready, and is the first process of what the runtime sees.
fn namespaces(spec: &SandboxSpec) -> Value {
    let SharedNamespaces { ipc, uts, cgroup } = spec.shared;
    let new_uts = !uts && !shares_names(spec);
    let kinds = [("mount", true), ("pid", true), ("ipc", !ipc), ("uts", new_uts), ("cgroup", !cgroup)];
    let mut all: Vec<_> = kinds.iter().filter(|(_, new)| *new).map(|(kind, _)| json!({ "type": kind })).collect();
    if shares_names(spec) {
        all.push(json!({ "type": "uts", "path": "/proc/1/ns/uts" }));
    }
    match spec.network {
        NetworkMode::Host => {}
        NetworkMode::None => all.push(json!({ "type": "network" })),
        NetworkMode::Private => all.push(json!({ "type": "network", "path": "/proc/1/ns/net" })),
    }
    all.into()
}

const LOCKED: [&str; 3] = ["nosuid", "noexec", "nodev"];
/// `tty` in every distribution.
const TERMINAL_GROUP: u32 = 5;

fn mounts(spec: &SandboxSpec, around: &Surroundings<'_>) -> Value {
    let mount = |kind: &str, target: &str, options: Vec<String>| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    let with = |more: &[&str]| LOCKED.iter().chain(more).map(|&option| option.to_owned()).collect::<Vec<_>>();
    let kernel: &[&str] = if spec.writable_sys { &[] } else { &["ro"] };
    let mut terminals = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    let group = format!("gid={TERMINAL_GROUP}");
    if around.rights.has_group(TERMINAL_GROUP) {
        terminals.push(&group);
    }
    let memory = match (spec.shared.ipc, spec.shm_size) {
        (true, _) => Some(
            json!({ "destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": with(&["rbind"]) }),
        ),
        (false, Some(size)) => {
            Some(mount("tmpfs", "/dev/shm", [with(&["mode=1777"]), vec![format!("size={size}")]].concat()))
        }
        (false, None) => None,
    };
    let mut all = vec![
        mount("proc", "/proc", with(&[])),
        mount("tmpfs", "/dev", ["nosuid", "strictatime", "mode=755", "size=65536k"].map(String::from).to_vec()),
        mount("devpts", "/dev/pts", terminals.into_iter().map(String::from).collect()),
        mount("mqueue", "/dev/mqueue", with(&[])),
    ];
    all.extend(memory);
    // As for containers of our own: whoever shares a network without being its root gets the host's.
    all.push(match spec.network != NetworkMode::Host || around.rights.trusted {
        true => mount("sysfs", "/sys", with(kernel)),
        false => {
            let options = [with(kernel), vec!["rbind".into()]].concat();
            json!({ "destination": "/sys", "type": "bind", "source": "/sys", "options": options })
        }
    });
    if Path::new("/sys/fs/cgroup").exists() {
        // The kernel does not mount a file system on top of itself, which the host's tree may have there.
        all.push(mount("tmpfs", "/sys/fs/cgroup", with(kernel)));
        all.push(mount("cgroup2", "/sys/fs/cgroup", with(kernel)));
    }
    let device = |(source, target): &(String, String)| json!({ "destination": target, "type": "bind", "source": source, "options": ["rbind"] });
    all.extend(around.devices.iter().map(device));
    all.into()
}

fn process(process: &ProcessSpec, around: &Surroundings<'_>) -> Result<Value, Failure> {
    let granted = process.capabilities.intersection(around.held);
    let effective = if process.user.uid == 0 { granted } else { Capabilities::NONE };
    let names = |set: Capabilities| set.names().collect::<Vec<_>>();
    let init = around.initialised.map(|program| [runtime_init::PATH.as_bytes(), program.to_bytes()]);
    let args = init.into_iter().flatten().chain(process.args.iter().map(|one| one.as_encoded_bytes()));
    let args = args.map(text).collect::<Result<Vec<_>, _>>()?;
    let user = &process.user;
    Ok(json!({
        "terminal": process.terminal,
        "user": { "uid": user.uid, "gid": user.gid, "umask": process.umask, "additionalGids": user.additional_gids },
        "args": args,
        "env": environment(process)?,
        "cwd": text(process.cwd.as_os_str().as_encoded_bytes())?,
        "capabilities": { "bounding": names(granted), "effective": names(effective), "permitted": names(effective) },
        "rlimits": process.rlimits.iter().map(|limit| rlimit(limit, around)).collect::<Vec<_>>(),
        "noNewPrivileges": process.no_new_privileges,
    }))
}

/// A secret variable takes the place of another one of its name.
fn environment(process: &ProcessSpec) -> Result<Vec<String>, Failure> {
    let name = |pair: &[u8]| pair.split(|&byte| byte == b'=').next().unwrap_or_default().to_vec();
    let secret: Vec<_> = process.secret_env.iter().map(|pair| name(pair.reveal())).collect();
    let open = process.env.iter().map(|pair| pair.as_encoded_bytes()).filter(|pair| !secret.contains(&name(pair)));
    open.chain(process.secret_env.iter().map(Hidden::reveal)).map(text).collect()
}

fn rlimit(limit: &Rlimit, around: &Surroundings<'_>) -> Value {
    let most = (around.hard_limit)(limit);
    let kind = format!("RLIMIT_{}", format!("{:?}", limit.resource).to_uppercase());
    json!({ "type": kind, "soft": limit.soft.min(most), "hard": limit.hard.min(most) })
}

fn resources(spec: &SandboxSpec, limited: bool) -> Value {
    let mut all = json!({ "devices": devices(spec.devices) });
    if let (true, Value::Object(bounds)) = (limited, bounds(&own_bounds(spec))) {
        bounds.into_iter().for_each(|(name, bound)| all[name] = bound);
    }
    all
}

/// The sets of processors and memory nodes of several containers are those of each one of them that has none: a set is not made
/// smaller while a group below has more.
fn own_bounds(spec: &SandboxSpec) -> Resources {
    let mut own = spec.resources.clone();
    if let Some(shared) = &spec.group.shared {
        own.cpuset_cpus = own.cpuset_cpus.or_else(|| shared.resources.cpuset_cpus.clone());
        own.cpuset_mems = own.cpuset_mems.or_else(|| shared.resources.cpuset_mems.clone());
    }
    own
}

fn bounds(resources: &Resources) -> Value {
    let Resources { memory, memory_swap, pids, cpu_quota, cpu_shares, cpuset_cpus, cpuset_mems } = resources;
    let mut all = json!({});
    if let Some(bytes) = memory {
        // -1 stands for no limit.
        let swap = match memory_swap {
            Some(SwapLimit::Unlimited) => json!(-1),
            Some(SwapLimit::Total(total)) => json!(total),
            None => json!(bytes.saturating_mul(2)),
        };
        all["memory"] = json!({ "limit": bytes, "swap": swap });
    }
    if let Some(count) = pids {
        all["pids"] = json!({ "limit": count });
    }
    let mut cpu = serde_json::Map::new();
    if let Some(CpuQuota { quota_us, period_us }) = cpu_quota {
        cpu.insert("period".into(), json!(period_us));
        cpu.extend(quota_us.map(|time| ("quota".into(), json!(time))));
    }
    cpu.extend(cpu_shares.map(|shares| ("shares".into(), json!(shares))));
    cpu.extend(cpuset_cpus.as_ref().map(|list| ("cpus".into(), json!(list))));
    cpu.extend(cpuset_mems.as_ref().map(|list| ("mems".into(), json!(list))));
    if !cpu.is_empty() {
        all["cpu"] = cpu.into();
    }
    all
}

fn devices(policy: DevicePolicy) -> Value {
    if policy == DevicePolicy::All {
        return json!([{ "allow": true, "access": "rwm" }]);
    }
    let mut rules = vec![
        json!({ "allow": false, "access": "rwm" }),
        json!({ "allow": true, "type": "c", "access": "m" }),
        json!({ "allow": true, "type": "b", "access": "m" }),
    ];
    for (major, first, last) in ALLOWED {
        match last {
            u32::MAX => rules.push(json!({ "allow": true, "type": "c", "major": major, "access": "rwm" })),
            last => {
                rules.extend((first..=last).map(
                    |minor| json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm" }),
                ))
            }
        }
    }
    rules.extend(policy.granted().iter().flatten().map(|node| {
        let kind = if node.kind == DeviceKind::Block { "b" } else { "c" };
        let access = [(node.read, "r"), (node.write, "w"), (true, "m")].map(|(has, one)| if has { one } else { "" });
        let mut rule = json!({ "allow": true, "type": kind, "access": access.concat() });
        for (name, number) in [("major", node.major), ("minor", node.minor)] {
            if let Some(number) = number {
                rule[name] = json!(number);
            }
        }
        rule
    }));
    rules.into()
}

fn filter(profile: &SeccompProfile) -> Value {
    let (action, errno) = action(profile.default);
    let mut filter = json!({
        "defaultAction": action,
        "architectures": if profile.narrow { vec!["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"] } else { vec!["SCMP_ARCH_X86_64"] },
        "syscalls": profile.rules.iter().map(rule).collect::<Vec<_>>(),
    });
    if let Some(errno) = errno {
        filter["defaultErrnoRet"] = json!(errno);
    }
    filter
}

fn rule(rule: &SeccompRule) -> Value {
    let (action, errno) = action(rule.action);
    let condition = |condition: &crate::SeccompCondition| {
        let (op, value, second) = match condition.comparison {
            SeccompComparison::NotEqual(value) => ("SCMP_CMP_NE", value, None),
            SeccompComparison::Less(value) => ("SCMP_CMP_LT", value, None),
            SeccompComparison::LessOrEqual(value) => ("SCMP_CMP_LE", value, None),
            SeccompComparison::Equal(value) => ("SCMP_CMP_EQ", value, None),
            SeccompComparison::GreaterOrEqual(value) => ("SCMP_CMP_GE", value, None),
            SeccompComparison::Greater(value) => ("SCMP_CMP_GT", value, None),
            SeccompComparison::MaskedEqual { mask, value } => ("SCMP_CMP_MASKED_EQ", mask, Some(value)),
        };
        json!({ "index": condition.argument, "value": value, "valueTwo": second.unwrap_or(0), "op": op })
    };
    let mut all = json!({ "names": rule.names, "action": action });
    if let Some(errno) = errno {
        all["errnoRet"] = json!(errno);
    }
    if !rule.conditions.is_empty() {
        all["args"] = rule.conditions.iter().map(condition).collect::<Vec<_>>().into();
    }
    all
}

fn action(action: SeccompAction) -> (&'static str, Option<u16>) {
    match action {
        SeccompAction::Allow => ("SCMP_ACT_ALLOW", None),
        SeccompAction::Log => ("SCMP_ACT_LOG", None),
        SeccompAction::Errno(errno) => ("SCMP_ACT_ERRNO", Some(errno)),
        SeccompAction::Trap => ("SCMP_ACT_TRAP", None),
        SeccompAction::KillThread => ("SCMP_ACT_KILL_THREAD", None),
        SeccompAction::KillProcess => ("SCMP_ACT_KILL_PROCESS", None),
    }
}
