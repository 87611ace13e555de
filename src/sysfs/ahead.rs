//! Reads devices before they are asked for, in a thread, which it owns while there is
//! something to read.
//!
//! What is to be read is cut into pieces. The thread takes one after the other; and who
//! asks for a device of a piece that is not read yet does the same, instead of waiting.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::beneath::Failed;

use super::device::Reader;
use super::helper::Helper;
use super::{Listing, Sysfs};

/// How many devices are a piece.
const PIECE: usize = 8;

/// How many pieces are read ahead at most. It may be long until they are asked for, and
/// they take up memory.
const PIECES: usize = 16;

/// For so few devices a thread is too dear.
const FEW: usize = 4 * PIECE;

/// What was read longer ago is read again: then it takes long to act on each, and not
/// to read it.
const FRESH_FOR: Duration = Duration::from_millis(100);

/// Somebody who reads ahead.
#[derive(Debug)]
pub(super) struct Ahead {
    shared: Arc<Shared>,
    helper: Option<Helper>,
    /// What is being asked for.
    piece: Piece,
    reader: Reader,
    /// For how long what was read is taken for what is there now.
    pub(super) fresh_for: Duration,
}

#[derive(Debug)]
struct Shared {
    sys: Sysfs,
    listing: Arc<Listing>,
    progress: Mutex<Progress>,
    /// Somebody waits for a change of it.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Progress {
    /// How many pieces somebody has begun to read.
    begun: usize,
    /// How many were taken to be asked for.
    taken: usize,
    /// Those between, as far as they are read: each where its number modulo the length is.
    read: [Option<Piece>; PIECES],
    /// Those that nobody needs any more, for their memory.
    spare: Vec<Piece>,
    /// The thread waits until pieces were taken, or this is to end, or the other one
    /// waits until the thread has read one. It is never both.
    waits: bool,
    is_over: bool,
}

/// Some devices, one after the other in the listing.
#[derive(Debug)]
struct Piece {
    /// The index of the first one.
    first: usize,
    devices: Vec<Device>,
    events: Vec<u8>,
    read_at: Instant,
}

/// A device that was read.
#[derive(Debug)]
struct Device {
    /// Where its event ends.
    end: usize,
    /// The inode number of its file `uevent`; nothing once this was taken.
    outcome: Option<Result<Option<u64>, Failed>>,
}

impl Ahead {
    /// Begins to read these devices. None if that is no use.
    pub(super) fn new(sys: &Sysfs, listing: &Arc<Listing>) -> Option<Self> {
        if listing.len() <= FEW {
            return None;
        }
        let shared = Arc::new(Shared {
            sys: sys.clone(),
            listing: Arc::clone(listing),
            progress: Mutex::default(),
            changed: Condvar::new(),
        });
        let other = Arc::clone(&shared);
        let helper = Some(Helper::start(move || other.read_all())?);
        let (piece, reader) = (Piece::new(), Reader::default());
        Some(Self { shared, helper, piece, reader, fresh_for: FRESH_FOR })
    }

    /// What was read of the device with this index, not smaller than those before, is
    /// appended to `event`. Nothing is returned if it has to be read now.
    pub(super) fn take(
        &mut self,
        index: usize,
        event: &mut Vec<u8>,
    ) -> Option<Result<Option<u64>, Failed>> {
        while self.piece.first + self.piece.devices.len() <= index {
            self.shared.next(&mut self.piece, &mut self.reader)?;
        }
        let Piece { first, devices, events, read_at } = &mut self.piece;
        let index = index.checked_sub(*first)?;
        let start = index.checked_sub(1).map_or(0, |before| devices[before].end);
        let device = &mut devices[index];
        let outcome = device.outcome.take().filter(|_| read_at.elapsed() < self.fresh_for)?;
        event.extend_from_slice(&events[start..device.end]);
        Some(outcome)
    }

    /// Whether the thread waits until some of what it has read was asked for, or has ended.
    #[cfg(test)]
    pub(super) fn has_read_all_it_may(&self) -> bool {
        self.shared.lock().waits || self.helper.as_ref().is_none_or(Helper::has_ended)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        let mut progress = self.shared.lock();
        progress.is_over = true;
        self.shared.wake(progress);
        // It ends with its piece.
        self.helper.take().into_iter().for_each(Helper::end);
    }
}

impl Piece {
    fn new() -> Self {
        let (devices, events) = (Vec::with_capacity(PIECE), Vec::with_capacity(PIECE * 256));
        Self { first: 0, devices, events, read_at: Instant::now() }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, mut progress: MutexGuard<'a, Progress>) -> MutexGuard<'a, Progress> {
        progress.waits = true;
        self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the one who waits, if there is one.
    fn wake(&self, mut progress: MutexGuard<'_, Progress>) {
        let waits = std::mem::take(&mut progress.waits);
        drop(progress);
        if waits {
            self.changed.notify_one();
        }
    }

    /// How many pieces there are.
    fn pieces(&self) -> usize {
        self.listing.len().div_ceil(PIECE)
    }

    /// What the thread does.
    fn read_all(&self) {
        let mut reader = Reader::default();
        let mut progress = self.lock();
        while !progress.is_over && progress.begun < self.pieces() {
            if progress.begun == progress.taken + PIECES {
                progress = self.wait(progress);
                // It may have been long.
                reader.forget_directory();
            } else {
                progress = self.read_one(progress, &mut reader);
            }
        }
    }

    /// Reads the next piece that nobody has begun.
    fn read_one<'a>(
        &'a self,
        mut progress: MutexGuard<'a, Progress>,
        reader: &mut Reader,
    ) -> MutexGuard<'a, Progress> {
        let number = progress.begun;
        progress.begun += 1;
        let mut piece = progress.spare.pop().unwrap_or_else(Piece::new);
        drop(progress);
        self.read(number * PIECE, &mut piece, reader);
        let mut progress = self.lock();
        progress.read[number % PIECES] = Some(piece);
        self.wake(progress);
        self.lock()
    }

    fn read(&self, first: usize, piece: &mut Piece, reader: &mut Reader) {
        piece.first = first;
        piece.read_at = Instant::now();
        piece.devices.clear();
        piece.events.clear();
        for index in first..(first + PIECE).min(self.listing.len()) {
            let device = (self.listing.path(index), self.listing.subsystem(index));
            let outcome = reader.read(&self.sys, device, b"add", &mut piece.events);
            piece.devices.push(Device { end: piece.events.len(), outcome: Some(outcome) });
        }
    }

    /// Makes of a piece the next one, once that was read. None if it was the last one.
    fn next(&self, current: &mut Piece, reader: &mut Reader) -> Option<()> {
        let mut progress = self.lock();
        if progress.taken == self.pieces() {
            return None;
        }
        loop {
            let number = progress.taken;
            if let Some(piece) = progress.read[number % PIECES].take() {
                progress.spare.push(std::mem::replace(current, piece));
                progress.taken += 1;
                // Not for each piece: that is dear.
                if progress.begun <= progress.taken + PIECES / 2 {
                    self.wake(progress);
                }
                return Some(());
            }
            if progress.begun < self.pieces().min(number + PIECES) {
                progress = self.read_one(progress, reader);
            } else {
                progress = self.wait(progress);
            }
        }
    }
}
