/// The instructions of the language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Keyword {
    Add,
    Arg,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    Expose,
    From,
    Healthcheck,
    Label,
    Maintainer,
    Onbuild,
    Run,
    Shell,
    Stopsignal,
    User,
    Volume,
    Workdir,
}

use Keyword::*;

impl Keyword {
    /// All of them with their names.
    pub const ALL: [(&'static str, Keyword); 18] = [
        ("ADD", Add),
        ("ARG", Arg),
        ("CMD", Cmd),
        ("COPY", Copy),
        ("ENTRYPOINT", Entrypoint),
        ("ENV", Env),
        ("EXPOSE", Expose),
        ("FROM", From),
        ("HEALTHCHECK", Healthcheck),
        ("LABEL", Label),
        ("MAINTAINER", Maintainer),
        ("ONBUILD", Onbuild),
        ("RUN", Run),
        ("SHELL", Shell),
        ("STOPSIGNAL", Stopsignal),
        ("USER", User),
        ("VOLUME", Volume),
        ("WORKDIR", Workdir),
    ];

    /// The keyword of that name, in any case.
    pub fn named(name: &str) -> Option<Keyword> {
        Self::ALL.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, keyword)| *keyword)
    }

    /// The name in upper case.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}
