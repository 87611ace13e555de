//! What it costs to act on all devices that are there already, and to find them.
//!
//! `cargo bench --bench coldplug`, as root: only root can make device nodes. What
//! is compared is measured in one run, in turns: `plugd run --coldplug` with all
//! that it does by default, and where `MDEVD` and `MDEVD_COLDPLUG` name skarnet's
//! programs, mdevd with mdevd-coldplug. Each has the devices of this machine, the
//! rules of `benches/rules.conf`, a /dev and a network namespace of its own, and is
//! charged the processor time of all its processes, from their start until all
//! was acted on; once on all processors, where mdevd and mdevd-coldplug have one each,
//! and once on one. That of mdevd-coldplug is more the more sockets on this machine
//! listen to uevents, in any namespace: it has the kernel send an event for each
//! device, to all of them.
//!
//! The static binary is built and measured; where its
//! target is not installed, or `PLUGD_BINARY` names another one, that.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "it is run by hand, and prints"
)]

mod common;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/world.rs"]
mod world;

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use plugd::control::Address;
use plugd::control::client::Connection;
use plugd::control::wire::Outcome as Answer;
use plugd::netlink::{DATAGRAM_MAX, Received, Source};
use plugd::sysfs::Sysfs;
use plugd::uevent::{Header, Uevent};
use rustix::fs::{Mode, OFlags, open, openat};
use rustix::io::read;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use common::{Outcome, listener, queued, verdict};
use mount::mount;
use world::{spread, tree};

const ROUNDS: usize = 41;
const SCANS: usize = 201;
const CONTROL: &str = "plugd-bench-coldplug";
/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The targets.
const RATIO: f64 = 2.0 / 3.0;
const SCAN_MICROSECONDS: f64 = 10.0;

fn main() -> ExitCode {
    common::run("-nm", None, measure)
}

fn measure(plugd: PathBuf) -> Outcome<()> {
    println!("{}", plugd.display());
    scan()?;
    let bench = Bench::prepare(plugd)?;
    let processors = sched_getaffinity(None)?;
    bench.coldplug(&format!("{} processors", processors.count()))?;
    bench.coverage()?;
    let mut one = CpuSet::new();
    one.set((0..CpuSet::MAX_CPU).find(|&number| processors.is_set(number)).unwrap());
    sched_setaffinity(None, &one)?;
    bench.coldplug("1 processor")
}

/// The time that it takes to find all devices and read them back as events, beside
/// that for their files alone.
fn scan() -> Outcome<()> {
    let sysfs = Sysfs::open(Path::new("/sys"))?;
    let listing = sysfs.list()?;
    let files: Vec<Vec<u8>> =
        (0..listing.len()).map(|index| [&listing.path(index)[1..], b"/uevent"].concat()).collect();
    let root = open("/sys", OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
    let count = files.len();
    let (mut scans, mut floors) = (Costs::default(), Costs::default());
    for _ in 0..SCANS {
        let began = Moment::now();
        let mut buffer = [0; 4096];
        for file in &files {
            // It may have gone.
            if let Ok(file) = openat(&root, &file[..], OFlags::RDONLY, Mode::empty()) {
                let _ = read(&file, &mut buffer);
            }
        }
        began.charge(&mut floors, count);
        let began = Moment::now();
        let sysfs = Sysfs::open(Path::new("/sys"))?;
        let mut scan = sysfs.scan()?;
        while let Some(event) = scan.next() {
            std::hint::black_box(event)?;
        }
        began.charge(&mut scans, count);
    }
    println!("\nA scan alone, per device, {SCANS} rounds in turns, {count} devices");
    report("scan, wall", "us", &mut scans.wall);
    report("scan, processor", "us", &mut scans.processor);
    report("open, read, close", "us", &mut floors.wall);
    verdict(spread(&mut scans.wall).1, SCAN_MICROSECONDS, "us per device");
    Ok(())
}

/// When something began, by the clock and by the processor time of this process.
struct Moment {
    wall: Instant,
    processor: Duration,
}

impl Moment {
    fn now() -> Self {
        let processor = clock_gettime(ClockId::ProcessCPUTime);
        Self { wall: Instant::now(), processor: Duration::try_from(processor).unwrap() }
    }

    /// Notes what one of `count` has cost since, in microseconds.
    fn charge(&self, costs: &mut Costs, count: usize) {
        let now = Self::now();
        costs.wall.push(microseconds(now.wall - self.wall, count));
        costs.processor.push(microseconds(now.processor - self.processor, count));
    }
}

/// Who acts on the devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Plugd,
    Mdevd,
}

