//! Sockets that another program opened and handed over, and handing over more.
//!
//! Pure: says which file descriptors they are, and what the environment tells
//! of them. Taking them over is `sys::adopt`'s business, putting one
//! in its place `sys::hand_over`'s.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The first file descriptor handed over (sd_listen_fds(3); UCSPI).
pub const FIRST: i32 = 3;

/// As many as any process can have open, unless fs.nr_open was raised (proc(5)).
const COUNT_MAX: i32 = 1 << 20;

/// The file descriptors that LISTEN_FDS tells of, if LISTEN_PID says that it
/// is meant for the process `pid`; else it was meant for an ancestor, maybe one
/// that had the same process id: so if LISTEN_PIDFDID is there as well, it has
/// to be the process's `pidfd_inode` (where the kernel has such a thing), which
/// is not given out twice. `variable` looks up a variable of the environment.
///
/// # Errors
/// If LISTEN_FDS is meant for this process but makes no sense; the text names it.
pub fn inherited(
    variable: impl Fn(&str) -> Option<OsString>,
    pid: u32,
    pidfd_inode: impl FnOnce() -> Option<u64>,
) -> Result<Option<Range<i32>>, String> {
    let number = |text: &OsStr| text.to_str().and_then(|text| text.parse::<i32>().ok());
    if variable("LISTEN_PID").is_none_or(|value| value.to_str() != Some(&pid.to_string())) {
        return Ok(None);
    }
    if let Some(value) = variable("LISTEN_PIDFDID") {
        let is_own = match pidfd_inode() {
            Some(inode) => value.to_str() == Some(&inode.to_string()),
            None => value.to_str().is_some_and(|text| text.parse::<u64>().is_ok()),
        };
        if !is_own {
            return Ok(None);
        }
    }
    let Some(value) = variable("LISTEN_FDS") else { return Ok(None) };
    match number(&value) {
        Some(0) => Ok(None),
        Some(count @ 1..=COUNT_MAX) => Ok(Some(FIRST..FIRST + count)),
        _ => Err(format!("LISTEN_FDS is not a number of file descriptors: {}", value.display())),
    }
}

/// The longest name of a socket, in bytes (sd_listen_fds(3)).
const NAME_MAX: usize = 255;

/// Whether a socket can have this name: 1 to 255 printable ASCII
/// characters, and no `:`, which stands between names.
pub fn is_name(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name.iter().all(|b| matches!(b, b' '..=b'~') && *b != b':')
}

/// Where one more socket goes, and what the next program is told about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOver {
    /// Its file descriptor.
    pub fd: i32,
    /// The variables to set; `None`: to remove.
    pub variables: Vec<(&'static str, Option<OsString>)>,
}

impl HandOver {
    /// As daemontools has it: the socket is the first descriptor, and no
    /// variable tells of it.
    pub fn plain() -> Self {
        Self { fd: FIRST, variables: Vec::new() }
    }

    /// As systemd has it: the socket comes after those that were handed over
    /// to this process, and will be handed on. `variable` looks up a variable
    /// of the environment, `pid` is this process, and also the next program, with
    /// its `pidfd_inode`; `name` is the socket's name.
    ///
    /// # Errors
    /// If LISTEN_FDS is meant for this process but makes no sense; the text names it.
    pub fn systemd(
        variable: impl Fn(&str) -> Option<OsString>,
        pid: u32,
        pidfd_inode: impl FnOnce() -> Option<u64>,
        name: &OsStr,
    ) -> Result<Self, String> {
        let before = inherited(&variable, pid, pidfd_inode)?.unwrap_or(FIRST..FIRST);
        let names = if before.is_empty() { None } else { variable("LISTEN_FDNAMES") };
        let names = names.as_deref().map_or(&[][..], OsStr::as_bytes);
        let given = names.split(|&b| b == b':').filter(|_| !names.is_empty());
        let mut all: Vec<&[u8]> =
            given.chain(std::iter::repeat(&b"unknown"[..])).take(before.len()).collect();
        all.push(name.as_bytes());
        let mut variables = vec![
            ("LISTEN_FDS", Some(all.len().to_string().into())),
            ("LISTEN_PID", Some(pid.to_string().into())),
            ("LISTEN_FDNAMES", Some(OsString::from_vec(all.join(&b':')))),
        ];
        if before.is_empty() {
            // It told of another list.
            variables.push(("LISTEN_PIDFDID", None));
        }
        Ok(Self { fd: before.end, variables })
    }

