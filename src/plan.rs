//! What shall be done for an event: a short list of steps, in order.
//!
//! Pure. An engine makes a [`Plan`] of a uevent; the loop carries it out. The
//! text of a step is its `Display`. A `Draft` owns the steps that an engine
//! plans, and is used again for the next event; the plan only looks at it.
#![forbid(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fmt;

use crate::environment::{Base, Environment};
use crate::uevent::Uevent;

/// The steps for one event.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'e> {
    content: Content<'e>,
}

#[derive(Debug, Clone, Copy)]
enum Content<'e> {
    One(Step<'e>),
    Drafted(Drafted<'e>),
}

#[derive(Debug, Clone, Copy)]
struct Drafted<'e> {
    draft: &'e Draft,
    context: Context<'e>,
}

/// What the programs of a drafted plan are run with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'e> {
    pub(crate) shell: &'e Program,
    pub(crate) execlineb: &'e Program,
    pub(crate) environment: &'e Base,
    pub(crate) event: Uevent<'e>,
}

impl<'e> Plan<'e> {
    /// A plan of one step.
    pub fn of(step: Step<'e>) -> Self {
        Self { content: Content::One(step) }
    }

    pub(crate) fn drafted(draft: &'e Draft, context: Context<'e>) -> Self {
        Self { content: Content::Drafted(Drafted { draft, context }) }
    }

    /// The step with this index, counted from 0.
    pub fn step(&self, index: usize) -> Option<Step<'e>> {
        match &self.content {
            Content::One(step) => (index == 0).then_some(*step),
            Content::Drafted(Drafted { draft, context }) => {
                draft.records.get(index).map(|record| draft.step(record, context))
            }
        }
    }

    /// The steps, to be done one after the other.
    pub fn steps(&self) -> Steps<'e> {
        Steps { plan: *self, next: 0 }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.step(0).is_none()
    }
}

/// The steps of a plan that are still to be done.
#[derive(Debug, Clone, Copy)]
pub struct Steps<'e> {
    plan: Plan<'e>,
    next: usize,
}

impl<'e> Steps<'e> {
    /// The next step, without going past it.
    pub fn peek(&self) -> Option<Step<'e>> {
        self.plan.step(self.next)
    }

    /// How many steps have been gone past.
    pub fn done(&self) -> usize {
        self.next
    }

    /// Goes to the step that reads so: to that of this index, if it does, else to the
    /// first one. If there is none, to the end, and says `false`.
    pub fn go_to(&mut self, index: usize, text: &str) -> bool {
        let reads_so = |index| self.plan.step(index).is_some_and(|step| step.to_string() == text);
        let count = (0..).take_while(|&index| self.plan.step(index).is_some()).count();
        let found = if reads_so(index) { Some(index) } else { (0..count).find(|&i| reads_so(i)) };
        self.next = found.unwrap_or(count);
        found.is_some()
    }
}

impl<'e> Iterator for Steps<'e> {
    type Item = Step<'e>;

    fn next(&mut self) -> Option<Step<'e>> {
        let step = self.peek()?;
        self.next += 1;
        Some(step)
    }
}

/// One thing to do. Paths are relative to the /dev root; none has a component
/// `.` or `..`, and none is empty.
#[derive(Debug, Clone, Copy)]
pub enum Step<'e> {
    /// See to it that a device node exists, and is as told.
    MakeNode(MakeNode<'e>),
    /// See to it that a symbolic link exists.
    MakeLink(Link<'e>),
    /// Run a program, and wait for its end.
    Run(Run<'e>),
    /// Remove a symbolic link, if it is still this one.
    RemoveLink(Link<'e>),
    /// Remove a device node, if it is still this one.
    RemoveNode(Node<'e>),
    /// Give the kernel the firmware that it asks for.
    LoadFirmware(&'e CStr),
    /// Do nothing but complain of a name.
    Refuse(Refuse<'e>),
}

/// A device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node<'e> {
    /// Where.
    pub path: &'e CStr,
    /// Of what kind.
    pub kind: Kind,
    /// The device's numbers.
    pub device: Device,
}

/// The kind of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A block device.
    Block,
    /// A character device.
    Character,
}

/// Device numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Of the driver.
    pub major: u32,
    /// Of the device.
    pub minor: u32,
}

/// A device node to make or to adjust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MakeNode<'e> {
    /// Which.
    pub node: Node<'e>,
    /// To whom it shall belong.
    pub access: Access,
}

/// Who may do what with a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// The user id of its owner.
    pub owner: u32,
    /// The id of its group.
    pub group: u32,
    /// Its permissions, at most 07777.
    pub mode: u32,
}

/// A symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link<'e> {
    /// Where.
    pub path: &'e CStr,
    /// What is in it: relative to the directory that it is in.
    pub target: &'e CStr,
}

