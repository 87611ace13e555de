//! The control socket: every command, in every state, whoever asks.

mod limits;
mod states;
mod waiting;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{SocketType, accept};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::Value;

use crate::harness::daemon::{Daemon, Finished, Plugd};
use crate::harness::inject::{Injector, NetlinkSocket, real_device, uevent};
use crate::harness::{PATIENCE, eventually, ns, skip, unix};

const PLUGD: &str = env!("CARGO_BIN_EXE_plugd");
const HOLD: &str = "echo $N >>$TMP/out; read x <$TMP/gate; echo done >>$TMP/out";

/// A daemon that reads an AF_UNIX socket, with a control socket in its directory.
struct Host {
    daemon: Daemon,
    events: OwnedFd,
    address: String,
}

impl Host {
    fn start(options: &[&str], script: &str) -> Self {
        Self::reading(SocketType::SEQPACKET, options, script)
    }

    /// A socket of this kind.
    fn reading(kind: SocketType, options: &[&str], script: &str) -> Self {
        let (events, receiver) = unix::pair(kind);
        let plugd = Plugd::new().args(["run", "--fd", "3"]).args(options).fd(receiver, 3);
        // A name that no other test has: the directory's.
        let address = format!("@plugd-test-{}-{}", std::process::id(), unique());
        let daemon = plugd.args(["--control", &address]).sh(script).start();
        daemon.fifo("gate");
        let host = Self { daemon, events, address };
        host.wait_until_it_listens();
        host
    }

    fn wait_until_it_listens(&self) {
        eventually("the control socket is there", || connect(&self.address));
    }

    fn event(&self, n: u32) {
        unix::send(&self.events, &uevent("add", "/devices/x", &[&format!("N={n}")]));
    }

    fn say(&self, args: &[&str]) -> Finished {
        say(&self.address, args)
    }

    fn status(&self) -> Value {
        status(&self.address)
    }

    fn connect(&self) -> UnixStream {
        connect(&self.address).unwrap()
    }

    /// What is said to a bare line, until the daemon closes the connection.
    fn ask(&self, line: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(line.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        read_all(&mut stream)
    }
}

fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn connect(address: &str) -> Option<UnixStream> {
    let address = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name).unwrap(),
        None => SocketAddr::from_pathname(address).unwrap(),
    };
    let stream = UnixStream::connect_addr(&address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    Some(stream)
}

