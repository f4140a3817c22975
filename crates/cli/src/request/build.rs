use super::annotation::annotations;
use super::context::{named_context, sources};
use super::handed;
use super::limits::{limits, resource_pairs};
use super::output::csv;
use super::output::{goes_to_stdout, output};
use super::recipient::recipient;
use super::shared_cache::caches;
use super::source_policy::source_policies;
use super::{network, platform, reference, unsupported};
use crate::args::BuildArgs;
use crate::environment::Environment;
use anyhow::{Context, bail};
use forge_engine::{
    Allowed, Attest, BuildRequest, ContextModes, ContextStream, Explain, ImageOutput, Limits, Network, OnFailure,
    Output, Push, Resources, SharedCaches, Transport, TriggerRight,
};
use forge_image::Platform;
use std::collections::BTreeMap;
use std::time::SystemTime;

/// What of a build comes from standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputNeeds {
    /// Nothing.
    Nothing,
    /// The Dockerfile (`-f -`).
    Dockerfile,
    /// A Dockerfile or an archive (`-` as the context).
    Context,
}

/// What came of it.
#[derive(Clone, Debug)]
pub enum Input {
    /// Nothing was needed.
    Nothing,
    /// The Dockerfile.
    Dockerfile(Vec<u8>),
    /// A stream that the build reads.
    Context(ContextStream),
}

/// Says what has to be read before [`build_request`] is called.
///
/// # Errors
/// Refuses to read two things from one stream.
pub fn input_needs(args: &BuildArgs) -> anyhow::Result<InputNeeds> {
    match (args.context.as_str(), args.file.as_deref()) {
        ("-", Some("-")) => bail!("invalid argument: can't use stdin for both build context and dockerfile"),
        ("-", _) => Ok(InputNeeds::Context),
        (_, Some("-")) => Ok(InputNeeds::Dockerfile),
        _ => Ok(InputNeeds::Nothing),
    }
}

/// The lines that say which flags have no effect, as docker writes them.
pub fn notes(args: &BuildArgs) -> Vec<String> {
    let why = |flag: &str| match flag {
        "compress" => "the context is read where it is",
        "isolation" => "it is for Windows",
        "security-opt" => "steps always run with the default policies",
        _ => "use a multi-stage Dockerfile instead",
    };
    args.ignored.used().iter().map(|flag| format!("WARNING: --{flag} has no effect: {}", why(flag))).collect()
}

/// Turns flags into a request. `input` is what [`input_needs`] asked for; `proxy_env` what docker's
/// configuration hands to every build.
///
/// # Errors
/// Names the flag that cannot be used, or that forge does not have.
pub fn build_request(
    args: &BuildArgs,
    environment: &Environment,
    input: Input,
    proxy_env: Vec<String>,
    now: SystemTime,
) -> anyhow::Result<BuildRequest> {
    refuse_what_is_not_built(args)?;
    let mut build_args = build_args(&args.build_args, environment);
    let epoch = source_date_epoch(&mut build_args, environment);
    let given = limits(&args.limits)?;
    let (context, dockerfile) = sources(args, input)?;
    Ok(BuildRequest {
        context,
        dockerfile,
        tags: args.tags.iter().map(|tag| reference(tag)).collect::<anyhow::Result<_>>()?,
        build_args,
        target: args.target.clone().filter(|target| !target.is_empty()),
        no_cache: args.no_cache,
        no_cache_stages: args.no_cache_filter.clone(),
        renew_cache_mounts: false,
        pull: args.pull,
        platforms: platforms(&args.platforms, environment)?,
        named_contexts: args.build_contexts.iter().map(|text| named_context(text)).collect::<anyhow::Result<_>>()?,
        outputs: outputs(args, environment)?,
        source_policies: source_policies(environment)?,
        caches: shared_caches(args, environment)?,
        attest: attest(args)?,
        labels: args.labels.iter().map(|label| key_value(label)).collect(),
        network: build_network(args)?,
        allowed: allowed(&args.allow)?,
        secrets: handed::secrets(&args.secrets, environment)?,
        ssh: handed::agents(&args.ssh, environment)?,
        source_date_epoch: epoch,
        proxy_env,
        extra_hosts: args.add_hosts.iter().map(|text| extra_host(text)).collect::<anyhow::Result<_>>()?,
        limits: Limits { resources: resource_pairs(given.resources.clone(), "resource", &args.resources)?, ..given },
        total_limits: resource_pairs(Resources::default(), "total-resource", &args.total_resources)?,
        on_failure: if args.keep_going { OnFailure::FinishOthers } else { OnFailure::CancelOthers },
        max_parallelism: args.max_parallelism.map(Into::into),
        context_modes: if args.context_modes == "git" { ContextModes::Git } else { ContextModes::Disk },
        explain: if args.explain { Explain::Everything } else { Explain::FirstCauses },
        compared_as: None,
        now,
    })
}

