//! What an event costs with a handler program, and what the daemon weighs.
//!
//! `cargo bench --bench handler`. Everything is measured in one run, in turns,
//! so that the ratios hold on a busy machine too: plugd against a C loop that
//! does nothing but run the same program, by posix_spawn, or by vfork, which
//! is as fast as it gets. Wants `cc`, network namespaces and, for the system
//! calls, `strace`.
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

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use plugd::netlink::Source;
use rustix::process::{Pid, Signal, kill_process};

use common::{Outcome, listener, queued, verdict};
use compile::{compile, compile_static};
use injector::Injector;

const EVENTS: usize = 5000;
const ROUNDS: usize = 11;
const TRACED_EVENTS: usize = 500;
const SETTLED_AFTER: usize = 300;
const MANY_EVENTS: usize = 100_000;

/// The targets.
const RATIO: f64 = 1.05;
const CALLS: f64 = 10.0;
const BINARY_BYTES: u64 = 12 * 1024 * 1024 / 10;
const RSS_KIB: u64 = 1024;

fn main() -> ExitCode {
    common::run("-n", Some("-Urn"), measure)
}

fn measure(plugd: PathBuf) -> Outcome<()> {
    let bench = Bench::prepare(plugd)?;
    println!("{}", bench.plugd.display());
    bench.speed()?;
    bench.system_calls()?;
    bench.footprint()
}

/// What all measurements need.
struct Bench {
    plugd: PathBuf,
    dir: tempfile::TempDir,
    /// A byte in here lets the first handler go on.
    go: File,
    /// The first handler and the last one put a byte in here.
    told: File,
    injector: Injector,
    /// How much may be queued for the daemon, in bytes as the kernel counts them.
    room: usize,
}

