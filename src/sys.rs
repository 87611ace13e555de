//! The few system calls that no safe crate offers, behind safe functions.
//!
//! This is the only module with `unsafe`. It owns nothing but the stack that a
//! new child runs on until it executes its program, and what it is told
//! ([`Spawner`]).
#![allow(unsafe_code, reason = "the one module where system calls are wrapped")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, FdFlags};
use rustix::process::{Pid, Signal, WaitOptions};

/// Takes over a file descriptor that this process was started with, and sets
/// it close-on-exec.
///
/// Only a descriptor without the close-on-exec flag can have come through an
/// exec, and whatever this crate opens has the flag. So one that has
/// it belongs to somebody else here, or was taken over before: it is refused.
/// Descriptors 0 to 2 stay with the standard streams, and a duplicate (3 or
/// above) is returned.
///
/// # Errors
/// `EBADF` if it is not open, [`io::ErrorKind::ResourceBusy`] if it is not an
/// inherited one, any error of fcntl(2).
pub(crate) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: a plain integer; the call only reads a flag, if anything is open there.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "not an inherited file descriptor, or named twice",
        ));
    }
    // SAFETY: it is open, as was just seen, and inherited: nothing in this
    // process owns it, so nothing closes it while this lives.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    if fd <= 2 {
        return Ok(rustix::io::fcntl_dupfd_cloexec(borrowed, 3)?);
    }
    rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, nothing else in this process owns it, and the flag
    // just set keeps it from being taken over again.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether something is open at this number.
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: plain integers.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

