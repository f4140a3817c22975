use super::{Start, block_on_many, front_end};
use crate::args::BuildArgs;
use crate::failure::Failure;
use crate::host::{self, Host};
use crate::interrupt::Interrupts;
use crate::progress::{Display, Mode, warnings_text};
use crate::request::{
    DefinitionFile, Input, InputNeeds, build_request, cache_entries, call_request, definition_file, input_needs, notes,
    with_dockerfile_context,
};
use crate::{config, output};
use anyhow::Context;
use forge_client::RemoteBuild;
use forge_engine::{BuildOutcome, BuildRequest, ContextStream, DockerfileSource};
use forge_session::EventSink;
use serde_json::{Map, Value};
use std::io::{IsTerminal, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use tokio_util::sync::CancellationToken;

/// What is taken from standard input: one byte more than the parser takes, so that it refuses what is too large
/// instead of reading a part of it.
const MOST_INPUT: u64 = (16 << 20) + 1;

/// What is taken of a definition: one byte more than its reader takes.
const MOST_DEFINITION: u64 = (32 << 20) + 1;

/// What is built.
enum Origin {
    Dockerfile,
    Definition(Vec<u8>),
}

pub fn build(start: &Start, args: &BuildArgs) -> Result<u8, Failure> {
    let mode = mode(start, args)?;
    let origin = match definition_file(args)? {
        Some(file) => Origin::Definition(read_definition(&file)?),
        None => Origin::Dockerfile,
    };
    let (input, proxies) = given(start, args)?;
    let request = build_request(args, &start.environment, input, proxies, SystemTime::now())?;
    if let Some(asked) = call_request(args)? {
        return super::call::call(start, args, request, asked, mode);
    }
    refuse_binary_on_terminal(&request)?;
    notes(args).iter().for_each(|note| output::note(note));
    // A stale file from an earlier build must not pass for this one's, as in docker.
    args.iidfile.iter().chain(&args.metadata_file).try_for_each(remove)?;
    let outcome = block_on_many(run(start, args, request, origin, mode))?;
    write_files(args, &outcome)?;
    if mode == Mode::Quiet
        && let Some(image) = &outcome.image
    {
        output::print(&format!("{image}\n"))?;
    }
    Ok(0)
}

/// What comes from standard input, and docker's proxies.
pub fn given(start: &Start, args: &BuildArgs) -> Result<(Input, Vec<String>), Failure> {
    let input = match input_needs(args)? {
        InputNeeds::Nothing => Input::Nothing,
        InputNeeds::Dockerfile => Input::Dockerfile(read_input()?),
        InputNeeds::Context => Input::Context(ContextStream::new(std::io::stdin())),
    };
    Ok((input, docker_proxies(&config::docker_config(&start.environment))?))
}

async fn run(
    start: &Start,
    args: &BuildArgs,
    request: BuildRequest,
    origin: Origin,
    mode: Mode,
) -> Result<BuildOutcome, Failure> {
    let interrupts = Interrupts::watch()?;
    let display = Display::start(mode, start.style());
    let (events, token) = (display.events(), interrupts.token());
    let outcome = match &start.host {
        // Apart from the usual way, which would have to make room for them.
        Some(host) => Box::pin(there(start, host, args, request, origin, (events, token))).await,
        None if start.front_ends.enabled && is_for_other_front_end(&request, &origin)? => {
            Box::pin(front_end::build(start, args, request, (events, token))).await
        }
        None if start.front_ends.enabled && matches!(origin, Origin::Dockerfile) => {
            let other = async |request| front_end::build(start, args, request, (events.clone(), token.clone())).await;
            let engine = start.engine()?;
            let here = async |request| engine.build(request, events.clone(), token.clone()).await;
            Box::pin(front_end::here_or_other(start, request, here, other)).await
        }
        None => Box::pin(here(start, request, origin, (events, token))).await,
    };
    display.finish();
    let outcome = outcome.map_err(|failure| match interrupts.exit_code() {
        Some(code) => failure.with_code(code),
        None => failure,
    })?;
    if matches!(mode, Mode::Plain | Mode::Tty) && !outcome.warnings.is_empty() {
        output::note(warnings_text(&outcome.warnings, args.debug).trim_end());
    }
    if matches!(mode, Mode::Plain | Mode::Tty) {
        outcome.notices.iter().for_each(|notice| output::note(&format!("forge: {notice}")));
    }
    Ok(outcome)
}

fn is_for_other_front_end(request: &BuildRequest, origin: &Origin) -> Result<bool, Failure> {
    match origin {
        Origin::Dockerfile => Ok(request.other_front_end()?.is_some()),
        Origin::Definition(_) => Ok(false),
    }
}

/// What a build tells, and what stops it.
pub(super) type Ends = (Arc<dyn EventSink>, CancellationToken);

async fn here(
    start: &Start,
    request: BuildRequest,
    origin: Origin,
    (events, token): Ends,
) -> Result<BuildOutcome, Failure> {
    let engine = start.engine()?;
    let built = match origin {
        Origin::Dockerfile => engine.build(request, events, token).await,
        Origin::Definition(definition) => {
            Box::pin(engine.build_definition(definition, with_dockerfile_context(request), events, token)).await
        }
    };
    built.map_err(Failure::from)
}

/// With a daemon, which has the store and the network, and is handed the rest.
async fn there(
    start: &Start,
    host: &Host,
    args: &BuildArgs,
    request: BuildRequest,
    origin: Origin,
    (events, token): Ends,
) -> Result<BuildOutcome, Failure> {
    if args.oci_runtime.is_some() {
        return Err(elsewhere("--oci-runtime"));
    }
    let (request, definition) = match origin {
        Origin::Dockerfile => (request, None),
        Origin::Definition(definition) => (with_dockerfile_context(request), Some(definition)),
    };
    let build = remote_build(start, args, request, definition, (&events, &token)).await?;
    let client = host.connect_until(&token).await?;
    Ok(client.build(build, events, token).await?)
}

/// The same build as a daemon is asked for it, with a Dockerfile that is named by its address fetched.
pub(super) async fn remote_build(
    start: &Start,
    args: &BuildArgs,
    request: BuildRequest,
    definition: Option<Vec<u8>>,
    (events, token): (&Arc<dyn EventSink>, &CancellationToken),
) -> Result<RemoteBuild, Failure> {
    let request = match request.dockerfile {
        DockerfileSource::Remote(_) => {
            start.engine()?.with_own_dockerfile(request, events.clone(), token.clone()).await?
        }
        _ => request,
    };
    let (imports, exports) = cache_entries(args, &start.environment, request.caches.inline)?;
    let options = start.options.clone();
    Ok(RemoteBuild { request, definition, imports, exports, options, machine: host::this_machine() })
}

/// A flag that a daemon cannot be handed.
fn elsewhere(flag: &str) -> Failure {
    Failure::new(format!("{flag} is not supported for a build by a daemon or a front end image"))
}

fn mode(start: &Start, args: &BuildArgs) -> anyhow::Result<Mode> {
    let word = args.progress.as_deref().or(start.environment.filled("BUILDKIT_PROGRESS"));
    let mode = Mode::read(word, std::io::stderr().is_terminal())?;
    match (args.quiet, args.progress.as_deref()) {
        (true, None | Some("auto" | "quiet")) => Ok(Mode::Quiet),
        (true, Some(word)) => anyhow::bail!("progress={word} and quiet cannot be used together"),
        (false, _) => Ok(mode),
    }
}

fn read_definition(file: &DefinitionFile) -> anyhow::Result<Vec<u8>> {
    let mut definition = Vec::new();
    let read = match file {
        DefinitionFile::Stdin => std::io::stdin().lock().take(MOST_DEFINITION).read_to_end(&mut definition),
        DefinitionFile::Path(path) => {
            std::fs::File::open(path).and_then(|file| file.take(MOST_DEFINITION).read_to_end(&mut definition))
        }
    };
    match (read, file) {
        (Ok(_), _) => Ok(definition),
        (Err(error), DefinitionFile::Stdin) => Err(error).context("cannot read standard input"),
        (Err(error), DefinitionFile::Path(path)) => {
            Err(error).with_context(|| format!("cannot read the definition {}", path.display()))
        }
    }
}

pub fn read_input() -> anyhow::Result<Vec<u8>> {
    let mut input = Vec::new();
    std::io::stdin().lock().take(MOST_INPUT).read_to_end(&mut input).context("cannot read standard input")?;
    Ok(input)
}

fn refuse_binary_on_terminal(request: &BuildRequest) -> anyhow::Result<()> {
    use forge_engine::{Destination, Output};
    let to_stdout = request.outputs.iter().any(|output| match output {
        Output::Tar(_, to) | Output::Oci(_, to) | Output::Docker(_, to) => *to == Destination::Stdout,
        Output::Image(_) | Output::Handed(..) | Output::Local(..) | Output::CacheOnly => false,
    });
    match to_stdout && std::io::stdout().is_terminal() {
        true => anyhow::bail!("--output: refusing to write an archive to a terminal: name a file with dest="),
        false => Ok(()),
    }
}

/// What docker's configuration hands to every build: `proxies.default`, in both spellings.
pub(super) fn docker_proxies(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let document: Value = serde_json::from_slice(&text).with_context(|| format!("cannot read {}", path.display()))?;
    const NAMES: [(&str, &str); 5] = [
        ("httpProxy", "HTTP_PROXY"),
        ("httpsProxy", "HTTPS_PROXY"),
        ("ftpProxy", "FTP_PROXY"),
        ("noProxy", "NO_PROXY"),
        ("allProxy", "ALL_PROXY"),
    ];
    let defaults = &document["proxies"]["default"];
    let set = NAMES.iter().filter_map(|(key, name)| Some((name, defaults[key].as_str()?)));
    Ok(set
        .flat_map(|(name, value)| [format!("{name}={value}"), format!("{}={value}", name.to_ascii_lowercase())])
        .collect())
}

fn remove(path: &std::path::PathBuf) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot replace {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn write_files(args: &BuildArgs, outcome: &BuildOutcome) -> anyhow::Result<()> {
    if let (Some(path), Some(image)) = (&args.iidfile, &outcome.image) {
        std::fs::write(path, image.as_str()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.metadata_file {
        let document = Value::Object(outcome.metadata.iter().cloned().collect::<Map<_, _>>());
        let text = serde_json::to_string_pretty(&document).context("cannot write the metadata")?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_come_from_dockers_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        assert!(docker_proxies(&path).unwrap().is_empty());
        std::fs::write(&path, r#"{"auths":{},"proxies":{"default":{"httpProxy":"http://p:1","noProxy":"x"}}}"#)
            .unwrap();
        assert_eq!(
            docker_proxies(&path).unwrap(),
            ["HTTP_PROXY=http://p:1", "http_proxy=http://p:1", "NO_PROXY=x", "no_proxy=x"]
        );
        std::fs::write(&path, "{").unwrap();
        assert!(docker_proxies(&path).is_err());
    }
}
