//! Section 1a of the attack catalogue: paths, descriptors, identities during the set-up.

use crate::fixture::{Fixture, executor, id, library_mounts, run, run_on, wait};
use forge_executor::{
    Container, Executor, ExecutorError, MountSource, MountSpec, NamespaceExecutor, ProcessUser, Stdio,
};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

pub const TESTS: &[(&str, fn())] = &[
    ("privileged_a01_working_directory_in_procfs", a01_working_directory),
    ("privileged_a02_no_descriptor_leaks", a02_descriptors),
    ("privileged_a03_binary_cannot_be_overwritten", a03_overwrite),
    ("privileged_a04_null_device_of_the_image", a04_null),
    ("privileged_a05_console_and_terminals_of_the_image", a05_console),
    ("privileged_a06_proc_of_the_image", a06_proc),
    ("privileged_a06_mounts_over_proc_and_sys", a06_mounts),
    ("privileged_a07_dev_of_the_image", a07_dev),
    ("privileged_a08_a09_mount_target_swapped", a08_swap),
    ("privileged_a10_stub_cleanup", a10_cleanup),
    ("privileged_a11_working_directory_through_a_link", a11_link),
    ("privileged_a12_injected_files", a12_files),
    ("privileged_a17_supplementary_groups", a17_groups),
    ("privileged_a21_bind_source_is_resolved_in_its_root", a21_bind),
    ("privileged_a25_mount_targets", a25_targets),
];

/// Seen to fail (the directory was entered) without the file system check in `enter_directory`.
fn a01_working_directory() {
    let fixture = Fixture::new();
    symlink("/proc/self/fd/7", fixture.base("link")).expect("link");
    let mut paths: Vec<_> = (0..=25).map(|number| format!("/proc/self/fd/{number}")).collect();
    paths.extend(["/proc", "/proc/self", "/proc/1/cwd", "/link", "/etc/../proc/self/fd"].map(String::from));
    for path in paths {
        let mut spec = fixture.shell("cat ../../../../canary/flag ../../../../../../../..$PWD/flag");
        spec.process.cwd = path.clone().into();
        match run(&spec) {
            Err(ExecutorError::WorkingDirectory { .. } | ExecutorError::System { .. }) => {}
            Err(error) => panic!("{path}: {error}"),
            Ok(output) => panic!("{path} was entered: {}{}", output.stdout, output.stderr),
        }
    }
    assert_eq!(fixture.upper(), Vec::<String>::new());
}

/// Seen to fail with `close_range` in `sys` doing nothing.
fn a02_descriptors() {
    let fixture = Fixture::new();
    let canary = fs::File::open(fixture.path("canary")).expect("canary");
    let leaks: Vec<_> = (0..50)
        .map(|_| {
            let copy = rustix::io::dup(&canary).expect("copy");
            assert!(rustix::io::fcntl_getfd(&copy).expect("flags").is_empty());
            copy
        })
        .collect();
    let executor = NamespaceExecutor::new(&fixture.path("run")).expect("executor");
    let script = "i=0; while [ $i -lt 300 ]; do [ -e /proc/1/fd/$i ] && echo $i; i=$((i+1)); done; true";
    let text = run_on(&executor, &fixture.shell(script)).expect("runs").success();
    drop(leaks);
    assert_eq!(text, "0\n1\n2\n");
}

/// Seen to fail (ETXTBSY, which lasts only while somebody runs it) with the binary executed directly instead of through
/// its read-only mount.
fn a03_overwrite() {
    let fixture = Fixture::new();
    let program = std::env::current_exe().expect("own path");
    let before = fs::read(&program).expect("own bytes");
    let mut spec = fixture.spec(&["/proc/self/exe", "overwrite"]);
    spec.mounts = library_mounts();
    let output = run(&spec).expect("runs");
    assert!(output.stdout.contains("Read-only file system"), "{}{}", output.stdout, output.stderr);
    let script =
        "for exe in /proc/[0-9]*/exe; do (echo overwritten >$exe) 2>/dev/null && echo WRITTEN $exe; done; true";
    assert_eq!(run(&fixture.shell(script)).expect("runs").success(), "");
    assert!(fs::read(&program).expect("own bytes") == before, "the binary has changed");
}

