//! A stream that uevents come from.
//!
//! Owns what was read of it, up to [`DATAGRAM_MAX`] bytes. The rest stays where
//! it is until that is used up.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::io::{Errno, read, retry_on_intr};

use super::{DATAGRAM_MAX, Received};
use crate::uevent::stream::Reader;

/// What was read and not yet used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stream {
    reader: Reader,
    /// Reading has failed; nothing comes after that.
    failed: bool,
}

impl Stream {
    pub(super) fn new(fd: &OwnedFd) -> io::Result<Self> {
        if FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory {
            return Err(Errno::ISDIR.into());
        }
        if fcntl_getfl(fd)?.contains(OFlags::WRONLY) {
            return Err(Errno::BADF.into());
        }
        Ok(Self { reader: Reader::new(DATAGRAM_MAX), failed: false })
    }

    pub(super) fn receive(&mut self, fd: &OwnedFd, buffer: &mut [u8]) -> Received {
        loop {
            match self.reader.next() {
                Ok(Some(event)) => {
                    buffer[..event.len()].copy_from_slice(event);
                    return Received::Datagram(event.len());
                }
                Ok(None) => {}
                Err(invalid) => return Received::Invalid(invalid),
            }
            if self.failed {
                return self.end();
            }
            match read_ready(fd, self.reader.space()) {
                Ok(0) => return self.end(),
                Ok(count) => self.reader.filled(count),
                Err(Errno::AGAIN) => return Received::Empty,
                Err(error) => {
                    self.failed = true;
                    return Received::Failed(error.into());
                }
            }
        }
    }

    fn end(&self) -> Received {
        self.reader.finish().map_or_else(Received::Invalid, |()| Received::EndOfInput)
    }
}

/// Reads what is there, without waiting. Who else has the descriptor does not
/// read, or it would be no stream of events.
fn read_ready(fd: &OwnedFd, space: &mut [u8]) -> Result<usize, Errno> {
    let mut polled = [PollFd::new(fd, PollFlags::IN)];
    match retry_on_intr(|| poll(&mut polled, Some(&Timespec::default())))? {
        0 => Err(Errno::AGAIN),
        _ => retry_on_intr(|| read(fd, &mut *space)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Source;
    use crate::uevent::stream;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::fs::File;
    use std::io::{Seek, Write};

    /// What comes: events, and then what ends it.
    fn received(source: &mut Source) -> (Vec<Vec<u8>>, Received) {
        let (mut events, mut buffer) = (Vec::new(), vec![0; DATAGRAM_MAX]);
        loop {
            match source.receive(&mut buffer) {
                Received::Datagram(length) => events.push(buffer[..length].to_vec()),
                other => return (events, other),
            }
        }
    }

    #[test]
    fn a_pipe_is_read_as_it_is_filled() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut source = Source::from_stream(reader).unwrap();
        let mut writer = File::from(writer);
        assert!(matches!(received(&mut source), (events, Received::Empty) if events.is_empty()));
        writer.write_all(b"add@/x\0A=1\0\0add@/y").unwrap();
        let (events, Received::Empty) = received(&mut source) else { panic!() };
        assert_eq!(events, [b"add@/x\0A=1\0"]);
        writer.write_all(b"\0\0").unwrap();
        drop(writer);
        let (events, Received::EndOfInput) = received(&mut source) else { panic!() };
        assert_eq!(events, [b"add@/y\0"]);
    }

    #[test]
    fn a_file_is_read_to_its_end() {
        let mut file = tempfile::tempfile().unwrap();
        let largest = [&b"add@/x\0A="[..], &[b'x'; DATAGRAM_MAX - 10], b"\0"].concat();
        assert_eq!(largest.len(), DATAGRAM_MAX);
        for event in [&largest[..], b"add@/y\0", &largest] {
            stream::write(&mut file, event).unwrap();
        }
        file.rewind().unwrap();
        let mut source = Source::from_stream(file.into()).unwrap();
        let (events, Received::EndOfInput) = received(&mut source) else { panic!() };
        assert_eq!(events, [&largest[..], b"add@/y\0", &largest]);
    }

    #[test]
    fn what_is_no_event_ends_it() {
        for text in [&b"add@/x\0\0junk\0\0add@/y\0\0"[..], b"add@/x\0\0add@/y\0"] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text).unwrap();
            file.rewind().unwrap();
            let mut source = Source::from_stream(file.into()).unwrap();
            let (events, Received::Invalid(invalid)) = received(&mut source) else { panic!() };
            assert_eq!((events, invalid.offset), (vec![b"add@/x\0".to_vec()], 8));
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let directory = File::open("/").unwrap();
        let error = Source::from_stream(directory.into()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EISDIR));
        let (_reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let error = Source::from_stream(writer).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
