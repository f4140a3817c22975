//! What `imagetools create` is asked for, from its flags.

use super::annotation::annotations;
use super::{platform, reference};
use crate::args::ImagetoolsCreateArgs;
use anyhow::{Context, bail};
use forge_engine::{ComposeOutcome, ComposeRequest, ComposeSource};
use forge_image::{Descriptor, Digest, Reference};
use serde_json::{Value, json};

/// Reads the flags, and the files that they name.
///
/// # Errors
/// As buildx: no source, no tag, or sources whose repository cannot be told.
pub fn compose_request(args: &ImagetoolsCreateArgs) -> anyhow::Result<ComposeRequest> {
    let files = args
        .files
        .iter()
        .map(|path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())));
    request(args, &files.collect::<anyhow::Result<Vec<_>>>()?)
}

fn request(args: &ImagetoolsCreateArgs, files: &[String]) -> anyhow::Result<ComposeRequest> {
    if args.sources.is_empty() && files.is_empty() && !args.append {
        bail!("no sources specified");
    }
    if !args.dry_run && args.tags.is_empty() {
        bail!("can't push with no tags specified, please set --tag or --dry-run");
    }
    if args.append && args.tags.is_empty() {
        bail!("no tag to append to: set --tag");
    }
    let names = args.tags.iter().map(|tag| reference(tag)).collect::<anyhow::Result<Vec<_>>>()?;
    let appended = names.first().filter(|_| args.append).map(|name| ComposeSource { name: name.clone(), note: None });
    let texts = files.iter().map(String::as_str).chain(args.sources.iter().map(String::as_str));
    let sources = texts.map(|text| source(text.trim(), &names));
    let sources = appended.into_iter().map(Ok).chain(sources).collect::<anyhow::Result<Vec<_>>>()?;
    let annotations = args.annotations.iter().map(|text| annotations(text)).collect::<anyhow::Result<Vec<_>>>()?;
    let platforms = args.platforms.iter().flat_map(|list| list.split(',')).map(platform);
    Ok(ComposeRequest {
        sources,
        names,
        annotations: annotations.concat(),
        platforms: platforms.collect::<anyhow::Result<_>>()?,
        prefer_index: args.prefer_index,
        dry_run: args.dry_run,
    })
}

/// A name; or a digest or a descriptor, which are of the repository of the tags.
fn source(text: &str, names: &[Reference]) -> anyhow::Result<ComposeSource> {
    if text.starts_with('{') {
        let note: Descriptor = serde_json::from_str(text).context("invalid descriptor")?;
        let name = repository(names)?.with_digest(note.digest.clone());
        return Ok(ComposeSource { name, note: Some(note) });
    }
    match text.parse::<Digest>() {
        Ok(digest) => Ok(ComposeSource { name: repository(names)?.with_digest(digest), note: None }),
        Err(_) => Ok(ComposeSource { name: reference(text)?, note: None }),
    }
}

fn repository(names: &[Reference]) -> anyhow::Result<&Reference> {
    let (Some(first), rest) = (names.first(), names.get(1..).unwrap_or_default()) else {
        bail!("no repositories specified, please set --tag");
    };
    match rest.iter().all(|name| name.name() == first.name()) {
        true => Ok(first),
        false => bail!("multiple repositories specified, and a source does not say which is meant"),
    }
}

/// What `--metadata-file` holds.
pub fn metadata(made: &ComposeOutcome) -> Value {
    let names: Vec<String> = made.names.iter().map(Reference::to_string).collect();
    json!({
        "containerimage.descriptor": made.descriptor,
        "containerimage.digest": made.descriptor.digest.as_str(),
        "image.name": names.join(","),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command, ImagetoolsCommand};

    fn read(words: &str) -> anyhow::Result<ComposeRequest> {
        let words =
            ["forge", "imagetools", "create"].into_iter().chain(words.split(' ').filter(|word| !word.is_empty()));
        let cli = Cli::read(words.map(Into::into)).unwrap();
        let Command::Imagetools(args) = cli.command else { panic!("another command") };
        let ImagetoolsCommand::Create(args) = args.what else { panic!("another command") };
        request(&args, &[])
    }

    fn check(words: &str, expect: &str) {
        let shown = match read(words) {
            Ok(request) => request.sources.iter().map(|source| source.name.to_string()).collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expect, "{words}");
    }

    #[test]
    fn sources_are_names_digests_and_descriptors() {
        let digest = Digest::sha256(b"x");
        let descriptor =
            format!(r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":1}}"#);
        check("-t r.test/a:1 r.test/b r.test/c:2", "r.test/b:latest r.test/c:2");
        check(&format!("-t r.test/a:1 {digest}"), &format!("r.test/a@{digest}"));
        check(&format!("-t r.test/a:1 {descriptor}"), &format!("r.test/a@{digest}"));
        check("-t r.test/a:1 --append r.test/b:2", "r.test/a:1 r.test/b:2");
        check("--dry-run r.test/b:2", "r.test/b:2");
    }

    #[test]
    fn what_cannot_be_told_is_refused_in_buildxs_words() {
        check("-t r.test/a", "no sources specified");
        check("r.test/a", "can't push with no tags specified, please set --tag or --dry-run");
        let digest = Digest::sha256(b"x");
        check(&format!("--dry-run {digest}"), "no repositories specified, please set --tag");
        let error = read(&format!("-t r.test/a -t r.test/b {digest}")).unwrap_err().to_string();
        assert!(error.starts_with("multiple repositories specified"), "{error}");
    }

    #[test]
    fn switches_are_read() {
        assert!(read("--dry-run a").unwrap().prefer_index);
        assert!(!read("--dry-run --prefer-index=false a").unwrap().prefer_index);
        assert_eq!(read("--dry-run -p linux/amd64,linux/arm64 a").unwrap().platforms.len(), 2);
        assert_eq!(read("--dry-run --annotation index:a=b a").unwrap().annotations.len(), 1);
    }
}
