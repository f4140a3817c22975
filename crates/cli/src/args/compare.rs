use super::BuildArgs;

/// `forge layers`
#[derive(clap::Args, Debug)]
pub struct LayersArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Show what made a layer in full
    #[arg(long)]
    pub no_trunc: bool,
    /// table or json
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// `forge diff`
#[derive(clap::Args, Debug)]
pub struct DiffArgs {
    /// The image that is compared
    #[arg(value_name = "IMAGE")]
    pub first: String,
    /// The image that it is compared with
    #[arg(value_name = "IMAGE")]
    pub second: String,
    /// Leave out paths of which only the time differs
    #[arg(long)]
    pub ignore_times: bool,
    /// table or json
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// `forge verify`
#[derive(clap::Args, Debug)]
pub struct RebuildArgs {
    /// The image that the build is to make again
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// How it was built: the flags and the context of `forge build`
    #[command(flatten)]
    pub build: BuildArgs,
}