fn read_all(stream: &mut UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn say(address: &str, args: &[&str]) -> Finished {
    Plugd::new().args(args).args(["--control", address]).finish()
}

fn status(address: &str) -> Value {
    let said = say(address, &["status", "--json"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    serde_json::from_str(&said.stdout).unwrap()
}

/// A `plugd settle` or the like, under way.
fn begin(address: &str, args: &[&str]) -> std::process::Child {
    Command::new(PLUGD)
        .args(args)
        .args(["--control", address])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn end(mut child: std::process::Child) -> Option<i32> {
    ns::wait(&mut child, PATIENCE).expect("the command does not end").code()
}

/// Every command's outcome, in this state; the last one is `stop`.
fn every_command(host: &Host, state: &str) {
    let ok = |args: &[&str], output: &str| {
        let said = host.say(args);
        assert_eq!(said.code, Some(0), "{args:?} while {state}: {said:?}");
        assert!(said.stdout.contains(output), "{args:?} while {state}: {said:?}");
    };
    ok(&["status"], &format!("state    {state}"));
    ok(&["status", "--openmetrics"], &format!("plugd_state{{plugd_state=\"{state}\"}} 1\n"));
    assert_eq!(host.status()["state"], state);
    let quiet = host.say(&["status", "--quiet"]);
    assert_eq!((quiet.code, &*quiet.stdout, &*quiet.stderr), (Some(0), "", ""));
    ok(&["log-level"], "info\n");
    ok(&["log-level", "debug"], "debug\n");
    ok(&["log-level", "info"], "info\n");
    match state {
        "running" => assert_eq!(host.say(&["reload", "--timeout", "0.1"]).code, Some(1)),
        _ => ok(&["reload"], "nothing to reload"),
    }
    // There is nothing to scan, or an event in hand.
    let said = host.say(&["rescan", "--timeout", "0.1"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    ok(&["pause"], "paused");
    assert_eq!(host.status()["paused"], true);
    ok(&["resume"], "reading events");
    assert_eq!(host.status()["paused"], false);
}

#[test]
fn every_command_while_idle() {
    let mut host = Host::start(&[], HOLD);
    every_command(&host, "idle");
    for args in [&["settle"][..], &["settle", "--timeout", "0"]] {
        assert_eq!(host.say(args).code, Some(0), "{args:?}");
    }
    assert_eq!(host.say(&["update"]).code, Some(0));
    every_command(&host, "idle");
    assert_eq!(host.say(&["stop"]).stdout, "stopping\n");
    assert_eq!(host.daemon.wait_exit().code(), Some(0));
    let said = host.say(&["status"]);
    assert_eq!(said.code, Some(111), "{said:?}");
    assert!(said.stderr.contains("Connection refused"), "{said:?}");
}

#[test]
fn every_command_while_a_program_runs() {
    let mut host = Host::start(&[], HOLD);
    host.event(1);
    host.daemon.wait_for_lines("out", 1);
    every_command(&host, "running");
    let status = host.status();
    assert_eq!(status["child_pid"], host.daemon.children()[0]);
    assert_eq!(status["event"]["devpath"], "/devices/x");
    let said = host.say(&["settle", "--timeout", "0"]);
    assert_eq!((said.code, &*said.stderr), (Some(1), "plugd: settle: timed out\n"));
    let child = host.daemon.children()[0];
    assert_eq!(host.say(&["update"]).code, Some(0));
    assert_eq!(host.daemon.children(), [child]);
    every_command(&host, "running");
    let said = host.say(&["stop"]);
    assert!(said.stdout.starts_with(&format!("stopping when pid {child} has ended")), "{said:?}");
    assert_eq!(host.status()["state"], "stopping");
    let said = host.say(&["update"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    host.daemon.release("gate");
    assert_eq!(host.daemon.wait_exit().code(), Some(0));
    assert_eq!(host.daemon.lines("out"), ["1", "done"]);
    host.daemon.wait_for_log("stopped: received 1, handled 1");
}

#[test]
fn a_second_stop_ends_the_program() {
    let mut host = Host::start(&[], "echo $N >>$TMP/out; exec sleep 1000");
    host.event(1);
    host.daemon.wait_for_lines("out", 1);
    assert_eq!(host.say(&["stop"]).code, Some(0));
    assert_eq!(host.say(&["stop"]).code, Some(0));
    assert_eq!(host.daemon.wait_exit().code(), Some(0));
    host.daemon.wait_for_log("SIGTERM to its process group");
}

#[test]
fn every_command_while_paused() {
    let mut host = Host::start(&[], HOLD);
    assert_eq!(host.say(&["pause"]).code, Some(0));
    host.event(1);
    let state = host.status();
    assert_eq!((&state["state"], &state["events"]["received"]), (&"paused".into(), &0.into()));
    let said = host.say(&["settle", "--timeout", "0"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    // It sleeps, although something is there to be read.
    host.daemon.sleeps();
    assert_eq!(host.say(&["update"]).code, Some(0));
    assert_eq!(host.status()["state"], "paused");
    assert_eq!(host.say(&["resume"]).code, Some(0));
    host.daemon.wait_for_lines("out", 1);
    // A pause comes after the event in hand.
    assert_eq!(host.say(&["pause"]).code, Some(0));
    host.event(2);
    host.daemon.release("gate");
    host.daemon.wait_for_lines("out", 2);
    eventually("it is paused", || (host.status()["state"] == "paused").then_some(()));
    assert_eq!(host.daemon.lines("out"), ["1", "done"]);
    assert_eq!(host.say(&["stop"]).code, Some(0));
    assert_eq!(host.daemon.wait_exit().code(), Some(0));
    assert_eq!(host.daemon.lines("out"), ["1", "done"]);
}

/// Whenever it asks, and whatever is done at that time.
#[test]
fn a_pause_keeps_nobody_waiting_who_has_nothing_to_wait_for() {
    ns::inside_with_sysfs(|| {
        let (sender, receiver) = unix::pair(SocketType::SEQPACKET);
        for options in [&[][..], &["--fd", "7"]] {
            let plugd = Plugd::new().args(["run"]).args(options).args(["--"]);
            let plugd = plugd.fd(receiver.try_clone().unwrap(), 7);
            let daemon = plugd.sh("echo $N >>$TMP/out; read x <$TMP/gate").start();
            daemon.fifo("gate");
            eventually("it listens", || connect("@plugd"));
            let event = |n: &str| match options {
                [] => Injector::new().event("add", "/x", &[n]),
                _ => unix::send(&sender, &uevent("add", "/x", &[n])),
            };
            event("N=1");
            daemon.wait_for_lines("out", 1);
            assert_eq!(say("@plugd", &["pause"]).code, Some(0));
            let waiting = [&["settle"][..], &["wait", "/devices/virtual/net/lo"]];
            let mut waiting = waiting.map(|args| begin("@plugd", args));
            // Both are waiting, and another one has asked since.
            eventually("they wait", || {
                assert_eq!(say("@plugd", &["settle", "--timeout", "0"]).code, Some(1));
                (clients(&daemon) == 2).then_some(())
            });
            assert!(waiting.iter_mut().all(|child| child.try_wait().unwrap().is_none()), "early");
            // The next plugd is asked by them anew.
            assert_eq!(say("@plugd", &["update"]).code, Some(0));
            daemon.release("gate");
            for child in waiting {
                assert_eq!(end(child), Some(0), "{options:?}");
            }
            // What is queued is waited for.
            event("N=2");
            assert_eq!(say("@plugd", &["settle", "--timeout", "0.1"]).code, Some(1));
            assert_eq!(say("@plugd", &["resume"]).code, Some(0));
            daemon.wait_for_lines("out", 2);
            daemon.release("gate");
            assert_eq!(say("@plugd", &["settle"]).code, Some(0));
            assert_eq!(say("@plugd", &["stop"]).code, Some(0));
        }
    });
}

/// How many are connected to its control socket.
fn clients(daemon: &Daemon) -> usize {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let fds = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let links: Vec<_> = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok()).collect();
    // Connected ones have its name too, in state 03 (unix(5) of net/unix/af_unix.c).
    let connected = sockets.lines().filter(|line| line.ends_with(" @plugd"));
    let inodes = connected.filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        (columns[5] == "03").then(|| Path::new(&format!("socket:[{}]", columns[6])).to_owned())
    });
    inodes.filter(|inode| links.contains(inode)).count()
}

#[test]
fn every_command_while_it_retries() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("prog");
    std::fs::write(&program, "#!/bin/sh\necho ran >>$TMP/out\n").unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let (events, receiver) = unix::pair(SocketType::SEQPACKET);
    let address = format!("@plugd-test-{}-{}", std::process::id(), unique());
    let daemon = Plugd::new()
        .args(["run", "--fd", "3", "--control", &address])
        .args([&program])
        .fd(receiver, 3)
        .start();
    let mut host = Host { daemon, events, address };
    host.wait_until_it_listens();
    let away = dir.path().join("away");
    std::fs::rename(&program, &away).unwrap();
    host.event(1);
    host.daemon.wait_for_log("waits for another attempt");
    assert_eq!(host.status()["state"], "retrying");
    assert_eq!(host.say(&["settle", "--timeout", "0"]).code, Some(1));
    assert_eq!(host.status()["events"]["received"], 1);
    std::fs::rename(&away, &program).unwrap();
    assert_eq!(host.say(&["settle"]).code, Some(0));
    assert_eq!(host.daemon.lines("out"), ["ran"]);
    assert_eq!(host.say(&["stop"]).code, Some(0));
    assert_eq!(host.daemon.wait_exit().code(), Some(0));
}

#[test]
fn a_line_from_a_shell_is_answered_in_text() {
    let host = Host::start(&[], HOLD);
    assert!(host.ask("status\n").starts_with("state    idle\n"));
    assert!(host.ask("status").starts_with("state    idle\n"), "without a newline");
    assert!(host.ask("status --openmetrics\r\n").ends_with("# EOF\n"));
    assert_eq!(host.ask("settle\n"), "ok\n");
    assert_eq!(host.ask("settle --timeout 0 x\n"), "error: usage: unexpected 'x'\n");
    assert_eq!(host.ask("\x1b[1mstatus\0\n").lines().count(), 1);
    assert!(host.ask("garbage\n").starts_with("error: usage: there is no command 'garbage'"));
    assert_eq!(host.ask("\n"), "error: usage: the command is missing\n");
    assert_eq!(host.ask(""), "");
}

/// To a script, the end of the daemon must not look like success.
#[test]
fn who_waits_for_a_daemon_that_ends_is_told_nothing() {
    let host = Host::start(&[], HOLD);
    host.event(1);
    host.daemon.wait_for_lines("out", 1);
    let mut stream = host.connect();
    stream.write_all(b"settle\n").unwrap();
    assert!(host.ask("status\n").starts_with("state    running"));
    host.daemon.signal(Signal::KILL);
    assert_eq!(read_all(&mut stream), "");
}

#[test]
fn a_program_may_ask_again_and_again_on_one_connection() {
    let host = Host::start(&[], HOLD);
    let mut stream = host.connect();
    let rounds = 1000;
    let asking = {
        let mut stream = stream.try_clone().unwrap();
        std::thread::spawn(move || {
            for _ in 0..rounds {
                stream.write_all(b"plugd/1 log-level\nplugd/1 nonsense\nplugd/1 settle\n").unwrap();
            }
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        })
    };
    let text = read_all(&mut stream);
    asking.join().unwrap();
    let usage = "there is no command 'nonsense'\n";
    let expected =
        format!("plugd/1 ok 5\ninfo\nplugd/1 usage {}\n{usage}plugd/1 ok 0\n", usage.len());
    assert_eq!(text, expected.repeat(rounds));
    let mut stream = host.connect();
    stream.write_all(b"plugd/2 status\n").unwrap();
    let text = "the version of this protocol is plugd/1\n";
    let mut answer = vec![0; format!("plugd/1 usage 40\n{text}").len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), format!("plugd/1 usage {}\n{text}", text.len()));
}

#[test]
fn a_megabyte_without_a_newline_gets_an_error_line() {
    let host = Host::start(&[], HOLD);
    let mut stream = host.connect();
    // Without the code, which comes back when it is needed.
    let before = host.daemon.status("RssAnon");
    // It need not take all that.
    let _ = stream.write_all(&vec![b'x'; 1 << 20]);
    assert_eq!(read_all_of_broken(&mut stream), "error: usage: a request has at most 4096 bytes\n");
    assert_eq!(host.status()["state"], "idle");
    let kib = |text: &str| text.trim_end_matches(" kB").trim().parse::<u64>().unwrap();
    let after = host.daemon.status("RssAnon");
    assert!(kib(&after) < kib(&before) + 512, "{before} before, {after} after");
}

/// What is said without end, and what nobody hears, is bounded for each of them.
#[test]
fn a_thousand_hostile_clients_cost_little_memory() {
    const CLIENTS: usize = 1000;
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < 4096) {
        let why = "the limit of open files is too low";
        return skip("root", "a_thousand_hostile_clients", why);
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(4096), ..limit }).unwrap();
    let host = Host::start(&[], "echo $N >>$TMP/out");
    // With the code that serves them.
    assert!(host.ask("status --openmetrics\n").ends_with("# EOF\n"));
    let memory = || {
        let text = host.daemon.status("VmHWM");
        text.trim_end_matches(" kB").trim().parse::<u64>().unwrap()
    };
    let before = memory();
    let garbage = vec![b'x'; 1 << 20];
    // A line that is too long, one without end, and questions whose answers nobody hears.
    let says: [&[u8]; 3] =
        [&garbage, &garbage[..4000], &b"plugd/1 status --openmetrics\n".repeat(10_000)];
    let mut previous = Vec::new();
    for said in says {
        let mut clients: Vec<UnixStream> = (0..CLIENTS).map(|_| host.connect()).collect();
        for client in &mut clients {
            client.set_nonblocking(true).unwrap();
            let _ = client.write_all(said);
        }
        host.event(1);
        assert_eq!(host.say(&["settle"]).code, Some(0));
        host.daemon.sleeps();
        // These stay while others come.
        drop(std::mem::replace(&mut previous, clients));
    }
    assert_eq!(host.daemon.lines("out").len(), says.len());
    let (after, bound) = (memory(), CLIENTS as u64 * 16);
    assert!(after < before + bound, "{before} KiB, then {after}");
}

/// The daemon closes without reading all that was said: an error may follow.
fn read_all_of_broken(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 1000];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8(bytes).unwrap()
}

/// It asks until nobody takes its questions any more, and never reads.
#[test]
fn a_client_that_never_reads_costs_nobody_else_anything() {
    let host = Host::start(&[], "echo $N >>$TMP/out");
    let mut deaf = host.connect();
    deaf.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let questions = b"plugd/1 status --openmetrics\n".repeat(100);
    while deaf.write_all(&questions).is_ok() {}
    host.daemon.sleeps();
    host.event(1);
    assert_eq!(host.say(&["settle"]).code, Some(0));
    assert_eq!(host.daemon.lines("out"), ["1"]);
    // It is sent away in the end.
    let mut rest = Vec::new();
    let began = Instant::now();
    eventually("the deaf client is sent away", || {
        deaf.write_all(b"\n")
            .is_err_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
            .then_some(())
    });
    assert!(began.elapsed() < Duration::from_secs(20));
    deaf.read_to_end(&mut rest).ok();
    assert!(rest.starts_with(b"plugd/1 ok "));
}

#[test]
fn who_says_something_and_goes_is_obeyed() {
    let host = Host::start(&[], HOLD);
    let mut stream = host.connect();
    stream.write_all(b"pause\n").unwrap();
    drop(stream);
    eventually("it is paused", || (host.status()["paused"] == true).then_some(()));
    // One who waits and goes is forgotten: nothing wakes the daemon any more.
    let mut stream = host.connect();
    stream.write_all(b"settle --timeout 1\n").unwrap();
    drop(stream);
    assert_eq!(host.say(&["resume"]).code, Some(0));
    host.daemon.sleeps();
}

#[test]
fn a_thousand_idle_clients_and_a_busy_daemon() {
    let limit = getrlimit(Resource::Nofile);
    let enough = limit.maximum.is_none_or(|maximum| maximum >= 4096);
    if !enough {
        return skip("root", "a_thousand_idle_clients", "the limit of open files is too low");
    }
    // The daemon starts with the usual one, and gets by with it until it cannot.
    let address = format!("@plugd-test-{}-{}", std::process::id(), unique());
    let (events, receiver) = unix::pair(SocketType::SEQPACKET);
    let daemon = Plugd::new()
        .args(["run", "--fd", "3", "--control", &address])
        .prelude("ulimit -Sn 1024")
        .fd(receiver, 3)
        .sh("echo $(ulimit -Sn) >>$TMP/out")
        .start();
    let host = Host { daemon, events, address };
    host.wait_until_it_listens();
    setrlimit(Resource::Nofile, Rlimit { current: Some(4096), ..limit }).unwrap();
    let mut clients: Vec<UnixStream> = (0..1200).map(|_| host.connect()).collect();
    let fds = || std::fs::read_dir(format!("/proc/{}/fd", host.daemon.pid())).unwrap().count();
    eventually("all are accepted", || (fds() >= 1200).then_some(()));
    for n in 0..100 {
        host.event(n);
    }
    assert_eq!(host.say(&["settle"]).code, Some(0));
    // A child gets the limit that plugd was started with.
    assert_eq!(host.daemon.lines("out"), ["1024"; 100]);
    // Each of them is still heard.
    for client in &mut clients {
        client.write_all(b"log-level\n").unwrap();
    }
    for client in &mut clients {
        assert_eq!(read_all(client), "info\n");
    }
    eventually("all have gone", || (fds() < 100).then_some(()));
    host.daemon.sleeps();
}

#[test]
fn with_few_descriptors_there_are_few_clients() {
    for limit in [16, 32, 33] {
        let address = format!("@plugd-test-{}-{}", std::process::id(), unique());
        let (events, receiver) = unix::pair(SocketType::SEQPACKET);
        let plugd = Plugd::new().args(["run", "--fd", "3", "--control", &address]);
        let plugd = plugd.prelude(&format!("ulimit -n {limit}")).fd(receiver, 3);
        let host = Host { daemon: plugd.sh("echo $N >>$TMP/out").start(), events, address };
        host.wait_until_it_listens();
        // Who says nothing keeps out nobody, nor a program.
        let _silent = [(); 5].map(|()| host.connect());
        // They might have had something to say.
        host.daemon.sleeps();
        host.event(1);
        for args in [&["settle"][..], &["wait", "--timeout", "0.1", "A=1"], &["status"]] {
            let expected = i32::from(args[0] == "wait");
            let said = host.say(args);
            assert_eq!(said.code, Some(expected), "{args:?} with {limit}: {said:?}");
        }
        assert_eq!(host.daemon.lines("out"), ["1"], "{limit}");
        assert_eq!(host.say(&["stop"]).code, Some(0));
    }
}

/// Whoever could not be accepted for want of descriptors is not forgotten, though all
/// others go.
#[test]
fn who_waits_to_be_accepted_is_accepted_in_the_end() {
    let address = format!("@plugd-test-{}-{}", std::process::id(), unique());
    let (_events, receiver) = unix::pair(SocketType::SEQPACKET);
    let mut plugd = Plugd::new().args(["run", "--fd", "3", "--control", &address]).fd(receiver, 3);
    // Descriptors that plugd does not know to be taken.
    for fd in 10..40 {
        plugd = plugd.fd(std::fs::File::open("/dev/null").unwrap(), fd);
    }
    let daemon = plugd.prelude("ulimit -n 50").sh("true").start();
    eventually("it listens", || connect(&address));
    let mut clients = Vec::new();
    eventually("it runs out of descriptors", || {
        clients.push(connect(&address).unwrap());
        (!daemon.logged("cannot accept a client of the control socket").is_empty()).then_some(())
    });
    let mut waiting = connect(&address).unwrap();
    waiting.write_all(b"log-level\n").unwrap();
    // Nothing is left to remind it of.
    drop(clients);
    assert_eq!(read_all(&mut waiting), "info\n");
}

/// Under load: ten clients ask all the time while events come.
#[test]
fn status_is_prompt_under_full_load() {
    ns::inside(|| {
        let daemon = Plugd::new().args(["run", "--"]).sh("exit 0").start();
        eventually("it listens", || connect("@plugd"));
        let injector = Injector::new();
        let inode = daemon.netlink().1;
        let done = std::sync::atomic::AtomicBool::new(false);
        let mut times: Vec<Duration> = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    injector.paced((0..64).map(|_| uevent("add", "/x", &["A=1"])), inode);
                }
            });
            let _end = SetWhenDropped(&done);
            let mut stream = connect("@plugd").unwrap();
            (0..1000)
                .map(|_| {
                    let began = Instant::now();
                    stream.write_all(b"plugd/1 status --json\n").unwrap();
                    let mut text = Vec::new();
                    let mut buffer = [0; 4096];
                    while !text.ends_with(b"}\n") {
                        let length = stream.read(&mut buffer).unwrap();
                        text.extend_from_slice(&buffer[..length]);
                    }
                    began.elapsed()
                })
                .collect()
        });
        times.sort();
        let p99 = times[990];
        // Targets are for an optimized build on a machine with nothing else to
        // do; ten times that is a defect anywhere.
        assert!(p99 < Duration::from_millis(100), "p99 {p99:?}");
    });
}

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

