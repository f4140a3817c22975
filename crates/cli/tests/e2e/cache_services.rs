//! Shared caches in services: images that carry their own, S3, GitHub's cache; signed records; what others plant.

use crate::fixture::{Forge, Step, have, state, testdata};
use crate::registry::Registry;
use forge_testkit::TestCa;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// What an inner step makes is in the image; what it makes is new whenever it really runs.
const DOCKERFILE: &str =
    "FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /id && chown 7:8 /id\nCOPY f /f\nRUN cat /id /f > /both\n";
const STEPS: [&str; 3] = ["RUN cat /proc", "COPY f", "RUN cat /id"];

/// Builds `x` and says which steps ran.
fn ran(forge: &Forge, flags: &[&str]) -> Vec<&'static str> {
    ran_with(forge, &[], flags)
}

fn ran_with(forge: &Forge, env: &[(&str, &str)], flags: &[&str]) -> Vec<&'static str> {
    let (steps, stderr) = build(forge, env, flags);
    assert!(!stderr.contains("cache import: ") && !stderr.contains("cache export: "), "{stderr}");
    steps
}

/// The same, with what was told.
fn build(forge: &Forge, env: &[(&str, &str)], flags: &[&str]) -> (Vec<&'static str>, String) {
    let context = forge.context("context", &[("Dockerfile", DOCKERFILE), ("f", "1\n")]);
    let words = [&["build", "--progress", "plain", "-t", "x"], flags, &[&context]].concat();
    let output = forge.command(&words).envs(env.iter().copied()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    let outcome = crate::fixture::Outcome { code: 0, stdout: String::new(), stderr: stderr.clone() };
    let steps = outcome.steps();
    (STEPS.into_iter().filter(|step| state(&steps, step) == Step::Ran).collect(), stderr)
}

fn layers(forge: &Forge) -> String {
    forge.ok(&["inspect", "--format", "{{json .RootFS.Layers}}", "x"]).stdout
}

/// A process that is ended with the test.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Asks a server of a test.
fn http(host: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(format!("{request} HTTP/1.0\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    _ = stream.read_to_string(&mut answer);
    answer
}

/// The S3 server of `moto`, with the bucket `cache`: installed by CI, and skipped where it is not.
fn s3(test: &str) -> Option<(Service, String)> {
    let tools = std::env::var_os("FORGE_TEST_TOOLS").map(PathBuf::from);
    let program = tools.map(|tools| tools.join("bin/moto_server")).filter(|program| program.exists());
    let Some(program) = program else {
        println!("SKIPPED (needs moto_server in FORGE_TEST_TOOLS): {test}");
        return None;
    };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(program);
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (service, host, begin) = (Service(child), format!("127.0.0.1:{port}"), Instant::now());
    while TcpStream::connect(&host).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(60), "the S3 server does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    let made = http(&host, "PUT /cache");
    assert!(made.contains(" 200 "), "{made}");
    Some((service, host))
}

// The server does not check signatures: that they are right is for the unit test with the reference's example to say.
#[test]
fn privileged_a_bucket_carries_the_cache() {
    let test = "a_bucket_carries_the_cache";
    let Some((_service, host)) = s3(test) else { return };
    let (Some(here), Some(there)) = (Forge::privileged(test), Forge::privileged(test)) else { return };
    let place = format!(
        "type=s3,bucket=cache,region=us-east-1,endpoint_url=http://{host},use_path_style=true,prefix=p/,name=app"
    );
    let env = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "key")];
    assert_eq!(ran_with(&here, &env, &["--cache-to", &place]), STEPS);
    assert!(ran_with(&there, &env, &["--cache-from", &place]).is_empty());
    assert_eq!(layers(&there), layers(&here));
    let listed = http(&host, "GET /cache?list-type=2");
    assert!(listed.contains("<Key>p/manifests/app/") && listed.contains("<Key>p/blobs/sha256:"), "{listed}");
    // A bucket that is not there is one line, and no reason to fail.
    let place = place.replace("bucket=cache", "bucket=nowhere");
    let Some(third) = Forge::privileged(test) else { return };
    let (steps, stderr) = build(&third, &env, &["--cache-from", &place, "--cache-to", &place]);
    assert_eq!(steps, STEPS);
    let lines = |what: &str| stderr.lines().filter(|line| line.contains(what)).count();
    assert_eq!((lines("cache export: s3://nowhere/"), lines("cache import: ")), (1, 0), "{stderr}");
}

/// The double of GitHub's service.
fn actions(test: &str, token: &str) -> Option<(Service, String, BufReader<ChildStdout>)> {
    if !have(test, &["python3"]) {
        return None;
    }
    let script = testdata("cache-services/actions.py");
    let mut command = Command::new("/usr/bin/python3");
    let mut child = command.arg(script).arg(token).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let service = Service(child);
    let mut port = String::new();
    out.read_line(&mut port).unwrap();
    Some((service, format!("127.0.0.1:{}", port.trim()), out))
}

// Seen to fail with an upload that is not finished.
#[test]
fn privileged_githubs_cache_carries_the_cache() {
    let test = "githubs_cache_carries_the_cache";
    let Some((_service, host, _out)) = actions(test, "tok") else { return };
    let (Some(here), Some(there)) = (Forge::privileged(test), Forge::privileged(test)) else { return };
    let url = format!("http://{host}/");
    let env = [("ACTIONS_RESULTS_URL", url.as_str()), ("ACTIONS_RUNTIME_TOKEN", "tok")];
    assert_eq!(ran_with(&here, &env, &["--cache-to", "type=gha,scope=app,mode=max"]), STEPS);
    assert!(ran_with(&there, &env, &["--cache-from", "type=gha,scope=app"]).is_empty());
    assert_eq!(layers(&there), layers(&here));
    // Entries that are there stay, and another scope has none of them.
    assert!(ran_with(&here, &env, &["--cache-to", "type=gha,scope=app"]).is_empty());
    let Some(third) = Forge::privileged(test) else { return };
    assert_eq!(ran_with(&third, &env, &["--cache-from", "type=gha,scope=ap"]), STEPS);
    let refused = http(&host, "GET /refused");
    assert_eq!(refused.split("\r\n\r\n").nth(1), Some(""), "{refused}");
    let Some(fourth) = Forge::privileged(test) else { return };
    let (steps, stderr) = build(&fourth, &env, &["--cache-from", &format!("type=gha,url_v2={url},token=other")]);
    assert_eq!(steps, STEPS);
    assert_eq!(stderr.matches("cache import: gha:buildkit: status 401: bad token").count(), 1, "{stderr}");
}

// Seen to fail with an image whose config says nothing.
#[test]
fn privileged_an_image_carries_its_cache() {
    let test = "an_image_carries_its_cache";
    let Some(registry) = Registry::start(test) else { return };
    let (Some(here), Some(there)) = (Forge::privileged(test), Forge::privileged(test)) else { return };
    let image = format!("{}/team/app:1", registry.host);
    let push = || {
        here.ok(&["tag", "x", &image]);
        here.ok(&["push", &image]);
    };
    for flags in [["--cache-to", "type=inline"], ["--build-arg", "BUILDKIT_INLINE_CACHE=1"]] {
        assert_eq!(ran(&here, &["--no-cache", flags[0], flags[1]]), STEPS);
        push();
        let Some(there) = Forge::privileged(test) else { return };
        assert!(ran(&there, &["--cache-from", &image]).is_empty(), "{flags:?}");
        assert_eq!(layers(&there), layers(&here));
    }
    // An image that is built from it says nothing of it, and one without says nothing at all.
    let context = there.context("derived", &[("Dockerfile", &format!("FROM {image}\nRUN echo > /new\n"))]);
    there.ok(&["build", "-t", "derived", "--output", "type=oci,dest=derived.tar", &context]);
    let archive = fs::read(there.path("derived.tar")).unwrap();
    assert!(!archive.windows(14).any(|bytes| bytes == b"forge.cache.v1"));
    assert_eq!(ran(&here, &["--no-cache"]), STEPS);
    push();
    assert_eq!(ran(&there, &["--cache-from", &image]), STEPS);
}

/// A folder that BuildKit exported a cache to, as far as it matters, and a bare one of somebody else.
#[test]
fn privileged_a_cache_of_buildkit_is_a_miss_in_one_line() {
    let test = "a_cache_of_buildkit_is_a_miss_in_one_line";
    let Some(forge) = Forge::privileged(test) else { return };
    let layout = forge.path("theirs");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let digest = "0".repeat(64);
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json",
        "digest":"sha256:{digest}","size":2,"annotations":{{"org.opencontainers.image.ref.name":"latest"}}}}]}}"#
    );
    fs::write(layout.join("index.json"), index).unwrap();
    let (steps, stderr) = build(&forge, &[], &["--cache-from", &format!("type=local,src={}", layout.display())]);
    assert_eq!(steps, STEPS);
    assert_eq!(stderr.matches("cache import: ").count(), 1, "{stderr}");
    assert!(stderr.contains("the keys of a cache of BuildKit are others"), "{stderr}");
}

