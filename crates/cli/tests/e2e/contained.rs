//! forge in a container that has no more rights than docker and Kubernetes give by default, made by runc and by forge itself.

use crate::fixture::{self, Forge, base_image};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// docker's fourteen, which Kubernetes gives too.
const CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

const MASKED: [&str; 8] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const DOCKERFILE: &str = "FROM busybox AS first\n\
    RUN mkdir -p /d && echo a >/d/a && ln /d/a /d/b && rm /bin/vi && chown 100:200 /d/a && chmod 4755 /d/a && echo f >/f\n\
    RUN test ! -e /bin/vi && rm /f && mv /d /e && rm -r /home && mkdir /home && touch /home/y\n\
    FROM first\n\
    COPY --chown=5:6 file /file\n\
    RUN --mount=type=bind,from=busybox,target=/m,rw --mount=type=cache,target=/c --mount=type=tmpfs,target=/t \
        --mount=type=secret,id=s,target=/s test $(cat /s) = hidden && test -e /m/bin/vi && rm /m/bin/vi && touch /c/x /t/x && cat /f || true\n\
    USER 1000\n\
    RUN test $(id -u) = 1000 && touch /tmp/mine\n";

const SCRIPT: &str = "cd /work && forge load -q -i busybox.tar && \
    forge build --progress plain --secret id=s,src=secret -t x -o type=oci,dest=/work/out/image.tar context && \
    forge build --progress plain --secret id=s,src=secret -t x context && forge run --rm --user 0 x sh -c 'echo ran; stat -c %u:%g /e/a'";

/// What a container sees under `/work`.
struct Work {
    forge: Forge,
}

impl Work {
    fn new(test: &str) -> Option<Self> {
        let forge = Forge::privileged(test)?;
        forge.context("work/context", &[("Dockerfile", DOCKERFILE), ("file", "data\n")]);
        fs::write(forge.path("work/secret"), "hidden").unwrap();
        fs::create_dir(forge.path("work/out")).unwrap();
        fs::copy(base_image(), forge.path("work/busybox.tar")).unwrap();
        Some(Self { forge })
    }

    /// The image that root of the machine builds of the same.
    fn image_of_root(&self) -> Vec<u8> {
        let (context, to) = (self.forge.path("work/context"), self.forge.path("root.tar"));
        let secret = format!("id=s,src={}", self.forge.path("work/secret").display());
        let output = format!("type=oci,dest={}", to.display());
        let words = ["build", "-q", "--secret", &secret, "-t", "x", "-o", &output, context.to_str().unwrap()];
        let outcome = self.forge.with_env(&words, "SOURCE_DATE_EPOCH", "1700000000");
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        fs::read(to).unwrap()
    }

    #[track_caller]
    fn check(&self, outcome: &fixture::Outcome) {
        assert_eq!(outcome.code, 0, "{}{}", outcome.stdout, outcome.stderr);
        assert!(outcome.stdout.contains("ran\n100:200\n"), "{}", outcome.stdout);
        assert!(outcome.stderr.contains("CACHED"), "{}", outcome.stderr);
        assert!(fs::read(self.forge.path("work/out/image.tar")).unwrap() == self.image_of_root(), "the images differ");
    }
}

/// Where the binary's libraries are.
fn libraries() -> Vec<(String, &'static str)> {
    let real = |path: &'static str| Some((fs::canonicalize(path).ok()?.to_str()?.to_owned(), path));
    ["/lib", "/lib64", "/usr/lib"].into_iter().filter_map(real).collect()
}

