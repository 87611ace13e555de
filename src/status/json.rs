//! A status as a JSON object, and what writes such objects.

use std::fmt::{self, Write as _};

use crate::counters::{Counters, Dropped};
use crate::units::Seconds;

use super::{Activity, InHand, Status, text};

impl Status<'_> {
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
}

/// The inside of a JSON object, being written (RFC 8259). Names are known not
/// to need escaping.
#[derive(Debug)]
pub struct Json(String);

/// Writes an object.
pub fn object(write: impl FnOnce(&mut Json)) -> String {
    let mut json = Json("{".into());
    write(&mut json);
    json.0.push('}');
    json.0
}

impl Json {
    /// A value that is written as it is: a number, a boolean, `null`.
    pub fn plain(&mut self, name: &str, value: impl fmt::Display) {
        let comma = if self.0.ends_with('{') { "" } else { "," };
        let _ = write!(self.0, "{comma}\"{name}\":{value}");
    }

    /// The same, or `null`.
    pub fn optional(&mut self, name: &str, value: Option<impl fmt::Display>) {
        match value {
            None => self.plain(name, "null"),
            Some(value) => self.plain(name, value),
        }
    }

    /// An object in it.
    pub fn object(&mut self, name: &str, write: impl FnOnce(&mut Self)) {
        self.plain(name, "{");
        write(self);
        self.0.push('}');
    }

    /// A text.
    pub fn text(&mut self, name: &str, value: &str) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::tests::{running, with};
    use super::*;

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
}
