//! Policies in docker's format (`--security-opt seccomp=FILE`), which is the runtime specification's with conditions on
//! the machine and the container.

use super::profile::{SeccompAction, SeccompComparison, SeccompCondition, SeccompProfile, SeccompRule};
use crate::{Capabilities, ExecutorError};
use serde::Deserialize;

/// The names of this machine's architecture: docker's, and libseccomp's.
const MACHINE: (&str, &str) = ("amd64", "SCMP_ARCH_X86_64");
/// What 32-bit programs of it speak.
const NARROW: &str = "SCMP_ARCH_X86";
/// Flags that are set anyway, or have no meaning for one thread.
const HARMLESS_FLAGS: [&str; 1] = ["SECCOMP_FILTER_FLAG_TSYNC"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<Architecture>,
    #[serde(default)]
    flags: Vec<String>,
    listener_path: Option<String>,
    #[serde(default)]
    syscalls: Vec<Syscall>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Architecture {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Syscall {
    #[serde(default)]
    name: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Filter {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl SeccompProfile {
    /// Reads a policy in docker's format, for a process with these capabilities on this machine.
    ///
    /// # Errors
    /// [`ExecutorError::InvalidSpec`] for what is no such policy, [`ExecutorError::Unsupported`] for what would need
    /// another process to answer.
    pub fn from_docker(text: &[u8], capabilities: Capabilities) -> Result<Self, ExecutorError> {
        let file: File = serde_json::from_slice(text).map_err(|error| invalid(&error.to_string()))?;
        file.profile(&Conditions { capabilities, kernel: running_kernel() })
    }
}

fn invalid(reason: &str) -> ExecutorError {
    ExecutorError::InvalidSpec { reason: format!("the seccomp profile cannot be used: {reason}") }
}

/// What rules may ask for.
struct Conditions {
    capabilities: Capabilities,
    kernel: (u32, u32),
}

impl File {
    fn profile(&self, conditions: &Conditions) -> Result<SeccompProfile, ExecutorError> {
        if self.listener_path.is_some() {
            return Err(ExecutorError::Unsupported { what: "a seccomp profile with a listener".into() });
        }
        if let Some(flag) = self.flags.iter().find(|flag| !HARMLESS_FLAGS.contains(&flag.as_str())) {
            return Err(ExecutorError::Unsupported { what: format!("the flag {flag} of a seccomp profile") });
        }
        let mut rules = Vec::new();
        for syscall in &self.syscalls {
            if conditions.apply(syscall)? {
                syscall.rules(&mut rules)?;
            }
        }
        let default = action(&self.default_action, self.default_errno_ret)?;
        Ok(SeccompProfile { default, narrow: self.admits_narrow()?, rules })
    }

    fn admits_narrow(&self) -> Result<bool, ExecutorError> {
        let listed = |all: &[String]| all.iter().any(|one| one == NARROW);
        match (self.architectures.is_empty(), self.arch_map.is_empty()) {
            (false, false) => Err(invalid("both 'architectures' and 'archMap' are specified")),
            (false, true) => Ok(listed(&self.architectures)),
            (true, _) => {
                let own = self.arch_map.iter().find(|one| one.architecture == MACHINE.1);
                Ok(own.and_then(|own| own.sub_architectures.as_deref()).is_some_and(listed))
            }
        }
    }
}

impl Conditions {
    /// docker's rule: none of what is excluded, all of what is included.
    fn apply(&self, syscall: &Syscall) -> Result<bool, ExecutorError> {
        let has = |name: &String| Capabilities::from_name(name).is_some_and(|one| self.capabilities.contains(one));
        let here = |arches: &Vec<String>| arches.is_empty() || arches.iter().any(|one| one == MACHINE.0);
        let newer =
            |least: &Option<String>| least.as_deref().map(|text| version(text).map(|least| self.kernel >= least));
        if let Some(excludes) = &syscall.excludes {
            let arch = excludes.arches.as_ref().is_some_and(|arches| !arches.is_empty() && here(arches));
            let caps = excludes.caps.iter().flatten().any(has);
            if arch || caps || newer(&excludes.min_kernel).transpose()?.unwrap_or(false) {
                return Ok(false);
            }
        }
        let Some(includes) = &syscall.includes else { return Ok(true) };
        let kernel = newer(&includes.min_kernel).transpose()?.unwrap_or(true);
        Ok(includes.arches.as_ref().is_none_or(here) && includes.caps.iter().flatten().all(has) && kernel)
    }
}

impl Syscall {
    /// Conditions that name one argument twice are alternatives, as runtimes read them; otherwise all have to hold.
    fn rules(&self, rules: &mut Vec<SeccompRule>) -> Result<(), ExecutorError> {
        let names = match (self.name.is_empty(), self.names.clone()) {
            (false, None) => vec![self.name.clone()],
            (false, Some(names)) if !names.is_empty() => {
                return Err(invalid("'name' and 'names' are specified in one rule"));
            }
            (false, Some(_)) => vec![self.name.clone()],
            (true, names) => names.unwrap_or_default(),
        };
        let action = action(&self.action, self.errno_ret)?;
        let conditions = self.args.iter().flatten().map(Argument::condition).collect::<Result<Vec<_>, _>>()?;
        let twice =
            |one: &SeccompCondition| conditions.iter().filter(|other| other.argument == one.argument).count() > 1;
        match conditions.iter().any(twice) {
            false => rules.push(SeccompRule { names, action, conditions }),
            true => rules.extend(conditions.iter().map(|one| SeccompRule {
                names: names.clone(),
                action,
                conditions: vec![*one],
            })),
        }
        Ok(())
    }
}

impl Argument {
    fn condition(&self) -> Result<SeccompCondition, ExecutorError> {
        if self.index > 5 {
            return Err(invalid(&format!("system calls have no argument {}", self.index)));
        }
        let comparison = match self.op.as_str() {
            "SCMP_CMP_NE" => SeccompComparison::NotEqual(self.value),
            "SCMP_CMP_LT" => SeccompComparison::Less(self.value),
            "SCMP_CMP_LE" => SeccompComparison::LessOrEqual(self.value),
            "SCMP_CMP_EQ" => SeccompComparison::Equal(self.value),
            "SCMP_CMP_GE" => SeccompComparison::GreaterOrEqual(self.value),
            "SCMP_CMP_GT" => SeccompComparison::Greater(self.value),
            "SCMP_CMP_MASKED_EQ" => SeccompComparison::MaskedEqual { mask: self.value, value: self.value_two },
            other => return Err(invalid(&format!("unknown comparison {other:?}"))),
        };
        Ok(SeccompCondition { argument: self.index, comparison })
    }
}

fn action(name: &str, errno: Option<u16>) -> Result<SeccompAction, ExecutorError> {
    match name {
        "SCMP_ACT_ALLOW" => Ok(SeccompAction::Allow),
        "SCMP_ACT_LOG" => Ok(SeccompAction::Log),
        "SCMP_ACT_ERRNO" => Ok(SeccompAction::Errno(errno.unwrap_or(libc::EPERM as u16))),
        "SCMP_ACT_TRAP" => Ok(SeccompAction::Trap),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(SeccompAction::KillThread),
        "SCMP_ACT_KILL_PROCESS" => Ok(SeccompAction::KillProcess),
        // Somebody would have to listen.
        "SCMP_ACT_TRACE" | "SCMP_ACT_NOTIFY" => {
            Err(ExecutorError::Unsupported { what: format!("{name} in a seccomp profile") })
        }
        other => Err(invalid(&format!("unknown action {other:?}"))),
    }
}

fn version(text: &str) -> Result<(u32, u32), ExecutorError> {
    let numbers = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    numbers.ok_or_else(|| invalid(&format!("{text:?} is no version of a kernel")))
}

fn running_kernel() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<SeccompProfile, String> {
        let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let conditions = Conditions { capabilities: Capabilities::DEFAULT, kernel: (6, 1) };
        file.profile(&conditions).map_err(|error| error.to_string())
    }

    fn names(rules: &str) -> String {
        let text = format!("{{\"defaultAction\": \"SCMP_ACT_ERRNO\", \"syscalls\": [{rules}]}}");
        let profile = read(&text).expect("a profile");
        profile.rules.iter().flat_map(|rule| rule.names.clone()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn conditions_on_machine_and_container_are_docker_s() {
        let rule =
            |name: &str, more: &str| format!("{{\"names\": [\"{name}\"], \"action\": \"SCMP_ACT_ALLOW\"{more}}}");
        let all = [
            rule("always", ""),
            rule("old", ", \"includes\": {\"minKernel\": \"4.8\"}"),
            rule("new", ", \"includes\": {\"minKernel\": \"6.2\"}"),
            rule("here", ", \"includes\": {\"arches\": [\"amd64\", \"arm64\"]}"),
            rule("elsewhere", ", \"includes\": {\"arches\": [\"arm64\"]}"),
            rule("nothere", ", \"excludes\": {\"arches\": [\"amd64\"]}"),
            rule("held", ", \"includes\": {\"caps\": [\"CAP_CHOWN\"]}"),
            rule("missing", ", \"includes\": {\"caps\": [\"CAP_CHOWN\", \"CAP_SYS_ADMIN\"]}"),
            rule("without", ", \"excludes\": {\"caps\": [\"CAP_SYS_ADMIN\"]}"),
        ];
        assert_eq!(names(&all.join(",")), "always old here held without");
    }

    #[test]
    fn one_argument_twice_means_either() {
        let args = "[{\"index\": 0, \"value\": 1, \"op\": \"SCMP_CMP_EQ\"}, {\"index\": 0, \"value\": 2, \"op\": \"SCMP_CMP_EQ\"}]";
        assert_eq!(names(&format!("{{\"name\": \"x\", \"action\": \"SCMP_ACT_ALLOW\", \"args\": {args}}}")), "x x");
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let refused = |text: &str| read(text).expect_err("refused");
        assert!(refused("{}").contains("defaultAction"));
        assert!(refused("{\"defaultAction\": \"SCMP_ACT_NOTIFY\"}").contains("SCMP_ACT_NOTIFY"));
        assert!(refused("{\"defaultAction\": \"NONSENSE\"}").contains("unknown action"));
        let both = "{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"architectures\": [\"SCMP_ARCH_X86\"], \
                    \"archMap\": [{\"architecture\": \"SCMP_ARCH_X86_64\"}]}";
        assert!(refused(both).contains("both"));
        assert!(
            read("{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"architectures\": [\"SCMP_ARCH_X86\"]}")
                .expect("fine")
                .narrow
        );
    }
}
