//! Errors that end the program before its main job begins.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;

/// Why a command cannot do its job at all.
#[derive(Debug)]
pub enum Fatal {
    /// It was called wrongly.
    Usage(String),
    /// Its configuration is wrong; all that is, a line or more for each.
    Configuration(String),
    /// Its input is not what it must be.
    Input(String),
    /// Something that it needs failed.
    System {
        /// What could not be done, and with what.
        what: String,
        /// Why.
        error: io::Error,
    },
    /// The program to go on as cannot be executed.
    Exec {
        /// Its name, safe to print.
        program: String,
        /// Why.
        error: io::Error,
    },
}

impl Fatal {
    /// `cannot` reads as in "cannot bind netlink socket".
    pub fn system(cannot: impl fmt::Display, error: impl Into<io::Error>) -> Self {
        Self::System { what: format!("cannot {cannot}"), error: error.into() }
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Configuration(text) | Self::Input(text) => f.write_str(text),
            Self::System { what, error } => write!(f, "{what}: {}", reason(error)),
            Self::Exec { program, error } => write!(f, "cannot run {program}: {}", reason(error)),
        }
    }
}

impl std::error::Error for Fatal {}

/// The text of an error as strerror(3) has it, without Rust's "(os error N)".
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
