//! What is right in a rule, and can never do anything or is likely not meant so.

use super::field::Field;
use crate::rules::ere;
use crate::rules::rule::{Command, Device, Numbers, Place, Rule, When};

/// The longest argument of a program, with the NUL at its end (MAX_ARG_STRLEN of
/// Linux, where memory pages have 4 KiB).
pub(super) const ARGUMENT_MAX: usize = 128 << 10;

/// The byte where something begins that comes to nothing, and why, given what the
/// device shall be, and where the place and the command begin.
pub(super) fn doubts(
    rule: &Rule,
    device: Field<'_>,
    place_at: usize,
    command_at: usize,
) -> Vec<(usize, String)> {
    let mut doubts = Vec::new();
    let of_device = match &rule.device {
        Device::Numbers(numbers) if !has_devices(numbers) => "no device has such numbers",
        Device::Name(_) if device.text.is_empty() => "no name is empty: .* matches all of them",
        Device::Name(_) if device.text.contains(&b'=') => {
            "this is taken for a name, as there is no ; behind it; a condition has one"
        }
        _ => "",
    };
    if !of_device.is_empty() {
        doubts.push((device.at, of_device.to_owned()));
    }
    if let Place::Moved(path) | Place::Linked(path) = &rule.place {
        let groups = match &rule.device {
            Device::Name(ere) => Some(ere.groups()),
            Device::Variable(condition) => Some(condition.ere.groups()),
            Device::Numbers(_) => None,
        };
        if let Some((offset, doubt)) = path_doubt(&path.text, groups) {
            doubts.push((place_at + 1 + offset, doubt));
        } else if may_act_on(rule, "add") && !may_act_on(rule, "remove") {
            let text = "the condition on ACTION keeps this rule from remove events: what it \
                        makes stays when the device goes; without, @ runs a command only for add";
            doubts.push((place_at, text.to_owned()));
        }
    }
    let Some(Command { when, text, .. }) = &rule.command else { return doubts };
    if text.len() >= ARGUMENT_MAX {
        let longest = ARGUMENT_MAX - 1;
        let text = format!("too long to be run: no command of more than {longest} bytes is");
        doubts.push((command_at, text));
    }
    if text.ends_with(b"\r") {
        let text = "the carriage return at the end of the line is part of this command";
        doubts.push((command_at, text.to_owned()));
    }
    let action = match when {
        When::Add => "add",
        When::Remove => "remove",
        When::Always => return doubts,
    };
    if !may_act_on(rule, action) {
        let text = "the condition on ACTION leaves no event for it";
        doubts.push((command_at, format!("this command is for {action} only, and {text}")));
    }
    doubts
}

/// Whether Linux has such numbers: of 12 and of 20 bits.
fn has_devices(numbers: &Numbers) -> bool {
    numbers.major < 1 << 12 && *numbers.minor.start() < 1 << 20 && !numbers.minor.is_empty()
}

/// Whether its conditions let an event of this action pass. Of large expressions that is
/// not found out for a warning: it takes its time.
fn may_act_on(rule: &Rule, action: &str) -> bool {
    const SIZE_MAX: usize = 1000;
    let mut of_action = rule.all_conditions().filter(|c| *c.variable == *b"ACTION");
    let mut scratch = ere::Scratch::default();
    of_action.all(|c| {
        c.ere.size() > SIZE_MAX || c.ere.captures_within(action.as_bytes(), &mut scratch).is_some()
    })
}

/// Where in a path something is that no event makes right, and what; `groups` is how
/// many there are in what the device must be, if that is an expression.
fn path_doubt(text: &[u8], groups: Option<usize>) -> Option<(usize, String)> {
    if text.first() == Some(&b'/') {
        return Some((0, "a path that begins with / is refused: it is below /dev".into()));
    }
    let mut start = 0;
    for component in text.split(|&b| b == b'/') {
        if matches!(component, b"." | b"..") {
            return Some((start, "a path that has . or .. in it is refused".into()));
        }
        start += component.len() + 1;
    }
    let mut at = 0;
    while let Some(percent) = text[at..].iter().position(|&b| b == b'%') {
        at += percent;
        let digit = match text.get(at + 1) {
            Some(b'%') => None,
            Some(digit @ b'0'..=b'9') => Some(usize::from(digit - b'0')),
            _ => return Some((at, "a path with no digit or % after a % is refused".into())),
        };
        let index = digit.filter(|&index| groups.is_none_or(|groups| index > groups));
        if let Some(index) = index {
            let text = format!("there is no group {index} in what the device must be: it is empty");
            return Some((at, text));
        }
        at += 2;
    }
    None
}
