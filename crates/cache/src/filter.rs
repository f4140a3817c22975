//! Which records a policy or a command means: BuildKit's filters.

use std::fmt;
use std::str::FromStr;

/// What filters ask about a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its key, or the name of a cache mount.
    pub id: String,
    /// `regular`, `source.image`, `exec.cachemount`, …
    pub kind: String,
    /// What made it.
    pub description: String,
    /// The ids of the records that made the layer below its own.
    pub parents: Vec<String>,
    /// Whether a running forge holds it.
    pub in_use: bool,
    /// Whether an image needs it too.
    pub shared: bool,
    /// Whether steps write to it: a cache mount.
    pub mutable: bool,
}

/// Conditions that must all hold: `type==regular,inuse!=true`.
///
/// ```text
/// filter    = condition { "," condition }
/// condition = field [ operator value ]
/// field     = id | parents | description | type | inuse | shared | private | mutable | immutable
/// operator  = "==" | "!=" | "~="
/// ```
/// `~=` finds a text anywhere, or at the ends that `^` and `$` name; other regular expressions are refused. A field of yes
/// or no alone asks for yes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    field: Field,
    operator: Operator,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Id,
    Parents,
    Description,
    Type,
    InUse,
    Shared,
    Private,
    Mutable,
    Immutable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equals,
    Differs,
    Contains,
}

const FIELDS: [(&str, Field); 9] = [
    ("id", Field::Id),
    ("parents", Field::Parents),
    ("description", Field::Description),
    ("type", Field::Type),
    ("inuse", Field::InUse),
    ("shared", Field::Shared),
    ("private", Field::Private),
    ("mutable", Field::Mutable),
    ("immutable", Field::Immutable),
];

/// Why a text is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No such field.
    #[error(
        "unknown filter {field:?}: there are id, parents, description, type, inuse, shared, private, mutable, immutable"
    )]
    UnknownField {
        /// What was asked for.
        field: String,
    },
    /// A field of yes or no was given something else.
    #[error("filter {field}: expected true or false, not {value:?}")]
    NotBoolean {
        /// The field.
        field: String,
        /// What was given.
        value: String,
    },
    /// A field that has a value was asked for without one.
    #[error("filter {field}: expected {field}==VALUE")]
    NoValue {
        /// The field.
        field: String,
    },
    /// `~=` with more than plain text.
    #[error("filter {field}~={value}: only plain text is looked for, with ^ and $ for its ends")]
    NotPlain {
        /// The field.
        field: String,
        /// What was given.
        value: String,
    },
}

impl Filter {
    /// Whether a record is meant.
    pub fn matches(&self, facts: &Facts) -> bool {
        self.conditions.iter().all(|condition| condition.holds(facts))
    }

    /// Whether it asks for records of a type.
    pub fn names_type(&self, kind: &str) -> bool {
        self.conditions.iter().any(|condition| {
            condition.field == Field::Type && condition.operator != Operator::Differs && condition.compare(kind)
        })
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let conditions = text.split(',').filter(|part| !part.is_empty()).map(Condition::read);
        Ok(Self { conditions: conditions.collect::<Result<_, _>>()? })
    }
}

impl Condition {
    fn read(text: &str) -> Result<Self, FilterError> {
        let operators = [("==", Operator::Equals), ("!=", Operator::Differs), ("~=", Operator::Contains)];
        let found = operators.iter().find_map(|(sign, operator)| Some((text.split_once(sign)?, *operator)));
        // buildx writes its own filters with one sign.
        let found = found.or_else(|| Some((text.split_once('=')?, Operator::Equals)));
        let ((name, value), operator) = found.unwrap_or(((text, ""), Operator::Equals));
        let field = FIELDS.iter().find(|(known, _)| *known == name).map(|(_, field)| *field);
        let field = field.ok_or_else(|| FilterError::UnknownField { field: name.to_owned() })?;
        let (name, value) = (name.to_owned(), value.trim_matches('"').to_owned());
        match (field.is_boolean(), value.as_str()) {
            (true, "") if operator == Operator::Equals => {
                return Ok(Self { field, operator, value: "true".to_owned() });
            }
            (true, "true" | "1" | "false" | "0") => {
                let value = matches!(value.as_str(), "true" | "1").to_string();
                return Ok(Self { field, operator, value });
            }
            (true, _) => return Err(FilterError::NotBoolean { field: name, value }),
            (false, "") => return Err(FilterError::NoValue { field: name }),
            _ => {}
        }
        if operator == Operator::Contains && value.contains(['*', '+', '?', '(', '[', '{', '|', '\\']) {
            return Err(FilterError::NotPlain { field: name, value });
        }
        Ok(Self { field, operator, value })
    }

