use super::format::{
    AT_CAPACITY, AT_REGION, AT_USED, AT_VERSION, HEADER, RECORD_HEAD, REGION_HEAD, REGION_MIN,
    put_checked,
};
use super::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::uevent::Header;

const WORLD: World = World { boot: *b"01234567-89ab-cdef-0123-456789abcdef", engine: 7 };

/// Remembers what its bytes were before each change of them: what would be left
/// if the process were killed there.
#[derive(Default)]
struct Witness {
    bytes: Vec<u8>,
    seen: RefCell<Vec<Vec<u8>>>,
}

impl Storage for Witness {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.seen.get_mut().push(self.bytes.clone());
        &mut self.bytes
    }

    fn resize(&mut self, length: usize) {
        self.seen.get_mut().push(self.bytes.clone());
        self.bytes.resize(length, 0);
    }
}

/// What is known, in another form: by path the identity, and whether it is settled.
type Model = BTreeMap<String, (String, bool)>;

fn model<S: Storage>(inventory: &Inventory<S>) -> Model {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let known = inventory.iter().map(|k| (text(k.path), (text(k.identity), k.settled)));
    let model: Model = known.collect();
    assert_eq!(model.len(), inventory.len(), "a path is known twice");
    model
}

fn datagram(action: &str, path: &str, fields: &str) -> Vec<u8> {
    format!("{action}@{path}\0ACTION={action}\0DEVPATH={path}\0SUBSYSTEM=s\0{fields}").into_bytes()
}

fn event(datagram: &[u8]) -> Uevent<'_> {
    Uevent::parse(datagram, Header::Required).unwrap()
}

fn act<S: Storage>(inventory: &mut Inventory<S>, action: &str, path: &str, fields: &str) {
    let datagram = datagram(action, path, fields);
    inventory.begin(&event(&datagram), true);
    inventory.finish(&event(&datagram));
}

fn empty() -> Inventory<Vec<u8>> {
    Inventory::new(Vec::new(), WORLD)
}

#[test]
fn devices_come_change_and_go() {
    let mut inventory = empty();
    act(&mut inventory, "add", "/devices/x", "MAJOR=7\0MINOR=1\0DRIVER=d\0");
    let identity = b"SUBSYSTEM=s\0MAJOR=7\0MINOR=1\0";
    let known = inventory.get(b"/devices/x").unwrap();
    assert_eq!((known.identity, known.settled, known.incarnation), (&identity[..], true, 0));
    inventory.set_incarnation(b"/devices/x", 42);
    assert_eq!(inventory.get(b"/devices/x").unwrap().incarnation, 42);

    act(&mut inventory, "change", "/devices/x", "DISKSEQ=5\0");
    let changed = inventory.get(b"/devices/x").unwrap();
    let identity = b"SUBSYSTEM=s\0MAJOR=7\0MINOR=1\0DISKSEQ=5\0";
    assert_eq!(changed.identity, &identity[..], "what it does not tell stays");

    act(&mut inventory, "remove", "/devices/x", "");
    assert!(inventory.is_empty());
    act(&mut inventory, "change", "/devices/x", "");
    act(&mut inventory, "bind", "/devices/x", "");
    assert!(inventory.is_empty(), "nobody knows what it was before");
}

#[test]
fn what_is_no_device_is_not_kept() {
    let mut inventory = empty();
    act(&mut inventory, "add", "/module/x", "");
    act(&mut inventory, "add", "/bus/usb/drivers/x", "");
    let bare = b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0";
    inventory.begin(&event(bare), true);
    inventory.finish(&event(bare));
    assert!(inventory.is_empty());
}

#[test]
fn an_act_is_noted_before_and_after() {
    let mut inventory = empty();
    let add = datagram("add", "/devices/x", "");
    inventory.begin(&event(&add), true);
    assert!(!inventory.get(b"/devices/x").unwrap().settled);
    inventory.finish(&event(&add));
    assert!(inventory.get(b"/devices/x").unwrap().settled);
    for action in ["remove", "change", "move"] {
        let datagram = datagram(action, "/devices/x", "DEVPATH_OLD=/devices/y\0");
        inventory.begin(&event(&datagram), true);
        assert!(!inventory.get(b"/devices/x").unwrap().settled, "{action}");
    }
}

