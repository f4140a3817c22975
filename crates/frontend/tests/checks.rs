//! The build checks: each rule with what it finds and with what it leaves alone, and the options that steer them.

use forge_frontend::{
    CheckResults, Checked, ImageKeySource, LowerOptions, NamedContext, ResolvedImage, ResolvedImages, Rule, check,
    parse,
};
use forge_image::{DiffId, Digest, ImageConfig};

fn options() -> LowerOptions {
    LowerOptions::new("linux/amd64".parse().unwrap())
}

/// Runs the checks to the fixpoint. Images of the name `amd64only` have that platform, all others the wanted one.
fn results(text: &str, options: &LowerOptions) -> CheckResults {
    let dockerfile = parse("Dockerfile", text.as_bytes()).unwrap();
    let mut images = ResolvedImages::new();
    loop {
        match check(&dockerfile, options, &images) {
            Checked::Done(results) => return results,
            Checked::Need { requests, .. } => {
                for request in requests {
                    let ImageKeySource::Image(reference) = &request.key.source else { panic!("{request:?}") };
                    let amd64 = reference.repository().ends_with("amd64only");
                    let platform = if amd64 { "linux/amd64".parse().unwrap() } else { request.key.platform.clone() };
                    let mut config = ImageConfig::new(&platform);
                    let digest = Digest::sha256(reference.to_string().as_bytes());
                    config.rootfs.diff_ids = vec![DiffId::new(digest.clone())];
                    images.insert(request.key, ResolvedImage { digest, config, replaced: None });
                }
            }
        }
    }
}

