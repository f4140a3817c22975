//! One line of comma separated values, as flags with several parts are written.

/// Splits a line at commas. A field may stand in double quotes, where `""` is one quote.
///
/// # Errors
/// A quote stands in the middle of a field, is not closed, or the line is empty.
pub(crate) fn fields(line: &str) -> Result<Vec<String>, String> {
    if line.is_empty() {
        return Err("EOF".to_owned());
    }
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let (field, behind) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted, line)?,
            None => plain_field(rest, line)?,
        };
        fields.push(field);
        match behind {
            Some(behind) => rest = behind,
            None => return Ok(fields),
        }
    }
}

/// A field and what follows its comma.
type Field<'a> = (String, Option<&'a str>);

fn plain_field<'a>(rest: &'a str, line: &str) -> Result<Field<'a>, String> {
    let (field, behind) = match rest.split_once(',') {
        Some((field, behind)) => (field, Some(behind)),
        None => (rest, None),
    };
    match field.find('"') {
        Some(at) => Err(wrong(line, &rest[at..], "bare \" in non-quoted-field")),
        None => Ok((field.to_owned(), behind)),
    }
}

fn quoted_field<'a>(mut rest: &'a str, line: &str) -> Result<Field<'a>, String> {
    let mut field = String::new();
    loop {
        let Some((piece, behind)) = rest.split_once('"') else {
            return Err(wrong(line, rest, "extraneous or missing \" in quoted-field"));
        };
        field += piece;
        match behind.chars().next() {
            None => return Ok((field, None)),
            Some(',') => return Ok((field, Some(&behind[1..]))),
            Some('"') => {
                field.push('"');
                rest = &behind[1..];
            }
            Some(_) => return Err(wrong(line, behind, "extraneous or missing \" in quoted-field")),
        }
    }
}

fn wrong(line: &str, rest: &str, reason: &str) -> String {
    format!("parse error on line 1, column {}: {reason}", line.len() - rest.len() + 1)
}

#[cfg(test)]
mod tests {
    use super::fields;

    #[test]
    fn quotes_protect_commas_and_quotes() {
        let check = |line: &str, expect: &[&str]| assert_eq!(fields(line).unwrap(), expect, "{line}");
        check("a=b,c", &["a=b", "c"]);
        check("a,", &["a", ""]);
        check("\"a=b,c\",d", &["a=b,c", "d"]);
        check("\"a\"\"b\"", &["a\"b"]);
        check("\"\"", &[""]);
        for bad in ["", "a\"b", "\"a", "\"a\"b", "x,y=\"z\""] {
            assert!(fields(bad).is_err(), "{bad}");
        }
    }
}
