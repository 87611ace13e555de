//! What is left of a flood of events, more than anybody can act on.
//!
//! `cargo bench --bench flood`. A million events are injected back to back, of
//! devices that come and go in a tree that looks like a sysfs. A program notes each
//! event that it is run for; when all is quiet, what it was told of is compared with
//! what is there. plugd does it with its default settings, then, one after the
//! other, those whose programs these variables name: `MDEVD` (skarnet's), `BUSYBOX`
//! (its mdev -d, only as root) and `NOSH` (its plug-and-play-event-handler, which
//! gets its socket from plugd). Each has namespaces of its own.
//!
//! A device that is believed to be there and is not is a phantom; one that is there
//! without anybody knowing is missed. Wants `cc`. The static binary is built and
//! measured; where its target is not installed, or `PLUGD_BINARY` names another one,
//! that.
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
#[path = "common/mount.rs"]
mod mount;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Outcome, listener, queued, verdict};
use compile::compile_static;
use injector::Injector;
use memory::memory;
use mount::mount;

/// Fill what a daemon has in memory anyway, before that is measured.
const WARM_UP: usize = 100_000;
const EVENTS: usize = 1_000_000;
/// How many different devices come and go.
const DEVICES: usize = 2000;
/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    common::run("-nm", Some("-Urnm"), measure)
}

fn measure(plugd: PathBuf) -> Outcome<()> {
    let bench = Bench::prepare(plugd)?;
    println!("{}, {EVENTS} events of {DEVICES} devices, back to back", bench.plugd.display());
    println!("{:8} {:>9} {:>9} {:>8} {:>7} {:>9}", "", "told", "untold", "phantoms", "missed", "");
    let wrong = bench.flood("plugd", &bench.plugd)?;
    for name in ["mdevd", "busybox", "nosh"] {
        let variable = name.to_uppercase();
        match std::env::var_os(&variable) {
            Some(program) => {
                // That it has died is a figure, too.
                if let Err(error) = bench.flood(name, Path::new(&program)) {
                    println!("{name:8} {error}");
                }
            }
            None => println!("{name:8} NOTE: {variable} is not set"),
        }
    }
    verdict(wrong, 0.0, "devices that plugd is wrong about");
    Ok(())
}

/// What all measurements need.
struct Bench {
    plugd: PathBuf,
    dir: tempfile::TempDir,
}

impl Bench {
    fn prepare(plugd: PathBuf) -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        for name in ["world", "dev"] {
            fs::create_dir(dir.path().join(name))?;
        }
        let program = dir.path().join("logger");
        compile_static("logger.c", &program)?;
        let rule = format!(".* 0:0 660 *{}\n", program.display());
        fs::write(dir.path().join("mdev.conf"), rule)?;
        // Where plugd's state file is by default.
        mount(Path::new("/run"))?;
        Ok(Self { plugd, dir })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns about how many devices that one is wrong in the end.
    fn flood(&self, name: &str, program: &Path) -> Outcome<f64> {
        let mut world = World::new(self.at("world"))?;
        File::create(self.at("told"))?;
        let mut daemon = self.start(name, program)?;
        world.happen(WARM_UP)?;
        self.await_quiet(&mut daemon)?;
        let before = memory(daemon.0.id())?;
        let told_before = self.told()?.len();
        let began = Instant::now();
        world.happen(EVENTS)?;
        let sent = began.elapsed();
        self.await_quiet(&mut daemon)?;
        let took = began.elapsed();
        let after = memory(daemon.0.id())?;
        let told = self.told()?;
        drop(daemon);

        let mut believed = BTreeSet::new();
        for line in &told {
            match line.split_once(' ') {
                Some(("add", path)) => drop(believed.insert(path.to_owned())),
                Some(("remove", path)) => drop(believed.remove(path)),
                _ => {}
            }
        }
        let real: BTreeSet<String> =
            world.there.iter().enumerate().filter(|(_, there)| **there).map(path).collect();
        let phantoms = believed.difference(&real).count();
        let missed = real.difference(&believed).count();
        let count = told.len() - told_before;
        println!(
            "{name:8} {count:9} {:9} {phantoms:8} {missed:7}   of {} there; sent in {:.1} s, quiet \
             after {:.1} s; RSS {} KiB before, {} KiB after, anonymous {} and {}",
            EVENTS.saturating_sub(count),
            real.len(),
            sent.as_secs_f64(),
            took.as_secs_f64(),
            before.resident,
            after.resident,
            before.anonymous,
            after.anonymous,
        );
        Ok(f64::from(u32::try_from(phantoms + missed)?))
    }

    /// What the program was told of, of this world's devices.
    fn told(&self) -> Outcome<Vec<String>> {
        let text = fs::read_to_string(self.at("told"))?;
        let ours = text.lines().filter(|line| line.contains(ROOT));
        Ok(ours.map(ToOwned::to_owned).collect())
    }

