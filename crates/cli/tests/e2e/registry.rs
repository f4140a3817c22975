//! A real registry: Debian's docker-registry on this machine.

use crate::fixture::{Forge, Step, find, have, shared, state, system, testdata};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A running registry, ended when dropped.
pub struct Registry {
    process: Child,
    pub host: String,
    _files: TempDir,
}

/// Who may use a registry that wants credentials; the hash is bcrypt's of the password.
pub const USER: &str = "tester";
pub const PASSWORD: &str = "open sesame";
const PASSWORD_HASH: &str = "$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW";

impl Registry {
    pub fn start(test: &str) -> Option<Self> {
        have(test, &["docker-registry"]).then(|| Self::run(tempfile::tempdir().unwrap(), ""))
    }

    /// A registry that only [`USER`] may use.
    pub fn start_private(test: &str) -> Option<Self> {
        if !have(test, &["docker-registry"]) {
            return None;
        }
        let files = tempfile::tempdir().unwrap();
        let users = files.path().join("htpasswd");
        fs::write(&users, format!("{USER}:{PASSWORD_HASH}\n")).unwrap();
        let auth = format!("auth:\n  htpasswd:\n    realm: tests\n    path: {}\n", users.display());
        Some(Self::run(files, &auth))
    }

    fn run(files: TempDir, more: &str) -> Self {
        let host = free_address();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n{more}",
            files.path().join("data").display()
        );
        fs::write(files.path().join("config.yml"), config).unwrap();
        let mut command = Command::new(find("docker-registry").unwrap());
        command
            .arg("serve")
            .arg(files.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let registry = Self { process: command.spawn().unwrap(), host, _files: files };
        let start = Instant::now();
        while TcpStream::connect(&registry.host).is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "the registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn privileged_push_and_pull_into_an_empty_store() {
    let test = "push_and_pull_into_an_empty_store";
    let Some(forge) = Forge::privileged(test) else { return };
    let Some(registry) = Registry::start(test) else { return };
    let name = format!("{}/team/app:1.0", registry.host);
    forge.build(&["--push", "-t", &name, &testdata("hello")]);
    let pushed = forge.ok(&["push", &name]).stdout;
    assert!(
        pushed
            .starts_with(&format!("The push refers to repository [{}/team/app]\n1.0: digest: sha256:", registry.host)),
        "{pushed}"
    );
    let other = Forge::new();
    let pulled = other.ok(&["pull", &name]).stdout;
    assert!(pulled.contains(&format!("Status: Downloaded newer image for {name}\n")), "{pulled}");
    assert!(other.ok(&["pull", &name]).stdout.contains("Status: Image is up to date for"));
    let id = |forge: &Forge| forge.ok(&["inspect", "-f", "{{.Id}}", &name]).stdout;
    assert_eq!(id(&other), id(&forge));
    assert_eq!(other.ok(&["run", "--rm", &name]).stdout, forge.ok(&["run", "--rm", &name]).stdout);
    let digest = pulled.lines().find_map(|line| line.strip_prefix("Digest: ")).unwrap().to_owned();
    let third = Forge::new();
    let by_digest = format!("{}/team/app@{digest}", registry.host);
    assert!(third.ok(&["run", "--rm", &by_digest]).stdout.starts_with("Hello, world"));
    third.fails(1, &["pull", &format!("{}/team/app:nosuch", registry.host)]);
}

#[test]
fn privileged_a_pulled_layer_keeps_its_bytes() {
    let test = "a_pulled_layer_keeps_its_bytes";
    let Some(forge) = Forge::privileged(test) else { return };
    let Some(registry) = Registry::start(test) else { return };
    let name = format!("{}/base:1", registry.host);
    let again = format!("{}/other:1", registry.host);
    forge.ok(&["tag", "busybox", &name]);
    forge.ok(&["push", &name]);
    let other = Forge::new();
    other.ok(&["pull", &name]);
    let context = other.context("context", &[("Dockerfile", &format!("FROM {name}\nRUN echo more > /more\n"))]);
    other.build(&["--push", "-t", &again, &context]);
    if have(test, &["skopeo"]) {
        let layers = |name: &str| {
            let seen = system(&["skopeo", "inspect", "--tls-verify=false", &format!("docker://{name}")]);
            serde_json::from_str::<serde_json::Value>(&seen).unwrap()["Layers"].as_array().unwrap().clone()
        };
        let (base, built) = (layers(&name), layers(&again));
        assert_eq!(built[..base.len()], base[..]);
        assert_eq!(built.len(), base.len() + 1);
    }
}

#[test]
fn privileged_others_read_what_forge_pushes() {
    let test = "others_read_what_forge_pushes";
    let Some(forge) = Forge::privileged(test) else { return };
    let Some(registry) = Registry::start(test) else { return };
    if !have(test, &["skopeo"]) {
        return;
    }
    let name = format!("{}/app:1.0", registry.host);
    for compression in ["gzip", "zstd", "uncompressed"] {
        forge.ok(&[
            "build",
            "-q",
            "-t",
            &name,
            "-o",
            &format!("type=registry,compression={compression}"),
            &testdata("hello"),
        ]);
        let layout = forge.path(compression).to_str().unwrap().to_owned();
        system(&[
            "skopeo",
            "copy",
            "-q",
            "--src-tls-verify=false",
            &format!("docker://{name}"),
            &format!("oci:{layout}:app"),
        ]);
        if let Some(dump) = shared(test, "tools/oci-dump") {
            let seen = system(&[dump.to_str().unwrap(), &layout]);
            assert!(seen.contains("app/greeting.txt"), "{compression}");
        }
    }
    // Also the other way round: what skopeo pushed is pulled.
    let archive = forge.path("app.tar").to_str().unwrap().to_owned();
    forge.ok(&["save", "-o", &archive, &name]);
    let copied = format!("{}/copied:1", registry.host);
    system(&[
        "skopeo",
        "copy",
        "-q",
        "--dest-tls-verify=false",
        "--format",
        "v2s2",
        &format!("docker-archive:{archive}"),
        &format!("docker://{copied}"),
    ]);
    let other = Forge::new();
    assert!(other.ok(&["run", "--rm", &copied]).stdout.starts_with("Hello, world"));
}

#[test]
fn privileged_base_images_come_from_registries_and_named_contexts() {
    let test = "base_images_come_from_registries_and_named_contexts";
    let Some(forge) = Forge::privileged(test) else { return };
    let Some(registry) = Registry::start(test) else { return };
    let name = format!("{}/base:1", registry.host);
    forge.ok(&["tag", "busybox", &name]);
    forge.ok(&["push", &name]);
    let other = Forge::new();
    let context =
        other.context("context", &[("Dockerfile", "FROM base\nCOPY --from=files /hello /hello\nRUN cat /hello\n")]);
    let files = other.context("files", &[("hello", "from a named context")]);
    other.build(&[
        "-t",
        "x",
        "--build-context",
        &format!("base=docker-image://{name}"),
        "--build-context",
        &format!("files={files}"),
        &context,
    ]);
    assert_eq!(other.shell("x", "cat /hello"), "from a named context");
    let offline = other.build(&[
        "--offline",
        "--build-context",
        &format!("base=docker-image://{name}"),
        "--build-context",
        &format!("files={files}"),
        &context,
    ]);
    assert!(!offline.is_empty());
    forge.build(&[
        "-o",
        "type=oci,dest=layout,tar=false,name=base:1",
        &forge.context("again", &[("Dockerfile", "FROM busybox\nRUN echo laid out > /laid\n")]),
    ]);
    let layout = format!("base=oci-layout://{}:1", forge.path("layout").display());
    let context = other.context("context", &[("Dockerfile", "FROM base\nRUN cat /laid\n")]);
    other.build(&["--offline", "-t", "y", "--build-context", &layout, &context]);
    assert_eq!(other.shell("y", "cat /laid"), "laid out\n");
}

#[test]
fn privileged_layers_are_pulled_in_every_compression() {
    let test = "layers_are_pulled_in_every_compression";
    let Some(forge) = Forge::privileged(test) else { return };
    let Some(registry) = Registry::start(test) else { return };
    let context =
        forge.context("context", &[("Dockerfile", "FROM busybox\nRUN echo unpacked > /file && chmod 640 /file\n")]);
    let mut diff_ids = Vec::new();
    for compression in ["gzip", "zstd", "uncompressed"] {
        let name = format!("{}/app:{compression}", registry.host);
        let output = format!("type=registry,compression={compression},force-compression=true");
        forge.build(&["-t", &name, "-o", &output, &context]);
        let other = Forge::new();
        other.ok(&["pull", &name]);
        assert_eq!(other.shell(&name, "cat /file; stat -c %a /file"), "unpacked\n640\n", "{compression}");
        diff_ids.push(other.ok(&["inspect", "-f", "{{json .RootFS.Layers}}", &name]).stdout);
    }
    assert!(diff_ids.windows(2).all(|pair| pair[0] == pair[1]), "{diff_ids:?}");
}

#[test]
fn privileged_pull_asks_for_a_newer_base() {
    let test = "pull_asks_for_a_newer_base";
    let Some(forge) = Forge::privileged(test) else { return };
    let Some(registry) = Registry::start(test) else { return };
    let base = format!("{}/base:1", registry.host);
    let publish = |text: &str| {
        let dockerfile = format!("FROM busybox\nRUN echo {text} > /which\n");
        forge.build(&["--push", "-t", &base, &forge.context("base", &[("Dockerfile", &dockerfile)])]);
    };
    publish("old");
    let other = Forge::new();
    let context = other.context("context", &[("Dockerfile", &format!("FROM {base}\nRUN cp /which /seen\n"))]);
    other.build(&["-t", "x", &context]);
    publish("new");
    let again = other.build(&["-t", "x", &context]);
    assert_eq!(state(&again, "RUN cp"), Step::Cached);
    assert_eq!(other.shell("x", "cat /seen"), "old\n");
    let pulled = other.build(&["--pull", "-t", "x", &context]);
    assert_eq!(state(&pulled, "RUN cp"), Step::Ran);
    assert_eq!(other.shell("x", "cat /seen"), "new\n");
}

// Fails when a name is given before the push.
#[test]
fn privileged_a_failed_push_moves_no_name() {
    let test = "a_failed_push_moves_no_name";
    let Some(forge) = Forge::privileged(test) else { return };
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nRUN echo new > /new\n")]);
    let name = "127.0.0.1:9/app:1";
    forge.ok(&["tag", "busybox", name]);
    let id = || forge.ok(&["inspect", "-f", "{{.Id}}", name]).stdout;
    let before = id();
    let failed = forge.fails(1, &["build", "--push", "-t", name, "-t", "other", "--iidfile", "id", &context]);
    assert!(failed.stderr.contains("127.0.0.1:9") && failed.stderr.contains("hint: "), "{}", failed.stderr);
    assert_eq!(id(), before);
    forge.fails(1, &["inspect", "other"]);
    assert!(!forge.path("id").exists());
}

/// A distribution's package manager in a step, over the network: run by hand or in CI with
/// FORGE_TEST_NETWORK=1, since tests otherwise open no connection beyond this machine.
#[test]
fn privileged_a_debian_base_installs_packages() {
    let test = "a_debian_base_installs_packages";
    if std::env::var("FORGE_TEST_NETWORK").is_err() {
        println!("SKIPPED (needs FORGE_TEST_NETWORK=1): {test}");
        return;
    }
    let Some(forge) = Forge::privileged(test) else { return };
    let Some(registry) = Registry::start(test) else { return };
    if !have(test, &["debootstrap"]) {
        return;
    }
    let rootfs = forge.path("debian/rootfs").to_str().unwrap().to_owned();
    let mirror =
        std::env::var("FORGE_TEST_DEBIAN_MIRROR").unwrap_or_else(|_| "http://deb.debian.org/debian".to_owned());
    system(&["debootstrap", "--variant=minbase", "stable", &rootfs, &mirror]);
    fs::write(forge.path("debian/Dockerfile"), "FROM scratch\nCOPY rootfs /\nCMD [\"bash\"]\n").unwrap();
    let base = format!("{}/debian:stable", registry.host);
    let name = format!("{}/greet:1", registry.host);
    forge.build(&["--push", "-t", &base, forge.path("debian").to_str().unwrap()]);
    let other = Forge::new();
    other.build(&[
        "--push",
        "-t",
        &name,
        "--build-context",
        &format!("debian=docker-image://{base}"),
        &testdata("debian-python"),
    ]);
    let said = other.ok(&["run", "--rm", &name, "reader"]).stdout;
    assert_eq!(said, "hello from Python 3 on linux: reader\n");
    let third = Forge::new();
    third.ok(&["pull", &name]);
    assert_eq!(third.ok(&["run", "--rm", &name, "reader"]).stdout, said);
}
