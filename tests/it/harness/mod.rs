//! What the tests stand on.

pub(crate) mod background;
pub(crate) mod daemon;
pub(crate) mod inject;
pub(crate) mod ns;
mod os;
pub(crate) mod stranger;
pub(crate) mod unix;

#[path = "../../common/mod.rs"]
mod common;

pub(crate) use common::*;
