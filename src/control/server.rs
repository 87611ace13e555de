//! The daemon's side of the control socket.
//!
//! Owns the listener and the clients. A part of the loop, which tells it what
//! the poll reported and takes one request after the other from it. Nobody can
//! hold it up: what a client has to say and to hear is bounded, both have to
//! be done in time, and many more clients than are useful may be there at once.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net as std_net;
use std::path::Path;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, chownat, fstat};
use rustix::io::Errno;
use rustix::process::{Gid, Resource, Rlimit, Uid, getegid, geteuid, getrlimit, setrlimit};

use crate::counters::Limiter;
use crate::error::{Fatal, reason};
use crate::handover;
use crate::machine::Time;
use crate::sys;
use crate::user_ids::UserIds;

use super::Address;
use super::wire::{self, Command, Outcome, REQUEST_MAX, Reader, Reply};

/// How long to wait for the lock of a directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// How many clients may be connected at once.
const CLIENTS_MAX: usize = 2048;
/// How many of them may be others than root and plugd's own user.
const STRANGERS_MAX: usize = CLIENTS_MAX / 2;
/// How many of these may wait for something to happen: each event is compared with what
/// they wait for.
const STRANGERS_WAITING_MAX: usize = 64;
/// How many of those may be of one user.
const ONES_WAITING_MAX: usize = 16;
/// File descriptors that clients must leave to the daemon, for children above all.
const DESCRIPTORS_KEPT: u64 = 32;
/// How long a client may take to say something.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a client may take to read a reply.
const DEAFNESS: Duration = Duration::from_secs(10);
/// When to try again to accept somebody.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How many clients are looked at, or accepted, in a turn of the loop. What the
/// daemon is there for must not wait for them.
const PER_TURN: usize = 128;
/// How many strangers are looked at, or accepted, in a turn: an event takes little
/// more time than one.
const STRANGERS_PER_TURN: usize = 4;

/// The control socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    address: Address,
    /// Which file that is, if it is one: device and inode.
    file: Option<(u64, u64)>,
    /// Who may ask; see [`Server::may_ask`].
    mode: Mode,
    /// The token of the listener; the clients' follow.
    first_token: usize,
    next_id: usize,
    /// The oldest come first.
    clients: BTreeMap<Id, Client>,
    strangers: usize,
    /// Somebody may wait to be accepted.
    accepting: bool,
    /// Who may have something to say or to hear, each once, but for strangers.
    active: VecDeque<Id>,
    /// The same of strangers, who come after those.
    active_strangers: VecDeque<Id>,
    /// No client has to be reminded before that.
    reminder: Option<Time>,
    /// Somebody could not be accepted; when to try again.
    accept_again: Option<Time>,
    /// Who has gone, or was sent away, while a request waited.
    lost: Vec<Id>,
    /// The limit of open files that was there before it was raised for clients.
    open_files: Option<(u64, u64)>,
    refused: Complaint,
    not_accepted: Complaint,
    /// Who was accepted, and had to be left.
    not_kept: Complaint,
}

/// What is told at most once a second, and how often it was the case.
#[derive(Debug, Default)]
struct Complaint {
    limiter: Limiter,
    count: u64,
}

impl Complaint {
    /// Once more, at the time `now`.
    fn tell(&mut self, now: Time, what: fmt::Arguments<'_>) {
        self.count += 1;
        if self.limiter.allows(now) {
            log::warn!("{what} ({} so far)", self.count);
        }
    }
}

/// Tells clients apart; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id(usize);

/// Who is at the other end, as the kernel knows it (SO_PEERCRED in unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its process id, 0 if that means nothing here.
    pub pid: i32,
    /// Its user id.
    pub uid: u32,
    gid: u32,
    /// It is root's, or our own user's.
    pub(super) privileged: bool,
}

impl Peer {
    pub(super) fn of(stream: &impl AsFd) -> io::Result<Self> {
        let (pid, uid, gid) = sys::peer_credentials(stream)?;
        // One's own user may also be what all are shown as who are not in the namespace.
        let is_own = || uid == geteuid().as_raw() && !UserIds::own().is_shared(uid);
        let privileged = uid == 0 || is_own();
        Ok(Self { pid, uid, gid, privileged })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} of user {}", self.pid, self.uid)
    }
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    peer: Peer,
    /// What it said, from the request on that was not yet answered.
    input: Vec<u8>,
    /// It will say no more.
    ended: bool,
    /// It will hear no more.
    gone: bool,
    /// Its request, which waits for an answer.
    asking: Option<Question>,
    /// What it has still to hear.
    output: Vec<u8>,
    heard: usize,
    /// It is sent away when it has heard that.
    last_words: bool,
    /// It is in [`Server::active`] or [`Server::active_strangers`].
    active: bool,
    /// When it is sent away if it says or hears nothing.
    deadline: Time,
    /// When what it asks next is to be answered at the latest, if that was settled before
    /// an update.
    until: Option<Time>,
}

