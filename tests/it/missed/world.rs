//! A made-up world: a tree that looks like a sysfs, and events as the kernel
//! would send them for what happens in it, in its order: a device is in the tree
//! before it is told of, and told of as gone when its links have left, and before
//! its directory does (device_add and device_del in drivers/base/core.c).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use plugd::control::Address;
use plugd::control::client::Connection;
use plugd::control::wire::Outcome;
use plugd::uevent::{Header, Uevent};
use tempfile::TempDir;

use crate::harness::PLUGD;
use crate::harness::daemon::Plugd;
use crate::harness::inject::{Injector, uevent};

/// A device, as whoever acts on it knows it: its DEVPATH and number, and its serial
/// and state. These are no part of what plugd takes for its identity. The serial
/// tells it from all others, and is learned only when it comes; the state is what
/// changes.
pub(crate) type Devices = BTreeMap<(String, u32), (u32, u32)>;

/// What there is in a /dev, by its name: of nodes their number, mode and owner, of
/// links where they lead.
type Nodes = BTreeMap<String, String>;

/// What is made of devices, by the last digit of their names.
const NODES: &str = "\
d[0-9]*[01] 0:0 640
d[0-9]*[23] 7:8 600 =sub/
d[0-9]*[45] 100:200 604 >deep/sub/
.* 1:2 666
";

#[derive(Debug, Clone)]
struct Device {
    kind: Kind,
    minor: u32,
    /// Its node is called by that.
    name: u32,
    serial: u32,
    state: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It has a node.
    Usual,
    /// It has none: all of this kind have the same identity.
    WithoutNode,
    /// Whatever changes makes another medium of it.
    Disk,
}

impl Device {
    fn text(&self) -> String {
        let Self { kind, minor, name, serial, state } = self;
        let node = format!("MAJOR=7\nMINOR={minor}\nDEVNAME=d{name}\n");
        let identity = match kind {
            Kind::Usual => node,
            Kind::WithoutNode => String::new(),
            // As long as it is the same device, the text is of the same length.
            Kind::Disk => format!("{node}DISKSEQ={serial}{state:08}\n"),
        };
        format!("{identity}SERIAL={serial}\nSTATE={state:08}\n")
    }

    fn subsystem(&self) -> &'static str {
        if self.kind == Kind::Disk { "block" } else { "c" }
    }

    /// The number of its node.
    fn number(&self) -> Option<u32> {
        (self.kind != Kind::WithoutNode).then_some(self.minor)
    }
}

