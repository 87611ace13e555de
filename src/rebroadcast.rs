//! Passes on events that were acted on: to a file descriptor, and to other
//! multicast groups of netlink.
//!
//! Owns the descriptor and the socket. Who reads the descriptor gets every event:
//! what it has no room for is kept, one event at most, and whoever has the outlets
//! acts on no other until that is written. That is what a pipe would do, but
//! bounded. Who listens to a group and does not keep up misses events, and is told
//! so by the kernel.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr, writev};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use crate::counters::Limiter;
use crate::error::{Fatal, reason};
use crate::machine::Time;
use crate::units::Seconds;

/// Where all events go that were acted on.
#[derive(Debug)]
pub struct Outlets {
    /// A descriptor to write them to.
    pub output: Option<Output>,
    /// Groups to send them to.
    pub multicast: Option<Multicast>,
    /// How long there may be no room for what is written.
    patience: Duration,
    /// Until when, if there is none.
    deadline: Option<Time>,
    complaints: Limiter,
}

impl Outlets {
    /// To any of these. The reader of `output` may take up to `patience` to make
    /// room.
    pub fn new(output: Option<Output>, multicast: Option<Multicast>, patience: Duration) -> Self {
        Self { output, multicast, patience, deadline: None, complaints: Limiter::default() }
    }

    /// Passes on an event, given as the bytes of a datagram, at the time `now`.
    /// To be called only when all before it is written ([`Outlets::awaited`]). If it
    /// cannot be written, the descriptor is closed, so that its reader learns that
    /// something is missing.
    pub fn pass_on(&mut self, event: &[u8], now: Time) {
        self.write(now, |output| output.write(event));
        if let Some(Err(error)) = self.multicast.as_ref().map(|multicast| multicast.send(event))
            && self.complaints.allows(now)
        {
            log::warn!("cannot rebroadcast an event: {}", reason(&error));
        }
    }

    /// The descriptor, if it has had no room for all of the last event. What is left
    /// is to be tried ([`Outlets::catch_up`]) when there is room, and at the deadline.
    pub fn awaited(&self) -> Option<RawFd> {
        let behind = self.output.as_ref().filter(|output| !output.rest().is_empty());
        behind.map(AsRawFd::as_raw_fd)
    }

    /// When its reader has had enough time.
    pub fn deadline(&self) -> Option<Time> {
        self.deadline
    }

    /// Writes what is left of the last event, as far as there is room. Closes the
    /// descriptor if there has been none for too long.
    pub fn catch_up(&mut self, now: Time) {
        self.write(now, Output::flush);
    }

    /// Closes the descriptor, and tells why.
    pub fn give_up(&mut self, why: &str) {
        log::warn!("cannot write an event: {why}; no more events are written");
        self.output = None;
        self.deadline = None;
    }

    fn write(&mut self, now: Time, write: impl FnOnce(&mut Output) -> io::Result<usize>) {
        let Some(output) = &mut self.output else { return };
        let why = match write(output) {
            Ok(_) if output.rest().is_empty() => {
                self.deadline = None;
                return;
            }
            Ok(0) if self.deadline.is_some_and(|at| at <= now) => {
                format!("its reader has made no room for {} s", Seconds(self.patience))
            }
            Ok(written) => {
                let until = self.deadline.filter(|_| written == 0);
                self.deadline = Some(until.unwrap_or(now.saturating_add(self.patience)));
                return;
            }
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => "it has no reader".into(),
            Err(error) => reason(&error),
        };
        self.give_up(&why);
    }
}

/// A pipe, socket or file that events are written to, in the format of
/// [`crate::uevent::stream`].
#[derive(Debug)]
pub struct Output {
    fd: OwnedFd,
    /// What could not be written of the last event.
    rest: Vec<u8>,
}

impl Output {
    /// Takes a descriptor open for writing, and makes it non-blocking. It is
    /// so for everybody who has a duplicate of it. `rest` is what whoever had it
    /// before could not write, and is written first.
    ///
    /// # Errors
    /// If it cannot be.
    pub fn new(fd: OwnedFd, rest: Vec<u8>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd, rest })
    }

    /// What could not be written.
    pub fn rest(&self) -> &[u8] {
        &self.rest
    }

    /// Writes an event, given as the bytes of a datagram. What there is no room
    /// for is kept as the rest. Returns how many bytes are written.
    ///
    /// # Errors
    /// Those of write(2), but for no room (`EAGAIN`).
    pub fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        if !self.rest.is_empty() {
            self.rest.extend_from_slice(event);
            self.rest.push(0);
            return self.flush();
        }
        let parts = [IoSlice::new(event), IoSlice::new(b"\0")];
        let written = room(retry_on_intr(|| writev(&self.fd, &parts)))?;
        if written <= event.len() {
            self.rest.extend_from_slice(&event[written..]);
            self.rest.push(0);
        }
        Ok(written)
    }

    /// Writes what it can of the rest. Returns how many bytes that were.
    ///
    /// # Errors
    /// As [`Output::write`].
    pub fn flush(&mut self) -> io::Result<usize> {
        let written = room(retry_on_intr(|| rustix::io::write(&self.fd, &self.rest)))?;
        self.rest.drain(..written);
        Ok(written)
    }
}

