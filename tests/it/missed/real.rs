//! Real devices: network interfaces, which any namespace can have, in storms that
//! are mostly missed.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use plugd::sys;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::daemon::{Daemon, Plugd};
use crate::harness::inject::{self, Injector, SetWhenDropped};
use crate::harness::{eventually, ns, skip};

use super::soak::seeds;
use super::world::{Acted, World, cut, events};

/// An interface, by its DEVPATH and IFINDEX, or one of its queues, by its DEVPATH
/// only.
type Interfaces = BTreeSet<(String, Option<u32>)>;

/// The interfaces of this network namespace, and what somebody believes of them who
/// hears of what plugd has acted on.
struct Machine {
    tmp: TempDir,
    /// What kinds of interfaces can be made here.
    kinds: Vec<&'static str>,
    random: u64,
    acted: Acted,
    believed: Interfaces,
    /// How often what was heard of them: add, remove, move.
    heard: [usize; 3],
    /// What happened since the last look, for whoever wants to know.
    told: Vec<String>,
}

impl Machine {
    fn new(seed: u64) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join("rules"), ".* 0:0 660\n").unwrap();
        fs::write(tmp.path().join("acted"), "").unwrap();
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self {
            tmp,
            kinds: kinds(),
            random,
            acted: Acted::default(),
            believed: Interfaces::new(),
            heard: [0; 3],
            told: Vec::new(),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    /// A plugd with rules that are only printed, to a file.
    fn with_rules(&self, options: &[&str]) -> Daemon {
        self.rules(options).start()
    }

    fn rules(&self, options: &[&str]) -> Plugd {
        let acted = fs::File::options().append(true).open(self.at("acted")).unwrap();
        Plugd::new()
            .args(["run", "-q", "--dry-run", "--output-fd", "9"])
            .args(["--replay-change", "net", "--conf"])
            .args([self.at("rules")])
            .args(options)
            .fd(acted, 9)
    }

    /// A plugd with a program that appends its environment to the same file.
    fn with_handler(&self, options: &[&str]) -> Daemon {
        Plugd::new()
            .args(["run", "-q", "--replay-change", "net"])
            .args(options)
            .args(["--"])
            .sh("{ env -0; printf '\\0'; } >>$ACTED")
            .env("ACTED", self.at("acted"))
            .start()
    }

    /// A number below `limit`, from a sequence that the seed decides.
    fn random(&mut self, limit: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random >> 16).unwrap() % limit
    }

    /// Some interfaces come, go, get other names, or are replaced. There are so few
    /// names that much of it fails, and that what comes has often been there before.
    fn happen(&mut self, count: usize) {
        let mut commands = Vec::new();
        for _ in 0..count {
            let (one, other) = (self.random(12), self.random(12));
            let kind = self.random(self.kinds.len());
            let kind = self.kinds[kind].replace("n0", &format!("n{other}"));
            // Sometimes it has the number that one of that name had.
            let number = match self.random(2) {
                0 => String::new(),
                _ => format!("index {}", 1000 + one),
            };
            let queues = 1 + self.random(3);
            let add = format!("link add n{one} {number} numrxqueues {queues} type {kind}");
            let remove = format!("link del n{one}");
            match self.random(10) {
                0..=3 => commands.push(add),
                4 | 5 => commands.push(remove),
                6 => commands.extend([remove, add]),
                7 => commands.push(format!("link set n{one} master n{other}")),
                _ => commands.push(format!("link set n{one} name n{other}")),
            }
        }
        ip(&commands);
        self.told.append(&mut commands);
    }

    fn hear(&mut self) {
        let bytes = self.acted.read(&self.at("acted"));
        for event in events(&bytes) {
            let value = |key: &str| event.last(key.as_bytes()).map(|v| v.to_str().unwrap());
            let (action, path) = (value("ACTION").unwrap(), value("DEVPATH").unwrap().to_owned());
            let index = match value("SUBSYSTEM") {
                Some("net") => Some(value("IFINDEX").unwrap().parse().unwrap()),
                Some("queues") => None,
                _ => continue,
            };
            let replay = value("PLUGD_REPLAY").unwrap_or_default();
            self.told.push(format!("heard {action} {path} {index:?} {replay}"));
            match action {
                "add" => {
                    self.heard[0] += 1;
                    self.believed.insert((path, index));
                }
                "remove" => {
                    self.heard[1] += 1;
                    self.believed.remove(&(path, index));
                }
                "move" => {
                    self.heard[2] += 1;
                    let old = value("DEVPATH_OLD").unwrap();
                    let below = format!("{old}/");
                    let all = std::mem::take(&mut self.believed).into_iter();
                    self.believed = all
                        .map(|(known, index)| match known.strip_prefix(old) {
                            Some("") => (path.clone(), index),
                            Some(rest) if known.starts_with(&below) => (path.clone() + rest, index),
                            _ => (known, index),
                        })
                        .collect();
                }
                "change" => {}
                action => panic!("{action}"),
            }
        }
    }

    /// What is believed has to be so. Of `queues` the kernel shows no `uevent`, so that
    /// one whose coming was missed is not found; if none was, all are known.
    fn check(&mut self, queues: bool, when: &str) {
        self.hear();
        let mut real = Interfaces::new();
        for name in interfaces() {
            let device = fs::canonicalize(Path::new("/sys/class/net").join(&name)).unwrap();
            let path = device.to_str().unwrap().strip_prefix("/sys").unwrap();
            let index = fs::read_to_string(device.join("ifindex")).unwrap();
            real.insert((path.to_owned(), Some(index.trim().parse().unwrap())));
            for queue in fs::read_dir(device.join("queues")).unwrap() {
                let queue =
                    format!("{path}/queues/{}", queue.unwrap().file_name().to_str().unwrap());
                if (queues && name != "lo") || self.believed.contains(&(queue.clone(), None)) {
                    real.insert((queue, None));
                }
            }
        }
        let told = std::mem::take(&mut self.told);
        let wrong: Vec<_> = self.believed.difference(&real).collect();
        let missing: Vec<_> = real.difference(&self.believed).collect();
        assert!(
            wrong.is_empty() && missing.is_empty(),
            "{when}: believed {wrong:?}, missing {missing:?}; {told:#?}"
        );
    }

    /// A storm while plugd is held back now and then, so that events are lost.
    fn storm(&mut self, daemon: &Daemon) {
        for _ in 0..1 + self.random(3) {
            let held = self.random(3) > 0;
            if held {
                daemon.signal(Signal::STOP);
            }
            let count = self.random(12);
            self.happen(count);
            daemon.signal(Signal::CONT);
        }
    }

    /// Much of each kind was heard of.
    fn check_heard(&self, storms: &Range<u64>) {
        let least = usize::try_from(storms.end - storms.start).unwrap() / 2;
        let [added, removed, moved] = self.heard;
        assert!(added > least && removed > least && moved * 5 > least, "{:?}", self.heard);
    }
}

