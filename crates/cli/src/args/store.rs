/// `forge du`
#[derive(clap::Args, Debug)]
pub struct DuArgs {
    /// Show each record in full
    #[arg(long)]
    pub verbose: bool,
    /// Only what this means, such as type=regular or until=24h
    #[arg(long = "filter", value_name = "FILTER")]
    pub filters: Vec<String>,
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
    /// Only show what would be removed, and why
    #[arg(long)]
    pub dry_run: bool,
    /// Only what this means: until=24h, or id, parents, description, type, inuse, shared, private, mutable, immutable
    /// with =, != or ~= (contains); several must all hold
    #[arg(long = "filter", value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Stop once the cache takes no more than this
    #[arg(long, value_name = "BYTES", alias = "keep-storage")]
    pub reserved_space: Option<String>,
    /// Remove until the cache takes no more than this
    #[arg(long, value_name = "BYTES")]
    pub max_used_space: Option<String>,
    /// Remove until so much of the file system is free
    #[arg(long, value_name = "BYTES")]
    pub min_free_space: Option<String>,
    /// Show each record in full
    #[arg(long)]
    pub verbose: bool,
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
