//! Log lines: `plugd: warning: text`, one write each, to stderr; or to syslog.
//!
//! No timestamps: supervisors' loggers add them. Control characters are
//! escaped, so that one message is one line.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use env_logger::{Builder, Logger, Target, WriteStyle};
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::syslog::Syslog;

/// Where lines go instead of to stderr.
static SYSLOG: Mutex<Option<Syslog>> = Mutex::new(None);

/// Sends all further lines to syslog.
pub fn to_syslog(syslog: Syslog) {
    *lock_syslog() = Some(syslog);
}

/// Sends a line there, if that is where lines go; else the caller has to write
/// it to stderr.
pub fn sent_to_syslog(level: Level, text: &str) -> bool {
    match &mut *lock_syslog() {
        None => false,
        Some(syslog) => {
            syslog.send(level, text);
            true
        }
    }
}

fn lock_syslog() -> MutexGuard<'static, Option<Syslog>> {
    SYSLOG.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts logging under the name of the program.
///
/// `verbosity` counts from 0: 1 tells of every event, 2 of everything, -1
/// only of what is wrong, -2 only of errors, -3 of nothing. RUST_LOG overrides it.
pub fn start(program: &'static str, verbosity: i32) {
    let level = match verbosity {
        ..=-3 => LevelFilter::Off,
        -2 => LevelFilter::Error,
        -1 => LevelFilter::Warn,
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        2.. => LevelFilter::Trace,
    };
    let filters = std::env::var("RUST_LOG").unwrap_or_default();
    let mistake = env_filter::Builder::new().try_parse(&filters).err();
    let mut configured = builder(program);
    configured.filter_level(level);
    if mistake.is_none() && !filters.is_empty() {
        configured.parse_filters(&filters);
    }
    let configured = configured.build();
    let level = configured.filter();
    let everything = builder(program).filter_level(LevelFilter::Trace).build();
    // Only the first start in a process counts.
    if log::set_boxed_logger(Box::new(Switch { configured, everything })).is_ok() {
        log::set_max_level(level);
    }
    if let Some(mistake) = mistake {
        log::warn!("RUST_LOG is not used: {mistake}");
    }
}

/// The text with its control characters escaped.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() {
            safe.extend(char.escape_default());
        } else {
            safe.push(char);
        }
    }
    safe
}

/// The names of the levels, for a message.
pub const LEVELS: &str = "error, warning, info, debug or trace";

/// The level with this name.
pub fn level(name: &str) -> Option<LevelFilter> {
    let level = Level::iter().find(|level| level_name(*level) == name)?;
    Some(level.to_level_filter())
}

/// Logs up to this level from now on, whatever options and RUST_LOG said.
pub fn set_level(level: LevelFilter) {
    OVERRIDDEN.store(true, Ordering::Relaxed);
    log::set_max_level(level);
}

/// The name of the level up to which is logged, `off` if nothing is; and
/// whether [`set_level`] chose it.
pub fn current() -> (&'static str, bool) {
    let name = log::max_level().to_level().map_or("off", level_name);
    (name, OVERRIDDEN.load(Ordering::Relaxed))
}

fn builder(program: &'static str) -> Builder {
    let mut builder = Builder::new();
    builder.write_style(WriteStyle::Never).target(Target::Stderr).format(move |line, record| {
        let level = level_name(record.level());
        let text = escaped(&record.args().to_string());
        if sent_to_syslog(record.level(), &format!("{level}: {text}")) {
            return Ok(());
        }
        writeln!(line, "{program}: {level}: {text}")
    });
    builder
}

/// The level was chosen at run time.
static OVERRIDDEN: AtomicBool = AtomicBool::new(false);

/// RUST_LOG may choose by module, the level at run time is one for all.
struct Switch {
    configured: Logger,
    everything: Logger,
}

impl Switch {
    fn logger(&self) -> &Logger {
        if OVERRIDDEN.load(Ordering::Relaxed) { &self.everything } else { &self.configured }
    }
}

impl Log for Switch {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.logger().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        self.logger().log(record);
    }

    fn flush(&self) {}
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escaped("a\nb\x1b[1m\u{9b}é1"), "a\\nb\\u{1b}[1m\\u{9b}é1");
    }
}
