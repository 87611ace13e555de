//! What runs commands in a machine: `guest/agent`, at the other end of its second
//! serial line, which is QEMU's standard input and output.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use crate::PATIENCE;

/// What a command printed, and its exit code.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) text: String,
    pub(crate) code: i32,
}

/// The line to the agent.
pub(crate) struct Agent {
    line: ChildStdin,
    replies: Receiver<String>,
    runs: u32,
}

impl Agent {
    pub(crate) fn new(line: ChildStdin, replies: ChildStdout) -> Self {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for reply in BufReader::new(replies).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&reply).into_owned()).is_err() {
                    break;
                }
            }
        });
        Self { line, replies: receiver, runs: 0 }
    }

    /// Waits until the machine is so far that the agent listens. What is sent
    /// before that is lost.
    pub(crate) fn wait_until_ready(&mut self) -> Result<(), String> {
        // A serial line may begin with anything.
        self.read_until(|line| line.ends_with("#ready")).map(drop)
    }

    /// Runs a script in a shell.
    pub(crate) fn run(&mut self, script: &str) -> Result<Output, String> {
        self.runs += 1;
        let request = format!("{script}\n#run {}\n", self.runs);
        self.line.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
        let done = format!("#done {} ", self.runs);
        let mut lines = self.read_until(|line| line.starts_with(&done))?;
        let code = lines.pop().and_then(|last| last.strip_prefix(&done)?.parse().ok());
        let text = lines.join("\n").trim_end().to_owned();
        code.map(|code| Output { text, code }).ok_or_else(|| format!("{script}: no exit code"))
    }

    /// All lines up to one that `is_last`, with it.
    fn read_until(&mut self, is_last: impl Fn(&str) -> bool) -> Result<Vec<String>, String> {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = Vec::new();
        while !lines.last().is_some_and(|line: &String| is_last(line)) {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.replies.recv_timeout(left);
            lines.push(line.map_err(|error| format!("the agent is silent: {error}; {lines:?}"))?);
        }
        Ok(lines)
    }
}