/// Sets close-on-exec on every open file descriptor from 3 up, so that no
/// child inherits what this process was started with by accident.
///
/// # Errors
/// Those of close_range(2); where the kernel has no CLOSE_RANGE_CLOEXEC
/// (before Linux 5.11), those of reading /proc/self/fd.
pub fn close_all_on_exec() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: plain integers; with this flag the call closes nothing now.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if result == 0 {
        return Ok(());
    }
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        if fd > 2 {
            // SAFETY: setting the flag on a descriptor of ours (or, if it was
            // closed meanwhile, on none) invalidates nobody's ownership.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Closes the file descriptors from 3 up that this process was started with
/// and nobody has taken over (`adopt`): a daemon must not keep open what
/// whoever started it waits for to be closed.
///
/// # Errors
/// Those of reading /proc/self/fd.
pub(crate) fn close_inherited() -> io::Result<()> {
    let mut inherited = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        // SAFETY: plain integers; it only reads the flags.
        if fd > 2 && unsafe { libc::fcntl(fd, libc::F_GETFD) } == 0 {
            inherited.push(fd);
        }
    }
    for fd in inherited {
        // SAFETY: it is not close-on-exec, so nothing in this process owns it:
        // see `adopt`.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Which side of a [`fork`] this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The one that has called it; this is the new one's id, which the caller
    /// has to reap.
    Parent(Pid),
    /// The new one, a copy with its own copies of all file descriptors.
    Child,
}

/// Whether this process has another thread. Where a sandbox forbids to ask, the
/// answer is no: the caller has to know best.
pub fn has_other_threads() -> bool {
    // SAFETY: with this flag the call does nothing but to say EINVAL if there
    // is another thread (unshare(2)), and needs no /proc to know.
    let result = unsafe { libc::unshare(libc::CLONE_THREAD) };
    result != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}

/// Splits this process in two.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] if it has more than one thread: the others
/// would be missing in the child, with the locks that they hold. Those of
/// fork(2).
pub fn fork() -> io::Result<Fork> {
    if has_other_threads() {
        let text = "a process with several threads cannot fork";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    // SAFETY: there is no other thread that could hold a lock which the child
    // would wait for.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid).map_or(Fork::Child, Fork::Parent)),
    }
}

/// Sends a signal of any number to a process. (rustix sends only those that have
/// names.)
///
/// # Errors
/// Those of pidfd_send_signal(2).
pub(crate) fn pidfd_send_signal(process: BorrowedFd<'_>, signal: c_int) -> rustix::io::Result<()> {
    let no_info: *const libc::siginfo_t = ptr::null();
    // SAFETY: a descriptor that is open, plain integers; without information about
    // it, the signal is that of kill(2).
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, no_info, 0_u32)
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Sets the mode of a file that is open in any way, with O_PATH too.
///
/// fchmod(2) refuses descriptors with O_PATH, and to open a device otherwise
/// is not harmless.
///
/// # Errors
/// Those of fchmodat2(2); where the kernel has no such call (before Linux
/// 6.6) and /proc is not mounted, `ENOSYS`.
pub fn chmod(fd: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    // All calls newer than 5.1 have the same distance everywhere; libc knows
    // the newer of these two for some architectures only.
    const FCHMODAT2: libc::c_long = libc::SYS_openat2 + (452 - 437);
    let empty = c"".as_ptr();
    // SAFETY: an open descriptor, a C string that outlives the call, plain integers.
    let result =
        unsafe { libc::syscall(FCHMODAT2, fd.as_raw_fd(), empty, mode, libc::AT_EMPTY_PATH) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // A sandbox that does not know the call may say EPERM.
    if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) {
        return chmod_by_proc(fd, mode, error);
    }
    Err(error)
}

fn chmod_by_proc(fd: BorrowedFd<'_>, mode: u32, unsupported: io::Error) -> io::Result<()> {
    use rustix::fs::{CWD, Mode, chmodat};
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let mode = Mode::from_raw_mode(mode);
    match chmodat(CWD, link, mode, rustix::fs::AtFlags::empty()) {
        Err(rustix::io::Errno::NOENT) => Err(unsupported),
        result => Ok(result?),
    }
}

/// Makes `fd` the descriptor number `at`, for the next program: not
/// close-on-exec. What was open there is closed.
///
/// # Errors
/// Those of dup2(2): `EBADF` if `at` is beyond the limit of open files.
pub(crate) fn hand_over(fd: OwnedFd, at: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == at {
        rustix::io::fcntl_setfd(&fd, FdFlags::empty())?;
        let _: RawFd = fd.into_raw_fd();
        return Ok(());
    }
    // SAFETY: plain integers. What was open at `at` came from the program
    // before us, or else is nobody's: the caller is about to execute the next
    // one and has no descriptor but `fd`.
    let result = unsafe { libc::dup2(fd.as_raw_fd(), at) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An option of a socket that rustix and socket2 do not offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketOption {
    /// Each message comes with the credentials of its sender (unix(7)).
    PassCredentials,
    /// Each message comes with the security context of its sender (unix(7)).
    PassSecurity,
    /// Each datagram comes with the number of its multicast group (netlink(7)).
    PacketInfo,
    /// Datagrams come from all network namespaces that have an id here, with
    /// that id (netlink(7)).
    ListenAllNsid,
    /// Joins the multicast group of this number (netlink(7)).
    AddMembership,
    /// Drops for want of room are not told (netlink(7)).
    NoEnobufs,
    /// Where in all that waits MSG_PEEK looks, and goes on from there (socket(7)).
    PeekOffset,
}

impl SocketOption {
    fn raw(self) -> (c_int, c_int, &'static str) {
        match self {
            Self::PassCredentials => (libc::SOL_SOCKET, libc::SO_PASSCRED, "SO_PASSCRED"),
            Self::PassSecurity => (libc::SOL_SOCKET, libc::SO_PASSSEC, "SO_PASSSEC"),
            Self::PacketInfo => (libc::SOL_NETLINK, libc::NETLINK_PKTINFO, "NETLINK_PKTINFO"),
            Self::ListenAllNsid => {
                (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID, "NETLINK_LISTEN_ALL_NSID")
            }
            Self::AddMembership => {
                (libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, "NETLINK_ADD_MEMBERSHIP")
            }
            Self::NoEnobufs => (libc::SOL_NETLINK, libc::NETLINK_NO_ENOBUFS, "NETLINK_NO_ENOBUFS"),
            Self::PeekOffset => (libc::SOL_SOCKET, libc::SO_PEEK_OFF, "SO_PEEK_OFF"),
        }
    }
}

impl fmt::Display for SocketOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.raw().2)
    }
}

/// Sets an option of a socket.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_socket_option(fd: BorrowedFd<'_>, option: SocketOption, value: u32) -> io::Result<()> {
    let (level, name, _) = option.raw();
    // SAFETY: the value is read from a variable of the size of an int, which is 4 bytes.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), 4) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether an option of a socket is switched on.
///
/// # Errors
/// Those of getsockopt(2).
pub fn has_socket_option(fd: BorrowedFd<'_>, option: SocketOption) -> io::Result<bool> {
    let (level, name, _) = option.raw();
    let (mut value, mut length): (c_int, libc::socklen_t) = (0, 4);
    // SAFETY: the kernel writes at most `length` bytes to `value`, an int, which
    // is 4 bytes; both live longer than the call.
    let result = unsafe {
        let value = (&raw mut value).cast();
        libc::getsockopt(fd.as_raw_fd(), level, name, value, &raw mut length)
    };
    if result == 0 { Ok(value != 0) } else { Err(io::Error::last_os_error()) }
}

