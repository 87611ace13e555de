//! `netlink-datagram-socket-listen`: nosh's program of that name, which opens
//! a netlink socket and goes on as another program, which has it then.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;

use lexopt::Arg::{Long, Short, Value};
use rustix::io::Errno;

use crate::child::{c_string, find_program};
use crate::environment::DEFAULT_PATH;
use crate::error::Fatal;
use crate::listen_fds::{self, HandOver};
use crate::logging;
use crate::netlink::protocol::{Groups, Protocol};
use crate::netlink::{self, Wanted};
use crate::sys::{self, SocketOption};

use super::options::{self, BYTES};
use super::{Command, Request, own_pidfd_inode, quoted};

pub(super) const COMMAND: Command = Command {
    name: "netlink-datagram-socket-listen",
    alias: Some("listen"),
    peer: true,
    summary: "Opens a netlink socket, and goes on as a program that has it as file descriptor 3.",
    usage: "netlink-datagram-socket-listen [OPTIONS] [--] PROTOCOL GROUP NEXT-PROG [ARGS...]",
    help: HELP,
    main,
};

const HELP: &str = "\
So a socket can be opened by root, and used by a program without privileges. The
program keeps the process id, and all else that it would have without this one.

  PROTOCOL  kobject-uevent, route, audit, generic, ...; or a number
  GROUP     the multicast groups: a bit mask in decimal, hexadecimal with 0x, or
            octal with 0 (1 is group 1, 4 is group 3); or group:N[,N...], which
            has no limit at 32; 0 for none

The socket:
      --raw                       SOCK_RAW instead of SOCK_DGRAM, for programs
                                  that care
      --receive-buffer-size SIZE  how much may wait in the kernel, in bytes, or
                                  with K, M or G [as the kernel has it]
      --pass-credentials          datagrams tell their senders' process, user and
                                  group ids (SO_PASSCRED)
      --pass-security             ... their senders' security contexts
                                  (SO_PASSSEC)
      --packet-info               ... their groups (NETLINK_PKTINFO)
      --listen-all-nsid           take those of other network namespaces too
                                  (NETLINK_LISTEN_ALL_NSID)

How it is handed over:
      --systemd-compatibility     append it to the sockets that LISTEN_FDS tells
                                  of, if LISTEN_PID is the own process id, and
                                  set LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES
      --name NAME                 its name there [PROTOCOL]
      --upstart-compatibility     set UPSTART_EVENTS and UPSTART_FDS

  -v, --verbose                   tell what is done
  -h, --help                      print this
  -V, --version                   print the version

Exit status: 100 wrong usage, 111 a system call failed, 126 NEXT-PROG cannot be
executed, 127 there is no NEXT-PROG; else that of NEXT-PROG.

Examples:
  Run a script for every event of the kernel, as a user without privileges:
      netlink-datagram-socket-listen --receive-buffer-size 16M kobject-uevent 1 \\
          setpriv --reuid daemon --regid daemon --clear-groups \\
          plug-and-play-event-handler /usr/local/bin/on-device-event
  Two sockets for a program that takes them as systemd hands them over:
      netlink-datagram-socket-listen --systemd-compatibility kobject-uevent 1 \\
          netlink-datagram-socket-listen --systemd-compatibility route group:1,5 \\
          /usr/local/sbin/watch-network
";

/// What the command line asks for.
#[derive(Debug)]
struct Options {
    wanted: Wanted,
    systemd: bool,
    upstart: bool,
    name: Option<OsString>,
    verbosity: i32,
    program: OsString,
    arguments: Vec<OsString>,
}

fn main(parser: lexopt::Parser, log_name: &'static str) -> Result<Request, Fatal> {
    let options = match parse(parser)? {
        Ok(options) => options,
        Err(other) => return Ok(other),
    };
    logging::start(log_name, options.verbosity);
    let hand_over = hand_over(&options)?;
    let Wanted { protocol, groups, .. } = &options.wanted;
    // What is to be replaced, if anything: it may be the last descriptor that there is.
    drop(sys::adopt(hand_over.fd));
    let (socket, buffer) = netlink::open(&options.wanted)?;
    if buffer.is_limited() {
        log::warn!("receive buffer: {buffer}");
    }
    let fd = hand_over.fd;
    sys::hand_over(socket, fd)
        .map_err(|e| Fatal::system(format_args!("make the socket file descriptor {fd}"), e))?;
    log::debug!("{protocol} {groups} is file descriptor {fd}; receive buffer: {buffer}");
    let error = become_program(&options.program, &options.arguments, &hand_over.variables);
    Err(Fatal::Exec { program: quoted(&options.program), error })
}

