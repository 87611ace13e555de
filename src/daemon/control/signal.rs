//! Signals by name and number.

use std::os::fd::{AsFd, OwnedFd};

use crate::signals;
use crate::sys;

/// A signal that a daemon can be sent: none that the C library keeps to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    /// To read the configuration again, usually.
    pub const HUP: Self = Self(libc::SIGHUP);
    /// To end at once; it cannot be handled.
    pub const KILL: Self = Self(libc::SIGKILL);
    /// To end.
    pub const TERM: Self = Self(libc::SIGTERM);

    /// The signal of this name, with or without SIG before it. Real-time signals
    /// are RTMIN, RTMIN+n, RTMAX and RTMAX-n, where RTMIN is 34 and RTMAX 64.
    pub fn from_name(name: &str) -> Option<Self> {
        signals::number(name).map(Self)
    }

    /// The signal of this number, from 1 to 31 or from 34 to 64.
    pub fn from_number(number: i32) -> Option<Self> {
        let is_one = (1..=31).contains(&number) || signals::REAL_TIME.contains(&number);
        is_one.then_some(Self(number))
    }

    pub(super) fn send(self, process: &OwnedFd) -> rustix::io::Result<()> {
        sys::pidfd_send_signal(process.as_fd(), self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_a_daemon_can_be_sent() {
        for number in (1..=31).chain(34..=64) {
            assert_eq!(Signal::from_number(number), Some(Signal(number)));
        }
        for none in [i32::MIN, -1, 0, 32, 33, 65, i32::MAX] {
            assert_eq!(Signal::from_number(none), None, "{none}");
        }
        for signal in [Signal::HUP, Signal::KILL, Signal::TERM] {
            assert_eq!(Signal::from_number(signal.0), Some(signal));
        }
        assert_eq!(Signal::from_name("SIGRTMIN+1"), Some(Signal(35)));
    }
}
