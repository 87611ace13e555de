//! What shall be done for an event: a short list of steps, in order.
//!
//! Pure. An engine makes a [`Plan`] of a uevent; the loop carries it out. The
//! text of a step is its `Display`.
#![forbid(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fmt;

use crate::environment::Environment;

/// The steps for one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<'e> {
    /// To be done one after the other.
    pub steps: Vec<Step<'e>>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<'e> {
    /// Run a program, and wait for its end.
    Run(Run<'e>),
}

/// A program, found, and the arguments that it always gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The file to execute.
    pub path: CString,
    /// Its arguments; the first is the name it was asked for by.
    pub argv: Vec<CString>,
}

/// A run of a program for an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run<'e> {
    /// What to run.
    pub program: &'e Program,
    /// An argument more, after the program's own.
    pub argument: Option<&'e CStr>,
    /// The whole environment.
    pub environment: Environment<'e>,
}

impl Run<'_> {
    /// All arguments, the program's name first.
    pub fn argv(&self) -> impl Iterator<Item = &CStr> {
        self.program.argv.iter().map(CString::as_c_str).chain(self.argument)
    }
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Run(run) = self;
        f.write_str("run")?;
        run.argv().try_for_each(|argument| write!(f, " {}", argument.to_bytes().escape_ascii()))
    }
}
