//! What containers are cloned with, and the process that waits to become the next one.

use super::apparmor::Profiles;
use super::belongings::Belongings;
use super::cgroups::{Cgroups, GROUP_PREFIX, Group, Wish};
use super::network::{Networks, PrivateNetwork};
use super::rights::Rights;
use super::setup::Means;
use super::waiting::Waiting;
use super::{setup, shim, sys};
use crate::message::{self, Channel, Doing, Failure, Maker, Message, Order};
use crate::{DevicePolicy, GroupPlacement, NetworkMode, Resources, SharedNamespaces};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Namespaces every container is cloned into; an init makes its mount namespace itself.
const NAMESPACES: u64 = (libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) as u64;

const TIME_NAMESPACE: u64 = libc::CLONE_NEWTIME as u64;

/// Those that a shim gets; an OCI runtime makes the others.
const OF_SHIMS: u64 = (libc::CLONE_NEWNS | libc::CLONE_NEWPID) as u64;

/// A container whose end has to be reported.
pub(super) struct Child {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) maker: Maker,
    /// The caller reads the status from the other end; closing it unwritten says that the server died.
    pub(super) exit: OwnedFd,
    pub(super) group: Option<Group>,
    /// Its private network, and whether the next container may have it.
    pub(super) network: Option<(PrivateNetwork, bool)>,
    /// What keeps the mounts of an init.
    pub(super) control: Option<Channel>,
}

/// What the server works with.
pub(super) struct Machine {
    namespaces: u64,
    pub(super) rights: Rights,
    pub(super) cgroups: Cgroups,
    pub(super) profiles: Profiles,
    pub(super) networks: Networks,
    /// The caller wants no more containers.
    pub(super) finishing: bool,
    /// What is to be removed should the caller be killed.
    pub(super) belongings: Option<Belongings>,
    /// What will be the next container.
    pub(super) spare: Option<Waiting>,
    /// The network of the last container, if a spare would have done for it.
    pub(super) likely: Option<NetworkMode>,
    /// What keeps the mounts of containers that have ended. To take those apart takes a while, which no container that is being
    /// made should share: the process that waits holds copies of these until it has begun.
    pub(super) ended: Vec<Channel>,
}

impl Machine {
    /// Looks what this process may do.
    pub(super) fn find() -> io::Result<Self> {
        let rights = Rights::find();
        let namespaces = match rights.mounts {
            true => NAMESPACES | time_namespace(),
            false => {
                // What containers leave behind is to be found.
                rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
                0
            }
        };
        let (cgroups, networks) = (Cgroups::establish(&rights), Networks::new(rights.trusted));
        let (profiles, ended) = (Profiles::find(&rights), Vec::new());
        let (finishing, belongings, spare, likely) = (false, None, None, None);
        Ok(Self { namespaces, rights, cgroups, profiles, networks, finishing, belongings, spare, likely, ended })
    }

    /// Clones what becomes, or makes, a container.
    pub(super) fn spawn(&mut self, order: &Order, channel: &OwnedFd, exit: OwnedFd) -> Result<Child, Failure> {
        let mut notices = Vec::new();
        let child = match order.maker {
            Maker::Init => self.init(order, channel, exit, &mut notices)?,
            Maker::Shim => self.shim(order, channel, exit, &mut notices)?,
        };
        let network = child.network.as_ref().map(|(network, _)| network);
        let apart = network.filter(|network| !network.is_routed()).map(PrivateNetwork::namespace);
        let descriptors: Vec<_> = std::iter::once(child.pidfd.as_fd()).chain(apart).collect();
        let spawned = Message::Spawned { address: network.map(|network| network.address), notices };
        // A caller that has given this container up is no reason to end the others.
        let _ = message::send(channel.as_fd(), &spawned, &descriptors);
        Ok(child)
    }

    /// The first process of a container: the one that waits for it, if that is as it has to be, or a new one.
    fn init(
        &mut self,
        order: &Order,
        channel: &OwnedFd,
        exit: OwnedFd,
        notices: &mut Vec<String>,
    ) -> Result<Child, Failure> {
        let plain = is_plain(order);
        self.likely = plain.then_some(order.network);
        if !plain {
            // The next one will be of this kind, too: before Linux 6.14, a limit on tasks takes a group.
            self.dismiss_spare();
        }
        let fits = |spare: &mut Waiting| plain && (spare.network.is_none() || order.network == NetworkMode::Private);
        let spare = self.spare.take_if(fits);
        let connected = spare.as_ref().is_some_and(|spare| spare.network.is_some());
        let network = if connected { None } else { self.network(order.network)? };
        let mut init = match spare {
            Some(spare) => spare,
            None => self.begin(order, channel_number(channel), notices)?,
        };
        let told = match (network, order.network) {
            (Some(network), _) => init.enter(network),
            (None, NetworkMode::None) => init.isolate(),
            (None, _) => Ok(()),
        };
        if told.and_then(|()| init.begin(channel.as_fd())).is_err() {
            init.dismiss();
            return Err(Failure::Unsupported { what: "a container whose first process ended at once".into() });
        }
        let Waiting { pid, pidfd, group, network, control } = init;
        let network = network.map(|network| (network, !order.owns_network));
        Ok(Child { pid, pidfd, maker: Maker::Init, exit, group, network, control: Some(control) })
    }

    fn begin(&self, order: &Order, number: u64, notices: &mut Vec<String>) -> Result<Waiting, Failure> {
        let group = self.group(order, number, notices)?;
        let namespaces = self.namespaces & !kept(order.shared);
        Waiting::clone(namespaces, group, &self.means(number)).map_err(|error| Failure::System {
            action: "create namespaces".into(),
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        })
    }

