//! File descriptors by their numbers: those that came through an exec, and those that
//! shall go through the next one; and the mode of a file that is open in any way.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::io::FdFlags;

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
    if flags(fd)? & libc::FD_CLOEXEC != 0 {
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
    flags(fd).is_ok()
}

/// The flags of what is open at this number.
fn flags(fd: RawFd) -> io::Result<c_int> {
    // SAFETY: a plain integer; the call only reads, if anything is open there.
    match unsafe { libc::fcntl(fd, libc::F_GETFD) } {
        -1 => Err(io::Error::last_os_error()),
        flags => Ok(flags),
    }
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
    for fd in all_open()? {
        // Fails for that of the directory, which was closed meanwhile.
        let _ = keep_across_exec([fd].into_iter(), false);
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
    for fd in all_open()?.into_iter().filter(|&fd| matches!(flags(fd), Ok(0))) {
        // SAFETY: it is not close-on-exec, so nothing in this process owns it:
        // see `adopt`.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// The numbers from 3 up where something is open, or just was.
fn all_open() -> io::Result<Vec<RawFd>> {
    let names = std::fs::read_dir("/proc/self/fd")?.map(|entry| Ok(entry?.file_name()));
    let names = names.collect::<io::Result<Vec<_>>>()?;
    let numbers = names.iter().filter_map(|name| name.to_str()?.parse().ok());
    Ok(numbers.filter(|&fd| fd > 2).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

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
        use std::os::fd::AsFd;
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
}
