//! Which users there are in this process's user namespace, and who is shown as one of
//! them without being it (user_namespaces(7)).
#![forbid(unsafe_code)]

use std::fs;

/// The user ids that a user namespace has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserIds {
    /// The first of each range, and how many there are.
    ranges: Vec<(u32, u32)>,
    /// What stands for those that it does not have. There may be one of that id too.
    overflow: u32,
}

impl UserIds {
    /// Nobody knows which but root: /proc is not mounted.
    pub fn unknown() -> Self {
        Self { ranges: vec![(0, 1)], overflow: Self::OVERFLOW }
    }

    /// The overflow user id, unless somebody chose another one.
    pub const OVERFLOW: u32 = 65534;

    /// Reads /proc/PID/uid_map (user_namespaces(7)): lines of the first id
    /// inside, the first id outside, and the count. Other lines are left out.
    /// `overflow` is what is in /proc/sys/kernel/overflowuid.
    pub fn parse(uid_map: &str, overflow: u32) -> Self {
        let range = |line: &str| {
            let mut numbers = line.split_ascii_whitespace().map(|number| number.parse().ok());
            let (first, _outside, count) = (numbers.next()??, numbers.next()?, numbers.next()??);
            Some((first, count))
        };
        Self { ranges: uid_map.lines().filter_map(range).collect(), overflow }
    }

    /// Those of this process's user namespace: unknown, if the kernel has no such
    /// thing or /proc is not mounted.
    pub fn own() -> Self {
        let overflow = fs::read_to_string("/proc/sys/kernel/overflowuid");
        let overflow = overflow.ok().and_then(|text| text.trim_end().parse().ok());
        fs::read_to_string("/proc/self/uid_map").map_or_else(
            |_| Self::unknown(),
            |uid_map| Self::parse(&uid_map, overflow.unwrap_or(Self::OVERFLOW)),
        )
    }

    /// Whether this may be what a user is shown as who is not in the namespace.
    pub fn may_stand_for_another(&self, uid: u32) -> bool {
        !self.contains(uid) || self.is_shared(uid)
    }

    /// Whether all users who are not in the namespace are shown as this one.
    pub fn is_shared(&self, uid: u32) -> bool {
        uid == self.overflow && !self.ranges.contains(&(0, u32::MAX))
    }

    /// Whether there is such a user in the namespace.
    pub fn contains(&self, uid: u32) -> bool {
        self.ranges.iter().any(|&(first, count)| uid >= first && uid - first < count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_not_there_is_shown_as_the_overflow_user() {
        let all = UserIds::parse("0 0 4294967295\n", UserIds::OVERFLOW);
        assert!(all.contains(65534) && !all.is_shared(65534));
        for some in ["0 100000 65536\n", "0 1000 1\n", ""] {
            let some = UserIds::parse(some, UserIds::OVERFLOW);
            assert!(some.is_shared(65534) && !some.is_shared(0) && !some.is_shared(1000));
        }
        assert!(UserIds::unknown().is_shared(65534) && !UserIds::unknown().is_shared(1000));
        assert!(UserIds::parse("0 0 10\n", 7).is_shared(7));
    }
}
