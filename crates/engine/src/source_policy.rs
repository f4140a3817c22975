//! Rules about what a build may be made of, as BuildKit has them: they allow, deny or convert sources before anything of these
//! is fetched.

use crate::EngineError;
use forge_buildkit_proto::moby::buildkit::v1::sourcepolicy as wire;
use forge_buildkit_proto::pb;
use forge_image::ErrorKind;
use regex::Regex;
use serde::Deserialize;
use std::collections::BTreeMap;

/// How often one source may be converted, as BuildKit has it.
const MOST_CONVERSIONS: usize = 20;

/// A list of rules. All are looked at in order: of those that allow or deny the last one that matches counts, and the first
/// one that changes the source begins the evaluation of what it became.
#[derive(Clone, Debug, Default)]
pub struct SourcePolicy {
    rules: Vec<Rule>,
    wire: wire::Policy,
}

#[derive(Clone, Debug)]
struct Rule {
    action: Action,
    identifier: String,
    pattern: Pattern,
    constraints: Vec<Constraint>,
    updates: Option<Updates>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Allow,
    Deny,
    Convert,
    /// What a later BuildKit may have: an error where its rule matches.
    Unknown(i32),
}

/// What else than the identifier itself matches.
#[derive(Clone, Debug)]
enum Pattern {
    Exact,
    /// An expression, whose groups the conversion may name.
    Expression(Regex),
    /// `*` for any text, which the conversion may name as `$1`.
    Wildcard(Regex),
}

#[derive(Clone, Debug)]
struct Constraint {
    key: String,
    condition: Condition,
}

#[derive(Clone, Debug)]
enum Condition {
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

#[derive(Clone, Debug)]
struct Updates {
    identifier: String,
    attributes: BTreeMap<String, String>,
}

fn invalid(message: impl Into<String>) -> EngineError {
    EngineError::new(ErrorKind::UserInput, message)
}

fn expression(text: &str) -> Result<Regex, EngineError> {
    Regex::new(text).map_err(|error| invalid(format!("invalid regex {text:?} in source policy: {error}")))
}

fn wildcard(text: &str) -> Result<Regex, EngineError> {
    if text.contains("**") {
        return Err(invalid(format!("invalid wildcard {text:?} in source policy: \"**\"")));
    }
    expression(&format!("^{}$", regex::escape(text).replace("\\*", "(.*)")))
}

impl SourcePolicy {
    /// Reads rules as clients send them.
    ///
    /// # Errors
    /// A rule has no selector, or a pattern that is none.
    pub fn from_wire(policy: &wire::Policy) -> Result<Self, EngineError> {
        let rules = policy.rules.iter().map(Rule::from_wire).collect::<Result<_, _>>()?;
        Ok(Self { rules, wire: policy.clone() })
    }

    /// The rules as they are sent.
    pub fn wire(&self) -> &wire::Policy {
        &self.wire
    }

    /// Reads the file that `EXPERIMENTAL_BUILDKIT_SOURCE_POLICY` names for buildx and buildctl.
    ///
    /// # Errors
    /// It is no JSON, has a field that is none, or as [`SourcePolicy::from_wire`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, EngineError> {
        let file: PolicyFile =
            serde_json::from_slice(bytes).map_err(|error| invalid(format!("invalid source policy: {error}")))?;
        Self::from_wire(&file.into_wire())
    }

    /// One round: whether the source was changed.
    fn apply(&self, source: &mut pb::SourceOp) -> Result<bool, EngineError> {
        let mut denied = false;
        for rule in &self.rules {
            if !rule.matches(source) {
                continue;
            }
            match rule.action {
                Action::Allow => denied = false,
                Action::Deny => denied = true,
                Action::Convert => {
                    if rule.convert(source)? {
                        return Ok(true);
                    }
                }
                Action::Unknown(number) => {
                    let (identifier, subject) = (&rule.identifier, &source.identifier);
                    return Err(invalid(format!(
                        "source policy: rule {number} {identifier}: unknown type {subject:?}"
                    )));
                }
            }
        }
        match denied {
            true => Err(invalid(format!("source {:?} denied by policy: source denied by policy", source.identifier))),
            false => Ok(false),
        }
    }
}