fn sentinel(path: &str) -> String {
    fs::read_to_string(path).expect("sentinel")
}

/// Seen to fail with another device made as `/dev/null` and its check removed.
fn a04_null() {
    let fixture = Fixture::new();
    let before = sentinel("/proc/sys/kernel/core_pattern");
    fs::create_dir(fixture.base("dev")).expect("dev");
    symlink("/proc/sys/kernel/core_pattern", fixture.base("dev/null")).expect("link");
    let script = "stat -c %t:%T:%F /dev/null; head -c 10 /proc/keys | wc -c; (echo x >/proc/keys) 2>/dev/null; \
                  echo x >/dev/null; (: >>/proc/sys/kernel/core_pattern) 2>/dev/null || echo denied";
    let text = run(&fixture.shell(script)).expect("runs").success();
    assert_eq!(text, "1:3:character special file\n0\ndenied\n");
    assert_eq!(sentinel("/proc/sys/kernel/core_pattern"), before);
}

fn a05_console() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.base("dev")).expect("dev");
    symlink("/proc/sysrq-trigger", fixture.base("dev/console")).expect("link");
    symlink("/proc", fixture.base("dev/pts")).expect("link");
    symlink("/proc/sys/kernel/core_pattern", fixture.base("dev/ptmx")).expect("link");
    let mut spec = fixture.shell("stat -c %F:%t /dev/console; stat -f -c %T /dev/pts; readlink /dev/ptmx");
    spec.process.terminal = true;
    let container: Arc<dyn Container> = executor().create(&id(), &spec, Stdio::default()).expect("creates").into();
    let text = crate::fixture::drain(container.pty().expect("terminal"));
    container.start().expect("starts");
    wait(&container).expect("ends");
    container.delete().expect("deletes");
    assert_eq!(text.recv().expect("text"), "character special file:88\r\ndevpts\r\npts/ptmx\r\n");
}

fn a06_proc() {
    for name in ["proc", "sys"] {
        let fixture = Fixture::new();
        symlink("../../../canary", fixture.base(name)).expect("link");
        let before = fixture.canary();
        let error = run(&fixture.shell("true")).err().expect("refused");
        assert!(matches!(error, ExecutorError::RootRefused { .. }), "{error}");
        assert_eq!(fixture.canary(), before);
    }
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.base("proc/self/attr")).expect("fake");
    fs::write(fixture.base("proc/self/attr/exec"), "fake").expect("fake");
    let text = run(&fixture.shell("stat -f -c %T /proc /proc/self; cat /proc/self/attr/exec 2>/dev/null; true"));
    assert_eq!(text.expect("runs").success(), "proc\nproc\n");
    assert_eq!(sentinel(&fixture.base("proc/self/attr/exec").display().to_string()), "fake");
}

fn a06_mounts() {
    let fixture = Fixture::new();
    symlink("/proc", fixture.base("link")).expect("link");
    symlink("/proc/self/attr", fixture.base("attr")).expect("link");
    let sources = [
        MountSource::Tmpfs { size: None, mode: 0o755 },
        MountSource::Bind(fixture.path("canary")),
        MountSource::File { content: Vec::new(), mode: 0o644 },
    ];
    let targets = [
        "/proc",
        "//proc",
        "/proc/",
        "/proc/./self",
        "/proc/self",
        "/proc/sys",
        "/sys",
        "/sys/fs/cgroup",
        "/sys/kernel",
        "/link",
        "/attr",
        "/link/sys/kernel/core_pattern",
        "/dev",
    ];
    for source in &sources {
        for target in targets {
            let mut spec = fixture.shell("true");
            spec.mounts = vec![MountSpec::new(target, source.clone(), false)];
            let error = run(&spec).err().unwrap_or_else(|| panic!("{target} was accepted"));
            assert!(matches!(error, ExecutorError::MountRefused { .. }), "{target}: {error}");
        }
    }
}