#[test]
fn a_device_moves_with_all_below_it() {
    let mut inventory = empty();
    for path in ["/devices/net/a", "/devices/net/a/queues/rx", "/devices/net/ab"] {
        act(&mut inventory, "add", path, "IFINDEX=3\0INTERFACE=a\0");
    }
    inventory.set_incarnation(b"/devices/net/a/queues/rx", 9);
    act(&mut inventory, "move", "/devices/net/b", "DEVPATH_OLD=/devices/net/a\0INTERFACE=b\0");
    let paths: Vec<String> = model(&inventory).into_keys().collect();
    assert_eq!(paths, ["/devices/net/ab", "/devices/net/b", "/devices/net/b/queues/rx"]);
    let moved = inventory.get(b"/devices/net/b").unwrap();
    assert_eq!(moved.identity, b"SUBSYSTEM=s\0INTERFACE=b\0IFINDEX=3\0");
    assert_eq!(inventory.get(b"/devices/net/b/queues/rx").unwrap().incarnation, 9);
    assert!(moved.settled);
    // One that is not known has still to be added.
    let unknown = datagram("move", "/devices/net/d", "DEVPATH_OLD=/devices/net/c\0");
    inventory.begin(&event(&unknown), true);
    inventory.doubt(b"/devices/net/d");
    inventory.finish(&event(&unknown));
    assert!(!inventory.get(b"/devices/net/d").unwrap().settled);
    inventory.doubt(b"/devices/net/b/queues/rx");
    assert_eq!(inventory.get(b"/devices/net/b/queues/rx").unwrap().incarnation, 0);
    inventory.doubt(b"/devices/net/nobody");
}

#[test]
fn those_below_a_path_are_found() {
    let mut inventory = empty();
    let paths = ["/devices/a", "/devices/a!", "/devices/a/b", "/devices/a/b/c", "/devices/ab"];
    for path in paths.iter().rev() {
        act(&mut inventory, "add", path, "");
    }
    let text = |known: Known<'_>| String::from_utf8(known.path.to_vec()).unwrap();
    assert_eq!(inventory.iter().map(text).collect::<Vec<_>>(), paths);
    let below = |path: &str| inventory.below(path.as_bytes()).map(text).collect::<Vec<_>>();
    assert_eq!(below("/devices/a"), paths[2..4]);
    assert_eq!(below("/devices"), paths);
    assert_eq!(below("/devices/b"), [""; 0]);
}

#[test]
fn what_is_to_be_looked_up_is_found() {
    let mut inventory = empty();
    for path in ["/devices/a", "/devices/b", "/devices/c"] {
        act(&mut inventory, "add", path, "DEVNAME=n\0");
        inventory.mark_unseen(path.as_bytes());
        assert_eq!(inventory.get(path.as_bytes()).unwrap().incarnation, 0);
    }
    let unseen = |inventory: &Inventory<Vec<u8>>| {
        let paths = inventory.unseen().map(|path| String::from_utf8(path.to_vec()).unwrap());
        paths.collect::<Vec<_>>()
    };
    assert_eq!(unseen(&inventory), ["/devices/a", "/devices/b", "/devices/c"]);
    inventory.set_incarnation(b"/devices/a", 5);
    inventory.doubt(b"/devices/b");
    assert_eq!(unseen(&inventory), ["/devices/c"]);
    // What has still to be done for a device is not undone by a look at it.
    act(&mut inventory, "remove", "/devices/b", "DEVNAME=n\0");
    act(&mut inventory, "change", "/devices/a", "DEVNAME=n\0");
    act(&mut inventory, "change", "/devices/c", "DEVNAME=n\0");
    for path in [&b"/devices/a"[..], b"/devices/c"] {
        inventory.mark_unseen(path);
        inventory.set_incarnation(path, 5);
        assert_eq!(inventory.get(path).unwrap().incarnation, 0);
    }
    assert_eq!(unseen(&inventory), [""; 0]);
    act(&mut inventory, "add", "/devices/a", "DEVNAME=n\0");
    inventory.set_incarnation(b"/devices/a", 6);
    assert_eq!(inventory.get(b"/devices/a").unwrap().incarnation, 6);
}

