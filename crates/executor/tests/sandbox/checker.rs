//! What the runtime specification's validation suite checks from within a container, on every executor there is.

use crate::fixture::{Fixture, executor, run_on};
use crate::oci::runtimes;
use forge_executor::{
    Capabilities, DeviceKind, DeviceNode, DevicePolicy, Executor, MountSource, MountSpec, NetworkMode, ProcessUser,
    Rlimit, RlimitResource, SandboxSpec,
};
use std::fs;

pub const TESTS: &[(&str, fn())] =
    &[("privileged_s4_in_container_checks", own), ("privileged_oci_s4_in_container_checks", through_runtimes)];

fn own() {
    check("forge", executor());
}

fn through_runtimes() {
    runtimes().iter().for_each(|(name, runtime)| check(name, runtime));
}

fn check(name: &str, executor: &dyn Executor) {
    let fixture = Fixture::new();
    for folder in ["secret/folder", "kept", "outer", "srv", "scratch"] {
        fs::create_dir_all(fixture.base(folder)).expect("directory");
    }
    for (file, text) in [("marker", "the root"), ("secret/file", "seen"), ("secret/folder/file", "seen")] {
        fs::write(fixture.base(file), text).expect("file");
    }
    std::os::unix::fs::symlink("busybox", fixture.base("bin/test")).expect("applet");
    let checked = run_on(executor, &spec(&fixture)).expect(name);
    let wrong: Vec<_> = checked.stdout.lines().filter(|line| !line.ends_with(" ok")).collect();
    assert!(wrong.is_empty(), "{name}: {wrong:#?}\n{}", checked.stderr);
    assert_eq!(checked.stdout.lines().count(), 48, "{name}: {}\n{}", checked.stdout, checked.stderr);
}

fn spec(fixture: &Fixture) -> SandboxSpec {
    let mut spec = fixture.spec(&["/bin/sh", "-c", include_str!("checker.sh"), "checker", "one", "two words"]);
    spec.hostname = "checked".into();
    spec.network = NetworkMode::None;
    spec.masked_paths.extend(["/secret/file", "/secret/folder", "/secret/missing"].map(Into::into));
    spec.readonly_paths.push("/kept".into());
    let file = MountSource::File { content: b"inner".to_vec(), mode: 0o644 };
    let memory = || MountSource::Tmpfs { size: None, mode: 0o777 };
    let mut scratch = MountSpec::new("/scratch", memory(), false);
    scratch.flags.noexec = true;
    let mut device = MountSpec::new("/dev/extra", MountSource::Bind("/dev/zero".into()), false);
    device.flags.nodev = false;
    spec.mounts = vec![
        MountSpec::new("/outer", memory(), false),
        MountSpec::new("/outer/inner/file", file, true),
        scratch,
        device,
        // The user is nobody special, and writes its list there and its mark into the root.
        MountSpec::new("/tmp", memory(), false),
    ];
    let mut granted = [None; 16];
    let zero = DeviceNode { kind: DeviceKind::Character, major: Some(1), minor: Some(5), read: true, write: true };
    granted[0] = Some(zero);
    spec.devices = DevicePolicy::StandardAnd(granted);
    let process = &mut spec.process;
    process.cwd = "/srv".into();
    process.env.push("CHECKED=a value".into());
    process.no_new_privileges = true;
    process.user = ProcessUser { uid: 7, gid: 8, additional_gids: vec![9, 10] };
    process.umask = 0o027;
    process.capabilities = Capabilities::from_bits(1 | 1 << 10);
    let limit = |resource, soft, hard| Rlimit { resource, soft, hard };
    process.rlimits = vec![limit(RlimitResource::Nofile, 100, 200), limit(RlimitResource::Core, 0, 0)];
    spec
}
