//! Where the devices are in the bytes, so that a kill between any two stores leaves
//! what was or what is; and the tables by which they are found.
#![forbid(unsafe_code)]

use std::sync::atomic::{Ordering, compiler_fence};

use hashbrown::HashTable;

use super::format::{
    ALIGNMENT, AT_BOOT, AT_CAPACITY, AT_ENGINE, AT_IDENTITY_LENGTH, AT_INCARNATION, AT_PATH_LENGTH,
    AT_PROGRESS, AT_REGION, AT_STATE, AT_SUM, AT_USED, AT_VERSION, BEGUN, DEAD, HEADER, MAGIC,
    RECORD_HEAD, REGION_HEAD, REGION_MIN, SETTLED, UNDONE, UNKNOWN, UNSEEN, VERSION, WORD_MAX,
    checksum, get, get_checked, hash, identity_at, name_at, offset, path_at, put, put_checked,
    record_size, same, to_usize,
};
use super::{Inventory, Known, Storage, Unusable, World, identity};

/// The bytes of most records, at most.
const COMMON_SIZE: usize = 144;

/// So many bytes of devices that have gone are not worth the trouble; in tests, which have
/// few devices, they are.
const DEAD_MAX: usize = if cfg!(test) { 256 } else { 16 * 1024 };

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

    /// Puts a record in place of the one with that path, if there is one.
    pub(super) fn replace(&mut self, path: &[u8], identity: &[u8], state: u8, incarnation: u64) {
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

    /// Makes room for so many more devices, as they commonly are: at once, and not a bit
    /// at a time.
    pub fn reserve(&mut self, devices: usize) {
        let size = devices * COMMON_SIZE;
        if self.room() < size {
            self.extend(size);
        }
        // Not before: to extend it may make this one anew.
        self.ordered.reserve(devices);
        let bytes = self.storage.bytes();
        self.index.reserve(devices, |&unit| hash(path_at(bytes, offset(unit))));
    }

    /// Sees to it that a record of that size fits in the region.
    fn make_room(&mut self, size: usize) {
        if self.room() >= size {
            return;
        }
        let used = self.used();
        if used <= REGION_HEAD + self.alive + self.alive / 2 {
            return self.extend(size + used / 8);
        }
        // Most of what would be gained lies between what is alive.
        let needed = REGION_HEAD + self.alive + size;
        self.compact(needed + needed / 2);
    }

    /// Gives memory back once a fifth of it is of devices that have gone. The records are
    /// elsewhere then.
    pub(super) fn shrink(&mut self) {
        let needed = REGION_HEAD + self.alive;
        let size = needed + needed / 4;
        if self.used() <= size + DEAD_MAX {
            return;
        }
        // It takes more at first. A disk that is full is no reason to lose what is on it.
        let most = self.region + self.number(AT_CAPACITY) + capacity_for(size);
        if self.storage.has_room(most) {
            self.compact(size);
        }
    }

    /// Leaves no gaps between records, in a region of that many bytes.
    fn compact(&mut self, size: usize) {
        self.replace_region(size);
        // To the front, which is free now, so that nothing is kept of what is not needed.
        if self.region > HEADER {
            self.replace_region(size);
        }
    }

    /// Makes the region longer, by what it takes to have so much room: nothing is behind
    /// it.
    fn extend(&mut self, room: usize) {
        if self.region == HEADER && self.number(AT_CAPACITY) <= REGION_MIN {
            // To pages of its own: whoever cuts it off leaves nothing of it but SIGBUS.
            return self.replace_region(HEADER + self.used() + room);
        }
        let end = (self.region + self.used() + room).next_multiple_of(4096);
        if self.storage.bytes().len() < end {
            self.storage.resize(end);
        }
        compiler_fence(Ordering::SeqCst);
        let capacity = (end - self.region) as u64;
        put_checked(self.storage.bytes_mut(), self.region + AT_CAPACITY, capacity);
        compiler_fence(Ordering::SeqCst);
    }

    /// How many bytes of the region are not used.
    fn room(&self) -> usize {
        self.number(AT_CAPACITY).saturating_sub(self.used())
    }

    /// How many are.
    fn used(&self) -> usize {
        self.number(AT_USED)
    }

    /// One of the numbers at the head of the region.
    fn number(&self, at: usize) -> usize {
        to_usize(get(self.storage.bytes(), self.region + at) & WORD_MAX)
    }

    /// Puts all that is known into a region of that many bytes, with the header.
    fn replace_region(&mut self, size: usize) {
        let new_capacity = capacity_for(size);
        let (old, capacity) = (self.region, self.number(AT_CAPACITY));
        let new = if HEADER + new_capacity <= old { HEADER } else { old + capacity };
        if self.storage.bytes().len() < new + new_capacity {
            self.storage.resize(new + new_capacity);
        }
        let ordered = std::mem::take(&mut self.ordered);
        self.ordered.reserve_exact(ordered.len() + ordered.len() / 2);
        let mut end = new + REGION_HEAD;
        // Not cleared: that keeps their memory.
        for table in [&mut self.index, &mut self.claims, &mut self.names] {
            *table = HashTable::with_capacity(table.len());
        }
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

    pub(super) fn find(&self, path: &[u8]) -> Option<usize> {
        let bytes = self.storage.bytes();
        let is_it = |&unit: &u32| same(path_at(bytes, offset(unit)), path);
        self.index.find(hash(path), is_it).map(|&unit| offset(unit))
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

    pub(super) fn kill(&mut self, at: usize) {
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

    pub(super) fn set_state(&mut self, at: usize, state: u8) {
        compiler_fence(Ordering::SeqCst);
        self.storage.bytes_mut()[at + AT_STATE] = state;
        compiler_fence(Ordering::SeqCst);
    }

    pub(super) fn known(&self, at: usize) -> Known<'_> {
        let bytes = self.storage.bytes();
        let incarnation = get(bytes, at + AT_INCARNATION);
        Known {
            path: path_at(bytes, at),
            identity: identity_at(bytes, at),
            incarnation: if matches!(incarnation, UNDONE | UNSEEN) { 0 } else { incarnation },
            settled: bytes[at + AT_STATE] == SETTLED && incarnation != UNDONE,
        }
    }
}

/// How long a region is that is to have so many bytes.
fn capacity_for(size: usize) -> usize {
    size.next_multiple_of(4096).max(HEADER + REGION_MIN) - HEADER
}
