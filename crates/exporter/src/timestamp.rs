use crate::ExportError;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment of an image's history, to the nanosecond, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timestamp {
    seconds: i64,
    nanos: u32,
}

/// 9999-12-31T23:59:59Z, the last second that RFC 3339 can write.
const LAST_SECOND: i64 = 253_402_300_799;

impl Timestamp {
    /// The moment of `SOURCE_DATE_EPOCH`. Years before 1970 and after 9999 cannot be written and are refused.
    pub(crate) fn of_epoch(seconds: i64) -> Result<Self, ExportError> {
        match seconds {
            0..=LAST_SECOND => Ok(Self { seconds, nanos: 0 }),
            _ => Err(ExportError::Epoch { seconds }),
        }
    }

    /// The moment of a clock; before 1970 it is 1970.
    pub(crate) fn of_clock(now: SystemTime) -> Self {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let seconds = i64::try_from(since.as_secs()).unwrap_or(LAST_SECOND).min(LAST_SECOND);
        Self { seconds, nanos: since.subsec_nanos() }
    }

    /// Reads RFC 3339 with any offset. `None` for what cannot be read and for years before 1970, among them Go's
    /// zero time, which stands for "no time" in many images.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (local, offset) = split_offset(text)?;
        let since = humantime::parse_rfc3339(&format!("{local}Z")).ok()?.duration_since(UNIX_EPOCH).ok()?;
        let seconds = i64::try_from(since.as_secs()).ok()? - offset;
        (seconds >= 0).then_some(Self { seconds, nanos: since.subsec_nanos() })
    }

    /// The whole seconds since 1970.
    pub(crate) fn seconds(self) -> i64 {
        self.seconds
    }
}

/// RFC 3339 in UTC, with as many fractional digits as are needed: the form that Go writes.
impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = u64::try_from(self.seconds).expect("the constructors refuse times before 1970");
        let whole = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string();
        let fraction = match self.nanos {
            0 => String::new(),
            nanos => format!(".{nanos:09}").trim_end_matches('0').to_owned(),
        };
        write!(f, "{}{fraction}Z", whole.trim_end_matches('Z'))
    }
}

/// Cuts the offset off: the rest, and the seconds that local time is ahead of UTC.
fn split_offset(text: &str) -> Option<(&str, i64)> {
    if let Some(local) = text.strip_suffix(['Z', 'z']) {
        return Some((local, 0));
    }
    let at = text.len().checked_sub(6)?;
    let (local, offset) = (text.get(..at)?, text.get(at..)?);
    let sign = match offset.as_bytes()[0] {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = offset[1..].split_once(':')?;
    Some((local, sign * (hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written_as_go_does() {
        let check = |text: &str, expect: &str| {
            assert_eq!(Timestamp::parse(text).map(|time| time.to_string()).as_deref().unwrap_or("none"), expect);
        };
        check("2023-11-14T22:13:20Z", "2023-11-14T22:13:20Z");
        check("2023-11-14T22:13:20.120Z", "2023-11-14T22:13:20.12Z");
        check("2023-11-14T22:13:20.123456789+02:00", "2023-11-14T20:13:20.123456789Z");
        check("2023-11-14T22:13:20-05:30", "2023-11-15T03:43:20Z");
        check("0001-01-01T00:00:00Z", "none");
        check("é+02:00", "none");
        check("+1:00", "none");
        check("", "none");
        assert!(Timestamp::of_epoch(-1).is_err() && Timestamp::of_epoch(i64::MAX).is_err());
    }
}
