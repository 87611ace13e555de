//! Tests of the real binary, and of the facts about the kernel and mio that it
//! relies on. One crate, so that it links once; one module per topic.
//!
//! A test that needs a user and network namespace runs itself again inside of
//! one ([`harness::ns`]); a test that cannot run here says so ([`harness::skip`]).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod check;
mod children;
mod coldplug;
mod command_line;
mod completions;
mod control;
mod daemon;
mod daemon_control;
mod daemon_races;
mod environment;
mod explain;
mod facts;
mod faults;
mod harness;
mod input;
mod install;
mod listen;
mod log;
mod manual;
mod mdev_conf;
mod mdevd;
mod missed;
mod order;
mod pressure;
mod readiness;
mod rules;
mod security;
mod signals;
mod sources;
mod starting;
mod supervisors;
mod update;
