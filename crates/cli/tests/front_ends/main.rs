//! Front ends that are images, with the real binary: none runs unless the configuration allows it. This program is the front end,
//! in an image of its own.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a skipped test says so")]

#[path = "../../../../xtask/src/busybox.rs"]
#[allow(dead_code, reason = "the other tests use the rest of it")]
mod busybox;
#[path = "../e2e/fixture.rs"]
#[allow(dead_code, reason = "the other tests use the rest of it")]
mod fixture;
#[path = "../../../daemon/tests/sandbox/front_end_program.rs"]
mod program;

use fixture::Forge;
use forge_testkit::{GitServer, RawServer, TestRegistry};
use libtest_mimic::{Arguments, Trial};
use std::fs;
use std::path::Path;

type Test = (&'static str, fn());

const TESTS: [Test; 4] = [
    ("privileged_front_end_images_are_asked_for_plans", plans),
    ("privileged_front_end_images_of_contexts_from_elsewhere", from_elsewhere),
    ("privileged_a42_front_end_images_are_refused_unless_allowed", a42_refused),
    ("privileged_a_front_end_image_builds_as_forges_own_does", builds),
];

fn main() {
    program::run_if_requested();
    let arguments = Arguments::from_args();
    let trial = |(name, test): Test| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    libtest_mimic::run(&arguments, TESTS.into_iter().map(trial).collect()).exit();
}

/// Pushes the image of this program; gives its name.
fn pushed(forge: &Forge, registry: &TestRegistry) -> String {
    let context = forge.path("front");
    fs::create_dir_all(&context).unwrap();
    let (dockerfile, files) = program::image();
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    for (name, bytes) in files {
        fs::write(context.join(name), bytes).unwrap();
    }
    let name = format!("{}/team/front:1", registry.authority());
    forge.ok(&["build", "--push", "-t", &name, context.to_str().unwrap()]);
    name
}

fn asking(forge: &Forge, image: &str) -> String {
    let foreign = format!("# syntax={image}\nanything: at all\n");
    forge.context("asking", &[("Dockerfile", &foreign), ("Real", "FROM scratch\nCOPY a /made\n"), ("a", "text")])
}

fn configure(forge: &Forge, text: &str) {
    fs::write(forge.path("forge.toml"), format!("[frontend.\"gateway.v0\"]\n{text}\n")).unwrap();
}

/// Seen to fail with the configuration not looked at: the image was fetched.
fn a42_refused() {
    let Some(forge) = Forge::privileged("a42_front_end_images_are_refused_unless_allowed") else { return };
    let registry = TestRegistry::start();
    let image = format!("{}/evil/front:1", registry.authority());
    let context = asking(&forge, &image);
    let plain = forge.context("plain", &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]);
    let syntax = format!("BUILDKIT_SYNTAX={image}");
    let refused = |words: &[&str], why: &str| {
        for command in ["build", "plan"] {
            let outcome = forge.fails(1, &[&[command], words].concat());
            assert!(outcome.stderr.contains(why) && outcome.stderr.contains(&image), "{why}: {}", outcome.stderr);
            assert!(registry.received().is_empty(), "{why}: {:?}", registry.lines());
        }
    };
    for words in [vec![context.as_str()], vec!["--build-arg", &syntax, &plain]] {
        fs::write(forge.path("forge.toml"), "").unwrap();
        refused(&words, "hint: it is foreign code: allow it with enabled = true in [frontend.\"gateway.v0\"]");
        configure(&forge, "enabled = false");
        refused(&words, "enabled = true");
        configure(&forge, "allowedRepositories = [\"127.0.0.1/evil/front\"]");
        refused(&words, "enabled = true");
        configure(&forge, "enabled = true\nallowedRepositories = [\"good.test/front\"]");
        refused(&words, "is not an allowed gateway source");
    }
}

