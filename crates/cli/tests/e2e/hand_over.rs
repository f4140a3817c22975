//! `--load=docker|podman|containerd`: docker's engine API and ctr as doubles, podman for real.

use crate::elsewhere::Daemon;
use crate::fixture::{Forge, Outcome, have, run, system};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What stands for docker: it says which layers it has, and keeps the archives that it is sent.
struct FakeDocker {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The layers of its only image.
    layers: Vec<String>,
    driver: &'static str,
    /// What it says to an archive; the last one for all that follow.
    answers: Vec<&'static str>,
    archives: Vec<Vec<u8>>,
}

impl FakeDocker {
    fn start(folder: &Path, state: State) -> Self {
        let socket = folder.join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let state = Arc::new(Mutex::new(state));
        let serving = state.clone();
        // Ends with the test's process.
        std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| serve(stream, &serving)));
        Self { socket, state }
    }

    fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }
}

fn serve(stream: UnixStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    let mut state = state.lock().unwrap();
    let id = format!("sha256:{}", "a".repeat(64));
    let body = match target.as_str() {
        "/info" => format!("{{\"DriverStatus\":[[\"driver-type\",\"{}\"]]}}", state.driver),
        "/images/json?all=1" => format!("[{{\"Id\":\"{id}\"}}]"),
        "/images/load?quiet=1" => {
            state.archives.push(read_chunks(&mut reader));
            let number = state.archives.len().min(state.answers.len());
            state.answers[number - 1].to_owned()
        }
        target if target == format!("/images/{id}/json") => {
            serde_json::json!({"RootFS": {"Layers": state.layers}}).to_string()
        }
        other => panic!("docker has no {other}"),
    };
    let mut stream = stream;
    let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{chunk}").unwrap();
}

fn read_chunks(reader: &mut impl BufRead) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let size = u64::from_str_radix(line.trim(), 16).unwrap();
        let before = body.len() as u64;
        reader.take(size).read_to_end(&mut body).unwrap();
        assert_eq!(body.len() as u64, before + size);
        reader.read_line(&mut line).unwrap();
        if size == 0 {
            return body;
        }
    }
}

/// The paths of an archive's blobs.
fn blobs(archive: &[u8], folder: &Path) -> Vec<String> {
    let file = folder.join("archive.tar");
    fs::write(&file, archive).unwrap();
    let listed = system(&["tar", "-tf", file.to_str().unwrap()]);
    listed.lines().filter(|line| line.starts_with("blobs/sha256/") && !line.ends_with('/')).map(str::to_owned).collect()
}

fn build(forge: &Forge, variables: &[(&str, &str)], words: &[&str]) -> Outcome {
    run(forge.command(words).envs(variables.iter().copied()), b"")
}

fn small(forge: &Forge) -> String {
    forge.context(
        "small",
        &[
            ("Dockerfile", "FROM busybox\nCOPY greeting /greeting\nCMD [\"cat\", \"/greeting\"]\n"),
            ("greeting", "Hello\n"),
        ],
    )
}

fn layers_of(forge: &Forge, image: &str) -> Vec<String> {
    let text = forge.ok(&["inspect", "-f", "{{json .RootFS.Layers}}", image]).stdout;
    serde_json::from_str(&text).unwrap()
}

const TAKEN: &str = "{\"stream\":\"Loaded image: app:1\\n\"}\n";
const MISSING: &str = "{\"errorDetail\":{\"message\":\"no such layer\"},\"error\":\"no such layer\"}\n";

