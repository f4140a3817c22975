use super::LimitArgs;
use super::unsupported::{Flag, FlagTable, Shape, Unsupported, flag};
use std::path::PathBuf;

/// `forge run`: the flags of `docker run`, in the foreground.
#[derive(clap::Args, Debug, Default)]
#[command(disable_help_flag = true, override_usage = "forge run [OPTIONS] IMAGE [COMMAND] [ARG...]")]
pub struct RunArgs {
    /// The image, then the command and its arguments
    #[arg(value_name = "IMAGE [COMMAND] [ARG", required = true, trailing_var_arg = true)]
    pub words: Vec<String>,
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// Environment variable; without =VALUE that of the environment (repeatable)
    #[arg(short = 'e', long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// File with environment variables, one a line (repeatable)
    #[arg(long = "env-file", value_name = "FILE")]
    pub env_files: Vec<PathBuf>,
    /// Working directory in the container
    #[arg(short = 'w', long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User name or id, with an optional group
    #[arg(short = 'u', long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Show a folder or file of the host in the container (repeatable)
    #[arg(short = 'v', long = "volume", value_name = "HOST:CONTAINER[:ro]")]
    pub volumes: Vec<String>,
    /// Hand standard input to the command
    #[arg(short = 'i', long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short = 't', long)]
    pub tty: bool,
    /// Keys that leave the container to itself, which goes on in the background [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEY,...")]
    pub detach_keys: Option<String>,
    /// Network of the container: default, none or host
    #[arg(long, alias = "net", value_name = "MODE", default_value = "default")]
    pub network: String,
    /// Line of /etc/hosts; the address host-gateway is the host's own (repeatable)
    #[arg(long = "add-host", value_name = "HOST:IP")]
    pub add_hosts: Vec<String>,
    /// Nameserver of the container (repeatable)
    #[arg(long, value_name = "IP")]
    pub dns: Vec<std::net::IpAddr>,
    /// Domain in which short names are looked up; . for none (repeatable)
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// Option of resolv.conf (repeatable)
    #[arg(long = "dns-option", alias = "dns-opt", value_name = "OPTION")]
    pub dns_options: Vec<String>,
    /// Run this instead of the image's entry point; an empty text removes it
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// Host name of the container
    #[arg(short = 'h', long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Platform of the image
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// When to fetch the image: always, missing or never
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pub pull: String,
    /// Show no progress while the image is fetched
    #[arg(short = 'q', long)]
    pub quiet: bool,
    /// Mount: type=bind,source=HOST,target=CONTAINER[,readonly] or type=tmpfs,target=CONTAINER[,tmpfs-size=BYTES][,tmpfs-mode=MODE] (repeatable)
    #[arg(long = "mount", value_name = "KEY=VALUE,...")]
    pub mounts: Vec<String>,
    /// File system in memory; options: size, mode, ro, exec, suid, dev (repeatable)
    #[arg(long = "tmpfs", value_name = "CONTAINER[:OPTIONS]")]
    pub tmpfs: Vec<String>,
    /// Port of the host that leads to one of the container; ranges as 8000-8010 (repeatable)
    #[arg(short = 'p', long = "publish", value_name = "[IP:][HOST:]CONTAINER[/udp]")]
    pub ports: Vec<String>,
    /// Publish every exposed port on a free one of the host
    #[arg(short = 'P', long)]
    pub publish_all: bool,
    /// Port for -P beside those of the image (repeatable)
    #[arg(long, value_name = "PORT[/udp]")]
    pub expose: Vec<String>,
    /// Device of the host, or folder of devices, that the container may use; rights of r, w and m (repeatable)
    #[arg(long = "device", value_name = "HOST[:CONTAINER][:rwm]")]
    pub devices: Vec<String>,
    /// Devices that may be opened by nodes made in the container; a is both kinds, * every number (repeatable)
    #[arg(long = "device-cgroup-rule", value_name = "a|b|c MAJOR:MINOR rwm")]
    pub device_rules: Vec<String>,
    /// Capability to give, or ALL (repeatable)
    #[arg(long = "cap-add", value_name = "NAME", value_delimiter = ',')]
    pub cap_add: Vec<String>,
    /// Capability to take, or ALL (repeatable)
    #[arg(long = "cap-drop", value_name = "NAME", value_delimiter = ',')]
    pub cap_drop: Vec<String>,
    /// Give all capabilities and devices, filter and mask nothing
    #[arg(long)]
    pub privileged: bool,
    /// System V and POSIX communication, and /dev/shm: private, shareable (which nobody can share yet), none (no /dev/shm) or host
    #[arg(long, value_name = "MODE", default_value = "private")]
    pub ipc: String,
    /// Host and domain name: empty for the container's own, or host
    #[arg(long, value_name = "MODE", default_value = "")]
    pub uts: String,
    /// Processes: empty or private for the container's own
    #[arg(long, value_name = "MODE", default_value = "")]
    pub pid: String,
    /// Control groups that the container sees: private or host
    #[arg(long, value_name = "MODE", default_value = "private")]
    pub cgroupns: String,
    /// User ids: host, which are those that forge has
    #[arg(long, value_name = "MODE", default_value = "host")]
    pub userns: String,
    /// Setting of the container's network or communication, as net.ipv4.ip_forward=1 (repeatable)
    #[arg(long = "sysctl", value_name = "NAME=VALUE")]
    pub sysctls: Vec<String>,
    /// NIS domain name of the container
    #[arg(long, value_name = "NAME")]
    pub domainname: Option<String>,
    /// How readily the kernel kills the container for want of memory, -1000 to 1000
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true)]
    pub oom_score_adj: Option<i32>,
    /// no-new-privileges, seccomp=FILE (docker's format), seccomp=unconfined, seccomp=builtin, systempaths=unconfined, apparmor=PROFILE (loaded), apparmor=unconfined or label=disable (repeatable)
    #[arg(long = "security-opt", value_name = "OPTION")]
    pub security: Vec<String>,
    /// Further group of the command, by name or id (repeatable)
    #[arg(long = "group-add", value_name = "GROUP")]
    pub groups: Vec<String>,
    /// Put an init before the command, which hands signals on and takes orphans in
    #[arg(long)]
    pub init: bool,
    /// Name of the container, which no other running one has
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Label of the container (repeatable)
    #[arg(short = 'l', long = "label", value_name = "NAME[=VALUE]")]
    pub labels: Vec<String>,
    /// File with labels, one a line (repeatable)
    #[arg(long = "label-file", value_name = "FILE")]
    pub label_files: Vec<PathBuf>,
    /// Run no health check of the image's; forge runs none
    #[arg(long, hide = true)]
    pub no_healthcheck: bool,
    /// Write the container's id to a file, which must not be there
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Signal that SIGTERM to forge becomes, as with docker stop
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds until a container that SIGTERM to forge asked to end is killed; -1 for never [default with --stop-signal: 10]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub stop_timeout: Option<i64>,
    /// Make the container's root file system read-only
    #[arg(long)]
    pub read_only: bool,
    /// Pass signals on to the command; only true so far
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub sig_proxy: Option<String>,
    /// Run the container with an OCI runtime (runc, crun, or a path) instead of forge's own sandbox [env: FORGE_OCI_RUNTIME]
    #[arg(long, alias = "runtime", value_name = "NAME|PATH")]
    pub oci_runtime: Option<String>,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    pub refused: Unsupported<Refused>,
}