/// Who sent a message, as the kernel vouches for it (SCM_CREDENTIALS, unix(7)).
///
/// Not rustix's, in which no process id can be 0; the kernel's own is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// The process id in the sender's process id namespace.
    pub pid: i32,
    /// The user id in the receiver's user namespace.
    pub uid: u32,
}

/// A message that was received.
#[derive(Debug)]
pub struct Message {
    /// Its size in the buffer, in bytes.
    pub bytes: usize,
    /// There was more of it, which is lost.
    pub truncated: bool,
    /// The port id of the sender, if it came over netlink.
    pub port: Option<u32>,
    /// The mask of the multicast group that it came by, 0 if by none.
    pub group: u32,
    /// The credentials of the sender, if they were wanted and came along.
    pub credentials: Option<Credentials>,
}

/// Receives one message without waiting. If credentials are not wanted, none
/// are looked for. File descriptors that came along are not received.
///
/// # Errors
/// Those of recvmsg(2).
pub fn receive(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    with_credentials: bool,
) -> rustix::io::Result<Message> {
    // netlink's own (NETLINK_PKTINFO, NETLINK_LISTEN_ALL_NSID) come first and
    // take 24 bytes each; credentials take 32.
    let mut control = [0u64; 16];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: both types are plain data for which all zeros is a valid value.
    let (mut sender, mut header): (libc::sockaddr_nl, libc::msghdr) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    header.msg_name = (&raw mut sender).cast();
    header.msg_namelen = 12;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    if with_credentials {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = 128;
    }
    const _: () = assert!(size_of::<libc::sockaddr_nl>() == 12 && size_of::<[u64; 16]>() == 128);
    // SAFETY: `header` points to variables that live until its last use below,
    // with their sizes.
    let bytes = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) };
    let Ok(bytes) = usize::try_from(bytes) else {
        return Err(last_errno());
    };
    let netlink = header.msg_namelen == 12 && c_int::from(sender.nl_family) == libc::AF_NETLINK;
    Ok(Message {
        bytes,
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
        port: netlink.then_some(sender.nl_pid),
        group: if netlink { sender.nl_groups } else { 0 },
        // SAFETY: recvmsg has filled in `header`, and `control`, which is alive.
        credentials: if with_credentials { unsafe { credentials(&header) } } else { None },
    })
}

/// The credentials among the control messages of `header`.
///
/// # Safety
/// The control buffer that `header` points to must be as recvmsg(2) left it.
unsafe fn credentials(header: &libc::msghdr) -> Option<Credentials> {
    const SIZE: u32 = 12;
    const _: () = assert!(size_of::<libc::ucred>() == SIZE as usize);
    // SAFETY: these macros stay inside the control buffer, and so does a
    // message that is long enough by its own length.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(header);
        while !next.is_null() {
            let libc::cmsghdr { cmsg_level, cmsg_type, cmsg_len, .. } = *next;
            if (cmsg_level, cmsg_type) == (libc::SOL_SOCKET, libc::SCM_CREDENTIALS)
                && cmsg_len as u64 >= u64::from(libc::CMSG_LEN(SIZE))
            {
                let ucred = libc::CMSG_DATA(next).cast::<libc::ucred>().read_unaligned();
                return Some(Credentials { pid: ucred.pid, uid: ucred.uid });
            }
            next = libc::CMSG_NXTHDR(header, next);
        }
    }
    None
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// One delivery of a signal, as it travels through the self-pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalRecord {
    /// The signal's number.
    pub signal: c_int,
    /// Process id and user id of the sender, where a process sent it.
    pub sender: Option<(u32, u32)>,
}

impl SignalRecord {
    /// The size of a record in the pipe, in bytes; below PIPE_BUF, so each is
    /// written and read whole (pipe(7)).
    pub const SIZE: usize = 12;

    fn to_bytes(self) -> [u8; Self::SIZE] {
        let (pid, uid) = self.sender.unwrap_or((0, 0));
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&self.signal.to_ne_bytes());
        bytes[4..8].copy_from_slice(&pid.to_ne_bytes());
        bytes[8..].copy_from_slice(&uid.to_ne_bytes());
        bytes
    }

    /// Reads a record back.
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        let pid = u32::from_ne_bytes([e, f, g, h]);
        Self {
            signal: c_int::from_ne_bytes([a, b, c, d]),
            sender: (pid != 0).then_some((pid, u32::from_ne_bytes([i, j, k, l]))),
        }
    }
}

