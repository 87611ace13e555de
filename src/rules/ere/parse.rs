//! The text of an expression → its parts.
#![forbid(unsafe_code)]

use regex_automata::util::look::Look;

use super::{ByteSet, DEEPEST, Error, LARGEST_COUNT, Node, Problem};

/// Reads an expression; with it comes how many groups it has.
pub(super) fn parse(pattern: &[u8]) -> Result<(Node, usize), Error> {
    let mut parser = Parser { pattern, at: 0, groups: 0, depth: 0 };
    let node = parser.alternatives()?;
    Ok((node, parser.groups))
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
