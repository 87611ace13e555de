//! How much there may be of something, and who may how much.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;
use crate::harness::inject::SetWhenDropped;

/// Lets this process have 4096 files open; if it may not, says that the test is skipped.
fn may_open_many(test: &str) -> bool {
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < 4096) {
        skip("root", test, "the limit of open files is too low");
        return false;
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(4096), ..limit }).unwrap();
    true
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
    if !may_open_many("a_thousand_hostile_clients") {
        return;
    }
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
fn a_thousand_idle_clients_and_a_busy_daemon() {
    if !may_open_many("a_thousand_idle_clients") {
        return;
    }
    // The daemon starts with the usual one, and gets by with it until it cannot.
    let host = Host::set_up(SocketType::SEQPACKET, |plugd| {
        plugd.prelude("ulimit -Sn 1024").sh("echo $(ulimit -Sn) >>$TMP/out")
    });
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

/// Under load: ten clients ask all the time while events come.
#[test]
fn status_is_prompt_under_full_load() {
    ns::inside(|| {
        let daemon = Plugd::new().args(["run", "--"]).sh("exit 0").start();
        eventually("it listens", || connect("@plugd"));
        let injector = Injector::new();
        let inode = daemon.netlink().1;
        let done = AtomicBool::new(false);
        let mut times: Vec<Duration> = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Relaxed) {
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
fn with_few_descriptors_there_are_few_clients() {
    for limit in [16, 32, 33] {
        let host = Host::set_up(SocketType::SEQPACKET, |plugd| {
            plugd.prelude(&format!("ulimit -n {limit}")).sh("echo $N >>$TMP/out")
        });
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
    let host = Host::set_up(SocketType::SEQPACKET, |plugd| {
        // Descriptors that plugd does not know to be taken.
        let null = || std::fs::File::open("/dev/null").unwrap();
        let plugd = (10..40).fold(plugd, |plugd, fd| plugd.fd(null(), fd));
        plugd.prelude("ulimit -n 50").sh("true")
    });
    let mut clients = Vec::new();
    eventually("it runs out of descriptors", || {
        clients.push(host.connect());
        let error = "cannot accept a client of the control socket";
        (!host.daemon.logged(error).is_empty()).then_some(())
    });
    let mut waiting = host.connect();
    waiting.write_all(b"log-level\n").unwrap();
    // Nothing is left to remind it of.
    drop(clients);
    assert_eq!(read_all(&mut waiting), "info\n");
}

/// A client that takes no more than a megabyte would take it for no answer.
#[test]
fn a_reload_tells_of_the_first_mistakes_only() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("mdev.conf");
    std::fs::write(&conf, "x 0:0 600 !\n").unwrap();
    let host = Host::set_up(SocketType::SEQPACKET, |plugd| {
        plugd.args(["--dev"]).args([dir.path()]).args(["--conf"]).args([&conf])
    });

    std::fs::write(&conf, "( 0:0 600\n".repeat(40_000)).unwrap();
    let said = host.say(&["reload"]);
    assert_eq!(said.code, Some(1), "{:.1000}", said.stderr);
    let place = |line: u32| format!("mdev.conf:{line}:");
    assert!(said.stderr.contains(&place(100)), "{:.1000}", said.stderr);
    assert!(!said.stderr.contains(&place(101)));
    assert!(said.stderr.ends_with("\nand more\n"));
    host.daemon.wait_for_log("and more");
    host.daemon.wait_for_log("the rules in force stay in force");
    assert!(host.daemon.log().len() < 400);

    // A single line of two megabytes.
    std::fs::write(&conf, format!("( 0:0 600 {}\n", "x".repeat(2 << 20))).unwrap();
    let said = host.say(&["reload"]);
    assert_eq!(said.code, Some(1), "{:.1000}", said.stderr);
    assert!(said.stderr.contains(&place(1)), "{:.1000}", said.stderr);
}

/// The oldest who say nothing make room for others.
#[test]
fn there_are_2048_clients_at_most() {
    const CLIENTS: usize = 2048;
    // Other tests need many too.
    ns::alone(|| {
        if !may_open_many("there_are_2048_clients_at_most") {
            return;
        }
        let host = Host::start(&[], HOLD);
        let sockets = || {
            let fds = std::fs::read_dir(format!("/proc/{}/fd", host.daemon.pid())).unwrap();
            let links = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
            links.filter(|link| link.as_os_str().as_encoded_bytes().starts_with(b"socket:")).count()
        };
        let others = sockets();
        // Who waits for something stays, and so does who comes last.
        let mut waiting = host.connect();
        host.event(1);
        host.daemon.wait_for_lines("out", 1);
        waiting.write_all(b"settle\n").unwrap();
        let mut clients: Vec<UnixStream> = (0..CLIENTS - 1).map(|_| host.connect()).collect();
        eventually("all are accepted", || (sockets() == others + CLIENTS).then_some(()));
        clients.extend((0..500).map(|_| host.connect()));
        // When the last one is answered, all are accepted.
        let mut last = clients.pop().unwrap();
        last.write_all(b"log-level\n").unwrap();
        assert_eq!(read_all(&mut last), "info\n");
        assert_eq!(sockets(), others + CLIENTS - 1);
        for (index, client) in clients.iter_mut().enumerate() {
            let _ = client.write_all(b"log-level\n");
            let expected = if index < 500 { "" } else { "info\n" };
            assert_eq!(read_all_of_broken(client), expected, "{index}");
        }
        host.daemon.release("gate");
        assert_eq!(read_all(&mut waiting), "ok\n");
    });
}

/// Whoever comes then, root too, waits for no more than those.
#[test]
fn few_wait_to_be_accepted() {
    let host = Host::start(&[], HOLD);
    host.daemon.signal(Signal::STOP);
    let name = host.address.strip_prefix('@').unwrap();
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let mut waiting = Vec::new();
    let refused = loop {
        match mio::net::UnixStream::connect_addr(&address) {
            Ok(stream) => waiting.push(stream),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock);
    assert!((100..200).contains(&waiting.len()), "{}", waiting.len());
    // One who waits for that is not refused.
    let late = begin(&host.address, &["status"]);
    host.daemon.signal(Signal::CONT);
    assert_eq!(end(late), Some(0));
}

/// Though each of their clients has something to hear, and is not silent.
#[test]
fn a_stranger_keeps_out_no_other() {
    ns::inside_as_root(|| {
        let plugd = Plugd::new().args(["run", "--control-mode", "0666", "--"]);
        let daemon = plugd.prelude("ulimit -n 64").sh("true").start();
        eventually("it listens", || connect("@plugd"));
        let crowd = as_user(65533, || {
            let request = [b"plugd/1 ", &[b'x'; 4000][..], b"\n"].concat().repeat(50);
            let crowd: Vec<UnixStream> = (0..16).map(|_| connect("@plugd").unwrap()).collect();
            for mut client in &crowd {
                client.set_nonblocking(true).unwrap();
                let _ = client.write_all(&request);
            }
            crowd
        });
        let log_level = || {
            let mut stream = connect("@plugd").unwrap();
            stream.write_all(b"log-level\n").unwrap();
            read_all_of_broken(&mut stream)
        };
        eventually("they are deaf", || {
            let answer = as_user(65533, log_level);
            (answer == "error: no: too many clients\n").then_some(())
        });
        assert_eq!(as_user(65534, log_level), "info\n");
        assert_eq!(log_level(), "info\n");
        drop((crowd, daemon));
    });
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
