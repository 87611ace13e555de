//! Where the groups of an expression lie in a text.
//!
//! Pure. The expression is written out as a program of small steps. One pass
//! over the text finds the longest of the leftmost matches, one back over the
//! match the steps that lead to its end from each position, and a third one
//! goes there, by the first way that can. Each takes time proportional to the
//! length of the text, for one expression. [`Scratch`] owns the memory for all
//! that; what it takes of it does not grow with the square of the text, nor,
//! where a text is long, in proportion to the length.
#![forbid(unsafe_code)]

use regex_automata::util::look::Look;

use super::{ByteSet, Captures, Ere, Node};

/// How much may be kept of the way back over a text, in words, before it is
/// made twice instead.
const ROWS_MAX: usize = 16 * 1024;
/// The end of a list of steps to amend.
const NONE: u32 = u32::MAX;

/// A step of a program. Where it does not say, the next one comes after it.
#[derive(Debug, Clone, Copy)]
enum Op {
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

/// A mark for each step, in 64 to a word.
type Row<'a> = &'a [u64];

fn has(row: Row<'_>, pc: u32) -> bool {
    row[pc as usize / 64] >> (pc % 64) & 1 == 1
}

/// Memory that the search for groups uses again and again.
#[derive(Debug, Default)]
pub struct Scratch {
    ops: Vec<Op>,
    sets: Vec<ByteSet>,
    /// Of each step, where in `before` those begin that lead to it.
    before_at: Vec<u32>,
    before: Vec<u32>,

    /// Of each position in a block of the match, the steps that lead to its end.
    pub(super) rows: Vec<u64>,
    /// The same of the first position in each block.
    pub(super) kept: Vec<u64>,
    /// Steps that take a byte, and lead to the end from there.
    waiting: Vec<u32>,
    /// Those at the position before.
    waited: Vec<u32>,

    /// The threads at a position and at the next: the step that takes a byte,
    /// and where the match began.
    threads: Vec<(u32, usize)>,
    next_threads: Vec<(u32, usize)>,

    /// When a step was last tried; with open repetitions that are empty so far,
    /// without any, and to be made empty.
    tried: [Vec<u64>; 3],
    /// Goes on with each time.
    time: u64,
    pending: Vec<Pending>,
    empty_pending: Vec<(u32, usize)>,
    steps: Vec<u32>,
    /// What is saved at a position.
    saves: Vec<u8>,

    /// How many steps were taken, to test how they grow.
    #[cfg(test)]
    pub(super) taken: u64,
}

/// What else to try at a position.
#[derive(Debug, Clone, Copy)]
struct Pending {
    pc: u32,
    /// Whether the innermost open repetition is not empty.
    moved: bool,
    /// What was saved until then.
    saves: usize,
    /// Whether it is a repetition of which only empty ones are left to try.
    entered: bool,
}

impl Ere {
    /// Matches all of `text`, and finds the groups.
    pub fn captures_whole(&self, text: &[u8], scratch: &mut Scratch) -> Option<Captures> {
        scratch.write_out(&self.node);
        Search { text, scratch }.groups(0, text.len())
    }

    /// Finds the longest of the leftmost matches in `text`, and its groups.
    pub fn captures_within(&self, text: &[u8], scratch: &mut Scratch) -> Option<Captures> {
        scratch.write_out(&self.node);
        let mut search = Search { text, scratch };
        let (start, end) = search.leftmost_longest()?;
        search.groups(start, end)
    }
}

#[cfg(test)]
pub(super) fn matches_between(
    ere: &Ere,
    text: &[u8],
    start: usize,
    end: usize,
    scratch: &mut Scratch,
) -> bool {
    scratch.write_out(&ere.node);
    Search { text, scratch }.groups(start, end).is_some()
}

impl Scratch {
    fn count(&mut self) {
        #[cfg(test)]
        {
            self.taken += 1;
        }
    }

    fn op(&self, pc: u32) -> Op {
        self.ops[pc as usize]
    }

    #[allow(clippy::cast_possible_truncation, reason = "the size of expressions is limited")]
    fn at(&self) -> u32 {
        self.ops.len() as u32
    }

    fn push(&mut self, op: Op) -> u32 {
        let at = self.at();
        self.ops.push(op);
        at
    }

    /// Has all of a list of steps lead to the next one. They are linked by what
    /// they lead to until then.
    fn land(&mut self, mut list: u32) {
        let here = self.at();
        while list != NONE {
            let (Op::Jump(to) | Op::Either(_, to) | Op::Enter { exit: to, .. }) =
                &mut self.ops[list as usize]
            else {
                return;
            };
            list = std::mem::replace(to, here);
        }
    }

