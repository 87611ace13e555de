//! Who is at the other end of a connection.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getegid, geteuid, pidfd_open};

use crate::sys;
use crate::user_ids::UserIds;

/// Who is at the other end, as the kernel knows it (SO_PEERCRED and SO_PEERGROUPS in
/// unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its process id, 0 if that means nothing here.
    pub pid: i32,
    /// Its user id.
    pub uid: u32,
    /// It is of our own group, by its first one or another.
    pub(super) of_own_group: bool,
    /// It is root's, or our own user's.
    pub(super) privileged: bool,
}

impl Peer {
    pub(super) fn of(stream: &impl AsFd) -> io::Result<Self> {
        let (pid, uid, gid) = sys::peer_credentials(stream)?;
        // One's own user may also be what all are shown as who are not in the namespace.
        let is_own = || uid == geteuid().as_raw() && !UserIds::own().is_shared(uid);
        let privileged = uid == 0 || is_own();
        let own = getegid().as_raw();
        // Before Linux 4.13 the others cannot be had.
        let is_another = || sys::peer_groups(stream).is_ok_and(|groups| groups.contains(&own));
        let of_own_group = privileged || gid == own || is_another();
        Ok(Self { pid, uid, of_own_group, privileged })
    }

    /// Whether that process has ended, reaped or not; not if it cannot be told.
    pub(super) fn has_ended(&self) -> bool {
        let Some(pid) = Pid::from_raw(self.pid) else { return false };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => {
                let mut polled = [PollFd::new(&process, PollFlags::IN)];
                poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
            }
            Err(error) => error == Errno::SRCH,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} of user {}", self.pid, self.uid)
    }
}
