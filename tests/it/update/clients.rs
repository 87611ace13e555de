//! Who is connected meanwhile, and who asked for it.

use std::io::Write;

use super::*;

#[test]
fn clients_stay_connected_and_are_answered() {
    ns::alone(|| {
        let copy = Copy::new();
        let (daemon, events) = copy.start(&[], "echo $$ >>$TMP/out; read x <$TMP/gate");
        unix::send(&events, &uevent("add", "/x", &[]));
        daemon.wait_for_lines("out", 1);
        let ask = |text: &[u8]| {
            let mut stream = connect().unwrap();
            stream.write_all(text).unwrap();
            stream
        };
        let mut settling = ask(b"plugd/1 settle\nplugd/1 log-level\n");
        let mut half = ask(b"log-l");
        let mut idle = ask(b"");
        let said = say(&["log-level", "debug"]);
        assert_eq!(said.code, Some(0), "{said:?}");
        for _ in 0..2 {
            copy.replace();
            update();
        }
        half.write_all(b"evel\n").unwrap();
        idle.write_all(b"log-level\n").unwrap();
        for stream in [&mut half, &mut idle] {
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            assert_eq!(text, "debug\n");
        }
        let mut text = [0; "plugd/1 ok 0\nplugd/1 ok 6\ndebug\n".len()];
        settling.set_nonblocking(true).unwrap();
        assert!(settling.read(&mut text).is_err(), "settled early");
        settling.set_nonblocking(false).unwrap();
        daemon.release("gate");
        settling.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"plugd/1 ok 0\nplugd/1 ok 6\ndebug\n");
    });
}

/// As `printf settle | socat - ABSTRACT-CONNECT:plugd` does it: nothing more will be
/// said, and the end of the connection is the reply.
#[test]
fn clients_that_say_no_more_are_answered_when_it_is_time() {
    ns::alone(|| {
        let copy = Copy::new();
        let (daemon, events) = copy.start(&[], "echo $N >>$TMP/out; read x <$TMP/gate");
        unix::send(&events, &uevent("add", "/x", &["N=1"]));
        daemon.wait_for_lines("out", 1);
        let requests =
            ["settle", "settle\n", "plugd/1 settle", "plugd/1 settle\n", "wait A=1 --timeout 1000"];
        let mut clients = requests.map(|request| {
            let mut stream = connect().unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            (request, stream)
        });
        for _ in 0..2 {
            update();
            for (request, stream) in &mut clients {
                stream.set_nonblocking(true).unwrap();
                let error = stream.read(&mut [0]).map_err(|error| error.kind());
                assert_eq!(error, Err(std::io::ErrorKind::WouldBlock), "{request:?}");
                stream.set_nonblocking(false).unwrap();
            }
        }
        unix::send(&events, &uevent("add", "/x", &["N=2", "A=1"]));
        daemon.release("gate");
        daemon.release("gate");
        for (request, stream) in &mut clients {
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            let expected = if request.starts_with("plugd/1") { "plugd/1 ok 0\n" } else { "ok\n" };
            assert_eq!(text, expected, "{request:?}");
        }
    });
}

/// However often there is an update.
#[test]
fn a_wait_that_is_over_is_over() {
    ns::alone(|| {
        let copy = Copy::new();
        let (_daemon, _events) = copy.start(&[], "true");
        let began = Instant::now();
        let mut waiting = connect().unwrap();
        waiting.write_all(b"wait --timeout 3 A=1\n").unwrap();
        waiting.set_nonblocking(true).unwrap();
        let mut text = String::new();
        eventually("it is answered", || {
            update();
            waiting.read_to_string(&mut text).ok()
        });
        assert_eq!(text, "error: no: timed out\n");
        assert!(began.elapsed() >= Duration::from_secs(3), "too early");
    });
}

/// The new plugd would ask for it again.
#[test]
fn what_a_client_asked_that_hung_up_is_forgotten() {
    ns::alone(|| {
        let copy = Copy::new();
        let (daemon, events) = copy.start(&[], "echo $N >>$TMP/out; read x <$TMP/gate");
        unix::send(&events, &uevent("add", "/x", &["N=1"]));
        daemon.wait_for_lines("out", 1);
        let mut clients = [(); 3].map(|()| connect().unwrap());
        clients.iter_mut().for_each(|client| client.write_all(b"reload\n").unwrap());
        daemon.wait_for_logs("reload from pid", 3);
        // When the decision is made there is much time.
        let slow = "memfd_create:delay_enter=5000000:when=2";
        let Some(strace) = Strace::attach(&daemon, slow) else { return };
        daemon.signal(Signal::USR2);
        daemon.wait_for_log("updating to version");
        drop(clients);
        daemon.wait_for_log("updated from version");
        drop(strace);
        assert_eq!(say(&["status"]).code, Some(0));
        assert_eq!(daemon.logged("reload from pid").len(), 3, "{:?}", daemon.log());
        daemon.release("gate");
    });
}
