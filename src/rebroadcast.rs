//! Passes on events that were acted on: to a file descriptor, and to other
//! multicast groups of netlink.
//!
//! Owns the descriptor and the socket. Never waits for a reader: who does not
//! keep up misses events, and is not helped by holding up everybody else.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, retry_on_intr, writev};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use crate::counters::Limiter;
use crate::error::{Fatal, reason};
use crate::machine::Time;

/// Where all events go that were acted on.
#[derive(Debug, Default)]
pub struct Outlets {
    /// A descriptor to write them to.
    pub output: Option<Output>,
    /// Groups to send them to.
    pub multicast: Option<Multicast>,
    complaints: Limiter,
}

impl Outlets {
    /// To any of these.
    pub fn new(output: Option<Output>, multicast: Option<Multicast>) -> Self {
        Self { output, multicast, complaints: Limiter::default() }
    }

    /// Passes on an event, given as the bytes of a datagram, at the time `now`.
    /// If it cannot be written, the descriptor is closed, so that its reader
    /// learns that something is missing.
    pub fn pass_on(&mut self, event: &[u8], now: Time) {
        if let Some(output) = &mut self.output {
            let why = match output.write(event) {
                Ok(Passed::On) => None,
                Ok(Passed::Full) => Some("its reader does not keep up".into()),
                Ok(Passed::NobodyListens) => Some("it has no reader".into()),
                Err(error) => Some(reason(&error)),
            };
            if let Some(why) = why {
                log::warn!("cannot write an event: {why}; no more events are written");
                self.output = None;
            }
        }
        if let Some(Err(error)) = self.multicast.as_ref().map(|multicast| multicast.send(event))
            && self.complaints.allows(now)
        {
            log::warn!("cannot rebroadcast an event: {}", reason(&error));
        }
    }
}

/// What became of an event that was passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// It is on its way.
    On,
    /// Nobody is there to read it.
    NobodyListens,
    /// There is no space for it; it is dropped.
    Full,
}

/// A pipe, socket or file that events are written to, in the format of
/// [`crate::uevent::stream`].
#[derive(Debug)]
pub struct Output {
    fd: OwnedFd,
    /// What could not be written of the last event; it goes before the next.
    /// Pipes take events of up to PIPE_BUF (4096) bytes as a whole, and the
    /// kernel's have half of that.
    rest: Vec<u8>,
}

impl Output {
    /// Takes a descriptor open for writing, and makes it non-blocking. It is
    /// so for everybody who has a duplicate of it.
    ///
    /// # Errors
    /// If it cannot be.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd, rest: Vec::new() })
    }

    /// The descriptor, if what was written ends with a whole event: then
    /// somebody else can go on with it.
    pub fn between_events(&self) -> Option<RawFd> {
        self.rest.is_empty().then(|| self.fd.as_raw_fd())
    }

    /// Writes an event, given as the bytes of a datagram, or drops it.
    ///
    /// # Errors
    /// Those of write(2), but for these: no reader (`EPIPE`) and no space
    /// (`EAGAIN`) are what may be expected.
    pub fn write(&mut self, event: &[u8]) -> io::Result<Passed> {
        if !self.rest.is_empty() {
            let written = match retry_on_intr(|| rustix::io::write(&self.fd, &self.rest)) {
                Ok(written) => written,
                Err(error) => return expected(error),
            };
            self.rest.drain(..written);
            if !self.rest.is_empty() {
                return Ok(Passed::Full);
            }
        }
        let parts = [IoSlice::new(event), IoSlice::new(b"\0")];
        let written = match retry_on_intr(|| writev(&self.fd, &parts)) {
            Ok(written) => written,
            Err(error) => return expected(error),
        };
        if written <= event.len() {
            self.rest.extend_from_slice(&event[written..]);
            self.rest.push(0);
        }
        Ok(Passed::On)
    }
}

/// A socket that events are sent from to multicast groups of netlink.
#[derive(Debug)]
pub struct Multicast {
    socket: OwnedFd,
    groups: u32,
}

impl Multicast {
    /// For the groups of this mask, each of which is one bit. The group of the
    /// kernel, and those that events are received from, must not be among
    /// them: what is sent would be received again.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn open(groups: u32) -> Result<Self, Fatal> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            Some(netlink::KOBJECT_UEVENT),
        )
        .map_err(|e| Fatal::system("open netlink socket to send from", e))?;
        Ok(Self { socket, groups })
    }

    /// Sends an event, given as the bytes of a datagram, to each of the
    /// groups. A reader that has no space for it is told so by the kernel; we
    /// are not.
    ///
    /// # Errors
    /// The last of those of sendto(2), which came of one group or more; above
    /// all `EPERM`, without CAP_NET_ADMIN.
    pub fn send(&self, event: &[u8]) -> io::Result<Passed> {
        let (mut passed, mut failed) = (Passed::NobodyListens, None);
        // The kernel sends to one group at a time: the lowest of a mask
        // (net/netlink/af_netlink.c, netlink_sendmsg).
        for group in (0..u32::BITS).map(|bit| 1 << bit).filter(|bit| self.groups & bit != 0) {
            let to = SocketAddrNetlink::new(0, group);
            let send = || rustix::net::sendto(&self.socket, event, SendFlags::empty(), &to);
            match retry_on_intr(send).map_or_else(expected, |_| Ok(Passed::On)) {
                Ok(Passed::Full) => passed = Passed::Full,
                Ok(Passed::On) if passed == Passed::NobodyListens => passed = Passed::On,
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(passed), Err)
    }
}

