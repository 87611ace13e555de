//! One rule: a line → its parts.

use super::doubts::doubts;
use super::error::readable;
use super::field::{Field, is_blank};
use super::mode::{LARGEST_MODE, symbolic_mode};
use crate::account::{self, Accounts, number};
use crate::plan::{Access, Interpreter};
use crate::rules::ere::{self, Ere};
use crate::rules::rule::{
    Command, Condition, Device, Numbers, Origin, Part, Path, Place, Rule, When,
};

/// Reads the rule of a line.
pub(super) struct Reader<'l> {
    line: &'l [u8],
    at: usize,
    accounts: &'l Accounts,
    /// The byte at fault, and what was expected there.
    pub(super) complaints: Vec<(usize, String)>,
    /// The byte where something begins that comes to nothing, and why.
    pub(super) doubts: Vec<(usize, String)>,
}

impl<'l> Reader<'l> {
    pub(super) fn new(line: &'l [u8], accounts: &'l Accounts) -> Self {
        Self { line, at: 0, accounts, complaints: Vec::new(), doubts: Vec::new() }
    }

    fn complain(&mut self, at: usize, message: impl Into<String>) {
        self.complaints.push((at, message.into()));
    }

    fn peek(&self) -> Option<u8> {
        self.line.get(self.at).copied()
    }

    fn skip_blanks(&mut self) {
        while self.peek().is_some_and(is_blank) {
            self.at += 1;
        }
    }

