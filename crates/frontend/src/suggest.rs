/// Names further apart than this are not taken for slips of the pen.
const MAX_DISTANCE: usize = 2;

/// Longer names are not compared: the cost grows with the square.
const MAX_LENGTH: usize = 64;

/// The option that was probably meant: the nearest one by edit distance, in lower case. `None` where nothing is
/// near, or where the name is one of the options.
pub(crate) fn nearest<'a>(name: &str, options: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let name = name.to_lowercase();
    let mut best: Option<(usize, &str)> = None;
    for option in options {
        match distance(&name, &option.to_lowercase()) {
            Some(0) => return None,
            Some(distance) if best.is_none_or(|(least, _)| distance < least) => best = Some((distance, option)),
            _ => {}
        }
    }
    best.map(|(_, option)| option.to_owned())
}

/// Levenshtein's distance where it is at most [`MAX_DISTANCE`].
fn distance(a: &str, b: &str) -> Option<usize> {
    if a.len().abs_diff(b.len()) > MAX_DISTANCE * 4 || a.len().max(b.len()) > MAX_LENGTH {
        return None;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (above, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = above + 1;
        for (column, other) in b.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row.last().copied().filter(|distance| *distance <= MAX_DISTANCE)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn near_names_are_suggested() {
        let check = |name: &str, expect: Option<&str>| {
            assert_eq!(nearest(name, ["FROM", "RUN", "build"]).as_deref(), expect, "{name}");
        };
        check("FORM", Some("FROM"));
        check("buidl", Some("build"));
        check("run", None);
        check("COPY", None);
        check(&"x".repeat(1000), None);
    }
}