/// Applies policies, in order, until none changes the source any more.
///
/// # Errors
/// The source is denied, is converted without end, or a rule is none.
pub fn evaluate(policies: &[SourcePolicy], source: &mut pb::SourceOp) -> Result<(), EngineError> {
    for _ in 0..=MOST_CONVERSIONS {
        let mut changed = false;
        for policy in policies {
            changed = policy.apply(source)?;
            if changed {
                break;
            }
        }
        if !changed {
            return Ok(());
        }
    }
    Err(invalid("too many mutations on a single source: too many operations"))
}

impl Rule {
    fn from_wire(rule: &wire::Rule) -> Result<Self, EngineError> {
        let Some(selector) = &rule.selector else { return Err(invalid("invalid nil selector in policy")) };
        let pattern = match wire::MatchType::try_from(selector.match_type) {
            Ok(wire::MatchType::Wildcard) => Pattern::Wildcard(wildcard(&selector.identifier)?),
            Ok(wire::MatchType::Exact) => Pattern::Exact,
            Ok(wire::MatchType::Regex) => Pattern::Expression(expression(&selector.identifier)?),
            Err(_) => return Err(invalid(format!("unknown match type: {}", selector.match_type))),
        };
        let action = match wire::PolicyAction::try_from(rule.action) {
            Ok(wire::PolicyAction::Allow) => Action::Allow,
            Ok(wire::PolicyAction::Deny) => Action::Deny,
            Ok(wire::PolicyAction::Convert) => Action::Convert,
            Err(_) => Action::Unknown(rule.action),
        };
        let updates = rule.updates.as_ref().map(|updates| Updates {
            identifier: updates.identifier.clone(),
            attributes: updates.attrs.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        });
        let constraints = selector.constraints.iter().map(Constraint::from_wire).collect::<Result<_, _>>()?;
        Ok(Self { action, identifier: selector.identifier.clone(), pattern, constraints, updates })
    }

    fn matches(&self, source: &pb::SourceOp) -> bool {
        let is_identifier = || match &self.pattern {
            _ if self.identifier == source.identifier => true,
            Pattern::Exact => false,
            Pattern::Expression(pattern) | Pattern::Wildcard(pattern) => pattern.is_match(&source.identifier),
        };
        self.constraints.iter().all(|constraint| constraint.holds(source)) && is_identifier()
    }

    /// Changes the source; `false` where it is what it would become already.
    fn convert(&self, source: &mut pb::SourceOp) -> Result<bool, EngineError> {
        let Some(updates) = &self.updates else {
            return Err(invalid("error mutating source policy: missing destination for convert rule"));
        };
        let target = if updates.identifier.is_empty() { &self.identifier } else { &updates.identifier };
        let target = match &self.pattern {
            Pattern::Exact => target.clone(),
            Pattern::Expression(pattern) => pattern.replace_all(&source.identifier, target.as_str()).into_owned(),
            Pattern::Wildcard(pattern) => match pattern.captures(&source.identifier) {
                None => source.identifier.clone(),
                Some(found) => {
                    let mut written = String::new();
                    found.expand(target, &mut written);
                    written
                }
            },
        };
        let mut changed = false;
        if !target.is_empty() && target != source.identifier {
            source.identifier = target;
            changed = true;
        }
        for (name, value) in &updates.attributes {
            changed |= source.attrs.insert(name.clone(), value.clone()).as_ref() != Some(value);
        }
        Ok(changed)
    }
}

impl Constraint {
    fn from_wire(constraint: &wire::AttrConstraint) -> Result<Self, EngineError> {
        let value = constraint.value.clone();
        let condition = match wire::AttrMatch::try_from(constraint.condition) {
            Ok(wire::AttrMatch::Equal) => Condition::Equal(value),
            Ok(wire::AttrMatch::Notequal) => Condition::NotEqual(value),
            Ok(wire::AttrMatch::Matches) => Condition::Matches(expression(&value)?),
            Err(_) => return Err(invalid(format!("unknown attr condition: {}", constraint.condition))),
        };
        Ok(Self { key: constraint.key.clone(), condition })
    }

