//! What a build came to, before it is exported.

use crate::reply;
use forge_buildkit_proto::pb;
use forge_engine::{GivenAttestation, Invocation, Job, JobImage, JobResult};
use forge_image::{ImageConfig, Platform};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tonic::Status;

/// The results for all platforms, and what is said of them.
#[derive(Clone, Default)]
pub(crate) struct Solution {
    pub images: Vec<JobImage>,
    /// Whether results are known by their platforms, even if there is one only.
    pub is_map: bool,
    pub metadata: HashMap<String, Vec<u8>>,
}

const CONFIG: &str = "containerimage.config";
/// The same for one platform, whose key follows.
const CONFIG_OF: &str = "containerimage.config/";
const PLATFORMS: &str = "refs.platforms";
/// A time for everything in the image; for one platform its key follows.
const EPOCH: &str = "source.date.epoch";

impl Solution {
    /// Runs what all results need.
    pub(crate) async fn evaluate(&self, job: &Job) -> Result<(), Status> {
        let results = self.images.iter().filter_map(|image| image.result.as_ref());
        job.evaluate_all(results).await.map_err(|error| reply::status(&error))
    }

    /// What a Dockerfile came to: results with their configs.
    pub(crate) fn of_images(images: Vec<JobImage>, is_map: bool) -> Self {
        let mut metadata = HashMap::new();
        for image in &images {
            let config = image.config.to_json();
            match is_map {
                true => metadata.insert(format!("{CONFIG}/{}", platform_key(&image.platform)), config),
                false => metadata.insert(CONFIG.to_owned(), config),
            };
        }
        let platforms: Vec<Value> = images
            .iter()
            .map(|image| json!({ "ID": platform_key(&image.platform), "Platform": platform_json(&image.platform) }))
            .collect();
        metadata.insert(PLATFORMS.to_owned(), json!({ "Platforms": platforms }).to_string().into_bytes());
        Self { images, is_map, metadata }
    }

    /// Whether it says itself which platforms its results are for.
    pub(crate) fn names_platforms(&self) -> bool {
        self.metadata.contains_key(PLATFORMS)
    }

    /// The same with the configs that an output brings along, which count more than those of the front end.
    pub(crate) fn with_configs(&self, attributes: &HashMap<String, String>) -> Result<Option<Self>, Status> {
        let told: HashMap<String, Vec<u8>> = attributes
            .iter()
            .filter(|(name, _)| name.as_str() == CONFIG || name.starts_with(CONFIG_OF))
            .map(|(name, value)| (name.clone(), value.clone().into_bytes()))
            .collect();
        if told.is_empty() {
            return Ok(None);
        }
        let mut changed = self.clone();
        for image in &mut changed.images {
            let name = format!("{CONFIG_OF}{}", platform_key(&image.platform));
            if told.contains_key(&name) || told.contains_key(CONFIG) {
                image.set_config(config(&told, &name, &image.platform)?);
            }
        }
        Ok(Some(changed))
    }

    /// Adds statements that a client made, by the keys of the results that they are about.
    pub(crate) fn give(&mut self, key: &str, given: Vec<GivenAttestation>) -> Result<(), Status> {
        let found = self.images.iter_mut().find(|image| platform_key(&image.platform) == key);
        let image = found.ok_or_else(|| Status::unknown(format!("no result for the attestations of {key}")))?;
        image.given.extend(given);
        Ok(())
    }

