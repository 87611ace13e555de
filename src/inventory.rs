//! The devices that have been acted on, and who they are: what there is to
//! compare with what is there.
//!
//! Pure: it lives in bytes that somebody else keeps, in memory or in a file
//! that is mapped there and outlives the process. So every change is made in an
//! order in which the bytes mean something at any moment: a process that is
//! killed between two stores leaves either what was or what is. What is about
//! to be acted on is noted before, as not settled, and settled after: an act
//! may be repeated by the next process, but none is forgotten.
//!
//! The bytes: a header that leads to a region; a region of records, one after
//! the other, which only grows until it is full; then what is alive of it is
//! copied to another region, and the header leads there.
#![forbid(unsafe_code)]

pub mod identity;
mod judgment;

use std::ffi::CStr;
use std::fmt;
use std::sync::atomic::{Ordering, compiler_fence};

use hashbrown::HashTable;

use crate::uevent::Uevent;

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
    /// What was last begun for it was also finished.
    pub settled: bool,
}

/// Whether every event was acted on before the inventory was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Perhaps not.
    Unknown,
    /// All up to the one with this SEQNUM.
    Through(u64),
    /// All, until it was left on purpose.
    Left,
}

const MAGIC: &[u8; 8] = b"plugdinv";
const VERSION: u64 = 3;

/// Offsets in the header, in bytes.
const AT_VERSION: usize = 8;
const AT_REGION: usize = 16;
const AT_ENGINE: usize = 24;
const AT_BOOT: usize = 32;
const AT_PROGRESS: usize = 72;
const HEADER: usize = 80;

/// Stand for the other kinds of progress where a SEQNUM would be.
const UNKNOWN: u64 = 0;
const LEFT: u64 = WORD_MAX;

/// Greatest number in a word with a check: see [`put_checked`].
const WORD_MAX: u64 = (1 << CHECK_AT) - 1;
const CHECK_AT: u32 = 48;

/// Offsets in a region: its size and how much of it is used, both with this head.
const AT_CAPACITY: usize = 0;
const AT_USED: usize = 8;
const REGION_HEAD: usize = 16;
/// No region is smaller.
const REGION_MIN: usize = 4096 - HEADER;

/// Offsets in a record: lengths, state, a checksum of what never changes.
const AT_PATH_LENGTH: usize = 0;
const AT_IDENTITY_LENGTH: usize = 2;
const AT_STATE: usize = 4;
const AT_SUM: usize = 8;
const AT_INCARNATION: usize = 16;
const RECORD_HEAD: usize = 24;

/// States of a record: not a single bit makes another one of each.
const DEAD: u8 = 0b0000_1111;
const BEGUN: u8 = 0b0011_0011;
const SETTLED: u8 = 0b0101_0101;

/// Stand for incarnations: not all was done that is to be done when a device comes;
/// and what it is has still to be looked up.
const UNDONE: u64 = u64::MAX;
const UNSEEN: u64 = u64::MAX - 1;

