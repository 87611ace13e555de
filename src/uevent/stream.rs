//! Uevents one after the other in a stream of bytes.
//!
//! The format is that of mdevd-netlink, mdevd-coldplug and `mdevd -o`: the
//! fields of an event as in a datagram, each with a NUL at its end, and one
//! more NUL after the last. Pure: the caller moves the bytes. [`Reader`] owns
//! a buffer that does not grow.

use std::fmt;
use std::io;

use super::{Header, Malformed, Uevent};

/// What is wrong with a stream. Nothing can be read after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid {
    /// Where in the stream the event at fault begins, in bytes from 0.
    pub offset: u64,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with an event in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is no uevent.
    Malformed(Malformed),
    /// It has more bytes than this.
    TooLong(usize),
    /// The stream ended within it.
    Incomplete,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid event at byte {}: ", self.offset)?;
        match self.fault {
            Fault::Malformed(malformed) => malformed.fmt(f),
            Fault::TooLong(max) => write!(f, "it has more than {max} bytes"),
            Fault::Incomplete => f.write_str("the input ends within it"),
        }
    }
}

impl std::error::Error for Invalid {}

/// Reads a stream as it comes, in pieces of any size.
///
/// In turns: as long as [`Reader::next`] has events, take them; then put what
/// comes next into [`Reader::space`], and say how much it was; at the end of
/// the input ask [`Reader::finish`].
#[derive(Debug, PartialEq, Eq)]
pub struct Reader {
    buffer: Box<[u8]>,
    /// The first byte that is not yet used.
    start: usize,
    /// Before this there is no end of an event.
    scanned: usize,
    /// The end of what is there.
    end: usize,
    /// Where in the stream `start` is.
    offset: u64,
}

impl Reader {
    /// An event may have up to `max` bytes, without the NUL after it.
    pub fn new(max: usize) -> Self {
        let buffer = vec![0; max + 1].into_boxed_slice();
        Self { buffer, start: 0, scanned: 0, end: 0, offset: 0 }
    }

    /// Where to put what comes next. Never empty after [`Reader::next`] has
    /// said that there is no whole event.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.scanned -= self.start;
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// Tells that the first `count` bytes of the space are filled.
    pub fn filled(&mut self, count: usize) {
        self.end = self.buffer.len().min(self.end + count);
    }

    /// The next event, as the bytes of a datagram, which are a [`Uevent`]
    /// whose header is optional. `None` if it is not all there yet.
    ///
    /// NULs after an event are passed over: mdevd-coldplug 0.0.1.0 writes some. At
    /// the beginning they are an event with nothing in it.
    ///
    /// # Errors
    /// Says what is wrong with the stream.
    #[allow(clippy::should_implement_trait, reason = "it lends what it returns")]
    pub fn next(&mut self) -> Result<Option<&[u8]>, Invalid> {
        if self.offset == 0 && self.buffer[..self.end].get(self.start) == Some(&0) {
            return Err(self.invalid(Fault::Malformed(Malformed::Empty)));
        }
        while self.start < self.end && self.buffer[self.start] == 0 {
            self.consume(1);
        }
        let unseen = &self.buffer[self.scanned..self.end];
        let Some(nuls) = unseen.windows(2).position(|pair| pair == [0, 0]) else {
            // The last byte may be the first of the two.
            self.scanned = self.scanned.max(self.end.saturating_sub(1));
            if self.end - self.start == self.buffer.len() {
                return Err(self.invalid(Fault::TooLong(self.buffer.len() - 1)));
            }
            return Ok(None);
        };
        let event = self.start..self.scanned + nuls + 1;
        if let Err(malformed) = Uevent::parse(&self.buffer[event.clone()], Header::Optional) {
            return Err(self.invalid(Fault::Malformed(malformed)));
        }
        self.consume(event.len() + 1);
        Ok(Some(&self.buffer[event]))
    }

    /// To be asked at the end of the input.
    ///
    /// # Errors
    /// If the stream ended within an event.
    pub fn finish(&self) -> Result<(), Invalid> {
        let rest = &self.buffer[self.start..self.end];
        if rest.iter().any(|&b| b != 0) { Err(self.invalid(Fault::Incomplete)) } else { Ok(()) }
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        self.scanned = self.scanned.max(self.start);
        self.offset += count as u64;
    }

    fn invalid(&self, fault: Fault) -> Invalid {
        Invalid { offset: self.offset, fault }
    }
}

