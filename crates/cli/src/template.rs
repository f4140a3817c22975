//! The part of Go's templates that scripts use with `--format`: text, `{{.Field.Field}}` and `{{json .Field}}`.
//!
//! Everything else of that language is refused by name.

use anyhow::{Context, bail};
use serde_json::Value;

/// How a command prints its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// Columns for people.
    Table,
    /// JSON.
    Json,
    /// One line for each row.
    Template(Template),
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field { path: Vec<String>, json: bool },
}

impl Format {
    /// Reads the value of `--format`.
    ///
    /// # Errors
    /// Refuses templates with what forge does not know.
    pub fn read(text: Option<&str>) -> anyhow::Result<Self> {
        match text {
            None | Some("" | "table") => Ok(Self::Table),
            Some("json") => Ok(Self::Json),
            Some(text) if text.starts_with("table ") => {
                bail!(
                    "--format 'table TEMPLATE' is not supported by this version of forge: use table, json or a template"
                )
            }
            Some(text) if text.contains("{{") => Ok(Self::Template(Template::parse(text)?)),
            Some(text) => bail!(
                "--format {text:?} is not supported by this version of forge: use table, json or a template such as '{{{{.ID}}}}'"
            ),
        }
    }
}

impl Template {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, after) =
                after.split_once("}}").with_context(|| format!("unclosed action in --format {text:?}"))?;
            pieces.push(Piece::Text(unescape(before)));
            pieces.push(action_piece(action.trim())?);
            rest = after;
        }
        pieces.push(Piece::Text(unescape(rest)));
        Ok(Self(pieces))
    }

    /// Fills the template in.
    ///
    /// # Errors
    /// Names a field that the value does not have.
    pub fn render(&self, value: &Value) -> anyhow::Result<String> {
        self.0.iter().map(|piece| piece.render(value)).collect()
    }

    /// The same where the value is a document in JSON's names and the template in Go's: `.Manifest.Digest` is found as `digest`,
    /// and `json` shows what it finds over several lines, as buildx does.
    ///
    /// # Errors
    /// As [`Template::render`].
    pub fn render_loosely(&self, value: &Value) -> anyhow::Result<String> {
        self.0.iter().map(|piece| piece.render_loosely(value)).collect()
    }
}

fn action_piece(action: &str) -> anyhow::Result<Piece> {
    let (json, path) = match action.strip_prefix("json ") {
        Some(path) => (true, path.trim()),
        None => (false, action),
    };
    let fields =
        path.strip_prefix('.').filter(|path| path.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '_')));
    let Some(fields) = fields else {
        bail!(
            "{{{{{action}}}}} in --format is not supported by this version of forge: only {{{{.Field}}}} and {{{{json .Field}}}} are"
        )
    };
    Ok(Piece::Field { path: fields.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect(), json })
}

/// docker's shell-friendly escapes outside actions.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

impl Piece {
    fn render_loosely(&self, value: &Value) -> anyhow::Result<String> {
        let Self::Field { path, json } = self else { return self.render(value) };
        let find = |value: &Value, field: &str| -> Option<Value> {
            let fields = value.as_object()?;
            fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(field)).map(|(_, value)| value.clone())
        };
        let found = path.iter().try_fold(value.clone(), |value, field| {
            find(&value, field).with_context(|| format!("--format: there is no field {field:?}"))
        })?;
        Ok(if *json { format!("{found:#}") } else { go_print(&found) })
    }

    fn render(&self, value: &Value) -> anyhow::Result<String> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::Field { path, json } => {
                let found = path.iter().try_fold(value, |value, field| {
                    value.get(field).with_context(|| format!("--format: there is no field {field:?}"))
                })?;
                Ok(if *json { found.to_string() } else { go_print(found) })
            }
        }
    }
}

/// Go's `%v`.
fn go_print(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => crate::sanitise::block(text).into_owned(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_print).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| format!("{key}:{}", go_print(value)));
            format!("map[{}]", fields.collect::<Vec<_>>().join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(template: &str, value: Value) -> anyhow::Result<String> {
        let Format::Template(template) = Format::read(Some(template))? else { panic!("not a template") };
        template.render(&value)
    }

    #[test]
    fn fields_and_json() {
        let value = json!({"ID": "abc", "Config": {"Env": ["A=1", "B=2"], "Labels": {"x": "y"}}, "Size": 3});
        assert_eq!(render("{{.ID}}\\t{{ .Size }}", value.clone()).unwrap(), "abc\t3");
        assert_eq!(render("{{json .Config.Env}}", value.clone()).unwrap(), r#"["A=1","B=2"]"#);
        assert_eq!(render("{{.Config.Env}}{{.Config.Labels}}", value.clone()).unwrap(), "[A=1 B=2]map[x:y]");
        assert_eq!(render("{{json .}}", json!({"a": 1})).unwrap(), r#"{"a":1}"#);
        let Format::Template(loose) = Format::read(Some("{{.manifest.Digest}} {{json .Manifest}}")).unwrap() else {
            panic!("not a template")
        };
        let found = loose.render_loosely(&json!({"Manifest": {"digest": "d"}})).unwrap();
        assert_eq!(found, "d {\n  \"digest\": \"d\"\n}");
    }

    #[test]
    fn the_rest_of_the_language_is_refused() {
        for template in ["{{range .X}}a{{end}}", "{{.X | upper}}", "{{index .X 0}}", "{{.X", "table {{.ID}}", "yaml"] {
            assert!(render(template, json!({"X": 1})).is_err(), "{template}");
        }
        assert_eq!(render("{{.Y}}", json!({})).unwrap_err().to_string(), "--format: there is no field \"Y\"");
    }
}
