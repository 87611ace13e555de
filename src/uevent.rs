//! A uevent: the bytes of a datagram, read in place.
//!
//! A kernel uevent is `action@devpath NUL KEY=VALUE NUL ... KEY=VALUE NUL`
//! (lib/kobject_uevent.c). Names, values and paths are bytes; text is made of
//! them only for logs, and escaped there. Owns nothing: [`Uevent`] borrows the
//! receive buffer.
#![forbid(unsafe_code)]

pub mod stream;

use std::ffi::CStr;
use std::fmt;

/// Whether a datagram has to begin with `action@devpath`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// The kernel's own events always have it.
    Required,
    /// Other producers may send nothing but `KEY=VALUE` fields.
    Optional,
}

/// What is wrong with a datagram that is no uevent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// It has no bytes at all.
    Empty,
    /// Its last byte is not NUL.
    NoFinalNul,
    /// It does not begin with `action@devpath`.
    NoHeader,
    /// One of its fields, counted from 1 for the first after the header, has no `=`.
    NoEquals(usize),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::NoFinalNul => f.write_str("its last byte is not NUL"),
            Self::NoHeader => f.write_str("it does not begin with action@devpath"),
            Self::NoEquals(n) => write!(f, "its field {n} has no ="),
        }
    }
}

/// A well-formed uevent in somebody's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uevent<'a> {
    /// Empty, or a sequence of NUL-terminated fields, each with a `=`.
    fields: &'a [u8],
    noted: Noted<'a>,
}

/// What is asked for several times for each event, noted when it is read. As for
/// [`Uevent::last`], of equal keys the last one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Noted<'a> {
    action: Option<&'a [u8]>,
    path: Option<&'a [u8]>,
    old_path: Option<&'a [u8]>,
    subsystem: Option<&'a [u8]>,
    number: Option<&'a [u8]>,
    replay: Option<&'a [u8]>,
}

impl<'a> Noted<'a> {
    const NOTHING: Self = Self {
        action: None,
        path: None,
        old_path: None,
        subsystem: None,
        number: None,
        replay: None,
    };

    fn note(&mut self, field: Field<'a>) {
        let slot = match field.key() {
            b"ACTION" => &mut self.action,
            b"DEVPATH" => &mut self.path,
            b"DEVPATH_OLD" => &mut self.old_path,
            b"SUBSYSTEM" => &mut self.subsystem,
            b"SEQNUM" => &mut self.number,
            REPLAY => &mut self.replay,
            _ => return,
        };
        *slot = Some(field.value_bytes());
    }
}

/// One `KEY=VALUE` of a uevent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// With the NUL at its end, and no other.
    bytes: &'a [u8],
    equals: usize,
}

impl<'a> Field<'a> {
    /// Finds the first `=`; `None` if there is none.
    fn new(bytes: &'a [u8]) -> Option<Self> {
        Some(Self { bytes, equals: position(bytes, b'=')? })
    }

    /// `KEY=VALUE`, as it stands in the buffer and as a child's environment takes it.
    pub fn whole(&self) -> &'a CStr {
        CStr::from_bytes_with_nul(self.bytes).unwrap_or_default()
    }

    /// The same with the NUL after it, without looking for that once more.
    pub fn whole_with_nul(&self) -> &'a [u8] {
        self.bytes
    }

    /// What is before the first `=`; may be empty.
    pub fn key(&self) -> &'a [u8] {
        &self.bytes[..self.equals]
    }

    /// What is after the first `=`; may be empty, and may hold any byte but NUL.
    pub fn value(&self) -> &'a CStr {
        CStr::from_bytes_with_nul(&self.bytes[self.equals + 1..]).unwrap_or_default()
    }

    /// The same as bytes, without looking for its end once more.
    pub fn value_bytes(&self) -> &'a [u8] {
        &self.bytes[self.equals + 1..self.bytes.len() - 1]
    }
}

impl<'a> Uevent<'a> {
    /// One without fields.
    pub const EMPTY: Self = Self { fields: &[], noted: Noted::NOTHING };

