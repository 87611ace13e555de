//! What can be asked of the daemon, in words.
#![forbid(unsafe_code)]

use std::time::Duration;

use log::LevelFilter;

use crate::logging;
use crate::settle::{Device, Want};
use crate::units::{self, SECONDS};

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
