//! Caches that machines share.

use crate::fixture::{Forge, Step, state};
use crate::registry::Registry;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Two stages, an inner step that leaves something new whenever it really runs, and a file of the context.
const DOCKERFILE: &str = "FROM busybox AS made\nRUN cat /proc/sys/kernel/random/uuid > /id && chown 7:8 /id\n\
    FROM busybox\nWORKDIR /w\nCOPY f .\nCOPY --from=made /id /id\nRUN cat /id f > both\nCMD [\"cat\", \"/w/both\"]\n";
const STEPS: [&str; 5] = ["RUN cat /proc", "WORKDIR", "COPY f", "COPY --from", "RUN cat /id"];

fn context(forge: &Forge) -> String {
    forge.context("context", &[("Dockerfile", DOCKERFILE), ("f", "1\n")])
}

fn layers(forge: &Forge) -> String {
    forge.ok(&["inspect", "--format", "{{json .RootFS.Layers}}", "x"]).stdout
}

/// Builds and says which steps ran.
fn ran(forge: &Forge, flags: &[&str]) -> Vec<&'static str> {
    let context = context(forge);
    let steps = forge.build(&[flags, &["-t", "x", &context]].concat());
    STEPS.into_iter().filter(|step| state(&steps, step) == Step::Ran).collect()
}

// Seen to fail with records that are sent before their layers, and with `find_elsewhere` answering nothing.
#[test]
fn privileged_a_folder_carries_the_cache_to_an_empty_store() {
    let test = "a_folder_carries_the_cache_to_an_empty_store";
    let (Some(here), Some(there)) = (Forge::privileged(test), Forge::privileged(test)) else { return };
    let folder = here.path("cache");
    let (to, from) = (format!("type=local,dest={}", folder.display()), format!("type=local,src={}", folder.display()));
    assert_eq!(ran(&here, &["--cache-to", &to]), STEPS);
    assert!(ran(&there, &["--cache-from", &from]).is_empty());
    assert_eq!(layers(&there), layers(&here));
    assert_eq!(there.ok(&["run", "--rm", "x"]).stdout, here.ok(&["run", "--rm", "x"]).stdout);
    assert_eq!(there.shell("x", "stat -c %u:%g /id"), "7:8\n");
    fs::remove_dir_all(&folder).unwrap();
    assert!(ran(&there, &[]).is_empty(), "what came in is this store's own");
    // A store that had everything before tells of it too.
    assert!(ran(&here, &["--cache-to", &to]).is_empty());
    let Some(third) = Forge::privileged(test) else { return };
    assert!(ran(&third, &["--cache-from", &from]).is_empty());
}

#[test]
fn privileged_what_comes_in_leaves_as_what_was_made_here() {
    let test = "what_comes_in_leaves_as_what_was_made_here";
    let (Some(here), Some(there)) = (Forge::privileged(test), Forge::privileged(test)) else { return };
    let folder = here.path("cache");
    let (to, from) = (format!("type=local,dest={}", folder.display()), format!("type=local,src={}", folder.display()));
    let id = |forge: &Forge, flags: &[&str]| {
        let context = context(forge);
        let words = [&["build", "-t", "x", "--build-arg", "SOURCE_DATE_EPOCH=1700000000"], flags, &[&context]].concat();
        forge.ok(&words);
        forge.ok(&["inspect", "--format", "{{.Id}}", "x"]).stdout
    };
    let made = id(&here, &["--cache-to", &to]);
    assert_eq!(id(&there, &["--cache-from", &from]), made);
    assert_eq!(id(&there, &[]), made);
    // A step above what came in has the key that it has where that was made.
    let more = |forge: &Forge, flags: &[&str]| {
        let text = format!("{DOCKERFILE}RUN --network=none cat both > more\n");
        let context = forge.context("more", &[("Dockerfile", &text), ("f", "1\n")]);
        let steps = forge.build(&[flags, &["-t", "y", &context]].concat());
        state(&steps, "RUN --network")
    };
    assert_eq!(more(&there, &["--cache-to", &to]), Step::Ran);
    assert_eq!(more(&here, &["--cache-from", &from]), Step::Cached);
}