/// What an error means that no program can avoid.
fn expected(error: Errno) -> io::Result<Passed> {
    match error {
        Errno::AGAIN | Errno::NOBUFS => Ok(Passed::Full),
        // Before Linux 4.18 the kernel itself does not listen, and says so
        // after all others have got it.
        Errno::CONNREFUSED | Errno::SRCH | Errno::PIPE => Ok(Passed::NobodyListens),
        error => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;

    use rustix::net::{RecvFlags, recvfrom};
    use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

    use crate::testing;
    use crate::uevent::stream::Reader;

    const EVENT: &[u8] = b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=s\0SEQNUM=5\0";

    #[test]
    fn events_are_written_as_a_stream() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut output = Output::new(writer).unwrap();
        assert_eq!(output.write(EVENT).unwrap(), Passed::On);
        assert_eq!(output.write(b"remove@/y\0").unwrap(), Passed::On);
        drop(output);
        let mut text = Vec::new();
        std::fs::File::from(reader).read_to_end(&mut text).unwrap();
        assert_eq!(text, [EVENT, b"\0remove@/y\0\0"].concat());
    }

    #[test]
    fn a_reader_that_is_gone_is_told() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(reader);
        assert_eq!(Output::new(writer).unwrap().write(EVENT).unwrap(), Passed::NobodyListens);
        let (reader, _writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let error = Output::new(reader).unwrap().write(EVENT).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }

    /// Events of this size fill the pipe, until some are dropped; what
    /// arrives is whole.
    fn fill(size: usize) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        fcntl_setpipe_size(&writer, 64 * 1024).unwrap();
        let mut output = Output::new(writer).unwrap();
        let event = |number: u32| {
            let mut event = format!("add@/{number}\0X=").into_bytes();
            event.resize(size - 1, b'x');
            event.push(0);
            event
        };
        let mut sent = Vec::new();
        let mut number = 0;
        let mut fill = |sent: &mut Vec<Vec<u8>>| {
            loop {
                number += 1;
                assert!(number < 100_000, "it is never full");
                match output.write(&event(number)).unwrap() {
                    Passed::On => sent.push(event(number)),
                    Passed::Full => return,
                    Passed::NobodyListens => panic!(),
                }
            }
        };
        let mut file = std::fs::File::from(reader);
        let mut stream = Reader::new(size);
        let mut received = Vec::new();
        for _ in 0..3 {
            fill(&mut sent);
            for _ in 0..5 {
                // Not more than is there.
                let space = stream.space();
                let count = space.len().min(1000);
                let count = file.read(&mut space[..count]).unwrap();
                stream.filled(count);
                while let Some(event) = stream.next().unwrap() {
                    received.push(event.to_vec());
                }
            }
        }
        drop(output);
        loop {
            let count = file.read(stream.space()).unwrap();
            stream.filled(count);
            while let Some(event) = stream.next().unwrap() {
                received.push(event.to_vec());
            }
            if count == 0 {
                break;
            }
        }
        // The last one may have been begun, and not ended, when we stopped.
        assert!(received.len() + 1 >= sent.len());
        assert_eq!(received, sent[..received.len()]);
        assert!(!received.is_empty());
    }

    #[test]
    fn a_full_pipe_drops_whole_events() {
        // More than PIPE_BUF too, which is written in parts.
        for size in [100, 4000, 10_000, 60_000] {
            fill(size);
        }
    }

    fn listener(groups: u32) -> OwnedFd {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let protocol = Some(netlink::KOBJECT_UEVENT);
        let family = AddressFamily::NETLINK;
        let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, protocol).unwrap();
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups)).unwrap();
        socket
    }

    /// An event, the sender's port id, and the group it was sent to.
    fn receive(socket: impl AsFd) -> Result<(Vec<u8>, u32, u32), Errno> {
        let mut buffer = vec![0; 8192];
        let (count, _, sender) = recvfrom(socket, &mut buffer[..], RecvFlags::empty())?;
        let sender = SocketAddrNetlink::try_from(sender.unwrap())?;
        Ok((buffer[..count].to_vec(), sender.pid(), sender.groups()))
    }

    #[test]
    fn each_group_gets_the_event_as_it_is() {
        testing::inside_with_network(|| {
            let [kernel, udev_zero, other, neither] = [1, 4, 0x8000_0000, 2].map(listener);
            let multicast = Multicast::open(0x8000_0004).unwrap();
            assert_eq!(multicast.send(EVENT).unwrap(), Passed::On);
            for (socket, group) in [(&udev_zero, 4), (&other, 0x8000_0000)] {
                let (event, pid, groups) = receive(socket).unwrap();
                assert_eq!(event, EVENT);
                // libudev-zero takes what has a group, other than the
                // kernel's from somebody else.
                assert_eq!(groups, group);
                assert_ne!(pid, 0);
                assert_eq!(receive(socket), Err(Errno::AGAIN));
            }
            assert_eq!(receive(&kernel), Err(Errno::AGAIN));
            assert_eq!(receive(&neither), Err(Errno::AGAIN));
        });
    }

    #[test]
    fn who_does_not_listen_or_read_holds_up_nobody() {
        testing::inside_with_network(|| {
            let multicast = Multicast::open(0x4).unwrap();
            assert!(multicast.send(EVENT).is_ok(), "nobody listens");
            let slow = listener(0x4);
            for _ in 0..10_000 {
                assert_ne!(multicast.send(EVENT).unwrap(), Passed::NobodyListens);
            }
            assert_eq!(receive(&slow), Err(Errno::NOBUFS), "it is told that it missed some");
            assert_eq!(receive(&slow).unwrap().0, EVENT);
            assert_eq!(Multicast::open(0).unwrap().send(EVENT).unwrap(), Passed::NobodyListens);
        });
    }

    #[test]
    fn what_is_not_allowed_is_an_error() {
        testing::inside_without_privileges(|| {
            let error = Multicast::open(0x4).unwrap().send(EVENT).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        });
    }
}