/// By a plugd that was killed then.
#[test]
fn what_was_begun_before_a_move_is_not_done_by_it() {
    let mut inventory = empty();
    let fields = "INTERFACE=a\0IFINDEX=3\0";
    act(&mut inventory, "add", "/devices/net/a", fields);
    inventory.set_incarnation(b"/devices/net/a", 7);
    inventory.begin(&event(&datagram("change", "/devices/net/a", fields)), true);
    let fields = "INTERFACE=b\0IFINDEX=3\0";
    let moves = format!("DEVPATH_OLD=/devices/net/a\0{fields}");
    act(&mut inventory, "move", "/devices/net/b", &moves);
    let settled = |inventory: &Inventory<_>| inventory.get(b"/devices/net/b").unwrap().settled;
    assert!(!settled(&inventory));
    act(&mut inventory, "add", "/devices/net/b", fields);
    assert!(settled(&inventory));
}

#[test]
fn a_move_costs_no_look_at_all_others() {
    let cost = |devices: u32| {
        let mut inventory = empty();
        for number in 0..devices {
            act(&mut inventory, "add", &format!("/devices/{number}/d"), "");
        }
        act(&mut inventory, "add", "/devices/x0", "");
        act(&mut inventory, "add", "/devices/x0/below", "");
        let now = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let began = now();
        for number in 0..300 {
            let old = format!("DEVPATH_OLD=/devices/x{number}\0");
            act(&mut inventory, "move", &format!("/devices/x{}", number + 1), &old);
        }
        assert!(inventory.get(b"/devices/x300/below").is_some());
        std::time::Duration::try_from(now() - began).unwrap()
    };
    let (few, many) = (cost(100), cost(20_000));
    assert!(many < few * 20, "{few:?} with 100 devices, {many:?} with 20000");
}

#[test]
fn another_world_is_told() {
    let mut inventory = empty();
    act(&mut inventory, "add", "/devices/x", "");
    let bytes = inventory.storage.clone();
    let load = |bytes: Vec<u8>, world| Inventory::load(bytes, world).map_err(|(why, _)| why);
    assert_eq!(load(bytes.clone(), WORLD).unwrap().len(), 1);
    assert_eq!(load(Vec::new(), WORLD).unwrap_err(), Unusable::Empty);
    let boot = World { boot: [b'x'; 36], ..WORLD };
    assert_eq!(load(bytes.clone(), boot).unwrap_err(), Unusable::Boot);
    let engine = World { engine: 8, ..WORLD };
    assert_eq!(load(bytes.clone(), engine).unwrap_err(), Unusable::Engine);
    let mut other = bytes.clone();
    other[AT_VERSION] ^= 0x40;
    assert_eq!(load(other, WORLD).unwrap_err(), Unusable::Version);
    for at in [0, AT_REGION, HEADER + AT_USED, HEADER + REGION_HEAD + RECORD_HEAD + 3] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        assert_eq!(load(damaged, WORLD).unwrap_err(), Unusable::Damaged, "byte {at}");
    }
}

