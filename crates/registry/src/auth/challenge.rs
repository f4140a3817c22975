/// One challenge of a `WWW-Authenticate` header (RFC 9110, 11.6.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// The client is to send user and password.
    Basic,
    /// The client is to fetch a token (distribution specification, "Token Authentication").
    Bearer {
        /// Where tokens are given.
        realm: String,
        /// Whom the token is for.
        service: Option<String>,
        /// What the token is to allow.
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads all challenges that forge knows, in the server's order; skips others and what is malformed.
    pub(crate) fn parse_all(headers: &[String]) -> Vec<Self> {
        headers.iter().flat_map(|header| parse(header)).filter_map(known).collect()
    }
}

/// A scheme with its parameters.
type Raw = (String, Vec<(String, String)>);

fn known((scheme, parameters): Raw) -> Option<Challenge> {
    let value = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => {
            Some(Challenge::Bearer { realm: value("realm")?, service: value("service"), scope: value("scope") })
        }
        _ => None,
    }
}

fn parse(header: &str) -> Vec<Raw> {
    let mut challenges: Vec<Raw> = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',', '\t']);
    while !rest.is_empty() {
        let (word, after) = token(rest);
        if word.is_empty() {
            break;
        }
        let spaced = after.trim_start_matches([' ', '\t']);
        if let (Some(value), Some((_, parameters))) = (spaced.strip_prefix('='), challenges.last_mut()) {
            let (value, after) = parameter(value.trim_start_matches([' ', '\t']));
            parameters.push((word.to_ascii_lowercase(), value));
            rest = after;
        } else {
            challenges.push((word.to_ascii_lowercase(), Vec::new()));
            rest = after;
        }
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    challenges
}

fn token(text: &str) -> (&str, &str) {
    text.split_at(text.find([' ', '\t', ',', '=', '"']).unwrap_or(text.len()))
}

/// A token or a quoted string, and what follows it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find([' ', '\t', ',']).unwrap_or(text.len()));
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str, expect: &[Challenge]) {
        assert_eq!(Challenge::parse_all(&[header.to_owned()]), expect, "{header}");
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.to_owned(), service: owned(service), scope: owned(scope) }
    }

    #[test]
    fn challenges_are_read() {
        check("Basic realm=\"x\"", &[Challenge::Basic]);
        check("basic", &[Challenge::Basic]);
        check(
            r#"Bearer realm="https://a/t",service="r.test",scope="repository:a:pull,push""#,
            &[bearer("https://a/t", Some("r.test"), Some("repository:a:pull,push"))],
        );
        check(r#"Bearer realm = "q\"x" , service=s"#, &[bearer("q\"x", Some("s"), None)]);
        check(r#"Basic realm="a, b", Bearer realm="https://a""#, &[Challenge::Basic, bearer("https://a", None, None)]);
        check(r#"Negotiate, Bearer realm="https://a""#, &[bearer("https://a", None, None)]);
    }

    #[test]
    fn garbage_is_no_challenge() {
        for header in
            ["", ",,,", "=", "\"", "Bearer", "Bearer service=\"x\"", "Bearer realm", "Digest realm=\"x\"", "a=b=c\"d"]
        {
            check(header, &[]);
        }
        check("Bearer realm=\"open", &[bearer("open", None, None)]);
    }
}