/// Reads the command line, up to the operands; what follows is another program's.
fn parse(mut parser: lexopt::Parser) -> Result<Result<Options, Request>, Fatal> {
    let (mut raw, mut receive_buffer_size, mut socket_options) = (false, None, Vec::new());
    let (mut systemd, mut upstart, mut name, mut verbosity) = (false, false, None, 0);
    let protocol = loop {
        match parser.next()? {
            Some(Long("raw")) => raw = true,
            Some(Long("receive-buffer-size")) => {
                receive_buffer_size = Some(options::value(
                    &mut parser,
                    "--receive-buffer-size",
                    BYTES,
                    options::bytes,
                )?);
            }
            Some(Long("pass-credentials")) => socket_options.push(SocketOption::PassCredentials),
            Some(Long("pass-security")) => socket_options.push(SocketOption::PassSecurity),
            Some(Long("packet-info")) => socket_options.push(SocketOption::PacketInfo),
            Some(Long("listen-all-nsid")) => socket_options.push(SocketOption::ListenAllNsid),
            Some(Long("systemd-compatibility")) => systemd = true,
            Some(Long("upstart-compatibility")) => upstart = true,
            Some(Long("name")) => {
                name = Some(options::value(
                    &mut parser,
                    "--name",
                    "1 to 255 printable ASCII characters without ':'",
                    |text| listen_fds::is_name(text.as_bytes()).then(|| text.into()),
                )?);
            }
            Some(Short('v') | Long("verbose")) => verbosity += 1,
            Some(Short('h') | Long("help")) => return Ok(Err(Request::Help)),
            Some(Short('V') | Long("version")) => return Ok(Err(Request::Version)),
            Some(Value(protocol)) => break read_protocol(&protocol)?,
            Some(argument) => return Err(argument.unexpected().into()),
            None => return Err(usage("PROTOCOL is missing: the netlink protocol")),
        }
    };
    if name.is_some() && !systemd {
        return Err(usage("--name needs --systemd-compatibility"));
    }
    let mut operands = parser.raw_args()?;
    let group = operands.next().ok_or_else(|| usage("GROUP is missing: the multicast group"))?;
    let groups = read_groups(&group)?;
    let program = operands
        .next()
        .ok_or_else(|| usage("NEXT-PROG is missing: the program that gets the socket"))?;
    Ok(Ok(Options {
        wanted: Wanted { protocol, groups, raw, receive_buffer_size, options: socket_options },
        systemd,
        upstart,
        name,
        verbosity,
        program,
        arguments: operands.collect(),
    }))
}

fn usage(text: &str) -> Fatal {
    Fatal::Usage(text.into())
}

fn read_protocol(text: &OsStr) -> Result<Protocol, Fatal> {
    text.to_str().and_then(Protocol::parse).ok_or_else(|| {
        Fatal::Usage(format!(
            "there is no protocol {}; there are: {}, and numbers",
            quoted(text),
            Protocol::names()
        ))
    })
}

fn read_groups(text: &OsStr) -> Result<Groups, Fatal> {
    text.to_str().and_then(Groups::parse).ok_or_else(|| {
        Fatal::Usage(format!(
            "group {}: expected a bit mask of up to 32 bits, or group:N[,N...]",
            quoted(text)
        ))
    })
}

fn hand_over(options: &Options) -> Result<HandOver, Fatal> {
    let mut hand_over = if options.systemd {
        let protocol = options.wanted.protocol.to_string();
        let name = options.name.as_deref().unwrap_or(OsStr::new(&protocol));
        let variable = |name: &str| std::env::var_os(name);
        HandOver::systemd(variable, std::process::id(), own_pidfd_inode, name)
            .map_err(Fatal::Usage)?
    } else {
        HandOver::plain()
    };
    if options.upstart {
        hand_over.add_upstart();
    }
    Ok(hand_over)
}

/// Goes on as the program, as execvp(3) does, in the present environment with
/// `variables` set or removed. Returns only if that fails.
fn become_program(
    program: &OsStr,
    arguments: &[OsString],
    variables: &[(&str, Option<OsString>)],
) -> io::Error {
    let result = || -> io::Result<io::Error> {
        let argv = std::iter::once(program).chain(arguments.iter().map(OsString::as_os_str));
        let argv = argv.map(c_string).collect::<io::Result<Vec<CString>>>()?;
        let environment = environment(variables)?;
        let path = std::env::var_os("PATH");
        let path = find_program(program, path.as_deref().unwrap_or(OsStr::new(DEFAULT_PATH)))?;
        let environment = || environment.iter().map(CString::as_c_str);
        let argv = || argv.iter().map(CString::as_c_str);
        let error = sys::execute(&path, argv(), environment());
        if Errno::from_io_error(&error) != Some(Errno::NOEXEC) {
            return Ok(error);
        }
        let shell = [c"/bin/sh", &path].into_iter().chain(argv().skip(1));
        Ok(sys::execute(c"/bin/sh", shell, environment()))
    };
    result().unwrap_or_else(|error| error)
}

/// The present environment with `variables` set in it, or removed from it; of the rest,
/// also what is no variable.
fn environment(variables: &[(&str, Option<OsString>)]) -> io::Result<Vec<CString>> {
    let is_set = |string: &CString| {
        let value_of = |name: &str| string.to_bytes().strip_prefix(name.as_bytes());
        variables.iter().any(|(set, _)| value_of(set).is_some_and(|rest| rest.starts_with(b"=")))
    };
    let mut environment = sys::environment();
    environment.retain(|string| !is_set(string));
    for (key, value) in variables {
        if let Some(value) = value {
            environment.push(CString::new([key.as_bytes(), b"=", value.as_bytes()].concat())?);
        }
    }
    Ok(environment)
}
