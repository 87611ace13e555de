//! What an event costs by rules, and what the daemon weighs with them.
//!
//! `cargo bench --bench rules`, as root: only root can make device nodes. All
//! that is compared is measured in one run, in turns, so that the ratios hold
//! on a busy machine too: plugd, a loop that does nothing but receive, and where
//! these variables name their programs, `MDEVD` (skarnet's) and `BUSYBOX`
//! (its mdev -d). Each has the same events waiting in the kernel when it may
//! begin, a /dev and a network namespace of its own, and is charged the
//! processor time that it used until they were acted on.
//!
//! The events are those of the devices of this machine, and some of many others:
//! what matching costs shows only where the values vary. The static binary is
//! built and measured; where its target is not installed, or `PLUGD_BINARY`
//! names another one, that.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "it is run by hand, and prints"
)]

mod common;
#[path = "common/injector.rs"]
mod injector;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/world.rs"]
mod world;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use plugd::netlink::{DATAGRAM_MAX, Received, Source};
use plugd::sysfs::Sysfs;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process};

use common::{Outcome, listener, queued, verdict};
use injector::Injector;
use memory::memory;
use mount::mount;
use world::{spread, tree};

/// Set in the process that only receives.
const FLOOR: &str = "PLUGD_BENCH_FLOOR";

const RULES: &str = include_str!("rules.conf");

const ROUNDS: usize = 7;
/// How many events are acted on in a round, at least.
const EVENTS: usize = 20_000;
/// How many wait at once: as many as fit into the smallest of the buffers,
/// which is busybox's, of 2 MiB twice.
const WAITING_BYTES: usize = 3 << 20;
const MANY_EVENTS: usize = 1_000_000;
/// How many devices there are besides those of this machine.
const VARIED: usize = 400;
/// The most that mdevd reads of a file of rules.
const MDEVD_MAX: usize = 8191;

/// The targets.
const RSS_KIB: f64 = 1536.0;
const LOAD_MILLISECONDS: f64 = 20.0;
const BINARY_MIB: f64 = 1.6;
const FLATNESS: f64 = 1.3;

fn main() -> ExitCode {
    if std::env::var_os(FLOOR).is_some() {
        return common::exit(receive_only());
    }
    common::run("-nm", None, measure)
}

/// The floor: receives until it is killed.
fn receive_only() -> Outcome<()> {
    let (mut source, _) = Source::open_kernel(128 << 20)?;
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        match source.receive(&mut buffer) {
            Received::Datagram(_) => {}
            Received::Empty => {
                poll(&mut [PollFd::new(&source, PollFlags::IN)], None)?;
            }
            other => return Err(format!("{other:?}").into()),
        }
    }
}

fn measure(plugd: PathBuf) -> Outcome<()> {
    let bench = Bench::prepare(plugd)?;
    println!("{}, {} events of this machine's devices", bench.plugd.display(), bench.devices.len());
    println!("Processor time per event, {ROUNDS} rounds of {EVENTS} events in turns");
    bench.case("real devices, 70 rules", Some(RULES.into()), &bench.devices, 1.0 / 3.0)?;
    bench.case("real devices, no file", None, &bench.devices, 2.0 / 3.0)?;
    let (mut varied, mut seed) = (Vec::new(), 1);
    varied.extend((0..VARIED).map(|n| varied_event(n, &mut seed)));
    let what = "varied events that none of 500 rules matches";
    bench.case(what, Some(others(500)), &varied, 0.1)?;
    let mut costs = Vec::new();
    for count in [10, 70, 500] {
        let what = format!("varied events, {count} varied rules");
        costs.push((count, bench.case(&what, Some(varied_rules(count)), &varied, 1.0)?));
    }
    for (count, cost) in &costs[1..] {
        let what = format!("times the cost of 10 varied rules is that of {count}");
        verdict(cost / costs[0].1, FLATNESS, &what);
    }
    bench.trickle()?;
    bench.footprint()
}

/// Rules that match no device.
fn others(count: usize) -> String {
    (0..count).fold(String::new(), |mut text, n| {
        writeln!(text, "x{n:03}.* 0:0 660").unwrap();
        text
    })
}

/// Random digits, the same in each run.
fn hex(seed: &mut u64) -> String {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    format!("{:04X}", *seed >> 48)
}

