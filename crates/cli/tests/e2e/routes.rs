//! The ways to a registry: mirrors, proxies.

use crate::fixture::{Forge, Outcome, run};
use crate::registry::Registry;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A proxy that sends every plain request to one place, whatever host it names, refuses tunnels, and remembers the
/// first lines and the credentials of requests.
struct Proxy {
    address: String,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let (shared, upstream) = (Arc::clone(&seen), upstream.to_owned());
        // Ends with the test process: nothing tells it to stop.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, upstream) = (Arc::clone(&shared), upstream.clone());
                // A client that goes away is no failure.
                std::thread::spawn(move || drop(pass_on(stream, &upstream, &seen)));
            }
        });
        Self { address, seen }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

/// Passes on one request without a body and its answer.
fn pass_on(mut client: TcpStream, upstream: &str, seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(client.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let lower: Vec<String> = headers.iter().map(|line| line.to_ascii_lowercase()).collect();
    let credentials = lower.iter().find(|line| line.starts_with("proxy-authorization:"));
    let shown = credentials.map_or(String::new(), |line| format!(" {line}"));
    seen.lock().unwrap().push(format!("{request}{shown}"));
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if method == "CONNECT" {
        return client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
    }
    let path = target.strip_prefix("http://").and_then(|rest| rest.find('/').map(|at| &rest[at..])).unwrap_or(target);
    let kept = headers.iter().zip(&lower).filter(|(_, lower)| !lower.starts_with("connection:"));
    let kept: String = kept.map(|(line, _)| format!("{line}\r\n")).collect();
    let mut server = TcpStream::connect(upstream)?;
    server.write_all(format!("{method} {path} HTTP/1.1\r\n{kept}Connection: close\r\n\r\n").as_bytes())?;
    std::io::copy(&mut server, &mut client).map(drop)
}

fn pull(forge: &Forge, name: &str, variables: &[(&str, &str)]) -> Outcome {
    run(forge.command(&["pull", name]).envs(variables.iter().copied()), b"")
}

#[test]
fn privileged_proxies_are_asked() {
    let test = "proxies_are_asked";
    let Some(forge) = Forge::privileged(test) else { return };
    let Some(registry) = Registry::start(test) else { return };
    let local = format!("{}/app:1", registry.host);
    forge.ok(&["tag", "busybox", &local]);
    forge.ok(&["push", &local]);
    let proxy = Proxy::start(&registry.host);
    let address = format!("http://user:geheim@{}", proxy.address);
    let other = Forge::new();
    fs::write(other.path("forge.toml"), "[registry.\"registry.invalid:5000\"]\nhttp = true\n").unwrap();

    let name = "registry.invalid:5000/app:1";
    let pulled = pull(&other, name, &[("HTTP_PROXY", &address)]);
    assert_eq!(pulled.code, 0, "{}", pulled.stderr);
    let seen = proxy.seen();
    let of = |part: &str| seen.iter().any(|line| line.contains(part));
    assert!(of("GET http://registry.invalid:5000/v2/app/manifests/1 HTTP/1.1 proxy-authorization: basic"), "{seen:?}");
    assert!(of("GET http://registry.invalid:5000/v2/app/blobs/sha256:"), "{seen:?}");
    assert_eq!(other.shell(name, "echo it runs"), "it runs\n");

    // Loopback never goes through a proxy.
    assert_eq!(pull(&other, &local, &[("HTTP_PROXY", &address)]).code, 0);
    assert_eq!(proxy.seen(), seen);

    let refused = pull(&other, "secure.invalid/app:1", &[("HTTPS_PROXY", &address)]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(!refused.stderr.contains("geheim"), "{}", refused.stderr);
    assert!(proxy.seen().iter().any(|line| line.starts_with("CONNECT secure.invalid:443 ")), "{:?}", proxy.seen());
}

#[test]
fn privileged_mirrors_are_asked_first() {
    let test = "mirrors_are_asked_first";
    let Some(forge) = Forge::privileged(test) else { return };
    let Some(registry) = Registry::start(test) else { return };
    let mirrored = format!("{}/library/tool:1", registry.host);
    forge.ok(&["tag", "busybox", &mirrored]);
    forge.ok(&["push", &mirrored]);
    let other = Forge::new();
    let config = format!("[registry.\"docker.io\"]\nmirrors = [\"{}\"]\n", registry.host);
    fs::write(other.path("forge.toml"), config).unwrap();
    let context = other.context("context", &[("Dockerfile", "FROM tool:1\nRUN true\n")]);
    other.build(&["-t", "x", &context]);
    assert_eq!(other.shell("x", "echo it runs"), "it runs\n");
    // The image keeps the name that was asked for.
    assert_eq!(other.ok(&["pull", "tool:1"]).stdout.lines().last(), Some("docker.io/library/tool:1"));
    let digests = other.ok(&["inspect", "-f", "{{json .RepoDigests}}", "tool:1"]).stdout;
    assert!(digests.contains("\"tool@sha256:") && !digests.contains(&registry.host), "{digests}");
}
