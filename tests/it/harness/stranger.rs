//! Another user, who has the default control address before plugd.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::{eventually, program, skip};

/// That user's program, which ends when this is dropped. For
/// [`super::ns::inside_as_root`].
pub(crate) struct Stranger(Child);

impl Stranger {
    /// Waits until it listens. If it cannot be had, says that `test` is skipped.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let Some(socat) = program("socat") else {
            skip("tools", test, "there is no socat");
            return None;
        };
        let mut command = Command::new(socat);
        command.args(["ABSTRACT-LISTEN:plugd,fork", "EXEC:true"]).stderr(Stdio::null());
        let stranger = Self(command.uid(65534).gid(65534).spawn().unwrap());
        eventually("it listens", || (!is_free()).then_some(()));
        Some(stranger)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether nobody has the address.
pub(crate) fn is_free() -> bool {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name("plugd").unwrap()).is_ok()
}