    /// What is up to the next blank.
    fn field(&mut self) -> Option<Field<'l>> {
        self.skip_blanks();
        let at = self.at;
        while self.peek().is_some_and(|b| !is_blank(b)) {
            self.at += 1;
        }
        (self.at > at).then(|| Field { at, text: &self.line[at..self.at] })
    }

    /// `[-][VARIABLE=regex;...]DEVICE USER:GROUP MODE [PLACE] [COMMAND]`
    pub(super) fn rule(&mut self, origin: impl FnOnce() -> Origin) -> Option<Rule> {
        if let Some(nul) = self.line.iter().position(|&b| b == 0) {
            self.complain(nul, "expected text, not a NUL byte");
            return None;
        }
        let mut what = self.field()?;
        let goes_on = what.text[0] == b'-';
        if goes_on {
            what = what.skip(1);
        }
        let conditions = self.conditions(&mut what);
        let device = self.device(what, conditions.as_ref().is_none_or(Vec::is_empty));
        let Some(owner) = self.field() else {
            self.complain(self.line.len(), "expected user:group and a mode after the device");
            return None;
        };
        let owner = self.owner(owner);
        let Some(mode) = self.field() else {
            self.complain(self.line.len(), "expected a mode after the owner");
            return None;
        };
        let mode = self.mode(mode);
        self.skip_blanks();
        let place_at = self.at;
        let place = self.place();
        self.skip_blanks();
        let command_at = self.at;
        let command = self.command(place == Some(Place::Own));
        let ((owner, group), mode) = (owner?, mode?);
        let rule = Rule {
            origin: origin(),
            goes_on,
            conditions: conditions?,
            device: device?,
            access: Access { owner, group, mode },
            place: place?,
            command: command?,
        };
        self.doubts = doubts(&rule, what, place_at, command_at);
        Some(rule)
    }

    /// Takes all `VARIABLE=regex;` from the front of a field.
    fn conditions(&mut self, field: &mut Field<'l>) -> Option<Vec<Condition>> {
        let mut conditions = Some(Vec::new());
        while !matches!(field.text.first(), Some(b'$' | b'@')) {
            let Some(equals) = field.find(b'=') else { break };
            let (name, value) = field.split_at(equals);
            let value = value.skip(1);
            let Some(semicolon) = value.find(b';') else { break };
            let (text, rest) = value.split_at(semicolon);
            let condition = self.condition(name, text);
            conditions = conditions.zip(condition).map(|(mut conditions, condition)| {
                conditions.push(condition);
                conditions
            });
            *field = rest.skip(1);
        }
        conditions
    }

    fn condition(&mut self, name: Field<'l>, text: Field<'l>) -> Option<Condition> {
        if name.text.is_empty() {
            self.complain(name.at, "expected the name of a variable before =");
        }
        let ere = self.ere(text)?;
        let (variable, text) = (name.text.into(), text.text.into());
        (!name.text.is_empty()).then_some(Condition { variable, text, ere })
    }

    fn ere(&mut self, field: Field<'l>) -> Option<Ere> {
        match Ere::parse(field.text) {
            Ok(ere) => Some(ere),
            Err(ere::Error { at, problem }) => {
                self.complain(field.at + at, problem.to_string());
                None
            }
        }
    }

    fn device(&mut self, field: Field<'l>, alone: bool) -> Option<Device> {
        match field.text.first() {
            Some(b'$') => {
                let field = field.skip(1);
                let Some(equals) = field.find(b'=') else {
                    self.complain(field.end(), "expected = and a regular expression after $name");
                    return None;
                };
                let (name, text) = field.split_at(equals);
                let text = text.skip(1);
                if text.text.is_empty() {
                    self.complain(text.at, "expected a regular expression after =");
                    return None;
                }
                self.condition(name, text).map(Device::Variable)
            }
            Some(b'@') => self.numbers(field.skip(1)).map(Device::Numbers),
            // Behind conditions busybox takes it: then it is no device's name.
            None if alone => {
                self.complain(field.at, "expected a regular expression for the device's name");
                None
            }
            Some(b'=') if alone => {
                self.complain(field.at, "expected the name of a variable before =");
                None
            }
            None | Some(_) => self.ere(field).map(Device::Name),
        }
    }

    /// `major,minor` or `major,minor-minor`
    fn numbers(&mut self, field: Field<'l>) -> Option<Numbers> {
        let Some(comma) = field.find(b',') else {
            self.complain(field.end(), "expected @major,minor or @major,minor-minor");
            return None;
        };
        let (major, minor) = field.split_at(comma);
        let minor = minor.skip(1);
        let (low, high) = match minor.find(b'-') {
            Some(dash) => {
                let (low, high) = minor.split_at(dash);
                (low, high.skip(1))
            }
            None => (minor, minor),
        };
        let mut parse = |what: &str, field: Field<'l>| {
            let value = number(field.text);
            if value.is_none() {
                let digits = field.text.iter().take_while(|b| b.is_ascii_digit()).count();
                let at = field.at + if digits < field.text.len() { digits } else { 0 };
                self.complain(at, format!("expected a {what} number, up to 4294967295"));
            }
            value
        };
        let major = parse("major", major);
        let low_value = parse("minor", low);
        let high_value = if low.at == high.at { low_value } else { parse("minor", high) };
        Some(Numbers { major: major?, minor: low_value?..=high_value? })
    }

    /// `user:group`, or as busybox takes it, `user` with its primary group.
    fn owner(&mut self, field: Field<'l>) -> Option<(u32, u32)> {
        let (user, group) = match field.find(b':') {
            Some(colon) => {
                let (user, group) = field.split_at(colon);
                (user, Some(group.skip(1)))
            }
            None => (field, None),
        };
        let accounts = self.accounts;
        let owner = self.id("user", user, |name| accounts.user(name));
        let group = match group {
            Some(group) => self.id("group", group, |name| accounts.group(name)),
            None => owner.map(|uid| {
                let by_name = accounts.primary_group_of(user.text);
                by_name.or_else(|| accounts.primary_group(uid)).unwrap_or(uid)
            }),
        };
        owner.zip(group)
    }

    fn id(
        &mut self,
        what: &str,
        field: Field<'l>,
        by_name: impl Fn(&[u8]) -> Option<u32>,
    ) -> Option<u32> {
        let id = by_name(field.text).or(account::id(field.text));
        if id.is_none() {
            let message = if field.text.is_empty() {
                format!("expected the name or number of a {what}")
            } else {
                let name = readable(field.text);
                format!("expected a {what} of this machine, or a number: there is no \"{name}\"")
            };
            self.complain(field.at, message);
        }
        id
    }

    /// Octal, or as busybox takes it, symbolic.
    fn mode(&mut self, field: Field<'l>) -> Option<u32> {
        if !field.text[0].is_ascii_digit() {
            return match symbolic_mode(field.text) {
                Ok(mode) => Some(mode),
                Err(at) => {
                    self.complain(
                        field.at + at,
                        "expected an octal mode such as 660, or a symbolic one such as u=rw,g=r",
                    );
                    None
                }
            };
        }
        if let Some(at) = field.text.iter().position(|b| !matches!(b, b'0'..=b'7')) {
            self.complain(field.at + at, "expected an octal digit, or a blank after the mode");
            return None;
        }
        let mode = field.text.iter().try_fold(0u32, |mode, digit| {
            Some(mode * 8 + u32::from(digit - b'0')).filter(|&mode| mode <= LARGEST_MODE)
        });
        if mode.is_none() {
            self.complain(field.at, "expected a mode of at most 7777");
        }
        mode
    }

    /// `=path`, `>path`, `!`, or nothing.
    fn place(&mut self) -> Option<Place> {
        self.skip_blanks();
        let place: fn(Path) -> Place = match self.peek() {
            Some(b'=') => Place::Moved,
            Some(b'>') => Place::Linked,
            Some(b'!') => {
                self.at += 1;
                // What follows at once is a command, a comment, or as busybox
                // has it, nothing.
                let ends = |b| is_blank(b) || b == b'#' || interpreter(b).is_some();
                if self.peek().is_some_and(|b| !ends(b)) {
                    self.field();
                }
                return Some(Place::Nowhere);
            }
            _ => return Some(Place::Own),
        };
        self.at += 1;
        let at = self.at;
        while self.peek().is_some_and(|b| !is_blank(b) && b != b'#') {
            self.at += 1;
        }
        let text = &self.line[at..self.at];
        if text.is_empty() {
            self.complain(at, "expected a path in /dev right here");
            return None;
        }
        Some(place(Path { text: text.into(), parts: parts(text) }))
    }

    /// A command, a comment, or nothing.
    fn command(&mut self, may_be_place: bool) -> Option<Option<Command>> {
        self.skip_blanks();
        match self.peek() {
            None | Some(b'#') => Some(None),
            Some(byte) => match interpreter(byte) {
                Some((when, interpreter)) => {
                    let text = self.line[self.at + 1..].into();
                    Some(Some(Command { when, interpreter, text }))
                }
                None => {
                    let place = if may_be_place { "=path, >path, ! or " } else { "" };
                    self.complain(
                        self.at,
                        format!("expected {place}a command after one of @ $ * + - &"),
                    );
                    None
                }
            },
        }
    }
}

fn interpreter(byte: u8) -> Option<(When, Interpreter)> {
    Some(match byte {
        b'@' => (When::Add, Interpreter::Shell),
        b'$' => (When::Remove, Interpreter::Shell),
        b'*' => (When::Always, Interpreter::Shell),
        b'+' => (When::Add, Interpreter::Execlineb),
        b'-' => (When::Remove, Interpreter::Execlineb),
        b'&' => (When::Always, Interpreter::Execlineb),
        _ => return None,
    })
}

fn parts(text: &[u8]) -> Option<Box<[Part]>> {
    let (mut parts, mut literal) = (Vec::new(), Vec::new());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        match (byte, bytes.as_slice().first()) {
            (b'%', Some(digit @ b'0'..=b'9')) => {
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal).into()));
                }
                parts.push(Part::Group(usize::from(digit - b'0')));
                bytes.next();
            }
            (b'%', Some(b'%')) => {
                literal.push(b'%');
                bytes.next();
            }
            (b'%', _) => return None,
            (byte, _) => literal.push(byte),
        }
    }
    if !literal.is_empty() {
        parts.push(Part::Literal(literal.into()));
    }
    Some(parts.into())
}
