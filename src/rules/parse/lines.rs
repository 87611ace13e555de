//! The lines of a file of rules: which of them are rules, and which go on in the next.

use super::field::is_blank;

/// The lines of a file.
pub(super) struct Lines<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
}

/// A line, with those that continue it.
pub(super) struct Line<'a> {
    /// Its number, counted from 1.
    pub(super) first: usize,
    /// All of it, without the backslashes and newlines where it is continued.
    pub(super) text: Vec<u8>,
    /// The lines it is made of, in order, without newlines.
    pieces: Vec<&'a [u8]>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, line: 1 }
    }

    fn next_line(&mut self) -> Option<&'a [u8]> {
        let rest = self.text.get(self.at..).filter(|rest| !rest.is_empty())?;
        let line = rest.split(|&b| b == b'\n').next().unwrap_or(rest);
        self.at += line.len() + 1;
        self.line += 1;
        Some(line)
    }

    /// The next line that is neither empty nor a comment.
    pub(super) fn next_rule(&mut self) -> Option<Line<'a>> {
        loop {
            let first = self.line;
            let mut piece = self.next_line()?;
            // A comment is not continued.
            if matches!(piece.iter().find(|&&b| !is_blank(b)), None | Some(b'#')) {
                continue;
            }
            let mut line = Line { first, text: Vec::new(), pieces: vec![piece] };
            let mut progress = Progress::Between(0);
            while let Some(start) = piece.strip_suffix(b"\\") {
                progress = progress.over(start);
                // Neither is one behind a rule.
                if progress == Progress::InComment {
                    break;
                }
                let Some(next) = self.next_line() else { break };
                line.text.extend_from_slice(start);
                line.pieces.push(next);
                piece = next;
            }
            line.text.extend_from_slice(piece);
            // As busybox has it, which joins lines first.
            if line.text.iter().find(|&&b| !is_blank(b)) != Some(&b'#') {
                return Some(line);
            }
        }
    }
}

impl<'a> Line<'a> {
    /// Line, column and the line itself for a byte of the text, or its end.
    pub(super) fn locate(&self, mut at: usize) -> (usize, usize, &'a [u8]) {
        let last = self.pieces.len() - 1;
        for (index, piece) in self.pieces[..last].iter().enumerate() {
            // Without the backslash.
            if at < piece.len() - 1 {
                return (self.first + index, at + 1, piece);
            }
            at -= piece.len() - 1;
        }
        (self.first + last, at.min(self.pieces[last].len()) + 1, self.pieces[last])
    }
}

/// Writes the text of a rule's line so that it is read again just so, and returns how
/// many lines that takes: no more than it had, but at the end of a file.
pub(in crate::rules) fn write_line(line: &[u8], text: &mut Vec<u8>) -> usize {
    text.extend_from_slice(line);
    text.push(b'\n');
    let continues = |start| Progress::Between(0).over(start) != Progress::InComment;
    if !line.strip_suffix(b"\\").is_some_and(continues) {
        return 1;
    }
    // It was continued, by an empty line.
    text.insert(text.len() - 1, b'\\');
    text.push(b'\n');
    2
}

/// How far a rule has got, as much as it takes to know that a comment began.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// This many of the three fields have ended.
    Between(u8),
    InField(u8),
    InPlace,
    AfterPlace,
    InCommand,
    InComment,
}

impl Progress {
    fn over(self, bytes: &[u8]) -> Self {
        bytes.iter().fold(self, |progress, &byte| match (progress, byte) {
            (Self::InField(count), b) if is_blank(b) => Self::Between(count + 1),
            (Self::InPlace, b) if is_blank(b) => Self::AfterPlace,
            (Self::InField(_) | Self::InCommand | Self::InComment, _) => progress,
            (Self::Between(_) | Self::AfterPlace, b) if is_blank(b) => progress,
            (Self::Between(count @ 0..=2), _) => Self::InField(count),
            (Self::Between(_) | Self::InPlace | Self::AfterPlace, b'#') => Self::InComment,
            (Self::Between(_), b'=' | b'>' | b'!') => Self::InPlace,
            (Self::InPlace, _) => progress,
            (Self::Between(_) | Self::AfterPlace, _) => Self::InCommand,
        })
    }
}
