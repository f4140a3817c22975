//! The flags of RUN whose values are known without their variables.

use crate::command::Asked;
use crate::csv;
use crate::suggest::nearest;
use crate::{FrontendError, Problem, Span, Token};
use forge_llb::{CdiDevice, NetworkMode};

pub(crate) fn network(flag: &Token) -> Result<Asked<NetworkMode>, FrontendError> {
    let value = match flag.text.as_str() {
        "default" => NetworkMode::Default,
        "none" => NetworkMode::None,
        "host" => NetworkMode::Host,
        other => {
            let error = FrontendError::from(Problem::Flag { reason: format!("invalid network mode {other:?}") });
            let suggestion = nearest(other, ["default", "none", "host"]);
            return Err(FrontendError { suggestion, ..error }.or_at(flag.span));
        }
    };
    Ok(Asked { value, span: flag.span })
}

/// Where it stands, if it is.
pub(crate) fn is_insecure(flag: &Token) -> Result<Option<Span>, FrontendError> {
    match flag.text.as_str() {
        "sandbox" => Ok(None),
        "insecure" => Ok(Some(flag.span)),
        other => {
            let error = FrontendError::from(Problem::Flag { reason: format!("security {other:?} is not valid") });
            let suggestion = nearest(other, ["sandbox", "insecure"]);
            Err(FrontendError { suggestion, ..error }.or_at(flag.span))
        }
    }
}

/// `name[,required]`, or `name=…,required=…`.
pub(crate) fn device(flag: &Token) -> Result<Asked<CdiDevice>, FrontendError> {
    let refuse = |reason: String| FrontendError::from(Problem::Flag { reason }).or_at(flag.span);
    let fields = csv::fields(&flag.text).map_err(|reason| refuse(format!("failed to parse csv devices: {reason}")))?;
    let mut device = CdiDevice { name: String::new(), optional: true };
    for field in fields {
        match field.split_once('=').map(|(key, value)| (key.to_lowercase(), value)) {
            None if field.eq_ignore_ascii_case("required") => device.optional = false,
            None if device.name.is_empty() => device.name = field,
            None => return Err(refuse(format!("invalid field '{field}' must be a key=value pair"))),
            Some((key, value)) => match key.as_str() {
                "name" if device.name.is_empty() => value.clone_into(&mut device.name),
                "name" => return Err(refuse(format!("device name already set to {}", device.name))),
                "required" => match value {
                    "1" | "t" | "T" | "TRUE" | "true" | "True" => device.optional = false,
                    "0" | "f" | "F" | "FALSE" | "false" | "False" => device.optional = true,
                    _ => return Err(refuse(format!("invalid value for required: {value}"))),
                },
                // The name itself holds a sign of equality: `vendor.com/class=name`.
                _ if device.name.is_empty() => device.name = field,
                key => {
                    let error = refuse(format!("unexpected key '{key}' in '{field}'"));
                    return Err(FrontendError { suggestion: nearest(key, ["name", "required"]), ..error });
                }
            },
        }
    }
    match device.name.is_empty() {
        true => Err(refuse("a device needs a name".to_owned())),
        false => Ok(Asked { value: device, span: flag.span }),
    }
}
