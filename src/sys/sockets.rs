//! What the kernel says of a socket, and what it is told, apart from messages.

use std::ffi::c_int;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

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

/// The supplementary groups of the process at the other end,
/// likewise (SO_PEERGROUPS, from Linux 4.13 on).
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
