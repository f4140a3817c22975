use super::{Start, block_on};
use crate::args::{LoadArgs, SaveArgs};
use crate::failure::Failure;
use crate::output;
use crate::request::unsupported;
use anyhow::Context;
use forge_engine::{ArchiveFormat, ArchiveReader, ArchiveWriter, Loaded};
use std::fs::File;
use std::io::{BufWriter, IsTerminal};
use std::path::{Path, PathBuf};

pub fn save(start: &Start, args: &SaveArgs) -> Result<(), Failure> {
    let format = match args.format.as_str() {
        "docker" | "docker-archive" => ArchiveFormat::Docker,
        "oci" | "oci-archive" => ArchiveFormat::Oci,
        other => return Err(unsupported(&format!("--format {other}")).into()),
    };
    match &args.output {
        Some(path) => save_to_file(start, &args.images, format, path),
        None if std::io::stdout().is_terminal() => {
            Err(Failure::new("cowardly refusing to save to a terminal: use -o or redirect standard output"))
        }
        None => write(start, &args.images, format, Box::new(std::io::stdout())),
    }
}

fn write(start: &Start, images: &[String], format: ArchiveFormat, out: ArchiveWriter) -> Result<(), Failure> {
    block_on(async { Ok(start.engine()?.save(images, format, out).await?) })
}

/// Writes beside the file and renames, so that a failure leaves what was there.
fn save_to_file(start: &Start, images: &[String], format: ArchiveFormat, path: &Path) -> Result<(), Failure> {
    let partial = Partial::new(path)?;
    let out = BufWriter::with_capacity(1 << 20, partial.create()?);
    write(start, images, format, Box::new(out))?;
    partial.finish(path)?;
    Ok(())
}

/// A file that is removed unless it was finished.
struct Partial(PathBuf);

impl Partial {
    fn new(path: &Path) -> anyhow::Result<Self> {
        let name = path.file_name().with_context(|| format!("{} is not a file", path.display()))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}", std::process::id()));
        Ok(Self(path.with_file_name(hidden)))
    }

    fn create(&self) -> anyhow::Result<File> {
        File::create(&self.0).with_context(|| format!("cannot write {}", self.0.display()))
    }

    fn finish(self, path: &Path) -> anyhow::Result<()> {
        std::fs::rename(&self.0, path).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already when it was finished.
        let _ = std::fs::remove_file(&self.0);
    }
}

pub fn load(start: &Start, args: &LoadArgs) -> Result<u8, Failure> {
    let input: ArchiveReader = match &args.input {
        Some(path) => Box::new(File::open(path).with_context(|| format!("cannot read {}", path.display()))?),
        None if std::io::stdin().is_terminal() => {
            return Err(Failure::new("requested load from stdin, but stdin is a terminal: use -i"));
        }
        None => Box::new(std::io::stdin()),
    };
    let loaded = block_on(async { Ok(start.engine()?.load(input, args.replace).await?) })?;
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
