/// What control groups bound of a step (BuildKit's `LinuxResources`); `None` is not bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepResources {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of memory and swap together; -1 for any amount of swap.
    pub memory_swap: Option<i64>,
    /// Share of the processors' time when they are contended.
    pub cpu_shares: Option<u64>,
    /// Microseconds of the period that the quota counts in.
    pub cpu_period: Option<u64>,
    /// Microseconds of processor time in each period.
    pub cpu_quota: Option<u64>,
    /// Processors that may be used, `0-2,5`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that may be used, `0,1`.
    pub cpuset_mems: Option<String>,
}

/// Whether a text is a list as cpuset(7) takes it: numbers and ranges of them between commas.
pub fn is_set_of_numbers(text: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_range = |(from, to): (&str, &str)| is_number(from) && is_number(to);
    text.split(',').all(|part| is_number(part) || part.split_once('-').is_some_and(is_range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_numbers_and_ranges() {
        assert!(["0", "0-3", "1,4-5"].iter().all(|text| is_set_of_numbers(text)));
        assert!(!["", "a", "1-", "-1", "1,,2", "1 2", "../x"].iter().any(|text| is_set_of_numbers(text)));
    }
}