#[test]
fn what_goes_unsettles_all_others_of_its_name() {
    let mut inventory = empty();
    for (path, number) in [("/devices/a", 1), ("/devices/b", 2), ("/devices/c", 3)] {
        let name = if number == 3 { "other" } else { "name" };
        act(&mut inventory, "add", path, &format!("MAJOR=7\0MINOR={number}\0DEVNAME={name}\0"));
    }
    let settled = |inventory: &Inventory<Vec<u8>>| {
        [&b"/devices/a"[..], b"/devices/b", b"/devices/c"]
            .map(|path| inventory.get(path).map(|known| known.settled))
    };
    inventory.set_incarnation(b"/devices/b", 5);
    let remove = datagram("remove", "/devices/a", "MAJOR=7\0MINOR=1\0DEVNAME=name\0");
    assert!(inventory.begin(&event(&remove), true));
    inventory.finish(&event(&remove));
    assert_eq!(settled(&inventory), [None, Some(false), Some(true)]);
    act(&mut inventory, "change", "/devices/b", "MAJOR=7\0MINOR=2\0DEVNAME=name\0");
    let changed = inventory.get(b"/devices/b").unwrap();
    assert_eq!((changed.settled, changed.incarnation), (false, 0), "it is not as it was");
    // Also of one that is not known any more; not of itself.
    act(&mut inventory, "add", "/devices/b", "MAJOR=7\0MINOR=2\0DEVNAME=name\0");
    assert!(inventory.begin(&event(&remove), true));
    assert_eq!(settled(&inventory), [None, Some(false), Some(true)]);
    let remove = datagram("remove", "/devices/c", "MAJOR=7\0MINOR=3\0DEVNAME=other\0");
    assert!(!inventory.begin(&event(&remove), true));
}

#[test]
fn there_is_room_for_what_is_about_to_come() {
    let mut inventory = empty();
    act(&mut inventory, "add", "/devices/first", "MAJOR=7\0MINOR=1\0");
    inventory.reserve(1000);
    let size = inventory.storage().len();
    assert!(size < 200 * 1000, "{size}");
    assert!(inventory.ordered.capacity() > 1000);
    for n in 0..1000 {
        let path = format!("/devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/{n:04}");
        act(&mut inventory, "add", &path, &format!("MAJOR=8\0MINOR={n}\0DEVNAME=disk{n}\0"));
    }
    assert_eq!(inventory.storage().len(), size);
    inventory.reserve(1);
    assert_eq!((inventory.storage().len(), inventory.len()), (size, 1001));
}

#[test]
fn memory_is_bounded() {
    const DEVICES: usize = 50_000;
    let mut inventory = empty();
    let paths =
        |i: usize| format!("/devices/pci0000:00/0000:00:1f.2/ata1/host0/target/block/sd{i}");
    let fields =
        |i| format!("MAJOR=259\0MINOR={i:05}\0DEVNAME=s{i:04x}\0DEVTYPE=disk\0DISKSEQ=123456\0");
    let total = |inventory: &Inventory<Vec<u8>>| {
        let Inventory { storage, index, claims, names, ordered, .. } = inventory;
        let indices = [index, claims, names].map(HashTable::allocation_size);
        storage.capacity() + indices.iter().sum::<usize>() + ordered.capacity() * size_of::<u32>()
    };
    let check = |inventory: &Inventory<Vec<u8>>, when: &str| {
        let each = total(inventory) / inventory.len();
        assert!(each <= 400, "{each} bytes for each of {} devices {when}", inventory.len());
    };
    for reserved in [0, DEVICES / 2] {
        inventory = empty();
        inventory.reserve(reserved);
        for i in 0..DEVICES {
            act(&mut inventory, "add", &paths(i), &fields(i));
            if i >= reserved.max(1000) {
                check(&inventory, "that have come");
            }
        }
    }
    // However long they come and go.
    for i in 0..2 * DEVICES {
        act(&mut inventory, "remove", &paths(i % DEVICES), "");
        act(&mut inventory, "add", &paths(i % DEVICES), &fields(i % DEVICES));
        check(&inventory, "that come and go");
    }
    // When nearly all of them go.
    for i in 0..DEVICES - 500 {
        act(&mut inventory, "remove", &paths(i), "");
        check(&inventory, "that are left");
    }
    for i in DEVICES - 500..DEVICES {
        let known = inventory.get(paths(i).as_bytes()).unwrap();
        assert!(known.settled && known.identity.ends_with(fields(i).as_bytes()));
    }
}

