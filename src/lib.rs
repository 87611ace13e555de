//! The house of plugd: a tour for readers, tests, benches and fuzzers.
//!
//! One process, one thread, one loop; only [`sysfs`] has a helper, while devices are
//! found and read. A uevent's way through it:
//!
//! ```text
//! kernel ─► netlink ─► uevent ─► engine ─► plan ─► devnode, firmware   (at once)
//!                                            └──► child ─ pidfd ─► loop (one at a time)
//! signals ─ self-pipe ─► loop ◄─ control socket ─ clients
//!                         │
//!                         └─ machine: state × input → state + action
//! ```
//!
//! The rooms, from the top; each looks only at those below it, or named after it
//! in the same line:
//!
//! - [`cmd`]: the commands, from options to the job.
//! - [`daemon`]: the background, PID files, and who controls daemons; also for
//!   other programs.
//! - [`mod@loop`]: owns all that is watched; feeds the machine, and does what it says.
//! - [`engine`], [`rule_files`]: what decides, with the files that it looks at
//!   and acts on.
//! - [`netlink`], [`child`], [`signals`], [`devnode`], [`firmware`], [`sysfs`],
//!   [`rebroadcast`], [`control`], [`notify`], [`presence`], [`state_file`]: what deals
//!   with the system.
//! - [`control::wire`], [`handover`], [`status`], [`recovery`], [`settle`],
//!   [`counters`], [`machine`], [`inventory`], [`handler`], [`rules`], [`plan`],
//!   [`environment`], [`uevent`], [`listen_fds`], [`units`]: what decides; pure, without
//!   system calls.
//! - [`sys`], [`beneath`], [`account`], [`user_ids`], [`error`], [`logging`],
//!   [`syslog`]: the only `unsafe`, files by hostile names, names of users and groups,
//!   who is of another user namespace, errors, log lines and where they go.
//!
//! Start with [`machine`] for what plugd promises, and with [`mod@loop`] for
//! how it keeps it.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod account;
pub mod beneath;
pub mod child;
pub mod cmd;
pub mod control;
pub mod counters;
pub mod daemon;
pub mod devnode;
pub mod engine;
pub mod environment;
pub mod error;
pub mod firmware;
pub mod handler;
pub mod handover;
pub mod inventory;
pub mod listen_fds;
pub mod logging;
pub mod r#loop;
pub mod machine;
pub mod netlink;
pub mod notify;
pub mod plan;
pub mod presence;
pub mod rebroadcast;
pub mod recovery;
pub mod rule_files;
pub mod rules;
pub mod settle;
pub mod signals;
pub mod state_file;
pub mod status;
pub mod sys;
pub mod sysfs;
pub mod syslog;
#[cfg(test)]
mod testing;
pub mod uevent;
pub mod units;
pub mod user_ids;
