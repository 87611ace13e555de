//! The update in place: another version of plugd goes on in the same process.

mod clients;
mod refused;

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use plugd::sys::Spawner;
use rustix::net::SocketType;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tempfile::TempDir;

use crate::harness::daemon::{Daemon, Finished, Plugd};
use crate::harness::inject::{Injector, SetWhenDropped, uevent};
use crate::harness::stranger::{Stranger, is_free};
use crate::harness::{PATIENCE, PLUGD, eventually, ns, skip, unix};

/// A copy of plugd that can be replaced; to be used in [`ns::alone`] or
/// [`ns::inside`], as a file that was just written must not be open in the
/// child of another test.
struct Copy {
    dir: TempDir,
    file: PathBuf,
}

impl Copy {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plugd");
        let copy = Self { dir, file };
        copy.replace();
        copy
    }

    /// As a package manager does: a new file takes the place of the old one.
    fn replace(&self) {
        let new = self.dir.path().join("new");
        fs::copy(PLUGD, &new).unwrap();
        fs::rename(new, &self.file).unwrap();
    }

    fn replace_by_script(&self, script: &str, mode: u32) {
        let new = self.dir.path().join("new");
        fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&new, PermissionsExt::from_mode(mode)).unwrap();
        fs::rename(new, &self.file).unwrap();
    }

    fn start(&self, options: &[&str], script: &str) -> (Daemon, OwnedFd) {
        let (events, receiver) = unix::pair(SocketType::SEQPACKET);
        let plugd = Plugd::reading(receiver).program(&self.file).args(options);
        let daemon = plugd.args(["--control", &address()]).sh(script).start();
        daemon.fifo("gate");
        eventually("it listens", connect);
        (daemon, events)
    }

    /// With the rules of this file, if it is there; in [`ns::inside`].
    fn start_with_rules(&self, conf: &Path) -> Daemon {
        let plugd = Plugd::new().program(&self.file).args(["run", "--control", &address()]);
        let paths = ["--conf".as_ref(), conf, "--dev".as_ref(), self.dir.path()];
        let daemon = plugd.args(paths).start();
        eventually("it listens", connect);
        daemon
    }
}

/// Of this process, which is the test's own.
fn address() -> String {
    format!("@plugd-test-update-{}", std::process::id())
}

fn connect() -> Option<UnixStream> {
    let name = SocketAddr::from_abstract_name(&address()[1..]).unwrap();
    let stream = UnixStream::connect_addr(&name).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Some(stream)
}

fn say(args: &[&str]) -> Finished {
    Plugd::new().args(args).args(["--control", &address()]).finish()
}

