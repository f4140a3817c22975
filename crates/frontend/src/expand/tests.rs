use super::budget::MAX_VALUE;
use super::*;
use std::collections::BTreeMap;

pub(super) struct Map(pub BTreeMap<String, String>);

impl Variables for Map {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

fn variables() -> Map {
    let pairs =
        [("DIR", "/usr/local"), ("EMPTY", ""), ("FILE", "a.tar.gz"), ("TWO", "x y"), ("größe", "XL"), ("S", "a*b")];
    Map(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
}

fn expand_as(word: &str, escape: char, quotes: Quotes, unset: Unset) -> Result<Expanded, String> {
    let expander = Expander { variables: &variables(), escape, quotes, unset, budget: &Budget::default() };
    expander.expand(word).map_err(|error| error.to_string())
}

fn expand(word: &str) -> Result<String, String> {
    expand_as(word, '\\', Quotes::Removed, Unset::Empty).map(|expanded| expanded.text)
}

#[track_caller]
fn check(word: &str, expect: &str) {
    assert_eq!(expand(word).as_deref(), Ok(expect), "{word}");
}

#[track_caller]
fn refuse(word: &str, expect: &str) {
    let error = expand(word).unwrap_err();
    assert!(error.ends_with(expect), "{word}: {error}");
}

#[test]
fn variables_are_replaced() {
    check("plain", "plain");
    check("$DIR/bin", "/usr/local/bin");
    check("${DIR}bin", "/usr/localbin");
    check("$DIRbin", "");
    check("$größe", "XL");
    check("a$", "a$");
    check("$.x", "$.x");
    check("$1x$12y$@z$$", "xyz");
    check("$NONE", "");
}

#[test]
fn quotes_and_escapes() {
    check("'$DIR'", "$DIR");
    check("\"$DIR\"", "/usr/local");
    check("\"'$DIR'\"", "'/usr/local'");
    check(r"\$DIR", "$DIR");
    check(r"\\$DIR", r"\/usr/local");
    check(r#""\$DIR \x \" \\""#, r#"$DIR \x " \"#);
    check(r"'a\'b", r"a\b");
    check(r"a\tb", "atb");
    check(r"end\", "end");
    refuse("'a", "unexpected end of statement while looking for matching single-quote");
    refuse("\"a", "unexpected end of statement while looking for matching double-quote");
    let backtick = expand_as(r"`$DIR\$DIR", '`', Quotes::Removed, Unset::Empty).unwrap();
    assert_eq!(backtick.text, r"$DIR\/usr/local");
}

#[test]
fn conditions() {
    check("${NONE:-a}${NONE-b}", "ab");
    check("${EMPTY:-a}${EMPTY-b}", "a");
    check("${DIR:-a}", "/usr/local");
    check("${DIR:+a}${EMPTY:+b}${EMPTY+c}${NONE+d}", "ac");
    check("${NONE:-${OTHER:-$DIR}}", "/usr/local");
    check("${NONE:-\"a}b\"}", "a}b");
    check("${NONE:-'a}b'}", "a}b");
    check(r"${NONE:-a\}b}", "a}b");
    check("${DIR?}${DIR:?no}", "/usr/local/usr/local");
    refuse("${NONE?}", "NONE: is not allowed to be unset");
    refuse("${EMPTY:?}", "EMPTY: is not allowed to be empty");
    refuse("${NONE:?set it}", "NONE: set it");
}

#[test]
fn prefixes_and_suffixes() {
    check("${FILE#*.}", "tar.gz");
    check("${FILE##*.}", "gz");
    check("${FILE%.*}", "a.tar");
    check("${FILE%%.*}", "a");
    check("${FILE#?.}", "tar.gz");
    check("${FILE%x}", "a.tar.gz");
    check("${DIR#/usr}", "/local");
    check("${DIR##*}", "");
    check("${DIR#*}", "/usr/local");
    check(r"${S#a\*}", "b");
    check(r"${S%\*b}", "a");
    check("${NONE#a}", "");
    refuse(r"${S#\a}", r"invalid pattern (\a) in substitution: invalid escape '\a'");
}

#[test]
fn replacements() {
    check("${FILE/./-}", "a-tar.gz");
    check("${FILE//./-}", "a-tar-gz");
    check("${FILE//a/}", ".tr.gz");
    check("${FILE/t*./T}", "a.Tgz");
    check("${FILE//?/x}", "xxxxxxxx");
    check("${FILE/*/x}", "x");
    check("${FILE//*/x}", "x");
    check("${FILE//x/y}", "a.tar.gz");
    check(r"${DIR//\//_}", "_usr_local");
    check(r"${DIR/\/usr/\/opt}", "/opt/local");
    check("${DIR//u/$FILE}", "/a.tar.gzsr/local");
    refuse("${DIR/a}", "syntax error: missing '/' in ${}");
    refuse("${DIR/a/b", "syntax error: missing '}'");
}

#[test]
fn bad_syntax_is_refused() {
    for word in ["${", "${DIR", "${DIR:-x", "${DIR:-${X}"] {
        refuse(word, "syntax error: missing '}'");
    }
    for word in ["${}", "${{DIR}}", "${:-x}"] {
        refuse(word, "syntax error: bad substitution");
    }
    refuse("${DIR:=x}", "unsupported modifier (:=) in substitution");
    refuse("${DIR:#x}", "unsupported modifier (:#) in substitution");
    refuse("${DIR,,}", "unsupported modifier (,) in substitution");
    assert_eq!(expand("a${").unwrap_err(), "failed to process \"a${\": syntax error: missing '}'");
}

#[test]
fn words_split_at_blanks_that_are_not_quoted() {
    let check = |word: &str, expect: &[&str]| {
        let words = expand_as(word, '\\', Quotes::Removed, Unset::Empty).unwrap().words;
        assert_eq!(words, expect, "{word}");
    };
    check("a b", &["a", "b"]);
    check("$TWO", &["x", "y"]);
    check("\"$TWO\"", &["x y"]);
    check("a$TWO", &["ax", "y"]);
    check(r"a\ b", &["a b"]);
    check("''", &[""]);
    check("$EMPTY", &[]);
}

#[test]
fn other_modes() {
    let names = expand_as("RUN \"a $DIR\" '$X' $X ${X:-y} ${X}", '\\', Quotes::Kept, Unset::Kept).unwrap();
    assert_eq!(names.text, "RUN \"a /usr/local\" '$X' $X ${X:-y} ${X}");
    let body = expand_as("it's \"$DIR\" \\$DIR \\\\", '\\', Quotes::Literal, Unset::Empty).unwrap();
    assert_eq!(body.text, "it's \"/usr/local\" $DIR \\");
}

#[test]
fn used_and_undefined_variables_are_reported() {
    let expanded = expand_as("$DIR ${A:-x} $B ${C#x}", '\\', Quotes::Removed, Unset::Empty).unwrap();
    assert_eq!(expanded.used.into_iter().collect::<Vec<_>>(), ["DIR"]);
    assert_eq!(expanded.undefined.into_iter().collect::<Vec<_>>(), ["B", "C"]);
}

// Fails without MAX_DEPTH by a stack overflow, and without the budget by taking minutes.
#[test]
fn a114_deep_and_large_expansions_are_refused_quickly() {
    let started = std::time::Instant::now();
    let deep = "${X:-".repeat(100_000) + &"}".repeat(100_000);
    assert!(expand(&deep).unwrap_err().contains("64 levels"));
    let bomb = Map(BTreeMap::from([
        ("A".to_owned(), "a".repeat(MAX_VALUE)),
        ("P".to_owned(), "a".repeat(MAX_VALUE / 2) + "b"),
    ]));
    let budget = Budget::default();
    let expander =
        Expander { variables: &bomb, escape: '\\', quotes: Quotes::Removed, unset: Unset::Empty, budget: &budget };
    for word in ["$A$A", "${A//a/aa}", "${A//$P/x}", "${A%%*$P*}"] {
        let error = expander.expand(word).unwrap_err();
        assert!(matches!(*error.problem, Problem::TooLarge { .. }), "{word}: {error}");
    }
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}
