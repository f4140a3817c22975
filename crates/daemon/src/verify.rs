//! Whether a result is what was asked for. What is not is worth a remark, and no more: the client decides.

use crate::solution::{Solution, platform_key};
use forge_image::Platform;
use std::collections::{BTreeSet, HashMap};

/// What is to be said of the platforms of a result; the words are BuildKit's.
pub(crate) fn platforms(options: &HashMap<String, String>, solution: &Solution) -> Vec<String> {
    let is_nothing = solution.images.iter().all(|image| image.result.is_none());
    if is_nothing && !solution.names_platforms() {
        return Vec::new();
    }
    let asked: Vec<String> = match options.get("platform") {
        Some(list) => list.split(',').map(str::to_owned).collect(),
        None => vec![Platform::host().to_string()],
    };
    let (mut wanted, mut remarks) = (BTreeSet::new(), Vec::new());
    for text in &asked {
        match crate::frontend::platform(text) {
            Err(error) => remarks.push(format!("Invalid platform result requested {text:?}: {}", error.message())),
            Ok(platform) if !wanted.insert(platform_key(&platform)) => {
                remarks.push(format!("Duplicate platform result requested {text:?}"));
            }
            Ok(_) => {}
        }
    }
    if !remarks.is_empty() {
        return remarks;
    }
    let found: BTreeSet<String> = solution.images.iter().map(|image| platform_key(&image.platform)).collect();
    match (asked.as_slice(), solution.images.as_slice()) {
        ([text], [image]) => {
            let whole = platform_key(&image.platform);
            let any_version = platform_key(&Platform { os_version: None, ..image.platform.clone() });
            match wanted.contains(&whole) || wanted.contains(&any_version) {
                true => Vec::new(),
                false => vec![format!("Requested platform {text:?} does not match result platform {whole:?}")],
            }
        }
        ([_, _, ..], _) if !solution.is_map => {
            vec!["Multiple platforms requested but result is not multi-platform".to_owned()]
        }
        _ if wanted != found => {
            let list = |keys: &BTreeSet<String>| keys.iter().cloned().collect::<Vec<_>>().join(",");
            vec![format!("Requested platforms {} do not match result platforms {}", list(&wanted), list(&found))]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_engine::{Job, JobImage};

    fn solution(platforms: &[&str], is_map: bool) -> Solution {
        let image = |text: &&str| {
            let platform: Platform = text.parse().unwrap();
            JobImage::new(platform.clone(), None, Job::default_config(&platform))
        };
        let metadata = [("refs.platforms".to_owned(), b"{}".to_vec())].into();
        Solution { images: platforms.iter().map(image).collect(), is_map, metadata }
    }

    fn check(asked: Option<&str>, found: &Solution, expected: &str) {
        let options = asked.map(|asked| ("platform".to_owned(), asked.to_owned())).into_iter().collect();
        assert_eq!(platforms(&options, found).join("|"), expected);
    }

    #[test]
    fn a_result_for_other_platforms_is_remarked() {
        let (amd, arm) = ("linux/amd64", "linux/arm64");
        let both = Some("linux/amd64,linux/arm64");
        check(both, &solution(&[amd, arm], true), "");
        check(both, &solution(&[amd], false), "Multiple platforms requested but result is not multi-platform");
        let list = "Requested platforms linux/arm64 do not match result platforms linux/amd64,linux/arm64";
        check(Some(arm), &solution(&[amd, arm], true), list);
        let one = "Requested platform \"linux/arm64\" does not match result platform \"linux/amd64\"";
        check(Some(arm), &solution(&[amd], false), one);
        check(
            Some("linux/arm64,linux/arm64"),
            &solution(&[arm], false),
            "Duplicate platform result requested \"linux/arm64\"",
        );
        check(Some(arm), &Solution { metadata: HashMap::new(), ..solution(&[amd], false) }, "");
    }
}
