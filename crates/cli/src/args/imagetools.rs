use std::path::PathBuf;

/// `forge imagetools`
#[derive(clap::Args, Debug)]
pub struct ImagetoolsArgs {
    /// What is to be done
    #[command(subcommand)]
    pub what: ImagetoolsCommand,
}

/// What `forge imagetools` does.
#[derive(clap::Subcommand, Debug)]
pub enum ImagetoolsCommand {
    /// Create a new image based on source images
    Create(ImagetoolsCreateArgs),
    /// Show details of an image in the registry
    Inspect(ImagetoolsInspectArgs),
}

/// `forge imagetools inspect`
#[derive(clap::Args, Debug)]
pub struct ImagetoolsInspectArgs {
    /// The image's name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Format the output using the given Go template
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "raw")]
    pub format: Option<String>,
    /// Show original, unformatted JSON manifest
    #[arg(long)]
    pub raw: bool,
}

/// `forge imagetools create`
#[derive(clap::Args, Debug)]
pub struct ImagetoolsCreateArgs {
    /// Images and indexes: a name, a digest in the repository of the tags, or a descriptor in JSON
    #[arg(value_name = "SOURCE")]
    pub sources: Vec<String>,
    /// Add annotation to the image: `index:KEY=VALUE` or `manifest-descriptor[PLATFORM]:KEY=VALUE`
    #[arg(long = "annotation", value_name = "ANNOTATION")]
    pub annotations: Vec<String>,
    /// Append to existing manifest
    #[arg(long)]
    pub append: bool,
    /// Show final image instead of pushing
    #[arg(long)]
    pub dry_run: bool,
    /// Read source descriptor from file
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Write create result metadata to a file
    #[arg(long, value_name = "FILE")]
    pub metadata_file: Option<PathBuf>,
    /// Filter specified platforms of target image
    #[arg(short = 'p', long = "platform", value_name = "OS/ARCH")]
    pub platforms: Vec<String>,
    /// When only a single source is specified, prefer outputting an image index or manifest list instead of performing a carbon copy
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    pub prefer_index: bool,
    /// Progress output: auto, none, plain, rawjson or tty
    #[arg(long, value_name = "TYPE")]
    pub progress: Option<String>,
    /// Set reference for new image
    #[arg(short = 't', long = "tag", value_name = "NAME[:TAG]")]
    pub tags: Vec<String>,
}
