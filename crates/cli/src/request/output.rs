use super::annotation::output_annotation;
use super::{reference, unsupported};
use anyhow::{Context, bail};
use forge_engine::{
    Annotation, AttestationForm, Destination, DigestNames, Epoch, FilesOutput, FolderMode, ImageOutput, Keep,
    LayerCompression, MediaTypes, Nondistributable, Output, PlatformFolders, Push, Times, Transport,
};
use forge_image::Reference;
use std::path::PathBuf;

/// Reads one `--output`: a folder, `-`, or `type=…,key=value` in CSV as buildx takes it.
///
/// # Errors
/// Names the key that forge does not know or whose value is not one of its values.
pub fn output(text: &str) -> anyhow::Result<Output> {
    if text == "-" {
        return Ok(Output::Tar(FilesOutput::default(), Destination::Stdout));
    }
    if !text.contains('=') {
        return Ok(Output::Local(FilesOutput::default(), FolderMode::Copy, PathBuf::from(text)));
    }
    let mut fields = Fields::read(text)?;
    let kind = fields.take("type").context("--output: type is missing")?;
    let output = match kind.as_str() {
        "image" => Output::Image(fields.stored_image(false)?),
        "registry" => Output::Image(fields.stored_image(true)?),
        "oci" => Output::Oci(fields.image()?, fields.archive()?),
        "docker" => match fields.has("dest") || fields.has("tar") {
            true => Output::Docker(fields.image()?, fields.archive()?),
            false => Output::Image(fields.image()?),
        },
        "local" => {
            let (files, mode) = (fields.files()?, fields.folder_mode()?);
            Output::Local(files, mode, fields.take("dest").context("--output type=local: dest is missing")?.into())
        }
        "tar" => Output::Tar(fields.files()?, fields.file()),
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
        Output::Tar(_, Destination::Stdout)
            | Output::Oci(_, Destination::Stdout)
            | Output::Docker(_, Destination::Stdout)
    )
}

struct Fields(Vec<(String, String)>);

