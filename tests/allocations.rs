//! Nothing is allocated for an event of a kind that was seen before: not to plan
//! what is done by rules, nor to do it, nor to pass it on; and not on its whole way
//! through the daemon, from the kernel's socket over the loop, the inventory and the
//! real sysfs. What is not counted, as it does take memory: programs that are started,
//! for their environment; what replaces something else; directories that are made;
//! whatever is logged; devices that come for the first time; and clients.
#![allow(unsafe_code, reason = "an allocator that counts cannot be written without")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use plugd::account::Accounts;
use plugd::devnode::DevRoot;
use plugd::engine::{self, Hands, Outcome, Ruled};
use plugd::environment::Base;
use plugd::inventory::{Inventory, World};
use plugd::r#loop::{self, Daemon, Setup, Start};
use plugd::machine::Limits;
use plugd::netlink::Source;
use plugd::notify::Notifier;
use plugd::presence::Presence;
use plugd::rebroadcast::{Multicast, Outlets, Output};
use plugd::recovery::Changes;
use plugd::rules::parse::{self, parse};
use plugd::rules::{Engine, NoSysfs, Settings};
use plugd::signals::Manner;
use plugd::state_file::Store;
use plugd::status;
use plugd::sysfs::Sysfs;
use plugd::uevent::{Header, Uevent};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, send, sendto, socket_with, socketpair,
};
use rustix::pipe::pipe;
use rustix::process::{Signal, getpid, kill_process};
use rustix::thread::UnshareFlags;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// This thread is the daemon's.
    static IS_DAEMON: Cell<bool> = const { Cell::new(false) };
}

