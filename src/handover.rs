//! What one plugd hands to the next one, which takes its place in the same
//! process: its state, as text.
//!
//! Pure. File descriptors are numbers here; they stay open across execve(2).
//! A line is a key and its values; keys that are not known are passed over, so
//! that a newer plugd may say more than an older one understands.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::os::fd::RawFd;
use std::str::FromStr;
use std::time::Duration;

use crate::counters::Counters;
use crate::inventory::Trust;
use crate::machine::{Retry, Stage, State, Stop, Time};
use crate::recovery::Cause;

/// Tells the next plugd where its predecessor's state is: `PID:FD`.
pub const VARIABLE: &str = "PLUGD_HANDOVER";

/// What the variable holds instead if the program is only to tell, by its exit
/// code, whether it could go on: with these options and this configuration.
pub const REHEARSAL: &str = "rehearsal";

/// What it says then, before it ends with 0: it reads what such a one writes.
pub const REHEARSED: &str = MAGIC;

/// Begins the text.
const MAGIC: &str = "plugd-handover 1";

/// The state of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// The version of plugd that it comes from.
    pub version: String,
    /// Where that is, as it was named at the start.
    pub file: Option<Vec<u8>>,
    /// When the daemon was started, by CLOCK_MONOTONIC. All times count from there.
    pub started: Duration,
    /// What it is doing; never `Acting` or `Done`.
    pub state: State,
    /// It reads nothing for now.
    pub paused: bool,
    /// What it has counted.
    pub counters: Counters,
    /// The sockets that bring events.
    pub sources: Vec<RawFd>,
    /// The event in hand; there is one unless the state is `Reading`.
    pub event: Option<InHand>,
    /// The pidfd and the process id of the running program.
    pub child: Option<(RawFd, i32)>,
    /// The listening control socket.
    pub listener: Option<Listener>,
    /// Who is connected to it.
    pub clients: Vec<Client>,
    /// The level of logging that was chosen at run time.
    pub log_level: Option<String>,
    /// The files that the rules in force come from, if they do: their names and text.
    pub rules_of_files: Option<Vec<(String, Vec<u8>)>>,
    /// The limit of open files (soft, hard) that children get.
    pub open_files: Option<(u64, u64)>,
    /// Where events are written that were acted on, and what there was no room for.
    pub output: Option<(RawFd, Vec<u8>)>,
    /// What is known of devices: the state file, mapped and locked.
    pub state_file: Option<RawFd>,
    /// Or a file in memory, to be read.
    pub inventory: Option<RawFd>,
    /// How far that can be trusted.
    pub trust: Trust,
    /// The kernel's count of dropped events at the moment since when none is missing.
    pub drops: u64,
    /// What was being made up for; that is begun anew.
    pub unfinished: Option<(Cause, bool)>,
    /// An event that waits until the one in hand has been acted on, and the socket
    /// that it came from.
    pub held_back: Option<(usize, Vec<u8>)>,
}

/// An event that is being acted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InHand {
    /// Which of the sockets it came from; `None`: it makes up for one that was
    /// missed.
    pub source: Option<usize>,
    /// The bytes received.
    pub datagram: Vec<u8>,
    /// How many of its steps have been carried out.
    pub steps_done: usize,
    /// The text of the one that is being carried out: the rules may be others now.
    pub step: String,
    /// One of them failed.
    pub failed: bool,
    /// When it was read.
    pub since: Time,
}

/// The control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// It.
    pub fd: RawFd,
    /// Its file, if it has one: device and inode. By now there may be another one at
    /// its path.
    pub file: Option<(u64, u64)>,
}

/// A client of the control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its socket.
    pub fd: RawFd,
    /// What it said and was not answered.
    pub input: Vec<u8>,
    /// What it has still to hear.
    pub output: Vec<u8>,
    /// It is sent away when it has heard that.
    pub last_words: bool,
    /// The first thing it said was the request for the update.
    pub asked_for_update: bool,
    /// When that has to be answered at the latest, if it waits for something.
    pub until: Option<Time>,
}

/// Why a text cannot be read: its line, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable(pub String);

impl Handover {
    /// All file descriptors that are handed over.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> {
        let clients = self.clients.iter().map(|client| client.fd);
        let child = self.child.map(|(pidfd, _)| pidfd);
        let listener = self.listener.map(|listener| listener.fd);
        let output = self.output.as_ref().map(|(fd, _)| *fd);
        let few = child.into_iter().chain(listener).chain(output);
        let few = few.chain(self.state_file).chain(self.inventory);
        self.sources.iter().copied().chain(few).chain(clients)
    }

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

