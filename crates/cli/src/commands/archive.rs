use super::{Start, interruptible};
use crate::args::{LoadArgs, SaveArgs};
use crate::failure::Failure;
use crate::output;
use crate::request::unsupported;
use anyhow::Context;
use forge_engine::{ArchiveFormat, ArchiveReader, Destination, Loaded};
use std::fs::File;
use std::io::IsTerminal;

pub fn save(start: &Start, args: &SaveArgs) -> Result<(), Failure> {
    let format = match args.format.as_str() {
        "docker" | "docker-archive" => ArchiveFormat::Docker,
        "oci" | "oci-archive" => ArchiveFormat::Oci,
        other => return Err(unsupported(&format!("--format {other}")).into()),
    };
    let destination = match &args.output {
        Some(path) => Destination::File(path.clone()),
        None if std::io::stdout().is_terminal() => {
            return Err(Failure::new("cowardly refusing to save to a terminal: use -o or redirect standard output"));
        }
        None => Destination::Stdout,
    };
    let engine = start.engine()?;
    interruptible(|token| async move { engine.save(&args.images, format, &destination, token).await })
}

pub fn load(start: &Start, args: &LoadArgs) -> Result<u8, Failure> {
    let input: ArchiveReader = match &args.input {
        Some(path) => Box::new(File::open(path).with_context(|| format!("cannot read {}", path.display()))?),
        None if std::io::stdin().is_terminal() => {
            return Err(Failure::new("requested load from stdin, but stdin is a terminal: use -i"));
        }
        None => Box::new(std::io::stdin()),
    };
    let engine = start.engine()?;
    let loaded = interruptible(|token| async move { engine.load(input, args.replace, token).await })?;
    for image in &loaded {
        output::print(&report(image))?;
    }
    Ok(0)
}

/// docker's line for what was loaded.
fn report(loaded: &Loaded) -> String {
    match loaded {
        Loaded::Named(name) => format!("Loaded image: {}\n", name.familiar()),
        Loaded::Unnamed(id) => format!("Loaded image ID: {id}\n"),
    }
}
