//! Docker's default profile as data.

use crate::{Rlimit, RlimitResource};
use std::path::PathBuf;

/// What docker sets when neither image nor user gives a `PATH`.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// 64 MiB, as docker and BuildKit give.
pub(crate) const SHM_SIZE: u64 = 64 << 20;

/// Far above what parallel builds start, far below what exhausts a machine.
pub(crate) const PIDS: u32 = 32768;

/// Docker's list and `/sys/fs/selinux`. The per-processor `thermal_throttle` directories are found at set-up.
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
];

const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

pub(crate) fn masked_paths() -> Vec<PathBuf> {
    MASKED.iter().map(PathBuf::from).collect()
}

pub(crate) fn readonly_paths() -> Vec<PathBuf> {
    READONLY.iter().map(PathBuf::from).collect()
}

pub(crate) fn rlimits() -> Vec<Rlimit> {
    let limit = |resource, soft, hard| Rlimit { resource, soft, hard };
    vec![limit(RlimitResource::Nofile, 1024, 1_048_576), limit(RlimitResource::Core, 0, 0)]
}