/// What a thread does as another user: it alone becomes that.
fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let uid = rustix::process::Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            act()
        });
        thread.join().unwrap()
    })
}

/// The parser of Prometheus itself.
#[test]
fn prometheus_reads_the_metrics() {
    const READ: &str = "
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
for family in text_string_to_metric_families(sys.stdin.read()):
    for sample in family.samples:
        print(family.type, sample.name, sample.labels, float(sample.value))
";
    let what = "prometheus_reads_the_metrics";
    // The system's, which has the package's modules, may not be the first in PATH.
    let has_it = |python: &&str| {
        let module = ["-c", "import prometheus_client.openmetrics.parser"];
        let output = Command::new(python).args(module).output();
        output.is_ok_and(|output| output.status.success())
    };
    let Some(python) = ["python3", "/usr/bin/python3"].into_iter().find(has_it) else {
        return skip("tools", what, "there is no python3 with prometheus_client");
    };
    let host = Host::start(&[], HOLD);
    host.event(1);
    host.daemon.wait_for_lines("out", 1);
    let said = host.say(&["status", "--openmetrics"]);
    let mut python = Command::new(python)
        .args(["-c", READ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(said.stdout.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\n{}", said.stdout);
    let read = String::from_utf8(output.stdout).unwrap();
    for sample in [
        "counter plugd_events_received_total {} 1.0",
        "stateset plugd_state {'plugd_state': 'running'} 1.0",
        "stateset plugd_state {'plugd_state': 'idle'} 0.0",
        "counter plugd_datagrams_dropped_total {'kind': 'foreign'} 0.0",
    ] {
        assert!(read.lines().any(|line| line == sample), "{sample}: {read}");
    }
    host.daemon.release("gate");
}

/// Each event is compared with what each of them waits for.
#[test]
fn only_some_of_other_users_may_wait() {
    ns::inside_as_root(|| {
        let plugd = Plugd::new().args(["run", "--control-mode", "0666", "--"]);
        let daemon = plugd.sh("read x <$TMP/gate").start();
        daemon.fifo("gate");
        eventually("it listens", || connect("@plugd"));
        Injector::new().event("add", "/x", &[]);
        daemon.wait_for_child("sh");
        let ask = |request: &[u8]| {
            let mut stream = connect("@plugd").unwrap();
            stream.write_all(request).unwrap();
            stream
        };
        let strangers = |uid: u32, may_wait: usize| {
            as_user(uid, || {
                let mut all: Vec<UnixStream> = (0..20).map(|_| ask(b"settle\n")).collect();
                for stream in &mut all[may_wait..] {
                    assert_eq!(read_all(stream), "error: no: too many clients wait\n");
                }
                assert!(read_all(&mut ask(b"status\n")).starts_with("state "));
                all.truncate(may_wait);
                all
            })
        };
        let mut waiting: Vec<UnixStream> = Vec::new();
        for (uid, may_wait) in [(65530, 16), (65531, 16), (65532, 16), (65533, 16), (65534, 0)] {
            waiting.extend(strangers(uid, may_wait));
        }
        // They keep out nobody to whom plugd belongs.
        let own = ask(b"settle\n");
        daemon.release("gate");
        for mut stream in waiting.into_iter().chain([own]) {
            assert_eq!(read_all(&mut stream), "ok\n");
        }
    });
}

#[test]
fn a_second_daemon_of_the_same_name_is_told_who_has_it() {
    let host = Host::start(&[], HOLD);
    let said = Plugd::new().args(["run", "--control", &host.address, "true"]).finish();
    assert_eq!(said.code, Some(111), "{said:?}");
    let expected = format!("the address is in use by pid {} of user", host.daemon.pid());
    assert!(said.stderr.contains(&expected), "{said:?}");
    assert_eq!(host.status()["state"], "idle");
}

/// As a child has plugd's socket open until it executes its program, which goes on if
/// plugd is killed just then. It is not waited for without end.
#[test]
fn who_has_just_been_killed_does_not_have_the_address() {
    for code in [Some(0), Some(111)] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("socket").to_str().unwrap().to_owned();
        let name = format!("@plugd-test-{}-{}", std::process::id(), unique());
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

#[test]
fn replies_are_json_where_that_is_wanted() {
    let host = Host::start(&[], HOLD);
    host.event(1);
    host.daemon.wait_for_lines("out", 1);
    for (args, code, outcome, text) in [
        (&["log-level"][..], 0, "ok", "info"),
        (&["pause"], 0, "ok", "paused"),
        (&["settle", "--timeout", "0"], 1, "no", "timed out"),
        (&["wait", "--timeout", "0", "A=1"], 1, "no", "timed out"),
    ] {
        let said = host.say(&[args, &["--json"]].concat());
        assert_eq!((said.code, &*said.stderr), (Some(code), ""), "{said:?}");
        let value: Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!((&value["outcome"], &value["text"]), (&outcome.into(), &text.into()));
        assert_eq!(host.ask(&format!("{} --json\n", args.join(" "))), said.stdout);
        let quiet = host.say(&[args, &["--json", "--quiet"]].concat());
        assert_eq!((quiet.code, &*quiet.stdout, &*quiet.stderr), (Some(code), "", ""));
    }
}

/// Metrics that are cut off must not be taken for all.
#[test]
fn a_reply_that_cannot_be_printed_is_an_error() {
    let host = Host::start(&[], HOLD);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let status = ["status", "--openmetrics", "--control", &host.address];
    let said = Plugd::new().args(status).stdout(full).finish();
    assert_eq!(said.code, Some(111), "{said:?}");
    assert!(said.stderr.contains("cannot print the reply: No space left"), "{said:?}");
}

#[test]
fn wrong_usage_is_told_without_a_daemon() {
    // Escaped, it is too long for a request.
    let long = format!("A={}", "é".repeat(600));
    for args in [
        &["wait", &long][..],
        &["settle", "x"],
        &["status", "--removed"],
        &["wait"],
        &["wait", "x"],
        &["log-level", "loud"],
        &["pause", "--timeout", "x"],
        &["stop", "--control", "none"],
        &["stop", "--control", "@"],
        &["run", "--control-mode", "8", "true"],
        &["run", "--notify-fd", "x", "true"],
    ] {
        let said = Plugd::new().args(args).finish();
        assert_eq!(said.code, Some(100), "{args:?}: {said:?}");
    }
    for name in [
        "status",
        "settle",
        "wait",
        "pause",
        "resume",
        "reload",
        "rescan",
        "stop",
        "update",
        "log-level",
    ] {
        let said = Plugd::new().args([name, "--help"]).finish();
        assert_eq!(said.code, Some(0), "{name}");
        assert!(said.stdout.contains(&format!("Usage: plugd {name} ")), "{name}: {}", said.stdout);
        let said = say("@plugd-test-nobody", &[name, "/dev/x"][..1 + usize::from(name == "wait")]);
        assert_eq!(said.code, Some(111), "{name}: {said:?}");
    }
}

#[test]
fn a_daemon_that_does_not_answer_is_not_waited_for() {
    let host = Host::start(&[], HOLD);
    host.daemon.signal(Signal::STOP);
    let said = host.say(&["status", "--timeout", "0.2"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("timed out"), "{said:?}");
    host.daemon.signal(Signal::CONT);
    assert_eq!(host.status()["state"], "idle");
}

/// It settles only when the effect of the event before it is there.
#[test]
fn settle_is_never_early() {
    ns::inside(|| {
        let daemon = Plugd::new().args(["run", "--"]).sh("echo $N >>$TMP/out").start();
        eventually("it listens", || connect("@plugd"));
        let injector = Injector::new();
        let mut stream = connect("@plugd").unwrap();
        let mut reply = [0; "plugd/1 ok 0\n".len()];
        for n in 1..=1000 {
            injector.event("add", "/x", &[&format!("N={n}")]);
            stream.write_all(b"plugd/1 settle\n").unwrap();
            stream.read_exact(&mut reply).unwrap();
            assert_eq!(&reply, b"plugd/1 ok 0\n");
            let lines = daemon.lines("out");
            assert_eq!(lines.last(), Some(&n.to_string()), "round {n}");
        }
    });
}

/// Events come faster than they are acted on, so the queue is never empty.
#[test]
fn settle_is_bounded_under_a_constant_stream() {
    ns::inside(|| {
        let daemon = Plugd::new()
            .args(["run", "--receive-buffer-size", "64K", "--"])
            .sh("echo $N >>$TMP/out")
            .start();
        eventually("it listens", || connect("@plugd"));
        let inode = daemon.netlink().1;
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let injector = Injector::new();
                let mut next = Instant::now();
                // 10 000 a second, which no handler keeps up with: the kernel
                // drops some, which is normal here.
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = injector.send(&uevent("add", "/x", &["N=0"]));
                    next += Duration::from_micros(100);
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            });
            let _end = SetWhenDropped(&done);
            for _ in 0..5 {
                let drops = || NetlinkSocket::find(inode).unwrap().drops;
                let before = drops();
                eventually("the queue is full", || (drops() > before).then_some(()));
                let began = Instant::now();
                let said = say("@plugd", &["settle"]);
                assert_eq!(said.code, Some(0), "{said:?}");
                assert!(began.elapsed() < Duration::from_secs(20));
            }
        });
    });
}

/// The same where events have no SEQNUM, and the socket is always full.
#[test]
fn settle_is_bounded_under_a_constant_stream_without_numbers() {
    for (kind, many) in [(SocketType::SEQPACKET, 50), (SocketType::DGRAM, 5)] {
        settle_without_numbers(kind, many);
    }
}

fn settle_without_numbers(kind: SocketType, many: u32) {
    let host = Host::reading(kind, &[], "echo $N >>$TMP/out");
    let done = std::sync::atomic::AtomicBool::new(false);
    let sent = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1.. {
                if done.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                host.event(n);
                sent.store(n, std::sync::atomic::Ordering::Relaxed);
            }
        });
        let _end = SetWhenDropped(&done);
        let sent = || sent.load(std::sync::atomic::Ordering::Relaxed);
        let acted_on = || u32::try_from(host.daemon.lines("out").len()).unwrap();
        eventually("the socket is full", || (sent() > acted_on() + many).then_some(()));
        for _ in 0..3 {
            let before = sent();
            assert_eq!(host.say(&["settle", "--timeout", "60"]).code, Some(0));
            assert!(acted_on() >= before, "early");
            assert!(sent() > acted_on(), "there was no stream");
        }
    });
    // While nothing is read.
    assert_eq!(host.say(&["settle"]).code, Some(0));
    assert_eq!(host.say(&["pause"]).code, Some(0));
    assert_eq!(host.say(&["settle", "--timeout", "0"]).code, Some(0));
    host.event(0);
    assert_eq!(host.say(&["settle", "--timeout", "0"]).code, Some(1));
}