/// What rounds have cost, in milliseconds, or microseconds a device.
#[derive(Debug, Default)]
struct Costs {
    processor: Vec<f64>,
    wall: Vec<f64>,
}

/// What all measurements need.
struct Bench {
    plugd: PathBuf,
    /// mdevd and mdevd-coldplug.
    mdevd: Option<[PathBuf; 2]>,
    dir: tempfile::TempDir,
}

impl Bench {
    fn prepare(plugd: PathBuf) -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("dev"))?;
        fs::write(dir.path().join("mdev.conf"), include_str!("rules.conf"))?;
        // Where the state file is by default.
        mount(Path::new("/run"))?;
        let peer = |name: &str| {
            let path = std::env::var_os(name).map(PathBuf::from);
            if path.is_none() {
                println!("NOTE: {name} is not set: no comparison with mdevd");
            }
            path
        };
        let mdevd = peer("MDEVD").zip(peer("MDEVD_COLDPLUG")).map(|(one, other)| [one, other]);
        Ok(Self { plugd, mdevd, dir })
    }

    fn dev(&self) -> PathBuf {
        self.dir.path().join("dev")
    }

    fn coldplug(&self, processors: &str) -> Outcome<()> {
        let mut all = vec![(Who::Plugd, Costs::default())];
        all.extend(self.mdevd.as_ref().map(|_| (Who::Mdevd, Costs::default())));
        let (mut ratios, mut trees) = (Costs::default(), Vec::new());
        // The first round is to warm up.
        for round in 0..=ROUNDS {
            trees.clear();
            let mut times = Vec::new();
            for (who, costs) in &mut all {
                let (processor, wall) = self.round(*who)?;
                trees.push(tree(&self.dev())?);
                if round > 0 {
                    costs.processor.push(processor);
                    costs.wall.push(wall);
                    times.push((processor, wall));
                }
            }
            if let [ours, hers] = times[..] {
                ratios.processor.push(ours.0 / hers.0);
                ratios.wall.push(ours.1 / hers.1);
            }
        }
        println!("\nColdplug with 70 rules on {processors}, {ROUNDS} rounds in turns");
        for (who, costs) in &mut all {
            let who = format!("{who:?}").to_lowercase();
            report(&format!("{who}, processor"), "ms", &mut costs.processor);
            report(&format!("{who}, wall"), "ms", &mut costs.wall);
        }
        if let [ours, hers] = &trees[..] {
            let differ = ours.iter().filter(|node| hers.get(node.0) != Some(node.1)).count();
            let missing = hers.keys().filter(|path| !ours.contains_key(*path)).count();
            let count = ours.len();
            println!("  {count} files in /dev, {differ} differ from mdevd's, {missing} missing");
            let of_best = all[0].1.processor[0] / all[1].1.processor[0];
            println!("  {of_best:.3} of mdevd's processor time by the best rounds");
            let what = "of mdevd's processor time, by the median of the rounds";
            verdict(spread(&mut ratios.processor).1, RATIO, what);
            let what = "of mdevd's wall time, by the median of the rounds";
            verdict(spread(&mut ratios.wall).1, RATIO, what);
        }
        Ok(())
    }

    /// Says how many devices each acts on.
    fn coverage(&self) -> Outcome<()> {
        let log = fs::read_to_string(self.log(Who::Plugd))?;
        let told = log.lines().find_map(|line| line.split_once(" coldplug: "));
        println!("  plugd:  {}", told.ok_or("plugd told nothing of a coldplug")?.1);
        let Some([_, coldplug]) = &self.mdevd else { return Ok(()) };
        let (mut source, _) = Source::open_kernel(128 << 20)?;
        if !Command::new(coldplug).status()?.success() {
            return Err("mdevd-coldplug failed".into());
        }
        let (mut buffer, mut paths) = (vec![0; DATAGRAM_MAX], HashSet::new());
        loop {
            match source.receive(&mut buffer) {
                Received::Datagram(length) => {
                    let event = Uevent::parse(&buffer[..length], Header::Required);
                    let event = event.map_err(|malformed| malformed.to_string())?;
                    paths.extend(event.last(b"DEVPATH").map(ToOwned::to_owned));
                }
                Received::Empty => break,
                other => return Err(format!("{other:?}").into()),
            }
        }
        println!("  mdevd:  {} devices", paths.len());
        if paths.is_empty() {
            return Err("no event of mdevd-coldplug's came: nothing was compared".into());
        }
        Ok(())
    }

    fn log(&self, who: Who) -> PathBuf {
        self.dir.path().join(format!("{who:?}.log"))
    }

    /// Has it act on all devices, with an empty /dev. Returns the processor time
    /// and the time that it took, in milliseconds.
    fn round(&self, who: Who) -> Outcome<(f64, f64)> {
        mount(&self.dev())?;
        let log = File::create(self.log(who))?;
        let conf = self.dir.path().join("mdev.conf");
        let mut command = match (who, &self.mdevd) {
            (Who::Mdevd, Some([mdevd, _])) => {
                let mut mdevd = Command::new(mdevd);
                mdevd.args(["-v", "0", "-b", "134217728", "-f"]).arg(conf).arg("-d");
                mdevd
            }
            _ => {
                let _ = fs::remove_dir_all("/run/plugd");
                let mut plugd = Command::new(&self.plugd);
                plugd.args(["run", "--coldplug", "--control", &format!("@{CONTROL}"), "--conf"]);
                plugd.arg(conf).arg("--dev");
                plugd
            }
        };
        command.arg(self.dev()).stdin(Stdio::null()).stderr(log);
        let began = Instant::now();
        let mut daemon = command.spawn()?;
        let more = match (who, &self.mdevd) {
            (Who::Mdevd, Some([_, coldplug])) => run_mdevd_coldplug(&mut daemon, coldplug)?,
            _ => await_settled(&mut daemon)?,
        };
        let wall = began.elapsed();
        let processor = world::time(daemon.id())? + more;
        if who == Who::Plugd {
            kill_process(Pid::from_child(&daemon), Signal::TERM)?;
            let status = daemon.wait()?;
            let log = fs::read_to_string(self.log(who))?;
            if !(status.success() && log.contains(", failed 0")) {
                return Err(format!("plugd: {status}: {log}").into());
            }
        } else {
            daemon.kill()?;
            daemon.wait()?;
        }
        Ok((processor.as_secs_f64() * 1e3, wall.as_secs_f64() * 1e3))
    }
}

