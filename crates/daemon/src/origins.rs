//! What builds that run now asked of front ends: a result that is handed to another front end is known by the step that
//! makes it, and so is what was asked for it.

use forge_buildkit_proto::pb;
use forge_engine::RequestOrigin;
use prost::Message;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Requests by the last step of what they came to.
#[derive(Default)]
pub(crate) struct Origins(Mutex<HashMap<String, Vec<Known>>>);

struct Known {
    build: String,
    origin: RequestOrigin,
}

impl Origins {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Vec<Known>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a build asked for.
    pub(crate) fn note(&self, build: &str, definition: &pb::Definition, origin: RequestOrigin) {
        let Some(head) = head(definition) else { return };
        let build = build.to_owned();
        self.known().entry(head).or_default().push(Known { build, origin });
    }

    /// What was asked for that came to these steps; `None` where nothing was, or different things.
    pub(crate) fn find(&self, definition: &pb::Definition) -> Option<RequestOrigin> {
        let known = self.known();
        let found = known.get(&head(definition)?)?;
        let first = found.first()?.origin.clone().without_root();
        found.iter().all(|known| known.origin.clone().without_root() == first).then_some(first)
    }

    /// Forgets what a build asked for.
    pub(crate) fn forget(&self, build: &str) {
        self.known().retain(|_, found| {
            found.retain(|known| known.build != build);
            !found.is_empty()
        });
    }
}

/// The step that a definition's last entry names.
fn head(definition: &pb::Definition) -> Option<String> {
    let last = pb::Op::decode(definition.def.last()?.as_slice()).ok()?;
    let input = last.inputs.first()?;
    Some(format!("{}:{}", input.digest, input.index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_engine::Invocation;

    fn definition(digest: &str) -> pb::Definition {
        let input = pb::Input { digest: digest.to_owned(), index: 0 };
        let def = vec![pb::Op { inputs: vec![input], ..pb::Op::default() }.encode_to_vec()];
        pb::Definition { def, ..pb::Definition::default() }
    }

    fn origin(target: &str) -> RequestOrigin {
        let options = [("target".to_owned(), target.to_owned())].into();
        Invocation { frontend: "f".to_owned(), options, ..Invocation::default() }.origin()
    }

    #[test]
    fn a_result_is_known_by_its_last_step_while_its_build_runs() {
        let origins = Origins::default();
        origins.note("b1", &definition("x"), origin("t"));
        assert_eq!(origins.find(&definition("x")), Some(origin("t")));
        assert_eq!(origins.find(&definition("y")), None);
        origins.note("b2", &definition("x"), origin("u"));
        assert_eq!(origins.find(&definition("x")), None);
        origins.forget("b2");
        assert_eq!(origins.find(&definition("x")), Some(origin("t")));
        origins.forget("b1");
        assert_eq!(origins.find(&definition("x")), None);
    }
}
