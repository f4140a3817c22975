//! `--chmod`.

use crate::Problem;
use forge_llb::ModeChange;

/// Reads `--chmod`.
pub(super) fn mode(text: &str) -> Result<Option<ModeChange>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    match u32::from_str_radix(text, 8) {
        Ok(bits) if bits <= 0o7777 && !text.starts_with('+') => Ok(Some(ModeChange::Octal(bits))),
        _ if is_symbolic(text) => Ok(Some(ModeChange::Symbolic(text.to_owned()))),
        _ => Err(Problem::value(format!(
            "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
        ))),
    }
}

/// `u=rwX,go=rX` and the like, as `chmod(1)` takes them.
fn is_symbolic(text: &str) -> bool {
    text.split(',').all(|clause| {
        let actions = clause.trim_start_matches(['u', 'g', 'o', 'a']);
        actions.starts_with(['+', '-', '=']) && {
            let mut parts = actions.split(['+', '-', '=']).skip(1);
            parts.all(|part| {
                matches!(part, "u" | "g" | "o") || part.chars().all(|c| matches!(c, 'r' | 'w' | 'x' | 'X' | 's' | 't'))
            })
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        for good in ["755", "0644", "7777", "0", "u=rwX,go=rX", "+x", "a-w", "g=u", "u+x-w"] {
            assert!(matches!(mode(good), Ok(Some(_))), "{good}");
        }
        for bad in ["8", "10000", "u", "x=r", "u=rwz", "755,", "+755", "u=r,"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }
}
