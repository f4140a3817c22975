//! The corpus: realistic Dockerfiles, built and run.

use crate::command::{command, output, run};
use crate::corpus_case::{Case, read_all};
use crate::demo::{Forge, release_binary};
use crate::{busybox, packages};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Where the certificates of this machine are, for machines whose way out has authorities of its own.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A Debian base. Tools in it are told of the certificates by the variables they know.
const DEBIAN: &str = "FROM scratch
COPY rootfs /
COPY certificates.pem /usr/local/share/certificates.pem
ENV SSL_CERT_FILE=/usr/local/share/certificates.pem PIP_CERT=/usr/local/share/certificates.pem \\
    CURL_CA_BUNDLE=/usr/local/share/certificates.pem GIT_SSL_CAINFO=/usr/local/share/certificates.pem \\
    NODE_EXTRA_CA_CERTS=/usr/local/share/certificates.pem CARGO_HTTP_CAINFO=/usr/local/share/certificates.pem
CMD [\"bash\"]
";

/// Builds and checks the cases of these names, or all; `offline` leaves out those that need servers.
pub fn check(names: &[&str], offline: bool) -> Result<()> {
    let mut cases = read_all("testdata/corpus".as_ref())?;
    if let Some(unknown) = names.iter().find(|name| !cases.iter().any(|case| case.name == **name)) {
        bail!("there is no testdata/corpus/{unknown}");
    }
    cases.retain(|case| names.is_empty() || names.contains(&case.name.as_str()));
    cases.retain(|case| !(offline && case.needs_network));
    let folder = std::path::absolute("target/corpus")?;
    fs::create_dir_all(&folder)?;
    let forge = Forge { binary: release_binary()?, root: folder.join("store") };
    let archive = folder.join("busybox.tar");
    busybox::write_archive(&archive)?;
    forge.run(&format!("load --replace -i {}", archive.display()))?;
    if cases.iter().any(|case| case.needs_network) {
        debian(&forge, &folder.join("debian"))?;
    }
    report(&forge, &cases)
}

fn report(forge: &Forge, cases: &[Case]) -> Result<()> {
    let mut failed = Vec::new();
    for case in cases {
        let start = Instant::now();
        let result = case.check(|words| stdout_of(forge, words));
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("ok      {:16} {seconds:6.1} s", case.name),
            Err(error) => {
                println!("FAILED  {:16} {seconds:6.1} s\n{error:#}", case.name);
                failed.push(case.name.as_str());
            }
        }
    }
    if !failed.is_empty() {
        bail!("{} of {} failed: {}", failed.len(), cases.len(), failed.join(", "));
    }
    println!("{} Dockerfiles built and ran as expected", cases.len());
    Ok(())
}

fn stdout_of(forge: &Forge, words: &[String]) -> Result<String> {
    let mut command = Command::new(&forge.binary);
    command.args(words).env("FORGE_ROOT", &forge.root).stdin(Stdio::null());
    let output = output(&mut command)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Makes the base from Debian's own packages, once.
fn debian(forge: &Forge, folder: &Path) -> Result<()> {
    packages::ensure(packages::CORPUS)?;
    let rootfs: PathBuf = folder.join("rootfs");
    if !folder.join("complete").exists() {
        fs::create_dir_all(folder)?;
        let mirror = std::env::var("FORGE_TEST_DEBIAN_MIRROR").unwrap_or("http://deb.debian.org/debian".to_owned());
        run(&mut command(&format!("debootstrap --variant=minbase stable {} {mirror}", rootfs.display())))?;
        fs::copy(CERTIFICATES, folder.join("certificates.pem")).with_context(|| format!("no {CERTIFICATES}"))?;
        fs::write(folder.join("Dockerfile"), DEBIAN)?;
        fs::write(folder.join("complete"), "")?;
    }
    forge.run(&format!("build -q -t debian {}", folder.display()))
}
