//! How soon the daemon answers while it has much to do, and what those cost that wait.
//!
//! `cargo bench --bench control`. The floor is a program that does nothing but echo on
//! an AF_UNIX socket, asked by as many clients in turns with the daemon, under the same
//! load. Wants network namespaces, and `musl-gcc` or `cc`; to measure what others than root
//! cost, root.
//!
//! The static binary is built and measured; where its target is not installed,
//! or `PLUGD_BINARY` names another one, that.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "it is run by hand, and prints"
)]

mod common;
#[path = "common/compile.rs"]
mod compile;
#[path = "common/injector.rs"]
mod injector;
#[path = "common/memory.rs"]
mod memory;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use mio::net::{UnixListener as Listener, UnixStream as Stream};
use mio::{Events, Interest, Poll, Token};
use plugd::netlink::Source;

use common::{Outcome, listener, queued, verdict};
use compile::compile_static;
use injector::Injector;
use memory::Memory;

const CLIENTS: usize = 10;
const QUESTIONS: usize = 1000;
const SETTLES: usize = 200;
const RATE: u32 = 10_000;
const DEVICES: usize = 30_000;
const SCANS: usize = 3;
const WAITERS: usize = 1000;
const EVENTS: usize = 20_000;

/// The target, in milliseconds.
const LATENCY: f64 = 10.0;

const PLUGD: &str = "plugd-bench";
const ECHO: &str = "plugd-bench-echo";
/// Set in the process that is the floor.
const IS_ECHO: &str = "PLUGD_BENCH_ECHO";
const STATUS: &[u8] = b"plugd/1 status\n";

fn main() -> ExitCode {
    if std::env::var_os(IS_ECHO).is_some() {
        return common::exit(echo());
    }
    common::run("-nm", Some("-Urnm"), measure)
}

fn measure(plugd: PathBuf) -> Outcome<()> {
    let bench = Bench::prepare(plugd)?;
    println!("{}", bench.plugd.display());
    bench.programs()?;
    bench.strangers()?;
    bench.stream()?;
    bench.scans()?;
    bench.waiters()
}

struct Bench {
    plugd: PathBuf,
    dir: tempfile::TempDir,
    /// How much may be queued for the daemon, in bytes as the kernel counts them.
    room: usize,
    _echo: Killed,
}

/// A process that is killed in the end.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Killed {
    fn tell_memory(&self) -> Outcome<()> {
        let Memory { resident, anonymous } = memory::memory(self.0.id())?;
        println!("  {resident:8}  KiB RSS; {anonymous} KiB of it anonymous");
        Ok(())
    }
}

