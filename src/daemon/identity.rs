//! The user and the groups that a daemon becomes.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::{Gid, Uid, getgid, getgroups};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use crate::account::{self, Accounts};
use crate::error::Fatal;
use crate::sys;

/// What to become; nothing changes where it says nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    user: Option<u32>,
    group: Option<u32>,
    /// The supplementary groups.
    groups: Option<Vec<u32>>,
}

impl Identity {
    /// Looks the names up. `#` and a number is an id, which need not be known.
    pub(super) fn resolve(user: Option<&OsStr>, group: Option<&OsStr>) -> Result<Self, Fatal> {
        const PASSWD: &str = "/etc/passwd";
        const GROUP: &str = "/etc/group";
        if user.is_none() && group.is_none() {
            return Ok(Self::default());
        }
        let (passwd, group_file) = (Path::new(PASSWD), Path::new(GROUP));
        let accounts = Accounts::load(passwd, group_file)
            .map_err(|e| Fatal::system(format_args!("read {PASSWD} and {GROUP}"), e))?;
        let identity = Self::look_up(&accounts, user, group, || {
            // Without the file nobody is in a group.
            fs::read(group_file).unwrap_or_default()
        })?;
        if let Self { user: Some(uid), group: None, .. } = identity {
            log::warn!(
                "user #{uid} is not in {PASSWD}: its group is not known and stays {}",
                getgid().as_raw()
            );
        }
        Ok(identity)
    }

    pub(super) fn ids(&self) -> (Option<Uid>, Option<Gid>) {
        (self.user.map(Uid::from_raw), self.group.map(Gid::from_raw))
    }

    fn look_up(
        accounts: &Accounts,
        user: Option<&OsStr>,
        group: Option<&OsStr>,
        group_file: impl FnOnce() -> Vec<u8>,
    ) -> Result<Self, Fatal> {
        let uid = user.map(|u| id(u, "user", |name| accounts.user(name))).transpose()?;
        let gid = group.map(|g| id(g, "group", |name| accounts.group(name))).transpose()?;
        let primary = gid.or_else(|| match user?.as_bytes() {
            [b'#', ..] => accounts.primary_group(uid?),
            name => accounts.primary_group_of(name),
        });
        let groups = match user.map(OsStr::as_bytes) {
            Some(name) if !name.starts_with(b"#") && group.is_none() => {
                // As initgroups(3): the primary group is one of them.
                let mut groups: Vec<u32> = primary.into_iter().collect();
                let others = account::groups_of(name, &group_file());
                groups.extend(others.into_iter().filter(|id| Some(*id) != primary));
                groups
            }
            _ => Vec::new(),
        };
        Ok(Self { user: uid, group: primary, groups: Some(groups) })
    }

    /// Becomes it. The system calls change this thread only, so it has to be
    /// the only one.
    pub(super) fn assume(&self) -> Result<(), Fatal> {
        if *self != Self::default() && sys::has_other_threads() {
            let text = "a process with several threads cannot change them in all";
            let error = io::Error::new(io::ErrorKind::Unsupported, text);
            return Err(Fatal::system("become another user or group", error));
        }
        if let Some(groups) = &self.groups {
            let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
            set_thread_groups(&groups)
                .map_err(|e| Fatal::system("set the supplementary groups", e))?;
        }
        if let Some(gid) = self.group {
            let id = Gid::from_raw(gid);
            set_thread_res_gid(id, id, id)
                .map_err(|e| Fatal::system(format_args!("become group #{gid}"), e))?;
        }
        if let Some(uid) = self.user {
            let id = Uid::from_raw(uid);
            set_thread_res_uid(id, id, id)
                .map_err(|e| Fatal::system(format_args!("become user #{uid}"), e))?;
        }
        self.drop_capabilities()?;
        self.verify()
    }

    /// The kernel takes them from who is root no more, but for those that are
    /// inheritable; and all, unless it was told not to (SECBIT_NO_SETUID_FIXUP in
    /// capabilities(7), which is inherited).
    fn drop_capabilities(&self) -> Result<(), Fatal> {
        if self.is_unprivileged() && has_capabilities()? {
            let none = CapabilitySet::empty();
            let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
            set_capabilities(None, none).map_err(|e| Fatal::system("drop capabilities", e))?;
        }
        Ok(())
    }

