//! Starts, stops and checks a daemon with `plugd::daemon::control`, and needs no
//! other crate for that.
//!
//! ```sh
//! cargo build --examples
//! cargo run --example control -- /tmp/example.pid start \
//!     target/debug/examples/daemon /tmp/example.pid
//! cargo run --example control -- /tmp/example.pid check
//! cargo run --example control -- /tmp/example.pid stop
//! ```

use std::process::{Command, ExitCode};
use std::time::Duration;

use plugd::daemon::control::{Control, Outcome, Signal};
use plugd::error::Fatal;

fn main() -> ExitCode {
    match run() {
        // 0, 100, 101 or 103, as daemon-control(8) has it.
        Ok(outcome) => ExitCode::from(outcome.exit_code()),
        #[allow(clippy::print_stderr, reason = "that is where errors go")]
        Err(error) => {
            eprintln!("control: fatal: {error}");
            ExitCode::from(102)
        }
    }
}

fn run() -> Result<Outcome, Fatal> {
    let usage = |text: &str| Fatal::Usage(text.into());
    let mut words = std::env::args_os().skip(1);
    let pid_file = words.next().ok_or_else(|| usage("the PID file is missing"))?;
    let action = words.next().ok_or_else(|| usage("the action is missing"))?;

    // Whoever controls this daemon locks the guard, whose name ends in .lock
    // instead of .pid.
    let mut control =
        Control::new(pid_file).ok_or_else(|| usage("the PID file does not end in .pid"))?;
    control.timeout = Some(Duration::from_secs(30));
    control.kill_after = Some(Duration::from_secs(10));

    match action.to_str() {
        Some("start") => {
            let program = words.next().ok_or_else(|| usage("the daemon is missing"))?;
            // It has to go into the background by itself.
            control.start(Command::new(program).args(words))
        }
        Some("stop") => control.stop(Signal::TERM),
        Some("reload") => control.reload(Signal::HUP),
        Some("check") => control.check(),
        _ => Err(usage("the action is none of start, stop, reload and check")),
    }
}
