//! A daemon in the background, with a PID file, and daemon-control.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use rustix::fs::{FlockOperation, Mode, flock};
use rustix::process::{Pid, Signal, kill_process, test_kill_process, umask};
use tempfile::TempDir;

use super::daemon::Finished;
use super::{PATIENCE, PLUGD, eventually, ns, skip};

/// The directory of one daemon, which is killed when this is dropped.
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        // plugd refuses what others may write, and whoever runs the tests may allow that.
        umask(Mode::from_raw_mode(0o022));
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn pid_file(&self) -> PathBuf {
        self.path("x.pid")
    }

    /// The text of a file there, empty if there is none.
    pub(crate) fn text(&self, name: &str) -> String {
        fs::read(self.path(name))
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .unwrap_or_default()
    }

    pub(crate) fn write(&self, text: impl AsRef<[u8]>) {
        fs::write(self.pid_file(), text).unwrap();
    }

    /// The process id in the PID file.
    pub(crate) fn pid(&self) -> i32 {
        self.text("x.pid").trim().parse().unwrap()
    }

    /// `plugd run --daemonize` with its PID file, these options, and a handler
    /// that does nothing.
    pub(crate) fn daemon(&self, options: &[&str]) -> Vec<String> {
        let pid_file = self.pid_file().to_str().unwrap().to_owned();
        [PLUGD, "run", "--control", "none", "--daemonize", "--pid-file", &pid_file]
            .iter()
            .chain(options)
            .chain(&["true"])
            .map(|&word| word.to_owned())
            .collect()
    }

    /// daemon-control with this action and its PID file.
    pub(crate) fn control(&self, action: &str) -> Command {
        let mut command = Command::new(PLUGD);
        command.args(["daemon-control", action, "--pid-file"]).arg(self.pid_file());
        command
    }

    /// Performs the action, with these options.
    pub(crate) fn act(&self, action: &str, options: &[&str]) -> i32 {
        code(finish(self.control(action).args(options)))
    }

    /// Starts such a daemon by daemon-control.
    pub(crate) fn start(&self, options: &[&str]) -> i32 {
        self.start_program(&[], &self.daemon(options))
    }

    /// Starts any program by daemon-control with these options.
    pub(crate) fn start_program<S: AsRef<str>>(&self, options: &[&str], daemon: &[S]) -> i32 {
        let mut command = self.control("--start");
        command.args(options).arg("--").args(daemon.iter().map(AsRef::as_ref));
        code(finish(&mut command))
    }

    /// Locks the PID file as a daemon does, until what it returns is dropped.
    pub(crate) fn lock(&self) -> File {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.pid_file())
            .unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        file
    }

    /// The processes that have the PID file open, other than this one.
    pub(crate) fn holders(&self) -> Vec<i32> {
        holders(&self.pid_file())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for pid in self.holders() {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
    }
}

/// Not this process, nor what another test has just forked from it: until that
/// executes its program it has copies of all descriptors.
fn holders(file: &Path) -> Vec<i32> {
    let own = std::env::current_exe().unwrap();
    let processes = fs::read_dir("/proc").unwrap();
    processes
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let fds = fs::read_dir(format!("/proc/{pid}/fd"));
            let mut links = fds.into_iter().flatten().flatten();
            links.any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link == file))
                && fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe != own)
        })
        .collect()
}

/// Runs a command to its end. What it leaves in the background may keep its
/// output open.
pub(crate) fn finish(command: &mut Command) -> Finished {
    let (mut stdout, mut stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().unwrap())
        .stderr(stderr.try_clone().unwrap())
        .spawn()
        .unwrap();
    let Some(status) = ns::wait(&mut child, PATIENCE) else {
        child.kill().unwrap();
        panic!("{command:?} does not end");
    };
    let text = |file: &mut File| {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };
    Finished { code: status.code(), stdout: text(&mut stdout), stderr: text(&mut stderr) }
}

/// The exit code of what nobody should kill.
fn code(finished: Finished) -> i32 {
    finished.code.unwrap_or_else(|| panic!("it was killed: {finished:?}"))
}

/// Kills a process that is not ours, and waits until it is gone.
pub(crate) fn kill(pid: i32) {
    let process = Pid::from_raw(pid).unwrap();
    kill_process(process, Signal::KILL).unwrap();
    eventually("it is gone", || test_kill_process(process).is_err().then_some(()));
}

/// What to put before a command that shall start with SIGCHLD ignored, which is
/// inherited; `None` if env(1) cannot do that.
pub(crate) fn ignoring_children() -> Option<[&'static str; 2]> {
    let prefix = ["env", "--ignore-signal=CHLD"];
    let probe = Command::new(prefix[0]).args([prefix[1], "true"]).output();
    probe.is_ok_and(|output| output.status.success()).then_some(prefix)
}

/// What to put before a command that shall keep its capabilities when it becomes another
/// user, as far as the kernel is concerned; `None` if setpriv(1) cannot do that here.
pub(crate) fn keeping_capabilities() -> Option<[&'static str; 4]> {
    let prefix = ["setpriv", "--securebits=+no_setuid_fixup", "--inh-caps=+chown", "--"];
    let probe = Command::new(prefix[0]).args(&prefix[1..]).arg("true").output();
    probe.is_ok_and(|output| output.status.success()).then_some(prefix)
}

/// A program under strace(1), which does something at one of its system calls,
/// and tells in the place's file `trace`. The program is the child itself, not
/// strace.
pub(crate) fn traced(place: &Place, inject: &str, all_processes: bool) -> Vec<String> {
    let output = place.path("trace");
    let mut words = vec!["strace", "-D", "-qq", "-o", output.to_str().unwrap()];
    if all_processes {
        words.push("-f");
    }
    let trace = inject.split(':').next().unwrap();
    let (trace, inject) = (format!("--trace={trace}"), format!("--inject={inject}"));
    words.extend([&*trace, &*inject]);
    words.into_iter().map(ToOwned::to_owned).collect()
}

pub(crate) fn strace_is_missing(test: &str) -> bool {
    let probe = Command::new("strace").args(["-D", "-o", "/dev/null", "true"]).status();
    let missing = !probe.is_ok_and(|status| status.success());
    if missing {
        skip("tools", test, "strace cannot be used");
    }
    missing
}

/// How long a test that could go on for ever shall take: PLUGD_TEST_SECONDS, or 10 s.
pub(crate) fn duration() -> std::time::Duration {
    let seconds = std::env::var("PLUGD_TEST_SECONDS").ok();
    std::time::Duration::from_secs(seconds.map_or(10, |seconds| seconds.parse().unwrap()))
}

/// Does something many times at once.
pub(crate) fn at_once(threads: u64, work: impl Fn(u64) + Sync) {
    thread::scope(|scope| {
        let work = &work;
        for thread in 0..threads {
            scope.spawn(move || work(thread));
        }
    });
}