fn found_with(text: &str, options: &LowerOptions) -> Vec<String> {
    let results = results(text, options);
    assert_eq!(results.error, None, "{text}");
    results.warnings.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn finds(text: &str, expect: &[&str]) {
    assert_eq!(found_with(text, &options()), expect, "{text}");
}

#[track_caller]
fn passes(text: &str) {
    finds(text, &[]);
}

#[test]
fn stage_name_casing() {
    finds("FROM scratch AS Tools\n", &["StageNameCasing: Stage name 'Tools' should be lowercase (line 1)"]);
    passes("FROM scratch AS tools\n");
}

#[test]
fn from_as_casing() {
    finds("FROM scratch as tools\n", &["FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)"]);
    finds("from scratch AS tools\n", &["FromAsCasing: 'AS' and 'from' keywords' casing do not match (line 1)"]);
    passes("from scratch as tools\n");
    passes("FROM scratch AS tools\n");
}

#[test]
fn no_empty_continuation() {
    finds(
        "FROM scratch\nCOPY a \\\n\n# why\n  b/\nCOPY a \\\n# remark\n  b/\n",
        &["NoEmptyContinuation: Empty continuation line (line 5)"],
    );
    passes("FROM scratch\nCOPY a \\\n  b/\n\nCOPY a b/\n");
}

#[test]
fn consistent_instruction_casing() {
    finds(
        "FROM scratch\nCOPY a b/\ncopy a c/\n",
        &[
            "ConsistentInstructionCasing: Command 'copy' should match the case of the command majority (uppercase) (line 3)",
        ],
    );
    finds(
        "from scratch\ncopy a b/\nEnv A=b\n",
        &[
            "ConsistentInstructionCasing: Command 'Env' should match the case of the command majority (lowercase) (line 3)",
        ],
    );
    passes("from scratch\ncopy a b/\n");
}

#[test]
fn duplicate_stage_name() {
    finds(
        "FROM scratch AS a\nFROM scratch AS a\nCOPY --from=a / /\n",
        &["DuplicateStageName: Duplicate stage name \"a\", stage names should be unique (line 2)"],
    );
    passes("FROM scratch AS a\nFROM scratch AS b\n");
}

#[test]
fn reserved_stage_name() {
    for name in ["scratch", "context"] {
        let expect =
            format!("ReservedStageName: Stage name should not use the same name as reserved stage \"{name}\" (line 1)");
        finds(&format!("FROM busybox AS {name}\n"), &[&expect]);
    }
    passes("FROM busybox AS contexts\n");
}

#[test]
fn json_args_recommended() {
    let advice = "to prevent unintended behavior related to OS signals";
    let (cmd, entrypoint) = (
        format!("JSONArgsRecommended: JSON arguments recommended for CMD {advice} (line 2)"),
        format!("JSONArgsRecommended: JSON arguments recommended for ENTRYPOINT {advice} (line 3)"),
    );
    finds("FROM scratch\nCMD serve\nENTRYPOINT serve --port 80\n", &[&cmd, &entrypoint]);
    passes("FROM scratch\nCMD [\"serve\"]\nENTRYPOINT [\"serve\"]\n");
    passes("FROM scratch\nSHELL [\"/bin/bash\", \"-c\"]\nCMD serve\nENTRYPOINT serve\n");
}

#[test]
fn maintainer_deprecated() {
    let expect = "MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label (line 2)";
    finds("FROM scratch\nMAINTAINER me\n", &[expect]);
    finds("FROM scratch AS unused\nMAINTAINER me\nFROM scratch\n", &[expect]);
    passes("FROM scratch\nLABEL org.opencontainers.image.authors=me\n");
}

#[test]
fn undefined_arg_in_from() {
    finds(
        "ARG VERSION=1\nFROM busybox:1$VERSON\n",
        &["UndefinedArgInFrom: FROM argument 'VERSON' is not declared (did you mean VERSION?) (line 2)"],
    );
    finds(
        "FROM --platform=${BULIDPLATFORM:-linux/amd64} busybox AS amd64\nFROM busybox${FAR_OFF_NAME}\n",
        &["UndefinedArgInFrom: FROM argument 'FAR_OFF_NAME' is not declared (line 2)"],
    );
    passes("ARG VERSION=1\nFROM busybox:$VERSION\n");
    passes("FROM --platform=$BUILDPLATFORM busybox\n");
    passes("ARG VERSION\nFROM busybox:1$VERSION\n");
}

#[test]
fn workdir_relative_path() {
    finds(
        "FROM scratch\nWORKDIR src\nWORKDIR deeper\n",
        &[
            "WorkdirRelativePath: Relative workdir \"src\" can have unexpected results if the base image changes (line 2)",
        ],
    );
    passes("FROM scratch\nWORKDIR /src\nWORKDIR deeper\n");
}

#[test]
fn undefined_var() {
    finds(
        "FROM scratch\nARG SRC=a\nCOPY $SRCC /x\n",
        &["UndefinedVar: Usage of undefined variable '$SRCC' (did you mean $SRC?) (line 3)"],
    );
    finds(
        "FROM scratch\nENV A=$NOWHERE_ELSE\nENV PATH=$PAHT:/x\n",
        &[
            "UndefinedVar: Usage of undefined variable '$NOWHERE_ELSE' (line 2)",
            "UndefinedVar: Usage of undefined variable '$PAHT' (did you mean $PATH?) (line 3)",
        ],
    );
    passes("FROM scratch\nARG SRC\nENV B=1\nCOPY $SRC$B ${MISSING:-x} /x\nRUN echo $undefined\n");
}

#[test]
fn multiple_instructions_disallowed() {
    let line = |name: &str, line: u32| {
        format!(
            "MultipleInstructionsDisallowed: Multiple {name} instructions should not be used in the same stage \
             because only the last one will be used (line {line})"
        )
    };
    finds(
        "FROM scratch\nCMD [\"a\"]\nCMD [\"b\"]\nENTRYPOINT [\"a\"]\nENTRYPOINT [\"b\"]\nHEALTHCHECK NONE\nHEALTHCHECK CMD x\n",
        &[&line("CMD", 2), &line("ENTRYPOINT", 4), &line("HEALTHCHECK", 6)],
    );
    passes("FROM scratch AS a\nCMD [\"a\"]\nFROM a\nCMD [\"b\"]\n");
}

#[test]
fn legacy_key_value_format() {
    finds(
        "FROM scratch\nENV A b c\nLABEL d e\n",
        &[
            "LegacyKeyValueFormat: \"ENV key=value\" should be used instead of legacy \"ENV key value\" format (line 2)",
            "LegacyKeyValueFormat: \"LABEL key=value\" should be used instead of legacy \"LABEL key value\" format (line 3)",
        ],
    );
    passes("FROM scratch\nENV A=\"b c\"\nLABEL d=e\n");
}

#[test]
fn invalid_base_image_platform() {
    finds(
        "FROM --platform=$BUILDPLATFORM busybox\nFROM --platform=linux/arm64 amd64only AS arm64\n",
        &[
            "InvalidBaseImagePlatform: Base image amd64only was pulled with platform \"linux/amd64\", expected \"linux/arm64\" for current build (line 2)",
        ],
    );
    passes("FROM amd64only\n");
}

#[test]
fn redundant_target_platform() {
    for word in ["$TARGETPLATFORM", "${TARGETPLATFORM}"] {
        let expect = format!(
            "RedundantTargetPlatform: Setting platform to predefined {word} in FROM is redundant as this is the default behavior (line 1)"
        );
        finds(&format!("FROM --platform={word} busybox\n"), &[&expect]);
    }
    passes("FROM --platform=$BUILDPLATFORM busybox\n");
}

#[test]
fn secrets_used_in_arg_or_env() {
    let secret = |keyword: &str, name: &str, line: u32| {
        format!(
            "SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data ({keyword} \"{name}\") (line {line})"
        )
    };
    finds(
        "FROM scratch\nARG DB_PASSWORD\nENV apikey=1 plain=2 Secret_token=3\n",
        &[&secret("ARG", "DB_PASSWORD", 2), &secret("ENV", "Secret_token", 3), &secret("ENV", "apikey", 3)],
    );
    passes("FROM scratch\nARG PUBLIC_KEY\nENV TOKEN_FILE=/x AUTH_VERSION=1 KEYBOARD=us\n");
}

#[test]
fn invalid_default_arg_in_from() {
    let line = |base: &str| {
        format!(
            "InvalidDefaultArgInFrom: Default value for ARG {base} results in empty or invalid base image name (line 2)"
        )
    };
    let mut options = options();
    options.build_args.insert("TAG".to_owned(), "1".to_owned());
    assert_eq!(found_with("ARG TAG\nFROM busybox:$TAG\n", &options), [line("busybox:$TAG")]);
    assert_eq!(found_with("ARG TAG\nFROM busybox:${TAG:-latest}\n", &options), [""; 0]);
    passes("ARG TAG=1\nFROM busybox:$TAG\n");
}

#[test]
fn from_platform_flag_const_disallowed() {
    finds(
        "FROM --platform=linux/amd64 busybox\n",
        &[
            "FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value \"linux/amd64\" (line 1)",
        ],
    );
    passes("FROM --platform=linux/amd64 busybox AS build-amd64\n");
    passes("FROM --platform=linux/amd64 busybox AS linux\n");
    passes("ARG P=linux/amd64\nFROM --platform=$P busybox\n");
}

#[test]
fn copy_ignored_file() {
    let ignoring = |patterns: &[&str]| {
        let mut options = options();
        let exclude = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        options.main_context = NamedContext::Local { name: "context".to_owned(), exclude };
        options
    };
    let line = |what: &str, line: u32| {
        format!("CopyIgnoredFile: Attempting to {what} that is excluded by .dockerignore (line {line})")
    };
    let text = "FROM scratch\nCOPY README.md src/ /x/\nADD ./docs/a.md /x\nCOPY --from=busybox /b.md /\n";
    assert_eq!(
        found_with(text, &ignoring(&["**/*.md"])),
        [line("Copy file \"README.md\"", 2), line("Add file \"docs/a.md\"", 3)]
    );
    assert_eq!(found_with(text, &ignoring(&["**/*.md", "!README.md"])), [""; 0]);
    assert_eq!(found_with("FROM scratch\nCOPY . /\n", &ignoring(&["*"])), [line("Copy file \".\"", 2)]);
    assert_eq!(found_with("FROM scratch\nCOPY . /\n", &ignoring(&[".*", "a"])), [""; 0]);
}

#[test]
fn invalid_definition_description() {
    let line = |what: &str, line: u32| {
        format!("InvalidDefinitionDescription: Comment for {what} <description>` (line {line})")
    };
    let bad = "# no name\nARG A=1\n# Base is wrong\nFROM scratch AS base\n# remark\nARG B\n# remark\nARG C D\n";
    passes(bad);
    let expect = [
        line("ARG should follow the format: `# A", 3),
        line("FROM should follow the format: `# base", 5),
        line("ARG should follow the format: `# B", 7),
        line("ARG should follow the format: `# <arg_key>", 9),
    ];
    for rules in ["all", "InvalidDefinitionDescription"] {
        finds(&format!("# check=experimental={rules}\n{bad}"), &expect.each_ref().map(String::as_str));
    }
    passes(
        "# check=experimental=all\n# A is an argument\nARG A=1\n# base is a stage\nFROM scratch AS base\n# remark\n#\nARG B\n# D, and C\n# C and D\nARG C D\n# remark\nCOPY a /\n",
    );
}

#[test]
fn expose_proto_casing() {
    finds(
        "FROM scratch\nEXPOSE 80/TCP\n",
        &["ExposeProtoCasing: Defined protocol '80/TCP' in EXPOSE instruction should be lowercase (line 2)"],
    );
    passes("FROM scratch\nEXPOSE 80/tcp 53/udp 1\n");
}

#[test]
fn expose_invalid_format() {
    let line = |port: &str| {
        format!(
            "ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found '{port}' (line 2)"
        )
    };
    finds("FROM scratch\nEXPOSE 127.0.0.1:80:80 5000:5000\n", &[&line("127.0.0.1:80:80"), &line("5000:5000")]);
    passes("FROM scratch\nEXPOSE 80 8000-8010/udp\n");
}

#[test]
fn every_rule_has_a_name_a_description_and_a_page() {
    let names: Vec<String> = Rule::ALL.iter().map(ToString::to_string).collect();
    assert_eq!((names.len(), names[0].as_str(), names[21].as_str()), (22, "StageNameCasing", "ExposeInvalidFormat"));
    assert!(Rule::ALL.iter().all(|rule| !rule.description().is_empty() && !rule.description().contains("  ")));
    let page = |rule: Rule| rule.url().unwrap_or_default();
    assert_eq!(page(Rule::FromAsCasing), "https://docs.docker.com/go/dockerfile/rule/from-as-casing/");
    assert_eq!(page(Rule::JSONArgsRecommended), "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/");
    let without: Vec<&Rule> = Rule::ALL.iter().filter(|rule| rule.url().is_none()).collect();
    assert_eq!(without, [&Rule::InvalidBaseImagePlatform]);
    let experimental: Vec<&Rule> = Rule::ALL.iter().filter(|rule| rule.is_experimental()).collect();
    assert_eq!(experimental, [&Rule::InvalidDefinitionDescription]);
}

#[test]
fn rules_are_skipped_for_the_file() {
    let body = "FROM scratch AS A\nMAINTAINER x\n";
    passes(&format!("# check=skip=all\n{body}"));
    passes(&format!("# check=skip=StageNameCasing,MaintainerDeprecated\n{body}"));
    let maintainer = "MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label (line 3)";
    finds(&format!("# check=skip=StageNameCasing // the name is well known\n{body}"), &[maintainer]);
    finds(&format!("#!/usr/bin/env forge\n# check=skip=all\n\n# check=skip=none\n{body}"), &[]);
    let mut options = options();
    options.build_args.insert("BUILDKIT_DOCKERFILE_CHECK".to_owned(), "skip=MaintainerDeprecated".to_owned());
    let name = "StageNameCasing: Stage name 'A' should be lowercase (line 2)";
    assert_eq!(found_with(&format!("# check=skip=all\n{body}"), &options), [name]);
}

#[test]
fn rules_are_skipped_for_one_instruction() {
    let secret = |line| {
        format!(
            "SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ENV \"TOKEN\") (line {line})"
        )
    };
    finds(
        "FROM scratch\n# check=skip=SecretsUsedInArgOrEnv // it is none\nENV TOKEN=1\nENV TOKEN=2\n# check=skip=all\nENV TOKEN=3\n# check=skip=UndefinedVar\nENV TOKEN=4\n",
        &[&secret(4), &secret(8)],
    );
    let undeclared = "UndefinedArgInFrom: FROM argument 'X' is not declared (line 3)";
    finds(
        "# about the stage\n# check=skip=UndefinedArgInFrom\nFROM busybox$X AS a\nFROM busybox$X\n",
        &[&undeclared.replace("line 3", "line 4")],
    );
}

#[test]
fn findings_can_be_errors() {
    let found = results("# check=error=true\nFROM scratch AS A\nMAINTAINER x\n", &options());
    assert_eq!(found.warnings.len(), 2);
    let error = found.error.unwrap();
    assert_eq!(error.to_string(), "lint violation found for rules: MaintainerDeprecated, StageNameCasing");
    assert_eq!(results("# check=error=true;skip=all\nFROM scratch AS A\n", &options()).error, None);
    for wrong in ["skip", "error=maybe", "rules=all"] {
        let error = results(&format!("# check={wrong}\nFROM scratch\n"), &options()).error.unwrap();
        assert!(error.to_string().contains("check option"), "{error}");
    }
}

#[test]
fn all_stages_are_checked_unless_one_is_wanted() {
    let text = "FROM scratch AS a\nCMD x\nFROM scratch AS b\nCMD y\n";
    let both = found_with(text, &options());
    assert_eq!(both.len(), 2);
    let mut options = options();
    options.target = Some("a".to_owned());
    assert_eq!(found_with(text, &options), both[..1]);
}

#[test]
fn what_is_wrong_comes_beside_what_was_found() {
    let found = results("FROM scratch AS A\nCOPY --form=b /x /y\n", &options());
    let error = found.error.unwrap();
    assert_eq!(
        (error.line(), error.to_string().as_str()),
        (Some(2), "dockerfile parse error on line 2: unknown flag: --form (did you mean from?)")
    );
    let found = results("FROM scratch AS A\nFROM scratch AS b\nEXPOSE x\n", &options());
    assert_eq!(found.warnings.len(), 1);
    assert!(found.error.is_some_and(|error| error.line() == Some(3)));
}