/// A flag that buildx has and forge has not, and why.
fn lacking(written: &str, flag: &str) -> anyhow::Error {
    let why = match flag {
        "builder" => "a build runs in this process, there are no builders to choose from",
        _ => "rules in Rego are not read; EXPERIMENTAL_BUILDKIT_SOURCE_POLICY names a file of rules in JSON",
    };
    anyhow::anyhow!("{}: {why}", unsupported(written))
}

fn refuse_what_is_not_built(args: &BuildArgs) -> anyhow::Result<()> {
    if let Some(flag) = args.refused.used().first() {
        return Err(lacking(&format!("--{flag}"), flag));
    }
    for text in &args.policies {
        // Who asks for none is served.
        if !csv(text)?.iter().any(|field| field == "disabled=true") {
            return Err(lacking(&format!("--policy {text}"), "policy"));
        }
    }
    Ok(())
}

/// What `--cache-from` and `--cache-to` say. The build argument is how caches within images were asked for at first.
fn shared_caches(args: &BuildArgs, environment: &Environment) -> anyhow::Result<SharedCaches> {
    let caches = caches(&args.cache_from, &args.cache_to, environment)?;
    let asked = args.build_args.iter().find_map(|text| text.strip_prefix("BUILDKIT_INLINE_CACHE="));
    let inline = caches.inline || asked.is_some_and(|value| !matches!(value, "" | "0" | "false"));
    Ok(SharedCaches { inline, ..caches })
}

/// `--attest type=KIND,…`, and `--provenance` and `--sbom`, which stand for one of these, as buildx takes them.
fn attest(args: &BuildArgs) -> anyhow::Result<Attest> {
    let mut attest = Attest::default();
    for text in &args.attests {
        let mut fields = pairs(text)?;
        let place = fields.iter().position(|(name, _)| name == "type");
        let (_, kind) = fields.remove(place.with_context(|| format!("--attest {text}: type is missing"))?);
        attest.add(&kind, &fields).map_err(|error| anyhow::anyhow!("--attest {text}: {error}"))?;
    }
    for (kind, text) in [("provenance", &args.provenance), ("sbom", &args.sbom)] {
        let Some(text) = text else { continue };
        let fields = match text.as_str() {
            "" | "true" | "1" => Vec::new(),
            "false" | "0" => vec![("disabled".to_owned(), "true".to_owned())],
            "min" | "max" => vec![("mode".to_owned(), text.clone())],
            text => pairs(text)?,
        };
        attest.add(kind, &fields).map_err(|error| anyhow::anyhow!("--{kind}={text}: {error}"))?;
    }
    Ok(attest)
}

fn pairs(text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let pair = |field: String| match field.split_once('=') {
        Some((name, value)) => (name.trim().to_owned(), value.to_owned()),
        None => (field, String::new()),
    };
    Ok(csv(text)?.into_iter().map(pair).collect())
}