fn builds() {
    let Some(forge) = Forge::privileged("a_front_end_image_builds_as_forges_own_does") else { return };
    let registry = TestRegistry::start();
    let image = pushed(&forge, &registry);
    let repository = image.rsplit_once(':').unwrap().0.to_owned();
    configure(&forge, &format!("enabled = true\nallowedRepositories = [{repository:?}]"));
    let context = asking(&forge, &image);
    forge.ok(&["build", "-o", "out", &context]);
    assert_eq!(fs::read_to_string(forge.path("out/made")).unwrap(), "text");
    let built = forge.ok(&["build", "--progress", "plain", "-t", "made:1", "--iidfile", "id", &context]);
    assert!(built.stderr.contains("[1/1] COPY a /made") && built.stderr.contains("CACHED"), "{}", built.stderr);
    let inspected = forge.ok(&["inspect", "made:1"]).stdout;
    assert!(inspected.contains(&fs::read_to_string(forge.path("id")).unwrap()), "{inspected}");
    // Provenance lists it among what the result was made of.
    forge.ok(&["build", "--provenance", "true", "-o", "said", &context]);
    let said = fs::read_to_string(forge.path("said/provenance.json")).unwrap();
    assert!(said.contains("/team/front@1?platform="), "{said}");
    // An image in a layout of this machine is no other one for it.
    let plain = forge.context("plain", &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]);
    forge.ok(&["build", "-t", "base:1", "-o", "type=oci,dest=layout,tar=false", &plain]);
    let base = format!("base=oci-layout://{}:1", forge.path("layout").display());
    forge.ok(&["build", "--build-context", &base, "--build-arg", "what=layout", "-o", "out", &context]);
    // What it says of a failure is said here.
    let failed = forge.fails(1, &["build", "--build-arg", "what=fail", &context]);
    assert!(failed.stderr.contains("said no"), "{}", failed.stderr);
    let exited = forge.fails(1, &["build", "--build-arg", "what=exit", &context]);
    assert!(exited.stderr.contains("exit code: 5: last words"), "{}", exited.stderr);
    // What it answers it answers in words of its own.
    for (format, answer) in [("text", "of the front end\n"), ("json", "{\n  \"own\": true\n}\n")] {
        let asked = forge.forge(&["build", "--call", &format!("outline,format={format}"), &context]);
        assert_eq!((asked.code, asked.stdout.as_str()), (3, answer), "{}", asked.stderr);
    }
    // And nothing is left of it but what builds keep.
    let scratch = fs::read_dir(forge.store().join("session-scratch")).map(Iterator::count).unwrap_or_default();
    assert_eq!(scratch, 0);
}

/// What the Dockerfile asks for is known only when the context is there.
fn from_elsewhere() {
    let Some(forge) = Forge::privileged("front_end_images_of_contexts_from_elsewhere") else { return };
    let registry = TestRegistry::start();
    let image = pushed(&forge, &registry);
    let context = asking(&forge, &image);
    let packed = |context: &str| {
        fixture::system(&["tar", "-C", context, "-cf", forge.path("context.tar").to_str().unwrap(), "."]);
        fs::read(forge.path("context.tar")).unwrap()
    };
    let archive = packed(&context);
    let refused = forge.with_input(&["build", "-o", "out", "-"], &archive);
    assert!(refused.code == 1 && refused.stderr.contains("enabled = true"), "{}", refused.stderr);
    configure(&forge, "enabled = true");
    let built = forge.with_input(&["build", "-o", "out", "-"], &archive);
    assert_eq!(built.code, 0, "{}", built.stderr);
    assert_eq!(fs::read_to_string(forge.path("out/made")).unwrap(), "text");
    // It reads the archive itself, to find out what it is.
    let built = forge.with_input(&["build", "--build-arg", "what=upload", "-o", "read", "-"], &archive);
    assert!(built.code == 0 && forge.path("read/made").exists(), "{}", built.stderr);
    let plain = forge.context("plain", &[("Dockerfile", "FROM scratch\nCOPY a /plain\n"), ("a", "text")]);
    let archive = packed(&plain);
    let built = forge.with_input(&["build", "-o", "plainly", "-"], &archive);
    assert!(built.code == 0 && forge.path("plainly/plain").exists(), "{}", built.stderr);
    of_repositories_and_downloads(&forge, &context, &packed(&context));
    let left = fs::read_dir(forge.store().join("session-scratch")).map(Iterator::count).unwrap_or_default();
    assert_eq!(left, 0);
}

