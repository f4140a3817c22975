//! What control groups bound of steps (`OpMetadata.linux_resources` of BuildKit's `solver/pb/ops.proto`), which is younger than the
//! wire types: they would drop it. On its way through them it is one of a vertex's descriptions, which they hand on as they came.

use crate::DecodeError;
use crate::decode::{Field, Fields};
use crate::error::Refusal;
use crate::pb;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use forge_llb::{StepResources, is_set_of_numbers};
use prost::Message;
use prost::encoding::encode_varint;
use serde_json::{Value, json};
use std::sync::Arc;

/// The description: the message in base64.
const DESCRIPTION: &str = "forge.linux.resources";

/// The fields of `Definition` and of `OpMetadata` that matter here.
const METADATA: u64 = 2;
const DESCRIPTIONS: u64 = 2;
const RESOURCES: u64 = 7;
/// Those of an entry of any map.
const KEY: u64 = 1;
const VALUE: u64 = 2;

/// Zero and empty stand for no limit; so does -1, as in runc.
#[derive(Clone, PartialEq, Message)]
struct LinuxResources {
    #[prost(int64, tag = "1")]
    memory: i64,
    #[prost(int64, tag = "2")]
    memory_swap: i64,
    #[prost(uint64, tag = "3")]
    cpu_shares: u64,
    #[prost(uint64, tag = "4")]
    cpu_period: u64,
    #[prost(int64, tag = "5")]
    cpu_quota: i64,
    #[prost(string, tag = "6")]
    cpuset_cpus: String,
    #[prost(string, tag = "7")]
    cpuset_mems: String,
}

/// Where a message of the wire has the metadata of vertices.
pub struct Holder(Place);

enum Place {
    /// It is such metadata.
    Metadata,
    /// Some of its fields have some.
    Fields(&'static [(u64, &'static Holder)]),
}

impl Holder {
    /// A definition by itself.
    pub const DEFINITION: &Self =
        &Self(Place::Fields(&[(METADATA, &Self(Place::Fields(&[(VALUE, &Self(Place::Metadata))])))]));
    /// The inputs of a front end.
    const INPUT: &Self = &Self(Place::Fields(&[(VALUE, Self::DEFINITION)]));
    /// What a build is asked for.
    pub const CONTROL_SOLVE: &Self = &Self(Place::Fields(&[(2, Self::DEFINITION), (10, Self::INPUT)]));
    /// What a front end asks for.
    pub const BRIDGE_SOLVE: &Self = &Self(Place::Fields(&[(1, Self::DEFINITION), (13, Self::INPUT)]));
}