/// Ends a thread however the test ends.
pub(crate) struct SetWhenDropped<'a>(pub(crate) &'a std::sync::atomic::AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn wait_for_what_is_there() {
    ns::inside_with_sysfs(|| {
        let _daemon = Plugd::new().args(["run", "--"]).sh("true").start();
        eventually("it listens", || connect("@plugd"));
        for device in [
            &["/dev/null"][..],
            &["/dev/pts/ptmx"],
            &["/devices/virtual/net/lo"],
            &["/sys/devices/virtual/net/lo"],
            &["/sys/class/net/lo"],
            &["SUBSYSTEM=net", "INTERFACE=lo"],
            &["--removed", "/dev/nothing"],
            &["--removed", "/devices/virtual/net/nothing"],
            &["--removed", "INTERFACE=nothing"],
        ] {
            let said = say("@plugd", &[&["wait"], device].concat());
            assert_eq!(said.code, Some(0), "{device:?}: {said:?}");
        }
        // While nothing is read, and nothing waits to be.
        assert_eq!(say("@plugd", &["pause"]).code, Some(0));
        for args in [&["settle"][..], &["wait", "/dev/null"], &["wait", "--removed", "/dev/none"]] {
            assert_eq!(say("@plugd", args).code, Some(0), "{args:?} while paused");
        }
    });
}

