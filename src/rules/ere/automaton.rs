//! One automaton of many expressions.
//!
//! Pure. A [`Maker`] writes the expressions out from their ends to their
//! beginnings, and those that begin in the same way as one: so few of the
//! automaton's states are possible at once, however many expressions there are.
#![forbid(unsafe_code)]

use regex_automata::nfa::thompson::{BuildError, Builder, NFA, Transition};
use regex_automata::util::look::Look;
use regex_automata::util::primitives::StateID;

use super::{ByteSet, Ere, Node};

/// The memory that an automaton may use, in bytes.
const AUTOMATON_MAX: usize = 32 * 1024 * 1024;
/// Most expressions have fewer parts.
const PARTS_EXPECTED: usize = 32;
/// How many bytes at their beginnings expressions can have in common.
const COMMON_MAX: usize = 64;

/// All expressions together are too large, most of all the one of this index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge(pub usize);

/// Which part of a text has to match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of it.
    Whole,
    /// Any part of it.
    Anywhere,
}

/// Makes an automaton that begins at the beginning of a text. It is at a match
/// of an expression wherever what is behind it is enough for that.
///
/// # Errors
/// They may be too large.
pub(in crate::rules) fn automaton(expressions: &[&Ere], scope: Scope) -> Result<NFA, TooLarge> {
    Maker::make(expressions, scope).map_err(|_| {
        let largest = (0..expressions.len()).max_by_key(|&index| expressions[index].node.size());
        TooLarge(largest.unwrap_or_default())
    })
}

/// An expression without what says that anything may be around it.
struct Body<'e> {
    /// What it has one after the other.
    parts: Vec<&'e Node>,
    /// Whether it is at the beginning of a text or nowhere.
    leads: bool,
    /// Whether it is at the end of a text or nowhere.
    ends: bool,
}

impl<'e> Body<'e> {
    fn new(ere: &'e Ere, scope: Scope) -> Self {
        let mut parts = Vec::with_capacity(PARTS_EXPECTED);
        ere.node.parts(&mut parts);
        let mut rest = &parts[..];
        let (mut leads, mut ends) = (scope == Scope::Whole, scope == Scope::Whole);
        while let [Node::Look(Look::Start), after @ ..] = rest {
            (leads, rest) = (true, after);
        }
        while let [first, after @ ..] = rest
            && first.is_anything()
        {
            (leads, rest) = (false, after);
        }
        while let [before @ .., Node::Look(Look::End)] = rest {
            (ends, rest) = (true, before);
        }
        while let [before @ .., last] = rest
            && last.is_anything()
        {
            (ends, rest) = (false, before);
        }
        Self { parts: rest.to_vec(), leads, ends }
    }
}