pub(crate) struct World {
    tmp: TempDir,
    injector: Injector,
    devices: BTreeMap<String, Device>,
    next: u32,
    /// Numbers are given out again as soon as they are free.
    pub(crate) thrifty: bool,
    /// Names are, numbers are not.
    pub(crate) renamed: bool,
    /// There are devices of all kinds.
    pub(crate) mixed: bool,
    /// This kernel tells how many events there were.
    numbered: bool,
    /// Where the links to the devices are.
    classes: &'static str,
    random: u64,
    /// What happened, for whoever wants to know how it came to that.
    told: RefCell<Vec<String>>,
    /// Most of what happens is that devices are replaced and renamed: then neither
    /// their paths nor their numbers tell much.
    pub(crate) confusing: bool,
    /// Whether events are sent at all.
    pub(crate) silent: bool,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        // There, as in sysfs, no inode number is given twice.
        let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
        for directory in ["sys/devices", "sys/class/c", "sys/class/block", "sys/kernel", "made"] {
            fs::create_dir_all(tmp.path().join(directory)).unwrap();
        }
        fs::write(tmp.path().join("rules"), ".* 0:0 660 *true\n").unwrap();
        fs::write(tmp.path().join("acted"), "").unwrap();
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let (injector, devices) = (Injector::new(), BTreeMap::new());
        let told = RefCell::default();
        Self {
            tmp,
            injector,
            devices,
            next: 0,
            random,
            told,
            thrifty: false,
            renamed: false,
            mixed: false,
            numbered: false,
            classes: "sys/class",
            confusing: false,
            silent: false,
        }
    }

    /// One whose kernel tells how many events there were.
    pub(crate) fn numbered(seed: u64) -> Self {
        let mut world = Self::new(seed);
        world.numbered = true;
        world.tell_number(real_number());
        world
    }

    /// From now on that is the number of the last event.
    pub(crate) fn tell_number(&self, number: u64) {
        fs::write(self.at("sys/kernel/uevent_seqnum"), format!("{number}\n")).unwrap();
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    /// A plugd that acts on this world, by rules that are only printed; what it has
    /// acted on is written to a file.
    pub(crate) fn plugd(&self, options: &[&str]) -> Plugd {
        let acted = fs::File::options().append(true).open(self.at("acted")).unwrap();
        Plugd::new()
            .args(["run", "-q", "--dry-run", "--output-fd", "9", "--sys"])
            .args([self.at("sys").as_os_str(), "--conf".as_ref(), self.at("rules").as_os_str()])
            .args(options)
            .fd(acted, 9)
    }

    /// A plugd that makes nodes and links for this world, in its `dev`.
    pub(crate) fn plugd_with_nodes(&self, options: &[&str]) -> Plugd {
        self.with_nodes(Plugd::new(), options)
    }

    /// The same, killed when it makes this system call so many times.
    pub(crate) fn plugd_killed_at(&self, call: &str, count: u64, options: &[&str]) -> Plugd {
        let (trace, inject) =
            (format!("trace={call}"), format!("inject={call}:signal=KILL:when={count}"));
        let strace = ["-D", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject, PLUGD];
        self.with_nodes(Plugd::new().program("strace").args(strace), options)
    }

    fn with_nodes(&self, plugd: Plugd, options: &[&str]) -> Plugd {
        fs::create_dir_all(self.at("dev")).unwrap();
        fs::write(self.at("rules"), NODES).unwrap();
        plugd
            .args(["run", "-q", "--sys"])
            .args([self.at("sys").as_os_str(), "--conf".as_ref(), self.at("rules").as_os_str()])
            .args(["--dev".as_ref(), self.at("dev").as_os_str()])
            .args(options)
    }

    /// The nodes and links that there have to be.
    fn nodes(&self) -> Nodes {
        let mut nodes = Nodes::new();
        for device in self.devices.values() {
            let (Some(minor), name) = (device.number(), device.name) else { continue };
            let (place, access) = match name % 10 {
                0 | 1 => ("", "640 0:0"),
                2 | 3 => ("sub/", "600 7:8"),
                4 | 5 => ("deep/sub/", "604 100:200"),
                _ => ("", "666 1:2"),
            };
            let what = format!("{} 7:{minor} {access}", device.subsystem());
            nodes.insert(format!("{place}d{name}"), what);
            if place == "deep/sub/" {
                nodes.insert(format!("d{name}"), format!("-> {place}d{name}"));
            }
        }
        nodes
    }

    /// All that there is but directories.
    fn nodes_made(&self) -> Nodes {
        let mut nodes = Nodes::new();
        let mut directories = vec![self.at("dev")];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                let found = fs::symlink_metadata(&path).unwrap();
                let name = path.strip_prefix(self.at("dev")).unwrap().to_str().unwrap().to_owned();
                let what = if found.is_dir() {
                    directories.push(path);
                    continue;
                } else if found.is_symlink() {
                    format!("-> {}", fs::read_link(&path).unwrap().display())
                } else {
                    let (number, mode) = (found.rdev(), found.mode() & 0o7777);
                    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
                    let kind = match found.file_type() {
                        kind if kind.is_char_device() => "c".to_owned(),
                        kind if kind.is_block_device() => "block".to_owned(),
                        kind => format!("{kind:?}"),
                    };
                    format!("{kind} {major}:{minor} {mode:o} {}:{}", found.uid(), found.gid())
                };
                nodes.insert(name, what);
            }
        }
        nodes
    }

    /// They have to be the same.
    pub(crate) fn check_nodes(&self, when: &str) {
        let (real, made) = (self.nodes(), self.nodes_made());
        let told = self.told.take();
        let wrong: Vec<_> = made.iter().filter(|node| real.get(node.0) != Some(node.1)).collect();
        let missing: Vec<_> = real.iter().filter(|node| made.get(node.0) != Some(node.1)).collect();
        let exact = wrong.is_empty() && missing.is_empty();
        assert!(exact, "{when}: there are {wrong:?}, missing {missing:?}; told {told:#?}");
    }

    /// A number below `limit`, from a sequence that the seed decides.
    pub(crate) fn random(&mut self, limit: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random >> 16).unwrap() % limit
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.devices.keys().cloned().collect()
    }

    fn pick(&mut self) -> Option<String> {
        let count = self.devices.len();
        (count > 0).then(|| {
            let index = self.random(count);
            self.devices.keys().nth(index).unwrap().clone()
        })
    }

    /// Something happens.
    pub(crate) fn happen(&mut self) {
        let few = self.devices.len() < 5;
        let many = self.devices.len() > 40;
        let what = self.random(10);
        match if self.confusing && what > 3 { 6 + what % 2 } else { what } {
            0..=3 if !many => self.come(),
            _ if few => self.come(),
            0..=2 | 4 => {
                let path = self.pick().unwrap();
                self.remove(&path);
            }
            5 => {
                let path = self.pick().unwrap();
                self.change(&path);
            }
            6 => {
                let path = self.pick().unwrap();
                let again = self.random(2) == 0 || self.confusing;
                self.replace(&path, again);
            }
            7 => {
                let path = self.pick().unwrap();
                self.rename(&path);
            }
            _ => self.come(),
        }
    }

    /// A device comes, perhaps below another one.
    fn come(&mut self) {
        self.next += 1;
        let parent = if self.random(3) == 0 { None } else { self.pick() };
        let parent = parent.filter(|path| path.split('/').count() < 7);
        let name = self.random(30);
        let path = format!("{}/d{name}", parent.as_deref().unwrap_or("/devices"));
        if !self.devices.contains_key(&path) {
            let minor = self.number();
            self.add(&path, minor);
        }
    }

    /// A number for a device.
    fn number(&self) -> u32 {
        if !self.thrifty || self.renamed {
            return self.next;
        }
        let taken: BTreeSet<u32> = self.devices.values().map(|device| device.minor).collect();
        (1..).find(|number| !taken.contains(number)).unwrap()
    }

    pub(crate) fn add(&mut self, path: &str, minor: u32) {
        self.next += 1;
        let serial = self.next;
        let taken: BTreeSet<u32> = self.devices.values().map(|device| device.name).collect();
        let first = if self.renamed { 1 } else { minor };
        let name = (first..).find(|name| !taken.contains(name)).unwrap();
        // Whatever comes to a path is of the same subsystem, as in sysfs.
        let kind = match self.mixed.then(|| kind_of(path)) {
            Some(0) => Kind::WithoutNode,
            Some(1) => Kind::Disk,
            _ => Kind::Usual,
        };
        let made = self.at("made/it");
        fs::create_dir(&made).unwrap();
        let device = Device { kind, minor, name, serial, state: 0 };
        fs::write(made.join("uevent"), device.text()).unwrap();
        fs::rename(made, self.in_sys(path)).unwrap();
        symlink(format!("../..{path}"), self.link(path, &device)).unwrap();
        self.devices.insert(path.to_owned(), device);
        self.tell("add", path, "");
    }

    /// A device goes, with all below it, the lowest first.
    pub(crate) fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        let paths = self.paths().into_iter().rev();
        for path in paths.filter(|other| other == path || other.starts_with(&below)) {
            fs::remove_file(self.link(&path, &self.devices[&path])).unwrap();
            fs::remove_file(self.in_sys(&path).join("uevent")).unwrap();
            self.tell("remove", &path, "");
            fs::remove_dir_all(self.in_sys(&path)).unwrap();
            self.devices.remove(&path);
        }
    }

    /// A device changes, in a way that is not a part of its identity.
    pub(crate) fn change(&mut self, path: &str) {
        let device = self.devices.get_mut(path).unwrap();
        device.state += 1;
        let text = device.text();
        // At once, and in the same file: it is the same device.
        let file = fs::File::options().write(true).open(self.in_sys(path).join("uevent"));
        file.unwrap().write_all_at(text.as_bytes(), 0).unwrap();
        self.tell("change", path, "");
    }

    /// A device goes, and another one comes to its path, with the same number or not.
    pub(crate) fn replace(&mut self, path: &str, same: bool) {
        let minor = self.devices[path].minor;
        self.remove(path);
        self.next += 1;
        let minor = if same && !self.renamed { minor } else { self.number() };
        self.add(path, minor);
    }

    /// A device moves to another name, with all below it.
    pub(crate) fn rename(&mut self, path: &str) {
        let parent = path.rsplit_once('/').unwrap().0;
        let new = format!("{parent}/m{}", 4 * self.random(7) + kind_of(path));
        if self.devices.contains_key(&new) {
            return;
        }
        fs::rename(self.in_sys(path), self.in_sys(&new)).unwrap();
        let below = format!("{path}/");
        let paths = self.paths().into_iter();
        for old in paths.filter(|other| other == path || other.starts_with(&below)) {
            let moved = new.clone() + &old[path.len()..];
            let device = self.devices.remove(&old).unwrap();
            fs::remove_file(self.link(&old, &device)).unwrap();
            symlink(format!("../..{moved}"), self.link(&moved, &device)).unwrap();
            self.devices.insert(moved, device);
        }
        self.tell("move", &new, path);
    }

    /// The kernel tells only now of a device that is there.
    pub(crate) fn announce(&self, path: &str) {
        self.tell("add", path, "");
    }

    /// Something happens while the classes are not to be seen, but in `hidden`.
    pub(crate) fn hidden(&mut self, act: impl FnOnce(&mut Self)) {
        self.classes = "hidden";
        act(self);
        self.classes = "sys/class";
    }

    fn in_sys(&self, path: &str) -> PathBuf {
        self.at("sys").join(&path[1..])
    }

    fn link(&self, path: &str, device: &Device) -> PathBuf {
        self.at(self.classes).join(device.subsystem()).join(path.replace('/', "!"))
    }

    fn tell(&self, action: &str, path: &str, old: &str) {
        if self.silent {
            if self.numbered {
                self.tell_number(real_number() + 1);
            }
            return;
        }
        let device = &self.devices[path];
        self.told.borrow_mut().push(format!("{action} {path} {device:?} {old}"));
        let (text, old) = (device.text(), format!("DEVPATH_OLD={old}"));
        let subsystem = format!("SUBSYSTEM={}", device.subsystem());
        let mut fields = vec![&*subsystem];
        fields.extend((action == "move").then_some(&*old));
        fields.extend(text.lines());
        self.injector.send(&uevent(action, path, &fields)).unwrap_or_else(|error| {
            // Nobody listens.
            assert_eq!(error.raw_os_error(), Some(3), "{error}");
        });
        if self.numbered {
            self.tell_number(real_number());
        }
    }

    /// What there is.
    pub(crate) fn real(&self) -> Devices {
        let devices = self.devices.iter();
        devices
            .map(|(path, d)| ((path.clone(), d.number().unwrap_or(0)), (d.serial, d.state)))
            .collect()
    }

    /// Takes away what was half written when plugd was killed: it is as good as not
    /// written.
    pub(crate) fn cut(&self) {
        cut(&self.at("acted"));
    }

    /// Waits until the plugd with this control socket has made up for everything.
    pub(crate) fn settle(name: &str) {
        let address = Address::Abstract(name.into());
        let mut connection = Connection::open(&address, Some(Duration::from_secs(60))).unwrap();
        connection.send(&["settle", "--timeout", "50"]).unwrap();
        let reply = connection.receive().unwrap();
        assert_eq!(reply.outcome, Outcome::Ok, "settle: {}", reply.text);
    }
}

