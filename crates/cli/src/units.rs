//! Sizes, ages and durations as docker prints them (its `go-units` formats).

use std::time::{Duration, SystemTime};

/// `1.24MB`: three significant digits, powers of 1000.
pub fn size(bytes: u64) -> String {
    scaled(bytes, 3)
}

/// As [`size`] with four digits, as the build cache commands print.
pub fn size_exact(bytes: u64) -> String {
    scaled(bytes, 4)
}

fn scaled(bytes: u64, digits: usize) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{}{}", significant(value, digits), UNITS[unit])
}

/// Go's `%.3g` for values from 0 to 1000: significant digits, no trailing zeros.
fn significant(value: f64, digits: usize) -> String {
    let whole = if value < 1.0 { 1 } else { value.log10().floor() as usize + 1 };
    let text = format!("{value:.*}", digits.saturating_sub(whole));
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// `2 minutes`, `About an hour`, `3 weeks`.
pub fn about(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours) = (seconds / 60, (duration.as_secs_f64() / 3600.0).round() as u64);
    match (seconds, minutes, hours) {
        (0, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (2..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, 2..60, _) => format!("{minutes} minutes"),
        (.., 1) => "About an hour".to_owned(),
        (.., 2..48) => format!("{hours} hours"),
        (.., 48..336) => format!("{} days", hours / 24),
        (.., 336..1440) => format!("{} weeks", hours / 24 / 7),
        (.., 1440..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// `2 minutes ago` for an RFC 3339 time; `N/A` where there is none.
pub fn ago(created: Option<&str>, now: SystemTime) -> String {
    let time = created.and_then(|text| humantime::parse_rfc3339_weak(&to_weak(text)).ok());
    match time {
        Some(time) => format!("{} ago", about(now.duration_since(time).unwrap_or_default())),
        None => "N/A".to_owned(),
    }
}

/// Turns an offset of zero (`+00:00`), which docker also writes, into the `Z` that the parser knows.
fn to_weak(text: &str) -> String {
    match text.strip_suffix("+00:00") {
        Some(rest) => format!("{rest}Z"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_dockers() {
        let table = [(0, "0B"), (999, "999B"), (1000, "1kB"), (1_240_000, "1.24MB"), (4_430_000, "4.43MB")];
        for (bytes, text) in table {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(77_812_345), "77.8MB");
        assert_eq!(size(123_456_789_000), "123GB");
        assert_eq!(size_exact(1_234_567), "1.235MB");
    }

    #[test]
    fn ages_read_as_dockers() {
        let table = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (3 * 3600, "3 hours"),
            (72 * 3600, "3 days"),
            (15 * 86400, "2 weeks"),
            (90 * 86400, "3 months"),
            (800 * 86400, "2 years"),
        ];
        for (seconds, text) in table {
            assert_eq!(about(Duration::from_secs(seconds)), text);
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(120);
        assert_eq!(ago(Some("1970-01-01T00:00:00Z"), now), "2 minutes ago");
        assert_eq!(ago(Some("1970-01-01T00:01:30.5+00:00"), now), "29 seconds ago");
        assert_eq!(ago(None, now), "N/A");
    }
}