    /// What a client says a result is.
    pub(crate) fn of_metadata(results: Results, metadata: HashMap<String, Vec<u8>>) -> Result<Self, Status> {
        let platforms = platforms(&metadata)?;
        let names_platforms = platforms.is_some();
        if !names_platforms {
            check_alone(&metadata)?;
        }
        let image = |key: Option<&str>, platform: Platform, result: Option<Found>| {
            let name = key.map_or_else(|| CONFIG.to_owned(), |key| format!("{CONFIG}/{key}"));
            let mut config = config(&metadata, &name, &platform)?;
            if names_platforms && (config.os.is_empty() || config.architecture.is_empty()) {
                // Whoever names the platforms need not say it again.
                (config.os, config.architecture) = (platform.os.clone(), platform.architecture.clone());
            }
            let (result, invocation) = match result {
                Some(Found { result, invocation }) => (Some(result), invocation),
                None => (None, None),
            };
            let mut image = JobImage::new(platform, result, config);
            image.invocation = invocation;
            image.source_date_epoch = epoch(&metadata, key)?;
            Ok::<_, Status>(image)
        };
        let (images, is_map) = match results {
            Results::One(result) => {
                let platform = platforms.as_ref().and_then(|platforms| Some(platforms.first()?.1.clone()));
                if platforms.as_ref().is_some_and(|platforms| platforms.len() > 1) {
                    return Err(Status::unknown("unable to export multiple platforms without map"));
                }
                (vec![image(None, platform.unwrap_or_else(Platform::host), result)?], false)
            }
            Results::ByKey(mut results) => {
                let Some(platforms) = platforms else {
                    return Err(Status::unknown("unable to export multiple refs, missing platforms mapping"));
                };
                let mut images = Vec::new();
                for (key, platform) in platforms {
                    if images.iter().any(|image: &JobImage| platform_key(&image.platform) == platform_key(&platform)) {
                        continue;
                    }
                    let Some(result) = results.remove(&key) else {
                        return Err(Status::unknown(format!("failed to find ref for ID {key}")));
                    };
                    images.push(image(Some(&key), platform, result)?);
                }
                (images, true)
            }
        };
        Ok(Self { images, is_map, metadata })
    }
}

/// What a client names as the result; `None` is the empty file system.
pub(crate) enum Results {
    One(Option<Found>),
    ByKey(BTreeMap<String, Option<Found>>),
}

/// A result, and what was asked of the front end that it comes from.
#[derive(Clone)]
pub(crate) struct Found {
    pub result: JobResult,
    pub invocation: Option<Arc<Invocation>>,
}

impl Found {
    /// A result that nobody was asked for.
    pub(crate) fn new(result: JobResult) -> Self {
        Self { result, invocation: None }
    }
}

/// What results are known by: `os[(version)]/architecture[/variant]`.
pub(crate) fn platform_key(platform: &Platform) -> String {
    let plain = platform.to_string();
    match (&platform.os_version, plain.split_once('/')) {
        (Some(version), Some((os, rest))) if !os.contains('(') => format!("{os}({version})/{rest}"),
        _ => plain,
    }
}

fn platform_json(platform: &Platform) -> Value {
    let mut value = json!({ "architecture": platform.architecture, "os": platform.os });
    if let Some(variant) = &platform.variant {
        value["variant"] = json!(variant);
    }
    if let Some(version) = &platform.os_version {
        value["os.version"] = json!(version);
    }
    value
}

/// Keys of results and their platforms, in order.
fn platforms(metadata: &HashMap<String, Vec<u8>>) -> Result<Option<Vec<(String, Platform)>>, Status> {
    let Some(bytes) = metadata.get(PLATFORMS).filter(|bytes| !bytes.is_empty()) else { return Ok(None) };
    let failed =
        |error: String| Status::unknown(format!("failed to parse platforms passed to provenance processor: {error}"));
    let value: Value = serde_json::from_slice(bytes).map_err(|error| failed(error.to_string()))?;
    let listed = value.get("Platforms").and_then(Value::as_array).cloned().unwrap_or_default();
    if listed.is_empty() {
        return Err(Status::unknown("invalid empty platforms index for exporter"));
    }
    let read = |entry: &Value| {
        let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let key = text(entry, "ID");
        let platform = entry.get("Platform").cloned().unwrap_or_default();
        let (os, architecture) = (text(&platform, "os"), text(&platform, "architecture"));
        if key.is_empty() {
            return Err(Status::unknown("invalid empty platform key for exporter"));
        }
        if os.is_empty() || architecture.is_empty() {
            return Err(Status::unknown("invalid platform value for exporter"));
        }
        let optional = |name: &str| Some(text(&platform, name)).filter(|text| !text.is_empty());
        let platform = Platform {
            os,
            architecture,
            variant: optional("variant"),
            os_version: optional("os.version"),
            ..Platform::host()
        };
        Ok((key, platform))
    };
    listed.iter().map(read).collect::<Result<Vec<_>, _>>().map(Some)
}

