//! The control socket: every command, in every state, whoever asks.

mod address;
mod idle;
mod limits;
mod replies;
mod settling;
mod states;
mod users;
mod waiting;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::SocketType;
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::daemon::{Daemon, Finished, Plugd};
use crate::harness::inject::{Injector, uevent};
use crate::harness::{PATIENCE, PLUGD, eventually, ns, skip, unix};

const HOLD: &str = "echo $N >>$TMP/out; read x <$TMP/gate; echo done >>$TMP/out";

/// A daemon that reads an AF_UNIX socket, with a control socket of its own.
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
        let host = Self::set_up(kind, |plugd| plugd.args(options).sh(script));
        host.daemon.fifo("gate");
        host
    }

    /// With options, a program and whatever else it is given.
    fn set_up(kind: SocketType, set_up: impl FnOnce(Plugd) -> Plugd) -> Self {
        let (events, receiver) = unix::pair(kind);
        let address = address();
        let plugd = Plugd::new().args(["run", "--fd", "3", "--control", &address]).fd(receiver, 3);
        let host = Self { daemon: set_up(plugd).start(), events, address };
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

/// One that no other test has.
fn address() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("@plugd-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
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

/// The daemon closes without reading all that was said: an error may follow.
fn read_all_of_broken(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 1000];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8(bytes).unwrap()
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