/// Rules of the kinds that match one device or few, each for another one.
fn varied_rules(count: usize) -> String {
    let mut seed = 2;
    (0..count).fold(String::new(), |mut text, n| {
        let (vendor, product) = (hex(&mut seed), hex(&mut seed));
        match n % 4 {
            0 => writeln!(text, "$MODALIAS=usb:v{vendor}p{product}d.* 0:0 660"),
            1 => writeln!(text, "$MODALIAS=v0000{vendor}d0000{product} 0:0 660"),
            2 => writeln!(text, "MODALIAS=(ic|bc){};.*x 0:0 660", &vendor[2..]),
            _ => writeln!(text, ".*[0-9]{n:03}x 0:0 660"),
        }
        .unwrap();
        text
    })
}

/// One for which nothing is done, so that only matching costs.
fn varied_event(n: usize, seed: &mut u64) -> Vec<u8> {
    let (vendor, product, class) = (hex(seed), hex(seed), &hex(seed)[2..]);
    let (path, fields) = if n.is_multiple_of(2) {
        let path = format!("/devices/pci0000:00/0000:00:14.0/usb1/1-1/1-1.{n}");
        let modalias = format!("usb:v{vendor}p{product}d0100dc00dsc00dp00ic{class}isc00ip00in00");
        (path, format!("SUBSYSTEM=usb\0MODALIAS={modalias}\0DEVNAME=bus/usb/001/{n:03}\0"))
    } else {
        let path = format!("/devices/pci0000:00/0000:{n:02x}:00.0");
        let ids = format!("v0000{vendor}d0000{product}sv0000{vendor}sd0000{product}");
        (path, format!("SUBSYSTEM=pci\0MODALIAS=pci:{ids}bc{class}sc00i00\0"))
    };
    format!("change@{path}\0ACTION=change\0DEVPATH={path}\0{fields}").into_bytes()
}

/// An event for each device of this machine.
fn devices() -> Outcome<Vec<Vec<u8>>> {
    let sysfs = Sysfs::open(Path::new("/sys"))?;
    let mut scan = sysfs.scan()?;
    let mut events = Vec::new();
    while let Some(event) = scan.next() {
        // A device may be gone by now.
        events.extend(event.ok().map(<[u8]>::to_vec));
    }
    Ok(events)
}

/// Who acts on the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Floor,
    Plugd,
    Mdevd,
    Busybox,
}

/// What all measurements need.
struct Bench {
    plugd: PathBuf,
    mdevd: Option<PathBuf>,
    busybox: Option<PathBuf>,
    dir: tempfile::TempDir,
    injector: Injector,
    devices: Vec<Vec<u8>>,
}