/// What a field is.
enum Meaning {
    Resources,
    Holder(&'static Holder),
    Other,
}

impl Holder {
    fn meaning(&self, field: u64) -> Meaning {
        match &self.0 {
            Place::Metadata if field == RESOURCES => Meaning::Resources,
            Place::Metadata => Meaning::Other,
            Place::Fields(holders) => holders
                .iter()
                .find(|(number, _)| *number == field)
                .map_or(Meaning::Other, |(_, inner)| Meaning::Holder(inner)),
        }
    }
}

/// A message whose limits of steps survive the wire types.
///
/// # Errors
/// It is no message.
pub fn with_described_resources(message: &[u8], holder: &Holder) -> Result<Vec<u8>, DecodeError> {
    let (mut written, mut fields) = (Vec::with_capacity(message.len()), Fields(message));
    loop {
        let before = fields.0;
        let Some(Field { number, content }) = fields.next()? else { return Ok(written) };
        match (holder.meaning(number), content) {
            (Meaning::Resources, Some(resources)) => {
                put(DESCRIPTIONS, &entry(DESCRIPTION.as_bytes(), BASE64.encode(resources).as_bytes()), &mut written);
            }
            (Meaning::Holder(inner), Some(content)) => {
                put(number, &with_described_resources(content, inner)?, &mut written);
            }
            _ => written.extend(&before[..before.len() - fields.0.len()]),
        }
    }
}

fn put(number: u64, content: &[u8], to: &mut Vec<u8>) {
    encode_varint(number << 3 | 2, to);
    encode_varint(content.len() as u64, to);
    to.extend(content);
}

fn entry(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut entry = Vec::new();
    put(KEY, key, &mut entry);
    put(VALUE, value, &mut entry);
    entry
}

/// Whether a definition limits any of its steps.
pub fn limits_steps(definition: &pb::Definition) -> bool {
    definition.metadata.values().any(|metadata| metadata.description.contains_key(DESCRIPTION))
}

/// A definition as everybody else writes it: limits are in their own field again.
pub fn definition_bytes(definition: &pb::Definition) -> Vec<u8> {
    if !limits_steps(definition) {
        return definition.encode_to_vec();
    }
    let mut plain = definition.clone();
    let mut limited = Vec::new();
    for (vertex, metadata) in std::mem::take(&mut plain.metadata) {
        let mut metadata = metadata;
        let described = metadata.description.remove(DESCRIPTION).and_then(|text| BASE64.decode(text).ok());
        let mut bytes = metadata.encode_to_vec();
        if let Some(described) = described {
            put(RESOURCES, &described, &mut bytes);
        }
        put(METADATA, &entry(vertex.as_bytes(), &bytes), &mut limited);
    }
    let mut bytes = plain.encode_to_vec();
    bytes.extend(limited);
    bytes
}

/// Notes the limits of a vertex.
pub(crate) fn describe(resources: &StepResources, metadata: &mut pb::OpMetadata) {
    let StepResources { memory, memory_swap, cpu_shares, cpu_period, cpu_quota, cpuset_cpus, cpuset_mems } = resources;
    let signed = |number: Option<u64>| number.map_or(0, |number| i64::try_from(number).unwrap_or(i64::MAX));
    let message = LinuxResources {
        memory: signed(*memory),
        memory_swap: memory_swap.unwrap_or_default(),
        cpu_shares: cpu_shares.unwrap_or_default(),
        cpu_period: cpu_period.unwrap_or_default(),
        cpu_quota: signed(*cpu_quota),
        cpuset_cpus: cpuset_cpus.clone().unwrap_or_default(),
        cpuset_mems: cpuset_mems.clone().unwrap_or_default(),
    };
    metadata.description.insert(DESCRIPTION.to_owned(), BASE64.encode(message.encode_to_vec()));
}

fn described(metadata: &pb::OpMetadata) -> Option<Option<LinuxResources>> {
    let text = metadata.description.get(DESCRIPTION)?;
    Some(BASE64.decode(text).ok().and_then(|bytes| LinuxResources::decode(bytes.as_slice()).ok()))
}

/// The limits of a vertex, where it has any.
pub(crate) fn decode(metadata: &pb::OpMetadata) -> Result<Option<Arc<StepResources>>, Refusal> {
    let Some(found) = described(metadata) else { return Ok(None) };
    let Some(found) = found else { return Refusal::malformed("its linux resources cannot be read") };
    let step = StepResources {
        memory: limit("memory", found.memory)?,
        memory_swap: match found.memory_swap {
            0 => None,
            bytes @ -1.. => Some(bytes),
            other => return refused("memory swap", other),
        },
        cpu_shares: Some(found.cpu_shares).filter(|shares| *shares > 0),
        cpu_period: Some(found.cpu_period).filter(|period| *period > 0),
        cpu_quota: limit("cpu quota", found.cpu_quota)?,
        cpuset_cpus: set("cpuset cpus", found.cpuset_cpus)?,
        cpuset_mems: set("cpuset mems", found.cpuset_mems)?,
    };
    Ok((step != StepResources::default()).then(|| Arc::new(step)))
}

fn refused<T>(name: &str, value: impl std::fmt::Debug) -> Result<T, Refusal> {
    Refusal::malformed(format!("invalid {name} limit {value:.100?}"))
}

fn limit(name: &str, value: i64) -> Result<Option<u64>, Refusal> {
    match value {
        -1 | 0 => Ok(None),
        other => u64::try_from(other).map(Some).or_else(|_| refused(name, other)),
    }
}

fn set(name: &str, text: String) -> Result<Option<String>, Refusal> {
    match text.as_str() {
        "" => Ok(None),
        list if is_set_of_numbers(list) => Ok(Some(text)),
        other => refused(name, other),
    }
}

/// The metadata as people are shown it, and the limits in it.
pub(crate) fn shown(metadata: &pb::OpMetadata) -> (pb::OpMetadata, Option<Value>) {
    let mut plain = metadata.clone();
    plain.description.remove(DESCRIPTION);
    let shown = described(metadata).flatten().map(|found| {
        let all = json!({
            "memory": found.memory, "memorySwap": found.memory_swap, "cpuShares": found.cpu_shares,
            "cpuPeriod": found.cpu_period, "cpuQuota": found.cpu_quota, "cpusetCpus": found.cpuset_cpus,
            "cpusetMems": found.cpuset_mems,
        });
        let is_set = |value: &Value| value.as_str() != Some("") && value.as_i64() != Some(0);
        all.as_object()
            .into_iter()
            .flatten()
            .filter(|(_, value)| is_set(value))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    });
    (plain, shown)
}