/// The disk is full.
#[test]
fn nothing_is_given_up_to_give_memory_back() {
    struct Full(Vec<u8>);

    impl Storage for Full {
        fn bytes(&self) -> &[u8] {
            &self.0
        }

        fn bytes_mut(&mut self) -> &mut [u8] {
            &mut self.0
        }

        fn resize(&mut self, length: usize) {
            assert!(length <= 1 << 20);
            self.0.resize(length, 0);
        }

        fn has_room(&mut self, length: usize) -> bool {
            length <= 1 << 17
        }
    }

    let mut inventory = Inventory::new(Full(Vec::new()), WORLD);
    let path = |n: usize| format!("/devices/{n:04}");
    for n in 0..4000 {
        act(&mut inventory, "add", &path(n), "");
    }
    let full = inventory.storage().0.len();
    assert!(full > 1 << 17);
    for n in 1..4000 {
        act(&mut inventory, "remove", &path(n), "");
    }
    assert_eq!(inventory.storage().0.len(), full);
    assert_eq!(model(&inventory).len(), 1);
}

#[derive(Debug, Clone)]
struct Step {
    action: &'static str,
    path: u8,
    other: u8,
    minor: u8,
    finished: bool,
}

prop_compose! {
    fn step()(
        action in prop_oneof![Just("add"), Just("remove"), Just("change"), Just("move")],
        (path, other) in (0..12_u8, 0..12_u8),
        minor in 0..3_u8,
        finished in prop::bool::weighted(0.9),
    ) -> Step {
        Step { action, path, other, minor, finished }
    }
}

fn path(number: u8) -> String {
    match number {
        0..4 => format!("/devices/{number}"),
        4..8 => format!("/devices/{}/{}", number - 4, "long".repeat(40)),
        _ => format!("/devices/{}/b/{number}", number - 8),
    }
}

/// What a step leads to, told without bytes. `undone` are those that never came, or for
/// which something was begun, but were known by a move.
fn expect(model: &mut Model, undone: &mut BTreeSet<String>, step: &Step, fields: &str) {
    let new = path(step.path);
    let identity = format!("SUBSYSTEM=s\0{fields}");
    match step.action {
        "add" => {
            undone.remove(&new);
            model.insert(new, (identity, step.finished));
        }
        "remove" if step.finished => {
            undone.remove(&new);
            model.remove(&new);
        }
        "change" if model.contains_key(&new) => {
            let settled = step.finished && !undone.contains(&new);
            model.insert(new, (identity, settled));
        }
        "move" => {
            let old = path(step.other);
            let below = |p: &&String| p.strip_prefix(&old).is_some_and(|r| r.starts_with('/'));
            for from in model.keys().filter(below).cloned().collect::<Vec<_>>() {
                let to = new.clone() + &from[old.len()..];
                let mut device = model[&from].clone();
                let is_undone = undone.contains(&from);
                if step.finished {
                    model.remove(&from);
                    undone.remove(&from);
                } else {
                    device.1 = false;
                }
                undone.remove(&to);
                undone.extend(is_undone.then(|| to.clone()));
                model.insert(to, device);
            }
            let held = [&old, &new].into_iter().find(|path| model.contains_key(*path));
            let is_undone = held.is_none_or(|held| !model[held].1);
            if step.finished {
                model.remove(&old);
                undone.remove(&old);
            }
            undone.remove(&new);
            undone.extend(is_undone.then(|| new.clone()));
            model.insert(new, (identity, !is_undone && step.finished));
        }
        _ => {
            if let Some(device) = model.get_mut(&new) {
                device.1 = false;
            }
        }
    }
}

