//! Tests under another kernel: that of a Debian release, in a virtual machine that needs no help of the processor.
//! Most kernels that forge meets are older than the developers' own, have nothing but version 2 of control groups, and AppArmor.

use crate::command::{command, run, text};
use crate::packages::{self, Need};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Releases whose kernels are tried: 6.1 and 6.12.
pub const RELEASES: [&str; 2] = ["bookworm", "trixie"];

const NEEDS: &[Need] = &[
    Need { program: "qemu-system-x86_64", package: "qemu-system-x86" },
    Need { program: "debootstrap", package: "debootstrap" },
    Need { program: "mkfs.ext4", package: "e2fsprogs" },
];

/// What the tests use, and what makes the machine start.
const PACKAGES: &str = "linux-image-amd64,initramfs-tools,apparmor,busybox-static,iproute2,kmod,uidmap,passt,slirp4netns,runc,crun,\
                        e2fsprogs,faketime,git,openssh-client,perl,strace";

/// Those of the whole program that depend on the kernel, and those among them that an emulated processor takes too long for, or
/// that need a registry.
const END_TO_END: [&str; 13] = [
    "attacks::",
    "build::",
    "cache_mounts::",
    "cleanliness::",
    "contained::",
    "faults::",
    "interrupt::",
    "isolation::",
    "mounts::",
    "rootless::",
    "run::",
    "runtime::",
    "sandbox::",
];
const NOT_THERE: &str = "--skip f03_ --skip f27_ --skip f28_ --skip f43_ --skip _registry";

/// Mirror of Debian.
const MIRROR: &str = "http://deb.debian.org/debian";

/// Boots, says what it has, runs the tests and stops. QEMU's own network gives the machine this address.
const INIT: &str = r#"#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb RUST_BACKTRACE=0 FORGE_REQUIRE_PRIVILEGED=1
for module in virtio_net overlay veth bridge nf_tables nft_chain_nat nft_masq tun fuse loop; do modprobe $module; done
mkdir -p /dev/pts /dev/shm
mountpoint -q /dev/pts || mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t securityfs securityfs /sys/kernel/security
ip link set lo up
ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && ip route add default via 10.0.2.2
hostname kernel
mkdir -p "@TMP@" && chmod 1777 "@TMP@"
echo "Linux $(uname -r), cgroup 2: $(cat /sys/fs/cgroup/cgroup.controllers), $(cat /sys/kernel/security/lsm)"
@TESTS@
sync
echo o >/proc/sysrq-trigger
sleep 60
"#;

/// Runs the tests that have `filter` in their names under the kernels of these releases: the executor's, and those of the whole
/// program that depend on the kernel.
///
/// # Errors
/// A machine cannot be made or started, or a test fails there.
pub fn run_tests(releases: &[&str], filter: Option<&str>) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "the machine's disk is made by root: please run as root");
    packages::ensure(NEEDS)?;
    let built = Built::new()?;
    let failed: Vec<&str> = releases
        .iter()
        .copied()
        .filter(|release| match in_machine(release, &built, filter) {
            Ok(()) => false,
            Err(error) => {
                println!("{release}: {error:#}");
                true
            }
        })
        .collect();
    match failed.is_empty() {
        true => Ok(()),
        false => bail!("tests failed under the kernels of {}", failed.join(", ")),
    }
}

/// The programs that the machine needs, at the paths where they were built: tests know those.
struct Built {
    executor: PathBuf,
    end_to_end: PathBuf,
    forge: PathBuf,
}

impl Built {
    fn new() -> Result<Self> {
        let line = "cargo test -q -p forge-executor -p forge --test sandbox --test e2e --no-run --message-format json";
        let built = text(&mut command(line))?;
        let messages: Vec<serde_json::Value> =
            built.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let executable = |name: &str| {
            let mut found = messages.iter().filter(|message| message["target"]["name"] == name);
            let path = found.find_map(|message| message["executable"].as_str());
            path.map(PathBuf::from).with_context(|| format!("cargo did not say where {name} is"))
        };
        Ok(Self { executor: executable("sandbox")?, end_to_end: executable("e2e")?, forge: executable("forge")? })
    }