/// A device's name ends in a number that tells of what kind it is.
fn kind_of(path: &str) -> usize {
    let end = path.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    path[end..].parse::<usize>().unwrap_or(0) % 4
}

/// The number of the kernel's last event, which gives one to those that are sent
/// here too (uevent_net_broadcast in lib/kobject_uevent.c).
pub(crate) fn real_number() -> u64 {
    fs::read_to_string("/sys/kernel/uevent_seqnum").unwrap().trim().parse().unwrap()
}

/// A file to which plugd, or its handler, appends the variables of the events that
/// were acted on: each with a NUL, and one more after each event.
#[derive(Default)]
pub(crate) struct Acted {
    /// How much of it was read.
    read: u64,
}

impl Acted {
    /// What was appended since the last time.
    pub(crate) fn read(&mut self, path: &Path) -> Vec<u8> {
        let file = fs::File::open(path).unwrap();
        let length = file.metadata().unwrap().len();
        let mut bytes = vec![0; usize::try_from(length - self.read).unwrap()];
        file.read_exact_at(&mut bytes, self.read).unwrap();
        self.read = length;
        bytes
    }
}

/// The events in what was appended. No field is empty.
pub(crate) fn events(bytes: &[u8]) -> impl Iterator<Item = Uevent<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.windows(2).position(|two| two == b"\0\0").unwrap() + 1;
        let event = Uevent::parse(&rest[..end], Header::Optional).unwrap();
        rest = &rest[end + 1..];
        Some(event)
    })
}