#[test]
fn wait_for_no_time_tells_what_is_there() {
    ns::inside_with_sysfs(|| {
        let daemon = Plugd::new().args(["run", "--"]).sh("read x <$TMP/gate").start();
        daemon.fifo("gate");
        eventually("it listens", || connect("@plugd"));
        let code =
            |device: &[&str]| say("@plugd", &[&["wait", "--timeout", "0"], device].concat()).code;
        for _ in 0..20 {
            assert_eq!(code(&["INTERFACE=lo"]), Some(0));
            assert_eq!(code(&["--removed", "INTERFACE=nothing"]), Some(0));
        }
        assert_eq!(code(&["INTERFACE=nothing"]), Some(1));
        assert_eq!(code(&["--removed", "INTERFACE=lo"]), Some(1));
        Injector::new().event("add", "/x", &[]);
        daemon.wait_for_child("sh");
        assert_eq!(code(&["INTERFACE=lo"]), Some(1), "not everything is settled");
        daemon.release("gate");
    });
}

/// What tells an event from others tells no device: only an event is waited for.
#[test]
fn wait_for_an_event_is_not_ended_by_a_device() {
    ns::inside_with_sysfs(|| {
        let _daemon = Plugd::new().args(["run", "--"]).sh("true").start();
        eventually("it listens", || connect("@plugd"));
        let injector = Injector::new();
        for (args, event) in [
            (&["--removed", "ACTION=remove"][..], Some(("remove", "A=1"))),
            (&["ACTION=add"], Some(("add", "A=1"))),
            (&["SYNTH_UUID=x"], Some(("change", "SYNTH_UUID=x"))),
            (&["--removed", "SEQNUM=0"], None),
            (&["--removed", "DEVPATH_OLD=/x"], None),
        ] {
            let wait = [&["wait", "INTERFACE=lo"], args].concat();
            let short = [&wait[..], &["--timeout", "0.2"]].concat();
            assert_eq!(say("@plugd", &short).code, Some(1), "{args:?}");
            let Some((action, field)) = event else { continue };
            let mut waiting = begin("@plugd", &wait);
            let status = eventually("it ends", || {
                injector.event(action, "/x", &["INTERFACE=lo", field]);
                waiting.try_wait().unwrap()
            });
            assert_eq!(status.code(), Some(0), "{args:?}");
        }
    });
}

