//! The environment of a child: plugd's own, and an event's variables over it.
//!
//! Pure. [`Base`] owns the part that is the same for every child; what
//! [`Base::with_event`] returns borrows it and the event.
#![forbid(unsafe_code)]

use std::ffi::{CStr, CString, OsString};
use std::os::unix::ffi::OsStringExt;

use crate::uevent::{REPLAY, Uevent};

/// Where programs are looked for if PATH is not set; with it a child runs then,
/// as the kernel's own hotplug helper does (lib/kobject_uevent.c).
pub const DEFAULT_PATH: &str = "/sbin:/bin:/usr/sbin:/usr/bin";

/// Variables of the hand-over to plugd itself (sd_listen_fds(3), sd_notify(3),
/// upstart's socket-event(7), [`crate::handover`]); its children must not take them for theirs.
const HANDOVER: [&[u8]; 4] = [b"LISTEN_*", b"NOTIFY_SOCKET", b"PLUGD_HANDOVER", b"UPSTART_*"];

/// Variables by which whoever sets them can make a program run or read something else
/// than intended: a shell, the dynamic linker and the C library, an interpreter, kmod,
/// and other tools that handlers run, with their plugins, configurations and programs;
/// and MDEV, which is for rules to set. An event may not set them. `*` at the end stands
/// for anything. Those of the hand-over are among them. By the first letter, so that few
/// of them are to be looked at.
fn protected(letter: u8) -> &'static [&'static [u8]] {
    match letter {
        b'A' => &[b"ALSA_CONFIG_*", b"AWKLIBPATH", b"AWKPATH"],
        b'B' => &[
            b"BASHOPTS",
            b"BASH_ENV",
            b"BASH_FUNC_*",
            b"BASH_LOADABLES_PATH",
            b"BASH_XTRACEFD",
            b"BLKID_*",
        ],
        b'C' => &[b"CDPATH"],
        b'E' => &[b"EDITOR", b"ENV", b"EXECIGNORE"],
        b'F' => &[b"FPATH"],
        b'G' => &[
            b"GCONV_PATH",
            b"GEM_*",
            b"GETCONF_DIR",
            b"GIT_*",
            b"GLIBC_TUNABLES",
            b"GLOBIGNORE",
            b"GUILE_*",
        ],
        b'H' => &[b"HOME", b"HOSTALIASES"],
        b'I' => &[b"IFS"],
        b'J' => &[b"JAVA_TOOL_OPTIONS", b"JDK_JAVA_OPTIONS"],
        b'K' => &[b"KSH_ENV"],
        b'L' => &[
            b"LD_*",
            b"LESSCLOSE",
            b"LESSOPEN",
            b"LIBMOUNT_*",
            b"LISTEN_*",
            b"LOCALDOMAIN",
            b"LOCPATH",
            b"LUA_*",
            b"LVM_*",
        ],
        b'M' => &[b"MAILPATH", b"MALLOC_*", b"MDEV", b"MODPROBE_OPTIONS", b"MUSL_LOCPATH"],
        b'N' => &[b"NIS_PATH", b"NLSPATH", b"NODE_*", b"NOTIFY_SOCKET", b"NULLCMD"],
        b'O' => &[b"OPENSSL_*", b"OPTIND"],
        b'P' => &[
            b"PAGER",
            b"PATH",
            b"PATH_LOCALE",
            b"PERL*",
            b"PHPRC",
            b"PHP_INI_SCAN_DIR",
            b"PLUGD_HANDOVER",
            b"PROMPT_COMMAND",
            b"PS1",
            b"PS2",
            b"PS4",
            b"PYTHON*",
        ],
        b'R' => &[b"READNULLCMD", b"RESOLV_HOST_CONF", b"RES_OPTIONS", b"RSYNC_RSH", b"RUBY*"],
        b'S' => &[b"SHELL", b"SHELLOPTS"],
        b'T' => &[
            b"TAR_OPTIONS",
            b"TCLLIBPATH",
            b"TC_LIB_DIR",
            b"TERMCAP",
            b"TERMINFO*",
            b"TERMPATH",
            b"TEXTDOMAIN*",
            b"TMPDIR",
            b"TMPPREFIX",
            b"TZDIR",
        ],
        b'U' => &[b"UPSTART_*"],
        b'X' => &[b"XTABLES_LIBDIR"],
        b'Z' => &[b"ZDOTDIR"],
        b'_' => &[b"_JAVA_OPTIONS"],
        _ => &[],
    }
}

/// What every child's environment is made from.
#[derive(Debug)]
pub struct Base {
    /// Sorted by key, each key once.
    variables: Vec<Variable>,
}

/// A variable that all children get.
#[derive(Debug)]
struct Variable {
    /// `KEY=VALUE`.
    whole: CString,
    key_length: usize,
    /// Of its key.
    beginning: u64,
}

