/// `forge store`: the store itself.
#[derive(clap::Args, Debug)]
pub struct StoreArgs {
    #[command(subcommand)]
    pub what: StoreCommand,
}

/// What is to be done with it.
#[derive(clap::Subcommand, Debug)]
pub enum StoreCommand {
    /// Compare what the store holds with its records; status 1 where something is damaged
    Verify(VerifyArgs),
}

/// `forge store verify`
#[derive(clap::Args, Debug)]
pub struct VerifyArgs {
    /// Read every byte, and compare every attribute of every file
    #[arg(long)]
    pub full: bool,
    /// Take out what is damaged: builds and pulls bring it back
    #[arg(long)]
    pub repair: bool,
}
