//! What a Dockerfile can be asked without building it: its targets, and what can be handed to a build.

use forge_frontend::{
    ImageKeySource, LowerOptions, Outline, Outlined, ResolvedImage, ResolvedImages, outline, parse, targets,
};
use forge_image::{Digest, ImageConfig};
use std::fmt::Write as _;

fn outlined(text: &str, options: &LowerOptions) -> Outline {
    let dockerfile = parse("Dockerfile", text.as_bytes()).unwrap();
    let mut images = ResolvedImages::new();
    loop {
        match outline(&dockerfile, options, &images).unwrap() {
            Outlined::Done(outline) => return outline,
            Outlined::Need(requests) => {
                for request in requests {
                    let ImageKeySource::Image(reference) = &request.key.source else { panic!("{request:?}") };
                    let digest = Digest::sha256(reference.to_string().as_bytes());
                    let mut config = ImageConfig::new(&request.key.platform);
                    config.config.env = vec!["FROM_IMAGE=image".to_owned()];
                    images.insert(request.key, ResolvedImage { digest, config, replaced: None });
                }
            }
        }
    }
}

fn printed(outline: &Outline) -> String {
    let mut text = format!("{:?} {:?}\n", outline.name, outline.description);
    for arg in &outline.args {
        _ = writeln!(text, "arg {}={:?} {:?} line {}", arg.name, arg.value, arg.description, arg.span.first_line);
    }
    for (kind, list) in [("secret", &outline.secrets), ("ssh", &outline.ssh)] {
        for one in list {
            _ = writeln!(text, "{kind} {} required {} line {}", one.name, one.required, one.span.first_line);
        }
    }
    for cache in &outline.cache {
        _ = writeln!(text, "cache {} line {}", cache.id, cache.span.first_line);
    }
    text
}

fn options() -> LowerOptions {
    LowerOptions::new("linux/amd64".parse().unwrap())
}

#[track_caller]
fn check(text: &str, options: &LowerOptions, expect: &str) {
    assert_eq!(printed(&outlined(text, options)), expect);
}

const FILE: &str = "\
# TAG is the release
ARG TAG=12
ARG FULL=${TAG}-slim
ARG UNUSED=1
FROM debian:$FULL AS base
# EXTRA adds packages
ARG EXTRA
ARG GREETING=hello-$FROM_IMAGE
FROM base AS other
ARG ELSEWHERE=1
# app serves
FROM base AS app
ARG TAG
ARG TARGETARCH
ARG EXTRA=vim
";

#[test]
fn arguments_have_values_descriptions_and_places() {
    let mut options = options();
    check(
        FILE,
        &options,
        "\"app\" \"serves\"\n\
         arg TAG=Some(\"12\") \"is the release\" line 2\n\
         arg FULL=Some(\"12-slim\") \"\" line 3\n\
         arg GREETING=Some(\"hello-image\") \"\" line 8\n\
         arg EXTRA=Some(\"vim\") \"\" line 15\n",
    );
    options.target = Some("other".to_owned());
    options.build_args.insert("TAG".to_owned(), "13".to_owned());
    options.build_args.insert("EXTRA".to_owned(), "nano".to_owned());
    check(
        FILE,
        &options,
        "\"other\" \"\"\n\
         arg TAG=Some(\"13\") \"is the release\" line 2\n\
         arg FULL=Some(\"13-slim\") \"\" line 3\n\
         arg EXTRA=Some(\"nano\") \"adds packages\" line 7\n\
         arg GREETING=Some(\"hello-image\") \"\" line 8\n\
         arg ELSEWHERE=Some(\"1\") \"\" line 10\n",
    );
}

#[test]
fn only_what_the_target_needs_counts() {
    let mut options = options();
    options.target = Some("one".to_owned());
    check(
        "FROM scratch AS one\nARG A\nFROM scratch AS two\nARG B\n",
        &options,
        "\"one\" \"\"\narg A=None \"\" line 2\n",
    );
    check("FROM scratch\n", &self::options(), "\"\" \"\"\n");
}

#[test]
fn targets_are_listed_as_written() {
    let text = "ARG V=1\n# Base is what others start from\n# base of all\nFROM debian:$V AS Base\n\n# ignored\nFROM --platform=$BUILDPLATFORM base\n";
    let dockerfile = parse("Dockerfile", text.as_bytes()).unwrap();
    let listed = targets(&dockerfile).unwrap();
    let [base, last] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((base.name.as_str(), base.default, base.description.as_str()), ("base", false, "of all"));
    assert_eq!((base.base.as_str(), base.platform.as_str(), base.span.first_line), ("debian:$V", "", 4));
    assert_eq!((last.name.as_str(), last.default, last.description.as_str()), ("", true, ""));
    assert_eq!((last.base.as_str(), last.platform.as_str()), ("base", "$BUILDPLATFORM"));
}

#[test]
fn wrong_files_have_no_targets_and_no_outline() {
    for text in ["ARG A\n", "FROM scratch\nRUM x\n"] {
        let dockerfile = parse("sub/Dockerfile", text.as_bytes()).unwrap();
        assert_eq!(targets(&dockerfile).unwrap_err().file, "sub/Dockerfile");
        assert_eq!(outline(&dockerfile, &options(), &ResolvedImages::new()).unwrap_err().file, "sub/Dockerfile");
    }
}
