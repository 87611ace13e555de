//! What is wrong in a file, and how it is told.

use std::fmt;
use std::sync::Arc;

/// How much of a line is shown before and after the byte at fault, in bytes.
const SHOWN: usize = 500;

/// Something that is wrong in a file, or likely not what is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The name of the file.
    pub file: Arc<str>,
    /// The line, counted from 1.
    pub line: usize,
    /// The byte in the line, counted from 1; one more than there are if the end
    /// of the line is meant.
    pub column: usize,
    /// The line itself; of one that is very long, what is around that byte.
    pub text: Box<[u8]>,
    /// What was expected there.
    pub message: String,
    /// Where in the text that byte is.
    caret: usize,
}

impl Error {
    /// `text` is all of the line.
    pub(in crate::rules) fn new(
        (file, line, column): (Arc<str>, usize, usize),
        text: &[u8],
        message: String,
    ) -> Self {
        let at = column - 1;
        let (start, end) = (at.saturating_sub(SHOWN), text.len().min(at + SHOWN));
        let dots = |is_cut: bool| if is_cut { &b"..."[..] } else { b"" };
        let before = dots(start > 0);
        let caret = before.len() + at - start;
        let text = [before, &text[start..end], dots(end < text.len())].concat().into();
        Self { file, line, column, text, message, caret }
    }
}

/// Three lines: `FILE:LINE:COLUMN: expected ...`, the line, and a caret below
/// the byte at fault.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self.text.get(..self.caret).unwrap_or(&self.text);
        let (file, line, column) = (&self.file, self.line, self.column);
        writeln!(f, "{file}:{line}:{column}: {}", self.message)?;
        writeln!(f, "    {}", readable(&self.text))?;
        write!(f, "    {:1$}^", "", readable(before).len())
    }
}

/// A rule is not code: quotes and backslashes stand for themselves, and a tab is
/// as wide as any other blank.
pub(super) fn readable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\t' => text.push(' '),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => text.extend(std::ascii::escape_default(byte).map(char::from)),
        }
    }
    text
}