/// Everything is aligned to that many bytes, so that no store is torn.
const ALIGNMENT: usize = 8;

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
    /// An empty one.
    pub fn new(mut storage: S, world: World) -> Self {
        let bytes = storage.bytes_mut();
        // Whatever was there is invalid from here on.
        bytes.iter_mut().take(MAGIC.len()).for_each(|byte| *byte = 0);
        compiler_fence(Ordering::SeqCst);
        storage.resize(0);
        storage.resize(HEADER + REGION_MIN);
        let bytes = storage.bytes_mut();
        put(bytes, AT_VERSION, VERSION);
        put_checked(bytes, AT_REGION, HEADER as u64);
        put_checked(bytes, AT_PROGRESS, UNKNOWN);
        put(bytes, AT_ENGINE, world.engine);
        bytes[AT_BOOT..AT_BOOT + 36].copy_from_slice(&world.boot);
        put_checked(bytes, HEADER + AT_CAPACITY, REGION_MIN as u64);
        put_checked(bytes, HEADER + AT_USED, REGION_HEAD as u64);
        compiler_fence(Ordering::SeqCst);
        bytes[..MAGIC.len()].copy_from_slice(MAGIC);
        Self {
            storage,
            region: HEADER,
            alive: 0,
            index: HashTable::new(),
            claims: HashTable::new(),
            names: HashTable::new(),
            ordered: Vec::new(),
            scratch: Vec::with_capacity(256),
        }
    }

    /// The one that somebody else left.
    ///
    /// # Errors
    /// Says why it is none, or not for this world, and gives the storage back.
    pub fn load(storage: S, world: World) -> Result<Self, (Unusable, S)> {
        let mut inventory = Self {
            storage,
            region: 0,
            alive: 0,
            index: HashTable::new(),
            claims: HashTable::new(),
            names: HashTable::new(),
            ordered: Vec::new(),
            scratch: Vec::with_capacity(256),
        };
        match inventory.read(world) {
            Ok(()) => Ok(inventory),
            Err(unusable) => Err((unusable, inventory.storage)),
        }
    }

    fn read(&mut self, world: World) -> Result<(), Unusable> {
        let bytes = self.storage.bytes();
        if bytes.is_empty() {
            return Err(Unusable::Empty);
        }
        if bytes.len() < HEADER + REGION_HEAD || &bytes[..MAGIC.len()] != MAGIC {
            return Err(Unusable::Damaged);
        }
        if get(bytes, AT_VERSION) != VERSION {
            return Err(Unusable::Version);
        }
        if bytes[AT_BOOT..AT_BOOT + 36] != world.boot {
            return Err(Unusable::Boot);
        }
        if get(bytes, AT_ENGINE) != world.engine {
            return Err(Unusable::Engine);
        }
        let checked = |at| get_checked(bytes, at).map(to_usize).ok_or(Unusable::Damaged);
        let region = checked(AT_REGION)?;
        if region < HEADER || region > bytes.len() - REGION_HEAD || region % ALIGNMENT != 0 {
            return Err(Unusable::Damaged);
        }
        let (capacity, used) = (checked(region + AT_CAPACITY)?, checked(region + AT_USED)?);
        let aligned = capacity % ALIGNMENT == 0;
        if !aligned || capacity > bytes.len() - region || used > capacity || used < REGION_HEAD {
            return Err(Unusable::Damaged);
        }
        checked(AT_PROGRESS)?;
        self.region = region;
        let (mut at, end) = (region + REGION_HEAD, region + used);
        while at < end {
            let bytes = self.storage.bytes();
            if end - at < RECORD_HEAD || end - at < record_size(bytes, at) {
                return Err(Unusable::Damaged);
            }
            let sum = checksum(path_at(bytes, at), identity_at(bytes, at));
            let has_state = [DEAD, BEGUN, SETTLED].contains(&bytes[at + AT_STATE]);
            if get(bytes, at + AT_SUM) != sum || !has_state {
                return Err(Unusable::Damaged);
            }
            let size = record_size(bytes, at);
            if bytes[at + AT_STATE] != DEAD {
                // Of two, the older one was about to be declared dead.
                if let Some(older) = self.find(path_at(bytes, at)) {
                    self.kill(older);
                }
                self.enter(at);
            }
            at += size;
        }
        Ok(())
    }

    /// How far events were acted on.
    pub fn progress(&self) -> Progress {
        match get_checked(self.storage.bytes(), AT_PROGRESS) {
            None | Some(UNKNOWN) => Progress::Unknown,
            Some(LEFT) => Progress::Left,
            Some(number) => Progress::Through(number),
        }
    }

    /// Notes how far events were acted on.
    pub fn set_progress(&mut self, progress: Progress) {
        let word = match progress {
            Progress::Unknown => UNKNOWN,
            Progress::Through(number) => number,
            Progress::Left => LEFT,
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
                if identity_at(self.storage.bytes(), at) == identity {
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
                if sure && known != identity && identity::may_be_of(&identity, known) {
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
            // Nor is all done for it when something else has happened to it.
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
            incarnation = get(bytes, at + AT_INCARNATION);
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

    /// Puts a record in place of the one with that path, if there is one.
    fn replace(&mut self, path: &[u8], identity: &[u8], state: u8, incarnation: u64) {
        let (Ok(path_length), Ok(identity_length)) =
            (u16::try_from(path.len()), u16::try_from(identity.len()))
        else {
            return;
        };
        let size = (RECORD_HEAD + path.len() + identity.len()).next_multiple_of(ALIGNMENT);
        self.make_room(size);
        let older = self.find(path);
        let bytes = self.storage.bytes_mut();
        let used = self.region + AT_USED;
        let at = self.region + to_usize(get(bytes, used) & WORD_MAX);
        let record = &mut bytes[at..at + size];
        record.fill(0);
        record[AT_PATH_LENGTH..][..2].copy_from_slice(&path_length.to_ne_bytes());
        record[AT_IDENTITY_LENGTH..][..2].copy_from_slice(&identity_length.to_ne_bytes());
        record[AT_STATE] = state;
        record[RECORD_HEAD..][..path.len()].copy_from_slice(path);
        record[RECORD_HEAD + path.len()..][..identity.len()].copy_from_slice(identity);
        put(record, AT_SUM, checksum(path, identity));
        put(record, AT_INCARNATION, incarnation);
        compiler_fence(Ordering::SeqCst);
        put_checked(bytes, used, (at + size - self.region) as u64);
        compiler_fence(Ordering::SeqCst);
        if let Some(older) = older {
            self.kill(older);
        }
        self.enter(at);
    }

    /// Sees to it that a record of that size fits in the region.
    fn make_room(&mut self, size: usize) {
        let bytes = self.storage.bytes();
        let capacity = to_usize(get(bytes, self.region + AT_CAPACITY) & WORD_MAX);
        if to_usize(get(bytes, self.region + AT_USED) & WORD_MAX) + size <= capacity {
            return;
        }
        let needed = REGION_HEAD + self.alive + size;
        let new_capacity =
            (needed + needed / 2).next_multiple_of(4096).max(HEADER + REGION_MIN) - HEADER;
        let old = self.region;
        let new = if HEADER + new_capacity <= old { HEADER } else { old + capacity };
        if self.storage.bytes().len() < new + new_capacity {
            self.storage.resize(new + new_capacity);
        }
        let ordered = std::mem::take(&mut self.ordered);
        self.ordered.reserve_exact(ordered.len() + ordered.len() / 2);
        let mut end = new + REGION_HEAD;
        self.index.clear();
        self.claims.clear();
        self.names.clear();
        for at in ordered.into_iter().map(offset) {
            let bytes = self.storage.bytes_mut();
            let size = record_size(bytes, at);
            bytes.copy_within(at..at + size, end);
            self.insert(end);
            end += size;
        }
        let bytes = self.storage.bytes_mut();
        put_checked(bytes, new + AT_CAPACITY, new_capacity as u64);
        put_checked(bytes, new + AT_USED, (end - new) as u64);
        compiler_fence(Ordering::SeqCst);
        put_checked(bytes, AT_REGION, new as u64);
        compiler_fence(Ordering::SeqCst);
        self.region = new;
        if new < old {
            self.storage.resize(new + new_capacity);
        }
    }

    fn find(&self, path: &[u8]) -> Option<usize> {
        let bytes = self.storage.bytes();
        let same = |&unit: &u32| path_at(bytes, offset(unit)) == path;
        self.index.find(hash(path), same).map(|&unit| offset(unit))
    }

    /// Makes a record one that can be found.
    fn enter(&mut self, at: usize) {
        self.insert(at);
        let bytes = self.storage.bytes();
        self.alive += record_size(bytes, at);
    }

    fn insert(&mut self, at: usize) {
        // 32 GiB of devices would not fit in any /sys.
        let Ok(unit) = u32::try_from(at / ALIGNMENT) else { return };
        let bytes = self.storage.bytes();
        let rehash = |&unit: &u32| hash(path_at(bytes, offset(unit)));
        self.index.insert_unique(hash(path_at(bytes, at)), unit, rehash);
        let place = self.count(|path| path < path_at(bytes, at));
        self.ordered.insert(place, unit);
        let bytes = self.storage.bytes();
        let identity = identity_at(bytes, at);
        if let Some(claim) = identity::claim(identity) {
            let same =
                |&unit: &u32| identity::claim_the_same(identity_at(bytes, offset(unit)), identity);
            let rehash =
                |&unit: &u32| identity::claim(identity_at(bytes, offset(unit))).unwrap_or(0);
            // Of two, the later one has it.
            *self.claims.entry(claim, same, rehash).or_insert(unit).get_mut() = unit;
        }
        if let Some(name) = name_at(bytes, at) {
            let rehash = |&unit: &u32| hash(name_at(bytes, offset(unit)).unwrap_or_default());
            self.names.insert_unique(hash(name), unit, rehash);
        }
    }

    fn kill(&mut self, at: usize) {
        self.set_state(at, DEAD);
        let bytes = self.storage.bytes();
        let found = self.index.find_entry(hash(path_at(bytes, at)), |&unit| offset(unit) == at);
        if let Ok(found) = found {
            found.remove();
            self.alive -= record_size(bytes, at);
        }
        let place = self.count(|path| path < path_at(bytes, at));
        if self.ordered.get(place).is_some_and(|&unit| offset(unit) == at) {
            self.ordered.remove(place);
        }
        let bytes = self.storage.bytes();
        if let Some(claim) = identity::claim(identity_at(bytes, at))
            && let Ok(found) = self.claims.find_entry(claim, |&unit| offset(unit) == at)
        {
            found.remove();
        }
        if let Some(name) = name_at(bytes, at)
            && let Ok(found) = self.names.find_entry(hash(name), |&unit| offset(unit) == at)
        {
            found.remove();
        }
    }

    fn set_state(&mut self, at: usize, state: u8) {
        compiler_fence(Ordering::SeqCst);
        self.storage.bytes_mut()[at + AT_STATE] = state;
        compiler_fence(Ordering::SeqCst);
    }

    fn known(&self, at: usize) -> Known<'_> {
        let bytes = self.storage.bytes();
        Known {
            path: path_at(bytes, at),
            identity: identity_at(bytes, at),
            incarnation: match get(bytes, at + AT_INCARNATION) {
                UNDONE | UNSEEN => 0,
                incarnation => incarnation,
            },
            settled: bytes[at + AT_STATE] == SETTLED,
        }
    }
}

impl<S> fmt::Debug for Inventory<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inventory").field("devices", &self.index.len()).finish_non_exhaustive()
    }
}

