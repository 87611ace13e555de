//! A daemon in the background, made with `plugd::daemon`: it waits for SIGTERM.
//!
//! ```sh
//! cargo build --example daemon
//! cargo run -- daemon-control --start --pid-file /tmp/example.pid -- \
//!     target/debug/examples/daemon /tmp/example.pid
//! cargo run -- daemon-control --check --pid-file /tmp/example.pid && echo it runs
//! cargo run -- daemon-control --stop --pid-file /tmp/example.pid
//! ```

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use plugd::daemon::Settings;
use plugd::error::Fatal;
use signal_hook::consts::SIGTERM;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        #[allow(clippy::print_stderr, reason = "that is where errors go")]
        Err(error) => {
            // Until the daemon is ready, whoever has started it sees this, and
            // its exit code.
            eprintln!("daemon: fatal: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Fatal> {
    let Some(pid_file) = std::env::args_os().nth(1) else {
        return Err(Fatal::Usage("the PID file is missing".into()));
    };
    let settings =
        Settings { detach: true, pid_file: Some(pid_file.into()), ..Settings::default() };

    // From here on no other one can start.
    let standby = settings.prepare()?;

    // Here it would open its sockets and read its configuration.

    // From here on there are two processes, and this is the new one. If it is
    // killed, or aborts, before it is ready, the other one tells so on stderr, as
    // there is no logger here, and exits with 111.
    let mut running = standby.start()?;

    let (mut terminated, on_signal) =
        UnixStream::pair().map_err(|e| Fatal::system("make a pair of sockets", e))?;
    signal_hook::low_level::pipe::register(SIGTERM, on_signal)
        .map_err(|e| Fatal::system("handle SIGTERM", e))?;

    // The other one exits.
    running.ready()?;

    terminated.read_exact(&mut [0]).map_err(|e| Fatal::system("wait for SIGTERM", e))?;
    Ok(())
    // Here `running` is dropped, which empties the PID file.
}
