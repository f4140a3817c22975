use super::{Start, block_on, interruptible};
use crate::args::{LoginArgs, LogoutArgs, PullArgs, PushArgs};
use crate::failure::Failure;
use crate::progress::{Display, Mode};
use crate::request::{platform, reference};
use crate::{output, terminal};
use anyhow::{Context, bail};
use forge_engine::EngineError;
use forge_image::Reference;
use forge_session::{EventSink, Redacted};
use std::future::Future;
use std::io::{IsTerminal, Read};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub fn pull(start: &Start, args: &PullArgs) -> Result<u8, Failure> {
    let name = reference(&args.name)?;
    let platform = args.platform.as_deref().or(start.environment.filled("DOCKER_DEFAULT_PLATFORM"));
    let platform = platform.map(platform_of).transpose()?;
    if !args.quiet {
        announce_pull(&args.name, &name)?;
    }
    let engine = start.engine()?;
    let outcome =
        shown(
            start,
            args.quiet,
            |events, token| async move { engine.pull(&name, platform.as_ref(), events, token).await },
        )?;
    if !args.quiet {
        let status = if outcome.fetched { "Downloaded newer image for" } else { "Image is up to date for" };
        output::print(&format!("Digest: {}\nStatus: {status} {}\n", outcome.digest, outcome.reference.familiar()))?;
    }
    output::print(&format!("{}\n", outcome.reference))?;
    Ok(0)
}

fn platform_of(text: &str) -> anyhow::Result<forge_image::Platform> {
    platform(text)
}

fn announce_pull(written: &str, name: &Reference) -> Result<(), Failure> {
    let tagless = name.digest().is_none() && !written.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let default = if tagless { "Using default tag: latest\n" } else { "" };
    let which = name.tag().map(str::to_owned).or_else(|| name.digest().map(ToString::to_string)).unwrap_or_default();
    output::print(&format!("{default}{which}: Pulling from {}\n", name.repository()))?;
    Ok(())
}

pub fn push(start: &Start, args: &PushArgs) -> Result<u8, Failure> {
    let name = reference(&args.name)?;
    if !args.quiet {
        output::print(&format!("The push refers to repository [{}]\n", name.name()))?;
    }
    let engine = start.engine()?;
    let outcome = shown(start, args.quiet, |events, token| async move { engine.push(&name, events, token).await })?;
    let (reference, descriptor) = (&outcome.reference, &outcome.descriptor);
    match args.quiet {
        true => output::print(&format!("{reference}\n"))?,
        false => output::print(&format!(
            "{}: digest: {} size: {}\n",
            reference.tag().unwrap_or_default(),
            descriptor.digest,
            descriptor.size
        ))?,
    }
    Ok(0)
}

/// Runs a transfer with its progress on standard error.
fn shown<T, F>(
    start: &Start,
    quiet: bool,
    work: impl FnOnce(Arc<dyn EventSink>, CancellationToken) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, EngineError>>,
{
    shown_as(start, quiet.then_some("none"), work)
}

/// The same, where a flag may say how progress is shown.
pub fn shown_as<T, F>(
    start: &Start,
    progress: Option<&str>,
    work: impl FnOnce(Arc<dyn EventSink>, CancellationToken) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, EngineError>>,
{
    let wanted = progress.or(start.environment.filled("BUILDKIT_PROGRESS"));
    let mode = match wanted {
        Some("none") => Mode::None,
        wanted => Mode::read(wanted, std::io::stderr().is_terminal())?,
    };
    interruptible(|token| async move {
        let display = Display::start(mode, start.style());
        let result = work(display.events(), token).await;
        display.finish();
        result
    })
}

pub fn login(start: &Start, args: &LoginArgs) -> Result<(), Failure> {
    let server = server(args.server.as_deref());
    let (username, password) = credentials(args)?;
    block_on(async { Ok(start.engine()?.login(&server, &username, password).await?) })?;
    output::print("Login Succeeded\n")?;
    Ok(())
}

fn credentials(args: &LoginArgs) -> anyhow::Result<(String, Redacted)> {
    let interactive = std::io::stdin().is_terminal();
    let username = match (&args.username, interactive && !args.password_stdin) {
        (Some(username), _) => username.clone(),
        (None, true) => terminal::ask("Username: ")?,
        (None, false) => bail!("the user's name is missing: use --username"),
    };
    let password = match (&args.password, args.password_stdin) {
        (Some(password), _) => {
            output::note("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
            password.clone()
        }
        (None, true) => password_from_stdin()?,
        (None, false) if interactive => terminal::ask_hidden("Password: ")?,
        (None, false) => bail!("cannot ask for the password without a terminal: use --password-stdin"),
    };
    match username.is_empty() || password.is_empty() {
        true => bail!("the user's name and the password must not be empty"),
        false => Ok((username, Redacted::new(password))),
    }
}

fn password_from_stdin() -> anyhow::Result<String> {
    const MOST: u64 = 1 << 20;
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(MOST)
        .read_to_string(&mut text)
        .context("cannot read the password from standard input")?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

pub fn logout(start: &Start, args: &LogoutArgs) -> Result<(), Failure> {
    let server = server(args.server.as_deref());
    let known = block_on(async { Ok(start.engine()?.logout(&server).await?) })?;
    match known {
        true => output::print(&format!("Removing login credentials for {server}\n"))?,
        false => output::print(&format!("Not logged in to {server}\n"))?,
    }
    Ok(())
}

/// The registry's host, from what users write: a host, or an address with scheme and path.
fn server(text: Option<&str>) -> String {
    let text = text.filter(|text| !text.is_empty()).unwrap_or("docker.io");
    let text = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    match text.split('/').next().unwrap_or(text) {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io".to_owned(),
        host => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_hosts() {
        assert_eq!(server(None), "docker.io");
        assert_eq!(server(Some("https://index.docker.io/v1/")), "docker.io");
        assert_eq!(server(Some("http://127.0.0.1:5000/v2/")), "127.0.0.1:5000");
        assert_eq!(server(Some("r.test")), "r.test");
    }
}
