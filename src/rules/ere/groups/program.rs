//! An expression, written out as a program of small steps.
#![forbid(unsafe_code)]

use regex_automata::util::look::Look;

use crate::rules::ere::{ByteSet, Captures, Node};

/// The end of a list of steps to amend.
const NONE: u32 = u32::MAX;

/// A step of a program. Where it does not say, the next one comes after it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Op {
    /// Takes this byte of the text.
    Byte(u8),
    /// Takes a byte of this set.
    Class(u32),
    /// Goes on where this holds.
    Look(Look),
    /// The first that can.
    Either(u32, u32),
    Jump(u32),
    /// A group begins or ends here.
    Save(u8),
    /// A repetition begins of what can be empty. One that is not is made if
    /// there can be; if not, an empty one where `may_be_empty`; if there is
    /// neither, none where `optional`.
    Enter {
        leave: u32,
        exit: u32,
        optional: bool,
        may_be_empty: bool,
    },
    /// It ends, and something else comes then.
    Leave(u32),
    /// It ends, and is made again if there can be one that is not empty.
    Again {
        body: u32,
        exit: u32,
    },
    Done,
}

/// The steps of an expression. Made anew for each, it keeps its memory.
#[derive(Debug, Default)]
pub(super) struct Program {
    ops: Vec<Op>,
    sets: Vec<ByteSet>,
    /// Of each step, where in `before` those begin that lead to it.
    before_at: Vec<u32>,
    before: Vec<u32>,
}

impl Program {
    /// Becomes the program of this expression.
    pub(super) fn write_out(&mut self, node: &Node) {
        self.ops.clear();
        self.sets.clear();
        self.write(node);
        self.push(Op::Done);
        self.link_back();
    }

    /// A step; the first one is 0.
    pub(super) fn op(&self, pc: u32) -> Op {
        self.ops[pc as usize]
    }

    /// How many steps there are.
    #[allow(clippy::cast_possible_truncation, reason = "the size of expressions is limited")]
    pub(super) fn length(&self) -> u32 {
        self.ops.len() as u32
    }

    fn push(&mut self, op: Op) -> u32 {
        let at = self.length();
        self.ops.push(op);
        at
    }

    /// Has all of a list of steps lead to the next one. They are linked by what
    /// they lead to until then.
    fn land(&mut self, mut list: u32) {
        let here = self.length();
        while list != NONE {
            let (Op::Jump(to) | Op::Either(_, to) | Op::Enter { exit: to, .. }) =
                &mut self.ops[list as usize]
            else {
                return;
            };
            list = std::mem::replace(to, here);
        }
    }

    fn write(&mut self, node: &Node) {
        match node {
            Node::Empty => {}
            Node::Byte(byte) => _ = self.push(Op::Byte(*byte)),
            Node::Class(set) => {
                if self.sets.last() != Some(set) {
                    self.sets.push(**set);
                }
                #[allow(clippy::cast_possible_truncation, reason = "there are fewer than steps")]
                self.push(Op::Class(self.sets.len() as u32 - 1));
            }
            Node::Look(look) => _ = self.push(Op::Look(*look)),
            Node::Concat(nodes) => nodes.iter().for_each(|node| self.write(node)),
            Node::Alternatives(nodes) => {
                // As glibc has it, `(|a)` is `(a|)`.
                let is_empty = |node: &&Node| matches!(node, Node::Empty);
                let written = nodes.iter().filter(|node| !is_empty(node));
                let mut all = written.chain(nodes.iter().filter(is_empty)).peekable();
                let mut ends = NONE;
                while let Some(node) = all.next() {
                    if all.peek().is_none() {
                        self.write(node);
                        break;
                    }
                    let either = self.push(Op::Either(self.length() + 1, NONE));
                    self.write(node);
                    ends = self.push(Op::Jump(ends));
                    self.land(either);
                }
                self.land(ends);
            }
            Node::Group { index, node } => match u8::try_from(2 * index) {
                Ok(slot) if *index < Captures::default().len() => {
                    self.push(Op::Save(slot));
                    self.write(node);
                    self.push(Op::Save(slot + 1));
                }
                _ => self.write(node),
            },
            Node::Repeat { node, min, max } if node.may_match_empty() => {
                self.write_repeat_of_empty(node, *min, *max);
            }
            Node::Repeat { node, min, max } => self.write_repeat(node, *min, *max),
        }
    }