// Meant to fail with nothing left out, and with the second try left out.
#[test]
fn privileged_docker_is_sent_the_layers_that_it_lacks() {
    let Some(forge) = Forge::privileged("docker_is_sent_the_layers_that_it_lacks") else { return };
    let context = small(&forge);
    let base = layers_of(&forge, "busybox");
    let folder = tempfile::tempdir().unwrap();
    let docker = FakeDocker::start(folder.path(), State { answers: vec![TAKEN], ..State::default() });
    let words = ["build", "-q", "--load=docker", "-t", "app:1", &context];
    let loaded = build(&forge, &[("DOCKER_HOST", &docker.host())], &words);
    assert_eq!(loaded.code, 0, "{}", loaded.stderr);
    let all = blobs(&docker.state.lock().unwrap().archives[0], folder.path());
    // A manifest, a config, and two layers.
    assert_eq!(all.len(), 4, "{all:?}");
    forge.fails(1, &["inspect", "app:1"]);

    docker.state.lock().unwrap().layers = base.clone();
    assert_eq!(build(&forge, &[("DOCKER_HOST", &docker.host())], &words).code, 0);
    let fewer = blobs(&docker.state.lock().unwrap().archives[1], folder.path());
    let expect: Vec<&String> = all.iter().filter(|path| !path.ends_with(&base[0]["sha256:".len()..])).collect();
    assert_eq!(fewer.iter().collect::<Vec<_>>(), expect, "bare layers are known by their diff ids");
    let archive = folder.path().join("archive.tar");
    let manifest = system(&["tar", "-xOf", archive.to_str().unwrap(), "manifest.json"]);
    assert!(
        manifest.contains("\"RepoTags\":[\"app:1\"]") && manifest.contains(&base[0]["sha256:".len()..]),
        "{manifest}"
    );

    docker.state.lock().unwrap().driver = "io.containerd.snapshotter.v1";
    assert_eq!(build(&forge, &[("DOCKER_HOST", &docker.host())], &words).code, 0);
    assert_eq!(blobs(&docker.state.lock().unwrap().archives[2], folder.path()), all, "that store wants everything");

    let mut state = docker.state.lock().unwrap();
    (state.driver, state.answers) = ("overlay2", vec![TAKEN, TAKEN, TAKEN, MISSING, TAKEN]);
    drop(state);
    assert_eq!(build(&forge, &[("DOCKER_HOST", &docker.host())], &words).code, 0);
    let sent = docker.state.lock().unwrap().archives.clone();
    assert_eq!((sent.len(), blobs(&sent[4], folder.path())), (5, all), "what was left out was missed");

    docker.state.lock().unwrap().answers = vec![MISSING];
    let refused = build(&forge, &[("DOCKER_HOST", &docker.host())], &words);
    assert!(
        refused.code == 1 && refused.stderr.contains("docker refused the image: no such layer"),
        "{}",
        refused.stderr
    );
}

/// The image comes back from the daemon and is handed to the engine of this machine, which has the last word.
#[test]
fn privileged_images_built_elsewhere_are_handed_to_engines_here() {
    let Some(forge) = Forge::privileged("images_built_elsewhere_are_handed_to_engines_here") else { return };
    let daemon = Daemon::start(&forge);
    let context = small(&forge);
    let folder = tempfile::tempdir().unwrap();
    let docker = FakeDocker::start(folder.path(), State { answers: vec![TAKEN, MISSING], ..State::default() });
    let elsewhere = ["--host", &daemon.address, "build", "-q"];
    let words = [&elsewhere[..], &["--load=docker", "-t", "app:1", &context]].concat();
    let loaded = build(&forge, &[("DOCKER_HOST", &docker.host())], &words);
    assert_eq!(loaded.code, 0, "{}", loaded.stderr);
    let all = blobs(&docker.state.lock().unwrap().archives[0], folder.path());
    assert_eq!(all.len(), 4, "a manifest, a config and two layers: {all:?}");
    let archive = folder.path().join("archive.tar");
    let manifest = system(&["tar", "-xOf", archive.to_str().unwrap(), "manifest.json"]);
    assert!(manifest.contains("\"RepoTags\":[\"app:1\"]"), "{manifest}");
    assert!(manifest.contains(loaded.stdout.trim().trim_start_matches("sha256:")), "{manifest}\n{}", loaded.stdout);
    let refused = build(&forge, &[("DOCKER_HOST", &docker.host())], &words);
    let why = "docker refused the image: no such layer";
    assert!(refused.code == 1 && refused.stderr.contains(why), "{}", refused.stderr);
    let nowhere = format!("unix://{}", forge.path("none.sock").display());
    let absent = build(&forge, &[("DOCKER_HOST", &nowhere)], &words);
    assert!(absent.code == 1 && absent.stderr.contains("cannot reach docker"), "{}", absent.stderr);
    // And to containerd, by what stands for its client.
    let bin = forge.path("bin");
    script(&bin.join("ctr"), &format!("case \"$*\" in *import*) cat > {}; esac", forge.path("layout.tar").display()));
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let words = [&elsewhere[..], &["--load=containerd", "-t", "app:1", &context]].concat();
    let loaded = build(&forge, &[("PATH", &path)], &words);
    assert_eq!(loaded.code, 0, "{}", loaded.stderr);
    let index = system(&["tar", "-xOf", forge.path("layout.tar").to_str().unwrap(), "index.json"]);
    assert!(index.contains("\"io.containerd.image.name\": \"docker.io/library/app:1\""), "{index}");
    let nameless = build(&forge, &[("PATH", &path)], &[&elsewhere[..], &["--load=containerd", &context]].concat());
    assert!(nameless.stderr.contains("containerd knows images by their names"), "{}", nameless.stderr);
}