/// Has ip(8) do all of it that can be done.
fn ip(commands: &[String]) {
    let mut ip = Command::new("ip")
        .args(["-force", "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    ip.stdin.take().unwrap().write_all((commands.join("\n") + "\n").as_bytes()).unwrap();
    ip.wait().unwrap();
}

/// The kinds of interfaces that this machine's kernel can make.
fn kinds() -> Vec<&'static str> {
    let mut kinds = vec!["bridge", "veth peer name n0", "dummy"];
    kinds.retain(|kind| {
        ip(&[format!("link add x0 type {kind}")]);
        let made = interfaces().contains(&"x0".to_owned());
        ip(&["link del x0".to_owned()]);
        if !made {
            skip("interfaces", "one of the kinds of interfaces", &format!("no {kind}"));
        }
        made
    });
    assert!(!kinds.is_empty(), "there are none");
    kinds
}

/// The names of those in this network namespace.
fn interfaces() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net").unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned()).collect()
}

/// One of the numbers that `plugd status --openmetrics` tells.
fn metric(name: &str) -> u64 {
    let status = Plugd::new().args(["status", "--openmetrics"]).finish();
    let line = status.stdout.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {status:?}")).parse().unwrap()
}

const SMALL: [&str; 5] = ["--coldplug", "--state", "none", "--receive-buffer-size", "4K"];

/// Storms, in the end of each of which what was heard is what there is.
fn storms(default: u64, which: u64, start: fn(&Machine, &[&str]) -> Daemon) {
    let storms = seeds(default);
    let mut machine = Machine::new(storms.start + which);
    let daemon = start(&machine, &SMALL);
    World::settle("plugd");
    for storm in storms.clone() {
        machine.storm(&daemon);
        World::settle("plugd");
        machine.check(false, &format!("storm {storm}"));
    }
    machine.check_heard(&storms);
    assert!(metric("plugd_overruns_total") > (storms.end - storms.start) / 4);
}

