//! What an instruction does, seen from outside.

use crate::fixture::{Forge, Step, state, testdata, without_times};

#[test]
fn privileged_the_example_builds_runs_and_is_cached() {
    let Some(forge) = Forge::privileged("the_example_builds_runs_and_is_cached") else { return };
    let hello = testdata("hello");
    let first = forge.build(&["-t", "app:1.0", &hello]);
    assert_eq!(state(&first, "RUN mkdir -p out"), Step::Ran);
    let ran = forge.ok(&["run", "--rm", "app:1.0"]);
    assert_eq!(ran.stdout, "Hello, world, from a forge build\nhello 1.0 runs as nobody in /app and greets: newcomer\n");
    assert_eq!(
        forge.ok(&["run", "--rm", "app:1.0", "you"]).stdout.lines().last().unwrap(),
        "hello 1.0 runs as nobody in /app and greets: you"
    );
    let again = forge.build(&["-t", "app:1.0", &hello]);
    let rerun: Vec<_> = again.iter().filter(|(name, step)| *step != Step::Cached && !name.contains("FROM")).collect();
    assert!(rerun.is_empty(), "{rerun:?}");
    let listed = forge.ok(&["images"]).stdout;
    assert!(listed.starts_with("REPOSITORY   TAG       IMAGE ID       CREATED"), "{listed}");
    assert!(listed.lines().any(|line| line.starts_with("app          1.0 ")), "{listed}");
}

#[test]
fn privileged_the_image_config_is_dockers() {
    let Some(forge) = Forge::privileged("the_image_config_is_dockers") else { return };
    forge.build(&["-t", "app", "--label", "extra=1", &testdata("hello")]);
    let document: serde_json::Value = serde_json::from_str(&forge.ok(&["inspect", "app"]).stdout).unwrap();
    let config = &document[0]["Config"];
    assert_eq!(config["User"], "nobody");
    assert_eq!(config["WorkingDir"], "/app");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/app/hello"]));
    assert_eq!(config["Cmd"], serde_json::json!(["newcomer"]));
    assert_eq!(config["ExposedPorts"], serde_json::json!({"8080/tcp": {}}));
    assert_eq!(config["Labels"]["org.opencontainers.image.title"], "hello");
    assert_eq!(config["Labels"]["extra"], "1");
    assert!(config["Env"].as_array().unwrap().contains(&"GREETING_FILE=/app/greeting.txt".into()));
    assert_eq!(document[0]["RepoTags"], serde_json::json!(["app:latest"]));
    assert_eq!(forge.ok(&["inspect", "-f", "{{.Config.User}} {{.Os}}", "app"]).stdout, "nobody linux\n");
    let history = forge.ok(&["history", "--no-trunc", "app"]).stdout;
    assert!(history.lines().nth(1).unwrap().contains("CMD [\"newcomer\"]"), "{history}");
}

#[test]
fn privileged_heredocs_and_inline_dockerfiles() {
    let Some(forge) = Forge::privileged("heredocs_and_inline_dockerfiles") else { return };
    let dockerfile = "FROM busybox\nRUN <<EOT\nset -e\necho one > /out\necho two >> /out\nEOT\nRUN cat <<EOT > /copy\nname=$HOME\nEOT\n";
    let built = forge.with_input(&["build", "-q", "-t", "doc", "-"], dockerfile.as_bytes());
    assert_eq!(built.code, 0, "{}", built.stderr);
    assert!(built.stdout.starts_with("sha256:") && built.stdout.len() == 72, "{}", built.stdout);
    assert_eq!(built.stderr, "");
    assert_eq!(forge.shell("doc", "cat /out"), "one\ntwo\n");
    let context = forge.context("context", &[("file", "data")]);
    let built =
        forge.with_input(&["build", "-q", "-t", "doc", "-f", "-", &context], b"FROM busybox\nCOPY file /file\n");
    assert_eq!(built.code, 0, "{}", built.stderr);
    assert_eq!(forge.shell("doc", "cat /file"), "data");
}

#[test]
fn privileged_ignored_files_are_not_copied() {
    let Some(forge) = Forge::privileged("ignored_files_are_not_copied") else { return };
    let context = forge.context(
        "context",
        &[
            ("Dockerfile", "FROM busybox\nCOPY . /srv/\n"),
            (".dockerignore", "*.log\nsecret/\n!keep.log\n"),
            ("a.txt", "a"),
            ("b.log", "b"),
            ("keep.log", "k"),
            ("secret/key", "x"),
        ],
    );
    forge.build(&["-t", "ignored", &context]);
    let listed = forge.shell("ignored", "cd /srv && find . -type f | sort");
    assert_eq!(listed, "./.dockerignore\n./Dockerfile\n./a.txt\n./keep.log\n");
    let mut again = std::fs::read_to_string(format!("{context}/.dockerignore")).unwrap();
    again.push_str("a.txt\n");
    std::fs::write(format!("{context}/.dockerignore"), again).unwrap();
    forge.build(&["-t", "ignored", &context]);
    assert!(!forge.shell("ignored", "ls /srv").contains("a.txt"));
}

