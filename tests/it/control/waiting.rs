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
