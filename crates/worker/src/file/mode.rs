//! Permission bits as `chmod(1)` takes them: `0755`, `u=rwX,go=rX`, `+x`.

/// Why a mode is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid mode {text:?}: expected octal digits up to 7777 or changes like u=rwX,go=rX")]
pub(crate) struct BadMode {
    pub text: String,
}

const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const STICKY: u32 = 0o1000;

/// Applies symbolic changes to permission bits. The umask plays no part: without a class, all three are meant. Where
/// the systems' `chmod` differ it does as BSD's, which BuildKit follows: `=` takes set-ID bits away from folders too,
/// the sticky bit goes by `-t` alone, and `X` asks for the bits that were there before all changes.
pub(crate) fn apply_symbolic(text: &str, mode: u32, is_directory: bool) -> Result<u32, BadMode> {
    let bad = || BadMode { text: text.to_owned() };
    let searchable = is_directory || mode & 0o111 != 0;
    text.split(',').try_fold(mode & 0o7777, |mode, clause| apply_clause(clause, mode, searchable).ok_or_else(bad))
}

fn apply_clause(clause: &str, mut mode: u32, searchable: bool) -> Option<u32> {
    let operators = clause.find(['+', '-', '='])?;
    let (classes, mut rest) = clause.split_at(operators);
    let classes = class_mask(classes)?;
    while let Some(operator) = rest.chars().next() {
        let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |at| at + 1);
        let letters = &rest[1..end];
        let bits = permission_bits(letters, classes, mode, searchable)?;
        mode = match operator {
            '+' => mode | bits,
            '-' => mode & !bits,
            '=' => mode & !cleared_by_assignment(classes, letters) | bits,
            _ => return None,
        };
        rest = &rest[end..];
    }
    Some(mode)
}

/// The `rwx` positions of the named classes.
fn class_mask(classes: &str) -> Option<u32> {
    if classes.is_empty() {
        return Some(0o777);
    }
    classes.chars().try_fold(0, |mask, class| {
        Some(
            mask | match class {
                'u' => 0o700,
                'g' => 0o070,
                'o' => 0o007,
                'a' => 0o777,
                _ => return None,
            },
        )
    })
}

/// `=` clears the classes' bits and, but for copies of other classes, their set-ID bits.
fn cleared_by_assignment(classes: u32, letters: &str) -> u32 {
    match letters {
        "u" | "g" | "o" => classes,
        _ => classes | set_id_bits(classes),
    }
}

fn set_id_bits(classes: u32) -> u32 {
    let of = |class: u32, bit: u32| if classes & class != 0 { bit } else { 0 };
    of(0o700, SET_UID) | of(0o070, SET_GID)
}

fn permission_bits(letters: &str, classes: u32, mode: u32, searchable: bool) -> Option<u32> {
    if let "u" | "g" | "o" = letters {
        let shift = match letters {
            "u" => 6,
            "g" => 3,
            _ => 0,
        };
        return Some(((mode >> shift & 7) * 0o111) & classes);
    }
    letters.chars().try_fold(0, |bits, letter| {
        Some(
            bits | match letter {
                'r' => 0o444 & classes,
                'w' => 0o222 & classes,
                'x' => 0o111 & classes,
                'X' if searchable => 0o111 & classes,
                'X' => 0,
                's' => set_id_bits(classes),
                't' if classes == 0o007 => 0,
                't' => STICKY,
                _ => return None,
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_applied_as_chmod_does() {
        let check = |text: &str, mode: u32, directory: bool, expect: u32| {
            let got = apply_symbolic(text, mode, directory).unwrap();
            assert_eq!(got, expect, "{text} on {mode:o}: {got:o}");
        };
        check("u=rwX,go=rX", 0o600, false, 0o644);
        check("u=rwX,go=rX", 0o700, false, 0o755);
        check("u=rwX,go=rX", 0o700, true, 0o755);
        check("+x", 0o644, false, 0o755);
        check("a-w", 0o666, false, 0o444);
        check("g=u", 0o640, false, 0o660);
        check("u+s,g+s,+t", 0o755, false, 0o7755);
        check("u=rw,o=", 0o777, false, 0o670);
        check("u+r-w", 0o200, false, 0o400);
        check("u=rwX,go=rX", 0o2750, true, 0o755);
        check("a=r", 0o7777, true, 0o1444);
        check("g=u", 0o2640, true, 0o2660);
        check("g+s", 0o750, true, 0o2750);
        check("o+t", 0o755, true, 0o755);
        check("a=,a+X", 0o755, false, 0o111);
        for bad in ["", "z+x", "u", "u+q", "755", "u+x,"] {
            assert!(apply_symbolic(bad, 0o644, false).is_err(), "{bad}");
        }
    }
}
