use super::BuildArgs;

/// `forge plan`: the flags of `forge build`, and how the answer is written.
#[derive(clap::Args, Debug, Default)]
pub struct PlanArgs {
    #[command(flatten)]
    pub build: BuildArgs,
    /// How the plan is written: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    pub format: String,
    /// Say too what is in the context: its largest files, and what no step reads
    #[arg(long)]
    pub context_report: bool,
}