/// A request that waits for an answer.
#[derive(Debug, Clone, Copy)]
struct Question {
    reader: Reader,
    /// Its length, at the beginning of the input.
    length: usize,
}

/// What becomes of a client that was looked at.
enum Look {
    /// It has asked something.
    Asks(Result<Command, String>),
    /// Nothing for now.
    Later,
    /// It is to be sent away.
    Over,
}

impl Server {
    /// Binds and listens. `mode` is a file's mode, and says who may ask what
    /// changes nothing: others, or the group, if they may write.
    ///
    /// A file that is there already is replaced if it is a socket and nobody
    /// answers on it. It becomes `owner`'s, a user's and a group's.
    ///
    /// # Errors
    /// Says who holds the address already. Else those of bind(2) and listen(2).
    pub fn bind(
        address: Address,
        mode: Mode,
        owner: (Option<Uid>, Option<Gid>),
    ) -> Result<Self, Fatal> {
        let listener = match &address {
            Address::Abstract(_) => bind(&address),
            Address::Path(path) => bind_file(&address, path, mode, owner),
        };
        let listener = listener.map_err(|error| {
            if error.kind() == io::ErrorKind::AddrInUse {
                let holder = holder(&address).map_or_else(String::new, |p| format!(" by {p}"));
                let error = io::Error::other(format!("the address is in use{holder}"));
                return Fatal::system(format_args!("listen on control socket {address}"), error);
            }
            Fatal::system(format_args!("listen on control socket {address}"), error)
        })?;
        let file = match &address {
            Address::Abstract(_) => None,
            Address::Path(path) => identity(path),
        };
        Self::from_listener(listener, file, address, mode)
            .map_err(|error| Fatal::system("listen on control socket", error))
    }