/// A name that nothing is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refuse<'e> {
    /// The name, or where none can be made of it, the text of the rule.
    pub name: &'e CStr,
    /// Why not.
    pub why: Why,
}

/// Why nothing is done with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is absolute, ends in `/`, or has a component `.` or `..`.
    Unsafe,
    /// It is empty.
    Empty,
    /// In the rule's path a `%` is followed by neither a digit nor a `%`.
    BadPercent,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsafe => "it is absolute, ends in /, or has . or .. in it",
            Self::Empty => "no name comes of it",
            Self::BadPercent => "expected a digit or a % after each %",
        })
    }
}

/// A program, and the arguments that it always gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The file to execute.
    pub path: CString,
    /// Its arguments; the first is the name it was asked for by.
    pub argv: Vec<CString>,
    /// Whether it was there when it was looked for. If it is not there later on,
    /// it may be just being replaced.
    pub was_found: bool,
}

/// A run of a program for an event.
#[derive(Debug, Clone, Copy)]
pub struct Run<'e> {
    /// What to run.
    pub program: &'e Program,
    /// An argument more, after the program's own.
    pub argument: Option<&'e CStr>,
    /// The environment that the event's variables come over.
    pub base: &'e Base,
    /// The event that it is run for.
    pub event: Uevent<'e>,
    /// `MDEV=` and the device node that it is run for.
    pub mdev: Option<&'e CStr>,
}

impl<'e> Run<'e> {
    /// All arguments, the program's name first.
    pub fn argv(&self) -> impl Iterator<Item = &'e CStr> + use<'e> {
        self.program.argv.iter().map(CString::as_c_str).chain(self.argument)
    }

    /// The whole environment. Not for nothing: it is made anew each time.
    pub fn environment(&self) -> Environment<'e> {
        let mut environment = self.base.with_event(&self.event);
        if let Some(mdev) = self.mdev {
            environment.variables.retain(|variable| !variable.to_bytes().starts_with(b"MDEV="));
            environment.variables.push(mdev);
        }
        environment
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Block => "block",
            Self::Character => "character",
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |string: &'_ CStr| string.to_bytes().escape_ascii().to_string();
        match self {
            Self::MakeNode(MakeNode { node, access }) => write!(
                f,
                "make node {}, {} {}, owner {}:{}, mode {:04o}",
                text(node.path),
                node.kind,
                node.device,
                access.owner,
                access.group,
                access.mode
            ),
            Self::MakeLink(link) => {
                write!(f, "make link {} to {}", text(link.path), text(link.target))
            }
            Self::Run(run) => {
                f.write_str("run")?;
                run.argv().try_for_each(|argument| write!(f, " {}", text(argument)))?;
                run.mdev.map_or(Ok(()), |mdev| write!(f, " with {}", text(mdev)))
            }
            Self::RemoveLink(link) => {
                write!(f, "remove link {} to {}", text(link.path), text(link.target))
            }
            Self::RemoveNode(node) => {
                write!(f, "remove node {}, {} {}", text(node.path), node.kind, node.device)
            }
            Self::LoadFirmware(name) => write!(f, "load firmware {}", text(name)),
            Self::Refuse(refuse) => {
                write!(f, "refuse name \"{}\": {}", text(refuse.name), refuse.why)
            }
        }
    }
}

