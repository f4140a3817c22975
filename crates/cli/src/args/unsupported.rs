use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use std::marker::PhantomData;

/// A flag that docker has and forge does not.
#[derive(Debug)]
pub struct Flag {
    pub long: &'static str,
    pub short: Option<char>,
    pub shape: Shape,
}

/// How a flag is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `--flag value`, any number of times.
    Value,
    /// `--flag` or `--flag=false`.
    Switch,
}

/// A table of flags that parse but are not there.
pub trait FlagTable {
    const FLAGS: &'static [Flag];
}

/// Which flags of a table were used. They parse like all others, so that the user is told that forge lacks
/// them instead of that they are misspelt; whoever acts refuses them or says that they have no effect.
pub struct Unsupported<T> {
    used: Vec<&'static str>,
    table: PhantomData<T>,
}

impl<T> Unsupported<T> {
    /// The flags that were used, without dashes, in the order of the table.
    pub fn used(&self) -> &[&'static str] {
        &self.used
    }
}

impl<T> std::fmt::Debug for Unsupported<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.used.fmt(f)
    }
}

impl<T> Default for Unsupported<T> {
    fn default() -> Self {
        Self { used: Vec::new(), table: PhantomData }
    }
}

impl<T: FlagTable> Args for Unsupported<T> {
    fn augment_args(command: Command) -> Command {
        T::FLAGS.iter().fold(command, |command, flag| command.arg(argument(flag)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn argument(flag: &Flag) -> Arg {
    let argument = Arg::new(flag.long).long(flag.long).hide(true);
    let argument = match flag.short {
        Some(short) => argument.short(short),
        None => argument,
    };
    match flag.shape {
        Shape::Value => argument.action(ArgAction::Append).num_args(1).allow_hyphen_values(true),
        Shape::Switch => argument.action(ArgAction::SetTrue),
    }
}

impl<T: FlagTable> FromArgMatches for Unsupported<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let used = |flag: &&Flag| match flag.shape {
            Shape::Value => matches.contains_id(flag.long),
            Shape::Switch => matches.get_flag(flag.long),
        };
        Ok(Self { used: T::FLAGS.iter().filter(used).map(|flag| flag.long).collect(), table: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// One row of a table.
pub const fn flag(long: &'static str, short: Option<char>, shape: Shape) -> Flag {
    Flag { long, short, shape }
}
