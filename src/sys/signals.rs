//! Signals: forwarded, blocked, survived; and what of them children would inherit.

use std::ffi::c_int;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

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
    set_all_blocked(false)
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

/// Blocks all signals that can be: what comes now waits, across execve(2) too,
/// until [`normalize_signals`].
///
/// # Errors
/// Those of sigprocmask(2).
pub fn block_signals() -> io::Result<()> {
    set_all_blocked(true)
}

/// Does something while all signals are blocked that can be. A thread that is started
/// meanwhile has them blocked for ever (pthread_create(3)).
pub fn with_signals_blocked<T>(act: impl FnOnce() -> T) -> T {
    // SAFETY: sigset_t is plain data for which all zeros is a valid value, the calls
    // read and write no more than these two, and what was there before is put back.
    unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) =
            (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let done = act();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
        done
    }
}

/// Has all signals blocked that can be, or none.
fn set_all_blocked(blocked: bool) -> io::Result<()> {
    // SAFETY: sigset_t is plain data for which all zeros is a valid value.
    let result = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        match blocked {
            true => libc::sigfillset(&raw mut set),
            false => libc::sigemptyset(&raw mut set),
        };
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has writing fail instead of ending this process where it goes beyond the limit of
/// file sizes (RLIMIT_FSIZE) or to a pipe that nobody reads: the log may be either.
///
/// By handlers that do nothing, as execve(2) resets those by itself: ignored signals
/// each program would have to be freed from, on its way.
///
/// # Errors
/// Those of sigaction(2).
pub fn survive_failing_writes() -> io::Result<()> {
    extern "C" fn nothing(_: c_int) {}
    for signal in [libc::SIGXFSZ, libc::SIGPIPE] {
        // SAFETY: a handler that does nothing may run at any time.
        let before = unsafe { libc::signal(signal, nothing as *const () as libc::sighandler_t) };
        if before == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// What rt_sigaction(2) takes: the disposition, flags, mask and restorer, some
/// words in all. The first is the disposition, and all zeros is the default.
pub(super) type KernelAction = [usize; 8];

/// The size of the mask in it, in bytes.
pub(super) const KERNEL_MASK: usize = 8;

/// Whether a signal is ignored.
pub(super) fn is_ignored(signal: c_int) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_record_survives_the_pipe() {
        for sender in [None, Some((1, 0)), Some((u32::MAX, u32::MAX))] {
            let record = SignalRecord { signal: libc::SIGTERM, sender };
            assert_eq!(SignalRecord::from_bytes(record.to_bytes()), record);
        }
    }
}