    /// An attribute that is not there is an empty one.
    fn holds(&self, source: &pb::SourceOp) -> bool {
        let found = source.attrs.get(&self.key).map(String::as_str).unwrap_or_default();
        match &self.condition {
            Condition::Equal(value) => found == value,
            Condition::NotEqual(value) => found != value,
            Condition::Matches(pattern) => pattern.is_match(found),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    #[serde(default)]
    version: i64,
    #[serde(default)]
    rules: Vec<RuleFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    #[serde(default)]
    action: NamedNumber,
    selector: Option<SelectorFile>,
    updates: Option<UpdatesFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SelectorFile {
    #[serde(default)]
    identifier: String,
    #[serde(default, alias = "matchType")]
    match_type: NamedNumber,
    #[serde(default)]
    constraints: Vec<ConstraintFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConstraintFile {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    condition: NamedNumber,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdatesFile {
    #[serde(default)]
    identifier: String,
    #[serde(default)]
    attrs: BTreeMap<String, String>,
}

/// A value of an enumeration, by its name or its number.
#[derive(Deserialize)]
#[serde(untagged)]
enum NamedNumber {
    Number(i32),
    Name(String),
}

impl Default for NamedNumber {
    fn default() -> Self {
        Self::Number(0)
    }
}

impl NamedNumber {
    /// What is no name of the list is a number that nothing has.
    fn value(&self, names: &[&str]) -> i32 {
        match self {
            Self::Number(number) => *number,
            Self::Name(name) => {
                names.iter().position(|known| known == name).and_then(|place| i32::try_from(place).ok()).unwrap_or(-1)
            }
        }
    }
}

impl PolicyFile {
    fn into_wire(self) -> wire::Policy {
        wire::Policy { version: self.version, rules: self.rules.into_iter().map(RuleFile::into_wire).collect() }
    }
}

impl RuleFile {
    fn into_wire(self) -> wire::Rule {
        wire::Rule {
            action: self.action.value(&["ALLOW", "DENY", "CONVERT"]),
            selector: self.selector.map(|selector| wire::Selector {
                match_type: selector.match_type.value(&["WILDCARD", "EXACT", "REGEX"]),
                identifier: selector.identifier,
                constraints: selector.constraints.into_iter().map(ConstraintFile::into_wire).collect(),
            }),
            updates: self.updates.map(|updates| wire::Update {
                identifier: updates.identifier,
                attrs: updates.attrs.into_iter().collect(),
            }),
        }
    }
}

impl ConstraintFile {
    fn into_wire(self) -> wire::AttrConstraint {
        let condition = self.condition.value(&["EQUAL", "NOTEQUAL", "MATCHES"]);
        wire::AttrConstraint { key: self.key, value: self.value, condition }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a source, `IDENTIFIER k=v …`.
    fn check(rules: &str, source: &str, expect: &str) {
        let policy = SourcePolicy::from_json(format!("{{\"rules\": [{rules}]}}").as_bytes());
        let mut words = source.split(' ');
        let identifier = words.next().unwrap_or_default().to_owned();
        let attrs = words.filter_map(|word| word.split_once('=')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
        let mut source = pb::SourceOp { identifier, attrs };
        let done = policy.and_then(|policy| evaluate(&[policy], &mut source));
        let found = match done {
            Err(error) => error.to_string(),
            Ok(()) => {
                let attrs = source.attrs.iter().map(|(name, value)| format!(" {name}={value}"));
                source.identifier.clone() + &attrs.collect::<String>()
            }
        };
        assert_eq!(found, expect, "{rules}");
    }

    const ALPINE: &str = "docker-image://docker.io/library/alpine:latest";

    fn rule(action: &str, identifier: &str, more: &str) -> String {
        format!(r#"{{"action": "{action}", "selector": {{"identifier": "{identifier}"{more}}}}}"#)
    }

    #[test]
    fn the_last_rule_that_matches_counts() {
        let denied = format!("source {ALPINE:?} denied by policy: source denied by policy");
        let (allow, deny) = (rule("ALLOW", ALPINE, ""), rule("DENY", "docker-image://*", ""));
        check(&deny, ALPINE, &denied);
        check(&format!("{deny}, {allow}"), ALPINE, ALPINE);
        check(&format!("{allow}, {deny}"), ALPINE, &denied);
        check(&deny, "https://example.com/", "https://example.com/");
        check(&rule("DENY", "docker-image://*", r#", "match_type": "EXACT""#), ALPINE, ALPINE);
        check(&rule("DENY", "^docker.*alpine", r#", "matchType": 2"#), ALPINE, &denied);
    }

    #[test]
    fn attributes_are_looked_at_too() {
        let deny = |condition: &str, value: &str| {
            let more = format!(r#", "constraints": [{{"key": "k", "value": "{value}", "condition": "{condition}"}}]"#);
            rule("DENY", "git://*", &more)
        };
        let denied = "source \"git://x\" denied by policy: source denied by policy";
        check(&deny("EQUAL", "a"), "git://x k=a", denied);
        check(&deny("EQUAL", "a"), "git://x k=b", "git://x k=b");
        check(&deny("NOTEQUAL", "a"), "git://x", denied);
        check(&deny("MATCHES", "^a+$"), "git://x k=aaa", denied);
        check(&deny("MATCHES", "^a+$"), "git://x k=ab", "git://x k=ab");
    }

    #[test]
    fn sources_are_converted() {
        let convert = |identifier: &str, kind: &str, to: &str| {
            format!(
                r#"{{"action": "CONVERT", "selector": {{"identifier": "{identifier}", "match_type": "{kind}"}},
                "updates": {{"identifier": "{to}", "attrs": {{"http.checksum": "sha256:x"}}}}}}"#
            )
        };
        let mirrored = "docker-image://mirror.test/alpine:latest http.checksum=sha256:x";
        check(
            &convert("docker-image://docker.io/library/*", "WILDCARD", "docker-image://mirror.test/$1"),
            ALPINE,
            mirrored,
        );
        check(
            &convert(
                r"^docker-image://docker\\.io/library/(?P<rest>.*)$",
                "REGEX",
                "docker-image://mirror.test/${rest}",
            ),
            ALPINE,
            mirrored,
        );
        check(&convert(ALPINE, "EXACT", "docker-image://mirror.test/alpine:latest"), ALPINE, mirrored);
        // What it became is judged again.
        let both = format!("{}, {}", convert("a://*", "WILDCARD", "b://${1}"), rule("DENY", "b://*", ""));
        check(&both, "a://x", "source \"b://x\" denied by policy: source denied by policy");
        let only_attrs =
            r#"{"action": "CONVERT", "selector": {"identifier": "https://x/"}, "updates": {"attrs": {"k": "v"}}}"#;
        check(only_attrs, "https://x/", "https://x/ k=v");
    }

    // Meant not to end without the bound.
    #[test]
    fn conversions_have_an_end() {
        let to = |from: &str, to: &str| {
            format!(
                r#"{{"action": "CONVERT", "selector": {{"identifier": "{from}"}}, "updates": {{"identifier": "{to}"}}}}"#
            )
        };
        let circle = format!("{}, {}", to("a://x", "b://x"), to("b://x", "a://x"));
        check(&circle, "a://x", "too many mutations on a single source: too many operations");
        check(&to("a://*", "a://${1}x"), "a://x", "too many mutations on a single source: too many operations");
    }

    #[test]
    fn what_is_no_rule_is_told() {
        check(r#"{"action": "DENY"}"#, "a://x", "invalid nil selector in policy");
        check(
            &rule("CONVERT", "a://x", ""),
            "a://x",
            "error mutating source policy: missing destination for convert rule",
        );
        check(&rule("JUDGE", "a://x", ""), "a://x", "source policy: rule -1 a://x: unknown type \"a://x\"");
        check(&rule("DENY", "a**", ""), "a://x", "invalid wildcard \"a**\" in source policy: \"**\"");
        let typo = SourcePolicy::from_json(br#"{"rules": [], "rulez": []}"#).unwrap_err().to_string();
        assert!(typo.starts_with("invalid source policy: unknown field `rulez`"), "{typo}");
    }
}
