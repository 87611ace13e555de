//! The program that it becomes.

use std::ffi::{CStr, CString};

use plugd::sys::Spawner;
use rustix::process::{WaitOptions, waitpid};

use super::*;
use crate::harness::daemon::field;

#[test]
fn the_next_program_gets_its_arguments_and_our_environment() {
    ns::inside(|| {
        let script = "printf 'args'; printf ' <%s>' \"$@\"; echo; \
                      echo env $KEPT $LISTEN_FDS $LISTEN_PID; echo umask $(umask)";
        let plugd = listen("-v kobject-uevent 1")
            .args(["sh", "-c", script, "sh", "-v", "--raw", "--", "x  y", "--help"])
            .env("KEPT", "kept")
            .env("LISTEN_FDS", "7")
            .env("LISTEN_PID", "1")
            .prelude("umask 027");
        let finished = plugd.finish();
        assert_eq!(finished.code, Some(0));
        assert_eq!(told(&finished, "args"), "<-v> <--raw> <--> <x  y> <--help>");
        assert_eq!(told(&finished, "env"), "kept 7 1");
        assert_eq!(told(&finished, "umask"), "0027");
        let line = format!("{LISTEN}: debug: kobject-uevent group 0x1 is file descriptor 3;");
        assert!(finished.stderr.starts_with(&line), "{finished:?}");
    });
}

/// Also what is no `KEY=VALUE`, and what is there twice; but not what is set anew.
#[test]
fn the_next_program_gets_all_strings_of_the_environment() {
    ns::inside(|| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("environment");
        let script = c"cat /proc/$$/environ >$FILE";
        let variable = CString::new(format!("FILE={}", file.display())).unwrap();
        let path = CString::new(format!("PATH={}", std::env::var("PATH").unwrap())).unwrap();
        let kept = [&*variable, &path, c"no variable", c"A=1", c"A=2", c"=x", c"", c"UPSTART_FDS"];
        let given = kept.into_iter().chain([c"UPSTART_FDS=7", c"UPSTART_FDS=8"]);
        let arguments = [c"plugd", c"listen", c"--upstart-compatibility", c"kobject-uevent", c"1"];
        let next = [c"sh", c"-c", script];
        let program = CString::new(env!("CARGO_BIN_EXE_plugd")).unwrap();
        let arguments = arguments.into_iter().chain(next);
        let (_, pid) = Spawner::new().spawn(&program, arguments, given).unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
        let set = [c"UPSTART_EVENTS=socket", c"UPSTART_FDS=3"];
        let expected: Vec<&[u8]> =
            kept.into_iter().chain(set).map(CStr::to_bytes_with_nul).collect();
        let real = fs::read(&file).unwrap();
        let shown = real.escape_ascii().to_string();
        assert_eq!(shown, expected.concat().escape_ascii().to_string());
    });
}

/// Rust's runtime ignores SIGPIPE; the next program must not notice.
#[test]
fn the_next_program_gets_the_signals_as_they_were() {
    ns::inside(|| {
        let status = || listen("kobject-uevent 1 cat /proc/self/status");
        let (pipe, user) = (1 << (libc::SIGPIPE - 1), 1 << (libc::SIGUSR2 - 1));
        for (plugd, ignored, blocked) in [
            (status(), 0, 0),
            (status().blocked(&[libc::SIGUSR2]), 0, user),
            (status().prelude("trap '' PIPE"), pipe, 0),
            (status().prelude("trap '' PIPE USR2"), pipe | user, 0),
        ] {
            let finished = plugd.finish();
            // Who started the tests may have others ignored.
            let of_both = |name| {
                let mask = field(&finished.stdout, name).unwrap();
                u64::from_str_radix(mask, 16).unwrap() & (pipe | user)
            };
            assert_eq!((of_both("SigIgn"), of_both("SigBlk")), (ignored, blocked));
        }
    });
}

#[test]
fn its_exit_status_is_the_next_programs() {
    ns::inside(|| {
        let finished = listen("kobject-uevent 1 sh -c").args(["exit 37"]).finish();
        assert_eq!((finished.code, &*finished.stderr), (Some(37), ""));
    });
}

#[test]
fn a_next_program_that_cannot_be_executed_is_named() {
    ns::inside(|| {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, mode, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let data = file("data", 0o644, "");
        let orphan = file("orphan", 0o755, "#!/nonexistent/interpreter\n");
        let script = file("script", 0o755, "echo \"told $0 $*\"\n");
        let directory = dir.path().to_str().unwrap();
        for (program, code, why) in [
            ("/nonexistent/program", 127, "No such file or directory"),
            ("no-program-of-that-name", 127, "No such file or directory"),
            ("", 127, "No such file or directory"),
            (&orphan, 127, "No such file or directory"),
            (&data, 126, "Permission denied"),
            (directory, 126, "Permission denied"),
        ] {
            let plugd = listen("kobject-uevent 1").args([program, "arg"]);
            assert_fails(plugd, code, &format!("cannot run '{program}': {why}"));
        }
        // As execvp does.
        let finished = listen("kobject-uevent 1").args([&script, "a", "-b"]).finish();
        assert_eq!(told(&finished, "told"), format!("{script} a -b"));
        let path = format!("{directory}:{}", std::env::var("PATH").unwrap());
        let plugd = listen("kobject-uevent 1").args(["script", "a"]).env("PATH", path);
        assert_eq!(told(&plugd.finish(), "told"), format!("{script} a"));
    });
}