fn a07_dev() {
    for target in ["../../../canary".to_owned(), "/canary".into(), "/proc".into()] {
        let fixture = Fixture::new();
        symlink(&target, fixture.base("dev")).expect("link");
        let before = fixture.canary();
        let outcome = run(&fixture.shell("stat -c %t:%T /dev/null; ls /dev/ | wc -l"));
        assert_eq!(fixture.canary(), before);
        match target.as_str() {
            "/proc" => assert!(outcome.is_err()),
            _ => assert_eq!(outcome.expect("runs").success(), "1:3\n14\n"),
        }
        assert_eq!(fixture.upper(), Vec::<String>::new());
    }
}

/// A shared directory in which one container swaps a directory for a link while another one mounts below it.
fn a08_swap() {
    let fixture = Fixture::new();
    let other = Fixture::new();
    let shared = fixture.path("shared");
    fs::create_dir_all(shared.join("a/b")).expect("shared");
    let canary = fixture.path("canary");
    let before = fixture.canary();
    let cache = || MountSpec::new("/cache", MountSource::Bind(shared.clone()), false);
    let script = format!(
        "cd /cache; ln -s {} evil; while :; do mv a x; mv evil a; mv a evil; mv x a; done 2>/dev/null",
        canary.display()
    );
    let mut flipper = other.shell(&script);
    flipper.mounts = vec![cache()];
    let flipping: Arc<dyn Container> = executor().create(&id(), &flipper, Stdio::default()).expect("creates").into();
    flipping.start().expect("starts");
    for _ in 0..100 {
        let mut spec = fixture.shell("cat /cache/a/flag /cache/a/b/flag /cache/evil/flag; ls -d /cache/a/b");
        spec.mounts =
            vec![cache(), MountSpec::new("/cache/a/b", MountSource::Tmpfs { size: None, mode: 0o755 }, false)];
        if let Ok(output) = run(&spec) {
            assert!(!output.stdout.contains(&fixture.token), "the token was read");
        }
    }
    flipping.kill_all().expect("kills");
    wait(&flipping).expect("ends");
    assert_eq!(fixture.canary(), before);
}

/// Seen to fail (the new, empty `/a` went) without the identity check.
fn a10_cleanup() {
    let fixture = Fixture::new();
    let canary = fixture.path("canary");
    let before = fixture.canary();
    let script = format!("umount /a/b; mv /a /x && ln -s {} /a && mkdir /x/kept", canary.display());
    let mut spec = fixture.shell(&script);
    spec.mounts = vec![MountSpec::new("/a/b", MountSource::Tmpfs { size: None, mode: 0o755 }, false)];
    let output = run(&spec).expect("runs");
    assert_eq!(fixture.canary(), before);
    let left = fixture.upper();
    assert!(left.contains(&"a".into()) && !left.contains(&"x/b".into()), "{left:?} {}", output.stderr);
    // Another directory of the same name is not the stub.
    let fixture = Fixture::new();
    let mut spec = fixture.shell("mv /a /x && mkdir /a");
    spec.mounts = vec![MountSpec::new("/a/b", MountSource::Tmpfs { size: None, mode: 0o755 }, false)];
    run(&spec).expect("runs").success();
    assert_eq!(fixture.upper(), ["a", "x"]);
    // A stub that the process made its own stays.
    let fixture = Fixture::new();
    let mut spec = fixture.shell("rm -rf /a 2>/dev/null; echo mine >/a/own; true");
    spec.mounts = vec![MountSpec::new("/a/b", MountSource::Tmpfs { size: None, mode: 0o755 }, false)];
    run(&spec).expect("runs").success();
    assert_eq!(fixture.upper(), ["a", "a/own"]);
}

fn a11_link() {
    let fixture = Fixture::new();
    symlink("../../../canary/sub", fixture.base("w")).expect("link");
    symlink(fixture.path("canary/sub"), fixture.base("v")).expect("link");
    let before = fixture.canary();
    for (cwd, seen) in [
        ("/w/new", "/canary/sub/new\n".to_owned()),
        ("/v/new", format!("{}/new\n", fixture.path("canary/sub").display())),
    ] {
        let mut spec = fixture.shell("/bin/pwd -P");
        spec.process.cwd = cwd.into();
        assert_eq!(run(&spec).expect("runs").success(), seen);
    }
    assert_eq!(fixture.canary(), before);
    assert!(fixture.upper().contains(&"canary/sub/new".into()));
}