impl Bench {
    fn prepare(plugd: PathBuf) -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        compile_static("handler.c", &dir.path().join("handler"))?;
        fs::create_dir(dir.path().join("dev"))?;
        fs::write(dir.path().join("mdev.conf"), "[[:alpha:]]+[0-9]+ 0:0 600 !\n")?;
        let (_, buffer) = Source::open_kernel(128 << 20)?;
        let echo = Command::new(std::env::current_exe()?).env(IS_ECHO, "1").spawn()?;
        let echo = Killed(echo);
        await_some(|| connect(ECHO).ok())?;
        Ok(Self { plugd, dir, room: buffer.got / 2, _echo: echo })
    }

    /// Starts plugd, with rules if there is no program, and waits until it answers.
    fn start(&self, sys: Option<&Path>, program: Option<&str>) -> Outcome<Killed> {
        let mut command = Command::new(&self.plugd);
        command.args(["run", "--control", &format!("@{PLUGD}"), "--state", "none"]);
        if let Some(sys) = sys {
            command.arg("--sys").arg(sys);
        }
        match program {
            Some(program) => command.arg("--").arg(self.dir.path().join(program)),
            None => {
                command.arg("--conf").arg(self.dir.path().join("mdev.conf"));
                command.arg("--dev").arg(self.dir.path().join("dev"))
            }
        };
        let log = File::create(self.dir.path().join("log"))?;
        let plugd = Killed(command.env_clear().stdin(Stdio::null()).stderr(log).spawn()?);
        // A program of the one before, if that was killed before it began, is no answer.
        await_some(|| ask(&mut connect(PLUGD).ok()?, STATUS).ok())?;
        if listener()?.is_none() {
            return Err("plugd does not listen".into());
        }
        Ok(plugd)
    }

    /// Sends events as fast as they are taken, or at a rate, until `done`. Returns how many
    /// a second that were.
    fn send(&self, rate: Option<u32>, done: &AtomicBool) -> Outcome<f64> {
        let injector = Injector::new()?;
        let event = event(0);
        let began = Instant::now();
        let mut sent = 0;
        while !done.load(Relaxed) {
            match rate {
                Some(rate) => {
                    let due = began + Duration::from_secs(1) * sent / rate;
                    sleep(due.saturating_duration_since(Instant::now()));
                }
                None if sent % 16 == 0 => {
                    while queued()? > self.room && !done.load(Relaxed) {
                        sleep(Duration::from_micros(200));
                    }
                }
                None => {}
            }
            injector.send(&event)?;
            sent += 1;
        }
        Ok(f64::from(sent) / began.elapsed().as_secs_f64())
    }

    fn programs(&self) -> Outcome<()> {
        println!("\nstatus, {CLIENTS} clients, while programs run all the time");
        let plugd = self.start(None, Some("handler"))?;
        self.under_load()?;
        drop(plugd);
        println!("\nstatus, {CLIENTS} clients, while rules are applied all the time");
        let _plugd = self.start(None, None)?;
        self.under_load()
    }

    fn under_load(&self) -> Outcome<()> {
        let done = AtomicBool::new(false);
        scope(|scope| {
            let load = scope.spawn(|| self.send(None, &done).map_err(|error| error.to_string()));
            let asked = || -> Outcome<()> {
                let (mut floor, mut times) = (Vec::new(), Vec::new());
                for _ in 0..5 {
                    floor.append(&mut ask_all(ECHO, QUESTIONS / 5)?);
                    times.append(&mut ask_all(PLUGD, QUESTIONS / 5)?);
                }
                told("echo", floor);
                verdict(told("plugd", times), LATENCY, "ms, p99");
                Ok(())
            };
            let asked = asked();
            done.store(true, Relaxed);
            let rate = load.join().unwrap()?;
            println!("  {rate:8.0}  events a second sent");
            asked
        })
    }

    /// Another user connects without end.
    fn strangers(&self) -> Outcome<()> {
        if !rustix::process::geteuid().is_root() {
            println!("\nNOTE: only root can tell what other users cost");
            return Ok(());
        }
        for (what, program) in [("programs run", Some("handler")), ("rules are applied", None)] {
            println!("\nstatus, on a new connection each, while {what} all the time");
            let _plugd = self.start(None, program)?;
            for (flood, says) in [
                ("no others", None),
                ("others connect and go", Some(&b""[..])),
                ("others ask", Some(STATUS)),
            ] {
                let done = AtomicBool::new(false);
                let (rate, connected) = scope(|scope| -> Outcome<(f64, u32)> {
                    let load = scope.spawn(|| self.send(None, &done).map_err(|e| e.to_string()));
                    let flooding =
                        says.map(|says| scope.spawn(|| connect_as_stranger(says, &done)));
                    let times: Outcome<Vec<Duration>> = (0..QUESTIONS)
                        .map(|_| {
                            let began = Instant::now();
                            ask(&mut connect(PLUGD)?, STATUS)?;
                            Ok(began.elapsed())
                        })
                        .collect();
                    done.store(true, Relaxed);
                    let connected = flooding.map_or(0, |flooding| flooding.join().unwrap());
                    let rate = load.join().unwrap()?;
                    verdict(told("plugd", times?), LATENCY, "ms, p99");
                    Ok((rate, connected))
                })?;
                println!("  {rate:8.0}  events a second sent; {connected} connections; {flood}");
            }
        }
        Ok(())
    }

    fn stream(&self) -> Outcome<()> {
        println!("\nsettle, {SETTLES} times, at {RATE} events a second wanted");
        let _plugd = self.start(None, None)?;
        let done = AtomicBool::new(false);
        let (times, rate) = scope(|scope| {
            let load = scope.spawn(|| self.send(Some(RATE), &done).map_err(|e| e.to_string()));
            let mut stream = connect(PLUGD).unwrap();
            let times: Outcome<Vec<Duration>> =
                (0..SETTLES).map(|_| ask(&mut stream, b"plugd/1 settle\n")).collect();
            done.store(true, Relaxed);
            (times, load.join().unwrap())
        });
        told("settle", times?);
        println!("  {:8.0}  events a second really", rate?);
        Ok(())
    }

    /// While all devices are looked for, and acted on.
    fn scans(&self) -> Outcome<()> {
        let sys = self.dir.path().join("sys");
        let class = sys.join("class/tty");
        fs::create_dir_all(&sys)?;
        let mount = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&sys).status()?;
        if !mount.success() {
            return Err(format!("mount: {mount}").into());
        }
        fs::create_dir_all(&class)?;
        for n in 0..DEVICES {
            let device = format!("devices/pci0000:00/0000:00:1c.0/0000:02:00.0/tty/tty{n}");
            fs::create_dir_all(sys.join(&device))?;
            let uevent = format!("MAJOR=4\nMINOR={n}\nDEVNAME=tty{n}\n");
            fs::write(sys.join(&device).join("uevent"), uevent)?;
            symlink(format!("../../{device}"), class.join(format!("tty{n}")))?;
        }
        println!("\nstatus, {CLIENTS} clients, while it scans and acts on {DEVICES} devices");
        let plugd = self.start(Some(&sys), None)?;
        for what in (0..SCANS).map(|n| if n == 0 { "all are new" } else { "all are known" }) {
            let done = AtomicBool::new(false);
            scope(|scope| -> Outcome<()> {
                let began = Instant::now();
                let rescan = scope.spawn(|| {
                    let result = ask(&mut connect(PLUGD).unwrap(), b"plugd/1 rescan\n");
                    done.store(true, Relaxed);
                    result.map_err(|error| error.to_string())
                });
                let (mut floor, mut times) = (Vec::new(), Vec::new());
                while !done.load(Relaxed) {
                    floor.append(&mut ask_all(ECHO, 10)?);
                    times.append(&mut ask_all(PLUGD, 10)?);
                }
                rescan.join().unwrap()?;
                println!("  {:8.0}  ms, a scan, {what}", millis(began.elapsed()));
                told("echo", floor);
                verdict(told("plugd", times), LATENCY, "ms, p99");
                Ok(())
            })?;
        }
        plugd.tell_memory()
    }

    /// An event is compared with what each of them waits for.
    fn waiters(&self) -> Outcome<()> {
        println!("\nTime per event by rules, while {WAITERS} clients wait, each for 16 variables");
        let plugd = self.start(None, None)?;
        let mut waiting = Vec::new();
        for round in 0..2 {
            for n in 0..round * WAITERS {
                let mut stream = connect(PLUGD)?;
                let fields = (0..15).map(|field| format!(" WAIT_{field}={n}"));
                let fields: String = fields.collect();
                writeln!(stream, "plugd/1 wait SUBSYSTEM=net{fields} --timeout 1000")?;
                waiting.push(stream);
            }
            let injector = Injector::new()?;
            let mut control = connect(PLUGD)?;
            ask(&mut control, STATUS)?;
            ask(&mut control, b"plugd/1 pause\n")?;
            for n in 0..EVENTS {
                injector.send(&event(n))?;
            }
            let began = Instant::now();
            ask(&mut control, b"plugd/1 resume\n")?;
            ask(&mut control, b"plugd/1 settle --timeout 600\n")?;
            let each = began.elapsed() / u32::try_from(EVENTS)?;
            println!("  {:8.1}  us, {} waiting", each.as_secs_f64() * 1e6, waiting.len());
            plugd.tell_memory()?;
        }
        Ok(())
    }
}

