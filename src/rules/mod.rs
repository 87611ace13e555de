//! The engine that acts by rules: mdev.conf.
#![forbid(unsafe_code)]

pub mod ere;
pub mod matcher;
pub mod parse;