proptest! {
    #[test]
    fn it_is_what_a_map_would_be_and_is_read_back(
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let mut inventory = empty();
        let (mut expected, mut undone) = (Model::new(), BTreeSet::new());
        for step in &steps {
            // A device cannot move below itself, or into the place of what it is in.
            let (new, old) = (path(step.path), path(step.other));
            if step.action == "move" && (new.starts_with(&old) || old.starts_with(&new)) {
                continue;
            }
            let fields = format!("PARTN={}\0", step.minor);
            let old = format!("{fields}DEVPATH_OLD={}\0", path(step.other));
            let fields_told = if step.action == "move" { &old } else { &fields };
            let datagram = datagram(step.action, &path(step.path), fields_told);
            inventory.begin(&event(&datagram), true);
            if step.finished {
                inventory.finish(&event(&datagram));
            }
            expect(&mut expected, &mut undone, step, &fields);
            prop_assert_eq!(&model(&inventory), &expected, "after {:?}", step);
        }
        let bytes = inventory.storage.clone();
        let again = Inventory::load(bytes, WORLD).map_err(|(why, _)| why).unwrap();
        prop_assert_eq!(model(&again), expected);
    }

    /// Killed at any moment, it is what it was before or after, but for the
    /// device in hand, which may be not settled.
    #[test]
    fn a_kill_at_any_moment_leaves_what_was_or_what_is(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut inventory = Inventory::new(Witness::default(), WORLD);
        for step in steps.iter().filter(|step| step.action != "move") {
            let before = model(&inventory);
            inventory.storage.seen.get_mut().clear();
            let fields = format!("PARTN={}\0", step.minor);
            let datagram = datagram(step.action, &path(step.path), &fields);
            inventory.begin(&event(&datagram), true);
            inventory.finish(&event(&datagram));
            let after = model(&inventory);
            let snapshots = inventory.storage.seen.take();
            for bytes in snapshots {
                let left = Inventory::load(bytes, WORLD).map_err(|(why, _)| why).unwrap();
                let mut left = model(&left);
                let device = left.remove(&path(step.path));
                let (mut was, mut is) = (before.clone(), after.clone());
                let (was_device, is_device) =
                    (was.remove(&path(step.path)), is.remove(&path(step.path)));
                prop_assert_eq!(&left, &was);
                prop_assert_eq!(&left, &is);
                let identity = |d: &Option<(String, bool)>| d.as_ref().map(|d| d.0.clone());
                let known = identity(&device);
                prop_assert!(known == identity(&was_device) || known == identity(&is_device));
                if known != identity(&was_device) && was_device.is_some() && known.is_none() {
                    prop_assert_eq!(step.action, "remove");
                }
            }
        }
    }

    #[test]
    fn no_bytes_are_too_strange(mut bytes: Vec<u8>, flips: Vec<(usize, u8)>) {
        let _ = Inventory::load(bytes.clone(), WORLD);
        let mut inventory = empty();
        for number in 0..8 {
            act(&mut inventory, "add", &path(number), "MAJOR=1\0");
        }
        bytes = inventory.storage;
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if let Ok(mut inventory) = Inventory::load(bytes, WORLD) {
            for number in 0..12 {
                act(&mut inventory, "add", &path(number), "MAJOR=2\0");
            }
            assert!(inventory.len() >= 12);
        }
    }
}

/// What moves is never known as settled at both ends: the next daemon would remove
/// what is gone from the one, and leave alone what it has just taken down.
#[test]
fn a_kill_in_a_move_loses_nothing() {
    let mut inventory = Inventory::new(Witness::default(), WORLD);
    for path in ["/devices/a", "/devices/a/b", "/devices/a/b/c"] {
        let datagram = datagram("add", path, "MAJOR=7\0");
        inventory.begin(&event(&datagram), true);
        inventory.finish(&event(&datagram));
    }
    inventory.storage.seen.get_mut().clear();
    let datagram = datagram("move", "/devices/z", "MAJOR=7\0DEVPATH_OLD=/devices/a\0");
    inventory.begin(&event(&datagram), true);
    inventory.finish(&event(&datagram));
    let snapshots = inventory.storage.seen.take();
    assert!(snapshots.len() > 5, "{}", snapshots.len());
    for bytes in snapshots {
        let left = Inventory::load(bytes, WORLD).map_err(|(why, _)| why).unwrap();
        for rest in ["", "/b", "/b/c"] {
            let at = |top: &str| left.get(format!("/devices/{top}{rest}").as_bytes());
            let (old, new) = (at("a"), at("z"));
            assert!(old.is_some() || new.is_some(), "{rest}");
            assert!(old.is_none() || new.is_none_or(|new| !new.settled), "{rest}");
        }
    }
}

