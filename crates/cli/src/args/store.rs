/// `forge du`
#[derive(clap::Args, Debug)]
pub struct DuArgs {
    /// Show each record in full
    #[arg(long)]
    pub verbose: bool,
    /// table or json
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// `forge prune`
#[derive(clap::Args, Debug)]
pub struct PruneArgs {
    /// Also what could still be of use: the whole build cache with its cache mounts, and images without a name
    #[arg(short = 'a', long)]
    pub all: bool,
    /// Do not ask
    #[arg(short = 'f', long)]
    pub force: bool,
    /// Only show what would be removed
    #[arg(long)]
    pub dry_run: bool,
}

/// `forge version`
#[derive(clap::Args, Debug)]
pub struct VersionArgs {
    /// json, or a template such as '{{.Client.Version}}'
    #[arg(short = 'f', long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// `forge info`
#[derive(clap::Args, Debug)]
pub struct InfoArgs {
    /// json, or a template such as '{{.DockerRootDir}}'
    #[arg(short = 'f', long, value_name = "FORMAT")]
    pub format: Option<String>,
}