// Seen to fail without the check of signatures: steps of the unsigned cache are found.
#[test]
fn privileged_a44_only_records_of_a_trusted_key_are_taken() {
    let test = "a44_only_records_of_a_trusted_key_are_taken";
    if !have(test, &["openssl"]) {
        return;
    }
    let Some(here) = Forge::privileged(test) else { return };
    let path = |name: &str| here.path(name).display().to_string();
    for name in ["mine", "other"] {
        let (key, public) = (path(&format!("{name}.pem")), path(&format!("{name}.pub")));
        crate::fixture::system(&["openssl", "genpkey", "-algorithm", "ed25519", "-out", &key]);
        crate::fixture::system(&["openssl", "pkey", "-in", &key, "-pubout", "-out", &public]);
    }
    let to = |name: &str, key: &str| format!("type=local,dest={},sign-key={}", path(name), path(key));
    assert_eq!(ran(&here, &["--cache-to", &to("signed", "mine.pem")]), STEPS);
    ran(&here, &["--no-cache", "--cache-to", &to("forged", "other.pem")]);
    ran(&here, &["--no-cache", "--cache-to", &format!("type=local,dest={}", path("bare"))]);
    let from = |name: &str| format!("type=local,src={},verify-key={}", path(name), path("mine.pub"));
    for name in ["forged", "bare"] {
        let Some(there) = Forge::privileged(test) else { return };
        let (steps, stderr) = build(&there, &[], &["--cache-from", &from(name)]);
        assert_eq!(steps, STEPS, "{name}");
        assert_eq!(stderr.matches("it is not signed by anybody who is trusted").count(), 1, "{stderr}");
    }
    let Some(there) = Forge::privileged(test) else { return };
    assert!(ran(&there, &["--cache-from", &from("signed")]).is_empty());
    let context = there.context("none", &[("Dockerfile", "FROM scratch\n")]);
    let refused = there.fails(1, &["build", "--cache-from", "type=local,src=x,verify-key=nowhere.pub", &context]);
    assert!(refused.stderr.contains("cannot use the key nowhere.pub"), "{}", refused.stderr);
}