#[test]
fn privileged_an_engine_that_is_not_there_is_named() {
    let Some(forge) = Forge::privileged("an_engine_that_is_not_there_is_named") else { return };
    let context = small(&forge);
    let nowhere = format!("unix://{}", forge.path("none.sock").display());
    let docker = build(&forge, &[("DOCKER_HOST", &nowhere)], &["build", "-q", "--load=docker", "-t", "app", &context]);
    assert_eq!(docker.code, 1);
    assert!(
        docker.stderr.contains("cannot reach docker") && docker.stderr.contains("DOCKER_HOST"),
        "{}",
        docker.stderr
    );
    let far = build(&forge, &[("DOCKER_HOST", "tcp://h:1")], &["build", "--load=docker", &context]);
    assert!(far.code != 0 && far.stderr.contains("no socket of this machine"), "{}", far.stderr);
    let path = forge.path("bin").display().to_string();
    let words = ["build", "-q", "--load=containerd", "-t", "app", &context];
    let containerd = build(&forge, &[("PATH", &path)], &words);
    assert!(containerd.code == 1 && containerd.stderr.contains("install ctr"), "{}", containerd.stderr);
    let nameless = forge.fails(1, &["build", "-q", "--load=containerd", &context]);
    assert!(nameless.stderr.contains("containerd knows images by their names"), "{}", nameless.stderr);
    let unknown = forge.forge(&["build", "--load=rkt", &context]);
    assert!(unknown.code != 0 && unknown.stderr.contains("rkt"), "{}", unknown.stderr);
}

fn script(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn privileged_podman_takes_an_image() {
    let test = "podman_takes_an_image";
    let Some(forge) = Forge::privileged(test) else { return };
    if !have(test, &["podman"]) {
        return;
    }
    let storage = forge.path("podman");
    let start = format!("--root {0}/storage --runroot {0}/run --storage-driver vfs", storage.display());
    script(&forge.path("bin/podman"), &format!("exec timeout 120 /usr/bin/podman {start} \"$@\""));
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", forge.path("bin").display());
    let context = small(&forge);
    let loaded = build(&forge, &[("PATH", &path)], &["build", "-q", "--load=podman", "-t", "app:1", &context]);
    assert_eq!(loaded.code, 0, "{}", loaded.stderr);
    let podman = forge.path("bin/podman").display().to_string();
    let listed = system(&[&podman, "images", "--format", "{{.Repository}}:{{.Tag}}"]);
    assert!(listed.contains("docker.io/library/app:1"), "{listed}");
    let how = ["--runtime", "runc", "--cgroup-manager", "cgroupfs", "run", "--rm", "--network", "none"];
    let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "docker.io/library/app:1"];
    let ran = system(&[&[podman.as_str()][..], &how, &limits].concat());
    assert_eq!(ran, "Hello\n");
    script(&forge.path("bin/podman"), "cat > /dev/null; echo 'no space left' >&2; exit 125");
    let refused = build(&forge, &[("PATH", &path)], &["build", "-q", "--load=podman", "-t", "app:1", &context]);
    assert!(
        refused.code == 1 && refused.stderr.contains("podman refused the image: no space left"),
        "{}",
        refused.stderr
    );
}

#[test]
fn privileged_containerd_is_sent_the_blobs_that_it_lacks() {
    let Some(forge) = Forge::privileged("containerd_is_sent_the_blobs_that_it_lacks") else { return };
    let context = small(&forge);
    let base = layers_of(&forge, "busybox");
    let folder = forge.path("ctr");
    let place = folder.display();
    fs::create_dir_all(&folder).unwrap();
    let text = format!(
        "echo \"$*\" >> {place}/calls\ncase \"$*\" in *'content ls -q') cat {place}/have;; *) cat > {place}/got;; esac"
    );
    script(&forge.path("bin/ctr"), &text);
    let path = format!("{}:/usr/bin:/bin", forge.path("bin").display());
    let variables = [("PATH", path.as_str()), ("CONTAINERD_NAMESPACE", "k8s.io"), ("CONTAINERD_ADDRESS", "/c.sock")];
    for (have, expect) in [(String::new(), 4), (format!("{}\n", base[0]), 3)] {
        fs::write(folder.join("have"), have).unwrap();
        let loaded = build(&forge, &variables, &["build", "-q", "--load=containerd", "-t", "app:1", &context]);
        assert_eq!(loaded.code, 0, "{}", loaded.stderr);
        let got = fs::read(folder.join("got")).unwrap();
        assert_eq!(blobs(&got, &folder).len(), expect);
    }
    let index = system(&["tar", "-xOf", folder.join("got").to_str().unwrap(), "index.json"]);
    assert!(index.contains("\"io.containerd.image.name\": \"docker.io/library/app:1\""), "{index}");
    let calls = fs::read_to_string(folder.join("calls")).unwrap();
    assert!(
        calls.starts_with(
            "--address /c.sock --namespace k8s.io content ls -q\n--address /c.sock --namespace k8s.io images import -\n"
        ),
        "{calls}"
    );
}
