//! What cannot go on is not updated to.

use std::os::unix::process::ExitStatusExt;

use super::*;

#[test]
fn a_file_that_does_not_start_is_refused() {
    ns::alone(|| {
        let copy = Copy::new();
        let (daemon, events) = copy.start(&[], "echo $N >>$TMP/out");
        for (n, (script, mode, why)) in [
            ("exit 0", 0o755, "asked for its version, it said ''"),
            ("echo busybox 1.36", 0o755, "asked for its version, it said 'busybox 1.36'"),
            ("exit 3", 0o755, "asked for its version, it ended with exit status: 3"),
            ("kill -SEGV $$", 0o755, "asked for its version, it ended with signal: 11"),
            ("exit 0", 0o644, "Permission denied"),
            ("exec sleep 60", 0o755, "asked for its version, it took longer than 5 s"),
            (
                "[ $1 != --version ] || exec echo plugd 9.9; exit 2",
                0o755,
                "started to try whether it could go on, it ended with exit status: 2",
            ),
            ("[ $1 != --version ] || exec echo plugd 9.9", 0o755, "no plugd that could go on"),
        ]
        .into_iter()
        .enumerate()
        {
            copy.replace_by_script(script, mode);
            let said = say(&["update", "--timeout", "30"]);
            assert_eq!(said.code, Some(1), "{script}: {said:?}");
            assert!(
                said.stderr.contains("not updated: ") && said.stderr.contains(why),
                "{script}: {said:?}"
            );
            daemon.wait_for_log(why);
            unix::send(&events, &uevent("add", "/x", &[&format!("N={n}")]));
            daemon.wait_for_lines("out", n + 1);
        }
        fs::remove_file(&copy.file).unwrap();
        let said = say(&["update"]);
        assert!(said.stderr.contains("No such file or directory"), "{said:?}");
        copy.replace();
        update();
        assert_eq!(daemon.children(), Vec::<u32>::new());
    });
}

/// Nor what it has started, whether plugd ends or has its answer.
#[test]
fn a_new_version_that_is_asked_is_not_left_behind() {
    ns::alone(|| {
        let copy = Copy::new();
        let (mut daemon, _events) = copy.start(&[], "true");
        let is_alive = |pid: &String| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
        };
        let are_gone = |pids: &[String]| {
            eventually("they are gone", || (!pids.iter().any(is_alive)).then_some(()));
        };
        let start = "sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >>$TMP/pids";
        copy.replace_by_script(&format!("{start}; echo busybox 1.36"), 0o755);
        assert_eq!(say(&["update"]).code, Some(1));
        are_gone(&daemon.wait_for_lines("pids", 1));
        copy.replace_by_script(&format!("{start}; echo $$ >>$TMP/pids; wait"), 0o755);
        daemon.signal(Signal::USR2);
        let pids = daemon.wait_for_lines("pids", 3);
        assert!(pids[1..].iter().all(is_alive));
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait_exit().code(), Some(0));
        are_gone(&pids);
    });
}

/// A mistake in the rules would end the new plugd, which has none yet.
#[test]
fn rules_with_a_mistake_are_refused() {
    ns::inside(|| {
        let copy = Copy::new();
        let conf = copy.dir.path().join("mdev.conf");
        fs::write(&conf, "x 0:0 600 @echo $N >>$TMP/out\n").unwrap();
        let daemon = copy.start_with_rules(&conf);
        fs::write(&conf, "x 0:0 9\n").unwrap();
        for command in ["update", "reload"] {
            let said = say(&[command]);
            assert_eq!(said.code, Some(1), "{said:?}");
        }
        daemon.wait_for_log("it ended with exit status: 2");
        daemon.wait_for_logs("mdev.conf:1:", 2);
        fs::write(&conf, "x 0:0 600 @echo $N >>$TMP/out\n").unwrap();
        update();
        let said = say(&["reload"]);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(said.stdout.starts_with("the rules were read anew: "), "{said:?}");
    });
}

