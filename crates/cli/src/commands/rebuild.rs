//! `forge verify`: an image is built again, and what came out is compared with it.

use super::build::docker_proxies;
use super::compare::change_line;
use super::{Start, block_on_many};
use crate::args::RebuildArgs;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::progress::{Display, Mode};
use crate::request::{Input, InputNeeds, build_request, input_needs, notes};
use crate::{config, output, sanitise};
use anyhow::{Context, bail};
use forge_engine::{BuildRequest, Engine, Reproduction};
use std::io::IsTerminal;
use std::time::SystemTime;

pub fn rebuild(start: &Start, args: &RebuildArgs) -> Result<u8, Failure> {
    let request = request(start, args)?;
    notes(&args.build).iter().for_each(|note| output::note(note));
    let word = args.build.progress.as_deref().or(start.environment.filled("BUILDKIT_PROGRESS"));
    let mode = if args.build.quiet { Mode::Quiet } else { Mode::read(word, std::io::stderr().is_terminal())? };
    let found = block_on_many(run(start, &args.image, request, mode))?;
    output::print(&format!("{}\n", told(&found)))?;
    Ok(u8::from(!matches!(found, Reproduction::Same(_))))
}

/// The build, with every step run again and nothing written but the image, which gets no name.
fn request(start: &Start, args: &RebuildArgs) -> anyhow::Result<BuildRequest> {
    let build = &args.build;
    if build.push || !build.outputs.is_empty() || !build.tags.is_empty() || build.call.is_some() || build.llb.is_some()
    {
        bail!("verify writes nothing: --tag, --output, --push, --call and --llb are for build");
    }
    if input_needs(build)? != InputNeeds::Nothing {
        bail!("verify reads the context and the Dockerfile from files");
    }
    let proxies = docker_proxies(&config::docker_config(&start.environment))?;
    let request = build_request(build, &start.environment, Input::Nothing, proxies, SystemTime::now())?;
    Ok(BuildRequest { no_cache: true, ..request })
}

async fn run(start: &Start, image: &str, request: BuildRequest, mode: Mode) -> Result<Reproduction, Failure> {
    let engine = start.engine()?;
    let epoch = request.source_date_epoch;
    // Before anything is built: a slip in the name should not cost a build.
    let recorded = engine.inspect(image).await?.id.to_string();
    let interrupts = Interrupts::watch()?;
    let display = Display::start(mode, start.style());
    let built = engine.build(request, display.events(), interrupts.token()).await;
    display.finish();
    let built = built.map_err(|error| match interrupts.exit_code() {
        Some(code) => Failure::from(error).with_code(code),
        None => Failure::from(error),
    })?;
    let rebuilt = built.image.context("the build made no image")?.to_string();
    let found = engine.first_difference(&recorded, &rebuilt, epoch).await;
    forget(&engine, &recorded, &rebuilt).await?;
    Ok(found?)
}

/// Removes the image that was built for the comparison, unless it is one that was there.
async fn forget(engine: &Engine, recorded: &str, rebuilt: &str) -> Result<(), Failure> {
    let named = engine.inspect(rebuilt).await?;
    if rebuilt != recorded && named.names.is_empty() && named.digests.is_empty() {
        engine.remove_image(rebuilt, true).await?;
    }
    Ok(())
}

fn told(found: &Reproduction) -> String {
    match found {
        Reproduction::Same(id) => format!("the same image, byte for byte: {id}"),
        Reproduction::SameFiles { recorded, rebuilt } => {
            format!("all files are the same, the configurations are not: {recorded}, now {rebuilt}")
        }
        Reproduction::Differs { layer, step, first } => {
            format!("layer {} differs ({}), first in: {}", layer + 1, sanitise::line(step), change_line(first))
        }
        Reproduction::Layers { recorded, rebuilt } => {
            format!("the image has {recorded} layers, the build made {rebuilt}; what both have is the same")
        }
    }
}
