//! Who waits: never for ever, and for nothing that is there already.

use super::*;
use crate::harness::background::{Place, finish};

fn mount(args: &[&str]) {
    let status = Command::new("mount").args(args).stdin(Stdio::piped()).status().unwrap();
    assert!(status.success(), "{args:?}");
}

/// Commands and daemons are started with it.
fn make_null() {
    let (kind, mode) = (rustix::fs::FileType::RegularFile, 0o600.into());
    rustix::fs::mknodat(rustix::fs::CWD, "/dev/null", kind, mode, 0).unwrap();
}

#[test]
fn wait_sees_what_was_mounted_after_the_start() {
    ns::inside_with_sysfs(|| {
        let sys = tempfile::tempdir().unwrap();
        let plugd = Plugd::new().args(["run", "--sys"]).args([sys.path()]);
        let _daemon = plugd.args(["--"]).sh("true").start();
        eventually("it listens", || connect("@plugd"));
        let is_there = |device: &str| {
            let code = |words: &[&str]| say("@plugd", words).code;
            match (
                code(&["wait", "--timeout", "0", device]),
                code(&["wait", "--timeout", "0", "--removed", device]),
            ) {
                (Some(0), Some(1)) => Some(true),
                (Some(1), Some(0)) => Some(false),
                (Some(1), Some(1)) => None,
                other => panic!("{device}: {other:?}"),
            }
        };
        assert_eq!(is_there("/class/net/lo"), Some(false));
        mount(&["-t", "sysfs", "sysfs", sys.path().to_str().unwrap()]);
        assert_eq!(is_there("/class/net/lo"), Some(true));

        assert_eq!(is_there("/dev/late"), Some(false));
        mount(&["-t", "tmpfs", "tmpfs", "/dev"]);
        make_null();
        std::fs::write("/dev/late", "").unwrap();
        assert_eq!(is_there("/dev/late"), Some(true));

        std::fs::create_dir_all("/dev/disk/by id").unwrap();
        for directory in ["/dev/disk", "/dev/disk/by id"] {
            std::fs::create_dir_all(directory).unwrap();
            mount(&["-t", "tmpfs", "tmpfs", directory]);
            std::fs::write(Path::new(directory).join("x"), "").unwrap();
            assert_eq!(is_there(&format!("{directory}/x")), Some(true));
            assert_eq!(is_there(&format!("{directory}/y")), Some(false));
        }
        // A single node, as in containers.
        std::fs::write("/dev/bound", "").unwrap();
        mount(&["--bind", "/dev/late", "/dev/bound"]);
        assert_eq!(is_there("/dev/bound"), Some(true));
        // What might not answer is not asked.
        std::fs::create_dir("/dev/other").unwrap();
        mount(&["--bind", "/proc", "/dev/other"]);
        assert_eq!(is_there("/dev/other"), Some(true));
        assert_eq!(is_there("/dev/other/self"), None);
    });
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

/// Each would wait until its time is over, for the end of the program that says it.
#[test]
fn a_program_is_refused_what_waits_for_itself() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("mdev.conf");
    let script = "for command in settle 'settle --timeout 0' 'wait A=1' 'wait /dev/null' rescan \
                  reload; do $PLUGD $command --control $ADDRESS 2>>$TMP/err; echo $? >>$TMP/out; \
                  done; $PLUGD status --control $ADDRESS >>$TMP/out; read x <$TMP/gate";
    std::fs::write(&conf, format!(".* 0:0 600 @{script}\n")).unwrap();
    let rules = ["--dev", dir.path().to_str().unwrap(), "--conf", conf.to_str().unwrap()];
    for work in [&["--", "sh", "-c", script][..], &rules] {
        let (events, receiver) = unix::pair(SocketType::SEQPACKET);
        let address = format!("@plugd-test-{}-{}", std::process::id(), unique());
        let plugd = Plugd::new().args(["run", "--fd", "3", "--control", &address]).args(work);
        let plugd = plugd.env("PLUGD", PLUGD).env("ADDRESS", &address).fd(receiver, 3);
        let host = Host { daemon: plugd.start(), events, address };
        host.daemon.fifo("gate");
        host.wait_until_it_listens();
        unix::send(&host.events, &uevent("add", "/devices/x", &["SUBSYSTEM=x", "DEVNAME=x"]));
        let out = host.daemon.wait_for_lines("out", 7);
        assert_eq!(out[..6], ["1"; 6], "{work:?}");
        assert!(out[6].starts_with("state    running"), "{out:?}");
        let errors = host.daemon.lines("err");
        let itself = |line: &&String| line.ends_with("it would wait for itself");
        assert_eq!(errors.iter().filter(itself).count(), 6, "{errors:?}");
        // Others may wait.
        let waiting = begin(&host.address, &["settle"]);
        host.daemon.release("gate");
        assert_eq!(end(waiting), Some(0));
    }
}
