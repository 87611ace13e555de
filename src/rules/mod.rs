//! The engine that acts by rules: mdev.conf.
//!
//! Pure, but for what it asks [`Sysfs`] where an event does not say it all. An
//! [`Engine`] and a uevent make a plan. It owns the rules, what finds the
//! matching ones, and the memory for one plan at a time.
#![forbid(unsafe_code)]

pub mod ere;
pub mod matcher;
pub mod parse;

use std::ffi::{CStr, CString};
use std::fmt;
use std::rc::Rc;

use crate::account::{Accounts, number};
use crate::environment::Base;
use crate::plan::{Context, Device, Draft, Kind, Plan, Program, Record, Text, Why};
use crate::uevent::{Field, Uevent, device_name};
use matcher::Matcher;
use parse::{Condition, Part, Place, Rule, Source, When};

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
            matcher.variable(field.key(), || field.value().to_bytes());
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

    /// Which rules match `event`, and why the others do not, in their order;
    /// the built-in default comes last.
    pub fn explain(&mut self, event: &Uevent<'_>, sysfs: &mut impl Sysfs) -> Vec<Verdict<'_>> {
        let acts = self.facts.learn(event, sysfs, |_| {});
        let (facts, scratch) = (&self.facts, &mut self.scratch);
        let mut ended_by = None;
        let verdicts = self.rules.iter().map(|rule| {
            let reason = match ended_by {
                _ if !acts => Reason::NoRules,
                Some(ending) => Reason::Ended(ending),
                None => facts.reason(rule, event, scratch),
            };
            if reason.is_match() && facts.flow(rule, event, scratch) == Flow::End {
                ended_by = Some(rule);
            }
            Verdict { rule, reason }
        });
        verdicts.collect()
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
    let files = of_files.chunk_by(|one, next| one.origin.file == next.origin.file);
    let text_of = |rules: &[Rule]| {
        let (mut text, mut next) = (Vec::new(), 1);
        for Rule { origin, .. } in rules {
            text.resize(text.len() + origin.line - next, b'\n');
            text.extend_from_slice(&origin.text);
            text.push(b'\n');
            next = origin.line + 1;
        }
        text
    };
    files.map(|rules| (rules[0].origin.file.to_string(), text_of(rules))).collect()
}

/// What became of a rule.
#[derive(Debug, Clone, Copy)]
pub struct Verdict<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// Whether it matched, and if not, why.
    pub reason: Reason<'a>,
}

/// Why a rule matched or did not.
#[derive(Debug, Clone, Copy)]
pub enum Reason<'a> {
    /// It matched.
    Matched,
    /// The event has no such variable.
    NoVariable(&'a Condition),
    /// The variable does not match.
    VariableDiffers(&'a Condition),
    /// The name of the device does not match.
    NameDiffers,
    /// The device has other numbers.
    NumbersDiffer,
    /// The device has no numbers, or the event is neither `add` nor `remove`.
    NoNumbers,
    /// This earlier rule was the last to be tried.
    Ended(&'a Rule),
    /// For such an event no rule is tried: it has no ACTION or no DEVPATH, or
    /// it has FIRMWARE and is no `add`.
    NoRules,
}

impl Reason<'_> {
    /// Whether the rule matched.
    pub fn is_match(&self) -> bool {
        matches!(self, Self::Matched)
    }
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Matched => f.write_str("matches"),
            Self::NoVariable(condition) => {
                write!(f, "the event has no {}", condition.variable.escape_ascii())
            }
            Self::VariableDiffers(condition) => write!(
                f,
                "{} does not match {}",
                condition.variable.escape_ascii(),
                condition.text.escape_ascii()
            ),
            Self::NameDiffers => f.write_str("the device has another name"),
            Self::NumbersDiffer => f.write_str("the device has other numbers"),
            Self::NoNumbers => {
                f.write_str("there are no device numbers, or it is no add or remove")
            }
            Self::Ended(rule) => write!(f, "not tried: {} ends it", rule.origin),
            Self::NoRules => f.write_str("not tried: no rule is, for such an event"),
        }
    }
}

/// Whether the rules after one that matched are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    GoOn,
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Action {
    Add,
    Remove,
    #[default]
    Other,
}

/// What an event says that rules and plans are about.
#[derive(Debug)]
struct Facts {
    action: Action,
    kind: Kind,
    /// Of `add` and `remove` only: rules for numbers match no other.
    device: Option<Device>,
    name: Vec<u8>,
    wants_firmware: bool,
    /// A file of sysfs.
    file: Vec<u8>,
}

impl Default for Facts {
    fn default() -> Self {
        let (action, device, name, wants_firmware, file) = Default::default();
        Self { action, kind: Kind::Character, device, name, wants_firmware, file }
    }
}

