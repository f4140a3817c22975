//! What scanners of software are shown besides the result: the arguments `BUILDKIT_SBOM_SCAN_CONTEXT` and
//! `BUILDKIT_SBOM_SCAN_STAGE` of the Dockerfile say so.

use super::{Lowering, Progress};
use crate::FrontendError;
use crate::expand::Variables;
use forge_llb::Edge;

const CONTEXT: &str = "BUILDKIT_SBOM_SCAN_CONTEXT";
const STAGE: &str = "BUILDKIT_SBOM_SCAN_STAGE";

impl Lowering<'_> {
    /// The main context and the stages that the wanted one needs, as far as they say that they may be looked at.
    pub(super) fn scanned(&mut self, target: usize) -> Result<Vec<(String, Edge)>, FrontendError> {
        let plan = self.plan;
        let mut scanned = Vec::new();
        if self.says(target, CONTEXT) {
            let edge = self.base_edge(&plan.main, plan.program.stages[target].span, "")?;
            scanned.extend(edge.map(|edge| ("context".to_owned(), edge)));
        }
        for index in (0..plan.stages.len()).filter(|index| *index != target) {
            let Progress::Done(state) = &self.done[index] else { continue };
            if let Some(edge) = state.edge.clone().filter(|_| self.says(index, STAGE)) {
                scanned.push((plan.title(index), edge));
            }
        }
        Ok(scanned)
    }

    /// Whether an argument is true in a stage, or names it. A stage has the value that it declares, else that of the
    /// arguments before the first one, where these declare it.
    fn says(&self, index: usize, argument: &str) -> bool {
        let Progress::Done(state) = &self.done[index] else { return false };
        let is_declared = self.plan.program.globals.iter().any(|definition| definition.key.text == argument);
        let global = self.plan.globals.get(argument).filter(|_| is_declared);
        let value = match state.args.value(argument) {
            Some(value) => value.clone(),
            None => global.map(ToString::to_string),
        };
        let name = self.plan.title(index);
        value.is_some_and(|value| match value.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
            names => names.split(',').any(|named| named == name),
        })
    }
}