    /// Reads a datagram.
    ///
    /// Where the header is optional, a first field that has a `@` before any
    /// `=` is taken as one.
    ///
    /// # Errors
    /// Says what is wrong with a datagram that is no uevent.
    pub fn parse(datagram: &'a [u8], header: Header) -> Result<Self, Malformed> {
        let Some(last) = datagram.last() else { return Err(Malformed::Empty) };
        if *last != 0 {
            return Err(Malformed::NoFinalNul);
        }
        let first = CStr::from_bytes_until_nul(datagram).unwrap_or_default();
        let fields = match header_kind(first.to_bytes()) {
            Some(HeaderKind::Complete) => &datagram[first.count_bytes() + 1..],
            None if header == Header::Optional => datagram,
            Some(HeaderKind::Incomplete) | None => return Err(Malformed::NoHeader),
        };
        let mut event = Self { fields, noted: Noted::NOTHING };
        for (index, string) in event.strings().enumerate() {
            event.noted.note(Field::new(string).ok_or(Malformed::NoEquals(index + 1))?);
        }
        Ok(event)
    }

    /// What the fields are made from, each with the NUL at its end.
    fn strings(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.fields;
        std::iter::from_fn(move || {
            let (string, after) = rest.split_at(position(rest, 0)? + 1);
            rest = after;
            Some(string)
        })
    }

    /// Its last ACTION.
    pub fn action(&self) -> Option<&'a [u8]> {
        self.noted.action
    }

    /// Its last DEVPATH.
    pub fn path(&self) -> Option<&'a [u8]> {
        self.noted.path
    }

    /// Its last DEVPATH_OLD: where the device was before a `move`.
    pub fn old_path(&self) -> Option<&'a [u8]> {
        self.noted.old_path
    }

    /// Its last SUBSYSTEM.
    pub fn subsystem(&self) -> Option<&'a [u8]> {
        self.noted.subsystem
    }

    /// Its last SEQNUM, if that is a number.
    pub fn number(&self) -> Option<u64> {
        std::str::from_utf8(self.noted.number?).ok()?.parse().ok()
    }

    /// Its last [`REPLAY`].
    pub fn replay(&self) -> Option<&'a [u8]> {
        self.noted.replay
    }

    /// The `KEY=VALUE` fields, in their order; a key may occur more than once.
    pub fn fields(&self) -> impl Iterator<Item = Field<'a>> + use<'a> {
        self.strings().filter_map(Field::new)
    }

    /// The value of the first field with this key: the one that rules look at,
    /// as in mdevd.
    pub fn first(&self, key: &[u8]) -> Option<&'a CStr> {
        self.values(key).next()
    }

    /// The value of the last field with this key: the one that counts in the
    /// environment of a program.
    pub fn last(&self, key: &[u8]) -> Option<&'a CStr> {
        self.values(key).last()
    }

    fn values(&self, key: &[u8]) -> impl Iterator<Item = &'a CStr> {
        self.strings().filter_map(|string| {
            let value = string.strip_prefix(key)?.strip_prefix(b"=")?;
            CStr::from_bytes_with_nul(value).ok()
        })
    }
}

/// The variable that tells of an event that it is replayed, and why: plugd says so of those
/// that it makes itself, and nobody of any other.
pub const REPLAY: &[u8] = b"PLUGD_REPLAY";

/// Takes all fields with this key out of a datagram, in place. Returns how long it is then.
pub fn remove(datagram: &mut [u8], key: &[u8]) -> usize {
    let (mut from, mut to) = (0, 0);
    while let Some(length) = position(&datagram[from..], 0).map(|end| end + 1) {
        let field = &datagram[from..from + length];
        if !field.strip_prefix(key).is_some_and(|rest| rest.starts_with(b"=")) {
            datagram.copy_within(from..from + length, to);
            to += length;
        }
        from += length;
    }
    to
}

/// Variables that the kernel's driver core has first in an event, if at all
/// (drivers/base/core.c, dev_uevent).
pub(crate) const CORE: [&[u8]; 8] =
    [b"MAJOR", b"MINOR", b"DEVNAME", b"DEVMODE", b"DEVUID", b"DEVGID", b"DEVTYPE", b"DRIVER"];

/// The DEVNAME in the text of a device's file `uevent`, if the driver core says
/// so. What comes later may be part of a value that has a newline in it.
pub fn device_name(text: &[u8]) -> Option<&[u8]> {
    let mut lines = text.split(|&b| b == b'\n').take_while(|line| {
        let key = line.iter().position(|&b| b == b'=').map(|equals| &line[..equals]);
        key.is_some_and(|key| CORE.contains(&key))
    });
    lines.find_map(|line| line.strip_prefix(b"DEVNAME="))
}

/// How many bytes of a name or value a log line shows.
const SHOWN: usize = 256;

/// The beginning of a name or value, escaped for a log line.
pub fn short(bytes: &[u8]) -> impl fmt::Display {
    let (shown, dots) = match bytes.get(..SHOWN) {
        Some(shown) if bytes.len() > SHOWN => (shown, "..."),
        _ => (bytes, ""),
    };
    format!("{}{dots}", shown.escape_ascii())
}

