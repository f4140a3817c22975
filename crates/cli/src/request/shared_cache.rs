use super::output::csv;
use super::{reference, unsupported};
use crate::sanitise;
use anyhow::{Context, bail};
use forge_engine::{CacheExport, CacheMode, CachePlace, LayerCompression, SharedCaches, Transport};

/// Reads `--cache-from` and `--cache-to`: a reference, or `type=…,key=value` in CSV as buildx takes it.
///
/// # Errors
/// Names the type or key that forge does not have, or the value that is none.
pub(super) fn caches(from: &[String], to: &[String]) -> anyhow::Result<SharedCaches> {
    let from = from.iter().filter(|text| !text.is_empty()).map(|text| source(text));
    let to = to.iter().filter(|text| !text.is_empty()).map(|text| export(text));
    let caches = SharedCaches { from: from.collect::<anyhow::Result<_>>()?, to: to.collect::<anyhow::Result<_>>()? };
    for (number, export) in caches.to.iter().enumerate() {
        if caches.to[..number].iter().any(|other| other.place == export.place) {
            bail!("--cache-to: duplicated cache exports to the same place");
        }
    }
    Ok(caches)
}

fn source(text: &str) -> anyhow::Result<CachePlace> {
    let mut fields = Fields::read("cache-from", text)?;
    let place = fields.place("src")?;
    if fields.take("digest").is_some() {
        let why = "every step has a record of its own, and no digest stands for all";
        return Err(anyhow::anyhow!("{}: {why}", unsupported("--cache-from digest")));
    }
    fields.finish()?;
    Ok(place)
}

fn export(text: &str) -> anyhow::Result<CacheExport> {
    let mut fields = Fields::read("cache-to", text)?;
    let place = fields.place("dest")?;
    let mode = match fields.take("mode").as_deref() {
        None | Some("max") => CacheMode::Max,
        Some("min") => CacheMode::Min,
        Some(other) => bail!("--cache-to mode={}: expected min or max", sanitise::line(other)),
    };
    // No failure of a cache is one of the build, whatever is said here.
    fields.flag("ignore-error", false)?;
    fields.only("oci-mediatypes", true)?;
    fields.only("image-manifest", true)?;
    fields.only("reset", false)?;
    let force_compression = fields.flag("force-compression", false)?;
    let compression = fields.compression()?;
    fields.finish()?;
    Ok(CacheExport { place, mode, compression, force_compression })
}

struct Fields {
    flag: &'static str,
    kind: String,
    pairs: Vec<(String, String)>,
}

impl Fields {
    fn read(flag: &'static str, text: &str) -> anyhow::Result<Self> {
        if !text.contains('=') {
            let pairs = vec![("ref".to_owned(), text.to_owned())];
            return Ok(Self { flag, kind: "registry".to_owned(), pairs });
        }
        let pair = |field: String| -> anyhow::Result<(String, String)> {
            let pair = field.split_once('=');
            let (key, value) = pair.with_context(|| format!("--{flag}: {field:?} is not key=value"))?;
            Ok((key.trim().to_ascii_lowercase(), value.to_owned()))
        };
        let pairs = csv(text)?.into_iter().map(pair).collect::<anyhow::Result<_>>()?;
        let mut fields = Self { flag, kind: String::new(), pairs };
        fields.kind = fields.take("type").with_context(|| format!("--{flag}: type is missing"))?;
        Ok(fields)
    }

    fn place(&mut self, folder: &str) -> anyhow::Result<CachePlace> {
        match self.kind.as_str() {
            "registry" => {
                let reference = reference(&self.need("ref")?)?;
                let transport = match self.flag("registry.insecure", false)? {
                    true => Transport::Plain,
                    false => Transport::Configured,
                };
                Ok(CachePlace::Registry(reference, transport))
            }
            "local" => {
                let folder = self.need(folder)?.into();
                Ok(CachePlace::Local { folder, tag: self.take("tag").unwrap_or_else(|| "latest".to_owned()) })
            }
            other => {
                let why = "there are type=registry and type=local";
                Err(anyhow::anyhow!("{}: {why}", unsupported(&format!("--{} type={other}", self.flag))))
            }
        }
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let place = self.pairs.iter().position(|(name, _)| name == key)?;
        Some(self.pairs.remove(place).1)
    }