#[test]
fn privileged_users_folders_and_modes() {
    let Some(forge) = Forge::privileged("users_folders_and_modes") else { return };
    let context = forge.context("context", &[
        ("Dockerfile", "FROM busybox\nWORKDIR /a/b\nWORKDIR c\nCOPY --chown=1000:1001 --chmod=640 file ./\nUSER 1000:1001\nRUN id -u > /tmp/id && pwd >> /tmp/id\nCOPY --chmod=755 dir /dir\nENV X=1\nENV Y=${X}2\nCMD echo $Y\n"),
        ("file", "data"),
        ("dir/inner/deep", "deep"),
    ]);
    forge.build(&["-t", "modes", &context]);
    assert_eq!(forge.ok(&["run", "--rm", "modes"]).stdout, "12\n");
    assert_eq!(
        forge.shell("modes", "cat /tmp/id; stat -c '%u:%g %a' file; cat /dir/inner/deep"),
        "1000\n/a/b/c\n1000:1001 640\ndeep"
    );
    assert_eq!(
        forge
            .ok(&["run", "--rm", "-u", "0", "-w", "/", "-e", "Y=3", "modes", "sh", "-c", "id -u; pwd; echo $Y"])
            .stdout,
        "0\n/\n3\n"
    );
}

#[test]
fn privileged_a_stage_nobody_needs_never_runs() {
    let Some(forge) = Forge::privileged("a_stage_nobody_needs_never_runs") else { return };
    let context = forge.context("context", &[(
        "Dockerfile",
        "FROM nowhere.invalid/none AS broken\nRUN exit 7\nFROM busybox AS used\nRUN echo yes > /yes\nFROM busybox AS other\nRUN exit 9\nFROM used\nRUN cat /yes\n",
    )]);
    let steps = forge.build(&["--offline", "-t", "x", &context]);
    assert!(steps.iter().all(|(name, _)| !name.contains("exit") && !name.contains("nowhere")), "{steps:?}");
    let failed = forge.fails(1, &["build", "--progress", "plain", "--target", "other", &context]);
    assert!(failed.stderr.contains("exit code: 9"), "{}", failed.stderr);
}

#[test]
fn privileged_a_failing_step_is_named_with_line_status_and_output() {
    let Some(forge) = Forge::privileged("a_failing_step_is_named_with_line_status_and_output") else { return };
    let context = forge.context(
        "context",
        &[("Dockerfile", "FROM busybox\nRUN true\nRUN echo first; \\\n    echo 'last words'; exit 42\nRUN never\n")],
    );
    for mode in ["plain", "tty", "quiet"] {
        let failed = forge.fails(1, &["build", "--progress", mode, "-t", "x", &context]);
        for part in ["last words", "Dockerfile:3", "exit code: 42", "ERROR: "] {
            assert!(failed.stderr.contains(part), "{mode}: {part} is missing in\n{}", failed.stderr);
        }
        assert!(!failed.stderr.contains("RUN never:"), "{}", failed.stderr);
        assert_eq!(failed.stdout, "");
    }
    forge.fails(1, &["inspect", "x"]);
}

#[test]
fn privileged_mistakes_in_a_dockerfile_have_a_line() {
    let Some(forge) = Forge::privileged("mistakes_in_a_dockerfile_have_a_line") else { return };
    for (dockerfile, part) in [
        ("FROM busybox\nRUM true\n", "RUM"),
        ("FROM busybox\nCOPY nosuch /x\n", "nosuch"),
        ("FROM busybox\nRUN --mount=type=cachet,target=/c true\n", "did you mean cache?"),
        ("FROM busybox\nCOPY --from=nostage /a /b\n", "nostage"),
    ] {
        let context = forge.context("context", &[("Dockerfile", dockerfile)]);
        let failed = forge.fails(1, &["build", "--offline", "--progress", "plain", &context]);
        assert!(failed.stderr.contains("Dockerfile:2"), "{dockerfile}\n{}", failed.stderr);
        assert!(failed.stderr.contains(part), "{dockerfile}\n{}", failed.stderr);
    }
}

