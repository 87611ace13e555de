//! The few system calls that no safe crate offers, behind safe functions.
//!
//! `unsafe` is here only, by job: file descriptors, messages and sockets, memory,
//! signals, this process, and programs that it starts.
#![allow(unsafe_code, reason = "the one module where system calls are wrapped")]

mod descriptors;
mod memory;
mod messages;
mod process;
mod signals;
mod sockets;
mod spawn;

use std::io;

use rustix::io::Errno;

pub(crate) use descriptors::{adopt, close_inherited, hand_over, keep_across_exec};
pub use descriptors::{chmod, close_all_on_exec, is_open};
pub use memory::{Mapping, forget_code};
pub use messages::{Credentials, Message, receive};
pub use process::{Fork, fork, has_other_threads, process_group};
pub(crate) use process::{all_ids, environment, pidfd_send_signal, set_affinity};
pub use signals::{
    SignalRecord, block_signals, do_not_ignore_children, forward_signal, normalize_signals,
    survive_failing_writes, take_missed_signal, with_signals_blocked,
};
pub use sockets::{
    SocketMemory, SocketOption, await_interfaces, has_socket_option, peer_credentials, peer_groups,
    set_socket_option, socket_memory,
};
pub use spawn::{Spawner, execute};

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}