fn of_repositories_and_downloads(forge: &Forge, context: &str, archive: &[u8]) {
    let read = |name: &str| fs::read_to_string(Path::new(context).join(name)).unwrap();
    let git = GitServer::start();
    let repository = git.repository("r.git");
    ["Dockerfile", "Real", "a"].iter().for_each(|name| _ = repository.write(name, &read(name)));
    repository.write("sub/Dockerfile", &read("Dockerfile")).write("sub/Real", "FROM scratch\nCOPY other /made\n");
    repository.write("sub/other", "below").commit();
    let (dockerfile, archive) = (read("Dockerfile").into_bytes(), archive.to_vec());
    let web = RawServer::start(move |stream, head| {
        let body = if head.starts_with("GET /x.tar") { &archive } else { &dockerfile };
        RawServer::respond(stream, "200 OK", "", body);
    });
    let at = |name: &str| format!("http://{}/{name}", web.authority());
    let syntax =
        format!("BUILDKIT_SYNTAX={}", read("Dockerfile").lines().next().unwrap().trim_start_matches("# syntax="));
    let (repository, folder) = (git.url("r.git"), format!("{}#main:sub", git.url("r.git")));
    let (tar, file) = (at("x.tar"), at("Dockerfile"));
    // Of a Dockerfile by its address nothing lies beside it.
    let key = ["--build-arg", "key=context"];
    for (number, (words, made)) in [
        (vec![&*repository], "text"),
        (vec![&*folder], "below"),
        (vec!["--build-arg", &syntax, &*repository], "text"),
        (vec![&*tar], "text"),
        (vec![key[0], key[1], "-f", &*file, context], "text"),
        (vec![key[0], key[1], "--build-arg", &syntax, "-f", &*file, context], "text"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("elsewhere{number}");
        forge.ok(&[&["build", "-o", &out], &words[..]].concat());
        assert_eq!(fs::read_to_string(forge.path(&out).join("made")).unwrap(), made, "{words:?}");
    }
    let asked = forge.forge(&["build", "--call", "outline", &repository]);
    assert_eq!((asked.code, asked.stdout.as_str()), (3, "of the front end\n"), "{}", asked.stderr);
    let planned = forge.forge(&["plan", "--build-arg", "what=lazy", &repository]);
    assert!(planned.code == 0 && planned.stdout.contains("1 cached, 0 to run"), "{}{}", planned.stdout, planned.stderr);
}

/// What the front end itself needs is done, and nothing else.
fn plans() {
    let Some(forge) = Forge::privileged("front_end_images_are_asked_for_plans") else { return };
    let registry = TestRegistry::start();
    let image = pushed(&forge, &registry);
    configure(&forge, "enabled = true");
    let context = asking(&forge, &image);
    let lazy = ["--build-arg", "what=lazy", &context];
    let plan = |code: i32, words: &[&str]| forge.fails(code, &[&["plan"], words, &lazy].concat()).stdout;
    let cold = plan(2, &[]);
    let told = "runs     [1/1] COPY a /made\n         it is built for the first time\n0 cached, 1 to run, 0 unknown\n";
    assert_eq!(cold, told);
    assert_eq!(plan(2, &[]), cold, "a plan makes nothing");
    let json: serde_json::Value = serde_json::from_str(&plan(2, &["--format", "json"])).unwrap();
    let steps = json["platforms"][0]["steps"].as_array().unwrap();
    assert!(steps.iter().any(|step| step["reason"] == "first-build"), "{json}");
    forge.ok(&[&["build", "-o", "out"], &lazy[..]].concat());
    assert_eq!(plan(0, &[]), "cached   [1/1] COPY a /made\n1 cached, 0 to run, 0 unknown\n");
    let refused = forge.fails(1, &[&["plan", "--context-report"], &lazy[..]].concat());
    assert!(refused.stderr.contains("--context-report is not supported"), "{}", refused.stderr);
    let failed = forge.fails(1, &["plan", "--build-arg", "what=fail", &context]);
    assert!(failed.stderr.contains("said no"), "{}", failed.stderr);
}