/// Has every delivery of `signal` written to `pipe` as a [`SignalRecord`].
///
/// Nothing else happens in the handler, and nothing at all in a process forked
/// from this one. `pipe` should be non-blocking; it is
/// never closed. If it is full the record is dropped: then thousands of
/// signals are waiting there already.
///
/// # Errors
/// Those of sigaction(2).
pub fn forward_signal(signal: c_int, pipe: &'static OwnedFd) -> io::Result<()> {
    let daemon = rustix::process::getpid();
    let action = move |info: &libc::siginfo_t| {
        // A child shares our memory and handlers until it has executed its
        // program. What reaches it before that was sent to our process group,
        // and we have our own copy.
        if rustix::process::getpid() != daemon {
            return;
        }
        let by_process = matches!(info.si_code, libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL);
        // SAFETY: for these codes the kernel fills in pid and uid (sigaction(2)).
        let sender = by_process.then(|| unsafe { (info.si_pid().cast_unsigned(), info.si_uid()) });
        let record = SignalRecord { signal: info.si_signo, sender };
        if rustix::io::write(pipe, &record.to_bytes()).is_err() {
            // It is full: of this one it will at least be known that it came.
            if let Some(missed) = missed_signal(info.si_signo) {
                missed.store(true, Ordering::Relaxed);
            }
        }
    };
    // SAFETY: the action allocates nothing, takes no lock and calls only
    // getpid(2) and write(2), which are async-signal-safe (signal-safety(7));
    // the registry saves and restores errno.
    unsafe { signal_hook_registry::register_sigaction(signal, action) }?;
    Ok(())
}

/// Signals that found the pipe of [`forward_signal`] full, by their numbers.
static MISSED_SIGNALS: [AtomicBool; 32] = [const { AtomicBool::new(false) }; 32];

fn missed_signal(signal: c_int) -> Option<&'static AtomicBool> {
    MISSED_SIGNALS.get(usize::try_from(signal).ok()?)
}

/// Whether this signal found the pipe full since the last time this was asked.
pub fn take_missed_signal(signal: c_int) -> bool {
    missed_signal(signal).is_some_and(|missed| missed.swap(false, Ordering::Relaxed))
}

/// Undoes what a careless parent may have left: no signal is blocked any more
/// in this thread, the only one, and SIGCHLD is as [`do_not_ignore_children`]
/// has it.
///
/// # Errors
/// Those of sigprocmask(2) and sigaction(2).
pub fn normalize_signals() -> io::Result<()> {
    do_not_ignore_children()?;
    // SAFETY: sigset_t is plain data for which all zeros is a valid value.
    let result = unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives SIGCHLD its default disposition if it is ignored, as a careless parent
/// may have left it: else children would be reaped behind our back (waitpid(2)).
///
/// # Errors
/// Those of sigaction(2).
pub fn do_not_ignore_children() -> io::Result<()> {
    // SAFETY: sigaction is plain data for which all zeros is a valid value; a
    // null pointer has the call only read or only write; no handler is installed.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let result = libc::sigaction(libc::SIGCHLD, ptr::null(), &raw mut action);
        if result != 0 || action.sa_sigaction != libc::SIG_IGN {
            result
        } else {
            action = std::mem::zeroed();
            action.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(libc::SIGCHLD, &raw const action, ptr::null_mut())
        }
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Process id, user id and group id of the process at the other end of an
/// AF_UNIX stream socket, as they were when it connected, or when it began to
/// listen. The process id is 0 if it is in a PID namespace that is not visible
/// here (which is why rustix's function of that name must not be used).
///
/// # Errors
/// Those of getsockopt(2).
pub fn peer_credentials(socket: &impl AsFd) -> io::Result<(i32, u32, u32)> {
    let ([pid, uid, gid], _) = socket_option(socket, libc::SO_PEERCRED)?;
    Ok((pid.cast_signed(), uid, gid))
}

/// The process group of a process, 0 if that is in a PID namespace that is not visible
/// here (which is why rustix's function of that kind must not be used).
///
/// # Errors
/// Those of getpgid(2).
pub fn process_group(pid: i32) -> io::Result<i32> {
    // SAFETY: a plain integer.
    let group = unsafe { libc::getpgid(pid) };
    if group < 0 { Err(io::Error::last_os_error()) } else { Ok(group) }
}

/// The supplementary groups of the process at the other end, likewise (SO_PEERGROUPS, from Linux 4.13 on).
///
/// # Errors
/// Those of getsockopt(2).
pub fn peer_groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    /// linux/limits.h.
    const NGROUPS_MAX: usize = 65536;
    let mut groups = vec![0; 32];
    loop {
        match read_socket_option(socket, libc::SO_PEERGROUPS, &mut groups) {
            Ok(count) => {
                groups.truncate(count);
                return Ok(groups);
            }
            Err(error)
                if error.raw_os_error() == Some(libc::ERANGE) && groups.len() < NGROUPS_MAX =>
            {
                groups.resize(NGROUPS_MAX, 0);
            }
            Err(error) => return Err(error),
        }
    }
}

/// How a socket's memory stands (sock_diag(7), SO_MEMINFO).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketMemory {
    /// Bytes that wait to be received.
    pub queued: u32,
    /// How many there may be.
    pub limit: u32,
    /// Datagrams dropped for want of room.
    pub drops: u32,
}