/// Flags of docker that forge does not have yet. Using one is an error.
#[derive(Debug, Default)]
pub struct Refused;

impl FlagTable for Refused {
    const FLAGS: &'static [Flag] = &[
        flag("annotation", None, Shape::Value),
        flag("attach", Some('a'), Shape::Value),
        flag("blkio-weight", None, Shape::Value),
        flag("blkio-weight-device", None, Shape::Value),
        flag("cpu-count", None, Shape::Value),
        flag("cpu-percent", None, Shape::Value),
        flag("cpu-rt-period", None, Shape::Value),
        flag("cpu-rt-runtime", None, Shape::Value),
        flag("detach", Some('d'), Shape::Switch),
        flag("device-read-bps", None, Shape::Value),
        flag("device-read-iops", None, Shape::Value),
        flag("device-write-bps", None, Shape::Value),
        flag("device-write-iops", None, Shape::Value),
        flag("disable-content-trust", None, Shape::Switch),
        flag("gpus", None, Shape::Value),
        flag("health-cmd", None, Shape::Value),
        flag("health-interval", None, Shape::Value),
        flag("health-retries", None, Shape::Value),
        flag("health-start-interval", None, Shape::Value),
        flag("health-start-period", None, Shape::Value),
        flag("health-timeout", None, Shape::Value),
        flag("io-maxbandwidth", None, Shape::Value),
        flag("io-maxiops", None, Shape::Value),
        flag("ip", None, Shape::Value),
        flag("ip6", None, Shape::Value),
        flag("isolation", None, Shape::Value),
        flag("kernel-memory", None, Shape::Value),
        flag("link", None, Shape::Value),
        flag("link-local-ip", None, Shape::Value),
        flag("log-driver", None, Shape::Value),
        flag("log-opt", None, Shape::Value),
        flag("mac-address", None, Shape::Value),
        flag("memory-reservation", None, Shape::Value),
        flag("memory-swappiness", None, Shape::Value),
        flag("net-alias", None, Shape::Value),
        flag("network-alias", None, Shape::Value),
        flag("oom-kill-disable", None, Shape::Switch),
        flag("restart", None, Shape::Value),
        flag("storage-opt", None, Shape::Value),
        flag("use-api-socket", None, Shape::Switch),
        flag("volume-driver", None, Shape::Value),
        flag("volumes-from", None, Shape::Value),
    ];
}