fn update() {
    let said = say(&["update"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.starts_with("updated from version "), "{said:?}");
}

/// strace(1) on a daemon that runs, which does something at its system calls.
struct Strace(std::process::Child);

impl Strace {
    fn attach(daemon: &Daemon, inject: &str) -> Option<Self> {
        let trace = inject.split(':').next().unwrap();
        let strace = Command::new("strace")
            .args(["-qq", "-o", "/dev/null", "-p", &daemon.pid().to_string()])
            .args([format!("--trace={trace}"), format!("--inject={inject}")])
            .spawn();
        let Ok(mut strace) = strace else {
            skip("tools", inject, "there is no strace");
            return None;
        };
        let attached = eventually("strace is attached, or cannot be", || {
            let ended = strace.try_wait().unwrap().is_some();
            (ended || daemon.status("TracerPid") != "0").then_some(!ended)
        });
        if !attached {
            skip("tools", inject, "strace cannot attach");
        }
        attached.then_some(Self(strace))
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // Then it lets the daemon go.
        let _ = kill_process(Pid::from_child(&self.0), Signal::INT);
        let _ = self.0.wait();
    }
}

#[test]
fn a_hundred_times_under_load_nothing_is_lost() {
    ns::inside(|| {
        let copy = Copy::new();
        // Every seventh fails: that must be noticed whichever plugd started it.
        let script = "echo $N >>$TMP/out; exit $((N % 7 == 0))";
        let daemon = Plugd::new()
            .program(&copy.file)
            .args(["run", "--control", &address(), "--"])
            .sh(script)
            .start();
        eventually("it listens", connect);
        let pid = daemon.pid();
        let inode = daemon.netlink().1;
        let done = std::sync::atomic::AtomicBool::new(false);
        let sent = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let injector = Injector::new();
                let mut n = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let batch = (n + 1..=n + 16).map(|n| uevent("add", "/x", &[&format!("N={n}")]));
                    injector.paced(batch, inode);
                    n += 16;
                }
                n
            });
            {
                let _end = SetWhenDropped(&done);
                for _ in 0..100 {
                    copy.replace();
                    update();
                }
            }
            sender.join().unwrap()
        });
        let said = say(&["settle"]);
        assert_eq!(said.code, Some(0), "{said:?}");
        let expected: Vec<String> = (1..=sent).map(|n: u32| n.to_string()).collect();
        assert!(daemon.lines("out") == expected, "lost, twice or out of order");
        let failed = sent / 7;
        let counters = format!("received {sent}, handled {}, failed {failed} ", sent - failed);
        assert!(daemon.counters().contains(&counters), "{} {counters}", daemon.counters());
        assert_eq!(daemon.pid(), pid);
        assert_eq!(daemon.logged("updated from version").len(), 100);
        assert_eq!(daemon.logged("exited with 1;").len(), usize::try_from(failed).unwrap());
        // Nothing is left behind by all of them.
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        assert!(fds < 12, "{fds} descriptors");
        assert_eq!(daemon.children(), Vec::<u32>::new());
    });
}

#[test]
fn a_running_program_is_kept_with_its_time_limit() {
    ns::alone(|| {
        let copy = Copy::new();
        let (daemon, events) = copy.start(&["--timeout", "2"], "echo $$ >>$TMP/out; exec sleep 60");
        let began = Instant::now();
        unix::send(&events, &uevent("add", "/x", &["SEQNUM=7"]));
        daemon.wait_for_lines("out", 1);
        let child = daemon.children()[0];
        for _ in 0..3 {
            update();
            assert_eq!(daemon.children(), [child]);
        }
        let line = daemon.wait_for_log("takes too long");
        assert!(began.elapsed() >= Duration::from_secs(2), "too early");
        assert!(line.contains(&format!("pid {child} ")) && line.contains("SEQNUM 7"), "{line}");
        daemon.wait_for_log("was killed by SIGTERM; add /x (SEQNUM 7)");
        daemon.wait_for_counters("received 1, handled 0, failed 1 (timed out 1)");
    });
}

#[test]
fn an_event_that_waits_for_its_program_is_kept() {
    ns::alone(|| {
        let copy = Copy::new();
        let program = copy.dir.path().join("prog");
        fs::write(&program, "#!/bin/sh\necho $N >>$TMP/out\n").unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let (events, receiver) = unix::pair(SocketType::SEQPACKET);
        let daemon = Plugd::reading(receiver).program(&copy.file).args([&program]).start();
        // It is looked for at the start of the new plugd too: text that the
        // kernel takes for no program is not.
        fs::rename(&program, copy.dir.path().join("away")).unwrap();
        fs::write(&program, "#!/nonexistent/interpreter\n").unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        unix::send(&events, &uevent("add", "/x", &["N=1"]));
        unix::send(&events, &uevent("add", "/x", &["N=2"]));
        daemon.wait_for_log("waits for another attempt");
        daemon.signal(Signal::USR2);
        daemon.wait_for_log("updated from version");
        assert_eq!(daemon.lines("out"), [""; 0]);
        fs::rename(copy.dir.path().join("away"), &program).unwrap();
        assert_eq!(daemon.wait_for_lines("out", 2), ["1", "2"]);
        daemon.wait_for_counters("received 2, handled 2, failed 0");
    });
}

