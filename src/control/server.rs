//! The daemon's side of the control socket.
//!
//! Owns the listener and the clients. A part of the loop, which tells it what
//! the poll reported and takes one request after the other from it. Nobody can
//! hold it up: what a client has to say and to hear is bounded, both have to
//! be done in time, and many more clients than are useful may be there at once.
//!
//! One of them is a `client`; how one becomes one is in `admission`, who must leave for
//! another one in `precedence`.

mod admission;
mod client;
mod precedence;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net as std_net;

use mio::event::Event;
use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::fs::Mode;
use rustix::process::{Gid, Uid};

use crate::counters::Limiter;
use crate::error::Fatal;
use crate::handover;
use crate::machine::Time;
use crate::sys;

use super::Address;
use super::peer::Peer;
use super::socket;
use super::wire::{Command, Outcome, Reply};

use self::client::{Client, Look, Question};

/// How many of these may wait for something to happen: each event is compared with what
/// they wait for.
const STRANGERS_WAITING_MAX: usize = 64;
/// How many of those may be of one user.
const ONES_WAITING_MAX: usize = 16;
/// How many clients are looked at, or accepted, in a turn of the loop. What the
/// daemon is there for must not wait for them.
const PER_TURN: usize = 128;
/// How many strangers are looked at, or accepted, in a turn. They come and go faster than
/// they could be served, before those who wait behind them.
const STRANGERS_PER_TURN: usize = 16;
/// How many of them are answered: an event takes little more time than one.
const STRANGERS_ANSWERED_PER_TURN: usize = 4;

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
        let listener = socket::bind(&address, mode, owner).map_err(|error| {
            if error.kind() == io::ErrorKind::AddrInUse {
                let holder = socket::holder(&address);
                let holder = holder.map_or_else(String::new, |p| format!(" by {p}"));
                let error = io::Error::other(format!("the address is in use{holder}"));
                return Fatal::system(format_args!("listen on control socket {address}"), error);
            }
            Fatal::system(format_args!("listen on control socket {address}"), error)
        })?;
        let file = match &address {
            Address::Abstract(_) => None,
            Address::Path(path) => socket::identity(path),
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

    /// Says who listens, if that is not the process any more which bound the address: it is
    /// kept as it was at the last listen(2).
    ///
    /// # Errors
    /// Those of listen(2).
    pub fn listen_again(&self) -> Result<(), Fatal> {
        rustix::net::listen(&self.listener, socket::BACKLOG)
            .map_err(|error| Fatal::system("listen on control socket", error))
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
        let mut answered = 0;
        for n in 0..own + strangers {
            if answered == STRANGERS_ANSWERED_PER_TURN {
                return;
            }
            let queue = if n < own { &mut self.active } else { &mut self.active_strangers };
            let Some(id) = queue.pop_front() else { return };
            let Some(client) = self.clients.get_mut(&id) else { continue };
            client.active = false;
            match client.look(now) {
                Look::Over => self.drop_client(id),
                Look::Later => self.remember(id),
                Look::Asks(mut command) => {
                    let peer = client.peer;
                    answered += usize::from(!peer.privileged);
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
        let group = peer.of_own_group || matches!(self.address, Address::Path(_));
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
        client.last_words |= !reader.is_program || reply.outcome == Outcome::Denied;
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
            && self.file == socket::identity(path)
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

#[cfg(test)]
mod tests {
    use super::*;
    use mio::Poll;
    use std::io::Write;

    #[test]
    fn few_strangers_are_served_in_a_turn_and_after_all_others() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Path(dir.path().join("socket"));
        let mut server = Server::bind(address, Mode::from(0o666), (None, None)).unwrap();
        let poll = Poll::new().unwrap();
        let own = Peer { pid: 1, uid: 0, of_own_group: true, privileged: true };
        let stranger = Peer { uid: 65534, of_own_group: false, privileged: false, ..own };
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
