//! The command line, as docker's users know it: flags in, plain values out. Nothing here acts.

mod build;
mod compare;
mod daemon;
mod debug;
mod images;
mod imagetools;
mod limits;
mod plan;
mod registry;
mod run;
mod store;
mod unsupported;
mod verify;

pub use build::BuildArgs;
pub use compare::{DiffArgs, LayersArgs, RebuildArgs};
pub use daemon::DaemonArgs;
pub use debug::{DebugArgs, DebugCommand, LlbArgs};
pub use images::{HistoryArgs, ImagesArgs, InspectArgs, LoadArgs, RmiArgs, SaveArgs, TagArgs};
pub use imagetools::{ImagetoolsArgs, ImagetoolsCommand, ImagetoolsCreateArgs, ImagetoolsInspectArgs};
pub use limits::LimitArgs;
pub use plan::PlanArgs;
pub use registry::{LoginArgs, LogoutArgs, PullArgs, PushArgs};
pub use run::RunArgs;
pub use store::{DuArgs, InfoArgs, PruneArgs, VersionArgs};
pub use verify::{StoreArgs, StoreCommand, VerifyArgs};

use clap::{Arg, ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// Builds, runs and ships container images.
#[derive(Parser, Debug)]
#[command(
    name = "forge",
    version,
    disable_help_subcommand = true,
    disable_version_flag = true,
    subcommand_required = true,
    arg_required_else_help = true,
    args_override_self = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    /// Print the version and quit
    #[arg(short = 'v', long = "version", action = ArgAction::Version, help_heading = "Global options")]
    version: Option<bool>,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Args, Debug, Clone, Default)]
pub struct GlobalArgs {
    /// Folder of the store [env: FORGE_ROOT] [default: /var/lib/forge, or $XDG_DATA_HOME/forge when not root]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub root: Option<PathBuf>,
    /// Configuration file, TOML [env: FORGE_CONFIG]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// Build with the forge daemon at unix:///path or tcp://host:port instead of in this process [env: FORGE_HOST]
    #[arg(long, global = true, value_name = "ADDRESS", help_heading = "Global options")]
    pub host: Option<String>,
    /// Authority that the certificate of that daemon is of, a PEM file
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub tlscacert: Option<PathBuf>,
    /// Certificate to show that daemon, a PEM file
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub tlscert: Option<PathBuf>,
    /// Key of that certificate, a PEM file
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub tlskey: Option<PathBuf>,
    /// Folder with these three: ca.pem, cert.pem, key.pem
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub tlsdir: Option<PathBuf>,
    /// Name in the daemon's certificate, where it is not the host of its address
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    pub tlsservername: Option<String>,
    /// Never open a connection
    #[arg(long, global = true, help_heading = "Global options")]
    pub offline: bool,
    /// Limit of what layers and archives of strangers may ask for: bytes, ratio, ratio-floor, entries, depth, header,
    /// load-bytes or load-entries; see docs/limits.md (repeatable)
    #[arg(long = "unpack-limit", global = true, value_name = "KEY=VALUE", help_heading = "Global options")]
    pub unpack_limits: Vec<String>,
}

/// What is to be done.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Build an image from a Dockerfile
    Build(Box<BuildArgs>),
    /// Say what a build would do, and do nothing; exits with 2 if a step would run
    Plan(Box<PlanArgs>),
    /// Run a command in a new container
    Run(Box<RunArgs>),
    /// List images
    Images(ImagesArgs),
    /// Show images in full, as JSON
    Inspect(InspectArgs),
    /// Show how an image came about
    History(HistoryArgs),
    /// Show what each layer of an image adds, and what of it nobody sees
    Layers(LayersArgs),
    /// Show in which files two images differ; status 1 where they do
    Diff(DiffArgs),
    /// Build an image again and name the first file that came out different; status 1 where one did
    Verify(Box<RebuildArgs>),
    /// Give an image a further name
    Tag(TagArgs),
    /// Remove names and images
    Rmi(RmiArgs),
    /// Fetch an image from a registry
    Pull(PullArgs),
    /// Send an image to a registry
    Push(PushArgs),
    /// Look at images in registries, and put them together anew
    Imagetools(ImagetoolsArgs),
    /// Write images to an archive
    Save(SaveArgs),
    /// Read images from an archive
    Load(LoadArgs),
    /// Log in to a registry
    Login(LoginArgs),
    /// Log out from a registry
    Logout(LogoutArgs),
    /// Show what the build cache takes
    Du(DuArgs),
    /// Remove build cache and dangling images
    Prune(PruneArgs),
    /// Look after the store
    Store(StoreArgs),
    /// Serve BuildKit's interface, so that its clients can build here
    Daemon(Box<DaemonArgs>),
    /// Show what forge makes of things
    Debug(DebugArgs),
    /// Show the version
    Version(VersionArgs),
    /// Show where forge keeps things and what this machine offers
    Info(InfoArgs),
}