/// Versions side by side, with a link to the one in use.
#[test]
fn a_link_leads_to_the_new_version() {
    ns::alone(|| {
        let copy = Copy::new();
        let (old, new) = (copy.dir.path().join("1/plugd"), copy.dir.path().join("2/plugd"));
        let link = copy.dir.path().join("bin/plugd");
        for file in [&old, &new, &link] {
            fs::create_dir(file.parent().unwrap()).unwrap();
        }
        fs::rename(&copy.file, &old).unwrap();
        fs::copy(PLUGD, &new).unwrap();
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", link.parent().unwrap().display());
        for name in [link.to_str().unwrap(), "plugd"] {
            let _ = fs::remove_file(&link);
            symlink(&old, &link).unwrap();
            let (_events, receiver) = unix::pair(SocketType::SEQPACKET);
            // The shell finds it by its PATH.
            let plugd = Plugd::reading(receiver).program(name).env("PATH", &path);
            let daemon = plugd.prelude("").sh("true").start();
            let runs = |file: &PathBuf| {
                let exe = fs::read_link(format!("/proc/{}/exe", daemon.pid())).unwrap();
                assert_eq!(&exe, file, "by {name}");
            };
            runs(&old);
            for (n, file) in [(1, &new), (2, &old)] {
                fs::remove_file(&link).unwrap();
                symlink(file, &link).unwrap();
                daemon.signal(Signal::USR2);
                daemon.wait_for_logs("updated from version", n);
                runs(file);
            }
        }
    });
}

/// Where events are written to that were acted on goes on, and what was closed
/// as nobody reads it is no reason to fail.
#[test]
fn the_reader_of_events_notices_nothing() {
    ns::alone(|| {
        let copy = Copy::new();
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (events, receiver) = unix::pair(SocketType::SEQPACKET);
        let plugd = Plugd::reading(receiver).program(&copy.file).args(["--output-fd", "9"]);
        let mut daemon = plugd.fd(writer, 9).sh("echo $N >>$TMP/out").start();
        let mut reader = File::from(reader);
        for n in 1..=3 {
            let event = uevent("add", "/x", &[&format!("N={n}")]);
            unix::send(&events, &event);
            let mut bytes = vec![0; event.len() + 1];
            reader.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes, [&event[..], b"\0"].concat());
            daemon.signal(Signal::USR2);
            daemon.wait_for_logs("updated from version", n);
        }
        drop(reader);
        unix::send(&events, &uevent("add", "/x", &["N=4"]));
        daemon.wait_for_log("cannot write an event: it has no reader");
        daemon.signal(Signal::USR2);
        daemon.wait_for_logs("updated from version", 4);
        unix::send(&events, &uevent("add", "/x", &["N=5"]));
        assert_eq!(daemon.wait_for_lines("out", 5), ["1", "2", "3", "4", "5"]);
        drop(events);
        assert_eq!(daemon.wait_exit().code(), Some(0));
    });
}

/// What it would go on with: so one that cannot read it can say so.
#[test]
fn a_new_version_is_shown_the_state_and_the_sockets() {
    ns::alone(|| {
        let copy = Copy::new();
        let (daemon, events) = copy.start(&[], "echo $N >>$TMP/out; read x <$TMP/gate");
        unix::send(&events, &uevent("add", "/x", &["N=1"]));
        daemon.wait_for_lines("out", 1);
        let script = "[ $1 = --version ] && exec echo plugd 9.9
            cat >$TMP/state; readlink /proc/self/fd/$(sed -n 's/^source //p' $TMP/state) >$TMP/socket
            exit 1";
        copy.replace_by_script(script, 0o755);
        assert_eq!(say(&["update"]).code, Some(1));
        let state = daemon.lines("state");
        assert_eq!(state[0], "plugd-handover 1");
        // Nothing else is there that it could harm.
        for key in ["listener", "client", "child", "running"] {
            assert!(!state.iter().any(|line| line.starts_with(key)), "{state:?}");
        }
        assert!(daemon.lines("socket")[0].starts_with("socket:["), "{:?}", daemon.lines("socket"));
        daemon.release("gate");
        // A program started later has none of it.
        copy.replace();
        update();
        assert_eq!(say(&["settle"]).code, Some(0));
    });
}