fn offset(unit: u32) -> usize {
    unit as usize * ALIGNMENT
}

fn length_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]))
}

fn record_size(bytes: &[u8], at: usize) -> usize {
    let lengths = length_at(bytes, at + AT_PATH_LENGTH) + length_at(bytes, at + AT_IDENTITY_LENGTH);
    (RECORD_HEAD + lengths).next_multiple_of(ALIGNMENT)
}

fn path_at(bytes: &[u8], at: usize) -> &[u8] {
    &bytes[at + RECORD_HEAD..][..length_at(bytes, at + AT_PATH_LENGTH)]
}

fn identity_at(bytes: &[u8], at: usize) -> &[u8] {
    let start = at + RECORD_HEAD + length_at(bytes, at + AT_PATH_LENGTH);
    &bytes[start..][..length_at(bytes, at + AT_IDENTITY_LENGTH)]
}

fn name_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    identity::value(identity_at(bytes, at), b"DEVNAME")
}

fn get(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
}

/// Puts a number of at most 48 bits, and in the rest of the word a check against
/// damage: they are stored at once.
fn put_checked(bytes: &mut [u8], at: usize, value: u64) {
    put(bytes, at, value | check(value));
}

/// The number there, if its check is right.
fn get_checked(bytes: &[u8], at: usize) -> Option<u64> {
    let word = get(bytes, at);
    let value = word & WORD_MAX;
    (word == value | check(value)).then_some(value)
}

fn check(value: u64) -> u64 {
    hash(&value.to_ne_bytes()) >> CHECK_AT << CHECK_AT
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn checksum(path: &[u8], identity: &[u8]) -> u64 {
    hash(path).rotate_left(7) ^ hash(identity) ^ (path.len() as u64) << 32
}

/// Whether a file that begins like this may be overwritten: it was an inventory,
/// or nothing.
pub fn begins_like_one(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC) || bytes.iter().take(MAGIC.len()).all(|&byte| byte == 0)
}

/// A hash of bytes, fast and good enough for a table and against damage.
pub fn hash(bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(ODD).rotate_left(29);
    let mut chunks = bytes.chunks_exact(8);
    let mut hash = bytes.len() as u64;
    for chunk in &mut chunks {
        hash = mix(hash, get(chunk, 0));
    }
    let mut rest = [0; 8];
    rest[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    mix(mix(hash, u64::from_ne_bytes(rest)), 0)
}

#[cfg(test)]
mod tests;