    /// Puts them into the machine, and gives the commands by which the tests are run.
    fn install(&self, root: &Path, filter: Option<&str>) -> Result<[String; 2]> {
        let target = self.forge.strip_prefix("/")?;
        fs::create_dir_all(root.join(target).parent().context("forge is in no folder")?)?;
        let copies = [(&self.forge, target), (&self.executor, "sandbox".as_ref()), (&self.end_to_end, "e2e".as_ref())];
        for (from, to) in copies {
            fs::copy(from, root.join(to)).with_context(|| format!("cannot copy {}", from.display()))?;
        }
        // Tests look for examples from their own crate's folder on.
        let workspace = root.join(crate::workspace().strip_prefix("/")?);
        fs::create_dir_all(workspace.join("crates/cli"))?;
        let mut copy = command("cp -rT");
        run(copy.arg(crate::workspace().join("testdata")).arg(workspace.join("testdata")))?;
        let modules = filter.map_or_else(|| END_TO_END.join(" "), str::to_owned);
        Ok([
            format!("/sandbox --test-threads 2 {} 2>&1", filter.unwrap_or_default()),
            format!("/e2e --test-threads 2 {modules} {NOT_THERE} 2>&1"),
        ])
    }
}

fn in_machine(release: &str, built: &Built, filter: Option<&str>) -> Result<()> {
    let target = built.forge.ancestors().nth(2).context("forge is not in a target folder")?;
    let folder = target.join("kernels");
    fs::create_dir_all(&folder)?;
    let (root, disk) = (folder.join(release), folder.join(format!("{release}.img")));
    let stamp = root.join("forge-packages");
    if fs::read_to_string(&stamp).ok().as_deref() != Some(PACKAGES) {
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        let line = format!("debootstrap --variant=minbase --include={PACKAGES} {release} {} {MIRROR}", root.display());
        run(command(&line).stdout(Stdio::null()))?;
        fs::write(&stamp, PACKAGES)?;
    }
    let tests = built.install(&root, filter)?;
    let init = INIT.replace("@TMP@", &target.join("tmp").display().to_string()).replace("@TESTS@", &tests.join("\n"));
    fs::write(root.join("forge-init"), init)?;
    fs::set_permissions(root.join("forge-init"), fs::Permissions::from_mode(0o755))?;
    fs::File::create(&disk)?.set_len(8 << 30)?;
    run(&mut command(&format!("mkfs.ext4 -q -F -d {} {}", root.display(), disk.display())))?;
    // An emulated processor now and then meets the breakpoint by which the kernel just changes its code on the other one.
    let attempts = 3;
    let end = (0..attempts).map(|_| boot(&root, &disk)).find(|end| !matches!(end, Ok(End::Panicked)));
    fs::remove_file(&disk)?;
    match end {
        Some(end) => ensure!(end? == End::Passed, "tests failed"),
        None => bail!("the kernel panicked in each of {attempts} attempts"),
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Panicked,
    Failed,
    Passed,
}

/// Starts the machine, shows what its console says, and waits for its end.
fn boot(root: &Path, disk: &Path) -> Result<End> {
    let mut machine =
        command("timeout 3000 qemu-system-x86_64 -accel tcg,thread=multi -cpu max -machine q35 -m 6G -smp 2");
    machine.args("-nodefaults -display none -serial stdio -no-reboot -nic user,model=virtio-net-pci".split(' '));
    machine.arg("-kernel").arg(root.join("vmlinuz")).arg("-initrd").arg(root.join("initrd.img"));
    machine
        .args(["-append", "console=ttyS0 root=/dev/vda rw init=/forge-init quiet loglevel=3 panic=-1 net.ifnames=0"]);
    machine.arg("-drive").arg(format!("file={},if=virtio,format=raw,cache=unsafe", disk.display()));
    let mut child = machine.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run QEMU")?;
    let console = child.stdout.take().context("QEMU's output was not kept")?;
    let (mut passed, mut panicked) = (0, false);
    for line in BufReader::new(console).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        passed += usize::from(line.starts_with("test result: ok"));
        panicked |= line.contains("Kernel panic - not syncing");
        if !line.trim_end().ends_with("... ok") {
            println!("{}", line.trim_end());
        }
    }
    ensure!(child.wait()?.success(), "QEMU failed, or ran for 50 minutes");
    Ok(match (panicked, passed) {
        (true, _) => End::Panicked,
        (false, 2) => End::Passed,
        (false, _) => End::Failed,
    })
}