static ALLOCATIONS_OF_DAEMON: AtomicU64 = AtomicU64::new(0);

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    if IS_DAEMON.get() {
        ALLOCATIONS_OF_DAEMON.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: all is left to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as of the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as of the caller.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as of the caller.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const RULES: &[u8] = b"
-SUBSYSTEM=block;DEVTYPE=(disk|partition);.* 0:6 660 ! *handle $MDEV
$MODALIAS=pci:v0000(....).* 0:0 660 @modprobe \"$MODALIAS\"
@189,0-127 0:0 664 =bus/usb/%0
(sd|hd)([a-z]+)([0-9]*) 0:6 660 >disks/%2/%3 @link $MDEV
tty.* 0:5 660 =../%0
.* 0:0 660 =a%x
";

const EVENTS: [&str; 9] = [
    "ACTION=add DEVPATH=/block/sda SUBSYSTEM=block DEVTYPE=disk DEVNAME=sda MAJOR=8 MINOR=0",
    "ACTION=add DEVPATH=/block/sda/sda1 SUBSYSTEM=block DEVNAME=sda1 MAJOR=8 MINOR=1",
    "ACTION=remove DEVPATH=/block/sda/sda1 SUBSYSTEM=block DEVNAME=sda1 MAJOR=8 MINOR=1",
    "ACTION=change DEVPATH=/block/sda SUBSYSTEM=block DEVTYPE=disk DEVNAME=sda",
    "ACTION=add DEVPATH=/pci SUBSYSTEM=pci MODALIAS=pci:v00008086d00001C03sv000017AA",
    "ACTION=add DEVPATH=/usb SUBSYSTEM=usb DEVNAME=bus/usb/001/002 MAJOR=189 MINOR=1",
    "ACTION=add DEVPATH=/tty SUBSYSTEM=tty DEVNAME=tty1 MAJOR=4 MINOR=1",
    "ACTION=add DEVPATH=/null SUBSYSTEM=mem DEVNAME=null MAJOR=1 MINOR=3",
    "ACTION=add DEVPATH=/firmware SUBSYSTEM=firmware FIRMWARE=a.bin",
];

fn datagrams() -> Vec<Vec<u8>> {
    let datagram = |fields: &str| {
        let devpath = fields.split(' ').nth(1).unwrap().trim_start_matches("DEVPATH=");
        let action = fields.split(' ').next().unwrap().trim_start_matches("ACTION=");
        format!("{action}@{devpath}\0{}\0", fields.replace(' ', "\0")).into_bytes()
    };
    EVENTS.into_iter().map(datagram).collect()
}

fn engine_of(text: &[u8]) -> Engine {
    let rules = parse(&[parse::Source { name: "f", text }], &Accounts::default()).unwrap();
    Engine::new(rules, Settings::new(Base::new([]), None)).unwrap()
}

/// How often memory is allocated when this is done a hundred times more.
fn allocations(count: impl Fn() -> u64, mut act: impl FnMut()) -> u64 {
    act();
    let before = count();
    (0..100).for_each(|_| act());
    count() - before
}

#[test]
fn a_plan_allocates_nothing_in_the_steady_state() {
    let (datagrams, mut engine, mut steps) = (datagrams(), engine_of(RULES), 0);
    let plan = || {
        for datagram in &datagrams {
            let event = Uevent::parse(datagram, Header::Required).unwrap();
            steps += engine.plan(&event, &mut NoSysfs).steps().count();
        }
    };
    assert_eq!(allocations(|| ALLOCATIONS.get(), plan), 0);
    assert!(steps > 100 * datagrams.len());
}

/// Leaves the network namespace, so that nobody else hears of these devices. `false`
/// if that cannot be.
fn go_apart(test: &str) -> bool {
    // SAFETY: a network namespace has no say in memory and descriptors.
    let apart = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
    if let Err(why) = apart {
        let required = std::env::var("REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|word| word == "root"), "this needs root: {why}");
        // Not eprintln!, which libtest captures.
        let text = format!("SKIPPED {test}: {why}\n");
        std::io::stderr().write_all(text.as_bytes()).unwrap();
    }
    apart.is_ok()
}

#[test]
fn acting_on_it_and_passing_it_on_allocate_nothing_either() {
    if !go_apart("acting_on_it_and_passing_it_on_allocate_nothing_either") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let dev = DevRoot::open(place.path()).unwrap();
    let sys = Sysfs::open(place.path()).unwrap();
    let mut hands = Hands::Files { dev, sys, firmware: place.path().join("firmware") };
    let output = Output::new(File::create("/dev/null").unwrap().into(), Vec::new()).unwrap();
    let multicast = Multicast::open(4).unwrap();
    let mut outlets = Outlets::new(Some(output), Some(multicast), Duration::MAX);
    let (mut datagrams, mut engine) = (datagrams(), engine_of(RULES));
    // What cannot be done is told, which takes memory.
    datagrams.truncate(6);
    let act = || {
        for datagram in &datagrams {
            let event = Uevent::parse(datagram, Header::Required).unwrap();
            for step in engine.plan(&event, &mut NoSysfs).steps() {
                if let Outcome::Failed(why) = hands.perform(&event, step) {
                    panic!("{why}");
                }
            }
            outlets.pass_on(datagram, Duration::ZERO);
        }
    };
    assert_eq!(allocations(|| ALLOCATIONS.get(), act), 0);
    assert!(place.path().join("sda").exists() && !place.path().join("sda1").exists());
}

/// Rules that start no program for these events, and make no directories over and over.
const QUIET_RULES: &[u8] = b"
-SUBSYSTEM=block;DEVTYPE=(disk|partition);.* 0:6 660 ! $handle $MDEV
$MODALIAS=pci:v0000(....).* 0:0 660
@189,0-127 0:0 664
(sd|hd)([a-z]+)([0-9]*) 0:6 660 >%2disk%3
";

/// What these do not say is in sysfs, which is looked at as they are not the kernel's.
const TERSE_EVENTS: [&str; 2] = [
    "ACTION=add\0DEVPATH=/devices/terse\0SUBSYSTEM=mem\0",
    "ACTION=change\0DEVPATH=/devices/terse\0SUBSYSTEM=mem\0",
];

/// A datagram for the kernel's socket, which tells all who listen in this network
/// namespace (linux/netlink.h: length, type, NLM_F_REQUEST, number and port id).
fn message(datagram: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + datagram.len()).unwrap().to_ne_bytes();
    let (kind, flags) = (0x10_u16.to_ne_bytes(), 1_u16.to_ne_bytes());
    [&length[..], &kind, &flags, &[0; 8], datagram].concat()
}

/// From which events can be sent to the kernel.
fn uevent_socket() -> OwnedFd {
    let (flags, protocol) = (SocketFlags::CLOEXEC, Some(KOBJECT_UEVENT));
    socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol).unwrap()
}

