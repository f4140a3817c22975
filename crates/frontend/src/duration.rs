/// Reads a duration as Go writes it (`1m30s`, `500ms`, `0`), in nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0.0_f64;
    loop {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit = rest[number..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |end| number + end);
        total += rest[..number].parse::<f64>().ok()? * nanoseconds(&rest[number..unit])?;
        rest = &rest[unit..];
        if rest.is_empty() {
            break;
        }
    }
    (total < i64::MAX as f64).then_some(sign * total as i64)
}

/// Why a text is no duration, in the words of Go's library.
pub(crate) fn refused_duration(text: &str) -> String {
    let mut rest = text.trim_start_matches(['-', '+']);
    while rest.starts_with(|first: char| first.is_ascii_digit()) {
        let is_number = |letter: char| letter.is_ascii_digit() || letter == '.';
        let behind = rest.trim_start_matches(is_number);
        let unit = &behind[..behind.find(is_number).unwrap_or(behind.len())];
        match nanoseconds(unit) {
            _ if unit.is_empty() => return format!("time: missing unit in duration {text:?}"),
            None => return format!("time: unknown unit {unit:?} in duration {text:?}"),
            Some(_) => rest = &behind[unit.len()..],
        }
    }
    format!("time: invalid duration {text:?}")
}

fn nanoseconds(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" => 1.0,
        "us" | "µs" | "μs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" => 60e9,
        "h" => 3600e9,
        _ => return None,
    })
}

/// Prints a duration as Go does, which is what history entries show.
pub(crate) fn format_duration(nanoseconds: i64) -> String {
    let whole = |value: f64, unit: &str| format!("{value}{unit}");
    let size = nanoseconds.unsigned_abs();
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let text = match size {
        0 => "0s".to_owned(),
        1..1_000 => format!("{size}ns"),
        1_000..1_000_000 => whole(size as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => whole(size as f64 / 1e6, "ms"),
        _ => {
            let seconds = size / 1_000_000_000;
            let rest = (seconds % 60) as f64 + (size % 1_000_000_000) as f64 / 1e9;
            match (seconds / 3600, seconds / 60 % 60) {
                (0, 0) => whole(rest, "s"),
                (0, minutes) => format!("{minutes}m{rest}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_duration_is_told_as_go_does() {
        assert_eq!(refused_duration("x"), "time: invalid duration \"x\"");
        assert_eq!(refused_duration("1m5"), "time: missing unit in duration \"1m5\"");
        assert_eq!(refused_duration("-5q"), "time: unknown unit \"q\" in duration \"-5q\"");
        assert_eq!(refused_duration("1s."), "time: invalid duration \"1s.\"");
        assert_eq!(refused_duration(""), "time: invalid duration \"\"");
    }

    #[test]
    fn durations_are_those_of_go() {
        let check = |text: &str, expect: Option<&str>| {
            assert_eq!(parse_duration(text).map(format_duration).as_deref(), expect, "{text}");
        };
        check("0", Some("0s"));
        check("30s", Some("30s"));
        check("1.5s", Some("1.5s"));
        check("90s", Some("1m30s"));
        check("1h0m1s", Some("1h0m1s"));
        check("500ms", Some("500ms"));
        check("1us", Some("1µs"));
        check("-2s", Some("-2s"));
        for bad in ["", "5", "s", "5x", "1..5s", "99999999999h", "1s2"] {
            check(bad, None);
        }
    }
}
