//! The devices that have been acted on, and who they are: what there is to
//! compare with what is there.
//!
//! Pure: it lives in bytes that somebody else keeps, in memory or in a file
//! that is mapped there and outlives the process. So every change is made in an
//! order in which the bytes mean something at any moment: a process that is
//! killed between two stores leaves either what was or what is. What is about
//! to be acted on is noted before, as not settled, and settled after: an act
//! may be repeated by the next process, but none is forgotten.
#![forbid(unsafe_code)]

mod format;
pub mod identity;
mod judgment;
mod records;

use std::ffi::CStr;
use std::fmt;
use std::sync::atomic::{Ordering, compiler_fence};

use hashbrown::HashTable;

use crate::uevent::Uevent;

use format::{
    AT_INCARNATION, AT_PROGRESS, AT_STATE, BEGUN, LEFT, NUMBER_MAX, SETTLED, UNDONE, UNKNOWN,
    UNSEEN, get, get_checked, identity_at, name_at, offset, path_at, put, put_checked, same,
};
pub use format::{begins_like_one, hash};
use identity::Tracked;
pub use judgment::{Trust, Verdict};

/// Where the bytes are.
pub trait Storage {
    /// All of them.
    fn bytes(&self) -> &[u8];
    /// All of them, to be changed.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Makes them as many; new ones are 0.
    fn resize(&mut self, length: usize);
    /// Whether there is room for as many, without giving up anything.
    fn has_room(&mut self, _length: usize) -> bool {
        true
    }
}

impl Storage for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }

    fn resize(&mut self, length: usize) {
        self.resize(length, 0);
        self.shrink_to(length);
    }
}

/// What an inventory is of: it means nothing in another world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct World {
    /// Which boot of the machine (/proc/sys/kernel/random/boot_id).
    pub boot: [u8; 36],
    /// What acted on the devices: a hash of the engine's kind and file.
    pub engine: u64,
}

/// Why bytes are no inventory to go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// There are none.
    Empty,
    /// It was written by a version of plugd that has another format.
    Version,
    /// It was written before the machine was started.
    Boot,
    /// Another program or other rules acted on the devices.
    Engine,
    /// It makes no sense.
    Damaged,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "it is empty",
            Self::Version => "it is of another version of plugd",
            Self::Boot => "it is of another boot",
            Self::Engine => "another program or other rules acted on the devices",
            Self::Damaged => "it is damaged",
        })
    }
}

/// A device that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known<'a> {
    /// Its DEVPATH.
    pub path: &'a [u8],
    /// See [`identity`].
    pub identity: &'a [u8],
    /// The inode number of its file `uevent`, if it was looked up; else 0. The
    /// kernel gives a new one to whatever comes after it at the same path.
    pub incarnation: u64,
    /// What was last begun for it was also finished, and all was done that its coming
    /// needs.
    pub settled: bool,
}

/// Whether every event was acted on before the inventory was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Progress {
    /// Perhaps not.
    Unknown,
    /// All up to the one with this SEQNUM.
    Through(u64),
    /// All that came, until it was left on purpose; and of those that have been sent, all
    /// up to the one with this SEQNUM.
    Left(u64),
}

/// The inventory.
pub struct Inventory<S> {
    storage: S,
    /// Where the region begins.
    region: usize,
    /// Bytes of the records in it that are not dead.
    alive: usize,
    /// Offsets of these records, in units of the alignment, by their paths.
    index: HashTable<u32>,
    /// The same of those that have something that no two devices have at a time.
    claims: HashTable<u32>,
    /// The same of those that have a DEVNAME, by that.
    names: HashTable<u32>,
    /// The same of all, in the order of their paths: so those below one are beside
    /// each other.
    ordered: Vec<u32>,
    /// The identity in an event.
    scratch: Vec<u8>,
}

impl<S: Storage> Inventory<S> {
    /// How far events were acted on.
    pub fn progress(&self) -> Progress {
        match get_checked(self.storage.bytes(), AT_PROGRESS) {
            None | Some(UNKNOWN) => Progress::Unknown,
            Some(word) if word & LEFT != 0 => Progress::Left(word & NUMBER_MAX),
            Some(number) => Progress::Through(number),
        }
    }

    /// Notes how far events were acted on.
    pub fn set_progress(&mut self, progress: Progress) {
        let word = match progress {
            Progress::Unknown => UNKNOWN,
            // No kernel has sent so many.
            Progress::Through(number) | Progress::Left(number) if number > NUMBER_MAX => UNKNOWN,
            Progress::Through(number) => number,
            Progress::Left(number) => LEFT | number,
        };
        compiler_fence(Ordering::SeqCst);
        put_checked(self.storage.bytes_mut(), AT_PROGRESS, word);
        compiler_fence(Ordering::SeqCst);
    }

