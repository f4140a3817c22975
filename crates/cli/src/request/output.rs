use super::{reference, unsupported};
use anyhow::{Context, bail};
use forge_engine::{Destination, ImageOutput, LayerCompression, Output};
use std::path::PathBuf;

/// Reads one `--output`: a folder, `-`, or `type=…,key=value` in CSV as buildx takes it.
///
/// # Errors
/// Names the key that forge does not know or whose value is not one of its values.
pub fn output(text: &str) -> anyhow::Result<Output> {
    if text == "-" {
        return Ok(Output::Tar(Destination::Stdout));
    }
    if !text.contains('=') {
        return Ok(Output::Local(PathBuf::from(text)));
    }
    let mut fields = Fields::read(text)?;
    let kind = fields.take("type").context("--output: type is missing")?;
    let output = match kind.as_str() {
        "image" => Output::Image(fields.image(false)?),
        "registry" => Output::Image(fields.image(true)?),
        "oci" => Output::Oci(fields.image(false)?, fields.archive()?),
        "docker" => match fields.has("dest") {
            true => Output::Docker(fields.image(false)?, fields.archive()?),
            false => Output::Image(fields.image(false)?),
        },
        "local" => Output::Local(fields.take("dest").context("--output type=local: dest is missing")?.into()),
        "tar" => Output::Tar(fields.file()),
        "cacheonly" => Output::CacheOnly,
        other => return Err(unsupported(&format!("--output type={other}"))),
    };
    fields.finish(&kind)?;
    Ok(output)
}

/// Whether an output writes to standard output.
pub fn goes_to_stdout(output: &Output) -> bool {
    matches!(
        output,
        Output::Tar(Destination::Stdout) | Output::Oci(_, Destination::Stdout) | Output::Docker(_, Destination::Stdout)
    )
}

struct Fields(Vec<(String, String)>);

impl Fields {
    fn read(text: &str) -> anyhow::Result<Self> {
        let pair = |field: String| -> anyhow::Result<(String, String)> {
            let (key, value) =
                field.split_once('=').with_context(|| format!("--output: {field:?} is not key=value"))?;
            Ok((key.trim().to_ascii_lowercase(), value.to_owned()))
        };
        Ok(Self(csv(text)?.into_iter().map(pair).collect::<anyhow::Result<_>>()?))
    }

    fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(name, _)| name == key)
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let place = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.remove(place).1)
    }

    fn flag(&mut self, key: &str, default: bool) -> anyhow::Result<bool> {
        match self.take(key).as_deref() {
            None => Ok(default),
            Some("" | "true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => bail!("--output {key}={other}: expected true or false"),
        }
    }

    /// Takes a switch that forge has only in one position.
    fn only(&mut self, key: &str, position: bool) -> anyhow::Result<()> {
        match self.flag(key, position)? == position {
            true => Ok(()),
            false => Err(unsupported(&format!("--output {key}={}", !position))),
        }
    }

    fn image(&mut self, push: bool) -> anyhow::Result<ImageOutput> {
        self.only("oci-mediatypes", true)?;
        self.only("store", true)?;
        self.only("push-by-digest", false)?;
        let names = self.take("name").unwrap_or_default();
        Ok(ImageOutput {
            names: names.split(',').filter(|name| !name.is_empty()).map(reference).collect::<anyhow::Result<_>>()?,
            push: self.flag("push", push)?,
            compression: self.compression()?,
            force_compression: self.flag("force-compression", false)?,
        })
    }

    fn compression(&mut self) -> anyhow::Result<Option<LayerCompression>> {
        let level = self.take("compression-level");
        let level = level
            .map(|level| level.parse::<i32>().with_context(|| format!("--output compression-level={level}")))
            .transpose()?;
        match (self.take("compression").as_deref(), level) {
            (None, None) => Ok(None),
            (None | Some("gzip"), level) => {
                let level = level.map(|level| {
                    u32::try_from(level)
                        .ok()
                        .filter(|level| *level <= 9)
                        .context("--output compression-level: gzip has 0 to 9")
                });
                Ok(Some(LayerCompression::Gzip(level.transpose()?)))
            }
            (Some("zstd"), level) if level.is_none_or(|level| (0..=22).contains(&level)) => {
                Ok(Some(LayerCompression::Zstd(level)))
            }
            (Some("zstd"), _) => bail!("--output compression-level: zstd has 0 to 22"),
            (Some("uncompressed"), _) => Ok(Some(LayerCompression::Uncompressed)),
            (Some(other), _) => Err(unsupported(&format!("--output compression={other}"))),
        }
    }

    /// A file, a folder with `tar=false`, or standard output.
    fn archive(&mut self) -> anyhow::Result<Destination> {
        match (self.flag("tar", true)?, self.file()) {
            (true, destination) => Ok(destination),
            (false, Destination::File(path)) => Ok(Destination::Directory(path)),
            (false, _) => bail!("--output tar=false: dest is missing"),
        }
    }

    fn file(&mut self) -> Destination {
        match self.take("dest").as_deref() {
            None | Some("" | "-") => Destination::Stdout,
            Some(path) => Destination::File(path.into()),
        }
    }

    fn finish(self, kind: &str) -> anyhow::Result<()> {
        match self.0.first() {
            Some((key, _)) => Err(unsupported(&format!("--output type={kind}: {key}"))),
            None => Ok(()),
        }
    }
}

