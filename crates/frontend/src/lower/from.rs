//! What a FROM says, and what the checks say of it.

use super::environment::Environment;
use super::plan::{Base, Plan, StagePlan};
use crate::expand::{Budget, Expanded, Expander, Quotes, Unset};
use crate::lint::Lint;
use crate::program::Stage;
use crate::span::At;
use crate::suggest::{COMMON_IMAGES, nearest};
use crate::{FrontendError, Problem, Rule, Token};
use forge_image::{Platform, Reference};
use std::collections::BTreeSet;

/// Looks at one FROM.
pub(super) struct Froms<'p, 'a> {
    pub plan: &'p Plan<'a>,
    pub stage: &'a Stage,
    pub escape: char,
    pub lint: &'p Lint,
    pub budget: &'p Budget,
}

impl Froms<'_, '_> {
    /// What the stage is built on.
    pub fn plan_stage(&self, index: usize) -> Result<StagePlan, FrontendError> {
        let expanded = self.expand(&self.stage.base, &self.plan.globals)?;
        self.check_undeclared(&expanded);
        let name = expanded.text;
        if name.is_empty() {
            let reason = format!("base name ({}) should not be blank", self.stage.base.text);
            return Err(FrontendError::from(Problem::value(reason)).or_at(self.stage.base.span));
        }
        let chosen = self.platform()?;
        let platform = chosen.clone().unwrap_or_else(|| self.plan.options.platform.clone());
        let own_context = match &self.stage.name {
            Some(name) => self.plan.context(name, &platform)?,
            None => None,
        };
        let replaced = own_context.is_some();
        let base = match (own_context, self.plan.stage_before(&name, index)) {
            (Some(base), _) => base,
            (None, Some(stage)) => Base::Stage(stage),
            (None, None) => self.outside(&name, &platform)?,
        };
        Ok(StagePlan {
            base,
            platform,
            platform_was_chosen: chosen.is_some(),
            replaced,
            title: self.stage.name.clone().unwrap_or_else(|| format!("stage-{index}")),
        })
    }

    fn outside(&self, name: &str, platform: &Platform) -> Result<Base, FrontendError> {
        self.plan.outside(name, platform).at(self.stage.base.span).map_err(|error| {
            let suggestion = nearest(name, self.plan.stage_names().chain(COMMON_IMAGES));
            FrontendError { suggestion, ..error }
        })
    }

    fn expand(&self, token: &Token, variables: &Environment) -> Result<Expanded, FrontendError> {
        let (quotes, unset) = (Quotes::Removed, Unset::Empty);
        let expander = Expander { variables, escape: self.escape, quotes, unset, budget: self.budget };
        expander.expand(&token.text).at(token.span)
    }

    fn platform(&self) -> Result<Option<Platform>, FrontendError> {
        let Some(written) = &self.stage.platform else { return Ok(None) };
        let expanded = self.expand(written, &self.plan.globals)?;
        self.check_undeclared(&expanded);
        self.check_platform(written, &expanded);
        let suggestion = expanded.undefined.iter().find_map(|name| nearest(name, self.plan.globals.names()));
        let refuse = |problem: Problem| {
            let error = FrontendError::from(problem).or_at(written.span);
            FrontendError { suggestion: suggestion.clone(), ..error }
        };
        if expanded.text.is_empty() {
            return Err(refuse(Problem::value(format!("empty platform value from expression {}", written.text))));
        }
        let platform = expanded.text.parse();
        platform.map(Some).map_err(|source| refuse(Problem::Platform { value: written.text.clone(), source }))
    }

    fn report(&self, rule: Rule, words: &[&str]) {
        self.lint.report(rule, self.stage.span, words, &self.stage.comments);
    }

    fn check_undeclared(&self, expanded: &Expanded) {
        if expanded.undefined.is_empty() {
            return;
        }
        let declared = self.plan.program.globals.iter().map(|definition| definition.key.text.as_str());
        let known: BTreeSet<&str> = declared.chain(self.plan.globals.names()).collect();
        for name in expanded.undefined.iter().filter(|name| !known.contains(name.as_str())) {
            let suggestion = nearest(name, known.iter().copied()).unwrap_or_default();
            self.report(Rule::UndefinedArgInFrom, &[name, &suggestion]);
        }
    }

    fn check_platform(&self, written: &Token, expanded: &Expanded) {
        let used: Vec<&str> = expanded.used.iter().map(String::as_str).collect();
        match (used.as_slice(), expanded.undefined.is_empty()) {
            (["TARGETPLATFORM"], true) => {
                use crate::expand::Variables;
                if self.plan.globals.get("TARGETPLATFORM") == Some(&expanded.text) {
                    self.report(Rule::RedundantTargetPlatform, &[&written.text]);
                }
            }
            ([], true) => {
                let Ok(platform) = expanded.text.parse::<Platform>() else { return };
                let name = self.stage.name.as_deref().unwrap_or_default();
                if !name.contains(&platform.os) && !name.contains(&platform.architecture) {
                    self.report(Rule::FromPlatformFlagConstDisallowed, &[&expanded.text]);
                }
            }
            _ => {}
        }
    }

    /// Whether the file can be built without build arguments.
    pub fn check_default_base(&self, defaults: &Environment) {
        if !self.stage.base.text.contains('$') {
            return;
        }
        let Ok(expanded) = self.expand(&self.stage.base, defaults) else { return };
        if expanded.text.parse::<Reference>().is_err() {
            self.report(Rule::InvalidDefaultArgInFrom, &[&self.stage.base.text]);
        }
    }
}
