//! What the configuration says of garbage collection: the keys of `[worker.oci]` in buildkitd.toml.

use crate::request::bytes;
use forge_engine::{DiskSpace, Filter, GcBounds, GcOptions, GcPolicy};
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::time::Duration;

/// The keys beside the worker's others.
///
/// ```toml
/// [worker.oci]
/// gc = true
/// maxUsedSpace = "60%"
/// [[worker.oci.gcpolicy]]
/// filters = ["type==exec.cachemount"]
/// keepDuration = "48h"
/// maxUsedSpace = "2GB"
/// ```
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct GcKeys {
    gc: Option<bool>,
    #[serde(rename = "gckeepstorage")]
    keep_storage: Option<Size>,
    #[serde(rename = "reservedSpace")]
    reserved_space: Option<Size>,
    #[serde(rename = "maxUsedSpace")]
    max_used_space: Option<Size>,
    #[serde(rename = "minFreeSpace")]
    min_free_space: Option<Size>,
    #[serde(rename = "gcpolicy")]
    policies: Vec<PolicyKeys>,
}

/// The same keys and those of forge's own worker; unknown ones are refused, with their line.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerKeys {
    /// How many steps run at the same time.
    #[serde(rename = "max-parallelism")]
    pub max_parallelism: Option<usize>,
    gc: Option<bool>,
    #[serde(rename = "gckeepstorage")]
    keep_storage: Option<Size>,
    #[serde(rename = "reservedSpace")]
    reserved_space: Option<Size>,
    #[serde(rename = "maxUsedSpace")]
    max_used_space: Option<Size>,
    #[serde(rename = "minFreeSpace")]
    min_free_space: Option<Size>,
    #[serde(rename = "gcpolicy")]
    policies: Vec<PolicyKeys>,
}

impl WorkerKeys {
    /// Those of garbage collection.
    pub fn gc(self) -> GcKeys {
        let Self { gc, keep_storage, reserved_space, max_used_space, min_free_space, policies, .. } = self;
        GcKeys { gc, keep_storage, reserved_space, max_used_space, min_free_space, policies }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct PolicyKeys {
    all: bool,
    filters: Vec<String>,
    keep_bytes: Option<Size>,
    keep_duration: Option<Time>,
    reserved_space: Option<Size>,
    max_used_space: Option<Size>,
    min_free_space: Option<Size>,
}

impl GcKeys {
    /// What they come to.
    ///
    /// # Errors
    /// A filter cannot be read.
    pub fn options(self) -> anyhow::Result<GcOptions> {
        let size = |size: Option<Size>| size.map(|Size(size)| size);
        let mut bounds = GcBounds {
            reserved_space: size(self.reserved_space),
            max_used_space: size(self.max_used_space),
            min_free_space: size(self.min_free_space),
        };
        // The key of earlier versions counts where it is alone.
        if bounds == GcBounds::default() {
            bounds.reserved_space = size(self.keep_storage);
        }
        let policies = self.policies.into_iter().map(PolicyKeys::policy).collect::<anyhow::Result<_>>()?;
        Ok(GcOptions { enabled: self.gc.unwrap_or(true), bounds, policies })
    }
}

impl PolicyKeys {
    fn policy(self) -> anyhow::Result<GcPolicy> {
        let size = |size: Option<Size>| size.map(|Size(size)| size);
        let filters = self.filters.iter().map(|filter| Ok(filter.parse()?)).collect::<anyhow::Result<Vec<Filter>>>()?;
        Ok(GcPolicy {
            filters,
            all: self.all,
            keep_duration: self.keep_duration.map_or(Duration::ZERO, |Time(time)| time),
            bounds: GcBounds {
                reserved_space: size(self.reserved_space).or(size(self.keep_bytes)),
                max_used_space: size(self.max_used_space),
                min_free_space: size(self.min_free_space),
            },
        })
    }
}

/// A number of bytes, `"512MB"` or `"20%"`.
#[derive(Clone, Copy, Debug)]
struct Size(DiskSpace);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(SizeVisitor)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a number of bytes, a size such as \"10GB\", or a part of the disk such as \"20%\"")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Size, E> {
        let bytes = u64::try_from(number).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))?;
        Ok(Size(DiskSpace::Bytes(bytes)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
        let percent = text.strip_suffix('%').map(|number| number.trim().parse().ok().filter(|part| *part <= 100));
        let size = match percent {
            Some(percent) => percent.map(DiskSpace::Percent),
            None => bytes("size", text).ok().map(DiskSpace::Bytes),
        };
        size.map(Size).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// A number of seconds, or `"48h"`.
#[derive(Clone, Copy, Debug)]
struct Time(Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(TimeVisitor)
    }
}

struct TimeVisitor;

impl Visitor<'_> for TimeVisitor {
    type Value = Time;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a number of seconds, or a time such as \"48h\"")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Time, E> {
        let seconds = u64::try_from(number).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))?;
        Ok(Time(Duration::from_secs(seconds)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Time, E> {
        let time = humantime::parse_duration(text);
        time.map(Time).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<GcOptions> {
        toml::from_str::<GcKeys>(text)?.options()
    }

    #[test]
    fn the_keys_are_buildkitds() {
        assert_eq!(read("").unwrap(), GcOptions::default());
        assert!(!read("gc = false").unwrap().enabled);
        let bounds = |text| {
            let bounds = read(text).unwrap().bounds;
            [bounds.reserved_space, bounds.max_used_space, bounds.min_free_space]
        };
        let (bytes, percent) = (|bytes| Some(DiskSpace::Bytes(bytes)), |part| Some(DiskSpace::Percent(part)));
        assert_eq!(bounds("gckeepstorage = 9000"), [bytes(9000), None, None]);
        assert_eq!(bounds("gckeepstorage = 9000\nmaxUsedSpace = \"60%\""), [None, percent(60), None]);
        assert_eq!(bounds("reservedSpace = \"1GB\"\nminFreeSpace = 5"), [bytes(1 << 30), None, bytes(5)]);
        let text = "[[gcpolicy]]\nfilters = [\"type==source.local\", \"type==regular,shared\"]\nkeepDuration = \"48h\"\n\
                    keepBytes = \"512MB\"\n[[gcpolicy]]\nall = true\nkeepDuration = 60\nmaxUsedSpace = \"10%\"\n";
        let policies = read(text).unwrap().policies;
        assert_eq!((policies[0].filters.len(), policies[0].keep_duration.as_secs()), (2, 48 * 3600));
        assert_eq!(policies[0].bounds.reserved_space, bytes(512 << 20));
        assert!(policies[1].all && policies[1].keep_duration.as_secs() == 60);
        assert_eq!(policies[1].bounds.max_used_space, percent(10));
    }

    #[test]
    fn what_is_no_size_no_time_and_no_filter_is_refused() {
        let error = |text| format!("{:#}", read(text).unwrap_err());
        assert!(error("maxUsedSpace = \"120%\"").contains("expected a number of bytes, a size such as \"10GB\""));
        assert!(error("maxUsedSpace = -1").contains("expected a number of bytes"));
        assert!(error("[[gcpolicy]]\nkeepDuration = \"soon\"").contains("a time such as \"48h\""));
        assert!(error("[[gcpolicy]]\nfilters = [\"colour==red\"]").contains("unknown filter \"colour\""));
        assert!(error("[[gcpolicy]]\nkeep = 1").contains("unknown field `keep`"));
    }
}
