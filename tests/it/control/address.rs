//! Where it listens, and who has the address.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use rustix::net::accept;

use super::*;
use crate::harness::background::{Place, finish};

#[test]
fn a_second_daemon_of_the_same_name_is_told_who_has_it() {
    let host = Host::start(&[], HOLD);
    let said = Plugd::new().args(["run", "--control", &host.address, "true"]).finish();
    assert_eq!(said.code, Some(111), "{said:?}");
    let expected = format!("the address is in use by pid {} of user", host.daemon.pid());
    assert!(said.stderr.contains(&expected), "{said:?}");
    assert_eq!(host.status()["state"], "idle");
}

/// It would be the process that has started it, which is gone.
#[test]
fn who_has_the_address_is_told_of_a_daemon_in_the_background_too() {
    ns::inside_as_root(|| {
        for options in [&[][..], &["--user", "#65534", "--group", "#65533"]] {
            let place = Place::new();
            let words = place.daemon(&[&["--control", "@plugd"], options].concat());
            let started = finish(Command::new(PLUGD).args(&words[1..]));
            assert_eq!(started.code, Some(0), "{started:?}");
            let said = Plugd::new().args(["run", "true"]).finish();
            assert_eq!(said.code, Some(111), "{said:?}");
            let holder = format!("in use by pid {} of user 0\n", place.pid());
            assert!(said.stderr.ends_with(&holder), "not {holder}: {said:?}");
            // It is still root's, who has started it.
            let said = Plugd::new().args(["stop"]).finish();
            assert_eq!(said.code, Some(0), "{said:?}");
            eventually("it has ended", || connect("@plugd").is_none().then_some(()));
        }
    });
}

/// As a child has plugd's socket open until it executes its program, which goes on if
/// plugd is killed just then. It is not waited for without end.
#[test]
fn who_has_just_been_killed_does_not_have_the_address() {
    for code in [Some(0), Some(111)] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("socket").to_str().unwrap().to_owned();
        let name = address();
        for address in [name, file] {
            let start = |receiver| {
                let plugd = Plugd::new().args(["run", "--fd", "3", "--control", &address]);
                plugd.fd(receiver, 3).sh("true")
            };
            let (_events, receiver) = unix::pair(SocketType::SEQPACKET);
            let mut daemon = start(receiver).start();
            eventually("it listens", || connect(&address));
            let mut remnant = Some(daemon.listener(&address));
            let killed = daemon.pid();
            daemon.signal(Signal::KILL);
            daemon.wait_exit();
            // Those who were connected before.
            while accept(remnant.as_ref().unwrap()).is_ok() {}
            let ending = remnant.take_if(|_| code == Some(0)).map(|remnant| {
                // It asks who has the address when that was refused.
                std::thread::spawn(move || eventually("it asks", || accept(&remnant).ok()))
            });
            // The other end of its source is closed: it ends by itself.
            let (_, receiver) = unix::pair(SocketType::SEQPACKET);
            let said = start(receiver).finish();
            assert_eq!(said.code, code, "{address}: {said:?}");
            let told = said.stderr.contains(&format!("in use by pid {killed} of"));
            assert_eq!(told, code != Some(0), "{address}: {said:?}");
            if let Some(ending) = ending {
                ending.join().unwrap();
            }
            drop(remnant);
        }
    }
}

#[test]
fn a_file_has_the_mode_asked_for_and_goes_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    for (options, mode) in [(&[][..], 0o600), (&["--control-mode", "0666"], 0o666)] {
        let path = dir.path().join("socket");
        let address = path.to_str().unwrap();
        let (_events, receiver) = unix::pair(SocketType::SEQPACKET);
        let plugd = || Plugd::new().args(["run", "--fd", "3", "--control", address]).args(options);
        let mut daemon = plugd().fd(receiver, 3).sh("true").start();
        eventually("it listens", || connect(address));
        let found = std::fs::metadata(&path).unwrap();
        assert!(found.file_type().is_socket());
        assert_eq!(found.permissions().mode() & 0o7777, mode);
        assert_eq!(status(address)["state"], "idle");
        let second = plugd().fd(unix::pair(SocketType::SEQPACKET).0, 3).sh("true").finish();
        assert_eq!(second.code, Some(111));
        let expected = format!("in use by pid {}", daemon.pid());
        assert!(second.stderr.contains(&expected), "{second:?}");
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait_exit().code(), Some(0));
        assert!(!path.exists());
    }
}

