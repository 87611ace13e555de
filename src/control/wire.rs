//! The line protocol of the control socket.
//!
//! Pure. A request is a line: a command and its arguments, with blanks between
//! them, `\xNN` in them for bytes that could not stand there. A bare line is
//! for people: its reply is text, or `error: ` and a line, and then the daemon
//! closes the connection. A line that begins with `plugd/1` is for programs:
//! its reply begins with a line `plugd/1 STATUS LENGTH`, LENGTH bytes follow,
//! and the next request may. With `--json` both get an object.
#![forbid(unsafe_code)]

use std::time::Duration;

use log::LevelFilter;

use crate::logging;
use crate::settle::{Device, Want};
use crate::status::json;
use crate::units::{self, SECONDS};

/// Begins a program's requests and their replies. It is the version: a
/// different one means that replies are made otherwise, or mean something else.
pub const PREFIX: &str = "plugd/1";

/// The longest request, in bytes, its newline included.
pub const REQUEST_MAX: usize = 4096;

/// What a client hears that is sent away unheard.
pub const TOO_MANY: &[u8] = b"error: no: too many clients\n";

/// How long `settle` and `wait` wait if nothing else is said.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What is asked of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Tell how things are.
    Status(Format),
    /// Tell when something has come to pass, or that the time is over.
    Await {
        /// What.
        want: Want,
        /// How long that may take.
        timeout: Duration,
    },
    /// Read no further events for now.
    Pause,
    /// Read events again.
    Resume,
    /// Read the configuration again.
    Reload,
    /// Compare the devices that are there with those that are known.
    Rescan,
    /// End, when the event in hand has been acted on; the second time, at once.
    Stop,
    /// Go on as the program that is in plugd's file now.
    Update,
    /// Tell how much is logged, or change that.
    LogLevel(Option<LevelFilter>),
}

/// The form of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// A JSON object.
    Json,
    /// OpenMetrics text.
    OpenMetrics,
}

impl Command {
    /// Whether it changes what the daemon does: then not everybody may say it.
    pub fn changes_something(&self) -> bool {
        match self {
            Self::Status(_) | Self::Await { .. } | Self::LogLevel(None) => false,
            Self::Pause
            | Self::Resume
            | Self::Reload
            | Self::Rescan
            | Self::Stop
            | Self::Update
            | Self::LogLevel(Some(_)) => true,
        }
    }

    /// Whether it is answered when the event in hand has been acted on, or later.
    pub fn waits_for_event_in_hand(&self) -> bool {
        match self {
            Self::Await { .. } | Self::Reload | Self::Rescan => true,
            Self::Status(_)
            | Self::Pause
            | Self::Resume
            | Self::Stop
            | Self::Update
            | Self::LogLevel(_) => false,
        }
    }

    /// Reads a command and its arguments.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub fn parse<W: AsRef<[u8]>>(words: &[W]) -> Result<Self, String> {
        let mut words = words.iter().map(AsRef::as_ref);
        let Some(name) = words.next() else { return Err("the command is missing".into()) };
        let command = match name {
            b"status" => Self::Status(match words.next() {
                None => Format::Text,
                Some(b"--json") => Format::Json,
                Some(b"--openmetrics") => Format::OpenMetrics,
                Some(word) => return Err(unexpected(word)),
            }),
            b"settle" | b"wait" => return parse_waiting(name, words),
            b"pause" => Self::Pause,
            b"resume" => Self::Resume,
            b"reload" => Self::Reload,
            b"rescan" => Self::Rescan,
            b"stop" => Self::Stop,
            b"update" => Self::Update,
            b"log-level" => Self::LogLevel(match words.next() {
                None => None,
                Some(word) => match std::str::from_utf8(word).ok().and_then(logging::level) {
                    Some(level) => Some(level),
                    None => {
                        return Err(format!(
                            "expected {}, but not {}",
                            logging::LEVELS,
                            quoted(word)
                        ));
                    }
                },
            }),
            _ => return Err(format!("there is no command {}", quoted(name))),
        };
        match words.next() {
            None => Ok(command),
            Some(word) => Err(unexpected(word)),
        }
    }
}

