//! Comments that describe: `# NAME text` directly above ARG or FROM.

use crate::Token;

/// The description of a name in the comments above its definition; empty where there is none.
pub(crate) fn doc_comment(comments: &[Token], name: &str) -> String {
    let described = |comment: &Token| Some(comment.text.strip_prefix(name)?.strip_prefix(' ')?.to_owned());
    match name {
        "" => String::new(),
        _ => comments.iter().find_map(described).unwrap_or_default(),
    }
}
