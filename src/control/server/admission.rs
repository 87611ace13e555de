//! Who is accepted.

use std::io::{self, Write};
use std::time::Duration;

use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::control::peer::Peer;
use crate::control::wire;
use crate::error::reason;
use crate::machine::Time;

use super::client::Client;
use super::precedence::{CLIENTS_MAX, Present, has_room, who_leaves};
use super::{Id, PER_TURN, STRANGERS_PER_TURN, Server};

/// File descriptors that clients must leave to the daemon, for children above all.
const DESCRIPTORS_KEPT: u64 = 32;
/// When to try again to accept somebody.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

impl Server {
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

    pub(super) fn cannot_keep(&mut self, now: Time, what: &str, error: &io::Error) {
        self.not_kept.tell(now, format_args!("cannot {what}: {}", reason(error)));
    }

    fn admit(&mut self, mut stream: UnixStream, peer: Peer, registry: &Registry, now: Time) {
        if !self.make_room(&peer) {
            // Into an empty buffer: it takes it all, or the client is gone.
            let _ = stream.write(wire::TOO_MANY);
            return;
        }
        let _ = self.keep(stream, peer, registry, now);
    }

    /// Whether there is room for one more, perhaps as another one leaves.
    fn make_room(&mut self, peer: &Peer) -> bool {
        let mut room = room();
        if self.clients.len() >= room && room < CLIENTS_MAX && self.open_files.is_none() {
            self.open_files = raise_open_files();
            room = self::room();
        }
        if has_room(room, self.clients.len(), self.strangers, peer) {
            return true;
        }
        // Who was not looked at yet may have said something.
        let silent =
            |client: &Client| client.asking.is_none() && client.output.is_empty() && !client.active;
        let present = |(id, client): (&Id, &Client)| Present {
            id: *id,
            peer: client.peer,
            silent: silent(client),
        };
        let leaving = who_leaves(self.clients.iter().map(present), peer);
        if let Some(id) = leaving {
            self.drop_client(id);
        }
        leaving.is_some()
    }

    pub(super) fn keep(
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
        self.clients.insert(id, Client::new(stream, peer, now));
        self.activate(id);
        Some(id)
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