impl Bench {
    fn prepare(plugd: PathBuf) -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        for (floor, flag) in [("posix_spawn", "-UVFORK"), ("vfork", "-DVFORK")] {
            compile("cc", "floor.c", &dir.path().join(floor), flag)?;
        }
        compile_static("handler.c", &dir.path().join("handler"))?;
        let fifo = |name| -> Outcome<File> {
            let path = dir.path().join(name);
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into())?;
            // For both, so that opening does not block.
            Ok(File::options().read(true).write(true).open(path)?)
        };
        let (_, buffer) = Source::open_kernel(128 << 20)?;
        Ok(Self {
            plugd,
            go: fifo("go")?,
            told: fifo("told")?,
            dir,
            injector: Injector::new()?,
            room: buffer.got / 2,
        })
    }

    /// The environment that plugd starts with.
    fn own_environment(&self) -> Vec<(&str, OsString)> {
        let path = |name| self.dir.path().join(name).into_os_string();
        vec![
            ("HOME", "/root".into()),
            ("PATH", std::env::var_os("PATH").unwrap_or_default()),
            ("BENCH_GO", path("go")),
            ("BENCH_TELL", path("told")),
        ]
    }

    fn await_handler(&self) -> Outcome<()> {
        Ok((&self.told).read_exact(&mut [0])?)
    }

    fn let_go(&self) -> Outcome<Instant> {
        (&self.go).write_all(b"g")?;
        Ok(Instant::now())
    }

    /// The time per event of a C loop.
    fn floor(&self, program: &str) -> Outcome<Duration> {
        let event = event(None);
        let fields = event.split(|&b| b == 0).skip(1).filter(|field| !field.is_empty());
        let fields = fields.map(|field| {
            let field = String::from_utf8_lossy(field);
            let (key, value) = field.split_once('=').unwrap();
            (key.to_owned(), value.to_owned())
        });
        let mut floor = Command::new(self.dir.path().join(program))
            .arg(EVENTS.to_string())
            .arg(self.dir.path().join("handler"))
            .env_clear()
            .envs(self.own_environment())
            .envs(fields)
            .env("SEQNUM", "1000000")
            .spawn()?;
        self.await_handler()?;
        let began = self.let_go()?;
        self.await_handler()?;
        let time = began.elapsed();
        let status = floor.wait()?;
        if !status.success() {
            return Err(format!("{program}: {status}").into());
        }
        Ok(time / u32::try_from(EVENTS)?)
    }

    /// The time per event of plugd, all of them waiting in the kernel from the
    /// beginning if they may.
    fn plugd(&self) -> Outcome<Duration> {
        let daemon = self.start(None)?;
        let time = self.run_events(EVENTS)?;
        daemon.stop(EVENTS)?;
        Ok(time / u32::try_from(EVENTS)?)
    }

    fn run_events(&self, count: usize) -> Outcome<Duration> {
        self.injector.send(&event(Some("first")))?;
        self.await_handler()?;
        let mut sent = 1;
        while sent < count - 1 && queued()? < self.room {
            self.injector.send(&event(None))?;
            sent += 1;
        }
        let began = self.let_go()?;
        while sent < count - 1 {
            if sent % 16 == 0 {
                while queued()? > self.room {
                    sleep(Duration::from_micros(200));
                }
            }
            self.injector.send(&event(None))?;
            sent += 1;
        }
        self.injector.send(&event(Some("last")))?;
        self.await_handler()?;
        Ok(began.elapsed())
    }

    /// Starts plugd and waits until it listens; writes its system calls to `trace`.
    fn start(&self, trace: Option<&Path>) -> Outcome<Daemon> {
        let mut command = match trace {
            None => Command::new(&self.plugd),
            Some(trace) => {
                let mut strace = Command::new("strace");
                strace.arg("-o").arg(trace).arg(&self.plugd);
                strace
            }
        };
        let log = self.dir.path().join("log");
        let process = command
            .args(["run", "--control", "@plugd-bench", "--"])
            .arg(self.dir.path().join("handler"))
            .env_clear()
            .envs(self.own_environment())
            .stdin(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let mut daemon = Daemon { process, traced: trace.is_some(), log };
        while listener()?.is_none() {
            if let Some(status) = daemon.process.try_wait()? {
                return Err(format!("plugd: {status}: {}", daemon.log()?).into());
            }
            sleep(Duration::from_millis(1));
        }
        Ok(daemon)
    }

    fn speed(&self) -> Outcome<()> {
        println!("\nTime per event, {ROUNDS} rounds of {EVENTS} events in turns");
        let mut times: [Vec<Duration>; 3] = Default::default();
        let mut ratios: [Vec<f64>; 2] = Default::default();
        for _ in 0..ROUNDS {
            let round = [self.floor("posix_spawn")?, self.floor("vfork")?, self.plugd()?];
            for (times, time) in times.iter_mut().zip(round) {
                times.push(time);
            }
            for (ratios, floor) in ratios.iter_mut().zip(round) {
                ratios.push(round[2].as_secs_f64() / floor.as_secs_f64());
            }
        }
        for (name, times) in ["(a) posix_spawn", "(b) vfork", "(c) plugd"].iter().zip(&mut times) {
            times.sort();
            println!(
                "  {name:16} median {:6.1} us   min {:6.1}   max {:6.1}",
                micros(times[ROUNDS / 2]),
                micros(times[0]),
                micros(times[ROUNDS - 1]),
            );
        }
        for (i, (name, ratios)) in ["(c) / (a)", "(c) / (b)"].iter().zip(&mut ratios).enumerate() {
            ratios.sort_by(f64::total_cmp);
            println!(
                "  {name:16} median {:6.3}      min {:6.3}   max {:6.3}   of the best rounds {:.3}",
                ratios[ROUNDS / 2],
                ratios[0],
                ratios[ROUNDS - 1],
                times[2][0].as_secs_f64() / times[i][0].as_secs_f64(),
            );
        }
        verdict(ratios[0][ROUNDS / 2], RATIO, "(c) / (a)");
        Ok(())
    }

    /// Counts the system calls of the daemon alone, from the start of one
    /// child to that of the next.
    fn system_calls(&self) -> Outcome<()> {
        if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
            println!("\nSKIPPED: system calls per event: there is no strace");
            return Ok(());
        }
        for (what, backlog) in [("all waiting in the kernel", true), ("one at a time", false)] {
            let trace = self.dir.path().join("trace");
            let daemon = self.start(Some(&trace))?;
            if backlog {
                self.run_events(TRACED_EVENTS)?;
            } else {
                for _ in 0..TRACED_EVENTS {
                    self.injector.send(&event(Some("last")))?;
                    self.await_handler()?;
                    // Until it has nothing more to do.
                    sleep(Duration::from_millis(5));
                }
            }
            daemon.stop(TRACED_EVENTS)?;
            println!("\nSystem calls per event, {} events, {what}", TRACED_EVENTS - SETTLED_AFTER);
            let per_event = per_event(&fs::read_to_string(trace)?);
            for (call, count) in &per_event {
                println!("  {count:6.2}  {call}");
            }
            let sum: f64 = per_event.values().sum();
            println!("  {sum:6.2}  in all");
            // The allocator's few are not the loop's.
            verdict((sum * 10.0).round() / 10.0, CALLS, "system calls, to a tenth");
        }
        Ok(())
    }

    fn footprint(&self) -> Outcome<()> {
        println!("\nFootprint");
        let size = fs::metadata(&self.plugd)?.len();
        println!("  {:8} KiB  binary", size / 1024);
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        verdict(size as f64, BINARY_BYTES as f64, "bytes of binary");

        let daemon = self.start(None)?;
        let idle = daemon.memory("idle, before any event")?;
        self.run_events(EVENTS)?;
        daemon.memory(&format!("after {EVENTS} events"))?;
        self.run_events(EVENTS)?;
        let before = daemon.memory(&format!("after {} events", 2 * EVENTS))?;
        self.run_events(MANY_EVENTS)?;
        let after = daemon.memory(&format!("after {MANY_EVENTS} more"))?;
        daemon.stop(2 * EVENTS + MANY_EVENTS)?;
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        {
            verdict(idle as f64, RSS_KIB as f64, "KiB of idle RSS");
            verdict(after as f64 - before as f64, 0.0, "KiB of growth");
        }
        Ok(())
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// How often each system call was made between one clone and the next, once
/// the daemon has settled. Depending on the sizes asked for, musl may map and
/// unmap a page for every event until it has seen that a hundred times, and
/// from then on for one event in a hundred.
fn per_event(trace: &str) -> BTreeMap<String, f64> {
    let calls: Vec<&str> = trace
        .lines()
        .filter(|line| !line.starts_with("---") && !line.starts_with("+++"))
        .filter_map(|line| line.split_once('(').map(|(call, _)| call))
        .collect();
    let starts: Vec<usize> = (0..calls.len()).filter(|&i| calls[i].starts_with("clone")).collect();
    let starts = &starts[starts.len().min(SETTLED_AFTER)..];
    let [first, .., last] = *starts else { return BTreeMap::new() };
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let one = 1.0 / (starts.len() - 1) as f64;
    let mut counts = BTreeMap::new();
    for &call in &calls[first..last] {
        *counts.entry(call.to_owned()).or_default() += one;
    }
    counts
}

struct Daemon {
    process: Child,
    /// The process is strace, and plugd its child.
    traced: bool,
    log: PathBuf,
}

impl Daemon {
    fn log(&self) -> io::Result<String> {
        fs::read_to_string(&self.log)
    }

    /// Ends it, and checks that it has handled that many events, all with success.
    fn stop(mut self, handled: usize) -> Outcome<()> {
        let mut pid = Pid::from_child(&self.process);
        if self.traced {
            let children = format!("/proc/{pid}/task/{pid}/children", pid = self.process.id());
            let child = fs::read_to_string(children)?.trim().parse()?;
            pid = Pid::from_raw(child).ok_or("strace has no child")?;
        }
        kill_process(pid, Signal::TERM)?;
        let status = self.process.wait()?;
        let wanted = format!("received {handled}, handled {handled}, failed 0");
        let log = self.log()?;
        if status.success() && log.contains(&wanted) {
            Ok(())
        } else {
            Err(format!("plugd {status}, wanted: {wanted}, log:\n{log}").into())
        }
    }

    /// Its resident set size, in KiB.
    fn memory(&self, when: &str) -> Outcome<u64> {
        // Until it has nothing more to do.
        sleep(Duration::from_millis(50));
        let memory::Memory { resident, anonymous } = memory::memory(self.process.id())?;
        println!("  {resident:8} KiB  RSS {when}; {anonymous} KiB of it anonymous");
        Ok(resident)
    }
}

/// A kernel event as a network card makes it, but for SEQNUM, which the kernel
/// appends.
fn event(mark: Option<&str>) -> Vec<u8> {
    let mut event = b"add@/devices/pci0000:00/0000:00:1c.0/0000:02:00.0/net/eth0\0\
        ACTION=add\0DEVPATH=/devices/pci0000:00/0000:00:1c.0/0000:02:00.0/net/eth0\0\
        SUBSYSTEM=net\0DEVTYPE=ethernet\0INTERFACE=eth0\0IFINDEX=2\0\
        MODALIAS=pci:v00008086d000015F3sv00001458sd0000E000bc02sc00i00\0\
        DRIVER=igc\0MAJOR=10\0MINOR=200\0DEVNAME=net/eth0\0"
        .to_vec();
    if let Some(mark) = mark {
        event.extend([b"MARK=", mark.as_bytes(), b"\0"].concat());
    }
    event
}
