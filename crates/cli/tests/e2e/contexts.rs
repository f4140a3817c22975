//! What a build reads from: standard input, folders with links, named contexts.

use crate::fixture::{Forge, Outcome, Step, have, state, system, wait};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;
use tar::{Builder, EntryType, Header};

/// An entry of an archive as raw as the format allows: names are not checked.
struct Entry<'a> {
    kind: EntryType,
    name: &'a str,
    link: &'a str,
    text: &'a str,
}

fn file<'a>(name: &'a str, text: &'a str) -> Entry<'a> {
    Entry { kind: EntryType::Regular, name, link: "", text }
}

fn link<'a>(kind: EntryType, name: &'a str, link: &'a str) -> Entry<'a> {
    Entry { kind, name, link, text: "" }
}

/// How many bytes of a name, or of a link's target, a header holds.
const FIELD: usize = 100;

/// What of a path goes into the header; an entry of its own before it holds a longer one.
fn shortened<'a>(archive: &mut Builder<Vec<u8>>, kind: EntryType, path: &'a [u8]) -> &'a [u8] {
    if path.len() > FIELD {
        append(archive, kind, b"././@LongLink", b"", path);
    }
    &path[..path.len().min(FIELD)]
}

/// Names are written as they are, hostile ones too.
fn append(archive: &mut Builder<Vec<u8>>, kind: EntryType, name: &[u8], link: &[u8], data: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    let fields = header.as_gnu_mut().unwrap();
    fields.name[..name.len()].copy_from_slice(name);
    fields.linkname[..link.len()].copy_from_slice(link);
    header.set_cksum();
    archive.append(&header, data).unwrap();
}

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for entry in entries {
        // The folder of tests may lie deep.
        let name = shortened(&mut archive, EntryType::GNULongName, entry.name.as_bytes());
        let link = shortened(&mut archive, EntryType::GNULongLink, entry.link.as_bytes());
        append(&mut archive, entry.kind, name, link, entry.text.as_bytes());
    }
    archive.into_inner().unwrap()
}

/// The bytes as a program packs them.
fn packed(program: &str, bytes: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("context.tar");
    fs::write(&path, bytes).unwrap();
    system(&[program, "-k", path.to_str().unwrap()]);
    let made = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    fs::read(made.into_iter().find(|made| *made != path).unwrap()).unwrap()
}

impl Forge {
    fn build_from(&self, words: &[&str], input: &[u8]) -> Outcome {
        let words: Vec<&str> = ["build", "--progress", "plain"].iter().chain(words).copied().collect();
        self.with_input(&words, input)
    }

