//! The bytes of an inventory: a header that leads to a region; a region of records,
//! one after the other, which only grows; when much of it is dead, what is alive is copied
//! to another region, and the header leads there.
//!
//! A number that leads somewhere is stored at once with its check, and what never
//! changes of a record has a checksum: damage is told.
#![forbid(unsafe_code)]

use super::identity;

pub(super) const MAGIC: &[u8; 8] = b"plugdinv";
pub(super) const VERSION: u64 = 4;

/// Offsets in the header, in bytes.
pub(super) const AT_VERSION: usize = 8;
pub(super) const AT_REGION: usize = 16;
pub(super) const AT_ENGINE: usize = 24;
pub(super) const AT_BOOT: usize = 32;
pub(super) const AT_PROGRESS: usize = 72;
pub(super) const HEADER: usize = 80;

/// Stands for the kind of progress that has no SEQNUM.
pub(super) const UNKNOWN: u64 = 0;
/// What tells that the inventory was left, beside a SEQNUM; and the greatest of these.
pub(super) const LEFT: u64 = 1 << (CHECK_AT - 1);
pub(super) const NUMBER_MAX: u64 = LEFT - 1;

/// Greatest number in a word with a check: see [`put_checked`].
pub(super) const WORD_MAX: u64 = (1 << CHECK_AT) - 1;
const CHECK_AT: u32 = 48;

/// Offsets in a region: its size and how much of it is used, both with this head.
pub(super) const AT_CAPACITY: usize = 0;
pub(super) const AT_USED: usize = 8;
pub(super) const REGION_HEAD: usize = 16;
/// No region is smaller.
pub(super) const REGION_MIN: usize = 4096 - HEADER;

/// Offsets in a record: lengths, state, a checksum of what never changes.
pub(super) const AT_PATH_LENGTH: usize = 0;
pub(super) const AT_IDENTITY_LENGTH: usize = 2;
pub(super) const AT_STATE: usize = 4;
pub(super) const AT_SUM: usize = 8;
pub(super) const AT_INCARNATION: usize = 16;
pub(super) const RECORD_HEAD: usize = 24;

/// States of a record: not a single bit makes another one of each.
pub(super) const DEAD: u8 = 0b0000_1111;
pub(super) const BEGUN: u8 = 0b0011_0011;
pub(super) const SETTLED: u8 = 0b0101_0101;

/// Stand for incarnations: not all was done that is to be done when a device comes;
/// and what it is has still to be looked up.
pub(super) const UNDONE: u64 = u64::MAX;
pub(super) const UNSEEN: u64 = u64::MAX - 1;

/// Everything is aligned to that many bytes, so that no store is torn.
pub(super) const ALIGNMENT: usize = 8;

pub(super) fn offset(unit: u32) -> usize {
    unit as usize * ALIGNMENT
}

fn length_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]))
}

pub(super) fn record_size(bytes: &[u8], at: usize) -> usize {
    let lengths = length_at(bytes, at + AT_PATH_LENGTH) + length_at(bytes, at + AT_IDENTITY_LENGTH);
    (RECORD_HEAD + lengths).next_multiple_of(ALIGNMENT)
}

pub(super) fn path_at(bytes: &[u8], at: usize) -> &[u8] {
    &bytes[at + RECORD_HEAD..][..length_at(bytes, at + AT_PATH_LENGTH)]
}

pub(super) fn identity_at(bytes: &[u8], at: usize) -> &[u8] {
    let start = at + RECORD_HEAD + length_at(bytes, at + AT_PATH_LENGTH);
    &bytes[start..][..length_at(bytes, at + AT_IDENTITY_LENGTH)]
}

pub(super) fn name_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    identity::value(identity_at(bytes, at), b"DEVNAME")
}

pub(super) fn get(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}

pub(super) fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
}

/// Puts a number of at most 48 bits, and in the rest of the word a check against
/// damage: they are stored at once.
pub(super) fn put_checked(bytes: &mut [u8], at: usize, value: u64) {
    put(bytes, at, value | check(value));
}

/// The number there, if its check is right.
pub(super) fn get_checked(bytes: &[u8], at: usize) -> Option<u64> {
    let word = get(bytes, at);
    let value = word & WORD_MAX;
    (word == value | check(value)).then_some(value)
}

fn check(value: u64) -> u64 {
    hash(&value.to_ne_bytes()) >> CHECK_AT << CHECK_AT
}

pub(super) fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

pub(super) fn checksum(path: &[u8], identity: &[u8]) -> u64 {
    hash(path).rotate_left(7) ^ hash(identity) ^ (path.len() as u64) << 32
}

/// Whether a file that begins like this may be overwritten: it was an inventory,
/// or nothing.
pub fn begins_like_one(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC) || bytes.iter().take(MAGIC.len()).all(|&byte| byte == 0)
}

/// Whether both are the same, which most that are compared here are: word by word, as
/// there are C libraries that go byte by byte (musl's memcmp).
pub(super) fn same(one: &[u8], other: &[u8]) -> bool {
    let ((words, rest), (other_words, other_rest)) = (one.as_chunks::<8>(), other.as_chunks::<8>());
    let mut pairs = words.iter().zip(other_words);
    one.len() == other.len()
        && pairs.all(|(one, other)| u64::from_ne_bytes(*one) == u64::from_ne_bytes(*other))
        && rest == other_rest
}

/// A hash of bytes, fast and good enough for a table and against damage.
pub fn hash(bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(ODD).rotate_left(29);
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = bytes.len() as u64;
    let hash = words.iter().fold(hash, |hash, word| mix(hash, u64::from_ne_bytes(*word)));
    // Byte by byte: to copy so few is a call of memcpy.
    let last = rest.iter().rev().fold(0, |last, &byte| last << 8 | u64::from(byte));
    mix(mix(hash, u64::from_le(last)), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is a part of the format: who changes it changes the version.
    #[cfg(target_endian = "little")]
    #[test]
    fn hashes_stay_the_same() {
        assert_eq!(hash(b"abc"), 0x2502_d190_af4f_21c8);
        assert_eq!(hash(b"12345678"), 0x57ef_2132_3cb1_e50f);
        assert_eq!(hash(b"/devices/virtual/mem/null"), 0x44f0_7038_b4a3_e0d7);
        assert_eq!(VERSION, 4);
    }
}
