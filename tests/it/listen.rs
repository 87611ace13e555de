//! netlink-datagram-socket-listen: the socket that it opens, the program that
//! it becomes, and chains of real programs with plugd at their end.

mod chains;
mod conventions;
mod credentials;
mod next_program;
mod place;
mod socket;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use plugd::sys;
use rustix::net::SocketType;
use tempfile::TempDir;

use crate::harness::daemon::{Daemon, Finished, Plugd};
use crate::harness::inject::{self, Injector, uevent};
use crate::harness::{ns, skip, unix};

const LISTEN: &str = "netlink-datagram-socket-listen";
const HANDLER: &str = "plug-and-play-event-handler";
/// A handler that tells of the event, wherever it may not write a file.
const TELL: &str = "echo told of $ACTION $DEVPATH >&2";

/// plugd under all its names, in a directory that every user can get at.
pub(crate) struct Names(TempDir);

impl Names {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_plugd"), dir.path().join("plugd")).unwrap();
        for name in [LISTEN, HANDLER] {
            symlink("plugd", dir.path().join(name)).unwrap();
        }
        Self(dir)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.0.path()
    }

    /// A program that finds them, and execline's.
    pub(crate) fn program(&self, name: &str) -> Plugd {
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}:/usr/lib/execline/bin", self.0.path().display());
        Plugd::new().program(name).env("PATH", path)
    }

    /// [`LISTEN`] with these arguments, as a shell would split them.
    fn listen(&self, args: &str) -> Plugd {
        self.program(LISTEN).args(args.split_whitespace())
    }
}

fn listen(args: &str) -> Plugd {
    Plugd::new().args(["listen"]).args(args.split_whitespace())
}

/// Whether the program can be started; if not, says that the test is skipped.
pub(crate) fn have(test: &str, program: &str) -> bool {
    let path = std::env::var("PATH").unwrap() + ":/usr/lib/execline/bin";
    let found = std::env::split_paths(&path).any(|directory| directory.join(program).exists());
    if !found {
        skip("tools", test, &format!("there is no {program} here"));
    }
    found
}

/// What the program has told on its standard output: lines of `key value`.
fn told<'a>(finished: &'a Finished, key: &str) -> &'a str {
    let value = |line: &'a str| {
        let value = line.strip_prefix(key)?;
        if value.is_empty() { Some(value) } else { value.strip_prefix(' ') }
    };
    let found = finished.stdout.lines().find_map(value);
    found.unwrap_or_else(|| panic!("no {key} in {finished:?}"))
}

fn assert_fails(plugd: Plugd, code: i32, error: &str) {
    let Finished { code: real, stderr, .. } = plugd.finish();
    assert_eq!((real, stderr), (Some(code), format!("{LISTEN}: fatal: {error}\n")));
}

fn assert_tells(daemon: &Daemon) {
    Injector::new().event("add", "/devices/x", &[]);
    daemon.wait_for_log("told of add /devices/x");
    inject::real_device("br9");
    daemon.wait_for_log("told of add /devices/virtual/net/br9");
}

#[test]
fn wrong_usage_is_told() {
    let usage = format!("{LISTEN} [OPTIONS] [--] PROTOCOL GROUP NEXT-PROG [ARGS...]");
    for (args, error) in [
        ("", "PROTOCOL is missing: the netlink protocol"),
        ("route", "GROUP is missing: the multicast group"),
        ("route 1", "NEXT-PROG is missing: the program that gets the socket"),
        ("--cooked route 1 true", "there is no option --cooked"),
        ("--name x route 1 true", "--name needs --systemd-compatibility"),
        (
            "--systemd-compatibility --name a:b route 1 true",
            "--name 'a:b': expected 1 to 255 printable ASCII characters without ':'",
        ),
        ("route -1 true", "group '-1': expected a bit mask of up to 32 bits, or group:N[,N...]"),
        (
            "route 0x100000000 true",
            "group '0x100000000': expected a bit mask of up to 32 bits, or group:N[,N...]",
        ),
        (
            "route group:0 true",
            "group 'group:0': expected a bit mask of up to 32 bits, or group:N[,N...]",
        ),
    ] {
        assert_fails(listen(args), 100, &format!("{error}\nusage: {usage}"));
    }
    let finished = listen("uevent 1 true").finish();
    assert_eq!(finished.code, Some(100));
    let known = "there is no protocol 'uevent'; there are: route usersock ";
    assert!(finished.stderr.contains(known), "{finished:?}");
    assert!(finished.stderr.contains(" kobject-uevent "), "{finished:?}");
}