impl Command {
    /// As users write it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Build(_) => "build",
            Self::Plan(_) => "plan",
            Self::Run(_) => "run",
            Self::Images(_) => "images",
            Self::Inspect(_) => "inspect",
            Self::History(_) => "history",
            Self::Layers(_) => "layers",
            Self::Diff(_) => "diff",
            Self::Verify(_) => "verify",
            Self::Tag(_) => "tag",
            Self::Rmi(_) => "rmi",
            Self::Pull(_) => "pull",
            Self::Push(_) => "push",
            Self::Imagetools(_) => "imagetools",
            Self::Save(_) => "save",
            Self::Load(_) => "load",
            Self::Login(_) => "login",
            Self::Logout(_) => "logout",
            Self::Du(_) => "du",
            Self::Prune(_) => "prune",
            Self::Store(_) => "store",
            Self::Daemon(_) => "daemon",
            Self::Debug(_) => "debug",
            Self::Version(_) => "version",
            Self::Info(_) => "info",
        }
    }

    /// The OCI runtime that its flag names.
    pub fn oci_runtime(&self) -> Option<&str> {
        match self {
            Self::Build(args) => args.oci_runtime.as_deref(),
            Self::Run(args) => args.oci_runtime.as_deref(),
            _ => None,
        }
    }
}

impl Cli {
    /// Reads a command line; the first word is the program's name.
    ///
    /// # Errors
    /// clap's error, which also carries `--help` and `--version`.
    pub fn read(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let words = as_daemon(words);
        if let Some(cli) = Self::read_alone(&words) {
            return Ok(cli);
        }
        let mut command = command();
        let mut matches = command.try_get_matches_from_mut(words)?;
        Self::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
    }

    /// Reads one of the commands that are to start fast by its own grammar alone: to put all of them together takes longer
    /// than a cached build. What does not fit, and every call for help, is read by the whole grammar.
    fn read_alone(words: &[OsString]) -> Option<Self> {
        let command = match words.get(1 + leading_flags(words.get(1..)?))?.to_str()? {
            "build" => BuildArgs::augment_args(clap::Command::new("build")),
            "run" => RunArgs::augment_args(clap::Command::new("run")),
            _ => return None,
        };
        let alone = clap::Command::new("forge")
            .disable_help_flag(true)
            .disable_help_subcommand(true)
            .subcommand(command.disable_help_flag(true));
        let command = with_docker_switches(GlobalArgs::augment_args(alone));
        let mut matches = command.try_get_matches_from(words).ok()?;
        let global = GlobalArgs::from_arg_matches(&matches).ok()?;
        let command = Command::from_arg_matches_mut(&mut matches).ok()?;
        Some(Self { global, version: None, command })
    }
}

/// Global flags whose value may be the next word.
const WITH_VALUES: [&str; 9] = [
    "--root",
    "--config",
    "--unpack-limit",
    "--host",
    "--tlscacert",
    "--tlscert",
    "--tlskey",
    "--tlsdir",
    "--tlsservername",
];

/// How many words before the command are global flags and their values.
fn leading_flags(words: &[OsString]) -> usize {
    let mut count = 0;
    while let Some(word) = words.get(count).and_then(|word| word.to_str()).filter(|word| word.starts_with('-')) {
        count += if WITH_VALUES.contains(&word) { 2 } else { 1 };
    }
    count
}