/// Splits a line of CSV: commas separate, double quotes around a field protect them and are doubled inside.
pub(super) fn csv(text: &str) -> anyhow::Result<Vec<String>> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => field.push(characters.next().unwrap_or('"')),
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    if quoted {
        bail!("unclosed quote in {text:?}");
    }
    fields.push(field);
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        format!("{:#}", output(text).unwrap_err())
    }

    #[test]
    fn short_forms() {
        assert_eq!(output("out").unwrap(), Output::Local("out".into()));
        assert_eq!(output("-").unwrap(), Output::Tar(Destination::Stdout));
    }

    #[test]
    fn images() {
        let Output::Image(image) =
            output("type=image,\"name=a,b:2\",push=true,compression=zstd,compression-level=7").unwrap()
        else {
            panic!()
        };
        assert_eq!(
            image.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["docker.io/library/a:latest", "docker.io/library/b:2"]
        );
        assert!(image.push && image.compression == Some(LayerCompression::Zstd(Some(7))));
        let Output::Image(image) = output("type=registry").unwrap() else { panic!() };
        assert!(image.push);
        assert_eq!(output("type=docker").unwrap(), Output::Image(ImageOutput::default()));
        assert_eq!(
            output("type=oci,dest=x.tar").unwrap(),
            Output::Oci(ImageOutput::default(), Destination::File("x.tar".into()))
        );
        assert_eq!(
            output("type=oci,dest=x,tar=false").unwrap(),
            Output::Oci(ImageOutput::default(), Destination::Directory("x".into()))
        );
        assert_eq!(output("type=oci").unwrap(), Output::Oci(ImageOutput::default(), Destination::Stdout));
    }

    #[test]
    fn files() {
        assert_eq!(output("type=local,dest=o").unwrap(), Output::Local("o".into()));
        assert_eq!(output("type=tar,dest=-").unwrap(), Output::Tar(Destination::Stdout));
        assert_eq!(output("type=cacheonly").unwrap(), Output::CacheOnly);
    }

    #[test]
    fn what_is_not_there_is_named() {
        assert_eq!(
            error("type=image,oci-mediatypes=false"),
            "--output oci-mediatypes=false is not supported by this version of forge"
        );
        assert_eq!(
            error("type=image,annotation.x=y"),
            "--output type=image: annotation.x is not supported by this version of forge"
        );
        assert_eq!(error("type=moby"), "--output type=moby is not supported by this version of forge");
        assert_eq!(
            error("type=image,compression=estargz"),
            "--output compression=estargz is not supported by this version of forge"
        );
        assert_eq!(error("dest=x"), "--output: type is missing");
        assert_eq!(error("type=local"), "--output type=local: dest is missing");
        assert!(error("type=image,compression-level=10").contains("gzip has 0 to 9"));
    }
}
