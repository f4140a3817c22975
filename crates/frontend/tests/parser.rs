//! Text in, syntax tree out. Each folder of `testdata/parser` holds a `Dockerfile`, and what is read from it in
//! `expected`: written anew with `FORGE_BLESS=1`. Names that begin with `error-` are refused, all others accepted.

use forge_frontend::{
    Arguments, Dockerfile, Heredoc, Instruction, LowerOptions, Problem, ResolvedImages, Token, lower, parse,
};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/parser")
}

fn heredocs(instruction: &Instruction) -> &[Heredoc] {
    match &instruction.arguments {
        Arguments::Trigger(trigger) => &trigger.heredocs,
        _ => &instruction.heredocs,
    }
}

/// The tree, with the lines of each instruction, its comments and its heredocs.
fn printed(dockerfile: &Dockerfile) -> String {
    let mut text = String::new();
    for directive in dockerfile.directives() {
        let (key, line) = (&directive.key.text, directive.key.span.first_line);
        _ = writeln!(text, "directive line {line}: {key} = {:?}", directive.value.text);
    }
    for instruction in dockerfile.instructions() {
        let span = instruction.span;
        for comment in &instruction.comments {
            _ = writeln!(text, "# {}", comment.text);
        }
        _ = writeln!(text, "{}-{} {}", span.first_line, span.last_line, instruction.to_sexpr());
        for heredoc in heredocs(instruction) {
            let Heredoc { name, descriptor, expand, strip_tabs, .. } = heredoc;
            let flags = format!("fd {descriptor} expand {expand} strip {strip_tabs}");
            _ = writeln!(text, "  heredoc {name:?} {flags}: {:?}", heredoc.content());
        }
    }
    for warning in dockerfile.warnings() {
        _ = writeln!(text, "warning {warning}");
    }
    text
}

fn tokens(arguments: &Arguments) -> Vec<&Token> {
    match arguments {
        Arguments::None => Vec::new(),
        Arguments::Text(token) => vec![token],
        Arguments::Words(tokens) | Arguments::Json(tokens) => tokens.iter().collect(),
        Arguments::Pairs(pairs) => pairs.iter().flat_map(|pair| [&pair.key, &pair.value]).collect(),
        Arguments::Check { kind, command } => std::iter::once(kind).chain(tokens(command)).collect(),
        Arguments::Trigger(trigger) => all_tokens(trigger),
    }
}

fn all_tokens(instruction: &Instruction) -> Vec<&Token> {
    let mut all = vec![&instruction.keyword];
    all.extend(&instruction.flags);
    all.extend(tokens(&instruction.arguments));
    all
}

/// Every token stands inside of its instruction, each behind the one before, and starts where it says.
fn check_places(case: &Path, dockerfile: &Dockerfile) {
    for instruction in dockerfile.instructions() {
        let mut end = instruction.span.start;
        for token in all_tokens(instruction) {
            let span = token.span;
            assert!(end <= span.start && span.start <= span.end, "{}: {token:?} behind {end}", case.display());
            assert!(span.end <= instruction.span.end, "{}: {token:?}", case.display());
            assert!(span.first_line >= instruction.span.first_line && span.last_line >= span.first_line);
            let source = dockerfile.source();
            let line = source[..span.start as usize].iter().filter(|byte| **byte == b'\n').count() as u32 + 1;
            assert!(token.text.is_empty() || line == span.first_line, "{}: {token:?}", case.display());
            end = span.end;
        }
    }
}

#[test]
fn cases_are_read_as_expected() {
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    let mut wrong = Vec::new();
    for case in &cases {
        let source = std::fs::read(case.join("Dockerfile")).unwrap();
        let must_fail = case.file_name().unwrap().to_str().unwrap().starts_with("error-");
        let found = match parse("Dockerfile", &source) {
            Ok(dockerfile) => {
                check_places(case, &dockerfile);
                assert!(!must_fail, "{} is accepted", case.display());
                printed(&dockerfile)
            }
            Err(error) => {
                assert!(must_fail, "{}: {error}", case.display());
                error.render(&String::from_utf8_lossy(&source))
            }
        };
        let file = case.join("expected");
        if std::env::var_os("FORGE_BLESS").is_some() {
            std::fs::write(&file, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&file).unwrap_or_default();
        if found != expected {
            wrong.push(format!("{}:\n--- expected\n{expected}--- found\n{found}", case.display()));
        }
    }
    assert!(cases.len() > 50 && wrong.is_empty(), "{}", wrong.join("\n"));
}

// Fails when any value of `# syntax=` is taken for forge's own: foreign code would be believed to have run.
#[test]
fn a42_other_front_ends_are_refused_by_name() {
    for own in [
        "docker/dockerfile",
        "docker/dockerfile:1",
        "docker.io/docker/dockerfile:1.7-labs",
        "docker/dockerfile-upstream:master",
        "index.docker.io/docker/dockerfile:1",
        "dockerfile.v0",
    ] {
        assert!(parse("d", format!("# syntax={own}\nFROM x\n").as_bytes()).is_ok(), "{own}");
    }
    for other in [
        "evil",
        "evil/docker/dockerfile",
        "registry.test/docker/dockerfile:1",
        "docker.io/evil/dockerfile",
        "docker/dockerfile2",
        "docker/dockerfile/x",
        "Docker/dockerfile",
        "docker/dockerfile:",
        "https://docker.io/docker/dockerfile",
    ] {
        let forms = [
            format!("# syntax={other}\nFROM x\n"),
            format!("#!/bin/x\n# check=skip=all\n# SYNTAX = {other} --flag\nFROM x\n"),
            format!("// syntax={other}\nFROM x\n"),
            format!("// check=skip=all\n// syntax={other}\nFROM x\n"),
            format!("{{\"syntax\": \"{other}\", \"more\": [{{}}]}}\n"),
            format!("#!/bin/x\n\n {{\n\"more\": 1, \"syntax\": \"{other}\"}}\n"),
        ];
        for form in forms {
            let asked = forge_frontend::other_front_end(form.as_bytes()).expect(&form);
            assert_eq!(asked.split(' ').next(), Some(other), "{form}");
            let error = parse("d", form.as_bytes()).expect_err(&form);
            let refused = matches!(&*error.problem, Problem::NotBuilt { what } if what.contains("front end"));
            assert!(refused && error.to_string().contains(other), "{form}: {error}");
        }
        let mut options = LowerOptions::new("linux/amd64".parse().unwrap());
        options.build_args.insert("BUILDKIT_SYNTAX".to_owned(), other.to_owned());
        let plain = parse("d", b"FROM scratch\n").unwrap();
        let error = lower(&plain, &options, &ResolvedImages::new()).unwrap_err();
        assert!(matches!(&*error.problem, Problem::NotBuilt { .. }), "{error}");
    }
}

// BuildKit refuses physical lines of more than 65,535 bytes; forge takes them up to its own cap.
#[test]
fn lines_may_be_longer_than_buildkits() {
    let line = |length: usize| format!("FROM x\nENV A={}\nUSER u\n", "a".repeat(length - 7));
    for length in [65_535, 65_536, 1 << 20] {
        let dockerfile = parse("d", line(length).as_bytes()).unwrap();
        assert_eq!(dockerfile.instructions().len(), 3, "{length}");
    }
    let error = parse("d", line((1 << 20) + 1).as_bytes()).unwrap_err();
    assert_eq!(
        (error.line(), error.to_string().as_str()),
        (Some(2), "a line of the Dockerfile is larger than the limit of 1 MiB")
    );
}