/// `--allow`: BuildKit's entitlements, and of what a build has what triggers of base images may use.
fn allowed(texts: &[String]) -> anyhow::Result<Allowed> {
    let mut allowed = Allowed::default();
    for text in texts {
        match text.as_str() {
            "network.host" => allowed.host_network = true,
            "security.insecure" => allowed.insecure = true,
            "device" => allowed.all_devices = true,
            text if text.starts_with("onbuild.") => _ = allowed.in_triggers.insert(trigger_right(text)?),
            text => match text.strip_prefix("device=").filter(|name| !name.is_empty()) {
                Some(name) => _ = allowed.devices.insert(name.to_owned()),
                None => bail!("--allow: invalid entitlement: {text}"),
            },
        }
    }
    Ok(allowed)
}

/// `onbuild.secret` and the like.
fn trigger_right(text: &str) -> anyhow::Result<TriggerRight> {
    let found = TriggerRight::ALL.into_iter().find(|right| text.strip_prefix("onbuild.") == Some(right.name()));
    found.with_context(|| format!("--allow: invalid entitlement: {text}"))
}

/// A name without a value takes that of the environment, and is dropped where there is none.
fn build_args(texts: &[String], environment: &Environment) -> BTreeMap<String, String> {
    let pair = |text: &String| match text.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => environment.get(text).map(|value| (text.clone(), value.to_owned())),
    };
    texts.iter().filter_map(pair).collect()
}

/// `SOURCE_DATE_EPOCH` of the environment is handed on as a build argument, as buildx does. What is no number is the name
/// of a source, which the front end knows.
fn source_date_epoch(arguments: &mut BTreeMap<String, String>, environment: &Environment) -> Option<i64> {
    const NAME: &str = "SOURCE_DATE_EPOCH";
    if let Some(value) = environment.filled(NAME) {
        arguments.entry(NAME.to_owned()).or_insert_with(|| value.to_owned());
    }
    arguments.get(NAME)?.parse().ok()
}

fn platforms(flags: &[String], environment: &Environment) -> anyhow::Result<Vec<Platform>> {
    let named: Vec<&str> = flags.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
    let named = match (named.is_empty(), environment.filled("DOCKER_DEFAULT_PLATFORM")) {
        (true, Some(default)) => default.split(',').collect(),
        _ => named,
    };
    let mut platforms = Vec::new();
    for text in named {
        let platform = platform(text.trim())?;
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    Ok(platforms)
}

/// `--push` and `--load` join an image output that is there, or add one, as buildx does. `--load` with another engine's name is
/// an output of its own.
fn outputs(args: &BuildArgs, environment: &Environment) -> anyhow::Result<Vec<Output>> {
    let mut outputs = args.outputs.iter().map(|text| output(text)).collect::<anyhow::Result<Vec<_>>>()?;
    let image = outputs.iter_mut().find_map(|output| match output {
        Output::Image(image) => Some(image),
        _ => None,
    });
    let load = matches!(args.load.as_deref(), Some("forge" | "true"));
    match (image, args.push, load) {
        (Some(image), true, _) if !image.push.is_wanted() => image.push = Push::Names(Transport::Configured),
        (None, push, load) if push || load => {
            let push = if push { Push::Names(Transport::Configured) } else { Push::No };
            outputs.push(Output::Image(ImageOutput { push, ..ImageOutput::default() }));
        }
        _ => {}
    }
    if let Some(recipient) = recipient(args.load.as_deref().unwrap_or_default(), environment)? {
        outputs.push(Output::Handed(ImageOutput::default(), recipient));
    }
    annotate(&mut outputs, &args.annotations)?;
    if outputs.iter().filter(|output| goes_to_stdout(output)).count() > 1 {
        bail!("--output: only one result can go to standard output");
    }
    Ok(outputs)
}

/// `--annotation` holds for every image among the outputs; there is one where no output is named.
fn annotate(outputs: &mut Vec<Output>, texts: &[String]) -> anyhow::Result<()> {
    let read = texts.iter().map(|text| annotations(text)).collect::<anyhow::Result<Vec<_>>>()?;
    let annotations = read.concat();
    if annotations.is_empty() {
        return Ok(());
    }
    if outputs.is_empty() {
        outputs.push(Output::Image(ImageOutput::default()));
    }
    let images: Vec<&mut ImageOutput> = outputs.iter_mut().filter_map(image_of).collect();
    if images.is_empty() {
        bail!("--annotation: none of the outputs is an image");
    }
    images.into_iter().for_each(|image| image.annotations.extend(annotations.iter().cloned()));
    Ok(())
}

fn image_of(output: &mut Output) -> Option<&mut ImageOutput> {
    match output {
        Output::Image(image) | Output::Oci(image, _) | Output::Docker(image, _) | Output::Handed(image, _) => {
            Some(image)
        }
        Output::Local(..) | Output::Tar(..) | Output::CacheOnly => None,
    }
}

fn build_network(args: &BuildArgs) -> anyhow::Result<Network> {
    match args.network.as_str() {
        "bridge" => bail!("--network bridge is not supported by this version of forge: use default, host or none"),
        other => network(other),
    }
}

pub(super) fn key_value(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.to_owned(), value.to_owned())
}