/// The command needs two connections, one to wait on, and one to know when to look.
#[test]
fn wait_by_variables_gets_by_with_room_for_one_client() {
    ns::inside_with_sysfs(|| {
        let plugd = Plugd::new().args(["run", "--"]).prelude("ulimit -n 40");
        let daemon = plugd.sh("true").start();
        eventually("it listens", || connect("@plugd"));
        let mut others = Vec::new();
        let mut full = || {
            let mut other = connect("@plugd").unwrap();
            let _ = other.write_all(b"plugd/1 wait A=1\n");
            other.set_nonblocking(true).unwrap();
            others.push(other);
            eventually("it is accepted or refused", || {
                let refused = others.last_mut().unwrap().read(&mut [0; 100]).is_ok();
                (refused || clients(&daemon) == others.len()).then_some(refused)
            })
        };
        while !full() {}
        // The last one was refused.
        others.truncate(others.len() - 2);
        let only = |others: &[UnixStream]| {
            eventually("there is room for one", || {
                (clients(&daemon) == others.len()).then_some(())
            });
        };
        let wait = ["wait", "INTERFACE=lo", "--timeout"];
        for timeout in ["0", "2"] {
            only(&others);
            let said = say("@plugd", &[&wait[..], &[timeout]].concat());
            assert_eq!(said.code, Some(0), "{said:?}");
        }
        only(&others);
        let waiting = begin("@plugd", &[&wait[..], &["1000"]].concat());
        // It looks again for room.
        others.pop();
        assert_eq!(end(waiting), Some(0));
    });
}

