//! plugd: finds the command that its name or first argument asks for, and runs it.

use std::process::ExitCode;

fn main() -> ExitCode {
    plugd::cmd::main(std::env::args_os())
}
