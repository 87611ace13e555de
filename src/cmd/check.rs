//! `plugd check`: what is wrong with the rules.

use std::path::PathBuf;

use lexopt::Arg::{Long, Short, Value};

use crate::error::Fatal;
use crate::rules::matcher::Matcher;
use crate::{logging, rule_files};

use super::{Command, Request, rules};

pub(super) const COMMAND: Command = Command {
    name: "check",
    alias: None,
    peer: false,
    summary: "Tells everything that is wrong with a file of rules, and does nothing else.",
    usage: "plugd check [FILE]",
    help: HELP,
    main,
};

const HELP: &str = "\
FILE is /etc/mdev.conf unless another one is given; the files *.conf in the
directory beside it, FILE.d, belong to it. Each mistake is told with its file,
line and column, and what was expected there. The daemon would refuse the files
for any of them. What is right, but can never work, is told as a warning, and is
no mistake.

Options:
  -h, --help     print this
  -V, --version  print the version

Exit codes: 0 nothing is wrong, 2 something is, 100 wrong usage, 111 a file
cannot be read and in the others nothing is wrong.

Examples:
      plugd check
      plugd check ./mdev.conf && cp mdev.conf /etc/ && pkill -HUP plugd
";

fn main(mut parser: lexopt::Parser, log_name: &'static str) -> Result<Request, Fatal> {
    let mut file = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Request::Help),
            Short('V') | Long("version") => return Ok(Request::Version),
            Value(path) if file.is_none() => file = Some(PathBuf::from(path)),
            argument => return Err(argument.unexpected().into()),
        }
    }
    let file = file.unwrap_or_else(|| rule_files::DEFAULT.into());
    logging::start(log_name, 0);
    match rules::load(&file)? {
        Some(rules) => match Matcher::new(&rules) {
            Ok(_) => Ok(Request::Done),
            Err(too_large) => Err(Fatal::Configuration(too_large.to_string())),
        },
        None => Err(Fatal::system(
            format_args!("read {}", file.as_os_str().as_encoded_bytes().escape_ascii()),
            rustix::io::Errno::NOENT,
        )),
    }
}
