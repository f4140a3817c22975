//! Reads what a build is made from: `PATH|URL|-`, `-f` and `--build-context`.

use super::build::Input;
use super::reference;
use crate::args::BuildArgs;
use crate::sanitise;
use anyhow::{Context, bail};
use forge_engine::{BuildContext, DockerfileSource, NamedContext, RemoteContext};
use forge_image::{Platform, Reference};
use std::path::{Path, PathBuf};

/// The main context and where the Dockerfile is.
pub fn sources(args: &BuildArgs, input: Input) -> anyhow::Result<(BuildContext, DockerfileSource)> {
    let file = args.file.as_deref().filter(|file| !file.is_empty());
    let context = match input {
        Input::Context(stream) => BuildContext::Stream(stream),
        Input::Dockerfile(text) => return Ok((main_context(&args.context)?, DockerfileSource::Inline(text))),
        Input::Nothing => main_context(&args.context)?,
    };
    let dockerfile = match (file, &context) {
        (None, _) => DockerfileSource::Default,
        (Some(file), context) => dockerfile(file, context),
    };
    Ok((context, dockerfile))
}

/// `-f` names a file of this machine beside a folder; within a context from elsewhere it is a path there, unless it is
/// absolute and the context is remote (buildx does the same).
fn dockerfile(file: &str, context: &BuildContext) -> DockerfileSource {
    if let Some(remote) = RemoteContext::parse_download(file) {
        return DockerfileSource::Remote(remote);
    }
    match context {
        BuildContext::Stream(_) => DockerfileSource::InContext(file.to_owned()),
        BuildContext::Remote(_) if !file.starts_with('/') => DockerfileSource::InContext(file.to_owned()),
        _ => DockerfileSource::File(file.into()),
    }
}

/// A folder of this machine comes first, whatever its name looks like.
fn main_context(text: &str) -> anyhow::Result<BuildContext> {
    let path = Path::new(text);
    if path.is_dir() {
        return Ok(BuildContext::Directory(path.to_owned()));
    }
    if let Some(remote) = RemoteContext::parse_main(text).context("unable to prepare context")? {
        return Ok(BuildContext::Remote(remote));
    }
    std::fs::metadata(path).with_context(|| format!("unable to prepare context: path {text:?}"))?;
    bail!("unable to prepare context: {text:?} is not a folder")
}

/// `--build-context NAME=VALUE`. The value may hold a password and is not repeated in errors (A102).
pub fn named_context(text: &str) -> anyhow::Result<(String, NamedContext)> {
    let Some((name, value)) = text.split_once('=').filter(|(_, value)| !value.is_empty()) else {
        bail!("--build-context: expected NAME=VALUE");
    };
    let shown = sanitise::line(name);
    let name = context_name(name).with_context(|| format!("--build-context {shown}: invalid context name"))?;
    let value = context_value(value).with_context(|| format!("--build-context {shown}"))?;
    Ok((name, value))
}

/// Names are compared as docker shortens image names. A platform may stand behind them: `name::linux/arm64`.
fn context_name(text: &str) -> anyhow::Result<String> {
    let (name, platform) = match text.split_once("::") {
        Some((name, platform)) => (name, Some(platform.parse::<Platform>()?)),
        None => (text, None),
    };
    let familiar = name.parse::<Reference>()?.familiar();
    let short = familiar.strip_suffix(":latest").unwrap_or(&familiar);
    if matches!(short, "scratch" | "context") {
        bail!("the name {short} is reserved");
    }
    Ok(platform.map_or_else(|| short.to_owned(), |platform| format!("{short}::{platform}")))
}

fn context_value(value: &str) -> anyhow::Result<NamedContext> {
    let prefixed = |prefix: &str| value.strip_prefix(prefix);
    if let Some(image) = prefixed("docker-image://") {
        return Ok(match image {
            "scratch" => NamedContext::Scratch,
            image => NamedContext::Image(reference(image)?),
        });
    }
    if let Some(layout) = prefixed("oci-layout://") {
        return oci_layout(layout);
    }
    if let Some(stage) = prefixed("target:") {
        return Ok(NamedContext::Stage(stage.to_owned()));
    }
    if Path::new(value).is_dir() {
        return Ok(NamedContext::Directory(PathBuf::from(value)));
    }
    match RemoteContext::parse(value)? {
        Some(remote) => Ok(NamedContext::Remote(remote)),
        // Opening it tells what is wrong with it.
        None => Ok(NamedContext::Directory(PathBuf::from(value))),
    }
}

fn oci_layout(text: &str) -> anyhow::Result<NamedContext> {
    let (text, digest) = match text.split_once('@') {
        Some((path, digest)) => (path, Some(digest.parse()?)),
        None => (text, None),
    };
    let (path, tag) = match text.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_owned())),
        _ => (text, None),
    };
    Ok(NamedContext::OciLayout { path: path.into(), tag, digest })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> (String, NamedContext) {
        named_context(text).unwrap()
    }

    fn error(text: &str) -> String {
        format!("{:#}", named_context(text).unwrap_err())
    }

    #[test]
    fn every_kind_of_named_context() {
        assert_eq!(named("a=/x").1, NamedContext::Directory("/x".into()));
        assert_eq!(named("b=docker-image://busybox").1, NamedContext::Image("busybox".parse().unwrap()));
        let pinned = format!("busybox@sha256:{}", "a".repeat(64));
        assert_eq!(named(&format!("b=docker-image://{pinned}")).1, NamedContext::Image(pinned.parse().unwrap()));
        assert_eq!(named("b=docker-image://scratch").1, NamedContext::Scratch);
        let layout = NamedContext::OciLayout { path: "/l".into(), tag: Some("t".into()), digest: None };
        assert_eq!(named("c=oci-layout:///l:t").1, layout);
        let digest = format!("sha256:{}", "b".repeat(64));
        let layout = NamedContext::OciLayout { path: "/l".into(), tag: None, digest: Some(digest.parse().unwrap()) };
        assert_eq!(named(&format!("c=oci-layout:///l@{digest}")).1, layout);
        assert_eq!(named("d=target:base").1, NamedContext::Stage("base".into()));
        for remote in ["https://host/a.git#main:sub", "git@host:a/b.git", "https://host/a.tar.gz"] {
            let NamedContext::Remote(found) = named(&format!("e={remote}")).1 else { panic!("{remote}") };
            assert_eq!(found.to_string(), remote);
        }
        // Only the main context knows this short form.
        assert_eq!(named("f=github.com/a/b").1, NamedContext::Directory("github.com/a/b".into()));
    }

    #[test]
    fn names_are_shortened_and_some_are_reserved() {
        let name = |text: &str| named(&format!("{text}=/x")).0;
        assert_eq!(name("docker.io/library/alpine:latest"), "alpine");
        assert_eq!(name("alpine:3.20"), "alpine:3.20");
        assert_eq!(name("alpine::linux/aarch64"), "alpine::linux/arm64");
        for reserved in ["scratch", "context", "context::linux/amd64"] {
            assert!(error(&format!("{reserved}=/x")).contains("is reserved"), "{reserved}");
        }
        assert!(error("UPPER=/x").starts_with("--build-context UPPER: invalid context name"));
        for bad in ["a", "a=", "=x"] {
            assert!(error(bad).starts_with("--build-context"), "{bad}");
        }
    }

    #[test]
    fn a102_errors_do_not_repeat_addresses() {
        for text in ["a=https://u:geheim@host/a.git#-x", "https://u:geheim@host", "A=https://u:geheim@host/a.git"] {
            assert!(!error(text).contains("geheim"), "{}", error(text));
        }
    }
}
