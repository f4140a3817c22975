//! The executor's tests under another kernel: that of a Debian release, in a virtual machine that needs no help of the processor.
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
const PACKAGES: &str =
    "linux-image-amd64,initramfs-tools,apparmor,busybox-static,iproute2,kmod,uidmap,passt,slirp4netns,runc,crun";

/// Mirror of Debian.
const MIRROR: &str = "http://deb.debian.org/debian";

/// Boots, says what it has, runs the tests and stops. QEMU's own network gives the machine this address.
const INIT: &str = r#"#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb RUST_BACKTRACE=0 FORGE_REQUIRE_PRIVILEGED=1
for module in virtio_net overlay veth bridge nf_tables nft_chain_nat nft_masq tun fuse; do modprobe $module; done
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
/sandbox --test-threads 2 @ARGUMENTS@ 2>&1
sync
echo o >/proc/sysrq-trigger
sleep 60
"#;

/// Runs the tests that have `filter` in their names under the kernels of these releases.
///
/// # Errors
/// A machine cannot be made or started, or a test fails there.
pub fn run_tests(releases: &[&str], filter: Option<&str>) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "the machine's disk is made by root: please run as root");
    packages::ensure(NEEDS)?;
    let tests = tests()?;
    let failed: Vec<&str> = releases
        .iter()
        .copied()
        .filter(|release| match in_machine(release, &tests, filter.unwrap_or_default()) {
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

/// The program with the executor's tests.
fn tests() -> Result<PathBuf> {
    let built = text(&mut command("cargo test -q -p forge-executor --test sandbox --no-run --message-format json"))?;
    let artifact = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok();
    let executable = |line: &str| {
        let artifact = artifact(line)?;
        (artifact["target"]["name"] == "sandbox").then(|| artifact["executable"].as_str().map(PathBuf::from))?
    };
    built.lines().find_map(executable).context("cargo did not say where the tests are")
}

fn in_machine(release: &str, tests: &Path, filter: &str) -> Result<()> {
    let target = tests.ancestors().nth(3).context("the tests are not in a target folder")?;
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
    let init = INIT.replace("@TMP@", &target.join("tmp").display().to_string()).replace("@ARGUMENTS@", filter);
    fs::write(root.join("forge-init"), init)?;
    fs::set_permissions(root.join("forge-init"), fs::Permissions::from_mode(0o755))?;
    fs::copy(tests, root.join("sandbox"))?;
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
        command("timeout 1200 qemu-system-x86_64 -accel tcg,thread=multi -cpu max -machine q35 -m 6G -smp 2");
    machine.args("-nodefaults -display none -serial stdio -no-reboot -nic user,model=virtio-net-pci".split(' '));
    machine.arg("-kernel").arg(root.join("vmlinuz")).arg("-initrd").arg(root.join("initrd.img"));
    machine
        .args(["-append", "console=ttyS0 root=/dev/vda rw init=/forge-init quiet loglevel=3 panic=-1 net.ifnames=0"]);
    machine.arg("-drive").arg(format!("file={},if=virtio,format=raw,cache=unsafe", disk.display()));
    let mut child = machine.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run QEMU")?;
    let console = child.stdout.take().context("QEMU's output was not kept")?;
    let mut end = End::Failed;
    for line in BufReader::new(console).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        if line.starts_with("test result: ok") {
            end = End::Passed;
        } else if line.contains("Kernel panic - not syncing") {
            end = End::Panicked;
        }
        if !line.trim_end().ends_with("... ok") {
            println!("{}", line.trim_end());
        }
    }
    ensure!(child.wait()?.success(), "QEMU failed, or ran for 20 minutes");
    Ok(end)
}