impl Fields {
    fn read(text: &str) -> anyhow::Result<Self> {
        let pair = |field: String| -> anyhow::Result<(String, String)> {
            let (key, value) =
                field.split_once('=').with_context(|| format!("--output: {field:?} is not key=value"))?;
            // The names of annotations are the user's own.
            let key = match key.trim() {
                key if key.starts_with("annotation") => key.to_owned(),
                key => key.to_ascii_lowercase(),
            };
            Ok((key, value.to_owned()))
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
        Ok(self.switch(key)?.unwrap_or(default))
    }

    fn switch(&mut self, key: &str) -> anyhow::Result<Option<bool>> {
        match self.take(key).as_deref() {
            None => Ok(None),
            Some("" | "true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(other) => bail!("--output {key}={other}: expected true or false"),
        }
    }

    /// Takes a switch that forge has only in one position.
    fn only(&mut self, key: &str, position: bool, why: &str) -> anyhow::Result<()> {
        match self.flag(key, position)? == position {
            true => Ok(()),
            false => Err(anyhow::anyhow!("{}: {why}", unsupported(&format!("--output {key}={}", !position)))),
        }
    }

    /// What holds for an image wherever it goes.
    fn image(&mut self) -> anyhow::Result<ImageOutput> {
        let media_types = self.media_types()?;
        let times = Times { epoch: self.epoch()?, rewrite: self.switch("rewrite-timestamp")? };
        let image = ImageOutput {
            names: self.names("name")?,
            compression: self.compression()?,
            force_compression: self.flag("force-compression", false)?,
            media_types,
            annotations: self.annotations()?,
            times,
            nondistributable: match self.flag("prefer-nondist-layers", false)? {
                true => Nondistributable::Referred,
                false => Nondistributable::Embedded,
            },
            attestation_form: match (self.switch("oci-artifact")?, media_types) {
                (Some(true), MediaTypes::Docker) => {
                    bail!("--output: oci-artifact=true cannot be combined with oci-mediatypes=false")
                }
                (Some(false), _) => AttestationForm::Image,
                _ => AttestationForm::Artifact,
            },
            ..ImageOutput::default()
        };
        match (&image.compression, media_types) {
            (Some(LayerCompression::Zstd(_)), MediaTypes::Docker) => {
                bail!("--output: compression=zstd cannot be combined with oci-mediatypes=false")
            }
            (Some(LayerCompression::ZstdChunked(_)), MediaTypes::Docker) => {
                bail!("--output: compression=zstd:chunked cannot be combined with oci-mediatypes=false")
            }
            (Some(LayerCompression::Estargz(_)), MediaTypes::Docker) => {
                bail!("--output: compression=estargz cannot be combined with oci-mediatypes=false")
            }
            _ => Ok(image),
        }
    }

    /// An image that the store keeps or a registry gets.
    fn stored_image(&mut self, push: bool) -> anyhow::Result<ImageOutput> {
        let image = self.image()?;
        // The files of every layer in the store are unpacked.
        if self.flag("unpack", false)? && image.times.rewrite == Some(true) {
            bail!("--output: exporter option \"rewrite-timestamp\" conflicts with \"unpack\"");
        }
        let digest_names = DigestNames {
            canonical: self.flag("name-canonical", false)?,
            prefix: self.take("dangling-name-prefix").map(|prefix| reference(&prefix)).transpose()?,
            // Written so in BuildKit.
            prefix_only_without_names: self.flag("danging-name-empty-only", false)?,
        };
        let keep = if self.flag("store", true)? { Keep::Named } else { Keep::Nothing };
        Ok(ImageOutput { push: self.push(push, &image.names)?, keep, digest_names, ..image })
    }

    fn push(&mut self, default: bool, names: &[Reference]) -> anyhow::Result<Push> {
        let transport = match self.flag("registry.insecure", false)? {
            true => Transport::Plain,
            false => Transport::Configured,
        };
        let by_digest = self.flag("push-by-digest", false)?;
        if let (true, Some(name)) = (by_digest, names.iter().find(|name| name.tag() != Some("latest"))) {
            bail!("can't push tagged ref {name} by digest");
        }
        Ok(match (self.flag("push", default)?, by_digest) {
            (true, false) => Push::Names(transport),
            (true, true) => Push::Digest(transport),
            (false, false) if transport == Transport::Configured => Push::No,
            (false, _) => bail!("--output: push-by-digest and registry.insecure are for push=true"),
        })
    }

    fn media_types(&mut self) -> anyhow::Result<MediaTypes> {
        let oci = self.flag("oci-mediatypes", true)?;
        self.only("attestation-inline", false, "attestations are written beside the image")?;
        Ok(if oci { MediaTypes::Oci } else { MediaTypes::Docker })
    }

    fn names(&mut self, key: &str) -> anyhow::Result<Vec<Reference>> {
        let names = self.take(key).unwrap_or_default();
        if names == "*" {
            let why = "a Dockerfile gives its image no name";
            return Err(anyhow::anyhow!("{}: {why}", unsupported("--output name=*")));
        }
        names.split(',').filter(|name| !name.is_empty()).map(reference).collect()
    }

    fn annotations(&mut self) -> anyhow::Result<Vec<Annotation>> {
        let (found, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.0)
            .into_iter()
            .map(|(key, value)| (output_annotation(&key, &value), (key, value)))
            .partition(|(annotation, _)| annotation.is_some());
        self.0 = rest.into_iter().map(|(_, field)| field).collect();
        found.into_iter().filter_map(|(annotation, _)| annotation).collect()
    }

    fn epoch(&mut self) -> anyhow::Result<Epoch> {
        let Some(text) = self.take("source-date-epoch") else { return Ok(Epoch::OfBuild) };
        if text.is_empty() {
            return Ok(Epoch::Unset);
        }
        let seconds = text.parse().ok().filter(|seconds| *seconds >= 0);
        seconds
            .map(Epoch::At)
            .with_context(|| format!("--output source-date-epoch={text}: expected seconds since 1970"))
    }

    fn files(&mut self) -> anyhow::Result<FilesOutput> {
        let folders = self.switch("platform-split")?.map(|split| match split {
            true => PlatformFolders::Always,
            false => PlatformFolders::Never,
        });
        let attestation_prefix = self.take("attestation-prefix").unwrap_or_default();
        Ok(FilesOutput { epoch: self.epoch()?, folders, attestation_prefix })
    }

    fn folder_mode(&mut self) -> anyhow::Result<FolderMode> {
        match self.take("mode").as_deref() {
            None | Some("" | "copy") => Ok(FolderMode::Copy),
            Some("delete") => Ok(FolderMode::Delete),
            Some(other) => bail!("--output mode={other}: expected copy or delete"),
        }
    }

    fn compression(&mut self) -> anyhow::Result<Option<LayerCompression>> {
        let level = self.take("compression-level");
        let level = level
            .map(|level| level.parse::<i32>().with_context(|| format!("--output compression-level={level}")))
            .transpose()?;
        match (self.take("compression").as_deref(), level) {
            (None, None) => Ok(None),
            (None | Some("gzip"), level) => Ok(Some(LayerCompression::Gzip(gzip_level(level)?))),
            (Some("estargz"), level) => Ok(Some(LayerCompression::Estargz(gzip_level(level)?))),
            (Some("zstd"), level) if level.is_none_or(|level| (0..=22).contains(&level)) => {
                Ok(Some(LayerCompression::Zstd(level)))
            }
            (Some("zstd:chunked"), level) if level.is_none_or(|level| (0..=22).contains(&level)) => {
                Ok(Some(LayerCompression::ZstdChunked(level)))
            }
            (Some("zstd" | "zstd:chunked"), _) => bail!("--output compression-level: zstd has 0 to 22"),
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

fn gzip_level(level: Option<i32>) -> anyhow::Result<Option<u32>> {
    let valid = |level| u32::try_from(level).ok().filter(|level| *level <= 9);
    level.map(|level| valid(level).context("--output compression-level: gzip has 0 to 9")).transpose()
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
        assert_eq!(output("out").unwrap(), Output::Local(FilesOutput::default(), FolderMode::Copy, "out".into()));
        assert_eq!(output("-").unwrap(), Output::Tar(FilesOutput::default(), Destination::Stdout));
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
        assert_eq!(image.push, Push::Names(Transport::Configured));
        assert_eq!(image.compression, Some(LayerCompression::Zstd(Some(7))));
        assert_eq!(stored("type=registry").push, Push::Names(Transport::Configured));
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

    fn stored(text: &str) -> ImageOutput {
        let Output::Image(image) = output(text).unwrap() else { panic!("{text}") };
        image
    }

    /// The options of images that BuildKit's documentation lists; what has no effect here is refused elsewhere.
    #[test]
    fn every_option_of_an_image() {
        let image = stored(
            "type=image,name=a,push=true,push-by-digest=true,registry.insecure=true,name-canonical=true,store=false,unpack=true,\
             dangling-name-prefix=d,danging-name-empty-only=true,oci-mediatypes=false,oci-artifact=false,\
             attestation-inline=false,prefer-nondist-layers=true,source-date-epoch=7,rewrite-timestamp=false,\
             compression=gzip,compression-level=3,force-compression=true,annotation.K=v,annotation-index.k=w",
        );
        assert_eq!((image.push, image.keep), (Push::Digest(Transport::Plain), Keep::Nothing));
        assert!(image.digest_names.canonical && image.digest_names.prefix_only_without_names);
        assert_eq!(image.digest_names.prefix.unwrap().to_string(), "docker.io/library/d:latest");
        assert_eq!(image.media_types, MediaTypes::Docker);
        assert_eq!(image.nondistributable, Nondistributable::Referred);
        assert_eq!(image.times, Times { epoch: Epoch::At(7), rewrite: Some(false) });
        assert_eq!((image.compression, image.force_compression), (Some(LayerCompression::Gzip(Some(3))), true));
        let keys: Vec<&str> = image.annotations.iter().map(|it| it.key.as_str()).collect();
        assert_eq!(keys, ["K", "k"]);
        assert_eq!(stored("type=image,unpack=true,store=true"), ImageOutput::default());
    }

    #[test]
    fn options_that_exclude_each_other() {
        assert_eq!(
            error("type=image,unpack=true,rewrite-timestamp=true"),
            "--output: exporter option \"rewrite-timestamp\" conflicts with \"unpack\""
        );
        assert_eq!(
            error("type=oci,dest=x,compression=zstd,oci-mediatypes=false"),
            "--output: compression=zstd cannot be combined with oci-mediatypes=false"
        );
        assert_eq!(
            error("type=image,oci-artifact=true,oci-mediatypes=false"),
            "--output: oci-artifact=true cannot be combined with oci-mediatypes=false"
        );
        assert_eq!(
            error("type=image,name=r.test/a:1,push=true,push-by-digest=true"),
            "can't push tagged ref r.test/a:1 by digest"
        );
        assert_eq!(
            error("type=image,push-by-digest=true"),
            "--output: push-by-digest and registry.insecure are for push=true"
        );
        assert!(
            error("type=oci,dest=x,compression=estargz,oci-mediatypes=false").contains("estargz cannot be combined")
        );
        assert!(error("type=image,compression=estargz,compression-level=10").contains("gzip has 0 to 9"));
        let estargz = stored("type=image,compression=estargz,compression-level=9").compression;
        assert_eq!(estargz, Some(LayerCompression::Estargz(Some(9))));
        assert!(error("type=image,source-date-epoch=x").contains("expected seconds since 1970"));
        assert!(error("type=local,dest=x,mode=move").contains("expected copy or delete"));
    }

    #[test]
    fn files() {
        let plain = FilesOutput::default();
        assert_eq!(output("type=local,dest=o").unwrap(), Output::Local(plain.clone(), FolderMode::Copy, "o".into()));
        assert_eq!(output("type=tar,dest=-").unwrap(), Output::Tar(plain.clone(), Destination::Stdout));
        let split = FilesOutput { epoch: Epoch::At(5), folders: Some(PlatformFolders::Always), ..plain.clone() };
        assert_eq!(
            output("type=local,dest=o,platform-split=true,source-date-epoch=5,mode=delete").unwrap(),
            Output::Local(split, FolderMode::Delete, "o".into())
        );
        let unset = FilesOutput { epoch: Epoch::Unset, ..plain.clone() };
        assert_eq!(output("type=tar,dest=-,source-date-epoch=").unwrap(), Output::Tar(unset, Destination::Stdout));
        let merged = FilesOutput { folders: Some(PlatformFolders::Never), ..plain };
        assert_eq!(
            output("type=tar,dest=x,platform-split=false").unwrap(),
            Output::Tar(merged, Destination::File("x".into()))
        );
        assert_eq!(output("type=cacheonly").unwrap(), Output::CacheOnly);
    }

    #[test]
    fn what_is_not_there_is_named() {
        assert_eq!(error("type=oci,push=true"), "--output type=oci: push is not supported by this version of forge");
        assert_eq!(
            error("type=docker,context=x"),
            "--output type=docker: context is not supported by this version of forge"
        );
        for (field, why) in [
            ("attestation-inline=true", "attestations are written beside the image"),
            ("name=*", "a Dockerfile gives its image no name"),
        ] {
            let expect = format!("--output {field} is not supported by this version of forge: {why}");
            assert_eq!(error(&format!("type=image,{field}")), expect);
        }
        assert_eq!(error("type=moby"), "--output type=moby is not supported by this version of forge");
        assert_eq!(
            error("type=image,compression=xz"),
            "--output compression=xz is not supported by this version of forge"
        );
        assert_eq!(error("dest=x"), "--output: type is missing");
        assert_eq!(error("type=local"), "--output type=local: dest is missing");
        assert!(error("type=image,compression-level=10").contains("gzip has 0 to 9"));
    }
}
