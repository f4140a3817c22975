//! Plain COPY and WORKDIR on bases that stay in their registry.

use crate::fixture::Forge;
use forge_testkit::TestRegistry;

/// The blobs of a repository that were sent whole, and the parts of blobs.
fn sent(registry: &TestRegistry, repository: &str) -> (usize, usize) {
    let start = format!("/v2/{repository}/blobs/sha256:");
    let received = registry.received();
    let of = |is_part: bool| {
        let wanted = received.iter().filter(|request| request.method == "GET" && request.path.starts_with(&start));
        wanted.filter(|request| request.header("range").is_some() == is_part).count()
    };
    (of(false), of(true))
}

/// The layers that an image has, lowest first.
fn layers(registry: &TestRegistry, repository: &str) -> Vec<String> {
    let (_, _, manifest) = registry.tagged(repository, "1").unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter();
    layers.map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
}

/// A registry with a base of some layers, whose blobs are of that kind.
fn with_base(forge: &Forge, output: &str) -> TestRegistry {
    let registry = TestRegistry::start();
    let dockerfile = "FROM scratch\nCOPY --from=busybox / /\n\
        RUN mkdir -p -m 0700 /srv/app/old && echo 1 > /srv/app/old/f && chown 7:8 /srv/app && ln -s srv/app /work\n\
        RUN rm -r /srv/app/old && mkdir -m 1777 /spool\n";
    let base = forge.context("base", &[("Dockerfile", dockerfile)]);
    let name = format!("{}/base:1", registry.authority());
    forge.build(&["-o", &format!("type=image,name={name},push=true,{output}"), &base]);
    registry.clear_log();
    registry
}

/// Builds on the base where it is not here, and where it is; gives what was sent for the first.
fn built_twice(registry: &TestRegistry, context: &str, forge: &Forge) -> (usize, usize) {
    let host = registry.authority();
    // New folders have the time of the build, which is to be one for both.
    let build = |forge: &Forge, name: &str| {
        let output = format!("type=image,name={host}/{name}:1,push=true,rewrite-timestamp=false");
        forge.build(&["--build-arg", "SOURCE_DATE_EPOCH=1700000000", "-o", &output, context]);
    };
    build(forge, "lazy");
    let sent = sent(registry, "base");
    let eager = Forge::new();
    let base = format!("{host}/base:1");
    eager.ok(&["pull", &base]);
    eager.ok(&["run", "--rm", &base, "true"]);
    build(&eager, "eager");
    assert_eq!(layers(registry, "lazy"), layers(registry, "eager"), "the same layers, whatever was known");
    sent
}

// Seen to fail with `file_step` that has every input present.
#[test]
fn privileged_files_go_into_the_root_of_a_base_that_is_not_here() {
    let Some(forge) = Forge::privileged("files_go_into_the_root_of_a_base_that_is_not_here") else { return };
    let registry = with_base(&forge, "compression=gzip,force-compression=true");
    let other = Forge::new();
    let dockerfile = format!(
        "FROM {}/base:1\nCOPY file other /\nCOPY --chown=3:4 --chmod=0751 file /./\nENV A=1\n",
        registry.authority()
    );
    let context = other.context("context", &[("Dockerfile", &dockerfile), ("file", "hello\n"), ("other", "x")]);
    assert_eq!(built_twice(&registry, &context, &other), (1, 0), "the config: {:#?}", registry.lines());
    // Of what may be a folder of the base, the base must say what it is.
    let context = other
        .context("second", &[("Dockerfile", &dockerfile.replace("file other", "etc")), ("etc", "x"), ("file", "")]);
    let told = other.fails(1, &["build", &context]).stderr;
    assert!(told.contains("cannot replace to directory /etc with file"), "{told}");
}

#[test]
fn privileged_tables_of_contents_say_what_a_base_has() {
    let Some(forge) = Forge::privileged("tables_of_contents_say_what_a_base_has") else { return };
    for compression in ["estargz", "zstd:chunked"] {
        let registry = with_base(&forge, &format!("compression={compression},force-compression=true"));
        let other = Forge::new();
        let base = format!("FROM {}/base:1\n", registry.authority());
        let steps =
            "WORKDIR /work/new/deep\nCOPY . .\nWORKDIR /work\nCOPY d /spool/\nCOPY file /work/old\nCOPY d /work\n";
        let files = [("file", "hello\n"), ("d/f", "f"), ("d/sub/g", "g"), (".dockerignore", "Dockerfile\n")];
        let dockerfile = format!("{base}{steps}");
        let context = other.context("context", &[&[("Dockerfile", &*dockerfile)], &files[..]].concat());
        let (whole, parts) = built_twice(&registry, &context, &other);
        assert_eq!(whole, 1, "{compression}: the config: {:#?}", registry.lines());
        assert!((3..=6).contains(&parts), "{compression}: {parts}");
        let before = sent(&registry, "base");
        other.build(&["-t", "local", &context]);
        assert_eq!(sent(&registry, "base"), before, "nor by the next build");
        let seen = "stat -c '%n %a %u:%g' /srv/app /srv/app/new /srv/app/new/deep/file /spool /spool/f /srv/app/old; ls -A /srv/app";
        let expect = "/srv/app 755 7:8\n/srv/app/new 755 0:0\n/srv/app/new/deep/file 644 0:0\n/spool 1777 0:0\n/spool/f 644 0:0\n/srv/app/old 644 0:0\nf\nnew\nold\nsub\n";
        assert_eq!(other.shell("local", seen), expect);
        // What needs bytes of the base has it fetched.
        let named = format!("{base}COPY --chown=root file /srv/app/\n");
        let context = other.context("second", &[("Dockerfile", &named), ("file", "")]);
        Forge::new().build(&[&context]);
        assert!(sent(&registry, "base").0 > before.0 + 3, "{:#?}", registry.lines());
    }
}

/// A registry gets no bare tars unless it is asked for them: those of a base are fetched to be compressed.
#[test]
fn privileged_bare_tars_of_a_base_are_fetched_to_be_compressed() {
    let Some(forge) = Forge::privileged("bare_tars_of_a_base_are_fetched_to_be_compressed") else { return };
    let registry = with_base(&forge, "compression=uncompressed,force-compression=true");
    let other = Forge::new();
    let dockerfile = format!("FROM {}/base:1\nCOPY file /\n", registry.authority());
    let context = other.context("context", &[("Dockerfile", &dockerfile), ("file", "hello\n")]);
    assert_eq!(built_twice(&registry, &context, &other), (4, 0));
}