#[test]
fn a_node_and_a_name_belong_to_one_device() {
    let mut inventory = empty();
    act(&mut inventory, "add", "/devices/x", "MAJOR=7\0MINOR=1\0");
    act(&mut inventory, "add", "/devices/n", "INTERFACE=eth0\0IFINDEX=2\0");
    let rival = |inventory: &Inventory<Vec<u8>>, told: &str| {
        let known = inventory.rival(b"/devices/z", told.as_bytes())?;
        Some(String::from_utf8(known.path.to_vec()).unwrap())
    };
    let device = "SUBSYSTEM=s\0MAJOR=7\0MINOR=1\0";
    assert_eq!(rival(&inventory, device).as_deref(), Some("/devices/x"));
    assert!(inventory.rival(b"/devices/x", device.as_bytes()).is_none(), "itself");
    for other in [
        "SUBSYSTEM=block\0MAJOR=7\0MINOR=1\0",
        "SUBSYSTEM=s\0MAJOR=7\0MINOR=2\0",
        "SUBSYSTEM=s\0MAJOR=7\0",
        "SUBSYSTEM=usb\0INTERFACE=eth0\0",
    ] {
        assert_eq!(rival(&inventory, other), None, "{other}");
    }
    // In a new region, and when it is gone.
    for number in 0..200 {
        act(&mut inventory, "add", &path(number), &format!("MAJOR=9\0MINOR={number}\0"));
    }
    assert_eq!(rival(&inventory, device).as_deref(), Some("/devices/x"));
    act(&mut inventory, "remove", "/devices/x", "");
    assert_eq!(rival(&inventory, device), None);
    assert_eq!(inventory.claims.len(), 200);
}

#[test]
fn how_far_it_came_is_known() {
    let mut inventory = empty();
    assert_eq!(inventory.progress(), Progress::Unknown);
    for progress in [Progress::Through(7), Progress::Left(7), Progress::Left(0), Progress::Unknown]
    {
        inventory.set_progress(progress);
        let again = Inventory::load(inventory.storage.clone(), WORLD);
        assert_eq!(again.map_err(|(why, _)| why).unwrap().progress(), progress);
    }
}

/// But what is only a hint: the incarnation, and what is not used.
#[test]
fn a_bit_that_was_flipped_is_told_or_changes_nothing() {
    let mut inventory = empty();
    for number in 0..6 {
        act(&mut inventory, "add", &path(number), &format!("MAJOR=7\0MINOR={number}\0"));
    }
    act(&mut inventory, "remove", &path(2), "MAJOR=7\0MINOR=2\0");
    inventory.begin(&event(&datagram("remove", &path(3), "MAJOR=7\0MINOR=3\0")), true);
    for progress in [Progress::Unknown, Progress::Through(7), Progress::Left(7)] {
        inventory.set_progress(progress);
        let bytes = &inventory.storage;
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let Ok(loaded) = Inventory::load(flipped, WORLD) else { continue };
            assert_eq!(model(&loaded), model(&inventory), "bit {bit}");
            assert_eq!(loaded.progress(), progress, "bit {bit}");
        }
    }
}

#[test]
fn a_region_that_is_not_aligned_is_damage() {
    let mut inventory = empty();
    for less in 1..8 {
        let mut bytes = inventory.storage.clone();
        put_checked(&mut bytes, HEADER + AT_CAPACITY, REGION_MIN as u64 - less);
        let loaded = Inventory::load(bytes, WORLD).map_err(|(why, _)| why);
        assert_eq!(loaded.unwrap_err(), Unusable::Damaged, "{less}");
    }
    // As much as a region holds, and more.
    for number in 0..200 {
        act(&mut inventory, "add", &path(number), "MAJOR=1\0");
    }
    assert_eq!(inventory.len(), 200);
}