/// Reads that of a socket.
///
/// # Errors
/// Those of getsockopt(2).
pub fn socket_memory(socket: &impl AsFd) -> io::Result<SocketMemory> {
    // linux/sock_diag.h: SK_MEMINFO_RMEM_ALLOC, _RCVBUF, ..., _DROPS.
    let (memory, length) = socket_option::<9>(socket, libc::SO_MEMINFO)?;
    // Before Linux 4.12 there is no such option, and the last came latest.
    let drops = if length == 9 { memory[8] } else { 0 };
    Ok(SocketMemory { queued: memory[0], limit: memory[1], drops })
}

/// Waits until what the kernel is doing to network interfaces is done: whoever asks
/// for the driver of one has to wait for that (dev_ioctl and dev_ethtool in
/// net/core take the RTNL). What comes of it does not matter.
pub fn await_interfaces(socket: &impl AsFd) {
    /// struct ethtool_drvinfo in linux/ethtool.h, with its command at first.
    #[repr(C)]
    struct DriverInfo {
        command: u32,
        rest: [u32; 48],
    }
    /// ETHTOOL_GDRVINFO.
    const GET_DRIVER_INFO: u32 = 3;
    let mut info = DriverInfo { command: GET_DRIVER_INFO, rest: [0; 48] };
    // SAFETY: a struct of integers and arrays of such, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed() as libc::c_char;
    request.ifr_name[1] = b'o'.cast_signed() as libc::c_char;
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: the kernel reads and writes `request`, and `info`, which is as long as
    // its struct of 196 bytes; both live longer than the call.
    unsafe {
        libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request);
    }
}

/// Reads an option of the socket level that consists of integers: these, and
/// how many of them the kernel has filled in.
fn socket_option<const N: usize>(
    socket: &impl AsFd,
    option: c_int,
) -> io::Result<([u32; N], usize)> {
    let mut value = [0_u32; N];
    let count = read_socket_option(socket, option, &mut value)?;
    Ok((value, count))
}

/// Reads an option into `value`; returns how many numbers that were.
fn read_socket_option(socket: &impl AsFd, option: c_int, value: &mut [u32]) -> io::Result<usize> {
    let mut length = libc::socklen_t::try_from(size_of_val(value)).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes to `value`, for which
    // any bits are valid; both live longer than the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(length).unwrap_or(0) / size_of::<u32>())
}

/// A file in memory: what is written here is in the file, and stays there when
/// the process ends in whatever way.
#[derive(Debug, Default)]
pub struct Mapping {
    /// Page-aligned; dangling if there are no bytes.
    start: Option<NonNull<u8>>,
    length: usize,
}

impl Mapping {
    /// Maps the first `length` bytes of a file that is open for reading and
    /// writing, and has as many. The caller sees to it that no other process
    /// writes or truncates it, by permissions and by locking it: whoever can do
    /// that all the same can as well write to the memory of this process.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub(crate) fn of(file: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        if length == 0 {
            return Ok(Self::default());
        }
        // SAFETY: the kernel chooses an address range that nothing else uses.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: NonNull::new(start.cast()), length })
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        let Some(start) = self.start else { return &[] };
        // SAFETY: that many bytes are mapped there for as long as this lives,
        // and changed by nobody but through a mutable borrow of it.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.length) }
    }

    /// The bytes, to be changed.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let Some(start) = self.start else { return &mut [] };
        // SAFETY: as above, and this is the only borrow.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Some(start) = self.start {
            // SAFETY: it was mapped by `of`, and no borrow of it is left.
            unsafe { libc::munmap(start.as_ptr().cast(), self.length) };
        }
    }
}

