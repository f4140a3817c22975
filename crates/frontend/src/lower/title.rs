//! What users see of a step: `[build 2/5] RUN make`.

use super::environment::Environment;
use super::stage::StageBuilder;
use crate::command::{Command, Origin};
use crate::expand::{Budget, Expander, Quotes, Unset, Variables};
use forge_image::Platform;

/// Names longer than this are not expanded: no one reads them.
const MAX_NAME: usize = 64 << 10;

impl StageBuilder<'_, '_> {
    /// `[stage n/total] `, and counts the step.
    pub fn step_prefix(&mut self, origin: Origin) -> String {
        if self.steps == 0 {
            return String::new();
        }
        self.step += 1;
        let title = match self.lowering.plan.stages[self.index].title.as_str() {
            "" => String::new(),
            title => format!("{title} "),
        };
        let width = self.steps.to_string().len();
        let trigger = if origin == Origin::Stage { "" } else { "ONBUILD " };
        format!("[{}{title}{:>width$}/{}] {trigger}", self.platform_prefix(), self.step, self.steps)
    }

    /// The platform where several are built, and the one that is cross-compiled for.
    fn platform_prefix(&self) -> String {
        if !self.lowering.options.multi_platform {
            return String::new();
        }
        let own = &self.state.platform;
        let target = self.state.env.get("TARGETPLATFORM").and_then(|text| text.parse::<Platform>().ok());
        match target.filter(|target| target != own) {
            Some(target) if target.os == own.os => {
                let arch = target.to_string().split_once('/').map(|(_, arch)| arch.to_owned()).unwrap_or_default();
                format!("{own}->{arch} ")
            }
            Some(target) => format!("{own}->{target} "),
            None => format!("{own} "),
        }
    }

    /// The name of a step: its text with variables shown by their values where it is built.
    pub fn step_name(&mut self, command: &Command) -> String {
        let prefix = self.step_prefix(command.origin);
        prefix + &self.step_text(command)
    }

    /// The text of a step.
    pub fn step_text(&self, command: &Command) -> String {
        let escape = self.lowering.dockerfile.escape();
        upper_keyword(&shown(&command.text, &*self.state.env, escape, Quotes::Removed, Unset::Empty))
    }

    /// The name of a RUN. Variables that hold secrets are shown as asterisks, to tell that they are known.
    pub fn run_name(&mut self, command: &Command, summary: &str, secrets: &[String]) -> String {
        let prefix = self.step_prefix(command.origin);
        let escape = self.lowering.dockerfile.escape();
        let variables = Masked { variables: &self.state.env, secrets };
        let text = format!("{}{summary}", command.text);
        prefix + &upper_keyword(&shown(&text, &variables, escape, Quotes::Kept, Unset::Kept))
    }
}

/// Variables of which some are secret.
struct Masked<'a> {
    variables: &'a Environment,
    secrets: &'a [String],
}

impl Variables for Masked<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        match self.secrets.iter().any(|secret| secret == name) {
            true => Some("****"),
            false => self.variables.get(name),
        }
    }
}

fn upper_keyword(text: &str) -> String {
    let (keyword, rest) = text.split_at(text.find(' ').unwrap_or(text.len()));
    keyword.to_uppercase() + rest
}

/// A text with its variables replaced, or as it is where that is not possible.
fn shown(text: &str, variables: &dyn Variables, escape: char, quotes: Quotes, unset: Unset) -> String {
    if text.len() > MAX_NAME {
        return text.to_owned();
    }
    let budget = Budget::default();
    let expanded = Expander { variables, escape, quotes, unset, budget: &budget }.expand(text);
    expanded.ok().map(|expanded| expanded.text).filter(|name| name.len() <= MAX_NAME).unwrap_or_else(|| text.to_owned())
}
