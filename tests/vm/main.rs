//! A real kernel, a real boot: Debian's kernel in QEMU, with the static binary
//! as its device manager, under each of the supervisors, from contrib/ as it is.
//! Devices are plugged in and unplugged. Needs no root.
//!
//! Where QEMU or Debian's packages are missing that is said, and is a failure if
//! the variable REQUIRE has the word `vm`. Build the static binary before: one that
//! is older than its sources is not taken. How long each scenario took is printed.
//! PLUGD_VM_ACCEL is QEMU's accelerator: KVM is not looked for, as it may be there
//! and hang.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod agent;
mod assets;
#[path = "../common/mod.rs"]
mod common;
mod cpio;
mod devices;
mod image;
mod machine;
mod plain;
mod qmp;
mod storm;
mod supervisors;

use std::io::Write;
use std::time::{Duration, Instant};

use assets::Assets;

/// How long to wait for what must happen in a machine. Each has a fraction of a
/// processor, and that may be busy.
const PATIENCE: Duration = Duration::from_secs(90);

/// Runs what is to happen, if machines can be had here.
fn scenario(name: &str, play: impl FnOnce(&Assets)) {
    let assets = match Assets::get() {
        Ok(assets) => assets,
        Err(why) => return common::skip("vm", name, why),
    };
    let start = Instant::now();
    play(assets);
    // Not eprintln!, which libtest captures.
    let _ = writeln!(std::io::stderr(), "vm: {name}: {:.1} s", start.elapsed().as_secs_f32());
}
