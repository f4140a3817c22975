//! Mounts of containers: `-v`, `--mount` and `--tmpfs`.

use super::limits::bytes;
use super::unsupported;
use crate::args::RunArgs;
use anyhow::{Context, bail};
use forge_engine::{Bind, TmpfsMount};
use std::path::{Path, PathBuf};

/// Reads the flags; `folder` is where relative paths start.
///
/// # Errors
/// Names what makes no sense, or what forge does not have.
pub fn mounts(args: &RunArgs, folder: &Path) -> anyhow::Result<(Vec<Bind>, Vec<TmpfsMount>)> {
    let mut binds = args.volumes.iter().map(|text| volume(text, folder)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut tmpfs = args.tmpfs.iter().map(|text| tmpfs(text)).collect::<anyhow::Result<Vec<_>>>()?;
    for text in &args.mounts {
        match mount(text, folder).with_context(|| format!("invalid argument {text:?} for --mount"))? {
            Mount::Bind(bind) => binds.push(bind),
            Mount::Tmpfs(mount) => tmpfs.push(mount),
        }
    }
    Ok((binds, tmpfs))
}

enum Mount {
    Bind(Bind),
    Tmpfs(TmpfsMount),
}

/// `KEY=VALUE,...`.
fn mount(text: &str, folder: &Path) -> anyhow::Result<Mount> {
    let (mut kind, mut source, mut target, mut readonly) = ("volume", None, None, false);
    let (mut size, mut mode) = (None, None);
    for field in text.split(',') {
        let (key, value) = field.split_once('=').map_or((field, None), |(key, value)| (key, Some(value)));
        let given = || value.with_context(|| format!("{key} needs a value"));
        match key {
            "type" => kind = given()?,
            "source" | "src" => source = Some(given()?),
            "target" | "dst" | "destination" => target = Some(given()?),
            "readonly" | "ro" => readonly = matches!(value, None | Some("true" | "1")),
            "tmpfs-size" => size = Some(bytes("mount tmpfs-size", given()?)?),
            "tmpfs-mode" => mode = Some(octal(given()?)?),
            // What forge does in any case.
            "bind-propagation" if matches!(value, Some("private" | "rprivate")) => {}
            "bind-nonrecursive" if value == Some("false") => {}
            other => return Err(unsupported(&format!("the option {other:?}"))),
        }
    }
    let target = target.filter(|path| path.starts_with('/')).context("target must be an absolute path")?.into();
    match kind {
        "bind" if size.is_some() || mode.is_some() => bail!("tmpfs options for a bind mount"),
        "bind" => {
            let source = folder.join(source.filter(|source| !source.is_empty()).context("source is required")?);
            Ok(Mount::Bind(Bind { source, target, readonly, create: false }))
        }
        "tmpfs" if source.is_some() => bail!("a tmpfs has no source"),
        "tmpfs" => Ok(Mount::Tmpfs(TmpfsMount { target, size, mode, readonly, ..TmpfsMount::default() })),
        other => Err(unsupported(&format!("a mount of type {other}"))),
    }
}

fn octal(text: &str) -> anyhow::Result<u32> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777).with_context(|| format!("{text:?} is no mode"))
}

/// `CONTAINER[:OPTIONS]`, with the options of mount(8) that mean something here.
fn tmpfs(text: &str) -> anyhow::Result<TmpfsMount> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    if !target.starts_with('/') {
        bail!("--tmpfs {text:?}: {target:?} is not an absolute path");
    }
    let mut mount = TmpfsMount { target: target.into(), ..TmpfsMount::default() };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("size", value) => mount.size = Some(bytes("tmpfs size", value)?),
            ("mode", value) => mount.mode = Some(octal(value).with_context(|| format!("--tmpfs {text:?}"))?),
            ("ro", "") => mount.readonly = true,
            ("rw", "") => mount.readonly = false,
            ("exec", "") => mount.exec = true,
            ("noexec", "") => mount.exec = false,
            ("suid", "") => mount.suid = true,
            ("nosuid", "") => mount.suid = false,
            ("dev", "") => mount.dev = true,
            ("nodev", "") => mount.dev = false,
            _ => return Err(unsupported(&format!("--tmpfs {text}: the option {option:?}"))),
        }
    }
    Ok(mount)
}

/// `HOST:CONTAINER[:OPTIONS]`.
fn volume(text: &str, folder: &Path) -> anyhow::Result<Bind> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts[..] {
        [_] => return Err(unsupported(&format!("--volume {text} (an anonymous volume)"))),
        [source, target] => (source, target, ""),
        [source, target, options] => (source, target, options),
        _ => bail!("--volume {text:?}: expected HOST:CONTAINER[:OPTIONS]"),
    };
    if !target.starts_with('/') {
        bail!("--volume {text:?}: {target:?} is not an absolute path");
    }
    Ok(Bind {
        source: bind_source(source, text, folder)?,
        target: target.into(),
        readonly: is_readonly(options, text)?,
        create: true,
    })
}

fn bind_source(source: &str, text: &str, folder: &Path) -> anyhow::Result<PathBuf> {
    match source {
        "" => bail!("--volume {text:?}: expected HOST:CONTAINER[:OPTIONS]"),
        source if source.starts_with('/') => Ok(source.into()),
        source if source == "." || source == ".." || source.starts_with("./") || source.starts_with("../") => {
            Ok(folder.join(source))
        }
        source => Err(unsupported(&format!("--volume {text}: the named volume {source:?}"))),
    }
}

/// SELinux's `z` and `Z` have no effect where there is no SELinux, as in docker.
fn is_readonly(options: &str, text: &str) -> anyhow::Result<bool> {
    let mut readonly = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => readonly = true,
            "rw" | "z" | "Z" => {}
            other => return Err(unsupported(&format!("--volume {text}: the option {other:?}"))),
        }
    }
    Ok(readonly)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Mount> {
        mount(text, Path::new("/here"))
    }

    #[test]
    fn mounts_have_dockers_keys() {
        let Mount::Bind(bind) = read("type=bind,src=a,dst=/b,ro").unwrap() else { panic!() };
        assert_eq!(bind, Bind { source: "/here/a".into(), target: "/b".into(), readonly: true, create: false });
        let Mount::Tmpfs(mount) = read("type=tmpfs,destination=/t,tmpfs-size=1m,tmpfs-mode=700").unwrap() else {
            panic!()
        };
        assert_eq!((mount.size, mount.mode), (Some(1 << 20), Some(0o700)));
        for wrong in [
            "type=bind,dst=/b",
            "type=bind,src=/a,dst=b",
            "type=tmpfs,src=/a,dst=/b",
            "src=v,dst=/b",
            "type=bind,src=/a,dst=/b,x=1",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_has_options() {
        let mount = tmpfs("/t:size=2m,mode=1770,exec,ro").unwrap();
        let expected = TmpfsMount {
            target: "/t".into(),
            size: Some(2 << 20),
            mode: Some(0o1770),
            readonly: true,
            exec: true,
            ..TmpfsMount::default()
        };
        assert_eq!(mount, expected);
        assert!(tmpfs("t").is_err() && tmpfs("/t:uid=1").is_err());
    }
}
