//! The engine that acts by rules: mdev.conf.
//!
//! Pure, but for what it asks [`Sysfs`] where an event does not say it all. An
//! [`Engine`] and a uevent make a plan. It owns the rules, what finds the
//! matching ones, and the memory for one plan at a time.
#![forbid(unsafe_code)]

pub mod ere;
pub mod explain;
mod facts;
pub mod matcher;
pub mod parse;
pub mod rule;

use std::ffi::{CStr, CString};
use std::rc::Rc;
use std::sync::Arc;

use crate::account::Accounts;
use crate::environment::Base;
use crate::plan::{Context, Device, Draft, Kind, Plan, Program, Record, Text, Why};
use crate::uevent::Uevent;
use facts::{Action, Facts};
use matcher::Matcher;
use parse::Source;
use rule::{Part, Place, Rule, When};

/// What is done with devices that no rule ends at.
const DEFAULT: Source<'_> = Source { name: "built-in", text: b".* 0:0 660" };

/// Where to look up what an event does not say.
pub trait Sysfs {
    /// Appends the contents of the file `attribute` of a device to `contents`.
    /// Nothing is appended if there is none.
    fn read(&mut self, devpath: &CStr, attribute: &str, contents: &mut Vec<u8>);
}

/// A sysfs with nothing in it.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSysfs;

impl Sysfs for NoSysfs {
    fn read(&mut self, _: &CStr, _: &str, _: &mut Vec<u8>) {}
}

/// What does not come from the rules.
#[derive(Debug)]
pub struct Settings {
    /// `/bin/sh -c`, for the commands after `@ $ *`.
    pub shell: Program,
    /// `execlineb -Pc`, for those after `+ - &`.
    pub execlineb: Program,
    /// The environment that an event's variables come over.
    pub environment: Base,
    /// The device of the root file system; it gets a link `root`.
    pub root_device: Option<Device>,
}

impl Settings {
    /// With the usual interpreters, of which execlineb is the file that was found,
    /// if any.
    pub fn new(environment: Base, execlineb: Option<CString>) -> Self {
        Self {
            shell: Program {
                path: c"/bin/sh".into(),
                argv: vec![c"/bin/sh".into(), c"-c".into()],
                was_found: true,
            },
            execlineb: Program {
                was_found: execlineb.is_some(),
                path: execlineb.unwrap_or_else(|| c"/bin/execlineb".into()),
                argv: vec![c"execlineb".into(), c"-Pc".into()],
            },
            environment,
            root_device: None,
        }
    }
}

/// Makes plans by rules.
#[derive(Debug)]
pub struct Engine {
    /// Those of the files, and the default.
    rules: Rc<[Rule]>,
    matcher: Matcher,
    settings: Settings,
    facts: Facts,
    scratch: ere::Scratch,
    draft: Draft,
}

impl Engine {
    /// Devices that no rule ends at get their nodes, as root's with mode 0660.
    ///
    /// # Errors
    /// The rules may be too large to match them all at once.
    pub fn new(mut rules: Vec<Rule>, settings: Settings) -> Result<Self, parse::Error> {
        rules.extend(parse::parse(&[DEFAULT], &Accounts::default()).unwrap_or_default());
        let matcher = Matcher::new(&rules)?;
        let rules = rules.into();
        let (facts, scratch, draft) = Default::default();
        Ok(Self { rules, matcher, settings, facts, scratch, draft })
    }

    /// What to do for `event`. It is to be done before the next one is planned.
    pub fn plan<'e>(&'e mut self, event: &Uevent<'e>, sysfs: &mut impl Sysfs) -> Plan<'e> {
        self.draft.clear();
        let Self { rules, matcher, settings, facts, scratch, draft } = self;
        matcher.begin();
        let acts = facts.learn(event, sysfs, |field| {
            matcher.variable(field.key(), || field.value_bytes());
        });
        if acts {
            // A driver waits for it, and shall not wait for commands.
            if facts.wants_firmware {
                let name = event.first(b"FIRMWARE").unwrap_or_default();
                let name = draft.string(name.to_bytes());
                draft.push(Record::LoadFirmware { name });
            }
            matcher.name(&facts.name);
            if let Some(device) = facts.device {
                matcher.numbers(device.major, device.minor);
            }
            let mut next = 0;
            while let Some(index) = matcher.next(next) {
                let rule = &rules[index];
                if facts.apply(rule, event, settings, scratch, draft) == Flow::End {
                    break;
                }
                next = index + 1;
            }
        }
        let Settings { shell, execlineb, environment, .. } = settings;
        Plan::drafted(draft, Context { shell, execlineb, environment, event: *event })
    }

    /// The rules; the built-in default comes last.
    pub fn rules(&self) -> &Rc<[Rule]> {
        &self.rules
    }

    /// The memory that matching uses now, in bytes.
    pub fn memory(&self) -> usize {
        self.matcher.memory()
    }
}

/// The rules of an engine, but for the built-in default, as text: the names of the
/// files, and what is to be read from each for the same rules on the same lines.
pub fn texts(rules: &[Rule]) -> Vec<(String, Vec<u8>)> {
    let of_files = rules.split_last().map_or(&[][..], |(_, of_files)| of_files);
    // Two files may be shown by one name.
    let files = of_files.chunk_by(|one, next| Arc::ptr_eq(&one.origin.file, &next.origin.file));
    let text_of = |rules: &[Rule]| {
        let (mut text, mut next) = (Vec::new(), 1);
        for Rule { origin, .. } in rules {
            text.resize(text.len() + origin.line - next, b'\n');
            next = origin.line + parse::write_line(&origin.text, &mut text);
        }
        text
    };
    files.map(|rules| (rules[0].origin.file.to_string(), text_of(rules))).collect()
}