/// A config that stands for the platform, too, has all of it or nothing.
fn check_alone(metadata: &HashMap<String, Vec<u8>>) -> Result<(), Status> {
    let value: Option<Value> = metadata.get(CONFIG).and_then(|bytes| serde_json::from_slice(bytes).ok());
    let says = |name: &str| value.as_ref()?.get(name)?.as_str().filter(|text| !text.is_empty()).map(drop);
    match says("os") == says("architecture") {
        true => Ok(()),
        false => Err(Status::unknown("invalid image config: os and architecture must be specified together")),
    }
}

/// The time that the front end found, for one platform or for all.
fn epoch(metadata: &HashMap<String, Vec<u8>>, key: Option<&str>) -> Result<Option<i64>, Status> {
    let of_platform = key.and_then(|key| metadata.get(&format!("{EPOCH}/{key}")));
    let Some(bytes) = of_platform.or_else(|| metadata.get(EPOCH)).filter(|bytes| !bytes.is_empty()) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(bytes);
    let invalid = |_| Status::unknown(format!("invalid SOURCE_DATE_EPOCH from frontend: {text:.100?}"));
    text.parse().map(Some).map_err(invalid)
}

fn config(metadata: &HashMap<String, Vec<u8>>, name: &str, platform: &Platform) -> Result<ImageConfig, Status> {
    let Some(bytes) = metadata.get(name).or_else(|| metadata.get(CONFIG)).filter(|bytes| !bytes.is_empty()) else {
        return Ok(Job::default_config(platform));
    };
    if bytes.as_slice() == b"null" {
        return Err(Status::unknown("invalid null image config for export"));
    }
    let config = ImageConfig::from_json(bytes);
    let mut config = config.map_err(|error| Status::unknown(format!("failed to parse image config: {error}")))?;
    // The exporter writes them: those of whoever made the config are of another image.
    config.rootfs.diff_ids.clear();
    Ok(config)
}

/// A platform as the wire has it.
pub(crate) fn platform(platform: Option<&pb::Platform>) -> Platform {
    let Some(platform) = platform.filter(|platform| !platform.os.is_empty()) else { return Platform::host() };
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    Platform {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        variant: some(&platform.variant),
        os_version: some(&platform.os_version),
        os_features: platform.os_features.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(results: Results, metadata: &[(&str, &str)]) -> Result<Vec<JobImage>, String> {
        let metadata = metadata.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
        let solution = Solution::of_metadata(results, metadata);
        solution.map(|solution| solution.images).map_err(|status| status.message().to_owned())
    }

    const BOTH: &str = r#"{"Platforms":[
        {"ID":"linux/amd64","Platform":{"os":"linux","architecture":"amd64"}},
        {"ID":"linux/arm64","Platform":{"os":"linux","architecture":"arm64"}},
        {"ID":"linux/amd64","Platform":{"os":"linux","architecture":"amd64"}}]}"#;

    #[test]
    fn front_ends_say_for_what_platforms_their_results_are() {
        let both = || Results::ByKey(["linux/amd64", "linux/arm64"].map(|key| (key.to_owned(), None)).into());
        let told = [
            (PLATFORMS, BOTH),
            ("source.date.epoch", "7"),
            ("source.date.epoch/linux/arm64", "8"),
            ("containerimage.config/linux/arm64", r#"{"architecture":"arm64"}"#),
        ];
        let images = of(both(), &told).unwrap();
        // One that is named twice is one.
        let epochs: Vec<_> = images.iter().map(|image| image.source_date_epoch).collect();
        assert_eq!(epochs, [Some(7), Some(8)]);
        assert_eq!((&*images[1].config.os, &*images[1].config.architecture), ("linux", "arm64"));
        assert!(of(both(), &[]).err().unwrap().contains("missing platforms mapping"));
    }

    #[test]
    fn a_config_that_stands_for_the_platform_has_all_of_it() {
        let half = (CONFIG, r#"{"architecture":"arm64"}"#);
        let refused = of(Results::One(None), &[half]).err().unwrap();
        assert_eq!(refused, "invalid image config: os and architecture must be specified together");
        let bad = of(Results::One(None), &[("source.date.epoch", "soon")]).err().unwrap();
        assert_eq!(bad, "invalid SOURCE_DATE_EPOCH from frontend: \"soon\"");
        assert_eq!(of(Results::One(None), &[("source.date.epoch", "")]).unwrap()[0].source_date_epoch, None);
    }
}
