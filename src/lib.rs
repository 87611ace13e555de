//! The house of plugd: a tour for readers, tests, benches and fuzzers.
//!
//! One process, one thread, one loop. A uevent's way through it:
//!
//! ```text
//! kernel ─► netlink ─► uevent ─► handler ─► plan ─► child ─ pidfd ─► loop
//! signals ─ self-pipe ─► loop
//!                         │
//!                         └─ machine: state × input → state + action
//! ```
//!
//! The rooms, from the top; each looks only at those below it:
//!
//! - [`cmd`]: the commands, from options to the job.
//! - [`mod@loop`]: owns all that is watched; feeds the machine, and does what it says.
//! - [`netlink`], [`child`], [`signals`], [`syslog`]: what deals with the system.
//! - [`daemon`]: the background, PID files, and who controls daemons; also for
//!   other programs.
//! - [`machine`], [`handler`], [`plan`], [`environment`], [`uevent`],
//!   [`counters`], [`listen_fds`]: what decides; pure, without system calls.
//! - [`sys`], [`account`], [`error`], [`logging`]: the only `unsafe`, users and
//!   groups, errors, log lines.
//!
//! Start with [`machine`] for what plugd promises, and with [`mod@loop`] for
//! how it keeps it.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod account;
pub mod child;
pub mod cmd;
pub mod counters;
pub mod daemon;
pub mod environment;
pub mod error;
pub mod handler;
pub mod listen_fds;
pub mod logging;
pub mod r#loop;
pub mod machine;
pub mod netlink;
pub mod plan;
pub mod signals;
pub mod sys;
pub mod syslog;
pub mod uevent;