#[test]
fn after_every_storm_of_interfaces_the_state_is_exact() {
    ns::inside_a_machine(|| storms(100, 1, Machine::with_rules));
}

#[test]
fn a_handler_hears_of_all_interfaces_after_every_storm() {
    ns::inside_a_machine(|| storms(40, 2, Machine::with_handler));
}

#[test]
fn of_interfaces_nothing_is_missed_if_plugd_is_killed() {
    ns::inside_a_machine(|| {
        let kills = seeds(60);
        let mut machine = Machine::new(kills.start + 3);
        let state = machine.at("state");
        for kill in kills.clone() {
            let size = if kill % 2 == 0 { "4K" } else { "1M" };
            let options = ["--receive-buffer-size", size, "--state", state.to_str().unwrap()];
            let daemon = machine.with_rules(&options);
            // Sometimes it is killed in the middle of its start.
            if machine.random(2) > 0 {
                World::settle("plugd");
                cut(&machine.at("acted"));
                machine.check(false, &format!("before kill {kill}"));
            }
            let count = machine.random(12);
            machine.happen(count);
            drop(daemon);
            cut(&machine.at("acted"));
            let count = machine.random(8);
            machine.happen(count);
        }
        let _daemon = machine.with_rules(&["--state", state.to_str().unwrap()]);
        World::settle("plugd");
        machine.check(false, "after the last kill");
        machine.check_heard(&kills);
    });
}

#[test]
fn without_a_miss_all_queues_of_interfaces_are_known() {
    ns::inside_a_machine(|| {
        let mut machine = Machine::new(4);
        let _daemon = machine.with_rules(&["--coldplug", "--state", "none"]);
        for batch in 0..20 {
            machine.happen(5);
            World::settle("plugd");
            assert_eq!(metric("plugd_kernel_drops_total"), 0);
            machine.check(true, &format!("batch {batch}"));
        }
        assert!(machine.believed.iter().any(|(_, index)| index.is_none()));
    });
}

#[test]
fn a_queue_that_an_interface_has_lost_is_gone() {
    ns::inside_a_machine(|| {
        let mut machine = Machine::new(5);
        let _daemon = machine.with_rules(&["--coldplug", "--state", "none"]);
        inject::real_device("br7");
        let path = "/devices/virtual/net/br7/queues/rx-9";
        Injector::new().event("add", path, &["SUBSYSTEM=queues"]);
        World::settle("plugd");
        machine.hear();
        assert!(machine.believed.contains(&(path.to_owned(), None)));
        assert_eq!(Plugd::new().args(["rescan"]).finish().code, Some(0));
        machine.check(true, "after the rescan");
    });
}

/// As for every container that is started.
#[test]
fn nothing_is_left_of_interfaces_that_went_to_another_namespace() {
    ns::inside_a_machine(|| {
        let _daemon = Machine::new(6).with_rules(&["--coldplug", "--state", "none"]);
        let mut other = Command::new("unshare").args(["-n", "sleep", "1000"]).spawn().unwrap();
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        let others = format!("/proc/{}/ns/net", other.id());
        eventually("there is another namespace", || {
            fs::read_link(&others).is_ok_and(|it| it != own).then_some(())
        });
        let known = || {
            World::settle("plugd");
            metric("plugd_devices")
        };
        let before = known();
        for n in 0..10 {
            ip(&[format!("link add here{n} type veth peer name there{n}")]);
            assert!(known() >= before + 6, "an interface has queues");
            ip(&[format!("link set there{n} netns {}", other.id()), format!("link del here{n}")]);
            assert_eq!(known(), before);
        }
        other.kill().unwrap();
        other.wait().unwrap();
    });
}

#[test]
fn an_interface_that_is_renamed_just_after_the_start_is_not_taken_down() {
    ns::inside_a_machine(|| {
        let mut machine = Machine::new(6);
        inject::real_device("br7");
        let _daemon = machine.with_rules(&["--coldplug", "--state", "none"]);
        World::settle("plugd");
        ip(&["link set br7 name br8".to_owned()]);
        World::settle("plugd");
        machine.check(false, "after that");
        assert_eq!(machine.heard, [2, 0, 1], "lo and the bridge come, nothing goes");
        // Nothing was lost: that the move is doubted is no reason to tell of all.
        assert_eq!(metric("plugd_events_replayed_total{action=\"change\"}"), 0);
    });
}

