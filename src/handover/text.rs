//! The text: a line is a key and its values. Bytes are hexadecimal digits after `=`,
//! times are nanoseconds, and `-` is for what there is not. Keys that are not known are
//! passed over, so that a newer plugd may say more than an older one understands.

use std::fmt::Write as _;
use std::str::FromStr;
use std::time::Duration;

use crate::counters::Counters;
use crate::inventory::Trust;
use crate::machine::{Retry, Stage, State, Stop, Time};
use crate::recovery::Cause;

use super::{Client, Handover, InHand, Listener, MAGIC, Unreadable};

impl Handover {
    /// Writes the text.
    pub fn to_text(&self) -> String {
        let mut text = format!("{MAGIC}\nversion {}\n", self.version);
        let mut line = |key: &str, values: &[&dyn std::fmt::Display]| {
            text.push_str(key);
            values.iter().for_each(|value| {
                let _ = write!(text, " {value}");
            });
            text.push('\n');
        };
        if let Some(file) = &self.file {
            line("file", &[&hex(file)]);
        }
        line("started", &[&self.started.as_nanos()]);
        line("paused", &[&u8::from(self.paused)]);
        match self.state {
            State::Reading | State::Acting { .. } | State::Done => line("reading", &[]),
            State::Running { stop, stage } => {
                let (name, time) = match stage {
                    Stage::Free(time) => ("free", time),
                    Stage::Terminated(time) => ("terminated", Some(time)),
                    Stage::Killed(time) => ("killed", Some(time)),
                };
                line("running", &[&stop_name(stop), &name, &optional(time)]);
            }
            State::Retrying { retry: Retry { pause, missing_since }, until } => {
                line("retrying", &[&pause.as_nanos(), &optional(missing_since), &until.as_nanos()])
            }
        }
        let Counters { received, handled, failed, timed_out, retried, overruns, dropped, .. } =
            &self.counters;
        let Counters { stale, scans, replayed: [removed, added, changed], recovery, .. } =
            &self.counters;
        let [foreign, truncated, malformed] = dropped;
        line("events", &[received, handled, failed, timed_out, retried]);
        line("lost", &[overruns, foreign, truncated, malformed]);
        line("replays", &[stale, scans, removed, added, changed, &recovery.as_nanos()]);
        self.sources.iter().for_each(|fd| line("source", &[fd]));
        if let Some(InHand { source, datagram, steps_done, step, failed, since }) = &self.event {
            let (source, failed, since) = (or_dash(*source), u8::from(*failed), since.as_nanos());
            let (datagram, step) = (hex(datagram), hex(step.as_bytes()));
            line("event", &[&source, steps_done, &failed, &since, &datagram, &step]);
        }
        if let Some((pidfd, pid)) = &self.child {
            line("child", &[pidfd, pid]);
        }
        match &self.listener {
            Some(Listener { fd, file: Some((device, inode)) }) => {
                line("listener", &[fd, device, inode])
            }
            Some(Listener { fd, file: None }) => line("listener", &[fd]),
            None => {}
        }
        for Client { fd, input, output, last_words, asked_for_update, until } in &self.clients {
            let (last_words, asked) = (u8::from(*last_words), u8::from(*asked_for_update));
            let until = optional(*until);
            line("client", &[fd, &last_words, &asked, &hex(input), &hex(output), &until]);
        }
        if let Some(level) = &self.log_level {
            line("log-level", &[level]);
        }
        line("rule-files", &[&u8::from(self.rules_of_files.is_some())]);
        for (name, text) in self.rules_of_files.iter().flatten() {
            line("rules", &[&hex(name.as_bytes()), &hex(text)]);
        }
        if let Some((soft, hard)) = &self.open_files {
            line("open-files", &[soft, hard]);
        }
        if let Some((fd, rest)) = &self.output {
            line("output", &[fd, &hex(rest)]);
        }
        for (key, fd) in [("state-file", self.state_file), ("inventory", self.inventory)] {
            if let Some(fd) = fd {
                line(key, &[&fd]);
            }
        }
        match self.trust {
            Trust::Unscanned => line("trust", &[&"unscanned"]),
            Trust::Lossy => line("trust", &[&"lossy"]),
            Trust::Scanned { last } => line("trust", &[&"scanned", &or_dash(last)]),
        }
        line("drops", &[&self.drops]);
        if let Some((cause, changes)) = self.unfinished {
            line("unfinished", &[&cause, &u8::from(changes)]);
        }
        if let Some((source, datagram)) = &self.held_back {
            line("held-back", &[source, &hex(datagram)]);
        }
        text
    }

    /// Reads the text.
    ///
    /// # Errors
    /// Names the line that makes no sense.
    pub fn parse(text: &str) -> Result<Self, Unreadable> {
        let mut handover = Self {
            version: String::new(),
            file: None,
            started: Duration::ZERO,
            state: State::Reading,
            paused: false,
            counters: Counters::default(),
            sources: Vec::new(),
            event: None,
            child: None,
            listener: None,
            clients: Vec::new(),
            log_level: None,
            rules_of_files: None,
            open_files: None,
            output: None,
            state_file: None,
            inventory: None,
            trust: Trust::Unscanned,
            drops: 0,
            unfinished: None,
            held_back: None,
        };
        let mut lines = text.lines();
        if lines.next() != Some(MAGIC) {
            return Err(Unreadable(format!("it does not begin with {MAGIC}")));
        }
        for line in lines {
            let mut values = Values(line.split(' '));
            handover
                .take(values.word().unwrap_or_default(), &mut values)
                .ok_or_else(|| Unreadable(format!("'{}'", line.escape_default())))?;
        }
        match (handover.state, &handover.event, handover.child) {
            (State::Reading, None, None)
            | (State::Running { .. }, Some(_), Some(_))
            | (State::Retrying { .. }, Some(_), None) => Ok(handover),
            _ => Err(Unreadable("state, event and child do not go together".into())),
        }
    }