/// What the network card of a machine says, but for SEQNUM, which the kernel appends.
fn event(n: usize) -> Vec<u8> {
    format!(
        "change@/devices/pci0000:00/0000:00:1c.0/0000:02:00.0/net/eth0\0ACTION=change\0\
         DEVPATH=/devices/pci0000:00/0000:00:1c.0/0000:02:00.0/net/eth0\0\
         SUBSYSTEM=net\0INTERFACE=eth0\0IFINDEX=2\0N={n}\0"
    )
    .into_bytes()
}

fn await_some<T>(probe: impl Fn() -> Option<T>) -> Outcome<T> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if let Some(found) = probe() {
            return Ok(found);
        }
        sleep(Duration::from_millis(1));
    }
    Err("nobody answers".into())
}

fn connect(name: &str) -> Outcome<UnixStream> {
    let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    Ok(stream)
}

/// Asks, and returns how long the whole answer took.
fn ask(stream: &mut UnixStream, question: &[u8]) -> Outcome<Duration> {
    let began = Instant::now();
    stream.write_all(question)?;
    let mut head = Vec::new();
    while head.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head)?;
    let length = head.trim_end().strip_prefix("plugd/1 ok ").ok_or_else(|| head.clone())?;
    stream.read_exact(&mut vec![0; length.parse()?])?;
    Ok(began.elapsed())
}

