use std::time::{SystemTime, UNIX_EPOCH};

/// Programs round the times that they set to seconds, archives to every second one (ZIP, FAT).
const GRAIN_NS: i64 = 2_000_000_000;

/// The kernel takes the times of files from a clock that ticks at least every 10 ms (`CONFIG_HZ=100`).
const TICK_NS: i64 = 10_000_000;

/// Which modification times of a layer are part of its content.
///
/// What `touch -d`, `tar x` or `cp -p` set is content: a later step can see it, and does where it is `make`. When a step
/// happened to run is not, or no step would ever come out as it did before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileTimes {
    /// All of them: nothing is known of where they come from, or they were asked for.
    #[default]
    Content,
    /// None of them: they are those of a build context, or of the moment.
    Ignored,
    /// Those that lie outside the time in which a step ran, in nanoseconds since the epoch, both ends included.
    ContentOutside {
        /// The first moment that is not content.
        from: i64,
        /// The last one.
        until: i64,
    },
}

impl FileTimes {
    /// The times of what a process made that ran in between, on this machine.
    pub fn of_step(started: SystemTime, ended: SystemTime) -> Self {
        let from = nanoseconds(started).saturating_sub(TICK_NS).div_euclid(GRAIN_NS).saturating_mul(GRAIN_NS);
        Self::ContentOutside { from, until: nanoseconds(ended).saturating_add(TICK_NS) }
    }

    /// Whether a time, in seconds and nanoseconds since the epoch, is content.
    pub fn is_content(&self, (seconds, nanoseconds): (i64, u32)) -> bool {
        match *self {
            Self::Content => true,
            Self::Ignored => false,
            Self::ContentOutside { from, until } => {
                let moment = seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(nanoseconds));
                !(from..=until).contains(&moment)
            }
        }
    }

    /// As two columns of a table: the first and the last moment that is not content.
    pub(crate) fn to_columns(self) -> Option<(i64, i64)> {
        match self {
            Self::Content => None,
            Self::Ignored => Some((i64::MIN, i64::MAX)),
            Self::ContentOutside { from, until } => Some((from, until)),
        }
    }

    pub(crate) fn from_columns(columns: Option<(i64, i64)>) -> Self {
        match columns {
            None => Self::Content,
            Some((i64::MIN, i64::MAX)) => Self::Ignored,
            Some((from, until)) => Self::ContentOutside { from, until },
        }
    }
}

fn nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_step_s_own_time_is_not_content() {
        let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
        let times = FileTimes::of_step(at(1_000_000_700), at(1_000_003_200));
        // Set by a program that knows whole seconds, within the step, and a tick of the clock after it.
        for (seconds, millis) in [(1_000_000, 0), (1_000_001, 500), (1_000_003, 205)] {
            assert!(!times.is_content((seconds, millis * 1_000_000)), "{seconds}.{millis}");
        }
        for (seconds, millis) in [(999_999, 999), (1_000_003, 300), (0, 0), (-1, 0), (i64::MAX, 0)] {
            assert!(times.is_content((seconds, millis * 1_000_000)), "{seconds}.{millis}");
        }
    }

    #[test]
    fn columns_lead_back() {
        for times in [FileTimes::Content, FileTimes::Ignored, FileTimes::ContentOutside { from: -1, until: 7 }] {
            assert_eq!(FileTimes::from_columns(times.to_columns()), times);
        }
    }
}