    fn take(&mut self, key: &str, values: &mut Values<'_>) -> Option<()> {
        match key {
            "version" => self.version = values.word()?.to_owned(),
            "file" => self.file = Some(values.bytes()?),
            "started" => self.started = values.time()?,
            "paused" => self.paused = values.flag()?,
            "reading" => self.state = State::Reading,
            "running" => {
                let (stop, stage) = (values.word()?, values.word()?);
                let stop = STOPS.into_iter().find(|known| stop_name(*known) == stop)?;
                let stage = match (stage, values.optional_time()?) {
                    ("free", time) => Stage::Free(time),
                    ("terminated", Some(time)) => Stage::Terminated(time),
                    ("killed", Some(time)) => Stage::Killed(time),
                    _ => return None,
                };
                self.state = State::Running { stop, stage };
            }
            "retrying" => {
                let (pause, missing_since) = (values.time()?, values.optional_time()?);
                let retry = Retry { pause, missing_since };
                self.state = State::Retrying { retry, until: values.time()? };
            }
            "events" => {
                let counters = &mut self.counters;
                counters.received = values.number()?;
                counters.handled = values.number()?;
                counters.failed = values.number()?;
                counters.timed_out = values.number()?;
                counters.retried = values.number()?;
            }
            "lost" => {
                self.counters.overruns = values.number()?;
                for count in &mut self.counters.dropped {
                    *count = values.number()?;
                }
            }
            "replays" => {
                let counters = &mut self.counters;
                counters.stale = values.number()?;
                counters.scans = values.number()?;
                for count in &mut counters.replayed {
                    *count = values.number()?;
                }
                counters.recovery = values.time()?;
            }
            "source" => self.sources.push(values.number()?),
            "event" => {
                let (source, steps_done) = (values.optional()?, values.number()?);
                let (failed, since) = (values.flag()?, values.time()?);
                let datagram = values.bytes()?;
                let step = String::from_utf8(values.bytes()?).ok()?;
                self.event = Some(InHand { source, datagram, steps_done, step, failed, since });
            }
            "child" => self.child = Some((values.number()?, values.number()?)),
            "listener" => {
                let fd = values.number()?;
                let file = values.number().zip(values.number());
                self.listener = Some(Listener { fd, file });
            }
            "client" => {
                let fd = values.number()?;
                let (last_words, asked_for_update) = (values.flag()?, values.flag()?);
                let (input, output) = (values.bytes()?, values.bytes()?);
                // Who comes from an older plugd has none.
                let until = values.optional_time().flatten();
                let client = Client { fd, input, output, last_words, asked_for_update, until };
                self.clients.push(client);
            }
            "log-level" => self.log_level = Some(values.word()?.to_owned()),
            "rule-files" => self.rules_of_files = values.flag()?.then(Vec::new),
            "rules" => {
                let name = String::from_utf8(values.bytes()?).ok()?;
                self.rules_of_files.as_mut()?.push((name, values.bytes()?));
            }
            "output" => self.output = Some((values.number()?, values.bytes()?)),
            "state-file" => self.state_file = Some(values.number()?),
            "inventory" => self.inventory = Some(values.number()?),
            "trust" => {
                self.trust = match values.word()? {
                    "unscanned" => Trust::Unscanned,
                    "lossy" => Trust::Lossy,
                    "scanned" => Trust::Scanned { last: values.optional()? },
                    _ => return None,
                }
            }
            "drops" => self.drops = values.number()?,
            "unfinished" => {
                self.unfinished = Some((Cause::of(values.word()?)?, values.flag()?));
            }
            "held-back" => self.held_back = Some((values.number()?, values.bytes()?)),
            "open-files" => self.open_files = Some((values.number()?, values.number()?)),
            _ => {}
        }
        Some(())
    }
}

const STOPS: [Stop; 3] = [Stop::No, Stop::Finish, Stop::Now];

fn stop_name(stop: Stop) -> &'static str {
    match stop {
        Stop::No => "no",
        Stop::Finish => "finish",
        Stop::Now => "now",
    }
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

fn optional(time: Option<Time>) -> String {
    or_dash(time.map(|time| time.as_nanos()))
}

/// With something before it, so that there is a word even for no bytes.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len() + 1);
    text.push('=');
    bytes.iter().for_each(|byte| {
        let _ = write!(text, "{byte:02x}");
    });
    text
}

struct Values<'a>(std::str::Split<'a, char>);

impl<'a> Values<'a> {
    fn word(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    fn number<T: FromStr>(&mut self) -> Option<T> {
        self.word()?.parse().ok()
    }

    fn flag(&mut self) -> Option<bool> {
        Some(self.number::<u8>()? != 0)
    }

    fn time(&mut self) -> Option<Duration> {
        Some(Duration::from_nanos(self.number()?))
    }

    /// A number, or `-` for none.
    fn optional<T: FromStr>(&mut self) -> Option<Option<T>> {
        match self.word()? {
            "-" => Some(None),
            text => Some(Some(text.parse().ok()?)),
        }
    }

    fn optional_time(&mut self) -> Option<Option<Duration>> {
        Some(self.optional()?.map(Duration::from_nanos))
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let digits = self.word()?.strip_prefix('=')?.as_bytes();
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let pairs = digits.chunks(2).map(|pair| match *pair {
            [high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
            _ => None,
        });
        pairs.collect()
    }
}