/// What docker and Kubernetes write, without a system call filter as Kubernetes has it.
fn configuration(work: &Work, script: &str, capabilities: &[&str]) -> Value {
    let capabilities: Vec<String> = capabilities.iter().map(|name| format!("CAP_{name}")).collect();
    let mount = |to: &str, kind: &str, options: &[&str]| json!({ "destination": to, "type": kind, "source": kind, "options": options });
    let bind = |from: &str, to: &str, mode: &str| json!({ "destination": to, "type": "bind", "source": from, "options": ["rbind", mode] });
    let kernel = ["nosuid", "noexec", "nodev"];
    let mut mounts = vec![
        mount("/proc", "proc", &kernel),
        mount("/dev", "tmpfs", &["nosuid", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        bind(work.forge.path("work").to_str().unwrap(), "/work", "rw"),
        bind(&fixture::binary(), "/bin/forge", "ro"),
    ];
    mounts.extend(libraries().iter().map(|(from, to)| bind(from, to, "ro")));
    json!({
        "ociVersion": "1.0.2",
        "hostname": "pod",
        "root": { "path": "root" },
        "process": {
            "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin", "HOME=/root", "SOURCE_DATE_EPOCH=1700000000"],
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
        },
        "mounts": mounts,
        "linux": {
            "cgroupsPath": format!("/forge-test-{}", std::process::id()),
            "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "network" }],
            "maskedPaths": MASKED,
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// Runs a script by runc in a root that is an overlay, as docker's are; the mounts go with the namespace.
fn in_runc(work: &Work, script: &str, capabilities: &[&str], filter: Option<Value>) -> fixture::Outcome {
    in_runc_with(work, script, capabilities, filter, |_| {})
}

/// The same with another configuration.
fn in_runc_with(
    work: &Work,
    script: &str,
    capabilities: &[&str],
    filter: Option<Value>,
    change: impl FnOnce(&mut Value),
) -> fixture::Outcome {
    let path = |name: &str| work.forge.path(name);
    for name in ["lower/bin", "lower/etc", "lower/tmp", "upper", "overlay", "root"] {
        fs::create_dir_all(path(name)).unwrap();
    }
    fs::set_permissions(path("lower/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::copy("/bin/busybox", path("lower/bin/busybox")).unwrap();
    for applet in ["sh", "cat", "stat", "printf", "grep"] {
        std::os::unix::fs::symlink("busybox", path("lower/bin").join(applet)).unwrap();
    }
    let mut configuration = configuration(work, script, capabilities);
    if let Some(filter) = filter {
        configuration["linux"]["seccomp"] = filter;
    }
    change(&mut configuration);
    fs::write(path("config.json"), configuration.to_string()).unwrap();
    let id = path("x").parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let start = "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=overlay root && exec runc --root runc run \"$1\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", start, "sh", &id]).current_dir(path("x").parent().unwrap()).stdin(Stdio::null());
    fixture::run(&mut command, b"")
}

/// A pod of Kubernetes: user namespaces are allowed, `/proc` has masks, the store is on an overlay.
///
/// Seen to fail at each step of the way: with the right to mount asked for, a new `/proc`, and an overlay on the overlay.
#[test]
fn privileged_contained_in_a_pod_images_are_roots_to_the_byte() {
    let test = "contained_in_a_pod";
    let Some(work) = Work::new(test) else { return };
    if !fixture::have(test, &["runc", "unshare"]) {
        return;
    }
    let outcome = in_runc(&work, SCRIPT, &CAPABILITIES, None);
    work.check(&outcome);
    for line in [
        "forge: root here has not CAP_SYS_ADMIN: containers are made in a user namespace with the same ids",
        "the store lies on an overlay, on which no other one keeps changes",
        "parts of /proc are hidden from forge",
    ] {
        assert!(outcome.stderr.contains(line), "{}", outcome.stderr);
    }
}

/// What docker's filter denies of what forge would use, which it does by name and not by number.
fn filter() -> Value {
    let denied = [
        "unshare",
        "setns",
        "mount",
        "umount2",
        "pivot_root",
        "keyctl",
        "fsopen",
        "fsconfig",
        "fsmount",
        "move_mount",
        "open_tree",
        "mount_setattr",
        "bpf",
    ];
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
            { "names": denied, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 },
        ],
    })
}

/// Without the capabilities that give ids away there is no namespace, and both reasons are told.
#[test]
fn privileged_contained_without_capabilities_the_reasons_are_named() {
    let test = "contained_without_capabilities";
    let Some(work) = Work::new(test) else { return };
    if !fixture::have(test, &["runc", "unshare"]) {
        return;
    }
    let outcome = in_runc(&work, "forge images", &[], None);
    assert_eq!(outcome.code, 125, "{}{}", outcome.stdout, outcome.stderr);
    assert!(outcome.stderr.contains("as root it lacks CAP_SYS_ADMIN"), "{}", outcome.stderr);
}

/// The same without file secrets, which would be on disk.
fn without_secrets(work: &Work) -> String {
    let text = DOCKERFILE.replace("--mount=type=secret,id=s,target=/s ", "--mount=type=secret,id=s,env=S ");
    let text = text.replace("test $(cat /s) = hidden", "test $S = hidden && ! cat /run/secrets/s");
    assert!(text != DOCKERFILE);
    fs::write(work.forge.path("work/context/Dockerfile"), &text).unwrap();
    SCRIPT.to_owned()
}

/// A step that leaves a process behind, which goes on for a second after it. Seen to fail (it was alive) without
/// `end_strays`.
const STRAYS: &str = " && printf 'FROM busybox\\nRUN (setsid sh -c \"(sleep 987 & sleep 1; sleep 986) & sleep 985\" &) ; echo done\\n' >/work/out/Dockerfile && \
    forge build -q -f /work/out/Dockerfile /work/out && ! grep -qx sleep /proc/[0-9]*/comm";

/// docker's default: neither namespaces nor mounts.
#[test]
fn privileged_contained_in_docker_s_default_a_changed_root_does() {
    let test = "contained_in_docker_s_default";
    let Some(work) = Work::new(test) else { return };
    if !fixture::have(test, &["runc", "unshare"]) {
        return;
    }
    // The terminal is one of the container's, whose name is not seen.
    let terminal = " && forge run --rm -t x sh -c 'test -t 0 && test -t 1 && stty size >/dev/null && echo a terminal'";
    let script = without_secrets(&work) + STRAYS + terminal;
    let outcome = in_runc(&work, &script, &CAPABILITIES, Some(filter()));
    work.check(&outcome);
    assert!(outcome.stdout.contains("a terminal\r\n"), "{}", outcome.stdout);
    for line in ["steps run in a changed root", "forge may mount nothing", "the host's network is used"] {
        assert!(outcome.stderr.contains(line), "{}", outcome.stderr);
    }
}

/// forge in a container of forge's own.
#[test]
fn privileged_contained_in_forge_itself() {
    let test = "contained_in_forge";
    let Some(work) = Work::new(test) else { return };
    let volume = |from: &str, to: &str, mode: &str| format!("{from}:{to}:{mode}");
    let mut words = vec!["run".to_owned(), "--rm".into(), "--env".into(), "SOURCE_DATE_EPOCH=1700000000".into()];
    let mut volumes = vec![
        volume(&fixture::binary(), "/bin/forge", "ro"),
        volume(work.forge.path("work").to_str().unwrap(), "/work", "rw"),
    ];
    volumes.extend(libraries().iter().map(|(from, to)| volume(from, to, "ro")));
    words.extend(volumes.into_iter().flat_map(|volume| ["-v".to_owned(), volume]));
    let with = |more: &[&str]| -> fixture::Outcome {
        let words: Vec<&str> = words.iter().map(String::as_str).chain(more.iter().copied()).collect();
        work.forge.forge(&words)
    };
    assert!(Path::new("/bin/busybox").exists());
    let free = ["--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"];
    work.check(&with(&[&free[..], &["busybox", "sh", "-c", SCRIPT]].concat()));
    // With forge's own filter, which is docker's, there are no namespaces.
    let script = without_secrets(&work);
    // With forge's own AppArmor profile, there are some that are of no use. Seen to fail (`cannot make the mount namespace private`)
    // under Linux 6.1, whose AppArmor knows but the older calls.
    if fs::exists("/sys/kernel/security/apparmor/policy/profiles").unwrap()
        && fixture::find("apparmor_parser").is_some()
    {
        let outcome = with(&[&free[..2], &["busybox", "sh", "-c", &script]].concat());
        work.check(&outcome);
        let reason =
            "there are no user namespaces (AppArmor's profile forge-default-1 forbids what containers take in one)";
        assert!(outcome.stderr.contains(reason), "{}", outcome.stderr);
    }
    let outcome = with(&["busybox", "sh", "-c", &script]);
    work.check(&outcome);
    assert!(outcome.stderr.contains("steps run in a changed root"), "{}", outcome.stderr);
    fs::write(work.forge.path("work/context/Dockerfile"), DOCKERFILE).unwrap();
    let refused = with(&[
        "busybox",
        "sh",
        "-c",
        "cd /work && forge load -qi busybox.tar && forge build --secret id=s,src=secret context",
    ]);
    assert!(refused.code != 0 && refused.stderr.contains("a secret as a file"), "{}", refused.stderr);
}

/// A pod whose user is not root, as `runAsUser` has it: no capability, no subordinate ids, no name. Where there are namespaces that is
/// one id; where there are none there is nothing that could be done.
#[test]
fn privileged_contained_for_another_user_than_root() {
    let test = "contained_for_another_user";
    let Some(work) = Work::new(test) else { return };
    if !fixture::have(test, &["runc", "unshare"]) {
        return;
    }
    let dockerfile =
        "FROM busybox\nRUN echo a >/a && rm /bin/vi && mkdir /d && touch /d/f\nCOPY file /file\nRUN cat /file >/copy\n";
    work.forge.context("work/context", &[("Dockerfile", dockerfile), ("file", "data\n")]);
    for folder in ["work", "work/out"] {
        std::os::unix::fs::chown(work.forge.path(folder), Some(1000), Some(1000)).unwrap();
    }
    let as_user = |configuration: &mut Value| {
        configuration["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        configuration["process"]["env"] = json!(["PATH=/bin", "HOME=/work/home", "SOURCE_DATE_EPOCH=1700000000"]);
    };
    let script = "cd /work && forge load -q -i busybox.tar && forge build -q -t x -o type=oci,dest=/work/out/image.tar context && \
                  forge build -q -t x context && forge run --rm x sh -c 'id -u; cat /copy'";
    let outcome = in_runc_with(&work, script, &[], None, as_user);
    assert_eq!(outcome.code, 0, "{}{}", outcome.stdout, outcome.stderr);
    assert!(outcome.stdout.ends_with("0\ndata\n"), "{}", outcome.stdout);
    assert!(outcome.stderr.contains("only your own user id is mapped"), "{}", outcome.stderr);
    assert!(fs::read(work.forge.path("work/out/image.tar")).unwrap() == work.image_of_root(), "the images differ");
    let Some(work) = Work::new(test) else { return };
    let refused = in_runc_with(&work, "cd /work && forge images", &[], Some(filter()), as_user);
    assert_eq!(refused.code, 125, "{}{}", refused.stdout, refused.stderr);
    let reason = "a system call filter, a security module or a changed root forbids it";
    assert!(refused.stderr.contains(reason), "{}", refused.stderr);
}

/// Git would see all of forge's own container, keys and store included, so it is not run; a context that somebody else has fetched is
/// as good.
#[test]
fn privileged_contained_git_sources_in_a_changed_root_are_refused() {
    let test = "contained_git_sources";
    let Some(work) = Work::new(test) else { return };
    if !fixture::have(test, &["runc", "unshare", "git"]) {
        return;
    }
    let server = forge_testkit::GitServer::start();
    let repository = server.repository("app.git");
    repository.write("Dockerfile", "FROM scratch\nCOPY f /f\n").write("f", "from git\n");
    repository.commit();
    let script = format!("cd /work && forge build -q {}", server.url("app.git"));
    let refused = in_runc_with(&work, &script, &CAPABILITIES, Some(filter()), |configuration| {
        // The server is on the machine's loopback.
        let own = json!([{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }]);
        configuration["linux"]["namespaces"] = own;
    });
    assert_ne!(refused.code, 0, "{}", refused.stdout);
    let reason = "a sandbox of the machine's own programs, where forge may mount nothing,";
    assert!(refused.stderr.contains(reason), "{}", refused.stderr);
}
