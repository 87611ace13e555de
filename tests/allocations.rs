//! Nothing is allocated for an event of a kind that was seen before: not to plan
//! what is done by rules, nor to do it, nor to pass it on. Programs are not started
//! here; what replaces something else and directories that are made take memory.
#![allow(unsafe_code, reason = "an allocator that counts cannot be written without")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

use plugd::account::Accounts;
use plugd::devnode::DevRoot;
use plugd::engine::{Hands, Outcome};
use plugd::environment::Base;
use plugd::rebroadcast::{Multicast, Outlets, Output};
use plugd::rules::parse::{Source, parse};
use plugd::rules::{Engine, NoSysfs, Settings};
use plugd::sysfs::Sysfs;
use plugd::uevent::{Header, Uevent};
use rustix::thread::UnshareFlags;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: all is left to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as of the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as of the caller.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
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

fn engine() -> Engine {
    let sources = [Source { name: "f", text: RULES }];
    let rules = parse(&sources, &Accounts::default()).unwrap();
    Engine::new(rules, Settings::new(Base::new([]), None)).unwrap()
}

/// How often memory is allocated when this is done a hundred times more.
fn allocations(mut act: impl FnMut()) -> u64 {
    act();
    let before = ALLOCATIONS.get();
    (0..100).for_each(|_| act());
    ALLOCATIONS.get() - before
}

#[test]
fn a_plan_allocates_nothing_in_the_steady_state() {
    let (datagrams, mut engine, mut steps) = (datagrams(), engine(), 0);
    let plan = || {
        for datagram in &datagrams {
            let event = Uevent::parse(datagram, Header::Required).unwrap();
            steps += engine.plan(&event, &mut NoSysfs).steps().count();
        }
    };
    assert_eq!(allocations(plan), 0);
    assert!(steps > 100 * datagrams.len());
}

#[test]
fn acting_on_it_and_passing_it_on_allocate_nothing_either() {
    // Nobody else is to hear of these devices.
    // SAFETY: a network namespace has no say in memory and descriptors.
    let apart = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
    if let Err(why) = apart {
        let required = std::env::var("REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|word| word == "root"), "this needs root: {why}");
        // Not eprintln!, which libtest captures.
        let text = "SKIPPED acting_on_it_and_passing_it_on_allocate_nothing_either";
        writeln!(std::io::stderr(), "{text}: {why}").unwrap();
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let dev = DevRoot::open(place.path()).unwrap();
    let sys = Sysfs::open(place.path()).unwrap();
    let mut hands = Hands::Files { dev, sys, firmware: place.path().join("firmware") };
    let output = Output::new(File::create("/dev/null").unwrap().into(), Vec::new()).unwrap();
    let multicast = Multicast::open(4).unwrap();
    let mut outlets = Outlets::new(Some(output), Some(multicast), Duration::MAX);
    let (mut datagrams, mut engine) = (datagrams(), engine());
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
    assert_eq!(allocations(act), 0);
    assert!(place.path().join("sda").exists() && !place.path().join("sda1").exists());
}
