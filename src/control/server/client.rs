//! One client: what it has said, what it has still to hear.

use std::io::{self, Read, Write};
use std::time::Duration;

use mio::net::UnixStream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::control::peer::Peer;
use crate::control::wire::{self, Command, REQUEST_MAX, Reader};
use crate::machine::Time;

/// How long a client may take to say something.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a client may take to read a reply.
const DEAFNESS: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: UnixStream,
    pub(super) peer: Peer,
    /// What it said, from the request on that was not yet answered.
    pub(super) input: Vec<u8>,
    /// It will say no more.
    pub(super) ended: bool,
    /// It will hear no more.
    pub(super) gone: bool,
    /// Its request, which waits for an answer.
    pub(super) asking: Option<Question>,
    /// What it has still to hear.
    pub(super) output: Vec<u8>,
    pub(super) heard: usize,
    /// It is sent away when it has heard that.
    pub(super) last_words: bool,
    /// It is in [`super::Server::active`] or [`super::Server::active_strangers`].
    pub(super) active: bool,
    /// When it is sent away if it says or hears nothing.
    pub(super) deadline: Time,
    /// When what it asks next is to be answered at the latest, if that was settled before
    /// an update.
    pub(super) until: Option<Time>,
}

/// A request that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    pub(super) reader: Reader,
    /// Its length, at the beginning of the input.
    pub(super) length: usize,
}

/// What becomes of a client that was looked at.
pub(super) enum Look {
    /// It has asked something.
    Asks(Result<Command, String>),
    /// Nothing for now.
    Later,
    /// It is to be sent away.
    Over,
}

impl Client {
    /// One that has said nothing yet, at the time `now`.
    pub(super) fn new(stream: UnixStream, peer: Peer, now: Time) -> Self {
        Self {
            stream,
            peer,
            input: Vec::new(),
            ended: false,
            gone: false,
            asking: None,
            output: Vec::new(),
            heard: 0,
            last_words: false,
            active: false,
            deadline: now + SILENCE,
            until: None,
        }
    }

    /// Whether it will hear no more, by the kernel's word: the poll tells of it later.
    pub(super) fn has_gone(&self) -> bool {
        let mut polled = [PollFd::new(&self.stream, PollFlags::empty())];
        let found = poll(&mut polled, Some(&Timespec::default()));
        self.gone
            || found.is_ok() && polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    pub(super) fn say(&mut self, bytes: &[u8], now: Time) {
        self.output.extend_from_slice(bytes);
        self.deadline = now + DEAFNESS;
    }

    /// Lets it hear what it has to, then says what it asks, if it does.
    pub(super) fn look(&mut self, now: Time) -> Look {
        if !self.hear(now) {
            return Look::Over;
        }
        if self.asking.is_some() {
            return if self.gone { Look::Over } else { Look::Later };
        }
        if !self.output.is_empty() {
            return Look::Later;
        }
        if self.last_words {
            return Look::Over;
        }
        loop {
            if let Some(command) = self.question() {
                return Look::Asks(command);
            }
            if self.ended {
                return Look::Over;
            }
            let mut buffer = [0; REQUEST_MAX];
            match self.stream.read(&mut buffer[..REQUEST_MAX.saturating_sub(self.input.len())]) {
                Ok(0) => self.ended = true,
                Ok(length) => self.input.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Look::Later,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Look::Over,
            }
        }
    }

    /// The request at the beginning of the input, if it is complete. It waits
    /// for an answer from now on.
    pub(super) fn question(&mut self) -> Option<Result<Command, String>> {
        let length = self.input.len();
        let end = match self.input.iter().position(|&b| b == b'\n') {
            Some(end) => end,
            None if length >= REQUEST_MAX => {
                self.asking = Some(Question { reader: Reader::PERSON, length });
                return Some(Err(format!("a request has at most {REQUEST_MAX} bytes")));
            }
            // The last line of a file may lack its newline.
            None if self.ended && length > 0 => length,
            None => return None,
        };
        let (reader, command) = wire::parse(&self.input[..end]);
        self.asking = Some(Question { reader, length: length.min(end + 1) });
        Some(command)
    }

    /// Whether it may hear more.
    pub(super) fn hear(&mut self, now: Time) -> bool {
        while self.heard < self.output.len() {
            match self.stream.write(&self.output[self.heard..]) {
                Ok(0) => return false,
                Ok(length) => {
                    self.heard += length;
                    self.deadline = now + DEAFNESS;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        if self.heard > 0 {
            // Idle clients keep no memory.
            self.output = Vec::new();
            self.heard = 0;
            self.deadline = now + SILENCE;
        }
        true
    }
}