impl AsRawFd for Output {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// No room is room for nothing.
fn room(written: Result<usize, Errno>) -> io::Result<usize> {
    match written {
        Err(Errno::AGAIN) => Ok(0),
        written => Ok(written?),
    }
}

/// What became of an event that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// It is on its way.
    On,
    /// Nobody is there to read it.
    NobodyListens,
    /// There is no space for it; it is dropped.
    Full,
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
        Errno::CONNREFUSED | Errno::SRCH => Ok(Passed::NobodyListens),
        error => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;

    use rustix::net::{RecvFlags, recvfrom};
    use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

    use crate::testing;
    use crate::uevent::stream::Reader;

    const EVENT: &[u8] = b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=s\0SEQNUM=5\0";

    /// A pipe to write to, of this size, and its other end.
    fn pipe(size: usize) -> (File, Output) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        fcntl_setpipe_size(&writer, size).unwrap();
        (reader.into(), Output::new(writer, Vec::new()).unwrap())
    }

    #[test]
    fn events_are_written_as_a_stream() {
        let (mut reader, mut output) = pipe(4096);
        assert_eq!(output.write(EVENT).unwrap(), EVENT.len() + 1);
        assert_eq!(output.write(b"remove@/y\0").unwrap(), 11);
        drop(output);
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        assert_eq!(text, [EVENT, b"\0remove@/y\0\0"].concat());
    }

    #[test]
    fn a_reader_that_is_gone_is_told() {
        let (reader, mut output) = pipe(4096);
        drop(reader);
        assert_eq!(output.write(EVENT).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let (reader, _writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let error = Output::new(reader, Vec::new()).unwrap().write(EVENT).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }

    /// Events of this size fill the pipe again and again; all arrive, as they are.
    fn fill(size: usize) {
        let (mut reader, mut output) = pipe(64 * 1024);
        let event = |number: usize| {
            let mut event = format!("add@/{number}\0X=").into_bytes();
            event.resize(size - 1, b'x');
            event.push(0);
            event
        };
        let (mut sent, mut received) = (0, Vec::new());
        let mut stream = Reader::new(size);
        for _ in 0..3 {
            while output.rest().is_empty() {
                sent += 1;
                assert!(sent < 100_000, "it is never full");
                output.write(&event(sent)).unwrap();
            }
            while !output.rest().is_empty() {
                // Not more than is there.
                let space = stream.space();
                let count = space.len().min(1000);
                let count = reader.read(&mut space[..count]).unwrap();
                stream.filled(count);
                while let Some(event) = stream.next().unwrap() {
                    received.push(event.to_vec());
                }
                output.flush().unwrap();
            }
        }
        drop(output);
        loop {
            let count = reader.read(stream.space()).unwrap();
            stream.filled(count);
            while let Some(event) = stream.next().unwrap() {
                received.push(event.to_vec());
            }
            if count == 0 {
                break;
            }
        }
        stream.finish().unwrap();
        assert_eq!(received, (1..=sent).map(event).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_pipe_loses_nothing() {
        // More than PIPE_BUF too, which is written in parts.
        for size in [100, 4000, 10_000, 60_000] {
            fill(size);
        }
    }

    #[test]
    fn a_reader_has_its_time_for_each_part() {
        const PATIENCE: Duration = Duration::from_secs(10);
        let seconds = Duration::from_secs;
        let (mut reader, output) = pipe(4096);
        let fd = output.as_raw_fd();
        let mut outlets = Outlets::new(Some(output), None, PATIENCE);
        let event = [b'x'; 3 * 4096];
        outlets.pass_on(&event, seconds(1));
        assert_eq!((outlets.awaited(), outlets.deadline()), (Some(fd), Some(seconds(11))));
        // Trying it again is no progress.
        outlets.catch_up(seconds(5));
        assert_eq!((outlets.awaited(), outlets.deadline()), (Some(fd), Some(seconds(11))));
        reader.read_exact(&mut [0; 4096]).unwrap();
        outlets.catch_up(seconds(10));
        assert_eq!((outlets.awaited(), outlets.deadline()), (Some(fd), Some(seconds(20))));
        for _ in 0..2 {
            reader.read_exact(&mut [0; 4096]).unwrap();
            outlets.catch_up(seconds(11));
        }
        assert_eq!((outlets.awaited(), outlets.deadline()), (None, None));
        outlets.pass_on(&event, seconds(30));
        outlets.catch_up(seconds(39));
        assert!(outlets.output.is_some());
        outlets.catch_up(seconds(40));
        assert!(outlets.output.is_none());
        assert_eq!((outlets.awaited(), outlets.deadline()), (None, None));
        outlets.pass_on(&event, seconds(41));
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