#[test]
fn wait_for_what_comes_and_goes() {
    ns::inside_with_sysfs(|| {
        let daemon = Plugd::new()
            .args(["run", "--"])
            .sh("read x <$TMP/gate; echo $ACTION $DEVPATH >>$TMP/out")
            .start();
        daemon.fifo("gate");
        eventually("it listens", || connect("@plugd"));
        let path = "/devices/virtual/net/br0";
        for (want, act) in [
            (&["wait", path][..], "add"),
            (&["wait", "--removed", path], "delete"),
            (&["wait", "INTERFACE=br0", "SUBSYSTEM=net"], "add"),
            (&["wait", "--removed", "INTERFACE=br0"], "delete"),
        ] {
            let before = daemon.lines("out").len();
            if act == "add" {
                real_device("br0");
            } else {
                assert!(
                    Command::new("ip").args(["link", "delete", "br0"]).status().unwrap().success()
                );
            }
            // It is there, or gone, but was not acted on yet.
            let waiting = begin("@plugd", want);
            let said = say("@plugd", &[want, &["--timeout", "0"]].concat());
            assert_eq!(said.code, Some(1), "{want:?}: {said:?}");
            assert_eq!(daemon.lines("out").len(), before);
            // One for the device, two for its queues.
            for n in 1..=3 {
                daemon.release("gate");
                daemon.wait_for_lines("out", before + n);
            }
            assert_eq!(end(waiting), Some(0), "{want:?}");
            let action = if act == "add" { "add" } else { "remove" };
            assert!(daemon.lines("out").contains(&format!("{action} {path}")));
            assert_eq!(say("@plugd", &["settle"]).code, Some(0));
        }
    });
}

#[test]
fn wait_for_what_never_comes() {
    let host = Host::start(&[], "true");
    for device in ["/dev/nothing", "/devices/nothing", "NOTHING=1"] {
        let said = host.say(&["wait", "--timeout", "0.3", device]);
        assert_eq!((said.code, &*said.stderr), (Some(1), "plugd: wait: timed out\n"), "{device}");
    }
    // Nor with other events all the time.
    let waiting = begin(&host.address, &["wait", "--timeout", "1", "NOTHING=1"]);
    host.event(1);
    assert_eq!(end(waiting), Some(1));
}

