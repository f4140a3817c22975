//! What needs no root: flags, messages, exit codes.

use crate::fixture::Forge;

#[test]
fn wrong_flags_end_with_dockers_exit_codes() {
    let forge = Forge::new();
    assert!(forge.fails(125, &["build", "--nosuch", "."]).stderr.contains("--nosuch"));
    assert!(forge.fails(125, &["run", "--nosuch", "busybox"]).stderr.contains("--nosuch"));
    forge.fails(1, &["build"]);
    forge.fails(1, &["nosuch"]);
    assert!(forge.ok(&["--version"]).stdout.starts_with("forge 0."));
    assert!(forge.ok(&["build", "--help"]).stdout.contains("--build-arg"));
}

#[test]
fn flags_that_are_not_built_are_refused_by_name() {
    let forge = Forge::new();
    let context = forge.context("context", &[("Dockerfile", "FROM scratch\n")]);
    let refused = forge.fails(1, &["build", "--builder", "x", &context]);
    let refused = refused.stderr.trim_end().to_owned();
    assert!(
        refused.starts_with("ERROR: --builder is not supported by this version of forge: a build runs in"),
        "{refused}"
    );
    let refused = forge.fails(125, &["run", "-d", "busybox"]);
    assert_eq!(refused.stderr, "forge: --detach is not supported by this version of forge\n");
    assert_eq!(refused.stdout, "");
}

#[test]
fn the_configuration_is_checked_with_file_and_line() {
    let forge = Forge::new();
    std::fs::write(forge.path("forge.toml"), "[registry.\"r.test\"]\nhttp = true\nhtpp = true\n").unwrap();
    let refused = forge.fails(1, &["images"]);
    assert!(refused.stderr.contains("forge.toml:3: unknown field `htpp`"), "{}", refused.stderr);
}

#[test]
fn a_missing_context_or_dockerfile_is_named() {
    let forge = Forge::new();
    assert!(forge.fails(1, &["build", "nowhere"]).stderr.contains("path \"nowhere\""));
    let context = forge.context("empty", &[]);
    let refused = forge.fails(1, &["build", "--progress", "plain", &context]);
    assert!(refused.stderr.contains("failed to read dockerfile"), "{}", refused.stderr);
}

// Fails when names go to the terminal as they are.
// Fails when standard input is cut at the limit: the part would build.
#[test]
fn a_dockerfile_that_is_too_large_is_refused_and_not_cut() {
    let forge = Forge::new();
    let mut dockerfile = b"FROM scratch\n".to_vec();
    while dockerfile.len() <= 16 << 20 {
        dockerfile.extend(b"# a line that says nothing, again and again, until there is too much of it altogether\n");
    }
    let refused = forge.with_input(&["build", "-o", "type=cacheonly", "-"], &dockerfile);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("larger than the limit of 16 MiB"), "{}", refused.stderr);
}

#[test]
fn a103_names_are_shown_without_terminal_controls() {
    let forge = Forge::new();
    let refused = forge.fails(1, &["tag", "x", "a\u{1b}[2Jb"]);
    assert!(!refused.stderr.contains('\u{1b}'), "{:?}", refused.stderr);
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let forge = Forge::new();
    let mut command = forge.command(&["build", "--help"]);
    let mut child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    crate::fixture::wait(&mut child);
    let mut stderr = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
    assert!(!stderr.contains("panicked") && !stderr.contains("internal error"), "{stderr}");
}
