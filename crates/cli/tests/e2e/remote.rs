//! Files of web servers and repositories, as Dockerfiles and command lines name them.

use crate::fixture::{Forge, system};
use forge_testkit::{GitServer, RawServer};
use std::fs;

/// A web server with one archive, which it sends once to whoever shows that it has it.
fn web(archive: Vec<u8>) -> RawServer {
    RawServer::start(move |stream, head| match head.contains("if-none-match: \"1\"") {
        true => RawServer::respond(stream, "304 Not Modified", "", b""),
        false => RawServer::respond(stream, "200 OK", "ETag: \"1\"\r\n", &archive),
    })
}

fn archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    header.set_mtime(784_111_777);
    tar.append_data(&mut header, "d/x", &b"hello"[..]).unwrap();
    tar.into_inner().unwrap()
}

#[test]
fn privileged_add_takes_downloads_and_repositories() {
    let Some(forge) = Forge::privileged("add_takes_downloads_and_repositories") else { return };
    let (web, git) = (web(archive()), GitServer::start());
    let repository = git.repository("r.git");
    repository.write("sub/f", "from git").write("other", "x").commit();
    let path = forge.path("x.tar");
    fs::write(&path, archive()).unwrap();
    let sum = system(&["sha256sum", path.to_str().unwrap()]);
    let sum = sum.split(' ').next().unwrap();
    let (url, git_url) = (format!("http://{}/x.tar", web.authority()), git.url("r.git"));
    let dockerfile = format!(
        "FROM busybox\nADD {url} /\nADD --checksum=sha256:{sum} {url} /sum/\nADD --unpack=true {url} /un\n\
         ADD {git_url}#main:sub /src\n"
    );
    let context = forge.context("ctx", &[("Dockerfile", &dockerfile)]);
    forge.ok(&["build", "-t", "added", &context]);
    let listed = forge.shell("added", "stat -c '%a %n' /x.tar /sum/x.tar; cat /un/d/x /src/f; ls -A /src");
    assert_eq!(listed, "600 /x.tar\n600 /sum/x.tar\nhellofrom gitf\n");
    let again = forge.ok(&["build", "--progress", "plain", "-t", "added", &context]);
    assert!(!again.stderr.contains("downloading") && !again.stderr.contains("fetching"), "{}", again.stderr);
    let wrong = dockerfile.replace(sum, &"0".repeat(64));
    let context = forge.context("wrong", &[("Dockerfile", &wrong)]);
    let refused = forge.fails(1, &["build", "--progress", "plain", &context]);
    assert!(refused.stderr.contains("digest mismatch for"), "{}", refused.stderr);
    // The branch moves: the next build sees it.
    repository.write("sub/f", "moved").commit();
    let context = forge.context("ctx", &[("Dockerfile", &dockerfile)]);
    forge.ok(&["build", "-t", "moved", &context]);
    assert_eq!(forge.shell("moved", "cat /src/f"), "moved");
}

// Seen to fail where names of vertices and history were not shown through `without_credentials`.
#[test]
fn privileged_a102_addresses_with_passwords_are_shown_without() {
    let Some(forge) = Forge::privileged("a102_addresses_with_passwords_are_shown_without") else { return };
    let (web, git) = (web(archive()), GitServer::start());
    git.repository("r.git").write("Dockerfile", "FROM busybox\nCOPY Dockerfile /\n").commit();
    let url = format!("http://user:hunter2@{}/x.tar", web.authority());
    let git_url = format!("http://user:hunter2@{}/r.git", git.authority());
    let dockerfile = format!("FROM busybox\nADD {url} /\nADD {git_url} /src\n");
    let context = forge.context("ctx", &[("Dockerfile", &dockerfile)]);
    let named = format!("other={git_url}");
    let mut shown = String::new();
    for words in [
        ["build", "--progress", "rawjson", "-t", "a:1", &context].as_slice(),
        &["build", "--progress", "plain", "-t", "a:2", &git_url],
        &["build", "--progress", "plain", "--build-context", &named, "-t", "a:3", &context],
        &["history", "--no-trunc", "a:1"],
        &["inspect", "a:1"],
        &["debug", "llb", &context],
    ] {
        let outcome = forge.ok(words);
        shown += &outcome.stdout;
        shown += &outcome.stderr;
    }
    let gone = format!("{git_url}#nowhere");
    shown += &forge.fails(1, &["build", "--progress", "plain", &gone]).stderr;
    let line = shown.lines().find(|line| line.contains("hunter2"));
    assert_eq!(line, None);
    assert!(web.heads()[0].contains("authorization: Basic"), "it is sent nevertheless");
    let found = std::process::Command::new("grep").args(["-rl", "hunter2"]).arg(forge.store()).output().unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap(), "");
}
