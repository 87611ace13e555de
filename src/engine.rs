//! The engines at work: what decides on an event, with the files that it looks
//! at and acts on.
//!
//! Owns the engine and the roots of /dev, /sys and the firmware files.

use std::ffi::CStr;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::rc::Rc;

use crate::devnode::DevRoot;
use crate::error::reason;
use crate::firmware;
use crate::handler::Handler;
use crate::plan::{Plan, Run, Step};
use crate::rules::rule::Rule;
use crate::rules::{self, NoSysfs};
use crate::sysfs::Sysfs;
use crate::uevent::Uevent;

/// What decides on an event.
#[derive(Debug)]
pub enum Engine {
    /// One program for every event.
    Handler(Handler),
    /// The rules of mdev.conf.
    Rules(Box<Ruled>),
}

/// Makes an engine of what the files say now, and tells whether there are any,
/// given whether there were; the text of an error may have many lines.
pub type Reload = dyn Fn(bool) -> Result<(rules::Engine, bool), String>;

/// Rules, and what they act on.
pub struct Ruled {
    /// The rules in force.
    pub rules: rules::Engine,
    /// They come from files; else they are the built-in default.
    pub has_files: bool,
    /// Reads the files anew.
    pub reload: Box<Reload>,
    /// Where to look up what an event does not say.
    pub sysfs: Sysfs,
    /// What acts.
    pub hands: Hands,
}

/// What carries out the steps that touch files.
#[derive(Debug)]
pub enum Hands {
    /// Nothing: the steps are printed.
    DryRun,
    /// These.
    Files {
        /// Where nodes and links go.
        dev: DevRoot,
        /// Where firmware goes.
        sys: Sysfs,
        /// Where it comes from.
        firmware: PathBuf,
    },
}

impl Engine {
    /// What to do for `event`, and what does it, as far as it touches files.
    /// If the event `says_all`, nothing is looked up in sysfs.
    pub fn plan<'e>(
        &'e mut self,
        event: &Uevent<'e>,
        says_all: bool,
    ) -> (Plan<'e>, Option<&'e mut Hands>) {
        match self {
            Self::Handler(handler) => (handler.plan(event), None),
            Self::Rules(ruled) => {
                let Ruled { rules, sysfs, hands, .. } = &mut **ruled;
                let plan = if says_all {
                    rules.plan(event, &mut NoSysfs)
                } else {
                    rules.plan(event, sysfs)
                };
                (plan, Some(hands))
            }
        }
    }

    /// The rules, if it acts by some of files; the built-in default comes last.
    pub fn rules_of_files(&self) -> Option<Rc<[Rule]>> {
        match self {
            Self::Rules(ruled) if ruled.has_files => Some(Rc::clone(ruled.rules.rules())),
            Self::Rules(_) | Self::Handler(_) => None,
        }
    }

    /// Takes what the configuration says now. Returns what became of it.
    ///
    /// # Errors
    /// If something is wrong with it; then nothing has changed. The text may
    /// have many lines.
    pub fn reload(&mut self) -> Result<String, String> {
        match self {
            Self::Handler(_) => Ok("there is nothing to reload for a handler program".into()),
            Self::Rules(ruled) => {
                (ruled.rules, ruled.has_files) = (ruled.reload)(ruled.has_files)?;
                Ok(format!("the rules were read anew: {}", ruled.rules.rules().len()))
            }
        }
    }
}

impl rules::Sysfs for Sysfs {
    fn read(&mut self, devpath: &CStr, attribute: &str, contents: &mut Vec<u8>) {
        // A device may be gone before its event is read.
        let _ = Self::read(self, devpath.to_bytes(), attribute, contents);
    }
}

/// What became of a step.
#[derive(Debug)]
pub enum Outcome<'e> {
    /// It is done.
    Done,
    /// It is a program to be started.
    Start(Run<'e>),
    /// It could not be done for want of descriptors or memory.
    Short(String),
    /// It could not be done.
    Failed(String),
}

impl<'e> Outcome<'e> {
    /// Of a step that can be nothing but a program.
    pub fn of_program(step: Step<'e>) -> Self {
        match step {
            Step::Run(run) => Self::Start(run),
            step => Self::Failed(format!("cannot {step}: there is no /dev to do it in")),
        }
    }
}

impl Hands {
    /// Carries out a step of the plan for `event`.
    pub fn perform<'e>(&mut self, event: &Uevent<'_>, step: Step<'e>) -> Outcome<'e> {
        let (dev, sys, firmware) = match self {
            Self::DryRun => return print(event, &step),
            Self::Files { dev, sys, firmware } => (dev, sys, firmware),
        };
        if !matches!(step, Step::Run(_)) {
            log::debug!("{event}: {step}");
        }
        let result = match step {
            Step::Run(run) => return Outcome::Start(run),
            Step::Refuse(_) => return Outcome::Failed(step.to_string()),
            Step::MakeNode(make) => dev.make_node(&make).map(drop),
            Step::MakeLink(link) => dev.make_link(&link).map(drop),
            Step::RemoveLink(link) => dev.remove_link(&link).map(drop),
            Step::RemoveNode(node) => dev.remove_node(&node).map(drop),
            Step::LoadFirmware(name) => {
                let devpath = event.first(b"DEVPATH").unwrap_or_default().to_bytes();
                return match firmware::load(sys.below(), devpath, firmware, name.to_bytes()) {
                    Ok(_) => Outcome::Done,
                    Err(failed) => Outcome::Failed(failed.to_string()),
                };
            }
        };
        match result {
            Ok(()) => Outcome::Done,
            Err(failed) if failed.is_shortage() => Outcome::Short(failed.to_string()),
            Err(failed) => Outcome::Failed(failed.to_string()),
        }
    }
}

fn print<'e>(event: &Uevent<'_>, step: &Step<'_>) -> Outcome<'e> {
    match io::stdout().write_all(format!("{event}: {step}\n").as_bytes()) {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Failed(format!("cannot print: {}", reason(&error))),
    }
}

impl fmt::Debug for Ruled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rules, has_files, reload: _, sysfs, hands } = self;
        f.debug_struct("Ruled")
            .field("rules", rules)
            .field("has_files", has_files)
            .field("sysfs", sysfs)
            .field("hands", hands)
            .finish_non_exhaustive()
    }
}