/// A program that is called as BuildKit's daemon is that.
fn as_daemon(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = words.into_iter().collect();
    let name = words.first().and_then(|word| std::path::Path::new(word).file_name());
    if name.is_some_and(|name| name == "buildkitd") && words.get(1).is_none_or(|word| word != "--version") {
        words.insert(1, "daemon".into());
    }
    words
}

/// The whole grammar, with docker's way of writing switches (`--rm`, `--rm=false`).
fn command() -> clap::Command {
    with_docker_switches(Cli::command())
}

fn with_docker_switches(command: clap::Command) -> clap::Command {
    let command = command.args_override_self(true).mut_args(docker_switch);
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, with_docker_switches))
}

/// Lets a switch take an optional value after `=`, as Go's flag library does.
fn docker_switch(argument: Arg) -> Arg {
    if !matches!(argument.get_action(), ArgAction::SetTrue) {
        return argument;
    }
    argument
        .action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .default_value("false")
        .hide_default_value(true)
        .value_name("BOOL")
        .value_parser(go_bool)
}

/// Go's `strconv.ParseBool`.
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        Cli::read(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_grammar_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn switches_take_values_and_the_last_one_wins() {
        let Command::Run(run) = read("forge run --rm=false --rm -it busybox sh -c -i").unwrap().command else {
            panic!()
        };
        assert!(run.rm && run.interactive && run.tty);
        assert_eq!(run.words, ["busybox", "sh", "-c", "-i"]);
        let Command::Run(run) = read("forge run --rm --rm=0 -i busybox").unwrap().command else { panic!() };
        assert!(!run.rm && !run.tty);
        assert!(read("forge run --rm=maybe busybox").is_err());
    }

    #[test]
    fn a_command_by_itself_is_read_as_by_the_whole_grammar() {
        for line in [
            "forge run --rm busybox true",
            "forge --root /x run --network=none -e A=1 --offline busybox sh -c --rm",
            "forge --offline --config /c build --no-cache=false -t a:1 --build-arg A=1 --root /x .",
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let alone = Cli::read_alone(&words).unwrap();
            let whole = Cli::from_arg_matches(&command().get_matches_from(words)).unwrap();
            assert_eq!(format!("{alone:?}"), format!("{whole:?}"));
        }
        for line in ["forge run --help", "forge build --nonsense .", "forge images", "forge", "forge --root"] {
            assert!(Cli::read_alone(&line.split(' ').map(OsString::from).collect::<Vec<_>>()).is_none(), "{line}");
        }
    }

    #[test]
    fn words_after_the_image_belong_to_the_command() {
        let Command::Run(run) = read("forge run -e A=1 busybox -e B=2 --rm --root x").unwrap().command else {
            panic!()
        };
        assert_eq!(run.env, ["A=1"]);
        assert_eq!(run.words, ["busybox", "-e", "B=2", "--rm", "--root", "x"]);
        assert!(!run.rm);
    }

    #[test]
    fn global_flags_stand_before_or_after_the_command() {
        assert_eq!(read("forge --root /x images -q").unwrap().global.root, Some("/x".into()));
        assert_eq!(read("forge images -q --root /x").unwrap().global.root, Some("/x".into()));
        assert!(read("forge pull --offline busybox").unwrap().global.offline);
    }

    #[test]
    fn the_host_name_has_dockers_short_flag() {
        let Command::Run(run) = read("forge run -h box busybox").unwrap().command else { panic!() };
        assert_eq!(run.hostname.as_deref(), Some("box"));
    }

    #[test]
    fn called_as_buildkitd_it_is_the_daemon() {
        let line = "/usr/bin/buildkitd --oci-worker=true --containerd-worker=false --oci-worker-gc=false \
                    --oci-worker-labels=a.b=true --config=/c --root /r --addr unix:///s --debug";
        let cli = Cli::read(line.split_whitespace().map(OsString::from)).unwrap();
        let Command::Daemon(daemon) = cli.command else { panic!() };
        assert_eq!((daemon.addr, daemon.labels), (vec!["unix:///s".to_owned()], vec!["a.b=true".to_owned()]));
        assert_eq!(cli.global.root, Some("/r".into()));
    }

    #[test]
    fn unknown_flags_are_errors() {
        assert!(read("forge build --nosuch .").is_err());
        assert!(read("forge run --nosuch busybox").is_err());
    }
}
