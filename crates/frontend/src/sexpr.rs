//! The syntax tree as text, in the notation of BuildKit's parser tests.

use crate::quote::go_quoted;
use crate::{Arguments, Dockerfile, Instruction, Token};

impl Dockerfile {
    /// One line per instruction: `(keyword ["--flag"] "word" …)`.
    pub fn to_sexpr(&self) -> String {
        let lines: Vec<String> = self.instructions.iter().map(Instruction::to_sexpr).collect();
        lines.join("\n")
    }
}

impl Instruction {
    /// The instruction as `(keyword ["--flag"] "word" …)`.
    pub fn to_sexpr(&self) -> String {
        let mut text = format!("({}", self.keyword.text.to_lowercase());
        if !self.flags.is_empty() {
            let flags: Vec<String> = self.flags.iter().map(|flag| go_quoted(&flag.text)).collect();
            text += &format!(" [{}]", flags.join(" "));
        }
        push_arguments(&mut text, &self.arguments);
        text + ")"
    }
}

fn push_arguments(text: &mut String, arguments: &Arguments) {
    match arguments {
        Arguments::None => {}
        Arguments::Text(token) => push_word(text, token),
        Arguments::Words(tokens) | Arguments::Json(tokens) => tokens.iter().for_each(|token| push_word(text, token)),
        Arguments::Pairs(pairs) => {
            for pair in pairs {
                push_word(text, &pair.key);
                push_word(text, &pair.value);
                *text += if pair.legacy { " \"\"" } else { " \"=\"" };
            }
        }
        Arguments::Check { kind, command } => {
            push_word(text, kind);
            push_arguments(text, command);
        }
        Arguments::Trigger(trigger) => *text += &format!(" {}", trigger.to_sexpr()),
    }
}

fn push_word(text: &mut String, token: &Token) {
    *text += &format!(" {}", go_quoted(&token.text));
}