fn a12_files() {
    let links: [fn(&Fixture); 5] = [
        |fixture| symlink("../../../../canary/flag", fixture.base("etc/hosts")).expect("link"),
        |fixture| symlink(fixture.path("canary/b"), fixture.base("etc/hosts")).expect("link"),
        |fixture| symlink("hosts", fixture.base("etc/hosts")).expect("link"),
        |fixture| {
            fs::remove_dir_all(fixture.base("etc")).expect("etc");
            symlink("../../../canary", fixture.base("etc")).expect("link");
        },
        |fixture| {
            fs::remove_dir_all(fixture.base("etc")).expect("etc");
            symlink(fixture.path("canary"), fixture.base("etc")).expect("link");
        },
    ];
    for prepare in links {
        let fixture = Fixture::new();
        prepare(&fixture);
        let before = fixture.canary();
        for targets in [&["/etc/hosts"][..], &["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"]] {
            let mut spec = fixture.shell("cat /etc/hosts 2>/dev/null; true");
            let file = |target: &&str| {
                MountSpec::new(*target, MountSource::File { content: b"generated\n".into(), mode: 0o644 }, true)
            };
            spec.mounts = targets.iter().map(file).collect();
            match run(&spec) {
                Ok(output) => assert_eq!(output.success(), "generated\n"),
                Err(error) => assert!(error.to_string().contains("mount point"), "{error}"), // the loop
            }
            assert_eq!(fixture.canary(), before);
            assert!(!fixture.upper().iter().any(|path| path.contains("hosts")), "{:?}", fixture.upper());
        }
    }
}

fn a17_groups() {
    let fixture = Fixture::new();
    let mut spec = fixture.shell("id -G; cat /tmp/g 2>/dev/null || echo refused");
    spec.process.user = ProcessUser { uid: 1000, gid: 1000, additional_gids: vec![42] };
    fs::write(fixture.base("tmp/g"), "by-group\n").expect("file");
    fs::set_permissions(fixture.base("tmp/g"), std::os::unix::fs::PermissionsExt::from_mode(0o040)).expect("mode");
    std::os::unix::fs::chown(fixture.base("tmp/g"), Some(0), Some(42)).expect("owner");
    assert_eq!(run(&spec).expect("runs").success(), "1000 42\nby-group\n");
    // None of the caller's own groups come along.
    spec.process.user.additional_gids.clear();
    assert_eq!(run(&spec).expect("runs").success(), "1000\nrefused\n");
}

fn a21_bind() {
    let fixture = Fixture::new();
    let source = fixture.path("source");
    fs::create_dir(&source).expect("source");
    symlink("/", source.join("x")).expect("link");
    symlink("../../../../../../../..", source.join("y")).expect("link");
    symlink(fixture.path("canary"), source.join("z")).expect("link");
    for path in ["x", "/x", "y", "../../.."] {
        let mut spec = fixture.shell("ls /mnt");
        let source = MountSource::BindBeneath { root: source.clone(), path: path.into() };
        spec.mounts = vec![MountSpec::new("/mnt", source, true)];
        assert_eq!(run(&spec).expect("runs").success(), "x\ny\nz\n", "{path}");
    }
    let mut spec = fixture.shell("true");
    spec.mounts = vec![MountSpec::new("/mnt", MountSource::BindBeneath { root: source, path: "z".into() }, true)];
    assert!(run(&spec).is_err());
}

fn a25_targets() {
    let fixture = Fixture::new();
    for target in ["/", "//", "/.", "../../x", "/a/../../x", "/dev/shm/../../..", "relative", ""] {
        let mut spec = fixture.shell("true");
        spec.mounts = vec![MountSpec::new(target, MountSource::Tmpfs { size: None, mode: 0o755 }, false)];
        let error = run(&spec).err().unwrap_or_else(|| panic!("{target:?} was accepted"));
        assert!(matches!(error, ExecutorError::MountRefused { .. }), "{target:?}: {error}");
    }
    assert!(!Path::new("/x").exists() && fixture.upper().is_empty());
}