/// Names the event in a log line, as its program sees it: `add /devices/x
/// (SEQNUM 5)`.
impl fmt::Display for Uevent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |key: &[u8]| short(self.last(key).unwrap_or(c"?").to_bytes());
        write!(f, "{} {} (SEQNUM {})", text(b"ACTION"), text(b"DEVPATH"), text(b"SEQNUM"))
    }
}

/// Where a byte is first: eight are looked at at once. Fields are so short that to find
/// them by aligned words, as the standard library does, takes twice as long.
fn position(bytes: &[u8], byte: u8) -> Option<usize> {
    const ONES: u64 = u64::MAX / 0xff;
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word) ^ (ONES * u64::from(byte));
        // The lowest bit that is set is of the first byte that is 0 (Hacker's Delight, 6-1).
        let zeros = word.wrapping_sub(ONES) & !word & ONES << 7;
        if zeros != 0 {
            return Some(index * 8 + zeros.trailing_zeros() as usize / 8);
        }
    }
    Some(words.len() * 8 + rest.iter().position(|&b| b == byte)?)
}

enum HeaderKind {
    Complete,
    Incomplete,
}

/// `None` if the field is no header: it has no `@`, or a `=` before it.
fn header_kind(field: &[u8]) -> Option<HeaderKind> {
    let at = field.iter().position(|&b| b == b'@' || b == b'=')?;
    match (field[at], at, field.len() - at) {
        (b'=', _, _) => None,
        (_, 0, _) | (_, _, 1) => Some(HeaderKind::Incomplete),
        _ => Some(HeaderKind::Complete),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs<'a>(event: &Uevent<'a>) -> Vec<(&'a [u8], &'a [u8])> {
        event.fields().map(|field| (field.key(), field.value().to_bytes())).collect()
    }

    #[test]
    fn a_kernel_event_is_read_in_place() {
        let datagram = b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0A=b=c\0E=\0SEQNUM=7\0";
        let event = Uevent::parse(datagram, Header::Required).unwrap();
        assert_eq!(
            pairs(&event),
            [
                (&b"ACTION"[..], &b"add"[..]),
                (b"DEVPATH", b"/devices/x"),
                (b"A", b"b=c"),
                (b"E", b""),
                (b"SEQNUM", b"7"),
            ]
        );
        assert_eq!(event.last(b"A"), Some(c"b=c"));
        assert_eq!(event.last(b"B"), None);
        assert_eq!(event.to_string(), "add /devices/x (SEQNUM 7)");
    }

    #[test]
    fn of_equal_keys_the_first_and_the_last_are_found() {
        let event = Uevent::parse(b"a@/x\0K=1\0K=2\0J=3\0", Header::Required).unwrap();
        assert_eq!(event.last(b"K"), Some(c"2"));
        assert_eq!(event.first(b"K"), Some(c"1"));
    }

    #[test]
    fn a_log_line_has_its_limits() {
        let datagram = [&b"a@/x\0ACTION=a\0DEVPATH="[..], &[b'x'; 60_000], b"\0"].concat();
        let text = Uevent::parse(&datagram, Header::Required).unwrap().to_string();
        assert_eq!(text, format!("a {}... (SEQNUM ?)", "x".repeat(256)));
    }

    #[test]
    fn fields_are_taken_out() {
        let cases: [(&[u8], &[u8]); 5] = [
            (b"add@/x\0A=1\0K=2\0KK=3\0K=\0B=K=4\0", b"add@/x\0A=1\0KK=3\0B=K=4\0"),
            (b"K=1\0K=2\0", b""),
            (b"A=1\0", b"A=1\0"),
            (b"add@/x\0K\0K", b"add@/x\0K\0"),
            (b"", b""),
        ];
        for (datagram, expected) in cases {
            let mut left = datagram.to_vec();
            let length = remove(&mut left, b"K");
            assert_eq!(
                left[..length].escape_ascii().to_string(),
                expected.escape_ascii().to_string()
            );
        }
    }

    #[test]
    fn a_header_may_be_optional() {
        let bare = b"ACTION=add\0DEVPATH=/devices/x@1\0";
        assert_eq!(Uevent::parse(bare, Header::Required), Err(Malformed::NoHeader));
        assert_eq!(pairs(&Uevent::parse(bare, Header::Optional).unwrap()).len(), 2);
        let with = b"add@/devices/x=1\0ACTION=add\0";
        assert_eq!(pairs(&Uevent::parse(with, Header::Optional).unwrap()).len(), 1);
    }

    #[test]
    fn what_is_wrong_is_told() {
        let cases: [(&[u8], Header, Malformed); 11] = [
            (b"", Header::Required, Malformed::Empty),
            (b"", Header::Optional, Malformed::Empty),
            (b"add@/x\0A=b", Header::Required, Malformed::NoFinalNul),
            (b"\0", Header::Required, Malformed::NoHeader),
            (b"\0", Header::Optional, Malformed::NoEquals(1)),
            (b"add\0A=b\0", Header::Required, Malformed::NoHeader),
            (b"@/x\0A=b\0", Header::Required, Malformed::NoHeader),
            (b"add@\0A=b\0", Header::Optional, Malformed::NoHeader),
            (b"libudev\0\xfe\xed\xca\xfe\0", Header::Required, Malformed::NoHeader),
            (b"add@/x\0A=b\0c\0", Header::Required, Malformed::NoEquals(2)),
            (b"add@/x\0A=b\0\0", Header::Required, Malformed::NoEquals(2)),
        ];
        for (datagram, header, expected) in cases {
            assert_eq!(
                Uevent::parse(datagram, header),
                Err(expected),
                "{} {header:?}",
                datagram.escape_ascii()
            );
        }
    }

    proptest! {
        #[test]
        fn no_datagram_is_read_wrongly(datagram: Vec<u8>, required: bool) {
            let header = if required { Header::Required } else { Header::Optional };
            if let Ok(event) = Uevent::parse(&datagram, header) {
                let read: usize = event.fields().map(|f| f.whole().count_bytes() + 1).sum();
                prop_assert_eq!(read, event.fields.len());
                for field in event.fields() {
                    let again = [field.key(), b"=", field.value().to_bytes()].concat();
                    prop_assert_eq!(again, field.whole().to_bytes());
                }
            }
        }

        #[test]
        fn the_first_of_equal_bytes_is_found(bytes in prop::collection::vec(0u8..4, 0..40)) {
            for byte in 0..=4 {
                let found = bytes.iter().position(|&b| b == byte);
                prop_assert_eq!(position(&bytes, byte), found);
            }
            let high: Vec<u8> = bytes.iter().map(|b| b.wrapping_sub(2)).collect();
            for byte in [0xfd, 0xfe, 0xff, 0, 1, 0x7f, 0x80] {
                prop_assert_eq!(position(&high, byte), high.iter().position(|&b| b == byte));
            }
        }

        #[test]
        fn what_is_noted_is_what_is_found(
            fields in prop::collection::vec((0usize..8, "[+a0-9=]{0,3}"), 0..20),
        ) {
            let keys = [
                "ACTION", "DEVPATH", "DEVPATH_OLD", "SUBSYSTEM", "SEQNUM", "PLUGD_REPLAY",
                "SEQNUM_", "",
            ];
            let fields = fields.iter().map(|(key, value)| format!("{}={value}\0", keys[*key]));
            let datagram = format!("a@/x\0{}", fields.collect::<String>()).into_bytes();
            let event = Uevent::parse(&datagram, Header::Required).unwrap();
            let last = |key: &str| event.last(key.as_bytes()).map(CStr::to_bytes);
            let noted = [event.action(), event.path(), event.old_path(), event.subsystem()];
            prop_assert_eq!(noted, ["ACTION", "DEVPATH", "DEVPATH_OLD", "SUBSYSTEM"].map(last));
            let number = event.last(b"SEQNUM").and_then(|n| n.to_str().ok()?.parse().ok());
            prop_assert_eq!(event.number(), number);
            prop_assert_eq!(event.replay(), last("PLUGD_REPLAY"));
        }

        #[test]
        fn what_was_written_is_read_back(
            action in "[a-z]{1,8}",
            fields in prop::collection::vec(
                (prop::collection::vec(1u8..=255, 0..20), prop::collection::vec(1u8..=255, 0..50)),
                0..80,
            ),
        ) {
            let fields: Vec<_> = fields
                .into_iter()
                .map(|(key, value)| (key.into_iter().filter(|&b| b != b'=').collect::<Vec<_>>(), value))
                .collect();
            let mut datagram = format!("{action}@/devices/x\0").into_bytes();
            for (key, value) in &fields {
                datagram.extend([&key[..], b"=", value, b"\0"].concat());
            }
            let event = Uevent::parse(&datagram, Header::Required).unwrap();
            let expected: Vec<_> = fields.iter().map(|(k, v)| (&k[..], &v[..])).collect();
            prop_assert_eq!(pairs(&event), expected);
        }
    }
}