#[test]
fn privileged_onbuild_runs_in_the_next_build() {
    let Some(forge) = Forge::privileged("onbuild_runs_in_the_next_build") else { return };
    let base = forge.context(
        "base",
        &[("Dockerfile", "FROM busybox\nONBUILD COPY file /from-trigger\nONBUILD RUN cat /from-trigger > /copy\n")],
    );
    forge.build(&["-t", "base", &base]);
    let child = forge.context("child", &[("Dockerfile", "FROM base\nRUN test -s /copy\n"), ("file", "data")]);
    forge.build(&["-t", "child", &child]);
    assert_eq!(forge.shell("child", "cat /copy"), "data");
}

#[test]
fn privileged_networks_of_steps() {
    let Some(forge) = Forge::privileged("networks_of_steps") else { return };
    let context = forge.context(
        "context",
        &[("Dockerfile", "FROM busybox\nRUN ls /sys/class/net > /links; cat /etc/hosts > /hosts\n")],
    );
    forge.build(&["-t", "isolated", "--network", "none", "--add-host", "db.test:10.1.2.3", &context]);
    let seen = forge.shell("isolated", "cat /links /hosts");
    assert!(seen.starts_with("lo\n"), "{seen}");
    assert!(seen.lines().any(|line| line.split_whitespace().eq(["10.1.2.3", "db.test"])), "{seen}");
    forge.fails(1, &["build", "--network", "bridge", &context]);
    let default = forge.ok(&["build", "--no-cache", "--progress", "plain", &context]);
    assert!(default.stderr.matches("the host's network is used").count() <= 1, "{}", default.stderr);
    let asked = forge.ok(&["build", "--no-cache", "--progress", "plain", "--network", "host", &context]);
    assert!(!asked.stderr.contains("the host's network is used"), "{}", asked.stderr);
}

#[test]
fn privileged_offline_builds_need_no_connection_and_say_what_they_lack() {
    let Some(forge) = Forge::privileged("offline_builds_need_no_connection_and_say_what_they_lack") else { return };
    let context = forge.context("context", &[("Dockerfile", "FROM busybox\nRUN true\n")]);
    forge.build(&["--offline", &context]);
    let context = forge.context("context", &[("Dockerfile", "FROM 127.0.0.1:9/none\n")]);
    let failed = forge.fails(1, &["build", "--offline", &context]);
    assert!(failed.stderr.contains("offline"), "{}", failed.stderr);
    assert!(forge.fails(1, &["pull", "--offline", "127.0.0.1:9/none"]).stderr.contains("offline"));
}

#[test]
fn privileged_the_log_of_a_failing_build_reads_as_buildkits() {
    let Some(forge) = Forge::privileged("the_log_of_a_failing_build_reads_as_buildkits") else { return };
    let dockerfile =
        "FROM scratch\nCOPY --from=busybox /bin /bin\nRUN [\"/bin/sh\", \"-c\", \"echo some output; exit 3\"]\n";
    let context = forge.context("context", &[("Dockerfile", dockerfile)]);
    let failed = forge.fails(1, &["build", "--progress", "plain", "-t", "x", &context]);
    let id = forge.ok(&["inspect", "-f", "{{.Id}}", "busybox"]).stdout;
    let log = without_times(&failed.stderr).replace(id.trim(), "sha256:ID");
    insta::assert_snapshot!(log, @r#"
    #1 [internal] load build definition from Dockerfile
    #1 DONE TIME

    #2 [internal] load .dockerignore
    #2 DONE TIME

    #3 [internal] load metadata for docker.io/library/busybox:latest
    #3 DONE TIME

    #4 FROM docker.io/library/busybox:latest@sha256:ID
    #4 DONE TIME

    #5 [1/2] COPY --from=busybox /bin /bin
    #5 DONE TIME

    #6 [2/2] RUN ["/bin/sh", "-c", "echo some output; exit 3"]
    #6 TIME some output
    #6 ERROR: process "/bin/sh -c echo some output; exit 3" did not complete successfully: exit code: 3
    ------
     > [2/2] RUN ["/bin/sh", "-c", "echo some output; exit 3"]:
    some output
    ------
    Dockerfile:3
    --------------------
       1 |     FROM scratch
       2 |     COPY --from=busybox /bin /bin
       3 | >>> RUN ["/bin/sh", "-c", "echo some output; exit 3"]
    --------------------
    ERROR: failed to solve: process "/bin/sh -c echo some output; exit 3" did not complete successfully: exit code: 3
    "#);
}
