//! Log lines: `plugd: warning: text`, one write each, to stderr.
//!
//! No timestamps: supervisors' loggers add them. Control characters are
//! escaped, so that one message is one line.

use std::io::Write as _;

use env_logger::{Builder, Target, WriteStyle};
use log::{Level, LevelFilter};

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
    let mut builder = Builder::new();
    builder.filter_level(level);
    if mistake.is_none() && !filters.is_empty() {
        builder.parse_filters(&filters);
    }
    builder.write_style(WriteStyle::Never).target(Target::Stderr).format(move |line, record| {
        let level = level_name(record.level());
        writeln!(line, "{program}: {level}: {}", escaped(&record.args().to_string()))
    });
    // Only the first start in a process counts.
    let _ = builder.try_init();
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
