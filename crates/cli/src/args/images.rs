use std::path::PathBuf;

/// `forge images`
#[derive(clap::Args, Debug)]
pub struct ImagesArgs {
    /// Show only images of this repository, or this name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub name: Option<String>,
    /// Also show what docker calls intermediate images; forge keeps none, so nothing is added
    #[arg(short = 'a', long)]
    pub all: bool,
    /// Show digests
    #[arg(long)]
    pub digests: bool,
    /// Show ids in full
    #[arg(long)]
    pub no_trunc: bool,
    /// Show only ids
    #[arg(short = 'q', long)]
    pub quiet: bool,
    /// table, json, or a template such as '{{.Repository}}:{{.Tag}}'
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Filters; none are known yet
    #[arg(short = 'f', long = "filter", value_name = "FILTER", hide = true)]
    pub filters: Vec<String>,
}

/// `forge inspect`
#[derive(clap::Args, Debug)]
pub struct InspectArgs {
    /// Names, ids, or the beginnings of ids
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// json, or a template such as '{{.Id}}'
    #[arg(short = 'f', long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// What the names stand for; only image so far
    #[arg(long = "type", value_name = "TYPE", hide = true)]
    pub kind: Option<String>,
}

/// `forge history`
#[derive(clap::Args, Debug)]
pub struct HistoryArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Sizes and times for people
    #[arg(short = 'H', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    pub human: bool,
    /// Show everything in full
    #[arg(long)]
    pub no_trunc: bool,
    /// Show only ids
    #[arg(short = 'q', long)]
    pub quiet: bool,
    /// table, json, or a template such as '{{.CreatedBy}}'
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// `forge tag`
#[derive(clap::Args, Debug)]
pub struct TagArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub source: String,
    /// Its further name
    #[arg(value_name = "NAME[:TAG]")]
    pub target: String,
}

/// `forge rmi`
#[derive(clap::Args, Debug)]
pub struct RmiArgs {
    /// Names or ids
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Remove an image under all its names; a missing image is no error
    #[arg(short = 'f', long)]
    pub force: bool,
}

/// `forge save`
#[derive(clap::Args, Debug)]
pub struct SaveArgs {
    /// Names or ids
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Write to a file instead of standard output
    #[arg(short = 'o', long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// docker or oci
    #[arg(long, value_name = "FORMAT", default_value = "docker")]
    pub format: String,
}

/// `forge load`
#[derive(clap::Args, Debug)]
pub struct LoadArgs {
    /// Read from a file instead of standard input
    #[arg(short = 'i', long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Let names of the archive replace names that stand for other images
    #[arg(long)]
    pub replace: bool,
    /// Print only what matters
    #[arg(short = 'q', long)]
    pub quiet: bool,
}