/// Some parts, and the state after them.
type Way<'a> = (&'a [&'a Node], StateID);

struct Maker(Builder);

impl Maker {
    fn make(expressions: &[&Ere], scope: Scope) -> Result<NFA, BuildError> {
        let mut builder = Builder::new();
        builder.set_utf8(false);
        builder.set_size_limit(Some(AUTOMATON_MAX))?;
        let mut maker = Self(builder);
        let bodies: Vec<Body<'_>> = expressions.iter().map(|ere| Body::new(ere, scope)).collect();
        let (mut leading, mut floating) = (Vec::new(), Vec::new());
        for Body { parts, leads, ends } in &bodies {
            maker.0.start_pattern()?;
            let mut end = maker.0.add_match()?;
            // Nobody asks where one of them begins.
            maker.0.finish_pattern(end)?;
            if *ends {
                end = maker.0.add_look(end, Look::End)?;
            }
            if *leads { &mut leading } else { &mut floating }.push((&parts[..], end));
        }
        let mut start = vec![maker.ways(&mut leading, 0)?];
        if !floating.is_empty() {
            let floating = maker.ways(&mut floating, 0)?;
            let anywhere = maker.0.add_union(vec![floating])?;
            let later = maker.class(&ByteSet::ALL, anywhere)?;
            maker.0.patch(anywhere, later)?;
            start.push(anywhere);
        }
        let start = maker.0.add_union(start)?;
        maker.0.build(start, start)
    }

    /// The state before all these; `depth` bytes before it are common to them.
    fn ways(&mut self, ways: &mut [Way<'_>], depth: usize) -> Result<StateID, BuildError> {
        let first = |(parts, _): &Way<'_>| {
            parts.first().filter(|_| depth < COMMON_MAX).and_then(|first| first.bytes())
        };
        // Those that begin in the same way are beside each other then.
        ways.sort_unstable_by_key(first);
        let (mut union, mut bytes) = (Vec::new(), Vec::new());
        for ways in
            ways.chunk_by_mut(|one, other| first(one).is_some_and(|set| first(other) == Some(set)))
        {
            let Some(set) = first(&ways[0]) else {
                let (parts, end) = ways[0];
                union.push(self.concat(parts.iter().copied(), end)?);
                continue;
            };
            ways.iter_mut().for_each(|(parts, _)| *parts = &parts[1..]);
            let next = match ways {
                [(parts, end)] => self.concat(parts.iter().copied(), *end)?,
                _ => self.ways(ways, depth + 1)?,
            };
            match set.only() {
                Some(byte) => bytes.push(Transition { start: byte, end: byte, next }),
                None => union.push(self.class(&set, next)?),
            }
        }
        bytes.sort_unstable_by_key(|transition| transition.start);
        union.push(self.0.add_sparse(bytes)?);
        self.0.add_union(union)
    }

    /// The state before `node`, with `next` after it.
    fn node(&mut self, node: &Node, next: StateID) -> Result<StateID, BuildError> {
        match node {
            Node::Empty => Ok(next),
            Node::Byte(byte) => self.0.add_range(Transition { start: *byte, end: *byte, next }),
            Node::Class(set) => self.class(set, next),
            Node::Look(look) => self.0.add_look(next, *look),
            Node::Concat(nodes) => self.concat(nodes.iter(), next),
            Node::Alternatives(nodes) => {
                let ways = nodes.iter().map(|node| self.node(node, next));
                let ways = ways.collect::<Result<_, _>>()?;
                self.0.add_union(ways)
            }
            Node::Repeat { node, min, max } => {
                let mut before = next;
                match max {
                    None => {
                        before = self.0.add_union(vec![next])?;
                        let again = self.node(node, before)?;
                        self.0.patch(before, again)?;
                    }
                    Some(max) => {
                        for _ in *min..*max {
                            let once = self.node(node, before)?;
                            before = self.0.add_union(vec![once, next])?;
                        }
                    }
                }
                for _ in 0..*min {
                    before = self.node(node, before)?;
                }
                Ok(before)
            }
            Node::Group { node, .. } => self.node(node, next),
        }
    }

    fn concat<'a>(
        &mut self,
        nodes: impl DoubleEndedIterator<Item = &'a Node>,
        end: StateID,
    ) -> Result<StateID, BuildError> {
        nodes.rev().try_fold(end, |next, node| self.node(node, next))
    }

    fn class(&mut self, set: &ByteSet, next: StateID) -> Result<StateID, BuildError> {
        let mut transitions: Vec<Transition> = Vec::new();
        for byte in (0..=u8::MAX).filter(|&byte| set.contains(byte)) {
            match transitions.last_mut() {
                Some(last) if last.end.checked_add(1) == Some(byte) => last.end = byte,
                _ => transitions.push(Transition { start: byte, end: byte, next }),
            }
        }
        self.0.add_sparse(transitions)
    }
}

impl Node {
    /// What it has one after the other.
    fn parts<'a>(&'a self, parts: &mut Vec<&'a Self>) {
        match self {
            Self::Concat(nodes) => nodes.iter().for_each(|node| node.parts(parts)),
            Self::Group { node, .. } => node.parts(parts),
            node => parts.push(node),
        }
    }

    /// The bytes of which it matches any one.
    fn bytes(&self) -> Option<ByteSet> {
        match self {
            Self::Byte(byte) => Some(ByteSet::only_of(*byte)),
            Self::Class(set) => Some(**set),
            _ => None,
        }
    }
}

impl ByteSet {
    fn only_of(byte: u8) -> Self {
        let mut set = Self::default();
        set.insert(byte);
        set
    }

    /// The only byte in it.
    fn only(&self) -> Option<u8> {
        let mut all = (0..=u8::MAX).filter(|&byte| self.contains(byte));
        all.next().filter(|&byte| *self == Self::only_of(byte))
    }
}
