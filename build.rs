//! Link arguments for musl, which make the program and what it has in memory less.

use std::env;
use std::process::Command;

/// The first Rust whose musl (1.2.5) can apply packed relocations to a static
/// program; one that cannot crashes at its start. Of the musl of a system, which a program
/// that is linked dynamically would need for that, nothing is known.
const FIRST_THAT_UNPACKS: u32 = 93;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=link.ld");
    println!("cargo::rerun-if-changed=no-unwind.ld");
    let variable = |name| env::var(name).unwrap_or_default();
    if variable("CARGO_CFG_TARGET_ENV") != "musl" {
        return;
    }
    // Not every linker understands what follows, but the usual one does.
    let flags = variable("CARGO_ENCODED_RUSTFLAGS");
    if flags.contains("link") || !variable("RUSTC_LINKER").is_empty() {
        return;
    }
    let rustc = variable("RUSTC");
    let unpacks = minor_version(&rustc).is_some_and(|minor| minor >= FIRST_THAT_UNPACKS);
    if unpacks && is_static(&rustc, &variable("TARGET"), &flags) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    let directory = variable("CARGO_MANIFEST_DIR");
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{directory}/link.ld");
    // Other builds unwind, and are looked at with debuggers.
    if variable("PROFILE") == "release" {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{directory}/no-unwind.ld");
    }
}

/// Whether the C library becomes a part of the program. (What Cargo tells of the target's
/// features says nothing of that.)
fn is_static(rustc: &str, target: &str, flags: &str) -> bool {
    let flags = flags.split('\x1f').filter(|flag| !flag.is_empty());
    let output =
        Command::new(rustc).args(["--print", "cfg", "--target", target]).args(flags).output();
    let output = output.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    output.is_some_and(|cfg| cfg.lines().any(|line| line == "target_feature=\"crt-static\""))
}

/// The 95 of `rustc 1.95.0 (...)`.
fn minor_version(rustc: &str) -> Option<u32> {
    let output = Command::new(rustc).arg("--version").output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    version.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()
}
