//! The fork, and the talk of the two processes about it.
//!
//! They share a pair of sockets. The parent writes the PID file and says so,
//! with a byte; then the daemon goes on, and says with a byte that it is ready.
//! Either sees at once when the other has died.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::process::{
    Pid, Signal, WaitOptions, chdir, set_parent_process_death_signal, setsid, umask, waitpid,
};

use crate::error::{Fatal, reason};
use crate::logging::escaped;
use crate::sys::{self, Fork};

use super::open_null;
use super::pid_file::PidFile;

/// The parent's exit code for an error that the daemon could not tell with its own.
const EXIT_FAILED: i32 = 111;

/// The way to the parent, which waits until the daemon is ready.
#[derive(Debug)]
pub(super) struct Starter {
    channel: UnixStream,
}

/// Goes on in a new process, in the background; the old one waits for it and
/// exits.
pub(super) fn detach(pid_file: Option<&mut PidFile>) -> Result<Starter, Fatal> {
    let (ours, theirs) =
        UnixStream::pair().map_err(|e| Fatal::system("make a pair of sockets", e))?;
    sys::do_not_ignore_children().map_err(|e| Fatal::system("have children waited for", e))?;
    match sys::fork().map_err(|e| Fatal::system("fork", e))? {
        Fork::Parent(pid) => {
            drop(theirs);
            // The daemon may have them blocked until it handles them; here there is
            // nothing to handle, and who waits may be interrupted.
            if let Err(error) = sys::normalize_signals() {
                tell(&format!("cannot unblock signals: {}", reason(&error)));
            }
            exit(await_daemon(pid, ours, pid_file))
        }
        Fork::Child => {
            drop(ours);
            let starter = Starter { channel: theirs };
            starter.await_pid_file()?;
            leave_terminal()?;
            Ok(starter)
        }
    }
}

/// Ends the parent without dropping anything: it is all the daemon's now.
#[allow(clippy::exit, reason = "what the callers own must not be dropped in two processes")]
fn exit(code: i32) -> ! {
    std::process::exit(code)
}

/// The parent's part.
fn await_daemon(pid: Pid, mut channel: UnixStream, mut pid_file: Option<&mut PidFile>) -> i32 {
    let written = pid_file.as_mut().map_or(Ok(()), |file| file.write(pid));
    match written {
        Ok(()) => {
            // If it has died, reading tells.
            let _ = channel.write_all(&[0]);
            if read_byte(&channel).is_ok() {
                return 0;
            }
        }
        Err(error) => {
            tell(&error.to_string());
            // The daemon sees that nothing comes, and exits.
            drop(channel);
        }
    }
    // Before the process id can be given to somebody else, which is when the
    // daemon has been reaped. It is gone, or about to go.
    if let Some(file) = pid_file
        && let Err(error) = file.clear()
    {
        tell(&error.to_string());
    }
    match rustix::io::retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty())) {
        Ok(Some((_, status))) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) if code != 0 => return code,
            (None, Some(signal)) => {
                let signal = crate::signals::name(signal)
                    .map_or_else(|| format!("signal {signal}"), str::to_owned);
                tell(&format!("the daemon was killed by {signal} before it was ready"));
            }
            _ => tell("the daemon ended before it was ready"),
        },
        Ok(None) => {}
        Err(error) => tell(&format!("cannot wait for the daemon: {}", reason(&error.into()))),
    }
    EXIT_FAILED
}

/// To stderr, if the program does not log errors: nobody else will tell.
fn tell(text: &str) {
    if log::log_enabled!(log::Level::Error) {
        log::error!("{text}");
        return;
    }
    let program = std::env::args_os().next().map(PathBuf::from);
    let name = program.as_deref().and_then(Path::file_name).unwrap_or_default();
    let line = escaped(&format!("{}: error: {text}", name.display())) + "\n";
    let _ = io::stderr().write_all(line.as_bytes());
}

fn read_byte(mut channel: &UnixStream) -> io::Result<()> {
    channel.read_exact(&mut [0])
}

impl Starter {
    fn await_pid_file(&self) -> Result<(), Fatal> {
        read_byte(&self.channel)
            .map_err(|_| Fatal::system("start", io::Error::other("the parent has failed")))
    }

    /// Has the kernel send SIGTERM when the parent dies. To be called when the
    /// user is the right one already: a change of it undoes this (prctl(2)).
    pub(super) fn end_with_parent(&self) -> Result<(), Fatal> {
        set_parent_process_death_signal(Some(Signal::TERM))
            .map_err(|e| Fatal::system("watch the parent", e))?;
        // It may have died before. Not by getppid(2): in a new PID namespace the
        // parent has no id.
        if self.is_alone() { Err(orphaned()) } else { Ok(()) }
    }

    /// Whether the other end of the channel is closed.
    fn is_alone(&self) -> bool {
        let mut channel = [PollFd::new(&self.channel, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::io::retry_on_intr(|| poll(&mut channel, Some(&now))) != Ok(0)
    }

    /// Lets the parent go.
    pub(super) fn release(mut self) -> Result<(), Fatal> {
        set_parent_process_death_signal(None).map_err(|e| Fatal::system("forget the parent", e))?;
        self.channel.write_all(&[0]).map_err(|_| orphaned())
    }
}

fn orphaned() -> Fatal {
    Fatal::system("report that the daemon is ready", io::Error::other("its parent has died"))
}

fn leave_terminal() -> Result<(), Fatal> {
    setsid().map_err(|e| Fatal::system("make a session", e))?;
    let null = open_null().map_err(|e| Fatal::system("make a pipe", e))?;
    rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stdout(&null))
        .map_err(|e| Fatal::system("replace the standard input and output", e))?;
    umask(Mode::WGRP | Mode::WOTH);
    chdir("/").map_err(|e| Fatal::system("change to directory /", e))
}
