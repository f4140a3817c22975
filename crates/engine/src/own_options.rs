//! What a build may be asked for that BuildKit's interface has no words for, as one attribute of its front end.

use crate::{BuildRequest, EngineError, Explain, OnFailure, Resources, TriggerRight};
use forge_image::ErrorKind;
use forge_llb::is_set_of_numbers;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a daemon of forge's is asked beyond BuildKit's words. A JSON document on the wire; a daemon refuses one with a field that
/// it does not know, so that nothing that was asked for is lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct OwnOptions {
    /// What bounds each step.
    resources: Resources,
    /// What bounds all steps together.
    total_resources: Resources,
    /// Whether the steps that do not need what failed go on.
    keep_going: bool,
    /// How many steps run at the same time.
    max_parallelism: Option<usize>,
    /// What triggers of base images may use, by its names.
    triggers: BTreeSet<String>,
    /// Whether every step that runs says why.
    explain: bool,
    /// What the builds have in common that are compared with each other.
    compared_as: Option<String>,
}

impl OwnOptions {
    /// The attribute that has them.
    pub const ATTRIBUTE: &str = "forge.options";
    /// The label by which the workers of a daemon tell that it reads the attribute.
    pub const LABEL: &str = "forge.options";

    /// Those of a request; `None` where it has none.
    pub fn of(request: &BuildRequest) -> Option<Self> {
        let own = Self {
            resources: request.limits.resources.clone(),
            total_resources: request.total_limits.clone(),
            keep_going: request.on_failure == OnFailure::FinishOthers,
            max_parallelism: request.max_parallelism,
            triggers: request.allowed.in_triggers.iter().map(|right| right.name().to_owned()).collect(),
            explain: request.explain == Explain::Everything,
            compared_as: request.compared_as.clone(),
        };
        (own != Self::default()).then_some(own)
    }

    /// The flags that ask for them.
    pub fn flags(&self) -> String {
        let none = Resources::default();
        let given = [
            (self.resources != none, "--memory, --cpus and the other --resource"),
            (self.total_resources != none, "--total-resource"),
            (self.keep_going, "--keep-going"),
            (self.max_parallelism.is_some(), "--max-parallelism"),
            (!self.triggers.is_empty(), "--allow onbuild.…"),
            (self.explain, "--explain"),
        ];
        given.iter().filter(|(is_given, _)| *is_given).map(|(_, flag)| *flag).collect::<Vec<_>>().join(", ")
    }

    /// The attribute's value.
    pub fn text(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// Reads the attribute's value.
    ///
    /// # Errors
    /// It asks for what this forge does not know, or for no such limit.
    pub fn parse(text: &str) -> Result<Self, EngineError> {
        let refused =
            |why: String| EngineError::new(ErrorKind::UserInput, format!("invalid {}: {why}", Self::ATTRIBUTE));
        let own: Self = serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
        for resources in [&own.resources, &own.total_resources] {
            let lists = [&resources.cpuset_cpus, &resources.cpuset_mems];
            if let Some(list) = lists.into_iter().flatten().find(|list| !is_set_of_numbers(list)) {
                return Err(refused(format!("{list:.100?} is no list of numbers")));
            }
        }
        if own.max_parallelism == Some(0) {
            return Err(refused("at least one step has to run at a time".to_owned()));
        }
        match own.triggers.iter().find(|name| right(name).is_none()) {
            Some(name) => Err(refused(format!("there is no right {name:.100?}"))),
            None => Ok(own),
        }
    }

    /// The request with them. No more steps run at a time than `most`, whatever is asked for.
    pub fn applied(self, request: BuildRequest, most: Option<usize>) -> BuildRequest {
        let mut request = request;
        request.limits.resources = self.resources;
        request.total_limits = self.total_resources;
        request.on_failure = if self.keep_going { OnFailure::FinishOthers } else { OnFailure::CancelOthers };
        request.max_parallelism = [self.max_parallelism, most].into_iter().flatten().min();
        request.explain = if self.explain { Explain::Everything } else { Explain::FirstCauses };
        request.compared_as = self.compared_as;
        request.allowed.in_triggers.extend(self.triggers.iter().filter_map(|name| right(name)));
        request
    }
}

fn right(name: &str) -> Option<TriggerRight> {
    TriggerRight::ALL.into_iter().find(|right| right.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SwapLimit;

    fn given() -> OwnOptions {
        let resources = Resources {
            memory: Some(64 << 20),
            memory_swap: Some(SwapLimit::Unlimited),
            cpuset_cpus: Some("0-1,3".into()),
            ..Resources::default()
        };
        OwnOptions {
            resources,
            total_resources: Resources { pids: Some(7), ..Resources::default() },
            keep_going: true,
            max_parallelism: Some(3),
            triggers: ["secret".to_owned()].into(),
            explain: true,
            compared_as: Some("a folder".to_owned()),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(OwnOptions::parse(&given().text()).unwrap(), given());
        let flags = given().flags();
        assert!(flags.starts_with("--memory") && flags.ends_with("--allow onbuild.…, --explain"), "{flags}");
        // By itself it is no flag.
        let compared = OwnOptions { compared_as: Some("a folder".to_owned()), ..OwnOptions::default() };
        assert_eq!(compared.flags(), "");
    }

    // Fails where fields that are not known are passed over, and where the values of lists are not looked at.
    #[test]
    fn what_is_not_known_is_refused() {
        for (text, why) in [
            ("{\"gpu\":1}", "unknown field `gpu`"),
            ("[", "EOF"),
            ("{\"maxParallelism\":0}", "at least one"),
            ("{\"triggers\":[\"root\"]}", "no right \"root\""),
            ("{\"resources\":{\"cpuset_cpus\":\"0;1\"}}", "no list of numbers"),
        ] {
            let error = OwnOptions::parse(text).unwrap_err().to_string();
            assert!(error.starts_with("invalid forge.options: ") && error.contains(why), "{error}");
        }
    }
}
