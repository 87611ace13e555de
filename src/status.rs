//! How the daemon is: for people, as JSON, and as OpenMetrics text.
//!
//! Pure: the loop says how things are. What people read is here, what programs read in
//! `json` and `openmetrics`.
#![forbid(unsafe_code)]

pub mod json;
mod openmetrics;

use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::counters::{Counters, Dropped};
use crate::uevent::Uevent;
use crate::units::Seconds;

/// How things are at this moment.
#[derive(Debug)]
pub struct Status<'a> {
    /// What is being done.
    pub activity: Activity<'a>,
    /// No further event is read.
    pub paused: bool,
    /// It will end when the event in hand has been acted on.
    pub stopping: bool,
    /// What waits in the kernel, in all sockets.
    pub queue: Queue,
    /// What was counted.
    pub counters: Counters,
    /// What was missed is being made up for.
    pub recovering: bool,
    /// How many devices are known.
    pub devices: usize,
    /// What decides.
    pub engine: &'a Engine,
    /// Since the daemon was started; updates do not count.
    pub uptime: Duration,
    /// Of the daemon.
    pub pid: u32,
    /// Of the daemon.
    pub version: &'a str,
    /// The name of the level up to which it logs.
    pub log_level: &'a str,
}

/// What is being done.
#[derive(Debug)]
pub enum Activity<'a> {
    /// Nothing.
    Idle,
    /// What was acted on is being written, and there is no room for it.
    Writing,
    /// An event's steps, without a program at this moment.
    Acting(InHand<'a>),
    /// An event's program runs.
    Running {
        /// Its process id.
        pid: i32,
        /// The event.
        event: InHand<'a>,
    },
    /// An event's program could not be started.
    Retrying {
        /// How long until the next attempt.
        pause: Duration,
        /// The event.
        event: InHand<'a>,
    },
}

/// The event that is being acted on.
#[derive(Debug, Clone, Copy)]
pub struct InHand<'a> {
    /// The event.
    pub event: &'a Uevent<'a>,
    /// How long it has been so.
    pub since: Duration,
}

/// What waits in the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queue {
    /// Bytes, as the kernel counts them.
    pub bytes: u64,
    /// How many there may be.
    pub limit: u64,
    /// Datagrams that the kernel dropped for want of room.
    pub drops: u64,
}

/// What decides what is done for an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// Its kind, a word.
    pub kind: &'static str,
    /// The program that it runs, or the file of its rules.
    pub file: Vec<u8>,
}

const STATES: [&str; 6] = ["idle", "running", "retrying", "writing", "paused", "stopping"];

impl Status<'_> {
    /// The state in a word, the first of those that apply: stopping; running,
    /// which includes steps that run no program, retrying or writing; paused; idle.
    pub fn state(&self) -> &'static str {
        match self.activity {
            _ if self.stopping => "stopping",
            Activity::Running { .. } | Activity::Acting(_) => "running",
            Activity::Retrying { .. } => "retrying",
            Activity::Writing => "writing",
            Activity::Idle if self.paused => "paused",
            Activity::Idle => "idle",
        }
    }

    fn in_hand(&self) -> Option<InHand<'_>> {
        match self.activity {
            Activity::Idle | Activity::Writing => None,
            Activity::Acting(event)
            | Activity::Running { event, .. }
            | Activity::Retrying { event, .. } => Some(event),
        }
    }

    /// For JSON and labels: text, with other bytes escaped.
    fn file(&self) -> String {
        text(&self.engine.file)
    }
}

/// For people, in lines.
impl fmt::Display for Status<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "state    {}", self.state())?;
        match self.activity {
            Activity::Idle => {}
            Activity::Writing => f.write_str(": the reader of --output-fd makes no room")?,
            Activity::Acting(event) => write!(f, ": {event}")?,
            Activity::Running { pid, event } => write!(f, ": pid {pid}, {event}")?,
            Activity::Retrying { pause, event } => write!(
                f,
                ": the program cannot be started, next attempt in {} s, {event}",
                Seconds(pause)
            )?,
        }
        if self.paused && self.state() != "paused" {
            f.write_str("; paused after that")?;
        }
        let Queue { bytes, limit, drops } = self.queue;
        let Counters { received, handled, failed, timed_out, retried, overruns, dropped, .. } =
            self.counters;
        let Counters { stale, scans, replayed: [removed, added, changed], recovery, .. } =
            self.counters;
        let seconds = self.uptime.as_secs();
        let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
        writeln!(f, "\nqueue    {} of {}", Size(bytes), Size(limit))?;
        writeln!(
            f,
            "events   {received} received, {handled} handled, {failed} failed \
             ({timed_out} timed out), {retried} retried"
        )?;
        writeln!(f, "lost     {overruns} overruns, {drops} drops")?;
        let now = if self.recovering { "under way, " } else { "" };
        writeln!(
            f,
            "replayed {now}{removed} removals, {added} additions, {changed} changes, of {scans} scans \
             (the last one {} s); {stale} events stale",
            Seconds(recovery)
        )?;
        writeln!(f, "devices  {} known", self.devices)?;
        f.write_str("dropped ")?;
        for (i, (kind, count)) in Dropped::ALL.iter().zip(dropped).enumerate() {
            write!(f, "{} {count} {kind}", if i == 0 { "" } else { "," })?;
        }
        writeln!(f, "\nengine   {} {}", self.engine.kind, self.engine.file.escape_ascii())?;
        writeln!(f, "uptime   {days} d {hours:02}:{minutes:02}:{:02}", seconds % 60)?;
        writeln!(f, "version  {}, pid {}, log level {}", self.version, self.pid, self.log_level)
    }
}

