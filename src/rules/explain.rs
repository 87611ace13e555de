//! Which rules match an event, and why the others do not.

use std::fmt;

use super::facts::Facts;
use super::rule::{self, Condition, Rule};
use super::{Engine, Flow, Sysfs, ere};
use crate::uevent::Uevent;

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

impl Engine {
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
}

impl Facts {
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
            (rule::Device::Name(ere), _) if ere.captures_whole(&self.name, scratch).is_none() => {
                Reason::NameDiffers
            }
            (rule::Device::Numbers(_), None) => Reason::NoNumbers,
            (rule::Device::Numbers(numbers), Some(device))
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
}