fn parse_waiting<'a>(
    name: &[u8],
    mut words: impl Iterator<Item = &'a [u8]>,
) -> Result<Command, String> {
    let (mut timeout, mut removed, mut what) = (PATIENCE, false, Vec::new());
    while let Some(word) = words.next() {
        if let Some(rest) = word.strip_prefix(b"--timeout") {
            let value = match rest.strip_prefix(b"=") {
                Some(value) => Some(value),
                None if rest.is_empty() => words.next(),
                None => return Err(unexpected(word)),
            };
            let value = value.unwrap_or_default();
            timeout = std::str::from_utf8(value)
                .ok()
                .and_then(units::seconds)
                .ok_or_else(|| format!("--timeout {}: expected {SECONDS}", quoted(value)))?;
        } else if word == b"--removed" && name == b"wait" {
            removed = true;
        } else if word.starts_with(b"-") || name == b"settle" {
            return Err(unexpected(word));
        } else {
            what.push(word);
        }
    }
    let want = match (name, removed) {
        (b"settle", _) => Want::Settled,
        (_, true) => Want::Gone(device(&what)?),
        (_, false) => Want::Present(device(&what)?),
    };
    Ok(Command::Await { want, timeout })
}

fn device(words: &[&[u8]]) -> Result<Device, String> {
    // Each is looked for in each event, for as long as it is waited for.
    const FIELDS_MAX: usize = 16;
    const EXPECTED: &str = "expected a DEVPATH, a /dev/NODE, or KEY=VALUE...";
    if let [path] = words
        && path.starts_with(b"/")
    {
        // As the kernel writes it: one / between two names, none at the end.
        let names = |path: &[u8]| {
            let names = path.split(|&b| b == b'/').filter(|name| !name.is_empty());
            let names: Vec<&[u8]> = names.collect();
            let real =
                !names.is_empty() && names.iter().all(|name| *name != b"." && *name != b"..");
            real.then(|| names.join(&b'/')).ok_or(EXPECTED)
        };
        if let Some(node) = path.strip_prefix(b"/dev/") {
            return Ok(Device::Node(names(node)?));
        }
        let below_sys = path.strip_prefix(b"/sys").filter(|path| path.starts_with(b"/"));
        let path = names(below_sys.unwrap_or(path))?;
        return Ok(Device::Path([b"/", &path[..]].concat()));
    }
    let is_field = |word: &&[u8]| word.iter().position(|&b| b == b'=').is_some_and(|at| at > 0);
    if words.is_empty() || !words.iter().all(is_field) {
        return Err(EXPECTED.into());
    }
    let mut fields: Vec<Vec<u8>> = words.iter().map(|word| word.to_vec()).collect();
    fields.sort_unstable();
    fields.dedup();
    if fields.len() > FIELDS_MAX {
        return Err(format!("at most {FIELDS_MAX} variables tell a device"));
    }
    Ok(Device::Fields(fields))
}

fn unexpected(word: &[u8]) -> String {
    format!("unexpected {}", quoted(word))
}

/// As much of a word as tells which it is: a line of nonsense is not repeated at four
/// times its length.
fn quoted(word: &[u8]) -> String {
    const SHOWN: usize = 100;
    match word.get(..SHOWN) {
        Some(beginning) if word.len() > SHOWN => format!("'{}...'", beginning.escape_ascii()),
        _ => format!("'{}'", word.escape_ascii()),
    }
}

/// Whom a reply is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// It wants to know where the reply ends, and may say more; else it is a person, or a
    /// script, who reads it as it is.
    pub is_program: bool,
    /// It wants a JSON object.
    pub wants_json: bool,
}

impl Reader {
    /// Who reads text as it is.
    pub const PERSON: Self = Self { is_program: false, wants_json: false };
}

/// Whether a JSON object is wanted. The word that says so is taken out, but for `status`,
/// whose object tells more.
pub fn take_json(words: &mut Vec<Vec<u8>>) -> bool {
    let has_it = words.iter().any(|word| word == b"--json");
    if words.first().is_some_and(|name| name != b"status") {
        words.retain(|word| word != b"--json");
    }
    has_it
}

/// Reads a request: a line without its newline.
pub fn parse(line: &[u8]) -> (Reader, Result<Command, String>) {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let words: Vec<&[u8]> =
        line.split(|b| b" \t".contains(b)).filter(|word| !word.is_empty()).collect();
    let version = words.first().filter(|word| word.starts_with(b"plugd/"));
    let is_program = version.is_some();
    let words = &words[usize::from(is_program)..];
    // Whoever asks for JSON gets it also where the rest cannot be read.
    let mut reader = Reader { is_program, wants_json: words.contains(&&b"--json"[..]) };
    if version.is_some_and(|version| *version != PREFIX.as_bytes()) {
        return (reader, Err(format!("the version of this protocol is {PREFIX}")));
    }
    let words: Option<Vec<Vec<u8>>> = words.iter().map(|word| unescape(word)).collect();
    let command = match words {
        Some(mut words) => {
            reader.wants_json = take_json(&mut words);
            Command::parse(&words)
        }
        None => Err("after a \\ must follow x and two hexadecimal digits".into()),
    };
    (reader, command)
}