/// The new plugd would make all nodes as the built-in default has them.
#[test]
fn rules_that_are_gone_are_refused() {
    ns::inside(|| {
        let copy = Copy::new();
        let (conf, away) = (copy.dir.path().join("mdev.conf"), copy.dir.path().join("away"));
        let daemon = copy.start_with_rules(&conf);
        // There were none.
        update();
        fs::write(&conf, "x 0:0 600\n").unwrap();
        assert_eq!(say(&["reload"]).code, Some(0));
        for _ in 0..2 {
            fs::rename(&conf, &away).unwrap();
            let said = say(&["update"]);
            assert_eq!(said.code, Some(1), "{said:?}");
            daemon.wait_for_log("mdev.conf any more");
            fs::rename(&away, &conf).unwrap();
            // What is known of them is handed over.
            update();
        }
    });
}

/// The new plugd has found no mistake when it was asked; then there is one.
#[test]
fn rules_that_get_a_mistake_after_the_rehearsal_do_no_harm() {
    ns::inside(|| {
        let copy = Copy::new();
        let (conf, away) = (copy.dir.path().join("mdev.conf"), copy.dir.path().join("away"));
        let good = "# a comment\n\n-N=^1;x.* 0:0 600 \\\n   @echo old $N >>$TMP/out\n";
        fs::write(&conf, good).unwrap();
        let daemon = Plugd::new()
            .program(&copy.file)
            .args(["run", "--control", &address(), "--sys", "/", "--conf"])
            .args([&conf])
            .args(["--dev"])
            .args([copy.dir.path()])
            .start();
        eventually("it listens", connect);
        let is_old = |n: usize| {
            Injector::new().send(&uevent("add", "/x", &["SUBSYSTEM=x", "N=1"])).unwrap();
            assert_eq!(daemon.wait_for_lines("out", n), vec!["old 1"; n]);
        };
        is_old(1);
        let (shown, aside) = (conf.display(), away.display());
        let spoil = format!("echo 'x 0:0 9' >{shown}");
        let remove = format!("mv {shown} {aside}");
        for (n, (deed, told)) in
            (2..).zip([(spoil, "mdev.conf:1:7: "), (remove, "mdev.conf any more")])
        {
            let script = format!(
                "[ \"$PLUGD_HANDOVER\" = rehearsal ] || exec {PLUGD} \"$@\"\n{PLUGD} \"$@\" && {deed}",
            );
            copy.replace_by_script(&script, 0o755);
            update();
            daemon.wait_for_log(told);
            daemon.wait_for_logs("the rules of the plugd before this one stay in force", n - 1);
            is_old(n);
            fs::write(&conf, good).unwrap();
        }
        assert_eq!(say(&["reload"]).code, Some(0));
    });
}

/// Its version is asked for, then it does not start after all: as when memory
/// is short, or somebody replaces it just then.
#[test]
fn one_that_fails_at_the_last_moment_is_refused() {
    ns::alone(|| {
        let copy = Copy::new();
        let (daemon, events) = copy.start(&[], "echo $N >>$TMP/out");
        let script = "[ $1 = --version ] && exec echo plugd 9.9
            mv \"$0\" \"$0.gone\"; echo plugd-handover 1";
        copy.replace_by_script(script, 0o755);
        let said = say(&["update"]);
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.stderr.contains("not updated: No such file or directory"), "{said:?}");
        daemon.wait_for_log("updating to version 9.9");
        unix::send(&events, &uevent("add", "/x", &["N=1"]));
        assert_eq!(daemon.wait_for_lines("out", 1), ["1"]);
        copy.replace();
        update();
    });
}

#[test]
fn noshs_handler_knows_no_update() {
    let (_events, receiver) = unix::pair(SocketType::SEQPACKET);
    let plugd = Plugd::new().arg0("plug-and-play-event-handler").fd(receiver, 3);
    let mut daemon = plugd.args(["true"]).start();
    daemon.signal(Signal::USR2);
    assert_eq!(daemon.wait_exit().signal(), Some(libc::SIGUSR2));
}
