//! containerd's filters, as clients write them: `type==source.local,inuse`, several of which are alternatives.

use tonic::Status;

/// How a field is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Present,
    Equal,
    Unequal,
    /// A regular expression there; what is looked for as it stands here, between `.*`.
    Contains,
}

/// Whether one of the filters lets something through; without filters everything passes. `field` gives the value of a
/// field that it has.
///
/// # Errors
/// A filter cannot be read.
pub(crate) fn matches(filters: &[String], field: impl Fn(&str) -> Option<String>) -> Result<bool, Status> {
    if filters.is_empty() {
        return Ok(true);
    }
    for filter in filters {
        let mut all = true;
        for condition in split(filter) {
            all &= holds(&condition, &field)?;
        }
        if all {
            return Ok(true);
        }
    }
    Ok(false)
}

/// At commas that are not quoted.
fn split(filter: &str) -> Vec<String> {
    let (mut parts, mut quoted) = (vec![String::new()], false);
    for char in filter.chars() {
        match char {
            '"' => quoted = !quoted,
            ',' if !quoted => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(char);
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn holds(condition: &str, field: &impl Fn(&str) -> Option<String>) -> Result<bool, Status> {
    let (path, comparison, value) = parse(condition);
    if path.is_empty() {
        return Err(Status::invalid_argument(format!("filters: parse error: [{condition}]: expected field or quoted")));
    }
    let found = field(&path);
    Ok(match comparison {
        Comparison::Present => found.is_some(),
        Comparison::Equal => found.is_some_and(|found| found == value),
        Comparison::Unequal => found.is_none_or(|found| found != value),
        Comparison::Contains => {
            let plain = value.trim_start_matches('^').trim_end_matches('$').replace(".*", "").replace('\\', "");
            found.is_some_and(|found| found.contains(&plain))
        }
    })
}

fn parse(condition: &str) -> (String, Comparison, String) {
    let condition = condition.trim();
    let operators = [("==", Comparison::Equal), ("!=", Comparison::Unequal), ("~=", Comparison::Contains)];
    for (operator, comparison) in operators {
        if let Some((path, value)) = condition.split_once(operator) {
            return (path.trim().to_owned(), comparison, value.trim().trim_matches('"').to_owned());
        }
    }
    (condition.to_owned(), Comparison::Present, String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(filters: &[&str]) -> bool {
        let filters: Vec<String> = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let field = |path: &str| match path {
            "type" => Some("regular".to_owned()),
            "inuse" => Some(String::new()),
            _ => None,
        };
        matches(&filters, field).unwrap()
    }

    #[test]
    fn conditions_of_one_filter_all_hold_and_filters_are_alternatives() {
        assert!(passes(&[]));
        assert!(passes(&["type==regular,inuse"]) && passes(&["type==\"regular\""]));
        assert!(!passes(&["type==regular,shared"]) && !passes(&["type!=regular"]));
        assert!(passes(&["type==x", "inuse"]) && passes(&["type~=reg"]));
        assert!(matches(&["==x".to_owned()], |_| None).is_err());
    }
}
