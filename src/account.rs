//! User and group names, from the text of /etc/passwd and /etc/group.
//!
//! No NSS: it is early boot, and the binary is static. Owns the tables that
//! were read; a line that is no entry is skipped, as libc does.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::path::Path;
use std::{fs, io};

/// The users and groups of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    /// User id and primary group; several users may have one id.
    users: HashMap<Box<[u8]>, (u32, u32)>,
    groups: HashMap<Box<[u8]>, u32>,
    primary_groups: HashMap<u32, u32>,
}

impl Accounts {
    /// Reads the contents of /etc/passwd and of /etc/group. Of two entries of
    /// one name the first counts.
    pub fn parse(passwd: &[u8], group: &[u8]) -> Self {
        let mut accounts = Self::default();
        for line in passwd.split(|&b| b == b'\n') {
            let mut fields = line.split(|&b| b == b':');
            let (Some(name), Some(uid), Some(gid)) = (
                fields.next().filter(|name| !name.is_empty()),
                fields.nth(1).and_then(id),
                fields.next().and_then(id),
            ) else {
                continue;
            };
            accounts.users.entry(name.into()).or_insert((uid, gid));
            accounts.primary_groups.entry(uid).or_insert(gid);
        }
        for line in group.split(|&b| b == b'\n') {
            let mut fields = line.split(|&b| b == b':');
            let name = fields.next().filter(|name| !name.is_empty());
            if let (Some(name), Some(gid)) = (name, fields.nth(1).and_then(id)) {
                accounts.groups.entry(name.into()).or_insert(gid);
            }
        }
        accounts
    }

    /// Reads the two files; one that does not exist is taken as empty.
    ///
    /// # Errors
    /// Those of open(2) and read(2).
    pub fn load(passwd: &Path, group: &Path) -> io::Result<Self> {
        let read = |path| match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            result => result,
        };
        Ok(Self::parse(&read(passwd)?, &read(group)?))
    }

    /// The id of a user.
    pub fn user(&self, name: &[u8]) -> Option<u32> {
        self.users.get(name).map(|(uid, _)| *uid)
    }

    /// The id of a group.
    pub fn group(&self, name: &[u8]) -> Option<u32> {
        self.groups.get(name).copied()
    }

    /// The primary group of the user of this name.
    pub fn primary_group_of(&self, name: &[u8]) -> Option<u32> {
        self.users.get(name).map(|(_, gid)| *gid)
    }

    /// The primary group of the first user with this id.
    pub fn primary_group(&self, uid: u32) -> Option<u32> {
        self.primary_groups.get(&uid).copied()
    }
}

/// The ids of the groups that have `user` among their members, in the order of
/// `group`, the contents of /etc/group; each once. The user's primary group is
/// there only if it has the user as a member.
pub fn groups_of(user: &[u8], group: &[u8]) -> Vec<u32> {
    let mut ids = Vec::new();
    for line in group.split(|&b| b == b'\n') {
        let mut fields = line.split(|&b| b == b':').skip(2);
        let (Some(gid), Some(members)) = (fields.next().and_then(id), fields.next()) else {
            continue;
        };
        if members.split(|&b| b == b',').any(|member| member == user) && !ids.contains(&gid) {
            ids.push(gid);
        }
    }
    ids
}

/// The id of a user or a group. The largest number is none: it means "leave it
/// as it is" to chown(2) and setresuid(2).
pub fn id(digits: &[u8]) -> Option<u32> {
    number(digits).filter(|&id| id != u32::MAX)
}

/// A decimal number of 32 bits, of digits only.
pub fn number(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u32, |value, digit| {
        digit.is_ascii_digit().then_some(())?;
        value.checked_mul(10)?.checked_add(u32::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_have_ids() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\ndaemon:x:2:7::/:\nroot:x:9:9::/:\n";
        let group = b"root:x:0:\ndisk:x:6:root,daemon\ndisk:x:66:\nvideo:x:27";
        let accounts = Accounts::parse(passwd, group);
        assert_eq!(accounts.user(b"root"), Some(0));
        assert_eq!(accounts.user(b"daemon"), Some(2));
        assert_eq!(accounts.user(b"disk"), None);
        assert_eq!(accounts.group(b"disk"), Some(6));
        assert_eq!(accounts.group(b"video"), Some(27));
        assert_eq!(accounts.group(b"daemon"), None);
        assert_eq!(accounts.primary_group(2), Some(7));
        assert_eq!(accounts.primary_group(3), None);
        let accounts = Accounts::parse(b"ann:x:2:7::/:\neve:x:2:8::/:\nann:x:3:9::/:\n", b"");
        let groups = [&b"ann"[..], b"eve", b"bob"].map(|name| accounts.primary_group_of(name));
        assert_eq!((groups, accounts.primary_group(2)), ([Some(7), Some(8), None], Some(7)));
    }

    #[test]
    fn a_user_is_in_the_groups_that_list_it() {
        let group = b"root:x:0:ann\nann:x:7:\nd:x:6:bob,ann,eve\nv:x:27:annie\n\
                      again:x:6:ann\nbad:x:-1:ann\nlast:x:9:bob,ann";
        assert_eq!(groups_of(b"ann", group), [0, 6, 9]);
        assert_eq!(groups_of(b"bob", group), [6, 9]);
        assert!(groups_of(b"nobody", group).is_empty());
    }

    #[test]
    fn what_is_no_entry_is_skipped() {
        let lines = b"\n# x\n+::::::\nshort:x\n:x:1:1\na:x:-1:1\nb:x:4294967296:1\nc:x:1:z\n\
                      e:x:4294967295:1\nf:x:1:4294967295\nd:x:3:4\n";
        let accounts = Accounts::parse(lines, lines);
        assert_eq!(accounts.users.keys().collect::<Vec<_>>(), [&Box::from(&b"d"[..])]);
        assert_eq!(accounts.user(b"d"), Some(3));
        let groups = Accounts::parse(b"", b"a:x:4294967295:\nb:x:4294967294:\n").groups;
        assert_eq!(groups, HashMap::from([(b"b"[..].into(), 4_294_967_294)]));
        assert_eq!(groups_of(b"ann", b"a:x:4294967295:ann\nb:x:7:ann\n"), [7]);
    }

    #[test]
    fn missing_files_are_empty_ones() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("group"), "tty:x:5:\n").unwrap();
        let load = |passwd: &str, group: &str| {
            Accounts::load(&directory.path().join(passwd), &directory.path().join(group))
        };
        assert_eq!(load("passwd", "group").unwrap().group(b"tty"), Some(5));
        assert!(load(".", "group").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read(passwd: Vec<u8>, group: Vec<u8>) {
            Accounts::parse(&passwd, &group);
            groups_of(&passwd, &group);
        }

        #[test]
        fn numbers_are_those_of_the_standard_library(text in "[0-9+ -]{0,12}") {
            let expected = text.parse().ok().filter(|_| !text.starts_with('+'));
            prop_assert_eq!(number(text.as_bytes()), expected);
        }
    }
}
