/// docker's flags for what a process may take from the machine.
#[derive(clap::Args, Debug, Default)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Most memory, as 512m or 2g
    #[arg(short = 'm', long, value_name = "BYTES")]
    pub memory: Option<String>,
    /// Most memory and swap together; -1 for any amount of swap [default: twice the memory]
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Processors' worth of time, as 1.5
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<f64>,
    /// Microseconds of the period that --cpu-quota counts in
    #[arg(long, value_name = "MICROSECONDS")]
    pub cpu_period: Option<u64>,
    /// Microseconds of processor time in each period
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// Share of the processors' time when they are busy; 1024 is ordinary
    #[arg(short = 'c', long, value_name = "NUMBER")]
    pub cpu_shares: Option<u64>,
    /// Processors that may be used, as 0-2,5
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that may be used
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Most processes and threads; -1 for no limit but forge's own [default: 32768]
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Limit of setrlimit(2), as nofile=1024:4096 (repeatable)
    #[arg(long = "ulimit", value_name = "TYPE=SOFT[:HARD]")]
    pub ulimits: Vec<String>,
    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_name = "BYTES")]
    pub shm_size: Option<String>,
    /// Control group below which processes are put
    #[arg(long, value_name = "PATH", default_value = "", hide_default_value = true)]
    pub cgroup_parent: String,
}
