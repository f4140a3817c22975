//! Every word of an instruction knows where it stands, over continuations, comments and heredocs.

use forge_frontend::{Arguments, Token, parse};

#[track_caller]
fn check(token: &Token, source: &str, text: &str, lines: (u32, u32)) {
    assert_eq!(token.span.slice(source.as_bytes()), text.as_bytes());
    assert_eq!((token.span.first_line, token.span.last_line), lines, "{}", token.text);
}

#[test]
fn words_flags_and_strings() {
    let source = "# escape=\\\n\n  copy --from=\"a b\" \\\n  # note\n  one \\\n\n    two.\\\nthree [x]\n";
    let dockerfile = parse("d", source.as_bytes()).unwrap();
    let [copy] = dockerfile.instructions() else { panic!() };
    check(&copy.keyword, source, "copy", (3, 3));
    check(&copy.flags[0], source, "--from=\"a b\"", (3, 3));
    assert_eq!(copy.flags[0].text, "--from=a b");
    let Arguments::Words(words) = &copy.arguments else { panic!() };
    check(&words[0], source, "one", (5, 5));
    check(&words[1], source, "two.\\\nthree", (7, 8));
    assert_eq!(words[1].text, "two.three");
    check(&words[2], source, "[x]", (8, 8));
    assert_eq!((copy.span.first_line, copy.span.last_line), (3, 8));
    assert_eq!(copy.text, "copy --from=\"a b\"   one     two.three [x]");
}

#[test]
fn json_strings_and_pairs() {
    let source = "CMD [ \"a\\\"b\",\\\n \"é\" ]\r\nENV A=1 \\\n  B=\"x y\"\nLABEL k  v w\n";
    let dockerfile = parse("d", source.as_bytes()).unwrap();
    let [cmd, env, label] = dockerfile.instructions() else { panic!() };
    let Arguments::Json(words) = &cmd.arguments else { panic!() };
    check(&words[0], source, "\"a\\\"b\"", (1, 1));
    assert_eq!(words[0].text, "a\"b");
    check(&words[1], source, "\"é\"", (2, 2));
    let Arguments::Pairs(pairs) = &env.arguments else { panic!() };
    check(&pairs[0].key, source, "A", (3, 3));
    check(&pairs[1].value, source, "\"x y\"", (4, 4));
    let Arguments::Pairs(pairs) = &label.arguments else { panic!() };
    assert!(pairs[0].legacy);
    check(&pairs[0].value, source, "v w", (5, 5));
}

#[test]
fn heredocs_directives_and_comments() {
    let source = "#syntax = docker/dockerfile:1.7\n# about x\n#  more\nCOPY <<-A 2<<'B' /x\n\ta\n\tA\nb\nB\nRUN y\n";
    let dockerfile = parse("d", source.as_bytes()).unwrap();
    check(dockerfile.directive("syntax").unwrap(), source, "docker/dockerfile:1.7", (1, 1));
    let [copy, run] = dockerfile.instructions() else { panic!() };
    let [first, second] = copy.heredocs.as_slice() else { panic!() };
    check(&first.opening, source, "<<-A", (4, 4));
    check(&first.body, source, "\ta", (5, 5));
    assert_eq!((first.content().as_str(), first.expand, first.strip_tabs), ("a\n", true, true));
    check(&second.opening, source, "2<<'B'", (4, 4));
    assert_eq!((second.descriptor, second.expand, second.body.text.as_str()), (2, false, "b\n"));
    assert_eq!((copy.span.first_line, copy.span.last_line), (4, 8));
    let comments: Vec<&str> = copy.comments.iter().map(|comment| comment.text.as_str()).collect();
    assert_eq!(comments, ["about x", "more"]);
    assert_eq!(run.span.first_line, 9);
}

#[test]
fn vertices_carry_the_lines_of_their_instruction() {
    use forge_frontend::{LowerOptions, Lowered, ResolvedImages, lower};
    let source = "FROM scratch\nCOPY a \\\n  b /\nWORKDIR /x\n";
    let dockerfile = parse("sub/Dockerfile", source.as_bytes()).unwrap();
    let options = LowerOptions::new("linux/amd64".parse().unwrap());
    let Lowered::Done(image) = lower(&dockerfile, &options, &ResolvedImages::new()).unwrap() else { panic!() };
    let spans = image.graph.vertices().iter().map(|vertex| vertex.metadata.span.clone().unwrap());
    let spans: Vec<_> = spans.map(|span| (span.file, span.first_line, span.last_line, span.text)).collect();
    let copy = ("sub/Dockerfile".to_owned(), 2, 3, "COPY a \\\n  b /".to_owned());
    assert_eq!(spans, [copy.clone(), copy, ("sub/Dockerfile".to_owned(), 4, 4, "WORKDIR /x".to_owned())]);
}
