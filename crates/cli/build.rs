//! How the static binary is linked.
#![allow(clippy::print_stdout, reason = "cargo reads it")]

use std::env::var;
use std::process::Command;

/// Since then glibc's start-up code knows relocations that are packed (`DT_RELR`).
const GLIBC: (u32, u32) = (2, 36);

/// A static program that can lie anywhere corrects its 56,000 pointers at every start. Packed, reading where they are takes
/// 20 KB instead of 1.3 MB.
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| var(name).is_ok_and(|found| found.split(',').any(|part| part == value));
    let is_static = is("CARGO_CFG_TARGET_ENV", "gnu") && is("CARGO_CFG_TARGET_FEATURE", "crt-static");
    if is_static && var("HOST") == var("TARGET") && glibc().is_some_and(|found| found >= GLIBC) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of the library that is linked.
fn glibc() -> Option<(u32, u32)> {
    let said = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let said = String::from_utf8(said.stdout).ok()?;
    let (major, minor) = said.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
