/// `forge pull`
#[derive(clap::Args, Debug)]
pub struct PullArgs {
    /// The image's name
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    pub name: String,
    /// Platform of the image
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Print only the name
    #[arg(short = 'q', long)]
    pub quiet: bool,
}

/// `forge push`
#[derive(clap::Args, Debug)]
pub struct PushArgs {
    /// The image's name
    #[arg(value_name = "NAME[:TAG]")]
    pub name: String,
    /// Print only the name
    #[arg(short = 'q', long)]
    pub quiet: bool,
}

/// `forge login`
#[derive(clap::Args, Debug)]
pub struct LoginArgs {
    /// The registry [default: Docker Hub]
    #[arg(value_name = "SERVER")]
    pub server: Option<String>,
    /// The user
    #[arg(short = 'u', long, value_name = "NAME")]
    pub username: Option<String>,
    /// The password; others can see it in the list of processes
    #[arg(short = 'p', long, value_name = "TEXT", conflicts_with = "password_stdin")]
    pub password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub password_stdin: bool,
}

/// `forge logout`
#[derive(clap::Args, Debug)]
pub struct LogoutArgs {
    /// The registry [default: Docker Hub]
    #[arg(value_name = "SERVER")]
    pub server: Option<String>,
}
