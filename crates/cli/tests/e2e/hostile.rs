//! A registry that lies, met with the real binary.

use crate::fixture::{Forge, may_run};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Media type and body by path.
type Answers = Mutex<BTreeMap<String, (String, Vec<u8>)>>;

/// Serves fixed answers by path; anything else is 404.
struct LyingRegistry {
    host: String,
    answers: Arc<Answers>,
    requests: Arc<AtomicUsize>,
}

impl LyingRegistry {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let answers: Arc<Answers> = Arc::default();
        let requests = Arc::new(AtomicUsize::new(0));
        let (shared, counter) = (Arc::clone(&answers), Arc::clone(&requests));
        // Ends with the test process: nothing tells it to stop.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, counter) = (Arc::clone(&shared), Arc::clone(&counter));
                std::thread::spawn(move || answer(stream, &answers, &counter));
            }
        });
        Self { host, answers, requests }
    }

    fn serve(&self, path: &str, kind: &str, body: &[u8]) {
        self.answers.lock().unwrap().insert(path.to_owned(), (kind.to_owned(), body.to_vec()));
    }
}

fn answer(stream: TcpStream, answers: &Answers, counter: &AtomicUsize) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request).unwrap_or(0) == 0 {
            return;
        }
        let mut header = String::new();
        while reader.read_line(&mut header).unwrap_or(0) > 2 {
            header.clear();
        }
        counter.fetch_add(1, Ordering::Relaxed);
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let found = answers.lock().unwrap().get(path).cloned();
        let (status, kind, body) = match (path, found) {
            (_, Some((kind, body))) => ("200 OK", kind, body),
            ("/v2/", None) => ("200 OK", "application/json".to_owned(), b"{}".to_vec()),
            _ => (
                "404 Not Found",
                "application/json".to_owned(),
                b"{\"errors\":[{\"code\":\"NAME_UNKNOWN\",\"message\":\"\\u001b[2Jno\"}]}".to_vec(),
            ),
        };
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
        let body = if method == "HEAD" { Vec::new() } else { body };
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).is_err() {
            return;
        }
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// An image of one empty layer; gives its manifest, config and layer.
fn image() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let layer = vec![0; 1024];
    let config = format!("{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{}\"]}}}}", digest(&layer)).into_bytes();
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{MANIFEST}\",\"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"{}\",\"size\":{}}},\"layers\":[{{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"{}\",\"size\":{}}}]}}",
        digest(&config),
        config.len(),
        digest(&layer),
        layer.len()
    );
    (manifest.into_bytes(), config, layer)
}

fn serve_image(registry: &LyingRegistry, manifest: &[u8], config: &[u8], layer: &[u8], layer_digest: &str) {
    registry.serve("/v2/x/manifests/latest", MANIFEST, manifest);
    registry.serve(&format!("/v2/x/manifests/{}", digest(manifest)), MANIFEST, manifest);
    registry.serve(&format!("/v2/x/blobs/{}", digest(config)), "application/octet-stream", config);
    registry.serve(&format!("/v2/x/blobs/{layer_digest}"), "application/octet-stream", layer);
}

fn blobs(store: &Path) -> Vec<String> {
    let entries = fs::read_dir(store.join("blobs/sha256")).into_iter().flatten().flatten();
    entries.map(|entry| format!("sha256:{}", entry.file_name().to_string_lossy())).collect()
}

#[test]
fn privileged_an_honest_answer_is_taken() {
    if !may_run("an_honest_answer_is_taken") {
        return;
    }
    let (forge, registry) = (Forge::new(), LyingRegistry::start());
    let (manifest, config, layer) = image();
    serve_image(&registry, &manifest, &config, &layer, &digest(&layer));
    forge.ok(&["pull", &format!("{}/x", registry.host)]);
    assert_eq!(forge.ok(&["images", "-q", "--no-trunc"]).stdout.trim(), digest(&config));
}

// Each lie is told in an otherwise honest registry, which the test above shows to be pulled from; a client that
// does not hash or count succeeds here.
#[test]
fn privileged_a67_lies_about_digest_and_size_leave_nothing() {
    if !may_run("a67_lies_about_digest_and_size_leave_nothing") {
        return;
    }
    let (manifest, config, layer) = image();
    let mut longer = layer.clone();
    longer.push(1);
    let mut other = layer.clone();
    other[7] = 1;
    for (lie, body) in [("other bytes", &other[..]), ("longer", &longer[..]), ("shorter", &layer[..1000])] {
        let (forge, registry) = (Forge::new(), LyingRegistry::start());
        serve_image(&registry, &manifest, &config, body, &digest(&layer));
        let refused = forge.fails(1, &["pull", &format!("{}/x", registry.host)]);
        assert!(refused.stderr.contains(&digest(&layer)), "{lie}: {}", refused.stderr);
        assert_eq!(forge.ok(&["images", "-q"]).stdout, "", "{lie}");
        assert!(!blobs(&forge.store()).contains(&digest(&layer)), "{lie}");
        assert!(!blobs(&forge.store()).contains(&digest(body)), "{lie}");
        assert!(registry.requests.load(Ordering::Relaxed) < 40, "{lie}: a storm of retries");
    }
}

// Fails when the answer's own header or the tag is believed.
#[test]
fn privileged_a68_another_manifest_for_a_digest_is_refused() {
    if !may_run("a68_another_manifest_for_a_digest_is_refused") {
        return;
    }
    let (forge, registry) = (Forge::new(), LyingRegistry::start());
    let (manifest, config, layer) = image();
    serve_image(&registry, &manifest, &config, &layer, &digest(&layer));
    let mut asked = manifest.clone();
    asked.push(b'\n');
    registry.serve(&format!("/v2/x/manifests/{}", digest(&asked)), MANIFEST, &manifest);
    let refused = forge.fails(1, &["pull", &format!("{}/x@{}", registry.host, digest(&asked))]);
    assert!(refused.stderr.contains(&digest(&asked)), "{}", refused.stderr);
    assert_eq!(forge.ok(&["images", "-q"]).stdout, "");
    let context = forge
        .context("context", &[("Dockerfile", &format!("FROM {}/x@{}\nLABEL a=b\n", registry.host, digest(&asked)))]);
    forge.fails(1, &["build", &context]);
}

// Fails when a registry's message is printed as it came.
#[test]
fn privileged_a103_a_registrys_message_cannot_drive_the_terminal() {
    if !may_run("a103_a_registrys_message_cannot_drive_the_terminal") {
        return;
    }
    let (forge, registry) = (Forge::new(), LyingRegistry::start());
    let refused = forge.fails(1, &["pull", &format!("{}/nosuch", registry.host)]);
    assert!(!refused.stderr.contains('\u{1b}') && refused.stderr.contains("\\x1b[2Jno"), "{:?}", refused.stderr);
}