/// An image whose history reads as the user's Dockerfile does, with other layers (CVE-2024-24557).
// Seen to fail with a key that leaves ENV out: the second build finds the first one's step.
#[test]
fn privileged_a43_an_image_is_no_cache_however_its_history_reads() {
    let test = "a43_an_image_is_no_cache_however_its_history_reads";
    let Some(registry) = Registry::start(test) else { return };
    let (Some(here), Some(there)) = (Forge::privileged(test), Forge::privileged(test)) else { return };
    // The attacker's build has the same text, and other bytes behind it.
    let image = format!("{}/evil/app:1", registry.host);
    let evil = here.context("evil", &[("Dockerfile", "FROM busybox\nCOPY f /f\nRUN cat /f > /out\n"), ("f", "evil\n")]);
    here.ok(&["build", "--output", &format!("type=image,name={image},push=true"), "--cache-to", "type=inline", &evil]);
    let good =
        there.context("good", &[("Dockerfile", "FROM busybox\nCOPY f /f\nRUN cat /f > /out\n"), ("f", "good\n")]);
    there.ok(&["pull", &image]);
    there.ok(&["build", "--cache-from", &image, "-t", "good", &good]);
    assert_eq!(there.shell("good", "cat /out"), "good\n");
    // What only the config says is no less of the result.
    let mut ids = Vec::new();
    for line in [
        "",
        "ENV A=1\nENV B=2\n",
        "ENV B=2\nENV A=1\n",
        "HEALTHCHECK CMD true\n",
        "ONBUILD RUN true\n",
        "SHELL [\"/bin/ash\",\"-c\"]\n",
    ] {
        let text = format!("FROM busybox\n{line}RUN echo $A$B > /v\n");
        let context = there.context("config", &[("Dockerfile", &text)]);
        there.ok(&["build", "-t", "config", &context]);
        assert_eq!(there.shell("config", "cat /v"), if line.contains("ENV") { "12\n" } else { "\n" }, "{line}");
        ids.push(there.ok(&["inspect", "--format", "{{.Id}}", "config"]).stdout);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 6);
}

/// BuildGrid: a server of the Remote Execution API, installed by CI, and skipped where it is not.
fn build_grid(test: &str) -> Option<(Service, String, tempfile::TempDir)> {
    build_grid_with(test, |_| "insecure-mode: true".to_owned())
}

/// The same with another channel; `security` may write files into the server's folder.
fn build_grid_with(test: &str, security: impl FnOnce(&Path) -> String) -> Option<(Service, String, tempfile::TempDir)> {
    let tools = std::env::var_os("FORGE_TEST_TOOLS").map(PathBuf::from);
    let program = tools.map(|tools| tools.join("bin/bgd")).filter(|program| program.exists());
    let Some(program) = program else {
        println!("SKIPPED (needs bgd in FORGE_TEST_TOOLS): {test}");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let template = fs::read_to_string(testdata("cache-services/buildgrid.yml")).unwrap();
    let config = folder.path().join("buildgrid.yml");
    let template = template.replace("insecure-mode: true", &security(folder.path()));
    fs::write(&config, template.replace("@PORT@", &port.to_string())).unwrap();
    let mut command = Command::new(program);
    command.args(["server", "start"]).arg(&config).current_dir(folder.path());
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (service, host, begin) = (Service(child), format!("127.0.0.1:{port}"), Instant::now());
    while TcpStream::connect(&host).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(60), "BuildGrid does not start");
        std::thread::sleep(Duration::from_millis(100));
    }
    Some((service, host, folder))
}

