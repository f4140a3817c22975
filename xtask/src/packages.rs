//! Debian's packages that the demo and the tests need.

use crate::command::{command, run};
use anyhow::{Result, bail};
use std::path::Path;

/// A program and the package that brings it.
pub struct Need {
    pub program: &'static str,
    pub package: &'static str,
}

const fn need(program: &'static str, package: &'static str) -> Need {
    Need { program, package }
}

/// What the demo needs.
pub const DEMO: &[Need] = &[need("busybox", "busybox-static")];

/// What the tests need: readers of what forge writes, a registry, things to build images from.
pub const TESTS: &[Need] = &[
    need("busybox", "busybox-static"),
    need("skopeo", "skopeo"),
    need("umoci", "umoci"),
    need("docker-registry", "docker-registry"),
    need("debootstrap", "debootstrap"),
    need("zstd", "zstd"),
    need("pigz", "pigz"),
    need("strace", "strace"),
    need("faketime", "faketime"),
    need("mkfs.ext4", "e2fsprogs"),
    need("perl", "perl-base"),
    need("iptables-nft", "iptables"),
];

/// What forge's images are compared with.
pub const DIFFERENTIAL: &[Need] = &[need("busybox", "busybox-static"), need("buildah", "buildah")];

/// What the Debian base of the corpus is made with.
pub const CORPUS: &[Need] = &[need("debootstrap", "debootstrap")];

/// What the benchmark compares with.
pub const BENCH: &[Need] = &[
    need("busybox", "busybox-static"),
    need("zstd", "zstd"),
    need("pigz", "pigz"),
    need("unshare", "util-linux"),
    need("time", "time"),
];

/// Installs what is missing when root, else says what to install.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    if !rustix::process::geteuid().is_root() || find("apt-get").is_none() {
        bail!("missing programs: please run: sudo {line}");
    }
    let mut install = command(&line);
    install.env("DEBIAN_FRONTEND", "noninteractive");
    if run(&mut install).is_err() {
        run(&mut command("apt-get update"))?;
        run(&mut install)?;
    }
    Ok(())
}

/// The packages of programs that are not there.
pub fn missing(needs: &[Need]) -> Vec<&'static str> {
    needs.iter().filter(|need| find(need.program).is_none()).map(|need| need.package).collect()
}

/// Where a program lies, the system folders included.
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"]);
    folders.map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}
