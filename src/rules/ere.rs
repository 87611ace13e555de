//! POSIX extended regular expressions, as regcomp(3) takes them in the C locale.
//!
//! Pure. [`Ere`] owns the parsed expression. Whether something matches is found
//! by the regex crate's automata, which `automaton` makes; they are linear in the
//! text and take many expressions in one pass. Where the groups
//! lie is found in `groups`, for a match is the longest of the leftmost, which
//! no translation can express: of alternatives the first that makes it so
//! counts, and of repetitions as many as there can be. That is where both glibc
//! and musl have the groups, wherever they agree.
#![forbid(unsafe_code)]

mod automaton;
mod groups;

use std::fmt;

pub use automaton::{Scope, TooLarge, automaton};
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
        let mut parser = Parser { pattern, at: 0, groups: 0, depth: 0 };
        let node = parser.alternatives()?;
        if node.size() > LARGEST {
            return Err(Error { at: 0, problem: Problem::TooLarge });
        }
        Ok(Self { node, groups: parser.groups })
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

struct Parser<'p> {
    pattern: &'p [u8],
    at: usize,
    groups: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.pattern.get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn error<T>(at: usize, problem: Problem) -> Result<T, Error> {
        Err(Error { at, problem })
    }

    /// Up to the end, or to the `)` of the group it is in.
    fn alternatives(&mut self) -> Result<Node, Error> {
        let mut nodes = vec![self.concat()?];
        while self.eat(b'|') {
            nodes.push(self.concat()?);
        }
        Ok(one_or(nodes, Node::Alternatives))
    }

    fn concat(&mut self) -> Result<Node, Error> {
        let mut nodes = Vec::new();
        while let Some(byte) = self.peek() {
            let start = self.at;
            match byte {
                b'|' => break,
                // With no group open, it is an ordinary byte.
                b')' if self.depth > 0 => break,
                b'*' | b'+' | b'?' | b'{' => {
                    return Self::error(start, Problem::NothingToRepeat(byte));
                }
                _ => {}
            }
            self.at += 1;
            let node = self.atom(byte, start)?;
            nodes.push(self.repetitions(node)?);
        }
        Ok(one_or(nodes, Node::Concat))
    }

    fn atom(&mut self, byte: u8, start: usize) -> Result<Node, Error> {
        Ok(match byte {
            b'(' => {
                if self.depth == DEEPEST {
                    return Self::error(start, Problem::TooDeep);
                }
                self.depth += 1;
                self.groups += 1;
                let index = self.groups;
                let node = Box::new(self.alternatives()?);
                if !self.eat(b')') {
                    return Self::error(start, Problem::OpenGroup);
                }
                self.depth -= 1;
                Node::Group { index, node }
            }
            b'[' => Node::Class(Box::new(self.bracket(start)?)),
            b'.' => Node::Class(Box::new(ByteSet::ALL)),
            b'^' => Node::Look(Look::Start),
            b'$' => Node::Look(Look::End),
            b'\\' => self.escape(start)?,
            _ => Node::Byte(byte),
        })
    }

    fn escape(&mut self, start: usize) -> Result<Node, Error> {
        let Some(byte) = self.peek() else {
            return Self::error(start, Problem::TrailingBackslash);
        };
        self.at += 1;
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let class = |set| Ok(Node::Class(Box::new(set)));
        match byte {
            b'w' => class(ByteSet::from_predicate(is_word)),
            b'W' => class(ByteSet::from_predicate(is_word).complement()),
            b's' => class(ByteSet::from_predicate(is_space)),
            b'S' => class(ByteSet::from_predicate(is_space).complement()),
            b'b' => Ok(Node::Look(Look::WordAscii)),
            b'B' => Ok(Node::Look(Look::WordAsciiNegate)),
            b'<' => Ok(Node::Look(Look::WordStartAscii)),
            b'>' => Ok(Node::Look(Look::WordEndAscii)),
            b'1'..=b'9' => Self::error(start, Problem::BackReference(byte)),
            b'`' => Ok(Node::Look(Look::Start)),
            b'\'' => Ok(Node::Look(Look::End)),
            b'a' | b'd' | b'D' | b'e' | b'f' | b'n' | b'r' | b't' | b'x' => {
                Self::error(start, Problem::AmbiguousEscape(byte))
            }
            _ => Ok(Node::Byte(byte)),
        }
    }

    fn repetitions(&mut self, mut node: Node) -> Result<Node, Error> {
        let mut braces = 0;
        while let Some(byte) = self.peek() {
            let start = self.at;
            let (min, max) = match byte {
                b'*' => (0, None),
                b'+' => (1, None),
                b'?' => (0, Some(1)),
                b'{' => {
                    braces += 1;
                    if braces == DEEPEST {
                        return Self::error(start, Problem::TooDeep);
                    }
                    self.counts(start)?
                }
                _ => break,
            };
            // As glibc has it: `^*` is an error.
            if matches!(node, Node::Look(_)) {
                return Self::error(start, Problem::NothingToRepeat(byte));
            }
            if byte != b'{' {
                self.at += 1;
            }
            node = repeat(node, min, max);
        }
        Ok(node)
    }

    /// `{m}`, `{m,}`, `{m,n}`; and `{,n}`, which glibc takes.
    fn counts(&mut self, start: usize) -> Result<(u32, Option<u32>), Error> {
        self.at += 1;
        let low = self.count()?;
        let (min, max) = match (low, self.eat(b',')) {
            (Some(count), false) => (count, Some(count)),
            (None, false) => return Self::error(start, Problem::BadCount),
            (low, true) => match (low, self.count()?) {
                (None, None) => return Self::error(start, Problem::BadCount),
                (low, high) => (low.unwrap_or(0), high),
            },
        };
        if !self.eat(b'}') {
            return Self::error(start, Problem::BadCount);
        }
        if max.is_some_and(|max| max < min) {
            return Self::error(start, Problem::CountsReversed);
        }
        Ok((min, max))
    }

    fn count(&mut self) -> Result<Option<u32>, Error> {
        let start = self.at;
        let mut count = None;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            let value = count.unwrap_or(0) * 10 + u32::from(digit - b'0');
            if value > LARGEST_COUNT {
                return Self::error(start, Problem::CountTooLarge);
            }
            count = Some(value);
            self.at += 1;
        }
        Ok(count)
    }

    /// After its `[`.
    fn bracket(&mut self, start: usize) -> Result<ByteSet, Error> {
        let mut set = ByteSet::default();
        let negated = self.eat(b'^');
        let first = self.at;
        loop {
            let item = self.at;
            let Some(byte) = self.peek() else {
                return Self::error(start, Problem::OpenBracket);
            };
            if byte == b']' && item > first {
                self.at += 1;
                break;
            }
            let low = self.bracket_item(start)?;
            let is_range = self.peek() == Some(b'-')
                && self.pattern.get(self.at + 1).is_some_and(|&next| next != b']');
            match (low, is_range) {
                (Item::Byte(low), false) => set.insert(low),
                (Item::Class(class), false) => {
                    set.0.iter_mut().zip(class.0).for_each(|(word, more)| *word |= more);
                }
                (low, true) => {
                    self.at += 1;
                    let high = self.bracket_item(start)?;
                    match (low, high) {
                        (Item::Byte(low), Item::Byte(high)) if low <= high => {
                            (low..=high).for_each(|byte| set.insert(byte));
                        }
                        _ => return Self::error(item, Problem::BadRange),
                    }
                    // Neither a-c-e is a range.
                    let another = self.peek() == Some(b'-')
                        && self.pattern.get(self.at + 1).is_some_and(|&next| next != b']');
                    if another {
                        return Self::error(item, Problem::BadRange);
                    }
                }
            }
        }
        Ok(if negated { set.complement() } else { set })
    }

    fn bracket_item(&mut self, start: usize) -> Result<Item, Error> {
        let item = self.at;
        let Some(byte) = self.peek() else {
            return Self::error(start, Problem::OpenBracket);
        };
        self.at += 1;
        let Some(kind @ (b':' | b'.' | b'=')) = self.peek().filter(|_| byte == b'[') else {
            return Ok(Item::Byte(byte));
        };
        let name = &self.pattern[self.at + 1..];
        // The name of `[.].]` or `[...]` is a byte that could also end it.
        let least = usize::from(kind != b':');
        let end = (least..name.len()).find(|&end| name[end..].starts_with(&[kind, b']']));
        let Some(end) = end else { return Self::error(item, Problem::OpenClass(kind)) };
        let name = &name[..end];
        self.at += end + 3;
        match (kind, name) {
            (b':', name) => match class(name) {
                Some(set) => Ok(Item::Class(set)),
                None => Self::error(item, Problem::UnknownClass),
            },
            (_, &[byte]) => Ok(Item::Byte(byte)),
            _ => Self::error(item, Problem::UnknownCollation),
        }
    }
}

