use super::Start;
use super::registry::shown_as;
use crate::args::{ImagetoolsArgs, ImagetoolsCommand, ImagetoolsCreateArgs, ImagetoolsInspectArgs};
use crate::failure::Failure;
use crate::output;
use crate::request::imagetools::{compose_request, metadata};
use crate::request::reference;
use crate::sanitise;
use crate::template::Format;
use forge_engine::RemoteImage;
use forge_image::Descriptor;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

pub fn imagetools(start: &Start, args: &ImagetoolsArgs) -> Result<u8, Failure> {
    match &args.what {
        ImagetoolsCommand::Inspect(args) => inspect(start, args),
        ImagetoolsCommand::Create(args) => create(start, args),
    }
}

fn inspect(start: &Start, args: &ImagetoolsInspectArgs) -> Result<u8, Failure> {
    let format = args.format.as_deref().map(|text| Format::read(Some(text))).transpose()?;
    let configs = args
        .format
        .as_deref()
        .is_some_and(|text| text == "json" || text.contains(".Image") || text.contains("json .}"));
    let (name, engine) = (reference(&args.name)?, start.engine()?);
    let image = shown_as(start, Some("none"), |events, token| async move {
        engine.inspect_remote(&name, configs, events, token).await
    })?;
    match format {
        // Without a newline: the bytes are what the digest is of.
        None if args.raw => output::print_bytes(&image.bytes)?,
        None | Some(Format::Table) => output::print(&listing(&image))?,
        Some(Format::Json) => output::print(&format!("{:#}\n", lower(&fields(&image))))?,
        Some(Format::Template(template)) => output::print(&format!("{}\n", template.render_loosely(&fields(&image))?))?,
    }
    Ok(0)
}

/// What templates see, in buildx's names.
fn fields(image: &RemoteImage) -> Value {
    let manifest: Value = serde_json::from_slice(&image.bytes).unwrap_or_default();
    let mut shown = json!({
        "schemaVersion": 2,
        "mediaType": image.descriptor.media_type.as_str(),
        "digest": image.descriptor.digest.as_str(),
        "size": image.descriptor.size,
    });
    for key in ["manifests", "annotations"] {
        if let Some(value) = manifest.get(key) {
            shown[key] = value.clone();
        }
    }
    let configs = image.configs.iter().map(|(platform, config)| (platform.to_string(), config));
    let parsed = |config: &forge_image::ImageConfig| serde_json::from_slice(&config.to_json()).unwrap_or(Value::Null);
    let configs: Map<String, Value> = configs.map(|(platform, config)| (platform, parsed(config))).collect();
    let single = image.entries.is_none().then(|| configs.values().next().cloned()).flatten();
    let image_value = single.unwrap_or(Value::Object(configs));
    json!({"Name": image.name.to_string(), "Manifest": shown, "Image": image_value})
}

/// The same as `{{json .}}` shows it.
fn lower(fields: &Value) -> Value {
    json!({"name": fields["Name"], "manifest": fields["Manifest"], "image": fields["Image"]})
}

fn listing(image: &RemoteImage) -> String {
    let mut text = String::new();
    let Descriptor { media_type, digest, .. } = &image.descriptor;
    let line = |text: &mut String, name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<11}{}", sanitise::block(value));
    };
    line(&mut text, "Name:", &image.name.to_string());
    line(&mut text, "MediaType:", media_type.as_str());
    line(&mut text, "Digest:", digest.as_str());
    let Some(entries) = &image.entries else { return text };
    text += &format!("{:11}\nManifests: \n", "");
    let entries = entries.iter().map(|entry| one_entry(image, entry));
    text + &entries.collect::<Vec<_>>().join(&format!("{:15}\n", ""))
}

fn one_entry(image: &RemoteImage, entry: &Descriptor) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<13}{}", sanitise::block(value));
    };
    line("Name:", &image.name.with_digest(entry.digest.clone()).to_string());
    line("MediaType:", entry.media_type.as_str());
    if let Some(platform) = &entry.platform {
        line("Platform:", &platform.to_string());
    }
    if !entry.annotations.is_empty() {
        line("Annotations:", "");
        for (key, value) in &entry.annotations {
            line(&format!("  {key}:"), value.as_str().unwrap_or_default());
        }
    }
    text
}

fn create(start: &Start, args: &ImagetoolsCreateArgs) -> Result<u8, Failure> {
    let request = compose_request(args)?;
    let (engine, dry_run) = (start.engine()?, args.dry_run);
    let quiet = dry_run.then_some("none");
    let made = shown_as(start, quiet.or(args.progress.as_deref()), |events, token| async move {
        engine.compose(&request, events, token).await
    })?;
    if dry_run {
        let document: Value = serde_json::from_slice(&made.bytes).unwrap_or_default();
        output::print(&format!("{document:#}\n"))?;
        return Ok(0);
    }
    if let Some(file) = &args.metadata_file {
        let written = std::fs::write(file, format!("{:#}\n", metadata(&made)));
        written.map_err(|error| anyhow::anyhow!("cannot write {}: {error}", file.display()))?;
    }
    for name in &made.names {
        output::print(&format!("{name}@{}\n", made.descriptor.digest))?;
    }
    Ok(0)
}
