//! Whose user and groups it has.

use super::*;
use crate::harness::background::keeping_capabilities;
use crate::harness::static_binary;

/// User and group, with files of our own instead of the machine's.
#[test]
fn users_and_groups() {
    ns::inside_as_root_with_mounts(|| {
        let place = Place::new();
        let members: String = (0..40).map(|n| format!("g{n}:x:{}:bob,ann\n", 2000 + n)).collect();
        fs::write(place.path("passwd"), "root:x:0:0::/:\nann:x:1001:1002::/:\n").unwrap();
        fs::write(place.path("group"), format!("root:x:0:\nann:x:1002:\n{members}")).unwrap();
        for file in ["passwd", "group"] {
            ns::mount(&["--bind", place.path(file).to_str().unwrap(), &format!("/etc/{file}")]);
        }
        let forty: String = (2000..2040).map(|gid| format!(" {gid}")).collect();
        for (options, uid, gid, groups) in [
            (&["--user", "ann"][..], 1001, 1002, &*format!("1002{forty}")),
            (&["--user", "ann", "--group", "g7"], 1001, 2007, ""),
            (&["--user", "#1001"], 1001, 1002, ""),
            // Unknown: there is no group to be had from /etc/passwd.
            (&["--user", "#4242"], 4242, 0, ""),
            (&["--user", "#4242", "--group", "#4243"], 4242, 4243, ""),
            (&["--group", "g7"], 0, 2007, ""),
        ] {
            assert_eq!(place.start(options), 0, "{options:?}");
            let pid = place.pid();
            assert_eq!(status(pid, "Uid"), [uid.to_string().as_str(); 4].join(" "), "{options:?}");
            assert_eq!(status(pid, "Gid"), [gid.to_string().as_str(); 4].join(" "), "{options:?}");
            assert_eq!(status(pid, "Groups"), groups, "{options:?}");
            // It can empty its file, which is not its own.
            assert_eq!(place.act("--stop", &[]), 0);
            assert_eq!(place.text("x.pid"), "");
        }
    });
}

/// The kernel does not take them from who is root no more, if it was told not to.
#[test]
fn capabilities_go_with_the_user() {
    ns::inside_as_root(|| {
        let Some(prefix) = keeping_capabilities() else {
            let why = "no setpriv that can set securebits";
            return skip("tools", "capabilities_go_with_the_user", why);
        };
        for (user, keeps) in [("#4242", false), ("#0", true)] {
            let place = Place::new();
            let mut command = Command::new(prefix[0]);
            let daemon = place.daemon(&["--user", user]);
            let started = finish(command.args(&prefix[1..]).args(&daemon));
            assert_eq!(started.code, Some(0), "{started:?}");
            for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
                let any = u64::from_str_radix(&status(place.pid(), set), 16).unwrap() != 0;
                assert_eq!(any, keeps && set != "CapAmb", "{user} {set}");
            }
            assert_eq!(place.act("--stop", &[]), 0);
        }
    });
}

/// A static program resolves names where there is neither NSS nor a C library:
/// in a directory with nothing else.
#[test]
fn names_are_found_without_nss() {
    ns::inside_as_root_with_mounts(|| {
        let file = match static_binary() {
            Ok(file) => file,
            Err(why) => return skip("static", "names_are_found_without_nss", why),
        };
        let place = Place::new();
        let root = place.path("root");
        for directory in ["etc", "dev", "run"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::copy(&file, root.join("plugd")).unwrap();
        fs::write(root.join("dev/null"), "").unwrap();
        ns::mount(&["--bind", "/dev/null", root.join("dev/null").to_str().unwrap()]);
        fs::write(root.join("etc/passwd"), "ann:x:1001:1002::/:\n").unwrap();
        fs::write(root.join("etc/group"), "video:x:44:ann\n").unwrap();
        let inside = |words: &[&str]| {
            let mut command = Command::new("chroot");
            let finished = finish(command.arg(&root).arg("/plugd").args(words));
            assert_eq!(finished.code, Some(0), "{finished:?}");
        };
        let daemon = [
            "run",
            "--control",
            "none",
            "--daemonize",
            "--pid-file",
            "/run/x.pid",
            "--user",
            "ann",
            "/plugd",
        ];
        inside(&daemon);
        let pid = place.text("root/run/x.pid").trim().parse().unwrap();
        assert_eq!(status(pid, "Uid"), "1001 1001 1001 1001");
        assert_eq!(status(pid, "Groups"), "44 1002");
        inside(&["daemon-control", "--stop", "--pid-file", "/run/x.pid"]);
        assert_eq!(place.text("root/run/x.pid"), "");
    });
}
