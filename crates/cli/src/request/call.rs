use crate::args::BuildArgs;
use crate::sanitise;
use anyhow::{Context, bail};
use forge_engine::Call;

/// What `--call` and `--check` ask for instead of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallRequest {
    pub method: Method,
    pub format: CallFormat,
    /// Whether findings of the checks leave the exit code at zero.
    pub ignore_status: bool,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Something about the Dockerfile.
    Dockerfile(Call),
    /// What can be asked.
    Describe,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFormat {
    Text,
    Json,
}

/// Reads `METHOD[,format=json][,ignorestatus=BOOL]`; `None` where the method is to build. `--check` stands for
/// `--call=check`.
///
/// # Errors
/// There is no such method or option.
pub fn call_request(args: &BuildArgs) -> anyhow::Result<Option<CallRequest>> {
    let text = if args.check { "check" } else { args.call.as_deref().unwrap_or_default() };
    let (mut method, mut format, mut ignore_status) = (None, CallFormat::Text, false);
    for field in text.split(',').filter(|field| !field.is_empty()) {
        match field.split_once('=') {
            Some(("format", "json")) => format = CallFormat::Json,
            Some(("format", "text" | "")) => format = CallFormat::Text,
            Some(("format", other)) => {
                bail!("--call: unknown format {:?}: expected text or json", sanitise::line(other))
            }
            Some(("ignorestatus", value)) => ignore_status = boolean(value).with_context(|| wrong(field))?,
            Some(_) => bail!("{}: expected format=json or ignorestatus=true", wrong(field)),
            None if method.is_some() => bail!("{}: one method is enough", wrong(field)),
            None => method = Some(field),
        }
    }
    let method = match method {
        None | Some("build") => return Ok(None),
        Some("check" | "lint") => Method::Dockerfile(Call::Check),
        Some("outline") => Method::Dockerfile(Call::Outline),
        Some("targets") => Method::Dockerfile(Call::Targets),
        Some("subrequests.describe") => Method::Describe,
        Some(other) => bail!("{}: expected build, check, outline, targets or subrequests.describe", wrong(other)),
    };
    Ok(Some(CallRequest { method, format, ignore_status }))
}

fn wrong(field: &str) -> String {
    format!("--call: invalid {:?}", sanitise::line(field))
}

fn boolean(text: &str) -> anyhow::Result<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" => Ok(true),
        "0" | "f" | "false" => Ok(false),
        _ => bail!("expected true or false"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(call: &str) -> anyhow::Result<Option<CallRequest>> {
        let mut args = BuildArgs::default();
        args.call = Some(call.to_owned());
        call_request(&args)
    }

    #[test]
    fn methods_and_their_options() {
        let asked = |method| Some(CallRequest { method, format: CallFormat::Text, ignore_status: false });
        let text = |call| asked(Method::Dockerfile(call));
        assert_eq!(read("build").unwrap(), None);
        assert_eq!(read("").unwrap(), None);
        assert_eq!(read("check").unwrap(), text(Call::Check));
        assert_eq!(read("lint").unwrap(), text(Call::Check));
        assert_eq!(read("outline,format=text").unwrap(), text(Call::Outline));
        assert_eq!(read("subrequests.describe").unwrap(), asked(Method::Describe));
        let method = Method::Dockerfile(Call::Targets);
        let all = CallRequest { method, format: CallFormat::Json, ignore_status: true };
        assert_eq!(read("targets,format=json,ignorestatus=true").unwrap(), Some(all));
        let mut check = BuildArgs::default();
        check.check = true;
        assert_eq!(call_request(&check).unwrap(), text(Call::Check));
        for wrong in ["lnit", "check,outline", "check,format=xml", "check,ignorestatus=maybe", "check,depth=1"] {
            assert!(read(wrong).unwrap_err().to_string().starts_with("--call: "), "{wrong}");
        }
    }
}