impl Variable {
    fn key(&self) -> Key<'_> {
        Key { beginning: self.beginning, whole: &self.whole.as_bytes()[..self.key_length] }
    }
}

/// What a variable is found by. Compared as numbers, the beginnings of most keys tell at
/// once which one comes first: it is the same one as by all their bytes, of which none
/// is NUL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a> {
    beginning: u64,
    whole: &'a [u8],
}

impl<'a> Key<'a> {
    fn new(whole: &'a [u8]) -> Self {
        let mut beginning = [0; 8];
        let length = whole.len().min(beginning.len());
        beginning[..length].copy_from_slice(&whole[..length]);
        Self { beginning: u64::from_be_bytes(beginning), whole }
    }
}

impl Base {
    /// Takes the variables given, without those that hand sockets and the like
    /// to plugd itself, and without [`REPLAY`]; HOME and PATH are filled in where they are
    /// not set.
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let variables = variables.into_iter();
        // Room for HOME and PATH.
        let mut base = Self { variables: Vec::with_capacity(variables.size_hint().0 + 2) };
        for (key, value) in variables {
            let (key, value) = (key.into_vec(), value.into_vec());
            // Who starts plugd may be its own program for such an event.
            if !matches_any(&HANDOVER, &key) && key != REPLAY {
                base.set_if_unset(&key, &value);
            }
        }
        base.set_if_unset(b"HOME", b"/");
        base.set_if_unset(b"PATH", DEFAULT_PATH.as_bytes());
        base
    }

    fn set_if_unset(&mut self, key: &[u8], value: &[u8]) {
        // For the NUL as well.
        let mut whole = Vec::with_capacity(key.len() + value.len() + 2);
        [key, b"=", value].into_iter().for_each(|part| whole.extend_from_slice(part));
        // A variable of an environment has no NUL in it.
        let Ok(whole) = CString::new(whole) else { return };
        let (key, key_length) = (Key::new(key), key.len());
        if let Err(place) = self.variables.binary_search_by(|v| v.key().cmp(&key)) {
            let variable = Variable { whole, key_length, beginning: key.beginning };
            self.variables.insert(place, variable);
        }
    }

    /// The environment for an event's child: an event's variable replaces one
    /// of the base with the same key, and the last of an event's duplicates counts.
    pub fn with_event<'a>(&'a self, event: &Uevent<'a>) -> Environment<'a> {
        let mut withheld = Vec::new();
        // The usual event's variables find room without growing them.
        let mut own: Vec<(Key<'_>, &CStr)> = Vec::with_capacity(32);
        let mut variables: Vec<&CStr> = Vec::with_capacity(self.variables.len() + 32);
        for field in event.fields() {
            let key = field.key();
            if is_shell_name(key) && !is_function(field.value_bytes()) && !is_protected(key) {
                own.push((Key::new(key), field.whole()));
            } else {
                withheld.push(key);
            }
        }
        // Stable, so that of equal keys the last one given comes last.
        own.sort_by_key(|&(key, _)| key);
        let mut base = self.variables.iter().peekable();
        for (index, &(key, whole)) in own.iter().enumerate() {
            if own.get(index + 1).is_some_and(|&(next, _)| next == key) {
                continue;
            }
            while let Some(before) = base.next_if(|variable| variable.key() < key) {
                variables.push(&before.whole);
            }
            base.next_if(|variable| variable.key() == key);
            variables.push(whole);
        }
        variables.extend(base.map(|variable| variable.whole.as_c_str()));
        Environment { variables, withheld }
    }
}

/// Whether an event must not set the variable of this name: it could change what a
/// program is or does.
pub fn is_protected(key: &[u8]) -> bool {
    key.first().is_some_and(|&letter| matches_any(protected(letter), key))
}

/// The environment of one child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment<'a> {
    /// `KEY=VALUE`, each key once, in no order to rely on.
    pub variables: Vec<&'a CStr>,
    /// Keys of the event that were left out: no shell names, or protected.
    pub withheld: Vec<&'a [u8]>,
}

/// Whether bash before 4.3 patch 25 would run this value, by any name (CVE-2014-6271).
fn is_function(value: &[u8]) -> bool {
    value.starts_with(b"() {")
}

/// Whether a shell could have a variable of this name (POSIX: Name).
fn is_shell_name(key: &[u8]) -> bool {
    key.first().is_some_and(|b| !b.is_ascii_digit())
        && key.iter().all(|&b| b.is_ascii_alphanumeric() || b == b'_')
}

