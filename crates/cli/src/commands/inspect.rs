use super::{Start, block_on};
use crate::args::InspectArgs;
use crate::failure::Failure;
use crate::output::{self, without_nulls};
use crate::request::unsupported;
use crate::template::Format;
use forge_engine::ImageDetails;
use forge_image::Reference;
use serde_json::{Value, json};

/// Shows what is found and tells what is not, as docker does.
pub fn inspect(start: &Start, args: &InspectArgs) -> Result<u8, Failure> {
    if let Some(kind) = args.kind.as_deref().filter(|kind| !matches!(*kind, "" | "image")) {
        return Err(unsupported(&format!("--type={kind}")).into());
    }
    let format = match args.format.as_deref() {
        None | Some("json") => Format::Json,
        Some(text) => Format::read(Some(text))?,
    };
    let (found, failures) = block_on(async {
        let engine = start.engine()?;
        let (mut found, mut failures) = (Vec::new(), Vec::new());
        for image in &args.images {
            match engine.inspect(image).await {
                Ok(details) => found.push(document(&details)?),
                Err(error) => failures.push(Failure::from(error)),
            }
        }
        Ok((found, failures))
    })?;
    output::print(&render(found, &format)?)?;
    failures.iter().for_each(|failure| output::note(failure.text("forge").trim_end()));
    Ok(u8::from(!failures.is_empty()))
}

fn render(found: Vec<Value>, format: &Format) -> anyhow::Result<String> {
    match format {
        Format::Template(template) => found.iter().map(|document| Ok(template.render(document)? + "\n")).collect(),
        Format::Json | Format::Table => {
            let mut text = Vec::new();
            let layout = serde_json::ser::PrettyFormatter::with_indent(b"    ");
            let mut serializer = serde_json::Serializer::with_formatter(&mut text, layout);
            serde::Serialize::serialize(&found, &mut serializer)?;
            Ok(String::from_utf8(text)? + "\n")
        }
    }
}

/// The shape of `docker image inspect`.
fn document(details: &ImageDetails) -> anyhow::Result<Value> {
    let config = &details.config;
    let names = |names: &[Reference]| names.iter().map(Reference::familiar).collect::<Vec<_>>();
    let document = json!({
        "Id": details.id,
        "RepoTags": names(&details.names),
        "RepoDigests": names(&details.digests),
        "Comment": config.history.last().and_then(|entry| entry.comment.clone()).unwrap_or_default(),
        "Created": config.created,
        "Author": config.author.clone().unwrap_or_default(),
        "Config": serde_json::to_value(&config.config)?,
        "Architecture": config.architecture,
        "Variant": config.variant,
        "Os": config.os,
        "OsVersion": config.os_version,
        "Size": details.bytes,
        "RootFS": {"Type": config.rootfs.kind, "Layers": config.rootfs.diff_ids},
        "Metadata": {"LastTagTime": humantime::format_rfc3339_nanos(details.stored).to_string()},
        "Descriptor": details.manifest.as_ref().map(serde_json::to_value).transpose()?,
    });
    Ok(without_nulls(document))
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_image::{Digest, ImageConfig, ImageId, Platform};

    #[test]
    fn an_image_has_dockers_fields() {
        let details = ImageDetails {
            id: ImageId::new(Digest::sha256(b"x")),
            names: vec!["app:1.0".parse().unwrap()],
            digests: Vec::new(),
            config: ImageConfig::new(&Platform::new("linux", "amd64", None)),
            manifest: None,
            bytes: 7,
            stored: std::time::SystemTime::UNIX_EPOCH,
        };
        let text = render(vec![document(&details).unwrap()], &Format::Json).unwrap();
        let expected = r#"[
    {
        "Id": "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
        "RepoTags": [
            "app:1.0"
        ],
        "RepoDigests": [],
        "Comment": "",
        "Author": "",
        "Config": {},
        "Architecture": "amd64",
        "Os": "linux",
        "Size": 7,
        "RootFS": {
            "Type": "layers",
            "Layers": []
        },
        "Metadata": {
            "LastTagTime": "1970-01-01T00:00:00.000000000Z"
        }
    }
]
"#;
        assert_eq!(text, expected);
        assert_eq!(render(Vec::new(), &Format::Json).unwrap(), "[]\n");
        let format = Format::read(Some("{{.Id}}")).unwrap();
        assert!(render(vec![document(&details).unwrap()], &format).unwrap().starts_with("sha256:2d71"));
    }
}