/// Whether the rules after one that matched are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    GoOn,
    End,
}

impl Facts {
    /// Appends the name of the node that a rule wants. Where no name can be
    /// made, no other rule is tried either, as mdevd has it.
    fn path(
        &self,
        rule: &Rule,
        event: &Uevent<'_>,
        scratch: &mut ere::Scratch,
        path: &mut Vec<u8>,
    ) -> Result<(), Why> {
        let (Place::Moved(template) | Place::Linked(template)) = &rule.place else {
            path.extend_from_slice(&self.name);
            return Ok(());
        };
        let start = path.len();
        let parts = template.parts.as_ref().ok_or(Why::BadPercent)?;
        let has_groups = parts.iter().any(|part| matches!(part, Part::Group(_)));
        let (subject, captures) = match &rule.device {
            _ if !has_groups => (&[][..], None),
            rule::Device::Name(ere) => (&self.name[..], ere.captures_whole(&self.name, scratch)),
            rule::Device::Variable(condition) => {
                let value = event.first(&condition.variable).unwrap_or_default().to_bytes();
                (value, condition.ere.captures_within(value, scratch))
            }
            rule::Device::Numbers(_) => (&[][..], None),
        };
        for part in parts {
            match part {
                Part::Literal(bytes) => path.extend_from_slice(bytes),
                Part::Group(index) => {
                    let group = captures.and_then(|captures| captures[*index]);
                    path.extend_from_slice(group.map_or(&[], |(start, end)| &subject[start..end]));
                }
            }
        }
        match path[start..].last() {
            None => return Err(Why::Empty),
            Some(b'/') => path.extend_from_slice(&self.name),
            Some(_) => {}
        }
        Ok(())
    }

    /// Plans what a rule that matched wants.
    fn apply(
        &self,
        rule: &Rule,
        event: &Uevent<'_>,
        settings: &Settings,
        scratch: &mut ere::Scratch,
        draft: &mut Draft,
    ) -> Flow {
        let flow = if rule.goes_on { Flow::GoOn } else { Flow::End };
        let mut made = Ok(());
        let mdev = draft.write(|text| {
            text.extend_from_slice(b"MDEV=");
            made = self.path(rule, event, scratch, text);
        });
        if let Err(why) = made {
            let template = match &rule.place {
                Place::Moved(path) | Place::Linked(path) => &path.text[..],
                Place::Own | Place::Nowhere => &[],
            };
            let name = draft.string(template);
            draft.push(Record::Refuse { name, why });
            return Flow::End;
        }
        let node = draft.from(mdev, b"MDEV=".len());
        let device = self.device.filter(|_| rule.place != Place::Nowhere);
        let command = rule.command.as_ref().filter(|command| match command.when {
            When::Add => self.action == Action::Add,
            When::Remove => self.action == Action::Remove,
            When::Always => true,
        });
        if device.is_none() && command.is_none() {
            return flow;
        }
        // A device without a name gets no node, but the command is run for it.
        let has_name = !draft.bytes(node).is_empty();
        // Nor is the command, which would act on whatever MDEV leads to.
        if has_name && !is_safe(draft.bytes(node)) {
            draft.push(Record::Refuse { name: node, why: Why::Unsafe });
            return flow;
        }
        let device = device.filter(|_| has_name);
        if let (Some(device), Action::Add) = (device, self.action) {
            let (kind, mut access) = (self.kind, rule.access);
            if (access.owner, access.group) == (0, 0) {
                // As mdevd has it, which sets the mode again, but no owner then:
                // what a rule with - gives away, the last one does not take back.
                let earlier = draft.access_given(node);
                (access.owner, access.group) = earlier.map_or((0, 0), |a| (a.owner, a.group));
            }
            draft.push(Record::MakeNode { path: node, kind, device, access });
            self.links(rule, node, device, settings, draft, |path, target| Record::MakeLink {
                path,
                target,
            });
        }
        if let Some(command) = command {
            let interpreter = command.interpreter;
            let mdev = has_name.then_some(mdev);
            let command = draft.string(&command.text);
            draft.push(Record::Run { interpreter, command, mdev });
        }
        if let (Some(device), Action::Remove) = (device, self.action) {
            self.links(rule, node, device, settings, draft, |path, target| Record::RemoveLink {
                path,
                target,
            });
            draft.push(Record::RemoveNode { path: node, kind: self.kind, device });
        }
        flow
    }

    /// Plans for the links to a node: `root`, and the one where the kernel
    /// wants the device.
    fn links(
        &self,
        rule: &Rule,
        node: Text,
        device: Device,
        settings: &Settings,
        draft: &mut Draft,
        record: impl Fn(Text, Text) -> Record,
    ) {
        // A character device may have the same numbers.
        let is_root = self.kind == Kind::Block && settings.root_device == Some(device);
        if is_root && draft.bytes(node) != b"root" {
            let path = draft.string(b"root");
            draft.push(record(path, node));
        }
        if !matches!(rule.place, Place::Linked(_)) || draft.bytes(node) == self.name {
            return;
        }
        let path = draft.string(&self.name);
        if !is_safe(&self.name) {
            let why = if self.name.is_empty() { Why::Empty } else { Why::Unsafe };
            draft.push(Record::Refuse { name: path, why });
            return;
        }
        let target = draft.link_target(path, node);
        draft.push(record(path, target));
    }
}

/// Whether a name stays below the directory that it is looked up in, if no
/// link leads out of it.
fn is_safe(name: &[u8]) -> bool {
    !matches!((name.first(), name.last()), (None, _) | (Some(b'/'), _) | (_, Some(b'/')))
        && name.split(|&b| b == b'/').all(|part| part != b"." && part != b"..")
}

#[cfg(test)]
mod tests;
