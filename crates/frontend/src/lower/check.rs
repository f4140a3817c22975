use super::{Inputs, Scope, Turn, take_turn};
use crate::lint::Lint;
use crate::{CheckResults, Checked, Dockerfile, FrontendError, LowerOptions, ResolvedImages, SourceTime};

/// Runs the build checks, over all stages where no target is asked for. Called to a fixpoint as
/// [`lower`](crate::lower()) is.
///
/// What is wrong with the Dockerfile is part of the result, beside what was found before that was met.
pub fn check(dockerfile: &Dockerfile, options: &LowerOptions, images: &ResolvedImages) -> Checked {
    let lint = match Lint::of(dockerfile, options) {
        Ok(lint) => lint,
        Err(error) => return Checked::Done(CheckResults { warnings: Vec::new(), error: Some(error) }),
    };
    let options = &timeless(options);
    let inputs = Inputs { dockerfile, options, images, lint: &lint };
    let scope = if options.target.is_some() { Scope::Target } else { Scope::All };
    let failed = match take_turn(&inputs, scope, |_, _, _| Ok(())) {
        Ok(Turn::Need(requests)) => return Checked::Need { requests, found: lint.found() },
        Ok(Turn::Done(())) => None,
        Err(error) => Some(FrontendError { file: dockerfile.name().to_owned(), ..error }),
    };
    let warnings = lint.found();
    // That all findings are errors has no place of its own.
    let violation = || lint.violation(&warnings).map(|error| FrontendError { span: None, ..error });
    let error = failed.or_else(violation);
    Checked::Done(CheckResults { warnings, error })
}

/// The same options, with the time of sources left out: nothing is built that could carry one.
pub(super) fn timeless(options: &LowerOptions) -> LowerOptions {
    LowerOptions { source_time: SourceTime::None, ..options.clone() }
}
