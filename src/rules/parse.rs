//! The language of mdev.conf: text → rules.
//!
//! Pure. It takes what mdevd takes and what busybox mdev takes; where the two
//! contradict each other, mdevd is followed. All that is wrong with a file is
//! told at once, and nothing of a file with an error is used.
#![forbid(unsafe_code)]

mod doubts;
mod error;
mod field;
mod lines;
mod mode;
mod reader;

use std::sync::Arc;

use super::rule::{Origin, Rule};
use crate::account::Accounts;
pub use error::Error;
use lines::Lines;
pub(super) use lines::write_line;
use reader::Reader;

/// So many mistakes are told of a file at most: what has more is no file of rules.
const MISTAKES_MAX: usize = 1000;

/// Most machines have fewer rules; room that is not used takes no memory.
const RULES_EXPECTED: usize = 256;

/// A file of rules.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Its name, for messages.
    pub name: &'a str,
    /// What is in it.
    pub text: &'a [u8],
}

/// Reads files of rules, as if they were one.
///
/// # Errors
/// All that is wrong with them.
pub fn parse(sources: &[Source<'_>], accounts: &Accounts) -> Result<Vec<Rule>, Vec<Error>> {
    parse_and_doubt(sources, accounts, &mut Vec::new())
}

/// The same; what is right, but can never do anything or is likely not meant so, is
/// added to `doubts`.
///
/// # Errors
/// All that is wrong with them; if that is very much, the first of it.
pub fn parse_and_doubt(
    sources: &[Source<'_>],
    accounts: &Accounts,
    doubts: &mut Vec<Error>,
) -> Result<Vec<Rule>, Vec<Error>> {
    let (mut rules, mut errors) = (Vec::with_capacity(RULES_EXPECTED), Vec::new());
    for source in sources {
        let file: Arc<str> = source.name.into();
        let (errors_before, doubts_before) = (errors.len(), doubts.len());
        let mut lines = Lines::new(source.text);
        while let Some(line) = lines.next_rule() {
            let mut reader = Reader::new(&line.text, accounts);
            rules.extend(reader.rule(|| Origin {
                file: file.clone(),
                line: line.first,
                text: line.text[..].into(),
            }));
            let locate = |(at, message)| {
                let (line, column, text) = line.locate(at);
                Error::new((file.clone(), line, column), text, message)
            };
            let tell = |told: &mut Vec<Error>, before, complaints: Vec<(usize, String)>| {
                let room = (MISTAKES_MAX + 1).saturating_sub(told.len() - before);
                told.extend(complaints.into_iter().take(room).map(locate));
                if room > 0 && told.len() - before > MISTAKES_MAX {
                    let last = told.len() - 1;
                    told[last].message = "and what comes is not told".into();
                }
            };
            tell(&mut errors, errors_before, reader.complaints);
            tell(doubts, doubts_before, reader.doubts);
        }
    }
    if errors.is_empty() { Ok(rules) } else { Err(errors) }
}

#[cfg(test)]
mod tests;
