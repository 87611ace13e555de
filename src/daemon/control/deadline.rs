//! Until when an action may go on, and what waits until then.
//!
//! The end of a process is waited for, by a pidfd. The end of a lock is looked for now
//! and then: flock(2) waits for ever or not at all, what could interrupt it (an alarm, a
//! thread) is not a library's to use, and inotify(7) tells that a file was closed before
//! its lock is gone.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::Fatal;

/// How often to look at a lock.
pub(super) const INTERVAL: Duration = Duration::from_millis(10);

/// When an action has to be over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    /// `None`: never.
    at: Option<Instant>,
    /// How long it was given.
    limit: Duration,
}

impl Deadline {
    /// So much from now; `None`, or more than the clock can tell: never.
    pub(super) fn after(limit: Option<Duration>) -> Self {
        let at = limit.and_then(|limit| Instant::now().checked_add(limit));
        Self { at, limit: limit.unwrap_or_default() }
    }

    pub(super) fn is_never(self) -> bool {
        self.at.is_none()
    }

    pub(super) fn has_passed(self) -> bool {
        self.left() == Some(Duration::ZERO)
    }

    /// The time left; `None`: any.
    fn left(self) -> Option<Duration> {
        self.at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// How long to wait until the next look at a lock.
    pub(super) fn interval(self) -> Duration {
        self.left().map_or(INTERVAL, |left| left.min(INTERVAL))
    }

    /// Waits until the next look at a lock.
    pub(super) fn pause(self) {
        thread::sleep(self.interval());
    }

    /// That it has passed; `what` could not be done, and `more` has gone wrong.
    pub(super) fn error(self, what: impl fmt::Display, more: &str) -> Fatal {
        let text = format!("not within {:?}{more}", self.limit);
        Fatal::system(what, io::Error::new(io::ErrorKind::TimedOut, text))
    }
}

/// Waits for the end of a child; `None` if it is too late.
pub(super) fn await_child(child: &mut Child, deadline: Deadline) -> io::Result<Option<ExitStatus>> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty());
    while let Some(left) = deadline.left() {
        match (child.try_wait()?, &pidfd) {
            (Some(status), _) => return Ok(Some(status)),
            (None, _) if left.is_zero() => return Ok(None),
            (None, Ok(pidfd)) => _ = ends_within(pidfd, left),
            // There may be no descriptor left; the command is not left alone for that.
            (None, Err(_)) => deadline.pause(),
        }
    }
    child.wait().map(Some)
}

/// Whether the process has ended; waits for that, but not for longer than `time`.
pub(super) fn ends_within(process: &OwnedFd, time: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    matches!(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)), Ok(1..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_tells_its_own_limit() {
        for never in [None, Some(Duration::MAX)] {
            let never = Deadline::after(never);
            assert!(never.is_never() && !never.has_passed());
            assert_eq!(never.interval(), INTERVAL);
        }
        let over = Deadline::after(Some(Duration::ZERO));
        assert!(!over.is_never() && over.has_passed());
        assert_eq!(over.interval(), Duration::ZERO);
        let limit = Duration::from_secs(1000);
        let error = Deadline::after(Some(limit)).error("do it", "; and more");
        assert_eq!(error.to_string(), "cannot do it: not within 1000s; and more");
    }
}
