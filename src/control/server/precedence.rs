//! Who makes room for whom, where there are too many clients.
//!
//! Pure. Strangers must not keep out those to whom plugd belongs, who says nothing must
//! not keep out who does, nor one stranger the others.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use crate::control::peer::Peer;

use super::Id;

/// How many clients may be connected at once.
pub(super) const CLIENTS_MAX: usize = 2048;
/// How many of them may be others than root and plugd's own user.
const STRANGERS_MAX: usize = CLIENTS_MAX / 2;

/// A client that is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Present {
    pub(super) id: Id,
    pub(super) peer: Peer,
    /// It has not asked anything, and has nothing to hear.
    pub(super) silent: bool,
}

/// Whether there is room for one more where so many are there, some of them strangers, and
/// there is room for `room` of all kinds.
pub(super) fn has_room(room: usize, clients: usize, strangers: usize, peer: &Peer) -> bool {
    clients < room && (peer.privileged || strangers < STRANGERS_MAX.min(room / 2))
}

/// Who leaves for this one, if anybody does. The oldest of those that are there come first.
pub(super) fn who_leaves<P>(present: P, peer: &Peer) -> Option<Id>
where
    P: Iterator<Item = Present> + Clone,
{
    let silent = |privileged: bool| {
        let mut silent = present.clone().filter(|client| client.silent);
        silent.find(|client| client.peer.privileged == privileged).map(|client| client.id)
    };
    silent(false)
        .or_else(|| silent(true).filter(|_| peer.privileged))
        .or_else(|| first_of_crowd(present.clone(), peer.uid))
}

/// The oldest client of the stranger who has most of them, unless that is `uid`, or
/// would then have fewer.
fn first_of_crowd(present: impl Iterator<Item = Present>, uid: u32) -> Option<Id> {
    let mut users = BTreeMap::new();
    for client in present.filter(|client| !client.peer.privileged) {
        users.entry(client.peer.uid).or_insert((0_usize, client.id)).0 += 1;
    }
    let own = users.get(&uid).map_or(0, |(count, _)| *count);
    let most = users.into_values().max_by_key(|(count, _)| *count);
    most.filter(|(count, _)| *count > own + 1).map(|(_, id)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Peer = Peer { pid: 1, uid: 0, of_own_group: true, privileged: true };

    fn stranger(uid: u32) -> Peer {
        Peer { uid, of_own_group: false, privileged: false, ..OWN }
    }

    /// Who leaves for `peer` of these, by their number; whether they are silent is said.
    fn leaves(present: &[(Peer, bool)], peer: Peer) -> Option<usize> {
        let present = present.iter().enumerate();
        let present = present.map(|(n, &(peer, silent))| Present { id: Id(n), peer, silent });
        who_leaves(present, &peer).map(|Id(n)| n)
    }

    #[test]
    fn half_of_the_room_is_for_strangers() {
        for (room, clients, strangers, own, others) in [
            (8, 0, 0, true, true),
            (8, 7, 3, true, true),
            (8, 4, 4, true, false),
            (8, 8, 0, false, false),
            (CLIENTS_MAX, CLIENTS_MAX - 1, STRANGERS_MAX - 1, true, true),
            (CLIENTS_MAX, CLIENTS_MAX - 1, STRANGERS_MAX, true, false),
        ] {
            let found = [OWN, stranger(1)].map(|peer| has_room(room, clients, strangers, &peer));
            assert_eq!(found, [own, others], "{clients}, {strangers} of {room}");
        }
    }

    #[test]
    fn the_oldest_who_is_silent_leaves_a_stranger_first() {
        let present = [(OWN, true), (stranger(1), false), (stranger(2), true), (stranger(1), true)];
        assert_eq!(leaves(&present, OWN), Some(2));
        assert_eq!(leaves(&present, stranger(1)), Some(2));
        // One of plugd's own leaves for one of these only.
        assert_eq!(leaves(&present[..2], OWN), Some(0));
        assert_eq!(leaves(&present[..2], stranger(3)), None);
        assert_eq!(leaves(&[(OWN, false)], OWN), None);
    }

    #[test]
    fn one_of_a_crowd_leaves_if_others_have_fewer() {
        let crowd =
            [(OWN, false), (stranger(1), false), (stranger(2), false), (stranger(2), false)];
        assert_eq!(leaves(&crowd, OWN), Some(2));
        assert_eq!(leaves(&crowd, stranger(3)), Some(2));
        // It would have as few as the other then.
        assert_eq!(leaves(&crowd, stranger(1)), None);
        assert_eq!(leaves(&crowd, stranger(2)), None);
        assert_eq!(leaves(&crowd[..3], stranger(3)), None);
    }
}
