use crate::keyword::Keyword;
use crate::{Arguments, Dockerfile};

/// Names further apart than this are not taken for slips of the pen.
const MAX_DISTANCE: usize = 2;

/// Longer names are not compared: the cost grows with the square.
const MAX_LENGTH: usize = 64;

/// The option that was probably meant: the nearest one by edit distance, in lower case. `None` where nothing is
/// near, or where the name is one of the options.
pub fn nearest<'a>(name: &str, options: impl IntoIterator<Item = &'a str>) -> Option<String> {
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

/// Images that many files are built on, which a name that nobody knows may have meant.
pub(crate) const COMMON_IMAGES: [&str; 7] = ["alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora"];

/// What was probably meant by the name of an image that cannot be had: a stage of the file, or a common image.
pub fn suggest_image(dockerfile: &Dockerfile, name: &str) -> Option<String> {
    let stages = dockerfile.instructions().iter().filter_map(|instruction| match &instruction.arguments {
        Arguments::Words(words) if instruction.kind() == Some(Keyword::From) => words.get(2),
        _ => None,
    });
    nearest(name, stages.map(|stage| stage.text.as_str()).chain(COMMON_IMAGES))
}

/// Levenshtein's distance where it is at most [`MAX_DISTANCE`]. Only the cells so near to the diagonal matter, so
/// that the cost is linear.
fn distance(a: &str, b: &str) -> Option<usize> {
    if a.len().max(b.len()) > MAX_LENGTH {
        return None;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > MAX_DISTANCE {
        return None;
    }
    let far = MAX_DISTANCE + 1;
    let mut row: Vec<usize> = (0..=b.len()).map(|column| column.min(far)).collect();
    for (above, letter) in a.iter().enumerate() {
        let first = (above + 1).saturating_sub(MAX_DISTANCE).max(1);
        let last = (above + 1 + MAX_DISTANCE).min(b.len());
        let mut diagonal = row[first - 1];
        row[first - 1] = if first == 1 { (above + 1).min(far) } else { far };
        for column in first..=last {
            let changed = diagonal + usize::from(*letter != b[column - 1]);
            // Right of the band, the row above holds nothing that counts.
            diagonal = if column == above + 1 + MAX_DISTANCE { far } else { row[column] };
            row[column] = changed.min(diagonal + 1).min(row[column - 1] + 1).min(far);
        }
    }
    row.last().copied().filter(|distance| *distance <= MAX_DISTANCE)
}

#[cfg(test)]
mod tests {
    use super::{distance, nearest};

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

    #[test]
    fn images_are_looked_for_among_stages_and_common_ones() {
        let dockerfile = crate::parse("d", b"FROM x AS Builder\nFROM y\n").unwrap();
        let check = |name: &str, expect: Option<&str>| {
            assert_eq!(super::suggest_image(&dockerfile, name).as_deref(), expect, "{name}");
        };
        check("biulder", Some("Builder"));
        check("debain", Some("debian"));
        check("registry.example/debain", None);
    }

    /// The textbook's table.
    fn whole_table(a: &str, b: &str) -> usize {
        let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
        let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
        for i in 0..=a.len() {
            for j in 0..=b.len() {
                table[i][j] = match (i, j) {
                    (0, _) => j,
                    (_, 0) => i,
                    _ => (table[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]))
                        .min(table[i - 1][j] + 1)
                        .min(table[i][j - 1] + 1),
                };
            }
        }
        table[a.len()][b.len()]
    }

    #[test]
    fn the_band_agrees_with_the_whole_table() {
        let words: Vec<String> = (0..729u32)
            .map(|n| (0..6).map(|place| ["", "a", "b"][(n / 3u32.pow(place) % 3) as usize]).collect())
            .collect();
        for a in words.iter().step_by(7) {
            for b in &words {
                let expect = Some(whole_table(a, b)).filter(|distance| *distance <= 2);
                assert_eq!(distance(a, b), expect, "{a} {b}");
            }
        }
    }
}