/// It went on without a control socket, as a stranger had the address. Now another
/// plugd has it.
#[test]
fn an_address_that_is_taken_meanwhile_ends_nothing() {
    ns::inside_as_root(|| {
        let test = "an_address_that_is_taken_meanwhile_ends_nothing";
        let Some(stranger) = Stranger::new(test) else { return };
        let copy = Copy::new();
        let start = || {
            let plugd = Plugd::new().program(&copy.file).args(["run", "--"]);
            plugd.sh("echo $N >>$TMP/out; read x <$TMP/gate").start()
        };
        let daemon = start();
        daemon.fifo("gate");
        daemon.wait_for_log("plugd goes on without a control socket");
        drop(stranger);
        eventually("the address is free", || is_free().then_some(()));
        let second = start();
        Injector::new().event("add", "/x", &["N=1"]);
        daemon.wait_for_lines("out", 1);
        daemon.signal(Signal::USR2);
        daemon.wait_for_log("updated from version");
        daemon.wait_for_logs("plugd goes on without a control socket", 2);
        daemon.release("gate");
        daemon.wait_for_counters("received 1, handled 1, failed 0");
        // When it is free again it is taken.
        drop(second);
        eventually("the address is free", || is_free().then_some(()));
        daemon.signal(Signal::USR2);
        daemon.wait_for_logs("updated from version", 2);
        let said = Plugd::new().args(["status", "--json"]).finish();
        assert!(said.stdout.contains(&format!("\"pid\":{}", daemon.pid())), "{said:?}");
    });
}

/// Somebody has removed the file, and another plugd made one there.
#[test]
fn anothers_control_socket_is_left_alone() {
    ns::alone(|| {
        let copy = Copy::new();
        let socket = copy.dir.path().join("socket");
        let start = || {
            let (events, receiver) = unix::pair(SocketType::SEQPACKET);
            let plugd = Plugd::new().program(&copy.file).args(["run", "--fd", "3", "--control"]);
            (plugd.args([&socket]).fd(receiver, 3).sh("true").start(), events)
        };
        let (mut first, _events) = start();
        eventually("it listens", || UnixStream::connect(&socket).ok());
        fs::remove_file(&socket).unwrap();
        let (mut second, _others) = start();
        eventually("it listens", || UnixStream::connect(&socket).ok());
        for daemon in [&first, &second] {
            daemon.signal(Signal::USR2);
            daemon.wait_for_log("updated from version");
        }
        first.signal(Signal::TERM);
        assert_eq!(first.wait_exit().code(), Some(0));
        assert!(UnixStream::connect(&socket).is_ok(), "it has removed another one's");
        // But its own it removes.
        second.signal(Signal::TERM);
        assert_eq!(second.wait_exit().code(), Some(0));
        assert!(!socket.exists());
    });
}

/// What is no more than useful is done without; the event in hand is not.
#[test]
fn what_cannot_be_had_any_more_ends_nothing() {
    ns::inside(|| {
        let copy = Copy::new();
        let manager = copy.dir.path().join("notify");
        let _manager = UnixDatagram::bind(&manager).unwrap();
        let daemon = Plugd::new()
            .program(&copy.file)
            .env("NOTIFY_SOCKET", &manager)
            .args(["run", "--control", &address(), "--rebroadcast", "4", "--"])
            .sh("echo $N >>$TMP/out; read x <$TMP/gate")
            .start();
        daemon.fifo("gate");
        eventually("it listens", connect);
        Injector::new().event("add", "/x", &["N=1"]);
        daemon.wait_for_lines("out", 1);
        let Some(strace) = Strace::attach(&daemon, "socket:error=ENFILE") else { return };
        daemon.signal(Signal::USR2);
        daemon.wait_for_log("updated from version");
        daemon.wait_for_logs("plugd goes on without", 2);
        drop(strace);
        daemon.release("gate");
        daemon.wait_for_counters("received 1, handled 1, failed 0");
    });
}

