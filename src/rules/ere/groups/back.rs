//! The way back over a match, from its end to its beginning.
#![forbid(unsafe_code)]

use super::program::Op;
use super::{Scratch, holds};

/// How much may be kept of the way back over a text, in words, before it is
/// made twice instead.
const ROWS_MAX: usize = 16 * 1024;

/// The way back over a match: which steps lead to its end, from each position.
/// Of a long one only a block is there at a time; what it takes to make it
/// again is kept.
pub(super) struct Back {
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
    pub(super) fn new(scratch: &Scratch, start: usize, end: usize) -> Self {
        let (words, positions) = (scratch.program.length().div_ceil(64) as usize, end - start + 1);
        let block = if positions * words <= ROWS_MAX { positions } else { positions.isqrt() };
        Self { start, end, words, block, made: 0 }
    }

    /// Whether a step leads to the end from this position, whose block is there.
    pub(super) fn leads_to_end(&self, pc: u32, at: usize, scratch: &Scratch) -> bool {
        is_marked(&scratch.rows[self.row(at)..][..self.words], pc)
    }

    /// Where in [`Scratch::rows`] the marks of a position begin.
    fn row(&self, at: usize) -> usize {
        (at - self.start) % self.block * self.words
    }

    /// Makes all blocks, from the last to the first.
    pub(super) fn make(&mut self, text: &[u8], scratch: &mut Scratch) {
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
    pub(super) fn reach(&mut self, at: usize, text: &[u8], scratch: &mut Scratch) {
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
            self.mark(scratch.program.length() - 1, after, text, scratch);
        } else {
            let kept = &scratch.kept[(block + 1) * self.words..][..self.words];
            let takes_a_byte =
                |pc: &u32| matches!(scratch.program.op(*pc), Op::Byte(_) | Op::Class(_));
            let all = 0..scratch.program.length();
            let waiting = all.filter(takes_a_byte).filter(|pc| is_marked(kept, pc + 1));
            scratch.waiting.extend(waiting);
        }
        for at in (first..after).rev() {
            let Scratch { waiting, waited, .. } = scratch;
            std::mem::swap(waiting, waited);
            waiting.clear();
            for index in 0..scratch.waited.len() {
                let pc = scratch.waited[index];
                if scratch.program.takes(pc, text[at]) {
                    self.mark(pc, at, text, scratch);
                }
            }
        }
    }

    /// Marks a step, and all that lead to it without a byte.
    fn mark(&self, pc: u32, at: usize, text: &[u8], scratch: &mut Scratch) {
        let row = self.row(at);
        scratch.steps.push(pc);
        while let Some(pc) = scratch.steps.pop() {
            scratch.count();
            let word = &mut scratch.rows[row + pc as usize / 64];
            if *word >> (pc % 64) & 1 == 1 {
                continue;
            }
            *word |= 1 << (pc % 64);
            let Scratch { program, steps, waiting, .. } = scratch;
            for &pc in program.before(pc) {
                match program.op(pc) {
                    Op::Byte(_) | Op::Class(_) => waiting.push(pc),
                    Op::Look(look) if !holds(look, text, at) => {}
                    _ => steps.push(pc),
                }
            }
        }
    }
}

/// A row has a mark for each step, in 64 to a word.
fn is_marked(row: &[u64], pc: u32) -> bool {
    row[pc as usize / 64] >> (pc % 64) & 1 == 1
}
