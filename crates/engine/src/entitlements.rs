//! What steps may have beyond what every step has: nothing that the caller did not allow.

use crate::dockerfile::DockerfileText;
use crate::excerpt::excerpt;
use crate::{BuildRequest, EngineError, Network};
use forge_frontend::{Entitlement, EntitlementUse, LoweredImage, TriggerRight};
use forge_image::ErrorKind;
use std::collections::BTreeSet;

/// What the caller allows (`--allow`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// `network.host`: the host's network.
    pub host_network: bool,
    /// `security.insecure`: all privileges.
    pub insecure: bool,
    /// `device`: all devices.
    pub all_devices: bool,
    /// `device=NAME`: devices by their CDI names.
    pub devices: BTreeSet<String>,
    /// What triggers (ONBUILD) of base images may use of what the build has.
    pub in_triggers: BTreeSet<TriggerRight>,
}

impl Allowed {
    fn covers(&self, entitlement: &Entitlement) -> bool {
        match entitlement {
            Entitlement::NetworkHost => self.host_network,
            Entitlement::SecurityInsecure => self.insecure,
            Entitlement::Device(name) => self.all_devices || self.devices.contains(name),
        }
    }
}

/// Refuses a build with a step that needs what was not allowed. Whoever gives all steps the host's network allows it.
pub(crate) fn check(image: &LoweredImage, request: &BuildRequest, text: &DockerfileText) -> Result<(), EngineError> {
    let allowed = Allowed {
        host_network: request.allowed.host_network || request.network == Network::Host,
        ..request.allowed.clone()
    };
    match image.entitlements.iter().find(|used| !allowed.covers(&used.entitlement)) {
        None => Ok(()),
        Some(EntitlementUse { entitlement, span }) => {
            // BuildKit's clients look for these words.
            let message = format!("entitlement {} is not allowed", shown(entitlement));
            let hint = format!("allow it with --allow {entitlement}");
            let refused = EngineError::new(ErrorKind::UserInput, message).with_hint(hint);
            let source = String::from_utf8_lossy(&text.text);
            Err(match source.is_empty() {
                true => refused,
                false => refused.with_detail(excerpt(&text.name, &source, span.first_line, span.last_line)),
            })
        }
    }
}

fn shown(entitlement: &Entitlement) -> String {
    match entitlement {
        Entitlement::Device(name) => format!("device {name}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_allowed_by_its_name_or_with_all_others() {
        let device = Entitlement::Device("vendor.com/class=a".to_owned());
        assert!(!Allowed::default().covers(&device));
        assert!(Allowed { all_devices: true, ..Allowed::default() }.covers(&device));
        let named = |name: &str| Allowed { devices: [name.to_owned()].into(), ..Allowed::default() };
        assert!(named("vendor.com/class=a").covers(&device) && !named("vendor.com/class=b").covers(&device));
    }

    #[test]
    fn one_entitlement_is_not_another() {
        let (network, insecure) = (Entitlement::NetworkHost, Entitlement::SecurityInsecure);
        let host_network = Allowed { host_network: true, ..Allowed::default() };
        assert!(host_network.covers(&network) && !host_network.covers(&insecure));
        let all = Allowed { insecure: true, ..Allowed::default() };
        assert!(all.covers(&insecure) && !all.covers(&network));
    }
}
