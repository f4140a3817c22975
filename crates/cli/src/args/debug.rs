use super::BuildArgs;

/// `forge debug`: what forge makes of things, for people and tools.
#[derive(clap::Args, Debug)]
pub struct DebugArgs {
    #[command(subcommand)]
    pub what: DebugCommand,
}

/// What is to be shown.
#[derive(clap::Subcommand, Debug)]
pub enum DebugCommand {
    /// Show what a Dockerfile is lowered to, without building it
    Llb(Box<LlbArgs>),
    /// List what killed forges left on this machine and in the store; exit code 1 if there is anything
    Leaks,
}

/// `forge debug llb`.
#[derive(clap::Args, Debug)]
pub struct LlbArgs {
    /// Folder with the files of the build, or the address of a repository or an archive
    #[arg(value_name = "PATH|URL")]
    pub context: String,
    /// The Dockerfile, its address, or - for standard input [default: PATH/Dockerfile]
    #[arg(short = 'f', long, value_name = "PATH|URL|-", allow_hyphen_values = true)]
    pub file: Option<String>,
    /// The stage that is wanted
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// Value of an ARG; without =VALUE that of the environment (repeatable)
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub build_args: Vec<String>,
    /// The platform that is built for
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// A further context, as for a build (repeatable)
    #[arg(long = "build-context", value_name = "NAME=VALUE")]
    pub build_contexts: Vec<String>,
    /// Network of RUN steps: default, none or host
    #[arg(long, value_name = "MODE", default_value = "default")]
    pub network: String,
    /// Line of /etc/hosts for RUN steps (repeatable)
    #[arg(long = "add-host", value_name = "HOST:IP")]
    pub add_hosts: Vec<String>,
    /// Have every step ignore the cache
    #[arg(long)]
    pub no_cache: bool,
    /// Ask registries for newer base images
    #[arg(long)]
    pub pull: bool,
    /// text, or one of BuildKit's: pb (for buildctl), json (lines as of buildctl debug dump-llb) or dot (Graphviz)
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "pb", "json", "dot"])]
    pub format: String,
    /// Progress output, as for a build [default: none]
    #[arg(long, value_name = "MODE")]
    pub progress: Option<String>,
}

impl LlbArgs {
    /// The build whose definition is shown.
    pub fn build(&self) -> BuildArgs {
        BuildArgs {
            context: self.context.clone(),
            file: self.file.clone(),
            target: self.target.clone(),
            build_args: self.build_args.clone(),
            platforms: self.platform.iter().cloned().collect(),
            build_contexts: self.build_contexts.clone(),
            network: self.network.clone(),
            add_hosts: self.add_hosts.clone(),
            no_cache: self.no_cache,
            pull: self.pull,
            ..BuildArgs::default()
        }
    }
}
