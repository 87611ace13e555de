//! The line protocol of the control socket.
//!
//! Pure. A request is a line: a command and its arguments, with blanks between
//! them, `\xNN` in them for bytes that could not stand there. A bare line is
//! for people: its reply is text, or `error: ` and a line, and then the daemon
//! closes the connection. A line that begins with `plugd/1` is for programs:
//! its reply begins with a line `plugd/1 STATUS LENGTH`, LENGTH bytes follow,
//! and the next request may. With `--json` both get an object. What the words of a
//! request mean is in `command`.
#![forbid(unsafe_code)]

mod command;

use crate::status::json;
use crate::units;

pub use command::{Command, Format, PATIENCE};

/// Begins a program's requests and their replies. It is the version: a
/// different one means that replies are made otherwise, or mean something else.
pub const PREFIX: &str = "plugd/1";

/// The longest request, in bytes, its newline included.
pub const REQUEST_MAX: usize = 4096;

/// What a client hears that is sent away unheard.
pub const TOO_MANY: &[u8] = b"error: no: too many clients\n";

/// Whom a reply is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// It wants to know where the reply ends, and may say more; else it is a person, or a
    /// script, who reads it as it is.
    pub is_program: bool,
    /// It wants a JSON object.
    pub wants_json: bool,
}

impl Reader {
    /// Who reads text as it is.
    pub const PERSON: Self = Self { is_program: false, wants_json: false };
}

/// Whether a JSON object is wanted. The word that says so is taken out, but for `status`,
/// whose object tells more.
pub fn take_json(words: &mut Vec<Vec<u8>>) -> bool {
    let has_it = words.iter().any(|word| word == b"--json");
    if words.first().is_some_and(|name| name != b"status") {
        words.retain(|word| word != b"--json");
    }
    has_it
}

/// Reads a request: a line without its newline.
pub fn parse(line: &[u8]) -> (Reader, Result<Command, String>) {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let words: Vec<&[u8]> =
        line.split(|b| b" \t".contains(b)).filter(|word| !word.is_empty()).collect();
    let version = words.first().filter(|word| word.starts_with(b"plugd/"));
    let is_program = version.is_some();
    let words = &words[usize::from(is_program)..];
    // Whoever asks for JSON gets it also where the rest cannot be read.
    let mut reader = Reader { is_program, wants_json: words.contains(&&b"--json"[..]) };
    if version.is_some_and(|version| *version != PREFIX.as_bytes()) {
        return (reader, Err(format!("the version of this protocol is {PREFIX}")));
    }
    let words: Option<Vec<Vec<u8>>> = words.iter().map(|word| unescape(word)).collect();
    let command = match words {
        Some(mut words) => {
            reader.wants_json = take_json(&mut words);
            Command::parse(&words)
        }
        None => Err("after a \\ must follow x and two hexadecimal digits".into()),
    };
    (reader, command)
}

fn unescape(word: &[u8]) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, after @ ..] = rest {
        rest = match (first, after) {
            (b'\\', [b'x', high, low, after @ ..]) => {
                plain.push(digit(*high)? << 4 | digit(*low)?);
                after
            }
            (b'\\', _) => return None,
            (other, after) => {
                plain.push(*other);
                after
            }
        };
    }
    Some(plain)
}

/// Writes a program's request with these words, its newline included.
pub fn request<W: AsRef<[u8]>>(words: &[W]) -> Vec<u8> {
    let mut line = PREFIX.as_bytes().to_vec();
    for word in words {
        line.push(b' ');
        for &byte in word.as_ref() {
            match byte {
                b'!'..=b'[' | b']'..=b'~' => line.push(byte),
                _ => line.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
            }
        }
    }
    line.push(b'\n');
    line
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Ok,
    /// It is not, or not in time.
    No,
    /// It makes no sense.
    Usage,
    /// Whoever asked may not.
    Denied,
}

impl Outcome {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Ok, "ok"), (Self::No, "no"), (Self::Usage, "usage"), (Self::Denied, "denied")];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(outcome, _)| *outcome == self).map_or("", |(_, name)| name)
    }
}

/// The reply to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// What became of it.
    pub outcome: Outcome,
    /// What there is to say, in lines.
    pub text: String,
}

impl Reply {
    /// Done, and this is to say about it.
    pub fn ok(text: impl Into<String>) -> Self {
        Self { outcome: Outcome::Ok, text: text.into() }
    }

    /// Not done, and this is why.
    pub fn no(text: impl Into<String>) -> Self {
        Self { outcome: Outcome::No, text: text.into() }
    }

    /// The same as a JSON object in a line, which a status may be already.
    #[must_use]
    pub fn into_json(mut self) -> Self {
        if self.outcome != Outcome::Ok || !self.text.starts_with('{') {
            self.text = json::object(|json| {
                json.text("outcome", self.outcome.name());
                json.text("text", self.text.trim_end());
            });
            self.text.push('\n');
        }
        self
    }

    /// As it goes over the wire.
    pub fn to_bytes(&self, reader: Reader) -> Vec<u8> {
        if reader.wants_json {
            let reader = Reader { wants_json: false, ..reader };
            let object = self.clone().into_json();
            return match reader.is_program {
                true => object.to_bytes(reader),
                false => Self::ok(object.text).to_bytes(reader),
            };
        }
        let mut text = self.text.clone();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        let name = self.outcome.name();
        match (reader.is_program, self.outcome) {
            (true, _) => format!("{PREFIX} {name} {}\n{text}", text.len()),
            // The end of the connection alone might be plugd's own.
            (false, Outcome::Ok) if text.is_empty() => "ok\n".into(),
            (false, Outcome::Ok) => text,
            (false, Outcome::No | Outcome::Usage | Outcome::Denied) => {
                format!("error: {name}: {text}")
            }
        }
        .into_bytes()
    }

    /// Reads the first line of a reply to a program, without its newline: the
    /// outcome, and how many bytes of text follow.
    pub fn parse_head(line: &[u8]) -> Option<(Outcome, usize)> {
        let mut words = std::str::from_utf8(line).ok()?.strip_prefix(PREFIX)?.split(' ').skip(1);
        let (name, length) = (words.next()?, words.next()?);
        let (outcome, _) = Outcome::ALL.iter().find(|(_, known)| *known == name)?;
        Some((*outcome, units::digits(length)?)).filter(|_| words.next().is_none())
    }
}

#[cfg(test)]
mod tests;
