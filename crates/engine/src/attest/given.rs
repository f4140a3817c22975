//! Statements that a client made of its results, and lists that scanners made.

use crate::EngineError;
use crate::job::{Job, JobResult};
use forge_exporter::{Attestation, Placement, Predicate, SPDX, Subject};
use forge_image::ErrorKind;
use forge_store::{MergedTree, TreeKind};
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// A statement may be this long.
const MOST_BYTES: u64 = 40 << 20;

/// A statement, or a folder of them, that is a result of the build.
#[derive(Clone)]
pub struct GivenAttestation {
    /// What lies at the path.
    pub kind: GivenKind,
    /// The result that it lies in.
    pub result: Option<JobResult>,
    /// Where it lies.
    pub path: String,
    /// What kind of thing is said; of a folder's statements only such are taken, any where it is empty.
    pub predicate_type: String,
    /// What it is said of; the result where empty.
    pub subjects: Vec<Subject>,
    /// The first part of the name of the file that lists what is in the image itself.
    pub sbom_core: Option<String>,
    /// Whether it is left out where it would make an index of an image.
    pub inline_only: bool,
}

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenKind {
    /// A predicate: what is said.
    Predicate,
    /// A folder of whole statements.
    Bundle,
}

fn refused(message: impl Into<String>) -> EngineError {
    EngineError::new(ErrorKind::UserInput, message)
}

impl GivenAttestation {
    /// Reads it. What needs to run for that runs.
    pub(crate) async fn read(&self, job: &Job) -> Result<Vec<Attestation>, EngineError> {
        let Some(result) = &self.result else {
            return Err(refused("attestation does not have available content"));
        };
        let tree = job.tree(result).await?;
        let given = self.clone();
        crate::engine::blocking(move || match given.kind {
            GivenKind::Predicate => Ok(vec![given.predicate(&tree)?]),
            GivenKind::Bundle => given.bundle(&tree),
        })
        .await
    }

    fn predicate(&self, tree: &MergedTree) -> Result<Attestation, EngineError> {
        if self.path.is_empty() {
            return Err(refused("attestation does not have set path"));
        }
        if is_provenance(&self.predicate_type) {
            return Err(refused("frontend may not set provenance attestations"));
        }
        let bytes = read(tree, Path::new(&self.path))?;
        Ok(self.attestation(&self.path, self.predicate_type.clone(), bytes, self.subjects.clone()))
    }

    pub(super) fn bundle(&self, tree: &MergedTree) -> Result<Vec<Attestation>, EngineError> {
        let folder = Path::new("/").join(&self.path);
        let folder = tree.resolve(&folder).map_err(|error| EngineError::caused(error.kind(), error))?;
        let children = tree.children(&folder).map_err(|error| EngineError::caused(error.kind(), error))?;
        let mut found = Vec::new();
        for child in children {
            let statement = read(tree, &child.path)?;
            let statement: Value = serde_json::from_slice(&statement)
                .map_err(|error| refused(format!("cannot decode in-toto statement: {error}")))?;
            let name = child.name.to_string_lossy();
            found.push(self.of_statement(&name, &statement)?);
        }
        // The list of the image itself comes first.
        found.sort_by_key(|attestation| !attestation.is_core_sbom);
        Ok(found)
    }