impl Bench {
    fn prepare(plugd: PathBuf) -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("dev"))?;
        let peer = |name: &str| {
            let path = std::env::var_os(name).map(PathBuf::from);
            if path.is_none() {
                println!("NOTE: {name} is not set: no comparison with that");
            }
            path
        };
        let (mdevd, busybox) = (peer("MDEVD"), peer("BUSYBOX"));
        Ok(Self { plugd, mdevd, busybox, dir, injector: Injector::new()?, devices: devices()? })
    }

    fn all(&self) -> Vec<Who> {
        let mut all = vec![Who::Floor, Who::Plugd];
        all.extend(self.mdevd.as_ref().map(|_| Who::Mdevd));
        all.extend(self.busybox.as_ref().map(|_| Who::Busybox));
        all
    }

    fn dev(&self) -> PathBuf {
        self.dir.path().join("dev")
    }

    /// The file of rules; that it is not there, without text.
    fn conf(&self, rules: Option<&str>) -> Outcome<PathBuf> {
        let conf = self.dir.path().join("mdev.conf");
        match rules {
            Some(rules) => fs::write(&conf, rules)?,
            None => drop(fs::remove_file(&conf)),
        }
        Ok(conf)
    }

    /// Measures one kind of events by one file of rules. `target` is what
    /// plugd's time may be of mdevd's. Returns plugd's, in microseconds.
    fn case(
        &self,
        what: &str,
        rules: Option<String>,
        events: &[Vec<u8>],
        target: f64,
    ) -> Outcome<f64> {
        println!("\n{what}");
        let conf = self.conf(rules.as_deref())?;
        let mut all = self.all();
        if rules.is_some_and(|rules| rules.len() > MDEVD_MAX) {
            all.retain(|who| *who != Who::Mdevd);
        }
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); all.len()];
        let mut ratios = Vec::new();
        let mut trees = Vec::new();
        for _ in 0..ROUNDS {
            let mut round = Vec::new();
            trees.clear();
            for (&who, times) in all.iter().zip(&mut times) {
                let daemon = self.start(who, &conf)?;
                daemon.replay(events, 2 * events.len())?;
                let before = world::time(daemon.process.id())?;
                let count = daemon.replay(events, EVENTS)?;
                let time = world::time(daemon.process.id())? - before;
                if matches!(who, Who::Plugd | Who::Mdevd) {
                    trees.push(tree(&self.dev())?);
                }
                daemon.stop()?;
                let time = microseconds(time, count);
                times.push(time);
                round.push((who, time));
            }
            let of = |who| round.iter().find(|(w, _)| *w == who).map(|(_, time)| time);
            ratios.extend(of(Who::Plugd).zip(of(Who::Mdevd)).map(|(ours, hers)| ours / hers));
        }
        let mut ours = 0.0;
        for (who, times) in all.iter().zip(&mut times) {
            let median = report(*who, times);
            if *who == Who::Plugd {
                ours = median;
            }
        }
        if !ratios.is_empty() {
            verdict(spread(&mut ratios).1, target, "of mdevd's time, by the median of the rounds");
        }
        if let [ours, hers] = &trees[..] {
            let differ = ours.iter().filter(|node| hers.get(node.0) != Some(node.1)).count();
            let missing = hers.keys().filter(|path| !ours.contains_key(*path)).count();
            println!(
                "  {} files in /dev, {differ} differ from mdevd's, {missing} missing",
                ours.len()
            );
        }
        Ok(ours)
    }

    /// The time per event of the devices, coming one at a time: most of it is
    /// for waiting and waking up.
    fn trickle(&self) -> Outcome<()> {
        println!("\nreal devices, 70 rules, one at a time");
        let conf = self.conf(Some(RULES))?;
        for who in self.all() {
            let mut times = Vec::new();
            for _ in 0..ROUNDS {
                let daemon = self.start(who, &conf)?;
                daemon.replay(&self.devices, 2 * self.devices.len())?;
                let before = world::time(daemon.process.id())?;
                for event in &self.devices {
                    self.injector.send(event)?;
                    while queued()? > 0 || world::is_running(daemon.process.id())? {}
                }
                times.push(microseconds(
                    world::time(daemon.process.id())? - before,
                    self.devices.len(),
                ));
                daemon.stop()?;
            }
            report(who, &mut times);
        }
        Ok(())
    }

    /// Starts a daemon with an empty /dev, and waits until it listens.
    fn start(&self, who: Who, conf: &Path) -> Outcome<Daemon<'_>> {
        let dev = self.dev();
        mount(&dev)?;
        let mut command = Command::new(match who {
            Who::Floor => std::env::current_exe()?,
            Who::Plugd => self.plugd.clone(),
            Who::Mdevd => self.mdevd.clone().unwrap(),
            // Its /dev and /etc/mdev.conf are where they are.
            Who::Busybox => "unshare".into(),
        });
        match who {
            Who::Floor => command.env(FLOOR, "1"),
            Who::Plugd => command
                .args(["run", "--control", "@plugd-bench", "--conf"])
                .arg(conf)
                .arg("--dev")
                .arg(&dev),
            Who::Mdevd => {
                command.args(["-v", "0", "-b", "134217728", "-f"]).arg(conf).arg("-d").arg(&dev)
            }
            Who::Busybox => command
                .args(["-m", "sh", "-c", BUSYBOX_WORLD])
                .arg(self.busybox.as_ref().unwrap())
                .arg(conf),
        };
        let log = self.dir.path().join("log");
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let mut daemon = Daemon { bench: self, who, process, log };
        while listener()?.is_none() {
            if let Some(status) = daemon.process.try_wait()? {
                return Err(format!("{who:?}: {status}: {}", daemon.log()?).into());
            }
            sleep(Duration::from_millis(1));
        }
        daemon.await_idle()?;
        Ok(daemon)
    }

    fn footprint(&self) -> Outcome<()> {
        println!("\nFootprint");
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        {
            let size = fs::metadata(&self.plugd)?.len() as f64 / f64::from(1 << 20);
            verdict(size, BINARY_MIB, "MiB of binary");
        }
        self.load()?;

        let conf = self.conf(Some(RULES))?;
        for who in self.all() {
            let daemon = self.start(who, &conf)?;
            let idle = daemon.memory("idle, before any event")?;
            if who == Who::Plugd {
                // What is known of devices is written anew now and then, and looked up after
                // a quiet second, for which there is memory after some time.
                let replay_and_rest = || -> Outcome<()> {
                    daemon.replay(&self.devices, MANY_EVENTS)?;
                    sleep(Duration::from_secs(2));
                    Ok(())
                };
                replay_and_rest()?;
                let before = daemon.memory(&format!("after {MANY_EVENTS} events"))?;
                replay_and_rest()?;
                let after = daemon.memory(&format!("after {MANY_EVENTS} events more"))?;
                #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
                {
                    verdict(idle as f64, RSS_KIB, "KiB of idle RSS");
                    verdict(after as f64 - before as f64, 0.0, "KiB of growth");
                }
            }
            daemon.stop()?;
        }
        Ok(())
    }

    /// The processor time from start to idleness with 500 rules, less that
    /// with none.
    fn load(&self) -> Outcome<()> {
        let rules: Vec<&str> =
            RULES.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
        let many =
            rules.iter().cycle().take(500).fold(String::new(), |text, rule| text + rule + "\n");
        let took = |rules: Option<&str>| -> Outcome<f64> {
            let conf = self.conf(rules)?;
            let mut times = Vec::new();
            for _ in 0..ROUNDS {
                let daemon = self.start(Who::Plugd, &conf)?;
                times.push(world::time(daemon.process.id())?.as_secs_f64() * 1e3);
                daemon.stop()?;
            }
            Ok(spread(&mut times).1)
        };
        let load = took(Some(&many))? - took(None)?;
        verdict(load, LOAD_MILLISECONDS, "milliseconds to load 500 rules");
        Ok(())
    }
}

