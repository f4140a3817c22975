use std::path::PathBuf;

/// `forge daemon`, with buildkitd's flags
#[derive(clap::Args, Debug)]
pub struct DaemonArgs {
    /// Where clients connect: unix:///path, tcp://host:port, or fd:// for sockets that systemd has bound [default: unix:///run/forge/forged.sock]
    #[arg(long, value_name = "ADDRESS")]
    pub addr: Vec<String>,
    /// Where debug pages are served over HTTP [env: BUILDKITD_DEBUGADDR]
    #[arg(long, value_name = "ADDRESS")]
    pub debugaddr: Option<String>,
    /// Group that may use Unix sockets, by name or number
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Certificate of the daemon for TCP addresses, a PEM file
    #[arg(long, value_name = "FILE")]
    pub tlscert: Option<PathBuf>,
    /// Key of that certificate, a PEM file
    #[arg(long, value_name = "FILE")]
    pub tlskey: Option<PathBuf>,
    /// Authority that clients must have a certificate of, a PEM file
    #[arg(long, value_name = "FILE")]
    pub tlscacert: Option<PathBuf>,
    /// Serve TCP addresses to everybody who can reach them
    #[arg(long)]
    pub allow_unprotected_tcp: bool,
    /// What clients may ask for: network.host, security.insecure or device
    #[arg(long, value_name = "ENTITLEMENT", value_delimiter = ',')]
    pub allow_insecure_entitlement: Vec<String>,
    /// Labels of the worker, key=value
    #[arg(long = "oci-worker-labels", value_name = "LABEL", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Most steps that run at once
    #[arg(long, value_name = "COUNT")]
    pub oci_max_parallelism: Option<usize>,
    /// Folder with specifications of devices
    #[arg(long, value_name = "DIR")]
    pub cdi_spec_dir: Vec<PathBuf>,
    /// Grant no devices
    #[arg(long)]
    pub cdi_disabled: bool,
    /// Whether there is a worker: true or auto
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub oci_worker: Option<String>,
    /// There is no worker of that kind: false or auto
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub containerd_worker: Option<String>,
    /// Say more
    #[arg(long, hide = true)]
    pub debug: bool,
    /// Collect garbage beside builds: true or false
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub oci_worker_gc: Option<String>,
    /// overlayfs or auto
    #[arg(long, value_name = "NAME", hide = true)]
    pub oci_worker_snapshotter: Option<String>,
    /// auto, host or none
    #[arg(long, value_name = "MODE", hide = true)]
    pub oci_worker_net: Option<String>,
    /// Containers of builds see their own processes only
    #[arg(long, hide = true)]
    pub rootless: bool,
}