    fn need(&mut self, key: &str) -> anyhow::Result<String> {
        let value = self.take(key).filter(|value| !value.is_empty());
        value.with_context(|| format!("--{} type={}: {key} is missing", self.flag, self.kind))
    }

    fn flag(&mut self, key: &str, default: bool) -> anyhow::Result<bool> {
        match self.take(key).as_deref() {
            None => Ok(default),
            Some("" | "true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => bail!("--{} {key}={}: expected true or false", self.flag, sanitise::line(other)),
        }
    }

    /// Takes a switch that forge has only in one position.
    fn only(&mut self, key: &str, position: bool) -> anyhow::Result<()> {
        match self.flag(key, position)? == position {
            true => Ok(()),
            false => Err(unsupported(&format!("--{} {key}={}", self.flag, !position))),
        }
    }

    fn compression(&mut self) -> anyhow::Result<Option<LayerCompression>> {
        let level = self.take("compression-level");
        let level = level.map(|text| {
            text.parse::<i32>().with_context(|| format!("--{} compression-level={}", self.flag, sanitise::line(&text)))
        });
        let gzip = |level: i32| u32::try_from(level).ok().filter(|level| *level <= 9).context("gzip has levels 0 to 9");
        Ok(match (self.take("compression").as_deref(), level.transpose()?) {
            (None, None) => None,
            (None | Some("gzip"), level) => Some(LayerCompression::Gzip(level.map(gzip).transpose()?)),
            (Some("zstd"), level) => Some(LayerCompression::Zstd(level)),
            (Some("uncompressed"), _) => Some(LayerCompression::Uncompressed),
            (Some(other), _) => {
                return Err(unsupported(&format!("--{} compression={other}", self.flag)));
            }
        })
    }

    fn finish(self) -> anyhow::Result<()> {
        match self.pairs.first() {
            Some((key, _)) => Err(unsupported(&format!("--{} type={} {key}", self.flag, self.kind))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(from: &str, to: &str) -> String {
        let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        match caches(&list(from), &list(to)) {
            Ok(_) => "fine".to_owned(),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn places_and_how_they_are_written() {
        let caches = caches(
            &["r.test/app".to_owned(), "type=local,src=in,tag=x".to_owned()],
            &["type=registry,ref=r.test/app:cache,mode=min,compression=zstd,ignore-error=true".to_owned()],
        );
        let caches = caches.unwrap();
        assert_eq!(caches.from[0], CachePlace::Registry("r.test/app".parse().unwrap(), Transport::Configured));
        assert_eq!(caches.from[1], CachePlace::Local { folder: "in".into(), tag: "x".to_owned() });
        assert_eq!((caches.to[0].mode, caches.to[0].compression), (CacheMode::Min, Some(LayerCompression::Zstd(None))));
        assert_eq!(told("", "type=local,dest=a type=local,dest=b"), "fine");
        assert_eq!(told("", "r.test/a,type=registry"), "--cache-to: \"r.test/a\" is not key=value");
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for kind in ["azblob", "s3", "gha", "inline"] {
            let refused = told("", &format!("type={kind}"));
            assert!(refused.starts_with(&format!("--cache-to type={kind} is not supported")), "{refused}");
        }
        assert!(told("type=local,src=x,digest=sha256:a", "").starts_with("--cache-from digest is not supported"));
        assert!(told("", "type=local,dest=x,reset=true").starts_with("--cache-to reset=true is not supported"));
        assert!(told("", "type=local,dest=x,colour=red").starts_with("--cache-to type=local colour is not supported"));
        assert_eq!(told("", "type=local"), "--cache-to type=local: dest is missing");
        assert_eq!(told("", "type=local,dest=x,mode=most"), "--cache-to mode=most: expected min or max");
        assert_eq!(told("", "r.test/a r.test/a"), "--cache-to: duplicated cache exports to the same place");
        assert!(told("UPPER", "").contains("is not an image name"));
    }
}
