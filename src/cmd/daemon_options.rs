//! The options that all daemons here have in common: how they go into the
//! background, and whose they are.

use std::path::Path;

use lexopt::Arg::Long;
use rustix::process::{Gid, Uid};

use crate::daemon::{Running, Settings, Standby, Stderr};
use crate::error::Fatal;
use crate::logging;
use crate::sys;
use crate::syslog::{self, Syslog};

/// What the help of a daemon under another name than plugd's tells of them.
macro_rules! daemon_help {
    () => {
        "\
As a daemon (without a supervisor; plugd(8) tells more):
      --daemonize        go into the background; exit when it is up or has failed
      --pid-file PATH    write the process id there, and keep the file locked
      --user NAME|#UID   become this user, with its groups
      --group NAME|#GID  become this group, and be in no other
      --log-file PATH    once it is up, write there instead of to stderr
      --syslog           once it is up, log to syslog
"
    };
}
pub(super) use daemon_help;

/// One of them.
#[derive(Debug, Clone, Copy)]
pub(super) enum DaemonOption {
    Daemonize,
    PidFile,
    User,
    Group,
    LogFile,
    Syslog,
}

impl DaemonOption {
    /// Which of them it is, if any.
    pub(super) fn of(argument: &lexopt::Arg<'_>) -> Option<Self> {
        match argument {
            Long("daemonize") => Some(Self::Daemonize),
            Long("pid-file") => Some(Self::PidFile),
            Long("user") => Some(Self::User),
            Long("group") => Some(Self::Group),
            Long("log-file") => Some(Self::LogFile),
            Long("syslog") => Some(Self::Syslog),
            _ => None,
        }
    }
}

/// What the command line asks for.
#[derive(Debug, Default)]
pub(super) struct DaemonOptions {
    settings: Settings,
    syslog: bool,
}

impl DaemonOptions {
    /// Takes this option, with its value, from the command line.
    pub(super) fn take(
        &mut self,
        option: DaemonOption,
        parser: &mut lexopt::Parser,
    ) -> Result<(), Fatal> {
        let settings = &mut self.settings;
        match option {
            DaemonOption::Daemonize => settings.detach = true,
            DaemonOption::PidFile => settings.pid_file = Some(parser.value()?.into()),
            DaemonOption::User => settings.user = Some(parser.value()?),
            DaemonOption::Group => settings.group = Some(parser.value()?),
            DaemonOption::LogFile => settings.stderr = Stderr::Append(parser.value()?.into()),
            DaemonOption::Syslog => self.syslog = true,
        }
        if self.syslog && matches!(self.settings.stderr, Stderr::Append(_)) {
            return Err(Fatal::Usage("--log-file and --syslog exclude each other".into()));
        }
        Ok(())
    }

    /// Whether it will leave those who have started it, and the working directory.
    pub(super) fn goes_to_background(&self) -> bool {
        self.settings.detach
    }

    /// Whether nothing is done that an update in place would do again, or undo.
    pub(super) fn may_be_executed_again(&self) -> bool {
        self.settings == Settings::default() && !self.syslog
    }

    /// Locks the PID file, and opens the log that the daemon will have.
    pub(super) fn prepare(&self, log_name: &'static str) -> Result<Prepared, Fatal> {
        let mut settings = self.settings.clone();
        let mut syslog = None;
        if self.syslog {
            let path = Path::new(syslog::PATH);
            syslog =
                Some(Syslog::connect(path, log_name).map_err(|e| {
                    Fatal::system(format_args!("connect to {}", path.display()), e)
                })?);
            settings.stderr = Stderr::Null;
        }
        let moves_log = settings.stderr != Stderr::Keep;
        Ok(Prepared { standby: settings.prepare()?, syslog, moves_log })
    }
}

/// The first of all steps of a daemon: begins to log under the name of the program, and
/// has a log that may not grow any more end nothing.
pub(super) fn start_log(program: &'static str, verbosity: i32) -> Result<(), Fatal> {
    // Before the first line, which may be about RUST_LOG.
    sys::survive_failing_writes().map_err(|e| Fatal::system("handle SIGXFSZ", e))?;
    logging::start(program, verbosity);
    Ok(())
}

/// Ready to become a daemon.
#[derive(Debug)]
pub(super) struct Prepared {
    standby: Standby,
    syslog: Option<Syslog>,
    moves_log: bool,
}

impl Prepared {
    /// The user and the group that the daemon becomes, if other ones.
    pub(super) fn ids(&self) -> (Option<Uid>, Option<Gid>) {
        self.standby.ids()
    }

    /// Becomes the daemon: what was asked for of the background, the PID file,
    /// and the user. After the setup that needs privileges or a terminal, and
    /// before signal handlers are installed; until then signals wait.
    pub(super) fn start(self) -> Result<Started, Fatal> {
        self.start_with(|| Ok(()))
    }

    /// The same; `privileged` is called before it becomes another user.
    pub(super) fn start_with(
        self,
        privileged: impl FnOnce() -> Result<(), Fatal>,
    ) -> Result<Started, Fatal> {
        let Self { standby, syslog, moves_log } = self;
        sys::block_signals().map_err(|e| Fatal::system("block signals", e))?;
        Ok(Started { running: standby.start_with(privileged)?, syslog, moves_log })
    }
}

/// The daemon. When dropped, it empties its PID file.
#[derive(Debug)]
pub(super) struct Started {
    running: Running,
    syslog: Option<Syslog>,
    moves_log: bool,
}

impl Started {
    /// Tells whoever has started it that it is up, and turns to its own log.
    pub(super) fn ready(&mut self) -> Result<(), Fatal> {
        let ready = self.running.ready();
        // Also if that has failed: stderr may be given up already.
        if let Some(syslog) = self.syslog.take() {
            logging::to_syslog(syslog);
        }
        ready?;
        if self.moves_log {
            log::info!("process {} is up", std::process::id());
        }
        Ok(())
    }
}
