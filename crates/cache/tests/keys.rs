//! Golden keys: when one of these changes, every cache in the world is lost.

use forge_cache::{CacheKey, InputPart, OpKey};

fn content(text: &str) -> InputPart {
    InputPart::Content(blake3::hash(text.as_bytes()).into())
}

#[test]
fn keys_of_fixed_inputs_never_change() {
    let op = OpKey::new(b"RUN make");
    let base = CacheKey::definition(&OpKey::new(b"base"), &[]);
    let from = |output| InputPart::Key { key: base, output };
    let keys = [
        op.to_string(),
        base.to_string(),
        CacheKey::definition(&op, &[]).to_string(),
        CacheKey::content(&op, &[]).to_string(),
        CacheKey::definition(&op, &[from(0)]).to_string(),
        CacheKey::definition(&op, &[from(1)]).to_string(),
        CacheKey::definition(&op, &[from(0), content("x")]).to_string(),
        CacheKey::content(&op, &[from(0), content("x")]).to_string(),
        CacheKey::content(&op, &[content("x"), from(0)]).to_string(),
    ];
    let golden = [
        "1d39a9010c5a60c6568e0913e99e917ef0990aef34510f83e748b6d7deb3a104",
        "865fbc187786c153d35bfd08e59dafb61045166a33b63783856eefced84c8e38",
        "97210fc412fdfc97f59177fd845c6d1c6068a9bee9fc68f55684c95bc3a4e855",
        "c212330b056468707fd1cea181f87b5eae49263b424631cebc96ef58fb6af025",
        "4af1fba157c306cbb09ae3bf4d27fa5396b5a6545a453c60b7ba24261f78b12b",
        "642bc9db3d1f9d0cf208b82a9c50949f6e0a5dca13c5cb210f078e43cd9de6aa",
        "3fd624ccbde5aff4d8ba91764e911e71d9defa26848e3bb314497748f4735c97",
        "82ec0d3533b3bc1c66c095dda7f47fec83bf6c15c0867b590a07b059af737a07",
        "34a38e2e36282ae6224ffd7b51583618954d222b3718cf2aa4b59fb2b6e7d04d",
    ];
    assert_eq!(keys.each_ref().map(String::as_str), golden);
}

#[test]
fn whatever_decides_about_a_result_makes_another_key() {
    let op = OpKey::new(b"op");
    let base = CacheKey::definition(&op, &[]);
    let from = |output| InputPart::Key { key: base, output };
    let lists: [&[InputPart]; 7] = [
        &[],
        &[from(0)],
        &[from(1)],
        &[from(0), from(0)],
        &[content("a")],
        &[content("b")],
        &[content("a"), content("b")],
    ];
    let mut seen = std::collections::HashSet::new();
    for op in [op, OpKey::new(b"other")] {
        for inputs in lists {
            assert!(seen.insert(CacheKey::definition(&op, inputs)));
            assert!(seen.insert(CacheKey::content(&op, inputs)));
        }
    }
}

#[test]
fn keys_are_written_as_hexadecimal_digits_and_read_back() {
    let key = CacheKey::definition(&OpKey::new(b"x"), &[]);
    let text = key.to_string();
    assert_eq!(text.parse::<CacheKey>().unwrap(), key);
    for bad in ["", "00", &text.to_uppercase(), &format!("{text}0"), &text.replace(&text[..1], "g")] {
        assert!(bad.parse::<CacheKey>().is_err(), "{bad:?}");
    }
}
