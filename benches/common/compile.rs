//! Programs in C, beside the benches, that a daemon runs for an event.

use std::path::Path;
use std::process::Command;

use crate::common::Outcome;

/// Compiles one to be static, and with musl where that can be had: to start one of glibc
/// takes four times as long as to run it at all, and differences drown in it.
pub(crate) fn compile_static(source: &str, program: &Path) -> Outcome<()> {
    compile("musl-gcc", source, program, "-static").or_else(|error| {
        println!("NOTE: {error}; with glibc {source} is slow, and the ratios flatter");
        compile("cc", source, program, "-static")
    })
}

/// Compiles one with this compiler, and this flag besides the usual ones.
pub(crate) fn compile(cc: &str, source: &str, program: &Path, flag: &str) -> Outcome<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches").join(source);
    let mut command = Command::new(cc);
    command.args(["-O2", "-Wall", flag, "-o"]).arg(program).arg(source);
    let status = command.status().map_err(|e| format!("{cc}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{cc}: {status}").into()) }
}
