//! The real binary: how it is started, what it says, how it ends.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, mkfifoat, open};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, kill_process_group, pidfd_getfd,
    pidfd_open, pidfd_send_signal,
};
use tempfile::TempDir;

use super::{PATIENCE, eventually, inject, ns, os};

/// plugd, about to be started. Its environment is PATH, and TMP: a directory
/// of its own.
pub(crate) struct Plugd {
    program: OsString,
    arg0: Option<&'static str>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    fds: Vec<(OwnedFd, RawFd)>,
    blocked: Vec<i32>,
    prelude: Option<String>,
    stdin: Stdio,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
}

/// The program to test: what cargo has built, or another build of it.
fn program() -> OsString {
    let built = || env!("CARGO_BIN_EXE_plugd").into();
    std::env::var_os("PLUGD_TEST_PROGRAM").unwrap_or_else(built)
}

impl Plugd {
    /// With no arguments yet.
    pub(crate) fn new() -> Self {
        Self {
            program: program(),
            arg0: None,
            args: Vec::new(),
            env: Vec::new(),
            fds: Vec::new(),
            blocked: Vec::new(),
            prelude: None,
            stdin: Stdio::null(),
            stdout: None,
            stderr: None,
        }
    }

    /// `plugd run` with these options, and without a control socket, as tests
    /// run at the same time.
    pub(crate) fn run(options: &[&str]) -> Self {
        Self::new().args(["run", "--control", "none"]).args(options)
    }

    /// `plugd run --fd 3`, with this socket there.
    pub(crate) fn reading(socket: OwnedFd) -> Self {
        Self::run(&["--fd", "3"]).fd(socket, 3)
    }

    /// More arguments.
    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// A handler: `sh -c SCRIPT sh`, so that arguments after it are `$1` and so on.
    pub(crate) fn sh(self, script: &str) -> Self {
        self.args(["sh", "-c", script, "sh"])
    }

    /// The name that it is called by.
    pub(crate) fn arg0(mut self, name: &'static str) -> Self {
        self.arg0 = Some(name);
        self
    }

    /// Another copy of the program.
    pub(crate) fn program(mut self, file: impl Into<OsString>) -> Self {
        self.program = file.into();
        self
    }

    pub(crate) fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// A descriptor to start with, at this number.
    pub(crate) fn fd(mut self, fd: impl Into<OwnedFd>, number: RawFd) -> Self {
        self.fds.push((fd.into(), number));
        self
    }

    /// Signals that are blocked when it starts.
    pub(crate) fn blocked(mut self, signals: &[i32]) -> Self {
        self.blocked = signals.to_vec();
        self
    }

    /// What a shell does before it becomes plugd: `umask 027`, `trap '' PIPE`,
    /// `exec 2>&-`; LISTEN_PID can be set to `$$`.
    pub(crate) fn prelude(mut self, script: &str) -> Self {
        self.prelude = Some(script.to_owned());
        self
    }

    pub(crate) fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Where its output goes instead of to [`Finished::stdout`], or nowhere.
    pub(crate) fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = Some(stdout.into());
        self
    }

    /// Where its log goes instead of to [`Daemon::log`].
    pub(crate) fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stderr = Some(stderr.into());
        self
    }

    fn command(self, tmp: &TempDir) -> (Command, Vec<(OwnedFd, RawFd)>) {
        let mut command = match &self.prelude {
            None => Command::new(&self.program),
            Some(script) => {
                let mut command = Command::new("sh");
                command.arg("-c").arg(format!("{script}\nexec \"$0\" \"$@\"")).arg(&self.program);
                command
            }
        };
        if let Some(name) = self.arg0 {
            assert!(self.prelude.is_none(), "a shell cannot choose a name");
            command.arg0(name);
        }
        command
            .args(self.args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TMP", tmp.path())
            .envs(self.env)
            .stdin(self.stdin)
            .stdout(self.stdout.unwrap_or_else(Stdio::null))
            .stderr(self.stderr.unwrap_or_else(Stdio::piped));
        let numbers = self.fds.iter().map(|(fd, number)| (fd.as_raw_fd(), *number)).collect();
        os::inherit(&mut command, numbers, self.blocked);
        (command, self.fds)
    }

    /// Starts it, and waits until it handles signals.
    pub(crate) fn start(self) -> Daemon {
        let daemon = self.launch();
        daemon.wait_until_ready();
        daemon
    }

    /// Starts it, or what it will go on as.
    pub(crate) fn launch(self) -> Daemon {
        let tmp = tempfile::tempdir().unwrap();
        let (mut command, fds) = self.command(&tmp);
        let mut child = command.spawn().unwrap();
        drop(fds);
        let log = Arc::new(Log::default());
        if let Some(stderr) = child.stderr.take() {
            log.lock().reading = true;
            let log = Arc::clone(&log);
            std::thread::spawn(move || log.fill(stderr));
        }
        Daemon { child, tmp, log, fifos: Mutex::default() }
    }

    /// Runs it to its end, which has to come by itself.
    pub(crate) fn finish(mut self) -> Finished {
        let tmp = tempfile::tempdir().unwrap();
        self.stdout.get_or_insert_with(Stdio::piped);
        let (mut command, fds) = self.command(&tmp);
        let mut child = command.spawn().unwrap();
        drop(fds);
        let Some(status) = ns::wait(&mut child, PATIENCE) else {
            child.kill().unwrap();
            panic!("plugd does not end");
        };
        let (mut stdout, mut stderr) = (String::new(), String::new());
        child.stdout.take().map(|mut pipe| pipe.read_to_string(&mut stdout).unwrap());
        child.stderr.take().map(|mut pipe| pipe.read_to_string(&mut stderr).unwrap());
        Finished { code: status.code(), stdout, stderr }
    }
}

