//! POSIX extended regular expressions, as regcomp(3) takes them in the C locale.
//!
//! Pure. [`Ere`] owns the expression, which `parse` reads. Whether something matches
//! is found by the regex crate's automata, which `automaton` makes; they are linear in
//! the text and take many expressions in one pass. Where the groups
//! lie is found in `groups`, for a match is the longest of the leftmost, which
//! no translation can express: of alternatives the first that makes it so
//! counts, and of repetitions as many as there can be. That is where both glibc
//! and musl have the groups, wherever they agree.
#![forbid(unsafe_code)]

mod automaton;
mod groups;
mod parse;

use std::fmt;

pub(super) use automaton::automaton;
pub use automaton::{Scope, TooLarge};
pub use groups::Scratch;
use regex_automata::util::look::Look;

/// Groups can lie this deep in each other.
const DEEPEST: usize = 100;
/// The largest count in braces: RE_DUP_MAX of glibc.
const LARGEST_COUNT: u32 = 0x7fff;
/// How large an expression can be, with its repetitions written out.
const LARGEST: usize = 10_000;

/// A regular expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ere {
    node: Node,
    groups: usize,
}

/// Where a regular expression is wrong, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The offset of the byte at fault, at most the length of the expression.
    pub at: usize,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a regular expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// There is nothing to repeat before a repetition operator.
    NothingToRepeat(u8),
    /// A parenthesis is not closed.
    OpenGroup,
    /// A bracket is not closed.
    OpenBracket,
    /// `[:`, `[.` or `[=` is not closed.
    OpenClass(u8),
    /// `[:name:]` is not a character class.
    UnknownClass,
    /// `[.name.]` or `[=name=]` is not one byte.
    UnknownCollation,
    /// A range in brackets ends before it begins, or has a class as its end.
    BadRange,
    /// Braces do not hold `m`, `m,` or `m,n`.
    BadCount,
    /// The first number in braces is above the second.
    CountsReversed,
    /// A number in braces is too large.
    CountTooLarge,
    /// It ends in a backslash.
    TrailingBackslash,
    /// A back-reference.
    BackReference(u8),
    /// A backslash before something that the C libraries take differently.
    AmbiguousEscape(u8),
    /// Groups lie too deep in each other.
    TooDeep,
    /// It would be too large with its repetitions written out.
    TooLarge,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = |byte: &u8| char::from(*byte);
        match self {
            Self::NothingToRepeat(b) => {
                write!(
                    f,
                    "expected something to repeat before {0}; \\{0} matches it literally",
                    c(b)
                )
            }
            Self::OpenGroup => f.write_str("expected a ) to close this ("),
            Self::OpenBracket => f.write_str("expected a ] to close this ["),
            Self::OpenClass(b) => write!(f, "expected a {0}] to close this [{0}", c(b)),
            Self::UnknownClass => f.write_str(
                "expected alnum, alpha, blank, cntrl, digit, graph, lower, print, punct, space, \
                 upper or xdigit between [: and :]",
            ),
            Self::UnknownCollation => f.write_str("expected a single character here"),
            Self::BadRange => {
                f.write_str("expected a range that ends at a character not below its first")
            }
            Self::BadCount => f.write_str("expected {m}, {m,} or {m,n}; \\{ matches a { literally"),
            Self::CountsReversed => f.write_str("expected {m,n} with n not below m"),
            Self::CountTooLarge => write!(f, "expected a count of at most {LARGEST_COUNT}"),
            Self::TrailingBackslash => {
                f.write_str("expected a character after the \\ (a blank ends the expression)")
            }
            Self::BackReference(b) => write!(f, "back-references (\\{}) are not supported", c(b)),
            Self::AmbiguousEscape(b) => write!(
                f,
                "\\{} means one thing with glibc and another with musl: write what is meant in \
                 another way",
                c(b)
            ),
            Self::TooDeep => write!(f, "groups lie more than {DEEPEST} deep in each other"),
            Self::TooLarge => f.write_str("the expression is too large, its counts written out"),
        }
    }
}