    fn holds(&self, facts: &Facts) -> bool {
        let one = |text: &str| self.compare(text) != (self.operator == Operator::Differs);
        let yes = |is: bool| one(if is { "true" } else { "false" });
        match self.field {
            Field::Id => one(&facts.id),
            Field::Parents => {
                facts.parents.iter().any(|parent| self.compare(parent)) != (self.operator == Operator::Differs)
            }
            Field::Description => one(&facts.description),
            Field::Type => one(&facts.kind),
            Field::InUse => yes(facts.in_use),
            Field::Shared => yes(facts.shared),
            Field::Private => yes(!facts.shared),
            Field::Mutable => yes(facts.mutable),
            Field::Immutable => yes(!facts.mutable),
        }
    }

    fn compare(&self, text: &str) -> bool {
        if self.operator != Operator::Contains {
            return text == self.value;
        }
        match (self.value.strip_prefix('^'), self.value.strip_suffix('$')) {
            (Some(_), Some(_)) => text == &self.value[1..self.value.len() - 1],
            (Some(start), None) => text.starts_with(start),
            (None, Some(end)) => text.ends_with(end),
            (None, None) => text.contains(&self.value),
        }
    }
}

impl Field {
    fn is_boolean(self) -> bool {
        matches!(self, Self::InUse | Self::Shared | Self::Private | Self::Mutable | Self::Immutable)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, condition) in self.conditions.iter().enumerate() {
            let name = FIELDS.iter().find(|(_, field)| *field == condition.field).map_or("", |(name, _)| name);
            let sign = match condition.operator {
                Operator::Equals => "==",
                Operator::Differs => "!=",
                Operator::Contains => "~=",
            };
            write!(out, "{}{name}{sign}{}", if at == 0 { "" } else { "," }, condition.value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_mean_what_buildkits_do() {
        let facts = Facts {
            id: "abc123".into(),
            kind: "regular".into(),
            description: "[2/3] RUN make".into(),
            parents: vec!["def".into()],
            shared: true,
            ..Facts::default()
        };
        let table = [
            ("", true),
            ("type==regular", true),
            ("type=regular", true),
            ("type!=regular", false),
            ("id~=c12", true),
            ("id~=^c12", false),
            ("id~=^abc", true),
            ("id~=123$", true),
            ("id~=^abc123$", true),
            ("description~=RUN make,inuse", false),
            ("description~=RUN make,shared", true),
            ("private", false),
            ("inuse!=true", true),
            ("inuse==false,immutable", true),
            ("mutable=1", false),
            ("parents==def", true),
            ("parents!=def", false),
        ];
        for (text, expect) in table {
            assert_eq!(text.parse::<Filter>().unwrap().matches(&facts), expect, "{text}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        let error = |text: &str| text.parse::<Filter>().unwrap_err().to_string();
        assert!(error("tpye==regular").starts_with("unknown filter \"tpye\": there are id, "));
        assert_eq!(error("inuse==maybe"), "filter inuse: expected true or false, not \"maybe\"");
        assert_eq!(error("type"), "filter type: expected type==VALUE");
        assert_eq!(error("id~=a.*"), "filter id~=a.*: only plain text is looked for, with ^ and $ for its ends");
        assert_eq!("type==a,shared,id~=b".parse::<Filter>().unwrap().to_string(), "type==a,shared==true,id~=b");
    }
}