    fn start(&self, name: &str, program: &Path) -> Outcome<Daemon> {
        let mut command = match name {
            "plugd" => {
                let mut plugd = Command::new(program);
                plugd.args(["run", "--coldplug", "--control", "@plugd-bench-flood", "--sys"]);
                plugd.arg(self.at("world/sys")).arg("--").arg(self.at("logger"));
                plugd
            }
            "mdevd" => {
                mount(&self.at("dev"))?;
                let mut mdevd = Command::new(program);
                mdevd.arg("-f").arg(self.at("mdev.conf")).arg("-d").arg(self.at("dev"));
                mdevd
            }
            "nosh" => {
                let mut listen = Command::new(&self.plugd);
                listen.args(["netlink-datagram-socket-listen", "--raw", "kobject-uevent", "1"]);
                listen.arg(program).arg(self.at("logger"));
                listen
            }
            // Its /dev and /etc/mdev.conf are where they are.
            _ => {
                let mut busybox = Command::new("unshare");
                busybox.args(["-m", "sh", "-c", BUSYBOX_WORLD]).arg(program);
                busybox.arg(self.at("mdev.conf"));
                busybox
            }
        };
        let mut daemon = Daemon(
            command
                .env("BENCH_LOG", self.at("told"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(File::create(self.at(&format!("{name}.log")))?)
                .spawn()?,
        );
        while listener()?.is_none() {
            if let Some(status) = daemon.0.try_wait()? {
                let log = fs::read_to_string(self.at(&format!("{name}.log")))?;
                return Err(format!("{name}: {status}: {log}").into());
            }
            sleep(Duration::from_millis(1));
        }
        Ok(daemon)
    }

    /// Waits until nothing is queued and nothing runs, and that for a while: what
    /// was lost may be made up for with a pause.
    fn await_quiet(&self, daemon: &mut Daemon) -> Outcome<()> {
        const FOR: Duration = Duration::from_secs(7);
        let deadline = Instant::now() + PATIENCE;
        let (mut since, mut length) = (Instant::now(), 0);
        while since.elapsed() < FOR {
            if let Some(status) = daemon.0.try_wait()? {
                return Err(format!("it has ended: {status}").into());
            }
            let found = fs::metadata(self.at("told"))?.len();
            if queued()? > 0 || found != length {
                (since, length) = (Instant::now(), found);
            }
            if Instant::now() > deadline {
                return Err("it does not get quiet".into());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Ends with its owner, whatever happens.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `$0 mdev -df` with /dev and /etc/mdev.conf in place of the real ones.
const BUSYBOX_WORLD: &str = "mount -t tmpfs etc /etc && mount -t tmpfs dev /dev || exit
    echo root:x:0:0::/: >/etc/passwd; cp \"$1\" /etc/mdev.conf
    exec \"$0\" mdev -df";

/// Where the devices are.
const ROOT: &str = "/devices/flood/";

fn path((number, _): (usize, &bool)) -> String {
    format!("{ROOT}d{number}")
}

/// A tree that looks like a sysfs, and devices that come and go in it: as the kernel
/// has it, one is in the tree before it is told of, and told of as gone when its link
/// has left, and before its directory does.
struct World {
    root: PathBuf,
    injector: Injector,
    /// Of each device whether it is there.
    there: Vec<bool>,
    random: u64,
    real_number: File,
    number: File,
}

impl World {
    fn new(root: PathBuf) -> Outcome<Self> {
        // As in sysfs, no inode number is given twice there.
        mount(&root)?;
        for directory in ["made", "sys/devices/flood", "sys/class/c", "sys/kernel"] {
            fs::create_dir_all(root.join(directory))?;
        }
        let number = File::create(root.join("sys/kernel/uevent_seqnum"))?;
        let real_number = File::open("/sys/kernel/uevent_seqnum")?;
        let (injector, there) = (Injector::new()?, vec![false; DEVICES]);
        let world = Self { root, injector, there, random: 1, real_number, number };
        world.tell_number()?;
        Ok(world)
    }

    /// So many times a device comes, or goes.
    fn happen(&mut self, count: usize) -> Outcome<()> {
        for _ in 0..count {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let device = usize::try_from(self.random >> 32)? % DEVICES;
            let path = path((device, &true));
            let (directory, name) = (self.root.join("sys").join(&path[1..]), format!("d{device}"));
            let link = self.root.join("sys/class/c").join(name);
            if self.there[device] {
                fs::remove_file(link)?;
                fs::remove_file(directory.join("uevent"))?;
                self.tell("remove", &path)?;
                fs::remove_dir(directory)?;
            } else {
                let made = self.root.join("made/it");
                fs::create_dir(&made)?;
                fs::write(made.join("uevent"), "DRIVER=flood\n")?;
                fs::rename(made, directory)?;
                symlink(format!("../..{path}"), link)?;
                self.tell("add", &path)?;
            }
            self.there[device] ^= true;
        }
        Ok(())
    }

    fn tell(&self, action: &str, path: &str) -> Outcome<()> {
        let event = format!(
            "{action}@{path}\0ACTION={action}\0DEVPATH={path}\0SUBSYSTEM=c\0DRIVER=flood\0"
        );
        self.injector.send(event.as_bytes())?;
        self.tell_number()
    }

    /// This is the number of the last event.
    fn tell_number(&self) -> Outcome<()> {
        let mut number = [0; 32];
        let length = self.real_number.read_at(&mut number, 0)?;
        self.number.write_all_at(&number[..length], 0)?;
        Ok(())
    }
}