#[test]
fn a_file_belongs_to_plugds_own_user() {
    ns::inside_as_root(|| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let path = dir.path().join("socket");
        let plugd = Plugd::new().args(["run", "--user", "#65534", "--group", "#65533"]);
        let mut daemon = plugd.args(["--control"]).args([&path]).args(["--"]).sh("true").start();
        daemon.wait_until_ready();
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!((found.uid(), found.gid()), (65534, 65533));
        assert_eq!(found.permissions().mode() & 0o7777, 0o600);
        let address = path.to_str().unwrap();
        let said = as_user(65534, || {
            let mut stream = connect(address).unwrap();
            stream.write_all(b"stop\n").unwrap();
            read_all(&mut stream)
        });
        assert_eq!(said, "stopping\n");
        assert_eq!(daemon.wait_exit().code(), Some(0));
    });
}

#[test]
fn a_stale_file_is_replaced_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let run = |path: &Path| {
        let (_events, receiver) = unix::pair(SocketType::SEQPACKET);
        let plugd = Plugd::new().args(["run", "--fd", "3", "--control"]).args([path]);
        plugd.fd(receiver, 3).sh("true")
    };
    let stale = dir.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    // The other end of its source is closed: it ends by itself.
    let said = run(&stale).finish();
    assert_eq!(said.code, Some(0), "{said:?}");

    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    for (path, reason) in [
        (file.clone(), "the address is in use"),
        (dir.path().join("none/socket"), "No such file or directory"),
    ] {
        let said = run(&path).finish();
        assert_eq!(said.code, Some(111), "{said:?}");
        assert!(said.stderr.contains("cannot listen on control socket"), "{said:?}");
        assert!(said.stderr.contains(reason), "{said:?}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

/// As anybody may who can read it.
#[test]
fn who_locks_the_directory_keeps_nobody_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let lock = std::fs::File::open(dir.path()).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let stale = dir.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    let (_, receiver) = unix::pair(SocketType::SEQPACKET);
    let plugd = Plugd::new().args(["run", "--fd", "3", "--control"]).args([stale]);
    let said = plugd.fd(receiver, 3).sh("true").finish();
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stderr.contains("somebody has locked the directory"), "{said:?}");
}

/// Nothing can be written anywhere, and /run is empty.
#[test]
fn a_read_only_root_is_enough() {
    ns::inside_with_sysfs(|| {
        // Held open: it may be below one of the directories that are hidden.
        let script = "exec 9<\"$0\" && mount -o remount,bind,ro / && \
                      for dir in /tmp /run /var/tmp /dev/shm; do \
                          mount -t tmpfs -o ro tmpfs $dir || exit; \
                      done && \
                      ! touch /x /tmp/x /run/x 2>/dev/null && exec /proc/self/fd/9 run -- true";
        // For the daemon alone: this test has files to write.
        let mut daemon = Command::new("unshare")
            .args(["-m", "sh", "-c", script, PLUGD])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("it listens", || {
            assert!(daemon.try_wait().unwrap().is_none(), "it has ended");
            connect("@plugd")
        });
        let daemon_dir = format!("/proc/{}/root/run/x", daemon.id());
        assert!(std::fs::write(daemon_dir, "").is_err(), "it can write");
        assert_eq!(status("@plugd")["state"], "idle");
        assert_eq!(say("@plugd", &["stop"]).code, Some(0));
        assert_eq!(end(daemon), Some(0));
    });
}