/// What is left of a run.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The text of a line of /proc/PID/status.
pub(crate) fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

/// Stops a process. Until it has, a signal of a lower number that is sent later would
/// still come first.
pub(crate) fn suspend(pid: Pid) {
    kill_process(pid, Signal::STOP).unwrap();
    eventually("it is stopped", || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        // The other one: by who traces it.
        field(&status, "State").unwrap().starts_with(['T', 't']).then_some(())
    });
}

/// plugd at work. Killed, with what it started, when dropped.
pub(crate) struct Daemon {
    child: Child,
    tmp: TempDir,
    log: Arc<Log>,
    /// Both ends of each FIFO.
    fifos: Mutex<HashMap<String, OwnedFd>>,
}

impl Daemon {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        if signal == Signal::STOP { suspend(pid) } else { kill_process(pid, signal).unwrap() }
    }

    /// Waits until it handles signals.
    pub(crate) fn wait_until_ready(&self) {
        eventually("plugd handles signals", || {
            let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
            let is_dead = field(&status, "State").is_none_or(|state| state.starts_with('Z'));
            if is_dead {
                self.wait_for_end_of_log();
                panic!("plugd has ended: {:?}", self.log());
            }
            let caught = field(&status, "SigCgt").unwrap();
            let caught = u64::from_str_radix(caught, 16).unwrap();
            (caught & (1 << (libc::SIGUSR1 - 1)) != 0).then_some(())
        });
    }

    /// The path of a file in its directory, which the handler knows as `$TMP`.
    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.tmp.path().join(name)
    }

    /// The lines of a file in its directory, as far as they are complete.
    pub(crate) fn lines(&self, name: &str) -> Vec<String> {
        let bytes = fs::read(self.path(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        text.split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n'))
            .map(Into::into)
            .collect()
    }

    /// Waits until such a file has that many lines; returns all that it has.
    /// Does not lose its patience while there are more and more.
    pub(crate) fn wait_for_lines(&self, name: &str, count: usize) -> Vec<String> {
        let (mut deadline, mut seen) = (Instant::now() + PATIENCE, 0);
        loop {
            let lines = self.lines(name);
            if lines.len() >= count {
                return lines;
            }
            if lines.len() > seen {
                (deadline, seen) = (Instant::now() + PATIENCE, lines.len());
            }
            assert!(Instant::now() < deadline, "{name} has {lines:?}; log: {:#?}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// All that it and its handlers have said on stderr so far, by lines.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().lines.iter().map(|(_, line)| line.clone()).collect()
    }

    /// The lines that contain `text`, with the time they came.
    pub(crate) fn logged(&self, text: &str) -> Vec<(Instant, String)> {
        self.log.lock().lines.iter().filter(|(_, line)| line.contains(text)).cloned().collect()
    }

    /// Waits for a line that contains `text`, and returns it.
    pub(crate) fn wait_for_log(&self, text: &str) -> String {
        self.wait_for_logs(text, 1).remove(0)
    }

    /// Waits for `count` such lines, and returns them.
    pub(crate) fn wait_for_logs(&self, text: &str, count: usize) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.log.lock();
        loop {
            let found: Vec<String> =
                lines.lines.iter().map(|l| &l.1).filter(|l| l.contains(text)).cloned().collect();
            if found.len() >= count {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "not {count} lines with {text:?} in {:#?}", lines.lines);
            lines = self.log.changed.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Asks for its counters and returns that line of the log.
    pub(crate) fn counters(&self) -> String {
        let before = self.logged("SIGUSR1").len();
        self.signal(Signal::USR1);
        self.wait_for_logs("SIGUSR1", before + 1).remove(before)
    }

    /// Waits until its counters contain `text`.
    pub(crate) fn wait_for_counters(&self, text: &str) {
        eventually(text, || self.counters().contains(text).then_some(()));
    }

    /// Waits for its end, and until its log is complete.
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        let Some(status) = ns::wait(&mut self.child, PATIENCE) else {
            panic!("plugd does not end; log: {:#?}", self.log());
        };
        self.wait_for_end_of_log();
        status
    }

    fn wait_for_end_of_log(&self) {
        let log = self.log.lock();
        let (log, timeout) =
            self.log.changed.wait_timeout_while(log, PATIENCE, |log| log.reading).unwrap();
        assert!(!timeout.timed_out(), "somebody keeps stderr open: {:#?}", log.lines);
    }

    /// Makes a file for handlers to wait on: `read x <$TMP/NAME` ends at
    /// [`Daemon::release`].
    pub(crate) fn fifo(&self, name: &str) {
        mkfifoat(CWD, self.path(name), Mode::RUSR | Mode::WUSR).unwrap();
        // With both ends, so that opening it never waits, and no line is lost.
        let fifo = open(self.path(name), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        self.fifos.lock().unwrap().insert(name.to_owned(), fifo);
    }

    /// Lets one handler go on that waits there, or will.
    pub(crate) fn release(&self, name: &str) {
        rustix::io::write(&self.fifos.lock().unwrap()[name], b"\n").unwrap();
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Its children, dead ones that it has not reaped included.
    pub(crate) fn children(&self) -> Vec<u32> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        children.unwrap_or_default().split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }

    /// Waits until its child runs the program with this name, and returns the child's id.
    pub(crate) fn wait_for_child(&self, program: &str) -> u32 {
        eventually(&format!("a child runs {program}"), || {
            let child = *self.children().first()?;
            let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            (name.trim_end() == program).then_some(child)
        })
    }

    /// The text of a line of its /proc/PID/status.
    pub(crate) fn status(&self, name: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        field(&status, name).unwrap_or_else(|| panic!("no {name} in {status}")).to_owned()
    }

    /// Waits until it sleeps and nothing wakes it; returns how often it has
    /// gone to sleep.
    pub(crate) fn sleeps(&self) -> String {
        let count = || self.status("voluntary_ctxt_switches");
        let mut last = count();
        eventually("plugd is asleep", || {
            std::thread::sleep(Duration::from_millis(50));
            let before = std::mem::replace(&mut last, count());
            (last == before && self.status("State").starts_with('S')).then_some(())
        });
        last
    }

    /// The inode of the socket at this descriptor, if it is one.
    pub(crate) fn socket_inode(&self, fd: RawFd) -> Option<u64> {
        let link = fs::read_link(format!("/proc/{}/fd/{fd}", self.pid())).ok()?;
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    }

    /// The descriptor and the inode of the netlink socket that it opened itself.
    pub(crate) fn netlink(&self) -> (RawFd, u64) {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        fds.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .find_map(|fd| {
                let inode = self.socket_inode(fd)?;
                inject::NetlinkSocket::find(inode).map(|_| (fd, inode))
            })
            .expect("plugd has no netlink socket")
    }

    /// A copy of the socket that listens at this address, as a child has one.
    pub(crate) fn listener(&self, address: &str) -> OwnedFd {
        let listens = |line: &&str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(7) == Some(&address) && fields[3] == "00010000"
        };
        let table = fs::read_to_string("/proc/net/unix").unwrap();
        let line = table.lines().find(listens).expect("somebody listens there");
        let inode = line.split_whitespace().nth(6).unwrap().parse().unwrap();
        let fd = (3..100).find(|&fd| self.socket_inode(fd) == Some(inode)).expect("it is plugd's");
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).unwrap()
    }

    /// Bytes waiting in that socket.
    pub(crate) fn queued(&self) -> usize {
        inject::NetlinkSocket::find(self.netlink().1).unwrap().queued
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Stopped first, so that it starts nothing behind our back.
        let _ = kill_process(Pid::from_child(&self.child), Signal::STOP);
        let children = self.children();
        let _ = self.child.kill();
        let mut ending = Vec::new();
        for child in children {
            let group = i32::try_from(child).ok().and_then(Pid::from_raw).unwrap();
            let _ = kill_process_group(group, Signal::KILL);
            // It may have left that.
            if let Ok(child) = pidfd_open(group, PidfdFlags::empty()) {
                let _ = pidfd_send_signal(&child, Signal::KILL);
                ending.push(child);
            }
        }
        let _ = self.child.wait();
        // Until it executes its program, a child has the control socket open, too.
        let patience = Timespec::try_from(PATIENCE).unwrap();
        for child in ending {
            let _ = poll(&mut [PollFd::new(&child, PollFlags::IN)], Some(&patience));
        }
    }
}

#[derive(Default)]
struct Log {
    text: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    lines: Vec<(Instant, String)>,
    reading: bool,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.text.lock().unwrap()
    }

    fn fill(&self, pipe: impl Read) {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while pipe.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
            self.lock().lines.push((Instant::now(), text));
            self.changed.notify_all();
            line.clear();
        }
        self.lock().reading = false;
        self.changed.notify_all();
    }
}
