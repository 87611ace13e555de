//! How much there may be of something, and who may how much.

use rustix::process::{Gid, Uid};

use super::*;

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

/// A client that takes no more than a megabyte would take it for no answer.
#[test]
fn a_reload_tells_of_the_first_mistakes_only() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("mdev.conf");
    std::fs::write(&conf, "x 0:0 600 !\n").unwrap();
    let (events, receiver) = unix::pair(SocketType::SEQPACKET);
    let address = format!("@plugd-test-{}-{}", std::process::id(), unique());
    let plugd = Plugd::new().args(["run", "--fd", "3", "--control", &address, "--dev"]);
    let plugd = plugd.args([dir.path()]).args(["--conf"]).args([&conf]).fd(receiver, 3);
    let host = Host { daemon: plugd.start(), events, address };
    host.wait_until_it_listens();

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
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < 4096) {
        let why = "the limit of open files is too low";
        return skip("root", "there_are_2048_clients_at_most", why);
    }
    // Other tests need many too.
    ns::alone(|| {
        setrlimit(Resource::Nofile, Rlimit { current: Some(4096), ..limit }).unwrap();
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