    fn of_statement(&self, name: &str, statement: &Value) -> Result<Attestation, EngineError> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let predicate_type = text(&statement["predicateType"]);
        if is_provenance(&predicate_type) {
            return Err(refused("frontend may not bundle provenance attestations"));
        }
        if !self.predicate_type.is_empty() && predicate_type != self.predicate_type {
            let message =
                format!("bundle entry {predicate_type} does not match required predicate type {}", self.predicate_type);
            return Err(refused(message));
        }
        let subjects = statement["subject"].as_array().into_iter().flatten().map(|subject| Subject::Other {
            name: Some(text(&subject["name"])).filter(|name| !name.is_empty()).unwrap_or_else(|| "_".to_owned()),
            digests: subject["digest"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(algorithm, hex)| format!("{algorithm}:{}", text(hex)))
                .collect(),
        });
        let predicate = match &statement["predicate"] {
            Value::Null => Vec::new(),
            predicate => predicate.to_string().into_bytes(),
        };
        Ok(self.attestation(name, predicate_type, predicate, subjects.collect()))
    }

    fn attestation(&self, path: &str, predicate_type: String, bytes: Vec<u8>, subjects: Vec<Subject>) -> Attestation {
        let file_name = path.rsplit('/').next().unwrap_or(path).to_owned();
        let stem = file_name.split('.').next().unwrap_or_default();
        let is_core_sbom = predicate_type == SPDX && self.sbom_core.as_deref() == Some(stem);
        let placement = if self.inline_only { Placement::InlineOnly } else { Placement::Everywhere };
        Attestation { predicate_type, predicate: Predicate::Json(bytes), subjects, file_name, placement, is_core_sbom }
    }
}

/// Only the builder itself says how something was built.
fn is_provenance(predicate_type: &str) -> bool {
    predicate_type.starts_with("https://slsa.dev/provenance/")
}

fn read(tree: &MergedTree, path: &Path) -> Result<Vec<u8>, EngineError> {
    let failed = |error: forge_store::StoreError| EngineError::caused(error.kind(), error);
    let resolved = tree.resolve(&Path::new("/").join(path)).map_err(failed)?;
    let shown = path.display();
    let missing = || refused(format!("cannot read in-toto attestation: open {shown}: no such file or directory"));
    let entry = tree.lookup(&resolved).map_err(failed)?.ok_or_else(missing)?;
    let TreeKind::File { size } = entry.kind else {
        return Err(refused(format!("cannot read in-toto attestation: {shown} is not a regular file")));
    };
    if size > MOST_BYTES {
        return Err(refused(format!("cannot read in-toto attestation: {shown} exceeds {MOST_BYTES} bytes")));
    }
    let (mut file, mut bytes) = (tree.open(&resolved).map_err(failed)?, Vec::new());
    file.read_to_end(&mut bytes).map_err(|error| EngineError::caused(ErrorKind::Environment, error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bundle(predicate_type: &str) -> GivenAttestation {
        GivenAttestation {
            kind: GivenKind::Bundle,
            result: None,
            path: "/out".to_owned(),
            predicate_type: predicate_type.to_owned(),
            subjects: Vec::new(),
            sbom_core: Some("sbom".to_owned()),
            inline_only: false,
        }
    }

    #[test]
    fn statements_of_a_folder_are_taken_apart() {
        let statement = json!({
            "predicateType": SPDX,
            "subject": [{ "name": "x", "digest": { "sha256": "00" } }],
            "predicate": { "a": 1 },
        });
        let taken = bundle(SPDX).of_statement("sbom.spdx.json", &statement).unwrap();
        assert!(taken.is_core_sbom && taken.file_name == "sbom.spdx.json");
        assert_eq!(taken.subjects, [Subject::Other { name: "x".into(), digests: vec!["sha256:00".into()] }]);
        assert!(!bundle(SPDX).of_statement("other.json", &statement).unwrap().is_core_sbom);
    }

    // Seen to fail without the test in `of_statement`.
    #[test]
    fn nobody_but_the_builder_says_how_something_was_built() {
        let statement = json!({ "predicateType": "https://slsa.dev/provenance/v1", "predicate": {} });
        let refused = bundle("").of_statement("x", &statement).unwrap_err();
        assert_eq!(refused.to_string(), "frontend may not bundle provenance attestations");
        let other = bundle(SPDX).of_statement("x", &json!({ "predicateType": "y" })).unwrap_err();
        assert!(other.to_string().contains("does not match required predicate type"));
    }
}
