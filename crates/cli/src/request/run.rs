use super::isolation::{check_network, device_rule, isolation};
use super::limits::limits;
use super::mounts::mounts;
use super::rights::rights;
use super::{network, platform, reached, refuse, unsupported};
use crate::args::RunArgs;
use crate::environment::Environment;
use anyhow::{Context, bail};
use forge_engine::{ExtraHost, PullPolicy, Resolver, RunRequest};
use std::path::Path;

/// Turns flags into a request; `folder` is where relative paths start.
///
/// # Errors
/// Names the flag that cannot be used, or that forge does not have.
pub fn run_request(args: &RunArgs, environment: &Environment, folder: &Path) -> anyhow::Result<RunRequest> {
    refuse(args.refused.used())?;
    if let Some(value) = args.sig_proxy.as_deref().filter(|value| !matches!(*value, "true" | "1")) {
        return Err(unsupported(&format!("--sig-proxy={value}")));
    }
    let (image, command) = args.words.split_first().context("the image is missing")?;
    let (binds, tmpfs) = mounts(args, folder)?;
    let (isolation, network) = (isolation(args)?, network(&args.network)?);
    check_network(&isolation, network)?;
    let default_platform = environment.filled("DOCKER_DEFAULT_PLATFORM");
    Ok(RunRequest {
        image: image.clone(),
        command: command.to_vec(),
        entrypoint: args.entrypoint.clone(),
        env: variables(args, environment)?,
        workdir: args.workdir.clone(),
        user: args.user.clone(),
        binds,
        tmpfs,
        rights: rights(args, folder)?,
        init: args.init,
        name: args.name.as_deref().map(container_name).transpose()?,
        labels: labels(args)?,
        ports: args.ports.iter().map(|text| reached::ports(text)).collect::<anyhow::Result<Vec<_>>>()?.concat(),
        publish_all: args.publish_all,
        exposed: args.expose.iter().map(|text| reached::exposed(text)).collect::<anyhow::Result<Vec<_>>>()?.concat(),
        devices: args.devices.iter().map(|text| reached::device(text)).collect::<anyhow::Result<_>>()?,
        device_rules: args.device_rules.iter().map(|text| device_rule(text)).collect::<anyhow::Result<_>>()?,
        isolation,
        network,
        extra_hosts: args.add_hosts.iter().map(|text| extra_host(text)).collect::<anyhow::Result<_>>()?,
        resolver: Resolver {
            servers: args.dns.clone(),
            search: args.dns_search.clone(),
            options: args.dns_options.clone(),
        },
        hostname: args.hostname.clone(),
        platform: args.platform.as_deref().or(default_platform).map(platform).transpose()?,
        pull: pull_policy(&args.pull)?,
        readonly_root: args.read_only,
        terminal: args.tty,
        terminal_size: None,
        interactive: args.interactive,
        limits: limits(&args.limits)?,
    })
}

/// docker's rule: a terminal for the process needs one on standard input, where that is handed on.
///
/// # Errors
/// Where it is not so.
pub fn check_terminal(args: &RunArgs, stdin_is_terminal: bool) -> anyhow::Result<()> {
    match args.tty && args.interactive && !stdin_is_terminal {
        true => bail!("the input device is not a TTY"),
        false => Ok(()),
    }
}

fn container_name(text: &str) -> anyhow::Result<String> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let starts = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    match starts && text.len() > 1 && text.bytes().all(valid) {
        true => Ok(text.to_owned()),
        false => bail!("Invalid container name ({text}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"),
    }
}

/// Those of the files, then those of the flags.
fn labels(args: &RunArgs) -> anyhow::Result<Vec<(String, String)>> {
    let mut labels = Vec::new();
    for path in &args.label_files {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
        labels.extend(lines.map(super::build::key_value));
    }
    labels.extend(args.labels.iter().map(|label| super::build::key_value(label)));
    Ok(labels)
}

fn extra_host(text: &str) -> anyhow::Result<ExtraHost> {
    let (host, address) = super::build::extra_host(text)?;
    Ok(ExtraHost { host, address })
}

fn pull_policy(text: &str) -> anyhow::Result<PullPolicy> {
    match text {
        "always" => Ok(PullPolicy::Always),
        "missing" | "" => Ok(PullPolicy::Missing),
        "never" => Ok(PullPolicy::Never),
        other => bail!("invalid pull option {other:?}: must be one of \"always\", \"missing\" or \"never\""),
    }
}