    fn write_repeat(&mut self, node: &Node, min: u32, max: Option<u32>) {
        let mut body = self.length();
        for _ in 0..min {
            body = self.length();
            self.write(node);
        }
        let mut exits = NONE;
        match max {
            None if min > 0 => {
                let either = self.push(Op::Either(body, NONE));
                self.land(either);
            }
            None => {
                let either = self.push(Op::Either(self.length() + 1, NONE));
                self.write(node);
                self.push(Op::Jump(either));
                self.land(either);
            }
            Some(max) => {
                for _ in min..max {
                    exits = self.push(Op::Either(self.length() + 1, exits));
                    self.write(node);
                }
            }
        }
        self.land(exits);
    }

    fn write_repeat_of_empty(&mut self, node: &Node, min: u32, max: Option<u32>) {
        let copies = max.unwrap_or(min.max(1));
        let mut exits = NONE;
        for copy in 0..copies {
            let enter = self.push(Op::Enter {
                leave: NONE,
                exit: exits,
                optional: copy >= min,
                may_be_empty: copy == 0 || copy < min,
            });
            exits = enter;
            self.write(node);
            let end = self.length();
            if let Op::Enter { leave, .. } = &mut self.ops[enter as usize] {
                *leave = end;
            }
            self.push(if max.is_none() && copy + 1 == copies {
                Op::Again { body: enter + 1, exit: end + 1 }
            } else {
                Op::Leave(end + 1)
            });
        }
        self.land(exits);
    }

    /// The steps that this one leads to.
    pub(super) fn after(&self, pc: u32) -> [Option<u32>; 2] {
        match self.op(pc) {
            Op::Byte(_) | Op::Class(_) | Op::Look(_) | Op::Save(_) => [Some(pc + 1), None],
            Op::Either(first, second) => [Some(first), Some(second)],
            Op::Jump(to) | Op::Leave(to) => [Some(to), None],
            Op::Enter { exit, optional, .. } => [Some(pc + 1), optional.then_some(exit)],
            Op::Again { body, exit } => [Some(body), Some(exit)],
            Op::Done => [None, None],
        }
    }

    /// The steps that lead to this one.
    pub(super) fn before(&self, pc: u32) -> &[u32] {
        let range = self.before_at[pc as usize]..self.before_at[pc as usize + 1];
        &self.before[range.start as usize..range.end as usize]
    }

    /// Notes of each step those that lead to it.
    fn link_back(&mut self) {
        let count = self.length();
        self.before_at.clear();
        self.before_at.resize(self.ops.len() + 1, 0);
        for pc in 0..count {
            for to in self.after(pc).into_iter().flatten() {
                self.before_at[to as usize] += 1;
            }
        }
        let mut sum = 0;
        for at in &mut self.before_at {
            sum += *at;
            *at = sum;
        }
        self.before.clear();
        self.before.resize(sum as usize, 0);
        for pc in 0..count {
            for to in self.after(pc).into_iter().flatten() {
                let at = &mut self.before_at[to as usize];
                *at -= 1;
                self.before[*at as usize] = pc;
            }
        }
    }

    /// Whether this step takes this byte of the text.
    pub(super) fn takes(&self, pc: u32, byte: u8) -> bool {
        match self.op(pc) {
            Op::Byte(wanted) => wanted == byte,
            Op::Class(set) => self.sets[set as usize].contains(byte),
            _ => false,
        }
    }
}