/// Connects as another user until `done`, says something and goes; returns how often.
fn connect_as_stranger(says: &[u8], done: &AtomicBool) -> u32 {
    let nobody = rustix::process::Uid::from_raw(65534);
    // This thread alone becomes that.
    rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
    let mut count = 0;
    while !done.load(Relaxed) {
        if connect(PLUGD).and_then(|mut stream| Ok(stream.write_all(says)?)).is_ok() {
            count += 1;
        }
    }
    count
}

/// So many times, by all clients at once.
fn ask_all(name: &str, questions: usize) -> Outcome<Vec<Duration>> {
    scope(|scope| {
        let client = || -> Result<Vec<Duration>, String> {
            let mut stream = connect(name).map_err(|error| error.to_string())?;
            let times = (0..questions).map(|_| ask(&mut stream, STATUS));
            times.collect::<Outcome<_>>().map_err(|error| error.to_string())
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        let mut times = Vec::new();
        for client in clients {
            times.append(&mut client.join().unwrap()?);
        }
        Ok(times)
    })
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Prints how long it took, and returns the 99th of a hundred, in milliseconds.
fn told(what: &str, mut times: Vec<Duration>) -> f64 {
    times.sort();
    let at = |part: usize| millis(times[(times.len() - 1) * part / 100]);
    println!(
        "  {what:8} p50 {:7.3} ms   p99 {:7.3} ms   max {:7.3} ms   of {}",
        at(50),
        at(99),
        at(100),
        times.len()
    );
    at(99)
}

/// Answers each line with as many bytes as a status has.
fn echo() -> Outcome<()> {
    let answer = format!("plugd/1 ok 600\n{}\n", "x".repeat(599));
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(ECHO)?)?;
    listener.set_nonblocking(true)?;
    let mut listener = Listener::from_std(listener);
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(64));
    poll.registry().register(&mut listener, Token(0), Interest::READABLE)?;
    let mut clients: Vec<Option<Stream>> = Vec::new();
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            let Some(index) = event.token().0.checked_sub(1) else {
                while let Ok((mut stream, _)) = listener.accept() {
                    let token = Token(clients.len() + 1);
                    poll.registry().register(&mut stream, token, Interest::READABLE)?;
                    clients.push(Some(stream));
                }
                continue;
            };
            let mut buffer = [0; 4096];
            while let Some(stream) = &mut clients[index] {
                match stream.read(&mut buffer) {
                    Ok(1..) => stream.write_all(answer.as_bytes())?,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    _ => clients[index] = None,
                }
            }
        }
    }
}