fn unescape(word: &[u8]) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, after @ ..] = rest {
        rest = match (first, after) {
            (b'\\', [b'x', high, low, after @ ..]) => {
                plain.push(digit(*high)? << 4 | digit(*low)?);
                after
            }
            (b'\\', _) => return None,
            (other, after) => {
                plain.push(*other);
                after
            }
        };
    }
    Some(plain)
}

/// Writes a program's request with these words, its newline included.
pub fn request<W: AsRef<[u8]>>(words: &[W]) -> Vec<u8> {
    let mut line = PREFIX.as_bytes().to_vec();
    for word in words {
        line.push(b' ');
        for &byte in word.as_ref() {
            match byte {
                b'!'..=b'[' | b']'..=b'~' => line.push(byte),
                _ => line.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
            }
        }
    }
    line.push(b'\n');
    line
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Ok,
    /// It is not, or not in time.
    No,
    /// It makes no sense.
    Usage,
    /// Whoever asked may not.
    Denied,
}

impl Outcome {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Ok, "ok"), (Self::No, "no"), (Self::Usage, "usage"), (Self::Denied, "denied")];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(outcome, _)| *outcome == self).map_or("", |(_, name)| name)
    }
}

/// The reply to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// What became of it.
    pub outcome: Outcome,
    /// What there is to say, in lines.
    pub text: String,
}

impl Reply {
    /// Done, and this is to say about it.
    pub fn ok(text: impl Into<String>) -> Self {
        Self { outcome: Outcome::Ok, text: text.into() }
    }

    /// Not done, and this is why.
    pub fn no(text: impl Into<String>) -> Self {
        Self { outcome: Outcome::No, text: text.into() }
    }

    /// The same as a JSON object in a line, which a status may be already.
    #[must_use]
    pub fn into_json(mut self) -> Self {
        if self.outcome != Outcome::Ok || !self.text.starts_with('{') {
            self.text = json::object(|json| {
                json.text("outcome", self.outcome.name());
                json.text("text", self.text.trim_end());
            });
            self.text.push('\n');
        }
        self
    }

    /// As it goes over the wire.
    pub fn to_bytes(&self, reader: Reader) -> Vec<u8> {
        if reader.wants_json {
            let reader = Reader { wants_json: false, ..reader };
            let object = self.clone().into_json();
            return match reader.is_program {
                true => object.to_bytes(reader),
                false => Self::ok(object.text).to_bytes(reader),
            };
        }
        let mut text = self.text.clone();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        let name = self.outcome.name();
        match (reader.is_program, self.outcome) {
            (true, _) => format!("{PREFIX} {name} {}\n{text}", text.len()),
            // The end of the connection alone might be plugd's own.
            (false, Outcome::Ok) if text.is_empty() => "ok\n".into(),
            (false, Outcome::Ok) => text,
            (false, Outcome::No | Outcome::Usage | Outcome::Denied) => {
                format!("error: {name}: {text}")
            }
        }
        .into_bytes()
    }