/// The descriptor that the variable's value names, if it is meant for the
/// process `pid`; else it is left over from an ancestor.
pub fn descriptor(value: &str, pid: u32) -> Option<RawFd> {
    let (owner, fd) = value.split_once(':')?;
    (owner == pid.to_string()).then(|| fd.parse().ok())?
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn time() -> impl Strategy<Value = Time> {
        any::<u64>().prop_map(Duration::from_nanos)
    }

    fn state() -> impl Strategy<Value = State> {
        let stop = prop_oneof![Just(Stop::No), Just(Stop::Finish), Just(Stop::Now)];
        let stage = prop_oneof![
            proptest::option::of(time()).prop_map(Stage::Free),
            time().prop_map(Stage::Terminated),
            time().prop_map(Stage::Killed),
        ];
        prop_oneof![
            Just(State::Reading),
            (stop, stage).prop_map(|(stop, stage)| State::Running { stop, stage }),
            (time(), proptest::option::of(time()), time()).prop_map(
                |(pause, missing_since, until)| State::Retrying {
                    retry: Retry { pause, missing_since },
                    until
                }
            ),
        ]
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..50)
    }

    prop_compose! {
        fn client()(
            fd in 0..i32::MAX,
            (input, output) in (bytes(), bytes()),
            (last_words, asked_for_update) in any::<(bool, bool)>(),
            until in proptest::option::of(time()),
        ) -> Client {
            Client { fd, input, output, last_words, asked_for_update, until }
        }
    }

    prop_compose! {
        fn in_hand()(
            (source, steps_done, failed) in any::<(Option<usize>, usize, bool)>(),
            datagram in bytes(),
            step in any::<String>(),
            since in time(),
        ) -> InHand {
            InHand { source, datagram, steps_done, step, failed, since }
        }
    }

    prop_compose! {
        fn handover()(
            (state, started, paused, rules_of_files)
                in (state(), time(), any::<bool>(), any::<Option<Vec<(String, Vec<u8>)>>>()),
            (counts, dropped, stale, scans, replayed)
                in any::<([u64; 6], [u64; 3], u64, u64, [u64; 3])>(),
            sources in prop::collection::vec(0..i32::MAX, 0..3),
            file in proptest::option::of(bytes()),
            (event, child) in (in_hand(), any::<(i32, i32)>()),
            clients in prop::collection::vec(client(), 0..3),
            listener in any::<Option<(i32, Option<(u64, u64)>)>>(),
            (output, open_files, log_level)
                in any::<(Option<(i32, Vec<u8>)>, Option<(u64, u64)>, Option<bool>)>(),
            (state_file, inventory, last, held_back)
                in any::<(Option<i32>, Option<i32>, Option<u64>, Option<(usize, Vec<u8>)>)>(),
            (recovery, drops) in (time(), any::<u64>()),
            unfinished in proptest::option::of((prop_oneof![
                Just(Cause::Coldplug), Just(Cause::Restart), Just(Cause::Overrun),
                Just(Cause::Rescan),
            ], any::<bool>())),
            trust in 0..3,
        ) -> Handover {
            let [received, handled, failed, timed_out, retried, overruns] = counts;
            Handover {
                version: "0.1.0-x".into(),
                file,
                started,
                state,
                paused,
                counters: Counters {
                    received, handled, failed, timed_out, retried, overruns, dropped, stale,
                    scans, replayed, recovery,
                },
                sources,
                event: (state != State::Reading).then_some(event),
                child: matches!(state, State::Running { .. }).then_some(child),
                listener: listener.map(|(fd, file)| Listener { fd, file }),
                clients,
                log_level: log_level.map(|_| "debug".into()),
                rules_of_files,
                open_files,
                output,
                state_file,
                inventory,
                trust: match trust {
                    0 => Trust::Unscanned,
                    1 => Trust::Lossy,
                    _ => Trust::Scanned { last },
                },
                drops,
                unfinished,
                held_back,
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_handed_over_is_read_back(handover in handover()) {
            let text = handover.to_text();
            prop_assert_eq!(Handover::parse(&text), Ok(handover.clone()));
            // What a newer one may add does no harm.
            let text = text + "colour blue\n\nshape\n";
            prop_assert_eq!(Handover::parse(&text), Ok(handover));
        }

        #[test]
        fn no_text_is_too_strange(text in "(plugd-handover 1\n)?(client|event|running|source| |=|-|7|f|\n){0,40}") {
            let _ = Handover::parse(&text);
        }
    }

    #[test]
    fn nonsense_is_named() {
        let error = |text: &str| Handover::parse(text).unwrap_err().0;
        assert_eq!(error(""), "it does not begin with plugd-handover 1");
        assert_eq!(error("plugd-handover 2\n"), "it does not begin with plugd-handover 1");
        let with = |line: &str| error(&format!("{MAGIC}\n{line}\n"));
        for line in [
            "source",
            "source x",
            "event 1 0 0 0 =0",
            "event 1 0 0 0 =00",
            "event 1 0 0 0 = =ff",
            "child 3",
            "running no free",
            "running no killed -",
        ] {
            assert_eq!(with(line), format!("'{line}'"));
        }
        for line in ["running no killed 5", "child 3 4", "event 0 0 0 0 = ="] {
            assert_eq!(with(line), "state, event and child do not go together");
        }
    }

    #[test]
    fn only_what_is_meant_for_us_counts() {
        for (value, expected) in
            [("42:7", Some(7)), ("41:7", None), ("42", None), ("42:", None), ("42:x", None)]
        {
            assert_eq!(descriptor(value, 42), expected, "{value}");
        }
    }
}
