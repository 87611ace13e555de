//! What the benches have in common: the binary that is measured, a namespace
//! to do it in, and what waits in the kernel there. What not all of them need is
//! in files beside this one.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use rustix::process::geteuid;

const TARGET: &str = "x86_64-unknown-linux-musl";
/// Set in the process that measures, to the daemon's binary.
const INSIDE: &str = "PLUGD_BENCH_INSIDE";

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Measures a binary in namespaces of its own, as unshare(1) makes them with the flags
/// for root, or for others; if there are none for others, only root can measure this.
pub(crate) fn run(
    root: &str,
    others: Option<&str>,
    measure: impl FnOnce(PathBuf) -> Outcome<()>,
) -> ExitCode {
    let flags = if geteuid().is_root() { Some(root) } else { others };
    exit(match (std::env::var_os(INSIDE), flags) {
        (Some(plugd), _) => measure(plugd.into()),
        (None, Some(flags)) => go_inside(flags),
        (None, None) => Err("this is not root".into()),
    })
}

/// How a bench ends.
pub(crate) fn exit(result: Outcome<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("NOT MEASURED: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs this program again in such namespaces.
fn go_inside(flags: &str) -> Outcome<()> {
    let plugd = binary()?;
    let me = std::env::current_exe()?;
    let status = Command::new("unshare").arg(flags).arg(me).env(INSIDE, plugd).status()?;
    if status.success() { Ok(()) } else { Err(format!("unshare {flags}: {status}").into()) }
}

fn binary() -> Outcome<PathBuf> {
    if let Some(binary) = std::env::var_os("PLUGD_BINARY") {
        return Ok(fs::canonicalize(binary)?);
    }
    let linked = PathBuf::from(env!("CARGO_BIN_EXE_plugd"));
    let cargo = std::env::var_os("CARGO").unwrap_or(OsString::from("cargo"));
    let built = Command::new(cargo)
        .args(["build", "--release", "--target", TARGET])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()?;
    if !built.success() {
        println!("NOTE: there is no static build; the one linked dynamically is measured\n");
        return Ok(linked);
    }
    let target_dir = linked.ancestors().nth(2).ok_or("no target directory")?;
    Ok(target_dir.join(TARGET).join("release/plugd"))
}

/// Says whether a figure is what was wanted.
pub(crate) fn verdict(value: f64, target: f64, what: &str) {
    let word = if value <= target { "ok" } else { "TOO MUCH" };
    println!("  {word}: {value:.2} {what}, at most {target:.2} wanted");
}

/// The bytes that wait in the kernel for whoever listens to uevents in this
/// namespace, as the kernel counts them.
pub(crate) fn queued() -> Outcome<usize> {
    Ok(listener()?.ok_or("nobody listens any more")?)
}

/// The same; `None` if nobody listens.
pub(crate) fn listener() -> Outcome<Option<usize>> {
    for line in fs::read_to_string("/proc/net/netlink")?.lines() {
        let columns: Vec<&str> = line.split_whitespace().collect();
        if let [_, "15", _, "00000001", queued, ..] = columns[..] {
            return Ok(Some(queued.parse()?));
        }
    }
    Ok(None)
}