/// Takes away what was half written there.
pub(crate) fn cut(acted: &Path) {
    let bytes = fs::read(acted).unwrap();
    let end = bytes.windows(2).rposition(|two| two == b"\0\0").map_or(0, |at| at + 2);
    let file = fs::File::options().write(true).open(acted).unwrap();
    file.set_len(u64::try_from(end).unwrap()).unwrap();
}

/// What somebody believes there is who hears of what plugd has acted on.
#[derive(Default)]
pub(crate) struct Belief {
    pub(crate) devices: Devices,
    /// What nodes there are: who comes last has it, and whoever goes takes it along.
    nodes: BTreeSet<String>,
    /// Nobody tells it of changes that were missed.
    pub(crate) without_changes: bool,
    acted: Acted,
    /// All that was heard, for whoever wants to know how it came to that.
    pub(crate) heard: Vec<String>,
}

impl Belief {
    /// Hears of what was acted on since the last time.
    pub(crate) fn hear(&mut self, world: &World) {
        let bytes = self.acted.read(&world.at("acted"));
        events(&bytes).for_each(|event| self.believe(&event));
    }

    fn believe(&mut self, event: &Uevent<'_>) {
        let text = |key: &str| event.last(key.as_bytes()).map(|v| v.to_str().unwrap().to_owned());
        let (action, path) = (text("ACTION").unwrap(), text("DEVPATH").unwrap());
        let number = |key| text(key).and_then(|value| value.parse::<u32>().ok());
        let (minor, name) = (number("MINOR").unwrap_or(0), text("DEVNAME"));
        let (serial, state) = (number("SERIAL"), number("STATE").unwrap_or(0));
        let replay = text("PLUGD_REPLAY");
        let told = format!("{serial:?} {state:?} {replay:?} {:?}", text("SEQNUM"));
        self.heard.push(format!("{action} {path} {minor} {told}"));
        // Of one whose coming went unseen these tell nothing.
        let change = |known: &mut (u32, u32)| {
            if Some(known.0) == serial {
                known.1 = state;
            }
        };
        match &*action {
            "add" => {
                self.nodes.extend(name);
                // One that goes just now has no file any more that tells its serial.
                self.devices.insert((path, minor), (serial.unwrap_or(0), state));
            }
            "change" => self.devices.get_mut(&(path, minor)).map_or((), change),
            "remove" => {
                name.map(|name| self.nodes.remove(&name));
                self.devices.remove(&(path, minor));
            }
            "move" => {
                let old = text("DEVPATH_OLD").unwrap();
                let below = format!("{old}/");
                let moved: BTreeSet<_> = self
                    .devices
                    .keys()
                    .filter(|(path, _)| *path == old || path.starts_with(&below))
                    .cloned()
                    .collect();
                for (from, number) in moved {
                    let serial = self.devices.remove(&(from.clone(), number)).unwrap();
                    let to = path.clone() + &from[old.len()..];
                    self.devices.insert((to, number), serial);
                }
                let _ = self.devices.get_mut(&(path, minor)).map(change);
            }
            action => panic!("{action}"),
        }
    }

    /// What is believed has to be so.
    pub(crate) fn check(&mut self, world: &World, when: &str) {
        self.hear(world);
        let mut real = world.real();
        if self.without_changes {
            let states = real.values_mut().chain(self.devices.values_mut());
            states.for_each(|(_, state)| *state = 0);
        }
        let told = world.told.take();
        let devices = world.devices.values().filter(|device| device.number().is_some());
        let nodes: BTreeSet<String> = devices.map(|device| format!("d{}", device.name)).collect();
        if self.devices == real && self.nodes == nodes {
            self.heard.clear();
            return;
        }
        let wrong: Vec<_> =
            self.devices.iter().filter(|device| real.get(device.0) != Some(device.1)).collect();
        let missing: Vec<_> =
            real.iter().filter(|device| self.devices.get(device.0) != Some(device.1)).collect();
        let (nodes_missing, nodes_wrong) = (&nodes - &self.nodes, &self.nodes - &nodes);
        panic!(
            "{when}: believed {wrong:?}, missing {missing:?}; nodes missing {:?}, wrong {:?}; told {told:#?}; heard {:#?}",
            nodes_missing, nodes_wrong, self.heard
        );
    }
}