#[test]
fn privileged_a_remote_execution_server_carries_the_cache() {
    let test = "a_remote_execution_server_carries_the_cache";
    let Some((service, host, _folder)) = build_grid(test) else { return };
    let (Some(here), Some(there)) = (Forge::privileged(test), Forge::privileged(test)) else { return };
    let place = format!("type=reapi,addr=grpc://{host}");
    assert_eq!(ran(&here, &["--cache-to", &place]), STEPS);
    assert!(ran(&there, &["--cache-from", &place]).is_empty());
    assert_eq!(layers(&there), layers(&here));
    assert_eq!(there.shell("x", "stat -c %u:%g /id"), "7:8\n");
    drop(service);
    let Some(third) = Forge::privileged(test) else { return };
    let begin = Instant::now();
    let (steps, stderr) = build(&third, &[], &["--cache-from", &place, "--cache-to", &place]);
    assert_eq!(steps, STEPS);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    let lines = |what: &str| stderr.matches(what).count();
    assert_eq!((lines("cache import: grpc://"), lines("cache export: grpc://")), (1, 1), "{stderr}");
}

#[test]
fn privileged_a_large_layer_goes_to_a_bucket_in_parts() {
    let test = "a_large_layer_goes_to_a_bucket_in_parts";
    let Some((_service, host)) = s3(test) else { return };
    let (Some(here), Some(there)) = (Forge::privileged(test), Forge::privileged(test)) else { return };
    let place = format!("type=s3,bucket=cache,region=us-east-1,endpoint_url=http://{host},use_path_style=true");
    let text = "FROM busybox\nRUN head -c 40000000 /dev/urandom > /large\n";
    let build = |forge: &Forge, flag: &str| {
        let context = forge.context("context", &[("Dockerfile", text)]);
        let words = ["build", "--progress", "plain", "-t", "x", flag, &place, &context];
        let mut command = forge.command(&words);
        let output = command.env("AWS_ACCESS_KEY_ID", "id").env("AWS_SECRET_ACCESS_KEY", "key").output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !stderr.contains("cache export: ") && !stderr.contains("cache import: "));
        stderr
    };
    build(&here, "--cache-to");
    // The tag of an object in parts ends with their number.
    let listed = http(&host, "GET /cache?list-type=2");
    assert!(listed.contains("-3&quot;</ETag>") || listed.contains("-3\"</ETag>"), "{listed}");
    build(&there, "--cache-from");
    assert_eq!(layers(&there), layers(&here));
}

// The server wants a certificate of its clients, too. Seen to fail with one that it did not take.
#[test]
fn privileged_a_remote_execution_server_is_talked_to_in_private() {
    let test = "a_remote_execution_server_is_talked_to_in_private";
    let ca = TestCa::new();
    let credentials = |folder: &Path| {
        let (key, certificate) = ca.issue(&["127.0.0.1"]).write(folder);
        let (key, certificate, clients) = (key.display(), certificate.display(), ca.write(folder));
        let clients = clients.display();
        format!(
            "insecure-mode: false\n    credentials:\n      tls-server-key: {key}\n      \
             tls-server-cert: {certificate}\n      tls-client-certs: {clients}"
        )
    };
    let Some((_service, host, folder)) = build_grid_with(test, credentials) else { return };
    let (Some(here), Some(there)) = (Forge::privileged(test), Forge::privileged(test)) else { return };
    let (key, certificate) = ca.write_client(folder.path());
    let trusted = format!("tls_certificate={}/ca.pem", folder.path().display());
    let client = format!("tls_client_certificate={},tls_client_key={}", certificate.display(), key.display());
    let place = format!("type=reapi,addr=grpcs://{host},{trusted},{client}");
    assert_eq!(ran(&here, &["--cache-to", &place]), STEPS);
    assert!(ran(&there, &["--cache-from", &place]).is_empty());
    assert_eq!(layers(&there), layers(&here));
    // A server that nobody vouches for, and one that does not know us, are one line each.
    for missing in [format!(",{trusted}"), format!(",{client}")] {
        let Some(third) = Forge::privileged(test) else { return };
        let (steps, stderr) = build(&third, &[], &["--cache-from", &place.replace(&missing, "")]);
        assert_eq!(steps, STEPS);
        assert_eq!(stderr.matches("cache import: grpcs://").count(), 1, "{stderr}");
    }
}