// Seen to fail without the digests' being compared: the build ends with what was put in the way.
#[test]
fn privileged_a44_what_is_damaged_is_a_miss() {
    let test = "a44_what_is_damaged_is_a_miss";
    let Some(here) = Forge::privileged(test) else { return };
    let folder = here.path("cache");
    let (to, from) = (format!("type=local,dest={}", folder.display()), format!("type=local,src={}", folder.display()));
    ran(&here, &["--cache-to", &to]);
    let damages: [&dyn Fn(&Path); 3] = [
        &|blob| fs::write(blob, b"something else").unwrap(),
        &|blob| fs::write(blob, vec![0; fs::metadata(blob).unwrap().len() as usize]).unwrap(),
        &|blob| fs::remove_file(blob).unwrap(),
    ];
    for damage in damages {
        let copy = here.path("copy");
        _ = fs::remove_dir_all(&copy);
        crate::fixture::system(&["cp", "-r", folder.to_str().unwrap(), copy.to_str().unwrap()]);
        // Layers are not JSON.
        let is_layer = |path: &Path| fs::read(path).unwrap().first() != Some(&b'{');
        let blobs = fs::read_dir(copy.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
        blobs.filter(|path| is_layer(path)).for_each(|path| damage(&path));
        let Some(there) = Forge::privileged(test) else { return };
        let context = context(&there);
        let from = format!("type=local,src={}", copy.display());
        let told = there.ok(&["build", "--cache-from", &from, "-t", "x", &context]).stderr;
        assert!(told.contains("cache import: "), "{told}");
        assert!(there.ok(&["run", "--rm", "x"]).stdout.ends_with("\n1\n"));
    }
    // Records under other keys are no records.
    let keys = folder.join("forge-cache/latest");
    let names: Vec<_> = fs::read_dir(&keys).unwrap().map(|entry| entry.unwrap().path()).collect();
    let texts: Vec<_> = names.iter().map(|name| fs::read(name).unwrap()).collect();
    for (name, text) in names.iter().zip(&texts) {
        fs::write(name, texts.iter().find(|other| *other != text).unwrap()).unwrap();
    }
    let Some(there) = Forge::privileged(test) else { return };
    let context = context(&there);
    let told = there.ok(&["build", "--cache-from", &from, "-t", "x", &context]).stderr;
    assert!(told.contains("a record is refused: it is the record of another step"), "{told}");
}

#[test]
fn privileged_what_succeeded_of_a_build_that_failed_is_shared() {
    let test = "what_succeeded_of_a_build_that_failed_is_shared";
    let (Some(here), Some(there)) = (Forge::privileged(test), Forge::privileged(test)) else { return };
    let folder = here.path("cache");
    let context = here.context("failing", &[("Dockerfile", "FROM busybox\nRUN echo > /made\nRUN false\n")]);
    here.fails(1, &["build", "--cache-to", &format!("type=local,dest={}", folder.display()), &context]);
    let context = there.context("good", &[("Dockerfile", "FROM busybox\nRUN echo > /made\nRUN true\n")]);
    let steps = there.build(&["--cache-from", &format!("type=local,src={}", folder.display()), &context]);
    assert_eq!((state(&steps, "RUN echo"), state(&steps, "RUN true")), (Step::Cached, Step::Ran));
}

#[test]
fn privileged_a_cache_that_is_not_there_fails_nothing() {
    let test = "a_cache_that_is_not_there_fails_nothing";
    let Some(forge) = Forge::privileged(test) else { return };
    let context = context(&forge);
    let nowhere = "type=registry,ref=127.0.0.1:1/cache";
    let begin = Instant::now();
    let built = forge.ok(&["build", "--cache-from", nowhere, "--cache-to", nowhere, "-t", "x", &context]);
    // Five steps, each of which would ask.
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    let lines = |what: &str| built.stderr.matches(what).count();
    assert_eq!(
        (lines("cache import: 127.0.0.1:1/cache"), lines("cache export: 127.0.0.1:1/cache")),
        (1, 1),
        "{built:?}"
    );
}

/// Two builders with one registry, at the same time, for two platforms' worth of different steps.
#[test]
fn privileged_builders_that_write_at_once_lose_nothing() {
    let test = "builders_that_write_at_once_lose_nothing";
    let Some(registry) = Registry::start(test) else { return };
    let (Some(one), Some(two), Some(three)) =
        (Forge::privileged(test), Forge::privileged(test), Forge::privileged(test))
    else {
        return;
    };
    let cache = format!("{}/team/cache:main", registry.host);
    let to = format!("type=registry,ref={cache}");
    let flags = |name: &str| ["--build-arg".to_owned(), format!("N={name}")];
    let files = [("Dockerfile", "FROM busybox\nARG N\nRUN echo $N > /n\nRUN cat /n > /m\nCOPY f /f\n"), ("f", "1")];
    let build = |forge: &Forge, name: &str, cache: [&str; 2]| {
        let context = forge.context("context", &files);
        let [flag, value] = flags(name);
        let steps = forge.build(&[&flag, &value, cache[0], cache[1], "-t", "x", &context]);
        ["RUN echo", "RUN cat", "COPY f"].map(|step| state(&steps, step))
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| build(&two, "two", ["--cache-to", &to]));
        assert_eq!(build(&one, "one", ["--cache-to", &to]), [Step::Ran; 3]);
        assert_eq!(other.join().unwrap(), [Step::Ran; 3]);
    });
    for (name, maker) in [("one", &one), ("two", &two)] {
        assert_eq!(build(&three, name, ["--cache-from", &cache]), [Step::Cached; 3], "{name}");
        assert_eq!(layers(&three), layers(maker));
        assert_eq!(three.shell("x", "cat /m"), format!("{name}\n"));
    }
}

