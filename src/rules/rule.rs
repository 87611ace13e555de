//! What rules are, apart from how they are written.
//!
//! Pure. A [`Rule`] owns its text and what was read from it.
#![forbid(unsafe_code)]

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::ere::Ere;
use crate::plan::{Access, Interpreter};

/// One rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Where it stands.
    pub origin: Origin,
    /// Whether later rules are tried when this one has matched (`-`).
    pub goes_on: bool,
    /// What variables of the event have to match (`VARIABLE=regex;`).
    pub conditions: Vec<Condition>,
    /// What the device has to be.
    pub device: Device,
    /// Of the device node.
    pub access: Access,
    /// Where the device node goes.
    pub place: Place,
    /// What to run.
    pub command: Option<Command>,
}

impl Rule {
    /// All variables that it asks for, that of the device last.
    pub fn all_conditions(&self) -> impl Iterator<Item = &Condition> {
        let of_device = match &self.device {
            Device::Variable(condition) => Some(condition),
            Device::Name(_) | Device::Numbers(_) => None,
        };
        self.conditions.iter().chain(of_device)
    }
}

/// Where a rule stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The name of the file.
    pub file: Arc<str>,
    /// The line that it begins on, counted from 1.
    pub line: usize,
    /// The line itself; of more than one, all, joined.
    pub text: Box<[u8]>,
}

/// `FILE:LINE`
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// That a variable of the event is there and matches, somewhere in it.
#[derive(Debug, Clone)]
pub struct Condition {
    /// Its name.
    pub variable: Box<[u8]>,
    /// The expression as it was written.
    pub text: Box<[u8]>,
    /// What it has to match.
    pub ere: Ere,
}

/// What the device has to be.
#[derive(Debug, Clone)]
pub enum Device {
    /// All of its name matches.
    Name(Ere),
    /// A variable matches (`$VARIABLE=regex`).
    Variable(Condition),
    /// It has these numbers (`@major,minor`).
    Numbers(Numbers),
}

/// Device numbers that match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers {
    /// The one major number.
    pub major: u32,
    /// The minor numbers.
    pub minor: RangeInclusive<u32>,
}

/// Where a device node goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Where the kernel says.
    Own,
    /// Elsewhere (`=`).
    Moved(Path),
    /// Elsewhere, with a link to it where the kernel says (`>`).
    Linked(Path),
    /// Nowhere: no node is touched (`!`).
    Nowhere,
}

/// A path in /dev, with parts to fill in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// As it was written.
    pub text: Box<[u8]>,
    /// Its parts; `None`: a `%` in it stands before neither a digit nor a `%`.
    pub parts: Option<Box<[Part]>>,
}

/// A part of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Just this.
    Literal(Box<[u8]>),
    /// What this group of the regex matched (`%0` to `%9`).
    Group(usize),
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// For which events.
    pub when: When,
    /// By what.
    pub interpreter: Interpreter,
    /// What it is.
    pub text: Box<[u8]>,
}

/// The actions that a command is run for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// `add` only.
    Add,
    /// `remove` only.
    Remove,
    /// All.
    Always,
}