/// Writes an event, given as the bytes of a datagram.
///
/// # Errors
/// Those of `output`, which should be buffered.
pub fn write(output: &mut impl io::Write, event: &[u8]) -> io::Result<()> {
    output.write_all(event)?;
    output.write_all(b"\0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads the stream in pieces of these sizes, the last size again and again.
    fn read(stream: &[u8], max: usize, sizes: &[usize]) -> (Vec<Vec<u8>>, Result<(), Invalid>) {
        let mut reader = Reader::new(max);
        let (mut events, mut rest) = (Vec::new(), stream);
        let mut sizes = sizes.iter().chain(std::iter::repeat(sizes.last().unwrap_or(&1)));
        loop {
            match reader.next() {
                Ok(Some(event)) => events.push(event.to_vec()),
                Err(invalid) => return (events, Err(invalid)),
                Ok(None) if rest.is_empty() => return (events, reader.finish()),
                Ok(None) => {
                    let space = reader.space();
                    assert!(!space.is_empty());
                    let count = space.len().min(rest.len()).min(*sizes.next().unwrap());
                    space[..count].copy_from_slice(&rest[..count]);
                    reader.filled(count);
                    rest = &rest[count..];
                }
            }
        }
    }

    fn written(events: &[Vec<u8>]) -> Vec<u8> {
        let mut stream = Vec::new();
        events.iter().for_each(|event| write(&mut stream, event).unwrap());
        stream
    }

    #[test]
    fn events_are_read_one_after_the_other() {
        let stream = b"add@/x\0ACTION=add\0\0ACTION=b\0DEVPATH=/y\0\0change@/z\0\0";
        let (events, end) = read(stream, 100, &[100]);
        assert_eq!(
            events,
            [&b"add@/x\0ACTION=add\0"[..], b"ACTION=b\0DEVPATH=/y\0", b"change@/z\0"]
        );
        assert_eq!(end, Ok(()));
        assert_eq!(written(&events), stream);
    }

    #[test]
    fn nothing_and_superfluous_nuls_are_no_events() {
        assert_eq!(read(b"", 10, &[3]), (vec![], Ok(())));
        for stream in [&b"\0"[..], b"\0\0", b"\0\0\0\0\0\0\0\0\0\0\0\0", b"\0a@/x\0\0"] {
            let invalid = Invalid { offset: 0, fault: Fault::Malformed(Malformed::Empty) };
            assert_eq!(read(stream, 10, &[3]), (vec![], Err(invalid)));
        }
        // What mdevd-coldplug 0.0.1.0 makes of a value that ends in a newline.
        let (events, end) = read(b"a@/x\0M=1\0\0\0b@/y\0\0\0\0", 100, &[7]);
        assert_eq!(events, [&b"a@/x\0M=1\0"[..], b"b@/y\0"]);
        assert_eq!(end, Ok(()));
    }

    #[test]
    fn an_error_names_the_place() {
        let good = b"add@/x\0A=1\0\0";
        let cases: [(&[u8], Fault, &str); 5] = [
            (b"garbage\0\0", Fault::Malformed(Malformed::NoEquals(1)), "its field 1 has no ="),
            (
                b"add@/x\0A=1\0B\0\0",
                Fault::Malformed(Malformed::NoEquals(2)),
                "its field 2 has no =",
            ),
            (b"add@/x\0A=1\0", Fault::Incomplete, "the input ends within it"),
            (b"add", Fault::Incomplete, "the input ends within it"),
            (&[b'x'; 99], Fault::TooLong(30), "it has more than 30 bytes"),
        ];
        for (bad, fault, text) in cases {
            let stream = [&good[..], good, b"\0", bad].concat();
            for size in [1, 2, 5, 100] {
                let (events, end) = read(&stream, 30, &[size]);
                assert_eq!(events.len(), 2);
                let invalid = end.unwrap_err();
                assert_eq!(invalid, Invalid { offset: 25, fault });
                assert_eq!(invalid.to_string(), format!("invalid event at byte 25: {text}"));
            }
        }
    }

    #[test]
    fn an_event_may_have_just_so_many_bytes() {
        let stream = b"a@/x\0AB=12\0\0a@/y\0\0";
        assert_eq!(read(stream, 11, &[4]).1, Ok(()));
        let too_long = Invalid { offset: 0, fault: Fault::TooLong(10) };
        assert_eq!(read(stream, 10, &[4]), (vec![], Err(too_long)));
    }

    fn event() -> impl Strategy<Value = Vec<u8>> {
        let value = prop::collection::vec(1u8..=255, 0..12);
        let field =
            ("[A-Z_]{0,5}", value).prop_map(|(k, v)| [k.as_bytes(), b"=", &v, b"\0"].concat());
        (prop::option::of("[a-z]{1,6}@/[a-z/]{0,8}\0"), prop::collection::vec(field, 1..6))
            .prop_map(|(header, fields)| {
                [header.unwrap_or_default().into_bytes(), fields.concat()].concat()
            })
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_same_events_come(
            events in prop::collection::vec(event(), 0..8),
            sizes in prop::collection::vec(1usize..40, 1..30),
        ) {
            let stream = written(&events);
            prop_assert_eq!(read(&stream, 256, &sizes), (events, Ok(())));
        }

        #[test]
        fn however_it_is_cut_garbage_ends_alike(
            stream in prop::collection::vec(prop_oneof![Just(0u8), Just(b'='), Just(b'@'), any::<u8>()], 0..120),
            sizes in prop::collection::vec(1usize..40, 1..30),
        ) {
            let whole = read(&stream, 40, &[usize::MAX]);
            prop_assert_eq!(read(&stream, 40, &sizes), whole);
        }
    }
}
