//! How the daemon is: for people, as JSON, and as OpenMetrics text.
//!
//! Pure: the loop says how things are.
#![forbid(unsafe_code)]

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

    /// A JSON object, in one line.
    pub fn json(&self) -> String {
        let Counters { received, handled, failed, timed_out, retried, overruns, dropped, .. } =
            self.counters;
        let Counters { stale, scans, replayed: [removed, added, changed], recovery, .. } =
            self.counters;
        let pid = match self.activity {
            Activity::Running { pid, .. } => Some(pid),
            Activity::Idle
            | Activity::Writing
            | Activity::Acting(_)
            | Activity::Retrying { .. } => None,
        };
        let mut json = object(|json| {
            json.text("state", self.state());
            json.plain("paused", self.paused);
            json.plain("stopping", self.stopping);
            match self.in_hand() {
                None => json.plain("event", "null"),
                Some(InHand { event, since }) => json.object("event", |json| {
                    for (name, key) in [("action", "ACTION"), ("devpath", "DEVPATH")] {
                        match event.last(key.as_bytes()) {
                            None => json.plain(name, "null"),
                            Some(value) => json.text(name, &text(value.to_bytes())),
                        }
                    }
                    let number = event.last(b"SEQNUM").and_then(|text| text.to_str().ok());
                    json.optional("seqnum", number.and_then(|text| text.parse::<u64>().ok()));
                    json.plain("seconds", Seconds(since));
                }),
            }
            json.optional("child_pid", pid);
            json.object("queue", |json| {
                json.plain("bytes", self.queue.bytes);
                json.plain("limit_bytes", self.queue.limit);
                json.plain("drops", self.queue.drops);
            });
            json.object("events", |json| {
                json.plain("received", received);
                json.plain("handled", handled);
                json.plain("failed", failed);
                json.plain("timed_out", timed_out);
                json.plain("retried", retried);
                json.plain("stale", stale);
            });
            json.plain("overruns", overruns);
            json.object("recovery", |json| {
                json.plain("active", self.recovering);
                json.plain("scans", scans);
                json.plain("removed", removed);
                json.plain("added", added);
                json.plain("changed", changed);
                json.plain("seconds", Seconds(recovery));
            });
            json.plain("devices", self.devices);
            json.object("dropped", |json| {
                for (kind, count) in Dropped::ALL.iter().zip(dropped) {
                    json.plain(&kind.to_string(), count);
                }
            });
            json.object("engine", |json| {
                json.text("kind", self.engine.kind);
                json.text("file", &self.file());
            });
            json.plain("uptime_seconds", Seconds(self.uptime));
            json.text("log_level", self.log_level);
            json.plain("pid", self.pid);
            json.text("version", self.version);
        });
        json.push('\n');
        json
    }

    /// OpenMetrics text (version 1.0.0), which ends in `# EOF`.
    pub fn openmetrics(&self) -> String {
        let mut metrics = Metrics(String::new());
        metrics.family("plugd_build", "info", "", "The version of plugd.");
        metrics.sample("plugd_build_info", &[("version", self.version)], 1);
        metrics.family("plugd_engine", "info", "", "What decides what is done for an event.");
        let labels = [("kind", self.engine.kind), ("file", &*self.file())];
        metrics.sample("plugd_engine_info", &labels, 1);

        metrics.family("plugd_state", "stateset", "", "What plugd is doing.");
        for state in STATES {
            let on = u64::from(state == self.state());
            metrics.sample("plugd_state", &[("plugd_state", state)], on);
        }
        metrics.family("plugd_uptime_seconds", "gauge", "seconds", "Time since plugd was started.");
        metrics.sample("plugd_uptime_seconds", &[], Seconds(self.uptime));
        metrics.family(
            "plugd_event_age_seconds",
            "gauge",
            "seconds",
            "Time since the event in hand was read, 0 if there is none.",
        );
        let age = self.in_hand().map_or(Duration::ZERO, |event| event.since);
        metrics.sample("plugd_event_age_seconds", &[], Seconds(age));

        metrics.family("plugd_queue_bytes", "gauge", "bytes", "What waits in the kernel.");
        metrics.sample("plugd_queue_bytes", &[], self.queue.bytes);
        let help = "How much may wait in the kernel.";
        metrics.family("plugd_queue_limit_bytes", "gauge", "bytes", help);
        metrics.sample("plugd_queue_limit_bytes", &[], self.queue.limit);

        let Counters { received, handled, failed, timed_out, retried, overruns, dropped, .. } =
            self.counters;
        let Counters { stale, scans, replayed: [removed, added, changed], recovery, .. } =
            self.counters;
        metrics.family("plugd_devices", "gauge", "", "Devices that are known.");
        metrics.sample("plugd_devices", &[], self.devices);
        let help = "How long it took last to look for all devices and act on what was missed.";
        metrics.family("plugd_recovery_seconds", "gauge", "seconds", help);
        metrics.sample("plugd_recovery_seconds", &[], Seconds(recovery));
        let mut counter = |name: &str, help: &str, value| {
            metrics.family(name, "counter", "", help);
            metrics.sample(&format!("{name}_total"), &[], value);
        };
        counter("plugd_events_received", "Events read.", received);
        counter("plugd_events_handled", "Events acted on with success.", handled);
        counter("plugd_events_failed", "Events acted on without success.", failed);
        counter("plugd_events_timed_out", "Events whose program took too long.", timed_out);
        counter("plugd_retries", "Attempts to start a program that were repeated.", retried);
        counter("plugd_events_stale", "Events left out, overtaken by a scan.", stale);
        counter("plugd_scans", "Times that all devices were looked for.", scans);
        counter("plugd_overruns", "Overruns of the kernel's receive buffer.", overruns);
        counter(
            "plugd_kernel_drops",
            "Datagrams that the kernel dropped for want of room.",
            self.queue.drops,
        );
        let help = "Events made up for what was missed, by their action.";
        metrics.family("plugd_events_replayed", "counter", "", help);
        for (action, count) in [("remove", removed), ("add", added), ("change", changed)] {
            metrics.sample("plugd_events_replayed_total", &[("action", action)], count);
        }
        let help = "Datagrams that were read and are no events, by what is wrong with them.";
        metrics.family("plugd_datagrams_dropped", "counter", "", help);
        for (kind, count) in Dropped::ALL.iter().zip(dropped) {
            let labels = [("kind", &*kind.to_string())];
            metrics.sample("plugd_datagrams_dropped_total", &labels, count);
        }
        metrics.0 + "# EOF\n"
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

/// The inside of a JSON object, being written (RFC 8259). Names are known not
/// to need escaping.
struct Json(String);

/// Writes an object.
fn object(write: impl FnOnce(&mut Json)) -> String {
    let mut json = Json("{".into());
    write(&mut json);
    json.0.push('}');
    json.0
}

impl Json {
    /// A value that is written as it is: a number, a boolean, `null`.
    fn plain(&mut self, name: &str, value: impl fmt::Display) {
        let comma = if self.0.ends_with('{') { "" } else { "," };
        let _ = write!(self.0, "{comma}\"{name}\":{value}");
    }

    fn optional(&mut self, name: &str, value: Option<impl fmt::Display>) {
        match value {
            None => self.plain(name, "null"),
            Some(value) => self.plain(name, value),
        }
    }

    fn object(&mut self, name: &str, write: impl FnOnce(&mut Self)) {
        self.plain(name, "{");
        write(self);
        self.0.push('}');
    }

    fn text(&mut self, name: &str, value: &str) {
        self.plain(name, '"');
        for char in value.chars() {
            match char {
                '"' | '\\' => self.0.extend(['\\', char]),
                '\0'..='\x1f' => {
                    let _ = write!(self.0, "\\u{:04x}", u32::from(char));
                }
                _ => self.0.push(char),
            }
        }
        self.0.push('"');
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

struct Metrics(String);

impl Metrics {
    fn family(&mut self, name: &str, kind: &str, unit: &str, help: &str) {
        let _ = writeln!(self.0, "# TYPE {name} {kind}");
        if !unit.is_empty() {
            let _ = writeln!(self.0, "# UNIT {name} {unit}");
        }
        let _ = writeln!(self.0, "# HELP {name} {help}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl fmt::Display) {
        self.0.push_str(name);
        for (i, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let _ = write!(self.0, "{}{label}=\"{value}\"", if i == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use openmetrics_parser::openmetrics::parse_openmetrics;
    use proptest::prelude::*;
    use serde_json::{Value, json};

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

    fn with(change: impl FnOnce(&mut Status<'_>), look: impl FnOnce(&Status<'_>)) {
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

    fn running(look: impl FnOnce(&Status<'_>)) {
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

    #[test]
    fn a_parser_reads_the_json() {
        running(|status| {
            let text = status.json();
            assert_eq!(text.lines().count(), 1);
            let json: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(json["state"], "running");
            assert_eq!(json["paused"], true);
            assert_eq!(json["child_pid"], 4711);
            let event = &json["event"];
            assert_eq!(event["devpath"], "/devices/\\xff\n");
            assert_eq!((&event["seqnum"], &event["seconds"]), (&json!(7), &json!(2.3)));
            assert_eq!(json["dropped"]["malformed"], u64::MAX);
            assert_eq!(json["engine"]["file"], "/bin/\"\\\n\\xffé");
        });
        with(
            |_| {},
            |status| {
                let json: Value = serde_json::from_str(&status.json()).unwrap();
                assert_eq!((&json["event"], &json["child_pid"]), (&Value::Null, &Value::Null));
                assert_eq!(json["queue"]["limit_bytes"], 268_435_456);
            },
        );
    }

    proptest! {
        #[test]
        fn any_text_survives_json(texts in prop::collection::vec(any::<String>(), 0..5)) {
            let written = object(|json| {
                json.object("texts", |json| {
                    texts.iter().enumerate().for_each(|(i, text)| json.text(&i.to_string(), text));
                });
                json.optional("some", Some(1));
                json.optional("none", None::<u8>);
                json.object("empty", |_| {});
            });
            let read: Value = serde_json::from_str(&written).unwrap();
            for (i, text) in texts.iter().enumerate() {
                prop_assert_eq!(&read["texts"][i.to_string()], text);
            }
            prop_assert_eq!(&read["some"], 1);
            prop_assert_eq!(&read["none"], &Value::Null);
            prop_assert_eq!(&read["empty"], &json!({}));
        }
    }

    #[test]
    fn a_parser_reads_the_metrics() {
        running(|status| {
            let text = status.openmetrics();
            let parsed = parse_openmetrics(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            let value = |family: &str, label: &str| {
                let family = &parsed.families[family];
                let sample = family.iter_samples().find(|sample| {
                    let set = sample.get_labelset().unwrap();
                    label.is_empty() || set.iter().any(|(_, value)| value == label)
                });
                format!("{:?}", sample.unwrap().value)
            };
            assert!(value("plugd_events_received", "").contains('9'));
            assert!(value("plugd_datagrams_dropped", "truncated").contains("11"));
            assert!(value("plugd_event_age_seconds", "").contains("2.3"));
            assert_eq!(value("plugd_state", "running"), "StateSet(Int(1))");
            assert_eq!(value("plugd_state", "idle"), "StateSet(Int(0))");
            assert!(value("plugd_engine", "/bin/\"\\\n\\xffé").contains("Info"));
        });
    }
}