/// The bytes of the groups 0 to 9; `None` for one that took no part.
pub type Captures = [Option<(usize, usize)>; 10];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Empty,
    Byte(u8),
    Class(Box<ByteSet>),
    Look(Look),
    Concat(Vec<Node>),
    Alternatives(Vec<Node>),
    Repeat { node: Box<Node>, min: u32, max: Option<u32> },
    Group { index: usize, node: Box<Node> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct ByteSet([u64; 4]);

impl ByteSet {
    const ALL: Self = Self([u64::MAX; 4]);

    fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte / 64)] |= 1 << (byte % 64);
    }

    fn contains(&self, byte: u8) -> bool {
        self.0[usize::from(byte / 64)] >> (byte % 64) & 1 == 1
    }

    fn from_predicate(predicate: impl Fn(u8) -> bool) -> Self {
        let mut set = Self::default();
        (0..=u8::MAX).filter(|&byte| predicate(byte)).for_each(|byte| set.insert(byte));
        set
    }

    fn complement(self) -> Self {
        Self(self.0.map(|word| !word))
    }
}

impl Ere {
    /// Reads an expression.
    ///
    /// # Errors
    /// Says where it is wrong, and why.
    pub fn parse(pattern: &[u8]) -> Result<Self, Error> {
        let (node, groups) = parse::parse(pattern)?;
        if node.size() > LARGEST {
            return Err(Error { at: 0, problem: Problem::TooLarge });
        }
        Ok(Self { node, groups })
    }

    /// How many groups it has, the whole not counted.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// How large it is, its counts written out.
    pub fn size(&self) -> usize {
        self.node.size()
    }

    /// Whether it is plain to see that every text is matched, somewhere.
    pub fn matches_anywhere_in_all(&self) -> bool {
        self.node.surely_matches_empty()
    }

    /// Whether it is plain to see that every text is matched as a whole.
    pub fn matches_all(&self) -> bool {
        self.node.surely_matches_all()
    }
}

impl Node {
    /// How many bytes, assertions and repetitions it has, the counts written out.
    fn size(&self) -> usize {
        let sum = |nodes: &[Self]| {
            nodes.iter().fold(0, |sum: usize, node| sum.saturating_add(node.size()))
        };
        match self {
            Self::Empty | Self::Byte(_) | Self::Class(_) | Self::Look(_) => 1,
            Self::Concat(nodes) | Self::Alternatives(nodes) => sum(nodes),
            Self::Repeat { node, min, max } => {
                let times = max.unwrap_or(*min).max(1) as usize;
                node.size().saturating_mul(times).saturating_add(1)
            }
            Self::Group { node, .. } => node.size(),
        }
    }

    /// Whether it can match nothing at all, at some place.
    fn may_match_empty(&self) -> bool {
        match self {
            Self::Empty | Self::Look(_) => true,
            Self::Byte(_) | Self::Class(_) => false,
            Self::Concat(nodes) => nodes.iter().all(Self::may_match_empty),
            Self::Alternatives(nodes) => nodes.iter().any(Self::may_match_empty),
            Self::Repeat { node, min, .. } => *min == 0 || node.may_match_empty(),
            Self::Group { node, .. } => node.may_match_empty(),
        }
    }

    fn surely_matches_empty(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Byte(_) | Self::Class(_) | Self::Look(_) => false,
            Self::Concat(nodes) => nodes.iter().all(Self::surely_matches_empty),
            Self::Alternatives(nodes) => nodes.iter().any(Self::surely_matches_empty),
            Self::Repeat { node, min, .. } => *min == 0 || node.surely_matches_empty(),
            Self::Group { node, .. } => node.surely_matches_empty(),
        }
    }

    /// `.*`
    fn is_anything(&self) -> bool {
        matches!(self, Self::Repeat { node, min: 0, max: None }
            if matches!(&**node, Self::Class(set) if **set == ByteSet::ALL))
    }

    fn surely_matches_all(&self) -> bool {
        match self {
            Self::Repeat { .. } => self.is_anything(),
            Self::Group { node, .. } => node.surely_matches_all(),
            Self::Alternatives(nodes) => nodes.iter().any(Self::surely_matches_all),
            // Around the whole, the anchors say nothing.
            Self::Concat(nodes) => match &nodes[..] {
                [Self::Look(Look::Start), rest @ .., Self::Look(Look::End)]
                | [Self::Look(Look::Start), rest @ ..]
                | [rest @ .., Self::Look(Look::End)] => {
                    matches!(rest, [node] if node.surely_matches_all())
                }
                _ => false,
            },
            Self::Empty | Self::Byte(_) | Self::Class(_) | Self::Look(_) => false,
        }
    }
}

#[cfg(test)]
mod tests;