#[test]
fn no_signal_is_lost_meanwhile() {
    ns::alone(|| {
        let copy = Copy::new();
        for _ in 0..30 {
            let (mut daemon, _events) = copy.start(&[], "true");
            daemon.signal(Signal::USR2);
            daemon.signal(Signal::USR1);
            // Whichever plugd it reaches, or neither yet.
            std::thread::sleep(Duration::from_micros(u64::from(daemon.pid() % 30) * 200));
            daemon.signal(Signal::TERM);
            assert_eq!(daemon.wait_exit().code(), Some(0), "{:?}", daemon.log());
            assert_eq!(daemon.logged("SIGUSR1").len(), 1);
        }
    });
}

/// While it is about to update: then nobody would reap the program that it has started
/// to ask for its version.
#[test]
fn a_request_at_the_last_moment_leaves_nothing_behind() {
    ns::alone(|| {
        let copy = Copy::new();
        let (daemon, _events) = copy.start(&[], "true");
        // When the new program was found to be good there is much time.
        let slow = "wait4,waitid:delay_exit=100000";
        let Some(strace) = Strace::attach(&daemon, slow) else { return };
        eventually("it updates", || {
            daemon.signal(Signal::USR2);
            (!daemon.logged("updating to version").is_empty()).then_some(())
        });
        drop(strace);
        daemon.wait_for_log("updated from version");
        daemon.counters();
        eventually("all its programs are reaped", || daemon.children().is_empty().then_some(()));
    });
}

/// Also what is no `KEY=VALUE`, and what is there twice.
#[test]
fn all_strings_of_the_environment_are_kept() {
    ns::alone(|| {
        let address = address();
        let path = CString::new(format!("PATH={}", std::env::var("PATH").unwrap())).unwrap();
        let kept = [&*path, c"no variable", c"A=1", c"A=2", c"=x", c"", c"PLUGD_HANDOVER"];
        let arguments = ["plugd", "run", "--control", &address, "true"];
        let arguments = arguments.map(|argument| CString::new(argument).unwrap());
        let program = CString::new(PLUGD).unwrap();
        let arguments = arguments.iter().map(CString::as_c_str);
        let (_, pid) = Spawner::new().spawn(&program, arguments, kept).unwrap();
        eventually("it listens", connect);
        // The second time there is a variable of the first one.
        update();
        update();
        let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_pid())).unwrap();
        assert_eq!(say(&["stop"]).code, Some(0));
        waitpid(Some(pid), WaitOptions::empty()).unwrap();
        let expected: Vec<&[u8]> = kept.into_iter().map(CStr::to_bytes_with_nul).collect();
        let set = [b"PLUGD_HANDOVER=", pid.to_string().as_bytes(), b":"].concat();
        let all = [expected.concat(), set].concat().escape_ascii().to_string();
        let real = environment.escape_ascii().to_string();
        assert!(real.starts_with(&all), "{real}");
        assert_eq!(real.matches("PLUGD_HANDOVER=").count(), 1, "{real}");
    });
}

/// What is left of an update in somebody's environment means nothing.
#[test]
fn a_stray_hand_over_is_ignored() {
    let (events, receiver) = unix::pair(SocketType::SEQPACKET);
    let plugd = Plugd::reading(receiver).env("PLUGD_HANDOVER", "1:3");
    let daemon = plugd.sh("echo ${PLUGD_HANDOVER-unset} >>$TMP/out").start();
    unix::send(&events, &uevent("add", "/x", &[]));
    assert_eq!(daemon.wait_for_lines("out", 1), ["unset"]);
}