/// Gives back the memory that this program's code takes. What is still needed comes
/// back from its file, or the page cache, when it is: most of it is needed at the
/// start only. Does nothing where /proc is not mounted.
///
/// # Errors
/// Those of open(2) and madvise(2).
pub fn forget_code() -> io::Result<()> {
    let here = forget_code as *const () as usize;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let Some((start, end)) = maps.lines().find_map(|line| code_around(line, here)) else {
        return Ok(());
    };
    // SAFETY: these whole pages are mapped privately from a file, and cannot be
    // written: they were never changed, so what is read from the file again is the same.
    let result = unsafe {
        libc::madvise(ptr::with_exposed_provenance_mut(start), end - start, libc::MADV_DONTNEED)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The range of a mapping, if a line of /proc/PID/maps (proc_pid_maps(5)) tells of one
/// that has the address `here` in it, of a file, and private, executable and not
/// writable.
fn code_around(line: &str, here: usize) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, access, _offset) = (fields.next()?, fields.next()?, fields.next()?);
    let (_device, inode) = (fields.next()?, fields.next()?);
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    let is_code = access == "r-xp" && inode != "0" && (start..end).contains(&here);
    is_code.then_some((start, end))
}

/// The real, effective and saved ids of this process: of the user, and of the group.
///
/// # Errors
/// Those of getresuid(2) and getresgid(2).
pub(crate) fn all_ids() -> io::Result<([u32; 3], [u32; 3])> {
    let ([mut ruid, mut euid, mut suid], [mut rgid, mut egid, mut sgid]) = ([0; 3], [0; 3]);
    // SAFETY: the kernel writes an integer to each of these variables.
    let result = unsafe {
        match libc::getresuid(&raw mut ruid, &raw mut euid, &raw mut suid) {
            0 => libc::getresgid(&raw mut rgid, &raw mut egid, &raw mut sgid),
            failed => failed,
        }
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(([ruid, euid, suid], [rgid, egid, sgid]))
}

/// Blocks all signals that can be: what comes now waits, across execve(2) too,
/// until [`normalize_signals`].
///
/// # Errors
/// Those of sigprocmask(2).
pub fn block_signals() -> io::Result<()> {
    // SAFETY: sigset_t is plain data for which all zeros is a valid value.
    let result = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has these descriptors stay open across execve(2), or not.
///
/// # Errors
/// Those of fcntl(2); then some may have been changed.
pub(crate) fn keep_across_exec(fds: impl Iterator<Item = RawFd>, keep: bool) -> io::Result<()> {
    let flags = if keep { FdFlags::empty() } else { FdFlags::CLOEXEC };
    for fd in fds {
        // SAFETY: `borrowed` lives in this statement only, and changing the
        // flag on a descriptor invalidates nobody's ownership; if it is not
        // open, fcntl says so.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        rustix::io::fcntl_setfd(borrowed, flags)?;
    }
    Ok(())
}

/// Whether SIGPIPE was ignored already when this process was started: Rust's
/// runtime ignores it always, before main.
static SIGPIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

/// Runs before that.
// SAFETY: this section holds the addresses of functions that the C library
// calls, in this thread, at start-up; this one makes one system call.
#[used]
#[unsafe(link_section = ".init_array")]
static NOTE_SIGPIPE: extern "C" fn() = {
    extern "C" fn note() {
        // SAFETY: sigaction is plain data for which all zeros is a valid
        // value; with a null new action, the call only reads.
        let ignored = unsafe {
            let mut old: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGPIPE, ptr::null(), &raw mut old) == 0
                && old.sa_sigaction == libc::SIG_IGN
        };
        SIGPIPE_WAS_IGNORED.store(ignored, Ordering::Relaxed);
    }
    note
};

/// Has writing beyond the limit of file sizes (RLIMIT_FSIZE) fail instead of ending
/// this process: the log may be such a file.
///
/// # Errors
/// Those of sigaction(2).
pub fn ignore_file_size_signal() -> io::Result<()> {
    // SAFETY: SIG_IGN runs no code of ours.
    let before = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Becomes the program at `path`, with the signal dispositions and the mask
/// that this process was started with. Returns only if that fails.
///
/// # Errors
/// Those of execve(2).
pub fn execute<'a>(
    path: &CStr,
    argv: impl IntoIterator<Item = &'a CStr>,
    envp: impl IntoIterator<Item = &'a CStr>,
) -> io::Error {
    let (mut arguments, mut environment) = (Vec::new(), Vec::new());
    let (argv, envp) = (fill(&mut arguments, argv), fill(&mut environment, envp));
    // SAFETY: SIG_DFL runs no code of ours; the arrays end with a null pointer
    // and borrow their strings.
    unsafe {
        if !SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed) {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        }
        libc::execve(path.as_ptr(), argv, envp);
        let error = io::Error::last_os_error();
        // As Rust's runtime has it: the caller may go on.
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        error
    }
}

