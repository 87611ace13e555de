//! The house of plugd.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod account;
pub mod environment;
pub mod handler;
pub mod machine;
pub mod plan;
pub mod rules;
pub mod sys;
pub mod uevent;