/// A node that appears beside its own event is found when the queue is empty.
#[test]
fn wait_for_a_link_that_a_handler_makes() {
    ns::inside_with_sysfs(|| {
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/dev"]).status().unwrap();
        assert!(mounted.success());
        rustix::fs::mknodat(
            rustix::fs::CWD,
            "/dev/null",
            rustix::fs::FileType::RegularFile,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let _daemon = Plugd::new().args(["run", "--"]).sh("ln -s x /dev/link").start();
        eventually("it listens", || connect("@plugd"));
        let waiting = begin("@plugd", &["wait", "/dev/link"]);
        Injector::new().event("add", "/x", &["DEVNAME=x"]);
        assert_eq!(end(waiting), Some(0));
    });
}

/// The same, but the queue is never empty again, as events come faster than they are
/// acted on.
#[test]
fn wait_for_a_link_that_a_rule_makes_under_a_constant_stream() {
    ns::inside_with_sysfs(|| {
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/dev"]).status().unwrap();
        assert!(mounted.success());
        let null = rustix::fs::FileType::RegularFile;
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, "/dev/null", null, mode, 0).unwrap();
        let rules = tempfile::tempdir().unwrap();
        let conf = rules.path().join("mdev.conf");
        let rule = "late 0:0 600 @ln -s x /dev/link\n.* 0:0 600 @echo $N >>$TMP/out\n";
        std::fs::write(&conf, rule).unwrap();
        let plugd = Plugd::new().args(["run", "--receive-buffer-size", "64K", "--conf"]);
        let daemon = plugd.args([&conf]).start();
        eventually("it listens", || connect("@plugd"));
        let inode = daemon.netlink().1;
        let queued = || NetlinkSocket::find(inode).unwrap().queued;
        let full = || queued() >= 32 * 1024;
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let injector = Injector::new();
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    if full() {
                        std::thread::sleep(Duration::from_micros(100));
                    } else {
                        injector.event("add", "/x", &["N=1", "DEVNAME=x"]);
                    }
                }
            });
            let _end = SetWhenDropped(&done);
            eventually("the queue is full", || full().then_some(()));
            let waiting = begin("@plugd", &["wait", "/dev/link"]);
            eventually("it waits", || (clients(&daemon) == 1).then_some(()));
            // It is looked for once more when all is settled.
            for _ in 0..2 {
                assert_eq!(say("@plugd", &["settle"]).code, Some(0));
            }
            Injector::new().event("add", "/late", &["DEVNAME=late"]);
            assert_eq!(end(waiting), Some(0));
            assert!(queued() > 0, "there was no stream");
        });
    });
}

#[test]
fn an_idle_daemon_makes_no_system_calls() {
    let host = Host::start(&[], "true");
    host.event(1);
    assert_eq!(host.say(&["settle"]).code, Some(0));
    makes_no_system_calls(&host.daemon, "an_idle_daemon_makes_no_system_calls");
}

/// With all that there can be: the kernel's socket, rules, a state file, devices that
/// were found, and one that came.
#[test]
fn an_idle_device_manager_makes_no_system_calls() {
    ns::inside_with_sysfs(|| {
        let dir = tempfile::tempdir().unwrap();
        let (conf, dev, state) =
            (dir.path().join("mdev.conf"), dir.path().join("dev"), dir.path().join("state"));
        std::fs::write(&conf, "-SUBSYSTEM=net;.* 0:0 600 *echo $ACTION >>$TMP/out\n").unwrap();
        std::fs::create_dir(&dev).unwrap();
        let plugd = Plugd::new().args(["run", "--coldplug", "--state"]).args([&state]);
        let daemon = plugd.args(["--conf"]).args([&conf]).args(["--dev"]).args([&dev]).start();
        eventually("it listens", || connect("@plugd"));
        real_device("br0");
        assert_eq!(say("@plugd", &["wait", "/sys/class/net/br0"]).code, Some(0));
        assert_eq!(say("@plugd", &["settle"]).code, Some(0));
        assert!(daemon.lines("out").iter().any(|line| line == "add"), "{:?}", daemon.log());
        assert!(std::fs::metadata(&state).unwrap().len() > 0);
        makes_no_system_calls(&daemon, "an_idle_device_manager_makes_no_system_calls");
        assert_eq!(status("@plugd")["state"], "idle");
    });
}

/// For 10 seconds, once it has looked up what it had put off.
fn makes_no_system_calls(daemon: &Daemon, test: &str) {
    if Command::new("strace").arg("-V").output().is_err() {
        return skip("tools", test, "there is no strace");
    }
    let file = format!("/proc/{}/syscall", daemon.pid());
    if let Err(error) = std::fs::read_to_string(&file) {
        return skip("tools", test, &format!("{file}: {error}"));
    }
    eventually("it waits without a deadline", || {
        // The number of the system call, and what it was called with (proc(5)).
        let call = std::fs::read_to_string(&file).unwrap();
        let timeout = call.split_whitespace().nth(4)?;
        ["0xffffffff", "0xffffffffffffffff"].contains(&timeout).then_some(())
    });
    let trace = daemon.path("trace");
    let mut strace = Command::new("strace")
        .args(["-q", "-p", &daemon.pid().to_string(), "-o"])
        .arg(&trace)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let attached = eventually("strace is attached, or cannot be", || {
        if strace.try_wait().unwrap().is_some() {
            return Some(false);
        }
        (daemon.status("TracerPid") != "0").then_some(true)
    });
    if !attached {
        return skip("tools", test, "strace cannot attach");
    }
    // What must not happen cannot be awaited.
    std::thread::sleep(Duration::from_secs(10));
    rustix::process::kill_process(rustix::process::Pid::from_child(&strace), Signal::INT).unwrap();
    ns::wait(&mut strace, PATIENCE).unwrap();
    let trace = std::fs::read_to_string(trace).unwrap();
    let calls: Vec<&str> = trace.lines().filter(|line| !line.starts_with("epoll_wait(")).collect();
    assert!(calls.is_empty(), "{calls:?}");
    assert!(trace.lines().count() <= 1, "{trace}");
}
