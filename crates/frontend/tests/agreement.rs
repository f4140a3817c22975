//! Where the `dockerfile-parser` crate accepts a file, it finds the same instructions in it as ours does. The
//! crate knows neither heredocs nor most flags, and refuses many files; those are passed over.

use dockerfile_parser::{Dockerfile as Other, Instruction as OtherInstruction, ShellOrExecExpr};
use forge_frontend::{Arguments, Instruction, Token, parse};
use std::path::{Path, PathBuf};

fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let shared = std::env::var_os("FORGE_SHARED").map_or(root.join("../shared"), PathBuf::from);
    let folders = [root.join("testdata/frontend"), shared.join("conformance/dockerfile-parser/testfiles")];
    let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path().join("Dockerfile")).collect();
    files.sort();
    files
}

fn texts(tokens: &[Token]) -> Vec<String> {
    tokens.iter().map(|token| token.text.clone()).collect()
}

/// Keyword and words of ours, as far as the other one tells them.
fn ours(instruction: &Instruction) -> (String, Vec<String>) {
    let words = match &instruction.arguments {
        Arguments::Words(words) if words.len() == 3 && words[1].text == "as" => {
            vec![words[0].text.clone(), "AS".to_owned(), words[2].text.clone()]
        }
        Arguments::Words(words) | Arguments::Json(words) => texts(words),
        Arguments::Pairs(pairs) => pairs.iter().map(|pair| pair.key.text.clone()).collect(),
        _ => Vec::new(),
    };
    (instruction.keyword.text.to_uppercase(), words)
}

fn exec(words: &ShellOrExecExpr) -> Vec<String> {
    words.as_exec().map(|array| array.as_str_vec().into_iter().map(str::to_owned).collect()).unwrap_or_default()
}

/// The same of the other one. `None` for the words where the two languages differ by design.
fn theirs(instruction: &OtherInstruction) -> (String, Option<Vec<String>>) {
    let (keyword, words) = match instruction {
        OtherInstruction::From(from) => {
            let alias = from.alias.iter().flat_map(|alias| ["AS".to_owned(), alias.content.clone()]);
            ("FROM", Some(std::iter::once(from.image.content.clone()).chain(alias).collect()))
        }
        OtherInstruction::Run(run) => ("RUN", Some(exec(&run.expr))),
        OtherInstruction::Cmd(cmd) => ("CMD", Some(exec(&cmd.expr))),
        OtherInstruction::Entrypoint(entrypoint) => ("ENTRYPOINT", Some(exec(&entrypoint.expr))),
        OtherInstruction::Env(env) => ("ENV", Some(env.vars.iter().map(|var| var.key.content.clone()).collect())),
        OtherInstruction::Label(label) => {
            ("LABEL", Some(label.labels.iter().map(|label| label.name.content.clone()).collect()))
        }
        OtherInstruction::Copy(copy) => {
            let sources = copy.sources.iter().chain([&copy.destination]).map(|word| word.content.clone()).collect();
            ("COPY", Some(sources))
        }
        OtherInstruction::Arg(_) => ("ARG", None),
        OtherInstruction::Misc(misc) => return (misc.instruction.content.to_uppercase(), None),
    };
    (keyword.to_owned(), words)
}

/// Where the other parser is wrong, by folder and line: it takes `--` for a word, and single quotes for those of JSON.
const KNOWN: [(&str, u32); 5] =
    [("flags", 6), ("flags", 7), ("flags", 8), ("flags", 9), ("jeztah-invalid-json-single-quotes", 1)];

/// It also takes flags without a value for words.
fn is_known(file: &Path, line: u32, words: &[String]) -> bool {
    let folder = file.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
    KNOWN.contains(&(folder, line)) || words.iter().any(|word| word.starts_with("--"))
}

#[test]
fn both_parsers_find_the_same_instructions() {
    let mut agreed = 0;
    for file in files() {
        let text = std::fs::read_to_string(&file).unwrap();
        let (Ok(other), Ok(own)) = (Other::parse(&text), parse("Dockerfile", text.as_bytes())) else { continue };
        assert_eq!(other.instructions.len(), own.instructions().len(), "{}", file.display());
        for (other, own) in other.instructions.iter().zip(own.instructions()) {
            let ((keyword, words), (own_keyword, own_words)) = (theirs(other), ours(own));
            let line = own.span.first_line;
            assert_eq!(keyword, own_keyword, "{} line {line}", file.display());
            if let Some(words) = words.filter(|words| own.heredocs.is_empty() && !is_known(&file, line, words)) {
                assert_eq!(words, own_words, "{} line {line}", file.display());
            }
        }
        agreed += 1;
    }
    assert!(agreed > 20, "only {agreed} files are accepted by both");
}
