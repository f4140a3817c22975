use crate::{InputPart, ResultRef};
use forge_store::LayerId;
use std::sync::OnceLock;
use std::time::SystemTime;

/// What is kept of a step that ran: the unit of the cache.
///
/// One record may be found under several keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepRecord {
    /// What users saw, `[build 2/5] RUN make`.
    pub name: String,
    /// What the key was made of, in readable form: name and value, in order.
    pub key_inputs: Vec<(String, String)>,
    /// What each input contributed to the content key: tells which of them changed.
    pub input_parts: Vec<InputPart>,
    /// The results, one for each output.
    pub outputs: Vec<ResultRef>,
    /// How long the step ran, in milliseconds.
    pub wall_ms: u64,
    /// What its processes used; `None` for a step that ran none.
    pub usage: Option<StepUsage>,
    /// When it ran.
    pub created: SystemTime,
    /// When it was last made or used, exact to the hour.
    pub last_used: SystemTime,
    /// The boot during which the record was written: its result was not necessarily on disk when that boot ended.
    pub boot_id: String,
}

/// What the processes of a step used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepUsage {
    /// Processor time in microseconds.
    pub cpu_us: u64,
    /// Most bytes of memory at once.
    pub peak_memory: u64,
}

impl StepRecord {
    /// The boot id that records written now carry: the kernel's, or an empty text where /proc hides it.
    pub fn current_boot() -> &'static str {
        static BOOT: OnceLock<String> = OnceLock::new();
        let read = || std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        BOOT.get_or_init(read)
    }

    /// Whether it was written since the machine was started.
    pub fn is_of_this_boot(&self) -> bool {
        self.boot_id == Self::current_boot()
    }

    /// The layers that it needs.
    pub fn layers(&self) -> impl Iterator<Item = &LayerId> {
        self.outputs.iter().flat_map(ResultRef::layers)
    }
}