/// Runs `$0 mdev -df` with /dev and /etc/mdev.conf in place of the real ones.
const BUSYBOX_WORLD: &str = "mount -t tmpfs etc /etc && mount -t tmpfs dev /dev || exit
    [ ! -e \"$1\" ] || cp \"$1\" /etc/mdev.conf
    exec \"$0\" mdev -df";

/// Prints how these times are spread, and returns their median.
fn report(who: Who, times: &mut [f64]) -> f64 {
    let (least, median, most) = spread(times);
    let who = format!("{who:?}").to_lowercase();
    println!("  {who:8} median {median:7.2} us   min {least:7.2}   max {most:7.2}");
    median
}

/// The share of one of so many.
#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn microseconds(time: Duration, count: usize) -> f64 {
    time.as_nanos() as f64 / 1e3 / count as f64
}

struct Daemon<'b> {
    bench: &'b Bench,
    who: Who,
    process: Child,
    log: PathBuf,
}

impl Daemon<'_> {
    fn log(&self) -> Outcome<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Has it act on all of these, over and over, until there were `least`.
    /// They wait in the kernel before it may begin. Returns how many there were.
    fn replay(&self, events: &[Vec<u8>], least: usize) -> Outcome<usize> {
        let mut sent = 0;
        let mut all = events.iter().cycle();
        while sent < least {
            kill_process(self.pid(), Signal::STOP)?;
            while sent < least && queued()? < WAITING_BYTES {
                for event in all.by_ref().take(64.min(least - sent)) {
                    self.bench.injector.send(event)?;
                    sent += 1;
                }
            }
            kill_process(self.pid(), Signal::CONT)?;
            self.await_idle()?;
        }
        if drops()? != 0 {
            return Err(format!("{:?} lost events", self.who).into());
        }
        Ok(sent)
    }

    /// Waits until nothing is queued and it sleeps.
    fn await_idle(&self) -> Outcome<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let empty =
                queued().map_err(|e| format!("{e}: {}", self.log().unwrap_or_default()))? == 0;
            let before = world::time(self.process.id())?;
            sleep(Duration::from_millis(2));
            if empty
                && world::time(self.process.id())? == before
                && !world::is_running(self.process.id())?
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{:?} does not get ready", self.who).into());
            }
        }
    }

    fn memory(&self, when: &str) -> Outcome<u64> {
        let memory::Memory { resident, anonymous } = memory(self.process.id())?;
        let who = format!("{:?}", self.who).to_lowercase();
        println!("  {who:8} {resident:6} KiB  RSS {when}; {anonymous} KiB of it anonymous");
        Ok(resident)
    }

    /// Ends it; plugd must have had no failure.
    fn stop(mut self) -> Outcome<()> {
        let signal = if self.who == Who::Plugd { Signal::TERM } else { Signal::KILL };
        kill_process(self.pid(), signal)?;
        let status = self.process.wait()?;
        let log = self.log()?;
        if self.who == Who::Plugd && !(status.success() && log.contains(", failed 0")) {
            return Err(format!("plugd: {status}: {log}").into());
        }
        Ok(())
    }
}

/// How many events the listener in this namespace has lost.
fn drops() -> Outcome<u64> {
    for line in fs::read_to_string("/proc/net/netlink")?.lines() {
        let columns: Vec<&str> = line.split_whitespace().collect();
        if let [_, "15", _, "00000001", _, _, _, _, drops, ..] = columns[..] {
            return Ok(drops.parse()?);
        }
    }
    Err("nobody listens any more".into())
}