/// Each of these is a sentence of the module `judgment`.
#[test]
fn events_are_judged_by_what_is_known() {
    let mut inventory = empty();
    act(&mut inventory, "add", "/devices/x", "MAJOR=7\0MINOR=1\0DISKSEQ=5\0");
    let scanned = Trust::Scanned { last: Some(100) };
    let same = "MAJOR=7\0MINOR=1\0DISKSEQ=5\0";
    let cases = [
        // Before any scan each event is passed on as it came.
        (Trust::Unscanned, "add", "/devices/x", same, 50, Verdict::Act),
        (Trust::Unscanned, "add", "/devices/x", "MAJOR=8\0", 50, Verdict::Act),
        (Trust::Unscanned, "remove", "/devices/y", "", 50, Verdict::Act),
        // After a loss, what went unseen is removed.
        (Trust::Lossy, "add", "/devices/x", same, 50, Verdict::Act),
        (Trust::Lossy, "add", "/devices/x", "MAJOR=7\0MINOR=2\0", 50, Verdict::RemoveFirst),
        (Trust::Lossy, "remove", "/devices/y", "", 50, Verdict::Act),
        (Trust::Lossy, "remove", "/devices/x", "MAJOR=8\0", 50, Verdict::Act),
        // After a scan, what is known or over is left out.
        (scanned, "add", "/devices/x", same, 50, Verdict::Stale),
        (scanned, "add", "/devices/x", same, 150, Verdict::Act),
        (Trust::Scanned { last: None }, "add", "/devices/x", same, 50, Verdict::StaleIfSame),
        (scanned, "add", "/devices/x", "MAJOR=8\0", 50, Verdict::Stale),
        (scanned, "add", "/devices/x", "MAJOR=8\0", 150, Verdict::RemoveFirst),
        (scanned, "add", "/devices/y", "MAJOR=8\0", 50, Verdict::Act),
        (scanned, "remove", "/devices/x", same, 50, Verdict::Act),
        (scanned, "remove", "/devices/x", "", 50, Verdict::Act),
        (scanned, "remove", "/devices/x", "MAJOR=8\0", 50, Verdict::Stale),
        (scanned, "remove", "/devices/x", "DISKSEQ=4\0", 50, Verdict::Stale),
        (scanned, "remove", "/devices/x", "DISKSEQ=6\0", 50, Verdict::Act),
        (scanned, "remove", "/devices/y", "", 50, Verdict::StaleIfListed),
        (scanned, "change", "/devices/x", same, 50, Verdict::Act),
        (scanned, "change", "/devices/x", "MINOR=8\0", 50, Verdict::Stale),
        (scanned, "change", "/devices/x", "DISKSEQ=6\0", 150, Verdict::Act),
        (scanned, "change", "/devices/y", "", 50, Verdict::StaleIfListed),
        (scanned, "change", "/devices/y", "", 150, Verdict::Act),
        // Another one has its numbers, and must have gone.
        (Trust::Lossy, "add", "/devices/z", "MAJOR=7\0MINOR=1\0", 50, Verdict::RemoveFirst),
        (scanned, "add", "/devices/z", "MAJOR=7\0MINOR=1\0", 150, Verdict::RemoveFirst),
        (scanned, "add", "/devices/z", "MAJOR=7\0MINOR=1\0", 50, Verdict::Stale),
        (scanned, "add", "/devices/z", "MAJOR=7\0MINOR=9\0", 150, Verdict::Act),
        (Trust::Lossy, "remove", "/devices/z", "MAJOR=7\0MINOR=1\0", 50, Verdict::Stale),
        // Somebody asked for it; or it is no device.
        (
            scanned,
            "add",
            "/devices/x",
            "MAJOR=7\0MINOR=1\0DISKSEQ=5\0SYNTH_UUID=0\0",
            50,
            Verdict::Act,
        ),
        (scanned, "remove", "/module/x", "", 50, Verdict::Act),
    ];
    for (trust, action, path, fields, number, verdict) in cases {
        let datagram = datagram(action, path, &format!("{fields}SEQNUM={number}\0"));
        let judged = inventory.judge(&event(&datagram), trust);
        assert_eq!(judged, verdict, "{trust:?} {action} {path} {fields:?} {number}");
    }
    let unnumbered = datagram("change", "/devices/y", "");
    assert_eq!(inventory.judge(&event(&unnumbered), scanned), Verdict::Act);
}
