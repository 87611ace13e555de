//! Who a device is: the variables that tell it from another one that has, or
//! had, the same path.
//!
//! An identity is these variables, `KEY=VALUE` with a NUL after each, in the
//! order of their table: two are the same if their bytes are. With them a
//! `remove` can be made of a device that went unseen.
#![forbid(unsafe_code)]

use super::hash;
use crate::uevent::{Field, Uevent};

/// The variables, in their order.
const KEYS: [&[u8]; 13] = [
    b"SUBSYSTEM",
    b"MAJOR",
    b"MINOR",
    b"DEVNAME",
    b"DEVTYPE",
    b"PARTN",
    b"DISKSEQ",
    b"INTERFACE",
    b"IFINDEX",
    b"BUSNUM",
    b"DEVNUM",
    b"PRODUCT",
    b"MODALIAS",
];

/// The place of a variable among them: soon told, where comparing it with one after the
/// other takes most of the time that an event's identity does.
fn place(key: &[u8]) -> Option<usize> {
    Some(match key {
        b"SUBSYSTEM" => 0,
        b"MAJOR" => 1,
        b"MINOR" => 2,
        b"DEVNAME" => 3,
        b"DEVTYPE" => 4,
        b"PARTN" => 5,
        b"DISKSEQ" => 6,
        b"INTERFACE" => 7,
        b"IFINDEX" => 8,
        b"BUSNUM" => 9,
        b"DEVNUM" => 10,
        b"PRODUCT" => 11,
        b"MODALIAS" => 12,
        _ => return None,
    })
}

/// Those of the variables that are left out where they are longer than this:
/// the devices that have such are told apart by their path.
const LONG: [&[u8]; 2] = [b"PRODUCT", b"MODALIAS"];
const LONG_MAX: usize = 100;

/// An event of a device, of which there can be something to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracked<'a> {
    /// Its ACTION.
    pub action: &'a [u8],
    /// Its DEVPATH.
    pub path: &'a [u8],
    /// Its DEVPATH_OLD: where the device was before a `move`.
    pub old_path: Option<&'a [u8]>,
}

impl<'a> Tracked<'a> {
    /// If it is one. What has no subsystem, or is not below /sys/devices, such as
    /// modules and drivers, is none.
    pub fn of(event: &Uevent<'a>) -> Option<Self> {
        let path = event.path().filter(|path| path.starts_with(b"/devices/"))?;
        event.subsystem()?;
        Some(Self { action: event.action()?, path, old_path: event.old_path() })
    }
}

/// Writes the identity that an event tells, in place of what is there.
pub fn write(event: &Uevent<'_>, identity: &mut Vec<u8>) {
    update(event, b"", identity);
}

/// The same, for a device that was `known` by another identity: what the event
/// does not tell has not changed.
pub fn update(event: &Uevent<'_>, known: &[u8], identity: &mut Vec<u8>) {
    let mut found: [Option<Field<'_>>; KEYS.len()] = [None; KEYS.len()];
    for field in event.fields() {
        if let Some(place) = place(field.key()) {
            found[place] = Some(field);
        }
    }
    identity.clear();
    for (key, field) in KEYS.into_iter().zip(found) {
        match field {
            Some(field) if field.value_bytes().len() > LONG_MAX && LONG.contains(&key) => {}
            Some(field) => identity.extend_from_slice(field.whole_with_nul()),
            None => {
                if let Some(value) = value(known, key) {
                    for part in [key, b"=", value, b"\0"] {
                        identity.extend_from_slice(part);
                    }
                }
            }
        }
    }
}

/// The value of a variable in an identity.
pub fn value<'a>(identity: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    // Byte by byte: most differ in the first one, and to compare all at once is a call.
    let is_it = |field: &&[u8]| {
        field.get(key.len()) == Some(&b'=')
            && field.iter().zip(key).all(|(one, other)| one == other)
    };
    identity.split(|&b| b == 0).find(is_it).map(|field| &field[key.len() + 1..])
}

/// The value of a variable that is a number.
pub fn number(identity: &[u8], key: &[u8]) -> Option<u64> {
    std::str::from_utf8(value(identity, key)?).ok()?.parse().ok()
}

/// What no two devices have at the same time: the kind and the numbers of a node, or
/// the name of a network interface.
fn claimed(identity: &[u8]) -> Option<[&[u8]; 3]> {
    let subsystem = value(identity, b"SUBSYSTEM")?;
    if let (Some(major), Some(minor)) = (value(identity, b"MAJOR"), value(identity, b"MINOR")) {
        let kind = if subsystem == b"block" { &b"block"[..] } else { b"character" };
        return Some([kind, major, minor]);
    }
    let name = value(identity, b"INTERFACE").filter(|_| subsystem == b"net")?;
    Some([b"net", name, b""])
}

/// A hash of what no two devices have at the same time, if there is such a thing.
pub fn claim(identity: &[u8]) -> Option<u64> {
    claimed(identity).map(|[kind, first, second]| {
        hash(kind).rotate_left(11) ^ hash(first).rotate_left(5) ^ hash(second)
    })
}

/// Whether both have the same of these.
pub fn claim_the_same(one: &[u8], other: &[u8]) -> bool {
    claimed(one).is_some() && claimed(one) == claimed(other)
}

/// Whether an event that tells `told` may be of the device that is `known`, and
/// not of one that was at its path before. Sequence numbers of disks only grow.
pub fn may_be_of(told: &[u8], known: &[u8]) -> bool {
    let differs = |key: &[u8]| match (value(told, key), value(known, key)) {
        (Some(told), Some(known)) => told != known,
        _ => false,
    };
    let older = match (number(told, b"DISKSEQ"), number(known, b"DISKSEQ")) {
        (Some(told), Some(known)) => told < known,
        _ => false,
    };
    !older && ![&b"MAJOR"[..], b"MINOR", b"IFINDEX"].into_iter().any(differs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_variable_has_its_place() {
        for (index, key) in KEYS.into_iter().enumerate() {
            assert_eq!(place(key), Some(index), "{}", key.escape_ascii());
        }
        assert_eq!(place(b"DEVPATH"), None);
    }
}