    /// Also as upstart has it (socket-event(7)).
    pub fn add_upstart(&mut self) {
        self.variables.push(("UPSTART_EVENTS", Some("socket".into())));
        self.variables.push(("UPSTART_FDS", Some(self.fd.to_string().into())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(fds: Option<&str>, pid: Option<&str>) -> Result<Option<Range<i32>>, String> {
        inherited(
            |name| match name {
                "LISTEN_FDS" => fds.map(OsString::from),
                "LISTEN_PID" => pid.map(OsString::from),
                _ => None,
            },
            42,
            || panic!("nobody has asked"),
        )
    }

    #[test]
    fn a_process_has_its_number_for_itself() {
        let meant_for = |value: Option<&str>, inode| {
            let variable = |name: &str| match name {
                "LISTEN_FDS" => Some("1".into()),
                "LISTEN_PID" => Some("42".into()),
                _ => value.map(OsString::from),
            };
            inherited(variable, 42, || inode).unwrap().is_some()
        };
        assert!(meant_for(Some("5"), Some(5)));
        assert!(meant_for(Some("18446744073709551615"), Some(u64::MAX)));
        for other in ["6", "", "05", "+5", "5 ", "x"] {
            assert!(!meant_for(Some(other), Some(5)), "{other:?}");
        }
        // Before Linux 6.9.
        assert!(meant_for(Some("5"), None));
        assert!(!meant_for(Some("x"), None));
        assert!(meant_for(None, None));
    }

    #[test]
    fn only_what_is_meant_for_us_counts() {
        assert_eq!(with(Some("2"), Some("42")), Ok(Some(3..5)));
        assert_eq!(with(Some("1048576"), Some("42")), Ok(Some(3..1_048_579)));
        assert_eq!(with(Some("0"), Some("42")), Ok(None));
        assert_eq!(with(None, Some("42")), Ok(None));
        for pid in [None, Some("41"), Some("42 "), Some("+42"), Some("042"), Some("x"), Some("")] {
            assert_eq!(with(Some("1"), pid), Ok(None), "{pid:?}");
        }
    }

    #[test]
    fn nonsense_meant_for_us_is_an_error() {
        for fds in ["-1", "x", "", "1 ", "1048577", "2147483647", "99999999999"] {
            let error = with(Some(fds), Some("42")).unwrap_err();
            assert!(error.contains("LISTEN_FDS"), "{error}");
        }
    }

    fn chained(present: &[(&str, &str)]) -> Result<String, String> {
        let variable = |name: &str| {
            present.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        let HandOver { fd, variables } =
            HandOver::systemd(variable, 42, || Some(5), "new".as_ref())?;
        let shown = |(key, value): &(_, Option<OsString>)| match value {
            Some(value) => format!("{key}={}", value.display()),
            None => format!("-{key}"),
        };
        let variables: Vec<String> = variables.iter().map(shown).collect();
        Ok(format!("{fd} {}", variables.join(" ")))
    }

    #[test]
    fn the_first_socket_of_a_list() {
        let first = "3 LISTEN_FDS=1 LISTEN_PID=42 LISTEN_FDNAMES=new -LISTEN_PIDFDID";
        assert_eq!(chained(&[]).unwrap(), first);
        for stale in [
            &[("LISTEN_FDS", "2"), ("LISTEN_PID", "41"), ("LISTEN_FDNAMES", "a:b")][..],
            &[("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "a:b")],
            &[("LISTEN_FDS", "x"), ("LISTEN_PID", "1")],
            &[("LISTEN_PID", "42"), ("LISTEN_FDNAMES", "a")],
            &[("LISTEN_FDS", "0"), ("LISTEN_PID", "42"), ("LISTEN_FDNAMES", "a")],
            &[("LISTEN_FDS", "2"), ("LISTEN_PID", "42"), ("LISTEN_PIDFDID", "4")],
        ] {
            assert_eq!(chained(stale).unwrap(), first, "{stale:?}");
        }
        assert!(chained(&[("LISTEN_FDS", "x"), ("LISTEN_PID", "42")]).is_err());
    }

    #[test]
    fn one_more_socket_in_a_list() {
        for (names, expected) in [
            (Some("a:b"), "a:b:new"),
            (Some("a:"), "a::new"),
            (Some("a"), "a:unknown:new"),
            (Some(""), "unknown:unknown:new"),
            (None, "unknown:unknown:new"),
            (Some("a:b:c"), "a:b:new"),
        ] {
            let mut present =
                vec![("LISTEN_FDS", "2"), ("LISTEN_PID", "42"), ("LISTEN_PIDFDID", "5")];
            present.extend(names.map(|names| ("LISTEN_FDNAMES", names)));
            let expected = format!("5 LISTEN_FDS=3 LISTEN_PID=42 LISTEN_FDNAMES={expected}");
            assert_eq!(chained(&present).unwrap(), expected);
        }
    }

    #[test]
    fn upstart_is_told_the_descriptor() {
        let mut hand_over = HandOver::plain();
        hand_over.fd = 7;
        hand_over.add_upstart();
        let expected =
            [("UPSTART_EVENTS", Some("socket".into())), ("UPSTART_FDS", Some("7".into()))];
        assert_eq!(hand_over.variables, expected);
    }

    #[test]
    fn names_are_printable() {
        for name in ["a", "kobject-uevent", "with space", &"x".repeat(255)] {
            assert!(is_name(name.as_bytes()), "{name}");
        }
        for name in ["", "a:b", "a\n", "\x7f", "é", &"x".repeat(256)] {
            assert!(!is_name(name.as_bytes()), "{name}");
        }
    }
}