/// What waits when devices are compared tells that it is the same one.
#[test]
fn an_interface_that_was_renamed_before_it_is_looked_for_moves() {
    ns::inside_a_machine(|| {
        let mut machine = Machine::new(12);
        let state = machine.at("state");
        let options = ["--state", state.to_str().unwrap()];
        inject::real_device("br7");
        let mut daemon = machine.with_rules(&options);
        World::settle("plugd");
        daemon.signal(Signal::TERM);
        daemon.wait_exit();
        let socket = inject::socket(plugd::netlink::KERNEL_GROUP);
        ip(&["link set br7 name br8".to_owned()]);
        let mut daemon = machine.rules(&options).args(["--fd", "3"]).fd(socket, 3).start();
        World::settle("plugd");
        machine.check(false, "after that");
        assert_eq!(machine.heard, [2, 0, 1], "lo and the bridge come, nothing goes");
        daemon.signal(Signal::TERM);
        daemon.wait_exit();
        // Where nobody has heard of it, nothing is waited for.
        ip(&["link set br8 name br9".to_owned()]);
        let _daemon = machine.with_rules(&options);
        World::settle("plugd");
        machine.check(false, "after the restart");
        assert_eq!(machine.heard, [3, 1, 1]);
    });
}

#[test]
fn an_interface_that_is_renamed_all_the_time_is_never_taken_down() {
    ns::inside_a_machine(|| {
        let mut machine = Machine::new(13);
        inject::real_device("br7");
        let daemon = machine.with_rules(&["--coldplug", "--state", "none"]);
        World::settle("plugd");
        let (end, renames) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            let _end = SetWhenDropped(&end);
            scope.spawn(|| {
                let names = ["br7", "br8"];
                for (from, to) in names.into_iter().zip(["br8", "br7"]).cycle() {
                    if end.load(Ordering::Relaxed) {
                        break;
                    }
                    ip(&[format!("link set {from} name {to}")]);
                    renames.fetch_add(1, Ordering::Relaxed);
                    // Not while it is compared each time.
                    metric("plugd_scans_total");
                }
            });
            let few = |scans: &u64| *scans < 10 || renames.load(Ordering::Relaxed) < 30;
            for scans in (0..).take_while(few) {
                daemon.signal(Signal::ALARM);
                eventually("it is compared", || {
                    (metric("plugd_scans_total") > scans).then_some(())
                });
            }
        });
        World::settle("plugd");
        machine.check(false, "in the end");
        let [_, removed, moved] = machine.heard;
        assert!(removed == 0 || metric("plugd_kernel_drops_total") > 0, "{removed} of {moved}");
    });
}

/// A sysfs of which nothing is to be seen but network interfaces: the kernel lets
/// this namespace's root ask for events of these alone.
fn only_interfaces(machine: &Machine) -> String {
    let sys = machine.at("sys");
    for directory in ["class/net", "devices", "kernel"] {
        let at = sys.join(directory);
        fs::create_dir_all(&at).unwrap();
        let from = Path::new("/sys").join(directory);
        let mounted = Command::new("mount").arg("--bind").args([from, at]).status().unwrap();
        assert!(mounted.success(), "mount --bind {directory}: {mounted}");
    }
    sys.to_str().unwrap().to_owned()
}

/// Many interfaces. Returns how many there are.
fn many(prefix: &str) -> usize {
    (0..60).for_each(|number| inject::real_device(&format!("{prefix}{number}")));
    interfaces().len()
}

#[test]
fn asked_at_the_start_the_kernel_tells_no_more_at_once_than_fits() {
    ns::inside_a_machine(|| {
        for size in ["4K", "64K"] {
            let mut machine = Machine::new(7);
            let sys = only_interfaces(&machine);
            let count = many(size);
            let options = ["-v", "--coldplug=kernel", "--state", "none", "--sys", &sys];
            let options = [&options[..], &["--receive-buffer-size", size]].concat();
            let daemon = machine.with_handler(&options);
            World::settle("plugd");
            // All of it has come back by then, and nothing else was needed.
            machine.check(false, size);
            let told = format!("had the kernel tell of {count} devices, {count} events came");
            daemon.wait_for_log(&told);
            assert_eq!(machine.heard, [count, 0, 0]);
            assert_eq!(
                [metric("plugd_overruns_total"), metric("plugd_kernel_drops_total")],
                [0; 2]
            );
        }
    });
}

