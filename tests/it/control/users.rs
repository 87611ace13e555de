//! Who may ask, and who answers.

use rustix::process::{Gid, Uid};

use super::*;

#[test]
fn another_user_is_refused() {
    ns::inside_as_root(|| {
        for (mode, may_ask) in [("0600", false), ("0666", true)] {
            let daemon =
                Plugd::new().args(["run", "--control-mode", mode, "--"]).sh("true").start();
            eventually("it listens", || connect("@plugd"));
            let stranger = |args: &[&str]| {
                // The program may be below a directory of root's.
                let copy = Path::new("/tmp").join(format!("plugd-test-{}", std::process::id()));
                std::fs::copy(PLUGD, &copy).unwrap();
                let output = Command::new("setpriv")
                    .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
                    .arg(&copy)
                    .args(args)
                    .output()
                    .unwrap();
                std::fs::remove_file(&copy).unwrap();
                (output.status.code(), String::from_utf8(output.stderr).unwrap())
            };
            let (code, said) = stranger(&["status"]);
            assert_eq!(code, Some(i32::from(!may_ask)), "{mode}: {said}");
            if !may_ask {
                assert_eq!(said, "plugd: status: user 65534 may not ask anything here\n");
                daemon.wait_for_log(
                    "of user 65534 may not ask anything on the control socket: refused (1 so far)",
                );
                // A program that asks again and again is answered once.
                let answer = as_user(65534, || {
                    let mut stream = connect("@plugd").unwrap();
                    let _ = stream.write_all(&b"plugd/1 status\n".repeat(200));
                    read_all_of_broken(&mut stream)
                });
                let text = "user 65534 may not ask anything here\n";
                assert_eq!(answer, format!("plugd/1 denied {}\n{text}", text.len()));
                continue;
            }
            let (code, said) = stranger(&["pause"]);
            assert_eq!(
                (code, &*said),
                (Some(1), "plugd: pause: user 65534 may not change anything here\n")
            );
            daemon.wait_for_log("of user 65534 may not change anything on the control socket");
            assert_eq!(status("@plugd")["paused"], false);
            assert_eq!(stranger(&["settle"]).0, Some(0));
            assert_eq!(stranger(&["log-level", "debug"]).0, Some(1));
        }
    });
}

/// What a thread does as a member of these groups, and as another user.
fn as_member<T: Send>(groups: &[u32], act: impl FnOnce() -> T + Send) -> T {
    let all: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
            rustix::thread::set_thread_groups(&all).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            act()
        });
        thread.join().unwrap()
    })
}

#[test]
fn who_is_of_plugds_group_by_any_of_theirs_may_ask() {
    ns::inside_as_root(|| {
        let plugd = Plugd::new().args(["run", "--control-mode", "0660", "--"]);
        let _daemon = plugd.sh("true").start();
        eventually("it listens", || connect("@plugd"));
        let many: Vec<u32> = (1..100).collect();
        let many_and_own = [&many[..], &[0]].concat();
        for (groups, may_ask) in [
            (&[][..], false),
            (&[7], false),
            (&[7, 0], true),
            (&many, false),
            (&many_and_own, true),
        ] {
            let answer = as_member(groups, || {
                let mut stream = connect("@plugd").unwrap();
                stream.write_all(b"log-level\n").unwrap();
                read_all(&mut stream)
            });
            let denied = "error: denied: user 65534 may not ask anything here\n";
            assert_eq!(answer, if may_ask { "info\n" } else { denied }, "{groups:?}");
        }
    });
}

/// Whoever comes first has the default address.
#[test]
fn a_stranger_is_not_taken_for_plugd() {
    ns::inside_as_root(|| {
        let listener = as_user(65534, || {
            let address = SocketAddr::from_abstract_name("plugd").unwrap();
            UnixListener::bind_addr(&address).unwrap()
        });
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for outcome in ["", "ok", "no"] {
                    let (mut stream, _) = listener.accept().unwrap();
                    let text = "\x1b]0;x\x07a\tb\u{9b}c\n";
                    let reply = format!("plugd/1 {outcome} {}\n{text}", text.len());
                    // The first one has gone.
                    let _ = stream.write_all(reply.as_bytes());
                }
            });
            let said = Plugd::new().args(["settle"]).finish();
            assert_eq!(said.code, Some(111), "{said:?}");
            let who = format!("@plugd is held by pid {} of user 65534", std::process::id());
            assert!(said.stderr.contains(&who), "{said:?}");
            // Who names it knows whose it is.
            let text = "\\u001b]0;x\\u0007a\tb\\u009bc\n";
            let said = say("@plugd", &["settle"]);
            assert_eq!((said.code, &*said.stdout), (Some(0), text));
            let said = say("@plugd", &["settle"]);
            let error = format!("plugd: settle: {text}");
            assert_eq!((said.code, said.stderr), (Some(1), error));
        });
    });
}