fn matches_any(patterns: &[&[u8]], key: &[u8]) -> bool {
    patterns.iter().any(|pattern| {
        let same = pattern.iter().zip(key).take_while(|(a, b)| a == b).count();
        let rest = &pattern[same..];
        rest == b"*" || rest.is_empty() && same == key.len()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uevent::Header;

    fn base(variables: &[(&str, &str)]) -> Base {
        Base::new(variables.iter().map(|(k, v)| (OsString::from(*k), OsString::from(*v))))
    }

    fn environment(base: &Base, fields: &[u8]) -> (Vec<String>, Vec<String>) {
        let event = Uevent::parse(fields, Header::Optional).unwrap();
        let Environment { variables, withheld } = base.with_event(&event);
        (
            variables.iter().map(|v| v.to_str().unwrap().to_owned()).collect(),
            withheld.iter().map(|k| k.escape_ascii().to_string()).collect(),
        )
    }

    #[test]
    fn home_and_path_are_filled_in_where_unset() {
        let (variables, _) = environment(&base(&[]), b"A=1\0");
        assert_eq!(variables, ["A=1", "HOME=/", "PATH=/sbin:/bin:/usr/sbin:/usr/bin"]);
        let (variables, _) = environment(&base(&[("PATH", "/p"), ("HOME", "/h")]), b"A=1\0");
        assert_eq!(variables, ["A=1", "HOME=/h", "PATH=/p"]);
    }

    #[test]
    fn the_hand_over_is_stripped() {
        let base = base(&[
            ("LISTEN_FDS", "1"),
            ("LISTEN_PID", "1"),
            ("LISTEN_FDNAMES", "x"),
            ("NOTIFY_SOCKET", "/x"),
            ("UPSTART_FDS", "3"),
            ("PLUGD_REPLAY", "coldplug"),
            ("LISTENER", "kept"),
        ]);
        let (variables, _) = environment(&base, b"Z=1\0");
        assert_eq!(
            variables,
            ["HOME=/", "LISTENER=kept", "PATH=/sbin:/bin:/usr/sbin:/usr/bin", "Z=1"]
        );
    }

    #[test]
    fn the_event_comes_over_the_base_and_its_last_duplicate_counts() {
        let base = base(&[("SUBSYSTEM", "mine"), ("PATH", "/p"), ("HOME", "/h")]);
        let (variables, withheld) = environment(&base, b"SUBSYSTEM=a\0X=1\0SUBSYSTEM=b\0X=2\0X=\0");
        assert_eq!(variables, ["HOME=/h", "PATH=/p", "SUBSYSTEM=b", "X="]);
        assert!(withheld.is_empty());
    }

    #[test]
    fn keys_are_in_the_order_of_their_bytes() {
        let keys: [&[u8]; 9] = [
            b"",
            b"A",
            b"A0",
            b"AB",
            b"SUBSYSTE",
            b"SUBSYSTEM",
            b"SUBSYSTEM_",
            b"SUBSYSTEMS",
            b"\xff",
        ];
        for (one, other) in keys.iter().flat_map(|one| keys.iter().map(move |other| (one, other))) {
            assert_eq!(Key::new(one).cmp(&Key::new(other)), one.cmp(other));
        }
    }

    #[test]
    fn no_event_sets_what_belongs_to_the_hand_over() {
        for name in HANDOVER {
            assert!(is_protected(name), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn every_protected_name_is_found_by_its_letter() {
        let all =
            (0..=u8::MAX).flat_map(|letter| protected(letter).iter().map(move |n| (letter, n)));
        for (letter, name) in all {
            assert_eq!(name[0], letter, "{}", name.escape_ascii());
            assert!(is_protected(name.strip_suffix(b"*").unwrap_or(name)));
        }
    }

    #[test]
    fn no_event_sets_what_could_subvert_a_handler() {
        let fields = b"PATH=/evil\0LD_PRELOAD=x\0LD_=x\0IFS=x\0ENV=x\0BASH_ENV=x\0SHELLOPTS=x\0\
                       PS4=x\0GCONV_PATH=x\0BASH_FUNC_ls=x\0PYTHONPATH=x\0LISTEN_FDS=1\0\
                       HOME=/evil\0MDEV=x\0_JAVA_OPTIONS=x\0JDK_JAVA_OPTIONS=x\0MUSL_LOCPATH=x\0\
                       PHPRC=x\0PHP_INI_SCAN_DIR=x\0XTABLES_LIBDIR=x\0LVM_SYSTEM_DIR=x\0\
                       LIBMOUNT_FSTAB=x\0TAR_OPTIONS=x\0LESSOPEN=x\0GIT_SSH=x\0F=() { :; }; x\0=x\0a b=x\0\xff=x\0a-b=x\0x()=x\x001=x\0OK_1=y\0";
        let (variables, withheld) = environment(&base(&[("PATH", "/p")]), fields);
        assert_eq!(variables, ["HOME=/", "OK_1=y", "PATH=/p"]);
        assert_eq!(withheld.len(), 32);
    }
}
