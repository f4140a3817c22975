//! What clients ask to be said of a result, and what they say of it themselves.

use crate::reply;
use forge_buildkit_proto::moby::buildkit::v1::frontend::{
    Attestation, AttestationKind, InTotoSubject, InTotoSubjectKind,
};
use forge_engine::{Attest, GivenAttestation, GivenKind, JobResult, Subject};
use serde_json::{Map, Value};
use std::collections::HashMap;
use tonic::Status;

/// Reads `attest:KIND` and `build-arg:BUILDKIT_ATTEST_KIND`.
pub(crate) fn wanted(options: &HashMap<String, String>, environment: &Map<String, Value>) -> Result<Attest, Status> {
    let mut attest = Attest { environment: environment.clone(), ..Attest::default() };
    let mut named: Vec<(String, &String)> = options
        .iter()
        .filter_map(|(name, value)| {
            let kind = name.strip_prefix("attest:").or_else(|| name.strip_prefix("build-arg:BUILDKIT_ATTEST_"))?;
            Some((kind.to_ascii_lowercase(), value))
        })
        .collect();
    named.sort();
    for (kind, value) in named {
        attest.add(&kind, &fields(value)).map_err(|error| reply::status(&error))?;
    }
    Ok(attest)
}

/// `a=b,c=d`, in CSV.
fn fields(text: &str) -> Vec<(String, String)> {
    let mut fields = vec![String::new()];
    let (mut is_quoted, mut letters) = (false, text.chars().peekable());
    while let Some(letter) = letters.next() {
        let field = fields.last_mut().expect("there is one from the start");
        match letter {
            '"' if is_quoted && letters.peek() == Some(&'"') => {
                letters.next();
                field.push('"');
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(String::new()),
            other => field.push(other),
        }
    }
    let pair = |field: String| match field.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (field, String::new()),
    };
    fields.into_iter().filter(|field| !field.is_empty()).map(pair).collect()
}

/// A statement as a client hands it in.
pub(crate) fn given(attestation: &Attestation, result: Option<JobResult>) -> Result<GivenAttestation, Status> {
    let kind = match attestation.kind() {
        AttestationKind::InToto => GivenKind::Predicate,
        AttestationKind::Bundle => GivenKind::Bundle,
    };
    let text = |name: &str| attestation.metadata.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
    Ok(GivenAttestation {
        kind,
        result,
        path: attestation.path.clone(),
        predicate_type: attestation.in_toto_predicate_type.clone(),
        subjects: attestation.in_toto_subjects.iter().map(subject).collect(),
        sbom_core: text("sbom-core"),
        inline_only: text("inline-only").as_deref() == Some("true"),
    })
}

fn subject(subject: &InTotoSubject) -> Subject {
    let name = Some(subject.name.clone()).filter(|name| !name.is_empty() && name != "_");
    match subject.kind() {
        InTotoSubjectKind::Self_ => Subject::Itself { name },
        InTotoSubjectKind::Raw => {
            Subject::Other { name: name.unwrap_or_else(|| "_".to_owned()), digests: subject.digest.clone() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_ask_for_attestations() {
        let read = |name: &str, value: &str| {
            let options = [(name.to_owned(), value.to_owned())].into();
            wanted(&options, &Map::new()).map_err(|status| status.message().to_owned())
        };
        assert!(read("attest:provenance", "").unwrap().provenance.is_some());
        assert!(read("build-arg:BUILDKIT_ATTEST_SBOM", "").unwrap().sbom.is_some());
        let sbom = read("attest:sbom", "\"generator=x\",\"A=b,c\"").unwrap().sbom.unwrap();
        assert_eq!(sbom.parameters["A"], "b,c");
        assert_eq!(read("attest:other", "").unwrap_err(), "unknown attestation type \"other\"");
        assert_eq!(read("label:x", "").unwrap(), Attest::default());
    }
}
