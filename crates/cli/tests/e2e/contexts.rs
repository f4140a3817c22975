//! What a build reads from: standard input, folders with links, named contexts.

use crate::fixture::{Forge, Outcome, system, wait};
use std::fs;
use std::io::Write;
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

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(entry.kind);
        header.set_mode(0o644);
        header.set_size(entry.text.len() as u64);
        let fields = header.as_gnu_mut().unwrap();
        fields.name[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
        fields.linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_cksum();
        archive.append(&header, entry.text.as_bytes()).unwrap();
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
