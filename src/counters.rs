//! What the daemon has counted, and how often it complains.
//!
//! Pure.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

use crate::machine::Time;

/// Counts since the start of the daemon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events read.
    pub received: u64,
    /// Events acted on with success.
    pub handled: u64,
    /// Events acted on without: the program could not be started, or ended otherwise than with 0.
    pub failed: u64,
    /// Of those, the ones whose program took too long.
    pub timed_out: u64,
    /// Attempts to start a program that failed and were repeated.
    pub retried: u64,
    /// Times that the kernel's receive buffer overran.
    pub overruns: u64,
    /// Datagrams dropped, by kind.
    pub dropped: [u64; Dropped::ALL.len()],
    /// Events left out, as a scan had overtaken them.
    pub stale: u64,
    /// Times that all devices were looked for.
    pub scans: u64,
    /// Events that made up for what was missed: removals, additions, changes.
    pub replayed: [u64; 3],
    /// How long the last time took that this was done.
    pub recovery: Duration,
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { received, handled, failed, timed_out, retried, overruns, dropped, .. } = self;
        let Self { stale, scans, replayed: [removed, added, changed], recovery, .. } = self;
        write!(
            f,
            "received {received}, handled {handled}, failed {failed} (timed out {timed_out}), \
             retried {retried}, overruns {overruns}, scans {scans} (the last one {} ms), \
             replayed {removed} removals, {added} additions, {changed} changes, stale {stale}",
            recovery.as_millis()
        )?;
        Dropped::ALL.iter().zip(dropped).try_for_each(|(kind, count)| write!(f, ", {kind} {count}"))
    }
}

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// It came over netlink, but not from the kernel.
    Foreign,
    /// It did not fit into the buffer.
    Truncated,
    /// It is no uevent.
    Malformed,
}

impl Dropped {
    /// All kinds, in the order of [`Counters::dropped`].
    pub const ALL: [Self; 3] = [Self::Foreign, Self::Truncated, Self::Malformed];
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Foreign => "foreign",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
        })
    }
}

/// Lets through at most one log line a second.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limiter {
    quiet_until: Time,
}

impl Limiter {
    /// Whether to log at the time `now`.
    pub fn allows(&mut self, now: Time) -> bool {
        let allowed = now >= self.quiet_until;
        if allowed {
            self.quiet_until = now + Duration::from_secs(1);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second() {
        let mut limiter = Limiter::default();
        let milliseconds = [0, 1, 999, 1000, 1001, 1999, 2500, 3499, 3500];
        let allowed: Vec<u64> = milliseconds
            .into_iter()
            .filter(|&ms| limiter.allows(Duration::from_millis(ms)))
            .collect();
        assert_eq!(allowed, [0, 1000, 2500, 3500]);
    }

    #[test]
    fn counters_read_as_one_line() {
        let counters = Counters { received: 3, dropped: [0, 1, 2], ..Counters::default() };
        assert_eq!(
            counters.to_string(),
            "received 3, handled 0, failed 0 (timed out 0), retried 0, overruns 0, \
             scans 0 (the last one 0 ms), replayed 0 removals, 0 additions, 0 changes, stale 0, \
             foreign 0, truncated 1, malformed 2"
        );
    }
}
