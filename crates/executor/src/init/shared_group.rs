//! The group of several containers that an OCI runtime makes: it makes the group of each in it, and knows nothing of limits there.
//!
//! Where runtimes put a path differs, so the group is found by a process that is in it.

use super::cgroups::{GROUP_PREFIX, failure};
use super::limits::{self, CONTROLLERS, Interface};
use crate::message::Failure;
use crate::{GroupPlacement, SharedGroup as Wanted};
use rustix::process::Pid;
use std::path::{Path, PathBuf};

/// What it is called.
pub(super) fn name(shared: &Wanted) -> String {
    format!("{GROUP_PREFIX}{}", shared.id)
}

/// The group in each hierarchy: with its controllers, those of version 2 being all that there are in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SharedGroup(Vec<(PathBuf, Interface, String)>);

impl SharedGroup {
    /// That of a living process, where one is wanted.
    pub(super) fn of(process: Pid, placement: &GroupPlacement) -> Self {
        let Some(shared) = &placement.shared else { return Self::default() };
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", process.as_raw_nonzero())).unwrap_or_default();
        Self::find(&mounts, &groups, &name(shared))
    }

    fn find(mounts: &str, groups: &str, name: &str) -> Self {
        let in_hierarchy = |line: &str| {
            let (head, tail) = line.split_once(" - cgroup")?;
            let (root, point) = (head.split(' ').nth(3)?, head.split(' ').nth(4)?);
            let interface = if tail.starts_with("2 ") { Interface::Unified } else { Interface::Legacy };
            let options = tail.rsplit(' ').next()?;
            let path = groups.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let (names, path) = (fields.next()?, fields.next()?);
                let is_it = match interface {
                    Interface::Unified => names.is_empty(),
                    Interface::Legacy => {
                        !names.is_empty() && names.split(',').all(|name| options.split(',').any(|one| one == name))
                    }
                };
                is_it.then_some(path)
            })?;
            let group = Path::new(point).join(Path::new(path).strip_prefix(root).ok()?);
            let above = group.parent().filter(|above| above.ends_with(name))?;
            Some((above.to_owned(), interface, options.to_owned()))
        };
        Self(mounts.lines().filter_map(in_hierarchy).collect())
    }

    /// Sets its limits, as each container in it does; gives what could not be limited.
    pub(super) fn limit(&self, placement: &GroupPlacement) -> Result<Vec<String>, Failure> {
        let mut notices = Vec::new();
        let Some(shared) = &placement.shared else { return Ok(notices) };
        // Sets of processors and memory are those of each container.
        for controller in CONTROLLERS.into_iter().filter(|controller| *controller != "cpuset") {
            let place = self.place_of(controller);
            let interface = place.map_or(Interface::Legacy, |(_, interface)| interface);
            let settings = limits::settings(&shared.resources, controller, interface);
            match place {
                Some((group, _)) => {
                    limits::write_all(group, &settings, &mut notices).map_err(|error| failure(&error))?;
                }
                None => notices.extend(settings.iter().filter(|setting| setting.asked).map(|setting| {
                    limits::not_enforced(
                        setting.limit,
                        &format!("the runtime made no group of the {controller} controller"),
                    )
                })),
            }
        }
        Ok(notices)
    }

    /// Version 1 where it has the controller, as for containers of forge's own.
    fn place_of(&self, controller: &str) -> Option<(&Path, Interface)> {
        let legacy = self.0.iter().find(|(_, interface, options)| {
            *interface == Interface::Legacy && options.split(',').any(|one| one == controller)
        });
        let unified = || {
            self.0.iter().find(|(group, interface, _)| {
                let has = |list: String| list.split_whitespace().any(|one| one == controller);
                *interface == Interface::Unified
                    && std::fs::read_to_string(group.join("cgroup.controllers")).is_ok_and(has)
            })
        };
        legacy.or_else(unified).map(|(group, interface, _)| (&**group, *interface))
    }

    /// Removes it, if this was the last container in it.
    pub(super) fn remove(&self) {
        self.0.iter().for_each(|(group, ..)| limits::remove(std::slice::from_ref(group)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_above_that_of_the_process_in_each_hierarchy() {
        let mounts = "35 31 0:32 / /cg/memory rw shared:1 - cgroup cgroup rw,memory\n\
                      36 31 0:33 /a /cg/cpu,cpuacct rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n\
                      37 31 0:34 / /cg/pids rw - cgroup cgroup rw,pids\n\
                      30 21 0:27 / /cg/unified rw - cgroup2 cgroup2 rw\n";
        let groups = "4:memory:/forge-c-x/own\n3:cpu,cpuacct:/a/forge-c-x/own\n2:pids:/elsewhere\n0::/forge-c-x/own\n";
        let found = SharedGroup::find(mounts, groups, "forge-c-x");
        let paths: Vec<_> = found.0.iter().map(|(path, ..)| path.to_str().expect("text")).collect();
        assert_eq!(paths, ["/cg/memory/forge-c-x", "/cg/cpu,cpuacct/forge-c-x", "/cg/unified/forge-c-x"]);
        assert_eq!(found.place_of("cpu"), Some((Path::new("/cg/cpu,cpuacct/forge-c-x"), Interface::Legacy)));
        assert_eq!(found.place_of("pids"), None);
    }
}