    fn is_unprivileged(&self) -> bool {
        self.user.is_some_and(|uid| uid != 0)
    }

    /// A daemon that only believes to have no privileges is the worst of all.
    fn verify(&self) -> Result<(), Fatal> {
        let failed = |text| Fatal::system("become another user or group", io::Error::other(text));
        let as_wanted = |wanted: Option<u32>, ids: [u32; 3]| {
            wanted.is_none_or(|wanted| ids.iter().all(|id| *id == wanted))
        };
        let (users, groups) =
            sys::all_ids().map_err(|e| Fatal::system("read the user and group ids", e))?;
        if !as_wanted(self.user, users) || !as_wanted(self.group, groups) {
            return Err(failed("the ids are others than those that were set"));
        }
        if self.is_unprivileged() && has_capabilities()? {
            return Err(failed("capabilities are left that were dropped"));
        }
        if let Some(groups) = &self.groups {
            // The kernel keeps them sorted.
            let mut wanted = groups.clone();
            wanted.sort_unstable();
            let mut got: Vec<u32> = getgroups()
                .map_err(|e| Fatal::system("read the supplementary groups", e))?
                .into_iter()
                .map(Gid::as_raw)
                .collect();
            got.sort_unstable();
            if got != wanted {
                let error = io::Error::other("they are others than those that were set");
                return Err(Fatal::system("set the supplementary groups", error));
            }
        }
        Ok(())
    }
}

fn has_capabilities() -> Result<bool, Fatal> {
    let sets = capabilities(None).map_err(|e| Fatal::system("read the capabilities", e))?;
    Ok(!(sets.permitted | sets.inheritable).is_empty())
}

fn id(text: &OsStr, kind: &str, by_name: impl FnOnce(&[u8]) -> Option<u32>) -> Result<u32, Fatal> {
    let id = match text.as_bytes() {
        [b'#', digits @ ..] => account::id(digits),
        name => by_name(name),
    };
    id.ok_or_else(|| {
        Fatal::Usage(format!("there is no {kind} '{}'", text.as_bytes().escape_ascii()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0::/:\nann:x:100:7::/:\nall:x:4294967295:7::/:\n\
                            any:x:101:4294967295::/:\n\
                            eva:x:100:9::/:\n";
    const GROUP: &[u8] = b"root:x:0:root\nann:x:7:\ndisk:x:6:ann\nvideo:x:27:bob,ann\nc:x:7:ann\n\
                           every:x:4294967295:ann\n";

    fn look_up(user: Option<&str>, group: Option<&str>) -> Option<Identity> {
        let accounts = Accounts::parse(PASSWD, GROUP);
        let [user, group] = [user, group].map(|name| name.map(OsStr::new));
        Identity::look_up(&accounts, user, group, || GROUP.to_vec()).ok()
    }

    #[test]
    fn who_one_becomes() {
        let identity = |user, group, groups: &[u32]| {
            Some(Identity { user, group, groups: Some(groups.to_vec()) })
        };
        for (user, group, expected) in [
            (Some("ann"), None, identity(Some(100), Some(7), &[7, 6, 27])),
            // Who shares a user id with another one has a group of their own.
            (Some("eva"), None, identity(Some(100), Some(9), &[9])),
            (Some("ann"), Some("disk"), identity(Some(100), Some(6), &[])),
            (Some("ann"), Some("#9"), identity(Some(100), Some(9), &[])),
            (Some("#100"), None, identity(Some(100), Some(7), &[])),
            (Some("#5"), None, identity(Some(5), None, &[])),
            (Some("#5"), Some("disk"), identity(Some(5), Some(6), &[])),
            (None, Some("disk"), identity(None, Some(6), &[])),
            (Some("#101"), None, identity(Some(101), None, &[])),
            (Some("all"), None, None),
            (Some("any"), None, None),
            (None, Some("every"), None),
            (Some("eve"), None, None),
            (Some("100"), None, None),
            (Some("#"), None, None),
            (Some("#-1"), None, None),
            (Some("#4294967295"), None, None),
            (Some("#4294967296"), None, None),
            (Some(""), None, None),
            (Some("ann"), Some("eve"), None),
        ] {
            assert_eq!(look_up(user, group), expected, "{user:?} {group:?}");
        }
    }
}
