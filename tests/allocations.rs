//! The rules engine allocates nothing for an event of a kind that it has seen.
#![allow(unsafe_code, reason = "an allocator that counts cannot be written without")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use plugd::account::Accounts;
use plugd::environment::Base;
use plugd::rules::parse::{Source, parse};
use plugd::rules::{Engine, NoSysfs, Settings};
use plugd::uevent::{Header, Uevent};

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
-SUBSYSTEM=block;DEVTYPE=(disk|partition);.* 0:6 660 *handle $MDEV
$MODALIAS=pci:v0000(....).* 0:0 660 @modprobe \"$MODALIAS\"
@189,0-127 0:0 664 =bus/usb/%0
(sd|hd)([a-z]+)([0-9]*) 0:6 660 >disks/%2/%3 @link $MDEV
tty.* 0:5 660 =../%0
.* 0:0 660 =a%x
";

#[test]
fn a_plan_allocates_nothing_in_the_steady_state() {
    let datagrams: Vec<Vec<u8>> = [
        "ACTION=add DEVPATH=/block/sda SUBSYSTEM=block DEVTYPE=disk DEVNAME=sda MAJOR=8 MINOR=0",
        "ACTION=remove DEVPATH=/block/sda SUBSYSTEM=block DEVNAME=sda1 MAJOR=8 MINOR=1",
        "ACTION=change DEVPATH=/block/sda SUBSYSTEM=block DEVTYPE=disk DEVNAME=sda",
        "ACTION=add DEVPATH=/pci SUBSYSTEM=pci MODALIAS=pci:v00008086d00001C03sv000017AA",
        "ACTION=add DEVPATH=/usb SUBSYSTEM=usb DEVNAME=bus/usb/001/002 MAJOR=189 MINOR=1",
        "ACTION=add DEVPATH=/tty SUBSYSTEM=tty DEVNAME=tty1 MAJOR=4 MINOR=1",
        "ACTION=add DEVPATH=/null SUBSYSTEM=mem DEVNAME=null MAJOR=1 MINOR=3",
        "ACTION=add DEVPATH=/firmware SUBSYSTEM=firmware FIRMWARE=a.bin",
    ]
    .iter()
    .map(|fields| [fields.replace(' ', "\0").as_bytes(), b"\0"].concat())
    .collect();
    let sources = [Source { name: "f", text: RULES }];
    let rules = parse(&sources, &Accounts::default()).unwrap();
    let mut engine = Engine::new(rules, Settings::new(Base::new([]), None)).unwrap();
    let mut steps = || {
        let mut steps = 0;
        for datagram in &datagrams {
            let event = Uevent::parse(datagram, Header::Optional).unwrap();
            steps += engine.plan(&event, &mut NoSysfs).steps().count();
        }
        steps
    };
    assert!(steps() > datagrams.len());
    let before = ALLOCATIONS.get();
    for _ in 0..100 {
        steps();
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
