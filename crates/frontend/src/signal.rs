/// The signals of Linux that have names; real-time ones are handled apart.
const NAMES: [&str; 35] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
    "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "UNUSED",
];

/// Whether a text names a signal: a number above zero, or a name with or without `SIG`.
pub(crate) fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<i64>() {
        return number > 0;
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |prefix: &str, sign: char| match name.strip_prefix(prefix) {
        Some("") => true,
        Some(offset) => {
            offset.strip_prefix(sign).and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| (1..=15).contains(&n))
        }
        None => false,
    };
    NAMES.contains(&name) || real_time("RTMIN", '+') || real_time("RTMAX", '-')
}

#[cfg(test)]
mod tests {
    use super::is_signal;

    #[test]
    fn signals_by_name_and_number() {
        for good in ["SIGTERM", "term", "9", "SIGRTMIN+3", "RTMAX-2", "RTMIN"] {
            assert!(is_signal(good), "{good}");
        }
        for bad in ["", "0", "-1", "SIGFOO", "RTMIN+99", "SIG"] {
            assert!(!is_signal(bad), "{bad}");
        }
    }
}
