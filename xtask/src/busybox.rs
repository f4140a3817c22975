//! A base image where no registry is in reach: Debian's static busybox, as an archive that `forge load` and
//! `docker load` read.

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use tar::{Builder, EntryType, Header};

/// The image's name.
pub const NAME: &str = "busybox:latest";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n";

/// Writes the archive. Its bytes depend on the busybox binary alone.
///
/// # Errors
/// There is no static busybox on this machine, or the file cannot be written.
pub fn write_archive(path: &Path) -> Result<()> {
    let layer = layer(&find_busybox()?)?;
    let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(&layer)));
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["sh"]
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "busybox-static of Debian"}]
    });
    let config = serde_json::to_vec(&config)?;
    let config_name = format!("{}.json", hex::encode(Sha256::digest(&config)));
    let manifest = json!([{"Config": config_name, "RepoTags": [NAME], "Layers": ["layer.tar"]}]);
    let mut archive = Builder::new(Vec::new());
    file(&mut archive, &config_name, 0o644, &config)?;
    file(&mut archive, "layer.tar", 0o644, &layer)?;
    file(&mut archive, "manifest.json", 0o644, &serde_json::to_vec(&manifest)?)?;
    fs::write(path, archive.into_inner()?).with_context(|| format!("cannot write {}", path.display()))
}

fn find_busybox() -> Result<PathBuf> {
    let places = ["/bin/busybox", "/usr/bin/busybox"];
    places
        .iter()
        .map(PathBuf::from)
        .find(|path| path.is_file())
        .context("there is no /bin/busybox: install busybox-static")
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn layer(busybox: &Path) -> Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    for (folder, mode) in [
        ("bin/", 0o755),
        ("dev/", 0o755),
        ("etc/", 0o755),
        ("home/", 0o755),
        ("proc/", 0o555),
        ("root/", 0o700),
        ("sys/", 0o555),
        ("tmp/", 0o1777),
        ("usr/", 0o755),
        ("usr/bin/", 0o755),
        ("var/", 0o755),
    ] {
        entry(&mut layer, folder, EntryType::Directory, mode, None, &[])?;
    }
    file(&mut layer, "bin/busybox", 0o755, &fs::read(busybox)?)?;
    for applet in applets(busybox)? {
        entry(&mut layer, &format!("bin/{applet}"), EntryType::Symlink, 0o777, Some("busybox"), &[])?;
    }
    entry(&mut layer, "usr/bin/env", EntryType::Symlink, 0o777, Some("../../bin/busybox"), &[])?;
    file(&mut layer, "etc/passwd", 0o644, PASSWD.as_bytes())?;
    file(&mut layer, "etc/group", 0o644, GROUP.as_bytes())?;
    Ok(layer.into_inner()?)
}

fn applets(busybox: &Path) -> Result<Vec<String>> {
    let output =
        Command::new(busybox).arg("--list").output().with_context(|| format!("cannot run {}", busybox.display()))?;
    let names: Vec<String> =
        String::from_utf8(output.stdout)?.lines().filter(|name| *name != "busybox").map(str::to_owned).collect();
    match names.iter().any(|name| name == "sh") {
        true => Ok(names),
        false => bail!("{} has no shell", busybox.display()),
    }
}

fn file<W: Write>(archive: &mut Builder<W>, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    entry(archive, path, EntryType::Regular, mode, None, bytes)
}

fn entry<W: Write>(
    archive: &mut Builder<W>,
    path: &str,
    kind: EntryType,
    mode: u32,
    link: Option<&str>,
    bytes: &[u8],
) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes.len() as u64);
    match link {
        Some(target) => archive.append_link(&mut header, path, target)?,
        None => archive.append_data(&mut header, path, bytes)?,
    }
    Ok(())
}
