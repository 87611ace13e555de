//! Network interfaces, of which /sys shows those of one network namespace only, and
//! whose names are not for ever: which of them are where events come from.

use rustix::io::Errno;
use rustix::net::netdevice::index_to_name;

use crate::netlink::Source;
use crate::recovery;
use crate::sys;
use crate::sysfs::Sysfs;
use crate::uevent::Uevent;

use super::Daemon;

/// What is to be seen of a network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    Here,
    /// It has another name.
    Renamed,
    Gone,
}

/// Whether the comparison under way may begin anew to hear first of interfaces that are
/// being renamed.
#[derive(Debug)]
pub(super) struct Moves {
    /// How often it has.
    waited: u32,
    /// One has come since. If not, it was lost.
    came: bool,
}

impl Moves {
    /// Somebody may rename them all the time.
    const WAITED_MAX: u32 = 32;

    /// Nothing was waited for.
    pub(super) fn new() -> Self {
        Self { waited: 0, came: true }
    }

    pub(super) fn note(&mut self, event: &Uevent<'_>) {
        self.came |= event.action() == Some(b"move");
    }

    /// Waits for them once more, if that may help.
    pub(super) fn wait(&mut self) -> bool {
        let waits = self.came && self.waited < Self::WAITED_MAX;
        if waits {
            *self = Self { waited: self.waited + 1, came: false };
        }
        waits
    }
}

impl Daemon {
    /// Whether a device that is known is certainly not there any more.
    pub(super) fn is_missing(&self, sys: &Sysfs, path: &[u8], identity: &[u8]) -> bool {
        match recovery::interface(identity) {
            Some(interface) => !self.has_interface(interface),
            None => sys.is_gone(path) && !self.is_of_unseen_interface(sys, path),
        }
    }

    /// Whether this network interface is where events come from.
    pub(super) fn has_interface(&self, interface: (&[u8], u32)) -> bool {
        self.sight(interface) == Sight::Here
    }

    /// What is to be seen of a network interface where events come from.
    pub(super) fn sight(&self, (name, index): (&[u8], u32)) -> Sight {
        let Some(source) = self.first_of_kernel() else { return Sight::Here };
        let look = || match index_to_name(source, index) {
            Ok(found) if found.as_bytes() == name => Sight::Here,
            Ok(_) => Sight::Renamed,
            Err(Errno::NODEV | Errno::NXIO) => Sight::Gone,
            // Not to be found out: /sys is to be believed.
            Err(_) => Sight::Here,
        };
        match look() {
            // The kernel tells of an interface before it can be found by its number
            // (register_netdevice in net/core/dev.c).
            Sight::Gone => {
                self.await_interfaces();
                look()
            }
            Sight::Renamed => {
                self.await_interfaces();
                Sight::Renamed
            }
            Sight::Here => Sight::Here,
        }
    }

    /// Waits until what the kernel tells of interfaces is queued: of a new name that is
    /// after it can be seen (dev_change_name in net/core/dev.c).
    pub(super) fn await_interfaces(&self) {
        self.first_of_kernel().into_iter().for_each(sys::await_interfaces);
    }

    fn first_of_kernel(&self) -> Option<&Source> {
        let mut sources = self.sources.iter().filter(|watched| watched.is_kernels);
        sources.next().map(|watched| &watched.source)
    }

    /// Whether this is something below a network interface that is there, but not in
    /// this /sys.
    fn is_of_unseen_interface(&self, sys: &Sysfs, path: &[u8]) -> bool {
        let ends = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/');
        ends.filter_map(|(end, _)| self.recovery.inventory.get(&path[..end]))
            .filter_map(|device| Some((device.path, recovery::interface(device.identity)?)))
            .any(|(path, interface)| {
                self.has_interface(interface) && sys.interface(path) != Some(interface.1)
            })
    }
}