    /// Goes on with a socket that was bound to this address and listens; `file` is
    /// the device and the inode of its file, if it has one.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn from_listener(
        listener: std_net::UnixListener,
        file: Option<(u64, u64)>,
        address: Address,
        mode: Mode,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: UnixListener::from_std(listener),
            address,
            file,
            mode,
            first_token: 0,
            next_id: 0,
            clients: BTreeMap::new(),
            strangers: 0,
            accepting: true,
            active: VecDeque::new(),
            active_strangers: VecDeque::new(),
            reminder: None,
            accept_again: None,
            lost: Vec::new(),
            open_files: None,
            refused: Complaint::default(),
            not_accepted: Complaint::default(),
            not_kept: Complaint::default(),
        })
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Begins to watch, with all tokens from `first_token` on for itself.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn register(&mut self, registry: &Registry, first_token: usize) -> io::Result<()> {
        self.first_token = first_token;
        registry.register(&mut self.listener, Token(first_token), Interest::READABLE)
    }

    /// Goes on with the clients of the plugd before this one. Returns those
    /// that wait for the end of the update; who cannot be kept is sent away.
    /// `open_files` is what that one's [`Server::open_files`] said.
    pub fn resume(
        &mut self,
        clients: Vec<handover::Client>,
        open_files: Option<(u64, u64)>,
        registry: &Registry,
        now: Time,
    ) -> Vec<Id> {
        self.open_files = open_files;
        let mut updating = Vec::new();
        for client in clients {
            let stream = match sys::adopt(client.fd) {
                Ok(fd) => UnixStream::from_std(fd.into()),
                Err(error) => {
                    self.cannot_keep(now, "go on with a client", &error);
                    continue;
                }
            };
            let Ok(peer) = Peer::of(&stream) else { continue };
            let Some(id) = self.keep(stream, peer, registry, now) else { continue };
            let Some(kept) = self.clients.get_mut(&id) else { continue };
            kept.input = client.input;
            kept.output = client.output;
            kept.last_words = client.last_words;
            kept.until = client.until;
            if client.asked_for_update {
                // Not read as a request once more: it would begin another update.
                if kept.question().is_none() {
                    kept.ended = true;
                    let _ = kept.question();
                }
                updating.push(id);
            }
        }
        updating
    }

    /// The listening socket, for the plugd after this one.
    pub fn listener(&self) -> handover::Listener {
        handover::Listener { fd: self.listener.as_raw_fd(), file: self.file }
    }

    /// The clients, for the plugd after this one, which they are told nothing
    /// of; `updating` are those that asked for it, and `until` tells when a request
    /// is to be answered at the latest. What is asked by who has gone since is not
    /// asked again.
    pub fn hand_over(
        &self,
        updating: &[Id],
        until: impl Fn(Id) -> Option<Time>,
    ) -> Vec<handover::Client> {
        let asks_no_more = |client: &Client| client.asking.is_some() && client.has_gone();
        let clients = self.clients.iter().filter(|(_, client)| !asks_no_more(client));
        clients
            .map(|(id, client)| handover::Client {
                fd: client.stream.as_raw_fd(),
                input: client.input.clone(),
                output: client.output[client.heard..].to_vec(),
                last_words: client.last_words,
                asked_for_update: updating.contains(id),
                until: client.until.or_else(|| until(*id)),
            })
            .collect()
    }

    /// The poll reported one of the server's tokens.
    pub fn ready(&mut self, event: &Event) {
        let Some(id) = event.token().0.checked_sub(self.first_token + 1).map(Id) else {
            self.accepting = true;
            return;
        };
        if let Some(client) = self.clients.get_mut(&id) {
            client.gone |= event.is_write_closed() || event.is_error();
            self.activate(id);
        }
    }

    /// The limit of open files (soft, hard) that children have to get, if it is
    /// not the present one.
    pub fn open_files(&self) -> Option<(u64, u64)> {
        self.open_files
    }

    /// Something is to be done that the poll will not report again.
    pub fn has_work(&self) -> bool {
        self.accepting || !self.active.is_empty() || !self.active_strangers.is_empty()
    }

    /// When to call [`Server::remind`], at the latest.
    pub fn deadline(&self) -> Option<Time> {
        self.reminder.into_iter().chain(self.accept_again).min()
    }

    /// Sends away who was silent or deaf for too long, and looks who waits.
    pub fn remind(&mut self, now: Time) {
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accepting = true;
        }
        if self.reminder.is_none_or(|at| at > now) {
            return;
        }
        let late = |client: &Client| client.asking.is_none() && client.deadline <= now;
        let late: Vec<Id> =
            self.clients.iter().filter(|(_, c)| late(c)).map(|(id, _)| *id).collect();
        late.into_iter().for_each(|id| self.drop_client(id));
        let waiting = self.clients.values().filter(|client| client.asking.is_none());
        self.reminder = waiting.map(|client| client.deadline).min();
    }

    /// Who has gone although a request of theirs was not answered yet.
    pub fn take_lost(&mut self) -> Vec<Id> {
        std::mem::take(&mut self.lost)
    }

    /// A turn of the loop: lets clients hear and say what they have to, and
    /// calls `answer` for every request; `None` from it means that
    /// [`Server::reply`] follows later.
    pub fn serve(&mut self, now: Time, mut answer: impl FnMut(Id, Peer, Command) -> Option<Reply>) {
        let own = PER_TURN.min(self.active.len());
        let strangers = STRANGERS_PER_TURN.min(self.active_strangers.len());
        for n in 0..own + strangers {
            let queue = if n < own { &mut self.active } else { &mut self.active_strangers };
            let Some(id) = queue.pop_front() else { return };
            let Some(client) = self.clients.get_mut(&id) else { continue };
            client.active = false;
            match client.look(now) {
                Look::Over => self.drop_client(id),
                Look::Later => self.remember(id),
                Look::Asks(mut command) => {
                    let peer = client.peer;
                    let until = client.until.take();
                    if let (Ok(Command::Await { timeout, .. }), Some(at)) = (&mut command, until) {
                        *timeout = at.saturating_sub(now);
                    }
                    if let Some(reply) = self.judge(&peer, command, now, |c| answer(id, peer, c)) {
                        self.reply(id, &reply, now);
                    } else if self.clients.get(&id).is_some_and(|client| client.gone) {
                        // What it told is done; it will not hear the answer.
                        self.drop_client(id);
                    }
                }
            }
        }
    }

    fn judge(
        &mut self,
        peer: &Peer,
        command: Result<Command, String>,
        now: Time,
        answer: impl FnOnce(Command) -> Option<Reply>,
    ) -> Option<Reply> {
        match command {
            _ if !self.may_ask(peer) => Some(self.deny(peer, "ask anything", now)),
            Ok(command) if command.changes_something() && !peer.privileged => {
                Some(self.deny(peer, "change anything", now))
            }
            Ok(Command::Await { .. }) if !peer.privileged && self.too_many_wait(peer) => {
                Some(Reply::no("too many clients wait"))
            }
            Ok(command) => answer(command),
            Err(text) => Some(Reply { outcome: Outcome::Usage, text }),
        }
    }

    /// Whether more strangers wait than may, or more of this one's user; the one included
    /// whose request is judged.
    fn too_many_wait(&self, peer: &Peer) -> bool {
        let waits = |client: &&Client| !client.peer.privileged && client.asking.is_some();
        let waiting = || self.clients.values().filter(waits);
        waiting().count() > STRANGERS_WAITING_MAX
            || waiting().filter(|client| client.peer.uid == peer.uid).count() > ONES_WAITING_MAX
    }

    /// Who could connect to a file that the group may write to belongs to it;
    /// an abstract socket lets everybody connect.
    fn may_ask(&self, peer: &Peer) -> bool {
        let group = match self.address {
            Address::Path(_) => true,
            Address::Abstract(_) => peer.gid == getegid().as_raw(),
        };
        peer.privileged || self.mode.contains(Mode::WOTH) || self.mode.contains(Mode::WGRP) && group
    }

    fn deny(&mut self, peer: &Peer, what: &str, now: Time) -> Reply {
        self.refused
            .tell(now, format_args!("{peer} may not {what} on the control socket: refused"));
        Reply { outcome: Outcome::Denied, text: format!("user {} may not {what} here", peer.uid) }
    }

    /// Replies to a client's request.
    pub fn reply(&mut self, id: Id, reply: &Reply, now: Time) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let Some(Question { reader, length }) = client.asking.take() else { return };
        client.input.drain(..length);
        if client.input.is_empty() {
            client.input = Vec::new();
        }
        client.say(&reply.to_bytes(reader), now);
        // Who is refused once need not ask again at once, and again.
        client.last_words |= reader == Reader::Person || reply.outcome == Outcome::Denied;
        self.activate(id);
    }

    /// The end: each client hears what it can hear at once, and the file is
    /// removed, unless another one has taken its place.
    pub fn close(mut self, now: Time) {
        for client in self.clients.values_mut() {
            client.hear(now);
        }
        if let Address::Path(path) = &self.address
            && self.file.is_some()
            && self.file == identity(path)
        {
            let _ = rustix::fs::unlink(path);
        }
    }

    fn activate(&mut self, id: Id) {
        if let Some(client) = self.clients.get_mut(&id)
            && !std::mem::replace(&mut client.active, true)
        {
            match client.peer.privileged {
                true => self.active.push_back(id),
                false => self.active_strangers.push_back(id),
            }
        }
    }

    /// Sees to it that the client's deadline is kept.
    fn remember(&mut self, id: Id) {
        if let Some(client) = self.clients.get(&id).filter(|client| client.asking.is_none()) {
            let at = client.deadline;
            self.reminder = Some(self.reminder.map_or(at, |reminder| reminder.min(at)));
        }
    }

    /// A turn of the loop: accepts those who wait for it.
    pub fn accept(&mut self, registry: &Registry, now: Time) {
        if self.accepting {
            self.accept_again = None;
        }
        let mut strangers = 0;
        for _ in 0..PER_TURN {
            if !self.accepting || strangers == STRANGERS_PER_TURN {
                return;
            }
            match self.listener.accept() {
                Ok((stream, _)) => match Peer::of(&stream) {
                    Ok(peer) => {
                        strangers += usize::from(!peer.privileged);
                        self.admit(stream, peer, registry, now);
                    }
                    Err(error) => self.cannot_keep(now, "tell who a client is", &error),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.accepting = false,
                Err(error) => {
                    let errno = Errno::from_io_error(&error);
                    if matches!(errno, Some(Errno::CONNABORTED | Errno::INTR)) {
                        continue;
                    }
                    // For want of descriptors or memory. Who waits there is
                    // not reported again.
                    self.accepting = false;
                    self.accept_again = Some(now + ACCEPT_PAUSE);
                    let why = reason(&error);
                    self.not_accepted.tell(
                        now,
                        format_args!("cannot accept a client of the control socket: {why}"),
                    );
                }
            }
        }
    }

    fn cannot_keep(&mut self, now: Time, what: &str, error: &io::Error) {
        self.not_kept.tell(now, format_args!("cannot {what}: {}", reason(error)));
    }

    fn admit(&mut self, mut stream: UnixStream, peer: Peer, registry: &Registry, now: Time) {
        if !self.make_room(&peer) {
            // Into an empty buffer: it takes it all, or the client is gone.
            let _ = stream.write(TOO_MANY);
            return;
        }
        let _ = self.keep(stream, peer, registry, now);
    }

    /// Whether there is room for one more: strangers must not keep out those
    /// to whom plugd belongs, and who says nothing must not keep out who does.
    fn make_room(&mut self, peer: &Peer) -> bool {
        let mut room = room();
        if self.clients.len() >= room && room < CLIENTS_MAX && self.open_files.is_none() {
            self.open_files = raise_open_files();
            room = self::room();
        }
        let full = self.clients.len() >= room;
        let share = self.strangers >= STRANGERS_MAX.min(room / 2);
        if !full && (peer.privileged || !share) {
            return true;
        }
        // Who was not looked at yet may have said something.
        let silent =
            |client: &Client| client.asking.is_none() && client.output.is_empty() && !client.active;
        let find = |privileged: bool| {
            let mut clients = self.clients.iter();
            clients.find(|(_, c)| c.peer.privileged == privileged && silent(c)).map(|(id, _)| *id)
        };
        let oldest = find(false).or_else(|| find(true).filter(|_| peer.privileged));
        if let Some(id) = oldest {
            self.drop_client(id);
        }
        oldest.is_some()
    }

    fn keep(
        &mut self,
        mut stream: UnixStream,
        peer: Peer,
        registry: &Registry,
        now: Time,
    ) -> Option<Id> {
        let id = Id(self.next_id);
        self.next_id += 1;
        let token = Token(self.first_token + 1 + id.0);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = registry.register(&mut stream, token, interest) {
            self.cannot_keep(now, "watch a client of the control socket", &error);
            return None;
        }
        self.strangers += usize::from(!peer.privileged);
        self.clients.insert(
            id,
            Client {
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
            },
        );
        self.activate(id);
        Some(id)
    }

    /// Closing its socket, of which there is no other copy, unregisters it.
    fn drop_client(&mut self, id: Id) {
        let Some(client) = self.clients.remove(&id) else { return };
        self.strangers -= usize::from(!client.peer.privileged);
        if client.asking.is_some() {
            self.lost.push(id);
        }
        if self.clients.is_empty() {
            self.reminder = None;
        }
    }
}

