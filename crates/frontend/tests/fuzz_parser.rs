//! P01: any text is parsed to a tree or an error, in time; what is printed from the tree parses to the same tree.

#[path = "../../testkit/src/fuzz.rs"]
#[allow(dead_code, reason = "targets use parts of it")]
mod fuzz;

use forge_frontend::{
    Arguments, Checked, Dockerfile, FrontendError, Heredoc, Instruction, LowerOptions, Lowered, Outlined,
    ResolvedImages, Token, check, lower, outline, parse, targets,
};
use fuzz::Random;
use std::time::{Duration, Instant};

const PIECES: [&str; 62] = [
    "FROM scratch\n",
    "FROM x AS y\n",
    "from ",
    "ARG ",
    "ENV ",
    "RUN ",
    "COPY ",
    "ADD ",
    "CMD ",
    "ONBUILD ",
    "USER ",
    "SHELL ",
    "LABEL ",
    "EXPOSE ",
    "VOLUME ",
    "WORKDIR ",
    "HEALTHCHECK ",
    "CMD\n",
    "NONE\n",
    "MAINTAINER ",
    "ENTRYPOINT ",
    "STOPSIGNAL ",
    "banana ",
    "\n",
    "\n",
    "\r\n",
    "\r",
    " ",
    "\t",
    "\\\n",
    "`\n",
    "\\",
    "# escape=`\n",
    "# escape=\\\n",
    "# check=skip=all\n",
    "# syntax=docker/dockerfile:1\n",
    "#",
    "# a\n",
    "--from=0 ",
    "--mount=type=cache,target=/x ",
    "--",
    "<<A ",
    "<<-\"B\" ",
    "3<<'C'",
    "A\n",
    "\tB\n",
    "C\n",
    "\"",
    "'",
    "[\"a\", \"b\"]",
    "[",
    "]",
    "$V",
    "${V:-",
    "}",
    "=",
    "a=b ",
    "\0",
    "é",
    "\u{feff}",
    "\u{2028}",
    "80/tcp",
];

fn heredocs(instruction: &Instruction) -> &[Heredoc] {
    match &instruction.arguments {
        Arguments::Trigger(trigger) => &trigger.heredocs,
        _ => &instruction.heredocs,
    }
}

/// A file that says the same. The first line keeps what follows from being taken for directives.
fn printed(dockerfile: &Dockerfile) -> String {
    let mut text = format!("# escape={}\n# printed\n", dockerfile.escape());
    for instruction in dockerfile.instructions() {
        // A continuation of nothing at the end of the file is an instruction without a name.
        match instruction.text.as_str() {
            "" => text.push(dockerfile.escape()),
            // A blank that no continuation has behind it keeps the escape character what it is.
            written if written.ends_with(dockerfile.escape()) => text += &format!("{written}\u{a0}\n"),
            written => text += &format!("{written}\n"),
        }
        for heredoc in heredocs(instruction) {
            text += &format!("{}{}\n", heredoc.body.text, heredoc.name);
        }
    }
    text
}

/// Everything that is compared.
fn tree(dockerfile: &Dockerfile) -> Vec<String> {
    let one = |instruction: &Instruction| {
        let heredocs = heredocs(instruction).iter().map(|heredoc| {
            let Heredoc { name, descriptor, expand, strip_tabs, .. } = heredoc;
            format!(" {descriptor} {name:?} {expand} {strip_tabs} {:?}", heredoc.content())
        });
        format!("{}{}", instruction.to_sexpr(), heredocs.collect::<String>())
    };
    dockerfile.instructions().iter().map(one).collect()
}

fn tokens(arguments: &Arguments) -> Vec<&Token> {
    match arguments {
        Arguments::None => Vec::new(),
        Arguments::Text(token) => vec![token],
        Arguments::Words(tokens) | Arguments::Json(tokens) => tokens.iter().collect(),
        Arguments::Pairs(pairs) => pairs.iter().flat_map(|pair| [&pair.key, &pair.value]).collect(),
        Arguments::Check { kind, command } => std::iter::once(kind).chain(tokens(command)).collect(),
        Arguments::Trigger(trigger) => {
            let own = std::iter::once(&trigger.keyword).chain(&trigger.flags);
            own.chain(tokens(&trigger.arguments)).collect()
        }
    }
}

fn check_places(dockerfile: &Dockerfile) {
    for instruction in dockerfile.instructions() {
        let mut end = instruction.span.start;
        let own = std::iter::once(&instruction.keyword).chain(&instruction.flags);
        for token in own.chain(tokens(&instruction.arguments)) {
            let span = token.span;
            assert!(end <= span.start && span.start <= span.end && span.end <= instruction.span.end, "{token:?}");
            end = span.end;
        }
        assert!(instruction.span.end as usize <= dockerfile.source().len());
    }
}

/// Lowers what needs no image, checks, outlines and lists.
fn use_tree(dockerfile: &Dockerfile, source: &str) {
    let options = LowerOptions::new("linux/amd64".parse().unwrap());
    let images = ResolvedImages::new();
    let render = |error: FrontendError| assert!(error.render(source).starts_with(&error.to_string()));
    match lower(dockerfile, &options, &images) {
        Ok(Lowered::Done(image)) => assert!(image.config.history.len() <= dockerfile.instructions().len() * 2),
        Ok(_) => {}
        Err(error) => render(error),
    }
    match check(dockerfile, &options, &images) {
        Checked::Done(results) => results.error.into_iter().for_each(render),
        Checked::Need { requests, .. } => assert!(!requests.is_empty()),
    }
    match outline(dockerfile, &options, &images) {
        Ok(Outlined::Need(requests)) => assert!(!requests.is_empty()),
        Ok(Outlined::Done(_)) => {}
        Err(error) => render(error),
    }
    _ = targets(dockerfile).map_err(render);
}

fn survive(input: &[u8]) {
    let source = String::from_utf8_lossy(input);
    let started = Instant::now();
    match parse("Dockerfile", input) {
        Ok(dockerfile) => {
            check_places(&dockerfile);
            let text = printed(&dockerfile);
            let again = parse("Dockerfile", text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!(tree(&dockerfile), tree(&again), "{text}");
            use_tree(&dockerfile, &source);
        }
        Err(error) => assert!(error.render(&source).starts_with(&error.to_string())),
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{} bytes took {:?}", input.len(), started.elapsed());
}

/// Files that people or other tests wrote, small enough to be tried often.
fn corpus() -> Vec<Vec<u8>> {
    let folders = ["testdata/fuzz/p01", "testdata/parser", "testdata/frontend"];
    let files = folders.into_iter().flat_map(fuzz::corpus);
    let files = files.filter(|(path, _)| !path.ends_with("expected") && !path.ends_with("options"));
    files.map(|(_, bytes)| bytes).filter(|bytes| bytes.len() < 10_000).collect()
}

fn input(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    match random.below(3) {
        0 => random.text(&PIECES, 40).into_bytes(),
        _ => {
            let start = &corpus[random.below(corpus.len())];
            random.mutated(start, &PIECES)
        }
    }
}

// Fails when only ASCII blanks may stand before a comment.
#[test]
fn fuzz_p01_any_text_is_parsed_or_refused_and_trees_print_to_themselves() {
    let corpus = corpus();
    assert!(corpus.len() > 100);
    corpus.iter().for_each(|input| survive(input));
    fuzz::run("P01", |random| survive(&input(random, &corpus)));
}
