//! What a program is started with and std cannot give it.
#![allow(
    unsafe_code,
    reason = "std has no safe way to hand over file descriptors and signal masks"
)]

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has `command` start with each of these descriptors at the number beside
/// it, and with these signals blocked. The descriptors must stay open until
/// it is started. But for these and the standard ones it has none, whatever the
/// tests were started with (Linux 5.11 or later).
pub(crate) fn inherit(command: &mut Command, fds: Vec<(RawFd, RawFd)>, blocked: Vec<i32>) {
    let mut moved = fds.clone();
    let out_of_the_way = fds.iter().map(|(_, number)| number + 1).max().unwrap_or_default();
    let in_child = move || {
        // SAFETY: plain integers; a system call is async-signal-safe. Where there is none,
        // nothing happens.
        unsafe {
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
        };
        for (moved, given) in moved.iter_mut().zip(&fds) {
            // SAFETY: plain integers; fcntl is async-signal-safe.
            moved.0 =
                check(unsafe { libc::fcntl(given.0, libc::F_DUPFD_CLOEXEC, out_of_the_way) })?;
        }
        for &(from, to) in &moved {
            // SAFETY: plain integers; dup2 is async-signal-safe.
            check(unsafe { libc::dup2(from, to) })?;
        }
        // SAFETY: sigset_t is plain data for which all zeros is a valid value;
        // these functions are async-signal-safe.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for &signal in &blocked {
                libc::sigaddset(&raw mut set, signal);
            }
            check(libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()))?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes only the calls above; the vectors
    // were allocated before.
    unsafe { command.pre_exec(in_child) };
}

/// Has SIGINT end what `command` starts, even where the tests were started in the
/// background of a shell, which has that ignored.
pub(crate) fn interruptible(command: &mut Command) {
    // SAFETY: between fork and exec it makes one call, of an async-signal-safe function
    // that is given no handler.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            Ok(())
        })
    };
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
