//! What forge makes of things, for people and tools.

use super::{Start, block_on_many};
use crate::args::{DebugArgs, DebugCommand, LlbArgs};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::progress::{Display, Mode};
use crate::request::{Input, InputNeeds, build_request, input_needs};
use crate::{output, sanitise};
use forge_engine::{BuildRequest, ContextStream, DefinitionFormat};
use std::io::IsTerminal;
use std::time::SystemTime;

pub fn debug(start: &Start, args: &DebugArgs) -> Result<u8, Failure> {
    match &args.what {
        DebugCommand::Llb(args) => llb(start, args).map(|()| 0),
        DebugCommand::Leaks => leaks(start),
    }
}

/// The store is not opened, which would remove what is to be seen.
fn leaks(start: &Start) -> Result<u8, Failure> {
    let leaks = forge_engine::leaks(&start.options.root)?;
    for leak in &leaks {
        output::print(&format!("{}\n", sanitise::line(leak)))?;
    }
    Ok(u8::from(!leaks.is_empty()))
}

fn llb(start: &Start, args: &LlbArgs) -> Result<(), Failure> {
    let format = match args.format.as_str() {
        "pb" => DefinitionFormat::Protobuf,
        "json" => DefinitionFormat::Json,
        "dot" => DefinitionFormat::Dot,
        _ => DefinitionFormat::Text,
    };
    let to_terminal = std::io::stdout().is_terminal();
    if format == DefinitionFormat::Protobuf && to_terminal {
        return Err(anyhow::anyhow!("refusing to write a definition's bytes to a terminal: redirect them").into());
    }
    let mode = Mode::read(args.progress.as_deref().or(Some("none")), std::io::stderr().is_terminal())?;
    let build = args.build();
    let input = match input_needs(&build)? {
        InputNeeds::Nothing => Input::Nothing,
        InputNeeds::Dockerfile => Input::Dockerfile(super::build::read_input()?),
        InputNeeds::Context => Input::Context(ContextStream::new(std::io::stdin())),
    };
    // Proxies of docker's configuration may hold passwords, and are no part of what is built.
    let request = build_request(&build, &start.environment, input, Vec::new(), SystemTime::now())?;
    let definition = block_on_many(definition(start, request, format, mode))?;
    match to_terminal {
        true => output::print(&sanitise::block(&String::from_utf8_lossy(&definition)))?,
        false => output::print_bytes(&definition)?,
    }
    Ok(())
}

async fn definition(
    start: &Start,
    request: BuildRequest,
    format: DefinitionFormat,
    mode: Mode,
) -> Result<Vec<u8>, Failure> {
    let interrupts = Interrupts::watch()?;
    let display = Display::start(mode, start.style());
    let definition = match start.engine() {
        Ok(engine) => {
            engine.definition(request, format, display.events(), interrupts.token()).await.map_err(Failure::from)
        }
        Err(failure) => Err(failure),
    };
    display.finish();
    definition.map_err(|failure| match interrupts.exit_code() {
        Some(code) => failure.with_code(code),
        None => failure,
    })
}