    /// Writes the program of an expression.
    fn write_out(&mut self, node: &Node) {
        self.ops.clear();
        self.sets.clear();
        self.write(node);
        self.push(Op::Done);
        for tried in &mut self.tried {
            tried.resize(self.ops.len(), 0);
        }
        self.link_back();
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
                    let either = self.push(Op::Either(self.at() + 1, NONE));
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
        let mut body = self.at();
        for _ in 0..min {
            body = self.at();
            self.write(node);
        }
        let mut exits = NONE;
        match max {
            None if min > 0 => {
                let either = self.push(Op::Either(body, NONE));
                self.land(either);
            }
            None => {
                let either = self.push(Op::Either(self.at() + 1, NONE));
                self.write(node);
                self.push(Op::Jump(either));
                self.land(either);
            }
            Some(max) => {
                for _ in min..max {
                    exits = self.push(Op::Either(self.at() + 1, exits));
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
            let end = self.at();
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

    /// The steps that a step leads to.
    fn after(&self, pc: u32) -> [Option<u32>; 2] {
        match self.op(pc) {
            Op::Byte(_) | Op::Class(_) | Op::Look(_) | Op::Save(_) => [Some(pc + 1), None],
            Op::Either(first, second) => [Some(first), Some(second)],
            Op::Jump(to) | Op::Leave(to) => [Some(to), None],
            Op::Enter { exit, optional, .. } => [Some(pc + 1), optional.then_some(exit)],
            Op::Again { body, exit } => [Some(body), Some(exit)],
            Op::Done => [None, None],
        }
    }

    fn link_back(&mut self) {
        let count = self.at();
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

    fn takes(&self, pc: u32, byte: u8) -> bool {
        match self.op(pc) {
            Op::Byte(wanted) => wanted == byte,
            Op::Class(set) => self.sets[set as usize].contains(byte),
            _ => false,
        }
    }

    fn new_time(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    /// Whether a step is tried for the first time since `time` began.
    fn is_new(&mut self, how: usize, pc: u32, time: u64) -> bool {
        self.count();
        std::mem::replace(&mut self.tried[how][pc as usize], time) != time
    }
}

/// Indices of [`Scratch::tried`].
const EMPTY_SO_FAR: usize = 0;
const MOVED: usize = 1;
const EMPTY: usize = 2;

/// A search in one text.
struct Search<'t, 's> {
    text: &'t [u8],
    scratch: &'s mut Scratch,
}

impl Search<'_, '_> {
    fn leftmost_longest(&mut self) -> Option<(usize, usize)> {
        let mut best = None;
        self.scratch.threads.clear();
        for at in 0..=self.text.len() {
            self.scratch.new_time();
            self.scratch.next_threads.clear();
            // Those that began first come first: of two at one step, they count.
            for index in 0..self.scratch.threads.len() {
                let (pc, start) = self.scratch.threads[index];
                if self.scratch.takes(pc, self.text[at - 1]) {
                    self.thread(pc + 1, start, at, &mut best);
                }
            }
            if best.is_none() {
                self.thread(0, at, at, &mut best);
            }
            let Scratch { threads, next_threads, .. } = &mut *self.scratch;
            std::mem::swap(threads, next_threads);
            if let Some((first, _)) = best {
                threads.truncate(threads.partition_point(|&(_, start)| start <= first));
                if threads.is_empty() {
                    break;
                }
            }
        }
        best
    }

    /// Adds a thread at each step that takes a byte and comes next.
    fn thread(&mut self, pc: u32, start: usize, at: usize, best: &mut Option<(usize, usize)>) {
        let scratch = &mut *self.scratch;
        let time = scratch.time;
        scratch.steps.push(pc);
        while let Some(pc) = scratch.steps.pop() {
            if !scratch.is_new(MOVED, pc, time) {
                continue;
            }
            match scratch.op(pc) {
                Op::Byte(_) | Op::Class(_) => scratch.next_threads.push((pc, start)),
                Op::Look(look) if !holds(look, self.text, at) => {}
                Op::Done => {
                    if best.is_none_or(|(first, _)| start <= first) {
                        *best = Some((start, at));
                    }
                }
                _ => {
                    let after = scratch.after(pc);
                    scratch.steps.extend(after.into_iter().flatten());
                }
            }
        }
    }

    /// The groups of the match from `start` to `end`, if that is one.
    fn groups(&mut self, start: usize, end: usize) -> Option<Captures> {
        let mut back = Back::new(self.scratch, start, end);
        back.make(self.text, self.scratch);
        if !has(back.row(start, self.scratch), 0) {
            return None;
        }
        let mut captures = Captures::default();
        captures[0] = Some((start, end));
        let (mut at, mut pc) = (start, 0);
        let mut starts = [0; 10];
        loop {
            back.reach(at, self.text, self.scratch);
            let next = self.first_way(pc, at, &back)?;
            for &slot in &self.scratch.saves {
                let group = usize::from(slot / 2);
                if slot % 2 == 0 {
                    starts[group] = at;
                } else {
                    captures[group] = Some((starts[group], at));
                }
            }
            if matches!(self.scratch.op(next), Op::Done) {
                return Some(captures);
            }
            (at, pc) = (at + 1, next + 1);
        }
    }

    /// The first step that takes a byte, or is the last, and leads to the end:
    /// of alternatives the first counts, and what can be repeated is. What is
    /// saved on the way is in `saves`.
    fn first_way(&mut self, pc: u32, at: usize, back: &Back) -> Option<u32> {
        let time = self.scratch.new_time();
        self.scratch.saves.clear();
        self.scratch.pending.clear();
        self.scratch.pending.push(Pending { pc, moved: true, saves: 0, entered: false });
        while let Some(Pending { mut pc, mut moved, saves, entered }) = self.scratch.pending.pop() {
            self.scratch.saves.truncate(saves);
            if entered {
                let Op::Enter { leave, exit, optional, may_be_empty } = self.scratch.op(pc) else {
                    continue;
                };
                let next = match self.scratch.op(leave) {
                    Op::Leave(next) | Op::Again { exit: next, .. } => next,
                    _ => exit,
                };
                if may_be_empty && self.passes_empty(pc + 1, leave, at) {
                    pc = next;
                } else if optional {
                    pc = exit;
                } else {
                    continue;
                }
            }
            loop {
                let scratch = &mut *self.scratch;
                let how = if moved { MOVED } else { EMPTY_SO_FAR };
                if !scratch.is_new(how, pc, time) || !has(back.row(at, scratch), pc) {
                    break;
                }
                let saves = scratch.saves.len();
                let mut later = |pc, moved, entered| {
                    scratch.pending.push(Pending { pc, moved, saves, entered });
                };
                match scratch.ops[pc as usize] {
                    Op::Byte(_) | Op::Class(_) | Op::Done => return Some(pc),
                    // If it did not hold, it would not lead to the end.
                    Op::Look(_) => pc += 1,
                    Op::Either(first, second) => {
                        later(second, moved, false);
                        pc = first;
                    }
                    Op::Jump(to) => pc = to,
                    Op::Save(slot) => {
                        scratch.saves.push(slot);
                        pc += 1;
                    }
                    Op::Enter { .. } => {
                        later(pc, moved, true);
                        (pc, moved) = (pc + 1, false);
                    }
                    // This one is empty.
                    Op::Leave(_) | Op::Again { .. } if !moved => break,
                    // All around it have moved with it.
                    Op::Leave(to) => pc = to,
                    Op::Again { body, exit } => {
                        later(exit, true, false);
                        (pc, moved) = (body, false);
                    }
                }
            }
        }
        None
    }

    /// Whether what is to be repeated can be empty here. What is saved on the
    /// way is in `saves` then.
    fn passes_empty(&mut self, body: u32, leave: u32, at: usize) -> bool {
        let scratch = &mut *self.scratch;
        // Each time is new: one that has failed will have to fail again.
        let time = scratch.new_time();
        let before = scratch.saves.len();
        scratch.empty_pending.clear();
        scratch.empty_pending.push((body, before));
        while let Some((mut pc, saves)) = scratch.empty_pending.pop() {
            scratch.saves.truncate(saves);
            while pc != leave && scratch.is_new(EMPTY, pc, time) {
                match scratch.op(pc) {
                    Op::Byte(_) | Op::Class(_) | Op::Done => break,
                    Op::Look(look) if !holds(look, self.text, at) => break,
                    Op::Look(_) => pc += 1,
                    Op::Jump(to) | Op::Leave(to) | Op::Again { exit: to, .. } => pc = to,
                    Op::Save(slot) => {
                        scratch.saves.push(slot);
                        pc += 1;
                    }
                    Op::Either(first, second) => {
                        scratch.empty_pending.push((second, scratch.saves.len()));
                        pc = first;
                    }
                    Op::Enter { exit, may_be_empty: false, .. } => pc = exit,
                    Op::Enter { exit, optional, .. } => {
                        if optional {
                            scratch.empty_pending.push((exit, scratch.saves.len()));
                        }
                        pc += 1;
                    }
                }
            }
            if pc == leave {
                return true;
            }
        }
        scratch.saves.truncate(before);
        false
    }
}

/// The way back over a match: which steps lead to its end, from each position.
/// Of a long one only a block is there at a time; what it takes to make it
/// again is kept.
struct Back {
    start: usize,
    end: usize,
    /// How many words a row has.
    words: usize,
    /// How many positions a block has.
    block: usize,
    /// Which block is there.
    made: usize,
}

impl Back {
    fn new(scratch: &Scratch, start: usize, end: usize) -> Self {
        let (words, positions) = (scratch.ops.len().div_ceil(64), end - start + 1);
        let block = if positions * words <= ROWS_MAX { positions } else { positions.isqrt() };
        Self { start, end, words, block, made: 0 }
    }

    fn row<'s>(&self, at: usize, scratch: &'s Scratch) -> Row<'s> {
        &scratch.rows[(at - self.start) % self.block * self.words..][..self.words]
    }

    /// Makes all blocks, from the last to the first.
    fn make(&mut self, text: &[u8], scratch: &mut Scratch) {
        let blocks = (self.end - self.start) / self.block + 1;
        scratch.kept.clear();
        scratch.kept.resize(blocks * self.words, 0);
        for block in (0..blocks).rev() {
            self.make_block(block, text, scratch);
            let Scratch { kept, rows, .. } = scratch;
            kept[block * self.words..][..self.words].copy_from_slice(&rows[..self.words]);
        }
    }

    /// Has the block of this position be there.
    fn reach(&mut self, at: usize, text: &[u8], scratch: &mut Scratch) {
        let block = (at - self.start) / self.block;
        if block != self.made {
            self.make_block(block, text, scratch);
        }
    }

    fn make_block(&mut self, block: usize, text: &[u8], scratch: &mut Scratch) {
        self.made = block;
        let first = self.start + block * self.block;
        let mut after = first + self.block;
        scratch.rows.clear();
        scratch.rows.resize(self.block * self.words, 0);
        scratch.waiting.clear();
        if after > self.end {
            after = self.end;
            self.mark(scratch.at() - 1, after, text, scratch);
        } else {
            let kept = &scratch.kept[(block + 1) * self.words..][..self.words];
            let takes_a_byte =
                |pc: &u32| matches!(scratch.ops[*pc as usize], Op::Byte(_) | Op::Class(_));
            let waiting = (0..scratch.at()).filter(takes_a_byte).filter(|pc| has(kept, pc + 1));
            scratch.waiting.extend(waiting);
        }
        for at in (first..after).rev() {
            let Scratch { waiting, waited, .. } = scratch;
            std::mem::swap(waiting, waited);
            waiting.clear();
            for index in 0..scratch.waited.len() {
                let pc = scratch.waited[index];
                if scratch.takes(pc, text[at]) {
                    self.mark(pc, at, text, scratch);
                }
            }
        }
    }

    /// Marks a step, and all that lead to it without a byte.
    fn mark(&self, pc: u32, at: usize, text: &[u8], scratch: &mut Scratch) {
        let row = (at - self.start) % self.block * self.words;
        scratch.steps.push(pc);
        while let Some(pc) = scratch.steps.pop() {
            scratch.count();
            let word = &mut scratch.rows[row + pc as usize / 64];
            if *word >> (pc % 64) & 1 == 1 {
                continue;
            }
            *word |= 1 << (pc % 64);
            let Scratch { ops, before_at, before, steps, waiting, .. } = scratch;
            let range = before_at[pc as usize]..before_at[pc as usize + 1];
            for &pc in &before[range.start as usize..range.end as usize] {
                match ops[pc as usize] {
                    Op::Byte(_) | Op::Class(_) => waiting.push(pc),
                    Op::Look(look) if !holds(look, text, at) => {}
                    _ => steps.push(pc),
                }
            }
        }
    }
}

fn holds(look: Look, text: &[u8], at: usize) -> bool {
    let is_word = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let before = is_word(at.checked_sub(1).and_then(|at| text.get(at)));
    let after = is_word(text.get(at));
    match look {
        Look::Start => at == 0,
        Look::End => at == text.len(),
        Look::WordAscii => before != after,
        Look::WordAsciiNegate => before == after,
        Look::WordStartAscii => !before && after,
        Look::WordEndAscii => before && !after,
        // No expression has another.
        _ => false,
    }
}