    /// Begins the first process of the next container, unless one waits already.
    pub(super) fn begin_spare(&mut self) {
        if self.spare.is_some() || self.finishing || !self.rights.mounts {
            return;
        }
        // What cannot be had now is told when it is asked for.
        let Ok(group) = self.cgroups.target(DevicePolicy::Standard, None) else { return };
        self.spare = Waiting::clone(self.namespaces, group, &self.means(0)).ok();
    }

    /// Makes ready what the next container needs, if it is as the last one.
    pub(super) fn expect_next(&mut self) {
        let Some(network) = self.likely else { return };
        self.begin_spare();
        if network == NetworkMode::Private {
            self.connect_spare();
        }
    }

    /// Has the process that waits enter a private network.
    pub(super) fn connect_spare(&mut self) {
        let Some(spare) = self.spare.as_mut().filter(|spare| spare.network.is_none()) else { return };
        let Ok(network) = self.networks.take() else { return };
        if spare.enter(network).is_err() {
            self.dismiss_spare();
        }
    }

    /// Ends the process that waits. Its network, in which nothing has happened, serves another one.
    pub(super) fn dismiss_spare(&mut self) {
        let Some(mut spare) = self.spare.take() else { return };
        let network = spare.network.take();
        spare.dismiss();
        network.into_iter().for_each(|network| self.networks.give_back(network));
    }

    /// A process that has an OCI runtime make the container.
    fn shim(
        &mut self,
        order: &Order,
        channel: &OwnedFd,
        exit: OwnedFd,
        notices: &mut Vec<String>,
    ) -> Result<Child, Failure> {
        self.likely = None;
        let network = self.network(order.network)?;
        let number = channel_number(channel);
        let mut group = self.group(order, number, notices)?;
        let means = self.means(number);
        let namespaces = match self.rights.mounts {
            true => OF_SHIMS | self.namespaces & TIME_NAMESPACE,
            false => 0,
        };
        // SAFETY: this process never starts a thread.
        let cloned = unsafe { sys::clone3(namespaces, group.as_ref().map(Group::directory)) };
        match cloned.doing(|| "create namespaces".into())? {
            sys::Cloned::Child => {
                let entered = network.map_or(Ok(()), |network| sys::enter_network(network.namespace()));
                shim::run(channel.as_fd(), &means, entered)
            }
            sys::Cloned::Parent { pid, pidfd } => {
                group.iter_mut().for_each(Group::is_taken);
                let network = network.map(|network| (network, !order.owns_network));
                Ok(Child { pid, pidfd, maker: Maker::Shim, exit, group, network, control: None })
            }
        }
    }

    fn means(&self, number: u64) -> Means<'_> {
        Means {
            cgroups: &self.cgroups,
            rights: &self.rights,
            profiles: &self.profiles,
            number,
            server: std::process::id(),
        }
    }

    /// The group to clone into: one with limits, or what the device policy asks for.
    fn group(&self, order: &Order, number: u64, notices: &mut Vec<String>) -> Result<Option<Group>, Failure> {
        let Order { devices, .. } = *order;
        let wish = Wish {
            name: format!("{GROUP_PREFIX}{}-{}-{number}", order.id, std::process::id()),
            resources: &setup::group_limits(&order.resources),
            placement: &order.group,
        };
        self.cgroups.prepare_granted(devices).doing(|| "make a device cgroup".into())?;
        match self.cgroups.limited(devices, &wish, notices)? {
            Some(group) => Ok(Some(group)),
            None => {
                let own = order.own_group.then_some(number);
                self.cgroups.target(devices, own).doing(|| "make a cgroup".into())
            }
        }
    }

    /// A network that was made ready, where one is wanted.
    fn network(&mut self, wanted: NetworkMode) -> Result<Option<PrivateNetwork>, Failure> {
        match wanted {
            NetworkMode::Host => Ok(None),
            NetworkMode::None if !self.rights.mounts => Err(Failure::Unsupported {
                what: "a process without a network, where forge may make no namespaces,".into(),
            }),
            NetworkMode::None => Ok(None),
            NetworkMode::Private => match self.networks.take() {
                Ok(network) => Ok(Some(network)),
                Err(reason) => Err(Failure::Unsupported { what: format!("a private network ({reason})") }),
            },
        }
    }
}

/// Whether the first process can be cloned without knowing the order.
fn is_plain(order: &Order) -> bool {
    order.devices == DevicePolicy::Standard
        && !order.own_group
        && order.shared == SharedNamespaces::default()
        && order.group == GroupPlacement::default()
        && setup::group_limits(&order.resources) == Resources::default()
}

/// The flags for namespaces that are the caller's.
fn kept(shared: SharedNamespaces) -> u64 {
    let flag = |shared: bool, flag: i32| if shared { flag as u64 } else { 0 };
    flag(shared.ipc, libc::CLONE_NEWIPC) | flag(shared.uts, libc::CLONE_NEWUTS)
}

/// A number no other living container of this server has: that of its channel's inode.
fn channel_number(channel: &OwnedFd) -> u64 {
    rustix::fs::fstat(channel).map(|stat| stat.st_ino).unwrap_or_default()
}

/// A time namespace, where the kernel has them. The cgroup namespace waits until the container is in its cgroup.
fn time_namespace() -> u64 {
    match std::path::Path::new("/proc/self/ns/time").exists() {
        true => TIME_NAMESPACE,
        false => 0,
    }
}