    /// Where it lives.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// How many devices it has.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// All of them, in the order of their paths.
    pub fn iter(&self) -> impl Iterator<Item = Known<'_>> {
        self.ordered.iter().map(|&unit| self.known(offset(unit)))
    }

    /// The paths of those whose incarnation is to be looked up.
    pub fn unseen(&self) -> impl Iterator<Item = &[u8]> {
        let (bytes, offsets) = (self.storage.bytes(), self.ordered.iter().copied().map(offset));
        let unseen = offsets.filter(|at| get(bytes, at + AT_INCARNATION) == UNSEEN);
        unseen.map(|at| path_at(bytes, at))
    }

    /// Those below this path, in their order.
    pub fn below(&self, path: &[u8]) -> impl DoubleEndedIterator<Item = Known<'_>> + use<'_, S> {
        let first = [path, b"/"].concat();
        let start = self.count(|known| known < &first[..]);
        let end = self.count(|known| known < &first[..] || known.starts_with(&first));
        self.ordered[start..end].iter().map(|&unit| self.known(offset(unit)))
    }

    /// How many paths, the first ones in their order, are as told.
    fn count(&self, is_before: impl Fn(&[u8]) -> bool) -> usize {
        let bytes = self.storage.bytes();
        self.ordered.partition_point(|&unit| is_before(path_at(bytes, offset(unit))))
    }

    /// Another one than that at `path` that has what no two devices have at a time,
    /// such as the numbers of its node: it went unseen.
    fn rival(&self, path: &[u8], told: &[u8]) -> Option<Known<'_>> {
        let bytes = self.storage.bytes();
        let claim = identity::claim(told)?;
        let is_rival = |&unit: &u32| {
            let at = offset(unit);
            path_at(bytes, at) != path && identity::claim_the_same(identity_at(bytes, at), told)
        };
        self.claims.find(claim, is_rival).map(|&unit| self.known(offset(unit)))
    }

    /// The one at this path, if it is known.
    pub fn get(&self, path: &[u8]) -> Option<Known<'_>> {
        self.find(path).map(|at| self.known(at))
    }

    /// To be called before an event is acted on. `sure`: no event was lost before
    /// it, so the device at its path is the one that is known. Returns whether it
    /// may take along what belongs to another device, which then has to be acted on
    /// once more.
    pub fn begin(&mut self, event: &Uevent<'_>, sure: bool) -> bool {
        let Some(Tracked { action, path, old_path }) = Tracked::of(event) else { return false };
        let held = self.find(path);
        match (action, held) {
            (b"add", Some(at)) => {
                let identity = self.told(event, None);
                if same(identity_at(self.storage.bytes(), at), &identity) {
                    // Perhaps another one all the same.
                    put(self.storage.bytes_mut(), at + AT_INCARNATION, 0);
                    self.set_state(at, BEGUN);
                } else {
                    self.replace(path, &identity, BEGUN, 0);
                }
                self.scratch = identity;
            }
            (b"add", None) => {
                let identity = self.told(event, None);
                self.replace(path, &identity, BEGUN, 0);
                self.scratch = identity;
            }
            (b"remove", held) => {
                let own = held.filter(|&at| self.tells_of(event, at));
                if let Some(at) = own {
                    self.set_state(at, BEGUN);
                }
                return self.unsettle_namesakes(event, own);
            }
            (b"move", _) => {
                if let Some(old) = old_path {
                    self.begin_move(event, old, path, sure);
                }
            }
            // An event of any kind but these tells who the device is now.
            (_, Some(at)) => {
                self.set_state(at, BEGUN);
                let identity = self.told(event, Some(at));
                let bytes = self.storage.bytes();
                let known = identity_at(bytes, at);
                if sure && !same(known, &identity) && identity::may_be_of(&identity, known) {
                    let incarnation = get(bytes, at + AT_INCARNATION);
                    self.replace(path, &identity, BEGUN, incarnation);
                }
                self.scratch = identity;
            }
            (_, None) => {}
        }
        false
    }

    /// What is made of one device by its name is taken along by any other of that
    /// name that goes: one that came before it, and went unseen. Returns whether there
    /// are such, but the one that goes.
    fn unsettle_namesakes(&mut self, event: &Uevent<'_>, own: Option<usize>) -> bool {
        let Some(name) = event.last(b"DEVNAME").map(CStr::to_bytes) else { return false };
        let bytes = self.storage.bytes();
        let found = self.names.iter_hash(hash(name)).map(|&unit| offset(unit));
        let others = found.filter(|&at| Some(at) != own && name_at(bytes, at) == Some(name));
        let others: Vec<usize> = others.collect();
        for &at in &others {
            self.set_state(at, BEGUN);
            // Nor is it settled when something else has happened to it.
            put(self.storage.bytes_mut(), at + AT_INCARNATION, UNDONE);
        }
        !others.is_empty()
    }

    /// To be called after it has been acted on.
    pub fn finish(&mut self, event: &Uevent<'_>) {
        let Some(Tracked { action, path, old_path }) = Tracked::of(event) else { return };
        let Some(at) = self.find(path) else { return };
        match (action, old_path) {
            (b"remove", _) => {
                if self.tells_of(event, at) {
                    self.kill(at);
                    self.shrink();
                }
            }
            (b"move", Some(old_path)) => self.finish_move(old_path, path),
            _ => self.set_state(at, SETTLED),
        }
    }

    /// Whether an event may be of the device that is known at its path.
    fn tells_of(&mut self, event: &Uevent<'_>, at: usize) -> bool {
        let told = self.told(event, None);
        let known = identity_at(self.storage.bytes(), at);
        let may_be = identity::may_be_of(&told, known);
        self.scratch = told;
        may_be
    }

    /// The identity that an event tells, of a device that is known if it is one.
    /// It is the scratch space, to be put back.
    fn told(&mut self, event: &Uevent<'_>, known: Option<usize>) -> Vec<u8> {
        let mut identity = std::mem::take(&mut self.scratch);
        let known = known.map(|at| identity_at(self.storage.bytes(), at));
        identity::update(event, known.unwrap_or_default(), &mut identity);
        identity
    }

    /// What the incarnation of a device is, now that it is known for sure.
    pub fn set_incarnation(&mut self, path: &[u8], incarnation: u64) {
        let Some(at) = self.find(path) else { return };
        if get(self.storage.bytes(), at + AT_INCARNATION) != UNDONE {
            put(self.storage.bytes_mut(), at + AT_INCARNATION, incarnation);
        }
    }

    /// It is not certain any more which incarnation of the device was acted on.
    pub fn doubt(&mut self, path: &[u8]) {
        self.set_incarnation(path, 0);
    }

    /// Which incarnation of the device was acted on is to be looked up.
    pub fn mark_unseen(&mut self, path: &[u8]) {
        self.set_incarnation(path, UNSEEN);
    }

    /// The device could not be looked at: it is to be acted on once more.
    pub fn unsettle(&mut self, path: &[u8]) {
        if let Some(at) = self.find(path) {
            self.set_state(at, BEGUN);
        }
    }

    /// The device, and all below it, are about to be known elsewhere: they are
    /// in both places until then.
    fn begin_move(&mut self, event: &Uevent<'_>, old: &[u8], new: &[u8], sure: bool) {
        for rest in self.rests(old) {
            let (from, to) = ([old, &rest].concat(), [new, &rest].concat());
            let Some(at) = self.find(&from) else { continue };
            let bytes = self.storage.bytes();
            let identity = identity_at(bytes, at).to_vec();
            let incarnation = get(bytes, at + AT_INCARNATION);
            self.replace(&to, &identity, BEGUN, incarnation);
        }
        let held = self.find(old).or_else(|| self.find(new));
        let mut identity = self.told(event, held);
        let mut incarnation = UNDONE;
        if let Some(at) = held {
            let bytes = self.storage.bytes();
            let known = identity_at(bytes, at);
            // What else was begun for it is not done by that.
            if bytes[at + AT_STATE] == SETTLED {
                incarnation = get(bytes, at + AT_INCARNATION);
            }
            // The number of an interface tells for sure; its name may have changed before.
            let interface = |identity| identity::number(identity, b"IFINDEX");
            let is_same = interface(known).is_some() && interface(known) == interface(&identity);
            let may_be = is_same || sure && identity::may_be_of(&identity, known);
            if !may_be {
                known.clone_into(&mut identity);
            }
        }
        self.replace(new, &identity, BEGUN, incarnation);
        self.scratch = identity;
    }

    fn finish_move(&mut self, old: &[u8], new: &[u8]) {
        for rest in self.rests(old) {
            let (from, to) = ([old, &rest].concat(), [new, &rest].concat());
            let (Some(from), Some(to)) = (self.find(&from), self.find(&to)) else { continue };
            // In this order: settled before the other one is gone, it would be
            // removed as what is gone, and not added.
            let state = self.storage.bytes()[from + AT_STATE];
            self.kill(from);
            self.set_state(to, state);
        }
        if let Some(at) = self.find(old).filter(|_| old != new) {
            self.kill(at);
        }
        if let Some(at) = self.find(new)
            && get(self.storage.bytes(), at + AT_INCARNATION) != UNDONE
        {
            self.set_state(at, SETTLED);
        }
    }

    /// Forgets the queues of the network interface of this path.
    pub fn forget_queues(&mut self, path: &[u8]) {
        for kind in ["rx", "tx"] {
            let queue =
                |number: u32| [path, format!("/queues/{kind}-{number}").as_bytes()].concat();
            let queues = (0..).map_while(|number| self.find(&queue(number)));
            queues.collect::<Vec<_>>().into_iter().for_each(|at| self.kill(at));
        }
    }

    /// What comes after this path in those of all devices below it.
    fn rests(&self, path: &[u8]) -> Vec<Vec<u8>> {
        self.below(path).map(|known| known.path[path.len()..].to_vec()).collect()
    }
}

impl<S> fmt::Debug for Inventory<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inventory").field("devices", &self.index.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