impl fmt::Display for InHand<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "since {} s, {}", Seconds(self.since), self.event)
    }
}

/// A number of bytes, rounded down to a unit that is easily read.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes @ ..10_240 => write!(f, "{bytes} bytes"),
            bytes @ ..10_485_760 => write!(f, "{} KiB", bytes >> 10),
            bytes => write!(f, "{} MiB", bytes >> 20),
        }
    }
}

/// Bytes as text; a byte that does not belong there is escaped.
fn text(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        let _ = write!(text, "{}", chunk.invalid().escape_ascii());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uevent::Header;

    const EVENT: &[u8] = b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/\xff\n\0SEQNUM=7\0";

    fn engine() -> Engine {
        Engine { kind: "handler", file: b"/bin/\"\\\n\xff\xc3\xa9".into() }
    }

    fn counters() -> Counters {
        Counters {
            received: 9,
            handled: 5,
            failed: 4,
            timed_out: 3,
            retried: 2,
            overruns: 1,
            dropped: [10, 11, u64::MAX],
            stale: 6,
            scans: 7,
            replayed: [13, 14, 15],
            recovery: Duration::from_millis(16),
        }
    }

    pub(super) fn with(change: impl FnOnce(&mut Status<'_>), look: impl FnOnce(&Status<'_>)) {
        let engine = engine();
        let mut status = Status {
            activity: Activity::Idle,
            paused: false,
            stopping: false,
            queue: Queue { bytes: 832, limit: 268_435_456, drops: 12 },
            counters: counters(),
            recovering: false,
            devices: 17,
            engine: &engine,
            uptime: Duration::from_millis(90_061_500),
            pid: 42,
            version: "0.1.0",
            log_level: "info",
        };
        change(&mut status);
        look(&status);
    }

    pub(super) fn running(look: impl FnOnce(&Status<'_>)) {
        let event = Uevent::parse(EVENT, Header::Required).unwrap();
        let event = InHand { event: &event, since: Duration::from_millis(2300) };
        let engine = engine();
        look(&Status {
            activity: Activity::Running { pid: 4711, event },
            paused: true,
            stopping: false,
            queue: Queue::default(),
            counters: counters(),
            recovering: false,
            devices: 17,
            engine: &engine,
            uptime: Duration::ZERO,
            pid: 42,
            version: "0.1.0",
            log_level: "info",
        });
    }

    #[test]
    fn people_read_it_at_a_glance() {
        with(
            |_| {},
            |status| {
                assert_eq!(
                    status.to_string(),
                    r#"state    idle
queue    832 bytes of 256 MiB
events   9 received, 5 handled, 4 failed (3 timed out), 2 retried
lost     1 overruns, 12 drops
replayed 13 removals, 14 additions, 15 changes, of 7 scans (the last one 0.016 s); 6 events stale
devices  17 known
dropped  10 foreign, 11 truncated, 18446744073709551615 malformed
engine   handler /bin/\"\\\n\xff\xc3\xa9
uptime   1 d 01:01:01
version  0.1.0, pid 42, log level info
"#
                );
            },
        );
        running(|status| {
            let text = status.to_string();
            let first = text.lines().next().unwrap();
            assert_eq!(
                first,
                r"state    running: pid 4711, since 2.300 s, add /devices/\xff\n (SEQNUM 7); paused after that"
            );
        });
    }

    #[test]
    fn the_state_is_one_word() {
        with(|_| {}, |status| assert_eq!(status.state(), "idle"));
        with(|status| status.paused = true, |status| assert_eq!(status.state(), "paused"));
        running(|status| assert_eq!(status.state(), "running"));
        let stop = |status: &mut Status<'_>| (status.paused, status.stopping) = (true, true);
        with(stop, |status| assert_eq!(status.state(), "stopping"));
    }
}