impl Facts {
    /// Reads the event; each of its fields is also shown to `see`. `false` if
    /// there is nothing to do for it.
    fn learn<'e>(
        &mut self,
        event: &Uevent<'e>,
        sysfs: &mut impl Sysfs,
        mut see: impl FnMut(Field<'e>),
    ) -> bool {
        // Of equal keys the first counts.
        let [mut action, mut devpath, mut subsystem, mut name, mut firmware] = [None; 5];
        let [mut major, mut minor] = [None; 2];
        for field in event.fields() {
            let slot = match field.key() {
                b"ACTION" => Some(&mut action),
                b"DEVPATH" => Some(&mut devpath),
                b"SUBSYSTEM" => Some(&mut subsystem),
                b"DEVNAME" => Some(&mut name),
                b"FIRMWARE" => Some(&mut firmware),
                b"MAJOR" => Some(&mut major),
                b"MINOR" => Some(&mut minor),
                _ => None,
            };
            if let Some(slot) = slot {
                slot.get_or_insert(field.value());
            }
            see(field);
        }
        let (Some(action), Some(devpath)) = (action, devpath) else { return false };
        self.action = match action.to_bytes() {
            b"add" => Action::Add,
            b"remove" => Action::Remove,
            _ => Action::Other,
        };
        self.wants_firmware = firmware.is_some();
        if self.action != Action::Add && self.wants_firmware {
            return false;
        }
        self.device = match self.action {
            Action::Other => None,
            Action::Remove => device(major, minor),
            Action::Add => device(major, minor).or_else(|| self.look_up_device(devpath, sysfs)),
        };
        // As its peers have it: any subsystem that begins so is one of blocks.
        let is_block = self.device.is_some()
            && (subsystem.is_some_and(|s| s.to_bytes().starts_with(b"block"))
                || devpath.to_bytes().windows(7).any(|part| part == b"/block/"));
        self.kind = if is_block { Kind::Block } else { Kind::Character };
        self.name.clear();
        match name {
            Some(name) => self.name.extend_from_slice(name.to_bytes()),
            None => self.look_up_name(devpath, sysfs),
        }
        true
    }

    fn look_up_device(&mut self, devpath: &CStr, sysfs: &mut impl Sysfs) -> Option<Device> {
        self.file.clear();
        sysfs.read(devpath, "dev", &mut self.file);
        let line = self.file.strip_suffix(b"\n")?;
        let colon = line.iter().position(|&b| b == b':')?;
        numbers(&line[..colon], &line[colon + 1..])
    }

    fn look_up_name(&mut self, devpath: &CStr, sysfs: &mut impl Sysfs) {
        self.file.clear();
        sysfs.read(devpath, "uevent", &mut self.file);
        let name = device_name(&self.file);
        let last = || devpath.to_bytes().split(|&b| b == b'/').rfind(|part| !part.is_empty());
        self.name.extend_from_slice(name.or_else(last).unwrap_or_default());
    }

    /// Whether a rule matches, found without the automata.
    fn reason<'a>(
        &self,
        rule: &'a Rule,
        event: &Uevent<'_>,
        scratch: &mut ere::Scratch,
    ) -> Reason<'a> {
        for condition in rule.all_conditions() {
            match event.first(&condition.variable) {
                None => return Reason::NoVariable(condition),
                Some(value) => {
                    if condition.ere.captures_within(value.to_bytes(), scratch).is_none() {
                        return Reason::VariableDiffers(condition);
                    }
                }
            }
        }
        match (&rule.device, self.device) {
            (parse::Device::Name(ere), _) if ere.captures_whole(&self.name, scratch).is_none() => {
                Reason::NameDiffers
            }
            (parse::Device::Numbers(_), None) => Reason::NoNumbers,
            (parse::Device::Numbers(numbers), Some(device))
                if numbers.major != device.major || !numbers.minor.contains(&device.minor) =>
            {
                Reason::NumbersDiffer
            }
            _ => Reason::Matched,
        }
    }

    fn flow(&self, rule: &Rule, event: &Uevent<'_>, scratch: &mut ere::Scratch) -> Flow {
        let path = self.path(rule, event, scratch, &mut Vec::new());
        if rule.goes_on && path.is_ok() { Flow::GoOn } else { Flow::End }
    }

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
            parse::Device::Name(ere) => (&self.name[..], ere.captures_whole(&self.name, scratch)),
            parse::Device::Variable(condition) => {
                let value = event.first(&condition.variable).unwrap_or_default().to_bytes();
                (value, condition.ere.captures_within(value, scratch))
            }
            parse::Device::Numbers(_) => (&[][..], None),
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

fn device(major: Option<&CStr>, minor: Option<&CStr>) -> Option<Device> {
    numbers(major?.to_bytes(), minor?.to_bytes())
}

/// Linux has 12 bits for the major number and 20 for the minor.
fn numbers(major: &[u8], minor: &[u8]) -> Option<Device> {
    let major = number(major).filter(|&major| major < 1 << 12)?;
    let minor = number(minor).filter(|&minor| minor < 1 << 20)?;
    Some(Device { major, minor })
}

/// Whether a name stays below the directory that it is looked up in, if no
/// link leads out of it.
fn is_safe(name: &[u8]) -> bool {
    !matches!((name.first(), name.last()), (None, _) | (Some(b'/'), _) | (_, Some(b'/')))
        && name.split(|&b| b == b'/').all(|part| part != b"." && part != b"..")
}

#[cfg(test)]
mod tests;