impl Client {
    /// Whether it will hear no more, by the kernel's word: the poll tells of it later.
    fn has_gone(&self) -> bool {
        let mut polled = [PollFd::new(&self.stream, PollFlags::empty())];
        let found = poll(&mut polled, Some(&Timespec::default()));
        self.gone
            || found.is_ok() && polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    fn say(&mut self, bytes: &[u8], now: Time) {
        self.output.extend_from_slice(bytes);
        self.deadline = now + DEAFNESS;
    }

    /// Lets it hear what it has to, then says what it asks, if it does.
    fn look(&mut self, now: Time) -> Look {
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
    fn question(&mut self) -> Option<Result<Command, String>> {
        let length = self.input.len();
        let end = match self.input.iter().position(|&b| b == b'\n') {
            Some(end) => end,
            None if length >= REQUEST_MAX => {
                self.asking = Some(Question { reader: Reader::Person, length });
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
    fn hear(&mut self, now: Time) -> bool {
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

/// How many clients the limit of open files leaves room for: even a very low one for a few,
/// or nobody could say stop.
fn room() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = limit.saturating_sub(DESCRIPTORS_KEPT).max(limit / 8);
    usize::try_from(room).unwrap_or(usize::MAX).min(CLIENTS_MAX)
}

/// Raises the limit of open files as far as it is of use and allowed; returns
/// what it was (soft, hard).
fn raise_open_files() -> Option<(u64, u64)> {
    let before = getrlimit(Resource::Nofile);
    let wanted = CLIENTS_MAX as u64 + DESCRIPTORS_KEPT;
    let current = before.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    setrlimit(Resource::Nofile, Rlimit { current: Some(current), ..before }).ok()?;
    // RLIM_INFINITY (getrlimit(2)) is all ones.
    Some((before.current.unwrap_or(u64::MAX), before.maximum.unwrap_or(u64::MAX)))
}

fn bind(address: &Address) -> io::Result<std_net::UnixListener> {
    std_net::UnixListener::bind_addr(&address.to_socket_address()?)
}

/// Binds a file, replacing one that nobody listens on. With the directory
/// locked: of two that find such a file at the same time, the second must find
/// the first's instead.
fn bind_file(
    address: &Address,
    path: &Path,
    mode: Mode,
    owner: (Option<Uid>, Option<Gid>),
) -> io::Result<std_net::UnixListener> {
    let directory = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lock = rustix::fs::open(directory, flags, Mode::empty())?;
    // Anybody who may read the directory can lock it, for ever.
    let deadline = Instant::now() + LOCK_PATIENCE;
    while let Err(error) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        if error != Errno::WOULDBLOCK || Instant::now() >= deadline {
            return Err(error.into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // Nobody must be able to connect before the mode is set.
    let umask = rustix::process::umask(Mode::RWXU | Mode::RWXG | Mode::RWXO);
    let listener = match bind(address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(address, path) => {
            rustix::fs::unlink(path).map_err(io::Error::from).and_then(|()| bind(address))
        }
        result => result,
    };
    rustix::process::umask(umask);
    let listener = listener?;
    rustix::fs::chmod(path, mode)?;
    if owner != (None, None) {
        give_away(path, owner)?;
    }
    Ok(listener)
}

/// Makes the socket that was just bound there another user's or group's; not what somebody
/// may have put in its place, who can write to the directory.
fn give_away(path: &Path, owner: (Option<Uid>, Option<Gid>)) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let status = fstat(&file)?;
    let is_socket = FileType::from_raw_mode(status.st_mode) == FileType::Socket;
    if !is_socket || status.st_nlink != 1 || status.st_uid != geteuid().as_raw() {
        return Err(io::Error::other("another file has taken its place"));
    }
    Ok(chownat(file, c"", owner.0, owner.1, AtFlags::EMPTY_PATH)?)
}

/// Device and inode of a file; `None` if there is none.
fn identity(path: &Path) -> Option<(u64, u64)> {
    rustix::fs::lstat(path).ok().map(|status| (status.st_dev, status.st_ino))
}

/// Whether it is a socket that nobody listens on.
fn is_stale(address: &Address, path: &Path) -> bool {
    let is_socket = rustix::fs::lstat(path)
        .is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Socket);
    let refused =
        connect(address).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    is_socket && refused
}

/// Connects without waiting: whoever listens there may have stopped, with others
/// waiting already.
fn connect(address: &Address) -> io::Result<UnixStream> {
    UnixStream::connect_addr(&address.to_socket_address()?)
}

/// Whether a user listens there who is neither root nor our own, or one who does not
/// say.
pub fn is_strangers(address: &Address) -> bool {
    holder(address).is_none_or(|peer| ![0, rustix::process::geteuid().as_raw()].contains(&peer.uid))
}

/// What a client hears that is sent away unheard.
pub const TOO_MANY: &[u8] = b"error: no: too many clients\n";

/// Who listens there, as far as it can be told.
fn holder(address: &Address) -> Option<Peer> {
    Peer::of(&connect(address).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::Poll;

    #[test]
    fn few_strangers_are_served_in_a_turn_and_after_all_others() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Path(dir.path().join("socket"));
        let mut server = Server::bind(address, Mode::from(0o666), (None, None)).unwrap();
        let poll = Poll::new().unwrap();
        let own = Peer { pid: 1, uid: 0, gid: 0, privileged: true };
        let stranger = Peer { uid: 65534, gid: 65534, privileged: false, ..own };
        let mut others = Vec::new();
        for peer in [stranger; 6].into_iter().chain([own; 6]) {
            let (mut other, stream) = std_net::UnixStream::pair().unwrap();
            other.write_all(b"plugd/1 settle\n").unwrap();
            others.push(other);
            stream.set_nonblocking(true).unwrap();
            let stream = UnixStream::from_std(stream);
            server.keep(stream, peer, poll.registry(), Time::ZERO).unwrap();
        }
        let mut turn = || {
            let mut asked = Vec::new();
            server.serve(Time::ZERO, |_, peer, _| {
                asked.push(peer);
                None
            });
            (asked, server.active.is_empty(), server.active_strangers.len())
        };
        assert_eq!(turn(), ([[own; 6].as_slice(), &[stranger; 4]].concat(), true, 2));
        assert_eq!(turn(), (vec![stranger; 2], true, 0));
    }
}