/// A plan being made; keeps its memory for the next one.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    records: Vec<Record>,
    /// Strings, each with a NUL at its end.
    text: Vec<u8>,
}

/// A string of a draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Text {
    start: usize,
    /// Of its NUL.
    end: usize,
}

#[derive(Debug)]
pub(crate) enum Record {
    MakeNode { path: Text, kind: Kind, device: Device, access: Access },
    MakeLink { path: Text, target: Text },
    Run { interpreter: Interpreter, command: Text, mdev: Option<Text> },
    RemoveLink { path: Text, target: Text },
    RemoveNode { path: Text, kind: Kind, device: Device },
    LoadFirmware { name: Text },
    Refuse { name: Text, why: Why },
}

/// What runs a rule's command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpreter {
    /// `/bin/sh -c`
    Shell,
    /// `execlineb -Pc`
    Execlineb,
}

impl Draft {
    pub(crate) fn clear(&mut self) {
        self.records.clear();
        self.text.clear();
    }

    pub(crate) fn push(&mut self, record: Record) {
        self.records.push(record);
    }

    /// Who may do what with a node, by what is planned for it so far.
    pub(crate) fn access_given(&self, node: Text) -> Option<Access> {
        self.records.iter().rev().find_map(|record| match record {
            Record::MakeNode { path, access, .. } if self.bytes(*path) == self.bytes(node) => {
                Some(*access)
            }
            _ => None,
        })
    }

    /// Keeps what `write` appends as a string.
    pub(crate) fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Text {
        let start = self.text.len();
        write(&mut self.text);
        let end = self.text.len();
        self.text.push(0);
        Text { start, end }
    }

    pub(crate) fn string(&mut self, bytes: &[u8]) -> Text {
        self.write(|text| text.extend_from_slice(bytes))
    }

    pub(crate) fn bytes(&self, text: Text) -> &[u8] {
        &self.text[text.start..text.end]
    }

    /// The end of a string, as a string of its own.
    pub(crate) fn from(&self, text: Text, offset: usize) -> Text {
        Text { start: (text.start + offset).min(text.end), end: text.end }
    }

    /// What a link at `path` has to hold to lead to `node`.
    pub(crate) fn link_target(&mut self, path: Text, node: Text) -> Text {
        let parts = self.bytes(path).split(|&b| b == b'/').filter(|part| !part.is_empty());
        let up = parts.count().saturating_sub(1);
        self.write(|text| {
            (0..up).for_each(|_| text.extend_from_slice(b"../"));
            text.extend_from_within(node.start..node.end);
        })
    }

    fn c_str(&self, text: Text) -> &CStr {
        CStr::from_bytes_until_nul(&self.text[text.start..=text.end]).unwrap_or_default()
    }

    fn step<'e>(&'e self, record: &Record, context: &Context<'e>) -> Step<'e> {
        let c_str = |text: &Text| self.c_str(*text);
        let link = |path, target| Link { path: c_str(path), target: c_str(target) };
        match record {
            Record::MakeNode { path, kind, device, access } => Step::MakeNode(MakeNode {
                node: Node { path: c_str(path), kind: *kind, device: *device },
                access: *access,
            }),
            Record::MakeLink { path, target } => Step::MakeLink(link(path, target)),
            Record::Run { interpreter, command, mdev } => Step::Run(Run {
                program: match interpreter {
                    Interpreter::Shell => context.shell,
                    Interpreter::Execlineb => context.execlineb,
                },
                argument: Some(c_str(command)),
                base: context.environment,
                event: context.event,
                mdev: mdev.as_ref().map(c_str),
            }),
            Record::RemoveLink { path, target } => Step::RemoveLink(link(path, target)),
            Record::RemoveNode { path, kind, device } => {
                Step::RemoveNode(Node { path: c_str(path), kind: *kind, device: *device })
            }
            Record::LoadFirmware { name } => Step::LoadFirmware(c_str(name)),
            Record::Refuse { name, why } => Step::Refuse(Refuse { name: c_str(name), why: *why }),
        }
    }
}
