//! What is begun before the command line is understood, since reading it takes as long as a good part of that.

use forge_engine::ExpectedContainer;
use std::ffi::OsString;
use std::io::IsTerminal;

/// Begins with what makes a container, if the command line seems to ask for one. Not at a terminal: the command may be left to
/// another process there ([`crate::front`]), which one that has threads could not wait for.
pub fn container(words: impl IntoIterator<Item = OsString>) -> Option<ExpectedContainer> {
    let wanted = asks_to_run(words) && !std::io::stdin().is_terminal() && forge_engine::stands_as_root();
    wanted.then(ExpectedContainer::begin).flatten()
}

/// Whether `run` is the first word that is neither a flag nor may be the value of one.
fn asks_to_run(words: impl IntoIterator<Item = OsString>) -> bool {
    let mut after_flag = false;
    for word in words.into_iter().skip(1) {
        match word.as_encoded_bytes() {
            b"run" => return true,
            [b'-', ..] => after_flag = true,
            _ if after_flag => after_flag = false,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_command_that_may_run_something_has_it_begun() {
        let asks = |line: &str| asks_to_run(line.split(' ').map(Into::into));
        assert!(asks("forge run busybox") && asks("forge --root /r run busybox") && asks("forge --root=/r run x"));
        assert!(!asks("forge build run") && !asks("forge --offline images") && !asks("forge") && !asks("forge --help"));
    }
}
