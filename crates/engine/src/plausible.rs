//! What of a build request cannot come to a good end, told before the first step runs.

use crate::{BuildRequest, Destination, EngineError, ImageOutput, Output, Push};
use forge_image::{ErrorKind, Platform, Reference};

/// Refuses outputs that can be seen to fail.
pub(crate) fn check(request: &BuildRequest) -> Result<(), EngineError> {
    request.tags.iter().try_for_each(check_name)?;
    request.outputs.iter().try_for_each(|output| check_output(request, output))
}

fn check_name(name: &Reference) -> Result<(), EngineError> {
    match name.digest() {
        Some(_) => Err(refused(format!(
            "invalid tag {:?}: a digest cannot be given, it follows from the image",
            name.familiar()
        ))
        .with_hint("leave out what follows the @")),
        None => Ok(()),
    }
}

fn check_output(request: &BuildRequest, output: &Output) -> Result<(), EngineError> {
    let (Output::Image(image) | Output::Oci(image, _) | Output::Docker(image, _) | Output::Handed(image, _)) = output
    else {
        return Ok(());
    };
    image.names.iter().try_for_each(check_name)?;
    check_annotations(request, image)?;
    match output {
        Output::Image(image) if image.push.is_wanted() => check_push(request, image),
        Output::Docker(_, Destination::Directory(_)) => {
            Err(refused("docker's archive format is one stream: tar=false is not possible".to_owned())
                .with_hint("use type=oci for a folder"))
        }
        Output::Handed(_, recipient) if request.platforms.len() > 1 && recipient.name() != "containerd" => {
            Err(refused(format!("{} takes images of one platform only", recipient.name()))
                .with_hint("name one with --platform"))
        }
        Output::Docker(..) if request.platforms.len() > 1 => {
            Err(refused("docker's archive format holds images of one platform only".to_owned())
                .with_hint("use type=oci, which holds an index"))
        }
        _ => Ok(()),
    }
}

/// An annotation for a platform that is not built would be lost.
fn check_annotations(request: &BuildRequest, image: &ImageOutput) -> Result<(), EngineError> {
    let host = [Platform::host()];
    let built = if request.platforms.is_empty() { &host[..] } else { &request.platforms };
    let lost = image.annotations.iter().find_map(|it| it.platform.as_ref().filter(|wanted| !built.contains(wanted)));
    match lost {
        Some(platform) => Err(refused(format!("an annotation is for {platform}, which is not built"))
            .with_hint("name the platform with --platform")),
        None => Ok(()),
    }
}

fn check_push(request: &BuildRequest, image: &ImageOutput) -> Result<(), EngineError> {
    if request.tags.is_empty() && image.names.is_empty() {
        return Err(refused("a tag is needed to push to a registry".to_owned()).with_hint("name the image with -t"));
    }
    // A name without a tag has the default one.
    let tagged = request.tags.iter().find(|name| name.tag() != Some("latest"));
    match (&image.push, tagged) {
        (Push::Digest(_), Some(name)) => {
            Err(refused(format!("can't push tagged ref {name} by digest")).with_hint("leave out the tag"))
        }
        _ => Ok(()),
    }
}

fn refused(message: String) -> EngineError {
    EngineError::new(ErrorKind::UserInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BuildContext, DockerfileSource, Network};
    use std::collections::BTreeMap;
    use std::time::UNIX_EPOCH;

    fn told(tags: &[&str], platforms: &[&str], output: Output) -> String {
        let request = BuildRequest {
            context: BuildContext::Empty,
            dockerfile: DockerfileSource::Default,
            tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
            build_args: BTreeMap::new(),
            target: None,
            no_cache: false,
            no_cache_stages: Vec::new(),
            renew_cache_mounts: false,
            pull: false,
            platforms: platforms.iter().map(|platform| platform.parse().unwrap()).collect(),
            named_contexts: BTreeMap::new(),
            outputs: vec![output],
            source_policies: Vec::new(),
            caches: crate::SharedCaches::default(),
            attest: crate::Attest::default(),
            labels: Vec::new(),
            network: Network::Default,
            allowed: crate::Allowed::default(),
            secrets: BTreeMap::new(),
            ssh: BTreeMap::new(),
            source_date_epoch: None,
            proxy_env: Vec::new(),
            extra_hosts: Vec::new(),
            limits: crate::Limits::default(),
            total_limits: crate::Resources::default(),
            on_failure: crate::OnFailure::CancelOthers,
            max_parallelism: None,
            context_modes: crate::ContextModes::Disk,
            explain: crate::Explain::FirstCauses,
            compared_as: None,
            now: UNIX_EPOCH,
        };
        match check(&request) {
            Ok(()) => "fine".to_owned(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::UserInput);
                assert!(error.hint().is_some());
                error.to_string()
            }
        }
    }

    #[test]
    fn a_push_needs_a_name() {
        let pushed = |names: &[&str]| {
            let names = names.iter().map(|name| name.parse().unwrap()).collect();
            Output::Image(ImageOutput {
                push: Push::Names(crate::Transport::Configured),
                names,
                ..ImageOutput::default()
            })
        };
        assert_eq!(told(&[], &[], pushed(&[])), "a tag is needed to push to a registry");
        assert_eq!(told(&["app"], &[], pushed(&[])), "fine");
        assert_eq!(told(&[], &[], pushed(&["app"])), "fine");
        assert_eq!(told(&[], &[], Output::Image(ImageOutput::default())), "fine");
    }

    #[test]
    fn a_push_by_digest_moves_no_tag() {
        let push = Push::Digest(crate::Transport::Configured);
        let pushed = || Output::Image(ImageOutput { push: push.clone(), ..ImageOutput::default() });
        assert_eq!(told(&["r.test/a:1"], &[], pushed()), "can't push tagged ref r.test/a:1 by digest");
        assert_eq!(told(&["r.test/a"], &[], pushed()), "fine");
    }

    #[test]
    fn annotations_for_platforms_that_are_not_built_are_refused() {
        let annotation = crate::Annotation {
            scope: crate::AnnotationScope::Manifest,
            platform: Some("linux/s390x".parse().unwrap()),
            key: "a".into(),
            value: "b".into(),
        };
        let image = || Output::Image(ImageOutput { annotations: vec![annotation.clone()], ..ImageOutput::default() });
        assert_eq!(told(&[], &[], image()), "an annotation is for linux/s390x, which is not built");
        assert_eq!(told(&[], &["linux/s390x", "linux/amd64"], image()), "fine");
    }

    #[test]
    fn a_digest_is_no_tag() {
        let name = format!("app@sha256:{}", "a".repeat(64));
        let told = told(&[&name], &[], Output::CacheOnly);
        assert!(told.starts_with("invalid tag \"app@sha256:aaaa"), "{told}");
    }

    #[test]
    fn dockers_archive_is_one_stream_of_one_platform() {
        let docker = |to| Output::Docker(ImageOutput::default(), to);
        assert!(told(&[], &[], docker(Destination::Directory("x".into()))).contains("one stream"));
        assert!(told(&[], &["linux/amd64", "linux/arm64"], docker(Destination::Stdout)).contains("one platform"));
        assert_eq!(told(&[], &["linux/amd64"], docker(Destination::Stdout)), "fine");
    }
}