/// Starts programs, at the cost of one clone(2) and one execve(2).
///
/// Child and parent share memory until the child executes its program, and the
/// parent waits for that (CLONE_VM, CLONE_VFORK): no page table is copied, and
/// an error of execve(2) is told at once, without a pipe. The child gets its
/// own process group, default signal dispositions and an empty signal mask.
///
/// To be made after all signal handlers are installed; the process that calls
/// [`Spawner::spawn`] must have no signals blocked.
#[derive(Debug)]
pub struct Spawner {
    stack: Vec<u128>,
    reset: Vec<c_int>,
    /// As execve(2) takes them, ended by NULL; dangling when nothing is being
    /// started. Kept for their memory.
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    open_files: Option<libc::rlimit>,
}

/// What the child needs to know, and where it leaves its error.
struct Errand {
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    reset: *const c_int,
    reset_len: usize,
    open_files: *const libc::rlimit,
    error: c_int,
}

impl Default for Spawner {
    fn default() -> Self {
        Self::new()
    }
}

impl Spawner {
    /// The child calls one function deep; execve itself runs in the kernel.
    /// But caught signals run on it too, and some may nest, with a frame of 3 to
    /// 11 KiB each, as large as the processor's registers are.
    const STACK_BYTES: usize = 64 * 1024;

    /// Notes which signals are ignored now: these the children must reset.
    /// Those that are caught execve(2) resets.
    pub fn new() -> Self {
        let reset = (1..=libc::SIGRTMAX()).filter(|&signal| is_ignored(signal)).collect();
        Self {
            stack: vec![0; Self::STACK_BYTES / size_of::<u128>()],
            reset,
            open_files: None,
            argv: Vec::new(),
            envp: Vec::new(),
        }
    }

    /// From now on the children get this limit of open files (soft, hard)
    /// instead of this process's.
    pub fn limit_open_files(&mut self, (soft, hard): (u64, u64)) {
        self.open_files = Some(libc::rlimit { rlim_cur: soft, rlim_max: hard });
    }

    /// Starts the program at `path`, with these arguments, its name first,
    /// and this environment of `KEY=VALUE`.
    ///
    /// Returns a pidfd (close-on-exec; owned by the caller, who also has to
    /// reap the child) and the process id, which is also the id of the
    /// child's process group. There is no child if an error is returned.
    ///
    /// # Errors
    /// Those of clone(2) and execve(2).
    pub fn spawn<'a>(
        &mut self,
        path: &CStr,
        argv: impl IntoIterator<Item = &'a CStr>,
        envp: impl IntoIterator<Item = &'a CStr>,
    ) -> io::Result<(OwnedFd, Pid)> {
        let mut errand = Errand {
            path: path.as_ptr(),
            argv: fill(&mut self.argv, argv),
            envp: fill(&mut self.envp, envp),
            reset: self.reset.as_ptr(),
            reset_len: self.reset.len(),
            open_files: self.open_files.as_ref().map_or(ptr::null(), ptr::from_ref),
            error: 0,
        };
        let mut pidfd: c_int = -1;
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
        // SAFETY: the stack is aligned as u128 is, which suffices wherever that is
        // less than 16, grows down from its end and
        // is used by one child at a time, as CLONE_VFORK keeps this thread
        // from running until the child has left it by execve or _exit, or died. For as long `errand` lives, and what it points to: the strings
        // are borrowed for longer than this call, the arrays are ours.
        // CLONE_PIDFD puts the descriptor into the variable given as `parent_tid`.
        let pid = unsafe {
            libc::clone(
                in_child,
                self.stack.as_mut_ptr_range().end.cast(),
                flags,
                (&raw mut errand).cast(),
                &raw mut pidfd,
            )
        };
        // Not given to from_raw if negative, which it takes for a bug.
        let Some(pid) = (pid > 0).then(|| Pid::from_raw(pid)).flatten() else {
            return Err(io::Error::last_os_error());
        };
        if pidfd < 0 {
            // Linux before 5.2 takes no notice of CLONE_PIDFD.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
            return Err(Errno::NOSYS.into());
        }
        // SAFETY: clone succeeded and wrote a new descriptor that nobody else has.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        // SAFETY: `errand` is alive; volatile, as the child wrote it behind the compiler's back.
        let error = unsafe { (&raw const errand.error).read_volatile() };
        if error == 0 {
            return Ok((pidfd, pid));
        }
        // It has exited, or is about to: this does not block for longer than that.
        reap(pidfd.as_fd())?;
        Err(io::Error::from_raw_os_error(error))
    }
}

/// What rt_sigaction(2) takes: the disposition, flags, mask and restorer, some
/// words in all. The first is the disposition, and all zeros is the default.
type KernelAction = [usize; 8];

/// The size of the mask in it, in bytes.
const KERNEL_MASK: usize = 8;

