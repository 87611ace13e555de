//! Who sent a netlink datagram, and whether that was the kernel.
//!
//! Pure. What the kernel does (net/netlink/af_netlink.c, lib/kobject_uevent.c;
//! the tests hold it to that):
//!
//! - The port id of its own datagrams is 0, and no process can have that one.
//!   But whoever has CAP_NET_ADMIN in the user namespace that owns a network
//!   namespace can have it broadcast a uevent there, in its own name (container
//!   managers do). Only the credentials tell such an event from a real one:
//!   they are those of the process that sent it.
//! - The credentials of real ones have process id 0, also as seen from other
//!   process id namespaces.
//! - Their user id is root of the user namespace that owns the network
//!   namespace, or the machine's root where that namespace maps no root. It is
//!   shown as the receiver's user namespace maps it: 0 as a rule, else some
//!   other user, or, if not mapped at all, the overflow user (65534).
#![forbid(unsafe_code)]

use std::fmt;

use crate::sys::Credentials;
use crate::user_ids::UserIds;

/// The sender of a netlink datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// Its port id (`nl_pid`).
    pub port: u32,
    /// Who it is, if the socket asks for that (SO_PASSCRED).
    pub credentials: Option<Credentials>,
}

/// Reads in a log line as in "sent by port id 7".
impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port id {}", self.port)?;
        match self.credentials {
            Some(Credentials { pid, uid }) => write!(f, ", pid {pid}, user {uid}"),
            None if self.port == 0 => f.write_str(", without credentials"),
            None => Ok(()),
        }
    }
}

/// What a sender must show to be taken for the kernel, beside the port id 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Nothing more.
    Port,
    /// Credentials, if there are any, that are the kernel's as far as this can
    /// be seen in a user namespace.
    Credentials(UserIds),
    /// Credentials, with process id 0 and user id 0.
    Required,
}

impl Check {
    /// Whether the sender counts as the kernel.
    pub fn admits(&self, sender: Sender) -> bool {
        match (self, sender.credentials) {
            _ if sender.port != 0 => false,
            (Self::Port, _) | (Self::Credentials(_), None) => true,
            (Self::Required, None) => false,
            (Self::Required, Some(credentials)) => credentials == Credentials { pid: 0, uid: 0 },
            // Where there is no root, the kernel's user id can be anything.
            (Self::Credentials(mapped), Some(_)) if !mapped.contains(0) => true,
            // And where there is one, it may still not be the root of the
            // network namespace, if that belongs to another user namespace.
            (Self::Credentials(mapped), Some(Credentials { pid, uid })) => {
                pid == 0 && (uid == 0 || mapped.may_stand_for_another(uid))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INITIAL: &str = "         0          0 4294967295\n";
    const ONLY_ROOT: &str = "         0       1000          1\n";
    const ONLY_USER: &str = "      1000       1000          1\n";
    const CONTAINER: &str = "         0     100000      65536\n";

    fn parse(uid_map: &str) -> UserIds {
        UserIds::parse(uid_map, UserIds::OVERFLOW)
    }

    fn admits(check: &Check, port: u32, credentials: Option<(i32, u32)>) -> bool {
        let credentials = credentials.map(|(pid, uid)| Credentials { pid, uid });
        check.admits(Sender { port, credentials })
    }

    #[test]
    fn a_map_says_which_users_there_are() {
        let ids = parse(INITIAL);
        assert!(ids.contains(0) && ids.contains(65534) && ids.contains(u32::MAX - 1));
        let ids = parse("0 1000 1\n1 100000 65536\nnonsense\n");
        assert!(ids.contains(0) && ids.contains(1) && ids.contains(65536));
        assert!(!ids.contains(65537) && !ids.contains(100_000));
        assert!(!parse("").contains(0));
    }

    #[test]
    fn no_process_is_the_kernel() {
        let checks = [INITIAL, ONLY_ROOT, ONLY_USER, ""]
            .map(|map| Check::Credentials(parse(map)))
            .into_iter()
            .chain([Check::Port, Check::Required]);
        for check in checks {
            assert!(!admits(&check, 7, None), "{check:?}");
            assert!(!admits(&check, 7, Some((0, 0))), "{check:?}");
        }
    }

    #[test]
    fn without_credentials_the_port_id_has_to_do() {
        assert!(admits(&Check::Port, 0, None));
        assert!(admits(&Check::Credentials(UserIds::unknown()), 0, None));
        assert!(!admits(&Check::Required, 0, None));
    }

    #[test]
    fn credentials_are_checked_as_far_as_they_can_be() {
        // pid, uid: as in the initial namespace, with root alone, without root,
        // required, with many users, with nobody knows which
        let table = [
            (0, 0, [true, true, true, true, true, true]),
            (7, 0, [false, false, true, false, false, false]),
            (0, 65534, [false, true, true, false, true, true]),
            (7, 65534, [false, false, true, false, false, false]),
            (0, 1000, [false, true, true, false, false, true]),
            (7, 1000, [false, false, true, false, false, false]),
        ];
        let checks = [
            Check::Credentials(parse(INITIAL)),
            Check::Credentials(parse(ONLY_ROOT)),
            Check::Credentials(parse(ONLY_USER)),
            Check::Required,
            Check::Credentials(parse(CONTAINER)),
            Check::Credentials(UserIds::unknown()),
        ];
        for (pid, uid, expected) in table {
            for (check, expected) in checks.iter().zip(expected) {
                assert_eq!(admits(check, 0, Some((pid, uid))), expected, "{pid} {uid} {check:?}");
            }
        }
    }
}
