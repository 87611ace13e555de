//! The new program, asked whether it is one that could go on.
//!
//! Owns its process, and a pidfd to know when it has ended. It may be anything: it is in
//! a process group of its own, and what it says is bounded.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
};

use crate::handover;
use crate::machine::Time;

/// What the new program is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Question {
    /// Its version.
    Version,
    /// Whether it could go on; it has this version.
    Rehearsal(String),
}

/// The new program, asked a question.
#[derive(Debug)]
pub(in crate::r#loop) struct Probe {
    pub(super) question: Question,
    child: Child,
    pub(super) pidfd: OwnedFd,
    pub(super) deadline: Time,
}

impl Probe {
    /// Starts the program in this file, with this as its standard input, and asks it.
    pub(super) fn start(
        file: &Path,
        question: Question,
        stdin: Stdio,
        deadline: Time,
    ) -> io::Result<Self> {
        let mut command = Command::new(file);
        match question {
            // It may be anything: it hears nothing and is not heard.
            Question::Version => {
                command.arg("--version").stdout(Stdio::piped()).stderr(Stdio::null());
            }
            // It is a plugd, and may say what is wrong.
            Question::Rehearsal(_) => {
                let mut arguments = std::env::args_os();
                command.arg0(arguments.next().unwrap_or_default()).args(arguments);
                command.env(handover::VARIABLE, handover::REHEARSAL).stdout(Stdio::piped());
            }
        }
        let mut child = command.stdin(stdin).process_group(0).spawn()?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { question, child, pidfd, deadline }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::PidFd(self.pidfd.as_fd()), options), Ok(Some(_)))
    }

    /// Ends it, with all that it has started, and tells how it ended.
    pub(super) fn end(mut self) -> (Self, io::Result<ExitStatus>) {
        // The group's id cannot have been recycled: its leader is not yet reaped.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        // It may have left its group. Either way this does not take long.
        let _ = self.child.kill();
        let status = self.child.wait();
        (self, status)
    }

    /// The first line that it said, now that it has ended. Somebody else may
    /// still have its output open: that is not waited for.
    pub(super) fn said(&mut self) -> String {
        let mut text = [0; 200];
        let length = self.child.stdout.take().and_then(|mut stdout| {
            rustix::io::ioctl_fionbio(&stdout, true).ok()?;
            stdout.read(&mut text).ok()
        });
        let said = String::from_utf8_lossy(&text[..length.unwrap_or(0)]);
        said.lines().next().unwrap_or_default().to_owned()
    }
}
