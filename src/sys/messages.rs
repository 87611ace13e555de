//! One message from a socket, with who sent it.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::last_errno;

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