/// Two processes build for a platform each and write at once; a third builds for both and runs nothing.
#[test]
fn privileged_platforms_that_are_built_apart_are_one_cache() {
    let test = "platforms_that_are_built_apart_are_one_cache";
    let Some(registry) = Registry::start(test) else { return };
    let place = format!("type=registry,ref={}/team/cache:both", registry.host);
    let files = [("Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY f /of-$TARGETARCH\nCOPY f /f\n"), ("f", "1")];
    let build = |platform: &str, flag: &str| {
        let forge = Forge::privileged(test)?;
        let context = forge.context("context", &files);
        let output = forge.path("out.tar").display().to_string();
        let output = format!("type=oci,dest={output}");
        Some(forge.build(&["--platform", platform, flag, &place, "--output", &output, &context]))
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| build("linux/arm64", "--cache-to"));
        build("linux/amd64", "--cache-to");
        other.join().unwrap();
    });
    let Some(steps) = build("linux/amd64,linux/arm64", "--cache-from") else { return };
    let copies: Vec<_> = steps.iter().filter(|(name, _)| name.contains("COPY f")).collect();
    assert!(copies.len() == 4 && copies.iter().all(|(_, step)| *step == Step::Cached), "{steps:?}");
}

/// What a step made is in the cache while the next one still runs.
#[test]
fn privileged_steps_are_sent_while_the_build_goes_on() {
    let test = "steps_are_sent_while_the_build_goes_on";
    let Some(forge) = Forge::privileged(test) else { return };
    let folder = forge.path("cache");
    let text = "FROM busybox\nRUN echo > /made\nRUN while [ ! -e /work/go ]; do usleep 20000; done\n";
    let context = forge.context(
        "context",
        &[("Dockerfile", &text.replace("RUN while", "RUN --mount=type=cache,id=w,target=/work while"))],
    );
    let to = format!("type=local,dest={}", folder.display());
    let mut build =
        forge.command(&["build", "--cache-to", &to, &context]).stderr(std::process::Stdio::null()).spawn().unwrap();
    let (begin, keys) = (Instant::now(), folder.join("forge-cache/latest"));
    while fs::read_dir(&keys).map_or(0, Iterator::count) == 0 {
        assert!(build.try_wait().unwrap().is_none() && begin.elapsed() < Duration::from_secs(60), "nothing is sent");
        std::thread::sleep(Duration::from_millis(20));
    }
    // The one cache mount of this store is what the step waits in, once it is there.
    let ended = loop {
        let mounts = fs::read_dir(forge.store().join("cache-mounts")).into_iter().flatten();
        mounts.for_each(|entry| _ = fs::write(entry.unwrap().path().join("tree/go"), ""));
        if let Some(ended) = build.try_wait().unwrap() {
            break ended;
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "the step does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(ended.success());
}
