//! `--detach-keys`: what is typed to leave a container to itself.

use anyhow::{Context, bail};

/// docker's own.
const DEFAULT: &str = "ctrl-p,ctrl-q";

/// Keys that are looked for in what is typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys {
    keys: Vec<u8>,
    /// How many of them were typed last; they are held back.
    typed: usize,
}

impl DetachKeys {
    /// Reads characters and `ctrl-` with one, divided by commas; docker's own for an empty text.
    ///
    /// # Errors
    /// Something else is among them.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let text = if text.is_empty() { DEFAULT } else { text };
        let keys =
            text.split(',').map(|part| key(part).with_context(|| format!("invalid detach keys ({text}) provided")));
        Ok(Self { keys: keys.collect::<anyhow::Result<_>>()?, typed: 0 })
    }

    /// Takes what was typed; gives what of it is to be handed on, or `None` once the keys are complete.
    pub fn pass(&mut self, typed: &[u8]) -> Option<Vec<u8>> {
        let mut passed = Vec::with_capacity(typed.len());
        for &byte in typed {
            if byte != self.keys[self.typed] {
                passed.extend(self.keys.get(..self.typed)?);
                self.typed = 0;
            }
            match byte == self.keys[self.typed] {
                true => self.typed += 1,
                false => passed.push(byte),
            }
            if self.typed == self.keys.len() {
                return None;
            }
        }
        Some(passed)
    }
}

fn key(part: &str) -> anyhow::Result<u8> {
    let control = |letter: u8| match letter {
        b'a'..=b'z' => Some(letter - b'a' + 1),
        b'A'..=b'Z' => Some(letter - b'A' + 1),
        b'@' => Some(0),
        b'['..=b'_' => Some(letter - b'[' + 27),
        _ => None,
    };
    match (part.as_bytes(), part.strip_prefix("ctrl-").map(str::as_bytes)) {
        ([single], _) => Ok(*single),
        (_, Some([letter])) => control(*letter).with_context(|| format!("unknown character: '{part}'")),
        _ => bail!("unknown character: '{part}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &str, pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut keys, mut all) = (DetachKeys::parse(keys).unwrap(), Vec::new());
        for piece in pieces {
            match keys.pass(piece) {
                Some(passed) => all.extend(passed),
                None => return (all, true),
            }
        }
        (all, false)
    }

    #[test]
    fn keys_are_found_wherever_reads_are_cut() {
        assert_eq!(typed("", &[b"ls\r"]), (b"ls\r".to_vec(), false));
        assert_eq!(typed("", &[b"a", b"\x10", b"\x11", b"b"]), (b"a".to_vec(), true));
        assert_eq!(typed("", &[b"\x10x\x11"]), (b"\x10x\x11".to_vec(), false));
        assert!(typed("", &[b"\x10\x10\x11"]).1);
        assert_eq!(typed("", &[b"\x10"]), (Vec::new(), false), "held back until the next key");
        assert_eq!(typed("a,b,ctrl-[", &[b"ab", b"\x1b"]), (Vec::new(), true));
    }

    #[test]
    fn other_keys_are_refused() {
        for wrong in ["ctrl-", "ctrl-1", "ctrl-pp", "alt-x", "a,,b", "ab"] {
            let error = DetachKeys::parse(wrong).unwrap_err().to_string();
            assert_eq!(error, format!("invalid detach keys ({wrong}) provided"));
        }
        let keys = |text: &str| DetachKeys::parse(text).unwrap().keys;
        assert_eq!(keys("ctrl-@,ctrl-a,ctrl-Z,ctrl-_,x"), [0, 1, 26, 31, b'x']);
    }
}
