use std::env;

/// Whether a test that needs root may run. Begin every `privileged_*` test with
/// `if !forge_testkit::privileged("its name") { return; }`.
///
/// Without root it prints `SKIPPED (needs root): name` and says no.
///
/// # Panics
/// Without root, when `FORGE_REQUIRE_PRIVILEGED=1`: then a skipped test is a failed one.
pub fn privileged(name: &str) -> bool {
    rustix::process::geteuid().is_root() || skip(name, "needs root")
}

/// Whether a test that runs a program of the machine may run.
///
/// # Panics
/// The program is absent and `FORGE_REQUIRE_PRIVILEGED=1`.
pub fn installed(program: &str, name: &str) -> bool {
    find(program) || skip(name, &format!("needs {program}"))
}

fn find(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[expect(clippy::print_stdout, reason = "a skipped test says so where the tests' results stand")]
fn skip(name: &str, why: &str) -> bool {
    assert!(env::var("FORGE_REQUIRE_PRIVILEGED").as_deref() != Ok("1"), "{name} {why}, and may not be skipped");
    println!("SKIPPED ({why}): {name}");
    false
}