/// The variables of the files, then those of the flags.
fn variables(args: &RunArgs, environment: &Environment) -> anyhow::Result<Vec<String>> {
    let mut variables = Vec::new();
    for path in &args.env_files {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if !line.is_empty() && !line.starts_with('#') {
                let place = format!("{}:{}", path.display(), number + 1);
                variables.extend(variable(line, environment).with_context(|| place)?);
            }
        }
    }
    for text in &args.env {
        variables.extend(variable(text, environment).with_context(|| format!("--env {text:?}"))?);
    }
    Ok(variables)
}

/// `NAME=VALUE`, or `NAME` with the environment's value; nothing where that has none.
fn variable(text: &str, environment: &Environment) -> anyhow::Result<Option<String>> {
    let name = text.split('=').next().unwrap_or_default();
    if name.is_empty() || name.contains(char::is_whitespace) {
        bail!("{name:?} is not a variable's name");
    }
    Ok(match text.contains('=') {
        true => Some(text.to_owned()),
        false => environment.get(text).map(|value| format!("{text}={value}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use forge_engine::Bind;
    use std::ffi::OsString;

    fn args(line: &str) -> RunArgs {
        let words = ["forge", "run"].into_iter().chain(line.split(' ')).map(OsString::from);
        let Command::Run(args) = Cli::read(words).unwrap().command else { panic!() };
        *args
    }

    fn request(line: &str) -> anyhow::Result<RunRequest> {
        run_request(&args(line), &[("HOME", "/root"), ("EMPTY", "")].into(), Path::new("/here"))
    }

    fn error(line: &str) -> String {
        format!("{:#}", request(line).unwrap_err())
    }

    #[test]
    fn dockers_flags_become_a_request() {
        let request = request("--rm -it -e A=1 -e HOME -e UNSET -e EMPTY -w /srv -u 1:2 -v /a:/b:ro -v ./c:/d --net none --entrypoint= -h box --pull never --read-only busybox sh -c true").unwrap();
        assert_eq!(request.env, ["A=1", "HOME=/root", "EMPTY="]);
        let bind = |source: &str, target: &str, readonly| Bind {
            source: source.into(),
            target: target.into(),
            readonly,
            create: true,
        };
        assert_eq!(request.binds, [bind("/a", "/b", true), bind("/here/./c", "/d", false)]);
        assert_eq!(
            (request.image.as_str(), request.command),
            ("busybox", vec!["sh".into(), "-c".into(), "true".to_owned()])
        );
        assert_eq!((request.entrypoint.as_deref(), request.hostname.as_deref()), (Some(""), Some("box")));
        assert_eq!((request.user.as_deref(), request.workdir.as_deref()), (Some("1:2"), Some("/srv")));
        assert!(request.terminal && request.interactive && request.readonly_root && request.pull == PullPolicy::Never);
    }

    #[test]
    fn files_of_variables_come_before_flags() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("env");
        std::fs::write(&file, "# note\n\nA=file\nB=x y \n HOME\n").unwrap();
        let request = request(&format!("--env-file {} -e A=flag x", file.display())).unwrap();
        assert_eq!(request.env, ["A=file", "B=x y ", "HOME=/root", "A=flag"]);
        std::fs::write(&file, "ok=1\n=bad\n").unwrap();
        assert!(error(&format!("--env-file {} x", file.display())).contains("env:2: \"\" is not a variable's name"));
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for flag in [
            "-d",
            "--device acme.com/gpu=0",
            "-p 53:53/sctp",
            "--volumes-from x",
            "--security-opt writable-cgroups=true",
            "--gpus all",
        ] {
            assert!(error(&format!("{flag} busybox")).contains("not supported by this version of forge"), "{flag}");
        }
        assert_eq!(
            error("-v data:/x b"),
            "--volume data:/x: the named volume \"data\" is not supported by this version of forge"
        );
        assert!(error("-v /x b").contains("anonymous volume"));
        assert!(error("-v /a:/b:nocopy b").contains("the option \"nocopy\""));
        assert!(error("-v /a:b b").contains("not an absolute path"));
        assert!(error("--network web b").contains("--network web is not supported"));
        assert!(error("--pull sometimes b").contains("invalid pull option"));
        assert!(error("--sig-proxy=false b").contains("--sig-proxy=false"));
    }

    #[test]
    fn a_terminal_needs_one() {
        assert!(check_terminal(&args("-it b"), false).is_err());
        assert!(check_terminal(&args("-it b"), true).is_ok());
        assert!(check_terminal(&args("-t b"), false).is_ok());
    }
}