/// Who listens has heard of them; what is not the same is found by reading.
#[test]
fn after_a_restart_the_kernel_is_asked_only_if_there_is_no_state() {
    ns::inside_a_machine(|| {
        let mut machine = Machine::new(11);
        let sys = only_interfaces(&machine);
        inject::real_device("br7");
        let state = machine.at("state");
        let mut start = |state: &str| {
            let listener = inject::socket(plugd::netlink::KERNEL_GROUP);
            let before = machine.heard;
            let options = ["--coldplug=kernel", "--state", state, "--sys", &sys];
            let mut daemon = machine.with_handler(&options);
            World::settle("plugd");
            machine.hear();
            daemon.signal(Signal::TERM);
            daemon.wait_exit();
            let heard = machine.heard.iter().zip(before).map(|(now, before)| now - before);
            (heard.sum::<usize>(), sys::socket_memory(&listener).unwrap().queued > 0)
        };
        let state = state.to_str().unwrap();
        assert_eq!(start(state), (2, true), "lo and the bridge");
        assert_eq!(start(state), (0, false));
        inject::real_device("br8");
        assert_eq!(start(state), (1, false));
        assert_eq!(start("none"), (3, true));
    });
}

/// It is asked for by a path where it is no more.
#[test]
fn what_is_renamed_while_the_kernel_is_asked_comes_as_well() {
    ns::inside_a_machine(|| {
        const SLOW: &str = "echo $ACTION $DEVPATH >>$TMP/out; \
                            [ $DEVPATH != /devices/virtual/net/br0 ] || read x <$TMP/go";
        let machine = Machine::new(10);
        let sys = only_interfaces(&machine);
        many("br");
        let daemon = Plugd::new()
            .args(["run", "-v", "--coldplug=kernel", "--state", "none"])
            .args(["--receive-buffer-size", "4K", "--sys", &sys, "--", "sh", "-c"])
            .args([SLOW])
            .start();
        daemon.fifo("go");
        // The first one is in hand, and the last one was not asked for.
        daemon.wait_for_lines("out", 1);
        ip(&["link set br9 name zz9".to_owned()]);
        daemon.release("go");
        World::settle("plugd");
        let lines = daemon.lines("out");
        let came = |name: &str| lines.contains(&format!("add /devices/virtual/net/{name}"));
        assert!(!came("br9"), "{lines:#?}");
        assert!(came("zz9"), "{lines:#?}");
    });
}

#[test]
fn asked_at_the_start_the_kernel_tells_of_all_while_other_events_come() {
    ns::inside_a_machine(|| {
        let mut machine = Machine::new(9);
        let sys = only_interfaces(&machine);
        let count = many("br");
        let socket = inject::socket(plugd::netlink::KERNEL_GROUP);
        // From the start on the queue is never empty.
        let injector = Injector::new();
        let send = || injector.event("change", "/devices/busy", &["SUBSYSTEM=c"]);
        (0..100).for_each(|_| send());
        let daemon = Plugd::new()
            .args(["run", "-v", "--coldplug=kernel", "--fd", "3", "--state", "none"])
            .args(["--sys", &sys, "--", "sh", "-c"])
            .args(["[ $DEVPATH = /devices/busy ] || { env -0; printf '\\0'; } >>$ACTED"])
            .env("ACTED", machine.at("acted"))
            .fd(socket, 3)
            .start();
        eventually("all is told of", || {
            while daemon.queued() < 100_000 {
                (0..20).for_each(|_| send());
            }
            let told = format!("had the kernel tell of {count} devices, {count} events came");
            (!daemon.logged(&told).is_empty()).then_some(())
        });
        World::settle("plugd");
        assert_eq!(metric("plugd_kernel_drops_total"), 0);
        machine.check(false, "after that");
    });
}

#[test]
fn plugd_coldplug_has_the_kernel_tell_no_more_at_once_than_fits() {
    ns::inside_a_machine(|| {
        let mut machine = Machine::new(8);
        let sys = only_interfaces(&machine);
        let count = many("br");
        let options = ["--state", "none", "--receive-buffer-size", "4K"];
        let _daemon = machine.with_handler(&options);
        let coldplug = Plugd::new().args(["coldplug", "--wait", "--sys", &sys]).finish();
        assert_eq!(coldplug.code, Some(0), "{coldplug:?}");
        // All of it is done by then.
        machine.check(false, "after that");
        assert_eq!(machine.heard, [count, 0, 0]);
        assert_eq!([metric("plugd_overruns_total"), metric("plugd_kernel_drops_total")], [0; 2]);
    });
}
