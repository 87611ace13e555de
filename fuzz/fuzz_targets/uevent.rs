//! Any datagram: what is read of it is what is in it, and what a child gets of
//! it can subvert no handler.
//!
//! The first byte of the input chooses whether a header is required.
//! `cargo +nightly fuzz run uevent -- -dict=fuzz/uevent.dict` finds more, sooner.
#![no_main]

use std::collections::HashSet;
use std::ffi::OsString;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use plugd::environment::Base;
use plugd::uevent::{Header, Uevent};

const OWN: [(&str, &str); 3] = [("HOME", "/own"), ("PATH", "/own"), ("SUBSYSTEM", "own")];

static BASE: LazyLock<Base> =
    LazyLock::new(|| Base::new(OWN.map(|(k, v)| (OsString::from(k), OsString::from(v)))));

fuzz_target!(|input: &[u8]| {
    let Some((first, datagram)) = input.split_first() else { return };
    let header = if first & 1 == 0 { Header::Required } else { Header::Optional };
    let Ok(event) = Uevent::parse(datagram, header) else { return };
    check_round_trip(datagram, header, &event);
    check_environment(&event);
    let _ = event.to_string();
});

/// The fields, written again, are the datagram but for its header.
fn check_round_trip(datagram: &[u8], header: Header, event: &Uevent<'_>) {
    let mut again = Vec::new();
    for field in event.fields() {
        assert!(!field.key().contains(&b'='));
        again.extend([field.key(), b"=", field.value().to_bytes(), b"\0"].concat());
        assert!(event.last(field.key()).is_some());
    }
    let head = datagram.strip_suffix(&*again).expect("the fields are the end of the datagram");
    match head.split_last() {
        None => assert_eq!(header, Header::Optional),
        Some((nul, head)) => {
            assert_eq!(*nul, 0);
            assert!(!head.contains(&0), "more than a header was left out");
            let at = head.iter().position(|&b| b == b'@').expect("a header has a @");
            assert!(at > 0 && at + 1 < head.len() && !head[..at].contains(&b'='));
        }
    }
}

/// Each variable is plugd's own or the event's last of that name, with a
/// name that is fit for a shell and means nothing to the system.
fn check_environment(event: &Uevent<'_>) {
    let environment = BASE.with_event(event);
    let mut keys = HashSet::new();
    for variable in &environment.variables {
        let bytes = variable.to_bytes();
        let equals = bytes.iter().position(|&b| b == b'=').expect("a variable has a =");
        let (key, value) = (&bytes[..equals], &bytes[equals + 1..]);
        assert!(keys.insert(key), "{} is there twice", key.escape_ascii());
        assert!(
            key.iter().all(|&b| b == b'_' || b.is_ascii_alphanumeric())
                && key.first().is_some_and(|b| !b.is_ascii_digit()),
            "{} is no shell name",
            key.escape_ascii()
        );
        match key {
            b"HOME" | b"PATH" => assert_eq!(value, b"/own"),
            _ if is_dangerous(key) => panic!("{} came through", key.escape_ascii()),
            _ => match event.fields().filter(|field| field.key() == key).last() {
                Some(last) => assert_eq!(last.whole(), *variable),
                None => assert_eq!(bytes, b"SUBSYSTEM=own"),
            },
        }
    }
    for (key, _) in OWN {
        assert!(keys.contains(key.as_bytes()), "{key} got lost");
    }
    for field in event.fields() {
        let (inside, withheld) =
            (keys.contains(field.key()), environment.withheld.contains(&field.key()));
        assert!(inside || withheld, "{} got lost", field.key().escape_ascii());
    }
}

/// A list of its own, so that a slip in the other one is found.
fn is_dangerous(key: &[u8]) -> bool {
    let exact: [&[u8]; 17] = [
        b"IFS",
        b"ENV",
        b"BASH_ENV",
        b"SHELLOPTS",
        b"BASHOPTS",
        b"PS4",
        b"CDPATH",
        b"PROMPT_COMMAND",
        b"GCONV_PATH",
        b"GLIBC_TUNABLES",
        b"LOCPATH",
        b"NOTIFY_SOCKET",
        b"MODPROBE_OPTIONS",
        b"XTABLES_LIBDIR",
        b"TC_LIB_DIR",
        b"LVM_SYSTEM_DIR",
        b"TAR_OPTIONS",
    ];
    let begins: [&[u8]; 7] =
        [b"LD_", b"LISTEN_", b"UPSTART_", b"BASH_FUNC_", b"PYTHON", b"PERL", b"RUBY"];
    exact.contains(&key) || begins.iter().any(|begin| key.starts_with(begin))
}