    /// Reads the first line of a reply to a program, without its newline: the
    /// outcome, and how many bytes of text follow.
    pub fn parse_head(line: &[u8]) -> Option<(Outcome, usize)> {
        let mut words = std::str::from_utf8(line).ok()?.strip_prefix(PREFIX)?.split(' ').skip(1);
        let (name, length) = (words.next()?, words.next()?);
        let (outcome, _) = Outcome::ALL.iter().find(|(_, known)| *known == name)?;
        Some((*outcome, units::digits(length)?)).filter(|_| words.next().is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PROGRAM: Reader = Reader { is_program: true, ..Reader::PERSON };

    fn read(line: &str) -> Result<Command, String> {
        let (reader, command) = parse(line.as_bytes());
        assert!(!reader.is_program);
        let (reader, framed) = parse(format!("plugd/1 {line}").as_bytes());
        assert_eq!((reader.is_program, &framed), (true, &command));
        command
    }

    fn wait(want: Want, seconds: u64) -> Command {
        Command::Await { want, timeout: Duration::from_secs(seconds) }
    }

    #[test]
    fn every_command_is_read() {
        let net = || Device::Fields(vec![b"A=x y\\".into(), b"SUBSYSTEM=net".into()]);
        for (line, expected) in [
            ("status", Command::Status(Format::Text)),
            ("  status\t--json \r", Command::Status(Format::Json)),
            ("status --openmetrics", Command::Status(Format::OpenMetrics)),
            ("settle", wait(Want::Settled, 120)),
            ("settle --timeout 5", wait(Want::Settled, 5)),
            ("settle --timeout=0", wait(Want::Settled, 0)),
            ("pause", Command::Pause),
            ("resume", Command::Resume),
            ("reload", Command::Reload),
            ("rescan", Command::Rescan),
            ("stop", Command::Stop),
            ("update", Command::Update),
            ("log-level", Command::LogLevel(None)),
            ("log-level warning", Command::LogLevel(Some(LevelFilter::Warn))),
            (r"wait SUBSYSTEM=net A=x\x20y\x5C", wait(Want::Present(net()), 120)),
            ("wait /dev/sda", wait(Want::Present(Device::Node(b"sda".into())), 120)),
            (
                "wait --removed --timeout 7 /dev//bus/usb/",
                wait(Want::Gone(Device::Node(b"bus/usb".into())), 7),
            ),
            ("wait /devices/x", wait(Want::Present(Device::Path(b"/devices/x".into())), 120)),
            ("wait /sys/block/x/", wait(Want::Present(Device::Path(b"/block/x".into())), 120)),
            ("wait /system/x", wait(Want::Present(Device::Path(b"/system/x".into())), 120)),
            ("wait /devices/x=1", wait(Want::Present(Device::Path(b"/devices/x=1".into())), 120)),
        ] {
            assert_eq!(read(line), Ok(expected), "{line}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_in_json_too() {
        for line in ["log-level \\q --json", "plugd/1 \\q --json", "plugd/2 status --json"] {
            let (reader, command) = parse(line.as_bytes());
            assert!(reader.wants_json && command.is_err(), "{line}");
        }
        assert!(!parse(b"plugd/2 status").0.wants_json);
    }

    #[test]
    fn little_of_a_long_word_is_repeated() {
        let error = parse(&[b'\xff'; 4000]).1.unwrap_err();
        assert_eq!(error, format!("there is no command '{}...'", "\\xff".repeat(100)));
        assert!(parse(&[b'x'; 100]).1.unwrap_err().ends_with("x'"));
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (line, expected) in [
            ("", "the command is missing"),
            ("STATUS", "there is no command 'STATUS'"),
            ("\\x1b[1m", "there is no command '\\x1b[1m'"),
            ("status --yaml", "unexpected '--yaml'"),
            ("status --json x", "unexpected 'x'"),
            ("pause now", "unexpected 'now'"),
            ("settle 5", "unexpected '5'"),
            ("settle --removed", "unexpected '--removed'"),
            ("settle --timeout", "--timeout '': expected a number of seconds"),
            ("settle --timeout=-1", "--timeout '-1': expected"),
            ("settle --timeouts", "unexpected '--timeouts'"),
            ("log-level loud", "expected error, warning, info, debug or trace, but not 'loud'"),
            ("wait", "expected a DEVPATH"),
            ("wait /", "expected a DEVPATH"),
            ("wait /dev/", "expected a DEVPATH"),
            ("wait /sys/", "expected a DEVPATH"),
            ("wait /dev/../etc/passwd", "expected a DEVPATH"),
            ("wait /devices/./x", "expected a DEVPATH"),
            ("wait x", "expected a DEVPATH"),
            ("wait =x", "expected a DEVPATH"),
            ("wait /dev/a /dev/b", "expected a DEVPATH"),
            ("wait A=1 /dev/b", "expected a DEVPATH"),
            ("wait -x A=1", "unexpected '-x'"),
            ("wait A=\\", "after a \\ must follow"),
            ("wait A=\\x1", "after a \\ must follow"),
            ("wait A=\\xgg", "after a \\ must follow"),
        ] {
            let error = read(line).unwrap_err();
            assert!(error.starts_with(expected), "{line}: {error}");
        }
        let (reader, command) = parse(b"plugd/2 status");
        assert_eq!(reader, PROGRAM);
        assert_eq!(command, Err("the version of this protocol is plugd/1".into()));
    }

    #[test]
    fn what_is_looked_for_in_each_event_is_bounded() {
        let line = |count: usize| {
            let fields: Vec<String> = (0..count).map(|n| format!("A={n} A=0")).collect();
            format!("wait {}", fields.join(" "))
        };
        let expected: Vec<Vec<u8>> = [0, 1].map(|n| format!("A={n}").into()).into();
        assert_eq!(read(&line(2)), Ok(wait(Want::Present(Device::Fields(expected)), 120)));
        assert!(read(&line(16)).is_ok());
        assert_eq!(read(&line(17)), Err("at most 16 variables tell a device".into()));
    }

    #[test]
    fn only_some_commands_change_something() {
        for (line, changes) in [
            ("status", false),
            ("settle", false),
            ("wait A=1", false),
            ("log-level", false),
            ("log-level info", true),
            ("pause", true),
            ("resume", true),
            ("reload", true),
            ("rescan", true),
            ("stop", true),
            ("update", true),
        ] {
            assert_eq!(read(line).unwrap().changes_something(), changes, "{line}");
        }
    }

    #[test]
    fn replies_suit_their_reader() {
        for (reply, person, program) in [
            (Reply::ok(""), "ok\n", "plugd/1 ok 0\n"),
            (Reply::ok("a"), "a\n", "plugd/1 ok 2\na\n"),
            (Reply::ok("a\nb\n"), "a\nb\n", "plugd/1 ok 4\na\nb\n"),
            (Reply::no("é"), "error: no: é\n", "plugd/1 no 3\né\n"),
        ] {
            assert_eq!(reply.to_bytes(Reader::PERSON), person.as_bytes());
            let bytes = reply.to_bytes(PROGRAM);
            assert_eq!(bytes, program.as_bytes());
            let head = bytes.iter().position(|&b| b == b'\n').unwrap();
            let expected = (reply.outcome, bytes.len() - head - 1);
            assert_eq!(Reply::parse_head(&bytes[..head]), Some(expected));
        }
        for wrong in
            ["", "plugd/1", "plugd/1 ok", "plugd/1 ok -1", "plugd/1 yes 0", "plugd/1 ok 0 0"]
        {
            assert_eq!(Reply::parse_head(wrong.as_bytes()), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_words_survive_the_wire(
            words in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 1..5),
        ) {
            let line = request(&words);
            let line = line.strip_suffix(b"\n").unwrap();
            prop_assert!(line.iter().all(|b| b.is_ascii_graphic() || *b == b' '));
            let sent: Vec<_> = line.split(|&b| b == b' ').skip(1).map(unescape).collect();
            prop_assert_eq!(sent, words.into_iter().map(Some).collect::<Vec<_>>());
        }

        #[test]
        fn no_line_is_too_strange(line: Vec<u8>) {
            let _ = parse(&line);
        }
    }

    #[test]
    fn replies_are_objects_where_that_is_wanted() {
        let no = r#"{"outcome":"no","text":"timed \"out\"\u000alate"}"#;
        for (line, reply, expected) in [
            ("settle --json", Reply::ok(""), "{\"outcome\":\"ok\",\"text\":\"\"}\n".to_owned()),
            ("--json settle", Reply::no("timed \"out\"\nlate\n"), format!("{no}\n")),
            ("status --json", Reply::ok("{\"state\":\"idle\"}\n"), "{\"state\":\"idle\"}\n".into()),
            ("status --json", Reply::no("timed \"out\"\nlate"), format!("{no}\n")),
            ("status", Reply::no("late"), "error: no: late\n".into()),
        ] {
            let (person, command) = parse(line.as_bytes());
            assert!(command.is_ok(), "{line}: {command:?}");
            let bytes = reply.to_bytes(person);
            assert_eq!(String::from_utf8(bytes).unwrap(), expected, "{line}");
            if person.wants_json {
                let (program, _) = parse(format!("plugd/1 {line}").as_bytes());
                let head = format!("plugd/1 {} {}\n", reply.outcome.name(), expected.len());
                let bytes = reply.to_bytes(program);
                assert_eq!(String::from_utf8(bytes).unwrap(), head + &expected, "{line}");
            }
        }
        assert!(parse(b"wait --timeout --json").1.is_err());
        assert!(parse(b"status --json --openmetrics").1.is_err());
    }
}