#[test]
fn the_way_through_the_daemon_allocates_nothing_either() {
    if !go_apart("the_way_through_the_daemon_allocates_nothing_either") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir_all(at("sys/devices/terse")).unwrap();
    fs::create_dir(at("dev")).unwrap();
    fs::write(at("sys/devices/terse/dev"), "1:3\n").unwrap();
    fs::write(at("sys/devices/terse/uevent"), "MAJOR=1\nMINOR=3\nDEVNAME=terse\n").unwrap();
    let (flags, seqpacket) = (SocketFlags::CLOEXEC, SocketType::SEQPACKET);
    let (terse, far_end) = socketpair(AddressFamily::UNIX, seqpacket, flags, None).unwrap();
    let (kernels, _) = Source::open_kernel(1 << 20).unwrap();
    let sources = vec![kernels, Source::from_inherited(far_end).unwrap()];
    let (output, told) = pipe().unwrap();
    let (dev, sys) = (at("dev"), at("sys"));
    let daemon = std::thread::spawn(move || {
        IS_DAEMON.set(true);
        let output = Output::new(told, Vec::new()).unwrap();
        let multicast = Multicast::open(4).unwrap();
        let world = World { boot: [0; 36], engine: 0 };
        let setup = Setup {
            sources,
            limits: Limits { timeout: None, kill_after: Duration::ZERO },
            manner: Manner::Plugd,
            control: None,
            notifier: Notifier::default(),
            presence: Presence::below(&sys, &dev),
            engine: status::Engine { kind: "rules", file: Vec::new() },
            may_update: false,
            outlets: Outlets::new(Some(output), Some(multicast), Duration::MAX),
            recovery: r#loop::Settings {
                sys: sys.clone(),
                inventory: Inventory::new(Store::Memory(Vec::new()), world),
                start: Start::Nothing,
                changes: Changes::All,
                judges: true,
            },
        };
        let open = || Sysfs::open(&sys).unwrap();
        let mut engine = engine::Engine::Rules(Box::new(Ruled {
            rules: engine_of(QUIET_RULES),
            has_files: true,
            reload: Box::new(|_| Err("not here".into())),
            sysfs: open(),
            hands: Hands::Files {
                dev: DevRoot::open(&dev).unwrap(),
                sys: open(),
                firmware: "absent".into(),
            },
        }));
        Daemon::new(setup).unwrap().run(&mut engine).unwrap()
    });

    // What cannot be done is told, which takes memory.
    let messages: Vec<_> = datagrams()[..6].iter().map(|event| message(event)).collect();
    let (kernel, injector) = (SocketAddrNetlink::new(0, 0), uevent_socket());
    let mut output = File::from(output);
    let act = || {
        for message in &messages {
            sendto(&injector, message, SendFlags::empty(), &kernel).unwrap();
        }
        for event in TERSE_EVENTS {
            send(&terse, event.as_bytes(), SendFlags::empty()).unwrap();
        }
        // Each event is told with a NUL more at its end when it has been acted on.
        let (mut bytes, mut ends) = (vec![0; 1 << 16], 0);
        let mut last = 1;
        while ends < messages.len() + TERSE_EVENTS.len() {
            let length = output.read(&mut bytes).unwrap();
            assert!(length > 0, "the daemon has ended");
            for &byte in &bytes[..length] {
                ends += usize::from((last, byte) == (0, 0));
                last = byte;
            }
        }
    };
    let count = || ALLOCATIONS_OF_DAEMON.load(Ordering::Relaxed);
    assert_eq!(allocations(count, act), 0);
    // The start did.
    assert!(count() > 0);
    for name in ["adisk", "terse", "bus/usb/001/002"] {
        assert!(place.path().join("dev").join(name).exists(), "{name}");
    }
    kill_process(getpid(), Signal::TERM).unwrap();
    let counters = daemon.join().unwrap();
    assert_eq!((counters.handled, counters.failed), (101 * 8, 0));
}
