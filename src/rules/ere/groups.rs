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

mod back;
mod program;

use regex_automata::util::look::Look;

use self::back::Back;
use self::program::{Op, Program};
use super::{Captures, Ere, Node};

/// Memory that the search for groups uses again and again.
#[derive(Debug, Default)]
pub struct Scratch {
    program: Program,

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
    fn write_out(&mut self, node: &Node) {
        self.program.write_out(node);
        for tried in &mut self.tried {
            tried.resize(self.program.length() as usize, 0);
        }
    }

    fn count(&mut self) {
        #[cfg(test)]
        {
            self.taken += 1;
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
                if self.scratch.program.takes(pc, self.text[at - 1]) {
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
            match scratch.program.op(pc) {
                Op::Byte(_) | Op::Class(_) => scratch.next_threads.push((pc, start)),
                Op::Look(look) if !holds(look, self.text, at) => {}
                Op::Done => {
                    if best.is_none_or(|(first, _)| start <= first) {
                        *best = Some((start, at));
                    }
                }
                _ => {
                    let after = scratch.program.after(pc);
                    scratch.steps.extend(after.into_iter().flatten());
                }
            }
        }
    }

    /// The groups of the match from `start` to `end`, if that is one.
    fn groups(&mut self, start: usize, end: usize) -> Option<Captures> {
        let mut back = Back::new(self.scratch, start, end);
        back.make(self.text, self.scratch);
        if !back.leads_to_end(0, start, self.scratch) {
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
            if matches!(self.scratch.program.op(next), Op::Done) {
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
                let Op::Enter { leave, exit, optional, may_be_empty } = self.scratch.program.op(pc)
                else {
                    continue;
                };
                let next = match self.scratch.program.op(leave) {
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
                if !scratch.is_new(how, pc, time) || !back.leads_to_end(pc, at, scratch) {
                    break;
                }
                let saves = scratch.saves.len();
                let mut later = |pc, moved, entered| {
                    scratch.pending.push(Pending { pc, moved, saves, entered });
                };
                match scratch.program.op(pc) {
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
                match scratch.program.op(pc) {
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