enum Item {
    Byte(u8),
    Class(ByteSet),
}

fn one_or(mut nodes: Vec<Node>, several: fn(Vec<Node>) -> Node) -> Node {
    match nodes.len() {
        0 => Node::Empty,
        1 => nodes.remove(0),
        _ => several(nodes),
    }
}

/// Of `x+*` and the like it makes one repetition: chains of them can be long.
fn repeat(node: Node, min: u32, max: Option<u32>) -> Node {
    let simple = |min: u32, max: Option<u32>| min <= 1 && max.is_none_or(|max| max == 1);
    match node {
        Node::Repeat { node, min: inner_min, max: inner_max }
            if simple(min, max) && simple(inner_min, inner_max) =>
        {
            Node::Repeat { node, min: min * inner_min, max: max.and(inner_max) }
        }
        node => Node::Repeat { node: Box::new(node), min, max },
    }
}

/// In the C locale.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

fn class(name: &[u8]) -> Option<ByteSet> {
    let predicate: fn(u8) -> bool = match name {
        b"alnum" => |b| b.is_ascii_alphanumeric(),
        b"alpha" => |b| b.is_ascii_alphabetic(),
        b"blank" => |b| b == b' ' || b == b'\t',
        b"cntrl" => |b| b.is_ascii_control(),
        b"digit" => |b| b.is_ascii_digit(),
        b"graph" => |b| b.is_ascii_graphic(),
        b"lower" => |b| b.is_ascii_lowercase(),
        b"print" => |b| b.is_ascii_graphic() || b == b' ',
        b"punct" => |b| b.is_ascii_punctuation(),
        b"space" => is_space,
        b"upper" => |b| b.is_ascii_uppercase(),
        b"xdigit" => |b| b.is_ascii_hexdigit(),
        _ => return None,
    };
    Some(ByteSet::from_predicate(predicate))
}

#[cfg(test)]
mod tests;