    /// What the store keeps for running processes only.
    fn scratch(&self) -> Vec<String> {
        let folders = fs::read_dir(self.store().join("scratch")).into_iter().flatten().flatten();
        folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

#[test]
fn privileged_an_archive_on_standard_input_is_the_context() {
    let Some(forge) = Forge::privileged("an_archive_on_standard_input_is_the_context") else { return };
    let tar = archive(&[
        file("Dockerfile", "FROM busybox\nCOPY . /srv/\n"),
        file("sub/Dockerfile", "FROM busybox\nCOPY data /other\n"),
        file("data", "from the archive"),
        // As in BuildKit, only a folder of this machine has ignore files.
        file(".dockerignore", "data\n"),
    ]);
    let packings = ["gzip", "bzip2", "xz", "zstd"];
    let archives = packings.iter().map(|program| packed(program, &tar)).chain([tar.clone()]);
    for (number, bytes) in archives.enumerate() {
        let name = format!("piped:{number}");
        let built = forge.build_from(&["-t", &name, "-"], &bytes);
        assert_eq!(built.code, 0, "{}", built.stderr);
        assert!(built.stderr.contains("[internal] load remote build context"), "{}", built.stderr);
        // The same files in another packing: nothing is copied again.
        assert_eq!(built.stderr.contains("CACHED"), number > 0, "{}", built.stderr);
    }
    assert_eq!(
        forge.shell("piped:4", "cat /srv/data; ls -A /srv"),
        "from the archive.dockerignore\nDockerfile\ndata\nsub\n"
    );
    let named = forge.build_from(&["-t", "named", "-f", "sub/Dockerfile", "-"], &tar);
    assert_eq!(named.code, 0, "{}", named.stderr);
    assert_eq!(forge.shell("named", "cat /other"), "from the archive");
    assert_eq!(forge.scratch(), [""; 0], "the archive's files are gone");
}

#[test]
fn privileged_what_standard_input_lacks_is_told() {
    let Some(forge) = Forge::privileged("what_standard_input_lacks_is_told") else { return };
    let tar = archive(&[file("readme", "x")]);
    let told = |words: &[&str], input: &[u8]| {
        let outcome = forge.build_from(words, input);
        assert_eq!(outcome.code, 1, "{}", outcome.stderr);
        outcome.stderr
    };
    let missing = told(&["-"], &tar);
    assert!(missing.contains("failed to read dockerfile: open Dockerfile: no such file or directory"), "{missing}");
    assert!(missing.contains("there is no Dockerfile in the build context"), "{missing}");
    let named = told(&["-f", "a/b", "-"], &tar);
    assert!(named.contains("failed to read dockerfile: open a/b: no such file or directory"), "{named}");
    let both = told(&["-f", "x", "-"], b"FROM busybox\n");
    assert!(both.contains("both stdin and flag correspond to Dockerfiles"), "{both}");
    assert!(told(&["-"], b"").contains("standard input holds no Dockerfile"));
}

// Seen to fail: with `tar -x` instead of the reader for strangers' layers, the canary is written.
#[test]
fn privileged_a33_a_hostile_archive_writes_nothing_outside() {
    let Some(forge) = Forge::privileged("a33_a_hostile_archive_writes_nothing_outside") else { return };
    let outside = forge.path("outside");
    fs::create_dir(&outside).unwrap();
    let canary = outside.join("canary");
    fs::write(&canary, "untouched").unwrap();
    let (folder, canary) = (outside.to_str().unwrap(), canary.to_str().unwrap());
    let up = format!("{}{}/canary", "../".repeat(20), folder.trim_start_matches('/'));
    let dockerfile = || file("Dockerfile", "FROM busybox\nCOPY . /srv/\n");
    let refused = [
        vec![dockerfile(), file(&up, "written")],
        vec![dockerfile(), file("a/../../../canary", "written")],
        vec![dockerfile(), link(EntryType::Link, "hard", &up)],
        vec![dockerfile(), link(EntryType::Link, "hard", canary)],
    ];
    for entries in &refused {
        let outcome = forge.build_from(&["-t", "hostile", "-"], &archive(entries));
        assert_eq!(outcome.code, 1, "{}", outcome.stderr);
        assert!(outcome.stderr.contains("cannot unpack the build context"), "{}", outcome.stderr);
    }
    // Names with a slash in front, and links, mean places within the archive, as for docker.
    let kept = [
        vec![dockerfile(), file(canary, "written")],
        vec![dockerfile(), link(EntryType::Symlink, "way", folder), file("way/canary", "written")],
        vec![dockerfile(), link(EntryType::Symlink, "canary", canary), file("canary", "written")],
    ];
    for entries in &kept {
        let outcome = forge.build_from(&["-t", "hostile", "-"], &archive(entries));
        let told = outcome.stderr.contains("cannot unpack the build context");
        assert_eq!(outcome.code, i32::from(told), "{}", outcome.stderr);
    }
    assert_eq!(fs::read_to_string(canary).unwrap(), "untouched");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(forge.scratch(), [""; 0]);
}

// Seen to fail when a stream that cannot be unpacked is read as a Dockerfile.
#[test]
fn privileged_a34_a_cut_archive_is_no_dockerfile() {
    let Some(forge) = Forge::privileged("a34_a_cut_archive_is_no_dockerfile") else { return };
    let canary = forge.path("canary");
    fs::write(&canary, "FROM busybox\nRUN echo untouched\n").unwrap();
    let long = "x".repeat(5000);
    let name = canary.to_str().unwrap();
    let tar = archive(&[link(EntryType::Symlink, "Dockerfile", name), file("big", &long)]);
    let whole = forge.build_from(&["-"], &archive(&[link(EntryType::Symlink, "Dockerfile", name)]));
    assert_eq!(whole.code, 1, "a link out of the archive leads nowhere: {}", whole.stderr);
    assert!(whole.stderr.contains("failed to read dockerfile"), "{}", whole.stderr);
    for bytes in [&tar[..2000], &packed("gzip", &tar)[..60], b"\x1f\x8b\x08FROM busybox\n"] {
        let outcome = forge.build_from(&["-t", "cut", "-"], bytes);
        assert_eq!(outcome.code, 1, "{}", outcome.stderr);
        assert!(outcome.stderr.contains("cannot unpack the build context"), "{}", outcome.stderr);
        assert!(!outcome.stderr.contains("untouched"), "{}", outcome.stderr);
    }
    assert_eq!(fs::read_to_string(&canary).unwrap(), "FROM busybox\nRUN echo untouched\n");
    assert_eq!(forge.scratch(), [""; 0]);
}

// Seen to fail with a context that follows links as the kernel does from the host's root.
#[test]
fn privileged_a31_a32_links_out_of_the_context_disclose_nothing() {
    let Some(forge) = Forge::privileged("a31_a32_links_out_of_the_context_disclose_nothing") else { return };
    let token = "token-4711-of-the-host";
    let canary = forge.path("canary");
    fs::write(&canary, format!("{token}\n[a-\n")).unwrap();
    let nested = format!("{}canary", "../".repeat(30));
    let places = [canary.to_str().unwrap().to_owned(), "../canary".to_owned(), nested];
    for (number, target) in places.iter().enumerate() {
        for name in ["Dockerfile", ".dockerignore", "Dockerfile.dockerignore", "file"] {
            let context = forge.context(&format!("{number}{name}"), &[("readme", "x")]);
            fs::write(format!("{context}/Dockerfile"), "FROM busybox\nCOPY file* readme /srv/\n").unwrap();
            let _ = fs::remove_file(format!("{context}/{name}"));
            std::os::unix::fs::symlink(target, format!("{context}/{name}")).unwrap();
            let outcome = forge.forge(&["build", "--progress", "plain", "-t", "linked", &context]);
            assert!(!outcome.stderr.contains(token), "{name}: {}", outcome.stderr);
            assert_eq!(outcome.code, i32::from(name == "Dockerfile"), "{name} -> {target}: {}", outcome.stderr);
            if outcome.code == 0 {
                assert!(!forge.shell("linked", "cat /srv/* 2>/dev/null; true").contains(token), "{name}");
            }
        }
    }
    let around = forge.context("around", &[("readme", "x")]);
    std::os::unix::fs::symlink("b", format!("{around}/Dockerfile")).unwrap();
    std::os::unix::fs::symlink("Dockerfile", format!("{around}/b")).unwrap();
    assert!(forge.fails(1, &["build", &around]).stderr.contains("too many levels of symbolic links"));
}

#[test]
fn privileged_the_dockerfile_has_its_own_ignore_file() {
    let Some(forge) = Forge::privileged("the_dockerfile_has_its_own_ignore_file") else { return };
    let context = forge.context(
        "context",
        &[
            ("Dockerfile", "FROM busybox\nCOPY . /srv/\n"),
            ("docker/test.Dockerfile", "FROM busybox\nCOPY . /srv/\n"),
            ("docker/test.Dockerfile.dockerignore", "a\ndocker/\n"),
            (".dockerignore", "b\n**/*ockerfile*\n.dockerignore\n"),
            ("a", ""),
            ("b", ""),
        ],
    );
    // What the ignore file excludes is read all the same, but not copied.
    forge.build(&["-t", "own", &context]);
    assert_eq!(forge.shell("own", "cd /srv && find . -type f | sort"), "./a\n");
    let other = format!("{context}/docker/test.Dockerfile");
    forge.build(&["-t", "own", "-f", &other, &context]);
    assert_eq!(forge.shell("own", "cd /srv && find . -type f | sort"), "./.dockerignore\n./Dockerfile\n./b\n");
    // A Dockerfile of standard input has none of its own.
    let piped = forge.build_from(&["-t", "own", "-f", "-", &context], b"FROM busybox\nCOPY . /srv/\n");
    assert_eq!(piped.code, 0, "{}", piped.stderr);
    assert_eq!(forge.shell("own", "cd /srv && find . -type f | sort"), "./a\n");
}

#[test]
fn privileged_an_unfinished_stream_can_be_interrupted() {
    let Some(forge) = Forge::privileged("an_unfinished_stream_can_be_interrupted") else { return };
    let tar = archive(&[file("Dockerfile", "FROM busybox\n"), file("big", &"x".repeat(4000))]);
    let mut command = forge.command(&["build", "--progress", "plain", "-"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&tar[..2000]).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    system(&["kill", "-INT", &child.id().to_string()]);
    assert_eq!(wait(&mut child), 130);
    drop(stdin);
    forge.ok(&["images"]);
    assert_eq!(forge.scratch(), [""; 0], "the next process clears away what is left");
}

/// A server of fixed files, by path.
fn serve(files: &[(&str, Vec<u8>)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let files: Vec<(String, Vec<u8>)> = files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.clone())).collect();
    // Ends with the test process: nothing tells it to stop.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let request = lines.next().unwrap_or_default();
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let path = request.split(' ').nth(1).unwrap_or_default();
            let found = files.iter().find(|(of, _)| of == path.split('?').next().unwrap_or_default());
            let (status, body) = found.map_or(("404 Not Found", &[][..]), |(_, bytes)| ("200 OK", &bytes[..]));
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let body = if request.starts_with("HEAD") { &[][..] } else { body };
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    format!("http://{host}")
}

#[test]
fn privileged_a_download_is_the_context_or_the_dockerfile() {
    let Some(forge) = Forge::privileged("a_download_is_the_context_or_the_dockerfile") else { return };
    let tar = archive(&[
        file("Dockerfile", "FROM busybox\nCOPY . /srv/\n"),
        file("sub/Dockerfile", "FROM busybox\nCOPY data /other\n"),
        file("data", "from afar"),
        file(".dockerignore", "data\n"),
    ]);
    let plain = b"FROM busybox\nRUN echo alone > /said\n".to_vec();
    let host = serve(&[("/context.tar.gz", packed("gzip", &tar)), ("/plain", plain)]);
    let archive = format!("{host}/context.tar.gz");
    forge.build(&["-t", "remote", &archive]);
    assert_eq!(forge.shell("remote", "cat /srv/data; ls -A /srv | wc -l"), "from afar4\n");
    let again = forge.build(&["-t", "remote", &archive]);
    assert_eq!(state(&again, "COPY . /srv/"), Step::Cached);
    forge.build(&["-t", "remote", "-f", "sub/Dockerfile", &archive]);
    assert_eq!(forge.shell("remote", "cat /other"), "from afar");
    forge.build(&["-t", "alone", &format!("{host}/plain")]);
    assert_eq!(forge.shell("alone", "cat /said"), "alone\n");
    // The address of a Dockerfile, for a folder of this machine.
    let context = forge.context("context", &[("Dockerfile", "FROM scratch\n")]);
    forge.build(&["-t", "fetched", "-f", &format!("{host}/plain"), &context]);
    assert_eq!(forge.shell("fetched", "cat /said"), "alone\n");
    let missing = forge.fails(1, &["build", "-f", "none", &archive]);
    assert!(missing.stderr.contains("failed to read dockerfile: open none: no such file"), "{}", missing.stderr);
    let secret = archive.replace("http://", "http://user:geheim@").replace("context", "absent");
    let refused = forge.fails(1, &["build", "--progress", "plain", &secret]);
    assert!(refused.stderr.contains("404") && !refused.stderr.contains("geheim"), "{}", refused.stderr);
}

// The same archives as on standard input. Seen to fail there.
#[test]
fn privileged_a33_a34_a_hostile_download_writes_nothing_outside() {
    let Some(forge) = Forge::privileged("a33_a34_a_hostile_download_writes_nothing_outside") else { return };
    let canary = forge.path("canary");
    fs::write(&canary, "untouched").unwrap();
    let up = format!("{}{}", "../".repeat(20), canary.to_str().unwrap().trim_start_matches('/'));
    let dockerfile = || file("Dockerfile", "FROM busybox\nCOPY . /srv/\n");
    let climbs = archive(&[dockerfile(), file(&up, "written")]);
    let hard = archive(&[dockerfile(), link(EntryType::Link, "hard", &up)]);
    let long = "x".repeat(5000);
    let linked = archive(&[link(EntryType::Symlink, "Dockerfile", canary.to_str().unwrap()), file("big", &long)]);
    let files = [("/climbs", climbs), ("/hard", hard), ("/cut", linked[..2000].to_vec())];
    let host = serve(&files);
    for (path, _) in &files {
        let outcome = forge.fails(1, &["build", "--progress", "plain", "-t", "hostile", &format!("{host}{path}")]);
        assert!(!outcome.stderr.contains("untouched"), "{}", outcome.stderr);
    }
    assert_eq!(fs::read_to_string(&canary).unwrap(), "untouched");
    assert_eq!(forge.scratch(), [""; 0]);
}

#[test]
fn privileged_a_repository_is_the_context() {
    let test = "a_repository_is_the_context";
    let Some(forge) = Forge::privileged(test) else { return };
    if !have(test, &["git"]) {
        return;
    }
    let server = forge_testkit::GitServer::start();
    let repository = server.repository("app.git");
    repository
        .write("Dockerfile", "FROM busybox\nCOPY . /srv/\n")
        .write("app/Dockerfile", "FROM busybox\nCOPY . /app/\n");
    repository.write("app/data", "one").write(".dockerignore", "app\n");
    let first = repository.commit();
    repository.write("app/data", "two");
    repository.commit();
    let url = server.url("app.git");
    forge.build(&["-t", "repo", &url]);
    assert_eq!(forge.shell("repo", "cd /srv; cat app/data; ls -A"), "two.dockerignore\nDockerfile\napp\n");
    forge.build(&["-t", "repo", &format!("{url}#{first}:app")]);
    assert_eq!(forge.shell("repo", "cd /app; cat data; ls -A"), "oneDockerfile\ndata\n");
    forge.build(&["-t", "repo", "-f", "app/Dockerfile", &format!("{url}#main")]);
    assert_eq!(forge.shell("repo", "cat /app/app/data"), "two");
    forge.build(&["-t", "repo", &format!("{url}?branch=main&subdir=app")]);
    assert_eq!(forge.shell("repo", "cat /app/data"), "two");
    forge.build(&["-t", "kept", "--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1", &url]);
    assert!(forge.shell("kept", "ls -A /srv").contains(".git\n"));
    let cached = forge.build(&["-t", "repo", &url]);
    assert_eq!(state(&cached, "COPY . /srv/"), Step::Cached);
    // As a named context, with a name for one platform only.
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nCOPY --from=source data /\n")]);
    let named = format!("source={url}#main:app");
    forge.build(&["-t", "named", "--build-context", &named, &context]);
    assert_eq!(forge.shell("named", "cat /data"), "two");
}

#[test]
fn privileged_the_time_of_a_context_is_the_images() {
    let test = "the_time_of_a_context_is_the_images";
    let Some(forge) = Forge::privileged(test) else { return };
    if !have(test, &["git"]) {
        return;
    }
    let server = forge_testkit::GitServer::start();
    let repository = server.repository("app.git");
    repository.write("Dockerfile", "FROM busybox\nCOPY . /srv/\n").commit();
    let time = repository.git(&["log", "-1", "--format=%ct"]);
    forge.build(&["-t", "dated", "--build-arg", "SOURCE_DATE_EPOCH=context", &server.url("app.git")]);
    assert_eq!(forge.shell("dated", "stat -c %Y /srv/Dockerfile"), format!("{time}\n"));
}

#[test]
fn privileged_named_contexts_of_every_kind() {
    let Some(forge) = Forge::privileged("named_contexts_of_every_kind") else { return };
    let dockerfile = "FROM busybox AS made\nRUN echo made > /file\nFROM base\nCOPY --from=files . /files/\nCOPY --from=other /file /other\n";
    let context = forge.context("context", &[("Dockerfile", dockerfile)]);
    let files = forge.context("files", &[("a", "a"), ("b.log", "b"), (".dockerignore", "*.log\n")]);
    let layout = forge.path("layout");
    let output = format!("type=oci,dest={},tar=false", layout.display());
    let seed = forge.context("seed", &[("Dockerfile", "FROM busybox\nRUN echo layout > /base\n")]);
    forge.build(&["-t", "seed:v1", "-o", &output, &seed]);
    let base = format!("base=oci-layout://{}:v1", layout.display());
    let files = format!("files={files}");
    let words =
        ["-t", "named", "--build-context", &base, "--build-context", &files, "--build-context", "other=target:made"];
    forge.build(&[&words[..], &[&context]].concat());
    assert_eq!(forge.shell("named", "cat /base /other; ls -A /files"), "layout\nmade\n.dockerignore\na\n");
    // The name for the platform comes first; docker-image://scratch is an image without files.
    let words = [
        "--build-context",
        "files=docker-image://busybox",
        "--build-context",
        "files::linux/amd64=docker-image://scratch",
        "--build-context",
        "base=docker-image://busybox",
        "--build-context",
        "other=target:made",
    ];
    forge.build(&[&["-t", "named"], &words[..], &[&context]].concat());
    let listed = if cfg!(target_arch = "x86_64") { "0\n" } else { "12\n" };
    assert_eq!(forge.shell("named", "ls -A /files | wc -l"), listed);
    let reserved = forge.fails(1, &["build", "--build-context", "scratch=/x", &context]);
    assert!(reserved.stderr.contains("the name scratch is reserved"), "{}", reserved.stderr);
    let gone = forge.fails(1, &["build", "--build-context", "files=/no/such", &context]);
    assert!(gone.stderr.contains("/no/such"), "{}", gone.stderr);
}