/// Whether a signal is ignored.
fn is_ignored(signal: c_int) -> bool {
    // SAFETY: sigaction is plain data for which all zeros is a valid value; with
    // a null new action, the call only reads.
    let (result, old) = unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(signal, ptr::null(), &raw mut old), old)
    };
    if result == 0 {
        return old.sa_sigaction == libc::SIG_IGN;
    }
    // The C library hides those that it uses itself: 32, 33, and musl's 34.
    let mut old: KernelAction = [0; 8];
    // SAFETY: the kernel writes no more than five words; with a null new action,
    // the call only reads.
    let result = unsafe {
        let new = ptr::null::<KernelAction>();
        libc::syscall(libc::SYS_rt_sigaction, signal, new, &raw mut old, KERNEL_MASK)
    };
    result == 0 && old[0] == libc::SIG_IGN
}

/// Makes an array of C strings as execve(2) takes it.
fn fill<'a>(
    array: &mut Vec<*const c_char>,
    strings: impl IntoIterator<Item = &'a CStr>,
) -> *const *const c_char {
    array.clear();
    array.extend(strings.into_iter().map(CStr::as_ptr));
    array.push(ptr::null());
    array.as_ptr()
}

fn reap(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED))?;
    Ok(())
}

/// The child's way from clone to execve, in the parent's memory: no
/// allocation, no lock, no panic, no return.
extern "C" fn in_child(errand: *mut c_void) -> c_int {
    // SAFETY: `errand` is what spawn passed, alive until this process has left
    // its memory; every call is async-signal-safe, and the mutable access is
    // the only one, for the parent waits.
    unsafe {
        let errand = &mut *errand.cast::<Errand>();
        libc::setpgid(0, 0);
        for i in 0..errand.reset_len {
            let mut default: libc::sigaction = std::mem::zeroed();
            default.sa_sigaction = libc::SIG_DFL;
            let signal = *errand.reset.add(i);
            if libc::sigaction(signal, &raw const default, ptr::null_mut()) != 0 {
                let (new, old): (KernelAction, _) = ([0; 8], ptr::null_mut::<KernelAction>());
                libc::syscall(libc::SYS_rt_sigaction, signal, &raw const new, old, KERNEL_MASK);
            }
        }
        if !errand.open_files.is_null() {
            libc::setrlimit(libc::RLIMIT_NOFILE, errand.open_files);
        }
        libc::execve(errand.path, errand.argv, errand.envp);
        (&raw mut errand.error).write_volatile(*libc::__errno_location());
        libc::_exit(127)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_forgotten_and_comes_back() {
        forget_code().unwrap();
        let line = "1000-3000 r-xp 00001000 fe:00 42 /sbin/plugd";
        assert_eq!(code_around(line, 0x2fff), Some((0x1000, 0x3000)));
        assert_eq!(code_around(line, 0x3000), None);
        for other in ["rwxp", "r-xs", "r--p", "rw-p"] {
            assert_eq!(code_around(&line.replace("r-xp", other), 0x2000), None);
        }
        assert_eq!(code_around("1000-3000 r-xp 00000000 00:00 0", 0x2000), None);
    }

    #[test]
    fn a_process_with_threads_does_not_fork() {
        // libtest runs each test in a thread of its own.
        let error = std::thread::spawn(fork).join().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_signal_record_survives_the_pipe() {
        for sender in [None, Some((1, 0)), Some((u32::MAX, u32::MAX))] {
            let record = SignalRecord { signal: libc::SIGTERM, sender };
            assert_eq!(SignalRecord::from_bytes(record.to_bytes()), record);
        }
    }

    #[test]
    fn what_we_opened_ourselves_is_not_adopted() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(adopt(file.as_raw_fd()).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(adopt(-1).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(adopt(1 << 20).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn the_mode_of_a_file_open_as_a_path_is_set_in_both_ways() {
        use rustix::fs::{Mode, OFlags, fstat, open};
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let fd = open(&file, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let mode = || fstat(&fd).unwrap().st_mode & 0o7777;
        chmod(fd.as_fd(), 0o640).unwrap();
        assert_eq!(mode(), 0o640);
        let unsupported = io::Error::from_raw_os_error(libc::ENOSYS);
        chmod_by_proc(fd.as_fd(), 0o604, unsupported).unwrap();
        assert_eq!(mode(), 0o604);
    }

    #[test]
    fn an_error_of_execve_is_told_and_leaves_no_child() {
        let mut spawner = Spawner::new();
        let error = spawner.spawn(c"/nonexistent/program", [c"x"], []).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        let error = spawner.spawn(c"/etc/passwd", [c"x"], []).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }
}