/// `HOST:IP` or `HOST=IP`, the address bare or in brackets.
pub(super) fn extra_host(text: &str) -> anyhow::Result<(String, String)> {
    let (host, address) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .with_context(|| format!("--add-host {text:?}: expected HOST:IP"))?;
    let address = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    let valid = match address {
        // Stands for the host's address, which is known when the network is.
        "host-gateway" => address.to_owned(),
        address => match address.parse::<std::net::IpAddr>() {
            Ok(address) => address.to_string(),
            Err(_) => bail!("--add-host {text:?}: invalid address"),
        },
    };
    let plain = !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic() && c != '#');
    match plain {
        true => Ok((host.to_owned(), valid)),
        false => bail!("--add-host {text:?}: invalid host name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use forge_engine::{BuildContext, DockerfileSource};
    use std::ffi::OsString;

    fn args(line: &str) -> BuildArgs {
        let words = ["forge", "build"].into_iter().chain(line.split(' ')).map(OsString::from);
        let Command::Build(args) = Cli::read(words).unwrap().command else { panic!() };
        *args
    }

    fn request(line: &str, environment: Environment) -> anyhow::Result<BuildRequest> {
        let args = args(line);
        let input = match input_needs(&args)? {
            InputNeeds::Nothing => Input::Nothing,
            InputNeeds::Dockerfile => Input::Dockerfile(b"FROM scratch\n".to_vec()),
            InputNeeds::Context => Input::Context(ContextStream::new(std::io::empty())),
        };
        build_request(&args, &environment, input, Vec::new(), SystemTime::UNIX_EPOCH)
    }

    fn error(line: &str) -> String {
        format!("{:#}", request(line, Environment::default()).unwrap_err())
    }

    #[test]
    fn dockers_flags_become_a_request() {
        let line = "-t app:1.0 -t r.test/x --build-arg A=1 --build-arg B --build-arg C --target run --label k=v --label bare --platform linux/amd64,linux/arm64 --platform local --network none --add-host db:10.0.0.1 --add-host six=[::1] --no-cache --pull=true .";
        let request = request(line, [("B", "2")].into()).unwrap();
        assert_eq!(
            request.tags.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["docker.io/library/app:1.0", "r.test/x:latest"]
        );
        assert_eq!(request.build_args, BTreeMap::from([("A".into(), "1".into()), ("B".into(), "2".into())]));
        assert_eq!(request.labels, [("k".to_owned(), "v".to_owned()), ("bare".to_owned(), String::new())]);
        assert_eq!(
            request.extra_hosts,
            [("db".to_owned(), "10.0.0.1".to_owned()), ("six".to_owned(), "::1".to_owned())]
        );
        assert!(request.no_cache && request.pull && request.network == Network::None);
        assert_eq!(request.target.as_deref(), Some("run"));
        assert_eq!(request.platforms.len(), 2);
        assert_eq!(request.context, BuildContext::Directory(".".into()));
        assert_eq!(request.dockerfile, DockerfileSource::Default);
    }

    #[test]
    fn standard_input_is_the_context_or_the_dockerfile() {
        let both = request("-", Environment::default()).unwrap();
        assert!(matches!(both.context, BuildContext::Stream(_)));
        assert_eq!(both.dockerfile, DockerfileSource::Default);
        let remote = request("-f sub/Dockerfile https://host/a.git", Environment::default()).unwrap();
        assert!(matches!(remote.context, BuildContext::Remote(_)));
        assert_eq!(remote.dockerfile, DockerfileSource::InContext("sub/Dockerfile".into()));
        let absolute = request("-f /sub/Dockerfile https://host/a.git", Environment::default()).unwrap();
        assert_eq!(absolute.dockerfile, DockerfileSource::File("/sub/Dockerfile".into()));
        let fetched = request("-f https://host/Dockerfile .", Environment::default()).unwrap();
        assert!(matches!(fetched.dockerfile, DockerfileSource::Remote(_)));
        let named = request("-f sub/Dockerfile -", Environment::default()).unwrap();
        assert_eq!(named.dockerfile, DockerfileSource::InContext("sub/Dockerfile".into()));
        let file = request("-f - .", Environment::default()).unwrap();
        assert_eq!(file.dockerfile, DockerfileSource::Inline(b"FROM scratch\n".to_vec()));
        assert!(error("-f - -").contains("can't use stdin for both"));
    }

    #[test]
    fn the_epoch_comes_from_the_environment_or_the_argument() {
        let epoch = |line: &str| request(line, [("SOURCE_DATE_EPOCH", "7")].into()).unwrap();
        assert_eq!(epoch(".").source_date_epoch, Some(7));
        assert_eq!(epoch(".").build_args["SOURCE_DATE_EPOCH"], "7");
        assert_eq!(epoch("--build-arg SOURCE_DATE_EPOCH=9 .").source_date_epoch, Some(9));
        let named = request("--build-arg SOURCE_DATE_EPOCH=context .", Environment::default()).unwrap();
        assert_eq!(named.source_date_epoch, None);
        assert_eq!(named.build_args["SOURCE_DATE_EPOCH"], "context");
    }

    #[test]
    fn push_and_load_join_the_outputs() {
        let outputs = |line: &str| request(line, Environment::default()).unwrap().outputs;
        let image = |push| {
            let push = if push { Push::Names(Transport::Configured) } else { Push::No };
            Output::Image(ImageOutput { push, ..ImageOutput::default() })
        };
        let files = || output("out").unwrap();
        assert_eq!(outputs("."), []);
        assert_eq!(outputs("--push ."), [image(true)]);
        assert_eq!(outputs("--push --load ."), [image(true)]);
        assert_eq!(outputs("-o type=image --push ."), [image(true)]);
        assert_eq!(outputs("-o out --load ."), [files(), image(false)]);
        assert!(error("-o - -o type=oci .").contains("only one result"));
    }

    #[test]
    fn annotations_are_for_every_image_among_the_outputs() {
        let outputs = |line: &str| request(line, Environment::default()).unwrap().outputs;
        let counts = |line: &str| {
            let mut outputs = outputs(line);
            outputs.iter_mut().map(|output| image_of(output).map(|image| image.annotations.len())).collect::<Vec<_>>()
        };
        assert_eq!(counts("--annotation a=b --annotation index,manifest:c=d ."), [Some(3)]);
        assert_eq!(
            counts("--annotation a=b -o type=oci,dest=x,annotation.e=f -o out -o type=image ."),
            [Some(2), None, Some(1)]
        );
        assert_eq!(error("--annotation a=b -o out ."), "--annotation: none of the outputs is an image");
        assert_eq!(error("--annotation a ."), "invalid annotation \"a\", expected key=value");
    }

    #[test]
    fn every_flag_of_buildx_parses_and_the_missing_ones_are_refused_by_name() {
        let flags = "attest builder policy provenance allow";
        for flag in flags.split(' ') {
            assert!(error(&format!("--{flag} x .")).starts_with(&format!("--{flag}")), "{flag}");
        }
        assert_eq!(error("-m 1m ."), "Minimum memory limit allowed is 6MB");
        assert!(request("--build-arg BUILDKIT_INLINE_CACHE=1 .", Environment::default()).unwrap().caches.inline);
        assert!(!request("--build-arg BUILDKIT_INLINE_CACHE=0 .", Environment::default()).unwrap().caches.inline);
        for allowed in [
            "--provenance=false .",
            "--build-arg BUILDKIT_INLINE_CACHE=0 .",
            "--sbom=false .",
            "--check=false .",
            "--call=build .",
            "--check .",
            "--print=outline .",
            "--allow network.host --allow security.insecure,device,device=a.b/c=d --allow onbuild.secret .",
            "--no-cache-filter one,two --no-cache-filter three .",
            "--rm --force-rm .",
        ] {
            assert!(request(allowed, Environment::default()).is_ok(), "{allowed}");
        }
    }

    /// Every flag of `docker buildx build`, with those that are hidden: built, without effect and said so, or refused with a
    /// reason.
    #[test]
    fn every_flag_of_buildx_has_an_answer() {
        const BUILT: &str = "add-host=a:1.2.3.4 annotation=manifest:a=b allow=network.host build-arg=A=1 cache-from=x cache-to=type=inline build-context=x=. call=check cgroup-parent=x check \
            debug D file=Dockerfile f=x iidfile=i label=a=b load metadata-file=m network=none no-cache no-cache-filter=a \
            output=out o=out platform=local platform=linux/amd64,linux/arm64 progress=plain provenance=false provenance=true provenance=mode=max,version=v0.2 pull push quiet q \
            resource=memory=1g sbom=false sbom=true sbom=generator=x secret=id=a,src=Cargo.toml shm-size=1m ssh=default=Cargo.toml tag=x t=x target=x \
            ulimit=nofile=10 attest=type=sbom,disabled=true attest=type=provenance,mode=min policy=disabled=true m=1g memory=1g c=10 cpu-shares=10 \
            cpu-period=10000 cpu-quota=10000 cpuset-cpus=0 cpuset-mems=0 rm force-rm print=outline";
        const NOTED: &str = "compress isolation=default security-opt=x squash";
        const REFUSED: &str = "builder=x cache-from=type=inline cache-to=type=azblob policy=x";
        let line = |flag: &str| match flag.split_once('=') {
            Some((name, value)) if name.len() == 1 => format!("-{name} {value} -t x ."),
            Some((name, value)) => format!("--{name} {value} -t x ."),
            None if flag.len() == 1 => format!("-{flag} -t x ."),
            None => format!("--{flag} -t x ."),
        };
        for flag in BUILT.split_whitespace() {
            let line = line(flag).replace("-t x -t x", "-t x");
            assert!(request(&line, Environment::default()).is_ok(), "{line}");
            assert!(notes(&args(&line)).is_empty(), "{line}");
        }
        assert!(request("--memory 1g --memory-swap 2g .", Environment::default()).is_ok());
        for flag in NOTED.split_whitespace() {
            assert_eq!(notes(&args(&line(flag))).len(), 1, "{flag}");
        }
        for flag in REFUSED.split_whitespace() {
            let refused = request(&line(flag), Environment::default()).unwrap_err().to_string();
            let name = format!("--{}", flag.split('=').next().unwrap());
            let told = refused.starts_with(&name) && refused.contains("is not supported by this version of forge: ");
            assert!(told, "{flag}: {refused}");
        }
    }

    #[test]
    fn flags_without_effect_are_noted() {
        let noted = notes(&args("--compress --isolation=default --security-opt x --squash --rm ."));
        assert_eq!(noted.len(), 4);
        assert_eq!(noted[3], "WARNING: --squash has no effect: use a multi-stage Dockerfile instead");
    }
}