/// Waits until plugd has acted on all devices, and sleeps.
fn await_settled(plugd: &mut Child) -> Outcome<Duration> {
    let address = Address::Abstract(CONTROL.into());
    let mut connection = loop {
        match Connection::open(&address, Some(PATIENCE)) {
            Ok(connection) => break connection,
            Err(_) if plugd.try_wait()?.is_none() => sleep(Duration::from_micros(100)),
            Err(_) => return Err("plugd has ended".into()),
        }
    };
    let answer = connection.send(&["settle"]).and_then(|()| connection.receive());
    let answer = answer.map_err(|failure| format!("{failure:?}"))?;
    if answer.outcome != Answer::Ok {
        return Err(format!("plugd does not settle: {}", answer.text).into());
    }
    await_sleep(plugd)?;
    Ok(Duration::ZERO)
}

/// Runs mdevd-coldplug once mdevd listens, and waits until mdevd has acted on all.
/// Returns the processor time of mdevd-coldplug.
fn run_mdevd_coldplug(mdevd: &mut Child, coldplug: &Path) -> Outcome<Duration> {
    while listener()?.is_none() {
        if let Some(status) = mdevd.try_wait()? {
            return Err(format!("mdevd: {status}").into());
        }
        sleep(Duration::from_micros(100));
    }
    let mut coldplug = Command::new(coldplug).stdin(Stdio::null()).spawn()?;
    // What it has used can be asked for until it is waited for.
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(Pid::from_child(&coldplug)), ended)?;
    let time = world::time(coldplug.id())?;
    let status = coldplug.wait()?;
    if !status.success() {
        return Err(format!("mdevd-coldplug: {status}").into());
    }
    await_sleep(mdevd)?;
    Ok(time)
}

/// Waits until nothing is queued for a daemon, and it sleeps.
fn await_sleep(daemon: &Child) -> Outcome<()> {
    let deadline = Instant::now() + PATIENCE;
    while queued()? > 0 || world::is_running(daemon.id())? {
        if Instant::now() > deadline {
            return Err("it does not get ready".into());
        }
        sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// Prints how these values are spread.
fn report(what: &str, unit: &str, values: &mut [f64]) {
    let (least, median, most) = spread(values);
    println!("  {what:20} median {median:7.2} {unit}   min {least:7.2}   max {most:7.2}");
}

/// The share of one of so many.
#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn microseconds(time: Duration, count: usize) -> f64 {
    time.as_nanos() as f64 / 1e3 / count as f64
}
