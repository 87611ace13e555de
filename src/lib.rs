//! The house of plugd.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod child;
pub mod cmd;
pub mod counters;
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
pub mod uevent;
